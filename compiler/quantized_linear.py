"""`qfuse::quantized_linear` in plain torch: a linear layer of any scheme, from its definition.

The input is quantized in one of these ways, for a block [1, g] of its rows:

    dynamic   an f32 scale for each block
    e8m0      a power of two for each block
    q8_1      an f16 scale for each block, g = 32: what ggml does beside its weights
    tensor    one scale for the whole input, found at each call; g = K
    static    one scale for all inputs, given beforehand; g = K

or, where there is no block, not at all.  Beside FP8 weights it becomes E4M3, beside others int8.
"""

import torch
from torch.nn.functional import linear

from qfuse.compiler.block_scaled import (
    ACTIVATION_DTYPE,
    FP8_MAX,
    dequantize_blocks,
    quantize_blocks,
    quantize_with,
    tensor_scale,
)
from qfuse.compiler.packed_weights import columns_of, dequantize_weight

SCALE_DTYPES = {
    "dynamic": torch.float32,
    "e8m0": torch.float8_e8m0fnu,
    "q8_1": torch.float16,
}
"""Ways to quantize an input with a scale for each block, and the type of the scales."""

STATIC = "static"
WHOLE = ("tensor", STATIC)
"""Ways to quantize an input with one scale."""

INPUT_FORMATS = (*SCALE_DTYPES, *WHOLE)

# A row slab of a dequantized weight takes at most this many elements, so that the reference
# product of a 70B layer does not need gigabytes.
_SLAB_ELEMENTS = 1 << 24


def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    weight_block: list[int],
    input_block: list[int],
    packing: str = "none",
    input_format: str = "dynamic",
    zero_point: torch.Tensor | None = None,
    input_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [.., K] times the transpose of a quantized weight [N, K], in f32, rounded once to x's type.

    `weight_scale` [ceil(N/bn), ceil(K/bk)] are multipliers for `weight_block` [bn, bk]; see
    packed_weights.py for `packing` and `zero_point`.  `input_block` [1, g] quantizes x first, as
    `input_format` says, with `input_scale` f32 [1] if that is "static"; [] leaves x as it is.
    """
    values = x.float()
    if input_block:
        dtype = input_dtype(weight)
        values = through_quantization(values, input_block, input_format, dtype, input_scale)
    height = weight_block[0]
    slab = max(1, _SLAB_ELEMENTS // max(1, columns_of(weight, packing) * height)) * height
    parts = []
    for start in range(0, weight.shape[0], slab):
        blocks = slice(start // height, -(-(start + slab) // height))
        zeros = None if zero_point is None else zero_point[blocks]
        rows = weight[start : start + slab]
        dense = dequantize_weight(rows, weight_scale[blocks], weight_block, packing, zeros)
        parts.append(linear(values, dense))
    y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)


def input_dtype(weight: torch.Tensor) -> torch.dtype:
    """What the input of a layer is quantized to."""
    return ACTIVATION_DTYPE if weight.dtype in FP8_MAX else torch.int8


def through_quantization(
    x: torch.Tensor,
    block: list[int],
    kind: str,
    dtype: torch.dtype,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """f32 values of `x` [.., K] after it was quantized to `dtype` as `kind` says."""
    if kind not in INPUT_FORMATS:
        raise ValueError(f"input_format {kind!r} is not one of {', '.join(INPUT_FORMATS)}")
    if kind in SCALE_DTYPES:
        rows = x.reshape(-1, x.shape[-1])
        codes, scales = quantize_blocks(rows, block, dtype, SCALE_DTYPES[kind])
        return dequantize_blocks(codes, scales, block).view(x.shape)
    if kind == "tensor":
        scale = tensor_scale(x, dtype)
    elif scale is None:
        raise ValueError('input_format "static" needs an input_scale')
    return quantize_with(x, scale, dtype).float() * scale
