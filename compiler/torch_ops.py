"""The operators qfuse adds to torch: what a graph means before, beside and without the compiler.

    qfuse::quantized_linear   a linear layer over block-scaled FP8 weights
    qfuse::kv_update          write new keys or values into a cache, functionally
    qfuse::attention          causal attention over the part of a cache in use

Each has a schema, an eager implementation for any device, and a shape rule (fake).  They run in
graph breaks, in tests, and those that the compiler leaves to torch in compiled programs too, so
importing this file needs torch and nothing of MLIR.  The plain functions of the same names do
the work; a caller on a hot path may call them without going through torch's dispatcher.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import linear, pad, scaled_dot_product_attention

NAMESPACE = "qfuse"

FP8_MAX = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
"""Largest finite value of the storage types a weight may have."""

ACTIVATION_DTYPE = torch.float8_e4m3fn
"""Activations are quantized to this type whatever the weight's."""

AMAX_FLOOR = 1e-10
"""Smallest block maximum a scale is computed from (the value `qfuse.quantize` documents)."""

LAUNCHES = {"qfuse.attention": 1, "qfuse.kv_update": 1}
"""Kernel launches one call stands for.  `quantized_linear` is absent: the compiler expands it
into the products and quantizations that are counted instead."""

# A row slab of a dequantized weight takes at most this many elements, so that the reference
# product of a 70B layer does not need gigabytes.
_SLAB_ELEMENTS = 1 << 24


def quantize_blocks(
    x: torch.Tensor, block: tuple[int, int] | list[int], dtype: torch.dtype = ACTIVATION_DTYPE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize `x` [.., R, C] with one f32 scale per block; blocks at the edges may be partial.

    Per block: amax = max(|x|, AMAX_FLOOR); scale = amax / max_finite; code =
    round-to-nearest-even of x * (max_finite / amax).  Returns codes [.., R, C] of `dtype` and
    scales f32 [.., ceil(R / block[0]), ceil(C / block[1])].  A NaN makes its whole block NaN.
    """
    rows, columns = x.shape[-2:]
    r, c = block
    padded = pad(x.float(), (0, -columns % c, 0, -rows % r))
    tiles = padded.unflatten(-1, (-1, c)).unflatten(-3, (-1, r))  # [.., R/r, r, C/c, c]
    amax = tiles.abs().amax(dim=(-3, -1), keepdim=True).clamp_min(AMAX_FLOOR)
    limit = FP8_MAX[dtype]
    # torch computes `number / tensor` as number * (1 / tensor), which rounds twice
    inverse = torch.full_like(amax, limit) / amax
    # clamp: x * inverse can round to just above the largest finite value
    codes = (tiles * inverse).clamp(-limit, limit).to(dtype).view(torch.uint8)
    codes = codes.flatten(-2).flatten(-3, -2)[..., :rows, :columns].contiguous()
    return codes.view(dtype), (amax / limit).squeeze(-1).squeeze(-2)


def dequantize_blocks(
    codes: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] | list[int]
) -> torch.Tensor:
    """f32 values codes * scale of blocks [r, c]: the inverse of `quantize_blocks`."""
    rows, columns = codes.shape[-2:]
    spread = scale.float().repeat_interleave(block[0], -2)[..., :rows, :]
    spread = spread.repeat_interleave(block[1], -1)[..., :columns]
    return codes.float() * spread


def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    weight_block: list[int],
    input_block: list[int],
) -> torch.Tensor:
    """x [.., K] times the transpose of a quantized weight [N, K], in f32, rounded once to x's type.

    `weight_scale` is f32 [ceil(N/bn), ceil(K/bk)], a multiplier, for `weight_block` [bn, bk].
    `input_block` [1, g] quantizes x first, per row and group of g; [] leaves x as it is.
    """
    values = x.float()
    if input_block:
        rows = values.reshape(-1, values.shape[-1])
        codes, scale = quantize_blocks(rows, input_block)
        values = dequantize_blocks(codes, scale, input_block).view(values.shape)
    height = weight_block[0]
    slab = max(1, _SLAB_ELEMENTS // max(1, weight.shape[1] * height)) * height
    parts = []
    for start in range(0, weight.shape[0], slab):
        scales = weight_scale[start // height : -(-(start + slab) // height)]
        dense = dequantize_blocks(weight[start : start + slab], scales, weight_block)
        parts.append(linear(values, dense))
    y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


def kv_update(cache: torch.Tensor, new: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """A copy of `cache` [B, Hkv, S, D] with `new` [B, Hkv, T, D] at the slots `position` [T]."""
    return cache.index_copy(2, position, new)


def kv_update_(cache: torch.Tensor, new: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """`kv_update` in place, for a caller that knows nothing else reads the old cache.

    `position` holds consecutive ascending slots, as everywhere in qfuse.
    """
    tokens = new.shape[2]
    last = position.item() if tokens == 1 else position[-1].item()
    cache.narrow(2, int(last) + 1 - tokens, tokens).copy_(new)
    return cache


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Causal attention of T new tokens over whole caches; returns [B, T, H, D], contiguous.

    q [B, H, T, D]; k and v [B, Hkv, S, D]; `position` int64 [T], consecutive and ascending.
    Query t sees the cache slots <= position[t], and > position[t] - window if window > 0.
    Only views of the used slots are read, so the cost follows the context and not the capacity.
    """
    batch, heads, tokens, width = q.shape
    if tokens == 0:
        return q.new_empty(batch, 0, heads, v.shape[-1])
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


def _fake_linear(
    x: torch.Tensor, weight: torch.Tensor, *_: torch.Tensor | list[int] | None
) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _fake_kv_update(cache: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(cache)


def _fake_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: torch.Tensor | float | int
) -> torch.Tensor:
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[-1])


OPERATORS: tuple[tuple[str, Callable[..., torch.Tensor], Callable[..., torch.Tensor]], ...] = (
    (
        "quantized_linear(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, "
        "int[] weight_block, int[] input_block) -> Tensor",
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
