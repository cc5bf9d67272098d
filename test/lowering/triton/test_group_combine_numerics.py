"""Products of experts that add up their rows, on the interpreter.

Bit for bit the product and the combine apart where tiles are the same; and right.
"""

from itertools import product as every
from typing import Any

import gpu_kernels
import numpy as np
import pytest
from gpu_kernels import (
    Array,
    Value,
    assert_close,
    dequantized,
    forced,
    kernel_text,
    lowered,
    matmul_text,
    plain,
    quantized,
    random,
    random_codes,
    run,
    segment_sizes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_group_numerics import (
    BAD_INDPTR,
    BLOCK,
    CHOICES,
    EXPERTS,
    KERNELS,
    K,
    N,
    choices,
    products,
    routed,
    weights_of,
)

from qfuse.dialects.types import Shaped
from qfuse.lowering.triton.gpu import GPUS
from qfuse.lowering.triton.interpreter import Report, Trap
from qfuse.lowering.triton.interpreter import run as interpret

X, W = quantized(-1, CHOICES, K), quantized(EXPERTS, N, K, block=BLOCK)
INDPTR, SLOTS = plain(EXPERTS + 1, dtype="i32"), plain(-1, CHOICES, dtype="i32")
WEIGHTS = weights_of(W)


def combine_text(
    x: Shaped,
    w: Shaped,
    out: Shaped,
    row: str = "bf16",
    residual: bool = False,
    shared: bool = False,
    choices: int = CHOICES,
    body: str = "",
    value: str = "%acc0",
) -> str:
    """A product whose rows of type `row` are added up."""
    indptr, slots = plain(w.shape[0] + 1, dtype="i32"), plain(-1, choices, dtype="i32")
    factors = plain(-1, choices - shared, dtype="f32")
    operands = [x, w, indptr, slots, factors, *[out] * residual]
    if row != "f32":
        body += f"\n%cut = arith.truncf {value} : f32 to {row}"
        body += f"\n%row = arith.extf %cut : {row} to f32"
        value = "%row"
    region = f'^bb0(%acc0: f32):\n{body}\n"qfuse.yield"({value}) : (f32) -> ()'
    sizes = segment_sizes("operand", [True] * 5 + [residual] + [False] * 7)
    attributes = f"parts = array<i64: {w.shape[1]}>, maps = [], {sizes}"
    return kernel_text("group_matmul_combine", operands, [out], attributes, region)


def summed(rows: Array, slots: Array, factors: Array, old: Array | None, dtype: np.dtype) -> Array:
    """Rows as they are stored, added up as `qfuse.combine` says, in its own operations."""
    t, k = slots.shape
    out = np.zeros((t, rows.shape[1]), np.float32)
    for token, j in every(range(t), range(k)):
        if not 0 <= slots[token, j] < t * k:
            continue
        row = rows[slots[token, j]].astype(np.float32)
        if j < factors.shape[1]:
            out[token] += row * factors[token, j]
        else:  # shared
            out[token] = out[token].astype(dtype).astype(np.float32) + row
    out = out.astype(dtype)
    return out if old is None else (out.astype(np.float32) + old.astype(np.float32)).astype(dtype)


def operands_of(ids: Array, shared: bool, x: Shaped = X, w: Value = WEIGHTS) -> list[Value]:
    t = len(ids)
    slots, _, indptr = routed(ids, len(w[0]))
    factors = random((t, CHOICES - shared), "f32", 2)
    if not shared:
        factors[slots < 0] = np.inf  # of a choice that does not count
    codes = random_codes(Shaped((-1, x.shape[-1]), x.dtype, x.scheme), t * CHOICES, 7)
    return [codes, w, indptr, slots, factors]


def check(
    ids: Array, residual: bool = False, shared: bool = False, row: str = "bf16", **options: Any
) -> None:
    """The product apart gives rows; numpy adds them up; equal to the last bit."""
    t, out = len(ids), plain(1, -1, N)
    text = combine_text(X, W, out, row, residual, shared)
    operands = operands_of(ids, shared)
    old = [random((t, N), "bf16", 3)] * residual
    (made,) = run(text, [*operands, *old], [out], t, **options)
    x, w, indptr, slots, factors = operands
    of_rows = plain(-1, CHOICES, N, dtype=row)
    apart = matmul_text(X, W, [of_rows], routing=[INDPTR])
    assert isinstance(slots, np.ndarray) and isinstance(factors, np.ndarray)
    ((rows,),) = gpu_kernels.execute(apart, [x, w, indptr], [of_rows], t * CHOICES, **options)
    expected = summed(rows.array, slots, factors, *(old or [None]), made.dtype)
    np.testing.assert_array_equal(made.view(np.uint16), expected.view(np.uint16))


@settings(deadline=None, max_examples=20)
@given(choices(50), st.booleans(), st.booleans())
def test_any_routing(ids: Array, residual: bool, shared: bool) -> None:
    check(ids, residual, shared)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("t", [1, 5, 16, 17, 60])
def test_every_kernel(name: str, t: int) -> None:
    """By one launch and by two, with K in slices too."""
    ids = np.random.default_rng(t).integers(-1, EXPERTS, (t, CHOICES))
    with forced(KERNELS[name], t * CHOICES):
        assert [len(v.launches) for v in lowered(TEXT).variants] == ([1] if t <= 16 else [1, 2])
        check(ids, residual=True, shared=t % 2 == 1)
        check(ids, row="f32")


TEXT = combine_text(X, W, plain(-1, N))


@pytest.mark.parametrize("t", [1, 4, 30])
@pytest.mark.parametrize("case", ["one expert", "nobody", "last expert"])
def test_lopsided_routings(case: str, t: int) -> None:
    ids = np.full((t, CHOICES), {"one expert": 2, "nobody": EXPERTS, "last expert": 4}[case])
    check(ids, residual=True)
    check(ids, shared=True)


@pytest.mark.parametrize("kernel", ["few rows", "few rows, split"])
def test_programs_in_any_order(kernel: str) -> None:
    """The same bits whichever program is the last one."""
    ids = np.random.default_rng(3).integers(-1, EXPERTS, (9, CHOICES))
    out = plain(-1, N)
    operands = operands_of(ids, True)
    text = combine_text(X, W, out, shared=True)
    with forced(KERNELS[kernel], ids.size):
        count = int(np.prod(lowered(text).variant(9).launches[0].grid.of(9)))
        made = []
        for seed, parallel in enumerate((1, 2, 5, count)):
            order = np.random.default_rng(seed).permutation(count)
            made += run(text, operands, [out], 9, parallel=parallel, order=order)
    for other in made[1:]:
        np.testing.assert_array_equal(made[0].view(np.uint16), other.view(np.uint16))


@pytest.mark.parametrize(
    ("was", "is_now"), [("gpu.barrier", ""), ("sem = 4 : i32", "sem = 1 : i32")]
)
def test_the_last_program_needs_its_barrier_and_order(was: str, is_now: str) -> None:
    """The interpreter tells when it reads rows that it cannot rely on."""
    ids = np.arange(2 * CHOICES).reshape(2, CHOICES) % EXPERTS
    operands, out = operands_of(ids, False), plain(-1, N)
    with forced(KERNELS["few rows"], 6), pytest.raises(Trap, match="reads what program"):
        run(TEXT, operands, [out], 2, edit=lambda text: text.replace(was, is_now))


@pytest.mark.parametrize("t", [3, 40])
def test_against_exact_sums(t: int) -> None:
    """Not only like the operations apart, but right; scales of x lie by columns."""
    ids = np.random.default_rng(t).integers(-1, EXPERTS + 1, (t, CHOICES))
    x_type = quantized(-1, CHOICES, K, layout="col_major")
    out = plain(-1, N, dtype="f32")
    text = combine_text(x_type, W, out, "f32", residual=True)
    operands = operands_of(ids, False, x_type)
    old = random((t, N), "f32", 3)
    (made,) = run(text, [*operands, old], [out], t)
    x, w, indptr, slots, factors = operands
    flat = Shaped((-1, K), x_type.dtype, x_type.scheme)
    rows = products(dequantized(x, flat), w, W, indptr, None)
    expected = old.astype(np.float64)
    for token, j in np.argwhere(slots >= 0):
        expected[token] += factors[token, j].astype(np.float64) * rows[slots[token, j]]
    assert_close(made, expected, "f32")


def test_many_experts() -> None:
    """512, few of which have rows, and a ragged N."""
    w_type = quantized(512, 40, 64, block=(16, 32))
    x_type, out = quantized(-1, CHOICES, 64, block=(1, 32)), plain(-1, 40, dtype="f32")
    w = weights_of(w_type)
    text = combine_text(x_type, w_type, out, "f32", shared=True)
    for t in (2, 20):
        ids = np.random.default_rng(t).choice([0, 17, 200, 511, 512, -1], (t, CHOICES))
        operands = operands_of(ids, True, x_type, w)
        (made,) = run(text, operands, [out], t)
        x, _, indptr, slots, factors = operands
        flat = Shaped((-1, 64), x_type.dtype, x_type.scheme)
        rows = products(dequantized(x, flat), w, w_type, indptr, None)
        expected = np.zeros((t, 40))
        for token, j in np.argwhere(slots >= 0):
            expected[token] += (1 if j == 2 else factors[token, j]) * rows[slots[token, j]]
        assert_close(made, expected, "f32")


def test_nothing_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of the experts that have rows once, the rows of x for each tile, and the rows."""
    reports = []

    def recorded(*arguments: Any, **options: Any) -> Report:
        reports.append(interpret(*arguments, **options))
        return reports[-1]

    monkeypatch.setattr(gpu_kernels, "interpret", recorded)
    ids = np.array([[0, 4, 2], [2, 0, -1], [2, 2, 4]])
    out, rows, experts, tiles = plain(-1, N), 8, 3, 2
    with forced(KERNELS["few rows"], 9):
        run(TEXT, operands_of(ids, False), [out], 3)
    (report,) = reports
    read = experts * N * K + tiles * rows * K + 2 * rows * N
    assert read < report.load_bytes < read + 2500


@pytest.mark.parametrize("case", BAD_INDPTR)
@pytest.mark.parametrize("t", [5, 20])
def test_bad_routing_stays_within_bounds(case: str, t: int) -> None:
    """The interpreter traps an access outside; slots that are no row are left out."""
    strange = np.array([-1, -(2**31), 2**31 - 1, t * CHOICES], np.int32)
    slots = strange[np.arange(t * CHOICES) % 4].reshape(t, CHOICES)
    codes, scale = random_codes(quantized(-1, K), t * CHOICES, 7)
    indptr = np.array(BAD_INDPTR[case], np.int32)
    operands = [(codes * 0, scale), WEIGHTS, indptr, slots, random((t, CHOICES), "f32", 2)]
    out = plain(-1, N)
    (made,) = run(TEXT, operands, [out], t, same_value=True)
    assert (made == 0).all()


@pytest.mark.parametrize("target", [target for target in GPUS if target != "cuda:sm_90"])
def test_other_targets(target: str) -> None:
    for t in (2, 21):
        ids = np.random.default_rng(6).integers(0, EXPERTS, (t, CHOICES))
        check(ids, residual=True, shared=True, target=target)
