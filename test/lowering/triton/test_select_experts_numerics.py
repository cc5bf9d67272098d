"""Routers on the interpreter: which experts a token chooses, and how much each counts."""

from dataclasses import replace

import numpy as np
import pytest
from expert_selection import ROUTERS, Router, random_logits, strange_logits
from gpu_kernels import Array, kernel_text, lowered, parsed, plain, run
from hypothesis import given, settings
from hypothesis import strategies as st

from qfuse.lowering.triton.gpu import GPUS, find_gpu
from qfuse.lowering.triton.interpreter.types import DTYPES
from qfuse.lowering.triton.lower import unsupported

TYPES = [("f32", "i64", "f32"), ("bf16", "i32", "bf16"), ("f16", "i64", "f16")]
"""Of logits, ids and weights."""


def router_text(router: Router, types: tuple[str, str, str] = TYPES[0]) -> str:
    inputs = [plain(-1, router.experts, dtype=types[0]), plain(router.experts, dtype="f32")]
    results = [plain(-1, router.choices, dtype=d) for d in types[1:]]
    return kernel_text("select_experts", inputs[: 1 + router.bias], results, router.attributes)


def run_router(
    router: Router,
    logits: Array,
    bias: Array,
    types: tuple[str, str, str] = TYPES[0],
    **options,
) -> tuple[Array, Array]:
    results = [plain(-1, router.choices, dtype=d) for d in types[1:]]
    arguments = [logits.astype(DTYPES[types[0]]), bias][: 1 + router.bias]
    with np.errstate(over="ignore", invalid="ignore"):  # logits may be anything
        made = run(router_text(router, types), arguments, results, len(logits), **options)
    return made[0], made[1]


@pytest.mark.parametrize("number", range(len(ROUTERS)))
@settings(deadline=None, max_examples=4)
@given(st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_experts_and_weights(number: int, tokens: int, seed: int) -> None:
    """The choices of f64; weights bit for bit, from the scores that the kernel itself computes."""
    router, types = ROUTERS[number], TYPES[number % len(TYPES)]
    logits, bias = random_logits(router, tokens, seed)
    ids, weights = run_router(router, logits, bias, types)
    wanted, _, clear = router.select(logits, bias)
    np.testing.assert_array_equal(ids[clear], wanted[clear])
    assert clear.mean() > 0.5 or tokens < 10
    plain_scores = replace(router, normalize=False, scale=1.0)
    same_ids, scores = run_router(plain_scores, logits, bias)
    np.testing.assert_array_equal(same_ids, ids)
    expected = router.weigh(scores).astype(weights.dtype)
    assert weights.tobytes() == expected.tobytes()
    exact_scores = plain_scores.select(logits, bias)[1]
    np.testing.assert_allclose(scores[clear], exact_scores[clear], rtol=2e-6)


@settings(deadline=None, max_examples=15)
@given(st.data())
def test_strange_logits(data: st.DataObject) -> None:
    """Whatever the logits, ids are in range and different, as on CPUs."""
    router = data.draw(st.sampled_from([ROUTERS[1], ROUTERS[3], ROUTERS[4], ROUTERS[6]]))
    router = replace(router, bias=data.draw(st.booleans()))
    logits = data.draw(strange_logits(3, router.experts))
    bias = data.draw(strange_logits(1, router.experts))[0]
    ids, _ = run_router(router, logits, bias)
    assert ((ids >= 0) & (ids < router.experts)).all()
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    if router.scoring == "softmax" and not router.bias:
        broken = np.isnan(logits).any(1) | (logits.max(1) == np.inf)
        assert (ids[broken] == np.arange(router.choices)).all()


def test_nan_is_chosen_first() -> None:
    """Of either sign, from logits or from the bias."""
    logits = np.array([[3, 1, 5, np.nan, np.inf], [1, 1, 2, -np.inf, -np.nan]], np.float32)
    bias = np.array([0, -np.nan, 0, 0, 0], np.float32)
    router = Router(5, 5, "sigmoid", bias=True, normalize=False)
    ids, weights = run_router(router, logits, bias)
    assert ids.tolist() == [[1, 3, 4, 2, 0], [1, 4, 2, 0, 3]]
    assert np.isnan(weights[0, :2]).tolist() == [False, True] and weights[1, 4] == 0


def test_scores_that_are_hardly_any() -> None:
    """The sum has something added where that is seen, and is never divided by as zero."""
    router, bias = Router(4, 2, "sigmoid"), np.zeros(4, np.float32)
    logits = np.array([[-46, -46, -47, -48], [-200, -200, -200, -200]], np.float32)
    ids, weights = run_router(router, logits, bias)
    assert ids.tolist() == [[0, 1], [0, 1]]
    with np.errstate(over="ignore"):
        exact = router.select(logits, bias)[1]
    assert 0.3 < exact[0, 0] < 0.4
    np.testing.assert_allclose(weights, exact, rtol=1e-5, atol=1e-30)


def test_experts_of_unused_groups_are_never_chosen() -> None:
    """Not even before those of used groups with a negative sum of score and bias."""
    router = Router(9, 6, "sigmoid", bias=True, normalize=False, groups=3, used=2)
    bias = np.array([-9, -9, -9, -1, -2, -3, -1.5, -2.5, -3.5], np.float32)
    ids, weights = run_router(router, np.zeros((1, 9), np.float32), bias)
    assert ids.tolist() == [[3, 6, 4, 7, 5, 8]] and weights.tolist() == [[0.5] * 6]


@pytest.mark.parametrize("target", GPUS)
def test_every_target(target: str) -> None:
    router = ROUTERS[3]
    logits, bias = random_logits(router, 9, 4)
    wanted, _, clear = router.select(logits, bias)
    ids, _ = run_router(router, logits, bias, target=target)
    np.testing.assert_array_equal(ids[clear], wanted[clear])


def test_one_warp_for_each_token() -> None:
    for router, warps in ((ROUTERS[0], 1), (ROUTERS[3], 1), (Router(2048, 8, "softmax"), 2)):
        (variant,) = lowered(router_text(router)).variants
        (launch,) = variant.launches
        assert launch.num_warps == warps and launch.grid.of(77) == (77, 1, 1)


def test_too_many_experts() -> None:
    router = Router(33 * 65, 8, "softmax", groups=33, used=2)
    with parsed(router_text(router)) as function:
        why = unsupported(function.entry_block.operations[0], find_gpu("cuda:sm_90"))
    assert why is not None and "take 8192 places; GPU kernels hold at most 4096" in why
