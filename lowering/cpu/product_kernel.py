"""What the kernels of products share: tiles of columns, and the loops that compute one.

A task is one tile of columns (64, or 128) of all parts that are equally wide, for one chunk of
rows, by the weight of one expert where there are several.  Its totals [areas][rows][tile] lie in
the thread's scratch, from where the epilogue takes them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.combine import KeptRows
from qfuse.lowering.cpu.cpu import LEVELS
from qfuse.lowering.cpu.emit import Function, Index, Value
from qfuse.lowering.cpu.epilogue import (
    WidthGroup,
    build_epilogue,
    finding_scales,
    result_error,
    width_groups,
)
from qfuse.lowering.cpu.kernel import Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.layout import GROUP, WeightLayout
from qfuse.lowering.cpu.pack_x import PackedX, pack_rows
from qfuse.lowering.cpu.product import LANES, Product, clear
from qfuse.lowering.cpu.quantized import activation_error, qtensor_error
from qfuse.lowering.cpu.region import region_error
from qfuse.lowering.cpu.signature import Signature, weight_layout
from qfuse.lowering.cpu.tiled import build_decode, build_products, build_scale, build_tile
from qfuse.lowering.cpu.tunables import Tunables

MULTIPLICATIONS_PER_BYTE = 16
"""Multiplications done in the time of one byte of memory traffic."""


def refuse_product(op: ir.Operation) -> str | None:
    """Why a product, by one weight or by those of experts, has no CPU kernel at any level."""
    x, w = (shaped(v.type) for v in list(op.operands)[:2])
    if x.quantized and not w.quantized:
        return f"x is {x.dtype} but w is plain {w.dtype}; quantize both, or leave x plain"
    parts = tuple(ir.DenseI64ArrayAttr(op.attributes["parts"]))
    layout = weight_layout(w, parts)
    if why := (qtensor_error(w) if w.quantized else None) or layout.error():
        return f"w: {why}"
    if x.shape[-1] == DYNAMIC:
        return "the last dimension of x is dynamic; it must be static"
    if x.scheme and (why := activation_error(x)):
        return f"x: {why}"
    for level in LEVELS:
        if why := product_of(x, w, level, layout).error():
            return why
    if why := region_error(op.regions[0].blocks[0]):
        return f"epilogue: {why}"
    finding = finding_scales(op)
    for i, value in enumerate(shaped(r.type) for r in op.results):
        if not value.quantized:
            continue
        if why := activation_error(value) or (result_error(value) if i in finding else None):
            return f"result {value}: {why}"
    return None


def product_of(
    x: Shaped, w: Shaped, level: str, layout: WeightLayout, tuned: Tunables | None = None
) -> Product:
    group = x.scheme.group if x.scheme else None
    return Product(level, layout, w.dtype, x.dtype, group, tuned)


def product_key(x: Shaped, w: Shaped, parts: Sequence[int]) -> str:
    """What tables of measurements find a product by: any rows of x are rows, experts are alike."""
    x, w = replace(x, shape=(DYNAMIC, x.shape[-1])), replace(w, shape=w.shape[-2:])
    return f"{x} by {w}, parts {list(parts)}"


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
        tuned: Tunables | None = None,
    ) -> None:
        """With `kept`, the one result of the region goes there."""
        x, w = signature.operands[:2]
        self.signature = signature
        self.level = level
        self.layout = layout
        self.product = product_of(x.shaped, w.shaped, level, layout, tuned)
        self.unit = self.product.tile_rows[0]
        self.groups = width_groups(signature, layout.parts)
        quantized = {*finding_scales(signature.op)}
        wide = any(GROUP % signature.results[i].target().group for i in quantized)
        self.tile = 2 * GROUP if wide else GROUP
        many = max(g.width for g in self.groups) >= self.product.tunables.wide_part
        self.wide_tile = max(self.tile, self.product.wide_groups * GROUP) if many else self.tile
        self.areas = max(
            1, *(max(len(g.parts), len(quantized & {*g.results})) for g in self.groups)
        )
        self.epilogues = [
            build_epilogue(f"epilogue{i}", signature, level, group, kept)
            for i, group in enumerate(self.groups)
        ]
        self.decode = build_decode(self.product)
        self.multiply = {
            rows: build_tile(self.product, self.decode, rows, self.wide_tile)
            for rows in self.product.tile_rows
        }
        self.products = build_products(self.product) if self._keeps_products else None
        self.scale = build_scale(self.product, self.wide_tile) if self.product.scaled_once else None

    @property
    def _keeps_products(self) -> bool:
        return self.product.scale_serves(self.wide_tile)

    def decoded_elements(self, rows: Index, f: Function) -> Index:
        """Of a decoded block and the next one."""
        return f.imul(self._block_elements(rows, f), 2)

    def _block_elements(self, rows: Index, f: Function) -> Index:
        """Of a decoded block, and of what lies behind it."""
        elements = self._decoded_block
        if not self._keeps_products:
            return elements
        return f.iadd(elements, f.imul(f.idiv(rows, self.unit), LANES))

    @property
    def _decoded_block(self) -> int:
        return 0 if self.product.in_place else self.wide_tile * self.product.block_steps

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
        x, to = self.signature.operands[0], PackedX(target, at, stride)
        pack_rows(self.product, Lanes(f, self.level), x, rows, to)

    def direct(
        self,
        f: Function,
        product: Function,
        tile: Tile,
        rows: Rows,
        totals: Totals,
        kept: Index = 0,
    ) -> None:
        """The sums of a tile by `product`, a function of `build_direct`; it may keep what it
        decodes at slots[kept]."""
        for i, part in enumerate(tile.group.parts):
            first, count = self._groups(f, tile, part)
            with f.loop(0, count) as each:
                group = f.iadd(first, each.iv)
                of_scales = self._scales(f, tile, part, group, f.imul(each.iv, GROUP))
                at = f.address(totals.at, (i, totals.area), (each.iv, GROUP))
                place = [group, *of_scales, rows.at, rows.stride, kept, at]
                f.call(product, [*self._sources(f, rows), *place])

    def tiled(
        self,
        f: Function,
        tile: Tile,
        rows: Rows,
        decoded: Index,
        totals: Totals,
        following: Callable[[], Index] = lambda: 1,
    ) -> None:
        """The sums of a tile of `wide_tile` columns; its blocks are decoded to slots[decoded].

        The first one is decoded at once, all others while the one before is multiplied by.
        `following` says how many tiles further what this thread does next is likely to be.
        """
        p, layout, unit = self.product, self.layout, self.unit
        slots = f.params[-4]
        weight, w_scale = self._sources(f, rows)[:2]
        units = f.idiv(f.iadd(rows.count, unit - 1), unit)
        shares = f.imul(units, p.shares)
        every = f.idiv(f.iadd(f.isub(shares, 1), p.slices), shares)
        size = self._block_elements(f.params[-1], f)
        last = layout.k_blocks - 1
        places = [self._groups(f, tile, part) for part in tile.group.parts]
        for i, (part, (first, groups)) in enumerate(zip(tile.group.parts, places, strict=True)):
            of_scales = self._scales(f, tile, part, first, 0)
            sums = f.address(totals.at, (i, totals.area))
            clear(f, slots, sums, f.imul(f.imul(units, unit), tile.width))
            begin = f.imul(first, layout.group_bytes)

            def ahead(decoding: Index, i: int = i, first: Index = first) -> Index:
                """From a block that is decoded to what comes after it: the last one's is another
                part's first, or that of another tile."""
                if i + 1 < len(places):
                    further = f.isub(places[i + 1][0], first)
                else:
                    further = f.imul(following(), tile.width // GROUP)
                other = f.isub(f.imul(further, layout.group_bytes), last * layout.block_bytes)
                is_last = f.icompare("eq", decoding, last)
                return f.select(is_last, f.index(other), f.index(layout.block_bytes))

            with f.loop(0, groups) as each:
                source = f.address(begin, (each.iv, layout.group_bytes))
                to = f.address(decoded, (each.iv, GROUP * p.block_steps))
                place = [source, to, f.iadd(first, each.iv), 0, ahead(0), 0, p.slices]
                f.call(self.decode, [weight, w_scale, slots, *place])
            with f.loop(0, layout.k_blocks) as block:
                start = f.address(begin, (block.iv, layout.block_bytes))
                here, there = (
                    f.address(decoded, (f.imod(f.iadd(block.iv, turn), 2), size))
                    for turn in range(2)
                )
                is_last = f.icompare("eq", block.iv, last)
                slices = f.select(is_last, f.index(0), f.index(every))
                position = [*of_scales, block.iv]
                if self.products is not None:
                    x_block = f.address(rows.at, (block.iv, rows.stride))
                    to = f.iadd(here, self._decoded_block)
                    place = [*position, x_block, units, to]
                    f.call(self.products, [*self._sources(f, rows), *place])
                next_block = [there, ahead(f.iadd(block.iv, 1)), slices]
                self._multiply_block(f, position, rows, here, sums, [start, groups], next_block)
            if self.scale is not None:
                with f.loop(0, units) as turn:
                    x_at = f.address(rows.at, (turn.iv, p.block_elements(unit)))
                    out_at = f.address(sums, (turn.iv, unit * self.wide_tile))
                    place = [*of_scales, x_at, out_at, groups]
                    f.call(self.scale, [*self._sources(f, rows), *place])

    def tiled_entry(self, slot_bytes: int = 0, **fields: Any) -> Entry:
        """An entry `run` before which `pack` packs x in units, with slots for `tiled`."""
        p = self.product
        slot_bytes += 4 * 2 * self._decoded_block
        products = 2 * LANES // self.unit if self._keeps_products else 0
        return Entry(
            "run",
            before=("pack",),
            tiles=self.tiles(self.wide_tile),
            rows=p.tunables.chunk_rows // self.areas // self.unit * self.unit,
            rows_multiple=self.unit,
            shared_row_bytes=4 * p.packed_elements(self.unit) // self.unit,
            slot_bytes=slot_bytes,
            slot_row_bytes=4 * (self.areas * self.wide_tile + products),
            **fields,
        )

    @property
    def tiled_functions(self) -> list[Function]:
        others = [f for f in (self.products, self.scale) if f is not None]
        return [self.decode, *self.multiply.values(), *others]

    def _groups(self, f: Function, tile: Tile, part: int) -> tuple[Index, Index]:
        """The first group, of all of the packed weight, of a tile of a part, and how many."""
        layout = self.layout
        per_tile = tile.width // GROUP
        first = f.imul(tile.number, per_tile)
        count: Index = 1
        if per_tile > 1:
            count = f.imin(per_tile, f.isub(layout.groups(part), first))
        before = f.imul(tile.expert, layout.all_groups)
        return f.address(before, layout.first_group(part), first), count

    def _scales(
        self, f: Function, tile: Tile, part: int, group: Index, offset: Index
    ) -> list[Index]:
        """`ScaleSource.first`, `last` and `column` for column `offset` of a tile, in `group`."""
        layout = self.layout
        if not layout.by_block:
            return [group, 0, 0]
        before = (tile.expert, layout.scale_shape[0])
        first = f.address(before, layout.first_scale_row(part))
        last = f.iadd(first, layout.scale_rows(part) - 1)
        return [first, last, f.address((tile.number, tile.width), offset)]

    def _sources(self, f: Function, rows: Rows) -> list[Value]:
        """The arguments that `product.source_params` names."""
        w = self.signature.operands[1]
        scale = w.data if w.scale is None else w.scale  # of a plain weight nobody reads scales
        return [w.data, scale, rows.x, f.params[-4]]

    def _multiply_block(
        self,
        f: Function,
        position: list[Index],
        rows: Rows,
        decoded: Index,
        totals: Index,
        source: list[Index],
        next_block: list[Index],
    ) -> None:
        """All rows by one decoded block; the lists are what `build_tile` wants: first, `from` and
        `groups`, and what it needs to know of the next block."""
        unit, *smaller = self.product.tile_rows
        *_, kb = position
        x_block = f.address(rows.at, (kb, rows.stride))

        def rows_by_block(size: int, turn: Index) -> None:
            x_at = f.address(x_block, (turn, self.product.block_elements(unit)))
            out_at = f.address(totals, (turn, unit * self.wide_tile))
            place = [*position, x_at, decoded, out_at, *source, turn, *next_block]
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
