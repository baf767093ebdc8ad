from __future__ import annotations

import re

import pytest

from glmquant import errors
from glmquant.errors import GlmquantError, UsageError


def subclasses(kind: type[GlmquantError]) -> list[type[GlmquantError]]:
    """A class of ``errors`` and all that derive from it there."""
    below = [each for each in kind.__subclasses__() if each.__module__ == errors.__name__]
    return [kind, *(found for each in below for found in subclasses(each))]


def drawn_parents() -> dict[str, str]:
    """Class → parent, read off the tree at the top of the module."""
    parents: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"^([ │├└─]*)(\w+Error)\b", line):
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            if depth:
                parents[match[2]] = path[depth - 1]
    return parents


def test_the_tree_drawn_in_the_docstring_is_the_tree_of_classes() -> None:
    found = {kind.__name__: kind.__bases__[0].__name__ for kind in subclasses(GlmquantError)}
    assert found.pop("GlmquantError") == "Exception"
    assert drawn_parents() == found


@pytest.mark.parametrize("kind", subclasses(GlmquantError))
def test_wrong_usage_exits_with_2_and_every_other_failure_with_1(
    kind: type[GlmquantError],
) -> None:
    assert kind("x").exit_code == (2 if kind is UsageError else 1)


def test_the_text_says_what_where_expected_found_and_hint_a_line_each() -> None:
    error = GlmquantError(
        "a weight is not finite", where="x.weight", expected="numbers", found="nan", hint="fetch"
    )
    assert str(error).splitlines() == [
        "a weight is not finite",
        "  where:    x.weight",
        "  expected: numbers",
        "  found:    nan",
        "  hint:     fetch",
    ]


def test_fields_are_the_parts_that_are_there_in_the_order_they_are_read() -> None:
    error = GlmquantError("what it is", hint="do this", found="")
    assert list(error.fields().items()) == [
        ("what", "what it is"),
        ("found", ""),
        ("hint", "do this"),
    ]


def test_an_error_with_nothing_but_what_is_one_line() -> None:
    error = GlmquantError("the disk is gone")
    assert (str(error), error.fields()) == ("the disk is gone", {"what": "the disk is gone"})
