"""The data of ``recipes/serve``: what each version knows, and what each profile asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from glmquant.errors import RecipeError
from glmquant.recipe import recipe_dir

Value = bool | int | float | str | list[int] | dict[str, Any]
"""Of an option, as YAML has it."""

DEFAULT_PROFILE: Final = "throughput"
DEFAULT_ENGINE: Final = "vllm-ascend"

Series = Annotated[str, Field(pattern=r"^\d+\.\d+$")]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


def series_key(series: str) -> tuple[int, ...]:
    """What orders versions: 0.9 before 0.13."""
    return tuple(int(part) for part in series.split("."))


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Span(_Data):
    """Some versions of an engine, the bounds included."""

    since: Series | None = None
    until: Series | None = None

    def covers(self, series: str) -> bool:
        """Whether a version is one of them."""
        key = series_key(series)
        return (self.since is None or series_key(self.since) <= key) and (
            self.until is None or key <= series_key(self.until)
        )


class Spelling(Span):
    """How some versions call an option: a variable, a flag, or a key in the JSON of a flag."""

    variable: Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")] | None = None
    flag: Annotated[str, Field(pattern=r"^--[a-z][a-z-]*$")] | None = None
    key: Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)*$")] | None = None
    on: str = "true"
    off: str = "false"
    source: Annotated[str, Field(min_length=10)]


class Parser(Span):
    """A parser of tool calls or of thinking, and which versions have it."""

    name: str
    source: Annotated[str, Field(min_length=10)]


class Parsers(_Data):
    """Parsers by what they read: thinking, and tool calls over lines (4.5, 4.6) or in one (4.7)."""

    reasoning: tuple[Parser, ...]
    lines: tuple[Parser, ...]
    inline: tuple[Parser, ...]


class Version(_Data):
    """A version of an engine, and its images by machine."""

    series: Series
    exact: str
    images: dict[Literal["a2", "a3"], str]
    source: Annotated[str, Field(min_length=10)]


class EngineData(_Data):
    """All that is known of an engine."""

    name: _Name
    title: str
    program: tuple[str, ...]
    default: Series
    container_shell: tuple[str, ...]
    proxy: str | None = None
    mooncake: str | None = None
    versions: tuple[Version, ...]
    options: dict[_Name, tuple[Spelling, ...]]
    parsers: Parsers

    def spelling(self, option: str, series: str) -> Spelling | None:
        """How a version calls an option; None where it does not know it."""
        spellings = self.options.get(option, ())
        return next((each for each in spellings if each.covers(series)), None)


class Role(_Data):
    """What a kind of node of a target does in it.

    Nodes that are apart are an engine each, others one together. With a ``kv_role`` each
    data-parallel rank is a process of its own, on ports from ``first_port`` on.
    """

    nodes: Annotated[int, Field(ge=1, le=64)]
    is_apart: bool = False
    kv_role: Literal["kv_producer", "kv_consumer"] | None = None
    kv_ports: tuple[int, ...] = ()
    rpc_port: int | None = None
    first_port: int | None = None


class Target(_Data):
    """Machines that serve together."""

    title: str
    machine: Literal["a2", "a3", "cpu"]
    roles: dict[_Name, Role]
    rpc_port: int | None = None
    since: Series | None = None
    caution: str | None = None
    may_lack_expert_parallel: bool = False

    @property
    def nodes(self) -> int:
        """How many machines there are."""
        return sum(role.nodes for role in self.roles.values())


class Targets(_Data):
    """The targets, and what is set for every profile that is not verbatim."""

    common: dict[_Name, Value]
    sglang: dict[_Name, Value]
    cpu: dict[_Name, Value]
    targets: dict[_Name, Target]


class Placement(_Data):
    """How a profile lays a model out on the nodes of a role, and what it sets there."""

    data_parallel: Annotated[int, Field(ge=1)]
    tensor_parallel: Annotated[int, Field(ge=1)]
    expert_parallel: bool = False
    options: dict[_Name, Value]


class Profile(_Data):
    """What a service is tuned for."""

    name: _Name
    summary: str
    source: Annotated[str, Field(min_length=10)]
    is_verbatim: bool = False
    options: dict[_Name, Value]
    targets: dict[_Name, dict[_Name, Placement]]


class Container(_Data):
    """What a container needs of its host."""

    devices: tuple[str, ...]
    card_device: str
    mounts: tuple[str, ...]
    shm_size: str
    mirror: str


_Model = TypeVar("_Model", bound=BaseModel)


def serve_dir() -> Path:
    """The folder of the data, installed or in a checkout."""
    return recipe_dir("serve")


def load_engine(name: str) -> EngineData:
    """What is known of an engine: ``vllm-ascend`` or ``sglang``."""
    return load(serve_dir() / f"{name}.yaml", EngineData)


def load_targets() -> Targets:
    """Where a model can be served."""
    return load(serve_dir() / "targets.yaml", Targets)


def load_container() -> Container:
    """What a container needs of its host."""
    return load(serve_dir() / "container.yaml", Container)


def load_profile(name: str) -> Profile:
    """A profile by its name."""
    return load(serve_dir() / "profiles" / f"{name}.yaml", Profile)


def load(path: Path, model: type[_Model]) -> _Model:
    """A file of the data, checked.

    Args:
        path: The file.
        model: What it has to be.

    Raises:
        RecipeError: It cannot be read, or is something else.
    """
    try:
        return model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecipeError(
            "data of serve is wrong",
            where=f"{path}: {'.'.join(map(str, first['loc']))}",
            expected=first["msg"],
            found=repr(first["input"])[:120],
            hint="install glmquant anew",
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecipeError(
            "data of serve cannot be read",
            where=str(path),
            expected="YAML in UTF-8",
            found=str(error),
            hint="install glmquant anew",
        ) from error
