"""Products by the weights of experts: the kernels of gemm.py, whose tiles find their rows.

Each expert that has rows has tiles of its own, so its weight is read once for up to as many rows as
a tile has.  The grid has as many blocks of rows as any routing can take; a program finds the expert
of its block in `indptr`, and does nothing where there are fewer:

    rows    r r r r r | r r | r r r r r r r r r | r       of experts 0, 2, 3 and 5
    blocks  0 0 0 0 1 | 2 2 | 3 3 3 3 4 4 4 4 5 | 6       of four rows; there is no block 7

Whatever `indptr` and `tokens` hold, no address is outside of the tensors.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import inputs_of
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.triton import product as product_module
from qfuse.lowering.triton.builder import Builder
from qfuse.lowering.triton.gemm import ProductKernel, variant_of
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.group_tiles import choose_group_configs
from qfuse.lowering.triton.kernel import Grid, Variant
from qfuse.lowering.triton.operands import Operands, Rows
from qfuse.lowering.triton.product import read_product
from qfuse.lowering.triton.rows import power_of_two
from qfuse.lowering.triton.signature import Pointers, Signature, Tensor

OPS = ("qfuse.group_matmul",)


def refuse(op: ir.Operation, gpu: Gpu) -> str | None:
    """Why `op` cannot become a GPU kernel, or None."""
    x, w = (shaped(v.type) for v in list(op.operands)[:2])
    given = inputs_of(op, op.operands)
    for name in ("tokens", "slots"):
        if (value := given.get(name)) is None:
            continue
        places = shaped(value.type)
        if places.shape[1] in (DYNAMIC, 0):
            return f"{name} are {places}; the number of choices must be static, and one at least"
    if x.scheme is not None and x.scheme.block[0] != 1:
        return f"x is scaled per {x.scheme.block[0]} rows, which experts do not share; use 1"
    if w.scheme is not None and w.scheme.scale_layout != "row_major":
        return f"w has {w.scheme.scale_layout} scales; GPU kernels read those of experts row by row"
    return product_module.refuse(op, x, w, [shaped(r.type) for r in op.results], gpu)


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """The launches of a product for every range of M, the rows of all experts."""
    product = read_product(signature)
    variants = []
    for first, last, configs in choose_group_configs(product, product.w.shaped.shape[0], gpu):
        kernels = []
        for number, (group, config) in enumerate(zip(product.groups, configs, strict=True)):
            place = f"_{number}" if len(product.groups) > 1 else ""
            name = f"{signature.name}_{config.name}_from{first}{place}"
            kernels.append(GroupKernel(product, group, gpu, config, name))
        variants.append(variant_of(first, last, kernels))
    return variants


@dataclass(frozen=True)
class GroupKernel(ProductKernel):
    """The launch of one group of a product by the weights of experts."""

    @property
    def experts(self) -> int:
        return self.product.w.shaped.shape[0]

    @property
    def grid(self) -> Grid:
        return Grid(self.config.rows, self.column_tiles, y=self.slices, groups=self.experts)

    @property
    def inputs(self) -> list[Tensor]:
        routing = self.product.indptr, self.product.tokens
        return [*super().inputs, *(tensor for tensor in routing if tensor is not None)]

    def _emit(self, b: Builder, pointers: Pointers) -> None:
        operands = Operands(b, pointers, self.product, self.group, self.config, self.gpu)
        number = b.program_id(0)
        column = b.mul(b.rem(number, self.column_tiles), self.config.columns)

        def body(rows: Rows) -> None:
            self._tile(b, pointers, operands, {}, rows, column)

        self._with_rows(b, pointers, b.div(number, self.column_tiles), body)

    def _with_rows(
        self, b: Builder, pointers: Pointers, block: ir.Value, body: Callable[[Rows], None]
    ) -> None:
        """Do `body` with the rows of a block, if there are any."""
        size, threads = self.config.rows, self.config.num_warps * self.gpu.warp_size
        # One for each thread at least: with fewer, several threads would hold the same ones.
        numbers = b.range(max(threads, power_of_two(self.experts)))
        begin, end = self._bounds(b, pointers, numbers, b.less(numbers, self.experts))
        blocks = b.ceil_div(b.sub(end, begin), size)
        ends = b.scan(blocks, 0, "arith.addi")
        passed = b.less(ends, b.add(block, 1))
        expert = b.reduce(b.cast("extui", passed, "i32"), 0, "arith.addi")
        first_block = b.reduce(b.select(passed, ends, 0), 0, "arith.maxsi")

        def found() -> None:
            begin, end = self._bounds(b, pointers, expert)
            first = b.add(begin, b.mul(b.sub(block, first_block), size))
            body(Rows(first, end, expert))

        b.when(b.less(expert, self.experts), found)

    def _bounds(
        self, b: Builder, pointers: Pointers, expert: ir.Value, mask: ir.Value | None = None
    ) -> tuple[ir.Value, ir.Value]:
        """First row of an expert, or of many, and the one after its last: all within the M."""
        assert self.product.indptr is not None
        at = b.offset(pointers.data(self.product.indptr), expert)
        begin, end = (b.load(b.offset(at, i), mask) for i in range(2))
        begin = b.maximum(b.minimum(begin, pointers.m), 0)
        return begin, b.maximum(b.minimum(end, pointers.m), begin)
