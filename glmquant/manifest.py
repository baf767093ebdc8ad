"""``glmquant_manifest.json``: where each output tensor came from and how good it is.

Deterministic: no time, no path, no host. The same weights, recipe and version give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from glmquant.errors import JsonError
from glmquant.jsontext import parse_object

MANIFEST_FILE: Final = "glmquant_manifest.json"
MANIFEST_FORMAT: Final = 1

ARITHMETIC: Final = {
    "W8A8_DYNAMIC": "scale = bf16_rne(f32(max|w|) / 127), 1 where 0; "
    "q = clip(rint(f32(w) / scale), -127, 127); true F32 division, half to even"
}


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor of the output.

    Attributes:
        name: Its name.
        scheme: The scheme of the linear it belongs to.
        source: Name of the tensor it was made of.
        source_xxh3: xxh3-128 of that tensor's bytes, hexadecimal.
        xxh3: xxh3-128 of its own bytes, hexadecimal.
        sqnr_db: Signal to quantization noise of a quantized weight, dB; None for exact tensors.
        max_error: Largest absolute error of a quantized weight, in units of the weight.
    """

    name: str
    scheme: str
    source: str
    source_xxh3: str
    xxh3: str
    sqnr_db: float | None = None
    max_error: float | None = None

    def as_json(self) -> dict[str, Any]:
        """The entry in the manifest, without its name."""
        entry: dict[str, Any] = {
            "scheme": self.scheme,
            "sources": [self.source],
            "source_xxh3_128": self.source_xxh3,
            "xxh3_128": self.xxh3,
        }
        if self.sqnr_db is not None or self.max_error is not None:
            entry |= {"sqnr_db": self.sqnr_db, "max_error": self.max_error}
        return entry


def record_from_json(name: str, entry: Any) -> TensorRecord:
    """The inverse of ``TensorRecord.as_json``.

    Raises:
        JsonError: The entry is not one that we wrote.
    """
    try:
        (source,) = entry["sources"]
        record = TensorRecord(
            name,
            entry["scheme"],
            source,
            entry["source_xxh3_128"],
            entry["xxh3_128"],
            entry.get("sqnr_db"),
            entry.get("max_error"),
        )
        bytes.fromhex(record.source_xxh3 + record.xxh3)
        for figure in (record.sqnr_db, record.max_error):
            if not isinstance(figure, (float, int, type(None))):
                raise TypeError(f"a number expected, {figure!r} found")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise JsonError(
            "a tensor's record cannot be understood",
            where=name,
            expected="scheme, sources, source_xxh3_128 and xxh3_128",
            found=f"{type(error).__name__}: {error}",
            hint="make the target anew with --overwrite",
        ) from error
    return record


def encode_manifest(fields: Mapping[str, Any], records: Iterable[TensorRecord]) -> bytes:
    """The manifest's bytes: the head indented, then one line a tensor.

    Args:
        fields: Everything but the tensors.
        records: The tensors; written in order of their names.

    Returns:
        UTF-8 JSON; about 250 bytes a tensor.
    """
    head = json.dumps({"format": MANIFEST_FORMAT, **fields}, indent=1, ensure_ascii=False)
    lines = ",\n".join(
        f"  {json.dumps(record.name)}: {json.dumps(record.as_json())}"
        for record in sorted(records, key=lambda record: record.name)
    )
    return f'{head.removesuffix("}").rstrip()},\n "tensors": {{\n{lines}\n }}\n}}\n'.encode()


def parse_manifest(data: bytes) -> dict[str, Any]:
    """The manifest as an object.

    Raises:
        JsonError: Not a JSON object.
    """
    return parse_object(data, MANIFEST_FILE)
