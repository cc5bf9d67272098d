"""Products of weights of every scheme, or of none, by every kind of x, against f64."""

import os
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from cpu_kernels import (
    TESTED_LEVELS,
    TORCH,
    Tensor,
    group_text,
    matmul_text,
    plain,
    run,
    same_bits,
)
from products import CASES, RESULT, WEIGHTS, XS, N, columns, joined_text
from schemes import Operand, operand, plain_weight, plain_x

from qfuse.lowering.cpu.weights import pack_experts, pack_weight

levels = pytest.mark.parametrize("level", TESTED_LEVELS)
ROWS = (0, 1, 2, 8, 9, 17)
MOST = max(ROWS)


def check(got: Tensor, x: Operand, w: Operand, m: int) -> None:
    """`got` is x @ w.T as accurate as f32 accumulation has to be.

    A chain has at most two roundings for each column (bf16 dot products round twice per pair) and
    a few for each run, every one of at most the sum of magnitudes times 2^-24.
    """
    exact = x.values[:m] @ w.values.T
    magnitude = x.magnitudes[:m] @ w.magnitudes.T
    k = x.type.shape[1]
    bound = magnitude * (2 * k + 64) * 2.0**-24 + 1e-30
    assert bool(((got.double() - exact).abs() <= bound).all())
    # That bound is for the worst case; errors of many roundings add up as their root does.
    assert bool(((got.double() - exact).abs() <= magnitude * k**0.5 * 2.0**-22 + 1e-30).all())


def joined(
    level: str, x: Operand, w: Operand, bias: Tensor, residual: Tensor, rows: Sequence[int]
) -> dict[int, Tensor]:
    """What the kernel of products.py makes of the first rows of x and of the residual."""
    text, packed = joined_text(x, w), w.packed()
    return {
        m: run(text, level, [x.rows(m), packed, bias, residual[:m]], [RESULT], m, threads=2)[0]
        for m in rows
    }


def product(level: str, x: Operand, w: Operand, rows: tuple[int, ...]) -> dict[int, Tensor]:
    result = plain(-1, w.type.shape[0], dtype="f32")
    text = matmul_text(x.type, w.type, [result])
    packed = w.packed()
    return {m: run(text, level, [x.rows(m), packed], [result], m, threads=2)[0] for m in rows}


@levels
@pytest.mark.parametrize(("w_name", "x_name"), CASES)
def test_product(level: str, w_name: str, x_name: str) -> None:
    k = columns(w_name)
    w, x = WEIGHTS[w_name](N, k), XS[x_name](MOST, k)
    zeros = torch.zeros(MOST, N).bfloat16()
    outputs = joined(level, x, w, zeros[0], zeros, ROWS)
    for m in ROWS:
        check(outputs[m], x, w, m)
        # An element is the same bits however many rows are computed with it.
        assert same_bits(outputs[m], outputs[MOST][:m])


@levels
@pytest.mark.parametrize("w_name", WEIGHTS)
def test_every_number_of_rows(level: str, w_name: str) -> None:
    """Prefill and decode agree to the last bit, bias and all, whichever entry serves them."""
    most, k = 40, columns(w_name)
    w, x = WEIGHTS[w_name](N, k), XS[dict(CASES)[w_name]](most, k)
    magnitude = float((x.magnitudes @ w.magnitudes.T).mean())
    more = torch.randn(most, N, generator=torch.manual_seed(3)) * magnitude
    bias, residual = more[0].bfloat16(), more.flip(0).bfloat16()
    outputs = joined(level, x, w, bias, residual, range(1, most + 1))
    prefill = outputs[most]
    check(prefill.double() - bias - residual, x, w, most)  # rounded once more by each
    for m in range(1, most):
        assert same_bits(outputs[m], prefill[:m]), m


SMALL = [
    ("e4m3 by channel", "e4m3 by token"),
    ("i8 by channel", "i8 by token"),
    ("i8 by channel", "bf16"),
    ("int4 by channel", "i8 by token"),
    ("int4 per 32 with zeros", "q8_1"),
    ("int4 per 64 of bf16", "f16"),
    ("bf16", "bf16"),
    ("f16", "f16"),
    ("f32", "f32"),
]


SHAPES = [(1, 2), (5, 34), (65, 100)]
PAIRWISE = [
    (level, *products, *shape)
    for i, products in enumerate(SMALL)
    for j, shape in enumerate(SHAPES)
    for h, level in enumerate(TESTED_LEVELS)
    if os.environ.get("QFUSE_EXHAUSTIVE") or (i + j + h) % len(TESTED_LEVELS) == 0
]
"""Each product meets each shape, each level each product, and each level each shape.

What goes wrong with few columns is masks and tiles, which depend on the shape and the level, or
padding of K, which depends on the shape and the product.
"""


@pytest.mark.parametrize(("level", "w_name", "x_name", "n", "k"), PAIRWISE)
def test_small(level: str, w_name: str, x_name: str, n: int, k: int) -> None:
    w, x = WEIGHTS[w_name](n, k), XS[x_name](9, k)
    for m, got in product(level, x, w, (1, 3, 9)).items():
        check(got, x, w, m)


EXACT = [("i8 by channel", 4000), ("int4 by channel", 1030), ("int4 by channel with zeros", 300)]


@levels
@pytest.mark.parametrize(("name", "k"), EXACT)
def test_whole_sums_are_exact(level: str, name: str, k: int) -> None:
    """One scale for all of K: the sum is rounded once, when it becomes f32, and scaled once."""
    w, x = WEIGHTS[name](70, k), XS["i8 by token"](9, k)
    outputs = product(level, x, w, (1, 9))
    codes = x.components[0].double() @ (w.values / w.components[1].double()).round().T
    scale = x.components[1] * w.components[1].T
    for m, got in outputs.items():
        assert torch.equal(got, codes[:m].float() * scale[:m])


EXTREMES = ("bf16", "f32", "e4m3 by token", "i8 by token")


@levels
@pytest.mark.parametrize("name", ["e4m3 by channel", "e5m2 by channel", "i8 by channel", "mxfp4"])
@pytest.mark.parametrize("x_name", EXTREMES)
def test_every_code(level: str, name: str, x_name: str) -> None:
    """Row r of the weight has the code r alone: subnormals and -128 count, NaN spoils its row."""
    w = WEIGHTS[name](256, 64)
    codes = torch.zeros_like(w.components[0]).view(torch.uint8)
    codes[:, 5] = torch.arange(256)
    ones = torch.ones_like(w.components[1], dtype=torch.float32).to(w.components[1].dtype)
    w = operand(w.type, (codes.view(w.components[0].dtype), ones))
    x = XS[x_name](9, 64)
    if len(x.components) == 2:
        static = replace(x.type, shape=(9, 64))
        x = operand(static, (x.components[0].fill_(1), torch.ones(9, 1)), dynamic=True)
    else:
        x = replace(x, values=torch.ones(9, 64).double(), components=(x.components[0].fill_(1),))
    wanted = (x.values @ w.values.nan_to_num().T).float()
    wanted[:, w.values.isnan().any(1)] = torch.nan
    infinite = w.values.isinf().any(1)
    wanted[:, infinite] = w.values[infinite].sum(1).float()
    for m, got in product(level, x, w, (1, 9)).items():
        assert torch.equal(got.isnan(), wanted[:m].isnan())
        assert torch.equal(got.nan_to_num(), wanted[:m].nan_to_num())


@levels
@pytest.mark.parametrize("name", ["mxfp4", "e4m3 per 128 of e8m0", "e4m3 blocks of e8m0"])
def test_every_power_of_two(level: str, name: str) -> None:
    """From 2^-127, a subnormal, to 2^127; 255 is NaN."""
    w = WEIGHTS[name](256, 128)
    codes, scale = (c.view(torch.uint8) for c in w.components)
    bits = torch.arange(256) if len(scale) == 256 else torch.tensor([0, 255])
    scale[:] = bits[:, None]
    codes[:] = 0x22 if name == "mxfp4" else 0x38  # ones
    w = operand(w.type, w.components)
    x = plain_x(9, 128, "f32")
    x = replace(x, components=(torch.zeros(9, 128),))
    x.components[0][:, 3] = 1.0
    wanted = w.values[:, 3].float()
    for m, got in product(level, x, w, (1, 9)).items():
        assert same_bits(got.nan_to_num(7.0), wanted.nan_to_num(7.0).expand(m, -1).contiguous())


@levels
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
@pytest.mark.parametrize("x_name", ["bf16", "f32"])
def test_every_unquantized_value(level: str, dtype: str, x_name: str) -> None:
    """All 65536 patterns, one a row; vdpbf16ps takes subnormals of bf16 for zeros."""
    bits = torch.arange(1 << 16).to(torch.int32).to(torch.int16)
    values = bits.view({"bf16": torch.bfloat16, "f16": torch.float16}[dtype])
    w = plain_weight(1 << 16, 2, dtype)
    w.components[0].copy_(torch.stack([torch.zeros_like(values), values], 1))
    x = replace(XS[x_name](9, 2), components=(torch.tensor([[0.0, 1.0]] * 9).to(TORCH[x_name]),))
    wanted = values.float()
    if level == "avx512" and dtype == x_name == "bf16":
        wanted[wanted.abs() < 2.0**-126] = 0.0
    for m, got in product(level, x, w, (1, 9)).items():
        assert torch.equal(got.isnan(), wanted.isnan().expand(m, -1))
        assert torch.equal(got.nan_to_num(7.0), wanted.nan_to_num(7.0).expand(m, -1))


JOINED = [
    ("e4m3 by channel", "e4m3 by token"),
    ("i8 per 128", "i8 by token"),
    ("q8_0", "q8_1"),
    ("int4 per 32 with zeros", "bf16"),
    ("int4 by channel with zeros", "i8 by token"),
    ("q4_k", "q8_1"),
    ("q6_k", "bf16"),
    ("mxfp4", "q8_1"),
    ("bf16", "bf16"),
    ("f32", "f32"),
]


@levels
@pytest.mark.parametrize(("w_name", "x_name"), JOINED)
def test_joined_parts(level: str, w_name: str, x_name: str) -> None:
    """Two weights joined, of twice the memory of one: the bits of two products, for every M."""
    n, k = 100, 256
    weights = [WEIGHTS[w_name](n, k, seed=seed) for seed in (1, 2)]
    x = XS[x_name](MOST, k)
    block, packing = weights[0].packing
    rows = -(-n // block[0]) * block[0] + n
    result = plain(-1, n, dtype="f32")
    w_type = replace(weights[0].type, shape=(rows, k))
    yields = ["%acc1", "%acc0"]
    text = matmul_text(x.type, w_type, [result] * 2, yields=yields, parts=[n, n])
    packed = pack_weight([w.components for w in weights], block, packing)
    for joined, *parts in zip(packed, *(w.packed() for w in weights), strict=True):
        assert joined.numel() == sum(p.numel() for p in parts)
    for m in (1, 4, 9):
        up, gate = run(text, level, [x.rows(m), packed], [result] * 2, m)
        for got, w in ((gate, weights[0]), (up, weights[1])):
            assert same_bits(got, product(level, x, w, (m,))[m])


EXPERTS = [
    ("e4m3 by channel", "e4m3 by token"),
    ("i8 by channel", "i8 by token"),
    ("int4 per 32 with zeros", "bf16"),
    ("q4_k", "q8_1"),
    ("mxfp4", "bf16"),
    ("bf16", "bf16"),
    ("f16", "f16"),
    ("f32", "f32"),
]


@levels
@pytest.mark.parametrize(("w_name", "x_name"), EXPERTS)
def test_experts(level: str, w_name: str, x_name: str) -> None:
    """Rows of experts have the bits of products by the weight of each; one expert has no row."""
    # Unquantized parts may begin anywhere: they are packed apart.
    unquantized = w_name in ("bf16", "f16", "f32")
    n, k, counts = 144 if unquantized else 128, 256, (1, 0, 5, 11)
    each = [WEIGHTS[w_name](n, k, seed=e) for e in range(len(counts))]
    x = XS[x_name](sum(counts), k)
    tensors = (torch.stack(c) for c in zip(*(w.components for w in each), strict=True))
    codes, scale, zero = (*tensors, None, None)[:3]
    rows = [n // 2, n // 2] if unquantized else []
    packed = pack_experts(codes, scale, *each[0].packing, zero, rows=rows)
    result = plain(-1, n // 2, dtype="f32")
    w_type = replace(each[0].type, shape=(len(counts), n, k))
    halves = [n // 2, n // 2]
    text = group_text(x.type, w_type, [result] * 2, yields=["%acc0", "%acc1"], parts=halves)
    ends = torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
    args = [x.components, packed, ends]
    got = torch.cat(run(text, level, args, [result] * 2, sum(counts), threads=2), 1)
    for e, w in enumerate(each):
        begin, end = int(ends[e]), int(ends[e + 1])
        own = replace(x, components=tuple(c[begin:end] for c in x.components))
        wanted = product(level, own, w, (end - begin,))[end - begin]
        assert same_bits(got[begin:end], wanted)
