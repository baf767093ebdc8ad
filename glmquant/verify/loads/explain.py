"""What an engine's message means, and which parameters may stay without a tensor."""

from __future__ import annotations

import re
from typing import Any, Final

from glmquant.runtime.matrix import Model, Unfilled
from glmquant.survey import printable
from glmquant.verify.engines.predict import Outcome
from glmquant.verify.engines.rules import Engine, Fate
from glmquant.verify.engines.settings import OF_CONFIG
from glmquant.verify.files.anatomy import STATIC

AT_FIRST_TOKEN: Final = "at the first token"
"""With this begins what the table says of errors that come after loading."""

INDIVISIBLE: Final = "the model does not divide by that many ranks"

_QUOTED: Final = re.compile(r"[A-Z]\w*(Error|Exception)\b")
"""How the rules begin where they quote an engine; here its own words stand beside."""

_FIELD: Final = re.compile(r"[Ff]ield '(\w+)'")
_KEY: Final = re.compile(r"config\.json: (\w+)")
_SHAPE: Final = re.compile(r" is (\[[\d, ]*\]), not ")
_SHAPES: Final = re.compile(r"torch\.Size\((\[[\d, ]*\])\)")
"""What a reason and a message name: if it is not the same, the one is not of the other."""

_RULE: Final = re.compile(r"[=*_-]{4,}")
"""The lines that engines draw around a message."""

_MEANINGS: Final = tuple(
    (re.compile(pattern, re.DOTALL), meaning)
    for pattern, meaning in (
        (
            r"^KeyError: .*weight_(offset|scale)",
            "the weights are int8 and no description is read: --quantization ascend is not given "
            "and this version does not know the format by its files",
        ),
        (
            r"^KeyError: .*\.weight'",
            "the description has no entry for a weight that the engine looks up",
        ),
        (
            r"not initialized from",
            "tensors of the model are not in the files that are read",
        ),
        (
            r"(some but not all shards|Not all shards)",
            "the linears of one fused group are of several types",
        ),
        (
            r"(BOM|codec can't decode)",
            "a JSON file is no plain UTF-8 text",
        ),
        (
            r"(StrictDataclass|max_model_len|Unsupported activation|RoPE|rope_parameters|rotary"
            r"|model_type|Unrecognized model|speculators|has model type|text_config)",
            OF_CONFIG,
        ),
        (
            r"(doesn't support|only supports following|[Uu]nsupported (?!operand)"
            r"|not supported(?! between))",
            "there is no scheme of that type for this kind of layer",
        ),
        (
            r"(missing|No such file|Too many levels|No such device|Cannot find any model weights)",
            "a weight file is not there, or is none",
        ),
        (
            r"(SafetensorError|HeaderTooLarge|MetadataIncomplete|InvalidHeader|deserializ)",
            "a weight file is broken",
        ),
        (
            r"(JSON|Expecting |config file for ascend|quantization_config|quant_method)",
            "the description, config.json or the index is not what the engine reads",
        ),
        (
            r"(load weights? of size|load weight|size of tensor|exceeds dimension|shape)",
            "a tensor has another shape than config.json calls for",
        ),
        (
            r"(has no attribute|has no parameter|no module or parameter named|^KeyError)",
            "a tensor is in the files that the model has no place for",
        ),
        (r"divisible", INDIVISIBLE),
    )
)
"""What is behind the messages of vLLM and vllm-ascend 0.13 to 0.30: the first that fits."""


def explained(model: Model, outcome: Outcome | None) -> str:
    """What is behind the failure of a model, in our words; empty where we have none.

    Args:
        model: It.
        outcome: What the rules say of it: they know the names.
    """
    why = outcome.why[0] if outcome and outcome.fate is Fate.FAILS and outcome.why else ""
    message = f"{model.error}: {model.message}"
    if why and not _QUOTED.match(why) and _fits(why, message):
        return why
    return next((meaning for pattern, meaning in _MEANINGS if pattern.search(message)), "")


def _fits(why: str, message: str) -> bool:
    """Whether what the rules found first can be what the engine met first."""
    field, key = _FIELD.search(message), _KEY.match(why)
    if field is not None:
        return key is not None and key[1] == field[1]
    shape, shapes = _SHAPE.search(why), _SHAPES.findall(message)
    return shape is None or not shapes or shape[1] in shapes


def said(model: Model) -> str:
    """The engine's own message, in a line that may be shown."""
    text = " ".join(_RULE.sub(" ", model.message).split())
    return printable(f"{model.error}: {text}", 600)


def lost(model: Model, engine: Engine, types: dict[str, Any]) -> tuple[Unfilled, ...]:
    """The parameters without a tensor that the model computes with.

    Args:
        model: It.
        engine: The version.
        types: The description.
    """
    return tuple(each for each in model.unfilled if _matters(each, engine, types))


def _matters(each: Unfilled, engine: Engine, types: dict[str, Any]) -> bool:
    name = each.name.replace(".mtp_block.", ".")
    module, _, suffix = name.rpartition(".")
    if suffix.endswith("weight_offset"):
        return False  # in no formula: offsets are zeros
    if each.is_default:
        # Ones of a norm are not its weights; zeros of a bias are what no bias means.
        return suffix in ("weight", "e_score_correction_bias")
    if suffix == "weight_scale" and _kind(module, types) == STATIC:
        # A static linear is computed with deq_scale.
        return ".shared_experts." in module and not engine.has_static_shared
    return True


def _kind(module: str, types: dict[str, Any]) -> object:
    head, _, last = module.rpartition(".")
    first = {"qkv_proj": "q_proj", "gate_up_proj": "gate_proj"}.get(last, last)
    return types.get(f"{head}.{first}.weight")


def differs(outcome: Outcome | None, model: Model | None, is_lost: bool) -> bool:
    """Whether the rules say another thing than the loader did.

    What comes after loading, or is in the values, a loader does not show.

    Args:
        outcome: Of the rules, where they say something.
        model: What the loader did, where it came so far.
        is_lost: Parameters that matter have no tensor.
    """
    if outcome is None or model is None:
        return False
    fails = outcome.fate is Fate.FAILS
    if fails and outcome.why and outcome.why[0].startswith(AT_FIRST_TOKEN):
        return model.error is not None
    if fails or model.error is not None:
        return fails is not (model.error is not None)
    if is_lost:
        return outcome.fate is Fate.LOADS
    return any("uninitialised" in why for why in outcome.why)
