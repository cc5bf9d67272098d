"""What tiles are chosen for: one group of a product as plain data, so that no choice needs MLIR."""

from dataclasses import dataclass

from qfuse.dialects.types import Shaped
from qfuse.lowering.triton.gemv import gemv_error
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.product import K_QUANTS, Group, Product, bit_width
from qfuse.lowering.triton.tiles import persistent_error, roomy

_SCALES = {"int4": (32, 2), "fp4": (32, 1), "q4_k": (256, 16), "q6_k": (256, 18)}
"""Columns and bytes of scales; of "int4", at most about so many."""


@dataclass(frozen=True)
class Problem:
    """[M, K] times [N, K] transposed, for each of `parts` matrices, with any number of rows M.

    `x` and `w` are stored element types, `factor` is what the matrix instructions multiply.
    """

    n: int
    k: int
    parts: int
    x: str
    w: str
    factor: str
    depth: int
    """Elements of K in one step."""
    scaled: bool
    """Whether the product of a step is made apart from its sum: it needs registers of its own."""
    results: tuple[str, ...]
    """Element types of the results."""
    scheme: str
    """What shares a scale, of x, w and results: "1x128,128x128,-"; "-" where there is none."""
    least_columns: int = 16
    """Columns that a tile must have whole, for the groups of quantized results."""
    read: int = 0
    """Further matrices [M, N] of 2 bytes that the epilogue reads."""
    persistent: bool = False
    """Whether the warp-specialized kernel serves it."""
    adjacent: bool = False
    """Whether that one has registers for a second accumulator."""
    gemv: bool = False
    """Whether there is a kernel without matrix instructions for M = 1."""
    packing: str = "none"
    """How codes of w lie in bytes."""
    runs: int = 1
    """Products that a step is made of, each with scales of its own."""

    @property
    def packed(self) -> bool:
        return self.packing != "none"

    @property
    def decoded(self) -> bool:
        """Whether codes are converted before they are multiplied."""
        return {self.x, self.w} != {self.factor}

    @property
    def weight_bytes(self) -> int:
        """With the scales of those blocks whose codes are so small that they count."""
        columns, scales = _SCALES.get(self.packing, (self.k, 0))
        return self.parts * self.n * (self.k * bit_width(self.w) // 8 + self.k // columns * scales)

    def activation_bytes(self, m: int) -> int:
        return m * self.k * bit_width(self.x) // 8

    def result_bytes(self, m: int) -> int:
        """Written, and read by the epilogue."""
        return m * self.n * (sum(bit_width(r) for r in self.results) // 8 + 2 * self.read)

    def bytes(self, m: int) -> int:
        """What has to go through memory at least, without scales."""
        return self.weight_bytes + self.activation_bytes(m) + self.result_bytes(m)

    def products(self, m: int) -> int:
        """Multiplications, each with an addition."""
        return m * self.parts * self.n * self.k

    def __str__(self) -> str:
        """For messages: N x K first, as tables and benchmarks have it."""
        kinds = f"{self.x} x {self.w} ({self.scheme}) -> {', '.join(self.results)}"
        parts = f"{self.parts} * " if self.parts > 1 else ""
        return f"N x K = {parts}{self.n} x {self.k}, {kinds}"


def read_problem(product: Product, group: Group, gpu: Gpu) -> Problem:
    """The problem that one group of `product` is on `gpu`."""
    results = [product.signature.results[i] for i in group.results]
    matrices = [
        extra
        for extra, kind in zip(product.extras, product.maps, strict=True)
        if kind == "[M,N]" and extra.width == group.width
    ]
    return Problem(
        n=group.width,
        k=product.k,
        parts=len(group.parts),
        x=product.x.dtype,
        w=product.w.dtype,
        factor=product.factor_type(gpu),
        depth=product.depth(gpu),
        scaled=product.sums_apart(gpu),
        results=tuple(r.dtype for r in results),
        scheme=",".join(_block(t.shaped) for t in (product.x, product.w, *results)),
        least_columns=max([16, *product.quantized_groups()]),
        read=len(matrices),
        persistent=persistent_error(product, group, gpu) is None,
        adjacent=roomy(product, group),
        gemv=gemv_error(product, group, gpu) is None,
        packing=product.packing,
        runs=len(product.runs(gpu).offsets),
    )


def _block(value: Shaped) -> str:
    """ "1x128" for groups along a row, with "K" for whole rows; "-" for a plain tensor.

    A "+" where there are zero points; K-quants by their name.
    """
    if value.scheme is None:
        return "-"
    if value.scheme.packing in K_QUANTS:
        return value.scheme.packing
    rows, columns = value.scheme.block
    zero = "+" if value.scheme.zero_point != "none" else ""
    return f"{rows}x{'K' if columns >= value.shape[-1] else columns}{zero}"
