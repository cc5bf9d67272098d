"""FP8 elements, and f16 where there is no instruction for it: exact decoding, and rounding to
nearest even.

    value = sign * 2^(exponent - bias) * 1.mantissa,   subnormal where the exponent field is 0

e4m3fn has no infinity and one NaN per sign (0x7f, 0xff); e5m2 and f16 are as IEEE formats are.
"""

from dataclasses import dataclass

from qfuse.dialects.types import STORAGE_MAX
from qfuse.lowering.cpu.emit import F32, I32, Function, Value, vector

_F32_MANTISSA = 23
_F32_BIAS = 127
_F32_INF = 0x7F800000
_F32_NAN = 0x7FC00000


@dataclass(frozen=True)
class Format:
    """A small float of `bits`: a sign, then exponent and `mantissa` bits."""

    name: str
    mantissa: int
    bias: int
    first_special: int
    """The smallest magnitude code that is not a finite number."""
    bits: int = 8

    @property
    def magnitude(self) -> int:
        """All bits but the sign."""
        return (1 << (self.bits - 1)) - 1

    @property
    def has_infinity(self) -> bool:
        return self.name != "f8E4M3FN"

    @property
    def shift(self) -> int:
        """How far a code moves up to line its fields up with those of f32."""
        return _F32_MANTISSA - self.mantissa

    @property
    def rebias(self) -> int:
        return (_F32_BIAS - self.bias) << _F32_MANTISSA

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)

    @property
    def limit(self) -> float:
        """What larger numbers are rounded like: 8 bits saturate, while f16 overflows."""
        return STORAGE_MAX.get(self.name, 2.0 ** (1 + self.bias))

    def f32_bits(self, magnitude: int) -> int:
        """The f32 pattern of a code without its sign."""
        if magnitude >= self.first_special:
            fraction = magnitude & ((1 << self.mantissa) - 1)
            infinite = self.has_infinity and fraction == 0
            return _F32_INF if infinite else _F32_NAN
        exponent, fraction = divmod(magnitude, 1 << self.mantissa)
        if exponent:
            return (magnitude << self.shift) + self.rebias
        if not fraction:
            return 0
        top = fraction.bit_length() - 1
        power = 1 - self.bias - self.mantissa + top
        below = fraction - (1 << top)
        return ((power + _F32_BIAS) << _F32_MANTISSA) | (below << (_F32_MANTISSA - top))


FORMATS = {
    "f8E4M3FN": Format("f8E4M3FN", mantissa=3, bias=7, first_special=0x7F),
    "f8E5M2": Format("f8E5M2", mantissa=2, bias=15, first_special=0x7C),
}

F16 = Format("f16", mantissa=10, bias=15, first_special=0x7C00, bits=16)


def decode(f: Function, codes: Value, fmt: Format) -> Value:
    """Sixteen codes (i8 or i16) as f32: exact, also where subnormal inputs are flushed to zero."""
    wide = f.cast("arith.extui", codes, I32)
    magnitude = f.binary("andi", wide, f.isplat(fmt.magnitude))
    shifted = f.binary("shli", magnitude, f.isplat(fmt.shift))
    normal = f.binary("addi", shifted, f.isplat(fmt.rebias))
    # A subnormal read as if its implicit bit were set is too large by the smallest normal.
    lifted = f.binary("addi", normal, f.isplat(1 << _F32_MANTISSA))
    subnormal = f.sub(f.bitcast(lifted, F32), f.splat(fmt.smallest_normal))
    is_small = f.compare("ult", magnitude, f.isplat(1 << fmt.mantissa))
    bits = f.select(is_small, f.bitcast(subnormal, I32), normal)
    special = f.isplat(_F32_NAN)
    if fmt.has_infinity:
        special = f.binary("ori", shifted, f.isplat(_F32_INF))
    bits = f.select(f.compare("uge", magnitude, f.isplat(fmt.first_special)), special, bits)
    sign = f.binary("shli", f.binary("subi", wide, magnitude), f.isplat(32 - fmt.bits))
    return f.bitcast(f.binary("ori", bits, sign), F32)


def decode_words(f: Function, words: Value, fmt: Format) -> list[Value]:
    """Two codes in each of sixteen i16, the lower byte first, as f32, exactly, with F16C.

    A code is moved to where an f16 has its fields, which is too small by a power of two.  So a
    subnormal one stays what it is, which F16C converts whatever is flushed to zero elsewhere.
    """
    wide = words.type
    place = F16.mantissa - fmt.mantissa  # of the lowest bit
    fields = f.isplat((fmt.magnitude << place) | 0x8000, wide)
    factor = f.splat(2.0 ** (F16.bias - fmt.bias))
    columns = []
    for upper in (f.binary("shli", words, f.isplat(8, wide)), words):
        moved = f.binary("shrsi", upper, f.isplat(8 - place, wide)) if place < 8 else upper
        half = f.binary("andi", moved, fields)
        if not fmt.has_infinity:
            # The largest code is the only NaN.  One more alone reaches the exponent's highest bit,
            # which is free, and with that bit the exponent is that of a NaN.
            more = f.binary("addi", half, f.isplat(1 << place, wide))
            half = f.binary("ori", half, f.binary("andi", more, f.isplat(0x4000, wide)))
        column = f.cast("arith.extf", f.bitcast(half, vector("f16")), F32)
        columns.append(column if fmt.bias == F16.bias else f.mul(column, factor))
    return columns


# vpunpcklbw and vpunpckhbw: bytes of two vectors interleaved within each 128-bit lane.
_UNPACK_LOW = [i for lane in range(0, 64, 16) for j in range(8) for i in (lane + j, 64 + lane + j)]
_UNPACK_HIGH = [
    i for lane in range(0, 64, 16) for j in range(8, 16) for i in (lane + j, 64 + lane + j)
]


def decode_to_bf16(f: Function, codes: Value, fmt: Format) -> tuple[Value, Value]:
    """64 codes as two vectors of 32 bf16, exactly, with AVX512_VBMI.

    Two lookups in 128-byte tables give the lower and the upper byte of each bf16 without its
    sign; the index of a lookup is the lower seven bits of the code.  Within each 128-bit lane the
    first result holds bytes 0-7 of the codes, the second bytes 8-15.
    """
    table = [fmt.f32_bits(code) >> 16 for code in range(128)]
    wide = vector("i8", 64)
    low = lookup(f, [bits & 0xFF for bits in table], codes)
    high = lookup(f, [bits >> 8 for bits in table], codes)
    high = f.binary("ori", high, f.binary("andi", codes, f.isplat(0x80, wide)))
    return interleave_bytes(f, low, high)


def interleave_bytes(f: Function, low: Value, high: Value) -> tuple[Value, Value]:
    """Lower and upper bytes of 64 bf16 as two vectors of them."""
    bf16 = vector("bf16", 32)
    first = f.shuffle(low, high, _UNPACK_LOW)
    second = f.shuffle(low, high, _UNPACK_HIGH)
    return f.bitcast(first, bf16), f.bitcast(second, bf16)


def lookup(f: Function, table: list[int], codes: Value) -> Value:
    """Bytes of a table of 128, by the lower seven bits of 64 codes."""
    first, second = f.bytes(table[:64]), f.bytes(table[64:])
    t = codes.type
    return f.op(
        f'llvm.call_intrinsic "llvm.x86.avx512.vpermi2var.qi.512"({first}, {codes}, {second}) : '
        f"({t}, {t}, {t}) -> {t}",
        t,
    )


def encode(f: Function, value: Value, fmt: Format, within: bool = False) -> Value:
    """Sixteen f32 as codes (i8 or i16): to nearest even, FP8 saturated; NaN becomes NaN.

    The same as `x.to(dtype)` in torch for every f32, of FP8 after `x.clamp(-max, max)`.  `within`
    promises that what is not NaN rounds to no more than the largest number.

    Adding a number whose last bit is worth a step of the code, 2^(exponent - mantissa), makes the
    CPU round to steps.  There are 2^mantissa of them or more for a normal number, and fewer for a
    subnormal one, which has the smallest exponent; so their count, and the exponent above the
    smallest in its field, are the code.
    """
    bits = f.bitcast(value, I32)
    size = f.bitcast(f.binary("andi", bits, f.isplat(0x7FFFFFFF)), F32)
    if not within:
        size = _smaller(f, f.splat(fmt.limit), size)
    # As if all exponents were of numbers, the largest code, which is a NaN, is one of them.
    exponent, fraction = divmod(fmt.magnitude, 1 << fmt.mantissa)
    largest = 2.0 ** (exponent - fmt.bias) * (1 + fraction / 2.0**fmt.mantissa)
    size = f.bitcast(_smaller(f, size, f.splat(largest)), I32)
    smallest = f.bitcast(f.splat(fmt.smallest_normal), I32)
    power = f.binary("andi", f.binary("maxsi", size, smallest), f.isplat(_F32_INF))
    # What the exponents differ by goes into the low bits, even, so that ties are what they were.
    rebias = -((_F32_BIAS + 1 - fmt.bias) << fmt.mantissa) % (1 << fmt.bits)
    step = f.binary("addi", power, f.isplat((fmt.shift << _F32_MANTISSA) + rebias))
    counted = f.bitcast(f.add(f.bitcast(size, F32), f.bitcast(step, F32)), I32)
    code = f.binary("addi", counted, f.binary("shrui", power, f.isplat(fmt.shift)))
    moved = f.binary("shrui", bits, f.isplat(32 - fmt.bits))
    sign = f.binary("andi", moved, f.isplat(fmt.magnitude + 1))
    return f.cast("arith.trunci", f.binary("ori", code, sign), vector(f"i{fmt.bits}"))


def _smaller(f: Function, a: Value, b: Value) -> Value:
    """The smaller lane, and `b` where one is NaN: one instruction."""
    return f.select(f.compare("olt", a, b), a, b)
