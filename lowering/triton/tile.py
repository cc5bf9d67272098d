"""A tile of the result that one program makes: where it lies, what it reads and writes there."""

from dataclasses import dataclass, field

from qfuse.dialects.bindings import ir
from qfuse.dialects.tt_dialect import block_of
from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton.builder import Builder, Shape
from qfuse.lowering.triton.fp8 import quantize, quantize_by, store_scale
from qfuse.lowering.triton.signature import Pointers, Tensor


@dataclass
class Tile:
    """`rows` x `columns` elements of a matrix with M rows of `width`, from (row, column) on.

    `row` and `column` are scalars of i32.  `swapped` tiles hold the transposed block: columns
    along dimension 0 (weights ride the long side of a product with few rows).  Of `adjacent`
    tiles that one program makes, all but the first may lie beyond the matrix.
    """

    b: Builder
    pointers: Pointers
    row: ir.Value
    rows: int
    column: ir.Value
    columns: int
    width: int
    swapped: bool = False
    adjacent: int = 1
    end: ir.Value | None = None
    """The row after the last one that the tile may have; M where nothing is said."""
    expert: ir.Value | None = None
    """Whose rows they are, in a product by the weights of experts."""
    _vectors: dict[str, ir.Value] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        return (self.columns, self.rows) if self.swapped else (self.rows, self.columns)

    @property
    def row_axis(self) -> int:
        return int(self.swapped)

    @property
    def column_axis(self) -> int:
        return 1 - self.row_axis

    def row_range(self) -> ir.Value:
        """0, 1, ... along the rows, as [rows, 1] (or [1, rows] where swapped)."""
        return self._vector("row", self.rows, self.column_axis)

    def column_range(self) -> ir.Value:
        return self._vector("column", self.columns, self.row_axis)

    def row_mask(self) -> ir.Value:
        return self._masked("row_mask", self.row_range(), self._rows_left())

    def column_mask(self) -> ir.Value | None:
        """None where every tile is full."""
        if self.width % (self.columns * self.adjacent) == 0:
            return None
        left = self.b.sub(self.width, self.column)
        return self._masked("column_mask", self.column_range(), left)

    def mask(self) -> ir.Value:
        mask = self.b.both(self.row_mask(), self.column_mask())
        assert mask is not None
        return mask

    def at(self, base: ir.Value, stride: int | None = None, first: int = 0) -> ir.Value:
        """Pointers to the tile's elements of a row-major matrix.

        Its rows are `stride` elements apart, by default `width`, and begin at element `first`.

        Each part of the offsets depends on the place of the tile, so that no pass moves it out of
        a loop over tiles, where it would hold registers during the product: hence the minimum,
        which changes only rows that are masked.
        """
        b = self.b
        stride = self.width if stride is None else stride
        start = b.offset(base, b.mul(b.i64(self.row), stride))
        column = b.add(self.column, first) if first else self.column
        columns = b.add(self.column_range(), column)
        rows = b.minimum(self.row_range(), b.sub(self._rows_left(), 1))
        return b.offset(start, b.add(b.mul(rows, stride), columns))

    def load(self, tensor: Tensor, kind: str) -> ir.Value:
        """What each element sees of a plain operand under map `kind`, as f32.

        The shape is a scalar, or has extents of one where the operand does not vary.
        """
        b, base = self.b, self.pointers.data(tensor)
        if kind == "[]":
            loaded = b.load(base)
        elif kind == "[N]":
            at = b.offset(b.offset(base, self.column), self.column_range())
            loaded = b.load(at, self.column_mask())
        elif kind == "[E,N]":
            assert self.expert is not None
            of_expert = b.offset(base, b.mul(b.i64(self.expert), self.width))
            at = b.offset(b.offset(of_expert, self.column), self.column_range())
            loaded = b.load(at, self.column_mask())
        elif kind == "[M,1]":
            at = b.offset(b.offset(base, self.row), self.row_range())
            loaded = b.load(at, self.row_mask())
        else:
            loaded = b.load(self.at(base), self.mask())
        return b.convert(loaded, "f32")

    def store(self, value: ir.Value, result: Tensor, scale: ir.Value | None = None) -> None:
        """Write a block of f32 as `result` wants it: rounded, or quantized, by `scale` if given."""
        if result.shaped.quantized:
            codes = self.quantize_rows(value, result, scale)
            self.b.store(self.at(self.pointers.data(result)), codes, self.mask())
            return
        rounded = self.b.convert(self.b.broadcast(value, self.shape), result.dtype)
        self.b.store(self.at(self.pointers.data(result)), rounded, self.mask())

    def quantize_rows(
        self, value: ir.Value, result: Tensor, scale: ir.Value | None = None
    ) -> ir.Value:
        """The codes of a block of f32; its scales are stored.

        `scale`, a scalar of f32, is that of the whole tensor, given beforehand.
        """
        b, scheme = self.b, result.shaped.scheme
        assert scheme is not None
        value = b.broadcast(value, self.shape)
        if scale is not None:
            codes = quantize_by(b, value, scale, result.dtype)
            self._store_given(scale, result)
            return codes
        inside = self.column_mask()
        if inside is not None:  # what lies beyond the row must not raise a maximum
            value = b.select(inside, value, 0.0)
        group = self.columns if result.group >= self.width else result.group
        axis = self.column_axis
        groups = ceil_div(self.columns, group)
        if groups > 1:
            value = b.reshape(value, (*self.shape[:axis], groups, group, *self.shape[axis + 1 :]))
            axis += 1
        codes, scale = quantize(b, value, axis, result.dtype, scheme.scale)
        self._store_scale(scale, groups, result)
        if scheme.numbers > 1:
            total = b.reduce(b.cast("sitofp", codes, "f32"), axis, "arith.addf")
            self._store_scale(b.mul(scale, total), groups, result, place=1)
        return b.reshape(codes, self.shape) if groups > 1 else codes

    def _store_given(self, scale: ir.Value, result: Tensor) -> None:
        """Write one scale for each row; the tile of its first columns does."""
        b, rows = self.b, self.row_mask()
        first = b.equal(self.column, 0) if self.columns < self.width else None
        of_rows = b.offset(b.offset(self.pointers.scale(result), self.row), self.row_range())
        b.store(of_rows, b.broadcast(scale, block_of(rows).shape), b.both(rows, first))

    def _store_scale(self, scale: ir.Value, groups: int, result: Tensor, place: int = 0) -> None:
        """Write a number of each group; `place` is which of those that the group has."""
        b, scheme = self.b, result.shaped.scheme
        assert scheme is not None
        if groups == 1:
            scale = b.expand(scale, self.column_axis)
        row_stride, group_stride = result.scale_strides(self.pointers.m)
        first = b.div(self.column, scheme.block[1])
        numbers = self._vector(f"group{groups}", groups, self.row_axis)
        base = self.pointers.scale(result)
        base = b.offset(base, b.mul(b.i64(self.row), row_stride))
        base = b.offset(base, b.mul(first, group_stride))
        if place:
            base = b.offset(base, b.full(place))
        at = b.offset(
            base, b.add(b.mul(self.row_range(), row_stride), b.mul(numbers, group_stride))
        )
        mask = self.row_mask()
        if self.column_mask() is not None and groups * self.adjacent > 1:
            inside = b.less(numbers, b.sub(ceil_div(self.width, scheme.block[1]), first))
            mask = b.both(mask, inside)
        b.store(at, store_scale(b, scale, scheme.scale), mask)

    def _rows_left(self) -> ir.Value:
        return self.b.sub(self.pointers.m if self.end is None else self.end, self.row)

    def _vector(self, name: str, count: int, other_axis: int) -> ir.Value:
        if name not in self._vectors:
            self._vectors[name] = self.b.expand(self.b.range(count), other_axis)
        return self._vectors[name]

    def _masked(self, name: str, numbers: ir.Value, left: ir.Value) -> ir.Value:
        if name not in self._vectors:
            self._vectors[name] = self.b.less(numbers, left)
        return self._vectors[name]
