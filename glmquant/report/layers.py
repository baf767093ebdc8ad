"""What each role of a checkpoint has become: scheme, tensors, bytes, and how near to the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from glmquant.inventory import OTHER_ROLE
from glmquant.manifest import MANIFEST_FILE
from glmquant.survey import Survey
from glmquant.tensor_names import role_of


@dataclass(frozen=True, slots=True)
class LayerRow:
    """Tensors of one role and one scheme.

    Attributes:
        role: What they do.
        scheme: ``W8A8_DYNAMIC``, ``FLOAT``, …; empty where nothing says it.
        tensors: How many.
        nbytes: Their bytes.
        median_db: Median SQNR of their weights, dB; None where none was recorded.
        least_db: The least one.
    """

    role: str
    scheme: str
    tensors: int
    nbytes: int
    median_db: float | None
    least_db: float | None


def layer_rows(found: Survey, mtp_layers: tuple[int, ...]) -> tuple[LayerRow, ...]:
    """A row for each role and scheme, the largest first.

    Args:
        found: What could be read of the folder.
        mtp_layers: The layers that are MTP layers.
    """
    records = _records(found.objects.get(MANIFEST_FILE, {}))
    description = found.description or found.embedded_description
    types = description[1] if description else {}
    counts: dict[tuple[str, str], list[int]] = {}
    figures: dict[tuple[str, str], list[float]] = {}
    for refs in found.engine_shards.values():
        for ref in refs:
            role = role_of(ref.name, mtp_layers)
            record = records.get(ref.name, {})
            scheme = record.get("scheme") or types.get(ref.name)
            key = (role.value if role else OTHER_ROLE, scheme if isinstance(scheme, str) else "")
            count = counts.setdefault(key, [0, 0])
            count[0] += 1
            count[1] += ref.nbytes
            sqnr = record.get("sqnr_db")
            if isinstance(sqnr, (int, float)):
                figures.setdefault(key, []).append(float(sqnr))
    rows = []
    for key, (tensors, nbytes) in counts.items():
        values = figures.get(key)
        told = (median(values), min(values)) if values else (None, None)
        rows.append(LayerRow(*key, tensors, nbytes, *told))
    return tuple(sorted(rows, key=lambda row: (-row.nbytes, row.role, row.scheme)))


def _records(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The tensors of our manifest that can be understood; none of another's checkpoint."""
    tensors = manifest.get("tensors")
    if not isinstance(tensors, dict):
        return {}
    return {name: record for name, record in tensors.items() if isinstance(record, dict)}
