"""How a product is cut into tiles, and which products the kernels with TMA serve."""

from dataclasses import dataclass

from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.product import MAX_DEPTH, Group, Product, bit_width
from qfuse.lowering.triton.signature import Tensor

TMA_BYTES = 16
_PERSISTENT_FACTORS = ("f8E4M3FN", "f8E5M2", "bf16", "f16", "i8")


@dataclass(frozen=True)
class Config:
    """How a product is cut into tiles.

    A tile has `rows` rows and, of each part, `adjacent` times `columns` columns, one product of
    matrices each.  `swap` makes weights the first factor, `gemv` is the kernel for one row without
    matrix instructions, `slices` splits K, `persistent` is the loop over tiles with TMA and warp
    specialization of sm_90.
    """

    rows: int
    columns: int
    depth: int
    adjacent: int = 1
    swap: bool = False
    gemv: bool = False
    slices: int = 1
    persistent: bool = False
    num_warps: int = 4
    num_stages: int = 3
    band: int = 8
    """Tiles of rows that are worked on before the next columns: they share weights in L2."""
    edition: int = 0
    """Tells apart the names of what one kernel has alike but for fields that no name shows."""

    @property
    def name(self) -> str:
        kind = "ws" if self.persistent else "swap" if self.swap else "tile"
        kind = "gemv" if self.gemv else kind
        kind = "split" if self.slices > 1 else kind
        edition = f"v{self.edition + 1}" if self.edition else ""
        return f"{kind}{self.rows}x{self.columns * self.adjacent}{edition}"


def persistent_error(product: Product, group: Group, gpu: Gpu) -> str | None:
    """Why the warp-specialized kernel of sm_90 does not serve this product, or None."""
    x, w = product.x.shaped, product.w.shaped
    if not gpu.warp_specializes:
        return f"{gpu} has no warp specialization in Triton"
    if x.dtype != w.dtype or product.factor_type(gpu) not in _PERSISTENT_FACTORS:
        return f"it multiplies two of {', '.join(_PERSISTENT_FACTORS)}, not {x.dtype} by {w.dtype}"
    depth, bits = product.depth(gpu), bit_width(x.dtype)
    if depth * bits // 8 != MAX_DEPTH:
        return f"it takes {MAX_DEPTH} bytes of a row of x at a time"
    if product.k * bits // 8 % TMA_BYTES:
        return f"rows of K = {product.k} are no multiple of {TMA_BYTES} bytes, which TMA needs"
    if product.k <= depth:
        # Without a loop over K, Triton's pass fails on offsets that loads of both kinds share.
        return f"K = {product.k} is one step, which leaves nothing to overlap"
    if w.scheme is not None and w.scheme.block[0] % 128 and not product.scaled_once:
        return "it takes one scale per 128 rows of w, or one of each row for all of K"
    if len(group.parts) > 2:
        return "it has registers for two accumulators"
    if len(group.parts) > 1 and not roomy(product, group):
        return f"rows of {group.width} codes are no multiple of {TMA_BYTES} bytes"
    return None


def roomy(product: Product, group: Group) -> bool:
    """Whether there are registers for a second accumulator.

    Storing codes through pointers takes too many (seen in SASS: LDL in the loop of a consumer).
    """
    return all(tma_stores(r) for r in _results(product, group) if r.shaped.quantized)


def tma_stores(result: Tensor) -> bool:
    """Whether TMA can write rows of `result`."""
    return result.width * bit_width(result.dtype) // 8 % TMA_BYTES == 0


def _results(product: Product, group: Group) -> list[Tensor]:
    return [product.signature.results[i] for i in group.results]
