"""Scales that are powers of two, given beforehand, or those of whole tensors; packed codes opened.

On the interpreter, bit for bit against `qfuse.quantize` and `#qfuse.scheme` in plain numpy.
"""

import numpy as np
import pytest
from gpu_kernels import (
    Array,
    kernel_text,
    matmul_text,
    plain,
    quantized,
    random,
    run,
    segment_sizes,
)
from scheme_values import operand, packed, product

from qfuse.dialects.types import STORAGE_MAX, Shaped
from qfuse.lowering.triton.interpreter.types import DTYPES

TARGETS = ("cuda:sm_90", "cuda:sm_80", "hip:gfx942")
ROWS = (1, 5, 70)
SCALAR = plain(1, dtype="f32")


def rounded_up(values: Array, result: Shaped) -> tuple[Array, Array]:
    """Codes and exponents of f32 values whose scales are e8m0: amax / largest, rounded up."""
    assert result.scheme is not None
    m, n = values.shape
    group = min(result.scheme.block[1], n)
    padded = np.zeros((m, -(-n // group) * group), np.float32)
    padded[:, :n] = values
    blocks = padded.reshape(m, -1, group)
    largest = np.float32(STORAGE_MAX[result.dtype])
    least = np.maximum(np.abs(blocks).max(2), np.float32(1e-10)) / largest
    mantissa, exponent = np.frexp(least)
    power = np.where(mantissa == 0.5, exponent - 1, exponent)
    codes = (blocks / np.ldexp(np.float32(1), power)[:, :, None]).reshape(m, -1)[:, :n]
    codes = np.clip(codes, -largest, largest).astype(DTYPES[result.dtype])
    return codes, (power + 127).astype(np.uint8).view(np.int8)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(
    "out",
    [
        quantized(-1, 300, scale="f8E8M0FNU"),
        quantized(-1, 200, block=(1, 200), dtype="f8E5M2", scale="f8E8M0FNU"),
        quantized(-1, 256, block=(1, 32), scale="f8E8M0FNU", layout="col_major"),
    ],
    ids=str,
)
def test_scales_rounded_up_to_powers_of_two(out: Shaped, m: int, target: str) -> None:
    """Also exact powers, which stay, blocks of zeros, and what is far from one."""
    x = random((m, out.shape[-1]), "f32", m)
    x[0] *= np.float32(1e-30)
    if m > 1:
        x[1] = 0
        x[2] = 448.0 * 2.0**-5
        x[3] *= np.float32(1e20)
    text = kernel_text("quantize", [plain(-1, out.shape[-1], dtype="f32")], [out])
    ((codes, scale),) = run(text, [x], [out], m, target)
    expected, exponents = rounded_up(x, out)
    assert out.scheme is not None
    if out.scheme.scale_layout == "col_major":
        exponents = exponents.T
    np.testing.assert_array_equal(scale, exponents)
    np.testing.assert_array_equal(codes.astype(np.float32), expected.astype(np.float32))


def test_nan_has_an_exponent_of_its_own() -> None:
    """0xff is what e8m0 has for it; the other blocks do not change."""
    x = random((2, 256), "f32", 1)
    x[0, 5] = np.nan
    out = quantized(-1, 256, scale="f8E8M0FNU")
    text = kernel_text("quantize", [plain(-1, 256, dtype="f32")], [out])
    ((codes, scale),) = run(text, [x], [out], 2)
    assert scale[0, 0] == -1 and (scale.reshape(-1)[1:] != -1).all()
    values = codes.astype(np.float32)
    assert np.isnan(values[0, :128]).all() and np.isfinite(values[0, 128:]).all()


def test_every_e8m0_is_read_exactly() -> None:
    """From 2^-127, which is subnormal in f32, to 2^127, and NaN."""
    exponents = np.arange(256, dtype=np.uint8).view(np.int8).reshape(256, 1)
    codes = np.ones((256, 32), DTYPES["f8E4M3FN"])
    value, out = quantized(-1, 32, block=(1, 32), scale="f8E8M0FNU"), plain(-1, 32, dtype="f32")
    (made,) = run(kernel_text("dequantize", [value], [out]), [(codes, exponents)], [out], 256)
    expected = np.ldexp(1.0, np.arange(255) - 127)[:, None]
    np.testing.assert_array_equal(made[:255].astype(np.float64), np.repeat(expected, 32, 1))
    assert np.isnan(made[255]).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["f8E4M3FN", "f8E5M2", "i8"])
@pytest.mark.parametrize("m", ROWS)
def test_quantize_by_a_given_scale(m: int, dtype: str, target: str) -> None:
    """Saturated on both sides; all rows get the scale."""
    largest = STORAGE_MAX[dtype]
    scale = np.float32(2 / largest)
    x = random((m, 300), "bf16", m)
    assert np.abs(x.astype(np.float32)).max() > 2 * 1.2
    out = quantized(-1, 300, block=(1, 300), dtype=dtype)
    text = kernel_text("quantize", [plain(-1, 300), SCALAR], [out])
    ((codes, scales),) = run(text, [x, np.array([scale])], [out], m, target)
    exact = np.clip(x.astype(np.float32) / scale, -largest, largest)
    expected = np.rint(exact).astype(np.int8) if dtype == "i8" else exact.astype(DTYPES[dtype])
    np.testing.assert_array_equal(codes.astype(np.float32), expected.astype(np.float32))
    np.testing.assert_array_equal(scales, np.full((m, 1), scale))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("m", "width"), [(1, 1), (1, 5000), (3, 300), (300, 40), (2100, 130)])
def test_the_scale_of_a_tensor(m: int, width: int, target: str) -> None:
    """Wherever the largest magnitude is; a NaN anywhere makes it NaN."""
    row = plain(-1, width)
    text = kernel_text("tensor_scale", [row], [SCALAR], "storage = f8E4M3FN")
    x = random((m, width), "bf16", m)
    for place in ((0, 0), (m - 1, width - 1), (m // 2, width // 3)):
        largest = x.copy()
        largest[place] = -77
        (made,) = run(text, [largest], [SCALAR], m, target)
        assert made == np.float32(77) / np.float32(448)
    x[m - 1, width // 2] = np.nan
    (made,) = run(text, [x], [SCALAR], m, target)
    assert np.isnan(made).all()


def test_the_scale_of_zeros_is_finite() -> None:
    text = kernel_text("tensor_scale", [plain(-1, 64)], [SCALAR], "storage = i8")
    (made,) = run(text, [random((3, 64), "bf16", 0, 0.0)], [SCALAR], 3)
    assert made == np.float32(1e-10) / np.float32(127)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "value",
    [
        packed(-1, 300, packing="int4"),
        packed(-1, 300, packing="int4", block=128, zero="int", scale="bf16"),
        packed(-1, 300, packing="fp4"),
        packed(-1, 320, packing="q8_1"),
        quantized(-1, 300, scale="f8E8M0FNU"),
    ],
    ids=str,
)
def test_dequantize(value: Shaped, target: str) -> None:
    for m in ROWS:
        memory, expected = operand(value, m, m)
        out = plain(-1, value.shape[-1], dtype="f32")
        (made,) = run(kernel_text("dequantize", [value], [out]), [memory], [out], m, target)
        np.testing.assert_array_equal(made, expected.astype(np.float32))


def test_norms_and_products_write_e8m0() -> None:
    """As a quantization of their own results would."""
    m, out = 40, quantized(-1, 256, block=(1, 64), scale="f8E8M0FNU")
    row = plain(-1, 256)
    x = random((m, 256), "bf16", 1)
    attributes = 'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", '
    attributes += segment_sizes("result", (1, 1, 0, 0))
    text = kernel_text("rms_norm", [row, plain(256)], [row, out], attributes)
    weight = np.ones(256, x.dtype)
    value, (codes, scale) = run(text, [x, weight], [row, out], m)
    expected, exponents = rounded_up(value.astype(np.float32), out)
    np.testing.assert_array_equal(scale, exponents)
    np.testing.assert_array_equal(codes.astype(np.float32), expected.astype(np.float32))
    w = plain(256, 256)
    operands, _ = product(row, w, m)
    outs = [plain(-1, 256, dtype="f32"), out]
    text = matmul_text(row, w, outs, yields=["%acc0"] * 2)
    value, (codes, scale) = run(text, operands, outs, m)
    expected, exponents = rounded_up(value, out)
    np.testing.assert_array_equal(scale, exponents)
    np.testing.assert_array_equal(codes.astype(np.float32), expected.astype(np.float32))
