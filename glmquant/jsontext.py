"""JSON text at the border: read strictly, written in one canonical way."""

from __future__ import annotations

import json
import math
from typing import Any

from glmquant.errors import JsonError


def _reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {key!r} stands twice")
            seen.add(key)
    return found


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is out of range")
    return value


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in ``data``.

    Args:
        data: UTF-8 text, a byte order mark allowed.
        where: File name for the error.

    Returns:
        The object, keys in file order.

    Raises:
        JsonError: Not UTF-8, not JSON, not an object, a key twice in one object, too deep, or with
            a number or text that could not be written again.
    """
    try:
        value = json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_reject_duplicates,
            parse_constant=_reject_constant,
            parse_float=_finite,
        )
        if b"\\ud" in data.lower():  # half a surrogate pair cannot be written again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        # JSONDecodeError and UnicodeDecodeError are ValueErrors that say where they are.
        raise JsonError(
            "a JSON file cannot be read",
            where=where,
            expected="one JSON object in UTF-8",
            found=f"{type(error).__name__}: {error}",
            hint="fetch that file again",
        ) from error
    if not isinstance(value, dict):
        raise JsonError(
            "a JSON file does not hold an object",
            where=where,
            expected="{ … }",
            found=type(value).__name__,
            hint="fetch that file again",
        )
    return value


def dump_object(value: dict[str, Any], indent: int | None = 2) -> bytes:
    """``value`` as UTF-8 JSON with a final newline; the same object gives the same bytes."""
    return (json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n").encode()
