"""Codes of fewer than eight bits, as numbers that are multiplied.

Bits become a number without a conversion, for which GPUs are slow: they are set below the leading
bit of a power of two whose last place is one ("lifted"), which is subtracted again.

    f32    0x4b000000 | u = 2^23 + u        bf16    0x4300 | u = 128 + u
    f16        0x6400 | u = 1024 + u          i8      0x80 | u = u - 128

`#qfuse.scheme` draws what lies where in the bytes.  The subtraction comes last, when codes are in
their order: Triton cannot put into shared memory what is only reordered ("Illegal shared layout").
"""

from qfuse.dialects.bindings import ir
from qfuse.dialects.tt_dialect import block_of
from qfuse.lowering.triton.builder import Builder

HALF = 8
"""What a code of "int4" is less where there are no zero points."""

_LIFT = {"f32": 1 << 23, "f16": 1024, "bf16": 128, "i8": -128}
_LIFT_BITS = {"f32": 0x4B000000, "f16": 0x6400, "bf16": 0x4300, "i8": -0x80}
_INTEGER = {"f32": "i32", "f16": "i16", "bf16": "i16", "i8": "i8"}
"""What is as wide."""

_E2M1 = {"f16": (9, 2.0**14), "bf16": (6, 2.0**126)}
"""How far left the magnitude of an f4E2M1FN goes in a wider float, and what is its bias then."""


def int4(b: Builder, pairs: ir.Value, dtype: str, zero: ir.Value | None = None) -> ir.Value:
    """Bytes [.., n] of "int4" as codes [.., 2 n] less 8, or less their zero points.

    The zero points are i8 that broadcast to the codes; `dtype` is a float then.
    """
    halves = [_lifted(b, pairs, high, dtype) for high in (False, True)]
    return _lowered(b, interleaved(b, *halves), dtype, HALF if zero is None else zero)


def fp4(b: Builder, pairs: ir.Value, dtype: str) -> ir.Value:
    """Bytes [.., n] of f4E2M1FN codes as their values [.., 2 n]."""
    if dtype == "f32":
        return b.convert(fp4(b, pairs, "f16"), "f32")
    halves = [_e2m1_bits(b, _code(b, pairs, high, "i16"), dtype) for high in (False, True)]
    return b.mul(interleaved(b, *halves), _E2M1[dtype][1])


def fp4_half(b: Builder, pairs: ir.Value, high: bool, dtype: str) -> ir.Value:
    """The values of the f4E2M1FN codes in the low or in the high bits of bytes."""
    return b.mul(_e2m1_bits(b, _code(b, pairs, high, "i16"), dtype), _E2M1[dtype][1])


def e2m1(b: Builder, code: ir.Value, dtype: str) -> ir.Value:
    """The values of f4E2M1FN codes that are integers."""
    bits = _e2m1_bits(b, b.cast("trunci", code, "i16"), "f16")
    return b.convert(b.mul(bits, _E2M1["f16"][1]), dtype)


def _e2m1_bits(b: Builder, code: ir.Value, dtype: str) -> ir.Value:
    """A code's fields where `dtype` has them, whose bias is another one."""
    magnitude = b.binary("arith.shli", b.binary("arith.andi", code, 7), _E2M1[dtype][0])
    sign = b.binary("arith.shli", b.binary("arith.andi", code, 8), 12)
    return b.bitcast(b.binary("arith.ori", magnitude, sign), dtype)


def pick_half(b: Builder, pairs: ir.Value, odd: ir.Value) -> ir.Value:
    """The codes, i32, in the low bits of bytes or, where `odd` is one, in the high bits."""
    wide = b.binary("arith.shrui", b.cast("extui", pairs, "i32"), b.mul(odd, 4))
    return b.binary("arith.andi", wide, 15)


def half_bytes(
    b: Builder, pairs: ir.Value, high: bool, dtype: str, less: ir.Value | int = 0
) -> ir.Value:
    """The codes 0 to 15 in the low or in the high bits of bytes, less a number or i8."""
    return _lowered(b, _lifted(b, pairs, high, dtype), dtype, less)


def six_bits(
    b: Builder, pairs: ir.Value, high: bool, upper: ir.Value, shift: int, dtype: str
) -> ir.Value:
    """Codes less 32: half of each byte of `pairs`, below two bits of `upper` from `shift` on."""
    integer = _INTEGER[dtype]
    wide = b.binary("arith.shrui", b.cast("extui", upper, integer), shift)
    top = b.binary("arith.shli", b.binary("arith.andi", wide, 3), 4)
    code = b.binary("arith.ori", _code(b, pairs, high, integer), top)
    return _lowered(b, _lift(b, code, dtype), dtype, 32)


def interleaved(b: Builder, even: ir.Value, odd: ir.Value) -> ir.Value:
    """Two blocks [.., n] as one [.., 2 n] in which their elements alternate."""
    *rows, width = block_of(even).shape
    return b.reshape(b.join(even, odd), (*rows, 2 * width))


def _code(b: Builder, pairs: ir.Value, high: bool, integer: str) -> ir.Value:
    """Half of each byte, as an integer of another width."""
    wide = pairs if integer == "i8" else b.cast("extui", pairs, integer)
    return b.binary("arith.andi", b.binary("arith.shrui", wide, 4) if high else wide, 15)


def _lift(b: Builder, code: ir.Value, dtype: str) -> ir.Value:
    return b.bitcast(b.binary("arith.ori", code, _LIFT_BITS[dtype]), dtype)


def _lifted(b: Builder, pairs: ir.Value, high: bool, dtype: str) -> ir.Value:
    """Half of each byte as `dtype`, plus what `_lowered` takes away.

    On NVIDIA four bytes at a time, which LLVM does not do by itself: half of the instructions.
    """
    if not b.gpu.is_cuda or dtype == "f32":
        return _lift(b, _code(b, pairs, high, _INTEGER[dtype]), dtype)
    source, shift = ("t", f"shr.b32 t, ${1 if dtype == 'i8' else 2}, 4; ") if high else ("", "")
    if dtype == "i8":
        text = f"lop3.b32 $0, {source or '$1'}, 0x0f0f0f0f, 0x80808080, 0xea;"
        return b.asm(f"{{ .reg .b32 t; {shift}{text} }}", "=r,r", [pairs], dtype, 4)
    source, bits = source or "$2", f"0x{_LIFT_BITS[dtype]:04x}{_LIFT_BITS[dtype]:04x}"
    text = "".join(
        f"prmt.b32 a, {source}, 0, {pick}; lop3.b32 ${i}, a, 0x000f000f, {bits}, 0xea; "
        for i, pick in enumerate(("0x4140", "0x4342"))
    )
    return b.asm(f"{{ .reg .b32 a, t; {shift}{text}}}", "=r,=r,r", [pairs], dtype, 4)


def _lowered(b: Builder, value: ir.Value, dtype: str, amount: ir.Value | int) -> ir.Value:
    """Lifted codes less `amount`: what `dtype` has instead of integers, exactly."""
    lift = _LIFT[dtype]
    if isinstance(amount, ir.Value):
        return b.sub(value, b.add(b.cast("sitofp", amount, dtype), float(lift)))
    if dtype != "i8":
        return b.sub(value, float(lift + amount))
    if not b.gpu.is_cuda:
        return b.sub(value, lift + amount)
    # All bytes of a word at a time: none is less than 0x80, so nothing is borrowed.
    by = f"0x{amount:02x}" + f"{amount:02x}" * 3
    text = f"{{ .reg .b32 t; sub.u32 t, $1, {by}; xor.b32 $0, t, 0x80808080; }}"
    return b.asm(text, "=r,r", [value], dtype, 4)
