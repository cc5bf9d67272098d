"""Scalar operations of epilogues, activations and GLUs, emitted for whole blocks.

A value of the region becomes a block of the shape it needs: a scalar, a row [1, N], a column
[M, 1] or the tile; the builder broadcasts where two meet.  Roundings are those of the region.
"""

from collections.abc import Callable, Sequence

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import FLOATS
from qfuse.lowering.triton.builder import Builder

_BINARY = ("addf", "subf", "mulf", "divf", "maximumf", "minimumf", "maxnumf", "minnumf")
_MASKS = ("andi", "ori", "xori")
_SIGN = 0x80000000

_TANH = {"cuda": "__nv_tanhf", "hip": "__ocml_tanh_f32"}
"""Of libdevice and of AMD's ocml: Triton lowers `math.erf`, but not `math.tanh`."""


def region_error(block: ir.Block) -> str | None:
    """Why an epilogue cannot be emitted, or None."""
    for op in list(block.operations)[:-1]:
        name = op.operation.name
        if name not in _RULES:
            return f"'{name}' has no Triton form; use one of {', '.join(sorted(_RULES))}"
        for value in (*op.operation.operands, *op.operation.results):
            if str(value.type) not in (*FLOATS, "i1"):
                return f"'{name}' computes on {value.type}; use f32, f16, bf16 or i1"
    return None


def emit_region(b: Builder, block: ir.Block, arguments: Sequence[ir.Value]) -> list[ir.Value]:
    """What `block` yields for blocks of f32 as its arguments."""
    values: dict[ir.Value, ir.Value] = dict(zip(block.arguments, arguments, strict=True))
    *body, terminator = block.operations
    _emit(b, [op.operation for op in body], values)
    return [values[o] for o in terminator.operation.operands]


def emit_scalars(b: Builder, build: Callable[..., ir.Value], *operands: ir.Value) -> ir.Value:
    """What `build` makes of scalars, for blocks of f32 in their place."""
    module = ir.Module.create()
    with ir.InsertionPoint(module.body):
        types = [ir.F32Type.get()] * len(operands)
        source = ir.Operation.create("builtin.unrealized_conversion_cast", results=types)
        result = build(*source.results)
    values: dict[ir.Value, ir.Value] = dict(zip(source.results, operands, strict=True))
    _emit(b, [op.operation for op in list(module.body.operations)[1:]], values)
    return values[result]


def _emit(b: Builder, body: Sequence[ir.Operation], values: dict[ir.Value, ir.Value]) -> None:
    for op in body:
        operands = [values[o] for o in op.operands]
        values[op.results[0]] = _RULES[op.name](b, op, operands)


Rule = Callable[[Builder, ir.Operation, list[ir.Value]], ir.Value]


def _constant(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    return b.value("arith.constant", [], op.results[0].type, value=op.attributes["value"])


def _convert(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    return b.convert(operands[0], str(op.results[0].type))


def _value(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    """What is to be quantized; tile.py does that."""
    return operands[0]


def _negf(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    """Times -1, which is exact; Triton before 3.9 has no arith.negf, and -0 - x folds to it."""
    return b.mul(operands[0], -1.0)


def _cmpf(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    predicate = ir.IntegerAttr(op.attributes["predicate"]).value
    return b.compare(predicate, operands[0], operands[1], "arith.cmpf")


def _select(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    return b.select(*operands)


def _sqrt(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    return b.unary("tt.precise_sqrt", operands[0])


def _rsqrt(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    return b.precise_div(1.0, b.unary("tt.precise_sqrt", operands[0]))


def _fma(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    return b.fma(*operands)


def _copysign(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    magnitude, sign = (b.bitcast(v, "i32") for v in operands)
    magnitude = b.binary("arith.andi", magnitude, _SIGN - 1)
    sign = b.binary("arith.andi", sign, _SIGN - (1 << 32))
    return b.bitcast(b.binary("arith.ori", magnitude, sign), "f32")


def _tanh(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    return b.value(
        "tt.extern_elementwise",
        operands,
        operands[0].type,
        libname=ir.StringAttr.get(""),
        libpath=ir.StringAttr.get(""),
        pure=ir.BoolAttr.get(True),
        symbol=ir.StringAttr.get(_TANH[b.gpu.kind]),
    )


def _unary(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    return b.unary(op.name, operands[0])


def _binary(b: Builder, op: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    return b.binary(op.name, *operands)


_RULES: dict[str, Rule] = {
    "arith.constant": _constant,
    "arith.truncf": _convert,
    "arith.extf": _convert,
    "arith.negf": _negf,
    "arith.cmpf": _cmpf,
    "arith.select": _select,
    **{f"arith.{name}": _binary for name in (*_BINARY, *_MASKS)},
    "math.exp": _unary,
    "math.absf": _unary,
    "math.tanh": _tanh,
    "math.erf": _unary,
    "math.sqrt": _sqrt,
    "math.rsqrt": _rsqrt,
    "math.fma": _fma,
    "math.copysign": _copysign,
    "qfuse.with_scale": _value,
}
