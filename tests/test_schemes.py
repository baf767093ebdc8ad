from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from glmquant.schemes import OutputTensor, Scheme, output_tensors
from glmquant.tensors import tensor_nbytes
from tests.strategies import DTYPES


def test_the_schemes_are_the_type_strings_that_every_engine_version_takes() -> None:
    assert [scheme.value for scheme in Scheme] == ["FLOAT", "W8A8_DYNAMIC"]


def test_a_quantized_linear_is_int8_with_a_scale_and_an_offset_for_each_row() -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    assert output_tensors(Scheme.W8A8_DYNAMIC, name, "BF16", (32, 16)) == (
        OutputTensor("model.layers.0.self_attn.q_proj.weight", "I8", (32, 16)),
        OutputTensor("model.layers.0.self_attn.q_proj.weight_scale", "F32", (32, 1)),
        OutputTensor("model.layers.0.self_attn.q_proj.weight_offset", "F32", (32, 1)),
    )


@settings(derandomize=True, deadline=None, max_examples=50)
@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(0, 99), max_size=3).map(tuple),
    name=st.text(min_size=1, max_size=9),
)
def test_a_float_tensor_keeps_name_dtype_and_shape(
    dtype: str, shape: tuple[int, ...], name: str
) -> None:
    assert output_tensors(Scheme.FLOAT, name, dtype, shape) == ((name, dtype, shape),)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(dtype=st.sampled_from(DTYPES), rows=st.integers(1, 999), columns=st.integers(1, 999))
def test_a_quantized_linear_takes_a_byte_an_element_and_eight_a_row(
    dtype: str, rows: int, columns: int
) -> None:
    outputs = output_tensors(Scheme.W8A8_DYNAMIC, "x.weight", dtype, (rows, columns))
    assert sum(tensor_nbytes(each.dtype, each.shape) for each in outputs) == rows * (columns + 8)
