"""Multi-head latent attention (DeepSeek) as plain attention over expanded keys and values.

transformers caches the latents and expands all of them at every step, which is as many rows of
`kv_b_proj` as the caches have slots.  Here the T new tokens are expanded, once, and what is cached
is keys [1, H, S, nope + rope] and values [1, H, S, v]: the same numbers, for the work of T tokens
and, at 128 heads, 71 times the memory.
"""

import types
from functools import partial
from typing import Any

import torch
from torch import nn

from qfuse.compiler.frontend.lazy_tensors import Entry, LazyTensors
from qfuse.compiler.frontend.linear import QuantizedLinear


def expand_latents(model: nn.Module, attention: Any) -> None:
    """Make every latent attention of `model` call `attention`, transformers' interface, so."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = _project(self, hidden_states, position_embeddings)
        out, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling, **kwargs
        )
        return self.o_proj(out.flatten(2)), weights

    for module in model.modules():
        if _is_latent(module):
            module.forward = types.MethodType(forward, module)


def take_pairs_apart(model: nn.Module, tensors: LazyTensors) -> LazyTensors:
    """Reorder rows of weights so that no step has to take rotated pairs apart.

    DeepSeek rotates neighbouring lanes, kernels lanes half a head apart.  Which lane is which does
    not matter to a product of queries and keys, so the layers that make both may put them in the
    order of kernels; their rows are reordered when the weights are read.  A layer whose scale
    blocks would be torn stays as it is, and reorders what it computes.
    """
    replaced: dict[str, Entry] = {}
    for prefix, layer in model.named_modules():
        if not _is_latent(layer) or not layer.config.rope_interleave:
            continue
        width = layer.qk_nope_head_dim + layer.qk_rope_head_dim
        head = _halves_of_rows(layer.qk_nope_head_dim, layer.qk_rope_head_dim)
        starts = width * torch.arange(layer.num_heads)[:, None]
        latent = _halves_of_rows(layer.kv_lora_rank, layer.qk_rope_head_dim)
        orders = {
            "q_proj" if layer.q_lora_rank is None else "q_b_proj": (starts + head).flatten(),
            "kv_a_proj_with_mqa": latent,
        }
        if not all(_keeps_blocks(layer.get_submodule(n), order) for n, order in orders.items()):
            continue
        layer.takes_halves = True
        for name, order in orders.items():
            for leaf in ("weight", "bias"):
                full = f"{prefix}.{name}.{leaf}"
                if full in tensors:
                    replaced[full] = partial(_reordered, tensors, full, order)
    return tensors.replace(replaced)


def _is_latent(module: nn.Module) -> bool:
    return hasattr(module, "kv_a_proj_with_mqa")


def _halves_of_rows(straight: int, rope: int) -> torch.Tensor:
    """The order of `straight` rows as they are, then those of `rope` lanes by `_halves`."""
    rows = torch.arange(straight + rope)
    return torch.cat((rows[:straight], _halves(rows[straight:])))


def _keeps_blocks(linear: nn.Module, order: torch.Tensor) -> bool:
    """Whether every row, in the new order, still has the scales of the block it falls into."""
    if not isinstance(linear, QuantizedLinear):
        return True
    height = linear.weight_block[0]
    return torch.equal(order // height, torch.arange(len(order)) // height)


def _reordered(tensors: LazyTensors, name: str, order: torch.Tensor) -> torch.Tensor:
    tensor = tensors[name]
    if tensor.is_meta:
        return tensor
    if tensor.element_size() > 1:
        return tensor[order]
    return tensor.view(torch.uint8)[order].view(tensor.dtype)  # torch does not index FP8


def _project(
    layer: Any, hidden: torch.Tensor, position_embeddings: tuple[torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query and key [B, H, T, nope + rope] and value [B, H, T, v] of tokens [B, T, hidden]."""
    batch, tokens = hidden.shape[:2]
    nope, rope, wide = layer.qk_nope_head_dim, layer.qk_rope_head_dim, layer.v_head_dim

    if layer.q_lora_rank is None:
        query = layer.q_proj(hidden)
    else:
        query = layer.q_b_proj(layer.q_a_layernorm(layer.q_a_proj(hidden)))
    query = query.view(batch, tokens, layer.num_heads, nope + rope)
    latent, key_turned = layer.kv_a_proj_with_mqa(hidden).split([layer.kv_lora_rank, rope], -1)
    expanded = layer.kv_b_proj(layer.kv_a_layernorm(latent))
    expanded = expanded.view(batch, tokens, layer.num_heads, nope + wide)

    query_straight, query_turned = query.split([nope, rope], -1)
    key_straight, value = expanded.split([nope, wide], -1)
    key_turned = key_turned.unsqueeze(2)  # one head, which all share
    if layer.config.rope_interleave and not getattr(layer, "takes_halves", False):
        query_turned, key_turned = _halves(query_turned), _halves(key_turned)
    query_turned = _rotate(query_turned, *position_embeddings)
    key_turned = _rotate(key_turned, *position_embeddings).expand(-1, layer.num_heads, -1, -1)
    return (
        torch.cat((query_straight.transpose(1, 2), query_turned), -1),
        torch.cat((key_straight.transpose(1, 2), key_turned), -1),
        value.transpose(1, 2),
    )


def _halves(x: torch.Tensor) -> torch.Tensor:
    """x0 x1 x2 x3 .. -> x0 x2 .. x1 x3 ..: rotated pairs become pairs of one half each."""
    return x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of [B, T, H, D] as [B, H, T, D], in the form `qfuse-fuse-rope` knows."""
    x = x.transpose(1, 2)
    low, high = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    turned = torch.cat((-high, low), -1)
    return x * cos.unsqueeze(1) + turned * sin.unsqueeze(1)
