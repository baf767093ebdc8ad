from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glmquant.errors import IndexFileError, JsonError
from glmquant.index import INDEX_FILE, build_index, is_shard_name, parse_index
from tests.strategies import tensor_names

SHARDS = st.sampled_from(("model-00001-of-00002.safetensors", "mtp.safetensors", "ü x.safetensors"))


@settings(derandomize=True, deadline=None, max_examples=100)
@given(weight_map=st.dictionaries(tensor_names(), SHARDS, min_size=1), total=st.integers(0, 2**50))
def test_what_is_built_is_parsed_again_and_its_names_are_sorted(
    weight_map: dict[str, str], total: int
) -> None:
    data = build_index(weight_map, total)
    assert parse_index(data) == weight_map
    assert list(parse_index(data)) == sorted(weight_map)
    assert build_index(dict(reversed(list(weight_map.items()))), total) == data
    assert json.loads(data)["metadata"] == {"total_size": total}


def test_an_index_is_indented_json_with_a_final_newline() -> None:
    assert build_index({"b": "x.safetensors", "a": "y.safetensors"}, 7) == (
        b'{\n  "metadata": {\n    "total_size": 7\n  },\n'
        b'  "weight_map": {\n    "a": "y.safetensors",\n    "b": "x.safetensors"\n  }\n}\n'
    )


def test_an_index_with_a_byte_order_mark_and_other_keys_is_read() -> None:
    data = b'\xef\xbb\xbf{"weight_map": {"a": "x.safetensors"}, "metadata": null, "extra": []}'
    assert parse_index(data) == {"a": "x.safetensors"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{}", "NoneType"),
        ('{"weight_map": {}}', "dict"),
        ('{"weight_map": null}', "NoneType"),
        ('{"weight_map": []}', "list"),
        ('{"weight_map": ["a"]}', "['a']"),
        ('{"weight_map": "a"}', "'a'"),
        ('{"weight_map": 0}', "int"),
    ],
)
def test_an_index_without_a_weight_map_is_an_error(text: str, found: str) -> None:
    with pytest.raises(IndexFileError) as caught:
        parse_index(text.encode())
    assert caught.value.fields() == {
        "what": "the index has no weight map",
        "where": f"{INDEX_FILE}: weight_map",
        "expected": "tensor names and their shards",
        "found": found,
        "hint": "fetch that file again",
    }


NOT_SHARDS = [
    "../model.safetensors",
    "/etc/model.safetensors",
    "a/b.safetensors",
    "a\\b.safetensors",
    ".hidden.safetensors",
    ".safetensors",
    "model.bin",
    "model.safetensors.part",
    "MODEL.SAFETENSORS",
    "a\0.safetensors",
    "a\n.safetensors",
    "",
    None,
    5,
    ["x.safetensors"],
    {"x.safetensors": 1},
]


@pytest.mark.parametrize("shard", NOT_SHARDS, ids=ascii)
def test_a_shard_that_is_no_plain_file_name_is_an_error_that_names_its_tensor(
    shard: object,
) -> None:
    data = json.dumps({"weight_map": {"a": "x.safetensors", "b.weight": shard}}).encode()
    with pytest.raises(IndexFileError) as caught:
        parse_index(data, "other.json")
    assert (caught.value.where, caught.value.found) == ("other.json: b.weight", repr(shard))
    assert not is_shard_name(shard)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{",
        b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
        b'{"weight_map": {}, "weight_map": {"a": "x.safetensors"}}',
        b'{"weight_map":' * 100_000,
    ],
    ids=lambda data: repr(data)[:30],
)
def test_an_index_that_is_no_json_object_with_single_keys_is_an_error(data: bytes) -> None:
    with pytest.raises(JsonError) as caught:
        parse_index(data)
    assert caught.value.where == INDEX_FILE


def test_nesting_is_an_error_at_any_depth() -> None:
    for depth in (*range(850, 1000), 3_000, 9_000, 100_000):
        nested = "[" * depth + "]" * depth
        for text in ('{"weight_map": %s}', '{"weight_map": {"a": %s}}'):
            with pytest.raises((IndexFileError, JsonError)):
                parse_index((text % nested).encode())
