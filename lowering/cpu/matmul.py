"""Products of quantized weights: which are supported, and the entries of their kernels.

| entry | rows of x | how |
|---|---|---|
| run1, run4, .. | 1, 2 to 4, 5 to 8, 9 to 16 | each thread packs x; w is decoded in registers |
| run | any more | a prepass packs x; a decoded block of the weight serves many rows |

A slot, a thread's scratch, holds:

    slot of run1, run4, ..:   x [steps][rows]                      totals [areas][rows][tile]
    slot of run:              decoded block [tile][bk], products   totals [areas][rows][tile]

Without AVX-512 there are run1, for one row, and run.
"""

from qfuse.dialects.bindings import ir
from qfuse.lowering.cpu.direct import build_direct
from qfuse.lowering.cpu.emit import Function, Index
from qfuse.lowering.cpu.kernel import SLOT_COUNTER, TASK_COUNTER, Entry
from qfuse.lowering.cpu.product_kernel import (
    MULTIPLICATIONS_PER_BYTE,
    ProductKernel,
    Rows,
    Totals,
    refuse_product,
)
from qfuse.lowering.cpu.rowwise import entry_parameters
from qfuse.lowering.cpu.signature import Built, Signature, weight_layout

OPS = ("qfuse.matmul",)


def refuse(op: ir.Operation) -> str | None:
    return refuse_product(op)


def build(signature: Signature, level: str) -> Built:
    parts = tuple(ir.DenseI64ArrayAttr(signature.op.attributes["parts"]))
    layout = weight_layout(signature.operands[1].shaped, parts)
    kernel = _Kernel(signature, level, layout)
    functions: list[Function] = list(kernel.epilogues)
    entries: list[Entry] = []
    low = 1
    for rows in kernel.product.direct_rows:
        added, entry = kernel.direct_entry(rows, low)
        functions += added
        entries.append(entry)
        low = rows + 1
    added, entry = kernel.many_rows_entry(low)
    return Built([*functions, *added], [*entries, entry])


class _Kernel(ProductKernel):
    """The entries of a product by one weight."""

    def direct_entry(self, rows: int, low: int) -> tuple[list[Function], Entry]:
        p = self.product
        product = build_direct(p, rows, self.tile)
        f = Function(f"run{rows}", entry_parameters(self.signature.data))
        _, slots, counters, m, _ = f.params[-5:]
        area = rows * self.tile
        slot_elements = p.packed_elements(rows) + self.areas * area
        slot = f.imul(f.take_ticket(counters, SLOT_COUNTER), slot_elements)
        totals = Totals(f.iadd(slot, p.packed_elements(rows)), area)
        x = Rows(rows, slots, slot, p.block_elements(rows))
        # Rows beyond the last repeat it; nobody reads what becomes of them.
        numbers = [f.imin(r, f.isub(m, 1)) if r else 0 for r in range(rows)]
        self.pack(f, numbers, slots, x.at, x.stride)
        with f.tickets(counters, TASK_COUNTER, self.tiles(self.tile)) as ticket:
            for tile, epilogue in self.for_tile(f, ticket, self.tile):
                self.direct(f, product, tile, x, totals)
                f.call(epilogue, [*f.params, totals.at, 0, m, tile.number, rows, self.tile, 0])
        entry = Entry(
            f.symbol,
            m_min=low,
            m_max=rows,
            tiles=self.tiles(self.tile),
            rows=rows,
            rows_multiple=rows,
            slot_bytes=4 * slot_elements,
            work=self.layout.packed_bytes,
        )
        return [product, f], entry

    def many_rows_entry(self, low: int) -> tuple[list[Function], Entry]:
        width = self.wide_tile
        f = Function("run", entry_parameters(self.signature.data))
        shared, _, counters, m, rows = f.params[-5:]
        decoded = self.decoded_elements(rows, f)
        area = f.imul(rows, width)
        slot_elements = f.address((area, self.areas), decoded)
        slot = f.imul(f.take_ticket(counters, SLOT_COUNTER), slot_elements)
        totals = Totals(f.iadd(slot, decoded), area)
        size = self.product.block_elements(self.unit)
        stride = f.imul(self.units(f), size)
        chunks = f.idiv(f.iadd(m, f.isub(rows, 1)), rows)
        with f.tickets(counters, TASK_COUNTER, f.imul(chunks, self.tiles(width))) as ticket:
            row = f.imul(f.imod(ticket, chunks), rows)
            count = f.imin(rows, f.isub(m, row))
            x = Rows(count, shared, f.imul(f.idiv(row, self.unit), size), stride)
            for tile, epilogue in self.for_tile(f, f.idiv(ticket, chunks), width):
                self.tiled(f, tile, x, slot, totals)
                f.call(epilogue, [*f.params, totals.at, row, count, tile.number, rows, width, 0])
        work = self.layout.packed_bytes
        entry = self.tiled_entry(m_min=low, work=work, row_work=work // MULTIPLICATIONS_PER_BYTE)
        return [*self.tiled_functions, self.pack_entry(), f], entry

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
