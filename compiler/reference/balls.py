"""Arithmetic in f32 on balls: numbers, and how far another right evaluation may lie from each.

The dialect leaves open in which order a long sum is added in f32, and how well a kernel
approximates exp.  `slack` bounds what that can make of a value, and everything that follows from
it: a rounding or a quantization goes the other way exactly where the ball reaches over the middle
between two numbers.  It is a tolerance that is derived for each element, not chosen.

Without slack (None) nothing is open: sums are those of f64, functions those of numpy, and every
value is one number.  Balls with slack make balls with slack, so the inputs of a run decide.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray

NUMPY: dict[str, Any] = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "f8E4M3FN": ml_dtypes.float8_e4m3fn,
    "f8E5M2": ml_dtypes.float8_e5m2,
    "f8E8M0FNU": ml_dtypes.float8_e8m0fnu,
    "i64": np.int64,
    "i32": np.int32,
    "i8": np.int8,
    "i4": ml_dtypes.int4,
    "i1": np.bool_,
}
"""Element types of MLIR as those of numpy."""

UNIT = 2.0**-24
"""Unit roundoff of f32."""

FUNCTION_ERROR = 4 * UNIT
"""Relative error that a kernel's exp, tanh or erf may have: two units in the last place."""

SMALLEST = 2.0**-149
FLUSHED = 2.0**-126
"""Smaller numbers may become zero in a product, or where they are rounded to bf16: AVX-512's
instructions for bf16 flush them."""


@dataclass(frozen=True)
class Ball:
    """Numbers `mid`, f64 or bool; another right evaluation lies within `slack`, if that is set."""

    mid: Array
    slack: Array | None = None

    @property
    def reach(self) -> Array:
        return np.zeros(()) if self.slack is None else self.slack

    def __getitem__(self, index: Any) -> "Ball":
        return self.map(lambda a: a[index])

    def map(self, move: Callable[[Array], Array]) -> "Ball":
        """Something that only moves elements about, such as a reshape."""
        if self.slack is None:
            return Ball(move(self.mid))
        return Ball(move(self.mid), move(np.broadcast_to(self.slack, self.mid.shape)))


def ball(mid: Array, slack: Array, *sources: Ball) -> Ball:
    """`mid` with `slack` if any of the sources has some; an unknown slack is infinite."""
    if all(s.slack is None for s in sources):
        return Ball(mid)
    return Ball(mid, np.nan_to_num(slack, nan=np.inf, posinf=np.inf))


def nearest(values: Array, dtype: str) -> Array:
    """f64 values rounded to f32 and then to `dtype`, as the f32 arithmetic of the dialect does."""
    single = values.astype(np.float32)
    return (single if dtype == "f32" else single.astype(NUMPY[dtype])).astype(np.float64)


def monotone(x: Ball, function: Callable[[Array], Array], error: float = 0.0) -> Ball:
    """A function of one number that never changes direction, with the error a kernel may make."""
    mid = function(x.mid)
    if x.slack is None:
        return Ball(mid)
    low, high = function(x.mid - x.slack), function(x.mid + x.slack)
    slack = np.where(x.slack == 0, 0.0, np.maximum(abs(mid - low), abs(high - mid)))
    slack = np.where((low == mid) & (high == mid), 0.0, slack)  # an infinity stays one
    if error:
        slack = slack + np.where(np.isfinite(mid), error * abs(mid) + SMALLEST, 0.0)
    return ball(mid, slack, x)


def rounded(x: Ball, dtype: str) -> Ball:
    """Rounded to `dtype`: to one number wherever the whole ball rounds to that."""
    y = monotone(x, lambda values: nearest(values, dtype))
    if dtype != "bf16" or y.slack is None:
        return y
    smallest = abs(x.mid) - x.reach
    return Ball(y.mid, np.where(smallest < FLUSHED, np.maximum(y.slack, abs(y.mid)), y.slack))


def single(x: Ball) -> Ball:
    return rounded(x, "f32")


def constant(value: float) -> Ball:
    return Ball(nearest(np.array(value, np.float64), "f32"))


def _times(factor: Array, slack: Array) -> Array:
    """|factor| * slack, where no slack stays none, by an infinite factor too."""
    return np.where(slack == 0, 0.0, abs(factor) * slack)


def add(a: Ball, b: Ball) -> Ball:
    return single(ball(a.mid + b.mid, a.reach + b.reach, a, b))


def sub(a: Ball, b: Ball) -> Ball:
    return add(a, negative(b))


def mul(a: Ball, b: Ball) -> Ball:
    return single(_product(a, b))


def fma(a: Ball, b: Ball, c: Ball) -> Ball:
    """a * b + c, rounded once."""
    p = _product(a, b)
    return single(ball(p.mid + c.mid, p.reach + c.reach, p, c))


def _product(a: Ball, b: Ball) -> Ball:
    slack = _times(a.mid, b.reach) + _times(b.mid, a.reach) + _times(a.reach, b.reach)
    return ball(a.mid * b.mid, slack, a, b)


def div(a: Ball, b: Ball) -> Ball:
    mid = a.mid / b.mid
    # |(a + s) / (b + t) - a / b| <= (s + t |a / b|) / (|b| - t)
    gap = abs(b.mid) - b.reach
    slack = (a.reach + _times(mid, b.reach)) / np.where(gap > 0, gap, np.nan)
    slack = np.where((a.reach == 0) & (b.reach == 0), 0.0, slack)
    return single(ball(mid, slack, a, b))


def negative(x: Ball) -> Ball:
    return Ball(-x.mid, x.slack)


def absolute(x: Ball) -> Ball:
    return Ball(abs(x.mid), x.slack)


def maximum(a: Ball, b: Ball) -> Ball:
    """The larger; NaN if one is NaN."""
    return ball(np.maximum(a.mid, b.mid), np.maximum(a.reach, b.reach), a, b)


def minimum(a: Ball, b: Ball) -> Ball:
    return ball(np.minimum(a.mid, b.mid), np.maximum(a.reach, b.reach), a, b)


def largest(x: Ball) -> Ball:
    """Of the last dimension, which stays as one; NaN if one is NaN."""
    mid = x.mid.max(-1, keepdims=True)
    if x.slack is None:
        return Ball(mid)
    low = (x.mid - x.slack).max(-1, keepdims=True)
    high = (x.mid + x.slack).max(-1, keepdims=True)
    slack = np.where((low == mid) & (high == mid), 0.0, np.maximum(mid - low, high - mid))
    return ball(mid, slack, x)


def select(condition: Ball, a: Ball, b: Ball) -> Ball:
    """a where the condition holds, b elsewhere; both where it is open."""
    chosen = condition.mid.astype(bool)
    mid = np.where(chosen, a.mid, b.mid)
    slack = np.where(chosen, a.reach, b.reach)
    other = np.where(chosen, abs(b.mid - mid) + b.reach, abs(a.mid - mid) + a.reach)
    slack = np.where(condition.reach > 0, np.maximum(slack, other), slack)
    return ball(mid, slack, condition, a, b)


def compare(a: Ball, b: Ball, holds: Callable[[Array, Array], Array]) -> Ball:
    """A condition, as bools; it has slack where the balls touch."""
    close = (a.reach + b.reach > 0) & ~(abs(a.mid - b.mid) > a.reach + b.reach)
    return ball(holds(a.mid, b.mid), np.where(close, 1.0, 0.0), a, b)


def exp(x: Ball) -> Ball:
    return single(monotone(x, np.exp, FUNCTION_ERROR))


def tanh(x: Ball) -> Ball:
    return single(monotone(x, np.tanh, FUNCTION_ERROR))


def erf(x: Ball) -> Ball:
    return single(monotone(x, _erf, FUNCTION_ERROR))


def sqrt(x: Ball) -> Ball:
    return single(monotone(x, lambda values: np.sqrt(np.maximum(values, 0.0))))


def rsqrt(x: Ball) -> Ball:
    """1 / sqrt(x); kernels may round in between."""
    return single(monotone(x, lambda v: 1 / np.sqrt(np.maximum(v, 0.0)), FUNCTION_ERROR))


_scalar_erf = np.frompyfunc(math.erf, 1, 1)


def _erf(values: Array) -> Array:
    return np.asarray(_scalar_erf(values), np.float64)


def summed(x: Ball) -> Ball:
    """The sum of the last dimension, which stays as one, in f32 and in any order."""
    total = Ball(x.mid.sum(-1, keepdims=True))
    if x.slack is None:
        return single(total)
    # one more than there are terms: a kernel may keep the product in each (fma)
    error = (x.mid.shape[-1] + 1) * UNIT * abs(x.mid) + x.slack
    return single(ball(total.mid, error.sum(-1, keepdims=True), x))


def dot(x: Ball, w: Ball) -> Ball:
    """x [M, K] times the transpose of w [N, K], in f32 in any order.

    The f64 sums are added in the order of K for each element by itself: they do not depend on
    which rows stand beside it, as those of a BLAS may.
    """
    mid, term = np.zeros((len(x.mid), len(w.mid))), np.empty((len(x.mid), len(w.mid)))
    for column, row in zip(x.mid.T, np.ascontiguousarray(w.mid.T), strict=True):
        mid += np.multiply(column[:, None], row, out=term)
    if x.slack is None and w.slack is None:
        return single(Ball(mid))
    terms = x.mid.shape[1]
    magnitudes, weights = abs(x.mid), abs(w.mid)
    # A kernel adds up to K products of codes, multiplies by scales, and adds the blocks.
    slack = (terms + 8) * UNIT * (magnitudes @ weights.T)
    slack += FLUSHED * (magnitudes.sum(1)[:, None] + weights.sum(1) + terms)
    for a, b in ((x.reach, weights), (magnitudes + x.reach, w.reach)):
        slack += np.broadcast_to(a, x.mid.shape) @ np.broadcast_to(b, w.mid.shape).T
    return single(ball(mid, slack, x, w))
