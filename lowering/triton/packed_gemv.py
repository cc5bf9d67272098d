"""Products of one row with codes of fewer than eight bits: `gemv.py`, with two or four to a byte.

"int4", "fp4"   a byte has two neighbouring columns; x is read as pairs
"q4_k"          a byte of 32 has columns j and 32 + j of 64
"q6_k"          bytes j, j + 32 of the lower bits, and j of the upper ones, have columns j,
                32 + j, 64 + j and 96 + j of 128; a unit is half of them, 16 of each
"""

from typing import TYPE_CHECKING

from qfuse.dialects.bindings import ir
from qfuse.lowering.triton.builder import Builder
from qfuse.lowering.triton.gemv import Gemv
from qfuse.lowering.triton.k_quants import (
    Q4_K_WORDS,
    Q4KHeader,
    q6_k_column,
    q6_k_multipliers,
    q6_k_places,
)
from qfuse.lowering.triton.packed import HALF, fp4_half, half_bytes, six_bits
from qfuse.lowering.triton.product import Group, Product
from qfuse.lowering.triton.signature import Pointers
from qfuse.lowering.triton.weight_rows import WScales

if TYPE_CHECKING:
    from qfuse.lowering.triton.tiles import Config

_PAIRS = {8: "i16", 16: "i32", 32: "i64"}
"""Integers that hold two elements of so many bits."""


def _half_bytes(b: Builder, pairs: ir.Value, high: bool, less: ir.Value | int = 0) -> ir.Value:
    """Codes as f32; in f16 first, of which two are unpacked at a time."""
    return b.convert(half_bytes(b, pairs, high, "f16", less), "f32")


class _PairGemv(Gemv):
    """Two codes a byte, of neighbouring columns."""

    pieces = 2

    def _units(self) -> tuple[int, int]:
        share, columns = super()._units()
        return share // 2, columns

    def _read_x(self, k: ir.Value) -> list[ir.Value]:
        b, x = self.b, self.pointers.data(self.product.x)
        dtype = self.product.x.dtype
        width = b.type(dtype).width
        pairs = b.bitcast(x, f"!tt.ptr<{_PAIRS[width]}>")
        both = self._read(pairs, self._elements(k), self._inside(k))
        halves = (both, b.binary("arith.shrui", both, width))
        return [b.bitcast(b.cast("trunci", half, f"i{width}"), dtype) for half in halves]

    def _added(
        self,
        total: ir.Value,
        ws: list[ir.Value],
        xs: list[ir.Value],
        x_scales: list[ir.Value | None],
        of_w: list[WScales],
    ) -> ir.Value:
        """Both columns have the same scales."""
        b = self.b
        made = b.fma(ws[1], xs[1], b.mul(ws[0], xs[0]))
        scale = self._both(x_scales[0], of_w[0].multiplier)
        return b.add(total, made) if scale is None else b.fma(made, scale, total)


class _Int4Gemv(_PairGemv):
    def _factor(self, stored: list[ir.Value], piece: int, zero: ir.Value | None) -> ir.Value:
        less = HALF if zero is None else zero
        return _half_bytes(self.b, stored[0], bool(piece), less)

    def _w_scales(self, k: ir.Value, first: ir.Value, column: ir.Value) -> list[WScales]:
        found = super()._w_scales(k, first, column)
        if not self.product.zero_points:
            return found
        w = self.product.w
        columns = self._first_columns(k, 0)
        zero = self._of_groups(self.pointers.zero(w), w, columns, first, column)
        return [WScales(found[0].multiplier, zero)] * self.pieces


class _Fp4Gemv(_PairGemv):
    def _factor(self, stored: list[ir.Value], piece: int, zero: ir.Value | None) -> ir.Value:
        return self.b.convert(fp4_half(self.b, stored[0], bool(piece), "f16"), "f32")


class _KGemv(Gemv):
    """Blocks of 256 columns with a header; pieces of a unit are 32 columns apart."""

    def _read_x(self, k: ir.Value) -> list[ir.Value]:
        b, data = self.b, self.pointers.data(self.product.x)
        within = self._spread(self.unit, 2)
        return [
            self._read(data, b.add(self._first_columns(k, piece), within), self._inside(k))
            for piece in range(self.pieces)
        ]

    def _scale(self, tensor, element=None, first=None, column=None):  # type: ignore[no-untyped-def]
        if first is not None:  # those of w are never one for all of K
            return None
        return super()._scale(tensor, element, first, column)


class _Q4KGemv(_KGemv):
    pieces = 2

    def _units(self) -> tuple[int, int]:
        return 32, 64

    def _first_columns(self, k: ir.Value, piece: int) -> ir.Value:
        first = super()._first_columns(k, piece)
        return self.b.add(first, 32) if piece else first

    def _factor(self, stored: list[ir.Value], piece: int, zero: ir.Value | None) -> ir.Value:
        return _half_bytes(self.b, stored[0], bool(piece))

    def _w_scales(self, k: ir.Value, first: ir.Value, column: ir.Value) -> list[WScales]:
        b, w = self.b, self.product.w
        columns = self._first_columns(k, 0)
        base = b.bitcast(self.pointers.scale(w), "!tt.ptr<i32>")
        words = [
            self._of_groups(b.offset(base, word), w, columns, first, column, Q4_K_WORDS)
            for word in range(Q4_K_WORDS)
        ]
        header = Q4KHeader.read(b, words, self._unit_numbers(k))
        groups = (header.of_group(b, bool(piece)) for piece in range(self.pieces))
        return [WScales(multiplier, offset=offset) for multiplier, offset in groups]


class _Q6KGemv(_KGemv):
    pieces, loads = 4, 3

    def _units(self) -> tuple[int, int]:
        return 16, 64

    def _first_columns(self, k: ir.Value, piece: int) -> ir.Value:
        first = q6_k_column(self.b, self._unit_numbers(k))
        return self.b.add(first, 32 * piece) if piece else first

    def _places(self, k: ir.Value) -> list[ir.Value]:
        firsts = q6_k_places(self.b, self._unit_numbers(k))
        return [self.b.add(first, self._spread(self.unit, 2)) for first in firsts]

    def _factor(self, stored: list[ir.Value], piece: int, zero: ir.Value | None) -> ir.Value:
        code = six_bits(self.b, stored[piece % 2], piece >= 2, stored[2], 2 * piece, "f16")
        return self.b.convert(code, "f32")

    def _w_scales(self, k: ir.Value, first: ir.Value, column: ir.Value) -> list[WScales]:
        w, columns = self.product.w, self._first_columns(k, 0)

        def read(base: ir.Value, numbers: int) -> ir.Value:
            return self._of_groups(base, w, columns, first, column, numbers)

        found = q6_k_multipliers(self.b, self.pointers.scale(w), self._unit_numbers(k), read)
        return [WScales(multiplier) for multiplier in found]


_KERNELS: dict[str, type[Gemv]] = {
    "none": Gemv,
    "int4": _Int4Gemv,
    "fp4": _Fp4Gemv,
    "q4_k": _Q4KGemv,
    "q6_k": _Q6KGemv,
}


def gemv_of(
    b: Builder, pointers: Pointers, product: Product, group: Group, config: "Config"
) -> Gemv:
    """The kernel of one row for what w stores."""
    return _KERNELS[product.packing](b, pointers, product, group, config)
