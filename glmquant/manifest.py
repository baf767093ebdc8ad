"""``glmquant_manifest.json``: where each output tensor came from and how good it is.

Deterministic: no time, no path, no host. The same weights, recipe and version give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any, Final

from glmquant.errors import JsonError
from glmquant.jsontext import parse_object

MANIFEST_FILE: Final = "glmquant_manifest.json"
MANIFEST_FORMAT: Final = 1

ARITHMETIC: Final = {
    "W8A8_DYNAMIC": "scale = bf16_rne(f32(max|w|) / 127), 1 where 0; "
    "q = clip(rint(f32(w) / scale), -127, 127); true F32 division, half to even",
    "W8A8_DYNAMIC, scale mse": "the same with, of that scale and the 8 BF16 numbers below and 2 "
    "above it, the one whose row has the least sum of (w - q * scale)^2",
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

    def json_line(self) -> str:
        """The entry in the manifest: its name and an object.

        Put together by hand: ``json.dumps`` takes ten times as long, and there are 130,000 of them.
        """
        figures = ""
        if self.sqnr_db is not None or self.max_error is not None:
            sqnr_db, max_error = json.dumps(self.sqnr_db), json.dumps(self.max_error)
            figures = f', "sqnr_db": {sqnr_db}, "max_error": {max_error}'
        return (
            f'{_quoted(self.name)}: {{"scheme": "{self.scheme}", '
            f'"sources": [{_quoted(self.source)}], "source_xxh3_128": "{self.source_xxh3}", '
            f'"xxh3_128": "{self.xxh3}"{figures}}}'
        )


def record_from_json(name: str, entry: Any) -> TensorRecord:
    """The inverse of ``TensorRecord.json_line``.

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
    data = BytesIO()
    data.write(f'{head.removesuffix("}").rstrip()},\n "tensors": '.encode())
    write_records(data, sorted(records, key=lambda record: record.name))
    data.write(b"\n}\n")
    return data.getvalue()


def write_records(data: BytesIO, records: Iterable[TensorRecord]) -> None:
    """Write records as a JSON object, a line at a time: all lines of GLM-4.6 take 45 MB."""
    data.write(b"{\n")
    comma = b""
    for record in records:
        data.write(comma + b"  " + record.json_line().encode())
        comma = b",\n"
    data.write(b"\n }")


def parse_manifest(data: bytes) -> dict[str, Any]:
    """The manifest as an object.

    Raises:
        JsonError: Not a JSON object.
    """
    return parse_object(data, MANIFEST_FILE)
