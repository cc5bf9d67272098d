"""Weights whose stored elements or scales are no tensor elements, in plain torch.

The names of packings are those of `#qfuse.scheme`, whose docstring draws them.  Bytes are int8,
as in the IR, whatever they hold.
"""

import torch

from qfuse.compiler.block_scaled import dequantize_blocks, spread

BITS = {"none": 8, "int4": 4, "fp4": 4, "q4_k": 4, "q6_k": 6}
"""Bits of a stored element of each packing."""

NUMBERS = {"q4_k": 16, "q6_k": 18}
"""Bytes that stand where a scale of a block does, by packing; one number for the others."""

SUPER_BLOCK = 256
"""Columns that ggml's K-quants keep together."""

# The values of f4E2M1FN by code; the eight above have the sign bit set.
_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def columns_of(weight: torch.Tensor, packing: str) -> int:
    """K of a weight [N, K] stored as `weight` [N, bytes]."""
    return weight.shape[-1] * 8 // BITS[packing]


def dequantize_weight(
    weight: torch.Tensor,
    scale: torch.Tensor,
    block: tuple[int, int] | list[int],
    packing: str = "none",
    zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """f32 values [N, K] of a weight, as `#qfuse.scheme` defines them.

    `scale` is [ceil(N/bn), ceil(K/bk)] for `block` [bn, bk], or the bytes that a K-quant has
    instead; `zero_point`, a code as int8 for each scale, goes with "int4".
    """
    if packing == "none":
        return dequantize_blocks(weight, scale, block)
    if packing == "int4":
        codes = unpack_nibbles(weight).float()
        if zero_point is None:
            return (codes - 8) * spread(scale, block, codes.shape).float()
        zero = spread(zero_point, block, codes.shape).float()
        return (codes - zero) * spread(scale, block, codes.shape).float()
    if packing == "fp4":
        table = torch.tensor([*_E2M1, *(-v for v in _E2M1)], device=weight.device)
        return dequantize_blocks(table[unpack_nibbles(weight).long()], scale, block)
    if packing == "q4_k":
        return _q4_k(weight, scale)
    if packing == "q6_k":
        return _q6_k(weight, scale)
    raise ValueError(f"packing {packing!r} is not one of {', '.join(BITS)}")


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Codes from 0 to 15, [.., K] with K even, as bytes: the even column in the low bits."""
    even, odd = codes.to(torch.uint8).unflatten(-1, (-1, 2)).unbind(-1)
    return (even | (odd << 4)).view(torch.int8)


def unpack_nibbles(packed: torch.Tensor) -> torch.Tensor:
    """The inverse of `pack_nibbles`, uint8."""
    packed = packed.view(torch.uint8)
    return torch.stack((packed & 15, packed >> 4), -1).flatten(-2)


def _q4_k(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """d * sc * u - dmin * m, in the order of ggml's own code."""
    head = scale.view(torch.uint8).unflatten(-1, (-1, 16))
    d, least = (_half(head, at) for at in (0, 2))
    s = head[..., 4:]
    # eight scales and eight minima of six bits in twelve bytes
    top, bottom = s[..., 8:] & 15, s[..., 8:] >> 4
    multiplier = torch.cat((s[..., :4] & 63, top | (s[..., :4] >> 6 << 4)), -1)
    minimum = torch.cat((s[..., 4:8] & 63, bottom | (s[..., 4:8] >> 6 << 4)), -1)
    # in each chunk of 32 bytes, the low nibbles come before the high ones
    chunks = weight.view(torch.uint8).unflatten(-1, (-1, 4, 32))
    codes = torch.stack((chunks & 15, chunks >> 4), -2).flatten(-3, -2)  # [.., K/256, 8, 32]
    factor, offset = d * multiplier.float(), least * minimum.float()
    return (factor[..., None] * codes.float() - offset[..., None]).flatten(-3)


def _q6_k(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """d * sc * (u - 32), in the order of ggml's own code."""
    tail = scale.view(torch.uint8).unflatten(-1, (-1, 18))
    d, multiplier = _half(tail, 16), tail[..., :16].contiguous().view(torch.int8)
    blocks = weight.view(torch.uint8).unflatten(-1, (-1, 192))
    low = blocks[..., :128].unflatten(-1, (2, 1, 64))
    low = torch.cat((low & 15, low >> 4), -2)  # of each half: 64 low nibbles, then 64 high ones
    high = blocks[..., 128:].unflatten(-1, (2, 1, 32))
    high = torch.cat([(high >> shift) & 3 for shift in (0, 2, 4, 6)], -2)
    codes = low.flatten(-3).int() | (high.flatten(-3).int() << 4)
    factor = d * multiplier.float()
    values = factor[..., None] * (codes - 32).float().unflatten(-1, (16, 16))
    return values.flatten(-3)


def _half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The f16 at byte `at` of each block, as f32 [.., 1]."""
    return blocks[..., at : at + 2].contiguous().view(torch.float16).float()
