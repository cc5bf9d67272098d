"""Kernels that sort the choices of tokens by expert, and add up what came of them.

`qfuse.route` is a counting sort with one program per expert, and one for choices that are no
expert's, which come last.  A program counts the choices that come before its own, and puts its own
behind them in their order:

    start = number of ids below mine                            # also indptr[mine]
    for ids in chunks:
        row = start + number of ids up to here that are mine    # a prefix sum within the chunk
        slots[choice] = row; tokens[row] = token of the choice

A shared expert is one more, which every token has as an id of its own behind those it was given.
"""

from qfuse.dialects.bindings import ir
from qfuse.dialects.moe_ops import shared_experts
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.triton.combine import Sum
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Grid, Variant
from qfuse.lowering.triton.rows import build_rows
from qfuse.lowering.triton.signature import LaunchBuilder, Signature, open_launch
from qfuse.lowering.triton.tile import Tile

OPS = ("qfuse.route", "qfuse.combine")

_FEW, _MANY = (256, 2), (4096, 8)
"""Choices that a program looks at together, and its warps."""

_ANY_ROWS = 2**31 - 1
"""Rows of one block: the grid does not depend on M."""


def refuse(op: ir.Operation, gpu: Gpu) -> str | None:
    """Why `op` cannot become a GPU kernel, or None."""
    first = shaped(op.operands[0].type)  # ids [T, k], or y [T, k, N]
    if DYNAMIC in first.shape[1:]:
        return f"it reads {first}; all extents but the first must be static"
    if 0 in first.shape[1:]:
        return f"{first} holds no elements"
    return None


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """The launches for any number of tokens, which is the M."""
    if signature.op.name == "qfuse.combine":
        return _build_combine(signature, gpu)
    few = max(1, _FEW[0] // signature.results[0].width)
    return [
        _route(signature, gpu, 1, few, *_FEW),
        _route(signature, gpu, few + 1, None, *_MANY),
    ]


def _build_combine(signature: Signature, gpu: Gpu) -> list[Variant]:
    y, slots, weights, *residual = signature.operands
    (result,) = signature.results
    rows = Sum(slots, weights, residual[0] if residual else None, result)

    def body(launch: LaunchBuilder, tile: Tile) -> None:
        rows.of_tile(tile, launch.pointers.data(y))

    return build_rows(signature, gpu, result.width, whole_rows=False, body=body)


def _route(
    signature: Signature, gpu: Gpu, first: int, last: int | None, chunk: int, warps: int
) -> Variant:
    experts = signature.results[2].width - 1
    with open_launch(
        gpu,
        f"{signature.name}_by{chunk}",
        [*signature.operands, *signature.results],
        Grid(_ANY_ROWS, experts + 1),
        num_warps=warps,
        num_stages=1,
    ) as launch:
        _Route(launch, signature, chunk).emit()
    return Variant(first, last, (launch.made,))


class _Route:
    """One program of `qfuse.route`."""

    def __init__(self, launch: LaunchBuilder, signature: Signature, chunk: int) -> None:
        self.b, self.pointers, self.chunk = launch.b, launch.pointers, chunk
        (self.ids,) = signature.operands
        self.slots, self.tokens, self.indptr = signature.results
        self.experts = self.indptr.width - 1
        self.shared = shared_experts(signature.op)
        self.choices = self.slots.width
        self.total = self.b.mul(self.pointers.m, self.choices)

    def emit(self) -> None:
        b = self.b
        mine = b.program_id(0)
        zeros = b.full(0, "i32", (self.chunk,))

        def count(first: ir.Value, counts: list[ir.Value]) -> list[ir.Value]:
            _, inside, experts = self._experts(first)
            before = b.both(b.less(experts, mine), inside)
            assert before is not None
            return [b.add(counts[0], b.cast("extui", before, "i32"))]

        (counts,) = b.loop((0, self.total, self.chunk), [zeros], count)
        start = b.reduce(counts, 0, "arith.addi")
        b.store(b.offset(self.pointers.data(self.indptr), mine), start)
        is_expert = b.less(mine, self.experts)

        def place(first: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            choice, inside, experts = self._experts(first)
            here = b.both(b.equal(experts, mine), inside)
            assert here is not None
            ones = b.cast("extui", here, "i32")
            row = b.add(b.sub(b.scan(ones, 0, "arith.addi"), 1), carried[0])
            slot = b.select(is_expert, row, -1)
            token = b.select(is_expert, b.div(choice, self.choices), 0)
            b.store(b.offset(self.pointers.data(self.slots), choice), slot, here)
            b.store(b.offset(self.pointers.data(self.tokens), row), token, here)
            return [b.add(carried[0], b.reduce(ones, 0, "arith.addi"))]

        b.loop((0, self.total, self.chunk), [start], place)

    def _experts(self, first: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
        """The choices of a chunk, whether there are such, and whose they are.

        Those of no expert, negative ones too, are as if of one after the last.
        """
        b = self.b
        choice = b.add(b.range(self.chunk), first)
        inside = b.less(choice, self.total)
        if not self.shared:
            return choice, inside, self._expert_of_id(choice, inside)
        which = b.rem(choice, self.choices)
        place = b.add(b.mul(b.div(choice, self.choices), self.ids.width), which)
        has_id = b.less(which, self.ids.width)
        named = self._expert_of_id(place, b.both(inside, has_id))
        # one after the last of those named is the shared one, so that nobody's are behind it
        named = b.select(b.less(named, self.experts - 1), named, self.experts)
        return choice, inside, b.select(has_id, named, self.experts - 1)

    def _expert_of_id(self, place: ir.Value, mask: ir.Value | None) -> ir.Value:
        b = self.b
        ids = b.load(b.offset(self.pointers.data(self.ids), place), mask)
        expert = b.binary("arith.minui", ids, self.experts)
        return b.cast("trunci", expert, "i32") if self.ids.dtype == "i64" else expert
