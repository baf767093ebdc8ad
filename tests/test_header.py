from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from glmquant.errors import HeaderError
from glmquant.header import MAX_HEADER_NBYTES, Header, build_header, read_header
from glmquant.tensors import TensorRef
from tests.builders import write_shard
from tests.strategies import tensor_lists

Tensors = Mapping[str, tuple[str, tuple[int, ...], bytes]]

FILE = "model-00001-of-00002.safetensors"
ENTRY: dict[str, Any] = {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}
VALID: Tensors = {
    "model.norm.weight": ("BF16", (3,), b"abcdef"),
    "bias": ("F32", (1,), b"ABCD"),
    "model.embed_tokens.weight": ("I8", (2, 2), b"wxyz"),
}


def read(data: bytes) -> Header:
    return read_header(FILE, len(data), lambda offset, nbytes: data[offset : offset + nbytes])


def write(tensors: Tensors) -> bytes:
    """A whole file by ``build_header``."""
    header, nbytes = build_header(
        (name, dtype, shape) for name, (dtype, shape, _) in tensors.items()
    )
    places = read(header + bytes(nbytes)).tensors
    return header + b"".join(tensors[ref.name][2] for ref in places)


def with_text(text: str | bytes, data: bytes = b"") -> bytes:
    """A file with this header."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw + data


def with_entries(nbytes: int, **entries: object) -> bytes:
    return with_text(json.dumps(entries), bytes(nbytes))


def fault(data: bytes) -> dict[str, str]:
    with pytest.raises(HeaderError) as caught:
        read(data)
    return caught.value.fields()


@settings(derandomize=True, deadline=None, max_examples=150)
@given(tensors=tensor_lists())
def test_a_built_file_is_byte_for_byte_what_the_safetensors_library_writes(
    tensors: Tensors, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shard") / FILE
    write_shard(path, tensors)
    assert write(tensors) == path.read_bytes()


@settings(derandomize=True, deadline=None, max_examples=150)
@given(tensors=tensor_lists())
def test_what_is_written_is_read_again(tensors: Tensors) -> None:
    data = write(tensors)
    header = read(data)
    found = {
        ref.name: (ref.dtype, ref.shape, data[ref.offset : ref.offset + ref.nbytes])
        for ref in header.tensors
    }
    assert found == tensors
    assert header.nbytes % 8 == 0


def test_a_reference_says_where_the_bytes_are() -> None:
    data = write(VALID)
    begin = len(data) - 14
    assert read(data) == Header(
        (
            TensorRef("bias", "F32", (1,), FILE, begin, 4),
            TensorRef("model.norm.weight", "BF16", (3,), FILE, begin + 4, 6),
            TensorRef("model.embed_tokens.weight", "I8", (2, 2), FILE, begin + 10, 4),
        ),
        begin,
    )


def test_a_file_without_tensors_and_one_with_an_empty_tensor_are_read() -> None:
    assert read(write({})).tensors == ()
    found = read(write({"none": ("F32", (0, 4), b""), "some": ("I8", (2,), b"ab")})).tensors
    assert [(ref.shape, ref.nbytes) for ref in found] == [((0, 4), 0), ((2,), 2)]


def test_tensors_in_any_order_of_bytes_without_metadata_are_read_as_by_the_library() -> None:
    entries = {"b": {"dtype": "I8", "shape": [4], "data_offsets": [12, 16]}, "a": ENTRY}
    data = with_text(json.dumps(entries), b"0123456789ABCDEF")
    found = [(ref.name, data[ref.offset : ref.offset + ref.nbytes]) for ref in read(data).tensors]
    assert found == [("a", b"0123456789AB"), ("b", b"CDEF")]
    library: list[tuple[str, Any]] = safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    assert {name: bytes(held["data"]) for name, held in library} == dict(found)


def test_a_file_cut_at_any_byte_is_truncated() -> None:
    data = write(VALID)
    assert [fault(data[:end])["where"] for end in range(len(data))] == [FILE] * len(data)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_file_too_short_or_too_long_says_how_long_it_should_be(change: int) -> None:
    data = write(VALID)
    assert fault((data + b"\0")[: len(data) + change]) == {
        "what": "a safetensors file is broken",
        "where": FILE,
        "expected": f"a file of {len(data)} bytes",
        "found": f"{len(data) + change} bytes",
        "hint": "fetch that file again: it is truncated or damaged",
    }


@pytest.mark.parametrize("length", [0, 1, MAX_HEADER_NBYTES + 1, 2**31, 2**63, 2**64 - 1], ids=hex)
def test_an_absurd_header_length_is_a_fault(length: int) -> None:
    found = fault(struct.pack("<Q", length) + b"{}" * 9)
    assert (found["where"], found["found"]) == (FILE, f"{length} bytes")


@pytest.mark.parametrize("length", [19, 1000, MAX_HEADER_NBYTES])
def test_a_header_longer_than_the_file_is_a_fault(length: int) -> None:
    found = fault(struct.pack("<Q", length) + b"{}" * 9)
    assert found["expected"] == f"a file of at least {length + 8} bytes"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("not JSON", "JSONDecodeError"),
        ("  ", "JSONDecodeError"),
        ('{"a": ', "JSONDecodeError"),
        ("{} {}", "JSONDecodeError"),
        ("[]", "list"),
        ("null", "NoneType"),
        ('{"a": NaN}', "NaN is not JSON"),
        ("[" * 100_000, "RecursionError"),
        ('{"a":' * 100_000, "RecursionError"),
        (b'{"\xff": 1}', "UnicodeDecodeError"),
        ("\0" * 20, "JSONDecodeError"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": {"dtype": "I8", "dtype": "I8"}}', "'dtype' stands twice"),
        ('{"a": ' + "9" * 5000 + "}", "ValueError"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_header_that_is_no_json_object_is_a_fault(text: str | bytes, found: str) -> None:
    fields = fault(with_text(text))
    assert (fields["where"], fields["expected"]) == (FILE, "a JSON header")
    assert found in fields["found"]


@pytest.mark.parametrize("key", ["dtype", "shape", "data_offsets"])
def test_nesting_is_a_fault_at_any_depth(key: str) -> None:
    text = json.dumps({"t": {**ENTRY, key: "@"}})
    for depth in (*range(850, 1000), 3_000, 9_000, 100_000):
        data = with_text(text.replace('"@"', "[" * depth + "]" * depth), bytes(12))
        assert fault(data)["what"] == "a safetensors file is broken"


@pytest.mark.parametrize(
    ("changes", "expected", "found"),
    [
        ({"dtype": "BF17"}, "a safetensors dtype", '"BF17"'),
        ({"dtype": None}, "a safetensors dtype", "null"),
        ({"dtype": ["BF16"]}, "a safetensors dtype", '["BF16"]'),
        ({"shape": [2, 3.0]}, "at most 8 whole numbers", "[2, 3.0]"),
        ({"shape": [-2, -3]}, "at most 8 whole numbers", "[-2, -3]"),
        ({"shape": [6, True]}, "at most 8 whole numbers", "[6, true]"),
        ({"shape": [2**63, 0]}, "at most 8 whole numbers", f"[{2**63}, 0]"),
        ({"data_offsets": [-12, 0]}, "data_offsets [begin, end]", "[-12, 0]"),
        ({"data_offsets": [0, 12.0]}, "data_offsets [begin, end]", "[0, 12.0]"),
        ({"data_offsets": [False, 12]}, "data_offsets [begin, end]", "[false, 12]"),
        ({"data_offsets": [0]}, "data_offsets [begin, end]", "[0]"),
        ({"data_offsets": [0, 6, 12]}, "data_offsets [begin, end]", "[0, 6, 12]"),
        ({"data_offsets": [0, 2**64]}, "data_offsets [begin, end]", f"[0, {2**64}]"),
        ({"data_offsets": [0, 11]}, "12 bytes for BF16 [2, 3]", "11 bytes"),
        ({"data_offsets": [12, 0]}, "12 bytes for BF16 [2, 3]", "-12 bytes"),
        ({"shape": [2**62, 2**62]}, f"{2**125} bytes for BF16 [{2**62}, {2**62}]", "12 bytes"),
        ({"dtype": "F4", "shape": [25]}, "13 bytes for F4 [25]", "12 bytes"),
        ({"dtype": "F4", "shape": [23]}, "12 bytes for F4 [23]", "12 bytes"),
        ({"data_offsets": [4, 16]}, "data that begin at byte 83", "a gap: they begin at byte 87"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_entry_is_a_fault_that_names_the_tensor(
    changes: dict[str, object], expected: str, found: str
) -> None:
    fields = fault(with_text(json.dumps({"t.weight": ENTRY | changes}), bytes(12)))
    begin = 8 + len(json.dumps({"t.weight": ENTRY | changes}))
    expected = expected.replace("byte 83", f"byte {begin}")
    found = found.replace("byte 87", f"byte {begin + 4}")
    assert (fields["where"], fields["expected"], fields["found"]) == (
        f"{FILE}: t.weight",
        expected,
        found,
    )


@pytest.mark.parametrize(
    "entry",
    [None, [], {}, {"dtype": "I8", "shape": [12]}, {**ENTRY, "checksum": 1}],
    ids=str,
)
def test_an_entry_without_exactly_the_three_keys_is_a_fault(entry: object) -> None:
    fields = fault(with_entries(12, **{"t.weight": entry}))
    assert fields["where"] == f"{FILE}: t.weight"
    assert fields["expected"] == "dtype, shape and data_offsets"
    assert fields["found"] == json.dumps(entry)


@pytest.mark.parametrize(("offsets", "kind"), [([8, 20], "overlap"), ([16, 28], "a gap")])
def test_an_overlap_and_a_gap_name_the_later_tensor(offsets: list[int], kind: str) -> None:
    entries = {"first": ENTRY, "later": {**ENTRY, "data_offsets": offsets}}
    fields = fault(with_entries(offsets[1], **entries))
    begin = 8 + len(json.dumps(entries))
    assert (fields["where"], fields["expected"], fields["found"]) == (
        f"{FILE}: later",
        f"data that begin at byte {begin + 12}",
        f"{kind}: they begin at byte {begin + offsets[0]}",
    )


def accepted_or_fault(data: bytes) -> None:
    """Whatever is accepted tiles the file; nothing but a HeaderError comes out."""
    try:
        header = read(data)
    except HeaderError as error:
        assert (error.where or "").startswith(FILE)
        return
    position = header.nbytes
    for ref in header.tensors:
        assert ref.offset == position
        position += ref.nbytes
    assert position == len(data)


@settings(derandomize=True, deadline=None, max_examples=600)
@given(data=st.data())
def test_damaged_bytes_give_a_header_error_or_a_header_that_tiles_the_file(
    data: st.DataObject,
) -> None:
    mutated = bytearray(write(VALID))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        end = data.draw(st.sampled_from((at, at + 1, at + 8, len(mutated))))
        mutated[at:end] = data.draw(st.binary(max_size=9)) or b"\0"
    accepted_or_fault(bytes(mutated))


SCALARS = st.sampled_from((None, True, 0, 1, 6, 12, -1, -0.0, 1.5, 10**400, "BF16", "F4", "ü"))
KEYS = st.sampled_from((*ENTRY, "t"))
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=6,
)
VALUES = st.fixed_dictionaries(dict.fromkeys(ENTRY, JSON))


@settings(derandomize=True, deadline=None, max_examples=300)
@given(values=VALUES, whole=JSON, nbytes=st.integers(0, 12))
def test_any_json_in_an_entry_gives_a_header_error_or_a_header_that_tiles_the_file(
    values: dict[str, object], whole: object, nbytes: int
) -> None:
    accepted_or_fault(with_entries(nbytes, t=whole))
    accepted_or_fault(with_entries(nbytes, __metadata__=whole, t=values))
    for key, value in values.items():
        accepted_or_fault(with_entries(12, t={**ENTRY, key: value}))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_give_a_header_error_or_a_header_that_tiles_the_file(data: bytes) -> None:
    accepted_or_fault(data)
    accepted_or_fault(with_text(data))


def test_building_twice_in_another_order_gives_the_same_bytes() -> None:
    assert write(VALID) == write(dict(reversed(list(VALID.items()))))


def test_a_shape_of_very_many_dimensions_is_refused_at_once() -> None:
    fields = {"a": {"dtype": "F32", "shape": [2**62 + 1] * 100_000, "data_offsets": [0, 4]}}
    text = json.dumps(fields).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(4)
    with pytest.raises(HeaderError):
        read(data)


@pytest.mark.parametrize("metadata", [{"a": 1}, [], "text", 0, {"a": {"b": "c"}}])
def test_metadata_that_are_no_texts_are_refused_as_by_the_library(metadata: object) -> None:
    data = with_entries(12, __metadata__=metadata, t=ENTRY)
    with pytest.raises(safetensors.SafetensorError):
        safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    with pytest.raises(HeaderError):
        read(data)
