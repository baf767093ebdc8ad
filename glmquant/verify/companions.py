"""S1 and C3 against the source: side files are the same bytes, config.json has the same values."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Any, Final

from glmquant.checkpoint import Checkpoint
from glmquant.errors import GlmquantError, StorageError
from glmquant.glm4_moe import CONFIG_FILE, Glm4MoeConfig
from glmquant.jsontext import parse_object
from glmquant.reconcile import listing
from glmquant.sidefiles import side_files
from glmquant.verify.findings import Finding, Level, Severity
from glmquant.verify.subject import Subject

OWN_KEYS: Final = frozenset(
    {
        "num_nextn_predict_layers",  # C2 holds it against the tensors
        "quantization_config",  # C1
        "quantize",  # MindIE's, written by msModelSlim and on request
        "transformers_version",  # written anew whenever a tool saves a config
    }
)
"""Keys of config.json that a quantized checkpoint has for itself."""

ENGINE_KEYS: Final = frozenset(
    {
        *Glm4MoeConfig.model_fields,
        "architectures",
        "eos_token_id",
        "hidden_act",
        "max_position_embeddings",
        "model_type",
        "n_group",
        "norm_topk_prob",
        "num_experts_per_tok",
        "partial_rotary_factor",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "routed_scaling_factor",
        "topk_group",
    }
)
"""Keys that an engine computes with (vLLM 0.30.0 ``glm4_moe.py``): with another value it answers
otherwise. The rest is told as a warning."""

_DTYPE_KEYS: Final = ("torch_dtype", "dtype")
"""One key by two names: transformers 5 writes the second."""

ENGINE_FILES: Final = (
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens",
    "added_tokens",
    "chat_template",
    "generation_config",
)
"""How the names of side files begin that an engine reads."""


def check_companions(subject: Subject, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Hold side files and config.json against the source's.

    Args:
        subject: The quantized checkpoint.
        checkpoint: The BF16 weights it was made of.

    Yields:
        Findings with the codes S1 and C3.

    Raises:
        StorageError: A file of the source cannot be read.
    """
    yield from _check_side_files(subject, checkpoint)
    yield from _check_config(subject, checkpoint)


def _check_side_files(subject: Subject, checkpoint: Checkpoint) -> Iterator[Finding]:
    """Files that engines read have to be there and equal; the rest may be missing, not changed."""
    for name in side_files(checkpoint.other_files):
        is_for_engines = name.startswith(ENGINE_FILES)
        exists = (subject.path / name).is_file()
        if not exists and not is_for_engines:
            continue
        found = _difference(subject, checkpoint, name) if exists else "no such file"
        if found is None:
            continue
        is_rewritten = (
            exists and name.endswith(".json") and _says_the_same(subject, checkpoint, name)
        )
        if is_rewritten:
            found += ", but the same JSON"
        yield Finding(
            code="S1",
            severity=Severity.ERROR if is_for_engines and not is_rewritten else Severity.WARNING,
            level=Level.SOURCE,
            what="a file is not the source's" if exists else "a file of the source is missing",
            where=name,
            expected=f"the {checkpoint.other_files[name]:,} bytes of the source",
            found=found,
            hint=_copying(subject, checkpoint, name),
        )


def _copying(subject: Subject, checkpoint: Checkpoint, name: str) -> str:
    """The command that takes a file from the source."""
    source, fetched = checkpoint.source, ""
    folder = source.path
    if source.is_far:
        folder = subject.path.with_name(f"{source.path.name}-metadata")
        fetched = (
            shlex.join(["glmquant", "fetch", source.shown, str(folder), "--only", "metadata"])
            + " && "
        )
    return fetched + shlex.join(["cp", str(folder / name), str(subject.path / name)])


def _says_the_same(subject: Subject, checkpoint: Checkpoint, name: str) -> bool:
    """Whether two JSON files hold the same, the version of the tool that wrote them aside."""
    try:
        mine, theirs = (
            parse_object((folder / name).read_bytes(), name)
            for folder in (subject.path, checkpoint.source.path)
        )
    except (GlmquantError, OSError):
        return False
    keys = mine.keys() | theirs.keys()
    return all(mine.get(key) == theirs.get(key) for key in keys - {"transformers_version"})


def _difference(subject: Subject, checkpoint: Checkpoint, name: str) -> str | None:
    """Where two files differ, in words; None where they are equal."""
    try:
        mine = subject.source.stamp(name).nbytes
    except StorageError as error:
        return error.found or "it cannot be looked at"
    theirs = checkpoint.other_files[name]
    if mine != theirs:
        return f"{mine:,} bytes"
    position = 0
    try:
        blocks = zip(
            subject.source.blocks(name, 0, mine),
            checkpoint.source.blocks(name, 0, theirs),
            strict=True,
        )
        for one, other in blocks:
            if one != other:
                at = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
                return f"as long, but byte {position + at:,} differs"
            position += len(one)
    finally:
        subject.source.release(name)
        checkpoint.source.release(name)
    return None


def _check_config(subject: Subject, checkpoint: Checkpoint) -> Iterator[Finding]:
    mine = _comparable(subject.found.config)
    theirs = _comparable(parse_object(checkpoint.config_data, CONFIG_FILE))
    if not subject.found.config:
        return  # that it is missing or broken is said at the level of files
    changed = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    for severity, keys in (
        (Severity.ERROR, [key for key in changed if key in ENGINE_KEYS]),
        (Severity.WARNING, [key for key in changed if key not in ENGINE_KEYS]),
    ):
        if keys:
            yield Finding(
                code="C3",
                severity=severity,
                level=Level.SOURCE,
                what="config.json has other values than the source's",
                where=f"{CONFIG_FILE}: {listing(keys, 8)}",
                expected=_told(theirs, keys),
                found=_told(mine, keys),
                hint="take these keys from the source's config.json",
            )


def _comparable(fields: dict[str, Any]) -> dict[str, Any]:
    """The keys to be compared; the dtype under one name."""
    kept = {
        key: value
        for key, value in fields.items()
        if key not in OWN_KEYS and key not in _DTYPE_KEYS and value is not None
    }
    kept["dtype"] = next((fields[key] for key in _DTYPE_KEYS if fields.get(key)), None)
    return kept


def _told(fields: dict[str, Any], keys: list[str]) -> str:
    told = (f"{key} {fields[key]!r}"[:80] if key in fields else f"no {key}" for key in keys)
    return listing(told, 4)
