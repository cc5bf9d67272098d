"""What a `qfuse.matmul` asks for, and how its work is cut for a GPU."""

from dataclasses import dataclass, replace
from math import gcd

from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import accumulators_of
from qfuse.dialects.quantization_ops import concat_rows
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton.epilogue import region_error
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.signature import Signature, Tensor

LEAST_DEPTH = 32
"""Elements of K that one FP8 or i8 matrix instruction takes at least."""

MAX_DEPTH = 128
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

SCALE_TYPES = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Group:
    """The parts of one width and the results made of them; one launch works on them together."""

    width: int
    parts: tuple[int, ...]
    results: tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """A matmul as plain data."""

    signature: Signature
    x: Tensor
    w: Tensor
    extras: tuple[Tensor, ...]
    maps: tuple[str, ...]
    widths: tuple[int, ...]
    starts: tuple[int, ...]
    """Row of w where each part begins."""
    groups: tuple[Group, ...]

    @property
    def k(self) -> int:
        return self.w.width

    @property
    def region(self) -> ir.Block:
        return self.signature.op.regions[0].blocks[0]

    @property
    def scaled(self) -> bool:
        return self.x.shaped.quantized or self.w.shaped.quantized

    @property
    def both_quantized(self) -> bool:
        return self.x.shaped.quantized and self.w.shaped.quantized

    def factor_type(self, gpu: Gpu) -> str:
        """The element type that is multiplied on `gpu`."""
        if not self.x.shaped.quantized:
            return self.x.dtype
        if self.x.dtype == "i8" or self.x.dtype in gpu.fp8_products:
            return self.x.dtype
        return "f16"

    def depth(self, gpu: Gpu) -> int:
        """Elements of K in one step: all of a step have one scale, and a row is 128 bytes."""
        depth = MAX_DEPTH * 8 // bit_width(self.factor_type(gpu))
        for tensor in (self.x, self.w):
            if tensor.shaped.scheme is not None and tensor.shaped.scheme.block[1] < self.k:
                depth = gcd(depth, tensor.shaped.scheme.block[1])
        return depth

    def quantized_groups(self) -> list[int]:
        """Group extents of the quantized results."""
        return [r.group for r in self.signature.results if r.shaped.quantized]


def read_product(signature: Signature) -> Product:
    """The operands, parts and groups of the matmul of `signature`."""
    op = signature.op
    x, w, *extras = signature.operands
    widths = tuple(ir.DenseI64ArrayAttr(op.attributes["parts"]))
    starts = []
    for i in range(len(widths)):
        starts.append(concat_rows([*widths[:i], 0], w.shaped) if i else 0)
    maps = tuple(ir.StringAttr(m).value for m in ir.ArrayAttr(op.attributes["maps"]))
    terminator = list(op.regions[0].blocks[0].operations)[-1].operation
    read = [accumulators_of(v, len(widths)) for v in terminator.operands]
    groups = []
    for width in dict.fromkeys(r.width for r in signature.results):
        results = tuple(i for i, r in enumerate(signature.results) if r.width == width)
        parts = tuple(sorted({p for i in results for p in read[i]}))
        groups.append(Group(width, parts, results))
    return Product(signature, x, w, tuple(extras), maps, widths, tuple(starts), tuple(groups))


def refuse(op: ir.Operation, x: Shaped, w: Shaped, results: list[Shaped], gpu: Gpu) -> str | None:
    """Why a matmul cannot become a GPU kernel, or None."""
    for name, value in (("x", x), ("w", w)):
        if value.scheme is not None and (why := _operand_error(name, value)):
            return why
    if 0 in w.shape:
        return f"w is {w}, which holds no elements"
    if x.quantized and not w.quantized:
        return f"x is {x.dtype} but w is plain {w.dtype}; quantize both or dequantize x"
    if x.quantized and x.dtype != w.dtype:
        return f"multiplies {x.dtype} by {w.dtype}; both operands must store one type"
    if not x.quantized and not w.quantized and x.dtype != w.dtype:
        return f"multiplies {x.dtype} by {w.dtype}; cast one of them"
    for i, result in enumerate(results):
        if result.scheme is None:
            continue
        group = result.scheme.block[1]
        if group & (group - 1) or not 16 <= group <= MAX_DEPTH:
            return (
                f"result {i} is quantized in groups of {group}; a product quantizes in groups of "
                "16, 32, 64 or 128: use a separate qfuse.quantize"
            )
        if result.scheme.scale not in SCALE_TYPES:
            return f"result {i} has scales of {result.scheme.scale}; use {', '.join(SCALE_TYPES)}"
    return region_error(op.regions[0].blocks[0])


def _operand_error(name: str, value: Shaped) -> str | None:
    scheme = value.scheme
    assert scheme is not None
    if scheme.packing != "none" or scheme.zero_point != "none" or value.dtype == "i4":
        return (
            f"{name} stores {value.dtype} with packing {scheme.packing} and zero points "
            f"{scheme.zero_point}; GPU kernels read unpacked FP8 and i8 without zero points"
        )
    if scheme.scale not in SCALE_TYPES:
        return f"{name} has scales of {scheme.scale}; GPU kernels read {', '.join(SCALE_TYPES)}"
    block = scheme.block[1]
    if block < value.shape[-1] and gcd(block, MAX_DEPTH) < LEAST_DEPTH:
        return f"{name} is scaled per {block} of K; GPU kernels take multiples of {LEAST_DEPTH}"
    return None


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


def bit_width(dtype: str) -> int:
    """Bits of a stored element: the number in its name, for all but FP8 and bf16."""
    return 8 if dtype.startswith("f8") else int(dtype.lstrip("bfi"))
