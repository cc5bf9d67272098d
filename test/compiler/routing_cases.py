"""Choices of tokens for tests of routing, and what the contract makes of them."""

import torch
from hypothesis import strategies as st


@st.composite
def choices(draw: st.DrawFn, experts: int, tokens: int = 12) -> torch.Tensor:
    """ids int64 [0..tokens, 1..4]: spread, of few experts or of one, some or all of none."""
    t, k = draw(st.integers(0, tokens)), draw(st.integers(1, 4))
    none = [-1, experts, 2**32, -(2**40), 2**63 - 1]
    some = draw(st.lists(st.integers(0, experts - 1) | st.sampled_from(none), min_size=1))
    return torch.tensor(
        draw(st.lists(st.sampled_from(some), min_size=t * k, max_size=t * k)), dtype=torch.int64
    ).view(t, k)


def rows_of(ids: torch.Tensor, experts: int) -> list[tuple[int, int, int]]:
    """(expert, token, choice) of each row, as `dialects/moe_ops.py` orders them."""
    found = [
        (e, t, j)
        for t, row in enumerate(ids.tolist())
        for j, e in enumerate(row)
        if 0 <= e < experts
    ]
    return sorted(found)
