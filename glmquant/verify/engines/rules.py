"""What an engine stumbles over in a folder, or does not notice: a rule a function.

Sources are those of ``engines.py``: each rule was measured with the real loaders, except where its
comment says that it was read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

from glmquant.glm4_moe import ExpectedTensor
from glmquant.survey import printable
from glmquant.verify.files.anatomy import (
    ALLOWED_PARTS,
    DYNAMIC,
    FLOAT,
    KNOWN_TYPES,
    STATIC,
    STATIC_PARTS,
    Linear,
)
from glmquant.verify.files.linears import part_shapes
from glmquant.verify.files.names import NORM_BIAS, is_router_bias
from glmquant.verify.files.rotation import rotation_keys
from glmquant.verify.subject import LINEAR_SUFFIXES, Subject

_FUSED: Final = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Linears that are one parameter to the engine."""

_PARAMETERS: Final = {
    DYNAMIC: ("weight_scale", "weight_offset"),
    STATIC: ("weight_scale", "weight_offset", *STATIC_PARTS),
}
"""Type → the parameters that a linear of it has beside its weight (0.18)."""


class Engine(NamedTuple):
    """A version of vllm-ascend, and what its loader does differently.

    Attributes:
        version: As people name it.
        detects: It knows the format by the description, without ``--quantization ascend`` (0.17).
        sorts: It reads shards in natural order (0.18), not in that of the file system.
        asks_for_head: It looks up ``shared_head.head.weight`` (0.14 to 0.22, 0.24 to 0.26).
        guesses: A linear without an entry is float to it, where it is in no fused group.
        guesses_head: So is a head without an entry.
        takes_method_alone: ``{"quant_method": "ascend"}`` in config.json is enough.
        wants_every_file: It refuses a folder without a weight file that the index names (0.26).
        assumes_mtp: Without a word of it in config.json there is an MTP layer to it: so says the
            transformers that it asks for (5.14.1).
        checks_types: It asks for transformers 5, which checks the types of keys of config.json.
        drops_expert_biases: As those of other modules without one (0.30); before, an error.
        has_static_shared: Static shared experts run: from 0.23 on they are always dynamic.
        cuts_experts: It cuts experts that are too long as it does other linears (0.18).
        tracks_all: Where it looks for parameters that nothing filled, it looks at all; later ones
            pass over linears, embedding and head (``track_weights_loading``, 0.23).
    """

    version: str
    detects: bool = True
    sorts: bool = True
    asks_for_head: bool = False
    guesses: bool = False
    guesses_head: bool = False
    takes_method_alone: bool = False
    has_static_shared: bool = False
    wants_every_file: bool = False
    assumes_mtp: bool = False
    checks_types: bool = False
    drops_expert_biases: bool = False
    cuts_experts: bool = False
    tracks_all: bool = False


class Fate(str, Enum):
    """What becomes of a model."""

    LOADS = "loads"
    FAILS = "fails"
    WRONG = "loads, wrong in silence"


class Trouble(NamedTuple):
    """Something that an engine stumbles over, or does not notice.

    Attributes:
        is_draft: It is the draft model's.
        fate: What comes of it.
        text: The error or what is wrong.
        when: For which versions.
    """

    is_draft: bool
    fate: Fate
    text: str
    when: Callable[[Engine], bool] = lambda engine: True


@dataclass(frozen=True, slots=True)
class Model:
    """The model as an engine builds it from config.json: target and draft.

    Attributes:
        subject: The folder.
        expected: The tensors that it has places for.
        linears: Its linears, described as the engine believes.
        draft_prefixes: With which the names of the draft's layers begin.
        types: The description that the engine believes; None where it has none.
    """

    subject: Subject
    expected: dict[str, ExpectedTensor]
    linears: dict[str, Linear]
    draft_prefixes: tuple[str, ...]
    types: dict[str, Any] | None

    def is_draft(self, name: str) -> bool:
        """Whether a tensor or linear is the draft model's."""
        return name.startswith(self.draft_prefixes)


def some(names: list[str]) -> str:
    """The first of several names, and how many more there are."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return printable(names[0], 200) + more


def _groups(model: Model) -> Iterator[tuple[str, list[Linear]]]:
    """What an engine looks up together, by the name of the fused module.

    vllm-ascend ``packed_modules_model_mapping["glm4_moe"]``: qkv_proj, gate_up_proj, and of the
    experts the three linears of expert 0. ``eh_proj`` is never looked up.
    """
    groups: dict[str, list[Linear]] = {}
    for linear in model.linears.values():
        module, _, part = linear.name.rpartition(".")
        if ".mlp.experts." in module:
            if module.endswith(".experts.0"):
                groups.setdefault(module[:-2], []).append(linear)
        elif part in ("q_proj", "k_proj", "v_proj"):
            groups.setdefault(f"{module}.qkv_proj", []).append(linear)
        elif part in ("gate_proj", "up_proj"):
            groups.setdefault(f"{module}.gate_up_proj", []).append(linear)
        elif part != "eh_proj":
            groups[linear.name] = [linear]
    yield from groups.items()


def lookups(model: Model) -> Iterator[Trouble]:
    """What goes wrong before a weight is read: the types of all modules."""
    types = model.types or {}
    for name, group in _groups(model):
        is_draft = model.is_draft(name)
        kinds = [linear.described for linear in group]
        absent = [linear for linear in group if linear.described is None]
        if absent:
            error = f"KeyError '{absent[0].name}.weight'"
            if len(group) > 1:
                yield Trouble(is_draft, Fate.FAILS, error)
            else:
                yield Trouble(is_draft, Fate.FAILS, error, lambda engine: not engine.guesses)
                if group[0].actual != FLOAT:  # taken as float: its scales have no place
                    error = f"no place for {absent[0].name}.weight_scale"
                    yield Trouble(is_draft, Fate.FAILS, error, lambda engine: engine.guesses)
        elif odd := [
            kind for kind in kinds if not isinstance(kind, str) or kind not in KNOWN_TYPES
        ]:
            text = printable(f"no scheme for the type {odd[0]!r} of {group[0].name}", 200)
            yield Trouble(is_draft, Fate.FAILS, text)
        elif len(set(kinds)) > 1:
            yield Trouble(is_draft, Fate.FAILS, f"ValueError: {name} has several types")
        elif kinds[0] == STATIC and name.endswith(".mlp.experts"):
            yield Trouble(is_draft, Fate.FAILS, f"no scheme {STATIC} for experts: {name}")
        elif kinds[0] == STATIC and ".mlp.shared_experts." in name:
            text = f"at the first token: {name} is run as {DYNAMIC}"
            yield Trouble(is_draft, Fate.FAILS, text, lambda engine: not engine.has_static_shared)
    for prefix in model.draft_prefixes:
        if f"{prefix}shared_head.head.weight" not in types:
            error = f"KeyError '{prefix}head.weight'"
            yield Trouble(True, Fate.FAILS, error, lambda engine: engine.asks_for_head)
    yield from _lookup_of_head(model, types.get("lm_head.weight"))
    if any(NORM_BIAS in key for key in types):
        for is_draft in (False, True):
            text = f"a key with {NORM_BIAS} gives every RMSNorm a bias"
            yield Trouble(is_draft, Fate.WRONG, text)


def _lookup_of_head(model: Model, kind: object) -> Iterator[Trouble]:
    """The head is looked up as a linear in no fused group is, and may be int8."""
    tensors = model.subject.tensors
    if kind is None:
        error = "KeyError 'lm_head.weight'"
        yield Trouble(False, Fate.FAILS, error, lambda engine: not engine.guesses_head)
        return
    if not isinstance(kind, str) or kind not in KNOWN_TYPES:
        text = printable(f"no scheme for the type {kind!r} of lm_head", 200)
        yield Trouble(False, Fate.FAILS, text)
        return
    parts = {FLOAT: (), DYNAMIC: ("weight_scale",), STATIC: STATIC_PARTS}[kind]
    if kind == FLOAT and "lm_head.weight_scale" in tensors:
        yield Trouble(False, Fate.FAILS, "no place for lm_head.weight_scale")
    lost = [f"lm_head.{part}" for part in parts if f"lm_head.{part}" not in tensors]
    if lost:
        yield Trouble(False, Fate.WRONG, f"uninitialised tensors: {some(lost)}")


def tensors(model: Model) -> Iterator[Trouble]:
    """What goes wrong while weights are read, or does not and should."""
    yield from _unplaced(model)
    if model.types is None:
        return  # a float model: see _unplaced
    found: dict[tuple[bool, str], list[str]] = {}
    for linear in model.linears.values():
        _judge_linear(model, linear, found)
    for name, tensor in model.expected.items():
        if tensor.is_required and name not in model.subject.tensors:
            what = "uninitialised tensors"
            if is_router_bias(name):
                what = "uninitialised router biases"
            elif model.is_draft(name):
                what = "acceptance 0, uninitialised tensors"
            found.setdefault((model.is_draft(name), what), []).append(name)
    # The draft's head is read from the target's, where it has none of its own. vLLM's classes tie
    # no head to the embedding, whatever config.json says.
    heads = [f"{prefix}shared_head.head.weight" for prefix in model.draft_prefixes]
    there = model.subject.tensors
    if "lm_head.weight" not in there:
        if "lm_head.weight" not in model.expected:
            found.setdefault((False, "uninitialised tensors"), []).append("lm_head.weight")
        what = "acceptance 0, uninitialised tensors"
        for head in heads:
            if head not in there:
                found.setdefault((True, what), []).append(head)
    for (is_draft, what), names in found.items():
        fate = Fate.FAILS if what.startswith("no place") else Fate.WRONG
        yield Trouble(is_draft, fate, f"{what}: {some(names)}")
    if rotated := rotation_keys(model.subject):
        yield Trouble(
            True, Fate.WRONG, f"acceptance 0, a float draft of a rotated body: {rotated[0]}"
        )


def _judge_linear(model: Model, linear: Linear, found: dict[tuple[bool, str], list[str]]) -> None:
    """What the engine makes of a linear's tensors by the type that it believes."""
    is_draft = model.is_draft(linear.name)
    kind = linear.described
    if ".mlp.experts." in linear.name:  # it asks for expert 0 alone
        module, _, part = linear.name.rpartition(".")
        first = model.linears.get(f"{module[: module.index('.experts.')]}.experts.0.{part}")
        kind = first.described if first else kind
    if linear.name.endswith(".eh_proj"):
        kind = FLOAT
    if not isinstance(kind, str) or kind not in KNOWN_TYPES:
        return  # an error of the lookup, or taken as it is

    def note(what: str, suffix: str) -> None:
        found.setdefault((is_draft, what), []).append(f"{linear.name}.{suffix}")

    for suffix in linear.parts:
        if suffix in LINEAR_SUFFIXES and suffix not in ALLOWED_PARTS[kind]:
            note("no place", suffix)
    weight = linear.parts.get("weight")
    if weight is None:
        return
    if kind == FLOAT and weight.dtype == "I8":
        note("int8 read as float", "weight")
    elif kind != FLOAT and weight.dtype != "I8":
        note("acceptance 0, " * is_draft + "float tensors read as int8", "weight")
    elif kind != FLOAT:
        # A dynamic linear's offset is not in the formula.
        needed = ("weight_scale",) if kind == DYNAMIC else STATIC_PARTS
        for suffix in needed:
            if suffix not in linear.parts and not _shares(model, linear, suffix):
                note(f"uninitialised {suffix}", suffix)


def _shares(model: Model, linear: Linear, suffix: str) -> bool:
    """Whether another linear of a fused group fills the one slot that they have for it."""
    if suffix not in ("input_scale", "input_offset"):
        return False
    module, _, part = linear.name.rpartition(".")
    group = next((each for each in _FUSED if part in each), ())
    others = (model.linears.get(f"{module}.{each}") for each in group)
    return any(other is not None and suffix in other.parts for other in others)


def noticed(model: Model, *, is_draft: bool) -> list[str]:
    """Required tensors whose absence is an error where missing ones are tracked.

    That is by the engine's own parameters: one of a fused group or of a layer's experts is enough
    for it to count as loaded.
    """
    there = model.subject.tensors
    lost = [
        name
        for name, tensor in model.expected.items()
        if tensor.is_required and name not in there and model.is_draft(name) is is_draft
    ]
    return _unfilled(lost, there)


def noticed_of_all(model: Model) -> list[str]:
    """What else of a draft is missed where every parameter is tracked: scales, embedding, head."""
    there = model.subject.tensors
    lost = [
        f"{linear.name}.{part}"
        for linear in model.linears.values()
        if model.is_draft(linear.name) and not linear.name.endswith(".eh_proj")
        for part in _PARAMETERS.get(str(linear.described), ())
        if part not in linear.parts
    ]
    for prefix in model.draft_prefixes:
        for own, shared in (
            ("embed_tokens.weight", "model.embed_tokens.weight"),
            ("shared_head.head.weight", "lm_head.weight"),
        ):
            if prefix + own not in there and shared not in there:
                lost.append(prefix + own)
    return _unfilled(lost, there)


def _unfilled(lost: list[str], there: Collection[str]) -> list[str]:
    """Those whose parameter no other tensor is loaded into."""
    filled = {_parameter(name) for name in there} if lost else set()
    return [name for name in lost if _parameter(name) not in filled]


def _parameter(name: str) -> str:
    """What a tensor is loaded into."""
    module, _, suffix = name.rpartition(".")
    head, _, part = module.rpartition(".")
    is_expert = ".mlp.experts." in head
    if is_expert:
        head = head[: head.index(".experts.") + len(".experts")]
    group = next((each for each in _FUSED if part in each), (part,))
    return ".".join((head, group[0], suffix)) if is_expert or len(group) > 1 else name


def _unplaced(model: Model) -> Iterator[Trouble]:
    """Tensors that the target model has no place for: an error in every version.

    Layers of the draft are passed over where config.json announces them; biases of modules without
    one are dropped in silence.
    """
    if model.types is None:
        scales = ("weight_offset", "weight_scale", *STATIC_PARTS)
        for linear in model.linears.values():
            suffix = next((each for each in scales if each in linear.parts), None)
            if suffix is not None and not model.is_draft(linear.name):
                yield Trouble(False, Fate.FAILS, f"KeyError '….{suffix}': no description is read")
                return
        if lost := noticed(model, is_draft=False):
            yield Trouble(False, Fate.FAILS, f"ValueError: {some(lost)} not initialized")
    for name in sorted(model.subject.tensors.keys() - model.expected.keys()):
        module, _, suffix = name.rpartition(".")
        if suffix == "bias" and ".mlp.experts." in module:
            text = f"no place for {printable(name, 200)}"
            yield Trouble(
                model.is_draft(name),
                Fate.FAILS,
                text,
                lambda engine: not engine.drops_expert_biases,
            )
        if suffix == "bias" or (suffix in LINEAR_SUFFIXES and module in model.linears):
            continue
        if module == "lm_head" and suffix in LINEAR_SUFFIXES and model.types is not None:
            continue  # see _lookup_of_head
        # A draft's unknown tensors are the draft's error, all others the target's.
        yield Trouble(model.is_draft(name), Fate.FAILS, f"no place for {printable(name, 200)}")


def shapes(model: Model) -> Iterator[Trouble]:
    """Shapes are checked by every version, dtypes cast by every version.

    Not seen is what is too long where ranks share it: each takes its part, and the rest is lost.
    """
    for name, tensor in model.expected.items():
        if name.removesuffix(".weight") in model.linears:
            continue
        ref = model.subject.tensors.get(name)
        if ref is not None and ref.shape != tensor.shape:
            yield from _shape_troubles(model, name, ref.shape, tensor.shape)
    known: dict[tuple[int, ...], dict[str, tuple[int, ...]]] = {}
    for linear in model.linears.values():
        if linear.shape not in known:
            known[linear.shape] = part_shapes(linear.shape)
        by_suffix = known[linear.shape]
        for suffix, ref in linear.parts.items():
            if suffix != "bias" and by_suffix.get(suffix, ref.shape) != ref.shape:
                yield from _shape_troubles(model, ref.name, ref.shape, by_suffix[suffix])


def _shape_troubles(
    model: Model, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> Iterator[Trouble]:
    shown, is_draft = printable(name, 200), model.is_draft(name)
    wrong = f"cut in silence: {shown} from {list(shape)} to {list(expected)}"
    error = f"{shown} is {list(shape)}, not {list(expected)}"
    if not _is_cut(name, shape, expected):
        yield Trouble(is_draft, Fate.FAILS, error)
    elif ".mlp.experts." in name:
        yield Trouble(is_draft, Fate.WRONG, wrong, lambda engine: engine.cuts_experts)
        yield Trouble(is_draft, Fate.FAILS, error, lambda engine: not engine.cuts_experts)
    else:
        yield Trouble(is_draft, Fate.WRONG, wrong)


def _is_cut(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether a tensor is longer than its parameter where the engine cuts it for ranks.

    vLLM ``layers/linear.py``: rows of what leads into a block, columns of what leads out of it.
    """
    module, _, suffix = name.rpartition(".")
    part = module.rpartition(".")[2]
    if len(shape) != len(expected) or suffix.startswith("input_"):
        return False
    if part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
        axis = 0
    elif part in ("o_proj", "down_proj") and suffix == "weight":
        axis = 1
    else:
        return False
    others = [n for n in range(len(shape)) if n != axis]
    return shape[axis] > expected[axis] and all(shape[n] == expected[n] for n in others)


def copies(model: Model) -> Iterator[Trouble]:
    """0.13 reads files in the order of the file system: which copy is the last, nobody knows."""
    subject = model.subject
    shards = [subject.found.shards[file] for file in subject.loaded]
    if sum(map(len, shards)) > len(subject.tensors):
        text = "tensors lie in two files, and the one read last wins"
        yield Trouble(False, Fate.WRONG, text, lambda engine: not engine.sorts)
