"""The scale of a whole tensor: the largest magnitude of each tile, then of all of them.

    maxima[tile] = max(|x| of the tile)                  # one program each
    result = max(maxima..., floor) / largest value       # one program

A maximum is the same in any order, and a NaN stays one, so the result does not depend on how the
tensor is cut.  Of M = 0 rows the first launch has no programs, and the second finds no maxima.
"""

from qfuse.dialects.bindings import ir
from qfuse.dialects.quantization_ops import AMAX_FLOOR
from qfuse.dialects.types import STORAGE_MAX, shaped
from qfuse.dialects.verify import DYNAMIC, ceil_div
from qfuse.lowering.triton.builder import Builder
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Grid, Launch, Variant
from qfuse.lowering.triton.rows import power_of_two
from qfuse.lowering.triton.signature import Signature, open_launch
from qfuse.lowering.triton.tile import Tile

OPS = ("qfuse.tensor_scale",)

_COLUMNS = 4096
_ELEMENTS = 8192
"""Of a tile: 32 for each thread of 8 warps, enough loads on their way for memory."""

_WARPS = 8
_AT_ONCE = 1024
"""Maxima that the last program reads in one step."""


def refuse(op: ir.Operation, gpu: Gpu) -> str | None:
    """Why `op` cannot become a GPU kernel, or None."""
    x = shaped(op.operands[0].type)
    if not x.shape or x.shape[-1] == DYNAMIC:
        return f"the last dimension of {x} must be static"
    if x.shape[-1] == 0:
        return f"{x} holds no elements"
    return None


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """Two launches for any number M of rows of the operand."""
    (x,) = signature.operands
    columns = min(_COLUMNS, power_of_two(x.width))
    rows, tiles = max(1, _ELEMENTS // columns), ceil_div(x.width, columns)
    with open_launch(
        gpu,
        f"{signature.name}_maxima",
        [x],
        Grid(rows, tiles),
        scratch="f32",
        num_warps=_WARPS,
        num_stages=1,
    ) as first:
        b, number = first.b, first.b.program_id(0)
        row = b.mul(b.div(number, tiles), rows)
        column = b.mul(b.rem(number, tiles), columns)
        tile = Tile(b, first.pointers, row, rows, column, columns, x.width)
        magnitude = b.unary("math.absf", tile.load(x, "[M,N]"))
        of_rows = b.reduce(magnitude, 1, "arith.maximumf")
        maximum = b.reduce(of_rows, 0, "arith.maximumf")
        b.store(b.offset(first.pointers.scratch, number), maximum)
    last = _last_launch(signature, gpu, rows, tiles)
    return [Variant(1, None, (first.made, last), scratch_per_row=4 * tiles)]


def _last_launch(signature: Signature, gpu: Gpu, rows: int, tiles: int) -> Launch:
    """One program that folds the maxima of all tiles."""
    (result,) = signature.results
    storage = str(ir.TypeAttr(signature.op.attributes["storage"]).value)
    with open_launch(
        gpu,
        signature.name,
        [result],
        Grid(1, at_most=1),
        scratch="f32",
        num_warps=4,
        num_stages=1,
    ) as launch:
        b: Builder = launch.b
        scratch = launch.pointers.scratch
        count = b.mul(b.ceil_div(launch.pointers.m, rows), tiles)
        numbers = b.range(_AT_ONCE)

        def body(step: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            mask = b.less(b.add(numbers, step), count)
            loaded = b.load(b.offset(b.offset(scratch, step), numbers), mask)
            return [b.binary("arith.maximumf", carried[0], loaded)]

        zeros = b.full(0.0, "f32", (_AT_ONCE,))
        (maxima,) = b.loop((0, count, _AT_ONCE), [zeros], body)
        maximum = b.reduce(maxima, 0, "arith.maximumf")
        amax = b.binary("arith.maximumf", maximum, AMAX_FLOOR)
        # Triton divides tensors; a tensor of one element is a scalar at the same address.
        at = b.offset(launch.pointers.data(result), b.range(1))
        scale = b.precise_div(b.broadcast(amax, (1,)), STORAGE_MAX[storage])
        b.store(at, scale)
    return launch.made
