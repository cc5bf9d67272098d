"""Sorting choices by expert, and adding up what came of them."""

import pytest
import torch
from cpu_kernels import (
    TESTED_LEVELS,
    TORCH,
    Tensor,
    kernel_text,
    plain,
    run,
    same_bits,
    segment_sizes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from routing_reference import choices, route

levels = pytest.mark.parametrize("level", TESTED_LEVELS)


def run_route(
    ids: Tensor, experts: int, level: str | None = None, shared: bool = False
) -> list[Tensor]:
    dtype = {torch.int32: "i32", torch.int64: "i64"}[ids.dtype]
    k = ids.shape[1]
    results = [plain(-1, k + shared, dtype="i32")] * 2 + [plain(experts + shared + 1, dtype="i32")]
    attributes = f"num_experts = {experts} : i64" + ", shared = 1 : i64" * shared
    text = kernel_text("route", [plain(-1, k, dtype=dtype)], results, attributes)
    return run(text, level, [ids], results, len(ids), threads=2)


@levels
@settings(deadline=None, max_examples=40)
@given(st.data())
def test_route(level: str, data: st.DataObject) -> None:
    k, experts = data.draw(st.sampled_from([(1, 1), (8, 128), (3, 7), (2, 512)]))
    ids = data.draw(choices(60, k, experts))
    ids = ids.to(data.draw(st.sampled_from([torch.int32, torch.int64])))
    shared = data.draw(st.booleans())
    got = run_route(ids, experts, level, shared)
    if len(ids):
        assert all(map(torch.equal, got, route(ids, experts, shared)))


def test_no_id_is_the_shared_expert() -> None:
    """Its number, and every other that is no expert, in ids; it has a row of each token."""
    ids = torch.tensor([[3, 2, -1], [1, 3, 4]])
    slots, tokens, indptr = run_route(ids, 3, shared=True)
    assert slots.tolist() == [[-1, 1, -1, 2], [0, -1, -1, 3]]
    assert tokens.flatten().tolist() == [1, 0, 0, 1, 0, 0, 0, 0]
    assert indptr.tolist() == [0, 0, 1, 2, 4]


def test_ids_beyond_32_bits_are_no_experts() -> None:
    """Their lower half alone would be one."""
    ids = torch.tensor([[2**32 + 1, -(2**40) + 1, 1]])
    slots, tokens, indptr = run_route(ids, 4)
    assert slots.tolist() == [[-1, -1, 0]]
    assert tokens.tolist() == [[0, 0, 0]] and indptr.tolist() == [0, 0, 1, 1, 1]


def test_many_tokens() -> None:
    ids = torch.randint(-1, 257, (4096, 8), generator=torch.manual_seed(3))
    assert all(map(torch.equal, run_route(ids, 256), route(ids, 256)))


def combine_text(
    k: int, n: int, y: str, weights: str, out: str, residual: bool, shared: bool = False
) -> str:
    given_ = [plain(-1, k, n, dtype=y), plain(-1, k, dtype="i32")]
    given_.append(plain(-1, k - shared, dtype=weights))
    result = plain(-1, n, dtype=out)
    attributes = segment_sizes("operand", [True, True, True, residual])
    return kernel_text("combine", [*given_, *([result] if residual else [])], [result], attributes)


def combined(
    y: Tensor, slots: Tensor, weights: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """In f32, in order, without those that are no row; then rounded.

    A shared expert, which has a slot but no weight, is added to what was rounded.
    """
    rows = y.flatten(0, 1).float()
    there = (slots >= 0) & (slots < len(rows))
    out = torch.zeros(len(y), y.shape[2])
    chosen = slots.clamp(0, max(0, len(rows) - 1)).long()
    for j in range(weights.shape[1]):
        term = weights[:, j, None].float() * rows[chosen[:, j]]
        out = torch.where(there[:, j, None], out + term, out)
    out = out.to(dtype)
    if weights.shape[1] < slots.shape[1]:
        with_it = (out.float() + rows[chosen[:, -1]]).to(dtype)
        out = torch.where(there[:, -1, None], with_it, out)
    return out


@levels
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("y_type", "w_type", "out_type", "k", "n"),
    [
        ("bf16", "f32", "bf16", 8, 300),
        ("f32", "bf16", "f32", 1, 7),
        ("f16", "f16", "f16", 3, 64),
        ("bf16", "bf16", "f32", 20, 130),
    ],
)
def test_combine(
    level: str,
    y_type: str,
    w_type: str,
    out_type: str,
    k: int,
    n: int,
    residual: bool,
    shared: bool,
) -> None:
    k += shared
    text = combine_text(k, n, y_type, w_type, out_type, residual, shared)
    result = plain(-1, n, dtype=out_type)
    generator = torch.manual_seed(k)
    for t in (0, 1, 3, 40):
        ids = torch.randint(-2, 6, (t, k), generator=generator)
        slots, _, indptr = route(ids, 5)
        y = torch.randn(t * k, n, generator=generator)
        y[int(indptr[-1]) :] = torch.nan  # nobody computed those rows
        y = y.to(TORCH[y_type]).view(t, k, n)
        weights = torch.rand(t, k - shared, generator=generator).to(TORCH[w_type])
        old = torch.randn(t, n, generator=generator).to(TORCH[out_type])
        arguments = [y, slots, weights, *([old] if residual else [])]
        (got,) = run(text, level, arguments, [result], t, threads=2)
        wanted = combined(y, slots, weights, TORCH[out_type])
        if residual:
            wanted = (wanted.float() + old.float()).to(TORCH[out_type])
        assert same_bits(got, wanted)


@levels
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("y_type", "out_type", "k", "n"),
    [("bf16", "bf16", 8, 300), ("f32", "bf16", 1, 7), ("f16", "f16", 3, 64)],
)
def test_combine_with_a_shared_expert(
    level: str, y_type: str, out_type: str, k: int, n: int, residual: bool
) -> None:
    """As `qfuse.add` of the rounded sum and the shared expert's row, and of a residual then."""
    text = combine_text(k + 1, n, y_type, "f32", out_type, residual, shared=True)
    result = plain(-1, n, dtype=out_type)
    generator = torch.manual_seed(k)
    for t in (0, 1, 3, 40):
        ids = torch.randint(-2, 7, (t, k), generator=generator)
        slots, _, indptr = route(ids, 5, shared=True)
        y = torch.randn(t * (k + 1), n, generator=generator)
        y[int(indptr[-1]) :] = torch.nan  # nobody computed those rows
        y = y.to(TORCH[y_type]).view(t, k + 1, n)
        weights = torch.rand(t, k, generator=generator)
        old = torch.randn(t, n, generator=generator).to(TORCH[out_type])
        arguments = [y, slots, weights, *([old] if residual else [])]
        (got,) = run(text, level, arguments, [result], t, threads=2)
        wanted = combined(y, slots, weights, TORCH[out_type])
        if residual:
            wanted = (wanted.float() + old.float()).to(TORCH[out_type])
        assert same_bits(got, wanted)


def test_combine_ignores_slots_that_are_no_row() -> None:
    k, n = 4, 32
    slots = torch.tensor([[0, 8, -7, 2**31 - 1], [7, -(2**31), 3, 9]], dtype=torch.int32)
    y, weights = torch.randn(2, k, n), torch.rand(2, k)
    result = plain(-1, n, dtype="f32")
    text = combine_text(k, n, "f32", "f32", "f32", False)
    (got,) = run(text, None, [y, slots, weights], [result], 2)
    assert same_bits(got, combined(y, slots, weights))
