"""Expanding rows of a quantized tensor as it lies in memory, for `qfuse.dequantize`."""

from collections.abc import Callable
from dataclasses import dataclass

from qfuse.dialects.types import PACKINGS, STORAGE_BITS, Shaped
from qfuse.dialects.verify import DYNAMIC, ceil_div
from qfuse.lowering.cpu.emit import F32, I8, I32, LANES, Index, Value, vector
from qfuse.lowering.cpu.fp8 import FORMATS, decode
from qfuse.lowering.cpu.lanes import I16, Lanes
from qfuse.lowering.cpu.layout import K_QUANTS
from qfuse.lowering.cpu.quantized import qtensor_error
from qfuse.lowering.cpu.rowwise import Piece, Segment, each_piece, for_segments
from qfuse.lowering.cpu.scales import load_scale
from qfuse.lowering.cpu.signature import Tensor

Store = Callable[[Piece, Value], None]
"""Takes sixteen values, f32, of a row."""

_SUPERBLOCK = 256
_INT4_OFFSET, _Q6_K_OFFSET = 8, 32


def dequantize_error(value: Shaped) -> str | None:
    """Why a quantized tensor has no kernel that expands it, or None."""
    scheme = value.scheme
    assert scheme is not None
    if why := qtensor_error(value):
        return why
    if DYNAMIC in value.shape[1:-1] and scheme.block[0] > 1:
        return f"blocks of {list(scheme.block)} span a dynamic dimension of {value}"
    columns = scheme.block[1]
    if STORAGE_BITS[value.dtype] == 4 and columns % 2 and columns < value.shape[-1]:
        return f"groups of {columns} columns begin within a byte; use an even number"
    return None


def expand_row(lanes: Lanes, q: Tensor, row: Value, store: Store) -> None:
    """All values of a row, in f32."""
    scheme = q.shaped.scheme
    assert scheme is not None
    if scheme.packing in K_QUANTS:
        expand = _expand_q4_k if scheme.packing == "q4_k" else _expand_q6_k
        with lanes.f.loop(0, q.width // _SUPERBLOCK) as loop:
            expand(lanes, q, row, loop.iv, store)
        return
    f = lanes.f
    numbers = _scales_of_row(lanes, q, row)

    def emit_segment(segment: Segment) -> None:
        at = f.iadd(numbers, f.imul(segment.number, scheme.numbers))
        assert q.scale is not None
        scale = f.broadcast(load_scale(lanes, q.scale, at, scheme.scale))
        zero = None
        if q.zero is not None:
            byte = f.broadcast(f.load(q.zero, at, "i8"), I8)
            zero = f.cast("arith.extsi", byte, I32)

        def expand(piece: Piece) -> None:
            value = _values(lanes, q, f.address((row, q.width), piece.column), piece.mask, zero)
            store(piece, f.mul(value, scale))

        each_piece(f, segment, expand)

    for_segments(f, q.width, min(scheme.block[1], q.width), emit_segment)


def _scales_of_row(lanes: Lanes, q: Tensor, row: Value) -> Index:
    """Where the scales of a row begin; blocks span the last two dimensions."""
    f = lanes.f
    assert q.shaped.scheme is not None
    bn = q.shaped.scheme.block[0]
    if bn == 1:
        return f.imul(row, q.shaped.scale_shape[-1])
    extent = q.shaped.shape[-2]
    if len(q.shaped.shape) == 2:
        of_row = f.idiv(row, bn)
    else:
        matrix, inside = f.idiv(row, extent), f.imod(row, extent)
        of_row = f.address((matrix, ceil_div(extent, bn)), f.idiv(inside, bn))
    return f.imul(of_row, q.shaped.scale_shape[-1])


def _values(lanes: Lanes, q: Tensor, at: Index, mask: Value | None, zero: Value | None) -> Value:
    """Sixteen codes from element `at` on, less their zero points, as f32."""
    f = lanes.f
    if q.dtype in FORMATS:
        return decode(f, f.load(q.data, at, I8, mask), FORMATS[q.dtype])
    if q.dtype == "i8":
        codes = f.cast("arith.extsi", f.load(q.data, at, I8, mask), I32)
        return f.cast("arith.sitofp", codes, F32)
    codes = _nibbles(lanes, q, f.idiv(at, 2), mask)
    if q.dtype == "f4E2M1FN":
        return _e2m1(lanes, codes)
    less = f.isplat(_INT4_OFFSET) if zero is None else zero
    return f.cast("arith.sitofp", f.binary("subi", codes, less), F32)


def _nibbles(lanes: Lanes, q: Tensor, at: Index, mask: Value | None) -> Value:
    """Sixteen codes of eight bytes, as i32 lanes; `mask` is that of the sixteen."""
    f = lanes.f
    half = vector("i8", LANES // 2)
    if mask is not None:
        even = f.shuffle(mask, mask, range(0, LANES, 2))
        raw = f.load(q.data, at, half, even)
    else:
        raw = f.load(q.data, at, half)
    spread = f.cast("arith.extui", f.shuffle(raw, raw, [i // 2 for i in range(LANES)]), I32)
    shifts = f.constant(f"dense<{[0, 4] * (LANES // 2)}>", I32)
    return f.binary("andi", f.binary("shrui", spread, shifts), f.isplat(15))


def _e2m1(lanes: Lanes, codes: Value) -> Value:
    f = lanes.f
    magnitude = f.binary("andi", codes, f.isplat(7))
    doubled = magnitude
    for factor, less in ((2, 4), (4, 16)):
        line = f.binary("subi", f.binary("muli", magnitude, f.isplat(factor)), f.isplat(less))
        doubled = f.binary("maxsi", doubled, line)
    value = f.mul(f.cast("arith.sitofp", doubled, F32), f.splat(0.5))
    sign = f.binary("shli", f.binary("andi", codes, f.isplat(8)), f.isplat(28))
    return f.bitcast(f.binary("ori", f.bitcast(value, I32), sign), F32)


@dataclass(frozen=True)
class _Superblock:
    """256 columns of a K-quant: where its parts lie."""

    lanes: Lanes
    q: Tensor
    codes: Index
    scales: Index
    column: Index

    @staticmethod
    def of(lanes: Lanes, q: Tensor, row: Value, number: Value) -> "_Superblock":
        f = lanes.f
        assert q.shaped.scheme is not None
        place = f.address((row, q.width // _SUPERBLOCK), number)
        code_bytes = q.shaped.data_shape[-1] // (q.width // _SUPERBLOCK)
        numbers = PACKINGS[q.shaped.scheme.packing].numbers
        return _Superblock(
            lanes,
            q,
            f.imul(place, code_bytes),
            f.imul(place, numbers),
            f.imul(number, _SUPERBLOCK),
        )

    def bits(self, at: int, shift: int, mask: int) -> Value:
        """Bits of sixteen bytes of codes, as i32 lanes."""
        f = self.lanes.f
        raw = f.cast("arith.extui", f.load(self.q.data, f.iadd(self.codes, at), I8), I32)
        return f.binary("andi", f.binary("shrui", raw, f.isplat(shift)), f.isplat(mask))

    def byte(self, at: int, signed: bool = False) -> Value:
        """A byte of the scales, i32."""
        f = self.lanes.f
        assert self.q.scale is not None
        raw = f.load(self.q.scale, f.iadd(self.scales, at), "i8")
        return f.cast("arith.extsi" if signed else "arith.extui", raw, "i32")

    def f16(self, at: int) -> Value:
        """An f16 of the scales, as f32."""
        f = self.lanes.f
        low, high = self.byte(at), self.byte(at + 1)
        word = f.binary("ori", low, f.binary("shli", high, f.constant("8", "i32")))
        half = f.broadcast(f.cast("arith.trunci", word, "i16"), I16)
        return self.lanes.first(self.lanes.extend(half, "f16"))

    def piece(self, at: int) -> Piece:
        return Piece(self.lanes.f.iadd(self.column, at), None)

    def times(self, factor: Value, whole: Value) -> Value:
        """f32 * i32, both scalar."""
        return self.lanes.f.mul(factor, self.lanes.f.cast("arith.sitofp", whole, "f32"))


def _expand_q4_k(lanes: Lanes, q: Tensor, row: Value, number: Value, store: Store) -> None:
    f = lanes.f
    block = _Superblock.of(lanes, q, row, number)
    d, dmin = block.f16(0), block.f16(2)

    def bits(at: int, shift: int, mask: int) -> Value:
        moved = f.binary("shrui", block.byte(4 + at), f.constant(str(shift), "i32"))
        return f.binary("andi", moved, f.constant(str(mask), "i32"))

    for j in range(8):
        if j < 4:
            scale, minimum = bits(j, 0, 63), bits(j + 4, 0, 63)
        else:
            four = f.constant("4", "i32")
            scale = f.binary("ori", bits(j + 4, 0, 15), f.binary("shli", bits(j - 4, 6, 3), four))
            minimum = f.binary("ori", bits(j + 4, 4, 15), f.binary("shli", bits(j, 6, 3), four))
        factor = f.broadcast(block.times(d, scale))
        less = f.broadcast(block.times(dmin, minimum))
        for half in (0, LANES):
            codes = block.bits(32 * (j // 2) + half, 4 * (j % 2), 15)
            value = f.mul(f.cast("arith.sitofp", codes, F32), factor)
            store(block.piece(32 * j + half), f.sub(value, less))


def _expand_q6_k(lanes: Lanes, q: Tensor, row: Value, number: Value, store: Store) -> None:
    f = lanes.f
    block = _Superblock.of(lanes, q, row, number)
    d = block.f16(16)
    for i in range(16):
        half, quarter, part = i // 8, i % 8 // 2, i % 2
        low = block.bits(64 * half + 32 * (quarter % 2) + LANES * part, 4 * (quarter // 2), 15)
        high = block.bits(128 + 32 * half + LANES * part, 2 * quarter, 3)
        codes = f.binary("ori", low, f.binary("shli", high, f.isplat(4)))
        codes = f.binary("subi", codes, f.isplat(_Q6_K_OFFSET))
        factor = f.broadcast(block.times(d, block.byte(i, signed=True)))
        store(block.piece(LANES * i), f.mul(f.cast("arith.sitofp", codes, F32), factor))
