"""Products of one row without matrix instructions, where those would only wait for weights.

A program has some rows of w, and each of its threads some elements of K:

    for k in steps of K:                                # w is read one step ahead
        total[n, g, i] = fma(w[n, g, i], x[g, i] * scale[n, g], total[n, g, i])      # all f32
    result[n] = sum of total[n, :, :]

Elements [g, :] of a step share their scales.  Codes go from memory to registers, 16 bytes to a
load; a tensor core would want 16 rows of x, and codes of W8A16 decoded into shared memory.
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

if TYPE_CHECKING:  # tiles.py asks this file what there is a kernel for
    from qfuse.lowering.triton.operands import Rows
    from qfuse.lowering.triton.tiles import Config

COLUMNS, DEPTH = 8, 512
"""Rows of w and elements of K that a program of 4 warps works on: 32 codes for each thread."""

_MAX_PARTS = 2
"""Parts of a weight whose totals a thread has registers for."""


def gemv_error(product: Product, group: Group, gpu: Gpu) -> str | None:
    """Why there is no kernel of this kind for one row of `product`, or None."""
    if product.packing != "none":
        return f'it reads codes of whole bytes, not those of "{product.packing}"'
    for index in group.results:
        result = product.signature.results[index]
        if result.shaped.quantized and result.group > COLUMNS:
            return f"a program makes {COLUMNS} columns; result {index} scales {result.group} as one"
    if len(group.parts) > _MAX_PARTS:
        return f"it has registers for {_MAX_PARTS} parts of w"
    return None


class Gemv:
    """x, w and their scales in one launch for M = 1; takes the place of `operands.Operands`."""

    def __init__(
        self, b: Builder, pointers: Pointers, product: Product, group: Group, config: "Config"
    ) -> None:
        self.b, self.pointers, self.product = b, pointers, product
        self.group, self.config = group, config
        blocks = [t.shaped.scheme.block[1] for t in (product.x, product.w) if t.shaped.scheme]
        self.share = gcd(MAX_DEPTH, *(block for block in blocks if block < product.k))
        self.shape = (config.columns, config.depth // self.share, self.share)

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
            ahead = [self._codes(*tile, following, there_is) for tile in tiles]
            x = decode(b, self._read_x(k), "f32")
            x_scale = self._scale(product.x, k)
            made = []
            for total, stored, tile in zip(totals, codes, tiles, strict=True):
                scale = self._both(x_scale, self._scale(product.w, k, *tile))
                factor = x if scale is None else b.mul(x, scale)
                made.append(b.fma(decode(b, stored, "f32"), factor, total))
            return [*made, *ahead]

        zeros = [b.full(0.0, "f32", self.shape)] * len(tiles)
        first_codes = [self._codes(*tile, start) for tile in tiles]
        totals = b.loop((start, stop, 1), [*zeros, *first_codes], body)[: len(tiles)]
        return [self._finish(total, *tile) for total, tile in zip(totals, tiles, strict=True)]

    def _finish(self, total: ir.Value, first: ir.Value, column: ir.Value) -> ir.Value:
        """The sums of a tile, times the scales that are one for all of K."""
        b, product = self.b, self.product
        total = b.reduce(b.reduce(total, 2, "arith.addf"), 1, "arith.addf")
        scales = self._scale(product.x), self._scale(product.w, None, first, column)
        scale = self._both(*scales)
        if scale is not None:
            total = b.mul(total, scale)
        return b.expand(total, 0)

    def _codes(
        self, first: ir.Value, column: ir.Value, k: ir.Value, there_is: ir.Value | None = None
    ) -> ir.Value:
        """Rows of w at step k as they are stored; nothing is read where `there_is` no such step."""
        b, config, width = self.b, self.config, self.product.k
        rows = self._spread(config.columns, 0)
        inside = self._inside(k)
        if there_is is not None:
            inside = b.both(inside, b.broadcast(there_is, (1, 1, 1)))
        if self.group.width % config.columns:
            inside = b.both(inside, b.less(rows, b.sub(self.group.width, column)))
        base = b.offset(self.pointers.data(self.product.w), b.mul(b.i64(first), width))
        return self._read(base, b.add(b.mul(rows, width), self._elements(k)), inside)

    def _read_x(self, k: ir.Value) -> ir.Value:
        return self._read(self.pointers.data(self.product.x), self._elements(k), self._inside(k))

    def _read(self, base: ir.Value, at: ir.Value, inside: ir.Value | None) -> ir.Value:
        """A block in the shape of a step, also of what is alike for all rows of it.

        A smaller block would get another layout, and go through shared memory in each step; loads
        of one address become one.
        """
        return self.b.load(self.b.offset(base, self.b.broadcast(at, self.shape)), inside)

    def _elements(self, k: ir.Value) -> ir.Value:
        """Which elements of K step k has, as [1, groups, share]."""
        b, (_, groups, share) = self.b, self.shape
        within = b.add(b.mul(self._spread(groups, 1), share), self._spread(share, 2))
        return b.add(within, b.mul(k, self.config.depth))

    def _inside(self, k: ir.Value) -> ir.Value | None:
        """Which of them there are; None for all, always."""
        if self.product.k % self.config.depth == 0:
            return None
        return self.b.less(self._elements(k), self.product.k)

    def _scale(
        self,
        tensor: Tensor,
        k: ir.Value | None = None,
        first: ir.Value | None = None,
        column: ir.Value | None = None,
    ) -> ir.Value | None:
        """Scales of step k in its shape; without k those of all of K, one or one for each column.

        None where there are none of that kind.
        """
        b, scheme = self.b, tensor.shaped.scheme
        if scheme is None or (scheme.block[1] < self.product.k) != (k is not None):
            return None
        row_stride, group_stride = (
            tensor.scale_strides(self.pointers.m) if first is None else tensor.scale_strides()
        )
        base, at, mask = self.pointers.scale(tensor), b.full(0), None
        if first is not None and column is not None and scheme.block[0] < tensor.shaped.shape[0]:
            if scheme.block[0] % self.config.columns == 0:
                base = b.offset(base, b.mul(b.div(first, scheme.block[0]), row_stride))
            else:
                rows = b.range(self.config.columns)
                if k is not None:
                    rows = self._spread(self.config.columns, 0)
                mask = b.less(rows, b.sub(self.group.width, column))
                at = b.mul(b.div(b.add(rows, first), scheme.block[0]), row_stride)
        if k is None:
            return read_scale(b, b.load(b.offset(base, at), mask), scheme.scale)
        _, groups, share = self.shape
        element = b.add(b.mul(self._spread(groups, 1), share), b.mul(k, self.config.depth))
        if self.product.k % self.config.depth:
            mask = b.both(mask, b.less(element, self.product.k))
        at = b.add(b.mul(b.div(element, scheme.block[1]), group_stride), at)
        return read_scale(b, self._read(base, at, mask), scheme.scale)

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
