"""Tensors with one scale per block, in plain torch: the arithmetic that operators share.

Nothing here needs MLIR; the functions work on any device and say what a result is, not how fast
it can be had.
"""

import torch
from torch.nn.functional import pad

FP8_MAX = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
"""Largest finite value of the floating-point storage types a weight may have."""

STORAGE_MAX = {**FP8_MAX, torch.int8: 127.0}
"""Largest magnitude of a code that quantization makes, by storage type."""

ACTIVATION_DTYPE = torch.float8_e4m3fn
"""Activations beside FP8 weights are quantized to this type whatever the weight's."""

AMAX_FLOOR = 1e-10
"""Smallest block maximum a scale is computed from (the value `qfuse.quantize` documents)."""


def quantize_blocks(
    x: torch.Tensor,
    block: tuple[int, int] | list[int],
    dtype: torch.dtype = ACTIVATION_DTYPE,
    scale_dtype: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize `x` [.., R, C] with one scale per block; blocks at the edges may be partial.

    Per block: amax = max(|x|, AMAX_FLOOR); scale = amax / max_finite, rounded to `scale_dtype`;
    code = round-to-nearest-even of x * (max_finite / amax).  Scales of float8_e8m0fnu are rounded
    up to a power of two, and code = round-to-nearest-even of x / scale.  Returns codes [.., R, C]
    of `dtype` and scales [.., ceil(R / block[0]), ceil(C / block[1])].  A NaN makes its whole
    block NaN: its codes where they can be, else its scale.
    """
    rows, columns = x.shape[-2:]
    r, c = block
    padded = pad(x.float(), (0, -columns % c, 0, -rows % r))
    tiles = padded.unflatten(-1, (-1, c)).unflatten(-3, (-1, r))  # [.., R/r, r, C/c, c]
    amax = tiles.abs().amax(dim=(-3, -1), keepdim=True).clamp_min(AMAX_FLOOR)
    limit = STORAGE_MAX[dtype]
    scale = amax / limit
    if scale_dtype == torch.float8_e8m0fnu:
        scale = _power_of_two_above(scale)
        codes = tiles / scale
    else:
        # torch computes `number / tensor` as number * (1 / tensor), which rounds twice
        codes = tiles * (torch.full_like(amax, limit) / amax)
    stored = _to_codes(codes, dtype).view(torch.uint8)
    stored = stored.flatten(-2).flatten(-3, -2)[..., :rows, :columns].contiguous()
    return stored.view(dtype), scale.squeeze(-1).squeeze(-2).to(scale_dtype)


def quantize_with(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Codes of `x` with one positive scale, f32 [1], for all of it: x / scale, rounded."""
    return _to_codes(x.float() / scale, dtype)


def tensor_scale(x: torch.Tensor, dtype: torch.dtype = ACTIVATION_DTYPE) -> torch.Tensor:
    """The scale f32 [1] with which the largest magnitude of `x` becomes the largest of `dtype`."""
    floor = torch.full((1,), AMAX_FLOOR, dtype=torch.float32, device=x.device)
    largest = torch.cat((x.float().abs().flatten(), floor)).amax(0, keepdim=True)
    return largest / STORAGE_MAX[dtype]


def dequantize_blocks(
    codes: torch.Tensor, scale: torch.Tensor, block: tuple[int, int] | list[int]
) -> torch.Tensor:
    """f32 values codes * scale of blocks [r, c]: the inverse of `quantize_blocks`."""
    return codes.float() * spread(scale, block, codes.shape[-2:]).float()


def spread(
    per_block: torch.Tensor, block: tuple[int, int] | list[int], shape: tuple[int, ...]
) -> torch.Tensor:
    """For each element of a matrix of `shape`, the number of its block [r, c]."""
    if per_block.dtype == torch.float8_e8m0fnu:  # which torch neither repeats nor multiplies
        per_block = per_block.float()
    rows = per_block.repeat_interleave(block[0], -2)[..., : shape[-2], :]
    return rows.repeat_interleave(block[1], -1)[..., : shape[-1]]


def _to_codes(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    limit = STORAGE_MAX[dtype]
    # clamp: x * (limit / amax) can round to just above the largest finite value
    values = values.clamp(-limit, limit)
    if dtype == torch.int8:  # which a cast truncates to, and which has no NaN
        values = values.round().nan_to_num(0.0)
    return values.to(dtype)


def _power_of_two_above(x: torch.Tensor) -> torch.Tensor:
    """The smallest power of two that is not less than x > 0; NaN stays."""
    mantissa, exponent = torch.frexp(x)
    rounded = torch.ldexp(torch.ones_like(x), exponent - (mantissa == 0.5).to(exponent.dtype))
    return torch.where(x.isfinite(), rounded, x)
