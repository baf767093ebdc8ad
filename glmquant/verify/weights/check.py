"""The levels that read every byte: values by themselves, and against the source's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from glmquant.checkpoint import Checkpoint
from glmquant.glm4_moe import Role
from glmquant.observer import Observer
from glmquant.reconcile import listing
from glmquant.tensor_names import layer_of
from glmquant.verify.findings import Finding
from glmquant.verify.subject import Subject
from glmquant.verify.weights.crew import work_through
from glmquant.verify.weights.equality import code_of
from glmquant.verify.weights.factors import Factors
from glmquant.verify.weights.figures import RoleFigures, TensorFigures, by_role
from glmquant.verify.weights.flaws import Flaw, gather
from glmquant.verify.weights.judge import Judge
from glmquant.verify.weights.reading import read_through
from glmquant.verify.weights.samples import Pair
from glmquant.verify.weights.saved import Results, Saved
from glmquant.verify.weights.scales import shared_inputs
from glmquant.verify.weights.smoothing import Prober
from glmquant.verify.weights.trust import check_manifest, in_lost_files, read_trust
from glmquant.verify.weights.units import Unit, bias_of, units_of

__all__ = ["RoleFigures", "SourceResult", "ValuesResult", "check_source", "check_values"]


@dataclass(frozen=True, slots=True)
class ValuesResult:
    """What the bytes of a checkpoint tell.

    Attributes:
        findings: What is wrong.
    """

    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class SourceResult:
    """What the bytes of a checkpoint and its source tell.

    Attributes:
        findings: What is wrong.
        figures: How far the int8 weights of each role are from the source's.
        tensors: The same for each tensor, in order of their names.
        notes: What differs rightly, a sentence each.
    """

    findings: tuple[Finding, ...]
    figures: tuple[RoleFigures, ...]
    tensors: tuple[TensorFigures, ...]
    notes: tuple[str, ...]


def check_values(subject: Subject, *, observer: Observer, workers: int) -> ValuesResult:
    """Read every byte that an engine loads: W2, W3, B1, and the values of M1.

    An interrupted call goes on with the shards that it has not done; a finished one leaves nothing
    behind, so that the next reads everything anew.

    Args:
        subject: The checkpoint.
        observer: Is told how far it is.
        workers: Threads.

    Returns:
        The findings.

    Raises:
        StorageError: A file cannot be read, or became shorter meanwhile.
        SourceChangedError: A file was rewritten meanwhile.
    """
    trust = read_trust(subject)
    units = units_of(subject)
    judge = Judge(subject.source, trust)
    saved = Saved(subject.source, None)
    results = read_through(judge, units, saved, observer, workers)
    flaws = [*results.flaws, *check_manifest(subject, trust), *_check_shared(results, units)]
    saved.remove()
    return ValuesResult(gather(flaws, subject))


FAR_ROWS: Final = 4
"""Of an int8 weight whose source is on a hub so many rows are fetched: they tell it from others."""


def check_source(
    subject: Subject,
    checkpoint: Checkpoint,
    *,
    observer: Observer,
    workers: int,
    deep: bool = False,
) -> SourceResult:
    """Read every byte of a checkpoint and its source: M1, M2, N1, and all of ``check_values``.

    Of a source on a hub what became int8 is sampled, unless it is to be read whole.

    Interrupted, it goes on as ``check_values`` does.

    Args:
        subject: The checkpoint.
        checkpoint: The BF16 weights it was made of.
        observer: Is told how far it is.
        workers: Threads.
        deep: Read all of a source on a hub, too.

    Returns:
        Findings, figures and notes.

    Raises:
        StorageError: A file cannot be read, or became shorter meanwhile.
        SourceChangedError: A file was rewritten meanwhile.
    """
    trust = read_trust(subject)
    units = units_of(subject)
    theirs = {ref.name: ref for refs in checkpoint.shards.values() for ref in refs}
    sampled_rows = FAR_ROWS if checkpoint.source.is_far and not deep else 0
    judge = Judge(subject.source, trust, checkpoint, theirs, sampled_rows=sampled_rows)
    judge, norms, norm_flaws = _probe(judge, units, workers)
    saved = Saved(subject.source, checkpoint.source)
    results = read_through(judge, units, saved, observer, workers)
    flaws = [
        *results.flaws,
        *norm_flaws,
        *check_manifest(subject, trust),
        *_check_shared(results, units),
        *_check_missing(subject, checkpoint),
    ]
    saved.remove()
    compared = sum(1 for name in subject.tensors if judge.source_of(name) is not None)
    return SourceResult(
        gather(flaws, subject, compared),
        by_role(results.figures),
        tuple(sorted(results.figures)),
        tuple(_notes(subject, checkpoint, norms, judge)),
    )


def _check_shared(results: Results, units: dict[str, list[Unit]]) -> Iterator[Flaw]:
    """W3: static q, k and v share what the engine has one slot for."""
    roles = {unit.name: unit.role for found in units.values() for unit in found}
    for prefix, suffix, numbers in shared_inputs(results.inputs):
        told = ", ".join(
            f"{letter} {number:.9g}" for letter, number in zip("qkv", numbers, strict=True)
        )
        for letter in "qkv":
            linear = f"{prefix}.{letter}_proj"
            if linear in roles:
                yield Flaw(
                    "W3",
                    f"q, k and v do not share one {suffix}",
                    roles[linear],
                    f"{linear}.{suffix}",
                    "one number: they are one linear in the engine, the last one loaded wins",
                    told,
                    max(numbers) - min(numbers),
                )


def _check_missing(subject: Subject, checkpoint: Checkpoint) -> Iterator[Flaw]:
    """Tensors of the source that are not there; an MTP layer may be left out whole."""
    gone = in_lost_files(subject)
    for name, tensor in checkpoint.expected.items():
        is_mtp = tensor.role is Role.MTP
        if name in subject.tensors or name in gone:
            continue
        if is_mtp and (not subject.mtp_layers or not tensor.is_required):
            continue
        yield Flaw(
            code_of(tensor.role.value, name),
            "a tensor of the source is missing",
            Role.ROUTER_BIAS.value if tensor.is_router_bias else tensor.role.value,
            name,
            f"{list(tensor.shape)}",
            "no such tensor",
            is_source=True,
        )


def _probe(
    judge: Judge, units: dict[str, list[Unit]], workers: int
) -> tuple[Judge, list[str], list[Flaw]]:
    """Look for smoothing in every layer that has int8 weights of an unknown formula."""
    assert judge.checkpoint is not None  # noqa: S101
    config = judge.checkpoint.config
    pairs = {
        each.name: Pair(each, other)
        for found in units.values()
        for unit in found
        for each in (unit, *(bias_of(unit) if unit.is_int8 else ()))
        if (other := judge.source_of(each.main.name)) is not None
    }
    layers = sorted(
        {
            layer
            for pair in pairs.values()
            if pair.unit.is_int8
            and not judge.trust.rule(pair.unit.main.name, pair.unit.role).is_exact
            and (layer := layer_of(pair.unit.name)) is not None
        }
    )
    prober = Prober(judge.mine, judge.checkpoint.source, pairs, config)
    factors: dict[str, Factors] = {}
    norms: list[str] = []
    flaws: list[Flaw] = []
    for _, found in work_through(layers, prober.probe, workers, Observer()):
        factors |= found.factors
        norms += found.norms
        flaws += found.flaws
    told = frozenset([*norms, *(flaw.tensor for flaw in flaws)])
    order = {name: number for number, name in enumerate(pairs)}
    flaws.sort(key=lambda flaw: order[flaw.tensor])
    return replace(judge, factors=factors, norms=told), sorted(norms), flaws


def _notes(
    subject: Subject, checkpoint: Checkpoint, norms: list[str], judge: Judge
) -> Iterator[str]:
    if judge.sampled_rows:
        yield (
            f"{judge.sampled_rows} rows of each int8 weight were held against the source on the "
            "hub, everything else whole; --deep reads all rows"
        )
    for kind, behind in (("input_layernorm", "q, k, v"), ("post_attention_layernorm", "the MLP")):
        count = sum(f".{kind}." in norm for norm in norms)
        if count:
            yield f"smoothed: {count} {kind}, and the columns of {behind} make up for it"
    for first, second in (("v_proj", "o_proj"), ("up_proj", "down_proj")):
        smoothed = [name for name, held in judge.factors.items() if held.rows is not None]
        count = sum(name.endswith(first) for name in smoothed)
        if count:
            yield f"smoothed: the rows of {count} {first}; the columns of {second} make up for it"
    if subject.mtp_layers and not checkpoint.mtp_count:
        yield f"MTP: the source has no layer {listing(map(str, subject.mtp_layers))} to compare"
