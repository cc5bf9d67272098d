"""Quantized tensors in row-wise kernels: which there are, and how values become codes."""

from collections.abc import Sequence
from dataclasses import dataclass

from qfuse.dialects.quantization_ops import AMAX_FLOOR
from qfuse.dialects.types import STORAGE_MAX, Shaped
from qfuse.lowering.cpu.emit import F32, I8, I32, Index, Value
from qfuse.lowering.cpu.fp8 import FORMATS, encode
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.scales import power_of_two

_F32_MANTISSA = 23
_ROUND = 1.5 * 2.0**_F32_MANTISSA  # adding it leaves whole numbers in the lowest bits


def qtensor_error(value: Shaped) -> str | None:
    """Why CPU kernels cannot read or write this quantized tensor, or None."""
    scheme = value.scheme
    assert scheme is not None
    if scheme.scale_layout != "row_major":
        return "scales must lie row_major"
    return None


def activation_error(value: Shaped) -> str | None:
    """As `qtensor_error`, for a tensor quantized per row and group."""
    scheme = value.scheme
    assert scheme is not None
    if why := qtensor_error(value):
        return why
    if value.dtype not in STORAGE_MAX or scheme.packing not in ("none", "q8_1"):
        return f"activations of {value.dtype} have no CPU kernel; use {', '.join(STORAGE_MAX)}"
    if scheme.block[0] != 1:
        return f"blocks of {list(scheme.block)} span rows; use [1, group]"
    return None


@dataclass(frozen=True)
class Quantizer:
    """How the values of a group become codes."""

    lanes: Lanes
    dtype: str
    scale_dtype: str
    scale: Value
    """f32; of e8m0 the exponent, i32."""
    factor: Value
    """f32 lanes: what values are multiplied by, or divided where the scale was given."""
    divides: bool = False

    def encode(self, values: Value) -> Value:
        """Sixteen f32 as codes (i8): to nearest even, saturated; NaN stays where there is one."""
        f = self.lanes.f
        scaled = f.div(values, self.factor) if self.divides else f.mul(values, self.factor)
        if self.dtype in FORMATS:
            # By its own scale, the largest value of a group becomes the largest number.
            return encode(f, scaled, FORMATS[self.dtype], within=not self.divides)
        limit = f.bitcast(f.splat(STORAGE_MAX[self.dtype]), I32)
        clamped = f.bitcast(f.binary("minsi", self.lanes.magnitude(scaled), limit), F32)
        rounded = f.bitcast(f.add(clamped, f.splat(_ROUND)), I32)
        sign = f.binary("shrsi", f.bitcast(scaled, I32), f.isplat(31))
        signed = f.binary("subi", f.binary("xori", rounded, sign), sign)
        return f.cast("arith.trunci", signed, I8)

    def store_scale(self, target: Value, at: Index) -> None:
        f = self.lanes.f
        if self.scale_dtype == "f8E8M0FNU":
            f.store(f.cast("arith.trunci", self.scale, "i8"), target, at)
        else:
            self._store(self.scale, target, at)

    def store_sum(self, codes: Sequence[Value], target: Value, at: Index) -> None:
        """The sum of the codes of a group times its scale, as that was stored (q8_1)."""
        f, lanes = self.lanes.f, self.lanes
        total = f.isplat(0)
        for part in codes:
            total = f.binary("addi", total, f.cast("arith.extsi", part, I32))
        count = f.cast("arith.sitofp", lanes.count(total), "f32")
        stored = lanes.first(lanes.round(f.broadcast(self.scale), self.scale_dtype))
        self._store(f.mul(count, stored), target, at)

    def _store(self, number: Value, target: Value, at: Index) -> None:
        f, lanes = self.lanes.f, self.lanes
        if self.scale_dtype != "f32":
            number = lanes.first(lanes.narrow(f.broadcast(number), self.scale_dtype))
        f.store(number, target, at)


def dynamic_quantizer(lanes: Lanes, value: Shaped, amax_bits: Value) -> Quantizer:
    """From the bits of the largest magnitude of a group.

    A NaN in the group is the largest of all as an integer, so scale and factor become NaN, and
    with them every code of FP8.  An infinity gives scale inf and factor 0: NaN codes for the
    infinities and zeros for the rest, as the same formula does in torch.
    """
    f = lanes.f
    assert value.scheme is not None
    scale_dtype = value.scheme.scale
    amax_bits = f.binary("maxsi", amax_bits, f.bitcast(f.scalar(AMAX_FLOOR), "i32"))
    amax = f.bitcast(amax_bits, "f32")
    maximum = f.scalar(STORAGE_MAX[value.dtype])
    scale = f.div(amax, maximum)
    if scale_dtype != "f8E8M0FNU":
        factor = f.broadcast(f.div(maximum, amax))
        return Quantizer(lanes, value.dtype, scale_dtype, scale, factor)
    # The next power of two, up: past 2^127, as infinities and NaN are, it is NaN.
    below = f.constant(str((1 << _F32_MANTISSA) - 1), "i32")
    raised = f.binary("addi", f.bitcast(scale, "i32"), below)
    exponent = f.binary("shrui", raised, f.constant(str(_F32_MANTISSA), "i32"))
    exponent = f.binary("minsi", exponent, f.constant("255", "i32"))
    power = power_of_two(f, f.broadcast(exponent, I32))
    return Quantizer(lanes, value.dtype, scale_dtype, exponent, f.div(f.splat(1.0), power))


def given_quantizer(lanes: Lanes, value: Shaped, scale: Value) -> Quantizer:
    return Quantizer(lanes, value.dtype, "f32", scale, lanes.f.broadcast(scale), divides=True)
