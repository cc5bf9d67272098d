"""What the kernels of products share: tiles of columns, and the loops that compute one.

A task is one tile of columns (64, or 128) of all parts that are equally wide, for one chunk of
rows, by the weight of one expert where there are several.  Its totals [areas][rows][tile] lie in
the thread's scratch, from where the epilogue takes them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.combine import KeptRows
from qfuse.lowering.cpu.elementwise import activation_error, qtensor_error
from qfuse.lowering.cpu.emit import Function, Index, Value
from qfuse.lowering.cpu.epilogue import WidthGroup, build_epilogue, result_error, width_groups
from qfuse.lowering.cpu.fp8 import FORMATS
from qfuse.lowering.cpu.kernel import Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.layout import GROUP, WeightLayout, layout_error
from qfuse.lowering.cpu.product import Product, build_decode, build_tile, clear, pack_rows
from qfuse.lowering.cpu.region import region_error
from qfuse.lowering.cpu.signature import Signature

MULTIPLICATIONS_PER_BYTE = 16
"""Multiplications done in the time of one byte of memory traffic."""

_SHARES = 8  # two columns of strips, four quarters: see `build_tile`
_WIDE = 1024
_CHUNK_ROWS = 512  # rows that one decoding of a block serves


def refuse_product(op: ir.Operation) -> str | None:
    """Why a product, by one weight or by those of experts, has no CPU kernel."""
    x, w = (shaped(v.type) for v in list(op.operands)[:2])
    if not w.quantized:
        return f"the weight is plain {w.dtype}; CPU products read FP8 weights with block scales"
    assert w.scheme is not None
    if why := qtensor_error(w) or layout_error(w.scheme.block):
        return f"w: {why}"
    if x.shape[-1] == DYNAMIC:
        return "the last dimension of x is dynamic; it must be static"
    if x.scheme and (why := activation_error(x)):
        return f"x: {why}"
    if x.scheme and x.scheme.group != w.scheme.group:
        return (
            f"x is scaled per {x.scheme.group} and w per {w.scheme.group} elements of K, for which "
            "there is no CPU kernel; quantize x as w is"
        )
    if why := region_error(op.regions[0].blocks[0]):
        return f"epilogue: {why}"
    for result in op.results:
        value = shaped(result.type)
        if value.quantized and (why := activation_error(value) or result_error(value)):
            return f"result {value}: {why}"
    return None


@dataclass(frozen=True)
class Rows:
    """Rows of packed x that a task multiplies."""

    count: Index
    x: Value
    at: Index
    """Where the first K block of the first unit of rows lies in `x`."""
    stride: Index
    """From one K block to the next."""


@dataclass(frozen=True)
class Tile:
    """A tile of columns: of the parts of `group`, tile `number`, by the weight of `expert`."""

    group: WidthGroup
    number: Index
    width: int
    expert: Index = 0


@dataclass(frozen=True)
class Totals:
    """Where the sums of a task go in the scratch of its thread: [areas][rows][tile]."""

    at: Index
    area: Index
    """Elements of an area."""


class ProductKernel:
    """The parts of one product's kernel that all its entries use."""

    def __init__(
        self,
        signature: Signature,
        level: str,
        layout: WeightLayout,
        kept: KeptRows | None = None,
    ) -> None:
        """With `kept`, the one result of the region goes there."""
        x, w = signature.operands[:2]
        self.signature = signature
        self.level = level
        self.layout = layout
        self.product = Product(level, layout, FORMATS[w.dtype], x.dtype, x.shaped.quantized)
        self.unit = self.product.tile_rows[0]
        self.groups = width_groups(signature, layout.parts)
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
            build_epilogue(f"epilogue{i}", signature, level, group, kept)
            for i, group in enumerate(self.groups)
        ]
        self.decode = build_decode(self.product)
        self.multiply = {
            rows: build_tile(self.product, rows, self.wide_tile) for rows in self.product.tile_rows
        }

    def tiles(self, width: int) -> int:
        """How many tiles of this width there are."""
        return sum(-(-group.width // width) for group in self.groups)

    def for_tile(
        self, f: Function, ticket: Index, width: int, expert: Index = 0
    ) -> Iterator[tuple[Tile, Function]]:
        """Code for each width group, and its epilogue, that runs for the tile `ticket`."""
        low = 0
        for group, epilogue in zip(self.groups, self.epilogues, strict=True):
            high = low + -(-group.width // width)
            if len(self.groups) == 1:
                yield Tile(group, ticket, width, expert), epilogue
            else:
                number = f.isub(ticket, low)
                with f.when(f.icompare("ult", number, high - low)):
                    yield Tile(group, number, width, expert), epilogue
            low = high

    def pack(self, f: Function, rows: list[Index], target: Value, at: Index, stride: Index) -> None:
        """Rows of x to target[at], as `pack_rows` does."""
        x = self.signature.operands[0]
        pack_rows(self.product, Lanes(f, self.level), x.data, x.scale, rows, target, at, stride)

    def direct(
        self, f: Function, product: Function, tile: Tile, rows: Rows, totals: Totals
    ) -> None:
        """The sums of a tile by `product`, a function of `build_direct`."""
        for i, part in enumerate(tile.group.parts):
            first, count, scales = self._position(f, tile, part)
            with f.loop(0, count) as each:
                column = f.address((tile.number, tile.width), (each.iv, GROUP))
                at = f.address(totals.at, (i, totals.area), (each.iv, GROUP))
                place = [f.iadd(first, each.iv), *scales, column, rows.at, rows.stride, at]
                f.call(product, [*self._sources(f, rows), *place])

    def tiled(self, f: Function, tile: Tile, rows: Rows, decoded: Index, totals: Totals) -> None:
        """The sums of a tile of `wide_tile` columns; its blocks are decoded to slots[decoded]."""
        p, layout, unit = self.product, self.layout, self.unit
        slots = f.params[-4]
        weight = self.signature.operands[1].data
        for i, part in enumerate(tile.group.parts):
            first, groups, scales = self._position(f, tile, part)
            sums = f.address(totals.at, (i, totals.area))
            padded = f.imul(f.idiv(f.iadd(rows.count, unit - 1), unit), unit)
            clear(f, slots, sums, f.imul(padded, tile.width))
            with f.loop(0, layout.k_blocks) as block:
                start = f.address((first, layout.group_bytes), (block.iv, GROUP * layout.bk))
                with f.loop(0, groups) as each:
                    source = f.address(start, (each.iv, layout.group_bytes))
                    to = f.address(decoded, (each.iv, GROUP * p.block_steps))
                    f.call(self.decode, [weight, slots, source, to])
                position = [*scales, f.imul(tile.number, tile.width), block.iv]
                self._multiply_block(f, position, rows, decoded, sums, start, groups)

    def tiled_entry(self, slot_bytes: int = 0, **fields: Any) -> Entry:
        """An entry `run` before which `pack` packs x in units, with slots for `tiled`."""
        p = self.product
        slot_bytes += 4 * self.wide_tile * p.block_steps
        return Entry(
            "run",
            before=("pack",),
            tiles=self.tiles(self.wide_tile),
            rows=_CHUNK_ROWS // self.areas // self.unit * self.unit,
            rows_multiple=self.unit,
            shared_row_bytes=4 * p.packed_elements(self.unit) // self.unit,
            slot_bytes=slot_bytes,
            slot_row_bytes=4 * self.areas * self.wide_tile,
            **fields,
        )

    @property
    def tiled_functions(self) -> list[Function]:
        return [self.decode, *self.multiply.values()]

    def _position(self, f: Function, tile: Tile, part: int) -> tuple[Index, Index, list[Index]]:
        """(first group of the packed weight, groups, scale rows) of a tile of a part."""
        layout = self.layout
        per_tile = tile.width // GROUP
        first = f.imul(tile.number, per_tile)
        count: Index = 1
        if per_tile > 1:
            count = f.imin(per_tile, f.isub(layout.groups(part), first))
        before = f.imul(tile.expert, layout.packed_bytes // layout.group_bytes)
        group = f.address(before, layout.first_group(part), first)
        scale_row = f.address((tile.expert, layout.scale_shape[0]), layout.first_scale_row(part))
        return group, count, [scale_row, f.iadd(scale_row, layout.scale_rows(part) - 1)]

    def _sources(self, f: Function, rows: Rows) -> list[Value]:
        """The arguments that `product.source_params` names."""
        w = self.signature.operands[1]
        assert w.scale is not None
        return [w.data, w.scale, rows.x, f.params[-4]]

    def _multiply_block(
        self,
        f: Function,
        position: list[Index],
        rows: Rows,
        decoded: Index,
        totals: Index,
        start: Index,
        groups: Index,
    ) -> None:
        """All rows by one decoded block; `position` is what `build_tile` wants first."""
        unit, *smaller = self.product.tile_rows
        *_, kb = position
        x_block = f.address(rows.at, (kb, rows.stride))
        # Cache lines of the next block for each call, strip column and quarter.
        shares = f.imul(f.idiv(f.iadd(rows.count, unit - 1), unit), _SHARES)
        lines = f.idiv(f.iadd(f.isub(shares, 1), self.layout.bk), shares)

        def rows_by_block(size: int, turn: Index) -> None:
            x_at = f.address(x_block, (turn, self.product.block_elements(unit)))
            out_at = f.address(totals, (turn, unit * self.wide_tile))
            place = [*position, x_at, decoded, out_at, start, groups, turn, lines]
            f.call(self.multiply[size], [*self._sources(f, rows), *place])

        full = f.idiv(rows.count, unit)
        with f.loop(0, full) as tall:
            rows_by_block(unit, tall.iv)
        rest = f.isub(rows.count, f.imul(full, unit))
        for size, lower in zip((unit, *smaller), (*smaller, 0), strict=True):
            # The smallest tile that holds what is left: more than the next smaller one can.
            with f.when(between(f, rest, lower, size)):
                rows_by_block(size, full)


def between(f: Function, value: Index, low: int, high: int) -> Value:
    """low < value <= high."""
    return f.binary("andi", f.icompare("sgt", value, low), f.icompare("sle", value, high))
