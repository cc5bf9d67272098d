"""Opening quantized tensors: the f32 values of a tile of codes, whatever their packing."""

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import Shaped
from qfuse.lowering.triton.fp8 import decode, read_scale
from qfuse.lowering.triton.k_quants import Q4_K_WORDS, QUARTERS, Q4KHeader
from qfuse.lowering.triton.packed import HALF, e2m1, pick_half
from qfuse.lowering.triton.product import K_QUANTS, SCALE_TYPES
from qfuse.lowering.triton.signature import Tensor
from qfuse.lowering.triton.tile import Tile

_K_BLOCK = 256
"""Columns of a block of a K-quant."""


def dequantized(tile: Tile, x: Tensor) -> ir.Value:
    """The values of a tile: codes, less their zero points, times the scale of the block of each."""
    b, scheme = tile.b, x.shaped.scheme
    assert scheme is not None
    if scheme.packing in K_QUANTS:
        return _q4_k(tile, x) if scheme.packing == "q4_k" else _q6_k(tile, x)
    packed = scheme.packing in ("int4", "fp4")
    codes = _halves(tile, x) if packed else b.load(tile.at(tile.pointers.data(x)), tile.mask())
    rows_of_scales = b.ceil_div(tile.pointers.m, scheme.block[0])
    row_stride, group_stride = x.scale_strides(rows_of_scales)
    row = b.div(b.add(tile.row_range(), tile.row), scheme.block[0])
    column = b.div(b.add(tile.column_range(), tile.column), scheme.block[1])
    at = b.add(b.mul(row, row_stride), b.mul(column, group_stride))
    scale = b.load(b.offset(tile.pointers.scale(x), at), tile.mask())
    if scheme.packing == "int4":
        zero: ir.Value | int = HALF
        if scheme.zero_point != "none":
            loaded = b.load(b.offset(tile.pointers.zero(x), at), tile.mask())
            zero = b.cast("extsi", loaded, "i32")
        value = b.cast("sitofp", b.sub(codes, zero), "f32")
    else:
        value = e2m1(b, codes, "f32") if packed else decode(b, codes, "f32")
    return b.mul(value, read_scale(b, scale, scheme.scale))


def _halves(tile: Tile, x: Tensor) -> ir.Value:
    """The codes of two to a byte that belong to the columns of a tile, as i32."""
    b, column = tile.b, _columns(tile)
    pairs = _elements(tile, tile.pointers.data(x), x.stored_width, b.div(column, 2))
    return pick_half(b, pairs, b.rem(column, 2))


def _q4_k(tile: Tile, x: Tensor) -> ir.Value:
    """Of ggml's block_q4_K: d sc u - dmin m, the u of two groups in the halves of 32 bytes."""
    b, column = tile.b, _columns(tile)
    quarter, group = b.div(column, _K_BLOCK // QUARTERS), b.rem(b.div(column, 32), 2)
    place = b.add(b.mul(quarter, 32), b.rem(column, 32))
    pairs = _elements(tile, tile.pointers.data(x), x.stored_width, place)
    headers = b.bitcast(tile.pointers.scale(x), "!tt.ptr<i32>")
    first = b.mul(b.div(quarter, QUARTERS), Q4_K_WORDS)
    width = x.shaped.scale_shape[-1] // 4
    words = [
        _elements(tile, headers, width, b.add(first, word) if word else first)
        for word in range(Q4_K_WORDS)
    ]
    multiplier, offset = Q4KHeader.read(b, words, quarter).of_group(b, group)
    code = b.cast("sitofp", pick_half(b, pairs, group), "f32")
    return b.add(b.mul(multiplier, code), offset)


def _q6_k(tile: Tile, x: Tensor) -> ir.Value:
    """Of ggml's block_q6_K: d sc (u - 32), u with four bits in `ql` and two in `qh`."""
    b, column = tile.b, _columns(tile)
    block, inside = b.div(column, _K_BLOCK), b.rem(column, _K_BLOCK)
    half, quarter, lane = b.div(inside, 128), b.rem(b.div(inside, 32), 4), b.rem(inside, 32)
    data, start = tile.pointers.data(x), b.mul(block, 192)
    place = b.add(b.mul(half, 64), b.add(b.mul(b.rem(quarter, 2), 32), lane))
    pairs = _elements(tile, data, x.stored_width, b.add(start, place))
    place = b.add(b.add(b.mul(half, 32), lane), 128)
    upper = b.cast("extui", _elements(tile, data, x.stored_width, b.add(start, place)), "i32")
    top = b.binary("arith.andi", b.binary("arith.shrui", upper, b.mul(quarter, 2)), 3)
    low = pick_half(b, pairs, b.div(quarter, 2))
    code = b.sub(b.binary("arith.ori", low, b.binary("arith.shli", top, 4)), 32)

    scales, header = tile.pointers.scale(x), b.mul(block, 18)
    width = x.shaped.scale_shape[-1]
    scale = _elements(tile, scales, width, b.add(header, b.div(inside, 16)))
    low_byte, high_byte = (
        b.cast("extui", _elements(tile, scales, width, b.add(header, at)), "i32") for at in (16, 17)
    )
    bits = b.binary("arith.ori", low_byte, b.binary("arith.shli", high_byte, 8))
    d = b.convert(b.bitcast(b.cast("trunci", bits, "i16"), "f16"), "f32")
    multiplier = b.mul(d, b.cast("sitofp", b.cast("extsi", scale, "i32"), "f32"))
    return b.mul(multiplier, b.cast("sitofp", code, "f32"))


def _columns(tile: Tile) -> ir.Value:
    return tile.b.add(tile.column_range(), tile.column)


def _elements(tile: Tile, base: ir.Value, width: int, at: ir.Value) -> ir.Value:
    """Element `at` of each row of the tile, in rows of `width` that begin at `base`."""
    b = tile.b
    base = b.offset(base, b.mul(b.i64(tile.row), width))
    place = b.add(b.mul(tile.row_range(), width), at)
    return b.load(b.offset(base, place), tile.mask())


def stored_error(x: Shaped) -> str | None:
    """Why no kernel opens `x`, or None."""
    scheme = x.scheme
    assert scheme is not None
    if scheme.packing in K_QUANTS:
        return None
    if scheme.scale not in SCALE_TYPES:
        return f"has scales of {scheme.scale}; GPU kernels read {', '.join(SCALE_TYPES)}"
    if scheme.block[0] > 1 and len(x.shape) > 2:
        return f"blocks of {scheme.block[0]} rows in {len(x.shape)} dimensions; use two dimensions"
    return None
