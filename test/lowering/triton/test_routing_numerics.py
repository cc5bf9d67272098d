"""`qfuse.route` and `qfuse.combine` on the interpreter, for any ids."""

import numpy as np
import pytest
from gpu_kernels import Array, kernel_text, plain, random, run, segment_sizes
from hypothesis import given, settings
from hypothesis import strategies as st
from test_group_numerics import routed

from qfuse.lowering.triton.gpu import GPUS


def route(ids: Array, experts: int, shared: bool, **options) -> tuple[Array, Array, Array]:
    choices = ids.shape[1]
    dtype = {4: "i32", 8: "i64"}[ids.itemsize]
    slots = plain(-1, choices + shared, dtype="i32")
    results = [slots, slots, plain(experts + shared + 1, dtype="i32")]
    attributes = f"num_experts = {experts} : i64" + ", shared = 1 : i64" * shared
    text = kernel_text("route", [plain(-1, choices, dtype=dtype)], results, attributes)
    made = run(text, [ids], results, len(ids), **options)
    return made[0], made[1], made[2]


def check(ids: Array, experts: int, shared: bool = False, **options) -> None:
    found = route(ids, experts, shared, **options)
    for made, expected in zip(found, routed(ids, experts, shared), strict=True):
        np.testing.assert_array_equal(made, expected)


@st.composite
def any_ids(draw: st.DrawFn) -> tuple[Array, int]:
    experts = draw(st.sampled_from([1, 5, 130]))
    t, k = draw(st.integers(1, 40)), draw(st.sampled_from([1, 3, 8]))
    low, high = -(2**63), 2**63 - 1
    if not draw(st.booleans()):
        low, high = low >> 32, high >> 32
    some = st.sampled_from([0, experts - 1, experts, -1, low, high]) | st.integers(0, experts - 1)
    flat = draw(st.lists(some, min_size=t * k, max_size=t * k))
    return np.array(flat, np.int64 if high > 2**31 else np.int32).reshape(t, k), experts


@settings(deadline=None, max_examples=20)
@given(any_ids(), st.booleans())
def test_any_ids(drawn: tuple[Array, int], shared: bool) -> None:
    check(*drawn, shared)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("case", ["2^32 and more", "one expert", "nobody", "the shared one's"])
def test_ids_that_are_hardly_any(case: str, shared: bool) -> None:
    """Ids whose low half is that of an expert are no expert's; nor is a shared expert's number."""
    same = {"2^32 and more": 2**32 + 1, "one expert": 2, "nobody": -1, "the shared one's": 3}
    check(np.full((50, 4), same[case]), 3, shared)


@pytest.mark.parametrize("shared", [False, True])
def test_many_tokens_in_any_order(shared: bool) -> None:
    """More than a program looks at together, and more experts than have any."""
    ids = np.random.default_rng(0).integers(-3, 300, (700, 8))
    order = np.random.default_rng(1).permutation(513 + shared)
    check(ids, 512, shared)
    check(ids, 512, shared, parallel=7, order=order)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("target", GPUS)
def test_every_target(target: str, shared: bool) -> None:
    check(np.random.default_rng(2).integers(-1, 9, (20, 2)), 8, shared, target=target)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("t", "width", "residual"), [(1, 2048, True), (37, 200, False),
                                                      (5, 3000, True)])  # fmt: skip
def test_combine(t: int, width: int, residual: bool, shared: bool) -> None:
    """Bit for bit: in f32, in the order of the choices, and rounded before the shared expert's
    row is added, and before the residual."""
    choices, experts = 3, 4
    ids = np.random.default_rng(t).integers(-2, experts + 1, (t, choices))
    slots, _, indptr = routed(ids, experts, shared)
    y = random((t * (choices + shared), width), "bf16", 1, 3)
    y[indptr[-1] :] = np.nan  # nobody's
    weights = random((t, choices), "f32", 2)
    weights[slots[:, :choices] < 0] = np.inf
    old = random((t, width), "bf16", 3)
    out = plain(1, -1, width)
    types = [plain(-1, choices + shared, width), plain(-1, choices + shared, dtype="i32")]
    types += [plain(-1, choices, dtype="f32"), *[out] * residual]
    text = kernel_text("combine", types, [out], segment_sizes("operand", [True] * 3 + [residual]))
    (made,) = run(text, [y, slots, weights, *[old] * residual], [out], t)
    expected = np.zeros((t, width), np.float32)
    for token, j in np.argwhere(slots[:, :choices] >= 0):
        term = y[slots[token, j]].astype(np.float32) * weights[token, j]
        expected[token] += term
    rounded = expected.astype(y.dtype)
    if shared:
        rounded = (rounded.astype(np.float32) + y[slots[:, -1]].astype(np.float32)).astype(y.dtype)
    if residual:
        rounded = (rounded.astype(np.float32) + old.astype(np.float32)).astype(y.dtype)
    np.testing.assert_array_equal(made.view(np.uint16), rounded.view(np.uint16))


def test_combine_follows_no_bad_slot() -> None:
    """Those outside of the rows are left out."""
    slots = np.array([[0, 2**31 - 1], [-(2**31), 4], [3, -7]], np.int32)
    y, weights = random((6, 64), "f32", 1), np.ones((3, 2), np.float32)
    row = plain(-1, 64, dtype="f32")
    types = [plain(-1, 2, 64, dtype="f32"), plain(-1, 2, dtype="i32"), plain(-1, 2, dtype="f32")]
    text = kernel_text("combine", types, [row], segment_sizes("operand", [True] * 3 + [False]))
    (made,) = run(text, [y, slots, weights], [row], 3)
    np.testing.assert_array_equal(made, y[[0, 4, 3]])
