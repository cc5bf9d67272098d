"""Products by the weights of experts that add up their rows: `qfuse.group_matmul_combine`.

The rows wait in the shared scratch, rounded as the region says.  Who adds them up depends on how
many there are:

| rows | who |
|---|---|
| few | the thread that does the last task of a tile of columns, before it takes another |
| many | a phase of its own, token by token: a tile would take one thread long |

Tasks are those of `qfuse.group_matmul` in both cases, so that no core waits for another's expert.
Each tile counts those that are done in a counter of its own.  After all others each tile has one
task without rows, or nobody would add up where no expert has any.
"""

from collections.abc import Callable

from qfuse.dialects.activations import rounding_of
from qfuse.lowering.cpu.combine import KeptRows, Sum
from qfuse.lowering.cpu.emit import LANES, Function, Index, Value
from qfuse.lowering.cpu.group_matmul import GroupKernel, Table, refuse
from qfuse.lowering.cpu.kernel import OWN_COUNTERS, TASK_COUNTER, Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.rowwise import Piece, entry_parameters
from qfuse.lowering.cpu.signature import Built, Signature
from qfuse.lowering.cpu.tunables import Tunables

__all__ = ["OPS", "build", "refuse"]

OPS = ("qfuse.group_matmul_combine",)

_SHARE = 4
"""How many times as long one task takes as adding up a tile, where a thread does that between."""

_PHASE_ELEMENTS = 16384
"""Elements of the result that a thread takes at once in the phase that adds up."""


def build(signature: Signature, level: str, tuned: Tunables | None = None) -> Built:
    return _GroupCombineKernel(signature, level, tuned).build()


class _GroupCombineKernel(GroupKernel):
    """The entries of a product that adds up its rows; their m is the number of tokens."""

    def __init__(self, signature: Signature, level: str, tuned: Tunables | None) -> None:
        terminator = list(signature.op.regions[0].blocks[0].operations)[-1].operation
        (result,) = signature.results
        self.kept = KeptRows(rounding_of(terminator.operands[0]), result.width)
        super().__init__(signature, level, self.kept, tuned)
        slots, weights = self.inputs["slots"], self.inputs["weights"]
        assert slots is not None and weights is not None
        self.sum = Sum(slots, weights, self.inputs["residual"], result)
        # A task reads K bytes of each column's weight, a sum the kept elements of its rows.
        rows = self.layout.k // (_SHARE * self.kept.element_bytes)
        self.few_tokens = max(1, rows // slots.width)
        self.add_tile = self._add_tile()

    def build(self) -> Built:
        built = super().build()
        return Built(
            [self.add_tile, *built.functions, self._add_rows()],
            [
                self._entry(m_max=self.few_tokens, counters=self.tiles(self.wide_tile)),
                self._entry(m_min=self.few_tokens + 1, after=("add_rows",)),
            ],
        )

    def _entry(self, **fields: object) -> Entry:
        choices = self.sum.choices
        return self.entry(
            choices=choices,
            kept_row_bytes=4 * self.kept.elements,
            row_work=self.layout.packed_bytes * choices,
            **fields,
        )

    def rows(self, f: Function) -> Index:
        return f.imul(f.params[-2], self.sum.choices)

    def x_begins(self, f: Function) -> Index:
        return f.imul(self.rows(f), self.kept.elements)

    def each_task(
        self, f: Function, counters: Value, table: Table, task: Callable[[Value], Index]
    ) -> None:
        tiles = self.tiles(self.wide_tile)
        few = f.icompare("ule", f.params[-2], self.few_tokens)
        without_rows = f.select(few, f.index(tiles), f.index(0))

        def count(tile: Index) -> None:
            done = f.take_ticket(counters, f.iadd(tile, OWN_COUNTERS))
            with f.when(f.icompare("eq", done, f.idiv(table.tasks, tiles))):
                f.call(self.add_tile, [*f.params, tile])

        with f.tickets(counters, TASK_COUNTER, f.iadd(table.tasks, without_rows)) as ticket:
            with f.when(f.icompare("ult", ticket, table.tasks)):
                tile = task(ticket)
                with f.when(few):
                    count(tile)
            with f.when(f.icompare("uge", ticket, table.tasks)):
                count(f.isub(ticket, table.tasks))

    def _add_tile(self) -> Function:
        """The sums of all tokens in a tile of columns; called as add_tile(parameters..., tile)."""
        number = Value("%tile", "index")
        f = Function("add_tile", [*entry_parameters(self.signature.data), number])
        tokens, width = f.params[-3], self.sum.result.width
        lanes, start = Lanes(f, self.level), f.imul(number, self.wide_tile)
        parts = []
        for offset in range(0, self.wide_tile, LANES):
            column = f.iadd(start, offset)
            ragged = width % self.wide_tile
            parts.append(Piece(column, f.first_lanes(f.isub(width, column)) if ragged else None))
        with f.loop(0, tokens) as token:
            self.sum.of_pieces(lanes, tokens, token.iv, parts, self._load)
        return f

    def _add_rows(self) -> Function:
        """The phase that adds up, token by token."""
        f = Function("add_rows", entry_parameters(self.signature.data))
        counters, tokens = f.params[-3:-1]
        lanes, each = Lanes(f, self.level), max(1, _PHASE_ELEMENTS // self.sum.result.width)
        tasks = f.idiv(f.iadd(tokens, each - 1), each)
        with f.tickets(counters, TASK_COUNTER, tasks) as task:
            first = f.imul(task, each)
            with f.loop(first, f.imin(f.iadd(first, each), tokens)) as token:
                self.sum.of_token(lanes, tokens, token.iv, self._load)
        return f

    def _load(self, lanes: Lanes, row: Index, piece: Piece) -> Value:
        """Part of a kept row, which lies there whole."""
        shared = lanes.f.params[len(self.signature.data)]
        return self.kept.load(lanes, shared, row, piece.column)
