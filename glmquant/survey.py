"""What lies in a model folder, by headers and JSON alone, however damaged it is.

Nothing here judges: what cannot be read becomes a finding, and the rest is still told.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from glmquant.description import DESCRIPTION_PREFIX
from glmquant.errors import GlmquantError
from glmquant.fetched import MARKER_FILE
from glmquant.gguf import GgufHead, read_gguf
from glmquant.glm4_moe import CONFIG_FILE
from glmquant.header import LFS_POINTER, read_header
from glmquant.index import INDEX_FILE, INDEX_SUFFIX, is_shard_name, parse_index
from glmquant.jsontext import MAX_JSON_NBYTES, parse_object
from glmquant.manifest import MANIFEST_FILE
from glmquant.sidefiles import UNFINISHED
from glmquant.source import FolderSource
from glmquant.storage import STATE_DIR, reading
from glmquant.tensors import TensorRef

MODELOPT_FILE: Final = "hf_quant_config.json"
QUANT_CONFIG_FILES: Final = (
    MODELOPT_FILE,
    "quantize_config.json",
    "quant_config.json",
    "quantization_config.json",
)
"""Written beside config.json by ModelOpt, AutoGPTQ and GPTQModel, AutoAWQ, AutoRound."""

_TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_OBJECTS: Final = (CONFIG_FILE, MANIFEST_FILE, _TOKENIZER_CONFIG, *QUANT_CONFIG_FILES)
OTHER_WEIGHTS: Final = {
    ".bin": "PyTorch",
    ".pt": "PyTorch",
    ".pth": "PyTorch",
    ".ckpt": "PyTorch",
    ".onnx": "ONNX",
    ".h5": "Keras",
    ".msgpack": "Flax",
    ".npz": "NumPy",
}
"""Weights of other formats, by suffix."""

_NO_WEIGHTS: Final = ("training_args", "optimizer", "scheduler", "rng_state", "tokenizer", "vocab")
_MAX_POINTER_NBYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        where: The file, key or tensor.
        what: What is wrong with it.
    """

    where: str
    what: str


@dataclass(frozen=True, slots=True)
class Survey:
    """All that could be read of a folder.

    Attributes:
        name: Its name, for people.
        files: Name → length of each file in it; none of subfolders.
        objects: Name → content of each JSON file that tells a format.
        weight_maps: Index → the shard of each tensor.
        shards: Shard → its tensors in order of their bytes, sorted by name.
        broken: Weight files whose header cannot be read.
        ggufs: GGUF file → what its head says.
        findings: What could not be read, and why.
        is_unfinished_run: A run of glmquant is writing there, or was interrupted.
    """

    name: str
    files: dict[str, int] = field(default_factory=dict)
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    weight_maps: dict[str, dict[str, str]] = field(default_factory=dict)
    shards: dict[str, tuple[TensorRef, ...]] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    ggufs: dict[str, GgufHead] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    is_unfinished_run: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """config.json, empty where it cannot be read."""
        return self.objects.get(CONFIG_FILE, {})

    @property
    def description(self) -> tuple[str, dict[str, Any]] | None:
        """The first ModelSlim description and its name."""
        names = sorted(name for name in self.objects if name.startswith(DESCRIPTION_PREFIX))
        return (names[0], self.objects[names[0]]) if names else None

    @property
    def embedded_description(self) -> tuple[str, dict[str, Any]] | None:
        """A description inside config.json, and where it stands."""
        embedded = self.config.get("quantization_config")
        if isinstance(embedded, dict) and (
            embedded.get("quant_method") == "ascend" or "model_quant_type" in embedded
        ):
            return f"{CONFIG_FILE}: quantization_config", embedded
        return None

    @property
    def engine_shards(self) -> dict[str, tuple[TensorRef, ...]]:
        """The shards that vLLM loads whole: those that its index names, or all without one."""
        listed = self.weight_maps.get(INDEX_FILE)
        if listed is None:
            return self.shards
        named = set(listed.values())
        return {file: tensors for file, tensors in self.shards.items() if file in named}

    @property
    def weight_map(self) -> dict[str, str]:
        """The index that an engine would read, or else the first; empty without one."""
        maps = self.weight_maps
        return maps.get(INDEX_FILE) or next(iter(maps.values()), {})

    @property
    def other_weights(self) -> dict[str, str]:
        """Weight files that are neither safetensors nor GGUF → their format."""
        return {
            name: kind for name in self.files if (kind := other_weight_format(name)) is not None
        }


def printable(text: str, limit: int = 120) -> str:
    """Text of a file or a file's name as it may go to a terminal: escaped and not too long."""
    text = text.encode(errors="backslashreplace").decode()
    text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def other_weight_format(name: str) -> str | None:
    """The format of a weight file that is neither safetensors nor GGUF, by its name."""
    if name.lower().startswith(_NO_WEIGHTS):
        return None
    return OTHER_WEIGHTS.get(os.path.splitext(name.lower())[1])  # noqa: PTH122


def looks_like_a_model(folder: Path) -> bool:
    """Whether a folder holds weights of any format, or a config.json of a model."""
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]  # noqa: PTH208
        if any(
            is_shard_name(name)
            or name.endswith((".gguf", INDEX_SUFFIX))
            or other_weight_format(name) is not None
            for name in names
        ):
            return True
        path = folder / CONFIG_FILE
        if CONFIG_FILE not in names or not path.is_file():  # a pipe would wait for ever
            return False
        config = parse_object(path.read_bytes(), CONFIG_FILE)
    except (OSError, GlmquantError):
        return False
    return "architectures" in config or "model_type" in config


def is_read_whole(name: str) -> bool:
    """Whether ``survey`` reads all of a file: its JSON, not the tokenizer's."""
    is_description = name.startswith(DESCRIPTION_PREFIX) and name.endswith(".json")
    return name in _OBJECTS or is_description or name.endswith(INDEX_SUFFIX)


def survey(source: FolderSource) -> Survey:
    """Read what the folder tells: JSON, safetensors headers and the heads of GGUF files.

    Args:
        source: The folder.

    Returns:
        What could be read, and findings for what could not.

    Raises:
        StorageError: The folder itself cannot be read.
    """
    findings: list[Finding] = []
    files = dict(_list_files(source.path, findings))
    objects: dict[str, dict[str, Any]] = {}
    weight_maps: dict[str, dict[str, str]] = {}
    shards: dict[str, tuple[TensorRef, ...]] = {}
    broken: list[str] = []
    ggufs: dict[str, GgufHead] = {}
    is_unfinished_run = (source.path / STATE_DIR / "journal.json").is_file()

    def attempt(name: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except GlmquantError as error:
            where = printable(error.where or name)
            findings.append(Finding(where, printable(_reason(error), 300)))
            return False
        finally:
            source.release(name)
        return True

    def read_object(name: str) -> None:
        objects[name] = parse_object(_json_bytes(source, name, files[name]), name)

    def read_index(name: str) -> None:
        weight_maps[name] = parse_index(_json_bytes(source, name, files[name]), name)

    def read_shard(name: str) -> None:
        shards[name] = read_header(name, files[name], partial(source.read, name)).tensors

    def read_head(name: str) -> None:
        ggufs[name] = read_gguf(name, files[name], partial(source.read, name))

    for name, nbytes in files.items():
        is_weight = is_shard_name(name) or name.endswith(".gguf")
        if name.endswith(INDEX_SUFFIX):
            attempt(name, partial(read_index, name))
        elif is_read_whole(name):
            attempt(name, partial(read_object, name))
        elif name.endswith(UNFINISHED):
            rest = "a run" if is_unfinished_run else "a download"
            findings.append(Finding(name, f"the rest of {rest} that did not end"))
        elif is_weight and _is_pointer(source, name, nbytes):
            broken.append(name)
            findings.append(Finding(name, "a Git LFS pointer, not the weights: git lfs pull"))
        elif is_weight and not attempt(
            name, partial(read_head if name.endswith(".gguf") else read_shard, name)
        ):
            broken.append(name)
    findings += _hidden_leftovers(source.path)
    if MARKER_FILE in files:
        findings.append(Finding(MARKER_FILE, "the folder holds only a part of the model"))
    return Survey(
        name=printable(source.path.absolute().name or str(source.path)),
        files=files,
        objects=objects,
        weight_maps=weight_maps,
        shards=shards,
        broken=tuple(broken),
        ggufs=ggufs,
        findings=tuple(findings),
        is_unfinished_run=is_unfinished_run,
    )


def _reason(error: GlmquantError) -> str:
    if error.expected and error.found:
        return f"{error.what}: {error.found}; expected {error.expected}"
    return error.what


def _json_bytes(source: FolderSource, name: str, nbytes: int) -> bytes:
    if nbytes > MAX_JSON_NBYTES:
        raise GlmquantError(
            "a JSON file is too long",
            where=name,
            expected=f"at most {MAX_JSON_NBYTES} bytes",
            found=f"{nbytes} bytes",
        )
    return source.read(name, 0, nbytes)


def _is_pointer(source: FolderSource, name: str, nbytes: int) -> bool:
    if not len(LFS_POINTER) <= nbytes <= _MAX_POINTER_NBYTES:
        return False
    try:
        return source.read(name, 0, len(LFS_POINTER)) == LFS_POINTER
    except GlmquantError:
        return False  # read again for its header, which then says why
    finally:
        source.release(name)


def _list_files(folder: Path, findings: list[Finding]) -> Iterator[tuple[str, int]]:
    with reading(folder):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        shown = printable(entry.name, 255)
        try:
            found = entry.stat()
        except OSError as error:
            kind = "a dead link" if entry.is_symlink() else "a file that cannot be looked at"
            findings.append(Finding(shown, f"{kind}: {error.strerror}"))
            continue
        if stat.S_ISREG(found.st_mode) and shown == entry.name:
            yield entry.name, found.st_size
        elif stat.S_ISREG(found.st_mode):
            findings.append(Finding(shown, "a name that cannot be written down: passed over"))
        elif not stat.S_ISDIR(found.st_mode):
            mode = stat.filemode(found.st_mode)
            findings.append(Finding(shown, f"neither a file nor a folder: {mode}"))
        elif entry.name in _OBJECTS or is_shard_name(entry.name):
            findings.append(Finding(shown, "a folder with the name of a file"))


def _hidden_leftovers(folder: Path) -> Iterator[Finding]:
    """What downloads and runs that did not end leave in hidden folders.

    huggingface_hub keeps ``*.incomplete`` in ``.cache/huggingface/download``, ModelScope its parts
    in ``._____temp``, glmquant its journal in ``.glmquant``.
    """
    for hidden, suffix, what in (
        (".cache/huggingface/download", ".incomplete", "downloads of huggingface_hub did not end"),
        ("._____temp", "", "downloads of ModelScope did not end"),
        (STATE_DIR, "journal.json", "a run of glmquant that did not end"),
        (STATE_DIR, "fetch.jsonl", "a fetch that did not end: run it again, it goes on"),
    ):
        try:
            names = os.listdir(folder / hidden)  # noqa: PTH208
        except OSError:
            continue  # the usual case: there is none
        if any(name.endswith(suffix) for name in names):
            yield Finding(hidden, what)
