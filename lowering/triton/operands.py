"""The main loop of a product: reading its operands and their scales, and adding up."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qfuse.dialects.bindings import ir
from qfuse.dialects.tt_dialect import block_of
from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton.builder import Builder
from qfuse.lowering.triton.fp8 import decode
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.product import Group, Product
from qfuse.lowering.triton.signature import Pointers, Tensor
from qfuse.lowering.triton.tiles import Config


@dataclass(frozen=True)
class Rows:
    """The rows of a product that a tile begins at, the first after those it may have (both i32),
    and the expert whose weight they meet."""

    first: ir.Value
    end: ir.Value
    expert: ir.Value | None = None


class Operands:
    """x, w and their scales in one launch."""

    def __init__(
        self,
        b: Builder,
        pointers: Pointers,
        product: Product,
        group: Group,
        config: Config,
        gpu: Gpu,
    ) -> None:
        self.b, self.pointers, self.product = b, pointers, product
        self.group, self.config = group, config
        self.factor = product.factor_type(gpu)
        self.x_desc = self.w_desc = None
        if config.persistent:
            extents = (pointers.m, product.k)
            self.x_desc = b.descriptor(
                pointers.data(product.x), extents, product.k, (config.rows, config.depth)
            )
            extents = (product.n, product.k)
            self.w_desc = b.descriptor(
                pointers.data(product.w), extents, product.k, (config.columns, config.depth)
            )

    def accumulate(
        self, rows: Rows, columns: Sequence[ir.Value], steps: tuple[ir.Value, ir.Value]
    ) -> list[ir.Value]:
        """Totals over `steps` (first, last + 1) of K for the tiles that begin at (row, column).

        One block of f32 for each of `columns` and, within it, for each part of the group.
        """
        b, config = self.b, self.config
        tiles = [(self._first_row(part, column), column)
                 for column in columns for part in self.group.parts]  # fmt: skip
        shape = (config.rows, config.columns)
        integer = self.factor == "i8"
        shape = shape[::-1] if config.swap else shape
        zero = b.full(0, "i32" if integer else "f32", shape)
        start, stop = steps
        gathered = self.product.tokens is not None
        x = _GatheredRows(self, rows) if gathered else _XRows(self, rows)
        ws = [_WRows(self, first, column, rows.expert) for first, column in tiles]
        scales = _Scales(self, [x, *ws], start, stop)
        totals = [b.full(0.0, "f32", shape)] * len(tiles)

        def body(k: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            sums, scale = carried[: len(tiles)], scales.now(carried[len(tiles) :])
            x_block = x.load(k)
            w_blocks = [w.load(k) for w in ws]
            following = scales.ahead(k)
            added = []
            for i, w_block in enumerate(w_blocks):
                added.append(self._step(sums[i], x_block, w_block, scale[0], scale[1 + i], zero))
            return [*added, *following]

        results = b.loop((start, stop, 1), [*totals, *scales.first()], body)
        return results[: len(tiles)]

    def _step(
        self,
        total: ir.Value,
        x: ir.Value,
        w: ir.Value,
        x_scale: ir.Value | None,
        w_scale: ir.Value | None,
        zero: ir.Value,
    ) -> ir.Value:
        b = self.b
        first, second = (w, x) if self.config.swap else (x, w)
        if x_scale is None and w_scale is None:
            return b.dot(first, b.transpose(second), total)
        made = b.dot(first, b.transpose(second), zero)
        if self.factor == "i8":
            made = b.cast("sitofp", made, "f32")
        if x_scale is None or w_scale is None:
            scale = w_scale if x_scale is None else x_scale
        else:
            scale = b.mul(x_scale, w_scale)
        assert scale is not None
        return b.fma(made, scale, total)

    def _first_row(self, part: int, column: ir.Value) -> ir.Value:
        """Row of w, or of each expert's, that makes `column` of a part."""
        start = self.product.starts[part]
        return self.b.add(column, start) if start else column

    def load(
        self,
        tensor: Tensor,
        first_row: ir.Value,
        rows: int,
        left: ir.Value | None,
        k: ir.Value,
    ) -> ir.Value:
        """Rows [first_row, + rows) of x or w at step k; those beyond `left` read as zero."""
        b, width = self.b, self.product.k
        base = b.offset(self.pointers.data(tensor), b.mul(b.i64(first_row), width))
        base = b.offset(base, b.mul(k, self.config.depth))
        numbers, columns = b.expand(b.range(rows), 1), self.columns()
        mask = b.both(None if left is None else b.less(numbers, left), self.inside(k))
        at = b.offset(base, b.add(b.mul(numbers, width), columns))
        return self.decoded(b.load(at, mask))

    def columns(self) -> ir.Value:
        """0, 1, ... along a step of K, as [1, depth]."""
        return self.b.expand(self.b.range(self.config.depth), 0)

    def inside(self, k: ir.Value) -> ir.Value | None:
        """Which elements of step k there are; None for all, always."""
        b, depth, width = self.b, self.config.depth, self.product.k
        if width % depth == 0:
            return None
        return b.less(self.columns(), b.sub(width, b.mul(k, depth)))

    def decoded(self, block: ir.Value) -> ir.Value:
        """A block as what is multiplied."""
        return (
            block
            if str(block_of(block).dtype) == self.factor
            else decode(self.b, block, self.factor)
        )

    def scale_group(self, tensor: Tensor, k: ir.Value) -> ir.Value | None:
        """Which group of K step k is in; None if there is only one."""
        scheme = tensor.shaped.scheme
        assert scheme is not None
        if scheme.block[1] >= self.product.k:
            return None
        steps = scheme.block[1] // self.config.depth
        return k if steps == 1 else self.b.div(k, steps)


class _XRows:
    """The rows of x that a tile reads, and their scales: one for each row."""

    def __init__(self, operands: Operands, rows: Rows) -> None:
        self.o, self.rows = operands, rows

    def load(self, k: ir.Value) -> ir.Value:
        o, b, row = self.o, self.o.b, self.rows.first
        if o.x_desc is not None:
            return b.load_block(o.x_desc, row, b.mul(k, o.config.depth))
        return o.load(o.product.x, row, o.config.rows, self.left(), k)

    def left(self) -> ir.Value:
        """How many rows there are from the first one on."""
        return self.o.b.sub(self.rows.end, self.rows.first)

    def scale(self, k: ir.Value | None) -> tuple[ir.Value, bool] | None:
        """The scales at step k, and whether other steps have others; None for a plain x."""
        o, b, x = self.o, self.o.b, self.o.product.x
        if not x.shaped.quantized:
            return None
        row_stride, group_stride = x.scale_strides(self.count())
        group = None if k is None else o.scale_group(x, k)
        base = o.pointers.scale(x)
        if group is not None:
            base = b.offset(base, b.mul(group, group_stride))
        mask = b.less(b.range(o.config.rows), self.left())
        loaded = b.load(self.at(base, row_stride), mask)
        # Two dimensions before it is carried round the loop: warp specialization wants that.
        scale = b.expand(b.convert(loaded, "f32"), 0 if o.config.swap else 1)
        return scale, group is not None

    def count(self) -> ir.Value:
        """How many rows x has."""
        return self.o.pointers.m

    def at(self, base: ir.Value, stride: int | ir.Value) -> ir.Value:
        """Where what belongs to each row lies, `stride` elements apart."""
        b = self.o.b
        base = b.offset(base, b.mul(b.i64(self.rows.first), stride))
        return b.offset(base, b.mul(b.range(self.o.config.rows), stride))


class _GatheredRows(_XRows):
    """The same where `tokens` say which rows of x they are; none but those of x are read."""

    def __init__(self, operands: Operands, rows: Rows) -> None:
        super().__init__(operands, rows)
        b, product = operands.b, operands.product
        assert product.tokens is not None
        at = b.offset(operands.pointers.data(product.tokens), rows.first)
        numbers = b.range(operands.config.rows)
        tokens = b.load(b.offset(at, numbers), b.less(numbers, self.left()))
        self.tokens = b.maximum(b.minimum(tokens, b.sub(self.count(), 1)), 0)
        data = operands.pointers.data(product.x)
        self.begin = b.expand(b.offset(data, b.mul(b.i64(self.tokens), product.k)), 1)

    def load(self, k: ir.Value) -> ir.Value:
        o, b = self.o, self.o.b
        at = b.offset(self.begin, b.add(o.columns(), b.mul(k, o.config.depth)))
        there = b.less(b.expand(b.range(o.config.rows), 1), self.left())
        return o.decoded(b.load(at, b.both(there, o.inside(k))))

    def count(self) -> ir.Value:
        tokens = self.o.product.tokens
        assert tokens is not None
        return self.o.b.div(self.o.pointers.m, tokens.width)

    def at(self, base: ir.Value, stride: int | ir.Value) -> ir.Value:
        b = self.o.b
        return b.offset(base, b.mul(self.tokens, stride))


class _WRows:
    """The rows of w for one tile of one part, and their scales: a scalar, or one for each row."""

    def __init__(
        self,
        operands: Operands,
        first_row: ir.Value,
        column: ir.Value,
        expert: ir.Value | None = None,
    ) -> None:
        self.o, self.first_row, self.column = operands, first_row, column
        self.expert = expert

    def load(self, k: ir.Value) -> ir.Value:
        o, b, row = self.o, self.o.b, self.first_row
        if o.w_desc is not None:
            return b.load_block(o.w_desc, row, b.mul(k, o.config.depth))
        if self.expert is not None:
            row = b.add(row, b.mul(self.expert, o.product.n))
        ragged = o.group.width % o.config.columns
        left = b.sub(o.group.width, self.column) if ragged else None
        return o.load(o.product.w, row, o.config.columns, left, k)

    def scale(self, k: ir.Value | None) -> tuple[ir.Value, bool] | None:
        o, b, w = self.o, self.o.b, self.o.product.w
        scheme = w.shaped.scheme
        if scheme is None:
            return None
        row_stride, group_stride = w.scale_strides()
        group = None if k is None else o.scale_group(w, k)
        base = o.pointers.scale(w)
        if self.expert is not None:
            scales = math.prod(w.shaped.scale_shape[-2:])
            base = b.offset(base, b.mul(self.expert, scales))
        if group is not None:
            base = b.offset(base, b.mul(group, group_stride))
        per_scale, total = scheme.block[0], o.product.n
        if per_scale >= total:
            return b.convert(b.load(base), "f32"), group is not None
        if per_scale % o.config.columns == 0:
            number = b.div(self.first_row, per_scale)
            if o.group.width % (o.config.columns * o.config.adjacent):
                # A tile beside the last one lies beyond w; what it makes is not stored.
                number = b.minimum(number, ceil_div(total, per_scale) - 1)
            at = b.offset(base, b.mul(number, row_stride))
            return b.convert(b.load(at), "f32"), group is not None
        rows = b.range(o.config.columns)
        mask = b.less(rows, b.sub(o.group.width, self.column))
        numbers = b.div(b.add(rows, self.first_row), per_scale)
        loaded = b.load(b.offset(base, b.mul(numbers, row_stride)), mask)
        scale = b.expand(b.convert(loaded, "f32"), 1 if o.config.swap else 0)
        return scale, group is not None


class _Scales:
    """The scales of a step, read one step ahead: a load in the loop would stall the products."""

    def __init__(
        self,
        operands: Operands,
        sources: Sequence[_XRows | _WRows],
        start: ir.Value,
        stop: ir.Value,
    ) -> None:
        self.b, self.sources = operands.b, sources
        self.last = self.b.sub(stop, 1)
        found = [source.scale(start) for source in sources]
        self.initial = [None if f is None else f[0] for f in found]
        self.varies = [f is not None and f[1] for f in found]

    def first(self) -> list[ir.Value]:
        """What the loop carries into its first step."""
        return [s for s, v in zip(self.initial, self.varies, strict=True) if v and s is not None]

    def now(self, carried: Sequence[ir.Value]) -> list[ir.Value | None]:
        """The scales of each source at this step."""
        rest = iter(carried)
        return [next(rest) if v else s for s, v in zip(self.initial, self.varies, strict=True)]

    def ahead(self, k: ir.Value) -> list[ir.Value]:
        """What the loop carries into the step after k; the last step reads its own again."""
        following = self.b.minimum(self.b.add(k, 1), self.last)
        found = [s.scale(following) for s, v in zip(self.sources, self.varies, strict=True) if v]
        return [scale for scale, _ in filter(None, found)]
