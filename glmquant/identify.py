"""Which model a folder holds, in which format, and which tool made it: judged from a survey."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from glmquant.description import GLOBAL_KEYS
from glmquant.errors import CheckpointError
from glmquant.glm4_moe import CONFIG_FILE, LOOK_ALIKES
from glmquant.inventory import find_mtp, is_glm4_moe
from glmquant.manifest import MANIFEST_FILE
from glmquant.markings import Format, Marking, read_marking, read_modelopt, text_of
from glmquant.releases import fitting_releases
from glmquant.survey import MODELOPT_FILE, QUANT_CONFIG_FILES, Survey, printable
from glmquant.tensors import FLOAT_DTYPES

_LOOK_ALIKE_TYPES: Final = {
    "glm4_moe_lite": "GLM-4.7-Flash",
    "glm4v_moe": "GLM-4.5V or GLM-4.6V (vision)",
    "glm46v": "GLM-4.6V (vision)",
    "glm4v": "GLM-4.1V or GLM-4.6V-Flash (vision)",
    "glm4": "dense GLM-4",
    "glm": "dense GLM",
    "chatglm": "ChatGLM",
    "glm_moe_dsa": "GLM-5",
}
"""``model_type`` of look-alikes, where no architecture is named."""

_GGUF_MODELS: Final = {"glm4moe": "GLM-4 MoE", "glm4": "dense GLM-4", "chatglm": "ChatGLM"}
"""``general.architecture`` (gguf-py 0.19.0)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a folder holds.

    Attributes:
        model: The model, for people.
        architecture: ``architectures`` of config.json, or of a GGUF file; None if unknown.
        is_glm4_moe: It is a GLM-4.5, 4.5-Air, 4.6 or 4.7 by its architecture.
        releases: The releases that the facts fit, without ``GLM-``.
        marking: The format and the tool.
        evidence: By what the format was told.
    """

    model: str
    architecture: str | None
    is_glm4_moe: bool
    releases: tuple[str, ...]
    marking: Marking
    evidence: str

    @property
    def text(self) -> str:
        """The format in words: ``GPTQ, 4 bits, groups of 128, by GPTQModel 2.2.0``."""
        tool = f"by {self.marking.tool}" if self.marking.tool else ""
        return ", ".join(filter(None, (self.marking.format.value, self.marking.detail, tool)))


def identify(found: Survey) -> Identity:
    """Judge a folder.

    Args:
        found: What could be read of it.

    Returns:
        Model, format and tool.

    Raises:
        CheckpointError: Nothing in the folder tells of a model.
    """
    if not (_has_weights(found) or found.weight_maps or found.findings) and (
        CONFIG_FILE not in found.files
    ):
        raise CheckpointError(
            "this is not a model folder",
            where=found.name,
            expected="weights or config.json",
            found=f"{len(found.files)} other files" if found.files else "an empty folder",
            hint="name the folder that holds config.json and the weights",
        )
    marking, evidence = next(_markings(found))
    is_ours = is_glm4_moe(found.config)
    releases: tuple[str, ...] = ()
    if is_ours:
        mtp = find_mtp(found)
        has_mtp_file = mtp.files == ("mtp.safetensors",) if mtp.layers else None
        releases = fitting_releases(
            found.config,
            is_as_released=marking.format in (Format.BF16, Format.GLMQUANT),
            has_mtp_file=has_mtp_file,
        )
    model, architecture = _model(found, releases)
    return Identity(model, architecture, is_ours, releases, marking, evidence)


def _has_weights(found: Survey) -> bool:
    return bool(found.shards or found.broken or found.ggufs or found.other_weights)


def _model(found: Survey, releases: tuple[str, ...]) -> tuple[str, str | None]:
    config = found.config
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else named
    architecture = printable(first, 80) if isinstance(first, str) and first else None
    model_type = text_of(config, "model_type")
    if is_glm4_moe(config):
        if releases:
            rest = [", ".join(releases[:-1])] if len(releases) > 1 else []
            return f"GLM-4 MoE, fits GLM-{' or '.join([*rest, releases[-1]])}", architecture
        has_size = type(config.get("hidden_size")) is int
        return f"GLM-4 MoE of {'another' if has_size else 'unknown'} size", architecture
    if architecture in LOOK_ALIKES:
        return LOOK_ALIKES[architecture], architecture
    if architecture is None and model_type is not None:
        return _LOOK_ALIKE_TYPES.get(model_type, model_type), None
    head = next(iter(found.ggufs.values()), None)
    if architecture is None and head is not None and head.architecture:
        known = _GGUF_MODELS.get(head.architecture, printable(head.architecture, 80))
        title = f" ({printable(head.name, 80)})" if head.name else ""
        return known + title, printable(head.architecture, 80)
    return architecture or "unknown model", architecture


def _markings(found: Survey) -> Iterator[tuple[Marking, str]]:
    """Every format that something speaks for, the surest first; at least one."""
    if found.is_unfinished_run:
        yield Marking(Format.UNFINISHED, "", "glmquant"), ".glmquant/journal.json"
    has_safetensors = bool(found.shards or any(not f.endswith(".gguf") for f in found.broken))
    if not has_safetensors and (found.ggufs or found.broken):
        yield _gguf(found), "the heads of *.gguf"
    yield from _ascend(found)
    for key in ("quantization_config", "compression_config"):
        mark = found.config.get(key)
        if isinstance(mark, dict) and mark:
            yield read_marking(mark, found.files), f"{CONFIG_FILE}: {key}"
        elif mark:
            detail = f"{key} is {type(mark).__name__}, no object"
            yield Marking(Format.OTHER, detail), f"{CONFIG_FILE}: {key}"
    if MODELOPT_FILE in found.objects:
        yield read_modelopt(found.objects[MODELOPT_FILE]), MODELOPT_FILE
    mark = found.config.get("quantization")
    if isinstance(mark, dict) and mark:
        yield read_marking(mark), f"{CONFIG_FILE}: quantization"
    for name in QUANT_CONFIG_FILES:
        if name in found.objects:
            yield read_marking(_with_method(name, found.objects[name]), found.files), name
    mindie = text_of(found.config, "quantize")
    if mindie:
        yield Marking(Format.OTHER, f"{mindie} for MindIE"), f"{CONFIG_FILE}: quantize"
    yield from _by_dtypes(found)
    for name, kind in found.other_weights.items():
        torch = kind == Format.PYTORCH.value
        yield Marking(Format.PYTORCH if torch else Format.OTHER, "" if torch else kind), name
    if found.broken:
        yield Marking(Format.UNREADABLE), found.broken[0]
    yield Marking(Format.NO_WEIGHTS), "the names of the files"


def _gguf(found: Survey) -> Marking:
    kinds = Counter(head.file_type for head in found.ggufs.values() if head.file_type)
    makers = sorted({head.quantized_by for head in found.ggufs.values() if head.quantized_by})
    return Marking(
        Format.GGUF, ", ".join(kinds), printable(", ".join(makers), 80) if makers else None
    )


def _ascend(found: Survey) -> Iterator[tuple[Marking, str]]:
    """Our own output, or one with a ModelSlim description in a file or inside config.json."""
    described = found.description or found.embedded_description
    manifest = found.objects.get(MANIFEST_FILE, {})
    tool = manifest.get("tool")
    if text_of(tool, "name") == "glmquant" and (described or _quantized_dtypes(found)):
        recipe = text_of(manifest.get("settings"), "recipe")
        version = text_of(tool, "version") or "of unknown version"
        detail = f"recipe {recipe}" if recipe else ""
        yield Marking(Format.GLMQUANT, detail, f"glmquant {version}"), MANIFEST_FILE
    shards = [*found.shards, *found.broken, *found.weight_map.values()]
    form = Format.MODELSLIM_HF
    if any(shard.startswith("quant_model_weights") for shard in shards):
        form = Format.MODELSLIM_V1
    elif any(shard.startswith("quant_model_weight_") for shard in shards) or (
        found.description and found.description[0].startswith("quant_model_description_")
    ):
        form = Format.MODELSLIM_V0
    if described:
        name, description = described
        tool_name = None if form is Format.MODELSLIM_HF else "msModelSlim"
        yield Marking(form, _scheme(description), tool_name), name
    elif form is not Format.MODELSLIM_HF:
        yield Marking(form, "without its description", "msModelSlim"), "the names of the shards"


def _scheme(description: dict[str, Any]) -> str:
    kinds = Counter(
        kind
        for name, kind in description.items()
        if isinstance(kind, str) and name not in GLOBAL_KEYS and name.endswith(".weight")
    )
    del kinds["FLOAT"]
    most = kinds.most_common(1)
    return printable(most[0][0], 40) if most else text_of(description, "model_quant_type") or ""


def _with_method(name: str, mark: dict[str, Any]) -> dict[str, Any]:
    """A mark in a file of its own, whose name says the method where it does not itself."""
    methods = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
    return {"quant_method": methods[name], **mark} if name in methods else mark


def _dtype_nbytes(found: Survey) -> Counter[str]:
    nbytes: Counter[str] = Counter()
    for tensors in found.shards.values():
        for ref in tensors:
            nbytes[ref.dtype] += ref.nbytes
    return nbytes


def _quantized_dtypes(found: Survey) -> list[str]:
    """The dtypes that are no floats, where they hold a tenth of the bytes or more."""
    nbytes = _dtype_nbytes(found)
    others = [dtype for dtype, _ in nbytes.most_common() if dtype not in FLOAT_DTYPES]
    held = sum(nbytes[dtype] for dtype in others)
    return others if held and 10 * held >= sum(nbytes.values()) else []


def _by_dtypes(found: Survey) -> Iterator[tuple[Marking, str]]:
    """What the tensors alone say, where no file says more."""
    others = _quantized_dtypes(found)
    if others:
        suffixes = {ref.name.rpartition(".")[2] for refs in found.shards.values() for ref in refs}
        form, detail = Format.UNMARKED, ", ".join(others)
        if others[0].startswith("F8"):
            form, detail = Format.FP8, "no quantization_config"
        elif "SCB" in suffixes or any(suffix.startswith("bitsandbytes__") for suffix in suffixes):
            form, detail = Format.BITSANDBYTES, "no quantization_config"
        elif {"qweight", "qzeros", "g_idx"} <= suffixes:
            form, detail = Format.GPTQ, "no quantization_config"
        elif {"qweight", "qzeros"} <= suffixes:
            form, detail = Format.AWQ, "no quantization_config"
        elif "weight_offset" in suffixes:
            form, detail = Format.MODELSLIM_HF, "without its description"
        elif others[0] == "U32" and "biases" in suffixes:
            form, detail = Format.MLX, "no quantization in config.json"
        yield Marking(form, detail), "the dtypes in the shards' headers"
    for dtype, _ in _dtype_nbytes(found).most_common():
        if dtype in FLOAT_DTYPES:
            yield Marking(Format(dtype)), "the dtypes in the shards' headers"
