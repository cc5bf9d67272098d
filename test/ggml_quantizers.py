"""Q4_K and Q6_K quantizers, which the package `gguf` can only read: from the format's description.

Not the best scales that llama.cpp searches for, but every field of a block is used.
"""

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def q4_k(weight: Floats) -> Bytes:
    """Bytes [N, K / 256 * 144] of a weight [N, K]: w = d * sc * u - dmin * m per 32 columns."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // 256, 8, 32)
    least = np.minimum(groups.min(-1), 0)
    step = (groups.max(-1) - least) / 15
    d, multiplier = _six_bits(step)
    dmin, minimum = _six_bits(-least)
    step = d.astype(np.float32) * multiplier
    offset = dmin.astype(np.float32) * minimum
    codes = np.rint((groups + offset[..., None]) / np.where(step == 0, 1, step)[..., None])
    codes = codes.clip(0, 15).astype(np.uint8)

    scales = np.zeros((*d.shape[:-1], 12), np.uint8)
    scales[..., 0:4] = multiplier[..., :4] | (multiplier[..., 4:] >> 4 << 6)
    scales[..., 4:8] = minimum[..., :4] | (minimum[..., 4:] >> 4 << 6)
    scales[..., 8:12] = (multiplier[..., 4:] & 15) | (minimum[..., 4:] & 15) << 4
    pairs = codes.reshape(rows, columns // 256, 4, 2, 32)
    packed = (pairs[..., 0, :] | pairs[..., 1, :] << 4).reshape(*d.shape[:-1], 128)
    blocks = np.concatenate([d.view(np.uint8), dmin.view(np.uint8), scales, packed], -1)
    return blocks.reshape(rows, -1)


def q6_k(weight: Floats) -> Bytes:
    """Bytes [N, K / 256 * 210] of a weight [N, K]: w = d * sc * (u - 32) per 16 columns."""
    rows, columns = weight.shape
    groups = weight.reshape(rows, columns // 256, 16, 16)
    # a scale may be negative: the code -32 then stands for the largest value
    largest = np.take_along_axis(groups, np.abs(groups).argmax(-1)[..., None], -1)[..., 0]
    step = largest / -32
    d = (np.abs(step).max(-1, keepdims=True) / 127).astype(np.float16)
    divisor = np.where(d == 0, 1, d).astype(np.float32)
    multiplier = np.rint(step / divisor).clip(-128, 127).astype(np.int8)
    step = d.astype(np.float32) * multiplier
    codes = np.rint(groups / np.where(step == 0, 1, step)[..., None])
    codes = (codes.clip(-32, 31) + 32).astype(np.uint8).reshape(rows, columns // 256, 2, 4, 32)
    a, b, c, e = np.moveaxis(codes, -2, 0)  # each [rows, blocks, 2, 32]
    low = np.concatenate([(a & 15) | (c & 15) << 4, (b & 15) | (e & 15) << 4], -1)
    high = a >> 4 | b >> 4 << 2 | c >> 4 << 4 | e >> 4 << 6
    parts = [low, high, multiplier.view(np.uint8), d.view(np.uint8)]
    blocks = [part.reshape(rows, columns // 256, -1) for part in parts]
    return np.concatenate(blocks, -1).reshape(rows, -1)


def _six_bits(values: Floats) -> tuple[NDArray[np.float16], Bytes]:
    """A factor for each block of eight numbers >= 0, and these as multiples of it, 0 to 63."""
    factor = (values.max(-1, keepdims=True) / 63).astype(np.float16)
    divisor = np.where(factor == 0, 1, factor).astype(np.float32)
    return factor, np.rint(values / divisor).clip(0, 63).astype(np.uint8)
