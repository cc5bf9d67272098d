"""Norms, GLU, quantization and element-wise kernels on the interpreter, against numpy."""

from math import erf, pi, sqrt

import numpy as np
import pytest
from gpu_kernels import (
    Array,
    assert_close,
    assert_quantized,
    dequantized,
    kernel_text,
    plain,
    quantize,
    quantized,
    random,
    random_codes,
    run,
    segment_sizes,
    silu,
)

from qfuse.dialects.types import Scheme, Shaped

ROWS = (1, 3, 50)

ACTIVATIONS = {
    "silu": silu,
    "gelu": lambda x: x / 2 * (1 + np.vectorize(erf)(x / sqrt(2))),
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0),
}


def rounded(values: Array, dtype: str = "bf16") -> Array:
    """f64 values rounded to a float type, as f64."""
    return values.astype(np.float32).astype(random((1,), dtype, 0).dtype).astype(np.float64)


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(
    "out",
    [
        quantized(-1, 1400),
        quantized(-1, 1400, block=(1, 1400)),
        quantized(-1, 200, block=(1, 32), dtype="i8", scale="f16"),
        quantized(-1, 4096, layout="col_major"),
        quantized(-1, 96, dtype="f8E5M2"),
    ],
    ids=str,
)
@pytest.mark.parametrize("target", ["cuda:sm_90", "cuda:sm_80"])
def test_quantize_bit_for_bit(m: int, out: Shaped, target: str) -> None:
    """Also where codes are made on the bits (sm_80), with a row of zeros and one of tiny values."""
    x = random((m, out.shape[-1]), "bf16", m)
    x[0] = 0
    if m > 2:
        x[1] = x[1] * np.asarray(1e-12, x.dtype)
        x[2, ::3] = x[2, ::3] * np.asarray(1e-3, x.dtype)
    text = kernel_text("quantize", [plain(-1, out.shape[-1])], [out])
    ((codes, scale),) = run(text, [x], [out], m, target)
    expected, expected_scale = quantize(x.astype(np.float32), out)
    assert out.scheme is not None
    if out.scheme.scale_layout == "col_major":
        expected_scale = expected_scale.T
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(codes.view(np.uint8) & 0x7F, expected.view(np.uint8) & 0x7F)
    np.testing.assert_array_equal(codes.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("target", ["cuda:sm_90", "cuda:sm_80"])
def test_nan_stays_nan_in_its_block_only(target: str) -> None:
    x = random((2, 256), "f32", 1)
    x[0, 5] = np.nan
    out = quantized(-1, 256)
    text = kernel_text("quantize", [plain(-1, 256, dtype="f32")], [out])
    ((codes, scale),) = run(text, [x], [out], 2, target)
    values = codes.astype(np.float32)
    assert np.isnan(values[0, :128]).all() and np.isnan(scale[0, 0])
    assert np.isfinite(values[0, 128:]).all() and np.isfinite(values[1]).all()


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize(
    "value",
    [
        quantized(-1, 1400),
        quantized(-1, 512, layout="col_major"),
        quantized(-1, 300, block=(128, 128)),
        quantized(-1, 200, block=(1, 32), dtype="i8", scale="f16"),
    ],
    ids=str,
)
@pytest.mark.parametrize("target", ["cuda:sm_90", "cuda:sm_80"])
def test_dequantize(m: int, value: Shaped, target: str) -> None:
    codes = random_codes(value, m, m)
    out = plain(-1, value.shape[-1], dtype="f32")
    (made,) = run(kernel_text("dequantize", [value], [out]), [codes], [out], m, target)
    np.testing.assert_array_equal(made, dequantized(codes, value).astype(np.float32))


@pytest.mark.parametrize("m", ROWS)
@pytest.mark.parametrize("width", [64, 1400, 4096])
@pytest.mark.parametrize("rounding", ["before", "after"])
@pytest.mark.parametrize("present", [(1, 1, 0, 1), (1, 0, 0, 0), (0, 1, 0, 0), (0, 1, 0, 1)])
def test_rms_norm(m: int, width: int, rounding: str, present: tuple[int, ...]) -> None:
    """Any subset of the results, with and without a residual."""
    offset = 1.0 if rounding == "after" else 0.0
    row, codes = plain(-1, width), quantized(-1, width)
    outs = [t for t, there in zip((row, codes, codes, row), present, strict=True) if there]
    residual = [row] if present[3] else []
    attributes = (
        f'eps = 1.0e-6 : f64, offset = {offset} : f64, rounding = "{rounding}", '
        + segment_sizes("result", present)
    )
    text = kernel_text("rms_norm", [row, plain(width), *residual], outs, attributes)
    x, weight = random((m, width), "bf16", 1), random((width,), "bf16", 2)
    more = [random((m, width), "bf16", 3)] if residual else []
    h = x.astype(np.float64)
    if more:
        h = rounded(h + more[0].astype(np.float64))
    normed = h / np.sqrt((h * h).mean(1, keepdims=True) + 1e-6)
    normed = rounded(normed) if rounding == "before" else normed
    value = rounded(normed * (weight.astype(np.float64) + offset))
    made = iter(run(text, [x, weight, *more], outs, m))
    if present[0]:
        assert_close(next(made), value, "bf16")
    if present[1]:
        assert_quantized(next(made), value, quantized(-1, width))
    if present[3]:
        np.testing.assert_array_equal(next(made).astype(np.float64), h)


ACTIVATION_FORMATS = {
    "groups of 128": quantized(-1, 1376),
    "per token": quantized(-1, 1376, block=(1, 1376)),
    "i8 per token": quantized(-1, 1376, block=(1, 1376), dtype="i8"),
    "i8 per 32, as the data of q8_0": quantized(-1, 1376, block=(1, 32), dtype="i8", scale="f16"),
}


@pytest.mark.parametrize("target", ["cuda:sm_90", "cuda:sm_80"])
@pytest.mark.parametrize("name", ACTIVATION_FORMATS)
@pytest.mark.parametrize("op", ["rms_norm", "glu"])
def test_fused_quantization_bit_for_bit(op: str, name: str, target: str) -> None:
    """Norms and GLU quantize their own rounded result, as `qfuse.quantize` would."""
    m, out = 3, ACTIVATION_FORMATS[name]
    row = plain(-1, out.shape[-1])
    x, other = (random((m, row.shape[-1]), "bf16", seed) for seed in (1, 2))
    if op == "rms_norm":
        attributes = 'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", '
        operands, values = [row, plain(row.shape[-1])], [x, other[0].copy()]
        attributes += segment_sizes("result", [True, True, False, False])
    else:
        attributes = 'act = "silu", ' + segment_sizes("result", [True, True])
        operands, values = [row, row], [x, other]
    text = kernel_text(op, operands, [row, out], attributes)
    value, (codes, scale) = run(text, values, [row, out], m, target)
    expected, expected_scale = quantize(value.astype(np.float32), out)
    np.testing.assert_array_equal(scale, expected_scale)
    np.testing.assert_array_equal(codes.astype(np.float32), expected.astype(np.float32))


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("halves", [False, True])
def test_glu(act: str, halves: bool) -> None:
    m, width = 5, 1400
    row, out = plain(-1, width), quantized(-1, width)
    operands = [plain(-1, 2 * width)] if halves else [row, row]
    attributes = f'act = "{act}", ' + segment_sizes("result", [True, True])
    both = random((m, 2 * width), "bf16", 4)
    gate, up = (both[:, :width].copy(), both[:, width:].copy())
    text = kernel_text("glu", operands, [row, out], attributes)
    value, codes = run(text, [both] if halves else [gate, up], [row, out], m)
    acted = rounded(ACTIVATIONS[act](gate.astype(np.float64)))
    expected = acted * up.astype(np.float64)
    assert_close(value, expected, "bf16")
    assert_quantized(codes, expected, out)


GLUS = [("silu", 1.5, 1.702), ("relu", 0.7, 1.702), ("swiglu_oai", 7.0, 1.702)]
GLUS.append(("swiglu_oai", 1.3, 1.2))


@pytest.mark.parametrize(("act", "limit", "alpha"), GLUS)
@pytest.mark.parametrize("target", ["cuda:sm_90", "cuda:sm_80", "hip:gfx942"])
def test_clamped_glu(act: str, limit: float, alpha: float, target: str) -> None:
    """Every step rounded; a NaN in gate or up makes one, and what is clamped is finite."""
    m, width = 3, 200
    row = plain(-1, width)
    attributes = f'act = "{act}", limit = {limit} : f64, ' + segment_sizes("result", [True, False])
    if act == "swiglu_oai":
        attributes += f", alpha = {alpha} : f64"
    gate, up = (random((m, width), "bf16", seed, scale=3.0) for seed in (1, 2))
    gate[0, :4] = [np.nan, 1.0, np.inf, 0.5]
    up[0, :4] = [1.0, np.nan, -np.inf, np.inf]
    text = kernel_text("glu", [row, row], [row], attributes)
    (made,) = run(text, [gate, up], [row], m, target)
    bound = rounded(np.array(limit))
    g = np.minimum(gate.astype(np.float64), bound)  # which keep NaN
    u = np.clip(up.astype(np.float64), -bound, bound)
    if act == "swiglu_oai":
        sigmoid = rounded(1 / (1 + np.exp(-rounded(g * alpha))))
        expected = rounded(g * sigmoid) * rounded(u + 1)
    else:
        expected = rounded(ACTIVATIONS[act](g)) * u
    assert np.isnan(made[0, :2].astype(np.float64)).all()
    assert np.isfinite(made[0, 2:].astype(np.float64)).all()
    there = ~np.isnan(expected)
    # three intermediate values that f32 may round the other way, and the last rounding
    error = np.abs(made.astype(np.float64) - expected)[there]
    assert (error <= 4 * 2.0**-7 * np.abs(expected[there]) + 1e-5).all()


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("target", ["cuda:sm_90", "hip:gfx942"])
def test_activations(act: str, target: str) -> None:
    x = random((3, 200), "f32", 5, 4)
    x[0, :4] = [0.0, -0.0, 100.0, -100.0]
    row = plain(-1, 200, dtype="f32")
    (made,) = run(kernel_text(act, [row], [row]), [x], [row], 3, target)
    assert_close(made, ACTIVATIONS[act](x.astype(np.float64)), "f32")


@pytest.mark.parametrize("op", ["add", "mul"])
@pytest.mark.parametrize("shape", [(-1, 300), (300,), (-1, 1), (), (1,)])
@pytest.mark.parametrize("swapped", [False, True])
def test_binary_operations_broadcast(op: str, shape: tuple[int, ...], swapped: bool) -> None:
    m = 20
    x = random((m, 300), "bf16", 6)
    other = random([m if d < 0 else d for d in shape], "f16", 7)
    types, values = [plain(-1, 300), plain(*shape, dtype="f16")], [x, other]
    if swapped:
        types, values = types[::-1], values[::-1]
    out = plain(-1, 300)
    (made,) = run(kernel_text(op, types, [out]), values, [out], m)
    a, b = x.astype(np.float32), other.astype(np.float32)
    np.testing.assert_array_equal(made, (a + b if op == "add" else a * b).astype(x.dtype))


@pytest.mark.parametrize(
    ("batch", "table_batch", "tokens", "static"),
    [(1, 1, 7, False), (3, 3, 5, False), (3, 1, 5, True), (1, 1, 1, True)],
)
@pytest.mark.parametrize("width", [64, 48])
def test_rope(batch: int, table_batch: int, tokens: int, static: bool, width: int) -> None:
    heads = 3
    extent = tokens if static else -1
    types = [
        plain(batch, extent, heads, width),
        *[plain(table_batch, extent, width)] * 2,
    ]
    x = random((batch, tokens, heads, width), "bf16", 1)
    cos, sin = (random((table_batch, tokens, width), "bf16", i) for i in (2, 3))
    out = plain(-1, width)
    (made,) = run(
        kernel_text("rope", types, types[:1]), [x, cos, sin], [out], batch * tokens * heads
    )
    values, c, s = (v.astype(np.float64) for v in (x, cos[:, :, None], sin[:, :, None]))
    turned = np.concatenate([-values[..., width // 2 :], values[..., : width // 2]], -1)
    expected = rounded(rounded(values * c) + rounded(turned * s)).reshape(-1, width)
    np.testing.assert_array_equal(made.astype(np.float64), expected)


Q8_0 = quantized(-1, 200, block=(1, 32), dtype="i8", scale="f16")
Q8_1 = Shaped(Q8_0.shape, "i8", Scheme((1, 32), "f16", packing="q8_1"))


@pytest.mark.parametrize("m", [1, 5, 17])
@pytest.mark.parametrize("op", ["quantize", "rms_norm"])
@pytest.mark.parametrize("target", ["cuda:sm_90", "hip:gfx942"])
def test_q8_1_is_q8_0_with_sums(m: int, op: str, target: str) -> None:
    """The same codes and scales; beside each scale, the f32 scale times the sum of the codes."""
    row, x = plain(-1, 200), random((m, 200), "bf16", m)
    x[0, :64] = 0

    def made(out: Shaped) -> tuple[Array, Array]:
        if op == "quantize":
            ((codes, scale),) = run(kernel_text(op, [row], [out]), [x], [out], m, target)
            return codes, scale
        attributes = 'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", '
        attributes += segment_sizes("result", (0, 1, 0, 0))
        text = kernel_text(op, [row, plain(200)], [out], attributes)
        weight = np.ones(200, x.dtype)
        ((codes, scale),) = run(text, [x, weight], [out], m, target)
        return codes, scale

    codes, scale = made(Q8_0)
    packed, numbers = made(Q8_1)
    np.testing.assert_array_equal(packed, codes)
    np.testing.assert_array_equal(numbers[:, ::2], scale)
    padded = np.pad(codes.astype(np.float64), ((0, 0), (0, 24))).reshape(m, 7, 32)
    # one rounding of the scale that is stored, one of the sum: 2^-11 each, relative
    expected = scale.astype(np.float64) * padded.sum(2)
    np.testing.assert_allclose(numbers[:, 1::2].astype(np.float64), expected, rtol=2**-9.9)
    assert (numbers[0, 1:4:2] == 0).all()
