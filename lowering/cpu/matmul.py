"""Products by one weight: which are supported, and the entries of their kernels.

| entry | rows of x | how |
|---|---|---|
| run1, run4, .. | up to 1, 4, 8, 16 | each thread packs x; weights are decoded in registers |
| run_units | some more | a prepass packs x; the same for 8 rows after the other, tile by tile |
| run | any more | a prepass packs x; a decoded block of the weight serves many rows |

A slot, a thread's scratch, holds:

    slot of run1, run4, ..:   x [steps][rows], decoded run         totals [areas][rows][tile]
    slot of run_units:                                             totals [areas][rows][tile]
    slot of run:              decoded block [tile][bk], products   totals [areas][rows][tile]

Which serves how many rows is what product_cost.py expects to be fastest, unless a table of
measurements says otherwise (entry_table.py).  Without AVX-512 there are run1, for one row, and
run.
"""

from collections.abc import Callable

from qfuse.dialects.bindings import ir
from qfuse.lowering.cpu.direct import build_direct
from qfuse.lowering.cpu.emit import Function, Index
from qfuse.lowering.cpu.kernel import SLOT_COUNTER, TASK_COUNTER, Entry
from qfuse.lowering.cpu.product_cost import UNITS_ROWS, assign_rows
from qfuse.lowering.cpu.product_kernel import (
    MULTIPLICATIONS_PER_BYTE,
    ProductKernel,
    Rows,
    Tile,
    Totals,
    product_key,
    refuse_product,
)
from qfuse.lowering.cpu.rowwise import entry_parameters
from qfuse.lowering.cpu.signature import Built, Signature, weight_layout
from qfuse.lowering.cpu.tunables import Tunables

OPS = ("qfuse.matmul",)


def refuse(op: ir.Operation) -> str | None:
    return refuse_product(op)


def build(signature: Signature, level: str, tuned: Tunables | None = None) -> Built:
    parts = tuple(ir.DenseI64ArrayAttr(signature.op.attributes["parts"]))
    layout = weight_layout(signature.operands[1].shaped, parts)
    kernel = _Kernel(signature, level, layout, tuned=tuned)
    p = kernel.product
    direct = {rows: build_direct(p, rows, kernel.tile) for rows in p.direct_rows}
    entries = [kernel.direct_entry(rows, product) for rows, product in direct.items()]
    if kernel.unit in direct:
        entries.append(kernel.units_entry(direct[kernel.unit]))
    entries.append(kernel.many_rows_entry())
    functions = [*kernel.epilogues, *direct.values(), *kernel.tiled_functions, kernel.pack_entry()]
    x, w = (operand.shaped for operand in signature.operands[:2])
    return Built(
        [*functions, *(function for function, _ in entries)],
        assign_rows([entry for _, entry in entries], p),
        product_key(x, w, parts),
    )


class _Kernel(ProductKernel):
    """The entries of a product by one weight."""

    def direct_entry(self, rows: int, product: Function) -> tuple[Function, Entry]:
        p = self.product
        f = Function(f"run{rows}", entry_parameters(self.signature.data))
        _, slots, counters, m, _ = f.params[-5:]
        area = rows * self.tile
        slot_elements = p.packed_elements(rows) + p.kept_elements(rows) + self.areas * area
        slot = f.imul(f.take_ticket(counters, SLOT_COUNTER), slot_elements)
        kept = f.iadd(slot, p.packed_elements(rows))
        totals = Totals(f.iadd(kept, p.kept_elements(rows)), area)
        x = Rows(rows, slots, slot, p.block_elements(rows))
        # Rows beyond the last repeat it; nobody reads what becomes of them.
        numbers = [f.imin(r, f.isub(m, 1)) if r else 0 for r in range(rows)]
        self.pack(f, numbers, slots, x.at, x.stride)
        with f.tickets(counters, TASK_COUNTER, self.tiles(self.tile)) as ticket:
            for tile, epilogue in self.for_tile(f, ticket, self.tile):
                self.direct(f, product, tile, x, totals, kept)
                f.call(epilogue, [*f.params, totals.at, 0, m, tile.number, rows, self.tile, 0])
        return f, Entry(
            f.symbol,
            limit=rows,
            tiles=self.tiles(self.tile),
            rows=rows,
            rows_multiple=rows,
            slot_bytes=4 * slot_elements,
            work=self.layout.packed_bytes,
        )

    def units_entry(self, product: Function) -> tuple[Function, Entry]:
        """The weight of a tile is read from memory for the first unit, from a cache for others."""
        p, width = self.product, self.tile

        def multiply(f: Function, tile: Tile, x: Rows, _slot: Index, totals: Totals) -> None:
            units = f.idiv(f.iadd(x.count, self.unit - 1), self.unit)
            with f.loop(0, units) as turn:
                at = f.address(x.at, (turn.iv, p.block_elements(self.unit)))
                out_at = f.address(totals.at, (turn.iv, self.unit * width))
                rows = Rows(self.unit, x.x, at, x.stride)
                self.direct(f, product, tile, rows, Totals(out_at, totals.area))

        f = self.packed_rows_function("run_units", width, multiply)
        return f, Entry(
            f.symbol,
            limit=UNITS_ROWS,
            before=("pack",),
            tiles=self.tiles(width),
            rows=UNITS_ROWS,
            rows_multiple=self.unit,
            shared_row_bytes=4 * p.packed_elements(self.unit) // self.unit,
            slot_row_bytes=4 * self.areas * width,
            work=self.layout.packed_bytes,
        )

    def many_rows_entry(self) -> tuple[Function, Entry]:
        before_totals = self.decoded_elements

        def multiply(f: Function, tile: Tile, x: Rows, slot: Index, totals: Totals) -> None:
            counters = f.params[-3]
            chunks = self._chunks(f)

            def following() -> Index:
                """The tile of the next ticket, behind this one."""
                ticket = f.load_index(counters, TASK_COUNTER)
                return f.isub(f.idiv(ticket, chunks), tile.number)

            self.tiled(f, tile, x, slot, totals, following)

        f = self.packed_rows_function("run", self.wide_tile, multiply, before_totals)
        work = self.layout.packed_bytes
        row_work = work // MULTIPLICATIONS_PER_BYTE
        return f, self.tiled_entry(limit=None, work=work, row_work=row_work)

    def packed_rows_function(
        self,
        symbol: str,
        width: int,
        multiply: Callable[[Function, Tile, Rows, Index, Totals], None],
        before_totals: Callable[[Index, Function], Index] = lambda rows, f: 0,
    ) -> Function:
        """A phase after `pack` whose tasks are a tile of `width` columns for a chunk of rows.

        `multiply(f, tile, x, slot, totals)` emits the code of one.  Its totals lie in the slot of a
        thread, behind `before_totals` elements.
        """
        f = Function(symbol, entry_parameters(self.signature.data))
        shared, _, counters, m, rows = f.params[-5:]
        area, before = f.imul(rows, width), before_totals(rows, f)
        slot_elements = f.address((area, self.areas), before)
        slot = f.imul(f.take_ticket(counters, SLOT_COUNTER), slot_elements)
        totals = Totals(f.iadd(slot, before), area)
        size = self.product.block_elements(self.unit)
        stride = f.imul(self.units(f), size)
        chunks = self._chunks(f)
        with f.tickets(counters, TASK_COUNTER, f.imul(chunks, self.tiles(width))) as ticket:
            row = f.imul(f.imod(ticket, chunks), rows)
            count = f.imin(rows, f.isub(m, row))
            x = Rows(count, shared, f.imul(f.idiv(row, self.unit), size), stride)
            for tile, epilogue in self.for_tile(f, f.idiv(ticket, chunks), width):
                multiply(f, tile, x, slot, totals)
                f.call(epilogue, [*f.params, totals.at, row, count, tile.number, rows, width, 0])
        return f

    def _chunks(self, f: Function) -> Index:
        """How many chunks of rows there are."""
        m, rows = f.params[-2:]
        return f.idiv(f.iadd(m, f.isub(rows, 1)), rows)

    def units(self, f: Function) -> Index:
        """How many units the rows of x make."""
        return f.idiv(f.iadd(f.params[-2], self.unit - 1), self.unit)

    def pack_entry(self) -> Function:
        """The prepass: x as [K blocks][m / unit][steps][unit] in the shared scratch.

        A chunk of rows of one block is contiguous, so it does not fight for cache sets.
        """
        f = Function("pack", entry_parameters(self.signature.data))
        shared, _, counters, m, _ = f.params[-5:]
        size = self.product.block_elements(self.unit)
        units = self.units(f)
        with f.tickets(counters, TASK_COUNTER, units) as number:
            first, last = f.imul(number, self.unit), f.isub(m, 1)
            rows = [f.imin(f.iadd(first, r), last) for r in range(self.unit)]
            self.pack(f, rows, shared, f.imul(number, size), f.imul(units, size))
        return f
