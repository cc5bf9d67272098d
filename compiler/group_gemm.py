"""The product behind `fp8_groupwise_scaled_group_gemm`: each row by the weight of its expert."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

from qfuse.compiler.gemm import Gemm
from qfuse.dialects.bindings import ir
from qfuse.dialects.moe_ops import GroupMatmulOp
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC

NAME = "fp8_groupwise_scaled_group_gemm"


class GroupOperands(NamedTuple):
    """The tensors of a product, in the order in which kernels take them."""

    x: torch.Tensor
    x_scale: torch.Tensor
    weight: torch.Tensor
    weight_scale: torch.Tensor
    indptr: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class GroupGemm(Gemm):
    """What a kernel is compiled for; M and how many of its rows each expert has are open."""

    name: ClassVar[str] = NAME
    op: ClassVar[str] = GroupMatmulOp.OPERATION_NAME

    experts: int

    def __str__(self) -> str:
        return f"E = {self.experts}, {super().__str__()}"

    def types(self) -> list[ir.Type]:
        # rows in the order of experts are [T, k, K], of which a choice each is one way
        x, w, y = self.product_types((DYNAMIC, 1), (self.experts,))
        return [x, w, Shaped((self.experts + 1,), "i32").type(), y]
