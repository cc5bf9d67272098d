"""Operands of `fp8_groupwise_scaled_group_gemm` for its tests, and what it is to compute."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from gemm_cases import BLOCK, E4M3, operands, reference

from qfuse.compiler.gemm import Operands
from qfuse.compiler.group_gemm import GroupOperands


def group_operands(
    counts: Sequence[int],
    n: int,
    k: int,
    block: tuple[int, int] = BLOCK,
    dtype: torch.dtype = E4M3,
    seed: int = 0,
) -> GroupOperands:
    """`counts` are the rows of each expert."""
    each = [operands(0, n, k, block, dtype, seed + e) for e in range(len(counts))]
    rows = operands(sum(counts), 1, k, block, dtype, seed)
    indptr = torch.tensor([0, *counts]).cumsum(0).int()
    weight = torch.stack([o.weight.view(torch.uint8) for o in each]).view(dtype)
    weight_scale = torch.stack([o.weight_scale for o in each])
    return GroupOperands(rows.x, rows.x_scale, weight, weight_scale, indptr)


def of_experts(o: GroupOperands) -> Iterator[Operands]:
    """The dense product of each expert, in order."""
    for e, (begin, end) in enumerate(pairwise(o.indptr.tolist())):
        weight, scale = o.weight[e], o.weight_scale[e]
        yield Operands(o.x[begin:end], o.x_scale[begin:end], weight, scale)


def group_reference(o: GroupOperands, block: tuple[int, int] = BLOCK) -> torch.Tensor:
    """In f64, element by element as the operator's documentation says."""
    return torch.cat([reference(dense, block) for dense in of_experts(o)])
