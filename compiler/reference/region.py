"""Epilogue regions: each scalar operation, done for whole arrays at once."""

from collections.abc import Callable, Sequence

import numpy as np

from qfuse.compiler.reference import balls
from qfuse.compiler.reference.balls import Array, Ball
from qfuse.compiler.reference.values import Inexecutable
from qfuse.dialects.bindings import ir


def run_region(block: ir.Block, arguments: Sequence[Ball]) -> list[Ball]:
    """What an epilogue block yields for balls as its arguments; raises Inexecutable."""
    values: dict[ir.Value, Ball] = dict(zip(block.arguments, arguments, strict=True))
    *body, terminator = block.operations
    for op in body:
        operation = op.operation
        if operation.name not in _RULES:
            raise Inexecutable(f"the reference does not execute {operation.name} in an epilogue")
        operands = [values[o] for o in operation.operands]
        result = _RULES[operation.name](operation, *operands)
        dtype = str(operation.results[0].type)
        values[operation.results[0]] = (
            balls.rounded(result, dtype) if dtype in ("f16", "bf16") else result
        )
    return [values[o] for o in terminator.operation.operands]


def _constant(op: ir.Operation) -> Ball:
    value = op.attributes["value"]
    if isinstance(value, ir.FloatAttr):
        return balls.constant(value.value)
    return Ball(np.array(bool(ir.IntegerAttr(value).value)))


# arith.cmpf stores its predicate as a number: the place in this list.
_PREDICATES: tuple[Callable[[Array, Array], Array], ...] = (
    lambda a, b: np.zeros(np.broadcast(a, b).shape, bool),
    np.equal,
    np.greater,
    np.greater_equal,
    np.less,
    np.less_equal,
    lambda a, b: (a < b) | (a > b),
    lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    lambda a, b: ~((a < b) | (a > b)),
    lambda a, b: ~(a <= b),
    lambda a, b: ~(a < b),
    lambda a, b: ~(a >= b),
    lambda a, b: ~(a > b),
    np.not_equal,
    lambda a, b: np.isnan(a) | np.isnan(b),
    lambda a, b: np.ones(np.broadcast(a, b).shape, bool),
)


def _compare(op: ir.Operation, a: Ball, b: Ball) -> Ball:
    return balls.compare(a, b, _PREDICATES[ir.IntegerAttr(op.attributes["predicate"]).value])


def _logical(combine: Callable[[Array, Array], Array]) -> Callable[..., Ball]:
    def rule(op: ir.Operation, a: Ball, b: Ball) -> Ball:
        if str(op.results[0].type) != "i1":
            raise Inexecutable(f"the reference executes {op.name} on i1 only")
        return balls.ball(combine(a.mid, b.mid), np.maximum(a.reach, b.reach), a, b)

    return rule


def _number(a: Ball, b: Ball, choose: Callable[[Ball, Ball], Ball]) -> Ball:
    """`choose`, but a NaN gives way to a number."""
    chosen = choose(a, b)
    mid = np.where(np.isnan(a.mid), b.mid, np.where(np.isnan(b.mid), a.mid, chosen.mid))
    return Ball(mid, chosen.slack)


def _copysign(a: Ball, b: Ball) -> Ball:
    mid = np.copysign(a.mid, b.mid)
    open_sign = (b.reach > 0) & ~(abs(b.mid) > b.reach)
    return balls.ball(mid, a.reach + np.where(open_sign, 2 * abs(mid), 0.0), a, b)


def _of(compute: Callable[..., Ball]) -> Callable[..., Ball]:
    return lambda op, *operands: compute(*operands)


def _rising(function: Callable[[Array], Array], error: float = 0.0) -> Callable[..., Ball]:
    return lambda op, x: balls.single(balls.monotone(x, function, error))


_RULES: dict[str, Callable[..., Ball]] = {
    "arith.constant": _constant,
    "arith.truncf": _of(lambda x: x),  # rounded to the type of the result, as all results are
    "arith.extf": _of(lambda x: x),
    "arith.addf": _of(balls.add),
    "arith.subf": _of(balls.sub),
    "arith.mulf": _of(balls.mul),
    "arith.divf": _of(balls.div),
    "arith.negf": _of(balls.negative),
    "arith.maximumf": _of(balls.maximum),
    "arith.minimumf": _of(balls.minimum),
    "arith.maxnumf": _of(lambda a, b: _number(a, b, balls.maximum)),
    "arith.minnumf": _of(lambda a, b: _number(a, b, balls.minimum)),
    "arith.cmpf": _compare,
    "arith.select": _of(balls.select),
    "arith.andi": _logical(np.logical_and),
    "arith.ori": _logical(np.logical_or),
    "arith.xori": _logical(np.logical_xor),
    "math.exp": _of(balls.exp),
    "math.tanh": _of(balls.tanh),
    "math.erf": _of(balls.erf),
    "math.absf": _of(balls.absolute),
    "math.sqrt": _of(balls.sqrt),
    "math.rsqrt": _of(balls.rsqrt),
    "math.fma": _of(balls.fma),
    "math.copysign": _of(_copysign),
    "qfuse.with_scale": _of(lambda x, scale: x),  # the scale is that of the result
    "math.exp2": _rising(np.exp2, balls.FUNCTION_ERROR),
    "math.log": _rising(lambda v: np.log(np.maximum(v, 0.0)), balls.FUNCTION_ERROR),
    "math.floor": _rising(np.floor),
    "math.ceil": _rising(np.ceil),
    "math.roundeven": _rising(np.rint),
}
