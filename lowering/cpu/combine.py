"""Adding up the rows of a token's experts, for `qfuse.combine` and for the product that does it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qfuse.lowering.cpu.emit import F32, LANES, Function, Index, Value, vector
from qfuse.lowering.cpu.lanes import I16, Lanes
from qfuse.lowering.cpu.layout import GROUP, round_up
from qfuse.lowering.cpu.rowwise import MAX_IN_REGISTERS, Piece, Segment, for_segments, pieces
from qfuse.lowering.cpu.signature import Tensor

Load = Callable[[Lanes, Index, Piece], Value]
"""load(lanes, row, piece): part of a row as f32."""


@dataclass(frozen=True)
class Sum:
    """The result [T, N] of rows: which, how much each counts, and what is added to them."""

    slots: Tensor
    weights: Tensor
    residual: Tensor | None
    result: Tensor

    @property
    def choices(self) -> int:
        return self.slots.width

    def of_token(self, lanes: Lanes, tokens: Index, token: Index, load: Load) -> None:
        """The whole row of one of `tokens` tokens."""

        def segment(segment: Segment) -> None:
            self.of_pieces(lanes, tokens, token, list(pieces(lanes.f, segment)), load)

        width = self.result.width
        for_segments(lanes.f, width, min(width, MAX_IN_REGISTERS * LANES), segment)

    def of_pieces(
        self, lanes: Lanes, tokens: Index, token: Index, parts: Sequence[Piece], load: Load
    ) -> None:
        """Some vectors of the row of one of `tokens` tokens; no slot leads to a row beyond."""
        f, dtype, weighted = lanes.f, self.result.dtype, self.weights.width
        rows = f.imul(tokens, self.choices)

        def chosen(choice: Index) -> tuple[Value, Value]:
            """Whether there is a row, and which."""
            slot = f.load_index(self.slots.data, f.address((token, self.choices), choice))
            there = f.icompare("ult", slot, rows)
            return there, f.select(there, slot, f.index(0))

        with f.loop(0, weighted, carried=[f.splat(0.0)] * len(parts)) as loop:
            there, row = chosen(loop.iv)
            at = f.address((token, weighted), loop.iv)
            weight = lanes.splat(self.weights.data, at, self.weights.dtype)
            for piece, before in zip(parts, loop.carried, strict=True):
                term = f.mul(load(lanes, row, piece), weight)
                loop.yielded.append(f.select(there, f.add(before, term), before))
        totals = loop.results
        if weighted < self.choices:  # the last choice is a shared expert
            there, row = chosen(weighted)
            for i, piece in enumerate(parts):
                with_it = f.add(lanes.round(totals[i], dtype), load(lanes, row, piece))
                totals[i] = f.select(there, with_it, totals[i])
        for piece, value in zip(parts, totals, strict=True):
            at = f.address((token, self.result.width), piece.column)
            if self.residual is not None:
                old = lanes.load(self.residual.data, at, dtype, piece.mask)
                value = f.add(lanes.round(value, dtype), old)
            lanes.store(value, self.result.data, at, dtype, piece.mask)


@dataclass(frozen=True)
class KeptRows:
    """Rows that wait in the shared scratch, from its beginning on, for their sum.

    Each is as wide as whole tiles of a product, and written in whole vectors.
    """

    dtype: str
    width: int

    @property
    def elements(self) -> int:
        """32-bit elements of a row in the scratch."""
        return round_up(self.width, 2 * GROUP) // self._per_element

    @property
    def element_bytes(self) -> int:
        return 4 if self.dtype == "f32" else 2

    @property
    def _per_element(self) -> int:
        """Elements of a row in one of the scratch."""
        return 4 // self.element_bytes

    def store(self, lanes: Lanes, value: Value, shared: Value, row: Index, column: Index) -> None:
        f = lanes.f
        bits = value if self.dtype == "f32" else lanes.narrow(value, self.dtype)
        f.store(f.bitcast(bits, self._stored), shared, self._at(f, row, column))

    def load(self, lanes: Lanes, shared: Value, row: Index, column: Index) -> Value:
        """A vector as f32; where no expert made the row, anything."""
        f = lanes.f
        bits = f.load(shared, self._at(f, row, column), self._stored)
        if self.dtype == "f32":
            return f.bitcast(bits, F32)
        return lanes.extend(f.bitcast(bits, I16), self.dtype)

    @property
    def _stored(self) -> str:
        return vector("i32", LANES // self._per_element)

    def _at(self, f: Function, row: Index, column: Index) -> Index:
        return f.iadd(f.imul(row, self.elements), f.idiv(column, self._per_element))
