"""Which models are where: names people type, repositories on hubs, and look-alikes refused by name.

Sizes are computed from the releases' config.json; the hub's own listing decides when one fetches.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from glmquant.errors import ArchitectureError, UsageError


class HubName(str, Enum):
    """The hubs, by the names of the command line."""

    MODELSCOPE = "modelscope"
    MODELERS = "modelers"
    HF = "hf"


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that has a short name.

    Attributes:
        alias: What people type.
        repositories: Hub → ``owner/name``; the first is where it is fetched from.
        form: ``BF16`` or ``W8A8``.
        nbytes: Of its weights, about.
        mtp_nbytes: Of its MTP layer in BF16; 0 where it has none.
        note: What else one has to know, or nothing.
    """

    alias: str
    repositories: dict[HubName, str]
    form: str
    nbytes: int
    mtp_nbytes: int
    note: str = ""

    @property
    def folder(self) -> str:
        """Where it is put when nothing else is said."""
        return next(iter(self.repositories.values())).partition("/")[2]


def _release(version: str, nbytes: int, mtp_nbytes: int, note: str = "") -> KnownModel:
    name = f"GLM-{version}"
    where = {HubName.MODELSCOPE: f"ZhipuAI/{name}", HubName.HF: f"zai-org/{name}"}
    return KnownModel(name.lower(), where, "BF16", nbytes, mtp_nbytes, note)


MODELS: Final = (
    _release("4.5", 716_680_000_000, 11_080_000_000),
    _release("4.5-Air", 220_930_000_000, 7_230_000_000),
    _release("4.6", 713_580_000_000, 7_980_000_000),
    _release("4.7", 713_580_000_000, 7_980_000_000, "sizes as those of 4.6: not seen yet"),
    KnownModel(
        "glm-4.5-w8a8",
        {HubName.MODELERS: "Modelers_Park/GLM-4.5-w8a8"},
        "W8A8",
        369_000_000_000,
        11_080_000_000,
        "float MTP layer inside",
    ),
    KnownModel(
        "glm-4.6-w8a8",
        {HubName.MODELERS: "Modelers_Park/GLM-4.6-w8a8"},
        "W8A8",
        358_000_000_000,
        0,
        "no MTP layer: glmquant add-mtp",
    ),
    KnownModel(
        "glm-4.7-w8a8",
        {HubName.MODELSCOPE: "Eco-Tech/GLM-4.7-W8A8-floatmtp"},
        "W8A8",
        366_000_000_000,
        7_980_000_000,
        "float MTP layer inside",
    ),
)

_LOOK_ALIKES: Final = (
    (re.compile(r"glm-?\d[\w.]*-?flash"), "GLM-4.7-Flash is Glm4MoeLite, with other tensors"),
    (re.compile(r"glm-?\d+(\.\d+)?v\b"), "the V models see pictures and have other tensors"),
    (re.compile(r"glm-?\d.*\bfp8\b"), "FP8 weights are quantized already: W8A8 is made of BF16"),
    (re.compile(r"glm-?5\b"), "GLM-5 is another architecture"),
    (re.compile(r"glm-?4\.[567].*\b(awq|gptq|gguf|int4|nvfp4|mxfp4)\b"), "it is quantized already"),
)

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository on a hub.

    Attributes:
        hub: Which.
        repository: ``owner/name``.
        known: The model it is, where we know it.
    """

    hub: HubName
    repository: str
    known: KnownModel | None

    @property
    def text(self) -> str:
        """As one types it: ``modelscope:ZhipuAI/GLM-4.6``."""
        return f"{self.hub.value}:{self.repository}"

    @property
    def folder(self) -> str:
        """Where it is put when nothing else is said."""
        return self.known.folder if self.known else self.repository.partition("/")[2]


def find_model(text: str, hub: HubName | None = None, folder: Path | None = None) -> Reference:
    """The repository that is meant.

    Args:
        text: An alias, or ``hub:owner/name``; ``owner/name`` where a hub is given.
        hub: The hub that the user asks for.
        folder: Where it is to go, for hints.

    Returns:
        Hub and repository; neither is asked whether it is there.

    Raises:
        UsageError: A path's name, an unknown name, a hub that lacks the model.
        ArchitectureError: The name of a look-alike.
    """
    prefix, colon, rest = text.partition(":")
    if not colon and os.path.lexists(text):
        known = _by_alias(text)
        raise UsageError(
            "that is the name of something here, and a path is never taken for a model's name",
            where=text,
            expected="a model's name that is no path, or hub:owner/name",
            found="a folder" if os.path.isdir(text) else "a file",  # noqa: PTH112
            hint=shlex.join(
                ["glmquant", "fetch", _first(known).text, *([str(folder)] if folder else [])]
            )
            if known
            else "glmquant models",
        )
    repository = rest if colon else text
    refuse_look_alike(repository)
    if colon:
        if prefix not in {each.value for each in HubName} or (hub and hub.value != prefix):
            raise UsageError(
                "there is no such hub" if not hub else "two hubs are named",
                where=text,
                expected=hub.value if hub else ", ".join(each.value for each in HubName),
                found=prefix,
                hint="glmquant models",
            )
        hub = HubName(prefix)
    if hub and is_repository(repository):
        return Reference(hub, repository, _by_repository(hub, repository))
    if hub and (colon or "/" in repository):
        bare, _, revision = repository.partition("@")
        raise UsageError(
            "that names no repository on a hub",
            where=text,
            expected=f"{hub.value}:OWNER/NAME, of letters, digits and . _ -",
            found=repository or "nothing behind the colon",
            hint=shlex.join(["glmquant", "fetch", f"{hub.value}:{bare}", "--revision", revision])
            if revision and is_repository(bare)
            else "glmquant models",
        )
    known = None if colon else _by_alias(repository)
    if known is None:
        raise UsageError(
            "no model of that name is known",
            where=text,
            expected=f"{', '.join(each.alias for each in MODELS)}, or hub:owner/name",
            found="another name",
            hint=f"glmquant fetch modelscope:{repository}"
            if is_repository(repository)
            else "glmquant models",
        )
    first = _first(known)
    if hub is None:
        return first
    if hub not in known.repositories:
        raise UsageError(
            f"{hub.value} is not known to have this model",
            where=text,
            expected=listed_hubs(known),
            found=hub.value,
            hint=f"glmquant fetch {known.alias} --hub {first.hub.value}",
        )
    return Reference(hub, known.repositories[hub], known)


def is_repository(text: str) -> bool:
    """Whether a text is ``owner/name`` as the hubs have them."""
    return _REPOSITORY.fullmatch(text) is not None


def refuse_look_alike(name: str) -> None:
    """Refuse models that are called almost like ours.

    Args:
        name: An alias or a repository's name.

    Raises:
        ArchitectureError: It is one.
    """
    short = name.rpartition("/")[2].lower()
    for pattern, reason in _LOOK_ALIKES:
        if pattern.search(short):
            raise ArchitectureError(
                "this is not one of GLM-4.5, 4.5-Air, 4.6 and 4.7 in BF16 or W8A8",
                where=name,
                expected="a model that glmquant models lists",
                found=reason,
                hint="glmquant models",
            )


def elsewhere(reference: Reference) -> str | None:
    """The command that fetches the same model from a hub that is known to have it.

    Args:
        reference: A repository that the hub turned out not to have.
    """
    short = reference.repository.rpartition("/")[2].lower()
    for known in MODELS:
        if short in (known.alias, known.folder.lower()):
            first = _first(known)
            if first.text != reference.text:
                return f"glmquant fetch {first.text}"
    return None


def listed_hubs(known: KnownModel) -> str:
    """The hubs that have a model, in words."""
    return " or ".join(f"{hub.value}:{name}" for hub, name in known.repositories.items())


def _first(known: KnownModel) -> Reference:
    hub, repository = next(iter(known.repositories.items()))
    return Reference(hub, repository, known)


def _by_alias(text: str) -> KnownModel | None:
    return next((each for each in MODELS if each.alias == text.lower()), None)


def _by_repository(hub: HubName, repository: str) -> KnownModel | None:
    lower = repository.lower()
    return next((each for each in MODELS if each.repositories.get(hub, "").lower() == lower), None)
