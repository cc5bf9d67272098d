"""From a strip of stored elements to the steps of a multiplication, exactly.

A *step* is what one multiply instruction consumes of a row of x, a 32-bit element:

| kind | step | multiplied by | where |
|---|---|---|---|
| bf16 | a pair of bf16 | vdpbf16ps | AVX-512, for x that is exactly bf16 |
| f32 | one f32 | fused multiply-add | everywhere |
| i8 | four i8 | vpdpbusd, by unsigned codes | AVX-512, for codes by codes |
| i8 | four i8 | vpmaddubsw and vpmaddwd | AVX2, for those of less than 8 bits: no sum saturates |
| i16 | a pair of i16 | pmaddwd | everywhere, for codes by codes |

A vector of the weight holds that step of 16 rows; a strip of unquantized bf16 is one already.
Integer codes lie there as unsigned bytes first (`quads`): a code is such a byte less an offset, or
less its zero point, times a factor.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from qfuse.lowering.cpu.emit import F32, I32, Function, Value, vector
from qfuse.lowering.cpu.fp8 import (
    FORMATS,
    decode,
    decode_to_bf16,
    decode_words,
    interleave_bytes,
    lookup,
)
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.layout import BYTE_COLUMNS, WeightLayout

KINDS = {"bf16": 2, "f32": 1, "i8": 4, "i16": 2}
"""How many columns a step of each kind has."""

BYTES = vector("i8", 64)
_WORDS = vector("i16", 32)

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_FP4_OFFSET = 12

_VALUES: dict[str, list[float]] = {
    "int4": [v - 8.0 for v in range(16)],
    "q4_k": [float(v) for v in range(16)],
    "fp4": [*_E2M1, *(-v for v in _E2M1)],
}
"""What codes of four bits stand for, by packing."""

# Of 8-bit elements, by storage type; of packed ones, by packing.
_OFFSETS = {"i8": 128, "int4": 8, "fp4": _FP4_OFFSET, "q4_k": 0, "q6_k": 32}
_FACTORS = {"fp4": 0.5}


@dataclass(frozen=True)
class Codes:
    """How the elements of a weight become steps of a kind, at a level."""

    layout: WeightLayout
    dtype: str
    level: str
    kind: str

    @property
    def is_whole(self) -> bool:
        """Whether codes are whole numbers, or such numbers times `factor`."""
        return self.dtype not in FORMATS

    @property
    def offset(self) -> int:
        """What unsigned codes are too large by, where there are no zero points."""
        return _OFFSETS[self._name]

    @property
    def factor(self) -> float:
        """What steps are to be multiplied by, too."""
        if self.level == "avx512" and self.kind in ("bf16", "f32"):
            return 1.0  # from a table of the values themselves
        return _FACTORS.get(self._name, 1.0)

    @property
    def _name(self) -> str:
        return self.dtype if self.layout.packing == "none" else self.layout.packing

    def steps(self, f: Function, strip: list[Value], zero: Value | None = None) -> list[Value]:
        """The steps of a strip, as i32 lanes, from its vectors of 64 bytes.

        `zero` are zero points, i32 lanes, to be subtracted; not for the kind i8, whose codes stay
        unsigned.
        """
        if self.layout.plain:
            return self._plain_steps(f, f.bitcast(strip[0], I32))
        if self.kind == "i8":
            return [f.bitcast(q, I32) for q in quads(f, self.layout, self.level, strip)]
        if self.level == "avx512":
            pairs = _pairs_of_bf16(f, self.layout, self.dtype, strip, zero)
            return pairs if self.kind == "bf16" else [s for p in pairs for s in _halves(f, p)]
        if not self.is_whole and self.level == "avx2":
            fmt = FORMATS[self.dtype]
            columns = [c for w in _words_of_halves(f, strip[0]) for c in decode_words(f, w, fmt)]
            return [f.bitcast(column, I32) for column in columns]
        if not self.is_whole:
            columns = [decode(f, b, FORMATS[self.dtype]) for b in _columns(f, strip[0])]
            return [f.bitcast(column, I32) for column in columns]
        emit = _pairs_of_i16 if self.kind == "i16" else _columns_of_f32
        unsigned = quads(f, self.layout, self.level, strip)
        return [step for q in unsigned for step in emit(f, q, self.offset, zero)]

    def _plain_steps(self, f: Function, strip: Value) -> list[Value]:
        if self.dtype == "f32" or self.kind == "bf16":
            return [strip]
        return _halves(f, strip) if self.dtype == "bf16" else self._halves_of_f16(f, strip)

    def _halves_of_f16(self, f: Function, pair: Value) -> list[Value]:
        """A pair of f16 as two f32."""
        words, lanes = f.bitcast(pair, _WORDS), Lanes(f, self.level)
        columns = [f.shuffle(words, words, range(column, 32, 2)) for column in range(2)]
        return [f.bitcast(lanes.extend(column, "f16"), I32) for column in columns]


# -- unsigned bytes --------------------------------------------------------------------------------

# From the order of an 8-bit strip to four columns of a row in each lane.
_QUAD_ORDER = [
    16 * lane + 8 * (column // 2) + 2 * row + column % 2
    for lane in range(4)
    for row in range(4)
    for column in BYTE_COLUMNS
]


def quads(f: Function, layout: WeightLayout, level: str, strip: list[Value]) -> list[Value]:
    """Integer codes as unsigned bytes, four columns of one row in each 32-bit lane.

    Byte b of a lane is column BYTE_COLUMNS[b] of the four.
    """
    if layout.bits == 8:
        ordered = f.shuffle(strip[0], strip[0], _QUAD_ORDER)
        return [f.binary("xori", ordered, f.isplat(0x80, BYTES))]
    low = [half for s in strip[:2] for half in _nibbles(f, s)]
    if layout.packing == "fp4":
        return [_fp4_bytes(f, level, codes) for codes in low]
    if layout.bits == 4:
        return low
    mask = f.isplat(0x30, BYTES)
    upper = []
    for name, shift in (("shli", 4), ("shli", 2), ("", 0), ("shrui", 2)):
        moved = f.binary(name, strip[2], f.isplat(shift, BYTES)) if name else strip[2]
        upper.append(f.binary("andi", moved, mask))
    return [f.binary("ori", a, b) for a, b in zip(low, upper, strict=True)]


def _nibbles(f: Function, strip: Value) -> list[Value]:
    low = f.binary("andi", strip, f.isplat(15, BYTES))
    return [low, f.binary("shrui", strip, f.isplat(4, BYTES))]


def _fp4_bytes(f: Function, level: str, codes: Value) -> Value:
    """Codes of e2m1 as twice their value plus _FP4_OFFSET."""
    table = [_FP4_OFFSET + int(2 * v) for v in _VALUES["fp4"]]
    if level == "avx512":
        return _call(f, "avx512.pshuf.b.512", f.bytes(table * 4), codes)
    if level == "avx2":
        halves = [_call(f, "avx2.pshuf.b", f.bytes(table * 2), half) for half in f.halves(codes)]
        return f.join(*halves)
    magnitude = f.binary("andi", codes, f.isplat(7, BYTES))
    doubled = magnitude
    for factor, less in ((2, 4), (4, 16)):
        line = f.binary("muli", magnitude, f.isplat(factor, BYTES))
        doubled = f.binary("maxsi", doubled, f.binary("subi", line, f.isplat(less, BYTES)))
    sign = f.binary("subi", f.isplat(0, BYTES), f.binary("shrui", codes, f.isplat(3, BYTES)))
    signed = f.binary("subi", f.binary("xori", doubled, sign), sign)
    return f.binary("addi", signed, f.isplat(_FP4_OFFSET, BYTES))


# -- with AVX-512 ----------------------------------------------------------------------------------


def _pairs_of_bf16(
    f: Function, layout: WeightLayout, dtype: str, strip: list[Value], zero: Value | None
) -> list[Value]:
    """Pairs of columns as bf16, in i32 lanes."""
    if dtype in FORMATS:
        return [f.bitcast(h, I32) for h in decode_to_bf16(f, strip[0], FORMATS[dtype])]
    if layout.bits == 8:
        return _bytes_to_bf16(f, strip[0])
    if layout.bits == 6:
        table = _words(f, [v - _OFFSETS["q6_k"] for v in range(64)])
        words = [w for q in quads(f, layout, "avx512", strip) for w in _low_and_high_bytes(f, q)]
        return [f.bitcast(_lookup_64(f, table, w), I32) for w in words]
    if zero is not None:
        differences = _words(f, [*range(16), *range(-16, 0)])
        zeros = _spread_bytes(f, zero)
        codes = [f.binary("subi", q, zeros) for q in quads(f, layout, "avx512", strip)]
        words = [w for q in codes for w in _low_and_high_bytes(f, q)]
        return [_lookup_32(f, differences[0], w) for w in words]
    values = _words(f, [*_VALUES[layout.packing]] * 2)  # one bit more than a code has is read
    whole = f.bitcast(strip[0], _WORDS)
    words = [f.binary("shrui", whole, f.isplat(shift, _WORDS)) for shift in (8, 4, 12)]
    return [_lookup_32(f, values[0], w) for w in (whole, *words)]


def _bytes_to_bf16(f: Function, codes: Value) -> list[Value]:
    """64 i8 as two vectors of 32 bf16, ordered as `decode_to_bf16` does."""
    table = [_bf16_bits(v or 128) for v in range(128)]
    magnitude = f.op(f"math.absi {codes} : {BYTES}", BYTES)
    some = f.compare("ne", codes, f.isplat(0, BYTES))  # the entry of 0 serves -128
    low, high = (
        f.select(some, lookup(f, part, magnitude), f.isplat(0, BYTES))
        for part in ([t & 0xFF for t in table], [t >> 8 for t in table])
    )
    high = f.binary("ori", high, f.binary("andi", codes, f.isplat(0x80, BYTES)))
    return [f.bitcast(v, I32) for v in interleave_bytes(f, low, high)]


def _halves(f: Function, pair: Value) -> list[Value]:
    """A pair of bf16 as two f32."""
    return [
        f.binary("shli", pair, f.isplat(16)),
        f.binary("andi", pair, f.isplat(0xFFFF0000)),
    ]


def _low_and_high_bytes(f: Function, quad: Value) -> list[Value]:
    """Words whose lowest bits are those of the lower, and of the upper, byte of each."""
    words = f.bitcast(quad, _WORDS)
    return [words, f.binary("shrui", words, f.isplat(8, _WORDS))]


def _spread_bytes(f: Function, lanes: Value) -> Value:
    """The lowest byte of each i32 lane in all four of it."""
    spread = f.binary("muli", f.binary("andi", lanes, f.isplat(0xFF)), f.isplat(0x01010101))
    return f.bitcast(spread, BYTES)


def _words(f: Function, values: Sequence[float]) -> list[Value]:
    """A table of bf16 in registers of 32."""
    bits = [_bf16_bits(v) for v in values]
    return [f.words(bits[i : i + 32]) for i in range(0, len(bits), 32)]


def _bf16_bits(value: float) -> int:
    """The pattern of a number that is exactly bf16."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    assert bits & 0xFFFF == 0, value
    return bits >> 16


def _lookup_32(f: Function, table: Value, words: Value) -> Value:
    """Words of a table, by the lowest five bits of each, as i32 lanes."""
    return f.bitcast(_call(f, "avx512.permvar.hi.512", table, words), I32)


def _lookup_64(f: Function, table: list[Value], words: Value) -> Value:
    """By the lowest six bits."""
    return f.op(
        f'llvm.call_intrinsic "llvm.x86.avx512.vpermi2var.hi.512"({table[0]}, {words}, '
        f"{table[1]}) : ({_WORDS}, {_WORDS}, {_WORDS}) -> {_WORDS}",
        _WORDS,
    )


def _call(f: Function, name: str, a: Value, b: Value) -> Value:
    t = a.type
    return f.op(f'llvm.call_intrinsic "llvm.x86.{name}"({a}, {b}) : ({t}, {t}) -> {t}', t)


# -- everywhere ------------------------------------------------------------------------------------


def _columns(f: Function, strip: Value) -> list[Value]:
    """The four columns of an 8-bit strip."""
    return [
        f.shuffle(
            strip,
            strip,
            [16 * lane + 8 * half + 2 * r + c for lane in range(4) for r in range(4)],
        )
        for half in range(2)
        for c in range(2)
    ]


def _words_of_halves(f: Function, strip: Value) -> list[Value]:
    """The two pairs of columns of an 8-bit strip, sixteen rows each, as i16."""
    words = f.bitcast(strip, _WORDS)
    return [
        f.shuffle(words, words, [8 * lane + 4 * half + r for lane in range(4) for r in range(4)])
        for half in range(2)
    ]


def _columns_of_f32(f: Function, quad: Value, offset: int, zero: Value | None) -> list[Value]:
    lanes = f.bitcast(quad, I32)
    less = f.isplat(offset) if zero is None else zero
    columns = []
    for column in range(4):
        shift = 8 * BYTE_COLUMNS.index(column)
        moved = f.binary("shrui", lanes, f.isplat(shift)) if shift else lanes
        code = f.binary("subi", f.binary("andi", moved, f.isplat(0xFF)), less)
        columns.append(f.bitcast(f.cast("arith.sitofp", code, F32), I32))
    return columns


def _pairs_of_i16(f: Function, quad: Value, offset: int, zero: Value | None) -> list[Value]:
    """Signed codes: |code - zero| is at most 255 + 128."""
    if zero is None:
        less = f.isplat(offset, _WORDS)
    else:
        low = f.binary("andi", zero, f.isplat(0xFFFF))
        less = f.bitcast(f.binary("ori", low, f.binary("shli", zero, f.isplat(16))), _WORDS)
    words = f.bitcast(quad, _WORDS)
    low = f.binary("andi", words, f.isplat(0xFF, _WORDS))
    high = f.binary("shrui", words, f.isplat(8, _WORDS))
    return [f.bitcast(f.binary("subi", w, less), I32) for w in (low, high)]
