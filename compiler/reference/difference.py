"""Whether two values are the same, and how they differ if not."""

import zlib
from typing import Any

import numpy as np

from qfuse.compiler.reference.values import Other, Quantized, Tensor, Value


def difference(before: Value, after: Value) -> str | None:
    """How two values differ, or None.

    Without slack the bits must agree, where all NaN are one; with slack the balls must touch.
    """
    if before is after:  # an input, such as a weight that torch reads
        return None
    if isinstance(before, Quantized) and isinstance(after, Quantized):
        data = difference(before.data, after.data)
        scale = difference(before.scale, after.scale)
        return f"codes {data}" if data else f"scales {scale}" if scale else None
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            return f"{before.dtype}{list(before.shape)} became {after.dtype}{list(after.shape)}"
        return _distance(before, after)
    if isinstance(before, Other) and isinstance(after, Other):
        same = (before.known, identity(before)) == (after.known, identity(after))
        return None if same or not before.known else f"{before.constant} became {after.constant}"
    return f"{type(before).__name__} became {type(after).__name__}"


def _distance(before: Tensor, after: Tensor) -> str | None:
    a, b = before.ball(), after.ball()
    slack = np.broadcast_to(a.reach + b.reach, a.mid.shape)
    with np.errstate(all="ignore"):
        same = (a.mid == b.mid) & (np.signbit(a.mid) == np.signbit(b.mid))
        same |= np.isnan(a.mid) & np.isnan(b.mid)
        same |= (slack > 0) & ((abs(a.mid - b.mid) <= slack) | np.isinf(slack))
        if same.all():
            return None
        gap = np.where(same, -1.0, np.nan_to_num(abs(a.mid - b.mid) - slack, nan=np.inf))
    worst = np.unravel_index(int(gap.argmax()), gap.shape)
    place = [int(i) for i in worst]
    tolerance = f", more than {slack[worst]:.3g} apart" if slack[worst] else ""
    return (
        f"in {int((~same).sum())} of {same.size} elements, at {place} "
        f"{a.mid[worst]:.9g} before and {b.mid[worst]:.9g} after{tolerance}"
    )


def identity(value: Value) -> Any:
    """Equal for values that are the same; a large array is known by its memory."""
    if isinstance(value, Quantized):
        return (identity(value.data), identity(value.scale), value.type)
    if isinstance(value, Tensor):
        array = value.array
        if array.size > 1 << 16:
            return (array.ctypes.data, array.shape)
        return (zlib.crc32(np.ascontiguousarray(array).tobytes()), array.shape, value.dtype)
    if value.known and isinstance(value.constant, tuple):
        return tuple(map(identity, value.constant))
    return ("constant", repr(value.constant)) if value.known else id(value)
