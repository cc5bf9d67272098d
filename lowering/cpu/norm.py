"""RMSNorm kernels: two walks over each row, the first for its sum of squares.

A second quantized result takes one more walk, unless its groups nest with those of the first.

The sum is made in an order that depends on the width alone: four vector accumulators take every
fourth vector each, then they are added up, then their lanes.  So the normalized values are the
same bits whichever results a kernel has.
"""

from collections.abc import Callable

from qfuse.dialects.bindings import ir
from qfuse.dialects.norm_ops import SCALES, operands_of, quantize_rounding
from qfuse.dialects.types import shaped
from qfuse.lowering.cpu.elementwise import load_scale, optional_results
from qfuse.lowering.cpu.emit import LANES, Function, Index, Value
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.quantized import activation_error
from qfuse.lowering.cpu.rowwise import (
    Piece,
    each_row,
    emit_outputs,
    entry_parameters,
    row_entry,
)
from qfuse.lowering.cpu.signature import Built, Signature

_ACCUMULATORS = 4
_COST = 12  # bytes of memory traffic in the time of an element: two walks, the encoding
_ANOTHER_COST = 8  # one more encoding, and perhaps one more walk

OPS = ("qfuse.rms_norm",)


def refuse(op: ir.Operation) -> str | None:
    for result in op.results:
        value = shaped(result.type)
        if value.quantized and (why := activation_error(value)):
            return why
    return None


def build(signature: Signature, level: str) -> Built:
    operands = operands_of(signature.op, signature.operands)
    x, weight, residual = operands["x"], operands["weight"], operands.get("residual")
    value, *formats, new_residual = optional_results(signature)
    quantized = [
        (result, operands.get(scale))
        for result, scale in zip(formats, SCALES, strict=True)
        if result is not None
    ]
    attributes = signature.op.attributes
    eps = ir.FloatAttr(attributes["eps"]).value
    offset = ir.FloatAttr(attributes["offset"]).value
    rounds_first = ir.StringAttr(attributes["rounding"]).value == "before"
    rounds_last = quantize_rounding(signature.op) == "value"
    width = x.width
    sources = [operand for operand in (x, residual) if operand is not None]

    def emit_row(lanes: Lanes, row: Value, following: Index) -> None:
        f = lanes.f
        base = f.imul(row, width)

        def load_sum(column: Index, mask: Value | None) -> Value:
            """x, or x + residual before it is rounded to their type."""
            at = f.iadd(base, column)
            h = lanes.load(x.data, at, x.dtype, mask)
            if residual is None:
                return h
            return f.add(h, lanes.load(residual.data, at, residual.dtype, mask))

        def sum_input(column: Index, mask: Value | None) -> Value:
            """h, what is normalized."""
            h = load_sum(column, mask)
            return h if residual is None else lanes.round(h, x.dtype)

        def first_walk(column: Index, mask: Value | None) -> Value:
            if new_residual is None:
                return sum_input(column, mask)
            h, at = load_sum(column, mask), f.iadd(base, column)
            return lanes.store_rounded(h, new_residual.data, at, new_residual.dtype, mask)

        total = _sum_of_squares(lanes, width, first_walk)
        mean = f.div(total, f.scalar(width))
        shifted = f.add(mean, f.scalar(eps))
        root = f.op(f"math.sqrt {shifted} : f32", "f32")
        inverse = f.broadcast(f.div(f.scalar(1.0), root))
        if value is None and not quantized:
            return

        def compute(piece: Piece) -> Value:
            # While this row is computed, memory has time for the next one.
            ahead = f.address((following, width), piece.column)
            for source in sources:
                f.prefetch(source.data, ahead, locality=3)
            # With a new residual the second walk reads it back: it may lie in x's memory.
            if new_residual is not None:
                at = f.iadd(base, piece.column)
                h = lanes.load(new_residual.data, at, new_residual.dtype, piece.mask)
            else:
                h = sum_input(piece.column, piece.mask)
            n = f.mul(h, inverse)
            if rounds_first:
                n = lanes.round(n, x.dtype)
            w = lanes.load(weight.data, piece.column, weight.dtype, piece.mask)
            if offset:
                w = f.add(w, f.splat(offset))
            made = f.mul(n, w)
            return lanes.round(made, x.dtype) if rounds_last else made

        stored = (value.data, value.dtype) if value else None
        targets = [result.target(load_scale(f, scale)) for result, scale in quantized]
        emit_outputs(lanes, row, width, compute, stored, targets)

    cost = _COST + _ANOTHER_COST * max(0, len(quantized) - 1)
    function = Function("run", entry_parameters(signature.data))
    with each_row(function) as (row, following):
        emit_row(Lanes(function, level), row, following)
    return Built([function], [row_entry(function.symbol, width, cost)])


def _sum_of_squares(
    lanes: Lanes, width: int, load: Callable[[Index, Value | None], Value]
) -> Value:
    """Sum over a row of load(column, mask)^2, as a scalar."""
    f = lanes.f
    sums = [f.splat(0.0)] * _ACCUMULATORS
    stride = _ACCUMULATORS * LANES
    full = width - width % stride
    if full:
        with f.loop(0, full, stride, carried=sums) as loop:
            for i in range(_ACCUMULATORS):
                h = load(f.iadd(loop.iv, i * LANES), None)
                loop.yielded.append(f.fma(h, h, loop.carried[i]))
        sums = list(loop.results)
    for i, column in enumerate(range(full, width, LANES)):
        left = width - column
        h = load(column, f.first_lanes(left) if left < LANES else None)
        sums[i] = f.fma(h, h, sums[i])
    return lanes.sum(f.add(f.add(sums[0], sums[1]), f.add(sums[2], sums[3])))
