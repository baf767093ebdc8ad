"""Everything that reading one unit can tell, with or without the source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import xxhash
from numpy.typing import NDArray

from glmquant.checkpoint import Checkpoint
from glmquant.glm4_moe import Role, optional_mtp_weights
from glmquant.source import FolderSource
from glmquant.tensor_names import layer_of
from glmquant.tensors import TensorRef
from glmquant.verify.subject import LINEAR_SUFFIXES, Part
from glmquant.verify.weights.against import check_quant_bias, compare_int8
from glmquant.verify.weights.arithmetic import WORDS, values_of
from glmquant.verify.weights.crew import BLOCK_ELEMENTS, Worker
from glmquant.verify.weights.equality import compare_float, shape_flaw
from glmquant.verify.weights.factors import Factors
from glmquant.verify.weights.flaws import Flaw
from glmquant.verify.weights.saved import Results
from glmquant.verify.weights.scales import (
    POSITIVE,
    Scales,
    check_numbers,
    check_router_bias,
    check_rows,
    scales_of,
)
from glmquant.verify.weights.scan import MAX_COLUMNS, MAX_VECTOR_NBYTES, Scan
from glmquant.verify.weights.trust import Trust
from glmquant.verify.weights.units import Unit, bias_of

_INPUTS: Final = ("input_scale", "input_offset")


@dataclass(frozen=True)
class Judge:
    """Judges units one by one, in any thread.

    Attributes:
        mine: Where the checkpoint's bytes are.
        trust: What the manifest promises.
        checkpoint: The source, where the checkpoint is held against it.
        theirs: Its tensors by name.
        factors: What smoothing did, by linear or tensor.
        norms: Norms that smoothing explains, or of which it is said already that it does not.
        sampled_rows: Of each int8 weight so many rows are held against the source's; 0 for all.
    """

    mine: FolderSource
    trust: Trust
    checkpoint: Checkpoint | None = None
    theirs: dict[str, TensorRef] = field(default_factory=dict)
    factors: dict[str, Factors] = field(default_factory=dict)
    norms: frozenset[str] = frozenset()
    sampled_rows: int = 0

    def judge(self, unit: Unit, worker: Worker) -> Results:
        """Read a unit and say all that is wrong with it.

        Raises:
            StorageError: A file cannot be read.
        """
        results = Results()
        if unit.is_int8:
            self._judge_int8(unit, worker, results)
        else:
            results.flaws += self._judge_single(unit, worker)
        return results

    def source_of(self, name: str) -> TensorRef | None:
        """The tensor of the source that one of the checkpoint was made of, None without one.

        A copy of the embedding or the head in an MTP layer, where the source has none, is the
        body's.
        """
        found = self.theirs.get(name)
        if found is not None or not self.theirs:
            return found
        layer = layer_of(name)
        if layer is not None and name in optional_mtp_weights(layer):
            is_embedding = name == optional_mtp_weights(layer)[0]
            head = self.theirs.get("lm_head.weight")
            embedding = self.theirs.get("model.embed_tokens.weight")
            return embedding if is_embedding or head is None else head
        return None

    def reads(self, unit: Unit) -> Iterator[TensorRef]:
        """The tensors of the source that are read for a unit."""
        names = {unit.main.name} | {ref.name for ref in unit.parts.values()}
        for name in names:
            found = self.source_of(name)
            if found is not None:
                yield found

    def source_nbytes(self, unit: Unit) -> int:
        """How much of the source is read for a unit."""
        total = 0
        for ref in self.reads(unit):
            is_sampled = unit.is_int8 and ref.name == unit.main.name
            rows = self._sample_of(ref) if is_sampled else None
            total += ref.nbytes if rows is None else ref.nbytes // ref.shape[0] * len(rows)
        return total

    def _sample_of(self, ref: TensorRef) -> range | None:
        """The rows that are held against the source's, at a place of the tensor's own."""
        rows = ref.shape[0]
        if not 0 < self.sampled_rows < rows:
            return None
        first = xxhash.xxh3_64_intdigest(ref.name.encode()) % (rows - self.sampled_rows + 1)
        return range(first, first + self.sampled_rows)

    def _scan(self, ref: TensorRef, role: str) -> Scan:
        return Scan(ref, role, self.trust.digests.get(ref.name))

    def _judge_single(self, unit: Unit, worker: Worker) -> Iterator[Flaw]:
        ref = unit.main
        scan = self._scan(ref, unit.role)
        if ref.name.endswith("e_score_correction_bias"):
            numbers = self._vector(ref, worker)
            if numbers is not None:
                yield from check_router_bias(unit, numbers)
        other = self.source_of(ref.name) if self.checkpoint else None
        if self.checkpoint is None or ref.name in self.norms:
            scan.read_all(self.mine, worker)
            yield from scan.flaws()
        elif other is None:
            scan.read_all(self.mine, worker)
            yield from scan.flaws()
            yield from self._extra(unit, scan)
        else:
            source = self.checkpoint.source
            factors = self.factors.get(ref.name)
            yield from compare_float(unit, scan, self.mine, (source, other), worker, factors)

    def _extra(self, unit: Unit, scan: Scan) -> Iterator[Flaw]:
        """A tensor that the source does not have: harmless where it adds nothing."""
        suffix = Part.of(unit.name).suffix
        is_scale = suffix in LINEAR_SUFFIXES and suffix not in ("weight", "bias")
        assert self.checkpoint is not None  # noqa: S101
        is_mtp = unit.role == Role.MTP.value and not self.checkpoint.mtp_count
        if not (is_scale or is_mtp or scan.is_zero):
            yield Flaw(
                "N1",
                "a tensor is not in the source",
                unit.role,
                unit.main.name,
                "the tensors of the source, scales, and biases of zeros",
                f"{unit.main.dtype} {list(unit.main.shape)}",
                is_source=True,
            )

    def _judge_int8(self, unit: Unit, worker: Worker, results: Results) -> None:
        numbers = self._parts(unit, worker, results)
        results.flaws += check_numbers(unit, numbers)
        for suffix in _INPUTS:
            held = numbers.get(suffix)
            if held is not None and held.size == 1:
                results.inputs.setdefault(unit.name, {})[suffix] = float(held.reshape(-1)[0])
        scan = self._scan(unit.main, unit.role)
        scales = scales_of(unit, numbers)
        other = self.source_of(unit.main.name) if self.checkpoint else None
        rows, columns = unit.main.shape
        if other is not None and other.shape != unit.main.shape:
            results.flaws.append(shape_flaw(unit, unit.main, other))
        if (
            self.checkpoint is None
            or other is None
            or scales is None
            or other.shape != unit.main.shape
            or other.dtype not in WORDS
            or not rows * columns
        ):
            results.flaws += self._judge_rows(unit, scan, worker, scales)
            return
        rule = self.trust.rule(unit.main.name, unit.role)
        factors = None if rule.is_exact else self.factors.get(unit.name)
        theirs = (self.checkpoint.source, other)
        flaws, figures, sums = compare_int8(
            unit,
            scan,
            scales,
            self.mine,
            theirs,
            rule._replace(is_smoothed=factors is not None),
            worker,
            factors,
            self._sample_of(unit.main),
        )
        results.flaws += flaws
        results.figures.append(figures)
        if "quant_bias" in unit.parts:
            bias = self._bias(unit, numbers, worker)
            results.flaws += check_quant_bias(unit, numbers, bias, sums)

    def _parts(self, unit: Unit, worker: Worker, results: Results) -> dict[str, NDArray[Any]]:
        """The numbers of a linear's small tensors; what is wrong with their bytes is noted."""
        numbers = {}
        for suffix, ref in unit.parts.items():
            scan = self._scan(ref, unit.role)
            other = self.source_of(ref.name) if self.checkpoint else None
            if suffix == "bias" and self.checkpoint is not None:
                (alone,) = bias_of(unit)
                if other is not None:
                    theirs = (self.checkpoint.source, other)
                    factors = self.factors.get(ref.name)
                    results.flaws += compare_float(alone, scan, self.mine, theirs, worker, factors)
                else:
                    scan.read_all(self.mine, worker)
                    results.flaws += [*scan.flaws(), *self._extra(alone, scan)]
                held = self._vector(ref, worker)
            else:
                held = scan.read_values(self.mine, worker)
                # W3 tells of scales that are NaN.
                results.flaws += [
                    flaw for flaw in scan.flaws() if flaw.code != "W2" or suffix not in POSITIVE
                ]
            if held is not None:
                numbers[suffix] = held
        return numbers

    def _judge_rows(
        self, unit: Unit, scan: Scan, worker: Worker, scales: Scales | None
    ) -> Iterator[Flaw]:
        """An int8 weight by itself; the first row of each kind of flaw is told."""
        columns = unit.main.shape[1]
        if not 0 < columns <= MAX_COLUMNS:
            scan.read_all(self.mine, worker)
            yield from scan.flaws()
            return
        step = max(1, 4 * BLOCK_ELEMENTS // columns)
        found: dict[str, list[Flaw]] = {}
        for number, block in enumerate(scan.read(self.mine, worker, step * columns)):
            weight = np.frombuffer(block, np.int8).reshape(-1, columns)
            for flaw in check_rows(unit, number * step, weight, scales):
                found.setdefault(flaw.what, []).append(flaw)
        yield from scan.flaws()
        for flaws in found.values():
            more = f"; {len(flaws)} of {unit.main.shape[0]} rows"
            worst = max(flaws, key=lambda flaw: flaw.badness)
            yield worst._replace(found=worst.found + more)

    def _vector(self, ref: TensorRef, worker: Worker) -> NDArray[Any] | None:
        if ref.nbytes > MAX_VECTOR_NBYTES:
            return None
        data = bytes(worker.read(self.mine, ref, "vector", 0, ref.nbytes))
        return values_of(np.frombuffer(data, np.uint8), ref.dtype)

    def _bias(
        self, unit: Unit, numbers: dict[str, NDArray[Any]], worker: Worker
    ) -> NDArray[np.float64] | None:
        """The float bias of a linear: its own, else the source's, smoothed as its rows were."""
        held: NDArray[Any] | None = numbers.get("bias")
        name = f"{unit.name}.bias"
        other = self.theirs.get(name)
        if held is None and other is not None and self.checkpoint is not None:
            data = bytes(worker.read(self.checkpoint.source, other, "vector", 0, other.nbytes))
            held = values_of(np.frombuffer(data, np.uint8), other.dtype)
            factors = self.factors.get(name)
            if held is not None and factors is not None and factors.rows is not None:
                held = held / factors.rows
        if held is None or held.size != unit.main.shape[0]:
            return None
        return held.astype(np.float64)
