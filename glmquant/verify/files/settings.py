"""C1 to C4: config.json against description and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from glmquant.description import embedded_config
from glmquant.glm4_moe import (
    ARCHITECTURE,
    CONFIG_FILE,
    LOOK_ALIKES,
    MAX_TENSORS,
    MODEL_TYPE,
    Role,
    expected_tensors,
)
from glmquant.reconcile import listing
from glmquant.survey import QUANT_CONFIG_FILES
from glmquant.tensor_names import layer_of
from glmquant.verify.files.anatomy import Anatomy, absent_mtp_layers
from glmquant.verify.findings import Finding, file_finding
from glmquant.verify.remedies import add_mtp, copy_file
from glmquant.verify.subject import Subject

_QUANT_KEY: Final = "quantization_config"
_FETCH: Final = "fetch config.json of the same release again"
_DEFAULTED: Final[dict[str, type | tuple[type, ...]]] = {
    "num_experts_per_tok": int,
    "routed_scaling_factor": (int, float),
    "norm_topk_prob": bool,
    "rms_norm_eps": (int, float),
}
"""Keys by which an engine computes and without which transformers takes its own defaults, those of
no release (transformers 5.23 ``Glm4MoeConfig``)."""


def _is_from_1_to(value: Any, most: Any) -> bool:
    return is_counted(value) and value >= 1 and (not is_counted(most) or value <= most)


_POSSIBLE: Final[dict[str, tuple[Callable[[Any, dict[str, Any]], bool], str]]] = {
    "num_experts_per_tok": (
        lambda value, config: _is_from_1_to(value, config.get("n_routed_experts")),
        "1 to n_routed_experts",
    ),
    "n_group": (
        lambda value, config: _is_from_1_to(value, config.get("n_routed_experts")),
        "1 to n_routed_experts",
    ),
    "topk_group": (
        lambda value, config: _is_from_1_to(value, config.get("n_group")),
        "1 to n_group",
    ),
    "rope_theta": (lambda value, config: isinstance(value, (int, float)) and value > 0, "above 0"),
    "hidden_act": (lambda value, config: value == "silu", "'silu'"),
    "partial_rotary_factor": (
        lambda value, config: isinstance(value, (int, float)) and 0 < value <= 1,
        "above 0, 1 at most",
    ),
    "max_position_embeddings": (lambda value, config: _is_from_1_to(value, None), "1 or more"),
}
"""Keys that an engine computes with: whether a value can be meant, and what can."""


def check_settings(anatomy: Anatomy) -> Iterator[Finding]:
    """Whether config.json is that of the tensors.

    Args:
        anatomy: The folder.

    Yields:
        Findings with the codes C1 to C4.
    """
    subject = anatomy.subject
    if not subject.found.config:
        yield file_finding(
            "C3",
            "config.json is missing, empty or cannot be read",
            place=CONFIG_FILE,
            expected="config.json of the release, with the number of MTP layers",
            found=next(
                (
                    finding.what
                    for finding in subject.found.findings
                    if finding.where.startswith(CONFIG_FILE)
                ),
                "no such file" if CONFIG_FILE not in subject.found.files else "{}",
            ),
            hint=copy_file(anatomy.subject, CONFIG_FILE),
        )
        return
    yield from _check_quantization(subject)
    yield from _check_mtp_count(anatomy)
    yield from _check_keys(anatomy)
    yield from _check_counts(anatomy)


def _check_quantization(subject: Subject) -> Iterator[Finding]:
    config = subject.found.config
    embedded = config.get(_QUANT_KEY)
    description = subject.description[1] if subject.description else None
    if embedded is not None and (problem := _embedded_problem(embedded, description)):
        yield file_finding(
            "C1",
            "quantization_config is not the whole description",
            place=f"{CONFIG_FILE}: {_QUANT_KEY}",
            expected="no such key, or quant_method 'ascend' and every entry of the description: "
            "vllm-ascend believes it and does not open the file",
            found=problem,
            hint=f"remove {_QUANT_KEY} from config.json",
        )
    if config.get("compression_config"):
        yield file_finding(
            "C1",
            "config.json announces another tool's format",
            place=f"{CONFIG_FILE}: compression_config",
            expected="no such key",
            found=repr(config["compression_config"])[:80],
            hint="remove that key from config.json",
        )
    others = [name for name in QUANT_CONFIG_FILES if name in subject.found.files]
    if others:
        yield file_finding(
            "C1",
            "the settings of another tool lie beside config.json",
            place=", ".join(others),
            expected="no such file: tools and engines take the folder for another format",
            found=f"{len(others)} of them",
            hint="remove " + ", ".join(others),
            is_warning=True,
        )


def _embedded_problem(embedded: Any, description: dict[str, Any] | None) -> str | None:
    """Why a ``quantization_config`` does not do the description's work."""
    if not isinstance(embedded, dict):
        return f"{type(embedded).__name__}, no object"
    method = embedded.get("quant_method")
    if method != "ascend":
        return f"quant_method {method!r}"
    whole = embedded_config(description or {})
    if embedded == whole:
        return None
    lacking = [key for key in whole if key not in embedded]
    more = [key for key in embedded if key not in whole]
    other = [key for key in whole if key in embedded and embedded[key] != whole[key]]
    return "; ".join(
        f"{len(keys)} entries {what}: {listing(keys, 1)}"
        for keys, what in ((lacking, "missing"), (more, "more"), (other, "of other values"))
        if keys
    )


def _check_mtp_count(anatomy: Anatomy) -> Iterator[Finding]:
    """C2: what config.json announces is what an engine finds."""
    subject, config = anatomy.subject, anatomy.config
    if config is None or not anatomy.tensors or "num_nextn_predict_layers" in anatomy.invalid:
        return
    place = f"{CONFIG_FILE}: num_nextn_predict_layers"
    announced, held = config.num_nextn_predict_layers, len(anatomy.mtp_layers)
    if anatomy.misplaced_layers:
        layers = set(anatomy.misplaced_layers)
        yield file_finding(
            "C2",
            "layers lie where no MTP layer can be",
            place=f"{CONFIG_FILE}: num_hidden_layers",
            tensors=[name for name in anatomy.tensors if layer_of(name) in layers],
            expected=f"MTP layers from {config.num_hidden_layers} on, without a gap",
            found=f"layers {', '.join(map(str, anatomy.misplaced_layers[:8]))}",
            hint=add_mtp(subject, "--replace-mtp"),
        )
    if held > (announced or 0):
        yield file_finding(
            "C2",
            "config.json does not announce the MTP layer",
            place=place,
            expected=str(held),
            found=("no such key" if announced is None else str(announced))
            + f": the target model fails on model.layers.{config.num_hidden_layers}.eh_proj.weight",
            hint=add_mtp(subject),
        )
    elif (absent := absent_mtp_layers(anatomy)) and not anatomy.misplaced_layers:
        whole = (
            {} if config.tensor_bound > MAX_TENSORS else expected_tensors(config, announced or 0)
        )
        yield file_finding(
            "C2",
            "config.json announces an MTP layer that is not there",
            place=place,
            tensors=[
                name
                for name, tensor in whole.items()
                if tensor.role is Role.MTP and tensor.is_required and layer_of(name) in absent
            ],
            expected=str(held),
            found=f"{announced}: a draft model would load without an error, and uninitialised",
            hint=add_mtp(subject),
        )


def is_counted(value: Any) -> bool:
    """Whether a value is a number, if one that no model has."""
    return type(value) is int


def _check_keys(anatomy: Anatomy) -> Iterator[Finding]:
    """C3, without a source: what cannot be right in any release."""
    subject, config = anatomy.subject, anatomy.subject.found.config

    def wrong(key: str, expected: str, found: str, *, is_warning: bool = False) -> Finding:
        return file_finding(
            "C3",
            "config.json lacks a key or has a wrong value",
            place=f"{CONFIG_FILE}: {key}",
            expected=expected,
            found=found,
            hint=_FETCH,
            is_warning=is_warning,
        )

    def shown(key: str) -> str:
        return repr(config[key])[:120] if key in config else "no such key"

    architectures = config.get("architectures")
    if architectures != [ARCHITECTURE]:
        first = architectures[0] if isinstance(architectures, list) and architectures else None
        found = LOOK_ALIKES.get(first, "") if isinstance(first, str) else ""
        found = f"{found}: {shown('architectures')}" if found else shown("architectures")
        yield wrong("architectures", f"[{ARCHITECTURE!r}]", found)
    if config.get("model_type") != MODEL_TYPE:
        yield wrong("model_type", repr(MODEL_TYPE), shown("model_type"))
    dtypes = {key: config[key] for key in ("torch_dtype", "dtype") if config.get(key) is not None}
    if not dtypes or any(value != "bfloat16" for value in dtypes.values()):
        said = ", ".join(f"{key} {value!r}"[:60] for key, value in dtypes.items())
        yield wrong("torch_dtype or dtype", "'bfloat16'", said or "no such key")
    for key, message in anatomy.invalid.items():
        if not is_counted(config.get(key)):  # else C4 says what the tensors show
            yield wrong(key, message, shown(key))
    if subject.config is not None:
        sizes = subject.config
        if sizes.num_attention_heads % sizes.num_key_value_heads:
            expected = f"a multiple of num_key_value_heads, {sizes.num_key_value_heads}"
            yield wrong("num_attention_heads", expected, str(sizes.num_attention_heads))
    told = set()
    experts = anatomy.config.n_routed_experts if anatomy.config else None
    for key, (is_possible, expected) in _POSSIBLE.items():
        value = config.get(key)
        if value is not None and not is_possible(value, {**config, "n_routed_experts": experts}):
            told.add(key)
            yield wrong(key, expected, shown(key))
    for key, kind in _DEFAULTED.items():
        value = config.get(key)
        if key in told:
            continue
        if key not in config:
            yield wrong(key, "the value of the release", "no such key", is_warning=True)
        elif not isinstance(value, kind) or (kind is not bool and not _is_positive(value)):
            yield wrong(key, "the value of the release", shown(key))


def _is_positive(value: Any) -> bool:
    return not isinstance(value, bool) and bool(value > 0)


def _check_counts(anatomy: Anatomy) -> Iterator[Finding]:
    """C4: each key that the tensors speak against, once."""
    subject, config = anatomy.subject, anatomy.config
    if config is None:
        return
    if config.tensor_bound > MAX_TENSORS:
        yield file_finding(
            "C4",
            "config.json calls for more tensors than any GLM-4.x has",
            place=f"{CONFIG_FILE}: num_hidden_layers, n_routed_experts",
            expected=f"{MAX_TENSORS} tensors at most",
            found=f"layers and experts for {config.tensor_bound}",
            hint=_FETCH,
        )
    for key, message in anatomy.invalid.items():
        value = subject.found.config.get(key)
        if is_counted(value):
            yield file_finding(
                "C4",
                "config.json contradicts the tensors",
                place=f"{CONFIG_FILE}: {key}",
                expected=f"{getattr(config, key)}, by the tensors: {message}",
                found=str(value)[:80],
                hint=_FETCH,
            )
    for contradiction in anatomy.contradictions:
        yield file_finding(
            "C4",
            "config.json contradicts the tensors",
            place=f"{CONFIG_FILE}: {contradiction.key}",
            tensors=_lacking(anatomy, contradiction.key),
            expected=f"{getattr(config, contradiction.key)}: {contradiction.found}",
            found=contradiction.said,
            hint="fetch config.json and the shards of one release",
        )


def _lacking(anatomy: Anatomy, key: str) -> list[str]:
    """Tensors of the layers that config.json counts and the tensors do not."""
    said, config = anatomy.subject.config, anatomy.config
    if key != "num_hidden_layers" or said is None or config is None or anatomy.mtp_layers:
        return []
    if said.tensor_bound > MAX_TENSORS:
        return []
    return [
        name
        for name, tensor in expected_tensors(said, 0).items()
        if tensor.is_required and (layer_of(name) or 0) >= config.num_hidden_layers
    ]
