"""Element-wise operations and GLUs."""

import math
from collections.abc import Callable, Mapping, Sequence

from qfuse.compiler.reference import balls, schemes
from qfuse.compiler.reference.activations import ACTIVATIONS, clamp, sigmoid
from qfuse.compiler.reference.balls import Ball
from qfuse.compiler.reference.values import Tensor, Value
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import GLU_OUTPUTS, glu_of, glu_operands
from qfuse.dialects.glu import SWIGLU_OAI, Glu
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import segments


def _elementwise(compute: Callable[..., Ball]) -> Callable[..., list[Value]]:
    """numpy's broadcasting, one f32 operation, rounded to the type of the result."""

    def rule(op: ir.Operation, *operands: Tensor) -> list[Value]:
        return [Tensor.of(compute(*(x.ball() for x in operands)), result_dtype(op))]

    return rule


def glu(op: ir.Operation, *operands: Tensor) -> list[Value]:
    factors, scale = glu_operands(op, operands)
    gate, *up = factors
    if up:
        g, u = gate.ball(), up[0].ball()
    else:
        half = gate.shape[-1] // 2
        g, u = gate[..., :half].ball(), gate[..., half:].ball()
    value = Tensor.of(balls.mul(*glu_factors(glu_of(op), g, u, gate.dtype)), gate.dtype)
    names = [n for n, there in zip(GLU_OUTPUTS, segments(op, "result"), strict=True) if there]
    return outputs(op, names, {"value": value}, value.ball(), {"quantized": scale})


def glu_factors(glu: Glu, g: Ball, u: Ball, dtype: str) -> tuple[Ball, Ball]:
    """What a GLU multiplies; written a second time on purpose, as the activations are."""

    def rounded(x: Ball) -> Ball:
        return balls.rounded(x, dtype)

    if glu.limit != math.inf:
        limit = rounded(balls.constant(glu.limit))
        g = balls.minimum(g, limit)
        u = balls.minimum(balls.maximum(u, balls.negative(limit)), limit)
    if glu.act != SWIGLU_OAI:
        return rounded(ACTIVATIONS[glu.act](g)), u
    scaled = rounded(balls.mul(g, balls.constant(glu.alpha)))
    gated = rounded(balls.mul(g, rounded(sigmoid(scaled))))
    return gated, rounded(balls.add(u, balls.constant(1.0)))


def _clamp(op: ir.Operation, x: Tensor) -> list[Value]:
    low, high = (ir.FloatAttr(op.attributes[name]).value for name in ("low", "high"))
    return [Tensor.of(clamp(x.ball(), low, high), result_dtype(op))]


def outputs(
    op: ir.Operation,
    names: Sequence[str],
    known: Mapping[str, Tensor],
    source: Ball,
    scales: Mapping[str, Tensor | None],
) -> list[Value]:
    """The results of `op`, which have these names: those that are known, and others of `source`.

    The latter are quantized as their types say, by the scales that are given for some.
    """
    return [
        known[name]
        if name in known
        else schemes.encode(source, shaped(result.type), scales.get(name))
        for name, result in zip(names, op.results, strict=True)
    ]


def result_dtype(op: ir.Operation) -> str:
    return shaped(op.results[0].type).dtype


RULES: dict[str, Callable[..., list[Value]]] = {
    "qfuse.add": _elementwise(balls.add),
    "qfuse.sub": _elementwise(balls.sub),
    "qfuse.mul": _elementwise(balls.mul),
    "qfuse.div": _elementwise(balls.div),
    "qfuse.sigmoid": _elementwise(sigmoid),
    "qfuse.tanh": _elementwise(balls.tanh),
    "qfuse.exp": _elementwise(balls.exp),
    "qfuse.neg": _elementwise(balls.negative),
    "qfuse.square": _elementwise(lambda x: balls.mul(x, x)),
    "qfuse.cast": _elementwise(lambda x: x),
    "qfuse.clamp": _clamp,
    **{f"qfuse.{name}": _elementwise(compute) for name, compute in ACTIVATIONS.items()},
    "qfuse.glu": glu,
}
