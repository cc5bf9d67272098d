"""Products by the weights of experts that add up their rows: `qfuse.group_matmul_combine`.

The rows wait in scratch, rounded as the region says.  Who adds them up depends on how many there
are:

| tokens | who |
|---|---|
| 1 to 16 | of the programs of a tile of columns the last one to finish, found by a counter |
| more | a second launch of the same kernel, as `qfuse.combine` does it: the tokens of one program
         would take it longer than a launch costs |

Both add in the order of the choices, so it does not matter which program is the last one.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from qfuse.dialects.activations import rounding_of
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import inputs_of
from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton.builder import Builder
from qfuse.lowering.triton.combine import Sum
from qfuse.lowering.triton.gemm import variant_of
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.group_gemm import GroupKernel, refuse
from qfuse.lowering.triton.group_tiles import Choice, choose_group_configs
from qfuse.lowering.triton.kernel import Grid, Launch, Variant
from qfuse.lowering.triton.product import bit_width, read_product
from qfuse.lowering.triton.rows import power_of_two, rows_launch
from qfuse.lowering.triton.signature import LaunchBuilder, Pointers, Signature, Tensor
from qfuse.lowering.triton.tile import Tile

__all__ = ["OPS", "build", "refuse"]

OPS = ("qfuse.group_matmul_combine",)

_FEW = 16
"""Tokens that one program adds up; not measured: a launch takes about as long as it reads then."""


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """The launches of a product for every range of M, the tokens."""
    product, rows = read_product(signature), _read_sum(signature)
    (group,) = product.groups
    variants = []
    choices = choose_group_configs(product, product.w.shaped.shape[0], gpu)
    for first, last, (config,) in _ranges(choices, rows.choices):
        most = last if last is not None and last <= _FEW else None
        name = f"{signature.name}_{config.name}_from{first}"
        kernel = GroupCombineKernel(product, group, gpu, config, name, rows, most)
        variant = variant_of(first, last, [kernel])
        if most is None:
            variant = replace(variant, launches=(*variant.launches, kernel.sum_launch()))
        variants.append(variant)
    return variants


def _read_sum(signature: Signature) -> Sum:
    given = inputs_of(signature.op, signature.operands)
    slots, weights = given["slots"], given["weights"]
    assert slots is not None and weights is not None
    return Sum(slots, weights, given["residual"], signature.results[0])


def _ranges(of_rows: list[Choice], choices: int) -> Iterator[Choice]:
    """Ranges of tokens, cut after `_FEW`, from ranges of rows."""
    for first, last, configs in of_rows:
        low, high = ceil_div(first, choices), None if last is None else last // choices
        if low <= _FEW and (high is None or high > _FEW):
            yield low, _FEW, configs
            low = _FEW + 1
        if high is None or low <= high:
            yield low, high, configs


@dataclass(frozen=True)
class GroupCombineKernel(GroupKernel):
    """The launch of a product whose rows go to scratch; M is the number of tokens."""

    sum: Sum
    most: int | None
    """Tokens that its last program of a tile of columns adds up; None where another launch does."""

    @property
    def grid(self) -> Grid:
        return replace(super().grid, times=self.sum.choices)

    @property
    def inputs(self) -> list[Tensor]:
        added = [] if self.most is None else self.sum.tensors
        return [*super().inputs, *added]

    @property
    def results(self) -> list[Tensor]:
        return [] if self.most is None else super().results

    @property
    def scratch_type(self) -> str:
        """That of the rows, but beside the sums of slices they are f32, too."""
        if self.slices > 1:
            return "f32"
        terminator = list(self.product.region.operations)[-1].operation
        return rounding_of(terminator.operands[0])

    @property
    def counts(self) -> bool:
        return super().counts or self.most is not None

    @property
    def scratch_per_row(self) -> int:
        row = self.group.width * bit_width(self.scratch_type) // 8
        return self.sum.choices * (super().scratch_per_row + row)

    def counter_bytes(self, last_m: int | None) -> int:
        """Those of slices, then one of finished programs for each tile of columns."""
        columns = 0 if self.most is None else 4 * self.column_tiles
        return super().counter_bytes(last_m) + columns

    def sum_launch(self) -> Launch:
        """The second launch, which adds up."""

        def body(launch: LaunchBuilder, tile: Tile) -> None:
            self.sum.of_tile(tile, self._rows(launch.b, self._of_rows(launch.b, launch.pointers)))

        name = f"{self.name}_sum"
        width, scratch = self.group.width, self.scratch_type
        return rows_launch(self.gpu, name, self.sum.tensors, width, None, body, scratch)

    def _emit(self, b: Builder, pointers: Pointers) -> None:
        super()._emit(b, self._of_rows(b, pointers))
        if self.most is not None:
            self._count(b, pointers, self.most)

    def _count(self, b: Builder, pointers: Pointers, most: int) -> None:
        """One program of a tile of columns is done; the last one adds up."""
        config, programs = self.config, b.num_programs(0)
        column = b.rem(b.program_id(0), self.column_tiles)
        place = b.add(programs, column) if self.slices > 1 else column
        counter = b.offset(pointers.counters, place)
        b.barrier()
        before = b.atomic("add", counter, 1, "acquire_release")
        last = b.sub(b.mul(b.div(programs, self.column_tiles), self.slices), 1)

        def add() -> None:
            b.atomic("exchange", counter, 0, "relaxed")  # for the next launch
            start, width = b.mul(column, config.columns), self.group.width
            rows = power_of_two(most)
            tile = Tile(b, pointers, b.full(0), rows, start, config.columns, width)
            self.sum.of_tile(tile, self._rows(b, self._of_rows(b, pointers)))

        b.when(b.equal(before, last), add)

    def _store(
        self, b: Builder, tile: Tile, value: ir.Value, result: Tensor, scale: ir.Value | None
    ) -> None:
        stored = b.convert(b.broadcast(value, tile.shape), self.scratch_type)
        b.store(tile.at(self._rows(b, tile.pointers)), stored, tile.mask())

    def _of_rows(self, b: Builder, pointers: Pointers) -> Pointers:
        """With M as the product itself has it: its rows."""
        return replace(pointers, m=b.mul(pointers.m, self.sum.choices))

    def _rows(self, b: Builder, pointers: Pointers) -> ir.Value:
        """Where the rows begin: after the sums of slices."""
        if self.slices == 1:
            return pointers.scratch
        sums = self.slices * len(self.group.parts) * self.group.width
        return b.offset(pointers.scratch, b.mul(b.i64(pointers.m), sums))
