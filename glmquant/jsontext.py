"""JSON text at the border: read strictly, written in one canonical way."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from glmquant.errors import JsonError

MAX_JSON_NBYTES: Final = 64_000_000
"""Longer files are not read: the index of GLM-4.6 is about 4 MB, our manifest of it about 33."""


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
    """``value`` as UTF-8 JSON with a final newline; the same object gives the same bytes.

    The bytes of ``json.dumps(value, indent=indent)``, whose indenting writer takes ten times as
    long: an index or a description has 130,000 keys.
    """
    text = _compact(value) if indent is None else _indented(value, " " * indent, "\n")
    return (text + "\n").encode()


def _compact(value: Any, comma: str = ", ") -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(comma, ": "))


def _indented(value: Any, step: str, line: str) -> str:
    """``value`` as text; ``line`` begins the line on which it closes."""
    if not isinstance(value, (dict, list)) or not value:
        return _compact(value)
    inner = line + step
    parts = value.values() if isinstance(value, dict) else value
    nested = {dict, list} & set(map(type, parts))
    if not nested or not any(part for part in parts if type(part) in nested):
        body = _compact(value, f",{inner}")[1:-1]
    elif isinstance(value, dict):
        body = f",{inner}".join(
            f"{_compact(key)}: {_indented(part, step, inner)}" for key, part in value.items()
        )
    else:
        body = f",{inner}".join(_indented(part, step, inner) for part in value)
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return f"{opening}{inner}{body}{line}{closing}"
