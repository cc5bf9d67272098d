"""Activations on balls, from their definitions in `dialects/elementwise_ops.py`.

Written a second time on purpose: an epilogue region holds what `dialects/activations.py` builds, so
a fault there makes the fused and the unfused form of a program differ here.
"""

import math
from collections.abc import Callable

from qfuse.compiler.reference.balls import (
    Ball,
    add,
    constant,
    div,
    erf,
    exp,
    maximum,
    minimum,
    mul,
    negative,
    tanh,
)


def _silu(x: Ball) -> Ball:
    return div(x, add(constant(1.0), exp(negative(x))))


def _gelu(x: Ball) -> Ball:
    inner = erf(mul(x, constant(1 / math.sqrt(2))))
    return mul(mul(x, constant(0.5)), add(constant(1.0), inner))


def _gelu_tanh(x: Ball) -> Ball:
    cube = mul(mul(mul(x, x), x), constant(0.044715))
    inner = tanh(mul(add(x, cube), constant(math.sqrt(2 / math.pi))))
    return mul(mul(x, constant(0.5)), add(constant(1.0), inner))


def _relu(x: Ball) -> Ball:
    return maximum(x, constant(0.0))


def sigmoid(x: Ball) -> Ball:
    return div(constant(1.0), add(constant(1.0), exp(negative(x))))


def clamp(x: Ball, low: float, high: float) -> Ball:
    if low != -math.inf:
        x = maximum(x, constant(low))
    return x if high == math.inf else minimum(x, constant(high))


ACTIVATIONS: dict[str, Callable[[Ball], Ball]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
}
