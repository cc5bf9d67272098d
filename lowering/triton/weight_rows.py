"""The rows of w that a tile multiplies: their codes, as each packing stores them, and scales.

A step of K is multiplied in runs (`product.Runs`); scales are read one step ahead, as they are in
memory or nearly so, because the loop carries them.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qfuse.dialects.bindings import ir
from qfuse.dialects.tt_dialect import block_of
from qfuse.dialects.types import Scheme
from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton.fp8 import read_scale
from qfuse.lowering.triton.k_quants import (
    Q4_K_WORDS,
    QUARTERS,
    Q4KHeader,
    q6_k_multipliers,
    q6_k_places,
)
from qfuse.lowering.triton.packed import HALF, fp4, half_bytes, int4, six_bits

if TYPE_CHECKING:
    from qfuse.lowering.triton.operands import Operands


@dataclass(frozen=True)
class WScales:
    """What the codes u of a run become: multiplier * (u - zero) + offset; all may be missing.

    Blocks that broadcast to the tile; zero is an integer, the others are f32.
    """

    multiplier: ir.Value | None = None
    zero: ir.Value | None = None
    offset: ir.Value | None = None


class WRows:
    """Rows whose elements are stored one by one, plain or with a scale for each step.

    `first_row` is the first of them, of the weight or of that of `expert`; `column` the column of
    the result that it makes.
    """

    def __init__(
        self,
        operands: "Operands",
        first_row: ir.Value,
        column: ir.Value,
        expert: ir.Value | None = None,
    ) -> None:
        self.o, self.first_row, self.column = operands, first_row, column
        self.expert = expert
        self.tensor = operands.product.w

    @property
    def scheme(self) -> Scheme:
        scheme = self.tensor.shaped.scheme
        assert scheme is not None
        return scheme

    @property
    def varies(self) -> bool:
        """Whether other steps have other scales."""
        scheme = self.tensor.shaped.scheme
        return scheme is not None and scheme.group < self.o.product.k

    def load(self, k: ir.Value) -> list[ir.Value]:
        """What is stored of step k."""
        o, b = self.o, self.o.b
        if o.w_desc is not None:
            return [b.load_block(o.w_desc, self.first_row, b.mul(k, o.config.depth))]
        return [self._stored(b.mul(k, o.config.depth), o.config.depth)]

    def factor(self, stored: list[ir.Value], run: int, zero: ir.Value | None = None) -> ir.Value:
        """Codes of a run as what is multiplied."""
        return self.o.decoded(stored[run])

    def scales(self, k: ir.Value | None) -> list[ir.Value]:
        """What `scales_of` wants to know about step k; None stands for all of K."""
        scheme = self.tensor.shaped.scheme
        if scheme is None:
            return []
        group = None if k is None else self.o.scale_group(self.tensor, k)
        loaded = self._of_rows(self.o.pointers.scale(self.tensor), group)
        return [read_scale(self.o.b, loaded, scheme.scale)]

    def scales_of(self, scales: list[ir.Value], run: int) -> WScales:
        return WScales(*scales)

    def _stored(self, first: ir.Value, count: int, ragged: bool = True) -> ir.Value:
        """`count` stored elements of each row from `first` on; beyond the rows, zero.

        So are those beyond a row where there may be some: not where `ragged` is false.
        """
        o, b, row = self.o, self.o.b, self.first_row
        if self.expert is not None:
            row = b.add(row, b.mul(self.expert, o.product.n))
        left = b.sub(o.group.width, self.column) if o.group.width % o.config.columns else None
        return o.load(self.tensor, row, o.config.columns, left, first, count, ragged)

    def _of_rows(
        self, base: ir.Value, group: ir.Value | None, numbers: int | None = None
    ) -> ir.Value:
        """The element of each row, or the one of all of them, that belongs to a group.

        Where `numbers` is given the memory holds so many for each scale block of a row.
        """
        o, b, scheme = self.o, self.o.b, self.scheme
        row_stride, group_stride = self.tensor.scale_strides()
        if numbers is not None:
            groups = ceil_div(o.product.k, scheme.block[1])
            row_stride, group_stride = groups * numbers, numbers
        if self.expert is not None:
            base = b.offset(base, b.mul(self.expert, self._per_expert(numbers)))
        if group is not None:
            base = b.offset(base, b.mul(group, group_stride))
        per_scale, total = scheme.block[0], o.product.n
        if per_scale >= total:
            return b.load(base)
        if per_scale % o.config.columns == 0:
            number = b.div(self.first_row, per_scale)
            if o.group.width % (o.config.columns * o.config.adjacent):
                # A tile beside the last one lies beyond w; what it makes is not stored.
                number = b.minimum(number, ceil_div(total, per_scale) - 1)
            return b.load(b.offset(base, b.mul(number, row_stride)))
        rows = b.range(o.config.columns)
        mask = b.less(rows, b.sub(o.group.width, self.column))
        first = b.div(b.add(rows, self.first_row), per_scale)
        loaded = b.load(b.offset(base, b.mul(first, row_stride)), mask)
        return b.expand(loaded, 1 if o.config.swap else 0)

    def _per_expert(self, numbers: int | None) -> int:
        """Elements of one expert among what `_of_rows` reads."""
        of_scales = math.prod(self.tensor.shaped.scale_shape[-2:])
        return of_scales if numbers is None else of_scales // self.scheme.numbers * numbers


class _Int4Rows(WRows):
    """Two codes a byte, neighbouring columns; with zero points or without."""

    def load(self, k: ir.Value) -> list[ir.Value]:
        half = self.o.config.depth // 2
        return [self._stored(self.o.b.mul(k, half), half)]

    def factor(self, stored: list[ir.Value], run: int, zero: ir.Value | None = None) -> ir.Value:
        o, b = self.o, self.o.b
        if zero is None or o.product.x.shaped.quantized:  # codes less 8; `_step` does the rest
            return int4(b, stored[run], o.factor)
        across = block_of(zero).shape and not o.config.swap
        return int4(b, stored[run], o.factor, b.transpose(zero) if across else zero)

    def scales(self, k: ir.Value | None) -> list[ir.Value]:
        found = super().scales(k)
        if self.o.product.zero_points:
            group = None if k is None else self.o.scale_group(self.tensor, k)
            found.append(self._of_rows(self.o.pointers.zero(self.tensor), group))
        return found

    def scales_of(self, scales: list[ir.Value], run: int) -> WScales:
        b = self.o.b
        multiplier, *zeros = scales
        if not zeros:
            return WScales(multiplier)
        (zero,) = zeros
        if self.o.product.x.shaped.quantized:
            zero = b.sub(b.cast("extsi", zero, "i32"), HALF)
        return WScales(multiplier, zero)


class _Fp4Rows(WRows):
    """Two codes a byte, neighbouring columns."""

    def load(self, k: ir.Value) -> list[ir.Value]:
        half = self.o.config.depth // 2
        return [self._stored(self.o.b.mul(k, half), half)]

    def factor(self, stored: list[ir.Value], run: int, zero: ir.Value | None = None) -> ir.Value:
        return fp4(self.o.b, stored[run], self.o.factor)


class _KRows(WRows):
    """Blocks of 256 columns with headers, a quarter in a step: all vary from step to step."""

    @property
    def varies(self) -> bool:
        return True


class _Q4KRows(_KRows):
    def load(self, k: ir.Value) -> list[ir.Value]:
        return [self._stored(self.o.b.mul(k, 32), 32, ragged=False)]

    def factor(self, stored: list[ir.Value], run: int, zero: ir.Value | None = None) -> ir.Value:
        return half_bytes(self.o.b, stored[0], bool(run), self.o.factor)

    def scales(self, k: ir.Value | None) -> list[ir.Value]:
        b = self.o.b
        assert k is not None
        base = b.bitcast(self.o.pointers.scale(self.tensor), "!tt.ptr<i32>")
        words = [
            self._of_rows(b.offset(base, word), b.div(k, QUARTERS), Q4_K_WORDS)
            for word in range(Q4_K_WORDS)
        ]
        header = Q4KHeader.read(b, words, k)
        return [header.d, header.dmin, header.scales, header.minima]

    def scales_of(self, scales: list[ir.Value], run: int) -> WScales:
        multiplier, offset = Q4KHeader(*scales).of_group(self.o.b, bool(run))
        return WScales(multiplier, offset=offset)


class _Q6KRows(_KRows):
    def load(self, k: ir.Value) -> list[ir.Value]:
        places = q6_k_places(self.o.b, k)
        return [self._stored(place, 16, ragged=False) for place in places]

    def factor(self, stored: list[ir.Value], run: int, zero: ir.Value | None = None) -> ir.Value:
        return six_bits(self.o.b, stored[run % 2], run >= 2, stored[2], 2 * run, self.o.factor)

    def scales(self, k: ir.Value | None) -> list[ir.Value]:
        b = self.o.b
        assert k is not None
        block = b.div(k, QUARTERS)
        headers = self.o.pointers.scale(self.tensor)
        return q6_k_multipliers(b, headers, k, lambda at, n: self._of_rows(at, block, n))

    def scales_of(self, scales: list[ir.Value], run: int) -> WScales:
        return WScales(scales[run])


_ROWS: dict[str, type[WRows]] = {
    "none": WRows,
    "int4": _Int4Rows,
    "fp4": _Fp4Rows,
    "q4_k": _Q4KRows,
    "q6_k": _Q6KRows,
}


def weight_rows(
    operands: "Operands", first_row: ir.Value, column: ir.Value, expert: ir.Value | None
) -> WRows:
    """The rows of a tile of one part of w."""
    return _ROWS[operands.product.packing](operands, first_row, column, expert)
