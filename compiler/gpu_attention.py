"""`qfuse::attention` on a GPU: what the host need not wait for, and what it waits for once.

Calls with few tokens never look at the position, so that CUDA graphs can hold them.
"""

import weakref
from collections.abc import Callable

import torch
from torch.nn.functional import scaled_dot_product_attention

Visible = torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Which slots of the caches a call sees: a mask to be added, or lengths for `flash_decoding`."""


def visible(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor, window: int
) -> Visible:
    """What the attention of every layer of a call needs to know of `position` [T].

    Made on the device, so that a CUDA graph can hold it; of q, k and v only the types count.
    """
    tokens, slots = q.shape[2], k.shape[2]
    if _flash_decodes(q, k, v, window):
        used = torch.empty(1, dtype=torch.int32, device=q.device)
        ends = torch.arange(0, 2, dtype=torch.int32, device=q.device)
        return torch.add(position, 1, out=used), ends, ends * slots
    numbers = torch.arange(slots, device=q.device)
    hidden = numbers > position[:, None]
    if window > 0:
        hidden |= numbers <= position[:, None] - window
    # rows at multiples of 16 elements: others would be copied for each layer
    together = q.shape[1] // k.shape[1]
    shape = (together, tokens, -(-slots // 16) * 16)
    mask = torch.zeros(shape, dtype=q.dtype, device=q.device)[..., :slots]
    return mask.masked_fill_(hidden, -torch.inf).flatten(0, 1)


def masked_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    """Attention that the host need not wait for; returns [B, T, H, D], contiguous.

    How much of the caches is in use stays on the device: the mask [H / Hkv * T, S] that `visible`
    makes hides the rest, which has to be finite (caches start zeroed), and the cost follows the
    capacity.
    """
    batch, heads, tokens, width = q.shape
    shared = k.shape[1]
    # The heads that share a key head become its query rows: torch's fused kernels with a mask
    # know no shared heads, and would be given copies of the caches.
    rows = q.reshape(batch, shared, heads // shared * tokens, width)
    out = scaled_dot_product_attention(rows, k, v, attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, tokens, v.shape[-1]).transpose(1, 2).contiguous()


def flash_decoding(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """The same for one token of one sequence, by torch's FlashAttention.

    `lengths`: slots in use [1], and where the sequence begins and ends in q and in k [2], all i32
    on the device.  Splits the cache among processors, which a kernel with a mask does not (a
    program for each key head reads all of it), and reads the slots in use only.
    """
    used, q_ends, k_ends = lengths
    rows, keys, values = (x[0].transpose(0, 1) for x in (q, k, v))  # [T, H, D]
    out, *_ = FLASH_FORWARD(
        *(rows, keys, values, q_ends, k_ends, 1, k.shape[2], 0.0, False, False),
        scale=scale,
        seqused_k=used,
    )
    return out[None]


FLASH_FORWARD = torch.ops.aten._flash_attention_forward
"""Not one of torch's public functions, which cannot be told how much of k is in use without the
host: it is tried before it is trusted."""

_MAX_FLASH_WIDTH = 256


def _flash_decodes(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> bool:
    """Whether `flash_decoding` serves a call."""
    batch, heads, tokens, width = q.shape
    fits = (
        (batch, tokens) == (1, 1)
        and not 0 < window < k.shape[2]
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.dtype == k.dtype == v.dtype
        and v.shape[-1] == width <= _MAX_FLASH_WIDTH
        and width % 8 == 0
    )
    if not fits:
        return False
    kind = heads, k.shape[1], width, q.dtype, q.device
    if kind not in _FLASH_WORKS:
        if q.is_cuda and torch.cuda.is_current_stream_capturing():
            return False  # no time to try
        _FLASH_WORKS[kind] = _flash_works(*kind)
    return _FLASH_WORKS[kind]


_FLASH_WORKS: dict[tuple[int, int, int, torch.dtype, torch.device], bool] = {}


def _flash_works(
    heads: int, key_heads: int, width: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether torch has the kernel, and it agrees with the definition, for a few lengths."""
    generator = torch.Generator(device).manual_seed(0)

    def random(count: int, slots: int) -> torch.Tensor:
        shape = (1, count, slots, width)
        return torch.randn(shape, generator=generator, dtype=torch.float32, device=device).to(dtype)

    slots, scale = 1000, width**-0.5
    q, k, v = random(heads, 1), random(key_heads, slots), random(key_heads, slots)
    for used in (1, 300, slots):
        hidden_k, hidden_v = k.clone(), v.clone()
        hidden_k[:, :, used:], hidden_v[:, :, used:] = torch.nan, torch.nan
        ends = torch.tensor([0, 1], dtype=torch.int32, device=device)
        lengths = torch.full((1,), used, dtype=torch.int32, device=device), ends, ends * slots
        try:
            found = flash_decoding(q, hidden_k, hidden_v, lengths, scale)
        except (RuntimeError, TypeError):
            return False
        near_k, near_v = (
            x[:, :, :used].float().repeat_interleave(heads // key_heads, 1) for x in (k, v)
        )
        weights = torch.softmax(q.float() @ near_k.transpose(-1, -2) * scale, -1)
        expected = (weights @ near_v).transpose(1, 2)
        if found.shape != expected.shape or not found.float().allclose(expected, 2e-2, 2e-2):
            return False
    return True


def prompt_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    position: torch.Tensor,
    scale: float,
    window: int,
) -> torch.Tensor:
    """Attention for so many tokens that looking at the position once pays.

    Only the slots in use are read, and a prompt from the start of the caches needs no mask, which
    lets torch take its fastest kernel.
    """
    tokens, used = q.shape[2], _slots_in_use(position)
    k, v = k.narrow(2, 0, used), v.narrow(2, 0, used)
    if used > tokens or 0 < window < used:
        mask = visible(q, k, v, position, window)
        assert isinstance(mask, torch.Tensor)
        return masked_attention(q, k, v, mask, scale)
    out = scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).contiguous()


def _slots_in_use(position: torch.Tensor) -> int:
    """Slots of the caches up to the last position; asked of the device once for all layers."""
    global _LAST_SEEN
    if position.is_inference():  # such tensors do not count writes
        return int(position[-1]) + 1
    seen, version, used = _LAST_SEEN
    if seen() is not position or version != position._version:
        used = int(position[-1]) + 1
        _LAST_SEEN = weakref.ref(position), position._version, used
    return used


_LAST_SEEN: tuple[Callable[[], torch.Tensor | None], int, int] = (lambda: None, 0, 0)
"""A position, its version (torch counts writes), and `_slots_in_use` of it."""
