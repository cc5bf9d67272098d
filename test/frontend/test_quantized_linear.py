"""`qfuse::quantized_linear` for every scheme, number by number as `#qfuse.scheme` defines it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qfuse.compiler import block_scaled, packed_weights
from qfuse.compiler.quantized_linear import through_quantization

FAST = settings(max_examples=25, deadline=None)
E4M3, E8M0 = torch.float8_e4m3fn, torch.float8_e8m0fnu


def naive_input(x, kind, group, dtype, given_scale):
    """The values of the quantized rows of x, one number at a time, in float64."""
    limit = 448.0 if dtype == E4M3 else 127.0
    values = torch.empty_like(x, dtype=torch.float64)
    whole = max(float(x.abs().max()), 1e-10) if x.numel() else 1e-10
    for row, out in zip(x, values, strict=True):
        for start in range(0, len(row), group):
            part = row[start : start + group]
            amax = np.float32(max(float(part.abs().max()), 1e-10))
            step = amax / np.float32(limit)
            if kind == "e8m0":
                step = np.float32(2.0 ** math.ceil(math.log2(step)))
            elif kind == "tensor":
                step = np.float32(whole) / np.float32(limit)
            elif kind == "static":
                step = np.float32(given_scale)
            for i, v in enumerate(part.tolist()):
                if kind in ("dynamic", "q8_1"):
                    exact = np.float32(v) * (np.float32(limit) / amax)
                else:
                    exact = np.float32(v) / step
                exact = min(max(float(exact), -limit), limit)
                if dtype == E4M3:
                    code = float(torch.tensor(exact).to(E4M3))
                else:
                    code = float(np.rint(np.float32(exact)))
                scale = float(np.float16(step)) if kind == "q8_1" else float(step)
                out[start + i] = code * scale
    return values


@FAST
@given(
    kind=st.sampled_from(["dynamic", "e8m0", "q8_1", "tensor", "static"]),
    rows=st.integers(0, 3),
    columns=st.integers(1, 70),
    group=st.sampled_from([7, 32, 200]),
    dtype=st.sampled_from([E4M3, torch.int8]),
    seed=st.integers(0, 99),
    size=st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_inputs(kind, rows, columns, group, dtype, seed, size):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * size
    group = {"q8_1": 32, "tensor": columns, "static": columns}.get(kind, group)
    scale = torch.tensor([0.37])
    got = through_quantization(x, [1, group], kind, dtype, scale)
    expected = naive_input(x, kind, group, dtype, 0.37)
    # one rounding, of the product of code and scale
    torch.testing.assert_close(got.double(), expected, rtol=2**-23, atol=0)


def weights(packing, n, k, block, zero, generator):
    """Random stored tensors of a packing, and their values in float64."""
    blocks = (n, -(-k // block))
    scale = torch.rand(blocks, generator=generator).bfloat16() + 0.5
    spread = scale.double().repeat_interleave(block, 1)[:, :k]
    zeros = torch.randint(0, 16, blocks, generator=generator, dtype=torch.int8) if zero else None
    if packing == "none":
        codes = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
        return codes, scale, None, codes.double() * spread
    codes = torch.randint(0, 16, (n, k), generator=generator)
    packed = packed_weights.pack_nibbles(codes)
    if packing == "fp4":
        table = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
        scale = torch.tensor([2.0**-3, 1.0, 2.0**5])[
            torch.randint(0, 3, blocks, generator=generator)
        ]
        values = torch.tensor(table, dtype=torch.float64)[codes]
        return packed, scale.to(E8M0), None, values * scale.double().repeat_interleave(block, 1)
    if zeros is None:
        return packed, scale, None, (codes.double() - 8) * spread
    offset = zeros.double().repeat_interleave(block, 1)[:, :k]
    return packed, scale, zeros, (codes.double() - offset) * spread


@FAST
@given(
    packing=st.sampled_from(["none", "int4", "fp4"]),
    n=st.integers(1, 7),
    halves=st.integers(1, 40),
    block=st.sampled_from([32, 64]),
    zero=st.booleans(),
    kind=st.sampled_from([None, "dynamic", "q8_1", "tensor", "static"]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_layers(packing, n, halves, block, zero, kind, bias, seed):
    """Any weight beside any input, against products in float64."""
    generator = torch.Generator().manual_seed(seed)
    k = 2 * halves if packing != "fp4" else 32 * -(-halves // 16)
    block = 32 if packing == "fp4" else block
    zero = zero and packing == "int4"
    weight, scale, zeros, values = weights(packing, n, k, block, zero, generator)
    x = torch.randn(2, 3, k, generator=generator)
    offset = torch.randn(n, generator=generator) if bias else None
    group = {None: [], "dynamic": [1, block], "q8_1": [1, 32]}.get(kind, [1, k])
    given_scale = torch.tensor([0.02]) if kind == "static" else None
    y = torch.ops.qfuse.quantized_linear(
        x, weight, scale, offset, [1, block], group, packing, kind or "dynamic", zeros, given_scale
    )
    rows = x.view(-1, k).double()
    if kind is not None:
        rows = naive_input(x.view(-1, k), kind, group[1], torch.int8, 0.02)
    expected = (rows @ values.T).view(2, 3, n) + (0 if offset is None else offset.double())
    # f32 sums of up to 80 products against f64
    bound = float((rows.abs() @ values.abs().T).max()) * 1e-6
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=bound)


def test_nibbles_are_in_the_order_that_the_scheme_draws():
    codes = torch.tensor([[1, 2, 3, 15]])
    packed = packed_weights.pack_nibbles(codes)
    assert packed.view(torch.uint8).tolist() == [[0x21, 0xF3]]
    assert torch.equal(packed_weights.unpack_nibbles(packed), codes.to(torch.uint8))


def test_scales_of_powers_of_two_are_the_next_not_smaller():
    x = torch.tensor([[448.0, 449.0, 447.0, 224.0]])
    _, scale = block_scaled.quantize_blocks(x, (1, 1), E4M3, E8M0)
    assert scale.float().tolist() == [[1.0, 2.0, 1.0, 0.5]]


@pytest.mark.parametrize("dtype", [E4M3, torch.int8])
def test_nan_makes_its_block_nan_and_no_other(dtype):
    x = torch.ones(1, 64)
    x[0, 3] = float("nan")
    for kind in ("dynamic", "q8_1", "e8m0"):
        values = through_quantization(x, [1, 32], kind, dtype)
        assert values[0, :32].isnan().all() and values[0, 32:].isfinite().all(), kind
    assert through_quantization(x, [1, 64], "tensor", dtype).isnan().all()


def test_a_tensor_of_no_elements_has_the_smallest_scale():
    scale = block_scaled.tensor_scale(torch.empty(0, 8), torch.int8)
    assert scale.tolist() == [np.float32(1e-10) / np.float32(127)]


def test_unknown_names_are_refused():
    x, weight, scale = torch.ones(1, 2), torch.ones(1, 2, dtype=torch.int8), torch.ones(1, 1)
    linear = torch.ops.qfuse.quantized_linear
    with pytest.raises(ValueError, match="packing 'int3' is not one of none, int4"):
        packed_weights.dequantize_weight(weight, scale, [1, 2], "int3")
    with pytest.raises(ValueError, match="input_format 'fp3' is not one of dynamic, e8m0"):
        linear(x, weight, scale, None, [1, 2], [1, 2], "none", "fp3")
    with pytest.raises(ValueError, match="needs an input_scale"):
        linear(x, weight, scale, None, [1, 2], [1, 2], "none", "static")
