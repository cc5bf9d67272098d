"""add, mul, activations, glu."""

from collections.abc import Callable

from qfuse.compiler.reference import balls, schemes
from qfuse.compiler.reference.activations import ACTIVATIONS
from qfuse.compiler.reference.balls import Ball
from qfuse.compiler.reference.values import Tensor, Value
from qfuse.dialects.bindings import ir
from qfuse.dialects.types import shaped


def _elementwise(compute: Callable[..., Ball]) -> Callable[..., list[Value]]:
    """numpy's broadcasting, one f32 operation, rounded to the type of the result."""

    def rule(op: ir.Operation, *operands: Tensor) -> list[Value]:
        return [Tensor.of(compute(*(x.ball() for x in operands)), result_dtype(op))]

    return rule


def glu(op: ir.Operation, gate: Tensor, up: Tensor | None = None) -> list[Value]:
    if up is None:
        half = gate.shape[-1] // 2
        g, u = gate[..., :half].ball(), gate[..., half:].ball()
    else:
        g, u = gate.ball(), up.ball()
    act = ACTIVATIONS[ir.StringAttr(op.attributes["act"]).value]
    value = balls.mul(balls.rounded(act(g), gate.dtype), u)
    return value_and_quantized(op, Tensor.of(value, gate.dtype))


def value_and_quantized(op: ir.Operation, value: Tensor, *others: Tensor) -> list[Value]:
    """The results that are there of: a value, the value quantized, and others."""
    present = list(ir.DenseI32ArrayAttr(op.attributes["resultSegmentSizes"]))
    types = iter([r.type for r in op.results])
    results: list[Value] = []
    for i, there in enumerate(present):
        if there:
            type_ = shaped(next(types))
            known = [value, None, *others][i]
            results.append(schemes.encode(value.ball(), type_) if known is None else known)
    return results


def result_dtype(op: ir.Operation) -> str:
    return shaped(op.results[0].type).dtype


RULES: dict[str, Callable[..., list[Value]]] = {
    "qfuse.add": _elementwise(balls.add),
    "qfuse.mul": _elementwise(balls.mul),
    **{f"qfuse.{name}": _elementwise(compute) for name, compute in ACTIVATIONS.items()},
    "qfuse.glu": glu,
}
