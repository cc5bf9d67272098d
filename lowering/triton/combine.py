"""Adding up the rows of a token's experts, for `qfuse.combine` and for the product that does it."""

from dataclasses import dataclass

from qfuse.dialects.bindings import ir
from qfuse.lowering.triton.signature import Tensor
from qfuse.lowering.triton.tile import Tile


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

    @property
    def tensors(self) -> list[Tensor]:
        return [t for t in (self.slots, self.weights, self.residual, self.result) if t is not None]

    def of_tile(self, tile: Tile, rows: ir.Value) -> None:
        """Store a tile of the result, of the rows [M * choices, N] that begin at `rows`.

        No slot leads to a row beyond.
        """
        b, dtype, weighted = tile.b, self.result.dtype, self.weights.width
        total = b.full(0.0, "f32", tile.shape)
        for j in range(weighted):
            there, y = self._row(tile, rows, j)
            term = b.mul(y, b.convert(self._of_choice(tile, self.weights, j), "f32"))
            total = b.select(there, b.add(total, term), total)
        if weighted < self.choices:  # the last choice is a shared expert
            there, y = self._row(tile, rows, weighted)
            rounded = b.convert(b.convert(total, dtype), "f32")
            total = b.select(there, b.add(rounded, y), total)
        if self.residual is not None:
            rounded = b.convert(b.convert(total, dtype), "f32")
            total = b.add(rounded, tile.load(self.residual, "[M,N]"))
        tile.store(total, self.result)

    def _row(self, tile: Tile, rows: ir.Value, choice: int) -> tuple[ir.Value, ir.Value]:
        """Whether there is a row of a choice, and what it has in this tile, as f32."""
        b = tile.b
        slot = self._of_choice(tile, self.slots, choice)
        count = b.mul(tile.pointers.m, self.choices)
        there = b.both(b.below(slot, count), tile.row_mask())
        assert there is not None
        begin = b.offset(rows, b.mul(b.i64(slot), self.result.width))
        at = b.offset(begin, b.add(tile.column_range(), tile.column))
        columns = tile.column_mask()
        mask = b.both(
            b.broadcast(there, tile.shape),
            None if columns is None else b.broadcast(columns, tile.shape),
        )
        return there, b.convert(b.load(at, mask), "f32")

    def _of_choice(self, tile: Tile, tensor: Tensor, choice: int) -> ir.Value:
        """What a tensor [T, k] has for one choice of each token of the tile."""
        b = tile.b
        base = b.offset(tile.pointers.data(tensor), b.mul(tile.row, tensor.width))
        at = b.offset(base, b.add(b.mul(tile.row_range(), tensor.width), choice))
        return b.load(at, tile.row_mask())
