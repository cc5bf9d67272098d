"""What our experts are compared with: torch, as models do it without us."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from qfuse.compiler import torch_moe
from qfuse.dialects.errors import QfuseError
from qfuse.tools.bench.cases import BLOCK
from qfuse.tools.bench.moe import Experts, Tokens, Weights
from qfuse.tools.bench.subjects import Prepared

_LARGEST = 448.0  # of e4m3

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Rows [R, K] in the order of experts and ends i32 [E] of their rows; the products [R, N]."""


class MoeSubject(Protocol):
    """A way to compute the experts; `tolerance` is the relative error (of norms) it may have."""

    @property
    def name(self) -> str: ...

    @property
    def tolerance(self) -> float: ...

    def prepare(self, experts: Experts, weights: Weights, sets: Sequence[Tokens]) -> Prepared:
        """Raises QfuseError, RuntimeError or ImportError where it cannot serve them."""
        ...


@dataclass(frozen=True)
class Eager:
    """Our torch operator as it runs without compiling: a loop over experts, in f32."""

    name: str = "eager"
    tolerance: float = 1e-2  # codes that lie on a border may go either way

    def prepare(self, experts: Experts, weights: Weights, sets: Sequence[Tokens]) -> Prepared:
        def call(s: Tokens) -> torch.Tensor:
            return torch_moe.moe_experts(
                s.x,
                s.ids,
                s.weights,
                weights.gate_up,
                weights.gate_up_scale,
                weights.down,
                weights.down_scale,
                experts.intermediate,
                weight_block=[BLOCK, BLOCK],
                input_block=[1, BLOCK],
                act="silu",
            )

        return Prepared([partial(call, s) for s in sets], captured=False)


@dataclass(frozen=True)
class Bf16Loop:
    """A loop over experts with bf16 weights."""

    name: str = "bf16 loop"
    tolerance: float = 6e-2  # it does not quantize activations, as the reference does

    def prepare(self, experts: Experts, weights: Weights, sets: Sequence[Tokens]) -> Prepared:
        wide, narrow = weights.dense

        def call(s: Tokens) -> torch.Tensor:
            return torch_moe.dense_experts(s.x, s.ids, s.weights, wide, narrow, "silu")

        return Prepared([partial(call, s) for s in sets], captured=False)


@dataclass(frozen=True)
class GroupedMm:
    """`torch.nn.functional.grouped_mm` with bf16 weights, as transformers does it."""

    name: str = "grouped_mm"
    tolerance: float = 6e-2

    def prepare(self, experts: Experts, weights: Weights, sets: Sequence[Tokens]) -> Prepared:
        _needs("_grouped_mm", weights.device)
        functional: Any = torch.nn.functional

        def product(w: torch.Tensor, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
            return functional.grouped_mm(rows, w.transpose(1, 2), offs=ends)

        products = [partial(product, w) for w in weights.dense]
        return Prepared([partial(sorted_experts, s, experts.count, *products) for s in sets])


@dataclass(frozen=True)
class ScaledGroupedMm:
    """`torch.nn.functional.scaled_grouped_mm` in e4m3, with the only scales it has for it: one for
    each row of x and of w.  The weights are quantized again outside of the measurement."""

    name: str = "scaled_grouped_mm"
    tolerance: float = 1e-1  # quantized twice, and with scales for whole rows

    def prepare(self, experts: Experts, weights: Weights, sets: Sequence[Tokens]) -> Prepared:
        _needs("_scaled_grouped_mm_v2", weights.device)
        functional: Any = torch.nn.functional
        recipe = functional.ScalingType.RowWise

        def product(
            w: tuple[torch.Tensor, torch.Tensor], rows: torch.Tensor, ends: torch.Tensor
        ) -> torch.Tensor:
            codes, scale = quantize_rows(rows)
            return functional.scaled_grouped_mm(
                codes,
                w[0].transpose(1, 2),
                scale_a=scale,
                scale_recipe_a=recipe,
                scale_b=w[1],
                scale_recipe_b=recipe,
                offs=ends,
                output_dtype=torch.bfloat16,
                use_fast_accum=True,
            )

        products = [partial(product, quantize_experts(w)) for w in weights.dense]
        return Prepared([partial(sorted_experts, s, experts.count, *products) for s in sets])


def sorted_experts(s: Tokens, count: int, gate_up: Product, down: Product) -> torch.Tensor:
    """The layer [T, H] by products of rows that are sorted by expert.

    Operator by operator what transformers' `grouped_mm_experts_forward` does; nothing waits for
    the device.
    """
    flat = s.ids.flatten()
    order = torch.argsort(flat)
    ends = torch.histc(flat.float(), count, 0, count - 1).cumsum(0).int()
    gate, up = gate_up(s.x[order // s.ids.shape[1]], ends).chunk(2, -1)
    rows = down(torch.nn.functional.silu(gate) * up, ends)
    rows = rows * s.weights.flatten()[order, None].to(rows.dtype)
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return rows[inverse].view(*s.ids.shape, -1).sum(1)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes e4m3 of [.., K] and f32 scales [..], one for a row."""
    scale = x.abs().amax(-1).float().clamp(min=1e-10) / _LARGEST
    codes = (x / scale.unsqueeze(-1)).clamp(-_LARGEST, _LARGEST)
    return codes.to(torch.float8_e4m3fn), scale


def quantize_experts(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantize_rows` of [E, N, K], one expert at a time."""
    codes = torch.empty_like(w, dtype=torch.float8_e4m3fn)
    scale = w.new_empty(w.shape[:2], dtype=torch.float32)
    for e in range(w.shape[0]):
        codes[e], scale[e] = quantize_rows(w[e])
    return codes, scale


def _needs(operator: str, device: torch.device) -> None:
    """Raises QfuseError unless torch has `operator` for `device`."""
    key = {"cpu": "CPU", "cuda": "CUDA"}[device.type]
    name = f"aten::{operator}"
    has: Any = torch._C._dispatch_has_kernel_for_dispatch_key
    known = name in torch._C._dispatch_get_all_op_names()
    if not known or not any(has(name, k) for k in (key, "CompositeExplicitAutograd")):
        raise QfuseError(f"torch {torch.__version__} has no {name} on {device.type}")


def peers() -> list[MoeSubject]:
    return [Eager(), Bf16Loop(), GroupedMm(), ScaledGroupedMm()]
