"""What a plan takes and gives: files, disk, memory, time, layers, and the machines it fits.

From headers and config.json alone; nothing is read or written. The tensors are gone through once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from glmquant.checkpoint import Checkpoint
from glmquant.glm4_moe import CONFIG_FILE, Glm4MoeConfig, Role, expected_tensors
from glmquant.jsontext import parse_object
from glmquant.machines import LAYOUTS
from glmquant.plan import Plan, Step
from glmquant.rates import REFERENCES, Rate, load_rate
from glmquant.schemes import Scheme, output_tensors
from glmquant.sizing import Fit, TensorGroup, fit_layout
from glmquant.target import peak_disk_nbytes
from glmquant.tensor_names import layer_of
from glmquant.tensors import tensor_nbytes

MOST_CONTEXT: Final = 131_072
"""Tokens to size for where none are asked for and the model takes more, or does not say."""

_CONTEXT_KEY: Final = "max_position_embeddings"
_NO_DIGITS: Final = dict.fromkeys(map(ord, "0123456789"))


@dataclass(frozen=True, slots=True)
class RoleTotal:
    """All tensors of one role.

    Attributes:
        role: The role.
        scheme: What becomes of it.
        tensors: Source tensors.
        source_nbytes: Their bytes.
        output_nbytes: Bytes of what is made of them.
    """

    role: Role
    scheme: Scheme
    tensors: int
    source_nbytes: int
    output_nbytes: int


@dataclass(frozen=True, slots=True)
class LayerRange:
    """Layers that are treated alike.

    Attributes:
        first: The first of them, or None for what lies outside the layers.
        last: The last.
        is_mtp: They are MTP layers.
        schemes: Role → scheme, for the roles they have.
    """

    first: int | None
    last: int | None
    is_mtp: bool
    schemes: dict[Role, Scheme]


@dataclass(frozen=True, slots=True)
class Forecast:
    """A plan and what it takes.

    Attributes:
        plan: The plan.
        workers: Threads.
        source_nbytes: Bytes of tensor data to be read.
        manifest_nbytes: An upper bound of the manifest's length.
        output_nbytes: Bytes of all files, the manifest by that bound.
        peak_disk_nbytes: What a run takes on disk at most.
        peak_memory_nbytes: What a run takes in memory at most.
        rate: How fast weights are quantized.
        rate_is_ours: It was measured on this machine.
        roles: One entry a role, the largest first.
        layers: Every layer, in ranges, then what lies outside the layers.
        context: Tokens of a sequence that the fits are for.
        model_context: Tokens that config.json allows, or None where it does not say.
        fits: One entry for each layout that was asked for.
    """

    plan: Plan
    workers: int
    source_nbytes: int
    manifest_nbytes: int
    output_nbytes: int
    peak_disk_nbytes: int
    peak_memory_nbytes: int
    rate: Rate
    rate_is_ours: bool
    roles: tuple[RoleTotal, ...]
    layers: tuple[LayerRange, ...]
    context: int
    model_context: int | None
    fits: tuple[Fit, ...]

    @property
    def seconds(self) -> float:
        """How long a run takes at the rate."""
        return self.source_nbytes / self.rate.nbytes_per_second


def forecast(
    plan: Plan,
    checkpoint: Checkpoint,
    *,
    workers: int = 1,
    machine: str | None = None,
    context: int | None = None,
    beside_nbytes: int = 0,
) -> Forecast:
    """What running a plan takes, and where its output fits.

    Args:
        plan: The plan.
        checkpoint: What it was made from.
        workers: Threads of the run.
        machine: A key of ``machines.MACHINES``; all of them if left out.
        context: Tokens of a sequence; what config.json allows if left out, 131,072 at most.
        beside_nbytes: What the source takes meanwhile on the output's disk.

    Returns:
        Exact lengths of all files but the manifest, upper bounds and estimates.
    """
    config = checkpoint.config
    counted = _count_tensors(plan)
    model_context = _model_context(checkpoint.config_data)
    context = context or min(model_context or MOST_CONTEXT, MOST_CONTEXT)
    groups = [
        TensorGroup(output.name, output.dtype, output.shape, count)
        for (_, scheme, name, dtype, shape), count in counted.items()
        for output in output_tensors(scheme, name, dtype, shape)
    ]
    ours = load_rate(is_searched=plan.recipe.is_searched)
    roles = _totals(counted)
    return Forecast(
        plan=plan,
        workers=workers,
        source_nbytes=sum(total.source_nbytes for total in roles),
        manifest_nbytes=plan.manifest_nbytes,
        output_nbytes=plan.output_nbytes,
        peak_disk_nbytes=peak_disk_nbytes(plan) + beside_nbytes,
        peak_memory_nbytes=peak_memory_nbytes(plan, workers),
        rate=ours or REFERENCES[plan.recipe.is_searched],
        rate_is_ours=ours is not None,
        roles=roles,
        layers=tuple(
            _layer_ranges(config, plan.mtp_count, {total.role: total.scheme for total in roles})
        ),
        context=context,
        model_context=model_context,
        fits=tuple(
            fit_layout(config, plan.mtp_count, groups, layout, context)
            for layout in LAYOUTS
            if machine in (None, layout.machine.key)
        ),
    )


def peak_memory_nbytes(plan: Plan, workers: int) -> int:
    """What a run of this plan takes at most, resident.

    Measured with 4 workers: 113 MB for 2,251 tensors that become 5,637; of 44,705 tensors that
    become 104,000, 315 MB, and 341 MB to see that the run is done. A tensor's scales and edges
    wait for the end of its shard.
    """
    steps = [step for shard in plan.shards for step in shard.steps]
    outputs = sum(len(step.outputs) for step in steps)
    return 130_000_000 + 6_000_000 * workers + 1_000 * outputs + 2_500 * len(steps)


_Kind = tuple[Role, Scheme, str, str, tuple[int, ...]]


def _count_tensors(plan: Plan) -> Counter[_Kind]:
    """How many source tensors there are of each role, scheme, name without digits, dtype, shape.

    44,689 tensors of GLM-4.6 make 48 kinds; what follows is done for a kind, not for a tensor.
    """
    alike: dict[tuple[object, ...], list[Step]] = {}
    for shard in plan.shards:
        for step in shard.steps:
            source = step.source
            behind_layer = source.name.split(".", 3)[-1]  # 1,002 of them: digits go afterwards
            key = (step.role, behind_layer, source.dtype, source.shape)
            alike.setdefault(key, []).append(step)
    counted: Counter[_Kind] = Counter()
    for steps in alike.values():
        step, source = steps[0], steps[0].source
        name = source.name.translate(_NO_DIGITS)
        counted[step.role, step.scheme, name, source.dtype, source.shape] += len(steps)
    return counted


def role_totals(plan: Plan) -> tuple[RoleTotal, ...]:
    """What each role becomes, the largest first."""
    return _totals(_count_tensors(plan))


def _totals(counted: Counter[_Kind]) -> tuple[RoleTotal, ...]:
    sums: dict[tuple[Role, Scheme], list[int]] = {}
    for (role, scheme, name, dtype, shape), count in counted.items():
        outputs = output_tensors(scheme, name, dtype, shape)
        total = sums.setdefault((role, scheme), [0, 0, 0])
        total[0] += count
        total[1] += count * tensor_nbytes(dtype, shape)
        total[2] += count * sum(tensor_nbytes(each.dtype, each.shape) for each in outputs)
    totals = (RoleTotal(role, scheme, *total) for (role, scheme), total in sums.items())
    return tuple(sorted(totals, key=lambda total: (-total.source_nbytes, total.role.value)))


def _layer_ranges(
    config: Glm4MoeConfig, mtp_count: int, schemes: dict[Role, Scheme]
) -> Iterator[LayerRange]:
    """Layers of the same roles, in order: a scheme is chosen by role alone."""
    one_expert = config.model_copy(update={"n_routed_experts": 1})  # it stands for all
    layers: dict[int, set[Role]] = {}
    outside: set[Role] = set()
    for name, tensor in expected_tensors(one_expert, mtp_count).items():
        if tensor.role in schemes:
            layer = layer_of(name)
            (outside if layer is None else layers.setdefault(layer, set())).add(tensor.role)
    for roles, group in groupby(sorted(layers), key=layers.__getitem__):
        alike = list(group)
        yield LayerRange(alike[0], alike[-1], Role.MTP in roles, _schemes_of(roles, schemes))
    yield LayerRange(None, None, False, _schemes_of(outside, schemes))


def _schemes_of(roles: set[Role], schemes: dict[Role, Scheme]) -> dict[Role, Scheme]:
    return {role: schemes[role] for role in Role if role in roles}


def _model_context(config_data: bytes) -> int | None:
    found = parse_object(config_data, CONFIG_FILE).get(_CONTEXT_KEY)
    return found if type(found) is int and found > 0 else None
