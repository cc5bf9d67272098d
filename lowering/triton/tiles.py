"""How a product is cut into tiles, for every range of M."""

from dataclasses import dataclass, replace

from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.product import MAX_DEPTH, Group, Product, bit_width
from qfuse.lowering.triton.signature import Tensor

TMA_BYTES = 16
SWAP_TILES = ((16, 4, 6), (32, 4, 5), (64, 8, 4))
"""Rows, warps and stages of tiles where weights ride the long side of the tensor cores.

wgmma takes 8 rows, too, but Triton 3.6 does not.  The stages leave room for two programs on a
processor of sm_90, with 90 KB or more in flight in each.
"""

SPLIT_K = 1024
"""Elements of K that one slice of a split product sums.

It depends on nothing but K, so a product sums in the same order whatever it is fused with.
"""


@dataclass(frozen=True)
class Config:
    """How a product is cut into tiles.

    A tile has `rows` rows and, of each part, `adjacent` times `columns` columns, one product of
    matrices each.  `swap` makes weights the first factor, `slices` splits K, `persistent` is the
    loop over tiles with TMA and warp specialization of sm_90.
    """

    rows: int
    columns: int
    depth: int
    adjacent: int = 1
    swap: bool = False
    slices: int = 1
    persistent: bool = False
    num_warps: int = 4
    num_stages: int = 3
    band: int = 8
    """Tiles of rows that are worked on before the next columns: they share weights in L2."""

    @property
    def name(self) -> str:
        kind = "ws" if self.persistent else "split" if self.slices > 1 else "tile"
        return f"{kind}{self.rows}x{self.columns * self.adjacent}"


def choose_configs(
    product: Product, group: Group, gpu: Gpu
) -> list[tuple[int, int | None, Config]]:
    """(first M, last M, tiles) that together serve every M (TRITON.md, section 4)."""
    depth, parts = product.depth(gpu), len(group.parts)
    least = max([16, *product.quantized_groups()])
    columns = max(least, 128 // parts if parts > 1 else 128)
    slices = ceil_div(product.k, SPLIT_K)
    found: list[tuple[int, int | None, Config]] = []
    first = 1
    for rows, warps, stages in SWAP_TILES:
        config = Config(rows, columns, depth, swap=True, slices=slices, num_warps=warps)
        found.append((first, rows, _with_stages(config, product, group, gpu, stages)))
        first = rows + 1
    if persistent_error(product, group, gpu) is None:
        adjacent = 2 if parts == 1 and group.width > 128 and _roomy(product, group) else 1
        config = Config(128, 128, depth, adjacent, persistent=True)
        return [*found, (first, None, _with_stages(config, product, group, gpu, 4))]
    # A thread holds the product of a step and the total: 64 elements each, or it spills.
    config = Config(64, columns, depth, num_warps=4 if columns * parts <= 128 else 8)
    if gpu.is_cuda and columns * parts <= 128:
        config = replace(config, rows=128, num_warps=8)
    return [*found, (first, None, _with_stages(config, product, group, gpu, 4))]


def persistent_error(product: Product, group: Group, gpu: Gpu) -> str | None:
    """Why the warp-specialized kernel of sm_90 does not serve this product, or None."""
    x, w = product.x.shaped, product.w.shaped
    if not gpu.warp_specializes:
        return f"{gpu} has no warp specialization in Triton"
    if not product.both_quantized or product.factor_type(gpu) == "f16":
        return "it multiplies FP8 or i8"
    assert x.scheme is not None and w.scheme is not None
    if product.depth(gpu) != MAX_DEPTH:
        return f"it takes {MAX_DEPTH} elements of K at a time"
    if product.k % TMA_BYTES:
        return f"K = {product.k} is no multiple of {TMA_BYTES}, which TMA needs"
    if w.scheme.block[0] % 128:
        return "it takes one scale per 128 rows of w"
    if len(group.parts) > 2:
        return "it has registers for two accumulators"
    if x.dtype == "i8":
        return "it multiplies FP8"
    if len(group.parts) > 1 and not _roomy(product, group):
        return f"rows of {group.width} codes are no multiple of {TMA_BYTES} bytes"
    return None


def _roomy(product: Product, group: Group) -> bool:
    """Whether there are registers for a second accumulator.

    Storing codes through pointers takes too many (seen in SASS: LDL in the loop of a consumer).
    """
    return all(tma_stores(r) for r in _results(product, group) if r.shaped.quantized)


def tma_stores(result: Tensor) -> bool:
    """Whether TMA can write rows of `result`."""
    return result.width * bit_width(result.dtype) // 8 % TMA_BYTES == 0


def _results(product: Product, group: Group) -> list[Tensor]:
    return [product.signature.results[i] for i in group.results]


def _with_stages(config: Config, product: Product, group: Group, gpu: Gpu, most: int) -> Config:
    """As many stages as fit into shared memory, at least two."""
    if not gpu.is_cuda:
        most = 2  # AMD's pipeliner keeps the next tile in registers
    per_k = config.rows * bit_width(product.x.dtype)
    per_k += config.columns * config.adjacent * len(group.parts) * bit_width(product.w.dtype)
    reserved = 4096
    if config.persistent:
        # Results are staged for their TMA stores: one buffer for tiles of one type, but Triton 3.6
        # keeps one for each tile where the types differ.
        bits = [bit_width(r.dtype) for r in _results(product, group)]
        staged = bits[0] if len(set(bits)) == 1 else sum(bits) * config.adjacent
        reserved = 2048 + config.rows * config.columns * staged // 8
    fitting = (gpu.shared_bytes - reserved) // (per_k * config.depth // 8)
    return replace(config, num_stages=max(2, min(most, fitting)))
