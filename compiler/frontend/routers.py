"""Routers of mixture-of-experts layers: a linear layer, and one operator for all that follows.

transformers writes what becomes of the logits in 5 (Mixtral) to 18 (DeepSeek-V3) operators.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from qfuse.compiler import torch_ops

assert torch_ops.NAMESPACE == "qfuse"  # the operator below is registered

Routing = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What transformers' routers return: logits [T, E], weights [T, k] and ids [T, k]."""


def select_by_operator(model: nn.Module) -> None:
    """Make every router of `model` call `qfuse::select_experts`; its parameters stay."""
    for module in model.modules():
        forward = _FORWARDS.get(type(module).__name__)
        if forward is not None:
            module.forward = types.MethodType(forward, module)


def _qwen3_moe(router: Any, hidden: torch.Tensor) -> Routing:
    logits = _logits(router, hidden)
    return _select(router, logits, normalize=router.norm_topk_prob, dtype=logits.dtype)


def _mixtral(router: Any, hidden: torch.Tensor) -> Routing:
    return _select(router, _logits(router, hidden))


def _granitemoe(router: Any, hidden: torch.Tensor) -> Routing:
    logits = nn.functional.linear(hidden, router.weight)
    return _select(router, logits.float(), dtype=hidden.dtype)


def _gpt_oss(router: Any, hidden: torch.Tensor) -> Routing:
    """The softmax of those chosen is that of all, divided by the sum of those chosen."""
    rows = hidden.reshape(-1, router.hidden_dim)
    logits = nn.functional.linear(rows, router.weight, router.bias)
    return _select(router, logits, dtype=logits.dtype)


def _deepseek_v3(router: Any, hidden: torch.Tensor) -> Routing:
    return _select(
        router,
        _logits(router, hidden, torch.float32),
        bias=router.e_score_correction_bias,
        scoring="sigmoid",
        normalize=router.norm_topk_prob,
        scale=float(router.routed_scaling_factor),
        groups=(router.num_group, router.topk_group),
    )


_FORWARDS: dict[str, Callable[..., Routing]] = {
    "Qwen2MoeTopKRouter": _qwen3_moe,
    "Qwen3MoeTopKRouter": _qwen3_moe,
    "OlmoeTopKRouter": _qwen3_moe,
    "MixtralTopKRouter": _mixtral,
    "GptOssTopKRouter": _gpt_oss,
    "GraniteMoeTopKRouter": _granitemoe,
    "DeepseekV3TopkRouter": _deepseek_v3,
    "Glm4MoeTopkRouter": _deepseek_v3,
}
"""transformers' routers by the names of their classes."""


def _logits(router: Any, hidden: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """[T, E] in `dtype`, by default the weight's."""
    dtype = dtype or router.weight.dtype
    rows = hidden.reshape(-1, router.hidden_dim)
    return nn.functional.linear(rows.to(dtype), router.weight.to(dtype))


def _select(
    router: Any,
    logits: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    scoring: str = "softmax",
    normalize: bool = True,
    scale: float = 1.0,
    groups: tuple[int, int] = (1, 1),
    dtype: torch.dtype = torch.float32,
) -> Routing:
    """`groups`: how many there are, and how many of them a token's experts come from."""
    ids, weights = torch.ops.qfuse.select_experts(
        logits, bias, router.top_k, scoring, normalize, scale, *groups, dtype
    )
    return logits, weights, ids
