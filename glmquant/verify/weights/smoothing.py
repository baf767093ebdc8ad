"""Factors that a tool moved from one tensor into its neighbours before it rounded.

msModelSlim (26.1.0, ``flex_smooth_quant``, ``iter_smooth``) divides a norm by one factor a channel
and multiplies the columns of the linears behind it; and divides the rows of v or up, multiplying
the columns of o or down, one factor for all query heads of a key head. The product stays the same.
The factors are found again from a sample of the int8 rows, by least squares.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmquant.glm4_moe import Glm4MoeConfig
from glmquant.source import FolderSource
from glmquant.verify.weights.arithmetic import Floats, to_bf16
from glmquant.verify.weights.crew import Worker
from glmquant.verify.weights.factors import Factors
from glmquant.verify.weights.fits import SIGMAS, Fit, merged, moved_share, settled
from glmquant.verify.weights.flaws import Flaw
from glmquant.verify.weights.samples import Pair, Sampler
from glmquant.verify.weights.units import Unit

AGREES: Final = 2.0**-6
"""How far a norm may be from the source's divided by the factor: factor, its reciprocal and the
quotient are BF16, and the factor is found again within 2^-8."""


MOST_DOUBT: Final = 0.1
"""More than that is granted to no bias, however few rows there are."""

FEW: Final = 0.1
"""Fewer columns than this part with factors of their own are damage: a tool smooths nearly all."""

ROW_SMOOTHED: Final = ("v_proj", "up_proj")
"""Linears whose rows may have other factors, too: nothing is learnt of their columns."""


class Smoothing(NamedTuple):
    """What was found in one layer.

    Attributes:
        factors: Linear, or tensor by itself → what it was multiplied by.
        norms: Norms that differ from the source's, rightly.
        flaws: Norms that differ, and that their linears do not make up for.
    """

    factors: dict[str, Factors]
    norms: tuple[str, ...] = ()
    flaws: tuple[Flaw, ...] = ()


class Behind(NamedTuple):
    """What was found behind a norm that is not the source's.

    Attributes:
        factors: What the columns were multiplied by, where they were.
        in_bf16: The products were rounded to BF16.
        flaw: The norm and the columns do not fit each other.
    """

    factors: Floats | None
    in_bf16: bool
    flaw: Flaw | None


class Moved(NamedTuple):
    """What was moved from one linear into the one behind it.

    Attributes:
        rows: What the rows of the first were divided by, as its scales have it.
        bias: What its bias was divided by.
        columns: What the columns of the second were multiplied by.
        doubt: How far any of these may be off, as a part of it.
    """

    rows: Floats
    bias: Floats
    columns: Floats
    doubt: float


class Prober:
    """Looks for smoothing in a layer.

    Args:
        mine: Where the checkpoint's bytes are.
        theirs: Where the source's are.
        pairs: Linear, or tensor by itself → it and its source.
        config: The source's.
    """

    def __init__(
        self,
        mine: FolderSource,
        theirs: FolderSource,
        pairs: dict[str, Pair],
        config: Glm4MoeConfig,
    ) -> None:
        self._sampler = Sampler(mine, theirs)
        self._pairs = pairs
        self._config = config

    def probe(self, layer: int, worker: Worker) -> Smoothing:
        """What smoothing there is in a layer of the body.

        Raises:
            StorageError: A file cannot be read.
        """
        at = f"model.layers.{layer}"
        columns: dict[str, Floats] = {}
        rows: dict[str, Floats] = {}
        norms: list[str] = []
        wide: list[str] = []
        flaws: list[Flaw] = []
        mlps = self._mlps(at)
        behind = {
            f"{at}.input_layernorm.weight": [f"{at}.self_attn.{each}_proj" for each in "qkv"],
            f"{at}.post_attention_layernorm.weight": [
                f"{at}.mlp.gate",
                *(f"{mlp}.{each}_proj" for mlp in mlps for each in ("gate", "up")),
            ],
        }
        for norm, linears in behind.items():
            found = self._probe_norm(norm, linears, worker)
            if found is None:
                continue
            if found.flaw is None:
                norms.append(norm)
            else:
                flaws.append(found.flaw)
            if found.factors is not None:
                columns |= dict.fromkeys(linears, found.factors)
            wide += [] if found.in_bf16 else linears
        repeats = self._config.num_attention_heads // self._config.num_key_value_heads
        couples = [(f"{at}.self_attn.v_proj", f"{at}.self_attn.o_proj", repeats)]
        couples += [
            (f"{mlp}.up_proj", f"{mlp}.down_proj", 1) for mlp in self._few(mlps, worker, columns)
        ]
        biases: dict[str, Factors] = {}
        for first, second, count in couples:
            moved = self._probe_couple(first, second, count, worker, columns.get(first))
            if moved is not None:
                rows[first], columns[second] = moved.rows, moved.columns
                biases[f"{first}.bias"] = Factors(rows=moved.bias, doubt=moved.doubt)
        int8 = {
            name: Factors(columns.get(name), rows.get(name), name not in wide)
            for name in (*columns, *rows)
        }
        # A float linear is a tensor by itself, under its own name.
        weights = {f"{name}.weight": held for name, held in int8.items()}
        return Smoothing({**int8, **weights, **biases}, tuple(norms), tuple(flaws))

    def _mlps(self, at: str) -> list[str]:
        names = [f"{at}.mlp", f"{at}.mlp.shared_experts"]
        names += [f"{at}.mlp.experts.{i}" for i in range(self._config.n_routed_experts)]
        return [name for name in names if self._pair(f"{name}.down_proj") is not None]

    def _few(self, mlps: list[str], worker: Worker, columns: dict[str, Floats]) -> list[str]:
        """All MLPs where one of the first three is smoothed: a tool does it to all or none."""
        for mlp in mlps[:3]:
            first, second = f"{mlp}.up_proj", f"{mlp}.down_proj"
            if self._probe_couple(first, second, 1, worker, columns.get(first)) is not None:
                return mlps
        return []

    def _pair(self, linear: str) -> Pair | None:
        return self._pairs.get(linear) or self._pairs.get(f"{linear}.weight")

    def _probe_norm(self, norm: str, linears: list[str], worker: Worker) -> Behind | None:
        """What is behind a norm; None where it is the source's."""
        pair = self._pairs.get(norm)
        vectors = self._sampler.vectors(pair, worker) if pair is not None else None
        if pair is None or vectors is None or np.array_equal(*vectors):
            return None
        mine, theirs = vectors
        known = [
            other
            for name in linears
            if not name.endswith(ROW_SMOOTHED) and (other := self._pair(name)) is not None
        ]
        fit = self._best_fit(known[:3], mine, theirs, worker)
        changed = mine != theirs
        if fit is None or not fit.is_moved(changed):
            at = int(np.argmax(np.abs(mine - theirs)))
            told = f"{mine[at]:.6g} in channel {at} for {theirs[at]:.6g}"
            told += f"; {int(np.count_nonzero(changed))} differ, and the weights are not smoothed"
            return Behind(None, True, _norm_flaw(pair.unit, told))
        with np.errstate(all="ignore"):
            ratio = theirs / mine
        flaw = None
        if fit.misfits.any():
            at = int(np.argmax(np.where(fit.misfits, np.abs(fit.found * mine - theirs), -1)))
            told = f"divided by {ratio[at]:.6g} in channel {at}, the weights behind it multiplied "
            told += f"by {fit.found[at]:.6g}; {int(np.count_nonzero(fit.misfits))} channels"
            flaw = _norm_flaw(pair.unit, told)
        held = fit.factors(ratio)
        if not np.array_equal(to_bf16(mine), mine):  # of a layer that the tool held in F32
            exact = np.where(np.isfinite(ratio) & ~fit.misfits, ratio, held)
            return Behind(exact.astype(np.float32), False, flaw)
        return Behind(settled(held, theirs, mine), True, flaw)

    def _best_fit(
        self,
        pairs: list[Pair],
        mine: NDArray[np.float64],
        theirs: NDArray[np.float64],
        worker: Worker,
    ) -> Fit | None:
        """What linears that share a norm tell of its factors.

        All of them together, or the one that fits the norm best where one is damaged.
        """
        sums = [self._sampler.sums(pair, len(theirs), worker) for pair in pairs]
        best: Fit | None = None
        for each in [*([reduce(add, sums)] if sums else []), *sums]:
            found = each.factors()
            if found is None:
                continue
            with np.errstate(all="ignore"):
                doubt = np.nan_to_num(each.doubt(), nan=np.inf)
                limit = (AGREES + SIGMAS * doubt) * np.abs(theirs)
                misfits = np.abs(found * mine - theirs) > limit
            if best is None or misfits.sum() < best.misfits.sum():
                best = Fit(found, doubt, misfits)
        return best

    def _probe_couple(
        self, first: str, second: str, repeats: int, worker: Worker, before: Floats | None = None
    ) -> Moved | None:
        """Factors of the rows of a linear and of the columns of the one behind it.

        Args:
            first: The linear whose rows were divided.
            second: The linear whose columns were multiplied.
            repeats: Columns for one row, as many as query heads for a key head.
            worker: Has the buffers.
            before: What the columns of the first were multiplied by, where they were.
        """
        pair, above = self._pair(second), self._pair(first)
        width = self._config.head_dim if repeats > 1 else 1
        if pair is None or above is None or len(pair.other.shape) != 2:
            return None
        sums = self._sampler.sums(pair, pair.other.shape[1], worker)
        found = sums.factors()
        if found is None or found.size % (repeats * width):
            return None
        heads = (-1, repeats, width)
        shared, doubt = merged(found.reshape(heads), sums.doubt().reshape(heads), 1)
        if moved_share(shared, doubt) < FEW:
            return None
        above_sums = self._sampler.row_sums(above, worker, before)
        rows = above_sums.factors() if above_sums is not None else None
        if above_sums is None or rows is None or rows.size != shared.size:
            return None
        with np.errstate(all="ignore"):
            by_row, row_doubt = 1 / rows, above_sums.doubt()
            by_column, column_doubt = shared.reshape(-1), doubt.reshape(-1)
            away = np.abs(by_column / by_row - 1)
        # A row's factor and its scale are one number, and the scale was rounded, too.
        rounding = AGREES / SIGMAS
        known = np.isfinite(away)
        fits = known & (away <= SIGMAS * np.hypot(np.hypot(row_doubt, column_doubt), rounding))
        if not known.any() or np.median(fits[known]) < 1:
            return None  # the rows do not make up for the columns: these are wrong
        both = np.stack([by_column, np.where(fits, by_row, np.nan)])
        guess, left = merged(both, np.stack([column_doubt, np.hypot(row_doubt, rounding)]), 0)
        guess = np.where(np.isfinite(guess) & (guess > 0), guess, 1.0)
        # With its scale as it is, the row itself knows better.
        own = merged(both, np.stack([np.hypot(column_doubt, rounding), row_doubt]), 0)[0]
        own = np.where(np.isfinite(own) & (own > 0), own, guess)
        bias = self._pairs.get(f"{first}.bias")
        vectors = self._sampler.vectors(bias, worker) if bias is not None else None
        if vectors is not None and vectors[0].shape == guess.shape:
            whole = settled(guess, vectors[1], vectors[0])
        else:
            whole = settled(guess)
        columns = np.broadcast_to(whole.reshape(-1, 1, width), (len(shared), repeats, width))
        most = float(np.max(left[np.isfinite(left)], initial=0))
        flat = np.ascontiguousarray(columns).reshape(-1)
        return Moved(own.astype(np.float32), whole, flat, min(SIGMAS * most, MOST_DOUBT))


def _norm_flaw(unit: Unit, found: str) -> Flaw:
    return Flaw(
        "N1",
        "a norm is neither the source's nor smoothed into the weights behind it",
        unit.role,
        unit.name,
        "the source's values, or these divided by what the columns behind are multiplied by",
        found,
        1.0,
        True,
    )
