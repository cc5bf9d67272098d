"""Row-wise kernels without a reduction: element-wise operations, glu, rope, (de)quantize."""

from collections.abc import Callable

from qfuse.dialects.activations import build_glu
from qfuse.dialects.arithmetic import ELEMENTWISE, attributes_of, build_elementwise
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import glu_of, glu_operands
from qfuse.dialects.matmul_op import map_of
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import DYNAMIC, segments, shape_text
from qfuse.lowering.cpu.dequantize import dequantize_error, expand_row
from qfuse.lowering.cpu.emit import LANES, Function, Index, Value
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.quantized import activation_error
from qfuse.lowering.cpu.region import emit_scalars
from qfuse.lowering.cpu.rowwise import (
    Piece,
    Segment,
    build_row_entry,
    emit_outputs,
    for_segments,
    pieces,
)
from qfuse.lowering.cpu.signature import Built, Signature, Tensor

_COPY_COST = 4  # per element: loads and stores of one or two operands
_ENCODE_COST = 8
_TRANSCENDENTAL_COST = 10

_ELEMENTWISE = {f"qfuse.{name}": name for name in ELEMENTWISE}


def refuse(op: ir.Operation) -> str | None:
    operands = [shaped(v.type) for v in op.operands]
    results = [shaped(r.type) for r in op.results]
    for value in (*operands, *results):
        if value.shape and value.shape[-1] == DYNAMIC:
            return f"the last dimension of {value} is dynamic; it must be static"
    for value in results:
        if value.quantized and (why := activation_error(value)):
            return why
    if op.name in _ELEMENTWISE:
        if len(operands) > 1:
            return _broadcast_error(operands, results[0])
        if operands[0].shape != results[0].shape:
            return f"operand {operands[0]} and result {results[0]} differ in shape"
    if op.name == "qfuse.dequantize" and (why := dequantize_error(operands[0])):
        return why
    if op.name == "qfuse.rope":
        return _rope_error(*operands)
    return None


def build(signature: Signature, level: str) -> Built:
    emit, width, cost = _BUILDERS[signature.op.name](signature)
    function, entry = build_row_entry("run", signature.data, level, width, cost, emit)
    return Built([function], [entry])


_AHEAD = 1024
"""Elements from what is quantized to what is fetched: about what memory brings in its latency."""

EmitRow = Callable[[Lanes, Value], None]


def _broadcast_error(operands: list[Shaped], result: Shaped) -> str | None:
    if not result.shape:
        return "a tensor of rank 0 has no rows; leave it to torch"
    for value in operands:
        if map_of(value, result.rows, result.shape[-1]) is None:
            return (
                f"{shape_text(value.shape)} against a result {shape_text(result.shape)} is none of "
                "the broadcasts same shape, [N], [.., 1] and scalar"
            )
    return None


def _elementwise(signature: Signature) -> tuple[EmitRow, int, int]:
    (result,) = signature.results
    name = _ELEMENTWISE[signature.op.name]
    attributes = attributes_of(signature.op)
    width = result.width

    def load(lanes: Lanes, tensor: Tensor, row: Value, piece: Piece) -> Value:
        kind = map_of(tensor.shaped, result.shaped.rows, width)
        if kind == "[]":
            return lanes.splat(tensor.data, 0, tensor.dtype)
        if kind == "[M,1]":
            return lanes.splat(tensor.data, row, tensor.dtype)
        at: Index = piece.column
        if kind == "[M,N]":
            at = lanes.f.address((row, width), piece.column)
        return lanes.load(tensor.data, at, tensor.dtype, piece.mask)

    def emit(lanes: Lanes, row: Value) -> None:
        def compute(piece: Piece) -> Value:
            loaded = [load(lanes, t, row, piece) for t in signature.operands]
            return emit_scalars(lanes, lambda *xs: build_elementwise(name, xs, attributes), *loaded)

        emit_outputs(lanes, row, width, compute, (result.data, result.dtype))

    return emit, width, _TRANSCENDENTAL_COST if ELEMENTWISE[name].transcendental else _COPY_COST


def _glu(signature: Signature) -> tuple[EmitRow, int, int]:
    factors, scale = glu_operands(signature.op, signature.operands)
    gate, up = factors[0], factors[-1]
    halves = len(factors) == 1
    width = gate.width // 2 if halves else gate.width
    glu = glu_of(signature.op)
    value, quantized = optional_results(signature)

    def emit(lanes: Lanes, row: Value) -> None:
        def compute(piece: Piece) -> Value:
            at = lanes.f.address((row, gate.width), piece.column)
            g = lanes.load(gate.data, at, gate.dtype, piece.mask)
            u_at = lanes.f.iadd(at, width) if halves else at
            u = lanes.load(up.data, u_at, up.dtype, piece.mask)
            made = emit_scalars(lanes, lambda g, u: build_glu(glu, g, u, gate.dtype), g, u)
            return lanes.round(made, gate.dtype)

        emit_outputs(
            lanes,
            row,
            width,
            compute,
            (value.data, value.dtype) if value else None,
            [quantized.target(load_scale(lanes.f, scale))] if quantized else [],
        )

    return emit, width, _TRANSCENDENTAL_COST + (_ENCODE_COST if quantized else 0)


def optional_results(signature: Signature) -> list[Tensor | None]:
    """The results in the order of the operation's fields, None for those that are absent."""
    present = iter(signature.results)
    return [next(present) if there else None for there in segments(signature.op, "result")]


def load_scale(f: Function, scale: Tensor | None) -> Value | None:
    """The number that an operand gives as a scale beforehand, if there is one."""
    return None if scale is None else f.load(scale.data, 0, "f32")


def _rope_error(x: Shaped, cos: Shaped, sin: Shaped) -> str | None:
    batch, length, heads, _ = x.shape
    if heads == DYNAMIC:
        return f"the number of heads of {x} is dynamic; it must be static"
    if cos.shape[0] != sin.shape[0]:
        return f"cos is {cos} but sin is {sin}; they must have one batch"
    if batch == 1 or cos.shape[0] == batch != DYNAMIC:
        return None
    if cos.shape[0] != 1:
        return f"{cos} may or may not have the batch of {x}; make their batches static"
    if batch == DYNAMIC and length == DYNAMIC:
        return f"batch and length of {x} are both dynamic; make one of them static"
    return None


def _rope(signature: Signature) -> tuple[EmitRow, int, int]:
    x, cos, sin = signature.operands
    (result,) = signature.results
    batch, length, heads, width = x.shaped.shape
    half = width // 2

    def emit(lanes: Lanes, row: Value) -> None:
        f = lanes.f
        position = f.idiv(row, heads)
        if batch != 1 and cos.shaped.shape[0] != batch:
            # One table for all batches; the number of rows gives the extent that is not static.
            m = f.params[-2]
            extent = length if length != DYNAMIC else f.idiv(m, heads * batch)
            position = f.imod(position, extent)
        table = f.imul(position, width)
        base = f.imul(row, width)

        def rotated(piece: Piece, offset: int, other: int, negate: bool) -> Value:
            near = f.iadd(piece.column, offset)
            far = f.iadd(piece.column, other)
            value = lanes.load(x.data, f.iadd(base, near), x.dtype, piece.mask)
            exchanged = lanes.load(x.data, f.iadd(base, far), x.dtype, piece.mask)
            if negate:
                exchanged = f.op(f"arith.negf {exchanged} : {exchanged.type}", exchanged.type)
            c = lanes.load(cos.data, f.iadd(table, near), cos.dtype, piece.mask)
            s = lanes.load(sin.data, f.iadd(table, near), sin.dtype, piece.mask)
            straight = lanes.round(f.mul(value, c), x.dtype)
            crossed = lanes.round(f.mul(exchanged, s), x.dtype)
            return f.add(straight, crossed)

        def emit_segment(segment: Segment) -> None:
            computed = [
                (p, rotated(p, 0, half, True), rotated(p, half, 0, False))
                for p in pieces(f, segment)
            ]
            for piece, low, high in computed:
                at = f.iadd(base, piece.column)
                lanes.store(low, result.data, at, result.dtype, piece.mask)
                lanes.store(high, result.data, f.iadd(at, half), result.dtype, piece.mask)

        for_segments(f, half, min(half, 4 * LANES), emit_segment)

    return emit, width, 2 * _COPY_COST


def _quantize(signature: Signature) -> tuple[EmitRow, int, int]:
    x, *given = signature.operands
    (result,) = signature.results

    def emit(lanes: Lanes, row: Value) -> None:
        def compute(piece: Piece) -> Value:
            at = lanes.f.address((row, x.width), piece.column)
            lanes.f.prefetch(x.data, lanes.f.iadd(at, _AHEAD), locality=3)
            return lanes.load(x.data, at, x.dtype, piece.mask)

        target = result.target(load_scale(lanes.f, given[0] if given else None))
        emit_outputs(lanes, row, x.width, compute, None, [target])

    return emit, x.width, _COPY_COST + _ENCODE_COST


def _dequantize(signature: Signature) -> tuple[EmitRow, int, int]:
    (q,), (result,) = signature.operands, signature.results

    def emit(lanes: Lanes, row: Value) -> None:
        def store(piece: Piece, value: Value) -> None:
            at = lanes.f.address((row, q.width), piece.column)
            lanes.store(value, result.data, at, result.dtype, piece.mask)

        expand_row(lanes, q, row, store)

    return emit, q.width, _COPY_COST


_BUILDERS: dict[str, Callable[[Signature], tuple[EmitRow, int, int]]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "qfuse.glu": _glu,
    "qfuse.rope": _rope,
    "qfuse.quantize": _quantize,
    "qfuse.dequantize": _dequantize,
}

OPS = tuple(_BUILDERS)
