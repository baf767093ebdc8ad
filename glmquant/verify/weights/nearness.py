"""N1 for other people's output: values within a step, rows within 1.5 dB of rounding to nearest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from glmquant.verify.weights.arithmetic import Floats, plain_scales, round_in_place
from glmquant.verify.weights.blocks import Block, RowFlaw, lost_or
from glmquant.verify.weights.figures import decibels
from glmquant.verify.weights.scales import FLOOR

STEP: Final = 1.0
"""How far a value may be from the source's, in steps of the scale in the file. F32 rounds within
0.5; msModelSlim divides BF16 by BF16, within 0.75."""

SMOOTHED_STEP: Final = 2.5
"""The same where the source is multiplied by a factor that was found, not known: at 127 a BF16
rounding of the product is half a step, and a neighbouring factor one and a quarter more."""

PRODUCT_STEP: Final = 1.5
"""The same where the scale is told from ``deq_scale / input_scale``: both are BF16, and at 127 that
is half a step."""

LOSS: Final = 10**0.15
"""1.5 dB: how much more noise a row may have than rounding to nearest gives it."""

SCATTER: Final = 5.0
"""Where factors or scales were found, not known, other values are rounded than were: the sum of as
many other errors. It scatters by 1 / sqrt(columns), and five of these are granted; 7 % at 5,120
columns."""

FOUND: Final = 2.0**-8
"""How far such a product may be off itself: that much of each value is noise, too."""


def check_steps(block: Block, limit: float) -> tuple[NDArray[np.bool_], Iterator[RowFlaw]]:
    """Rows with a value that is too far away and not clipped.

    Args:
        block: The rows; its errors are in steps of the scale in the file.
        limit: How far a value may be, in steps.

    Returns:
        Which rows, and what is wrong with them.
    """
    errors = block.errors
    if max(float(errors.max(initial=0)), -float(errors.min(initial=0))) <= limit:
        return np.zeros(len(errors), np.bool_), iter(())
    away = np.nan_to_num(_beyond(errors, block.weight, limit), nan=1e9, posinf=1e9)
    far = np.asarray(away.any(axis=1), np.bool_)
    return far, _step_flaws(block, away, np.flatnonzero(far), limit)


def _step_flaws(
    block: Block, away: Floats, rows: NDArray[np.intp], limit: float
) -> Iterator[RowFlaw]:
    if not len(rows):
        return
    # Values that fit the scale of the source's row speak against the scale in the file.
    own = block.values[rows] / block.plain[rows, None] - block.whole[rows]
    is_scale = ~_beyond(own, block.weight[rows], limit).any(axis=1)
    if is_scale.any():
        blamed = rows[is_scale]
        ratio = np.abs(np.log2(block.stored[blamed].astype(np.float64) / block.plain[blamed]))
        at = int(np.argmax(ratio))
        yield RowFlaw(
            "scales are not those of the source's rows",
            len(blamed),
            f"{block.plain[blamed[at]]:.9g} in row {block.first + blamed[at]}",
            f"{block.stored[blamed[at]]:.9g}",
            float(ratio[at]),
            is_scale=True,
        )
    wrong = rows[~is_scale]
    if len(wrong):
        row = wrong[int(np.argmax(away[wrong].max(axis=1)))]
        column = int(np.argmax(away[row]))
        yield RowFlaw(
            lost_or("int8 values are more than a step from the source's", block.weight[row]),
            len(wrong),
            f"{block.values[row, column]:.6g} at row {block.first + row}, column {column}, "
            f"within a step of {block.stored[row]:.6g}",
            f"{block.weight[row, column]} times that, {away[row, column]:.1f} steps away",
            float(away[row, column]),
        )


def _beyond(errors: Floats, weight: NDArray[np.int8], limit: float) -> Floats:
    """How many steps a value is away where these are too many, else 0; clipped values may be."""
    far = ~(np.abs(errors) <= limit)
    far &= ~(((weight >= 127) & (errors > 0)) | ((weight <= -127) & (errors < 0)))
    away: Floats = np.where(far, np.abs(errors), np.float32(0))
    return away


def check_noise(block: Block, noise: NDArray[np.float64], is_found: bool) -> Iterator[RowFlaw]:
    """Rows that lose more than 1.5 dB to rounding to nearest.

    Most rows have little more noise than uniform errors, and that is enough. For the others
    the noise of F32 rounding is worked out, and that of BF16 by BF16, as msModelSlim divides: where
    most values are near the largest that is 2.4 dB more, rightly.

    Args:
        block: The rows.
        noise: Theirs, with the scales of the file; 0 for rows that were told of.
        is_found: Its values are products with factors that were found, or its scale is.
    """
    columns = block.values.shape[1]
    loss = LOSS * (1 + SCATTER / math.sqrt(columns) if is_found else 1)
    uniform = columns / 12 * block.plain.astype(np.float64) ** 2
    # Tools keep scales from falling below some number: such rows are short of levels, rightly.
    doubtful = np.flatnonzero(~(noise <= loss * uniform) & (block.stored > FLOOR))
    if not len(doubtful):
        return
    values = block.values[doubtful]
    unit = np.where(block.largest > 0, block.largest / np.float32(127), np.float32(1))[doubtful]
    least = np.maximum(_noise(values, unit), _noise(values, plain_scales(unit * 127), True))
    least = np.maximum(least, uniform[doubtful])
    if is_found:
        least += FOUND**2 * np.einsum("ij,ij->i", values, values, dtype=np.float64)
    lost = np.flatnonzero(~(noise[doubtful] <= loss * least))
    if not len(lost):
        return
    ratio = noise[doubtful][lost] / least[lost]
    at = int(lost[np.argmax(np.nan_to_num(ratio, nan=np.inf))])
    row = int(doubtful[at])
    signal = float(np.einsum("j,j->", values[at], values[at], dtype=np.float64))
    yield RowFlaw(
        "int8 rows lose more than 1.5 dB to rounding to nearest",
        len(lost),
        f"{decibels(signal, float(least[at]))} dB in row {block.first + row}",
        f"{decibels(signal, float(noise[row]))} dB",
        min(float(noise[row] / least[at]), 1e9) if math.isfinite(noise[row]) else 1e9,
    )


def _noise(values: Floats, scale: Floats, in_bf16: bool = False) -> NDArray[np.float64]:
    """The noise of rounding these rows to nearest."""
    quotients = values / scale[:, None]
    whole = quotients.copy()
    if in_bf16:
        round_in_place(whole)
    np.clip(np.rint(whole), -128, 127, out=whole)
    quotients -= whole
    squares = np.einsum("ij,ij->i", quotients, quotients).astype(np.float64)
    noise: NDArray[np.float64] = squares * scale.astype(np.float64) ** 2
    return noise
