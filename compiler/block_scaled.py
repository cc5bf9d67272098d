"""FP8 tensors with one scale per block, in plain torch: the arithmetic that operators share.

Nothing here needs MLIR; the functions work on any device and say what a result is, not how fast
it can be had.
"""

import torch
from torch.nn.functional import linear, pad

FP8_MAX = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
"""Largest finite value of the storage types a weight may have."""

ACTIVATION_DTYPE = torch.float8_e4m3fn
"""Activations are quantized to this type whatever the weight's."""

AMAX_FLOOR = 1e-10
"""Smallest block maximum a scale is computed from (the value `qfuse.quantize` documents)."""

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
