"""Floating-point results that numpy alone does not round as the hardware does."""

import functools

import numpy as np

from qfuse.lowering.triton.interpreter.types import DTYPES


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c rounded once to nearest even, for types of up to 32 bits.

    The product is exact in f64.  Its sum with c is rounded to odd, so that rounding the 53 bits
    once more to 24 or fewer gives what a single rounding would.
    """
    product = a.astype(np.float64) * b.astype(np.float64)
    addend = c.astype(np.float64)
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    bits = total.view(np.int64)
    sticky = np.isfinite(total) & (error != 0) & ((bits & 1) == 0)
    towards = np.where((error > 0) == (total > 0), 1, -1)
    return np.where(sticky, bits + towards, bits).view(np.float64).astype(a.dtype)


@functools.cache
def _decoded(dtype: np.dtype) -> np.ndarray:
    return np.arange(256, dtype=np.uint8).view(dtype).astype(np.float32)


def widen(array: np.ndarray) -> np.ndarray:
    """A floating-point array as f32 (f64 stays); a table does it for 8-bit types."""
    if array.dtype.itemsize == 1:
        return _decoded(array.dtype)[array.view(np.uint8)]
    return array if array.dtype == np.float64 else array.astype(np.float32, copy=False)


def narrow(array: np.ndarray, element: str, to_zero: bool) -> np.ndarray:
    """Convert to a narrower float: to nearest even, or towards zero.

    8-bit types saturate, as `cvt.rn.satfinite` does; NaN stays NaN.
    """
    dtype = DTYPES[element]
    wide = widen(array)
    if dtype.itemsize == 1:
        most = np.float32(_decoded(dtype)[np.isfinite(_decoded(dtype))].max())
        wide = np.clip(wide, -most, most)
    result = wide.astype(dtype)
    if to_zero:
        bits = np.ascontiguousarray(result).view(f"u{dtype.itemsize}")
        away = np.abs(widen(result)) > np.abs(wide)
        bits = bits - away.astype(bits.dtype)
        if element.endswith("FNUZ"):
            bits[bits == 0x80] = 0  # there is no -0, its code is NaN
        result = bits.view(dtype)
    return result


def truncated_tf32(array: np.ndarray) -> np.ndarray:
    """f32 as the tensor cores read it for TF32: the low 13 bits are not looked at."""
    return (np.ascontiguousarray(array).view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32)
