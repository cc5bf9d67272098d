"""Activations and GLUs as scalar arithmetic on f32: one definition for every backend.

An epilogue region holds these operations, and a kernel for `qfuse.silu` or `qfuse.glu` emits the
same ones, so a fused and an unfused program agree to the last bit.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, pi, sqrt

from qfuse.dialects.bindings import arith, ir, math
from qfuse.dialects.glu import Glu, glu_factors


def build_activation(name: str, x: ir.Value) -> ir.Value:
    """Operations that compute activation `name` of the f32 `x` at the insertion point."""
    return _BUILDERS[name](x)


def build_glu(glu: Glu, gate: ir.Value, up: ir.Value, dtype: str) -> ir.Value:
    """Operations that compute `glu` of two f32, which hold numbers of `dtype`.

    Their product, the result, is not rounded yet: whoever stores it does so.
    """
    return arith.mulf(*glu_factors(glu, gate, up, _Rounded(dtype)))


def build_rounding(x: ir.Value, dtype: str) -> ir.Value:
    """Round the f32 `x` to `dtype` and back, as storing it in between would."""
    f32 = ir.F32Type.get()
    if dtype == "f32":
        return x
    return arith.extf(f32, arith.truncf(ir.Type.parse(dtype), x))


def rounding_of(x: ir.Value) -> str:
    """The type that `build_rounding` rounded `x` to last: what holds it exactly; f32 by default."""
    if isinstance(x, ir.BlockArgument) or x.owner.operation.name != "arith.extf":
        return "f32"
    return str(x.owner.operation.operands[0].type)


@dataclass(frozen=True)
class _Rounded:
    """Arithmetic on f32 that rounds each result to `dtype`."""

    dtype: str

    def activation(self, name: str, x: ir.Value) -> ir.Value:
        return build_rounding(build_activation(name, x), self.dtype)

    def sigmoid(self, x: ir.Value) -> ir.Value:
        return build_rounding(_sigmoid(x), self.dtype)

    def clamp(self, x: ir.Value, low: float, high: float) -> ir.Value:
        """Rounds the bounds, which is the same; arith.minimumf and maximumf keep NaN."""
        if high != inf:
            x = arith.minimumf(x, build_rounding(_constant(high), self.dtype))
        if low != -inf:
            x = arith.maximumf(x, build_rounding(_constant(low), self.dtype))
        return x

    def shift(self, x: ir.Value, by: float) -> ir.Value:
        return build_rounding(arith.addf(x, _constant(by)), self.dtype)

    def scale(self, x: ir.Value, by: float) -> ir.Value:
        return build_rounding(arith.mulf(x, _constant(by)), self.dtype)

    def multiply(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return build_rounding(arith.mulf(a, b), self.dtype)


def _constant(value: float) -> ir.Value:
    return arith.constant(ir.F32Type.get(), value)


def _sigmoid(x: ir.Value) -> ir.Value:
    """1 / (1 + exp(-x))"""
    return arith.divf(_constant(1.0), arith.addf(_constant(1.0), math.exp(arith.negf(x))))


def _silu(x: ir.Value) -> ir.Value:
    """x / (1 + exp(-x)): exp overflows to inf for very negative x, which gives -0."""
    return arith.divf(x, arith.addf(_constant(1.0), math.exp(arith.negf(x))))


def _gelu(x: ir.Value) -> ir.Value:
    """x/2 * (1 + erf(x / sqrt 2))"""
    erf = math.erf(arith.mulf(x, _constant(1 / sqrt(2))))
    return arith.mulf(arith.mulf(x, _constant(0.5)), arith.addf(_constant(1.0), erf))


def _gelu_tanh(x: ir.Value) -> ir.Value:
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3)))"""
    cube = arith.mulf(arith.mulf(x, x), x)
    inner = arith.addf(x, arith.mulf(cube, _constant(0.044715)))
    tanh = math.tanh(arith.mulf(inner, _constant(sqrt(2 / pi))))
    return arith.mulf(arith.mulf(x, _constant(0.5)), arith.addf(_constant(1.0), tanh))


def _relu(x: ir.Value) -> ir.Value:
    """max(x, 0); arith.maximumf keeps NaN."""
    return arith.maximumf(x, _constant(0.0))


_BUILDERS: dict[str, Callable[[ir.Value], ir.Value]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
}
