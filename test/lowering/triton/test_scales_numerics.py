"""Scales that are powers of two, given beforehand, or those of whole tensors; packed codes opened.

On the interpreter, bit for bit against `qfuse.quantize` and `#qfuse.scheme` in plain numpy.
"""

from contextlib import nullcontext

import numpy as np
import pytest
from gpu_kernels import (
    SILU_GLU,
    Array,
    Value,
    forced,
    kernel_text,
    lowered,
    matmul_text,
    plain,
    quantize,
    quantized,
    random,
    run,
    segment_sizes,
)
from scheme_values import operand, packed, product

from qfuse.dialects.types import STORAGE_MAX, Shaped
from qfuse.lowering.triton import gemv
from qfuse.lowering.triton.interpreter.types import DTYPES
from qfuse.lowering.triton.tiles import Config

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
    assert_by_scale((codes, scales), x, scale, dtype)


def assert_by_scale(made: Value, x: Array, scale: np.float32, dtype: str) -> None:
    """To the bit x / scale, rounded and saturated; all rows have the scale."""
    codes, scales = made
    largest = STORAGE_MAX[dtype]
    exact = np.clip(x.astype(np.float32) / scale, -largest, largest)
    expected = np.rint(exact).astype(np.int8) if dtype == "i8" else exact.astype(DTYPES[dtype])
    np.testing.assert_array_equal(codes.astype(np.float32), expected.astype(np.float32))
    np.testing.assert_array_equal(scales, np.full((len(x), 1), scale))


GIVEN = (np.float32(0.0123), np.float32(0.004))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["f8E4M3FN", "i8"])
@pytest.mark.parametrize(("m", "width"), [(1, 300), (5, 1376), (3, 5000)])
def test_norm_quantizes_by_given_scales(m: int, width: int, dtype: str, target: str) -> None:
    """By two beside all other results, by one alone, and by one beside a scale that is found."""
    row, out = plain(-1, width), quantized(-1, width, block=(1, width), dtype=dtype)
    attributes = 'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before"'
    types, scales = [row, plain(width), row], [np.array([s]) for s in GIVEN]
    x = [random((m, width), "bf16", 1), random((width,), "bf16", 2), random((m, width), "bf16", 3)]

    def made(given: list[bool], present: list[bool], outs: list[Shaped]) -> list[Value]:
        sizes = segment_sizes("operand", [True] * 3 + given), segment_sizes("result", present)
        more = [s for s, there in zip(scales, given, strict=True) if there]
        operands = types + [SCALAR] * len(more)
        text = kernel_text("rms_norm", operands, outs, ", ".join([attributes, *sizes]))
        return run(text, [*x, *more], outs, m, target)

    value, a, b, _ = made([True, True], [True] * 4, [row, out, out, row])
    assert_by_scale(a, value, GIVEN[0], dtype)
    assert_by_scale(b, value, GIVEN[1], dtype)
    (only,) = made([True, False], [False, True, False, False], [out])
    assert_by_scale(only, value, GIVEN[0], dtype)
    found, given = made([False, True], [False, True, True, False], [out, out])
    assert_by_scale(given, value, GIVEN[1], dtype)
    codes, scale = quantize(value.astype(np.float32), out)
    np.testing.assert_array_equal(found[0].astype(np.float32), codes.astype(np.float32))
    np.testing.assert_array_equal(found[1], scale)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("dtype", ["f8E4M3FN", "f8E5M2", "i8"])
def test_glu_quantizes_by_a_given_scale(dtype: str, halves: bool, target: str) -> None:
    """A row of 3000 lies in several tiles, each of which quantizes its own columns."""
    m, width = 3, 3000
    row, out = plain(-1, width), quantized(-1, width, block=(1, width), dtype=dtype)
    sizes = segment_sizes("operand", [True, not halves, True]), segment_sizes("result", [True] * 2)
    types = [plain(-1, 2 * width)] if halves else [row, row]
    both = random((m, 2 * width), "bf16", 4)
    x = [both] if halves else [both[:, :width].copy(), both[:, width:].copy()]
    text = kernel_text("glu", [*types, SCALAR], [row, out], ", ".join(['act = "silu"', *sizes]))
    assert lowered(text, target).variant(m).launches[0].grid.of(m)[0] > 1
    value, codes = run(text, [*x, np.array([GIVEN[0]])], [row, out], m, target)
    assert_by_scale(codes, value, GIVEN[0], dtype)


ROUNDED = """%t = arith.truncf %acc0 : f32 to bf16
%y = arith.extf %t : bf16 to f32
%v = "qfuse.with_scale"(%y, %e0) : (f32, f32) -> f32
"""
CONFIGS = {
    "chosen": None,
    "one row": Config(1, gemv.COLUMNS, gemv.DEPTH, gemv=True),
    "few rows": Config(16, 128, 128, swap=True, slices=4, num_stages=4),
    "tiles": Config(128, 64, 128, num_warps=8),
    "persistent": Config(128, 128, 128, persistent=True),
    "persistent, two products": Config(128, 128, 128, 2, persistent=True),
}


@pytest.mark.parametrize("dtype", ["f8E4M3FN", "i8"])
@pytest.mark.parametrize("width", [200, 208])
@pytest.mark.parametrize("name", CONFIGS)
def test_product_quantizes_by_a_given_scale(name: str, width: int, dtype: str) -> None:
    """Whatever the tiles, also stored by TMA, which rows of 208 codes allow."""
    config = CONFIGS[name]
    m = 1 if name == "one row" else 13 if name == "few rows" else 140
    x, w = quantized(-1, 384, block=(1, 384)), quantized(width, 384, block=(1, 384))
    operands, _ = product(x, w, m)
    outs = [plain(-1, width), quantized(-1, width, block=(1, width), dtype=dtype)]
    text = matmul_text(x, w, outs, ROUNDED, ["%y", "%v"], [(SCALAR, "[]")])
    scale = np.float32(7.0)
    with forced(config, m) if config else nullcontext():
        value, codes = run(text, [*operands, np.array([scale])], outs, m)
    assert np.abs(value.astype(np.float32)).max() > scale
    assert_by_scale(codes, value, scale, dtype)


@pytest.mark.parametrize("target", TARGETS)
def test_gated_product_quantizes_by_a_given_scale(target: str) -> None:
    """And with the epilogue apart from a product that a library computed: the same bits."""
    m, width = 20, 200
    x, w = quantized(-1, 256, block=(1, 256)), quantized(2 * width, 256, block=(1, 256))
    operands, total = product(x, w, m)
    operands[0] = (operands[0][0], operands[0][1] / 64)
    out = quantized(-1, width, block=(1, width))
    body = SILU_GLU.replace("%v", "%p") + ROUNDED.replace("%acc0", "%p")
    outs = [plain(-1, width), out]
    parts, scale = [width, width], np.array([GIVEN[0]])
    text = matmul_text(x, w, outs, body, ["%y", "%v"], [(SCALAR, "[]")], parts)
    value, codes = run(text, [*operands, scale], outs, m, target)
    assert_by_scale(codes, value, GIVEN[0], out.dtype)

    region = (
        f'^bb0(%acc0: f32, %acc1: f32, %e0: f32):\n{body}\n"qfuse.yield"(%y, %v) : (f32, f32) -> ()'
    )
    attributes = ", ".join(
        [
            f"parts = array<i64: {width}, {width}>, starts = array<i64: 0, {width}>",
            'maps = ["[]"]',
            segment_sizes("operand", [True, True] + [False] * 5),
            segment_sizes("result", [True, True, False, False]),
        ]
    )
    computed = plain(-1, 2 * width)
    text = kernel_text("epilogue", [computed, SCALAR], outs, attributes, region)
    y = (total / 64).astype(np.float32).astype(DTYPES["bf16"])
    value, codes = run(text, [y, scale], outs, m, target)
    assert_by_scale(codes, value, GIVEN[0], out.dtype)


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
        packed(-1, 768, packing="q4_k"),
        packed(-1, 2304, packing="q6_k"),
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
