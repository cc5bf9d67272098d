"""Norms that quantize to two formats, or what is not rounded yet, against `qfuse.quantize`."""

from itertools import combinations

import pytest
import torch
from cpu_kernels import (
    TESTED_LEVELS,
    TORCH,
    Tensor,
    kernel_text,
    loaded,
    plain,
    run,
    same_bits,
    segment_sizes,
)
from test_quantized import ACTIVATIONS, activation, inputs, reference

from qfuse.dialects.norm_ops import format_key
from qfuse.dialects.types import Shaped

PAIRS = list(combinations(ACTIVATIONS, 2))
levels = pytest.mark.parametrize("level", TESTED_LEVELS)
M = 9


def norm(
    outs: list[Shaped],
    present: tuple[int, ...],
    residual: bool = False,
    rounding: str = "before",
    offset: float = 0.0,
    quantizes: str = "value",
    dtype: str = "bf16",
    weight: str = "bf16",
) -> str:
    width = outs[0].shape[-1]
    row = plain(-1, width, dtype=dtype)
    attributes = (
        f'eps = 1.0e-5 : f64, offset = {offset} : f64, rounding = "{rounding}", '
        f'quantize_rounding = "{quantizes}", ' + segment_sizes("result", present)
    )
    operands = [row, plain(width, dtype=weight)] + [row] * residual
    return kernel_text("rms_norm", operands, outs, attributes)


def operands(width: int, dtype: str = "bf16", weight: str = "bf16") -> list[Tensor]:
    x = inputs(M, width, "f32")
    x[2] *= 1e-4  # its square has to be finite in f16, too
    w, r = (torch.randn(*s, generator=torch.manual_seed(7)) for s in ((width,), (M, width)))
    return [x.to(TORCH[dtype]), w.to(TORCH[weight]), r.to(TORCH[dtype])]


@levels
@pytest.mark.parametrize(
    ("width", "pair"), [*((300, pair) for pair in PAIRS), *((77, pair) for pair in PAIRS[::7])]
)
def test_two_formats(level: str, width: int, pair: tuple) -> None:
    """Each as a separate quantization makes it, whether groups nest or not; and all other results.

    At 300 columns a group of all is longer than what stays in registers, the others are not.
    """
    first, second = sorted((activation(width, scheme) for scheme in pair), key=format_key)
    row, values = plain(-1, width), operands(width)
    outs = [row, first, second, row]
    value, a, b, h = run(norm(outs, (1, 1, 1, 1), True), level, values, outs, M)
    assert same_bits(a, reference(value, first))
    assert same_bits(b, reference(value, second))
    (plain_value,) = run(norm([row], (1, 0, 0, 0), True), level, values, [row], M)
    assert same_bits(value, plain_value)
    assert same_bits(h, (values[0].float() + values[2].float()).bfloat16())


@levels
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("new", [0, 1])
def test_two_formats_beside_any_results(level: str, residual: bool, value: int, new: int) -> None:
    row = plain(-1, 300)
    first, second = sorted(
        (activation(300, ACTIVATIONS[0]), activation(300, ACTIVATIONS[8])), key=format_key
    )
    values = operands(300)[: 2 + residual]
    every, present = [row, first, second, row], (value, 1, 1, new)
    outs = [out for out, there in zip(every, present, strict=True) if there]
    made = run(norm(outs, present, residual), level, values, outs, M)[value:][:2]
    wanted = run(norm(every, (1, 1, 1, 1), residual), level, values, every, M)[1:3]
    assert all(map(same_bits, made, wanted))


@levels
def test_plain_results_may_lie_in_the_memory_of_operands(level: str) -> None:
    """Each format walks over the row anew: nothing it reads is gone by then."""
    first, second = sorted(
        (activation(300, ACTIVATIONS[1]), activation(300, ACTIVATIONS[8])), key=format_key
    )
    row, (x, w, r) = plain(-1, 300), operands(300)
    for present in ((1, 1, 1, 0), (0, 1, 1, 1), (1, 1, 1, 1)):
        every = [row, first, second, row]
        outs = [out for out, there in zip(every, present, strict=True) if there]
        text = norm(outs, present, True, quantizes="f32")
        wanted = run(text, level, [x, w, r], outs, M)
        held = {"value": x.clone(), "new": r.clone()}
        codes = [torch.empty_like(t) for pair in wanted if isinstance(pair, tuple) for t in pair]
        pointers = [held["value"], w, held["new"]]
        pointers += [held["value"]] * present[0] + codes + [held["new"]] * present[3]
        loaded(text, level).bind([t.data_ptr() for t in pointers], M, 1)()
        made = [held["value"]] * present[0]
        made += [(codes[0], codes[1]), (codes[2], codes[3])] + [held["new"]] * present[3]
        assert all(map(same_bits, made, wanted))


@levels
@pytest.mark.parametrize("scheme", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(("rounding", "offset"), [("before", 0.0), ("after", 1.0)])
@pytest.mark.parametrize(("dtype", "weight"), [("bf16", "bf16"), ("f16", "f32")])
def test_what_is_not_rounded(
    level: str, scheme: tuple, rounding: str, offset: float, dtype: str, weight: str
) -> None:
    """Beside it, the value is rounded as ever; without it, the codes are the same."""
    width, kind = 300, {"rounding": rounding, "offset": offset, "weight": weight}
    row, wide = plain(-1, width, dtype=dtype), plain(-1, width, dtype="f32")
    x, w, _ = operands(width, dtype, weight)
    type_ = activation(width, scheme)
    text = norm([row, type_], (1, 1, 0, 0), quantizes="f32", dtype=dtype, **kind)
    value, q = run(text, level, [x, w], [row, type_], M)
    (rounded,) = run(norm([row], (1, 0, 0, 0), dtype=dtype, **kind), level, [x, w], [row], M)
    assert same_bits(value, rounded)
    # The same arithmetic on f32, by weights of one: what the weight multiplies.
    ones = [x.float(), torch.ones(width)]
    text = norm([wide], (1, 0, 0, 0), rounding="after", dtype="f32", weight="f32")
    (normed,) = run(text, level, ones, [wide], M)
    normed = normed.to(TORCH[dtype]).float() if rounding == "before" else normed
    exact = normed * (w.float() + offset)
    assert same_bits(q, reference(exact, type_))
    assert not same_bits(q, reference(value, type_))
    only = norm([type_], (0, 1, 0, 0), quantizes="f32", dtype=dtype, **kind)
    assert same_bits(run(only, level, [x, w], [type_], M)[0], q)
