"""What can be wrong with a quantized checkpoint: each defect as a change of a finished folder.

The codes are those of ``glmquant verify``. A defect is done to tensors, index, description and
config.json together where somebody's tool would have kept them together, else to the one alone.
``RIGHT`` holds what must pass without a word.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import safetensors
from click.testing import CliRunner
from numpy.typing import NDArray

import glmquant
from glmquant.cli import main
from tests.builders import LAYOUTS, Recorded, build_checkpoint, random_tensor, write_shard
from tests.modelslim import (
    DYNAMIC,
    QUANTIZED,
    Tensor,
    dynamic_linear,
    make,
    static_linear,
    stored,
    to_f32,
)

Level = Literal["files", "values", "source"]
Apply = Callable[[Path], str]

BOTH_DESCRIPTIONS: Final = (
    "quant_model_description.json",
    "quant_model_description_w8a8_dynamic.json",
)
LEVELS: Final[tuple[Level, ...]] = ("files", "values", "source")
INDEX: Final = "model.safetensors.index.json"
DESCRIPTION: Final = "quant_model_description.json"
FIRST: Final = "model-00001-of-00003.safetensors"
SECOND: Final = "model-00002-of-00003.safetensors"
THIRD: Final = "model-00003-of-00003.safetensors"
MTP_FILE: Final = "mtp.safetensors"
MTP: Final = "model.layers.4."
DENSE: Final = "model.layers.0.mlp"
ATTENTION: Final = "model.layers.1.self_attn"
MOE: Final = "model.layers.2.mlp"
EXPERT: Final = f"{MOE}.experts.1"
EVERY_CODE: Final = frozenset(letter + digit for letter in "BCDFLMNPSW" for digit in "1234")


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong.

    Attributes:
        name: What it is.
        code: The code that must be among the findings.
        level: The lowest level of ``verify`` that must see it.
        apply: Damages a finished folder; gives what the finding must name.
        severity: Of the finding with that code.
        base: Which folder of BASES it is done to.
        or_codes: Codes that say as much.
        hides: Codes that cannot be seen beside it; all, too, where it is told of alone.
        options: More words for the command line.
    """

    name: str
    code: str
    level: Level
    apply: Apply
    severity: Literal["error", "warning"] = "error"
    base: str = "glmquant"
    or_codes: frozenset[str] = frozenset()
    hides: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()

    @property
    def codes(self) -> frozenset[str]:
        """Every code that will do."""
        return self.or_codes | {self.code}

    @property
    def is_met_by_loading(self) -> bool:
        """Whether a loader can meet it: values, side files and modes are nothing to it."""
        return self.level != "values" and self.code[0] in "DLMCFW"


BASES: Final[dict[str, Callable[[Recorded, Path], object]]] = {
    "v0": lambda source, folder: make(source, folder, layout="v0"),
    "v1": lambda source, folder: make(source, folder, layout="v1", arithmetic="f32"),
    "smooth": lambda source, folder: make(source, folder, layout="hf", smooth=True),
    "static": lambda source, folder: make(source, folder, layout="hf", static=True),
}
"""Right folders of other tools; ``glmquant`` and ``embedded`` are made by the command line."""


class Parts:
    """An output's tensors, index, description and config.json, to be changed together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self._index_path,) = folder.glob("*.index.json")
        self.index: dict[str, Any] = json.loads(self._index_path.read_bytes())
        self.weight_map: dict[str, str] = self.index["weight_map"]
        self.description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_bytes())
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
        self.shards = {path.name: read_shard(path) for path in sorted(folder.glob("*.safetensors"))}
        self._before = self._state()

    def _state(self) -> tuple[dict[str, dict[str, Tensor]], str, str, str]:
        texts = (json.dumps(part, indent=2) for part in self._json())
        return {file: dict(held) for file, held in self.shards.items()}, *texts  # type: ignore[return-value]

    def _json(self) -> tuple[dict[str, Any], ...]:
        return self.index, self.description, self.config

    def _nbytes(self, shards: dict[str, dict[str, Tensor]]) -> int:
        listed = set(self.weight_map.values())
        held = (tensors for file, tensors in shards.items() if file in listed)
        return sum(len(data) for tensors in held for _, _, data in tensors.values())

    def save(self) -> None:
        """Write what was changed, and nothing else."""
        paths = (self._index_path, self.folder / DESCRIPTION, self.folder / "config.json")
        grown = self._nbytes(self.shards) - self._nbytes(self._before[0])
        self.index["metadata"]["total_size"] += grown
        shards, *texts = self._state()
        for path, before, text in zip(paths, self._before[1:], texts, strict=True):
            if text != before:
                path.write_text(str(text))
        for file, tensors in shards.items():
            if tensors != self._before[0].get(file) and tensors:
                write_shard(self.folder / file, tensors)
            elif not tensors:
                (self.folder / file).unlink()

    def home(self, name: str) -> str:
        """The shard that holds a tensor."""
        return next(file for file, tensors in self.shards.items() if name in tensors)

    def tensor(self, name: str) -> Tensor:
        return self.shards[self.home(name)][name]

    def names(self, prefix: str) -> list[str]:
        return [name for held in self.shards.values() for name in held if name.startswith(prefix)]

    def put(self, name: str, tensor: Tensor, kind: str, file: str) -> None:
        """Add or replace a tensor in shard, index and description."""
        self.shards[file][name] = tensor
        self.weight_map[name] = file
        self.description[name] = kind

    def set(self, name: str, tensor: Tensor) -> None:
        """Replace a tensor's bytes alone."""
        self.shards[self.home(name)][name] = tensor

    def drop(self, name: str, *, described: bool = False, indexed: bool = False) -> None:
        """Take a tensor away, from the description and the index too unless told."""
        del self.shards[self.home(name)][name]
        if not indexed:
            del self.weight_map[name]
        if not described:
            del self.description[name]

    def linear_to(self, name: str, tensors: dict[str, Tensor], kind: str) -> None:
        """Replace a linear's tensors, its float bias excepted; ``name`` ends before the suffix."""
        file = self.home(f"{name}.weight")
        for old in self.names(f"{name}."):
            if not old.endswith(".bias"):
                self.drop(old)
        for suffix, tensor in tensors.items():
            self.put(f"{name}.{suffix}", tensor, kind, file)

    def linear_values(self, name: str) -> NDArray[np.float32]:
        """The float values of a linear, of whatever type."""
        dtype, shape, data = self.tensor(f"{name}.weight")
        if dtype != "I8":
            return to_f32((dtype, shape, data))
        rows = np.frombuffer(data, np.int8).reshape(shape).astype(np.float32)
        values: NDArray[np.float32] = rows * to_f32(self.tensor(f"{name}.weight_scale"))
        return values


def read_shard(path: Path) -> dict[str, Tensor]:
    """The tensors of a shard, read by the safetensors library."""
    entries = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    return {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for name, entry in entries
    }


def edit(change: Callable[[Parts], str]) -> Apply:
    """A change of the parts of a folder, saved."""

    def apply(folder: Path) -> str:
        parts = Parts(folder)
        named = change(parts)
        parts.save()
        return named

    return apply


def raw(name: str, change: Callable[[NDArray[Any]], object]) -> Apply:
    """A change of a tensor's stored words in place: int8, or the bits of a float."""

    def alter(parts: Parts) -> str:
        dtype, shape, data = parts.tensor(name)
        kind = {"I8": np.int8, "BF16": np.uint16, "F32": np.uint32, "I32": np.int32}[dtype]
        words = np.frombuffer(data, kind).reshape(shape).copy()
        change(words)
        assert words.tobytes() != data, name
        parts.set(name, (dtype, shape, words.tobytes()))
        return name

    return edit(alter)


def floats(name: str, change: Callable[[NDArray[np.float32]], object], named: str = "") -> Apply:
    """A change of a float tensor's values in place, its dtype kept."""

    def alter(parts: Parts) -> str:
        dtype, shape, data = parts.tensor(name)
        values = to_f32((dtype, shape, data)).copy()
        change(values)
        changed = stored(values, dtype)
        assert changed[2] != data, name
        parts.set(name, changed)
        return named or name

    return edit(alter)


def assign(where: Any, value: float) -> Callable[[NDArray[Any]], None]:
    """Sets elements."""

    def change(values: NDArray[Any]) -> None:
        values[where] = value

    return change


def multiply(where: Any, factor: float) -> Callable[[NDArray[Any]], None]:
    """Multiplies elements."""

    def change(values: NDArray[Any]) -> None:
        values[where] *= factor

    return change


def flip(bit: int) -> Callable[[NDArray[Any]], None]:
    """Flips one bit of the last element."""

    def change(words: NDArray[Any]) -> None:
        words.reshape(-1)[-1] ^= 1 << bit

    return change


def drop(name: str, *, described: bool = False, indexed: bool = False, named: str = "") -> Apply:
    """A tensor that is not there."""

    def change(parts: Parts) -> str:
        parts.drop(name, described=described, indexed=indexed)
        return named or name

    return edit(change)


def drop_all(prefix: str, *, described: bool = False, named: str = "") -> Apply:
    """All tensors under a prefix that are not there."""

    def change(parts: Parts) -> str:
        for name in parts.names(prefix):
            parts.drop(name, described=described)
        if not described:
            for name in [name for name in parts.description if name.startswith(prefix)]:
                del parts.description[name]
        return named or prefix

    return edit(change)


def recast(name: str, dtype: str, shape: tuple[int, ...] | None = None, named: str = "") -> Apply:
    """A tensor of another dtype or shape; int8 becomes a float of the same values."""

    def change(parts: Parts) -> str:
        held, old_shape, data = parts.tensor(name)
        if held == dtype:
            tensor: Tensor = (held, shape or old_shape, data)
        else:
            values = (
                np.frombuffer(data, np.int8).reshape(old_shape).astype(np.float32)
                if held == "I8"
                else to_f32((held, old_shape, data))
            )
            if dtype == "F16":
                tensor = (dtype, shape or old_shape, values.astype(np.float16).tobytes())
            else:
                tensor = (dtype, shape or old_shape, stored(values, dtype)[2])
        parts.set(name, tensor)
        return named or name

    return edit(change)


def add(name: str, tensor: Tensor, kind: str = "FLOAT", file: str = SECOND) -> Apply:
    """A tensor that should not be there."""

    def change(parts: Parts) -> str:
        parts.put(name, tensor, kind, file)
        return name

    return edit(change)


def describe(key: str, value: Any) -> Apply:
    """Another entry in the description."""

    def change(parts: Parts) -> str:
        parts.description[key] = value
        return key

    return edit(change)


def describe_as(prefix: str, kind: Any, suffix: str = "") -> Apply:
    """Another type for every tensor under a prefix, its float biases excepted."""

    def change(parts: Parts) -> str:
        for name in parts.description:
            if name.startswith(prefix) and name.endswith(suffix) and not name.endswith(".bias"):
                parts.description[name] = kind
        return prefix.rstrip(".")

    return edit(change)


def undescribe(prefix: str) -> Apply:
    """No entry in the description under a prefix."""

    def change(parts: Parts) -> str:
        for name in [name for name in parts.description if name.startswith(prefix)]:
            del parts.description[name]
        return prefix

    return edit(change)


def configure(key: str, value: Any) -> Apply:
    """Another value in config.json; None takes the key away."""

    def change(parts: Parts) -> str:
        parts.config[key] = value
        if value is None:
            del parts.config[key]
        return key

    return edit(change)


def to_float(*linears: str, named: str = "") -> Apply:
    """Linears back in BF16, described as FLOAT."""

    def change(parts: Parts) -> str:
        for name in linears:
            weight = stored(parts.linear_values(name), "BF16")
            parts.linear_to(name, {"weight": weight}, "FLOAT")
        return named or linears[0]

    return edit(change)


def to_dynamic(*linears: str, named: str = "") -> Apply:
    """Linears as W8A8_DYNAMIC, consistently."""

    def change(parts: Parts) -> str:
        for name in linears:
            parts.linear_to(name, dynamic_linear(parts.linear_values(name), "f32", "F32"), DYNAMIC)
        return named or linears[0]

    return edit(change)


def to_static(*linears: str, named: str = "") -> Apply:
    """Linears as static W8A8, consistently."""

    def change(parts: Parts) -> str:
        for name in linears:
            parts.linear_to(name, static_linear(parts.linear_values(name), None, "f32"), "W8A8")
        return named or linears[0]

    return edit(change)


def mtp_to_int8(*, with_eh_proj: bool, described: bool = True) -> Apply:
    """The MTP layer's linears in int8."""

    def change(parts: Parts) -> str:
        for weight in parts.names(MTP):
            is_linear = QUANTIZED.search(weight) or (
                with_eh_proj and weight.endswith("eh_proj.weight")
            )
            if is_linear:
                name = weight.removesuffix(".weight")
                linear = dynamic_linear(parts.linear_values(name), "f32", "F32")
                parts.linear_to(name, linear, DYNAMIC if described else "FLOAT")
        return f"{MTP}eh_proj" if with_eh_proj else MTP

    return edit(change)


def widen_mtp(parts: Parts) -> str:
    for name in parts.names(MTP):
        parts.set(name, stored(to_f32(parts.tensor(name)), "F32"))
    return MTP


def other_mtp(parts: Parts) -> str:
    """Finite, of the right shapes, and of another model."""
    for name in parts.names(MTP):
        dtype, shape, data = parts.tensor(name)
        parts.set(name, (dtype, shape, random_tensor(name, dtype, shape, seed=1)))
        assert parts.tensor(name)[2] != data, name
    return MTP


def move_mtp(parts: Parts) -> str:
    """The MTP layer one index too high."""
    for name in parts.names(MTP):
        parts.put(name.replace(MTP, "model.layers.5."), parts.tensor(name), "FLOAT", MTP_FILE)
        parts.drop(name)
    for name in [name for name in parts.description if name.startswith(MTP)]:
        parts.description[name.replace(MTP, "model.layers.5.")] = parts.description.pop(name)
    return ""


def swap(first: str, second: str, *, named: str = "") -> Apply:
    """Two linears in each other's place."""

    def change(parts: Parts) -> str:
        for name in parts.names(f"{first}."):
            other = name.replace(f"{first}.", f"{second}.")
            one, two = parts.tensor(name), parts.tensor(other)
            parts.set(name, two)
            parts.set(other, one)
        return named or first

    return edit(change)


def swap_halves(parts: Parts) -> str:
    name = f"{MTP}eh_proj.weight"
    dtype, shape, data = parts.tensor(name)
    words = np.frombuffer(data, np.uint16).reshape(shape)
    half = shape[1] // 2
    swapped = np.concatenate([words[:, half:], words[:, :half]], axis=1)
    parts.set(name, (dtype, shape, swapped.tobytes()))
    return name


def double_scales(parts: Parts) -> str:
    for name in parts.names(""):
        if name.endswith("weight_scale"):
            dtype, _, _ = tensor = parts.tensor(name)
            parts.set(name, stored(to_f32(tensor) * np.float32(2), dtype))
    return f"{EXPERT}.gate_proj.weight"


def two_homes(parts: Parts) -> str:
    name = f"{ATTENTION}.q_proj.bias"
    parts.shards[MTP_FILE][name] = parts.tensor(name)
    return name


def wrong_home(parts: Parts) -> str:
    name = "model.norm.weight"
    parts.weight_map[name] = FIRST
    return name


def unindexed(parts: Parts) -> str:
    name = "model.norm.weight"
    del parts.weight_map[name]
    return name


def nothing_there(parts: Parts) -> str:
    name = "model.layers.1.self_attn.g_proj.weight"
    parts.weight_map[name] = FIRST
    return name


def mtp_unlisted(parts: Parts) -> str:
    for name in parts.names(MTP):
        del parts.weight_map[name]
    return MTP_FILE


def renamed_shard(file: str) -> Apply:
    """The MTP shard under a name that engines read otherwise."""

    def change(parts: Parts) -> str:
        parts.shards[file] = dict(parts.shards[MTP_FILE])
        parts.shards[MTP_FILE].clear()
        for name in parts.shards[file]:
            parts.weight_map[name] = file
        return file

    return edit(change)


def only_part_of_quantization_config(parts: Parts) -> str:
    parts.config["quantization_config"] = {
        "quant_method": "ascend",
        f"{ATTENTION}.q_proj.weight": DYNAMIC,
    }
    return "quantization_config"


def config_behind_the_description(parts: Parts) -> str:
    """The embedded copy says another type for one float tensor."""
    parts.config["quantization_config"]["lm_head.weight"] = DYNAMIC
    return "quantization_config"


def more_experts_in_config(parts: Parts) -> str:
    parts.config["n_routed_experts"] += 1
    return "n_routed_experts"


def flatten_row(parts: Parts) -> str:
    name = f"{EXPERT}.up_proj.weight"
    dtype, shape, data = parts.tensor(name)
    rows = np.frombuffer(data, np.int8).reshape(shape).copy()
    rows[3] = 5
    parts.set(name, (dtype, shape, rows.tobytes()))
    return name


def stretch_row(name: str, factor: float) -> Apply:
    """A row rounded with a scale that is too large: each element within a step, fewer levels."""

    def change(parts: Parts) -> str:
        weight = f"{name}.weight"
        dtype, shape, data = parts.tensor(weight)
        rows = np.frombuffer(data, np.int8).reshape(shape).copy()
        scales = to_f32(parts.tensor(f"{name}.weight_scale")).copy()
        rows[0] = np.rint(rows[0] / factor)
        scales[0] *= np.float32(factor)
        parts.set(weight, (dtype, shape, rows.tobytes()))
        parts.set(f"{name}.weight_scale", stored(scales, "F32"))
        return name

    return edit(change)


def file_gone(name: str) -> Apply:
    def apply(folder: Path) -> str:
        (folder / name).unlink()
        return name

    return apply


def file_text(name: str, text: str, named: str = "") -> Apply:
    """A file with another content, or one that should not be there."""

    def apply(folder: Path) -> str:
        (folder / name).write_text(text)
        return named or name

    return apply


def file_bytes(name: str, change: Callable[[bytes], bytes]) -> Apply:
    def apply(folder: Path) -> str:
        path = folder / name
        path.write_bytes(change(path.read_bytes()))
        return name

    return apply


def mode(name: str, bits: int) -> Apply:
    def apply(folder: Path) -> str:
        (folder / name).chmod(bits)
        return name

    return apply


def copy_file(name: str, to: str) -> Apply:
    def apply(folder: Path) -> str:
        (folder / to).write_bytes((folder / name).read_bytes())
        return to

    return apply


def dead_link(folder: Path) -> str:
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to("blobs/no-such-blob")
    return SECOND


def folder_for_a_shard(folder: Path) -> str:
    (folder / SECOND).unlink()
    (folder / SECOND).mkdir()
    return SECOND


def pipe_for_a_shard(folder: Path) -> str:
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)
    return SECOND


def link_to_itself(folder: Path) -> str:
    (folder / THIRD).unlink()
    (folder / THIRD).symlink_to(THIRD)
    return THIRD


def wrong_total(parts: Parts) -> str:
    parts.index["metadata"]["total_size"] += 1
    return "total_size"


def stale_shard(folder: Path) -> str:
    """What stays when somebody quantizes in place: a BF16 shard under its old name."""
    name = "model-00002-of-00092.safetensors"
    weight = (np.arange(32 * 16, dtype=np.float32) / 1000).reshape(32, 16)
    write_shard(folder / name, {f"{ATTENTION}.q_proj.weight": stored(weight, "BF16")})
    return name


def bf16_index_beside(folder: Path) -> str:
    """The source's index beside a ModelSlim checkpoint: vLLM discards the quantized shards."""
    shard = "model-00001-of-00001.safetensors"
    index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
    (folder / INDEX).write_text(json.dumps(index))
    return INDEX


def header(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", data[:8])
    parsed: dict[str, Any] = json.loads(data[8 : 8 + length])
    return parsed


def with_header(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """A shard with another header before the same data."""

    def rewrite(data: bytes) -> bytes:
        (length,) = struct.unpack("<Q", data[:8])
        fields = header(data)
        change(fields)
        text = json.dumps(fields).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text + data[8 + length :]

    return rewrite


def overlap(fields: dict[str, Any]) -> None:
    """Two tensors on the same bytes."""
    same = [
        entry
        for name, entry in fields.items()
        if name.endswith((f"{EXPERT}.gate_proj.weight", f"{EXPERT}.up_proj.weight"))
    ]
    same[0]["data_offsets"] = same[1]["data_offsets"]


def no_such_dtype(fields: dict[str, Any]) -> None:
    fields[f"{EXPERT}.gate_proj.weight"]["dtype"] = "INT8"


def twice(text: str, key: str, value: str) -> str:
    """JSON text with a key of its outer object, or of the weight map, a second time."""
    opening = '"weight_map": {' if '"weight_map"' in text else "{"
    head, _, tail = text.partition(opening)
    return f'{head}{opening}"{key}": {value}, {tail}'


def duplicate(file: str, key: str, value: str) -> Apply:
    def apply(folder: Path) -> str:
        path = folder / file
        path.write_text(twice(path.read_text(), key, value))
        return file

    return apply


def wide(count: int = 16) -> Tensor:
    return stored(np.linspace(0.5, 1.5, count, dtype=np.float32), "BF16")


def _maker(level: Level) -> Callable[..., Defect]:
    """Makes the defects of a level; codes as words, ``*`` for every code."""

    def make_one(
        code: str, name: str, apply: Apply, *, or_codes: str = "", hides: str = "", **more: Any
    ) -> Defect:
        hidden = EVERY_CODE if hides == "*" else frozenset(hides.split())
        return Defect(
            name, code, level, apply, or_codes=frozenset(or_codes.split()), hides=hidden, **more
        )

    return make_one


files, values, source = (_maker(level) for level in LEVELS)


def _by_description() -> Iterator[Defect]:
    q, o = f"{ATTENTION}.q_proj", f"{ATTENTION}.o_proj"
    yield files(
        "D1",
        "a weight without an entry in the description",
        undescribe(f"{q}.weight"),
        or_codes="D3",
    )
    yield files("D1", "one expert without entries in the description", undescribe(f"{EXPERT}."))
    yield files(
        "D1",
        "an entry in the description without a tensor",
        describe("model.layers.0.self_attn.g_proj.weight", "FLOAT"),
    )
    yield files(
        "D1", "MTP keys absent from the description", undescribe(MTP), or_codes="D2", hides="D2 D4"
    )
    yield files(
        "D1",
        "the description lacks the MTP layer's shared_head.head",
        undescribe(f"{MTP}shared_head.head.weight"),
        or_codes="D2",
    )
    yield files(
        "D1",
        "the description lacks the MTP layer's embed_tokens",
        undescribe(f"{MTP}embed_tokens.weight"),
        or_codes="D2",
    )
    yield files("D1", "the description lacks an o_proj", undescribe(f"{o}.weight"))
    yield files("D1", "no description", file_gone(DESCRIPTION), hides="*")
    yield files(
        "D1",
        "a description that is no JSON",
        file_bytes(DESCRIPTION, lambda data: data[:-20]),
        hides="*",
    )
    yield files("D1", "a description that is a list", file_text(DESCRIPTION, "[]"), hides="*")
    yield files(
        "D1",
        "a key twice in the description",
        duplicate(DESCRIPTION, f"{q}.weight", '"FLOAT"'),
        or_codes="D3 D4",
        hides="D1 D2 D3 D4 L1",
    )
    yield files("D4", "an unknown type", describe_as(f"{o}.", "W4A8"))
    yield files("D4", "a type in small letters", describe_as(f"{o}.", "w8a8_dynamic"))
    yield files("D4", "a type that is a number", describe_as(f"{o}.", 8), or_codes="D1")
    yield files(
        "D4",
        "an unknown type for one expert",
        describe_as(f"{EXPERT}.down_proj.", "W4A8_DYNAMIC"),
        or_codes="D3",
    )
    yield files(
        "D4",
        "static experts",
        to_static(
            *(f"{MOE}.experts.{e}.{p}_proj" for e in range(4) for p in ("gate", "up", "down"))
        ),
    )
    yield files(
        "D4",
        "one static expert",
        to_static(*(f"{EXPERT}.{part}_proj" for part in ("gate", "up", "down"))),
        or_codes="D3",
    )
    yield files(
        "D4",
        "a static shared expert",
        to_static(*(f"{MOE}.shared_experts.{part}_proj" for part in ("gate", "up", "down"))),
    )
    yield files(
        "D4",
        "a norm described as W8A8_DYNAMIC",
        describe_as("model.layers.1.input_layernorm.weight", DYNAMIC),
        or_codes="L1 D1",
    )
    yield files(
        "D4",
        "an embedding described as W8A8_DYNAMIC",
        describe_as("model.embed_tokens.weight", DYNAMIC),
        or_codes="L1",
    )
    yield files(
        "D4",
        "a router described as W8A8_DYNAMIC",
        describe_as(f"{MOE}.gate.weight", DYNAMIC),
        or_codes="L1",
    )
    yield files("D4", "a quantized head", to_dynamic("lm_head"), or_codes="L1")
    yield files(
        "D1",
        "a norm.bias key in the description",
        describe("model.layers.1.input_layernorm.bias", "FLOAT"),
        or_codes="D4",
    )
    yield files(
        "D1",
        "a norm.bias tensor, described",
        add("model.layers.2.input_layernorm.bias", wide()),
        or_codes="D4",
    )
    yield files("D3", "q in int8 and k float", to_float(f"{ATTENTION}.k_proj"))
    yield files("D3", "v alone float", to_float("model.layers.3.self_attn.v_proj"))
    yield files("D3", "q static and k, v dynamic", to_static("model.layers.0.self_attn.q_proj"))
    yield files(
        "D3",
        "expert 3 float among int8 ones",
        to_float(*(f"{MOE}.experts.3.{p}_proj" for p in ("gate", "up", "down"))),
    )
    yield files(
        "D3",
        "one down_proj float among int8 experts",
        to_float("model.layers.3.mlp.experts.2.down_proj"),
    )
    yield files(
        "D3",
        "gate of a dense MLP in int8 and up float",
        to_dynamic(f"{DENSE}.gate_proj", named=f"{DENSE}."),
    )
    yield files(
        "D3",
        "up of a shared expert in int8 and gate float",
        to_dynamic(f"{MOE}.shared_experts.up_proj", named=f"{MOE}.shared_experts."),
        hides="D4",
    )


def _by_linear() -> Iterator[Defect]:
    scale = f"{EXPERT}.down_proj.weight_scale"
    linear = f"{EXPERT}.down_proj"
    q = "model.layers.0.self_attn.q_proj"
    yield files(
        "L1",
        "one expert's weight_scale missing, and nobody speaks of it",
        drop(scale, named=linear),
    )
    yield files(
        "D1",
        "one expert's weight_scale missing",
        drop(scale, described=True, named=linear),
        or_codes="L1",
    )
    yield files(
        "D1",
        "one expert's weight_scale listed but not there",
        drop(scale, described=True, indexed=True, named=linear),
        or_codes="F1 L1",
    )
    yield files("L1", "a weight_offset missing", drop(f"{q}.weight_offset", named=q))
    yield files("L1", "a quant_bias missing", drop(f"{q}.quant_bias", named=q), base="static")
    yield files("L1", "a deq_scale missing", drop(f"{q}.deq_scale", named=q), base="static")
    yield files("L1", "an input_scale missing", drop(f"{q}.input_scale", named=q), base="static")
    yield files(
        "L1", "an input_scale for each column", edit(_per_column_input_scale), base="static"
    )
    yield files("L1", "a float quant_bias", edit(_float_quant_bias), base="static")
    yield files("L1", "a 1-D scale", recast(f"{q}.weight_scale", "F32", (32,), q))
    yield files("L1", "a scale as a row", recast(f"{q}.weight_scale", "F32", (1, 32), q))
    yield files("L1", "an F16 scale", recast(f"{q}.weight_scale", "F16", None, q))
    yield files("L1", "a 1-D offset", recast(f"{q}.weight_offset", "F32", (32,), q))
    yield files(
        "L1",
        "an int8 weight under the type FLOAT",
        describe_as(f"{ATTENTION}.o_proj.", "FLOAT"),
        or_codes="D1",
    )
    yield files(
        "L1",
        "a float weight under the type W8A8_DYNAMIC",
        recast(f"{ATTENTION}.o_proj.weight", "BF16", None, f"{ATTENTION}.o_proj"),
    )
    yield files(
        "L1",
        "a float dense MLP described as W8A8_DYNAMIC",
        describe_as(f"{DENSE}.", DYNAMIC),
        or_codes="D1",
    )
    yield files(
        "L1",
        "a weight [in, out]",
        recast(f"{EXPERT}.gate_proj.weight", "I8", (16, 12), f"{EXPERT}.gate_proj"),
        or_codes="C4",
    )
    yield files(
        "L1",
        "a 2-D bias",
        recast(f"{ATTENTION}.q_proj.bias", "BF16", (32, 1), f"{ATTENTION}.q_proj"),
    )
    yield files("L1", "an F16 bias", recast(f"{ATTENTION}.k_proj.bias", "F16"))
    yield files(
        "L1",
        "a bias missing everywhere",
        drop(f"{ATTENTION}.k_proj.bias", named=f"{ATTENTION}.k_proj"),
        or_codes="D1",
    )
    yield files(
        "D1",
        "a norm missing everywhere",
        drop("model.layers.1.post_attention_layernorm.weight"),
        or_codes="L1 C4",
    )
    yield files(
        "D1",
        "a q_norm missing everywhere",
        drop("model.layers.1.self_attn.q_norm.weight"),
        or_codes="L1 C4",
    )
    yield files("D1", "the head missing everywhere", drop("lm_head.weight"), or_codes="L1 C4")
    yield files(
        "D1",
        "an unknown tensor",
        add("model.layers.1.self_attn.extra.weight", wide()),
        or_codes="L1",
    )
    yield files(
        "D1",
        "an unknown tensor in the MTP layer",
        add(f"{MTP}hproj.weight", wide(), file=MTP_FILE),
        or_codes="D2 L1",
    )
    yield files(
        "D1", "a bias at an expert", add(f"{EXPERT}.gate_proj.bias", wide(12)), or_codes="L1"
    )
    yield files(
        "D1",
        "a scale beside a float weight",
        add(f"{MOE}.shared_experts.down_proj.weight_scale", stored(np.ones((16, 1)), "F32")),
        or_codes="L1",
    )


def _per_column_input_scale(parts: Parts) -> str:
    name = "model.layers.0.self_attn.q_proj.input_scale"
    parts.set(name, stored(np.full(16, 0.05, np.float32), "BF16"))
    return name.removesuffix(".input_scale")


def _float_quant_bias(parts: Parts) -> str:
    name = "model.layers.0.self_attn.q_proj.quant_bias"
    _, shape, data = parts.tensor(name)
    values = np.frombuffer(data, np.int32).astype(np.float32).reshape(shape)
    parts.set(name, stored(values, "F32"))
    return name.removesuffix(".quant_bias")


def _other_input_scale(parts: Parts) -> str:
    linear = "model.layers.1.self_attn.k_proj"
    for suffix in ("input_scale", "deq_scale"):
        tensor = parts.tensor(f"{linear}.{suffix}")
        parts.set(f"{linear}.{suffix}", stored(to_f32(tensor) * np.float32(2), tensor[0]))
    return linear


def _by_file() -> Iterator[Defect]:
    shard = "W1 F1"
    yield files("F1", "the stale BF16 shard", stale_shard)
    yield files("F1", "an index that lacks the MTP shard", edit(mtp_unlisted))
    yield files("D1", "an index that lacks a tensor", edit(unindexed), or_codes="F1")
    yield files(
        "D1", "an index that lists a tensor that is nowhere", edit(nothing_there), or_codes="F1"
    )
    yield files("D1", "an index that names the wrong shard", edit(wrong_home), or_codes="F1")
    yield files("D1", "a tensor in two shards", edit(two_homes), or_codes="F1", hides="L1")
    yield files("F1", "a shard that is not there", file_gone(SECOND))
    yield files("F1", "the MTP shard is not there", file_gone(MTP_FILE))
    yield files("F1", "a shard as a dead link", dead_link, or_codes=shard)
    yield files("F1", "a folder in a shard's place", folder_for_a_shard, or_codes=shard)
    yield files("F1", "a pipe in a shard's place", pipe_for_a_shard, or_codes=shard)
    yield files("F1", "a shard that links to itself", link_to_itself, or_codes=shard)
    yield files("F1", "no index", file_gone(INDEX), hides="*")
    yield files(
        "F1", "an index that is no JSON", file_bytes(INDEX, lambda data: data[:-30]), hides="*"
    )
    yield files(
        "F1",
        "a key twice in the index",
        duplicate(INDEX, "lm_head.weight", f'"{FIRST}"'),
        or_codes="D1",
        hides="D1 F1",
    )
    yield files(
        "F1",
        "an index without a weight map",
        file_text(INDEX, '{"metadata": {}}'),
        or_codes="D1",
        hides="*",
    )
    yield files(
        "F1",
        "an index that names a number for a shard",
        file_bytes(INDEX, lambda data: data.replace(f'"{THIRD}"'.encode(), b"3")),
        hides="*",
    )
    yield files(
        "F1",
        "an index that leaves the folder",
        file_bytes(INDEX, lambda data: data.replace(f'"{THIRD}'.encode(), f'"../{THIRD}'.encode())),
        hides="*",
    )
    yield files("F1", "a wrong total_size", edit(wrong_total), severity="warning", hides="*")
    yield files(
        "F1", "a second index", copy_file(INDEX, "quant_model_weights.safetensors.index.json")
    )
    yield files(
        "F1", "the BF16 index beside quant_model_weights shards", bf16_index_beside, base="v1"
    )
    yield files("F1", "a stray shard beside quant_model_weights shards", stale_shard, base="v1")
    yield files(
        "F1", "a stray consolidated.safetensors", copy_file(MTP_FILE, "consolidated.safetensors")
    )
    yield files(
        "F1", "an indexed shard called consolidated", renamed_shard("consolidated-mtp.safetensors")
    )
    yield files(
        "F1",
        "what is left of an interrupted run",
        copy_file(MTP_FILE, f"{MTP_FILE}.part"),
        severity="warning",
    )
    yield files("F2", "one shard for its owner alone", mode(SECOND, 0o600))
    yield files("F2", "one shard that can only be read by its owner", mode(THIRD, 0o400))
    yield files("F2", "the description for its owner alone", mode(DESCRIPTION, 0o600))
    yield files("F2", "config.json for its owner alone", mode("config.json", 0o600))
    yield files("F2", "shards for the group, the rest for all", _shards_for_the_group)
    half = file_bytes(SECOND, lambda data: data[: len(data) // 2])
    yield files("W1", "a truncated shard", half)
    yield files("W1", "a shard that lacks its last byte", file_bytes(THIRD, lambda data: data[:-1]))
    yield files("W1", "a shard with a byte too many", file_bytes(THIRD, lambda data: data + b"\0"))
    yield files(
        "W1",
        "a shard whose header is noise",
        file_bytes(SECOND, lambda data: data[:8] + bytes(range(200)) + data[208:]),
    )
    yield files(
        "W1",
        "a shard whose header is longer than the file",
        file_bytes(SECOND, lambda data: struct.pack("<Q", 1 << 40) + data[8:]),
    )
    yield files(
        "W1",
        "an LFS pointer for a shard",
        file_text(
            SECOND,
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 16928\n",
        ),
        or_codes=shard,
    )
    yield files("W1", "an empty shard", file_text(SECOND, ""), or_codes=shard)
    yield files("W1", "a web page for a shard", file_text(MTP_FILE, "<!DOCTYPE html><html></html>"))
    yield files("W1", "two tensors on the same bytes", file_bytes(SECOND, with_header(overlap)))
    yield files("W1", "a dtype that does not exist", file_bytes(SECOND, with_header(no_such_dtype)))


def _shards_for_the_group(folder: Path) -> str:
    for path in folder.glob("*.safetensors"):
        path.chmod(0o640)
    return FIRST


def _by_value() -> Iterator[Defect]:
    q = f"{ATTENTION}.q_proj"
    nan, infinite = float("nan"), float("inf")
    for name, where, value, what in (
        ("model.layers.1.input_layernorm.weight", 3, nan, "NaN in a norm"),
        (f"{q}.bias", 7, nan, "NaN in a bias"),
        (f"{MOE}.gate.weight", (0, 0), nan, "NaN in a router"),
        ("lm_head.weight", (63, 15), nan, "NaN in the head's last element"),
        ("model.embed_tokens.weight", (5, 5), infinite, "Inf in the embedding"),
        (f"{DENSE}.down_proj.weight", (1, 1), -infinite, "-Inf in a dense MLP"),
        (f"{MTP}eh_proj.weight", (2, 30), nan, "NaN in eh_proj"),
        (f"{MTP}mlp.experts.2.up_proj.weight", (0, 3), infinite, "Inf in an MTP expert"),
    ):
        yield values("W2", what, floats(name, assign(where, value)))
    yield values(
        "W2",
        "NaN in a router bias",
        floats("model.layers.3.mlp.gate.e_score_correction_bias", assign(1, nan)),
        or_codes="M1",
    )
    scale = f"{EXPERT}.gate_proj.weight_scale"
    for value, what in (
        (nan, "NaN in a scale"),
        (infinite, "Inf in a scale"),
        (0.0, "a zero scale"),
        (-0.001, "a negative scale"),
        (1e-41, "a scale that BF16 cannot hold"),
    ):
        codes = "W2" if not np.isfinite(value) else ""
        yield values("W3", what, floats(scale, assign((4, 0), value)), or_codes=codes)
    yield values("W3", "a nonzero offset", floats(f"{q}.weight_offset", assign((31, 0), 1.0)))
    yield values(
        "W3",
        "NaN in an offset",
        floats("model.layers.3.self_attn.k_proj.weight_offset", assign((0, 0), nan)),
        or_codes="W2",
    )
    yield values("W3", "a constant int8 row", edit(flatten_row))
    yield values(
        "W3",
        "an int8 row of -127 alone",
        raw("model.layers.3.self_attn.o_proj.weight", assign(0, -127)),
    )
    static_q = "model.layers.0.self_attn.q_proj"
    for suffix, value in (("deq_scale", 0.0), ("input_scale", -0.5), ("deq_scale", nan)):
        yield values(
            "W3",
            f"{value} in a static {suffix}",
            floats(f"{static_q}.{suffix}", assign(0, value)),
            base="static",
            or_codes="W2" if not np.isfinite(value) else "",
        )
    yield values(
        "W3",
        "q, k and v of different input scales",
        edit(_other_input_scale),
        base="static",
        or_codes="D3 L1",
    )
    yield values(
        "B1", "one flipped bit in an int8 weight", raw(f"{MOE}.experts.0.down_proj.weight", flip(0))
    )
    yield values("B1", "one flipped bit in a float weight", raw("lm_head.weight", flip(3)))
    yield values("B1", "one flipped bit in a scale", raw(f"{q}.weight_scale", flip(20)))
    yield values(
        "B1",
        "a tokenizer that is not the manifest's",
        file_bytes("tokenizer.json", lambda data: data + b"\n"),
        or_codes="S1",
    )
    yield values(
        "B1",
        "a manifest that is no JSON",
        file_bytes("glmquant_manifest.json", lambda data: data[:200]),
        hides="B1",
    )


def _by_model() -> Iterator[Defect]:
    bias = f"{MOE}.gate.e_score_correction_bias"
    mtp_bias = f"{MTP}mlp.gate.e_score_correction_bias"
    yield files("M1", "a router bias absent", drop(bias))
    yield files("M1", "a router bias absent but described", drop(bias, described=True))
    yield files("M1", "the MTP layer's router bias absent", drop(mtp_bias))
    yield files("M1", "every router bias absent", edit(_no_router_biases))
    yield files("M1", "a router bias in BF16", recast(bias, "BF16"))
    yield files(
        "M1", "a router bias of another shape", recast(bias, "F32", (4, 1)), or_codes="L1 C4"
    )
    yield values("M1", "a router bias of zeros", floats(bias, assign(slice(None), 0.0)))
    yield values(
        "M1", "the MTP layer's router bias of zeros", floats(mtp_bias, assign(slice(None), 0.0))
    )
    yield source("M1", "one bit of a router bias", raw(bias, flip(0)))
    yield source(
        "M1",
        "two router biases swapped",
        swap(f"{MOE}.gate", "model.layers.3.mlp.gate", named=bias),
    )
    yield source("M2", "eh_proj halves swapped", edit(swap_halves))
    yield source(
        "M2",
        "an MTP expert zeroed",
        floats(f"{MTP}mlp.experts.1.down_proj.weight", assign(slice(None), 0.0)),
    )
    yield source(
        "M2",
        "shared_head.norm changed",
        floats(f"{MTP}shared_head.norm.weight", multiply(slice(None), 1.5)),
    )
    yield source("M2", "another model's MTP layer", edit(other_mtp), or_codes="M1")
    yield source("M2", "one bit of an MTP norm", raw(f"{MTP}enorm.weight", flip(0)))
    yield source(
        "M2", "one bit of the MTP layer's router bias", raw(mtp_bias, flip(0)), or_codes="M1"
    )
    yield source(
        "M2",
        "MTP gate and up swapped",
        swap(f"{MTP}mlp.experts.0.gate_proj", f"{MTP}mlp.experts.0.up_proj"),
    )
    yield source("M2", "enorm and hnorm swapped", swap(f"{MTP}enorm", f"{MTP}hnorm"))
    yield files(
        "M3",
        "a rotation's tensor",
        add(
            "model.layers.1.self_attn.o_proj.rot.weight",
            stored(np.eye(16, dtype=np.float32), "BF16"),
        ),
    )
    yield files(
        "M3",
        "global_rotation in the description",
        describe("global_rotation", "FLOAT"),
    )
    yield files("M3", "is_rot_used in the description", describe("is_rot_used", True))
    yield files(
        "M3",
        "quarot among the description's optional",
        describe("optional", {"quarot": {"rotation_map": {"global_rotation": "rot.safetensors"}}}),
    )


def _no_router_biases(parts: Parts) -> str:
    for name in parts.names("model.layers."):
        if name.endswith("e_score_correction_bias"):
            parts.drop(name)
    return f"{MOE}.gate.e_score_correction_bias"


def _by_mtp() -> Iterator[Defect]:
    absent = "D2 M1 M2 C2"
    yield files(
        "C2",
        "MTP tensors absent, description and index too",
        drop_all(MTP, named=""),
        or_codes="D2",
        hides=absent,
    )
    yield files(
        "D2",
        "MTP tensors absent but described",
        drop_all(MTP, described=True),
        or_codes="C2 D1",
        hides=absent,
    )
    yield files("D2", "one MTP tensor absent", drop(f"{MTP}hnorm.weight"))
    yield files("D2", "one MTP expert absent", drop_all(f"{MTP}mlp.experts.3."))
    yield files("D2", "MTP at index N + 1", edit(move_mtp), or_codes="C2 C4 D1", hides=absent)
    yield files(
        "C2",
        "num_nextn_predict_layers 0",
        configure("num_nextn_predict_layers", 0),
        hides=absent,
    )
    yield files(
        "C2",
        "num_nextn_predict_layers as a text",
        configure("num_nextn_predict_layers", "1"),
        or_codes="C3 C4",
        hides="*",
    )
    yield files(
        "C2",
        "num_nextn_predict_layers 2",
        configure("num_nextn_predict_layers", 2),
    )
    yield files(
        "C2",
        "no num_nextn_predict_layers",
        configure("num_nextn_predict_layers", None),
        hides=absent,
    )
    yield files(
        "D2",
        "description says W8A8_DYNAMIC for MTP, tensors float",
        describe_as(MTP, DYNAMIC),
        or_codes="L1 D4",
        hides="D4 L1",
    )
    yield files(
        "D2",
        "description says W8A8_DYNAMIC for MTP experts, tensors float",
        describe_as(f"{MTP}mlp.experts.", DYNAMIC),
        or_codes="L1",
    )
    yield files("D2", "an F32 MTP layer", edit(widen_mtp), severity="warning", hides="M2")
    yield files(
        "D2", "an int8 MTP layer", mtp_to_int8(with_eh_proj=False), severity="warning", hides="M2"
    )
    yield files("D2", "an int8 eh_proj", to_dynamic(f"{MTP}eh_proj"), or_codes="D4 L1")
    yield files(
        "D2",
        "an int8 MTP layer with its eh_proj",
        mtp_to_int8(with_eh_proj=True),
        or_codes="D4 L1",
        hides="M2",
    )
    yield files(
        "D2",
        "an int8 MTP layer described as FLOAT",
        mtp_to_int8(with_eh_proj=False, described=False),
        or_codes="L1",
        hides="M2",
    )
    yield files(
        "D3",
        "one MTP expert in int8 among float ones",
        to_dynamic(*(f"{MTP}mlp.experts.2.{p}_proj" for p in ("gate", "up", "down"))),
        or_codes="D2",
    )


def _by_config() -> Iterator[Defect]:
    whole = "quantization_config"
    yield files("C1", "a partial quantization_config", edit(only_part_of_quantization_config))
    yield files(
        "C1",
        "a quantization_config of quant_method alone",
        configure(whole, {"quant_method": "ascend"}),
    )
    yield files(
        "C1",
        "a quantization_config for MindIE",
        configure(whole, {"kv_quant_type": None, "fa_quant_type": None, "group_size": 0}),
    )
    yield files(
        "C1",
        "a quantization_config of another tool",
        configure(whole, {"quant_method": "compressed-tensors"}),
    )
    yield files(
        "C1",
        "a quantization_config that says another type",
        edit(config_behind_the_description),
        base="embedded",
    )
    yield files(
        "C1", "a quantization_config without quant_method", edit(_no_method), base="embedded"
    )
    for key, value in (
        ("torch_dtype", "float16"),
        ("rope_theta", 10000),
        ("hidden_size", 32),
        ("rms_norm_eps", 1e-6),
        ("routed_scaling_factor", 1.0),
        ("num_experts_per_tok", 3),
        ("partial_rotary_factor", 1.0),
        ("norm_topk_prob", False),
        ("hidden_act", "gelu"),
    ):
        yield source(
            "C3",
            f"another {key}",
            configure(key, value),
            hides="*" if key == "hidden_size" else "",
        )
    yield source(
        "C3",
        "another architecture",
        configure("architectures", ["Glm4MoeLiteForCausalLM"]),
        hides="*",
    )
    yield source("C3", "another model_type", configure("model_type", "glm4_moe_mtp"), hides="*")
    yield source("C3", "a key of config.json lost", configure("rope_theta", None))
    yield files(
        "C4",
        "hidden_size against the tensors",
        configure("hidden_size", 32),
        or_codes="L1",
        hides="*",
    )
    for key, value in (
        ("n_routed_experts", 5),
        ("n_routed_experts", 3),
        ("first_k_dense_replace", 1),
        ("first_k_dense_replace", 3),
        ("num_hidden_layers", 5),
        ("num_hidden_layers", 3),
        ("n_shared_experts", 2),
        ("n_routed_experts", 10**9),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", -1),
    ):
        yield files(
            "C4",
            f"{key} {value} against the tensors",
            configure(key, value),
            or_codes="" if 0 < value < 100 else "C3",
            hides="*",
        )
    yield files(
        "C4",
        "an expert missing everywhere",
        drop_all("model.layers.3.mlp.experts.3.", named="model.layers.3."),
        or_codes="D1 L1",
    )
    yield files(
        "C4",
        "a layer missing everywhere",
        drop_all("model.layers.3.", named="model.layers.3"),
        or_codes="D1 L1",
    )
    yield files(
        "C3",
        "a key twice in config.json",
        duplicate("config.json", "hidden_size", "32"),
        or_codes="C4 C1 C2",
        hides="*",
    )
    yield files(
        "C3",
        "a config.json that is no JSON",
        file_bytes("config.json", lambda data: data[:-9]),
        or_codes="C4 C1 C2",
        hides="*",
    )
    yield files("C3", "no config.json", file_gone("config.json"), or_codes="C4 C1 C2", hides="*")
    yield files(
        "P1",
        "heads that do not divide",
        lambda folder: "num_attention_heads",
        options=("--tp", "3"),
    )


def _no_method(parts: Parts) -> str:
    del parts.config["quantization_config"]["quant_method"]
    return "quantization_config"


def _by_side_file() -> Iterator[Defect]:
    template = "chat_template.jinja"
    for name in ("tokenizer.json", "tokenizer_config.json", template, "generation_config.json"):
        yield files("S1", f"no {name}", file_gone(name), hides="S2")
    yield source(
        "S1",
        "a tokenizer changed by a byte",
        file_bytes("tokenizer.json", lambda data: data.replace(b"1.0", b"1.1")),
    )
    yield source(
        "S1", "a template changed by a byte", file_bytes(template, lambda data: data + b" ")
    )
    yield source(
        "S1", "one eos id of several", file_text("generation_config.json", '{"eos_token_id": [0]}')
    )
    for what, text in (
        ("a template with a syntax error", "{% for m in messages %}{{ m.content }}"),
        ("a template with an unknown filter", "{{ messages[0].content | shout }}"),
        (
            "a template that fails with tools",
            "{% if tools %}{{ raise_exception('no tools') }}{% endif %}{{ messages[0].content }}",
        ),
        (
            "a template that fails with tools alone",
            "{% for t in tools or [] %}{{ t.name.a.b }}{% endfor %}{{ messages[0].content }}",
        ),
        (
            "a template that fails with thinking off",
            "{{ messages[0].content }}"
            "{% if enable_thinking is defined and not enable_thinking %}{{ none + 1 }}{% endif %}",
        ),
    ):
        yield files("S2", what, file_text(template, text))


def _by_source() -> Iterator[Defect]:
    q = f"{ATTENTION}.q_proj"
    yield source("N1", "all scales doubled", edit(double_scales))
    yield source("N1", "two experts swapped", swap(f"{MOE}.experts.0", f"{MOE}.experts.2"))
    yield source("N1", "gate and up swapped", swap(f"{EXPERT}.gate_proj", f"{EXPERT}.up_proj"))
    yield source("N1", "the same expert twice", edit(_same_expert_twice))
    yield source(
        "N1", "one k bias lost", floats(f"{ATTENTION}.k_proj.bias", assign(slice(None), 0.0))
    )
    yield source(
        "N1", "one q row times four", floats(f"{q}.weight_scale", multiply((5, 0), 4.0), q)
    )
    yield source("N1", "an int8 row lost", raw(f"{MOE}.experts.3.up_proj.weight", assign(7, 0)))
    yield source(
        "N1", "one int8 value off by one", raw(f"{MOE}.experts.0.gate_proj.weight", _off_by_one)
    )
    yield source(
        "N1",
        "one scale a BF16 step up",
        raw("model.layers.0.self_attn.o_proj.weight_scale", flip(16)),
    )
    yield source("N1", "one bit of the head", raw("lm_head.weight", flip(0)))
    yield source("N1", "an embedding row lost", floats("model.embed_tokens.weight", assign(9, 0.0)))
    yield source("N1", "a router changed", floats(f"{MOE}.gate.weight", multiply(1, 2.0)))
    yield source(
        "N1",
        "a norm of ones",
        floats("model.layers.1.post_attention_layernorm.weight", assign(slice(None), 1.0)),
    )
    yield source("N1", "dense gate and up swapped", swap(f"{DENSE}.gate_proj", f"{DENSE}.up_proj"))
    yield source(
        "N1",
        "two layers' k swapped",
        swap("model.layers.0.self_attn.k_proj", "model.layers.3.self_attn.k_proj"),
    )
    yield from _by_source_of_others()


def _by_source_of_others() -> Iterator[Defect]:
    expert = "model.layers.3.mlp.experts.2"
    for base in ("v1", "smooth"):
        yield source(
            "N1",
            f"one q row times four ({base})",
            floats(
                f"{ATTENTION}.q_proj.weight_scale", multiply((5, 0), 4.0), f"{ATTENTION}.q_proj"
            ),
            base=base,
        )
        yield source(
            "N1",
            f"two experts swapped ({base})",
            swap(f"{MOE}.experts.0", f"{MOE}.experts.2"),
            base=base,
        )
        yield source("N1", f"all scales doubled ({base})", edit(double_scales), base=base)
        yield source(
            "N1",
            f"one q bias lost ({base})",
            floats(f"{ATTENTION}.q_proj.bias", assign(slice(None), 0.0)),
            base=base,
        )
        yield source(
            "N1",
            f"one bit of the embedding ({base})",
            raw("model.embed_tokens.weight", flip(0)),
            base=base,
        )
        yield source("M2", f"one MTP bit ({base})", raw(f"{MTP}hnorm.weight", flip(0)), base=base)
    yield source(
        "N1",
        "an int8 value two steps off (v1)",
        raw(f"{expert}.up_proj.weight", _two_off),
        base="v1",
    )
    yield source(
        "N1", "a row with too few levels (v1)", stretch_row(f"{expert}.down_proj", 1.9), base="v1"
    )
    yield source(
        "N1", "an expert row lost (v1)", raw(f"{expert}.gate_proj.weight", assign(0, 0)), base="v1"
    )
    yield source(
        "N1",
        "smoothing taken back in the norm alone",
        floats(
            "model.layers.1.input_layernorm.weight", multiply(slice(None), 2.0), "model.layers.1."
        ),
        base="smooth",
    )
    yield source(
        "N1",
        "smoothing of one channel lost in q alone",
        raw(f"{ATTENTION}.q_proj.weight", assign((slice(None), 3), 0)),
        base="smooth",
    )
    for suffix, where, factor in (("deq_scale", slice(None), 2.0), ("deq_scale", 4, 4.0)):
        yield source(
            "N1",
            f"deq_scale times {factor:g} (static)",
            floats(f"{ATTENTION}.o_proj.{suffix}", multiply(where, factor), f"{ATTENTION}.o_proj"),
            base="static",
        )
    yield source(
        "N1",
        "a quant_bias of zeros (static)",
        raw(f"{ATTENTION}.q_proj.quant_bias", assign(slice(None), 0)),
        base="static",
    )


def _off_by_one(rows: NDArray[np.int8]) -> None:
    rows[2, 2] += 1 if rows[2, 2] < 0 else -1


def _two_off(rows: NDArray[np.int8]) -> None:
    column = int(np.abs(rows[1]).argmin())
    rows[1, column] += 3


def _same_expert_twice(parts: Parts) -> str:
    for name in parts.names(f"{MOE}.experts.2."):
        parts.set(name.replace("experts.2.", "experts.3."), parts.tensor(name))
    return f"{MOE}.experts.3"


DEFECTS: Final[dict[str, Defect]] = {
    defect.name: defect
    for catalogue in (
        _by_description,
        _by_linear,
        _by_file,
        _by_value,
        _by_model,
        _by_mtp,
        _by_config,
        _by_side_file,
        _by_source,
    )
    for defect in catalogue()
}


Right = tuple[Path, Path]
"""A right folder and its source."""


def quantize(source: Path, target: Path, *words: str) -> None:
    """Run ``glmquant w8a8``."""
    ran = CliRunner().invoke(main, ["w8a8", str(source), str(target), *words])
    assert ran.exit_code == 0, ran.output


def make_base(base: str, source: Recorded, folder: Path) -> None:
    """Make the folder that a defect is done to: by another tool, or by the command line."""
    if base in BASES:
        BASES[base](source, folder)
    else:
        embed = ["--embed-quant-config"] * (base == "embedded")
        quantize(source.folder, folder, "--add-mtp", *embed)


def met_by_loading(source: Recorded, room: Path) -> Iterator[tuple[str, Path]]:
    """Folders in an empty room, each with a defect that a loader can meet; and its name.

    A pipe is none of them: a loader would wait for somebody to write into it.
    """
    for number, (name, defect) in enumerate(DEFECTS.items()):
        if not defect.is_met_by_loading or name == "a pipe in a shard's place":
            continue
        base, folder = room / f"base-{defect.base}", room / f"defect-{number}"
        if not base.exists():
            make_base(defect.base, source, base)
        shutil.copytree(base, folder)
        defect.apply(folder)
        yield name, folder


def ours(
    *words: str,
    layout: str = "4.6",
    prepare: Callable[[Recorded], object] | None = None,
    finish: Callable[[Path], object] | None = None,
    **config: Any,
) -> Callable[[Path], Right]:
    """An output of this package."""

    def build(room: Path) -> Right:
        recorded = build_checkpoint(room / "GLM", layout, **config)
        if prepare:
            prepare(recorded)
        target = room / "GLM-W8A8"
        quantize(recorded.folder, target, *words)
        if finish:
            finish(target)
        return target, recorded.folder

    return build


def theirs(release: str = "4.6", **style: Any) -> Callable[[Path], Right]:
    """A folder of msModelSlim, repaired where it must be."""

    def build(room: Path) -> Right:
        recorded = build_checkpoint(room / "GLM", release)
        return make(recorded, room / "GLM-w8a8", **style).folder, recorded.folder

    return build


def under_umask_077(folder: Path) -> None:
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    folder.chmod(0o700)


def as_in_a_hub_cache(folder: Path) -> None:
    """Each file a link to a blob, and the hub's own notes beside."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        if path.is_file():
            path.rename(blobs / f"{number:064x}")
            path.symlink_to(f"../blobs/{number:064x}")
    notes = folder / ".cache" / "huggingface"
    notes.mkdir(parents=True)
    (notes / "old.safetensors").write_bytes(b"not a shard of this model")


def template_in_tokenizer_config(source: Recorded) -> None:
    template = source.folder / "chat_template.jinja"
    fields = {"chat_template": template.read_text()}
    (source.folder / "tokenizer_config.json").write_text(json.dumps(fields))
    template.unlink()


def rows_of_zeros(source: Recorded) -> None:
    """Rows that are all zero in an expert and in q, as pruned models have them."""
    for name in (f"{EXPERT}.up_proj.weight", f"{ATTENTION}.q_proj.weight"):
        file = source.shard_of[name]
        dtype, shape, data = source.tensors[name]
        row = len(data) // shape[0]
        source.tensors[name] = (dtype, shape, bytes(2 * row) + data[2 * row :])
        names = [other for other, home in source.shard_of.items() if home == file]
        write_shard(source.folder / file, {other: source.tensors[other] for other in names})


def demo_model(room: Path) -> Right:
    """The trained model that ships with the package."""
    source, target = room / "GLM-4-nano", room / "GLM-4-nano-W8A8"
    shutil.copytree(read_demo_model().folder, source)
    quantize(source, target, "--add-mtp")
    return target, source


def theirs_of_demo_model(**style: Any) -> Callable[[Path], Right]:
    """A folder of msModelSlim made of the trained model, whose rows are longer."""

    def build(room: Path) -> Right:
        recorded = read_demo_model()
        return make(recorded, room / "GLM-w8a8", **style).folder, recorded.folder

    return build


def read_demo_model() -> Recorded:
    """The trained model that ships with the package, with its bytes."""
    folder = Path(glmquant.__file__).parent / "demo" / "GLM-4-nano"
    recorded = Recorded(folder, json.loads((folder / "config.json").read_bytes()))
    for shard in sorted(folder.glob("*.safetensors")):
        recorded.tensors |= read_shard(shard)
    return recorded


RIGHT: Final[dict[str, Callable[[Path], Right]]] = {
    **{
        f"{recipe} of {layout}{' with MTP' * has_mtp}": ours(
            "--recipe", recipe, *["--add-mtp"] * has_mtp, layout=layout
        )
        for recipe in ("w8a8", "w8a8-full")
        for layout in LAYOUTS
        for has_mtp in (True, False)
    },
    "scales searched": ours("--add-mtp", "--recipe", "w8a8-mse"),
    "the description in config.json": ours("--add-mtp", "--embed-quant-config"),
    "a folder for its owner alone": ours("--add-mtp", finish=under_umask_077),
    "links into a hub's cache": ours("--add-mtp", finish=as_in_a_hub_cache),
    "a README beside": ours(
        "--add-mtp", finish=lambda folder: (folder / "README.md").write_text("# W8A8\n")
    ),
    "the template in tokenizer_config.json": ours(
        "--add-mtp", prepare=template_in_tokenizer_config
    ),
    "rows of zeros": ours("--add-mtp", prepare=rows_of_zeros),
    "no attention bias": ours("--add-mtp", attention_bias=False),
    "a head tied to the embedding": ours("--add-mtp", tie_word_embeddings=True),
    "no dense layer": ours("--add-mtp", first_k_dense_replace=0),
    "two shared experts": ours("--add-mtp", n_shared_experts=2),
    "the demo model": demo_model,
    "v1": theirs(),
    "v1 without MTP": theirs(mtp=None),
    "v1 with F32 arithmetic": theirs(arithmetic="f32"),
    "v1 of Air": theirs("4.5-air"),
    "v1 smoothed": theirs(smooth=True),
    "v1 static": theirs(static=True),
    "v1 static and smoothed": theirs(static=True, smooth=True, smooth_vo=True),
    "v1 for its owner alone": theirs(umask077=True),
    "v0": theirs(layout="v0", widen=False),
    "v0 without MTP": theirs(layout="v0", mtp=None),
    "v0 with both descriptions": theirs(layout="v0", descriptions=BOTH_DESCRIPTIONS),
    "v0 with the scripts' own keys": theirs(layout="v0", quantize_key=True),
    "v0 static": theirs(layout="v0", static=True),
    "HF names": theirs(layout="hf"),
    "HF names without MTP": theirs(layout="hf", mtp=None),
    "HF names of 4.5": theirs("4.5", layout="hf", smooth=True),
    "HF names of 4.7": theirs("4.7", layout="hf"),
    "v0 of the demo model": theirs_of_demo_model(layout="v0"),
    "v0 of the demo model, static": theirs_of_demo_model(layout="v0", static=True),
    "v1 of the demo model": theirs_of_demo_model(),
    "v1 of the demo model, smoothed": theirs_of_demo_model(smooth=True),
    "v1 of the demo model, static": theirs_of_demo_model(static=True),
    "v1 of the demo model, static and smoothed": theirs_of_demo_model(
        static=True, smooth=True, smooth_vo=True
    ),
}
"""Right checkpoints: ``verify --deep --source`` must be silent about each."""
