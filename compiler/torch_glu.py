"""Gated linear units on torch tensors, as the operators for experts compute them.

Importing this file needs torch and nothing of MLIR.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import gelu, relu, silu

from qfuse.dialects.errors import QfuseError
from qfuse.dialects.glu import ALPHA, Glu, glu_factors

_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": silu,
    "gelu": gelu,
    "gelu_tanh": partial(gelu, approximate="tanh"),
    "relu": relu,
}


def make_glu(act: str, limit: float | None = None, alpha: float | None = None) -> Glu:
    """The GLU of an operator's arguments, with what is None left at its default.

    Raises QfuseError where there is no such GLU.
    """
    glu = Glu(act, math.inf if limit is None else limit, ALPHA if alpha is None else alpha)
    if why := glu.error():
        raise QfuseError(f"GLU of the experts: {why}")
    return glu


def apply_glu(glu: Glu, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """`glu` of two tensors of one float type and shape, in that type."""
    return torch.mul(*glu_factors(glu, gate, up, _Tensors()))


class _Tensors:
    """Arithmetic on tensors, which rounds each result to their type."""

    def activation(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return _ACTIVATIONS[name](x)

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x)

    def clamp(self, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return x.clamp(low, high)

    def shift(self, x: torch.Tensor, by: float) -> torch.Tensor:
        return x + by

    def scale(self, x: torch.Tensor, by: float) -> torch.Tensor:
        return x * by

    def multiply(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a * b
