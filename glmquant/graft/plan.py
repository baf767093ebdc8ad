"""Every file of a graft before the first byte: what is added, taken out, linked and changed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

from glmquant.description import DESCRIPTION_FILE, encode_description
from glmquant.glm4_moe import CONFIG_FILE
from glmquant.graft.donor import Donor
from glmquant.graft.jsonfiles import described, edited_config
from glmquant.graft.judge import Verdict
from glmquant.graft.modes import wider_modes
from glmquant.graft.recipient import Embedding, Recipient
from glmquant.header import build_header, read_header
from glmquant.index import INDEX_FILE, build_index, natural_key
from glmquant.manifest import MANIFEST_FILE
from glmquant.tensor_names import is_router_bias
from glmquant.tensors import TensorRef

_NUMBERING: Final = re.compile(r"-\d+-of-\d+\.safetensors$|\.safetensors$")


class Way(str, Enum):
    """How the checkpoint is changed."""

    IN_PLACE = "in place"
    SWAP = "swap"
    OUTPUT = "output"


class Piece(NamedTuple):
    """A tensor of a file to be written.

    Attributes:
        ref: Where its bytes are now.
        place: Where they go.
    """

    ref: TensorRef
    place: TensorRef


@dataclass(frozen=True, slots=True)
class NewShard:
    """A file of weights to be written.

    Attributes:
        file: Its name.
        header: Its first bytes.
        nbytes: Its length.
        pieces: Its tensors, in the order in which they are read.
        is_grafted: They come from the source; else from the checkpoint itself.
    """

    file: str
    header: bytes
    nbytes: int
    pieces: tuple[Piece, ...]
    is_grafted: bool


@dataclass(frozen=True, slots=True)
class GraftPlan:
    """All that will be changed.

    Attributes:
        way: How.
        verdict: What is added and taken out.
        shards: The weights to be written: those that lose tensors, then the grafted one.
        removed: Files that are not in the result: weights that held the old MTP layer alone,
            indexes and descriptions under names that no engine reads.
        small_files: Name → bytes of description, config.json and index where they change, in the
            order in which they are put into place.
        mode: Permissions of new files; by the user's umask if None.
        modes: File → permissions before and after, of those that fewer may read than the rest.
        config_changes: What changes in config.json, for people.
        json_changes: What changes in description and index, for people.
        notes: What the user should know, a sentence each.
    """

    way: Way
    verdict: Verdict
    shards: tuple[NewShard, ...]
    removed: tuple[str, ...]
    small_files: dict[str, bytes]
    mode: int | None
    modes: dict[str, tuple[int, int]]
    config_changes: tuple[str, ...]
    json_changes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_nothing(self) -> bool:
        """The checkpoint lacks nothing."""
        return not (self.shards or self.small_files or self.verdict.dropped)

    @property
    def grafted(self) -> NewShard | None:
        """The shard that holds what is added."""
        return next((shard for shard in self.shards if shard.is_grafted), None)

    @property
    def written_nbytes(self) -> int:
        """Bytes of the files to be written, the manifest left out."""
        return sum(s.nbytes for s in self.shards) + sum(map(len, self.small_files.values()))


def make_graft_plan(
    donor: Donor,
    recipient: Recipient,
    verdict: Verdict,
    *,
    to_output: bool = False,
    notes: Iterable[str] = (),
) -> GraftPlan:
    """Decide every file of the result.

    Args:
        donor: The BF16 source.
        recipient: The quantized checkpoint.
        verdict: What is missing and what is to be taken out.
        to_output: The result goes into a folder of its own.
        notes: What was noted on the way.

    Returns:
        The plan.
    """
    adopted = {file: recipient.unlisted[file] for file in verdict.adopted}
    rewritten, emptied = _without_dropped(recipient, verdict)
    shards = [*rewritten.values()]
    if verdict.missing:
        shards.append(_graft_shard(donor, recipient, verdict, set(emptied)))
    changes_weights = bool(shards or emptied)
    has_to_move = verdict.dropped or recipient.weight_map is None or recipient.renamed
    way = Way.SWAP if changes_weights and has_to_move else Way.IN_PLACE
    way = Way.OUTPUT if to_output else way
    kept = {
        file: tensors
        for file, tensors in {**recipient.loaded, **adopted}.items()
        if file not in rewritten and file not in emptied
    }
    refs = [ref for tensors in kept.values() for ref in tensors]
    refs += [piece.place for shard in shards for piece in shard.pieces]
    description = described(donor, recipient)
    config, changes = edited_config(donor, recipient, description)
    is_described = description == recipient.description and not (
        way is not Way.IN_PLACE and DESCRIPTION_FILE not in recipient.files
    )
    is_listed = recipient.weight_map is None or all(
        name in recipient.weight_map for name in verdict.kept_mtp
    )
    small: dict[str, bytes] = {}
    if not is_described:
        small[DESCRIPTION_FILE] = encode_description(description)
    if changes:
        small[CONFIG_FILE] = config
    if changes_weights or adopted or not is_listed or way is Way.OUTPUT:
        small[INDEX_FILE] = build_index(
            {ref.name: ref.file for ref in refs}, sum(ref.nbytes for ref in refs)
        )
    small = {name: data for name, data in small.items() if recipient.data(name) != data}
    removed = (*emptied, *(() if way is Way.IN_PLACE else recipient.renamed))
    replaced = {*removed, *small, *rewritten, MANIFEST_FILE}
    mode, modes = wider_modes(donor, recipient, to_output=to_output)
    notes = [*notes, *verdict.notes]
    if recipient.embedding is Embedding.PARTIAL:
        notes.append(
            "config.json has a partial quantization_config, which no engine bears: it goes"
        )
    return GraftPlan(
        way=way,
        verdict=verdict,
        shards=tuple(shards),
        removed=removed,
        small_files=small,
        mode=mode,
        modes={name: both for name, both in modes.items() if name not in replaced},
        config_changes=changes,
        json_changes=tuple(_json_changes(recipient, small, description, refs)),
        notes=tuple(notes),
    )


def _json_changes(
    recipient: Recipient,
    small: dict[str, bytes],
    description: dict[str, Any],
    refs: list[TensorRef],
) -> Iterator[str]:
    """Entries of the description and tensors of the index that are other than before."""
    if DESCRIPTION_FILE in small:
        before = recipient.description
        keys = [key for key in {**before, **description} if before.get(key) != description.get(key)]
        count = len(keys) if DESCRIPTION_FILE in recipient.files else len(description)
        yield f"description: {count} entr{'y' if count == 1 else 'ies'}"
    if INDEX_FILE in small:
        listed = recipient.weight_map or {}
        count = sum(listed.get(ref.name) != ref.file for ref in refs)
        count += len(listed.keys() - {ref.name for ref in refs})
        yield f"index: {count} tensor{'s' * (count != 1)}"


def _without_dropped(
    recipient: Recipient, verdict: Verdict
) -> tuple[dict[str, NewShard], list[str]]:
    """Shards that lose some of their tensors, and files that lose all."""
    rewritten, emptied = {}, []
    for file, names in verdict.dropped.items():
        tensors = recipient.loaded.get(file) or recipient.unlisted[file]
        kept = [ref for ref in tensors if ref.name not in names]
        if kept:
            rewritten[file] = _new_shard(file, kept, is_grafted=False)
        else:
            emptied.append(file)
    return rewritten, emptied


def _new_shard(file: str, refs: Iterable[TensorRef], *, is_grafted: bool) -> NewShard:
    refs = list(refs)
    header, data_nbytes = build_header((ref.name, ref.dtype, ref.shape) for ref in refs)
    nbytes = len(header) + data_nbytes

    def read(offset: int, length: int) -> bytes:
        return header[offset : offset + length]

    places = {ref.name: ref for ref in read_header(file, nbytes, read).tensors}
    pieces = tuple(Piece(ref, places[ref.name]) for ref in sorted(refs, key=_reading_order))
    return NewShard(file, header, nbytes, pieces, is_grafted)


def _reading_order(ref: TensorRef) -> tuple[str, int]:
    return ref.file, ref.offset


def _graft_shard(donor: Donor, recipient: Recipient, verdict: Verdict, gone: set[str]) -> NewShard:
    has_mtp = any(not is_router_bias(ref.name) for ref in verdict.missing)
    kept = [*recipient.loaded, *recipient.unlisted]
    file = _shard_name("mtp" if has_mtp else "router-biases", [f for f in kept if f not in gone])
    return _new_shard(file, verdict.missing, is_grafted=True)


def _shard_name(stem: str, others: list[str]) -> str:
    """A name behind all others in the natural order, in which the last copy of a tensor wins."""
    last = max(others, key=natural_key, default="")
    series = _NUMBERING.sub("", last)
    taken = {name.lower() for name in others}
    candidates = [stem, f"{series}-{stem}", f"{series}_{stem}"]
    candidates += [f"{series}_{stem}-{number}" for number in range(2, 1000)]
    for candidate in candidates:
        name = f"{candidate}.safetensors"
        is_free = name.lower() not in taken and len(name.encode()) < 240
        if is_free and natural_key(name) > natural_key(last):
            return name
    return f"z-{len(others)}-{stem}.safetensors"
