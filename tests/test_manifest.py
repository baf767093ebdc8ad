from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmquant.errors import JsonError
from glmquant.manifest import (
    ARITHMETIC,
    TensorRecord,
    encode_manifest,
    parse_manifest,
    record_from_json,
)
from glmquant.schemes import Scheme
from tests.strategies import tensor_names

DIGESTS = st.text("0123456789abcdef", min_size=32, max_size=32)
FIGURES = st.none() | st.floats(0, 400, allow_nan=False)


@st.composite
def record_lists(draw: st.DrawFn) -> list[TensorRecord]:
    """Records with distinct names."""
    return [
        TensorRecord(
            name,
            draw(st.sampled_from(Scheme)).value,
            draw(tensor_names()),
            draw(DIGESTS),
            draw(DIGESTS),
            draw(FIGURES),
            draw(FIGURES),
        )
        for name in draw(st.lists(tensor_names(), max_size=5, unique=True))
    ]


FIELDS = st.dictionaries(
    st.text(max_size=5).filter(lambda key: key not in ("format", "tensors")),
    st.integers() | st.text(max_size=5) | st.just({}) | st.just({"a": ["}"]}),
    max_size=4,
)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(fields=FIELDS, records=record_lists())
def test_what_is_encoded_is_parsed_again(
    fields: dict[str, Any], records: list[TensorRecord]
) -> None:
    manifest = parse_manifest(encode_manifest(fields, records))
    tensors = manifest.pop("tensors")
    assert manifest == {"format": 1, **fields}
    assert list(tensors) == sorted(record.name for record in records)
    found = {name: record_from_json(name, entry) for name, entry in tensors.items()}
    assert found == {record.name: record for record in records}


@settings(derandomize=True, deadline=None, max_examples=50)
@given(fields=FIELDS, records=record_lists())
def test_the_order_of_the_records_leaves_no_trace(
    fields: dict[str, Any], records: list[TensorRecord]
) -> None:
    assert encode_manifest(fields, records) == encode_manifest(fields, reversed(records))


def test_the_head_is_indented_and_each_tensor_is_one_line() -> None:
    records = [
        TensorRecord("b.weight_scale", "W8A8_DYNAMIC", "b.weight", "00", "22"),
        TensorRecord("b.weight", "W8A8_DYNAMIC", "b.weight", "00", "11", 41.125, 0.0625),
        TensorRecord("a", "FLOAT", "a", "33", "33"),
    ]
    assert encode_manifest({"glmquant": "1.0", "side_files": {}}, records).decode() == (
        "{\n"
        ' "format": 1,\n'
        ' "glmquant": "1.0",\n'
        ' "side_files": {},\n'
        ' "tensors": {\n'
        '  "a": {"scheme": "FLOAT", "sources": ["a"], "source_xxh3_128": "33", '
        '"xxh3_128": "33"},\n'
        '  "b.weight": {"scheme": "W8A8_DYNAMIC", "sources": ["b.weight"], '
        '"source_xxh3_128": "00", "xxh3_128": "11", "sqnr_db": 41.125, "max_error": 0.0625},\n'
        '  "b.weight_scale": {"scheme": "W8A8_DYNAMIC", "sources": ["b.weight"], '
        '"source_xxh3_128": "00", "xxh3_128": "22"}\n'
        " }\n"
        "}\n"
    )


def test_a_weight_that_lost_nothing_has_an_error_but_no_ratio() -> None:
    record = TensorRecord("w", "W8A8_DYNAMIC", "w", "0", "1", None, 0.0)
    entry = json.loads(f"{{{record.json_line()}}}")["w"]
    assert entry["sqnr_db"] is None
    assert record_from_json("w", entry) == record


@given(name=tensor_names(), source=tensor_names(), sqnr=st.floats(-50, 200) | st.none())
def test_a_record_survives_its_line(name: str, source: str, sqnr: float | None) -> None:
    record = TensorRecord(name, "W8A8_DYNAMIC", source, "0a", "1b", sqnr, 1e-7)
    ((key, entry),) = json.loads(f"{{{record.json_line()}}}").items()
    assert record_from_json(key, entry) == record


def test_a_manifest_without_tensors_is_json_too() -> None:
    assert json.loads(encode_manifest({}, [])) == {"format": 1, "tensors": {}}


@pytest.mark.parametrize("key", ["scheme", "sources", "source_xxh3_128", "xxh3_128"])
def test_an_entry_that_lacks_a_key_is_an_error_that_names_it(key: str) -> None:
    entry = json.loads(f"{{{TensorRecord('w', 'FLOAT', 'w', '00', '11').json_line()}}}")["w"]
    del entry[key]
    with pytest.raises(JsonError) as caught:
        record_from_json("w", entry)
    assert (caught.value.where, caught.value.found) == ("w", f"KeyError: {key!r}")


@pytest.mark.parametrize("entry", [None, 7, "text", [], {"sources": []}, {"sources": ["a", "b"]}])
def test_an_entry_of_another_make_is_an_error_too(entry: object) -> None:
    with pytest.raises(JsonError):
        record_from_json("w", entry)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"format": 1, "format": 1}'])
def test_a_manifest_that_is_no_json_object_is_an_error_with_its_name(data: bytes) -> None:
    with pytest.raises(JsonError) as caught:
        parse_manifest(data)
    assert caught.value.where == "glmquant_manifest.json"


def test_each_scheme_that_rounds_states_its_arithmetic() -> None:
    plain = {scheme.value for scheme in Scheme if scheme is not Scheme.FLOAT}
    assert set(ARITHMETIC) == plain | {f"{scheme}, scale mse" for scheme in plain}
