"""The operators qfuse adds to torch: what a graph means before, beside and without the compiler.

    qfuse::quantized_linear   a linear layer of any quantization scheme (quantized_linear.py)
    qfuse::kv_update          write new keys or values into a cache, functionally
    qfuse::attention          causal attention over the part of a cache in use
    qfuse::select_experts     a router, from its logits on (torch_router.py)
    qfuse::moe_experts        experts of any quantization scheme (torch_moe.py)
    qfuse::dense_experts      experts over plain weights (torch_moe.py)

Each has a schema, an eager implementation for any device, and a shape rule (fake).  They run in
graph breaks, in tests, and those that the compiler leaves to torch in compiled programs too, so
importing this file needs torch and nothing of MLIR.  The plain functions of the same names do
the work; a caller on a hot path may call them without going through torch's dispatcher.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from qfuse.compiler import gpu_attention, torch_moe, torch_router
from qfuse.compiler.block_scaled import FP8_MAX as FP8_MAX
from qfuse.compiler.block_scaled import quantize_blocks as quantize_blocks
from qfuse.compiler.quantized_linear import quantized_linear

NAMESPACE = "qfuse"

LAUNCHES = {"qfuse.attention": 1, "qfuse.kv_update": 1}
"""Kernel launches one call stands for.  `quantized_linear` and `moe_experts` are absent: the
compiler expands them into the products and quantizations that are counted instead."""

ASYNCHRONOUS_TOKENS = 64
"""Calls with at most this many tokens never wait for the device, so that a graph can hold them."""


def kv_update(cache: torch.Tensor, new: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """A copy of `cache` [B, Hkv, S, D] with `new` [B, Hkv, T, D] at the slots `position` [T]."""
    return cache.index_copy(2, position, new)


def kv_update_(cache: torch.Tensor, new: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """`kv_update` in place, for a caller that knows nothing else reads the old cache.

    `position` holds consecutive ascending slots, as everywhere in qfuse.
    """
    tokens = new.shape[2]
    if tokens <= 1 or not on_host(cache):
        return cache.index_copy_(2, position, new)
    last = position[-1].item()
    cache.narrow(2, int(last) + 1 - tokens, tokens).copy_(new)
    return cache


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    window: int,
    seen: gpu_attention.Visible | None = None,
) -> torch.Tensor:
    """Causal attention of T new tokens over whole caches; returns [B, T, H, D], contiguous.

    q [B, H, T, D]; k and v [B, Hkv, S, D]; `position` int64 [T], consecutive and ascending.
    Query t sees the cache slots <= position[t], and > position[t] - window if window > 0.
    On the host only views of the used slots are read, so the cost follows the context and not the
    capacity.  For other devices see gpu_attention.py; there, `seen` is what its `visible` returns,
    for a caller whose layers share it.
    """
    batch, heads, tokens, width = q.shape
    if tokens == 0:
        return q.new_empty(batch, 0, heads, v.shape[-1])
    if not on_host(q):
        if tokens > ASYNCHRONOUS_TOKENS:
            return gpu_attention.prompt_attention(q, k, v, position, scale, window)
        seen = gpu_attention.visible(q, k, v, position, window) if seen is None else seen
        if isinstance(seen, torch.Tensor):
            return gpu_attention.masked_attention(q, k, v, seen, scale)
        return gpu_attention.flash_decoding(q, k, v, seen, scale)
    if tokens == 1:
        used = int(position.item()) + 1
        start = max(0, used - window) if window > 0 else 0
        k, v = k.narrow(2, start, used - start), v.narrow(2, start, used - start)
        # The heads that share a key head become its query rows: one token sees every slot, so no
        # mask tells them apart, and the cache is read once per key head and not once per head.
        shared = q.reshape(batch, k.shape[1], heads // k.shape[1], width)
        out = scaled_dot_product_attention(shared, k, v, scale=scale)
        return out.reshape(batch, 1, heads, v.shape[-1])
    used = int(position[-1].item()) + 1
    slots = torch.arange(used, device=position.device)
    mask = slots <= position[:, None]
    if window > 0:
        mask &= slots > position[:, None] - window
    k, v = k.narrow(2, 0, used), v.narrow(2, 0, used)
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scale, enable_gqa=heads != k.shape[1]
    )
    return out.transpose(1, 2).contiguous()


def on_host(tensor: torch.Tensor) -> bool:
    """Whether the contents of a tensor can be looked at without waiting for a device."""
    return tensor.is_cpu


def _fake_linear(
    x: torch.Tensor, weight: torch.Tensor, *_: torch.Tensor | list[int] | str | None
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _fake_kv_update(cache: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(cache)


def _fake_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: torch.Tensor | float | int
) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])


OPERATORS: tuple[tuple[str, Callable[..., Any], Callable[..., Any]], ...] = (
    (
        "quantized_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, "
        "int[] weight_block, int[] input_block, str packing='none', str input_format='dynamic', "
        "Tensor? zero_point=None, Tensor? input_scale=None) -> Tensor",
        quantized_linear,
        _fake_linear,
    ),
    (
        "kv_update(Tensor cache, Tensor new, Tensor position) -> Tensor",
        kv_update,
        _fake_kv_update,
    ),
    (
        "attention(Tensor q, Tensor k, Tensor v, Tensor position, float scale, int window) "
        "-> Tensor",
        attention,
        _fake_attention,
    ),
    *torch_router.OPERATORS,
    *torch_moe.OPERATORS,
)
"""Schema, eager implementation and shape rule of each operator."""


def register() -> None:
    """Define the operators in torch; a second call, also after a re-import, does nothing."""
    namespace = getattr(torch.ops, NAMESPACE)
    if hasattr(namespace, "library"):
        return
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    for schema, eager, fake in OPERATORS:
        name = schema.partition("(")[0]
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, eager, "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    # A Library takes its operators away when it dies: this one lives as long as torch does,
    # and not as long as this module.
    namespace.library = library


register()
