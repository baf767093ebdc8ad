from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmquant.errors import JsonError
from glmquant.jsontext import dump_object, parse_object

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
)
OBJECTS = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=8,
    ),
    max_size=5,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(value=OBJECTS, indent=st.sampled_from((None, 2)))
def test_what_is_dumped_is_parsed_again_keys_in_their_order(
    value: dict[str, Any], indent: int | None
) -> None:
    found = parse_object(dump_object(value, indent), "x.json")
    assert found == value
    assert json.dumps(found) == json.dumps(value)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(value=OBJECTS)
def test_indented_text_is_that_of_the_json_module(value: dict[str, Any]) -> None:
    assert dump_object(value) == (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def test_text_is_utf_8_as_it_is_with_a_final_newline() -> None:
    assert dump_object({"ü": [1, "数"]}) == '{\n  "ü": [\n    1,\n    "数"\n  ]\n}\n'.encode()
    assert dump_object({"ü": [1, "数"]}, indent=None) == '{"ü": [1, "数"]}\n'.encode()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_numbers_that_json_has_not_are_never_written(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_object({"a": [number]})


def test_a_byte_order_mark_and_white_space_are_allowed() -> None:
    assert parse_object(b'\xef\xbb\xbf \r\n{"a": 1}\t', "x.json") == {"a": 1}


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "JSONDecodeError: Expecting value: line 1 column 1 (char 0)"),
        (b'{"a": 1', "JSONDecodeError: Expecting ',' delimiter: line 1 column 8 (char 7)"),
        (b'{"a": 1}{}', "JSONDecodeError: Extra data: line 1 column 9 (char 8)"),
        (b'{"a": NaN}', "ValueError: NaN is not JSON"),
        (b'{"a": [-Infinity]}', "ValueError: -Infinity is not JSON"),
        (b'{"a": 1, "b": 2, "a": 1}', "ValueError: the key 'a' stands twice"),
        (b'{"x": [{"b": 1, "b": 2}]}', "ValueError: the key 'b' stands twice"),
        (b'{"a": 1, "\\u0061": 1}', "ValueError: the key 'a' stands twice"),
    ],
)
def test_what_is_no_strict_json_is_an_error_that_says_why(data: bytes, found: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_object(data, "sub/x.json")
    assert caught.value.fields() == {
        "what": "a JSON file cannot be read",
        "where": "sub/x.json",
        "expected": "one JSON object in UTF-8",
        "found": found,
        "hint": "fetch that file again",
    }


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b'{"\xff": 1}', "UnicodeDecodeError"),
        ('{"a": 1}'.encode("utf-16"), "UnicodeDecodeError"),
        (b'{"a":' * 100_000, "RecursionError"),
        (b"[" * 100_000, "RecursionError"),
        (b'{"a": ' + b"9" * 5000 + b"}", "ValueError"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_bytes_that_the_parser_gives_up_on_are_an_error(data: bytes, kind: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_object(data, "x.json")
    assert (caught.value.found or "").startswith(f"{kind}: ")


@pytest.mark.parametrize(
    ("data", "found"),
    [(b"[]", "list"), (b'"a"', "str"), (b"1", "int"), (b"null", "NoneType"), (b"true", "bool")],
)
def test_a_value_that_is_no_object_is_an_error_that_names_its_type(data: bytes, found: str) -> None:
    with pytest.raises(JsonError) as caught:
        parse_object(data, "x.json")
    assert (caught.value.expected, caught.value.found) == ("{ … }", found)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(data=st.binary(max_size=30) | OBJECTS.map(lambda value: json.dumps(value).encode()[:-1]))
def test_bytes_that_are_no_object_give_a_json_error_and_nothing_else(data: bytes) -> None:
    try:
        whole = isinstance(json.loads(data.decode()), dict)
    except ValueError:
        whole = False
    if not whole:
        with pytest.raises(JsonError):
            parse_object(data, "x.json")


@pytest.mark.parametrize("data", [b'{"a": 1e999}', b'{"a": "\\ud800"}', b'{"\\udfff": 1}'])
def test_what_cannot_be_written_again_is_refused_when_it_is_read(data: bytes) -> None:
    with pytest.raises(JsonError):
        parse_object(data, "x.json")
