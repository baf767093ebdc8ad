"""A model on a hub by its JSON and headers alone, held against itself before a weight comes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from glmquant.description import DESCRIPTION_PREFIX
from glmquant.errors import ArchitectureError, CheckpointError, GlmquantError, HubError
from glmquant.glm4_moe import (
    ARCHITECTURE,
    CONFIG_FILE,
    LOOK_ALIKES,
    expected_tensors,
    parse_config,
)
from glmquant.header import Header, read_header
from glmquant.hubs.listing import Listing, RemoteFile
from glmquant.hubs.objects import Objects
from glmquant.hubs.patience import Patience, Stopped
from glmquant.index import INDEX_FILE, INDEX_SUFFIX, is_shard_name, parse_index
from glmquant.jsontext import MAX_JSON_NBYTES, parse_object
from glmquant.observer import Observer
from glmquant.reconcile import (
    count_mtp_layers,
    note_dtypes,
    reconcile_index,
    reconcile_tensors,
    require_float_dtypes,
    require_shard_names,
    require_shards,
    require_single_copies,
)
from glmquant.survey import printable
from glmquant.tensors import TensorRef

HEAD_NBYTES: Final = 1 << 17
"""Of each shard asked for at first: the header of a MoE layer is about 65 kB."""

_MAX_READS: Final = 3
"""So often a JSON file or a header is asked for that is not what it has to be."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model that holds together.

    Attributes:
        config: config.json.
        num_hidden_layers: Layers before the MTP layer.
        headers: Shard → header, sorted.
        is_bf16: It is a BF16 release, and every tensor that config.json calls for is there.
        notes: What a user should know.
        data: The JSON files that were read, by path.
        heads: Shard → its first bytes, up to the end of its header.
    """

    config: dict[str, Any]
    num_hidden_layers: int
    headers: dict[str, Header]
    is_bf16: bool
    notes: tuple[str, ...]
    data: dict[str, bytes]
    heads: dict[str, bytes]

    @property
    def shards(self) -> dict[str, tuple[TensorRef, ...]]:
        """Shard → its tensors."""
        return {name: header.tensors for name, header in self.headers.items()}

    def tensors(self) -> dict[str, TensorRef]:
        """Every tensor by name."""
        return {ref.name: ref for header in self.headers.values() for ref in header.tensors}


def read_model(
    listing: Listing, objects: Objects, patience: Patience, workers: int, observer: Observer
) -> Model:
    """Read config.json, the indexes and every header of a repository, and hold them together.

    Args:
        listing: The repository.
        objects: Its bytes.
        patience: How often to try again.
        workers: Threads.
        observer: Is told how far it is.

    Raises:
        CheckpointError: It does not hold together, or is no GLM-4.x MoE.
        HubError: Something cannot be read.
    """
    files = listing.files
    where = listing.reference.text
    if CONFIG_FILE not in files:
        raise CheckpointError(
            "the repository holds no model",
            where=where,
            expected=f"{CONFIG_FILE} and *.safetensors",
            found=f"{len(files)} files",
            hint="glmquant models lists those that are known",
        )
    indexes = [name for name in files if name.endswith(INDEX_SUFFIX) and "/" not in name]
    data = {name: read_small(files[name], objects, patience) for name in (CONFIG_FILE, *indexes)}
    config = parse_object(data[CONFIG_FILE], f"{where}: {CONFIG_FILE}")
    _require_architecture(config, where)
    shard_names = sorted(name for name in files if is_shard_name(name))
    heads = _read_heads([files[name] for name in shard_names], objects, patience, workers, observer)
    headers = {name: header for name, (header, _) in heads.items()}
    is_bf16 = not config.get("quantization_config") and not any(
        name.startswith(DESCRIPTION_PREFIX) for name in files
    )
    try:
        notes, layers = _reconcile(config, headers, data, files, is_bf16)
    except GlmquantError as error:
        error.where = f"{where}: {error.where}" if error.where else where
        if not isinstance(error, ArchitectureError):
            error.hint = "the repository is broken or half uploaded: nothing was fetched; try "\
                "another revision or hub"  # fmt: skip
        raise
    texts = {name: head for name, (_, head) in heads.items()}
    notes = [*listing.notes, *notes]
    return Model(config, layers, headers, is_bf16, tuple(notes), data, texts)


def _reconcile(
    config: dict[str, Any],
    headers: dict[str, Header],
    data: dict[str, bytes],
    files: dict[str, RemoteFile],
    is_bf16: bool,
) -> tuple[list[str], int]:
    shards = {name: header.tensors for name, header in headers.items()}
    if not shards:
        raise CheckpointError(
            "the repository holds no weights", expected="*.safetensors", found="none"
        )
    lengths = {name: file.nbytes for name, file in files.items()}
    maps = {name: parse_index(text, name) for name, text in data.items() if name != CONFIG_FILE}
    for weight_map in maps.values():
        require_shards(weight_map, lengths)
    layers = config.get("num_hidden_layers")
    if type(layers) is not int or not 0 < layers <= 1000:
        raise CheckpointError(
            "config.json does not say how many layers there are",
            where=f"{CONFIG_FILE}: num_hidden_layers",
            expected="a whole number",
            found=printable(repr(layers)),
        )
    if not is_bf16:
        require_single_copies(shards)
        return ["quantized already: names and lengths were checked, glmquant verify checks the "
                "rest"], layers  # fmt: skip
    parsed = parse_config(data[CONFIG_FILE])
    require_shard_names(shards)
    require_float_dtypes(shards)
    require_single_copies(shards)
    notes = reconcile_index(parsed, shards, maps.get(INDEX_FILE))
    mtp_count = count_mtp_layers(parsed, shards)
    expected = reconcile_tensors(parsed, shards, mtp_count)
    notes += note_dtypes(shards, expected)
    if not mtp_count and len(expected_tensors(parsed, 0)) == len(expected):
        notes.append("the repository has no MTP layer")
    return notes, layers


def _require_architecture(config: dict[str, Any], where: str) -> None:
    architectures = config.get("architectures")
    if architectures == [ARCHITECTURE]:
        return
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    known = LOOK_ALIKES.get(first) if isinstance(first, str) else None
    found = f"architectures {printable(repr(architectures))}"
    raise ArchitectureError(
        "this is not a GLM-4.5, 4.5-Air, 4.6 or 4.7 checkpoint",
        where=f"{where}: {CONFIG_FILE}",
        expected=f"architectures {[ARCHITECTURE]!r}",
        found=f"{known}: {found}" if known else found,
        hint="glmquant models lists those that are known; nothing was fetched",
    )


def read_small(file: RemoteFile, objects: Objects, patience: Patience) -> bytes:
    """A JSON file, held against the hub's sum.

    Raises:
        CheckpointError: It is too long to be one.
        HubError: It cannot be read, or never has its sum.
    """
    if file.nbytes > MAX_JSON_NBYTES:
        raise CheckpointError(
            "a JSON file of the repository is too long",
            where=file.path,
            expected=f"at most {MAX_JSON_NBYTES / 1e6:.0f} MB",
            found=f"{file.nbytes} bytes",
            hint="name a repository with a GLM-4.x model: glmquant models",
        )
    reads = 0
    while True:
        data = patience.repeat(lambda: b"".join(objects.read(file, 0, file.nbytes)))
        fault = file.fault(data)
        if fault is None:
            return data
        reads += 1
        if reads == _MAX_READS:
            raise HubError(
                "a file does not have the sum that the hub lists, however often it is fetched",
                where=file.path,
                expected=fault[0],
                found=fault[1],
                hint="the stored object is broken, or a proxy changes it: try another hub or "
                "endpoint, and tell whoever keeps the repository",
            )


_Head = tuple[Header, bytes]


def _read_heads(
    shards: list[RemoteFile],
    objects: Objects,
    patience: Patience,
    workers: int,
    observer: Observer,
) -> dict[str, _Head]:
    done = 0
    lock = threading.Lock()

    def read(file: RemoteFile) -> _Head:
        nonlocal done
        head = _read_head(file, objects, patience)
        with lock:
            done += 1
            observer.tell(f"reading headers on the hub, {done} of {len(shards)}")
        return head

    pool = ThreadPoolExecutor(workers)
    try:
        return dict(zip((file.path for file in shards), _in_order(pool, read, shards), strict=True))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _in_order(pool: ThreadPoolExecutor, work: Any, items: Iterable[Any]) -> Iterable[Any]:
    futures = [pool.submit(work, item) for item in items]
    for future in futures:
        try:
            yield future.result()
        except Stopped:  # noqa: PERF203
            raise KeyboardInterrupt from None


def _read_head(file: RemoteFile, objects: Objects, patience: Patience) -> _Head:
    """No sum covers a header: one that cannot be read is asked for until it comes alike twice."""
    heads: list[bytes] = []

    def read(offset: int, nbytes: int) -> bytes:
        head = heads[-1]
        if offset + nbytes > len(head):
            head += patience.repeat(
                lambda: b"".join(objects.read(file, len(head), offset + nbytes))
            )
            heads[-1] = head
        return head[offset : offset + nbytes]

    while True:
        heads.append(patience.repeat(partial(objects.head, file, HEAD_NBYTES)))
        try:
            header = read_header(file.path, file.nbytes, read)
            return header, heads[-1][: header.nbytes]
        except GlmquantError as error:
            if heads[-1] in heads[:-1] or len(heads) == _MAX_READS:
                error.hint = "the stored object is broken: fetch from another hub or revision"
                raise
