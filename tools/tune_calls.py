"""Library calls that `qfuse tune` measures against our kernels: those that programs make."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from qfuse.compiler.runtime import library
from qfuse.tools.bench.cases import Case
from qfuse.tools.bench.row_cases import RowCase

AnyCase = Case | RowCase

_CALLS = {"bf16": "mm", "fp8-rows": "scaled_mm_rows", "int8": "int_mm"}

LEAST_ROWS = {"int_mm": 17}
"""Where it is not two: one row never goes to a library."""


def call_of(case: AnyCase) -> str | None:
    """What of `runtime/library.py` multiplies a case; None for more than a product."""
    if isinstance(case, RowCase):
        return _CALLS[case.scheme]
    return None if case.glu or case.residual else "scaled_mm_blocks"


def calls_on(case: AnyCase, sets: Sequence[Any]) -> list[Callable[[], torch.Tensor]]:
    """The call on each set of operands, whose scales lie as kernels of a program write them."""
    return [partial(_function(case), *_arguments(case, s)) for s in sets]


def _function(case: AnyCase) -> Callable[..., torch.Tensor]:
    return library.FUNCTIONS[f"{library.NAMESPACE}.{call_of(case)}"]


def _arguments(case: AnyCase, s: Any) -> tuple[Any, ...]:
    if call_of(case) == "mm":
        return s.x, s.w, None, "none"
    if call_of(case) == "scaled_mm_blocks":
        scale = library.block_scales(s.w_scale)
        return s.x, s.x_scale.t().contiguous(), s.w, scale, None, torch.bfloat16
    return s.x, s.x_scale, s.w, s.w_scale, None, torch.bfloat16
