"""Gated linear units: which there are, and what each computes, whatever it is computed with.

Nothing here needs MLIR: the dialect, the kernels and the torch operators share one definition.
"""

import math
from dataclasses import dataclass
from typing import Protocol, TypeVar

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu")
"""What an activation may be; `gelu` is the erf form, `gelu_tanh` the tanh approximation."""

SWIGLU_OAI = "swiglu_oai"
GLU_ACTS = (*ACTIVATIONS, SWIGLU_OAI)
"""What the `act` of a GLU may be."""

ALPHA = 1.702
"""The `alpha` of gpt-oss, with which x * sigmoid(alpha * x) is close to gelu(x)."""

V = TypeVar("V")


@dataclass(frozen=True)
class Glu:
    """A gated linear unit: of what two products yield, gate and up, it makes

        silu, gelu, gelu_tanh, relu     act(gate) * up
        swiglu_oai (gpt-oss)            (gate * sigmoid(alpha * gate)) * (up + 1)

    where `limit`, unless it is infinite, first makes gate min(gate, limit), and up the nearest of
    -limit .. limit.  Each step is rounded to the type of gate and up, as separate operators would
    (alpha is not).  A NaN in gate or up makes the result NaN.
    """

    act: str
    limit: float = math.inf
    alpha: float = ALPHA

    def error(self) -> str | None:
        """Why there is no such GLU, or None."""
        if self.act not in GLU_ACTS:
            return f'act "{self.act}" is not one of {", ".join(GLU_ACTS)}'
        if not self.limit > 0:
            return f"limit is {self.limit}; it must be positive"
        if not 0 < self.alpha < math.inf:
            return f"alpha is {self.alpha}; it must be positive and finite"
        if self.alpha != ALPHA and self.act != SWIGLU_OAI:
            return f'alpha is {self.alpha}, but act "{self.act}" has none; {SWIGLU_OAI} has'
        return None


class Arithmetic(Protocol[V]):
    """What a GLU is computed with; every result is rounded to the type of gate and up."""

    def activation(self, name: str, x: V) -> V: ...
    def sigmoid(self, x: V) -> V: ...
    def clamp(self, x: V, low: float, high: float) -> V: ...
    def shift(self, x: V, by: float) -> V: ...
    def scale(self, x: V, by: float) -> V: ...
    def multiply(self, a: V, b: V) -> V: ...


def glu_factors(glu: Glu, gate: V, up: V, arithmetic: Arithmetic[V]) -> tuple[V, V]:
    """The two values whose product, rounded, is the result of `glu`."""
    if glu.limit != math.inf:
        gate = arithmetic.clamp(gate, -math.inf, glu.limit)
        up = arithmetic.clamp(up, -glu.limit, glu.limit)
    if glu.act == SWIGLU_OAI:
        sigmoid = arithmetic.sigmoid(arithmetic.scale(gate, glu.alpha))
        return arithmetic.multiply(gate, sigmoid), arithmetic.shift(up, 1.0)
    return arithmetic.activation(glu.act, gate), up
