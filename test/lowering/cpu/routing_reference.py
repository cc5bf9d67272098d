"""The routing contract of `qfuse.route`, in torch, and random choices to try it with."""

import torch
from cpu_kernels import Tensor
from hypothesis import strategies as st


def route(ids: Tensor, experts: int, shared: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(slots, tokens, indptr) of ids [T, k]; `shared`: with one more expert, of every token."""
    if shared:
        nobody = (ids < 0) | (ids >= experts)
        last = torch.full_like(ids[:, :1], experts)
        return route(torch.cat((ids.masked_fill(nobody, -1), last), 1), experts + 1)
    flat = ids.flatten().long()
    valid = (flat >= 0) & (flat < experts)
    key = torch.where(valid, flat, experts)
    order = torch.argsort(key, stable=True)
    rows = int(valid.sum())
    slots = torch.full_like(flat, -1)
    slots[order[:rows]] = torch.arange(rows)
    tokens = torch.zeros_like(flat)
    tokens[:rows] = order[:rows] // ids.shape[1]
    indptr = torch.zeros(experts + 1, dtype=torch.int64)
    indptr[1:] = torch.bincount(key, minlength=experts + 1)[:experts].cumsum(0)
    return slots.view(ids.shape).int(), tokens.view(ids.shape).int(), indptr.int()


@st.composite
def choices(draw: st.DrawFn, tokens: int, choices: int, experts: int) -> Tensor:
    """ids [0..tokens, choices]: spread, few experts, one with everything, some that are none."""
    count = draw(st.integers(0, tokens))
    generator = torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["spread", "few", "one", "none"]))
    first = draw(st.integers(0, experts - 1))
    span = {"spread": experts, "few": 3, "one": 1, "none": 1}[kind]
    ids = (torch.randint(0, span, (count, choices), generator=generator) + first) % experts
    foreign = draw(st.sampled_from([0.0, 0.3])) if kind != "none" else 1.0
    strange = torch.tensor([-1, experts, 2**31 - 1, -(2**31)])
    pick = strange[torch.randint(0, 4, ids.shape, generator=generator)]
    return torch.where(torch.rand(ids.shape, generator=generator) < foreign, pick, ids)
