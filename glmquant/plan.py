"""The plan: every output tensor with its scheme, dtype, shape, shard and byte offset.

Pure: headers, config and recipe in, a value out. Whatever is to be written is decided here, so
the digest of a plan names the output as far as it does not depend on the weights' values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple

import xxhash

from glmquant import __version__
from glmquant.checkpoint import Checkpoint
from glmquant.description import (
    DESCRIPTION_FILE,
    build_description,
    embedded_config,
    encode_description,
)
from glmquant.errors import CheckpointError, NoMtpError, RecipeError
from glmquant.glm4_moe import CONFIG_FILE, Role, mtp_layers, optional_mtp_weights
from glmquant.header import build_header, read_header
from glmquant.index import INDEX_FILE, build_index
from glmquant.jsontext import dump_object, parse_object
from glmquant.manifest import MANIFEST_FILE
from glmquant.recipe import Recipe, Rule
from glmquant.reconcile import listing
from glmquant.schemes import OutputTensor, ScaleChoice, Scheme, output_tensors
from glmquant.sidefiles import left_behind, side_files
from glmquant.source import FileStamp
from glmquant.tensors import TensorRef

MAX_NAME_NBYTES: Final = 255 - len(".json.part")
"""Linux file systems take names of 255 bytes."""

ENGINE_KEYS: Final = {"mindie": {"quantize": "w8a8_dynamic"}}
"""Engine → the keys of config.json by which it knows W8A8 (msModelSlim writes MindIE's, too)."""

_NUMBERED: Final = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


class Step(NamedTuple):
    """One source tensor and what becomes of it.

    Attributes:
        source: Where its bytes are.
        role: What it does in the model.
        scheme: What becomes of it.
        scale: How the scales of a quantized one are chosen.
        outputs: The tensors to be written, the weight first; ``ShardPlan.places`` says where.
    """

    source: TensorRef
    role: Role
    scheme: Scheme
    scale: ScaleChoice
    outputs: tuple[OutputTensor, ...]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One file of weights to be written, made of one file of the source.

    Attributes:
        file: Name of the output.
        source_file: Name of the source's shard.
        source_stamp: Length and times of that shard when its header was read.
        header: The first bytes of the output.
        nbytes: Length of the output.
        steps: What fills it, in order of the source's bytes.
    """

    file: str
    source_file: str
    source_stamp: FileStamp
    header: bytes
    nbytes: int
    steps: tuple[Step, ...]

    def places(self) -> dict[str, TensorRef]:
        """Where each output tensor lies, by name; worked out anew, since it is needed once."""

        def read(offset: int, nbytes: int) -> bytes:
            return self.header[offset : offset + nbytes]

        tensors = read_header(self.file, self.nbytes, read).tensors
        return {ref.name: ref for ref in tensors}

    @property
    def source_nbytes(self) -> int:
        """Bytes of tensor data to be read for it."""
        return sum(step.source.nbytes for step in self.steps)


@dataclass(frozen=True, slots=True)
class Plan:
    """All that will be written.

    Attributes:
        shards: The weight files, in the order they are written.
        side_files: Name → length of the files copied as they are.
        small_files: Name → bytes of index, description and config.json, in the order written.
        source_config_xxh3: xxh3-128 of the source's config.json, hexadecimal.
        recipe: The recipe.
        mtp_count: MTP layers in the output.
        manifest_nbytes: An upper bound of the manifest's length.
        notes: What the user should know, a sentence each.
        settings: What was asked for, for the words in which two plans are told apart.
        digest: xxh3-128 of all that decides the weight files and the small files, hexadecimal. Side
            files do not count: they are copied at the end, as they then are.
    """

    shards: tuple[ShardPlan, ...]
    side_files: dict[str, int]
    small_files: dict[str, bytes]
    source_config_xxh3: str
    recipe: Recipe
    mtp_count: int
    manifest_nbytes: int
    notes: tuple[str, ...]
    settings: dict[str, Any]
    digest: str

    @property
    def source_nbytes(self) -> int:
        """Bytes of tensor data to be read."""
        return sum(shard.source_nbytes for shard in self.shards)

    @property
    def weights_nbytes(self) -> int:
        """Bytes of the weight files."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def output_nbytes(self) -> int:
        """Bytes of all files, the manifest by its upper bound."""
        return (
            self.weights_nbytes
            + sum(self.side_files.values())
            + sum(map(len, self.small_files.values()))
            + self.manifest_nbytes
        )

    @property
    def source_files(self) -> tuple[str, ...]:
        """Every file of the source that is read while the plan runs."""
        return (*(shard.source_file for shard in self.shards), *self.side_files)

    @property
    def files(self) -> tuple[str, ...]:
        """Every file of the finished target."""
        shards = tuple(shard.file for shard in self.shards)
        return (*shards, *self.side_files, MANIFEST_FILE, *self.small_files)


def make_plan(
    checkpoint: Checkpoint,
    recipe: Recipe,
    *,
    add_mtp: bool = False,
    embed_quant_config: bool = False,
    also: Iterable[str] = (),
) -> Plan:
    """Decide every byte of the output that does not depend on the values of weights.

    Args:
        checkpoint: The BF16 source.
        recipe: What each role becomes.
        add_mtp: Take the MTP layer along, float and bit-equal.
        embed_quant_config: Put the description into config.json too.
        also: Other engines that are to take the output: keys of ``ENGINE_KEYS``.

    Returns:
        The plan.

    Raises:
        NoMtpError: ``add_mtp`` and the source has no MTP layer.
        RecipeError: The recipe has no rule for a tensor that is there.
    """
    if add_mtp and not checkpoint.mtp_count:
        raise NoMtpError(
            "an MTP layer was asked for and the source has none",
            where=checkpoint.name,
            expected=f"tensors model.layers.{checkpoint.config.num_hidden_layers}.*",
            found=f"none in {len(checkpoint.shards)} shards",
            hint="fetch the file that holds the MTP layer, or leave --add-mtp out",
        )
    mtp_count = checkpoint.mtp_count if add_mtp else 0
    rules = _rules_by_role(checkpoint, recipe)
    kept = {
        shard: tuple(
            ref for ref in refs if add_mtp or checkpoint.expected[ref.name].role is not Role.MTP
        )
        for shard, refs in checkpoint.shards.items()
    }
    names = _output_names([shard for shard, refs in kept.items() if refs], list(kept))
    shards = tuple(
        _plan_shard(names[shard], shard, kept[shard], checkpoint, rules) for shard in names
    )
    description = _describe(shards, checkpoint, mtp_count)
    also = sorted(set(also))
    config = _config_data(
        checkpoint.config_data, mtp_count, description if embed_quant_config else None, also
    )
    small_files = {
        DESCRIPTION_FILE: encode_description(description),
        INDEX_FILE: _index_data(shards),
        CONFIG_FILE: config,
    }
    copied = {name: checkpoint.other_files[name] for name in side_files(checkpoint.other_files)}
    _require_writable_names([*names.values(), *copied])
    settings = {
        "glmquant": __version__,
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest(),
        "add_mtp": add_mtp,
        "embed_quant_config": embed_quant_config,
    }
    settings |= {"also": also} if also else {}  # else the digest is that of earlier versions
    return Plan(
        shards=shards,
        side_files=copied,
        small_files=small_files,
        source_config_xxh3=xxhash.xxh3_128(checkpoint.config_data).hexdigest(),
        recipe=recipe,
        mtp_count=mtp_count,
        manifest_nbytes=_manifest_bound(shards, copied),
        notes=(*checkpoint.notes, *_notes(checkpoint, mtp_count)),
        settings=settings,
        digest=_digest(shards, small_files, settings),
    )


def _manifest_bound(shards: tuple[ShardPlan, ...], copied: dict[str, int]) -> int:
    names = [each.name for shard in shards for step in shard.steps for each in step.outputs]
    lines = 2 * sum(map(len, names)) + 320 * len(names)
    return 4096 + 256 * (len(shards) + len(copied)) + lines


def _require_writable_names(names: Iterable[str]) -> None:
    """No name is too long, or at once a file and a folder.

    A file is written as ``NAME.part``, and a shard is noted in ``NAME.json.part``.
    """
    planned = {*names, MANIFEST_FILE, DESCRIPTION_FILE, INDEX_FILE, CONFIG_FILE}
    for name in sorted(planned):
        path = PurePosixPath(name)
        nbytes = max(len(part.encode()) for part in path.parts)
        if nbytes > MAX_NAME_NBYTES:
            raise CheckpointError(
                "a file of the source has too long a name",
                where=name,
                expected=f"at most {MAX_NAME_NBYTES} bytes",
                found=f"{nbytes} bytes",
                hint="rename the file, in the index too",
            )
        if folder := next((str(each) for each in path.parents if str(each) in planned), None):
            raise CheckpointError(
                "a folder of the source has the name of a file to be written",
                where=name,
                expected=f"no folder {folder}",
                found="a folder",
                hint="rename the folder",
            )


def _notes(checkpoint: Checkpoint, mtp_count: int) -> Iterator[str]:
    announced = checkpoint.config.num_nextn_predict_layers
    if not checkpoint.mtp_count:
        why = f"though config.json announces {announced}" if announced else "nor announces one"
        yield f"the source has no MTP layer, {why}: the output cannot decode speculatively"
    elif not mtp_count:
        yield (
            "the MTP layer is left out (--add-mtp keeps it): the output cannot decode speculatively"
        )
    elif announced is None:
        yield f"config.json does not count MTP layers: the weights hold {mtp_count}"
    if left := left_behind(checkpoint.other_files):
        yield f"left out, other weights or checksums: {listing(left, limit=5)}"


def _rules_by_role(checkpoint: Checkpoint, recipe: Recipe) -> dict[Role, Rule]:
    rules: dict[Role, Rule] = {}
    for name, tensor in checkpoint.expected.items():
        if tensor.role not in rules:
            rule = recipe.rule_of(tensor.role)
            if rule is None:
                unruled = [role.value for role in Role if recipe.rule_of(role) is None]
                raise RecipeError(
                    "a tensor has no rule",
                    where=f"recipe {recipe.name}: {name}",
                    expected=f"rules for {', '.join(unruled)}, too",
                    found=f"none for {tensor.role.value}",
                    hint="add them to a rule: nothing is left out in silence",
                )
            rules[tensor.role] = rule
    return rules


def _output_names(kept: list[str], all_shards: list[str]) -> dict[str, str]:
    """Source shard → output name; numbered ones count anew where one of their kind is dropped."""
    series: dict[tuple[str, str], list[str]] = {}
    for name in all_shards:
        if match := _NUMBERED.fullmatch(name):
            series.setdefault((match["prefix"], match["count"]), []).append(name)
    names = {name: name for name in kept}
    for (prefix, _), members in series.items():
        left = [name for name in members if name in names]
        if len(left) < len(members):
            for number, name in enumerate(left, start=1):
                names[name] = f"{prefix}-{number:05d}-of-{len(left):05d}.safetensors"
    # Two series of one prefix could meet in a name; then all names stay.
    return names if len(set(names.values())) == len(names) else {name: name for name in kept}


def _plan_shard(
    file: str,
    source_file: str,
    refs: tuple[TensorRef, ...],
    checkpoint: Checkpoint,
    rules: dict[Role, Rule],
) -> ShardPlan:
    steps: list[Step] = []
    outputs: list[OutputTensor] = []
    expected = checkpoint.expected
    for ref in refs:
        name, dtype, shape, *_ = ref
        role = expected[name].role
        rule = rules[role]
        tensors = output_tensors(rule.scheme, name, dtype, shape)
        steps.append(Step(ref, role, rule.scheme, rule.scale, tensors))
        outputs += tensors
    header, data_nbytes = build_header(outputs)
    stamp = checkpoint.stamps[source_file]
    return ShardPlan(file, source_file, stamp, header, len(header) + data_nbytes, tuple(steps))


def _describe(
    shards: tuple[ShardPlan, ...], checkpoint: Checkpoint, mtp_count: int
) -> dict[str, Any]:
    by_source = {step.source.name: step for shard in shards for step in shard.steps}
    types: dict[str, Any] = {}
    for name in checkpoint.expected:  # in the order of the model
        if step := by_source.get(name):
            kind = step.scheme.value
            for output in step.outputs:
                types[output.name] = kind
    for layer in mtp_layers(checkpoint.config, mtp_count):
        for name in optional_mtp_weights(layer):
            types.setdefault(name, Scheme.FLOAT.value)
    return build_description(types)


def _index_data(shards: tuple[ShardPlan, ...]) -> bytes:
    weight_map = {
        output.name: shard.file
        for shard in shards
        for step in shard.steps
        for output in step.outputs
    }
    return build_index(weight_map, sum(shard.nbytes - len(shard.header) for shard in shards))


def _config_data(
    source: bytes, mtp_count: int, description: dict[str, Any] | None, also: Iterable[str]
) -> bytes:
    """config.json of the output: the source's bytes where nothing has to change."""
    before = parse_object(source, CONFIG_FILE)
    # An empty quantization_config says nothing in the source, but vllm-ascend would believe it.
    fields = {key: value for key, value in before.items() if key != "quantization_config"}
    fields["num_nextn_predict_layers"] = mtp_count
    if description is not None:
        fields["quantization_config"] = embedded_config(description)
    for engine in also:
        fields |= ENGINE_KEYS[engine]
    return source if fields == before else dump_object(fields)


def _digest(
    shards: tuple[ShardPlan, ...], small_files: dict[str, bytes], settings: dict[str, Any]
) -> str:
    digest = xxhash.xxh3_128(json.dumps(settings).encode())
    for shard in shards:
        steps = [
            (step.source.name, step.source.dtype, step.source.offset, step.scheme, step.scale)
            for step in shard.steps
        ]
        told = [shard.file, shard.source_file, shard.nbytes, steps]
        digest.update(json.dumps(told).encode() + shard.header)
    for name, data in small_files.items():
        digest.update(json.dumps([name, len(data)]).encode() + data)
    return digest.hexdigest()
