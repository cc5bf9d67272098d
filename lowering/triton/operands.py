"""The main loop of a product: reading its operands and their scales, and adding up."""

from collections.abc import Sequence
from dataclasses import dataclass

from qfuse.dialects.bindings import ir
from qfuse.dialects.tt_dialect import block_of
from qfuse.lowering.triton.builder import Builder
from qfuse.lowering.triton.fp8 import decode, read_scale
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.k_quants import q6_k_column
from qfuse.lowering.triton.product import MAX_DEPTH, Group, Product
from qfuse.lowering.triton.signature import Pointers, Tensor
from qfuse.lowering.triton.tiles import Config
from qfuse.lowering.triton.weight_rows import WRows, WScales, weight_rows


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
        self.factor, self.runs = product.factor_type(gpu), product.runs(gpu)
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
        shape = shape[::-1] if config.swap else shape
        zero = b.full(0, "i32" if self.factor == "i8" else "f32", shape)
        start, stop = steps
        gathered = self.product.tokens is not None
        x = _GatheredRows(self, rows) if gathered else _XRows(self, rows)
        ws = [weight_rows(self, first, column, rows.expert) for first, column in tiles]
        once = self.product.scaled_once
        scales = _Scales(self, [] if once else [x, *ws], start, stop)
        total = zero if once else b.full(0.0, "f32", shape)

        def body(k: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            sums, scale = carried[: len(tiles)], scales.now(carried[len(tiles) :])
            x_blocks = x.load(k)
            w_blocks = [w.load(k) for w in ws]
            following = scales.ahead(k)
            for run, x_block in enumerate(x_blocks):
                of_x = _Codes(self, x_block)
                for i, (w, stored) in enumerate(zip(ws, w_blocks, strict=True)):
                    if once:
                        sums[i] = self._unscaled(sums[i], of_x, w.factor(stored, run), zero)
                        continue
                    found = w.scales_of(scale[1 + i], run)
                    block = w.factor(stored, run, found.zero)
                    x_scale = x.scale_of(scale[0], run)
                    sums[i] = self._step(sums[i], of_x, block, x_scale, found, zero)
            return [*sums, *following]

        results = b.loop((start, stop, 1), [*[total] * len(tiles), *scales.first()], body)
        if not once:
            return results[: len(tiles)]
        x_scale = x.scale_of(x.scales(None), 0)
        return [
            self._scaled(total, x_scale, w.scales_of(w.scales(None), 0).multiplier)
            for total, w in zip(results, ws, strict=True)
        ]

    def _step(
        self,
        total: ir.Value,
        x: "_Codes",
        w: ir.Value,
        x_scale: ir.Value | None,
        of_w: WScales,
        zero: ir.Value,
    ) -> ir.Value:
        b = self.b
        if x_scale is None and of_w.multiplier is None:
            return self._dot(x.block, w, total)
        made = self._dot(x.block, w, zero)
        if of_w.zero is not None and self.product.x.shaped.quantized:
            made = b.sub(made, b.mul(x.sums(), of_w.zero))
        if self.factor == "i8":
            made = b.cast("sitofp", made, "f32")
        scale = _product(b, x_scale, of_w.multiplier)
        assert scale is not None
        total = b.fma(made, scale, total)
        if of_w.offset is None:
            return total
        sums = x.sums()
        if x_scale is not None:
            sums = b.mul(b.cast("sitofp", sums, "f32"), x_scale)
        return b.fma(sums, of_w.offset, total)

    def _unscaled(self, total: ir.Value, x: "_Codes", w: ir.Value, zero: ir.Value) -> ir.Value:
        """With the product of a step that is scaled much later, or never."""
        if not self.factor.startswith("f8"):
            return self._dot(x.block, w, total)
        return self.b.add(total, self._dot(x.block, w, zero))

    def _scaled(
        self, total: ir.Value, x_scale: ir.Value | None, w_scale: ir.Value | None
    ) -> ir.Value:
        b = self.b
        if self.factor == "i8":
            total = b.cast("sitofp", total, "f32")
        scale = _product(b, x_scale, w_scale)
        return total if scale is None else b.mul(total, scale)

    def _dot(self, x: ir.Value, w: ir.Value, total: ir.Value) -> ir.Value:
        first, second = (w, x) if self.config.swap else (x, w)
        return self.b.dot(first, self.b.transpose(second), total)

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
        first: ir.Value,
        count: int,
        ragged: bool = True,
    ) -> ir.Value:
        """`count` stored elements from `first` on of rows [first_row, + rows) of x or w.

        Those beyond `left` rows read as zero, as do, unless `ragged` is false, those beyond a row.
        """
        b, width = self.b, tensor.stored_width
        base = b.offset(self.pointers.data(tensor), b.mul(b.i64(first_row), width))
        base = b.offset(base, first)
        numbers, columns = b.expand(b.range(rows), 1), b.expand(b.range(count), 0)
        inside = self.inside(width, first, count) if ragged else None
        mask = b.both(None if left is None else b.less(numbers, left), inside)
        return b.load(b.offset(base, b.add(b.mul(numbers, width), columns)), mask)

    def inside(self, width: int, first: ir.Value, count: int) -> ir.Value | None:
        """Which of `count` elements from `first` on, as [1, count], a row of `width` has.

        None for all, always: `first` is a multiple of `count`.
        """
        b = self.b
        if width % count == 0:
            return None
        return b.less(b.expand(b.range(count), 0), b.sub(width, first))

    def decoded(self, block: ir.Value) -> ir.Value:
        """A block as what is multiplied."""
        return (
            block
            if str(block_of(block).dtype) == self.factor
            else decode(self.b, block, self.factor)
        )

    def first_column(self, k: ir.Value) -> ir.Value:
        """The column that the first run of step k begins with."""
        b = self.b
        if self.product.packing != "q6_k":
            return b.mul(k, self.config.depth)
        return q6_k_column(b, k)

    def scale_group(self, tensor: Tensor, k: ir.Value) -> ir.Value | None:
        """Which group of K step k, one run, is in; None if there is only one."""
        scheme = tensor.shaped.scheme
        assert scheme is not None
        if scheme.block[1] >= self.product.k:
            return None
        steps = scheme.block[1] // self.config.depth
        return k if steps == 1 else self.b.div(k, steps)


class _XRows:
    """The rows of x that a tile reads, and their scales: one for each row and run."""

    def __init__(self, operands: Operands, rows: Rows) -> None:
        self.o, self.rows = operands, rows
        self.tensor = operands.product.x

    @property
    def varies(self) -> bool:
        """Whether other steps have other scales."""
        scheme = self.tensor.shaped.scheme
        return scheme is not None and scheme.group < self.o.product.k

    def load(self, k: ir.Value) -> list[ir.Value]:
        """What is stored of each run of step k."""
        o, b = self.o, self.o.b
        first = o.first_column(k)
        if o.x_desc is not None:
            return [b.load_block(o.x_desc, self.rows.first, first)]
        firsts = (b.add(first, offset) if offset else first for offset in o.runs.offsets)
        return [self._stored(first, o.runs.depth) for first in firsts]

    def _stored(self, first: ir.Value, count: int) -> ir.Value:
        o = self.o
        return o.load(self.tensor, self.rows.first, o.config.rows, self.left(), first, count)

    def left(self) -> ir.Value:
        """How many rows there are from the first one on."""
        return self.o.b.sub(self.rows.end, self.rows.first)

    def scales(self, k: ir.Value | None) -> list[ir.Value]:
        """Those of the runs of step k, or the one of all of them; None stands for all of K."""
        scheme = self.tensor.shaped.scheme
        if scheme is None:
            return []
        o, b = self.o, self.o.b
        if k is None or not self.varies:
            return [self._scale(None)]
        if len(o.runs.offsets) == 1:
            return [self._scale(o.scale_group(self.tensor, k))]
        if scheme.group % MAX_DEPTH == 0:  # the runs of a step are in one group
            return [self._scale(b.div(o.first_column(k), scheme.group))]
        columns = (b.add(o.first_column(k), offset) for offset in o.runs.offsets)
        return [self._scale(b.div(column, scheme.group)) for column in columns]

    def scale_of(self, scales: list[ir.Value], run: int) -> ir.Value | None:
        if not scales:
            return None
        return scales[run if len(scales) > 1 else 0]

    def _scale(self, group: ir.Value | None) -> ir.Value:
        """The scales of a group, f32."""
        o, b, x = self.o, self.o.b, self.tensor
        assert x.shaped.scheme is not None
        row_stride, group_stride = x.scale_strides(self.count())
        base = o.pointers.scale(x)
        if group is not None:
            base = b.offset(base, b.mul(group, group_stride))
        mask = b.less(b.range(o.config.rows), self.left())
        loaded = b.load(self.at(base, row_stride), mask)
        # Two dimensions before it is carried round the loop: warp specialization wants that.
        return b.expand(read_scale(b, loaded, x.shaped.scheme.scale), 0 if o.config.swap else 1)

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

    def _stored(self, first: ir.Value, count: int) -> ir.Value:
        o, b = self.o, self.o.b
        at = b.offset(self.begin, b.add(b.expand(b.range(count), 0), first))
        there = b.less(b.expand(b.range(o.config.rows), 1), self.left())
        inside = o.inside(self.tensor.stored_width, first, count)
        return b.load(at, b.both(there, inside))

    def count(self) -> ir.Value:
        tokens = self.o.product.tokens
        assert tokens is not None
        return self.o.b.div(self.o.pointers.m, tokens.width)

    def at(self, base: ir.Value, stride: int | ir.Value) -> ir.Value:
        b = self.o.b
        return b.offset(base, b.mul(self.tokens, stride))


class _Codes:
    """A run of x: as what is multiplied, and the sum of each row."""

    def __init__(self, operands: Operands, stored: ir.Value) -> None:
        self.o, self.stored = operands, stored
        self.block = operands.decoded(stored)
        self._sums: ir.Value | None = None

    def sums(self) -> ir.Value:
        """Of i8 as i32, of floats as f32, where the rows of a tile are."""
        o, b = self.o, self.o.b
        if self._sums is None:
            if str(block_of(self.stored).dtype) == "i8":
                wide, add = b.cast("extsi", self.stored, "i32"), "arith.addi"
            else:
                wide, add = b.convert(self.stored, "f32"), "arith.addf"
            self._sums = b.expand(b.reduce(wide, 1, add), 0 if o.config.swap else 1)
        return self._sums


class _Scales:
    """The scales of a step, read one step ahead: a load in the loop would stall the products."""

    def __init__(
        self,
        operands: Operands,
        sources: Sequence[_XRows | WRows],
        start: ir.Value,
        stop: ir.Value,
    ) -> None:
        self.b, self.sources = operands.b, sources
        self.last = self.b.sub(stop, 1)
        self.initial = [source.scales(start) for source in sources]

    def first(self) -> list[ir.Value]:
        """What the loop carries into its first step."""
        pairs = zip(self.sources, self.initial, strict=True)
        return [scale for source, scales in pairs if source.varies for scale in scales]

    def now(self, carried: Sequence[ir.Value]) -> list[list[ir.Value]]:
        """The scales of each source at this step."""
        rest = iter(carried)
        return [
            [next(rest) for _ in scales] if source.varies else scales
            for source, scales in zip(self.sources, self.initial, strict=True)
        ]

    def ahead(self, k: ir.Value) -> list[ir.Value]:
        """What the loop carries into the step after k; the last step reads its own again."""
        following = self.b.minimum(self.b.add(k, 1), self.last)
        return [s for source in self.sources if source.varies for s in source.scales(following)]


def _product(b: Builder, x: ir.Value | None, w: ir.Value | None) -> ir.Value | None:
    """The product of two scales, either of which may be missing."""
    if x is None or w is None:
        return w if x is None else x
    return b.mul(x, w)
