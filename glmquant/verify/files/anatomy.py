"""The model that lies in a folder: its tensors held against description and config.json.

Where tensors and config.json contradict each other, one of them is wrong in one place. It is said
once, about the key; all else is then held against the configuration that the tensors speak for, so
that one wrong number does not drown the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from glmquant.glm4_moe import (
    MAX_TENSORS,
    ExpectedTensor,
    Glm4MoeConfig,
    Role,
    expected_tensors,
    optional_mtp_weights,
)
from glmquant.index import is_shard_name
from glmquant.tensors import FLOAT_DTYPES, TensorRef
from glmquant.verify.files.census import Contradiction, correct, take_census
from glmquant.verify.subject import Subject

FLOAT: Final = "FLOAT"
STATIC: Final = "W8A8"
DYNAMIC: Final = "W8A8_DYNAMIC"
KNOWN_TYPES: Final = (FLOAT, STATIC, DYNAMIC)
"""The types that every vllm-ascend from 0.11 to 0.30 takes for the linears of a GLM-4.x."""

STATIC_PARTS: Final = ("quant_bias", "input_scale", "input_offset", "deq_scale")
_STATIC_ONLY: Final = frozenset(STATIC_PARTS)
REQUIRED_PARTS: Final = {
    FLOAT: ("weight",),
    DYNAMIC: ("weight", "weight_scale", "weight_offset"),
    STATIC: ("weight", *STATIC_PARTS),
}
"""Type → suffixes of the tensors that its linear needs."""

ALLOWED_PARTS: Final = {
    FLOAT: ("weight", "bias"),
    DYNAMIC: ("weight", "weight_scale", "weight_offset", "bias"),
    STATIC: ("weight", *STATIC_PARTS, "weight_scale", "weight_offset", "bias"),
}
"""Type → all suffixes that its linear may have: msModelSlim v0 leaves the dynamic ones in place."""

QUANTIZED_SHARDS: Final = "quant_model_weight"
"""How msModelSlim begins the names of its shards, v0 and v1."""

_WEIGHT: Final = ".weight"


class Linear(NamedTuple):
    """A linear of the model, as described and as it lies there. A named tuple: GLM-4.6 has 43,852.

    Attributes:
        name: Of the module: ``model.layers.0.self_attn.q_proj``.
        role: What it does.
        shape: ``[out, in]`` by the configuration.
        described: What the description says of its weight; None without an entry.
        parts: Its tensors by suffix.
        actual: The type that its tensors speak for; None without a weight, or one of other dtype.
        kind: The type that it is judged by: the described one, None where that is unknown.
    """

    name: str
    role: Role
    shape: tuple[int, ...]
    described: Any
    parts: Mapping[str, TensorRef]
    actual: str | None
    kind: str | None

    @property
    def is_mismatched(self) -> bool:
        """The description says one known type, the tensors are those of another."""
        return self.kind != self.actual and None not in (self.kind, self.actual)


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What there should be by configuration and description, and what there is.

    Attributes:
        subject: The folder.
        tensors: The tensors to be judged: those that an engine loads, or was meant to.
        elsewhere: Names in files that are missing, broken or not read: said once, of the file.
        copies: Names that lie in two of the files.
        config: The configuration that the tensors speak for; None where config.json has none.
        invalid: Keys of config.json that are missing or no values of a model, and why.
        contradictions: Where config.json says otherwise.
        mtp_layers: MTP layers that are there, where they belong.
        misplaced_layers: Layers behind those, where no MTP layer can be.
        expected: Every tensor of the model; empty without a configuration.
        linears: The linears among them, by name.
        missing: Tensors of the model, and parts of its linears, that are in no file.
    """

    subject: Subject
    tensors: dict[str, TensorRef]
    elsewhere: frozenset[str]
    copies: frozenset[str]
    config: Glm4MoeConfig | None
    invalid: dict[str, str]
    contradictions: tuple[Contradiction, ...]
    mtp_layers: tuple[int, ...]
    misplaced_layers: tuple[int, ...]
    expected: dict[str, ExpectedTensor]
    linears: dict[str, Linear]
    missing: tuple[str, ...]

    @property
    def optional_names(self) -> tuple[str, ...]:
        """Names that MTP layers have in the description whether the tensors are there or not."""
        return tuple(name for layer in self.mtp_layers for name in optional_mtp_weights(layer))


def absent_mtp_layers(anatomy: Anatomy) -> range:
    """MTP layers that config.json announces and that are in no file."""
    config = anatomy.config
    if config is None or not anatomy.tensors:
        return range(0)
    first = config.num_hidden_layers
    announced = config.num_nextn_predict_layers or 0
    return range(first + len(anatomy.mtp_layers), first + announced)


def is_linear(name: str) -> bool:
    """Whether it is the weight of a linear that tools quantize, ``eh_proj`` included."""
    return name.endswith("_proj.weight")


def dissect(subject: Subject) -> Anatomy:
    """Hold the tensors of a folder against description and configuration.

    Args:
        subject: The folder.

    Returns:
        What is there, and what is not.
    """
    found = subject.found
    tensors = _judged_tensors(subject)
    elsewhere = {name for name, file in found.weight_map.items() if file not in found.shards}
    for file, refs in found.shards.items():
        if file not in subject.loaded:
            elsewhere.update(ref.name for ref in refs)
    if _has_unknown_files(subject):  # they may hold whatever is described
        elsewhere.update(subject.types)
    elsewhere -= tensors.keys()
    config, invalid = _usable_config(subject)
    after: list[int] = []
    placed = 0
    contradictions: tuple[Contradiction, ...] = ()
    expected: dict[str, ExpectedTensor] = {}
    if config is not None and tensors:
        census = take_census(tensors, elsewhere, subject.types)
        config, contradictions = correct(config, census)
        after = [layer for layer in census.layers if layer >= config.num_hidden_layers]
        while placed < len(after) and after[placed] == config.num_hidden_layers + placed:
            placed += 1
        if config.tensor_bound <= MAX_TENSORS:
            expected = expected_tensors(config, placed)
    linears = linears_of(expected, tensors, subject.types)
    return Anatomy(
        subject=subject,
        tensors=tensors,
        elsewhere=frozenset(elsewhere),
        copies=_copies(subject),
        config=config,
        invalid=invalid,
        contradictions=tuple(each for each in contradictions if each.key not in invalid),
        mtp_layers=tuple(after[:placed]),
        misplaced_layers=tuple(after[placed:]),
        expected=expected,
        linears=linears,
        missing=tuple(_missing(expected, linears, tensors, elsewhere)),
    )


def _usable_config(subject: Subject) -> tuple[Glm4MoeConfig | None, dict[str, str]]:
    """The configuration, and why keys are wrong: the tensors will say what they should be."""
    fields = dict(subject.found.config)
    if subject.config is not None or not fields:
        return subject.config, {}
    invalid = {}
    try:
        return Glm4MoeConfig.model_validate(fields), {}
    except ValidationError as error:
        for each in error.errors(include_url=False):
            key = str(each["loc"][0])
            invalid[key] = each["msg"]
            fields.pop(key, None)
            if Glm4MoeConfig.model_fields[key].is_required():
                fields[key] = 1
    if fields.keys() & Glm4MoeConfig.model_fields.keys() <= invalid.keys():
        return None, invalid  # nothing of a GLM-4 MoE in it
    return Glm4MoeConfig.model_validate(fields), invalid


def _has_unknown_files(subject: Subject) -> bool:
    """Whether there are weight files that cannot be read and of which no index tells."""
    found = subject.found
    unreadable = {*found.broken, *(finding.where for finding in found.findings)}
    named = set(found.weight_map.values())
    return any(is_shard_name(name) and name not in named for name in unreadable)


def hidden_shards(subject: Subject) -> tuple[str, ...]:
    """Shards of msModelSlim that an engine passes over for an index that names others alone."""
    if any(file.startswith(QUANTIZED_SHARDS) for file in subject.loaded):
        return ()
    return tuple(
        file
        for file in subject.found.shards
        if file not in subject.loaded and file.startswith(QUANTIZED_SHARDS)
    )


def _judged_tensors(subject: Subject) -> dict[str, TensorRef]:
    """What an engine loads; where an index hides msModelSlim's shards, what they hold."""
    hidden = hidden_shards(subject)
    if not hidden:
        return subject.tensors
    return {ref.name: ref for file in hidden for ref in subject.found.shards[file]}


def _copies(subject: Subject) -> frozenset[str]:
    shards = subject.found.shards
    if sum(len(shards[file]) for file in subject.loaded) == len(subject.tensors):
        return frozenset()
    seen = Counter(ref.name for file in subject.loaded for ref in shards[file])
    return frozenset(name for name, times in seen.items() if times > 1)


def linears_of(
    expected: dict[str, ExpectedTensor], tensors: dict[str, TensorRef], types: dict[str, Any]
) -> dict[str, Linear]:
    """The linears among the expected tensors, with what is there of each.

    Args:
        expected: Every tensor of the model.
        tensors: Those that are there.
        types: The description's entries.

    Returns:
        Name → linear.
    """
    parts: dict[str, dict[str, TensorRef]] = {
        name.removesuffix(_WEIGHT): {} for name in expected if is_linear(name)
    }
    for name, ref in tensors.items():
        module, _, suffix = name.rpartition(".")
        if (held := parts.get(module)) is not None:
            held[suffix] = ref
    linears = {}
    for module, held in parts.items():
        tensor = expected[module + _WEIGHT]
        described = types.get(module + _WEIGHT)
        actual = _actual_type(held)
        kind = actual
        if described is not None:
            is_known = isinstance(described, str) and described in KNOWN_TYPES
            kind = described if is_known else None
        linears[module] = Linear(module, tensor.role, tensor.shape, described, held, actual, kind)
    return linears


def _actual_type(parts: dict[str, TensorRef]) -> str | None:
    weight = parts.get("weight")
    if weight is None:
        return None
    if weight.dtype == "I8":
        return DYNAMIC if _STATIC_ONLY.isdisjoint(parts) else STATIC
    return FLOAT if weight.dtype in FLOAT_DTYPES else None


def _missing(
    expected: dict[str, ExpectedTensor],
    linears: dict[str, Linear],
    tensors: dict[str, TensorRef],
    elsewhere: set[str],
) -> Iterator[str]:
    for name, tensor in expected.items():
        if name not in tensors and tensor.is_required and name not in elsewhere:
            yield name
    for linear in linears.values():
        kind = linear.kind
        if kind is None or kind != linear.actual or kind == FLOAT:
            continue  # without a weight that is named alone; another type is said of the linear
        for suffix in REQUIRED_PARTS[kind]:
            if suffix not in linear.parts and f"{linear.name}.{suffix}" not in elsewhere:
                yield f"{linear.name}.{suffix}"
