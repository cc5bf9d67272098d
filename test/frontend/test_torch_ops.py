"""The custom operators against naive references."""

import importlib
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qfuse.compiler import block_scaled, quantized_linear, torch_ops

FAST = settings(max_examples=25, deadline=None)


def naive_attention(q, k, v, position, scale, window):
    """Loops over heads and tokens in float64."""
    heads, tokens = q.shape[1], q.shape[2]
    group = heads // k.shape[1]
    out = torch.zeros(q.shape[0], tokens, heads, v.shape[-1], dtype=torch.float64)
    for b in range(q.shape[0]):
        for h in range(heads):
            for t in range(tokens):
                last = int(position[t])
                first = max(0, last - window + 1) if window > 0 else 0
                keys = k[b, h // group, first : last + 1].double()
                weights = (keys @ q[b, h, t].double() * scale).softmax(0)
                out[b, t, h] = weights @ v[b, h // group, first : last + 1].double()
    return out


@FAST
@given(
    batch=st.integers(1, 2),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    tokens=st.integers(0, 5),
    start=st.integers(0, 6),
    window=st.integers(0, 4),
    contiguous=st.booleans(),
)
def test_attention(batch, kv_heads, group, tokens, start, window, contiguous):
    generator = torch.Generator().manual_seed(tokens * 100 + start)
    width, capacity = 8, 12
    # as the model makes it: a transposed view, which a rotary embedding may have copied
    q = torch.randn(batch, tokens, kv_heads * group, width, generator=generator).transpose(1, 2)
    q = q.contiguous() if contiguous else q
    k, v = (torch.randn(batch, kv_heads, capacity, width, generator=generator) for _ in "kv")
    k[:, :, start + tokens :] = v[:, :, start + tokens :] = float("nan")  # never to be read
    position = torch.arange(start, start + tokens)
    out = torch.ops.qfuse.attention(q, k, v, position, 0.3, window)
    assert out.is_contiguous() and out.shape == (batch, tokens, kv_heads * group, width)
    expected = naive_attention(q, k, v, position, 0.3, window)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)


@FAST
@given(tokens=st.integers(0, 4), start=st.integers(0, 4))
def test_kv_update(tokens, start):
    cache, new = torch.randn(2, 3, 8, 4), torch.randn(2, 3, tokens, 4)
    position = torch.arange(start, start + tokens)
    before, expected = cache.clone(), cache.clone()
    expected[:, :, start : start + tokens] = new
    out = torch.ops.qfuse.kv_update(cache, new, position)
    assert torch.equal(out, expected)
    assert torch.equal(cache, before), "the operator is functional"
    if tokens:
        assert torch_ops.kv_update_(cache, new, position) is cache
        assert torch.equal(cache, expected)


@FAST
@given(
    n=st.integers(1, 9),
    k=st.integers(1, 11),
    rows=st.integers(0, 3),
    block=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    quantize_input=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    slab=st.sampled_from([1, 1 << 24]),
)
def test_quantized_linear(n, k, rows, block, quantize_input, bias, dtype, slab):
    """Element by element, as the definition says; in slabs of rows as in one piece."""
    generator = torch.Generator().manual_seed(n * 100 + k)
    x = torch.randn(2, rows, k, generator=generator).to(dtype)
    codes, scale = block_scaled.quantize_blocks(torch.randn(n, k, generator=generator), block)
    offset = torch.randn(n, generator=generator).to(dtype) if bias else None
    group = [1, block[1]] if quantize_input else []

    values = x.double()
    if quantize_input:
        for row in values.view(-1, k):
            for start in range(0, k, block[1]):
                part = row[start : start + block[1]]
                amax = part.abs().max().float()
                part.copy_((part.float() * (448 / amax)).to(torch.float8_e4m3fn).double())
                part.mul_((amax / 448).double())
    dense = torch.empty(n, k, dtype=torch.float64)
    for i in range(n):
        for j in range(k):
            dense[i, j] = codes[i, j].double() * scale[i // block[0], j // block[1]].double()
    expected = values @ dense.T + (0 if offset is None else offset.double())

    original, quantized_linear._SLAB_ELEMENTS = quantized_linear._SLAB_ELEMENTS, slab
    try:
        y = torch.ops.qfuse.quantized_linear(x, codes, scale, offset, list(block), group)
    finally:
        quantized_linear._SLAB_ELEMENTS = original
    assert y.dtype == dtype and y.shape == (2, rows, n)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(y.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_quantize_blocks_keeps_the_largest_value_exactly(dtype):
    x = torch.randn(5, 300)
    codes, scale = block_scaled.quantize_blocks(x, (1, 128), dtype)
    assert codes.dtype == dtype and scale.shape == (5, 3)
    back = block_scaled.dequantize_blocks(codes, scale, (1, 128))
    largest = x[:, :128].abs().argmax(1)
    rows = torch.arange(5)
    torch.testing.assert_close(back[rows, largest], x[rows, largest], rtol=1e-6, atol=0)


def test_quantize_blocks_at_the_edges():
    """A block of zeros has a finite scale; a NaN makes its own block NaN and no other."""
    x = torch.zeros(2, 256)
    x[1, 3] = float("nan")
    codes, scale = block_scaled.quantize_blocks(x, (1, 128))
    back = block_scaled.dequantize_blocks(codes, scale, (1, 128))
    assert (back[0] == 0).all() and (back[1, 128:] == 0).all()
    assert back[1, :128].isnan().all()


def test_shape_rules_agree_with_the_implementations():
    q, kv = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 16, 8)
    position = torch.arange(3)
    codes, scale = block_scaled.quantize_blocks(torch.randn(6, 10), (4, 4))
    calls = {
        "attention": (q, kv, kv, position, 1.0, 0),
        "kv_update": (kv, torch.randn(1, 2, 3, 8), position),
        "quantized_linear": (torch.randn(2, 10), codes, scale, None, [4, 4], [1, 4]),
    }
    for name, args in calls.items():
        # opcheck's schema test does arithmetic on its arguments, which FP8 does not have
        tests = ("test_faketensor",) + (() if name == "quantized_linear" else ("test_schema",))
        torch.library.opcheck(getattr(torch.ops.qfuse, name).default, args, test_utils=tests)


def test_importing_again_changes_nothing():
    """Also with the module forgotten and its first incarnation collected."""
    import gc

    del sys.modules["qfuse.compiler.torch_ops"]
    try:
        fresh = importlib.import_module("qfuse.compiler.torch_ops")
        importlib.reload(fresh)
    finally:
        sys.modules["qfuse.compiler.torch_ops"] = torch_ops
    gc.collect()
    assert (
        torch.ops.qfuse.kv_update(
            torch.zeros(1, 1, 2, 1), torch.ones(1, 1, 1, 1), torch.tensor([1])
        ).sum()
        == 1
    )


def test_torch_ops_does_not_import_mlir():
    import subprocess

    code = "import sys, qfuse.compiler.torch_ops; assert 'torch_mlir' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
