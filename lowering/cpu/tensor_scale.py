"""The scale of a whole tensor: a prepass finds the largest magnitude of each stretch of rows."""

from qfuse.dialects.bindings import ir
from qfuse.dialects.quantization_ops import AMAX_FLOOR
from qfuse.dialects.types import STORAGE_MAX, shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.emit import Function, Index, Value
from qfuse.lowering.cpu.kernel import TASK_COUNTER, Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.rowwise import Piece, Segment, entry_parameters, for_pieces, row_entry
from qfuse.lowering.cpu.signature import Built, Signature

OPS = ("qfuse.tensor_scale",)

_COST = 2  # bytes of memory traffic in the time of an element


def refuse(op: ir.Operation) -> str | None:
    x = shaped(op.operands[0].type)
    if x.shape and x.shape[-1] != DYNAMIC:
        return None
    return f"the last dimension of {x} must be there and static"


def build(signature: Signature, level: str) -> Built:
    (x,), (result,) = signature.operands, signature.results
    storage = str(ir.TypeAttr(signature.op.attributes["storage"]).value)

    prepass = Function("largest", entry_parameters(signature.data))
    lanes, f = Lanes(prepass, level), prepass
    shared, _, counters, m, rows = f.params[-5:]
    with f.tickets(counters, TASK_COUNTER, _stretches(f)) as stretch:
        first = f.imul(stretch, rows)
        with f.loop(first, f.imin(f.iadd(first, rows), m), carried=[f.isplat(0)]) as loop:
            base = f.imul(loop.iv, x.width)

            def raise_maximum(
                piece: Piece, carried: list[Value], base: Index = base
            ) -> list[Value]:
                value = lanes.load(x.data, f.iadd(base, piece.column), x.dtype, piece.mask)
                return [f.binary("maxsi", carried[0], lanes.magnitude(value))]

            loop.yielded = for_pieces(f, Segment(0, 0, x.width), loop.carried, raise_maximum)
        f.store(lanes.largest(loop.results[0]), shared, stretch)

    run = f = Function("run", entry_parameters(signature.data))
    shared, _, counters, *_ = f.params[-5:]
    with f.tickets(counters, TASK_COUNTER, 1):
        floor = f.bitcast(f.scalar(AMAX_FLOOR), "i32")
        with f.loop(0, _stretches(f), carried=[floor]) as loop:
            largest = f.load(shared, loop.iv, "i32")
            loop.yielded = [f.binary("maxsi", loop.carried[0], largest)]
        amax = f.bitcast(loop.results[0], "f32")
        f.store(f.div(amax, f.scalar(STORAGE_MAX[storage])), result.data, 0)

    by_row = row_entry("run", x.width, _COST)
    entry = Entry(
        "run",
        m_min=0,  # of no rows, too, there is a scale
        before=("largest",),
        rows=by_row.rows,
        shared_row_bytes=4,
        row_work=by_row.row_work,
    )
    return Built([prepass, run], [entry])


def _stretches(f: Function) -> Index:
    """How many stretches of `rows` rows there are."""
    m, rows = f.params[-2], f.imax(f.params[-1], 1)
    return f.idiv(f.iadd(m, f.isub(rows, 1)), rows)
