"""Conversions between element types."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from qfuse.lowering.triton.interpreter.program import Instruction
from qfuse.lowering.triton.interpreter.rounding import narrow, widen
from qfuse.lowering.triton.interpreter.types import FP8
from qfuse.lowering.triton.interpreter.values import Value, mark

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine

_RTZ, _RTNE = 0, 1


def unsigned(array: np.ndarray) -> np.ndarray:
    """The same bits read as unsigned integers; i1 stays."""
    return array if array.dtype == bool else array.view(f"u{array.dtype.itemsize}")


def signed(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Back from `unsigned` to the dtype it came from."""
    return array if array.dtype == dtype else array.view(dtype)


def _sign_extended(array: np.ndarray) -> np.ndarray:
    return -array.astype(np.int8) if array.dtype == bool else array


def _converter(change: Callable[[Instruction, np.ndarray], np.ndarray]) -> Callable[..., Value]:
    def handler(machine: "Machine", instruction: Instruction, x: Value) -> Value:
        return Value(change(instruction, x.data), x.undefined)

    return handler


def _to_result(
    read: Callable[[np.ndarray], np.ndarray],
) -> Callable[[Instruction, np.ndarray], np.ndarray]:
    return lambda ins, x: read(x).astype(ins.result_types[0].dtype)


def _truncate_integer(instruction: Instruction, x: np.ndarray) -> np.ndarray:
    dtype = instruction.result_types[0].dtype
    return (x & 1).astype(bool) if dtype.kind == "b" else x.astype(dtype)


def _arith_float(instruction: Instruction, x: np.ndarray) -> np.ndarray:
    source, target = instruction.operand_types[0].element, instruction.result_types[0].element
    if source in FP8 or target in FP8:
        raise instruction.refuse("Triton converts FP8 only by tt.fp_to_fp")
    return x.astype(instruction.result_types[0].dtype)


def _fp_to_fp(instruction: Instruction, x: np.ndarray) -> np.ndarray:
    target = instruction.result_types[0]
    if target.dtype.itemsize > x.dtype.itemsize:
        return widen(x).astype(target.dtype)
    same_width = target.dtype.itemsize == x.dtype.itemsize
    rounding = instruction.attribute("rounding", _RTNE if same_width else None)
    if rounding not in (_RTZ, _RTNE):
        raise instruction.refuse("rounding must be 0 (towards zero) or 1 (to nearest even)")
    return narrow(x, target.element, rounding == _RTZ)


def _to_integer(is_signed: bool) -> Callable[..., Value]:
    """Float to integer; a value that does not fit has no result."""

    def handler(machine: "Machine", instruction: Instruction, x: Value) -> Value:
        dtype = instruction.result_types[0].dtype
        bits = dtype.itemsize * 8
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if is_signed else (0.0, 2.0**bits)
        whole = np.trunc(x.data.astype(np.float64))
        fits = (whole >= low) & (whole < high)
        integers = np.where(fits, whole, 0).astype(dtype if is_signed else f"u{dtype.itemsize}")
        return mark(signed(integers, dtype), x.undefined, ~fits)

    return handler


def _bitcast(instruction: Instruction, x: np.ndarray) -> np.ndarray:
    target = instruction.result_types[0].dtype
    if bool in (x.dtype, target) and x.dtype != target:
        raise instruction.refuse("a bitcast to or from i1 changes the width")
    if x.dtype.itemsize != target.itemsize:
        raise instruction.refuse("a bitcast must keep the width of the elements")
    return x.view(target)


CONVERSIONS: dict[str, Callable[..., Value]] = {
    "arith.extsi": _converter(_to_result(_sign_extended)),
    "arith.extui": _converter(_to_result(unsigned)),
    "arith.trunci": _converter(_truncate_integer),
    "arith.sitofp": _converter(_to_result(_sign_extended)),
    "arith.uitofp": _converter(_to_result(unsigned)),
    "arith.fptosi": _to_integer(is_signed=True),
    "arith.fptoui": _to_integer(is_signed=False),
    "arith.extf": _converter(_arith_float),
    "arith.truncf": _converter(_arith_float),
    "arith.bitcast": _converter(_bitcast),
    "tt.bitcast": _converter(_bitcast),
    "tt.fp_to_fp": _converter(_fp_to_fp),
}
