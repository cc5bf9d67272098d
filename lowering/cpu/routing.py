"""Kernels that sort the choices of tokens by expert, and add up what came of them.

`qfuse.route` is one task: two walks over the ids, too short to share.  `qfuse.combine` works row
by row.  Neither follows an id or a slot that is none.
"""

from qfuse.dialects.bindings import ir
from qfuse.dialects.moe_ops import shared_experts
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.combine import Sum
from qfuse.lowering.cpu.emit import Function, Index, Value
from qfuse.lowering.cpu.kernel import SLOT_COUNTER, TASK_COUNTER, Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.rowwise import Piece, build_row_entry, entry_parameters
from qfuse.lowering.cpu.signature import Built, Signature

OPS = ("qfuse.route", "qfuse.combine")

_COST = 2  # bytes of memory traffic in the time of one choice's element


def refuse(op: ir.Operation) -> str | None:
    if op.name == "qfuse.route":
        return None
    y = shaped(op.operands[0].type)
    if DYNAMIC in y.shape[1:]:
        return f"y is {y}; all its extents but the first must be static"
    return None


def build(signature: Signature, level: str) -> Built:
    if signature.op.name == "qfuse.route":
        return _build_route(signature)
    return _build_combine(signature, level)


def _build_route(signature: Signature) -> Built:
    """Count the rows of each expert; then each choice takes the next row of its expert.

    A shared expert has a row of each token, and comes after those that ids name.
    """
    (ids,) = signature.operands
    slots_out, tokens, indptr = (r.data for r in signature.results)
    shared, given = shared_experts(signature.op), ids.width
    experts = signature.results[2].width - 1  # the shared one, too
    named, choices = experts - shared, given + shared
    f = Function("run", entry_parameters(signature.data))
    _, scratch, counters, m, _ = f.params[-5:]
    total = f.imul(m, choices)
    next_row = f.imul(f.take_ticket(counters, SLOT_COUNTER), experts)
    with f.tickets(counters, TASK_COUNTER, 1):
        with f.loop(0, experts) as each:
            f.store_index(0, scratch, f.iadd(next_row, each.iv))
        with f.loop(0, f.imul(m, given)) as choice:
            expert = f.load_index(ids.data, choice.iv)
            with f.when(f.icompare("ult", expert, named)):
                at = f.iadd(next_row, expert)
                f.store_index(f.iadd(f.load_index(scratch, at), 1), scratch, at)
        if shared:
            f.store_index(m, scratch, f.iadd(next_row, named))
        f.store_index(0, indptr, 0)
        with f.loop(0, experts, carried=[f.index(0)]) as each:
            (begin,) = each.carried
            at = f.iadd(next_row, each.iv)
            end = f.index(f.iadd(begin, f.load_index(scratch, at)))
            f.store_index(begin, scratch, at)
            f.store_index(end, indptr, f.iadd(each.iv, 1))
            each.yielded = [end]

        def take_row(expert: Index, token: Index, choice_at: Index) -> None:
            at = f.iadd(next_row, expert)
            row = f.load_index(scratch, at)
            f.store_index(f.iadd(row, 1), scratch, at)
            f.store_index(row, slots_out, choice_at)
            f.store_index(token, tokens, row)

        with f.loop(0, m) as token:
            with f.loop(0, given) as j:
                choice_at = f.address((token.iv, choices), j.iv)
                expert = f.load_index(ids.data, f.address((token.iv, given), j.iv))
                f.store_index(-1, slots_out, choice_at)
                with f.when(f.icompare("ult", expert, named)):
                    take_row(expert, token.iv, choice_at)
            if shared:
                take_row(f.index(named), token.iv, f.address((token.iv, choices), given))
        with f.loop(each.results[0], total) as unused:
            f.store_index(0, tokens, unused.iv)
    return Built([f], [Entry("run", slot_bytes=4 * experts)])


def _build_combine(signature: Signature, level: str) -> Built:
    y, slots, weights, *residual = signature.operands
    (result,) = signature.results
    rows = Sum(slots, weights, residual[0] if residual else None, result)

    def load(lanes: Lanes, row: Index, piece: Piece) -> Value:
        at = lanes.f.address((row, y.width), piece.column)
        return lanes.load(y.data, at, y.dtype, piece.mask)

    def emit_row(lanes: Lanes, token: Value) -> None:
        rows.of_token(lanes, lanes.f.params[-2], token, load)

    cost = _COST * (rows.choices + 2)
    function, entry = build_row_entry("run", signature.data, level, y.width, cost, emit_row)
    return Built([function], [entry])
