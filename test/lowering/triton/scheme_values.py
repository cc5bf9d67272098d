"""Random operands of every scheme, and what they stand for: `#qfuse.scheme` read in plain numpy."""

from dataclasses import replace

import numpy as np
from gpu_kernels import Array, Value, plain, random_codes, scale_shape

from qfuse.dialects.types import Scheme, Shaped
from qfuse.lowering.triton.interpreter.types import DTYPES

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
"""Values of f4E2M1FN without their sign."""


def packed(*shape: int, packing: str, block: int = 32, scale: str = "f16", zero: str = "none",
           layout: str = "row_major") -> Shaped:  # fmt: skip
    """A type with a packing; K-quants and MXFP4 need no more than their name."""
    dtype, extent, scale = {
        "int4": ("i4", block, scale),
        "fp4": ("f4E2M1FN", 32, "f8E8M0FNU"),
        "q4_k": ("i4", 256, "i8"),
        "q6_k": ("i6", 256, "i8"),
        "q8_1": ("i8", 32, "f16"),
    }[packing]
    return Shaped(plain(*shape).shape, dtype, Scheme((1, extent), scale, packing, zero, layout))


def operand(value: Shaped, rows: int, seed: int) -> tuple[Value, Array]:
    """Memory of a quantized matrix, codes of all magnitudes, and its f64 values."""
    scheme = value.scheme
    assert scheme is not None
    generator = np.random.default_rng(seed)
    made = {
        "none": _unpacked,
        "q8_1": _q8_1,
        "int4": _int4,
        "fp4": _fp4,
        "q4_k": _q4_k,
        "q6_k": _q6_k,
    }[scheme.packing]
    return made(value, rows, generator)


def e8m0(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Exponents of scales about one, as bytes."""
    return generator.integers(120, 134, shape).astype(np.int8)


def spread(numbers: Array, value: Shaped, rows: int) -> Array:
    """What belongs to blocks, one number for each, for each element; as f64."""
    scheme = value.scheme
    assert scheme is not None
    if scheme.scale_layout == "col_major":
        numbers = numbers.T
    wide = np.repeat(np.repeat(numbers, scheme.block[0], 0), scheme.block[1], 1)
    return wide[:rows, : value.shape[-1]].astype(np.float64)


def scales(value: Shaped, rows: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Scales as they are stored, and their values."""
    assert value.scheme is not None
    shape = scale_shape(value, rows)
    if value.scheme.scale == "f8E8M0FNU":
        stored = e8m0(generator, shape)
        return stored, 2.0 ** (stored.view(np.uint8).astype(np.float64) - 127)
    stored = generator.uniform(0.5, 1.5, shape).astype(DTYPES[value.scheme.scale])
    return stored, stored.astype(np.float64)


def _unpacked(value: Shaped, rows: int, generator: np.random.Generator) -> tuple[Value, Array]:
    codes, _ = random_codes(replace(value, scheme=Scheme(value.scheme.block, "f32")), rows,
                            int(generator.integers(1 << 30)))  # fmt: skip
    stored, numbers = scales(value, rows, generator)
    return (codes, stored), codes.astype(np.float64) * spread(numbers, value, rows)


def _q8_1(value: Shaped, rows: int, generator: np.random.Generator) -> tuple[Value, Array]:
    """The sums hold what a kernel must not read: it multiplies the values."""
    codes = generator.integers(-127, 128, (rows, value.shape[-1])).astype(np.int8)
    numbers = generator.uniform(0.5, 1.5, scale_shape(value, rows)).astype(np.float16)
    numbers[:, 1::2] = np.nan
    return (codes, numbers), codes * spread(numbers[:, ::2], value, rows)


def _int4(value: Shaped, rows: int, generator: np.random.Generator) -> tuple[Value, Array]:
    assert value.scheme is not None
    data = generator.integers(0, 256, (rows, value.shape[1] // 2)).astype(np.uint8)
    codes = np.stack([data & 15, data >> 4], -1).reshape(rows, -1).astype(np.float64)
    stored, numbers = scales(value, rows, generator)
    if value.scheme.zero_point == "none":
        return (data.view(np.int8), stored), (codes - 8) * spread(numbers, value, rows)
    zeros = generator.integers(-128, 128, stored.shape).astype(np.int8)
    values = (codes - spread(zeros, value, rows)) * spread(numbers, value, rows)
    return (data.view(np.int8), stored, zeros), values


def _fp4(value: Shaped, rows: int, generator: np.random.Generator) -> tuple[Value, Array]:
    data = generator.integers(0, 256, (rows, value.shape[1] // 2)).astype(np.uint8)
    codes = np.stack([data & 15, data >> 4], -1).reshape(rows, -1)
    values = np.where(codes & 8, -1.0, 1.0) * E2M1[codes & 7]
    stored, numbers = scales(value, rows, generator)
    return (data.view(np.int8), stored), values * spread(numbers, value, rows)


def _half(generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
    return (generator.uniform(0.5, 1.5, shape) / 16).astype(np.float16)


def _q4_k(value: Shaped, rows: int, generator: np.random.Generator) -> tuple[Value, Array]:
    """dequantize_row_q4_K of ggml-quants.c, a block at a time."""
    blocks = value.shape[1] // 256
    data = generator.integers(0, 256, (rows, blocks, 128)).astype(np.uint8)
    header = generator.integers(0, 256, (rows, blocks, 16)).astype(np.uint8)
    header[..., :4] = _half(generator, (rows, blocks, 2)).view(np.uint8)
    values = np.empty((rows, blocks, 256))
    d, dmin = np.moveaxis(header[..., :4].copy().view(np.float16).astype(np.float64), -1, 0)
    q = header[..., 4:].astype(np.int64)
    for j in range(8):
        if j < 4:
            scale, minimum = q[..., j] & 63, q[..., j + 4] & 63
        else:
            scale = (q[..., j + 4] & 15) | ((q[..., j - 4] >> 6) << 4)
            minimum = (q[..., j + 4] >> 4) | ((q[..., j] >> 6) << 4)
        chunk = data[..., 32 * (j // 2) : 32 * (j // 2) + 32]
        codes = chunk >> 4 if j % 2 else chunk & 15
        values[..., 32 * j : 32 * j + 32] = (d * scale)[..., None] * codes - (dmin * minimum)[
            ..., None
        ]
    memory = data.reshape(rows, -1).view(np.int8), header.reshape(rows, -1).view(np.int8)
    return memory, values.reshape(rows, -1)


def _q6_k(value: Shaped, rows: int, generator: np.random.Generator) -> tuple[Value, Array]:
    """dequantize_row_q6_K of ggml-quants.c, a block at a time."""
    blocks = value.shape[1] // 256
    data = generator.integers(0, 256, (rows, blocks, 192)).astype(np.uint8)
    header = generator.integers(0, 256, (rows, blocks, 18)).astype(np.uint8)
    header[..., 16:] = _half(generator, (rows, blocks, 1)).view(np.uint8)
    d = header[..., 16:].copy().view(np.float16).astype(np.float64)[..., 0]
    sc = header[..., :16].view(np.int8).astype(np.float64)
    values = np.empty((rows, blocks, 256))
    for half in range(2):
        ql = data[..., 64 * half : 64 * half + 64].astype(np.int64)
        qh = data[..., 128 + 32 * half : 160 + 32 * half].astype(np.int64)
        for i in range(32):
            codes = (
                (ql[..., i] & 15) | ((qh[..., i] & 3) << 4),
                (ql[..., i + 32] & 15) | ((qh[..., i] >> 2 & 3) << 4),
                (ql[..., i] >> 4) | ((qh[..., i] >> 4 & 3) << 4),
                (ql[..., i + 32] >> 4) | ((qh[..., i] >> 6 & 3) << 4),
            )
            for quarter, code in enumerate(codes):
                scale = d * sc[..., 8 * half + i // 16 + 2 * quarter]
                values[..., 128 * half + 32 * quarter + i] = scale * (code - 32)
    memory = data.reshape(rows, -1).view(np.int8), header.reshape(rows, -1).view(np.int8)
    return memory, values.reshape(rows, -1)


def product(x: Shaped, w: Shaped, m: int, seed: int = 0) -> tuple[list[Value], Array]:
    """Random operands of a product of m rows, and its f64 values."""
    made, values = [], []
    for i, (value, rows) in enumerate(((x, m), (w, w.shape[0]))):
        if value.quantized:
            memory, numbers = operand(value, rows, seed + i)
        else:
            memory = np.random.default_rng(seed + i).standard_normal((rows, value.shape[1]))
            memory = memory.astype(np.float32).astype(DTYPES[value.dtype])
            numbers = memory.astype(np.float64)
        made.append(memory)
        values.append(numbers)
    return made, values[0] @ values[1].T
