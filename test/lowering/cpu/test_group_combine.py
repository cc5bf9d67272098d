"""Products of experts that add up their rows: bit for bit the product and the combine apart."""

import json

import pytest
import torch
from cpu_kernels import (
    TESTED_LEVELS,
    TORCH,
    Quantized,
    Tensor,
    compiled,
    dequantize_reference,
    group_combine_text,
    group_text,
    kernel_text,
    plain,
    quantize_reference,
    quantized,
    run,
    same_bits,
    segment_sizes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_reference import choices, route
from test_group_matmul import BAD_INDPTR, BLOCK, activations, experts_of

from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.weights import pack_experts

levels = pytest.mark.parametrize("level", TESTED_LEVELS)
EXPERTS, CHOICES, N, K = 5, 3, 150, 200
PACKED = pack_experts(*experts_of(N, K), BLOCK)
PLAIN = pack_experts(activations(EXPERTS * N, K).view(EXPERTS, N, K), None, (1, K), "bf16")
HIDDEN = quantize_reference(activations(900, K), (1, 128))
WEIGHTS = torch.rand(300, CHOICES, generator=torch.manual_seed(5))


def of_tokens(rows: tuple[Tensor, ...], t: int) -> tuple[Tensor, ...]:
    """The first rows as those of `t` tokens."""
    return tuple(p[: t * CHOICES].reshape(t, CHOICES, p.shape[1]) for p in rows)


class Pair:
    """One computation as a single kernel, and as a product and a combine."""

    def __init__(
        self,
        *,
        row: str = "bf16",
        out: str = "bf16",
        weights: str = "f32",
        residual: bool = False,
        shared: bool = False,
        n: int = N,
        packed: tuple[Tensor, ...] = PACKED,
        experts: int = EXPERTS,
        block: tuple[int, int] = BLOCK,
    ) -> None:
        self.row, self.residual, self.out = plain(-1, CHOICES, n, dtype=row), residual, out
        self.weighted, self.weights = CHOICES - shared, weights
        self.result, self.packed = plain(-1, n, dtype=out), packed
        x, w = quantized(-1, CHOICES, K, block=(1, block[1])), quantized(experts, n, K, block=block)
        self.hidden: tuple[Tensor, ...] = HIDDEN
        if packed is PLAIN:
            x, w = plain(-1, CHOICES, K), plain(experts, n, K)
            self.hidden = (activations(900, K),)
        slots = plain(-1, CHOICES, dtype="i32")
        factors = plain(-1, self.weighted, dtype=weights)
        self.fused = group_combine_text(x, w, slots, factors, self.result, residual, row)
        self.product = group_text(x, w, [self.row])
        operands = [self.row, slots, factors, *[self.result] * residual]
        sizes = segment_sizes("operand", [True, True, True, residual])
        self.combine = kernel_text("combine", operands, [self.result], sizes)

    def arguments(self, ids: Tensor, experts: int) -> list[Tensor | Quantized]:
        t = len(ids)
        slots, _, indptr = route(ids, experts)
        x = of_tokens(self.hidden, t)
        factors = WEIGHTS[:t, : self.weighted].to(TORCH[self.weights])
        return [x, self.packed, indptr, slots, factors]

    def old(self, t: int) -> list[Tensor]:
        made = torch.randn(t, self.result.shape[1], generator=torch.manual_seed(t))
        return [made.to(TORCH[self.out])] if self.residual else []

    def run_fused(self, level: str | None, arguments: list, t: int, threads: int = 2) -> Tensor:
        (got,) = run(self.fused, level, [*arguments, *self.old(t)], [self.result], t, None, threads)
        assert isinstance(got, Tensor)
        return got

    def run_apart(self, level: str | None, arguments: list, t: int) -> Tensor:
        *product, slots, factors = arguments
        (y,) = run(self.product, level, product, [self.row], t * CHOICES, [t, CHOICES], 2)
        summands = [y, slots, factors, *self.old(t)]
        (wanted,) = run(self.combine, level, summands, [self.result], t)
        assert isinstance(wanted, Tensor)
        return wanted

    def check(self, level: str | None, ids: Tensor, experts: int = EXPERTS) -> None:
        arguments = self.arguments(ids, experts)
        got = self.run_fused(level, arguments, len(ids))
        assert same_bits(got, self.run_apart(level, arguments, len(ids)))


KINDS = {
    "plain": Pair(),
    "residual": Pair(residual=True),
    "shared expert": Pair(shared=True),
    "shared expert and residual": Pair(shared=True, residual=True),
    "f32 rows": Pair(row="f32", weights="bf16"),
    "f16": Pair(row="f16", out="f16", weights="f16", residual=True, shared=True),
    "unquantized": Pair(packed=PLAIN),
    "f32 results": Pair(out="f32", residual=True, shared=True),
}


@levels
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=12)
@given(choices(60, CHOICES, EXPERTS))
def test_any_routing(level: str, kind: str, ids: Tensor) -> None:
    KINDS[kind].check(level, ids)


def few_tokens() -> int:
    """Up to so many tokens nobody waits for a phase that adds up."""
    few, many = compiled(KINDS["plain"].fused).entries
    assert few.m_max is not None and many.m_min == few.m_max + 1
    assert few.phases == ("pack", "run") and many.phases == ("pack", "run", "add_rows")
    return few.m_max


def test_entries_are_read_again() -> None:
    kernel = compiled(KINDS["plain"].fused)
    metadata = json.loads(json.dumps(kernel.metadata()))
    assert CompiledKernel.from_metadata(metadata, kernel.code) == kernel
    assert kernel.describe()["entries"] == ["pack+run", "pack+run+add_rows"]


def test_tasks_and_scratch_are_for_the_rows_of_all_choices() -> None:
    few, many = compiled(KINDS["plain"].fused).entries
    for entry, m in ((few, 2), (many, 100)):
        assert entry.choices == CHOICES and entry.row_groups == EXPERTS
        # Rows of bf16, as wide as whole tiles; then x: each expert may leave 7 rows of a unit.
        kept = 2 * 256 * m * CHOICES
        assert entry.shared_bytes(m) >= kept + entry.shared_row_bytes * m * CHOICES
        rows = entry.task_rows(m, 1)
        assert rows % entry.rows_multiple == 0 and rows <= -(-m * CHOICES // 8) * 8
        assert entry.tasks(m, rows) >= entry.tiles * -(-m * CHOICES // rows)
    assert few.counters == few.tiles == 3 and many.counters == 0


@levels
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_both_ways_with_any_number_of_threads(level: str, threads: int) -> None:
    limit = few_tokens()
    pair = KINDS["shared expert and residual"]
    for t in (0, 1, 2, limit, limit + 1, 300):
        ids = torch.randint(-1, EXPERTS, (t, CHOICES), generator=torch.manual_seed(t))
        arguments = pair.arguments(ids, EXPERTS)
        wanted = pair.run_apart(level, arguments, t)
        for _ in range(3):
            assert same_bits(pair.run_fused(level, arguments, t, threads), wanted)


@levels
@pytest.mark.parametrize("expert", [2, -1, EXPERTS])
@pytest.mark.parametrize("t", [1, 180])
def test_one_expert_or_none_has_everything(level: str, t: int, expert: int) -> None:
    for kind in ("plain", "shared expert and residual"):
        KINDS[kind].check(level, torch.full((t, CHOICES), expert))


@levels
@pytest.mark.parametrize("n", [1, 64, 1100])
def test_widths(level: str, n: int) -> None:
    """Tiles of 64 and 128 columns, the last of which is not full."""
    pair = Pair(n=n, packed=pack_experts(*experts_of(n, K), BLOCK), residual=True)
    for t in (2, 90):
        pair.check(level, torch.randint(-1, EXPERTS, (t, CHOICES), generator=torch.manual_seed(t)))


@levels
def test_many_experts(level: str) -> None:
    """512, few of which have rows."""
    experts, block = 512, (16, 32)
    packed = pack_experts(*experts_of(16, K, experts, block), block)
    pair = Pair(n=16, packed=packed, experts=experts, block=block, shared=True)
    hidden = quantize_reference(activations(60, K), (1, 32))
    for t in (1, 20):
        ids = torch.tensor([0, 17, 200, 511, -1])[torch.arange(t * CHOICES) % 5].view(t, CHOICES)
        arguments = pair.arguments(ids, experts)
        arguments[0] = of_tokens(hidden, t)
        got = pair.run_fused(level, arguments, t)
        assert same_bits(got, pair.run_apart(level, arguments, t))


@levels
def test_against_exact_sums(level: str) -> None:
    """Not only like the operations apart, but right."""
    t = 40
    pair = Pair(row="f32", out="f32", residual=True)
    codes, scale = experts_of(N, K)
    ids = torch.randint(-1, EXPERTS + 1, (t, CHOICES), generator=torch.manual_seed(1))
    arguments = pair.arguments(ids, EXPERTS)
    got = pair.run_fused(level, arguments, t)
    slots, _, _ = route(ids, EXPERTS)
    x = dequantize_reference(HIDDEN, (1, 128))
    wanted = pair.old(t)[0].double().clone()
    for token in range(t):
        for j, e in enumerate(ids[token].tolist()):
            if 0 <= e < EXPERTS:
                w = dequantize_reference((codes[e], scale[e]), BLOCK)
                wanted[token] += WEIGHTS[token, j].double() * (w @ x[int(slots[token, j])])
    # f32 sums of K products with bf16 factors of size 1: far below one part in 10^4
    assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


@levels
def test_extra_operands_parts_and_tokens(level: str) -> None:
    """Whatever a product of experts may have besides; x has the tokens, not the rows."""
    t, n = 13, N
    result, row = plain(-1, n), plain(-1, CHOICES, n)
    w_type = quantized(EXPERTS, 256 + n, K, block=BLOCK)
    packed = pack_experts(*experts_of(256 + n, K), BLOCK)
    extra = [(row, "[M,N]"), (plain(n, dtype="f32"), "[N]"), (plain(-1, CHOICES, 1), "[M,1]")]
    body = "%s = arith.mulf %acc0, %acc1 : f32\n%b = arith.addf %s, %e1 : f32\n"
    body += "%c = arith.mulf %b, %e2 : f32\n%v = arith.addf %c, %e0 : f32"
    slots_type, factors = plain(-1, CHOICES, dtype="i32"), plain(-1, CHOICES, dtype="f32")
    shape = quantized(-1, K), w_type
    fused = group_combine_text(
        *shape, slots_type, factors, result, False, "bf16", CHOICES, body, "%v", extra, [n, n]
    )
    apart = group_text(*shape, [row], CHOICES, body, ["%v"], extra, [n, n])
    ids = torch.randint(-1, EXPERTS, (t, CHOICES), generator=torch.manual_seed(2))
    slots, tokens, indptr = route(ids, EXPERTS)
    x = tuple(part[:t] for part in HIDDEN)
    more = [
        activations(t * CHOICES, n).view(t, CHOICES, n),
        torch.randn(n),
        activations(t * CHOICES, 1),
    ]
    more[2] = more[2].view(t, CHOICES, 1)
    arguments = [x, packed, indptr, slots, WEIGHTS[:t], tokens, *more]
    (got,) = run(fused, level, arguments, [result], t, threads=2)
    arguments = [x, packed, indptr, tokens, *more]
    (y,) = run(apart, level, arguments, [row], t * CHOICES, [t, CHOICES], threads=2)
    sizes = segment_sizes("operand", [True, True, True, False])
    combine = kernel_text("combine", [row, slots_type, factors], [result], sizes)
    (wanted,) = run(combine, level, [y, slots, WEIGHTS[:t]], [result], t)
    assert same_bits(got, wanted)


@levels
@pytest.mark.parametrize("case", BAD_INDPTR)
@pytest.mark.parametrize("t", [1, 30])
def test_bad_routing_stays_within_bounds(level: str, case: str, t: int) -> None:
    """Whatever indptr and slots hold, every element is written and nothing beside it."""
    strange = torch.tensor([-1, -(2**31), 2**31 - 1, t * CHOICES, 0], dtype=torch.int32)
    pair = KINDS["residual"]
    arguments = pair.arguments(torch.zeros(t, CHOICES, dtype=torch.int64), EXPERTS)
    arguments[2] = torch.tensor(BAD_INDPTR[case], dtype=torch.int32)
    arguments[3] = strange[torch.arange(t * CHOICES) % 5].view(t, CHOICES)
    pair.run_fused(level, arguments, t, threads=3)


@levels
@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=6, max_size=6), st.integers(1, 40))
def test_any_indptr_stays_within_bounds(level: str, indptr: list[int], t: int) -> None:
    values = torch.tensor(indptr)
    values[::2] %= 3 * t + 4
    pair = KINDS["shared expert"]
    arguments = pair.arguments(torch.zeros(t, CHOICES, dtype=torch.int64), EXPERTS)
    arguments[2] = values.int()
    pair.run_fused(level, arguments, t)


def test_slots_that_are_no_row_are_left_out() -> None:
    t, pair = 3, KINDS["shared expert and residual"]
    arguments = pair.arguments(torch.full((t, CHOICES), 1), EXPERTS)
    bad = [[0, 9, 2**31 - 1], [-(2**31), 4, -7], [8, -1, 3]]
    arguments[3] = torch.tensor(bad, dtype=torch.int32)
    assert same_bits(pair.run_fused(None, arguments, t), pair.run_apart(None, arguments, t))
