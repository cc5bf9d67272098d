"""Products of one row without matrix instructions, where those would only wait for weights.

A program has some rows of w, and each of its threads some elements of K:

    for k in steps of K:                                # w is read one step ahead
        total[n, g, i] = fma(w[n, g, i], x[g, i] * scale[n, g], total[n, g, i])      # all f32
    result[n] = sum of total[n, :, :]

Elements [g, :] of a step share their scales.  Codes go from memory to registers, 16 bytes to a
load; a tensor core would want 16 rows of x, and codes of W8A16 decoded into shared memory.

Where bytes hold several codes, i counts bytes, and each of their codes is one multiply-add, with
another block of x.
"""

from collections.abc import Sequence
from math import gcd
from typing import TYPE_CHECKING

from qfuse.dialects.bindings import ir
from qfuse.lowering.triton.builder import Builder
from qfuse.lowering.triton.fp8 import decode, read_scale
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.product import MAX_DEPTH, Group, Product
from qfuse.lowering.triton.signature import Pointers, Tensor
from qfuse.lowering.triton.weight_rows import WScales

if TYPE_CHECKING:  # tiles.py asks this file what there is a kernel for
    from qfuse.lowering.triton.operands import Rows
    from qfuse.lowering.triton.tiles import Config

COLUMNS, DEPTH = 8, 512
"""Rows of w and elements of K that a program of 4 warps works on: 32 codes for each thread."""

_MAX_PARTS = 2
"""Parts of a weight whose totals a thread has registers for."""


def gemv_error(product: Product, group: Group, gpu: Gpu) -> str | None:
    """Why there is no kernel of this kind for one row of `product`, or None."""
    widest = max(product.quantized_groups(group.results), default=0)
    if widest > COLUMNS:
        return f"a program makes {COLUMNS} columns; a result scales {widest} as one"
    if len(group.parts) > _MAX_PARTS:
        return f"it has registers for {_MAX_PARTS} parts of w"
    return None


class Gemv:
    """x, w and their scales in one launch for M = 1; takes the place of `operands.Operands`.

    A step of K falls into units that share their scales: `unit` stored elements of each row, which
    are `unit_columns` columns.  Stored elements hold `pieces` codes each.
    """

    pieces = 1

    def __init__(
        self, b: Builder, pointers: Pointers, product: Product, group: Group, config: "Config"
    ) -> None:
        self.b, self.pointers, self.product = b, pointers, product
        self.group, self.config = group, config
        self.unit, self.unit_columns = self._units()
        self.shape = (config.columns, config.depth // self.unit_columns, self.unit)

    def _units(self) -> tuple[int, int]:
        tensors = self.product.x, self.product.w
        blocks = [t.shaped.scheme.group for t in tensors if t.shaped.scheme]
        share = gcd(MAX_DEPTH, *(block for block in blocks if block < self.product.k))
        return share, share

    def accumulate(
        self, rows: "Rows", columns: Sequence[ir.Value], steps: tuple[ir.Value, ir.Value]
    ) -> list[ir.Value]:
        """Totals [1, columns] of f32 over `steps` of K, one for each column and part."""
        b, product = self.b, self.product
        tiles = [(b.add(column, product.starts[part]), column)
                 for column in columns for part in self.group.parts]  # fmt: skip

        start, stop = steps

        def body(k: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            totals, codes = carried[: len(tiles)], carried[len(tiles) :]
            following = b.add(k, 1)
            there_is = b.less(following, stop)
            ahead = [block for tile in tiles for block in self._codes(*tile, following, there_is)]
            xs = [decode(b, x, "f32") for x in self._read_x(k)]
            x_scales = [self._x_scale(k, piece) for piece in range(self.pieces)]
            made = []
            for i, (total, tile) in enumerate(zip(totals, tiles, strict=True)):
                stored = codes[i * self.loads : (i + 1) * self.loads]
                found = self._w_scales(k, *tile)
                ws = [self._factor(stored, i, of_w.zero) for i, of_w in enumerate(found)]
                made.append(self._added(total, ws, xs, x_scales, found))
            return [*made, *ahead]

        zeros = [b.full(0.0, "f32", self.shape)] * len(tiles)
        first_codes = [block for tile in tiles for block in self._codes(*tile, start)]
        totals = b.loop((start, stop, 1), [*zeros, *first_codes], body)[: len(tiles)]
        return [self._finish(total, *tile) for total, tile in zip(totals, tiles, strict=True)]

    def _added(
        self,
        total: ir.Value,
        ws: list[ir.Value],
        xs: list[ir.Value],
        x_scales: list[ir.Value | None],
        of_w: list[WScales],
    ) -> ir.Value:
        """`total` and the products of all pieces."""
        b = self.b
        for w, x, x_scale, found in zip(ws, xs, x_scales, of_w, strict=True):
            scale = self._both(x_scale, found.multiplier)
            total = b.fma(w, x if scale is None else b.mul(x, scale), total)
            if found.offset is not None:
                x = x if x_scale is None else b.mul(x, x_scale)
                total = b.fma(x, found.offset, total)
        return total

    def _finish(self, total: ir.Value, first: ir.Value, column: ir.Value) -> ir.Value:
        """The sums of a tile, times the scales that are one for all of K."""
        b, product = self.b, self.product
        total = b.reduce(b.reduce(total, 2, "arith.addf"), 1, "arith.addf")
        scales = self._scale(product.x), self._scale(product.w, None, first, column)
        scale = self._both(*scales)
        if scale is not None:
            total = b.mul(total, scale)
        return b.expand(total, 0)

    loads = 1
    """Blocks that hold the codes of a step."""

    def _places(self, k: ir.Value) -> list[ir.Value]:
        """Which stored elements of a row step k has, for each load, as [1, groups, unit]."""
        return [self._elements(k)]

    def _codes(
        self, first: ir.Value, column: ir.Value, k: ir.Value, there_is: ir.Value | None = None
    ) -> list[ir.Value]:
        """Rows of w at step k as they are stored; nothing is read where `there_is` no such step."""
        b, config, w = self.b, self.config, self.product.w
        rows = self._spread(config.columns, 0)
        inside = self._inside(k)
        if there_is is not None:
            inside = b.both(inside, b.broadcast(there_is, (1, 1, 1)))
        if self.group.width % config.columns:
            inside = b.both(inside, b.less(rows, b.sub(self.group.width, column)))
        base = b.offset(self.pointers.data(w), b.mul(b.i64(first), w.stored_width))
        at_rows = b.mul(rows, w.stored_width)
        return [self._read(base, b.add(at_rows, place), inside) for place in self._places(k)]

    def _factor(self, stored: list[ir.Value], piece: int, zero: ir.Value | None) -> ir.Value:
        """One code of each stored element, f32."""
        return decode(self.b, stored[piece], "f32")

    def _read_x(self, k: ir.Value) -> list[ir.Value]:
        """x for each piece."""
        data = self.pointers.data(self.product.x)
        return [self._read(data, self._elements(k), self._inside(k))]

    def _read(self, base: ir.Value, at: ir.Value, inside: ir.Value | None) -> ir.Value:
        """A block in the shape of a step, also of what is alike for all rows of it.

        A smaller block would get another layout, and go through shared memory in each step; loads
        of one address become one.
        """
        return self.b.load(self.b.offset(base, self.b.broadcast(at, self.shape)), inside)

    def _elements(self, k: ir.Value) -> ir.Value:
        """Which elements step k has, counted as those of `unit`, as [1, groups, unit]."""
        b, (_, groups, unit) = self.b, self.shape
        within = b.add(b.mul(self._spread(groups, 1), unit), self._spread(unit, 2))
        return b.add(within, b.mul(k, groups * unit))

    def _unit_numbers(self, k: ir.Value) -> ir.Value:
        """Which units step k has, as [1, groups, 1]."""
        b, (_, groups, _) = self.b, self.shape
        return b.add(self._spread(groups, 1), b.mul(k, groups))

    def _inside(self, k: ir.Value) -> ir.Value | None:
        """Which of the elements there are; None for all, always."""
        if self.product.k % self.config.depth == 0:
            return None
        units_left = self.product.k * self.unit // self.unit_columns
        return self.b.less(self._elements(k), units_left)

    def _first_columns(self, k: ir.Value, piece: int) -> ir.Value:
        """The column that each unit of a piece begins with, as [1, groups, 1]."""
        return self.b.mul(self._unit_numbers(k), self.unit_columns)

    def _x_scale(self, k: ir.Value, piece: int) -> ir.Value | None:
        return self._scale(self.product.x, self._first_columns(k, piece))

    def _w_scales(self, k: ir.Value, first: ir.Value, column: ir.Value) -> list[WScales]:
        """What the codes of each piece become; without what is one for all of K."""
        columns = self._first_columns(k, 0)
        return [WScales(self._scale(self.product.w, columns, first, column))] * self.pieces

    def _scale(
        self,
        tensor: Tensor,
        element: ir.Value | None = None,
        first: ir.Value | None = None,
        column: ir.Value | None = None,
    ) -> ir.Value | None:
        """Scales of the groups that columns `element` are in, in the shape of a step.

        Without `element` those of all of K, one or one for each row of w.  None where there are
        none of that kind.
        """
        scheme = tensor.shaped.scheme
        if scheme is None or (scheme.group < self.product.k) != (element is not None):
            return None
        base = self.pointers.scale(tensor)
        return read_scale(self.b, self._of_groups(base, tensor, element, first, column),
                          scheme.scale)  # fmt: skip

    def _of_groups(
        self,
        base: ir.Value,
        tensor: Tensor,
        element: ir.Value | None,
        first: ir.Value | None = None,
        column: ir.Value | None = None,
        numbers: int | None = None,
    ) -> ir.Value:
        """What `base` has for the scale blocks of columns `element`; `numbers` for each, if given.

        `first` and `column` say which rows of w; without them it belongs to the row of x.
        """
        b, scheme = self.b, tensor.shaped.scheme
        assert scheme is not None
        row_stride, group_stride = (
            tensor.scale_strides(self.pointers.m) if first is None else tensor.scale_strides()
        )
        if numbers is not None:
            row_stride, group_stride = self.product.k // scheme.block[1] * numbers, numbers
        at, mask = b.full(0), None
        if first is not None and column is not None and scheme.block[0] < tensor.shaped.shape[0]:
            if scheme.block[0] % self.config.columns == 0:
                base = b.offset(base, b.mul(b.div(first, scheme.block[0]), row_stride))
            else:
                rows = b.range(self.config.columns)
                if element is not None:
                    rows = self._spread(self.config.columns, 0)
                if self.group.width % self.config.columns:
                    mask = b.less(rows, b.sub(self.group.width, column))
                at = b.mul(b.div(b.add(rows, first), scheme.block[0]), row_stride)
        if element is None:
            return b.load(b.offset(base, at), mask)
        if self.product.k % self.config.depth:
            mask = b.both(mask, b.less(element, self.product.k))
        at = b.add(b.mul(b.div(element, scheme.block[1]), group_stride), at)
        return self._read(base, at, mask)

    def _both(self, x: ir.Value | None, w: ir.Value | None) -> ir.Value | None:
        """The product of two scales, either of which may be missing."""
        if x is None or w is None:
            return w if x is None else x
        return self.b.mul(x, w)

    def _spread(self, count: int, axis: int) -> ir.Value:
        """0, 1, ... along one of three dimensions."""
        value = self.b.range(count)
        for other in range(3):
            if other != axis:
                value = self.b.expand(value, other)
        return value
