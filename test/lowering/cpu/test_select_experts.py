"""Routers: which experts a token chooses, and how much each counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cpu_kernels import TESTED_LEVELS, TORCH, Tensor, kernel_text, plain, run, same_bits
from expert_selection import ROUTERS, Array, Router, random_logits, strange_logits
from hypothesis import given, settings
from hypothesis import strategies as st

levels = pytest.mark.parametrize("level", TESTED_LEVELS)
TYPES = [("f32", "i64", "f32"), ("bf16", "i32", "bf16"), ("f16", "i64", "f16")]
"""Of logits, ids and weights."""


def run_router(
    router: Router,
    logits: Array,
    bias: Array,
    types: tuple[str, str, str] = TYPES[0],
    level: str | None = None,
) -> tuple[Tensor, Tensor]:
    inputs = [plain(-1, router.experts, dtype=types[0]), plain(router.experts, dtype="f32")]
    results = [plain(-1, router.choices, dtype=d) for d in types[1:]]
    text = kernel_text("select_experts", inputs[: 1 + router.bias], results, router.attributes)
    arguments = [torch.from_numpy(logits).to(TORCH[types[0]]), torch.from_numpy(bias)]
    made = run(text, level, arguments[: 1 + router.bias], results, len(logits), threads=2)
    ids, weights = made
    assert isinstance(ids, Tensor) and isinstance(weights, Tensor)
    return ids, weights


def check_valid(ids: Tensor, experts: int) -> None:
    """In range, and all different."""
    assert bool(((ids >= 0) & (ids < experts)).all())
    assert all(len(set(row)) == len(row) for row in ids.tolist())


@levels
@pytest.mark.parametrize("number", range(len(ROUTERS)))
@settings(deadline=None, max_examples=6)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_experts_and_weights(level: str, number: int, tokens: int, seed: int) -> None:
    """The choices of f64; weights bit for bit, from the scores that the kernel itself computes."""
    router, types = ROUTERS[number], TYPES[number % len(TYPES)]
    logits, bias = random_logits(router, tokens, seed)
    ids, weights = run_router(router, logits, bias, types, level)
    check_valid(ids, router.experts)
    wanted, _, clear = router.select(logits, bias)
    np.testing.assert_array_equal(ids.numpy()[clear], wanted[clear])
    assert clear.mean() > 0.5 or tokens < 10
    plain_scores = replace(router, normalize=False, scale=1.0)
    same_ids, scores = run_router(plain_scores, logits, bias, ("f32", "i64", "f32"), level)
    assert torch.equal(same_ids, ids.long())
    expected = torch.from_numpy(router.weigh(scores.numpy())).to(TORCH[types[2]])
    assert same_bits(weights, expected)
    exact_scores = plain_scores.select(logits, bias)[1]
    np.testing.assert_allclose(scores.numpy()[clear], exact_scores[clear], rtol=2e-6)


@levels
@settings(deadline=None, max_examples=25)
@given(st.data())
def test_strange_logits(level: str, data: st.DataObject) -> None:
    """Whatever the logits, ids are in range and different; NaN is chosen first, as by torch."""
    router = data.draw(st.sampled_from([ROUTERS[0], ROUTERS[3], ROUTERS[4], ROUTERS[6]]))
    router = replace(router, bias=data.draw(st.booleans()))
    logits = data.draw(strange_logits(5, router.experts))
    bias = data.draw(strange_logits(1, router.experts))[0]
    ids, _ = run_router(router, logits, bias, level=level)
    check_valid(ids, router.experts)
    if router.scoring == "softmax" and not router.bias:
        broken = np.isnan(logits).any(1) | (logits.max(1) == np.inf)
        assert (ids.numpy()[broken] == np.arange(router.choices)).all()


@levels
def test_nan_is_chosen_first(level: str) -> None:
    """Of either sign, from logits or from the bias."""
    logits = np.array([[3, 1, 5, np.nan, np.inf], [1, 1, 2, -np.inf, -np.nan]], np.float32)
    bias = np.array([0, -np.nan, 0, 0, 0], np.float32)
    router = Router(5, 5, "sigmoid", bias=True, normalize=False)
    ids, weights = run_router(router, logits, bias, level=level)
    assert ids.tolist() == [[1, 3, 4, 2, 0], [1, 4, 2, 0, 3]]
    assert weights[0, :2].isnan().tolist() == [False, True] and weights[1, 4] == 0


@levels
def test_scores_that_are_hardly_any(level: str) -> None:
    """The sum has something added where that is seen, and is never divided by as zero."""
    router, bias = Router(4, 2, "sigmoid"), np.zeros(4, np.float32)
    logits = np.array([[-46, -46, -47, -48], [-200, -200, -200, -200]], np.float32)
    ids, weights = run_router(router, logits, bias, level=level)
    assert ids.tolist() == [[0, 1], [0, 1]]
    with np.errstate(over="ignore"):
        exact = router.select(logits, bias)[1]
    assert 0.3 < exact[0, 0] < 0.4
    np.testing.assert_allclose(weights, exact, rtol=1e-5, atol=1e-30)


@levels
def test_experts_of_unused_groups_are_never_chosen(level: str) -> None:
    """Not even before those of used groups with a negative sum of score and bias."""
    router = Router(9, 6, "sigmoid", bias=True, normalize=False, groups=3, used=2)
    bias = np.array([-9, -9, -9, -1, -2, -3, -1.5, -2.5, -3.5], np.float32)
    ids, weights = run_router(router, np.zeros((1, 9), np.float32), bias, level=level)
    assert ids.tolist() == [[3, 6, 4, 7, 5, 8]] and weights.tolist() == [[0.5] * 6]


def test_no_tokens() -> None:
    ids, weights = run_router(ROUTERS[0], np.zeros((0, 128)), np.zeros(128))
    assert ids.shape == weights.shape == (0, 8)


def test_many_tokens_on_threads() -> None:
    router = ROUTERS[3]
    logits, bias = random_logits(router, 2000, 7)
    ids, weights = run_router(router, logits, bias)
    wanted, exact, clear = router.select(logits, bias)
    np.testing.assert_array_equal(ids.numpy()[clear], wanted[clear])
    np.testing.assert_allclose(weights.numpy()[clear], exact[clear], rtol=3e-6)
