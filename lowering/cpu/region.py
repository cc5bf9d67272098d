"""Scalar operations of epilogues, activations and GLUs, emitted for sixteen elements at once.

Every value of a region is kept as f32 lanes: a `truncf` rounds and stays f32, an `extf` is then
nothing.  Predicates are masks.
"""

from collections.abc import Callable, Sequence

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import FLOATS
from qfuse.lowering.cpu import math_functions
from qfuse.lowering.cpu.emit import F32, I32, MASK, Value
from qfuse.lowering.cpu.lanes import Lanes

_BINARY = ("addf", "subf", "mulf", "divf", "maximumf", "minimumf", "maxnumf", "minnumf")
_MASKS = ("andi", "ori", "xori")

# arith.cmpf stores its predicate as a number: the place in this list.
_PREDICATES = (
    *("false", "oeq", "ogt", "oge", "olt", "ole", "one", "ord"),
    *("ueq", "ugt", "uge", "ult", "ule", "une", "uno", "true"),
)


def region_error(block: ir.Block) -> str | None:
    """Why an epilogue cannot be emitted, or None."""
    for op in list(block.operations)[:-1]:
        name = op.operation.name
        if name not in _RULES:
            return f"'{name}' has no vector form; use one of {', '.join(sorted(_RULES))}"
        for value in (*op.operation.operands, *op.operation.results):
            if str(value.type) not in (*FLOATS, "i1"):
                return f"'{name}' computes on {value.type}; use f32, f16, bf16 or i1"
            half = str(value.type) in ("f16", "bf16")
            if half and name not in ("arith.truncf", "arith.extf", "arith.constant"):
                return f"'{name}' computes on {value.type}; extend its operands to f32 first"
    return None


def emit_region(lanes: Lanes, block: ir.Block, arguments: Sequence[Value]) -> list[Value]:
    """The values that `block` yields, for f32 lanes as its arguments."""
    values: dict[ir.Value, Value] = dict(zip(block.arguments, arguments, strict=True))
    *body, terminator = block.operations
    for op in body:
        operands = [values[o] for o in op.operation.operands]
        values[op.operation.results[0]] = _RULES[op.operation.name](lanes, op.operation, operands)
    return [values[o] for o in terminator.operation.operands]


def emit_scalars(lanes: Lanes, build: Callable[..., ir.Value], *operands: Value) -> Value:
    """What `build` makes of scalars, for f32 lanes in their place."""
    with ir.Location.unknown():
        module = ir.Module.create()
        types = [ir.F32Type.get()] * len(operands)
        with ir.InsertionPoint(module.body):
            source = ir.Operation.create("builtin.unrealized_conversion_cast", results=types)
            result = build(*source.results)
        values: dict[ir.Value, Value] = dict(zip(source.results, operands, strict=True))
        for op in list(module.body.operations)[1:]:
            given = [values[o] for o in op.operation.operands]
            values[op.operation.results[0]] = _RULES[op.operation.name](lanes, op.operation, given)
        return values[result]


Rule = Callable[[Lanes, ir.Operation, list[Value]], Value]


def _constant(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    value = op.attributes["value"]
    if isinstance(value, ir.FloatAttr):
        return lanes.f.splat(value.value)
    return lanes.f.constant(f"dense<{'true' if ir.IntegerAttr(value).value else 'false'}>", MASK)


def _truncf(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    return lanes.round(operands[0], str(op.results[0].type))


def _extf(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    return operands[0]


def _value(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    """What is to be quantized; epilogue.py does that."""
    return operands[0]


def _negf(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    return lanes.f.op(f"arith.negf {operands[0]} : {F32}", F32)


def _cmpf(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    predicate = _PREDICATES[ir.IntegerAttr(op.attributes["predicate"]).value]
    return lanes.f.compare(predicate, *operands)


def _select(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    return lanes.f.select(*operands)


def _absf(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    return lanes.f.bitcast(lanes.magnitude(operands[0]), F32)


def _sqrt(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    return lanes.f.op(f"math.sqrt {operands[0]} : {F32}", F32)


def _rsqrt(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    return lanes.f.div(lanes.f.splat(1.0), _sqrt(lanes, op, operands))


def _fma(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    return lanes.f.fma(*operands)


def _copysign(lanes: Lanes, op: ir.Operation, operands: list[Value]) -> Value:
    f = lanes.f
    sign = f.binary("andi", f.bitcast(operands[1], I32), f.isplat(0x80000000))
    return f.bitcast(f.binary("ori", lanes.magnitude(operands[0]), sign), F32)


def _binary(name: str) -> Rule:
    return lambda lanes, op, operands: lanes.f.binary(name, *operands)


def _function(emit: Callable[..., Value]) -> Rule:
    return lambda lanes, op, operands: emit(lanes.f, *operands)


_RULES: dict[str, Rule] = {
    "arith.constant": _constant,
    "arith.truncf": _truncf,
    "arith.extf": _extf,
    "arith.negf": _negf,
    "arith.cmpf": _cmpf,
    "arith.select": _select,
    **{f"arith.{name}": _binary(name) for name in (*_BINARY, *_MASKS)},
    "math.exp": _function(math_functions.exp),
    "math.tanh": _function(math_functions.tanh),
    "math.erf": _function(math_functions.erf),
    "math.absf": _absf,
    "math.sqrt": _sqrt,
    "math.rsqrt": _rsqrt,
    "math.fma": _fma,
    "math.copysign": _copysign,
    "qfuse.with_scale": _value,
}
