"""Quantization schemes: from stored elements to numbers and back; no other file knows them.

A scheme that is not here raises Inexecutable, which names it.
"""

from dataclasses import replace

import numpy as np

from qfuse.compiler.reference import balls
from qfuse.compiler.reference.balls import Array, Ball
from qfuse.compiler.reference.values import Inexecutable, Quantized, Tensor, stack
from qfuse.dialects.quantization_ops import AMAX_FLOOR
from qfuse.dialects.types import STORAGE_MAX, Scheme, Shaped
from qfuse.dialects.verify import ceil_div

_STORAGE = ("f8E4M3FN", "f8E5M2", "i8", "i4")
_PACKINGS = ("none", "q8_1")


def decode(value: Quantized, columns: Array | None = None) -> Ball:
    """The numbers of a quantized tensor: element times the scale of its block.

    `columns` are those of the last dimension that are wanted; all without.
    """
    scheme = known(value.type)
    if columns is None:
        columns = np.arange(value.shape[-1])
    rows = np.arange(value.shape[-2]) // scheme.block[0]
    blocks = columns // scheme.block[1] * scheme.numbers
    data = value.data[..., columns].ball()
    scale = value.scale[..., rows[:, None], blocks].ball()
    slack = abs(data.mid) * scale.reach + (abs(scale.mid) + scale.reach) * data.reach
    return balls.ball(data.mid * scale.mid, slack, data, scale)


def encode(x: Ball, type_: Shaped, given: Tensor | None = None) -> Quantized:
    """Numbers quantized to the scheme of `type_`, by the scale `given` if there is one.

    As `qfuse.quantize` says.
    """
    scheme = known(type_)
    if type_.dtype not in STORAGE_MAX:
        raise Inexecutable(f"the reference cannot quantize to {type_.dtype}")
    if given is not None:
        return _by_scale(x, given.ball(), type_)
    limit = balls.constant(STORAGE_MAX[type_.dtype])
    width = x.mid.shape[-1]
    group = min(scheme.block[1], width) or 1

    def to_groups(values: Array) -> Array:
        padding = [(0, 0)] * (values.ndim - 1) + [(0, -width % group)]
        return np.pad(values, padding).reshape(*values.shape[:-1], ceil_div(width, group), group)

    groups = x.map(to_groups)
    amax = balls.maximum(balls.largest(balls.absolute(groups)), balls.constant(AMAX_FLOOR))
    scale, factor = balls.div(amax, limit), balls.div(limit, amax)
    if scheme.scale == "f8E8M0FNU":
        scale = balls.monotone(scale, _power_of_two_above)
        factor = balls.div(balls.constant(1.0), scale)
    codes = _codes(balls.mul(groups, factor), type_.dtype)
    numbers = scale[..., 0]
    if scheme.packing == "q8_1":  # the sum of each block beside its scale
        total = codes.map(lambda a: a.sum(-1, keepdims=True))  # of whole numbers: exact
        numbers = _interleaved(numbers, balls.mul(scale, total)[..., 0])
    data = codes.map(lambda a: a.reshape(*a.shape[:-2], -1)[..., :width])
    stored = Tensor(_stored(data.mid, type_.dtype), data.slack)
    return Quantized(stored, Tensor.of(numbers, scheme.scale), replace(type_, shape=stored.shape))


def _by_scale(x: Ball, scale: Ball, type_: Shaped) -> Quantized:
    """Numbers over one scale, [1], which each row then has."""
    codes = _codes(balls.div(x, scale), type_.dtype)
    data = Tensor(_stored(codes.mid, type_.dtype), codes.slack)
    stored = replace(type_, shape=data.shape)
    of_rows = scale.map(lambda a: np.broadcast_to(a, stored.scale_shape))
    return Quantized(data, Tensor.of(of_rows, "f32"), stored)


def join(weights: list[Quantized]) -> Quantized:
    """Weights below each other, each from a block boundary on; the rows between are zero."""
    type_ = weights[0].type
    scheme = known(type_)
    if scheme.packing != "none":
        raise Inexecutable(f'the reference cannot join weights of packing "{scheme.packing}"')
    parts = []
    for i, weight in enumerate(weights):
        missing = -weight.shape[0] % scheme.block[0] if i < len(weights) - 1 else 0
        zeros = np.zeros((missing, type_.shape[1]), weight.data.array.dtype)
        parts += [weight.data, Tensor(zeros, weight.data.slack if missing else None)]
    data = stack(parts)
    return Quantized(data, stack([w.scale for w in weights]), replace(type_, shape=data.shape))


def known(type_: Shaped) -> Scheme:
    """The scheme of a type; raises Inexecutable for one that is not here."""
    scheme = type_.scheme
    assert scheme is not None
    if type_.dtype not in _STORAGE or scheme.packing not in _PACKINGS:
        raise Inexecutable(f'the reference knows no {type_.dtype} of packing "{scheme.packing}"')
    if scheme.zero_point != "none":
        raise Inexecutable(f"the reference knows no zero points, which {type_} has")
    return scheme


def _codes(x: Ball, dtype: str) -> Ball:
    """To the nearest stored element, of ties the even one, saturated."""
    limit = STORAGE_MAX[dtype]

    def nearest(values: Array) -> Array:
        clipped = np.clip(values, -limit, limit)
        return balls.nearest(clipped, dtype) if dtype.startswith("f8") else np.rint(clipped)

    return balls.monotone(x, nearest)


def _power_of_two_above(values: Array) -> Array:
    """The least power of two that is not below; NaN past the largest that e8m0 has.

    What a ball reaches at or below zero is zero, so that the function has one direction.
    """
    mantissa, exponent = np.frexp(values)  # mantissa in [0.5, 1)
    powers = np.where(values > 0, np.ldexp(1.0, exponent - (mantissa == 0.5)), 0.0)
    return np.where(values <= 2.0**127, powers, np.nan)


def _stored(values: Array, dtype: str) -> Array:
    if not dtype.startswith("f8"):  # a NaN has no whole number; its scale is NaN
        values = np.nan_to_num(values, nan=0.0)
    return values.astype(np.float32).astype(balls.NUMPY[dtype])


def _interleaved(a: Ball, b: Ball) -> Ball:
    def pairs(x: Array, y: Array) -> Array:
        return np.stack([x, np.broadcast_to(y, x.shape)], -1).reshape(*x.shape[:-1], -1)

    return balls.ball(pairs(a.mid, b.mid), pairs(a.reach + 0 * a.mid, b.reach), a, b)
