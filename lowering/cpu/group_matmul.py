"""Products by the weights of experts: each row by the weight of the expert that `indptr` gives it.

A prepass packs the rows of each expert in units (8 rows; 4 without AVX-512), which takes them
from their tokens at the same time; an expert with few rows has one unit, packed as narrow as
there are rows.  A task is one tile of columns for a chunk of rows of one expert, which nobody else
shares, so the weights of each expert that has rows are read once for up to 512 of them:

| rows of the expert | how |
|---|---|
| 1, 2 to 4, 5 to 8 | weights are decoded in registers |
| any more | a decoded block of the weight serves many rows |

The functions that multiply are those of `qfuse.matmul`, so an element is the same bits as there.

Each thread first makes a table in its scratch, from which it finds the expert of a task:

    rows     i32 [E + 1]   first row of each expert, in order and within 0..M whatever indptr holds
    units    i32 [E]       exclusive prefix of the units per expert
    tasks    i32 [E]       exclusive prefix of the tasks per expert
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import inputs_of
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.combine import KeptRows
from qfuse.lowering.cpu.direct import build_direct
from qfuse.lowering.cpu.emit import I32, LANES, Function, Index, Value
from qfuse.lowering.cpu.kernel import SLOT_COUNTER, TASK_COUNTER, Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.layout import round_up
from qfuse.lowering.cpu.product_kernel import (
    ProductKernel,
    Rows,
    Totals,
    between,
    refuse_product,
)
from qfuse.lowering.cpu.rowwise import entry_parameters
from qfuse.lowering.cpu.signature import Built, Signature, weight_layout
from qfuse.lowering.cpu.tunables import Tunables

OPS = ("qfuse.group_matmul",)

_BEYOND = 2**31 - 1  # fills a table: no task has this number


def refuse(op: ir.Operation) -> str | None:
    if why := refuse_product(op):
        return why
    given = inputs_of(op, op.operands)
    routing = [v for v in (given["tokens"], given.get("slots")) if v is not None]
    if any(shaped(v.type).shape[1] == DYNAMIC for v in routing):
        return "the number of choices of a token is dynamic; it must be static"
    return None


def build(signature: Signature, level: str, tuned: Tunables | None = None) -> Built:
    return GroupKernel(signature, level, tuned=tuned).build()


class GroupKernel(ProductKernel):
    """The entry of a product by the weights of experts."""

    def __init__(
        self,
        signature: Signature,
        level: str,
        kept: KeptRows | None = None,
        tuned: Tunables | None = None,
    ) -> None:
        parts = tuple(ir.DenseI64ArrayAttr(signature.op.attributes["parts"]))
        layout = weight_layout(signature.operands[1].shaped, parts)
        super().__init__(signature, level, layout, kept, tuned)
        self.inputs = inputs_of(signature.op, signature.operands)
        self.experts = signature.operands[1].shaped.shape[0]
        self.table_elements = 3 * round_up(self.experts + 1, LANES)
        rows = [r for r in self.product.direct_rows if r <= self.unit]
        self.few_rows = tuple(zip((0, *rows), rows, strict=False))
        """(low, high): more than `low` rows are multiplied as `high`, directly."""

    def build(self) -> Built:
        width, p = self.wide_tile, self.product
        direct = {rows: build_direct(p, rows, width) for _, rows in self.few_rows}
        f = Function("run", entry_parameters(self.signature.data))
        shared, _, counters, _, chunk = f.params[-5:]
        area = f.imul(chunk, width)
        before_totals = f.iadd(self.decoded_elements(chunk, f), self.table_elements)
        slot_elements = f.address((area, self.areas), before_totals)
        slot = f.imul(f.take_ticket(counters, SLOT_COUNTER), slot_elements)
        decoded = f.iadd(slot, self.table_elements)
        totals = Totals(f.iadd(slot, before_totals), area)
        table = self.table(f, slot)
        size = p.block_elements(self.unit)
        stride = f.imul(table.units, size)

        def task(ticket: Value) -> Index:
            expert, place = table.find_task(ticket)
            first, rows = table.rows_of(expert)
            chunks = self.chunks(f, rows)
            offset = f.imul(f.imod(place, chunks), chunk)
            count = f.imin(chunk, f.isub(rows, offset))
            unit = f.iadd(table.first_unit(expert), f.idiv(offset, self.unit))
            x = Rows(count, shared, f.iadd(self.x_begins(f), f.imul(unit, size)), stride)
            number = f.idiv(place, chunks)
            for tile, epilogue in self.for_tile(f, number, width, expert):
                for low, high in self.few_rows:
                    with f.when(between(f, rows, low, high)):
                        self.direct(f, direct[high], tile, x, totals)
                with f.when(f.icompare("sgt", rows, self.few_rows[-1][1])):
                    self.tiled(f, tile, x, decoded, totals)
                row = f.iadd(first, offset)
                of_tile = [totals.at, row, count, tile.number, chunk, width, expert]
                f.call(epilogue, [*f.params, *of_tile])
            return number

        self.each_task(f, counters, table, task)
        functions = [*self.epilogues, *direct.values(), *self.tiled_functions, self.pack_entry(), f]
        return Built(functions, [self.entry(row_work=self.layout.packed_bytes)])

    def entry(self, **fields: Any) -> Entry:
        return self.tiled_entry(
            slot_bytes=4 * self.table_elements, row_groups=self.experts, **fields
        )

    def each_task(
        self, f: Function, counters: Value, table: "Table", task: Callable[[Value], Index]
    ) -> None:
        """Code that does all tasks of the table; `task` gives the number of the tile."""
        with f.tickets(counters, TASK_COUNTER, table.tasks) as ticket:
            task(ticket)

    def rows(self, f: Function) -> Index:
        """How many rows the product has."""
        return f.params[-2]

    def x_begins(self, f: Function) -> Index:
        """Where the packed x begins in the shared scratch."""
        return 0

    def pack_entry(self) -> Function:
        """What runs before: x as [K blocks][units][steps][rows of a unit] in the shared scratch."""
        f = Function("pack", entry_parameters(self.signature.data))
        shared, _, counters = f.params[-5:-2]
        slot = f.take_ticket(counters, SLOT_COUNTER)
        table = self.table(f, f.imul(slot, self.table_elements))
        size = self.product.block_elements(self.unit)
        stride = f.imul(table.units, size)
        with f.tickets(counters, TASK_COUNTER, table.units) as ticket:
            expert, number = table.find_unit(ticket)
            begin, rows = table.rows_of(expert)
            first, last = f.iadd(begin, f.imul(number, self.unit)), f.iadd(begin, f.isub(rows, 1))
            at = f.iadd(self.x_begins(f), f.imul(ticket, size))

            def pack(count: int) -> None:
                # Rows beyond the last repeat it; nobody reads what becomes of them.
                numbers = [f.imin(f.iadd(first, r), last) for r in range(count)]
                self.pack(f, [self.row_of_x(f, n) for n in numbers], shared, at, stride)

            for low, high in self.few_rows:
                with f.when(between(f, rows, low, high)):
                    pack(high)
            with f.when(f.icompare("sgt", rows, self.few_rows[-1][1])):
                pack(self.unit)
        return f

    def row_of_x(self, f: Function, row: Index) -> Index:
        """The row of x that is row `row` of the product; one of x whatever the tokens are."""
        tokens = self.inputs["tokens"]
        if tokens is None:
            return row
        last = f.isub(f.idiv(self.rows(f), tokens.width), 1)
        return f.imax(0, f.imin(f.load_index(tokens.data, row), last))

    def chunks(self, f: Function, rows: Index) -> Index:
        """Into how many tasks' rows the rows of an expert are cut."""
        chunk = f.params[-1]
        return f.idiv(f.iadd(rows, f.isub(chunk, 1)), chunk)

    def table(self, f: Function, at: Index) -> "Table":
        """Code that fills the table, at slots[at]."""
        slots, m = f.params[-4], self.rows(f)
        indptr = self.signature.operands[2].data
        stretch = self.table_elements // 3
        rows_at, units_at, tasks_at = (f.iadd(at, i * stretch) for i in range(3))
        with f.loop(0, self.table_elements, LANES) as loop:
            f.store(f.isplat(_BEYOND), slots, f.iadd(at, loop.iv))

        def bound(expert: Index, low: Index) -> Value:
            return f.index(f.imax(low, f.imin(f.load_index(indptr, expert), m)))

        start = [bound(0, 0), f.index(0), f.index(0)]
        with f.loop(0, self.experts, carried=start) as loop:
            begin, units, tasks = loop.carried
            for value, to in ((begin, rows_at), (units, units_at), (tasks, tasks_at)):
                f.store_index(value, slots, f.iadd(to, loop.iv))
            end = bound(f.iadd(loop.iv, 1), begin)
            rows = f.isub(end, begin)
            more_units = f.idiv(f.iadd(rows, self.unit - 1), self.unit)
            more_tasks = f.imul(self.chunks(f, rows), self.tiles(self.wide_tile))
            sums = f.iadd(units, more_units), f.iadd(tasks, more_tasks)
            loop.yielded = [end, *map(f.index, sums)]
        end, units, tasks = loop.results
        f.store_index(end, slots, f.iadd(rows_at, self.experts))
        lanes = Lanes(f, self.level)
        return Table(lanes, slots, stretch, (rows_at, units_at, tasks_at), units, tasks)


@dataclass(frozen=True)
class Table:
    """Where a thread looks up whose a unit or a task is."""

    lanes: Lanes
    slots: Value
    stretch: int
    """Elements of each of the three."""
    at: tuple[Index, Index, Index]
    """Where the tables of rows, units and tasks begin in the scratch."""
    units: Value
    tasks: Value
    """How many there are in all."""

    def find_task(self, ticket: Value) -> tuple[Index, Index]:
        """The expert of a task, and the place of the task among those of the expert."""
        return self._find(self.at[2], ticket)

    def find_unit(self, ticket: Value) -> tuple[Index, Index]:
        """The expert of a unit of rows, and the place of the unit among those of the expert."""
        return self._find(self.at[1], ticket)

    def rows_of(self, expert: Index) -> tuple[Index, Index]:
        """The first row of an expert, and how many it has."""
        f = self.lanes.f
        begin, end = (self._entry(self.at[0], f.iadd(expert, i)) for i in range(2))
        return begin, f.isub(end, begin)

    def first_unit(self, expert: Index) -> Index:
        return self._entry(self.at[1], expert)

    def _entry(self, at: Index, expert: Index) -> Value:
        f = self.lanes.f
        return f.load_index(self.slots, f.iadd(at, expert))

    def _find(self, at: Index, ticket: Value) -> tuple[Index, Index]:
        """By counting the prefixes up to `ticket`: that finds the last of several equal ones,
        and only the last expert of them has rows."""
        f = self.lanes.f
        wanted = f.broadcast(f.cast("arith.index_cast", ticket, "i32"), I32)
        with f.loop(0, self.stretch, LANES, carried=[f.isplat(0)]) as loop:
            prefix = f.load(self.slots, f.iadd(at, loop.iv), I32)
            reached = f.select(f.compare("sle", prefix, wanted), f.isplat(1), f.isplat(0))
            loop.yielded = [f.binary("addi", loop.carried[0], reached)]
        count = f.cast("arith.index_cast", self.lanes.count(loop.results[0]), "index")
        expert = f.isub(count, 1)
        return expert, f.isub(ticket, self._entry(at, expert))
