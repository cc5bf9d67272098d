"""Products by the weights of experts on the interpreter: against f64 and against dense products.

Whatever the routing, no row is written that is nobody's, and nothing is read that is not there.
"""

from itertools import pairwise
from math import erf, sqrt
from typing import Any

import gpu_kernels
import numpy as np
import pytest
from gpu_kernels import (
    SILU_GLU,
    Array,
    Value,
    assert_close,
    assert_quantized,
    biased_glu,
    dequantized,
    execute,
    forced,
    lowered,
    matmul_text,
    plain,
    quantized,
    random,
    random_codes,
    run,
    silu,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from qfuse.dialects.glu import SWIGLU_OAI, Glu
from qfuse.dialects.types import Shaped
from qfuse.lowering.triton.gpu import GPUS
from qfuse.lowering.triton.interpreter import Buffer, Report
from qfuse.lowering.triton.interpreter import run as interpret
from qfuse.lowering.triton.tiles import Config

BLOCK = (128, 128)
EXPERTS, CHOICES, N, K = 5, 3, 200, 328
INDPTR, TOKENS = plain(EXPERTS + 1, dtype="i32"), plain(-1, CHOICES, dtype="i32")
X, W = quantized(-1, K), quantized(EXPERTS, N, K, block=BLOCK)
OUT = plain(-1, CHOICES, N)
TEXT = matmul_text(X, W, [OUT], routing=[INDPTR, TOKENS])

KERNELS = {
    "few rows": Config(16, 128, 128, swap=True, num_stages=4),
    "few rows, split": Config(16, 64, 128, swap=True, slices=3, num_stages=4),
    "tiles": Config(64, 64, 128),
    "large tiles": Config(128, 128, 128, num_warps=8),
}


def routed(ids: Array, experts: int = EXPERTS, shared: bool = False) -> tuple[Array, Array, Array]:
    """Slots, tokens and indptr for ids [T, k], as the contract of `qfuse.route` says.

    `shared`: with one more expert, of every token.
    """
    if shared:
        named = np.where((ids >= 0) & (ids < experts), ids, -1)
        return routed(np.pad(named, [(0, 0), (0, 1)], constant_values=experts), experts + 1)
    flat = ids.reshape(-1)
    chosen = np.where((flat >= 0) & (flat < experts), flat, experts)
    order = np.argsort(chosen, kind="stable")
    there = chosen[order] < experts
    slots = np.full(flat.size, -1, np.int32)
    slots[order[there]] = np.flatnonzero(there)
    tokens = np.where(there, order // ids.shape[1], 0).astype(np.int32)
    indptr = np.searchsorted(chosen[order], np.arange(experts + 1)).astype(np.int32)
    return slots.reshape(ids.shape), tokens.reshape(ids.shape), indptr


def weights_of(value: Shaped, seed: int = 0) -> Value:
    """A weight [E, N, K] of other values for each expert."""
    experts, n, k = value.shape
    if value.scheme is None:
        return random((experts, n, k), value.dtype, seed)
    each = [random_codes(of_one(value), n, seed + e) for e in range(experts)]
    return np.stack([codes for codes, _ in each]), np.stack([scale for _, scale in each])


def of_one(value: Shaped) -> Shaped:
    """The type of one expert's weight."""
    return Shaped(value.shape[1:], value.dtype, value.scheme)


def exact(x: Value, x_type: Shaped) -> Array:
    return dequantized(x, x_type) if isinstance(x, tuple) else x.astype(np.float64)


def weight_of(w: Value, w_type: Shaped, expert: int) -> Array:
    one = (w[0][expert], w[1][expert]) if isinstance(w, tuple) else w[expert]
    return exact(one, of_one(w_type))


def products(x: Array, w: Value, w_type: Shaped, indptr: Array, tokens: Array | None) -> Array:
    """f64 rows [indptr[-1], N] in the order of experts."""
    rows = x if tokens is None else x[tokens.reshape(-1)]
    made = [
        rows[begin:end] @ weight_of(w, w_type, e).T
        for e, (begin, end) in enumerate(pairwise(indptr))
    ]
    return np.concatenate(made)


def written(buffer: Buffer) -> Array:
    """Which rows of a matrix are written, each of them whole."""
    rows = buffer.initialised.reshape(buffer.array.shape)
    assert (rows.all(1) == rows.any(1)).all()
    return rows.all(1)


def activations(t: int, value: Shaped = X) -> Value:
    if value.scheme is None:
        return random((t, value.shape[-1]), value.dtype, 7)
    return random_codes(value, t, 7)


WEIGHTS = weights_of(W)


def product_of(ids: Array, text: str = TEXT, x: Value | None = None, **options: Any) -> Buffer:
    _, tokens, indptr = routed(ids)
    operands = [activations(len(ids)) if x is None else x, WEIGHTS, indptr, tokens]
    ((made,),) = execute(text, operands, [OUT], ids.size, **options)
    return made


def check(ids: Array, **options: Any) -> None:
    """Against f64; rows that are nobody's stay as they were."""
    made = product_of(ids, **options)
    _, tokens, indptr = routed(ids)
    count = indptr[-1]
    np.testing.assert_array_equal(written(made), np.arange(ids.size) < count)
    if count:
        expected = products(exact(activations(len(ids)), X), WEIGHTS, W, indptr, tokens)
        assert_close(made.array[:count], expected, "bf16")


@st.composite
def choices(draw: st.DrawFn, most: int) -> Array:
    """Ids [T, CHOICES]: often of few experts, some of none."""
    t = draw(st.integers(1, most))
    ids = st.sampled_from(draw(st.lists(st.integers(-1, EXPERTS + 1), min_size=1, max_size=3)))
    flat = draw(st.lists(ids, min_size=t * CHOICES, max_size=t * CHOICES))
    return np.array(flat).reshape(t, CHOICES)


@settings(deadline=None, max_examples=20)
@given(choices(60))
def test_any_routing(ids: Array) -> None:
    check(ids)


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel(name: str) -> None:
    """Tiles that an expert fills, leaves partly empty, or does not have; the rest is nobody's."""
    config = KERNELS[name]
    rows = [config.rows + 1, 0, 2 * config.rows, 7, 0]
    ids = np.repeat([0, 1, 2, 3, -1], [*rows[:4], 5])
    ids = np.random.default_rng(1).permutation(ids)[: ids.size // CHOICES * CHOICES]
    with forced(config, ids.size):
        check(ids.reshape(-1, CHOICES))


@pytest.mark.parametrize("t", [1, 4, 90])
@pytest.mark.parametrize("case", ["one expert", "nobody", "last expert"])
def test_lopsided_routings(case: str, t: int) -> None:
    check(np.full((t, CHOICES), {"one expert": 2, "nobody": EXPERTS, "last expert": 4}[case]))


def test_programs_in_any_order() -> None:
    """The same bits whichever program comes first, also where slices of K are added."""
    ids = np.random.default_rng(3).integers(-1, EXPERTS, (40, CHOICES))
    for config in (KERNELS["few rows, split"], KERNELS["tiles"]):
        with forced(config, ids.size):
            grid = lowered(TEXT).variant(ids.size).launches[0].grid.of(ids.size)
            count = int(np.prod(grid))
            order = np.random.default_rng(4).permutation(count)
            made = [
                product_of(ids, parallel=n, order=o).array for n, o in ((None, None), (2, order))
            ]
        np.testing.assert_array_equal(made[0].view(np.uint8), made[1].view(np.uint8))


def test_rows_are_those_of_dense_products() -> None:
    """Bit for bit, with the same tiles."""
    ids = np.repeat(np.arange(EXPERTS), [20, 3, 0, 16, 6]).reshape(-1, CHOICES)
    _, tokens, indptr = routed(ids)
    codes, scale = activations(len(ids))
    dense = plain(-1, N)
    with forced(Config(64, 64, 128)):
        made = product_of(ids).array
        for e, (begin, end) in enumerate(pairwise(indptr)):
            if begin < end:
                rows = tokens.reshape(-1)[begin:end]
                w = tuple(np.copy(part[e]) for part in WEIGHTS)
                operands = [(codes[rows], scale[rows]), w]
                text = matmul_text(X, of_one(W), [dense])
                (wanted,) = run(text, operands, [dense], end - begin)
                np.testing.assert_array_equal(
                    made[begin:end].view(np.uint16), wanted.view(np.uint16)
                )


def test_nothing_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of the experts that have rows, these rows for each tile, and a few scales."""
    ids = np.array([[0, 4, 2], [2, 0, -1], [2, 2, 4]])
    reports = []

    def recorded(*arguments: Any, **options: Any) -> Report:
        reports.append(interpret(*arguments, **options))
        return reports[-1]

    monkeypatch.setattr(gpu_kernels, "interpret", recorded)
    with forced(KERNELS["few rows"]):
        check(ids)
    (report,) = reports
    rows, experts, tiles = 8, 3, 2
    codes = experts * N * K + tiles * rows * K
    assert codes < report.load_bytes < codes + 1500


BAD_INDPTR = {
    "not monotone": [0, 20, 3, 60, 10, 12],
    "negative": [-5, -(2**31), 4, -1, 9, 30],
    "beyond the rows": [0, 2**31 - 1, 5, 2**31 - 1, 7, 2**31 - 1],
    "not from zero": [7, 9, 9, 30, 30, 31],
}


@pytest.mark.parametrize("case", BAD_INDPTR)
@pytest.mark.parametrize("kernel", ["few rows", "tiles"])
def test_bad_routing_stays_within_bounds(case: str, kernel: str) -> None:
    """The interpreter traps an access outside.  Of rows that two experts claim, either may win:
    they are zero here, so that it does not matter which."""
    t = 11
    strange = np.array([-1, -(2**31), 2**31 - 1, t], np.int32)
    tokens = strange[np.arange(t * CHOICES) % 4].reshape(t, CHOICES)
    codes, scale = activations(t)
    operands = [(codes * 0, scale), WEIGHTS, np.array(BAD_INDPTR[case], np.int32), tokens]
    with forced(KERNELS[kernel]):
        ((made,),) = execute(TEXT, operands, [OUT], t * CHOICES, same_value=True)
    rows = written(made)
    assert rows.any() and (made.array[rows] == 0).all()


def test_gate_and_up_of_experts_quantized() -> None:
    """Parts of an expert begin at scale blocks; scales of x and of the result lie by columns."""
    n, t = 150, 40
    begin = 256
    w_type = quantized(EXPERTS, begin + n, K, block=BLOCK)
    x_type = quantized(-1, K, layout="col_major")
    out = quantized(-1, CHOICES, n, layout="col_major")
    text = matmul_text(
        x_type, w_type, [out], SILU_GLU, ["%v"], parts=[n, n], routing=[INDPTR, TOKENS]
    )
    w = weights_of(w_type, 3)
    assert isinstance(w, tuple)
    w[0][:, n:begin] = np.nan  # nobody's rows
    ids = np.random.default_rng(5).integers(-1, EXPERTS, (t, CHOICES))
    _, tokens, indptr = routed(ids)
    x = activations(t, x_type)
    ((codes, scale),) = execute(text, [x, w, indptr, tokens], [out], ids.size)
    count = indptr[-1]
    assert 0 < count < ids.size
    np.testing.assert_array_equal(written(codes), np.arange(ids.size) < count)
    total = products(exact(x, x_type), w, w_type, indptr, tokens)
    values = silu(total[:, :n]) * total[:, begin:]
    assert_quantized((codes.array[:count], scale.array[:, :count]), values, out)


def test_rows_in_the_order_of_experts() -> None:
    """Without tokens x has the rows; extra operands and results of two widths go along."""
    widths, m = (200, 70), 40
    w_type = quantized(EXPERTS, 256 + 70, K, block=BLOCK)
    x_type = quantized(-1, CHOICES, K, layout="col_major")
    outs = [plain(-1, CHOICES, n, dtype="f32") for n in widths]
    extra = [
        (outs[0], "[M,N]"),
        (plain(70, dtype="f32"), "[N]"),
        (plain(-1, CHOICES, 1, dtype="f32"), "[M,1]"),
    ]
    body = "%y0 = arith.addf %acc0, %e0 : f32\n%b = arith.addf %acc1, %e1 : f32\n"
    body += "%y1 = arith.mulf %b, %e2 : f32"
    text = matmul_text(x_type, w_type, outs, body, ["%y0", "%y1"], extra, widths, [INDPTR])
    w = weights_of(w_type)
    indptr = np.array([0, 0, 17, 18, 18, m], np.int32)
    x = random_codes(quantized(-1, K, layout="col_major"), m, 1)
    more = [random(shape, "f32", 5) for shape in ((m, 200), (70,), (m, 1))]
    made = run(text, [x, w, indptr, *more], outs, m)
    total = products(dequantized(x, x_type), w, w_type, indptr, None)
    assert_close(made[0], total[:, :200] + more[0], "f32")
    assert_close(made[1], (total[:, 256:] + more[1]) * more[2], "f32")


ROUNDED = """
%t = arith.truncf %acc0 : f32 to bf16
%r = arith.extf %t : bf16 to f32
%y = arith.addf %r, %e0 : f32
"""
BIAS = (EXPERTS, N)
BIASED = matmul_text(
    X, W, [OUT], ROUNDED, ["%y"], [(plain(*BIAS), "[E,N]")], routing=[INDPTR, TOKENS]
)


def check_biased(ids: Array, **options: Any) -> None:
    """The bits of the product alone, rounded, plus the bias of each row's expert, rounded."""
    _, tokens, indptr = routed(ids)
    bias = random(BIAS, "bf16", 8, scale=100)
    operands = [activations(len(ids)), WEIGHTS, indptr, tokens, bias]
    ((made,),) = execute(BIASED, operands, [OUT], ids.size, **options)
    np.testing.assert_array_equal(written(made), np.arange(ids.size) < indptr[-1])
    alone = product_of(ids, **options).array[: indptr[-1]].astype(np.float32)
    of_rows = np.repeat(np.arange(EXPERTS), np.diff(indptr))
    expected = (alone + bias[of_rows].astype(np.float32)).astype(made.array.dtype)
    np.testing.assert_array_equal(
        made.array[: indptr[-1]].view(np.uint16), expected.view(np.uint16)
    )


@pytest.mark.parametrize("glu", [Glu("gelu", 2.0), Glu(SWIGLU_OAI, 4.0)], ids=str)
def test_biased_gate_and_up_of_experts_quantized(glu: Glu) -> None:
    """With the roundings of separate operations, of which f32 sums may move some."""
    n, t, begin = 150, 20, 256
    w_type = quantized(EXPERTS, begin + n, K, block=BLOCK)
    out, value_type = quantized(-1, CHOICES, n), plain(-1, CHOICES, n)
    extra = [(plain(EXPERTS, n), "[E,N]")] * 2
    text = matmul_text(
        X, w_type, [value_type, out], biased_glu(glu), ["%v", "%v"], extra, [n, n], [INDPTR, TOKENS]
    )
    ids = np.random.default_rng(5).integers(-1, EXPERTS, (t, CHOICES))
    _, tokens, indptr = routed(ids)
    codes, scale = activations(t)
    x, w = (codes, scale * np.float32(2e-3)), weights_of(w_type, 3)  # sums of a few units
    biases = [random((EXPERTS, n), "bf16", seed, scale=2.0) for seed in (1, 2)]
    made, quantized_ = execute(text, [x, w, indptr, tokens, *biases], [value_type, out], ids.size)
    count = indptr[-1]
    value = made[0].array[:count].astype(np.float64)
    assert_quantized(tuple(part.array[:count] for part in quantized_), value, out)
    total = products(exact(x, X), w, w_type, indptr, tokens)
    rows = np.repeat(np.arange(EXPERTS), np.diff(indptr))
    gate, up = (
        part + bias[rows].astype(np.float64)
        for part, bias in zip((total[:, :n], total[:, begin:]), biases, strict=True)
    )
    gate, up = np.minimum(gate, glu.limit), np.clip(up, -glu.limit, glu.limit)
    if glu.act == SWIGLU_OAI:
        expected = gate / (1 + np.exp(-glu.alpha * gate)) * (up + 1)
    else:
        expected = gate / 2 * (1 + np.vectorize(erf)(gate / sqrt(2))) * up
    assert (np.abs(gate) == glu.limit).any() and (np.abs(gate) < glu.limit).any()
    # seven roundings to bf16, each of a factor or of a sum of at most 20
    assert (np.abs(value - expected) <= 7 * 2.0**-8 * (np.abs(expected) + 4)).all()


@settings(deadline=None, max_examples=12)
@given(choices(60))
def test_biases_of_experts(ids: Array) -> None:
    check_biased(ids)


@pytest.mark.parametrize("name", KERNELS)
def test_biases_in_every_kernel(name: str) -> None:
    """Also where the tile lies the other way, or is finished by the last of several programs."""
    config = KERNELS[name]
    ids = np.random.default_rng(9).permutation(np.repeat([0, 1, 3, 4, -1], [5, 40, 3, 17, 4]))
    with forced(config, ids.size):
        check_biased(ids.reshape(-1, CHOICES))


@pytest.mark.parametrize("target", [target for target in GPUS if target != "cuda:sm_90"])
def test_other_targets(target: str) -> None:
    check(np.random.default_rng(6).integers(0, EXPERTS, (11, CHOICES)), target=target)


@pytest.mark.parametrize("kind", ["bf16", "W8A16", "i8"])
def test_other_types(kind: str) -> None:
    """Many experts, few of which have rows; plain and quantized factors."""
    experts, n, t = 70, 48, 9
    blocks = {"bf16": None, "W8A16": BLOCK, "i8": (1, K)}[kind]
    dtype = "i8" if kind == "i8" else "f8E4M3FN"
    w_type = plain(experts, n, K)
    if blocks:
        w_type = quantized(experts, n, K, block=blocks, dtype=dtype)
    x_type = quantized(-1, K, block=(1, K), dtype="i8") if kind == "i8" else plain(-1, K)
    routing = [plain(experts + 1, dtype="i32"), plain(-1, 2, dtype="i32")]
    out = plain(-1, 2, n, dtype="f32")
    ids = np.random.default_rng(7).choice([0, 31, 32, 69], (t, 2))
    _, tokens, indptr = routed(ids, experts)
    x, w = activations(t, x_type), weights_of(w_type)
    text = matmul_text(x_type, w_type, [out], routing=routing)
    (made,) = run(text, [x, w, indptr, tokens], [out], ids.size)
    assert_close(made, products(exact(x, x_type), w, w_type, indptr, tokens), "f32")
