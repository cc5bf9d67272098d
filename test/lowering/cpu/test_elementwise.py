"""Each element-wise operation against torch, special numbers included."""

import math

import pytest
import torch
from cpu_kernels import TESTED_LEVELS, TORCH, Tensor, kernel_text, plain, run, same_bits
from test_rowwise import ULP, activation_f64, random

from qfuse.dialects.arithmetic import ELEMENTWISE

levels = pytest.mark.parametrize("level", TESTED_LEVELS)
dtypes = pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])

UNARY = {
    "silu": lambda x: activation_f64("silu", x),
    "gelu": lambda x: activation_f64("gelu", x),
    "gelu_tanh": lambda x: activation_f64("gelu_tanh", x),
    "relu": lambda x: activation_f64("relu", x),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "neg": torch.neg,
    "square": torch.square,
    "clamp": lambda x: x.clamp(-1.5, 2.0),
    "cast": lambda x: x,
}
BINARY = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}
ATTRIBUTES = {"clamp": "low = -1.5 : f64, high = 2.0 : f64"}
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 100.0, -100.0, 6e-8, -6e-8]
"""The last are subnormal as f16."""

KEEPS_SIGN_OF_ZERO = ("neg", "tanh", "cast")
"""Of these the sign of zero says something; torch's relu and clamp take either zero."""


def test_all_are_here() -> None:
    assert {*UNARY, *BINARY} == set(ELEMENTWISE)


@levels
@dtypes
@pytest.mark.parametrize("op", UNARY)
def test_unary(level: str, dtype: str, op: str) -> None:
    """One rounding to the type; polynomials of f32 are within 1e-6 (test_math_functions.py)."""
    row = plain(-1, 77, dtype=dtype)
    text = kernel_text(op, [row], [row], ATTRIBUTES.get(op, ""))
    x = random(9, 77, dtype=dtype) * 6
    (got,) = run(text, level, [x], [row], 9)
    wanted = UNARY[op](x.double())
    overflow = wanted.abs() > torch.finfo(TORCH[dtype]).max
    assert bool((got.double()[overflow] == wanted[overflow].sign() * math.inf).all())
    got, wanted = got.double()[~overflow], wanted[~overflow]
    bound = wanted.abs() * (ULP[dtype] / 2 + 1e-6) + 1e-6
    assert bool(((got - wanted).abs() <= bound).all())


@levels
@dtypes
@pytest.mark.parametrize("op", UNARY)
def test_unary_of_special_numbers(level: str, dtype: str, op: str) -> None:
    """NaN stays, infinities go where the function does, and -0 where that is kept."""
    row = plain(-1, len(SPECIAL), dtype=dtype)
    text = kernel_text(op, [row], [row], ATTRIBUTES.get(op, ""))
    x = torch.tensor([SPECIAL]).to(TORCH[dtype])
    (got,) = run(text, level, [x], [row], 1)
    wanted = UNARY[op](x.double()).to(TORCH[dtype])
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.isinf(), wanted.isinf())
    finite = wanted.isfinite()
    torch.testing.assert_close(got[finite], wanted[finite], rtol=ULP[dtype], atol=1e-6)
    assert torch.equal(got[wanted.isinf()], wanted[wanted.isinf()])
    if op in KEEPS_SIGN_OF_ZERO:
        zero = x == 0
        assert torch.equal(got[zero].signbit(), wanted[zero].signbit())


@levels
@dtypes
@pytest.mark.parametrize("op", BINARY)
def test_binary_of_special_numbers(level: str, dtype: str, op: str) -> None:
    """f32 arithmetic rounded once, as torch's: the same bits, whichever NaN comes out."""
    count = len(SPECIAL)
    row = plain(-1, count, dtype=dtype)
    values = torch.tensor([SPECIAL]).to(TORCH[dtype])
    a, b = values.T.repeat(1, count).contiguous(), values.repeat(count, 1)
    (got,) = run(kernel_text(op, [row, row], [row]), level, [a, b], [row], count)
    wanted = BINARY[op](a.float(), b.float()).to(TORCH[dtype])
    assert torch.equal(got.isnan(), wanted.isnan())
    if dtype == "bf16" and level == "avx512":  # its conversion flushes subnormals (lanes.py)
        small = wanted.abs() < torch.finfo(torch.bfloat16).tiny
        got, wanted = got.masked_fill(small, 0.0), wanted.masked_fill(small, 0.0)
    assert same_bits(got.nan_to_num(7.0), wanted.nan_to_num(7.0))


@levels
@pytest.mark.parametrize("op", ["sub", "div"])
@pytest.mark.parametrize("other", [(77,), (-1, 1), (1,), ()])
def test_operands_keep_their_order(level: str, op: str, other: tuple[int, ...]) -> None:
    result, operand = plain(-1, 77), plain(*other, dtype="f32")
    a, b = random(5, 77), random(*(5 if d < 0 else d for d in other), dtype="f32", seed=1)
    for types, order in (([result, operand], 1), ([operand, result], -1)):
        (got,) = run(kernel_text(op, types, [result]), level, [a, b][::order], [result], 5)
        wanted: Tensor = BINARY[op](*[a.float(), b][::order]).bfloat16()
        assert same_bits(got, wanted)


@pytest.mark.parametrize("source", ["f32", "bf16", "f16"])
@dtypes
def test_cast_to_any_float(source: str, dtype: str) -> None:
    before, after = plain(-1, 77, dtype=source), plain(-1, 77, dtype=dtype)
    x = random(9, 77, dtype=source) * 1e5  # beyond f16
    (got,) = run(kernel_text("cast", [before], [after]), None, [x], [after], 9)
    assert same_bits(got, x.to(TORCH[dtype]))
