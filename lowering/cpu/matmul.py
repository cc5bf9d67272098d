"""Products of FP8 weights: which are supported, and the entries of their kernels.

| entry | rows of x | how |
|---|---|---|
| run1, run4, run8 | 1, 2 to 4, 5 to 8 | each thread packs x; weights are decoded in registers |
| run | any more | a prepass packs x; a decoded block of the weight serves many rows |

A task is one tile of columns (64, or 128 if groups of a quantized result need it) of all parts
that are equally wide, for one chunk of rows.  Its totals lie in the thread's scratch, from where
the epilogue takes them:

    slot of run1, run4, run8:   x [steps][rows]            totals [areas][rows][tile]
    slot of run:                decoded block [tile][bk]   totals [areas][rows][tile]

Without AVX-512 there are run1, for one row, and run.
"""

from collections.abc import Iterator

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.elementwise import activation_error, qtensor_error
from qfuse.lowering.cpu.emit import Function, Index, Value
from qfuse.lowering.cpu.epilogue import WidthGroup, build_epilogue, result_error, width_groups
from qfuse.lowering.cpu.fp8 import FORMATS
from qfuse.lowering.cpu.kernel import PREPASS_COUNTER, SLOT_COUNTER, TASK_COUNTER, Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.layout import GROUP, WeightLayout, layout_error
from qfuse.lowering.cpu.product import (
    Product,
    build_decode,
    build_direct,
    build_tile,
    clear,
    pack_rows,
)
from qfuse.lowering.cpu.region import region_error
from qfuse.lowering.cpu.rowwise import entry_parameters
from qfuse.lowering.cpu.signature import Built, Signature

OPS = ("qfuse.matmul",)

_SHARES = 8  # two columns of strips, four quarters: see `build_tile`
_WIDE = 1024
_CHUNK_ROWS = 512  # rows that one decoding of a block serves
_MULTIPLICATIONS_PER_BYTE = 16  # done in the time of one byte of memory traffic


def refuse(op: ir.Operation) -> str | None:
    x, w = (shaped(v.type) for v in list(op.operands)[:2])
    if not w.quantized:
        return f"the weight is plain {w.dtype}; CPU products read FP8 weights with block scales"
    assert w.scheme is not None
    if why := qtensor_error(w) or layout_error(w.shape[:1], w.shape[1], w.scheme.block):
        return f"w: {why}"
    if x.shape[-1] == DYNAMIC:
        return "the last dimension of x is dynamic; it must be static"
    if x.quantized and (why := activation_error(x)):
        return f"x: {why}"
    if why := region_error(op.regions[0].blocks[0]):
        return f"epilogue: {why}"
    for result in op.results:
        value = shaped(result.type)
        if value.quantized and (why := activation_error(value) or result_error(value)):
            return f"result {value}: {why}"
    return None


def build(signature: Signature, level: str) -> Built:
    kernel = _Kernel(signature, level)
    functions: list[Function] = list(kernel.epilogues)
    entries: list[Entry] = []
    low = 1
    for rows in kernel.product.direct_rows:
        added, entry = kernel.direct_entry(rows, low)
        functions += added
        entries.append(entry)
        low = rows + 1
    added, entry = kernel.tiled_entry(low)
    return Built([*functions, *added], [*entries, entry])


class _Kernel:
    """What the entries of one product share."""

    def __init__(self, signature: Signature, level: str) -> None:
        x, w = signature.operands[:2]
        assert w.shaped.scheme is not None
        parts = tuple(ir.DenseI64ArrayAttr(signature.op.attributes["parts"]))
        layout = WeightLayout(parts, w.shaped.shape[1], *w.shaped.scheme.block)
        self.signature = signature
        self.level = level
        self.layout = layout
        self.product = Product(level, layout, FORMATS[w.dtype], x.dtype, x.shaped.quantized)
        self.groups = width_groups(signature, parts)
        quantized = {i for i, r in enumerate(signature.results) if r.shaped.quantized}
        wide = any(GROUP % signature.results[i].target().group for i in quantized)
        self.tile = 2 * GROUP if wide else GROUP
        # A wider tile reads the packed x less often, but leaves fewer tasks.
        many = max(g.width for g in self.groups) >= _WIDE
        self.wide_tile = 2 * GROUP if many else self.tile
        self.areas = max(
            1, *(max(len(g.parts), len(quantized & {*g.results})) for g in self.groups)
        )
        self.epilogues = [
            build_epilogue(f"epilogue{i}", signature, level, group)
            for i, group in enumerate(self.groups)
        ]

    def tiles(self, tile: int) -> int:
        """How many tiles of this width there are."""
        return sum(-(-group.width // tile) for group in self.groups)

    def for_tile(
        self, f: Function, ticket: Index, tile: int
    ) -> Iterator[tuple[WidthGroup, Function, Index]]:
        """Code for each width group that runs if `ticket` is one of its tiles."""
        low = 0
        for group, epilogue in zip(self.groups, self.epilogues, strict=True):
            high = low + -(-group.width // tile)
            if len(self.groups) == 1:
                yield group, epilogue, ticket
            else:
                number = f.isub(ticket, low)
                with f.when(f.icompare("ult", number, high - low)):
                    yield group, epilogue, number
            low = high

    def part_position(
        self, f: Function, part: int, number: Index, tile: int
    ) -> tuple[Index, Index, list[Index]]:
        """(first group of the packed weight, groups, scale arguments) of a tile of a part."""
        per_tile = tile // GROUP
        first = f.imul(number, per_tile)
        count: Index = 1
        if per_tile > 1:
            count = f.imin(per_tile, f.isub(self.layout.groups(part), first))
        scale_row = self.layout.first_scale_row(part)
        scales: list[Index] = [scale_row, scale_row + self.layout.scale_rows(part) - 1]
        return f.iadd(self.layout.first_group(part), first), count, scales

    def sources(self, f: Function) -> list[Value]:
        """The arguments that `product.source_params` names."""
        x, w = self.signature.operands[:2]
        scales = [s for s in (w.scale, x.scale) if s is not None]
        shared, slots = f.params[-5:-3]
        return [w.data, *scales, shared, slots]

    def direct_entry(self, rows: int, low: int) -> tuple[list[Function], Entry]:
        p = self.product
        product = build_direct(p, rows, self.tile)
        f = Function(f"run{rows}", entry_parameters(self.signature.data))
        _, slots, counters, m, _ = f.params[-5:]
        area = rows * self.tile
        x_elements = p.steps * rows
        slot_elements = x_elements + self.areas * area
        x_at = f.imul(f.take_ticket(counters, SLOT_COUNTER), slot_elements)
        totals = f.iadd(x_at, x_elements)
        x = self.signature.operands[0].data
        pack_rows(p, Lanes(f, self.level), x, rows, 0, m, slots, x_at, p.block_steps * rows)
        with f.tickets(counters, TASK_COUNTER, self.tiles(self.tile)) as ticket:
            for group, epilogue, number in self.for_tile(f, ticket, self.tile):
                for i, part in enumerate(group.parts):
                    first, count, scales = self.part_position(f, part, number, self.tile)
                    with f.loop(0, count) as each:
                        column = f.address((number, self.tile), (each.iv, GROUP))
                        at = f.address(totals, i * area, (each.iv, GROUP))
                        position = [f.iadd(first, each.iv), *scales, column]
                        f.call(product, [*self.sources(f), *position, m, x_at, at])
                f.call(epilogue, [*f.params, totals, 0, m, number, rows, self.tile])
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

    def tiled_entry(self, low: int) -> tuple[list[Function], Entry]:
        p, layout = self.product, self.layout
        decode = build_decode(p)
        tile = self.wide_tile
        tiles = {rows: build_tile(p, rows, tile) for rows in p.tile_rows}
        f = Function("run", entry_parameters(self.signature.data))
        slots, counters, m, rows = f.params[-4:]
        w = self.signature.operands[1].data
        unit = p.tile_rows[0]
        decoded = tile * p.block_steps
        area = f.imul(rows, tile)
        slot_elements = f.address(decoded, (area, self.areas))
        slot = f.imul(f.take_ticket(counters, SLOT_COUNTER), slot_elements)
        totals = f.iadd(slot, decoded)
        chunks = f.idiv(f.iadd(m, f.isub(rows, 1)), rows)
        with f.tickets(counters, TASK_COUNTER, f.imul(chunks, self.tiles(tile))) as ticket:
            row = f.imul(f.imod(ticket, chunks), rows)
            count = f.imin(rows, f.isub(m, row))
            for group, epilogue, number in self.for_tile(f, f.idiv(ticket, chunks), tile):
                for i, part in enumerate(group.parts):
                    first, groups, scales = self.part_position(f, part, number, tile)
                    at = f.address(totals, (area, i))
                    padded = f.imul(f.idiv(f.iadd(count, unit - 1), unit), unit)
                    clear(f, slots, at, f.imul(padded, tile))
                    with f.loop(0, layout.k_blocks) as block:
                        start = f.address(
                            (first, layout.group_bytes), (block.iv, GROUP * layout.bk)
                        )
                        with f.loop(0, groups) as each:
                            source = f.address(start, (each.iv, layout.group_bytes))
                            to = f.address(slot, (each.iv, GROUP * p.block_steps))
                            f.call(decode, [w, slots, source, to])
                        position = [*scales, f.imul(number, tile), block.iv]
                        self.multiply_block(f, tiles, groups, position, row, count, start, slot, at)
                f.call(epilogue, [*f.params, totals, row, count, number, rows, tile])
        entry = Entry(
            f.symbol,
            m_min=low,
            prepass="pack",
            tiles=self.tiles(tile),
            rows=_CHUNK_ROWS // self.areas // unit * unit,
            rows_multiple=unit,
            shared_row_bytes=4 * p.steps,
            slot_bytes=4 * decoded,
            slot_row_bytes=4 * self.areas * tile,
            work=layout.packed_bytes,
            row_work=layout.packed_bytes // _MULTIPLICATIONS_PER_BYTE,
        )
        return [decode, *tiles.values(), self.pack_entry(unit), f], entry

    def multiply_block(
        self,
        f: Function,
        tiles: dict[int, Function],
        groups: Index,
        position: list[Index],
        row: Index,
        count: Index,
        start: Index,
        slot: Index,
        totals: Index,
    ) -> None:
        """All rows of a chunk by one decoded block; `position` is what `build_tile` wants first."""
        p = self.product
        m = f.params[-2]
        unit, *smaller = p.tile_rows
        *_, kb = position
        # Cache lines of the next block for each call, strip column and quarter.
        shares = f.imul(f.idiv(f.iadd(count, unit - 1), unit), _SHARES)
        lines = f.idiv(f.iadd(f.isub(shares, 1), self.layout.bk), shares)

        def rows_by_block(tile: Function, offset: Index) -> None:
            at_row = f.iadd(row, offset)
            number = f.address(f.idiv(at_row, unit), (kb, f.idiv(f.iadd(m, unit - 1), unit)))
            x_at = f.imul(number, p.block_steps * unit)
            out_at = f.address(totals, (offset, self.wide_tile))
            turn = f.idiv(offset, unit)
            place = [*position, at_row, m, x_at, slot, out_at, start, groups, turn, lines]
            f.call(tile, [*self.sources(f), *place])

        full = f.idiv(count, unit)
        with f.loop(0, full) as tall:
            rows_by_block(tiles[unit], f.imul(tall.iv, unit))
        done = f.imul(full, unit)
        rest = f.isub(count, done)
        for size, lower in zip((unit, *smaller), (*smaller, 0), strict=True):
            # The smallest tile that holds what is left: more than the next smaller one can.
            fits = f.binary("andi", f.icompare("sgt", rest, lower), f.icompare("sle", rest, size))
            with f.when(fits):
                rows_by_block(tiles[size], done)

    def pack_entry(self, unit: int) -> Function:
        """The prepass: x as [K blocks][m / unit][steps][unit] in the shared scratch.

        A chunk of rows of one block is contiguous, so it does not fight for cache sets.
        """
        p = self.product
        f = Function("pack", entry_parameters(self.signature.data))
        shared, _, counters, m, _ = f.params[-5:]
        x = self.signature.operands[0].data
        size = p.block_steps * unit
        tasks = f.idiv(f.iadd(m, unit - 1), unit)
        with f.tickets(counters, PREPASS_COUNTER, tasks) as task:
            at, first = f.imul(task, size), f.imul(task, unit)
            stride = f.imul(tasks, size)
            pack_rows(p, Lanes(f, self.level), x, unit, first, m, shared, at, stride)
        return f
