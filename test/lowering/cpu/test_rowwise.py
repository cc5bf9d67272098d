"""Row-wise kernels against torch: norms, activations, glu, rope, sums and products."""

import pytest
import torch
from cpu_kernels import (
    TESTED_LEVELS,
    TORCH,
    Tensor,
    kernel_text,
    plain,
    quantize_reference,
    quantized,
    run,
    same_bits,
    segment_sizes,
)

levels = pytest.mark.parametrize("level", TESTED_LEVELS)
dtypes = pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
ULP = {"f32": 2.0**-23, "bf16": 2.0**-7, "f16": 2.0**-10}  # largest relative distance


def random(*shape: int, dtype: str = "bf16", seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.manual_seed(seed)).to(TORCH[dtype])


def one_rounding(got: Tensor, wanted: Tensor, dtype: str, slack: float = 0.0) -> None:
    """`got` is `wanted` (f64) up to one rounding to its type and a relative error of `slack`."""
    bound = wanted.abs() * (ULP[dtype] / 2 + slack) + 1e-7
    assert bool(((got.double() - wanted).abs() <= bound).all())


@levels
@dtypes
@pytest.mark.parametrize("op", ["add", "mul"])
@pytest.mark.parametrize("width", [1, 16, 77, 256])
def test_binary_is_exact(level: str, dtype: str, op: str, width: int) -> None:
    """f32 arithmetic rounded once: the same as torch, which does that too."""
    result = plain(-1, width, dtype=dtype)
    text = kernel_text(op, [result, result], [result])
    a, b = random(9, width, dtype=dtype), random(9, width, dtype=dtype, seed=1)
    (got,) = run(text, level, [a, b], [result], 9)
    assert same_bits(got, getattr(torch, op)(a, b))


@levels
@pytest.mark.parametrize("other", [(77,), (1, 77), (-1, 1), (1, 1), (1,), ()])
def test_binary_broadcasts(level: str, other: tuple[int, ...]) -> None:
    result = plain(-1, 77)
    operand = plain(*other, dtype="f32")
    for operands, order in (([result, operand], 1), ([operand, result], -1)):
        text = kernel_text("add", operands, [result])
        a, b = random(5, 77), random(*(5 if d < 0 else d for d in other), dtype="f32")
        (got,) = run(text, level, [a, b][::order], [result], 5)
        assert same_bits(got, (a.float() + b).bfloat16())


def test_binary_of_higher_rank_with_a_row_of_its_own() -> None:
    result = plain(2, -1, 8, dtype="f32")
    text = kernel_text("mul", [result, plain(2, -1, 1, dtype="f32")], [result])
    a, b = random(2, 3, 8, dtype="f32"), random(2, 3, 1, dtype="f32")
    (got,) = run(text, None, [a, b], [result], 6, rows=[2, 3])
    assert same_bits(got, a * b)


def activation_f64(name: str, x: Tensor) -> Tensor:
    x = x.double()
    if name == "gelu_tanh":
        return torch.nn.functional.gelu(x, approximate="tanh")
    return getattr(torch.nn.functional, name)(x)


@levels
@dtypes
@pytest.mark.parametrize("op", ["silu", "gelu", "gelu_tanh", "relu"])
def test_activations(level: str, dtype: str, op: str) -> None:
    result = plain(-1, 77, dtype=dtype)
    text = kernel_text(op, [result], [result])
    x = random(9, 77, dtype=dtype) * 6
    (got,) = run(text, level, [x], [result], 9)
    wanted = activation_f64(op, x)
    bound = wanted.abs() * (ULP[dtype] / 2 + 1e-6) + 1e-6
    assert bool(((got.double() - wanted).abs() <= bound).all())


@levels
@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("width", [128, 300])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_glu(level: str, halves: bool, width: int, dtype: str) -> None:
    operand = plain(-1, 2 * width if halves else width, dtype=dtype)
    results = [plain(-1, width, dtype=dtype), quantized(-1, width)]
    operands = [operand] if halves else [operand, operand]
    sizes = segment_sizes("result", [True, True])
    text = kernel_text("glu", operands, results, f'act = "silu", {sizes}')
    gate, up = random(7, width, dtype=dtype), random(7, width, dtype=dtype, seed=1)
    arguments = [torch.cat([gate, up], 1)] if halves else [gate, up]
    value, q = run(text, level, arguments, results, 7)
    act = torch.nn.functional.silu(gate.double()).to(TORCH[dtype])
    wanted = act.double() * up.double()
    # The activation may round the other way; that moves the product by one unit of its own.
    one_rounding(value, wanted, dtype, slack=1.01 * ULP[dtype])
    assert same_bits(q, quantize_reference(value, (1, 128)))
    sizes = segment_sizes("result", [False, True])
    only = kernel_text("glu", operands, results[1:], f'act = "silu", {sizes}')
    assert same_bits(run(only, level, arguments, results[1:], 7)[0], q)


NORM_CASES = [
    # width, residual, value, quantized, new residual, rounding, offset, dtype, weight dtype
    (512, False, True, False, False, "before", 0.0, "bf16", "bf16"),
    (512, True, True, True, True, "before", 0.0, "bf16", "bf16"),
    (512, True, False, True, True, "after", 1.0, "bf16", "f32"),
    (512, True, False, True, False, "before", 0.0, "bf16", "bf16"),
    (512, True, True, False, True, "before", 0.0, "f16", "f32"),
    (64, False, True, False, False, "before", 0.0, "bf16", "bf16"),
    (300, True, True, True, True, "before", 0.0, "f32", "bf16"),
    (300, False, False, True, False, "after", 1.0, "f32", "f32"),
    (7, True, False, False, True, "before", 0.0, "bf16", "bf16"),
    (1, False, True, False, False, "before", 0.0, "f32", "f32"),
]


def norm_kernel(case: tuple) -> tuple[str, list]:
    width, residual, value, quant, new, rounding, offset, dtype, weight = case
    row = plain(-1, width, dtype=dtype)
    results = [row] * value + [quantized(-1, width)] * quant + [row] * new
    attributes = (
        f'eps = 1.0e-6 : f64, offset = {offset} : f64, rounding = "{rounding}", '
        + segment_sizes("result", [value, quant, False, new])
    )
    operands = [row, plain(width, dtype=weight)] + [row] * residual
    return kernel_text("rms_norm", operands, results, attributes), results


@levels
@pytest.mark.parametrize("case", NORM_CASES, ids=str)
def test_rms_norm(level: str, case: tuple) -> None:
    width, residual, value, quant, new, rounding, offset, dtype, weight = case
    text, results = norm_kernel(case)
    x, w = random(17, width, dtype=dtype), random(width, dtype=weight, seed=1)
    r = random(17, width, dtype=dtype, seed=2)
    out = iter(run(text, level, [x, w] + [r] * residual, results, 17))
    h = (x.float() + r.float()).to(TORCH[dtype]) if residual else x
    n = h.double() * (h.double().pow(2).mean(1, keepdim=True) + 1e-6).rsqrt()
    wanted = n * (w.double() + offset)
    got = next(out) if value else None
    q = next(out) if quant else None
    if got is not None:
        slack = 1e-6 + (1.01 * ULP[dtype] if rounding == "before" else 0)
        one_rounding(got, wanted, dtype, slack)
    if q is not None and got is not None:
        assert same_bits(q, quantize_reference(got, (1, 128)))
    if new:
        assert same_bits(next(out), h)


@levels
def test_rms_norm_is_the_same_for_any_results(level: str) -> None:
    """And with a residual the same as adding it first."""
    w = random(300, seed=1)
    x, r = random(9, 300), random(9, 300, seed=2)
    every = (300, True, True, True, True, "before", 0.0, "bf16", "bf16")
    value, q, h = run(*_with(level, every), [x, w, r], norm_kernel(every)[1], 9)
    only = (300, True, False, True, False, "before", 0.0, "bf16", "bf16")
    assert same_bits(run(*_with(level, only), [x, w, r], norm_kernel(only)[1], 9)[0], q)
    after = (300, False, True, False, False, "before", 0.0, "bf16", "bf16")
    assert same_bits(run(*_with(level, after), [h, w], norm_kernel(after)[1], 9)[0], value)


def _with(level: str, case: tuple) -> tuple[str, str]:
    return norm_kernel(case)[0], level


@levels
def test_results_may_lie_in_the_memory_of_operands(level: str) -> None:
    """A plan may reuse the memory of an operand that is read for the last time."""
    from cpu_kernels import loaded

    case = (300, True, True, True, True, "before", 0.0, "bf16", "bf16")
    text, results = norm_kernel(case)
    x, w, r = random(5, 300), random(300, seed=1), random(5, 300, seed=2)
    value, q, h = run(text, level, [x, w, r], results, 5)
    codes, scale = torch.empty(5, 300, dtype=torch.uint8), torch.empty(5, 3)
    pointers = [t.data_ptr() for t in (x, w, r, x, codes, scale, r)]
    loaded(text, level).bind(pointers, 5, 1)()
    assert same_bits(x, value) and same_bits(r, h) and same_bits(scale, q[1])


@levels
@pytest.mark.parametrize("batch", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("width", [64, 6])
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_rope(level: str, batch: tuple[int, int], width: int, dtype: str) -> None:
    b, tables = batch
    t, heads = 5, 3
    x_type = plain(b, -1, heads, width, dtype=dtype)
    table = plain(tables, -1, width, dtype=dtype)
    text = kernel_text("rope", [x_type, table, table], [x_type])
    x = random(b, t, heads, width, dtype=dtype)
    cos, sin = (random(tables, t, width, dtype=dtype, seed=s) for s in (1, 2))
    (got,) = run(text, level, [x, cos, sin], [x_type], b * t * heads, rows=[b, t, heads])
    low, high = x.chunk(2, -1)
    rotated = torch.cat([-high, low], -1)
    assert same_bits(got, x * cos.unsqueeze(2) + rotated * sin.unsqueeze(2))
