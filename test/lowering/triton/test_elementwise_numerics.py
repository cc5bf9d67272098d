"""Each element-wise operation as a GPU kernel and in an epilogue: on the interpreter, compiled."""

import math

import numpy as np
import pytest
from gpu_kernels import (
    Array,
    assert_close,
    kernel_text,
    lowered,
    matmul_text,
    plain,
    product,
    quantized,
    random,
    run,
)
from test_rows_numerics import ACTIVATIONS, rounded

from qfuse.dialects.arithmetic import ELEMENTWISE
from qfuse.lowering.triton.gpu import GPUS
from qfuse.lowering.triton.interpreter.types import DTYPES

targets = pytest.mark.parametrize("target", ["cuda:sm_90", "hip:gfx942"])

UNARY = {
    **ACTIVATIONS,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "exp": np.exp,
    "neg": np.negative,
    "square": np.square,
    "clamp": lambda x: np.clip(x, -1.5, 2.0),
    "cast": lambda x: x,
}
BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide}
ATTRIBUTES = {"clamp": "low = -1.5 : f64, high = 2.0 : f64"}
SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 100.0, -100.0]


def test_all_are_here() -> None:
    assert {*UNARY, *BINARY} == set(ELEMENTWISE)


def text_of(op: str, dtype: str, width: int) -> str:
    row = plain(-1, width, dtype=dtype)
    operands = [row] * ELEMENTWISE[op].operands
    return kernel_text(op, operands, [row], ATTRIBUTES.get(op, ""))


@targets
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str, dtype: str, target: str) -> None:
    x = random((3, 200), dtype, 5)
    row = plain(-1, 200, dtype=dtype)
    (made,) = run(text_of(op, dtype, 200), [x], [row], 3, target)
    assert_close(made, UNARY[op](x.astype(np.float64)), dtype)


@targets
@pytest.mark.parametrize("op", UNARY)
def test_unary_of_special_numbers(op: str, target: str) -> None:
    """NaN stays, infinities go where the function does; a negation keeps the sign of zero."""
    x = np.array([SPECIAL], np.float32)
    row = plain(-1, len(SPECIAL), dtype="f32")
    with np.errstate(over="ignore", invalid="ignore"):
        (made,) = run(text_of(op, "f32", len(SPECIAL)), [x], [row], 1, target)
        wanted = UNARY[op](x.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(made), np.isnan(wanted))
    np.testing.assert_allclose(made, wanted, rtol=1e-6, atol=1e-30)
    if op in ("neg", "tanh", "cast"):
        np.testing.assert_array_equal(np.signbit(made[:, 3:5]), np.signbit(wanted[:, 3:5]))


@targets
@pytest.mark.parametrize("op", BINARY)
def test_binary_of_special_numbers(op: str, target: str) -> None:
    count = len(SPECIAL)
    a = np.repeat(np.array([SPECIAL], np.float32).T, count, 1)
    b = np.repeat(np.array([SPECIAL], np.float32), count, 0)
    row = plain(-1, count, dtype="f32")
    with np.errstate(all="ignore"):
        (made,) = run(text_of(op, "f32", count), [a, b], [row], count, target)
        np.testing.assert_array_equal(made, BINARY[op](a, b))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_cast(dtype: str) -> None:
    x = random((3, 200), "f32", 5)
    after = plain(-1, 200, dtype=dtype)
    text = kernel_text("cast", [plain(-1, 200, dtype="f32")], [after])
    (made,) = run(text, [x], [after], 3)
    np.testing.assert_array_equal(made, x.astype(DTYPES[dtype]))


N, K = 200, 300
CHAIN = """
%cap = arith.constant 30.0 : f32
%r0 = arith.truncf %acc0 : f32 to bf16
%y0 = arith.extf %r0 : bf16 to f32
%v1 = arith.divf %y0, %cap : f32
%v2 = math.tanh %v1 : f32
%v3 = arith.mulf %v2, %cap : f32
%r3 = arith.truncf %v3 : f32 to bf16
%y3 = arith.extf %r3 : bf16 to f32
%v4 = arith.subf %e0, %y3 : f32
%zero = arith.constant 0.0 : f32
%v5 = arith.maximumf %v4, %zero : f32
%v6 = arith.mulf %v5, %v5 : f32
%v7 = arith.negf %v6 : f32
%v8 = arith.addf %v7, %e1 : f32
%low = arith.constant -6.0 : f32
%v9 = arith.maximumf %v8, %low : f32
%v = math.exp %v9 : f32
"""
EXTRAS = [(plain(N), "[N]"), (plain(-1, N, dtype="f32"), "[M,N]")]
CHAIN_TEXT = matmul_text(
    quantized(-1, K),
    quantized(N, K, block=(128, 128)),
    [plain(-1, N, dtype="f32"), plain(-1, N)],
    CHAIN,
    ["%v", "%y3"],
    EXTRAS,
)
"""Soft-cap, its value kept, a reversed difference, relu squared, a residual, a clamp, exp."""


def chain(y: Array, bias: Array, residual: Array) -> tuple[Array, Array]:
    kept = rounded(30 * np.tanh(rounded(y) / 30))
    value = np.maximum(bias - kept, 0) ** 2
    return np.exp(np.maximum(residual - value, -6.0)), kept


@targets
@pytest.mark.parametrize("m", [1, 5, 70])
def test_chain_of_two_results(m: int, target: str) -> None:
    x, w = quantized(-1, K), quantized(N, K, block=(128, 128))
    operands, y = product(x, w, m)
    scale = 4 / np.abs(y).max()  # so that what the chain bends lies where it does
    operands[1] = (operands[1][0], (operands[1][1] * np.float32(scale)).astype(np.float32))
    bias, residual = random((N,), "bf16", 8), random((m, N), "f32", 9)
    results = [plain(-1, N, dtype="f32"), plain(-1, N)]
    value, kept = run(CHAIN_TEXT, [*operands, bias, residual], results, m, target)
    wanted, soft = chain(y * scale, bias.astype(np.float64), residual.astype(np.float64))
    assert_close(kept, soft, "bf16")
    # the rounding of `kept` may go the other way, by 2^-7 of at most 4; its square and exp follow
    assert np.abs(np.log(value) - np.log(wanted)).max() <= 2 * 8 * 4 * 2.0**-7


@targets
@pytest.mark.parametrize("op", ELEMENTWISE)
def test_every_operation_compiles(op: str, target: str) -> None:
    from test_sass import compiled

    for launch in lowered(text_of(op, "bf16", 4096), target).variant(1).launches:
        assert compiled(launch, target).stages


@targets
@pytest.mark.parametrize("m", [1, 16, 4096])
def test_chain_compiles(m: int, target: str) -> None:
    from test_sass import compiled

    for launch in lowered(CHAIN_TEXT, target).variant(m).launches:
        assert compiled(launch, target).stages


FOUR_RESULTS = matmul_text(
    quantized(-1, 2048),
    quantized(4096, 2048, block=(128, 128)),
    [plain(-1, 4096), plain(-1, 4096, dtype="f32"), plain(-1, 4096), plain(-1, 4096)],
    "%a = math.tanh %acc0 : f32\n"
    "%b = arith.addf %acc0, %e0 : f32\n"
    "%c = arith.mulf %acc0, %e1 : f32",
    ["%acc0", "%a", "%b", "%c"],
    [(plain(4096), "[N]"), (plain(-1, 4096), "[M,N]")],
)


@targets
@pytest.mark.parametrize("m", [1, 16, 4096])
def test_four_results_fit_and_spill_nothing(m: int, target: str) -> None:
    """As many as a product may yield where others read it, too."""
    from test_compile_matrix import hold_gates

    for launch in lowered(FOUR_RESULTS, target).variant(m).launches:
        hold_gates(launch, GPUS[target], "fp8")
