"""Norms in two formats, or of what is not rounded yet, on the interpreter: to the bit."""

from collections.abc import Sequence

import numpy as np
import pytest
from gpu_kernels import (
    Array,
    Value,
    kernel_text,
    plain,
    quantize,
    quantized,
    random,
    run,
    segment_sizes,
)
from test_scales_numerics import rounded_up

from qfuse.dialects.norm_ops import format_key
from qfuse.dialects.types import Scheme, Shaped

WIDTH = 1376
PER_BLOCK = quantized(-1, WIDTH)
PER_TOKEN = quantized(-1, WIDTH, block=(1, WIDTH))
BY_COLUMNS = quantized(-1, WIDTH, layout="col_major")
E8M0 = quantized(-1, WIDTH, scale="f8E8M0FNU")
I8 = quantized(-1, WIDTH, block=(1, WIDTH), dtype="i8")
I8_GROUPS = quantized(-1, WIDTH, block=(1, 64), dtype="i8")
Q8_1 = Shaped(I8.shape, "i8", Scheme((1, 32), "f16", packing="q8_1"))

PAIRS = [
    (PER_BLOCK, Q8_1),
    (PER_BLOCK, I8),
    (PER_BLOCK, PER_TOKEN),
    (PER_BLOCK, E8M0),
    (BY_COLUMNS, PER_TOKEN),
    (I8_GROUPS, Q8_1),
]
targets = pytest.mark.parametrize("target", ["cuda:sm_90", "cuda:sm_80", "hip:gfx942"])


def norm(
    outs: Sequence[Shaped],
    present: Sequence[int],
    residual: bool = False,
    rounding: str = "before",
    offset: float = 0.0,
    quantizes: str = "value",
    dtype: str = "bf16",
) -> str:
    row = plain(-1, WIDTH, dtype=dtype)
    attributes = (
        f'eps = 1.0e-6 : f64, offset = {offset} : f64, rounding = "{rounding}", '
        f'quantize_rounding = "{quantizes}", ' + segment_sizes("result", present)
    )
    operands = [row, plain(WIDTH, dtype=dtype)] + [row] * residual
    return kernel_text("rms_norm", operands, outs, attributes)


def assert_same(a: Value, b: Value) -> None:
    for x, y in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
        np.testing.assert_array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8))


def inputs(m: int, dtype: str = "bf16") -> list[Array]:
    return [random((m, WIDTH), dtype, 1), random((WIDTH,), dtype, 2), random((m, WIDTH), dtype, 3)]


@targets
@pytest.mark.parametrize("m", [1, 5])
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_two_formats(pair: tuple[Shaped, Shaped], m: int, target: str) -> None:
    """Each is what it is alone, beside any other results: the value, the new residual."""
    first, second = sorted(pair, key=format_key)
    row, values = plain(-1, WIDTH), inputs(m)
    every = norm([row, first, second, row], (1, 1, 1, 1), residual=True)
    value, a, b, h = run(every, values, [row, first, second, row], m, target)
    only = run(norm([first, second], (0, 1, 1, 0), True), values, [first, second], m, target)
    for made, alone in zip((a, b), only, strict=True):
        assert_same(made, alone)
    for out, made in ((first, a), (second, b)):
        (alone,) = run(norm([out], (0, 1, 0, 0), True), values, [out], m, target)
        assert_same(made, alone)
    wanted = run(norm([row, row], (1, 0, 0, 1), True), values, [row, row], m, target)
    for made, alone in zip((value, h), wanted, strict=True):
        assert_same(made, alone)


@targets
@pytest.mark.parametrize("out", [PER_BLOCK, PER_TOKEN, E8M0, I8, I8_GROUPS], ids=str)
@pytest.mark.parametrize(("rounding", "offset"), [("before", 0.0), ("after", 1.0)])
def test_what_is_not_rounded(rounding: str, offset: float, out: Shaped, target: str) -> None:
    """Beside it, the value is rounded as ever."""
    m, row, wide = 3, plain(-1, WIDTH), plain(-1, WIDTH, dtype="f32")
    x, weight, _ = inputs(m)
    kind = {"rounding": rounding, "offset": offset}
    text = norm([row, out], (1, 1, 0, 0), quantizes="f32", **kind)
    value, (codes, scale) = run(text, [x, weight], [row, out], m, target)
    (rounded,) = run(norm([row], (1, 0, 0, 0), **kind), [x, weight], [row], m, target)
    assert_same(value, rounded)
    # The same arithmetic on f32, by weights of one: what the weight multiplies.
    ones = [x.astype(np.float32), np.ones(WIDTH, np.float32)]
    (normed,) = run(norm([wide], (1, 0, 0, 0), dtype="f32"), ones, [wide], m, target)
    normed = normed.astype(x.dtype).astype(np.float32) if rounding == "before" else normed
    exact = normed * (weight.astype(np.float32) + np.float32(offset))
    reference = rounded_up if out is E8M0 else quantize
    wanted, wanted_scale = reference(exact, out)
    np.testing.assert_array_equal(scale, wanted_scale)
    np.testing.assert_array_equal(codes.astype(np.float32), wanted.astype(np.float32))
    of_value, _ = reference(value.astype(np.float32), out)
    assert (codes.astype(np.float32) != of_value.astype(np.float32)).any()
