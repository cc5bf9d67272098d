"""FP8 codes, scales and quantization, also where Triton has no conversion for the target."""

import struct
from math import nan

from qfuse.dialects.bindings import ir
from qfuse.dialects.quantization_ops import AMAX_FLOOR
from qfuse.dialects.tt_dialect import block_of
from qfuse.dialects.types import STORAGE_MAX
from qfuse.lowering.triton.builder import Builder

# f8E4M3FN: 1 sign bit, 4 of exponent (bias 7), 3 of mantissa; no infinities, 0x7f is NaN.
_NAN_CODE, _MAX_CODE, _MAGNITUDE = 0x7F, 0x7E, 0x7F
_INFINITY = 0x7F800000
_LEAST_NORMAL = 0x3C800000  # 2^-6 as f32
_SUBNORMAL_SHIFT = 16384.0  # adding it leaves multiples of 2^-9 in the low bits of an f32

E8M0 = "f8E8M0FNU"
_LEAST_E8M0 = 0x400000  # 2^-127 as f32, the one that is subnormal there

# 1.5 * 2^23: adding it rounds an f32 below 2^22 to an integer, to nearest even, in its low bits.
_ROUNDING = 12582912.0


def decode(b: Builder, codes: ir.Value, dtype: str) -> ir.Value:
    """The values of FP8 or i8 codes as `dtype`; exact for f16 and f32, and for bf16."""
    stored = str(block_of(codes).dtype)
    if stored == "i8":
        return b.cast("sitofp", codes, dtype)
    if stored not in b.gpu.unconverted:
        return b.convert(codes, dtype)
    value = _decode_e4m3(b, codes)
    return b.convert(b.convert(value, "f32") if dtype == "bf16" else value, dtype)


def encode(b: Builder, value: ir.Value, dtype: str) -> ir.Value:
    """f32 as FP8 or i8, to nearest even, saturated; NaN stays NaN where there is one."""
    if dtype == "i8":
        low = b.bitcast(b.add(value, _ROUNDING), "i32")
        shift = _bits(_ROUNDING)
        return b.cast("trunci", b.sub(low, shift), "i8")
    if dtype not in b.gpu.unconverted:
        return b.convert(value, dtype)
    return _encode_e4m3(b, value)


def quantize(
    b: Builder, value: ir.Value, axis: int, dtype: str, scale_type: str
) -> tuple[ir.Value, ir.Value]:
    """Codes of an f32 block, and their scale per block along `axis`, as `qfuse.quantize` says.

    The codes have the shape of `value`; the scales, f32, lack dimension `axis`.
    """
    amax = b.reduce(b.unary("math.absf", value), axis, "arith.maximumf")
    amax = b.binary("arith.maximumf", amax, AMAX_FLOOR)
    largest = STORAGE_MAX[dtype]
    scale = b.precise_div(amax, largest)
    if scale_type == E8M0:
        scale = _power_of_two(b, scale)
        inverse = b.precise_div(1.0, scale)  # exact
    else:
        inverse = b.precise_div(largest, amax)
    return encode(b, b.mul(value, b.expand(inverse, axis)), dtype), scale


def quantize_by(b: Builder, value: ir.Value, scale: ir.Value, dtype: str) -> ir.Value:
    """Codes of an f32 block with a scale that was given."""
    quotient = b.precise_div(value, scale)
    if dtype == "i8":  # FP8 saturates by itself
        quotient = b.binary("arith.minimumf", quotient, STORAGE_MAX[dtype])
        quotient = b.binary("arith.maximumf", quotient, -STORAGE_MAX[dtype])
    return encode(b, quotient, dtype)


def read_scale(b: Builder, stored: ir.Value, scale_type: str) -> ir.Value:
    """Scales as they are in memory, as f32: exact."""
    if scale_type != E8M0:
        return b.convert(stored, "f32")
    exponent = b.cast("extui", stored, "i32")
    bits = b.binary("arith.shli", exponent, 23)
    bits = b.select(b.equal(exponent, 0), _LEAST_E8M0, bits)
    return b.select(b.equal(exponent, 0xFF), nan, b.bitcast(bits, "f32"))


def store_scale(b: Builder, scale: ir.Value, scale_type: str) -> ir.Value:
    """Scales in f32 as they are in memory; those for e8m0 are powers of two, or NaN."""
    if scale_type != E8M0:
        return b.convert(scale, scale_type)
    return b.cast("trunci", b.binary("arith.shrui", b.bitcast(scale, "i32"), 23), "i8")


def _power_of_two(b: Builder, value: ir.Value) -> ir.Value:
    """The least power of two that is not below a positive normal f32; NaN of NaN and infinity."""
    raised = b.binary("arith.shrui", b.add(b.bitcast(value, "i32"), 0x7FFFFF), 23)
    power = b.bitcast(b.binary("arith.shli", raised, 23), "f32")
    return b.select(b.below(raised, 0xFF), power, nan)


def _decode_e4m3(b: Builder, codes: ir.Value) -> ir.Value:
    """As f16: exponent and mantissa lie alike in both, with biases 7 and 15."""
    bits = b.cast("extui", b.bitcast(codes, "i8"), "i16")
    magnitude = b.binary("arith.andi", bits, _MAGNITUDE)
    sign = b.binary("arith.shli", b.binary("arith.andi", bits, 0x80), 8)
    joined = b.binary("arith.ori", sign, b.binary("arith.shli", magnitude, 7))
    value = b.mul(b.bitcast(joined, "f16"), 256.0)
    return b.select(b.equal(magnitude, _NAN_CODE), nan, value)


def _encode_e4m3(b: Builder, value: ir.Value) -> ir.Value:
    bits = b.bitcast(value, "i32")
    magnitude = b.binary("arith.andi", bits, 0x7FFFFFFF)
    sign = b.binary("arith.andi", b.binary("arith.shrui", bits, 24), 0x80)
    # Round 23 bits of mantissa to 3, half to even, carrying into the exponent; then its new bias.
    odd = b.binary("arith.andi", b.binary("arith.shrui", magnitude, 20), 1)
    rounded = b.binary("arith.shrui", b.add(b.add(magnitude, 0x7FFFF), odd), 20)
    normal = b.minimum(b.sub(rounded, (127 - 7) << 3), _MAX_CODE)
    absolute = b.bitcast(magnitude, "f32")
    small = b.sub(b.bitcast(b.add(absolute, _SUBNORMAL_SHIFT), "i32"), _bits(_SUBNORMAL_SHIFT))
    code = b.select(b.less(magnitude, _LEAST_NORMAL), small, normal)
    code = b.select(b.above(magnitude, _INFINITY), _NAN_CODE, code)
    return b.bitcast(b.cast("trunci", b.binary("arith.ori", code, sign), "i8"), "f8E4M3FN")


def _bits(value: float) -> int:
    """The bits of an f32."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])
