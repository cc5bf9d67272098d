"""What each element-wise operation computes: one table, as scalar arithmetic on f32.

Kernels of the operations and epilogue regions both hold what `build` makes here, so a fused and an
unfused program agree to the last bit.  Operands come extended to f32, and the result is rounded to
the operation's result type afterwards; where the table says nothing of NaN, infinities and -0,
IEEE 754 arithmetic does.

| operation | one element |
|---|---|
| add, sub, mul, div | x + y, x - y, x * y, x / y |
| silu | x / (1 + exp(-x)) |
| gelu, gelu_tanh | x/2 * (1 + erf(x / sqrt 2)), and its approximation by tanh |
| relu | max(x, 0); NaN stays |
| sigmoid | 1 / (1 + exp(-x)) |
| tanh, exp | as they are |
| neg | x with the other sign, also of 0 and infinity |
| square | x * x |
| clamp | min(max(x, low), high); NaN stays; a bound of infinity is none |
| cast | x, so rounded to the result type |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from qfuse.dialects.activations import build_activation
from qfuse.dialects.bindings import arith, ir, math


@dataclass(frozen=True)
class Elementwise:
    """An element-wise operation: `build` takes an f32 for each operand and attribute."""

    build: Callable[..., ir.Value]
    operands: int = 1
    attributes: tuple[str, ...] = ()
    """Names of its attributes, all f64: their values follow the operands."""
    transcendental: bool = False


def build_elementwise(
    name: str, operands: Sequence[ir.Value], attributes: Mapping[str, float]
) -> ir.Value:
    """Operations that compute `qfuse.<name>` of f32 operands at the insertion point."""
    entry = ELEMENTWISE[name]
    return entry.build(*operands, *(attributes[a] for a in entry.attributes))


def attributes_of(op: ir.Operation) -> dict[str, float]:
    """The attributes of an element-wise operation that `build_elementwise` asks for."""
    names = ELEMENTWISE[op.name.removeprefix("qfuse.")].attributes
    return {name: ir.FloatAttr(op.attributes[name]).value for name in names}


def build_constant(value: float) -> ir.Value:
    """The f32 nearest to `value`."""
    return arith.constant(ir.F32Type.get(), value)


def _sigmoid(x: ir.Value) -> ir.Value:
    """exp overflows to inf for very negative x, which gives 0."""
    one = build_constant(1.0)
    return arith.divf(one, arith.addf(one, math.exp(arith.negf(x))))


def _square(x: ir.Value) -> ir.Value:
    return arith.mulf(x, x)


def _clamp(x: ir.Value, low: float, high: float) -> ir.Value:
    """arith.maximumf and minimumf keep NaN."""
    if low != -inf:
        x = arith.maximumf(x, build_constant(low))
    return x if high == inf else arith.minimumf(x, build_constant(high))


def _cast(x: ir.Value) -> ir.Value:
    return x


def _activation(name: str, transcendental: bool = True) -> Elementwise:
    return Elementwise(partial(build_activation, name), transcendental=transcendental)


ELEMENTWISE: dict[str, Elementwise] = {
    "add": Elementwise(arith.addf, 2),
    "sub": Elementwise(arith.subf, 2),
    "mul": Elementwise(arith.mulf, 2),
    "div": Elementwise(arith.divf, 2),
    "silu": _activation("silu"),
    "gelu": _activation("gelu"),
    "gelu_tanh": _activation("gelu_tanh"),
    "relu": _activation("relu", transcendental=False),
    "sigmoid": Elementwise(_sigmoid, transcendental=True),
    "tanh": Elementwise(math.tanh, transcendental=True),
    "exp": Elementwise(math.exp, transcendental=True),
    "neg": Elementwise(arith.negf),
    "square": Elementwise(_square),
    "clamp": Elementwise(_clamp, attributes=("low", "high")),
    "cast": Elementwise(_cast),
}
"""By name, without `qfuse.`."""
