"""What a product asks for, and how its work is cut for a GPU."""

from dataclasses import dataclass
from math import gcd

from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import accumulators_of, inputs_of
from qfuse.dialects.quantization_ops import concat_rows
from qfuse.dialects.types import Shaped
from qfuse.lowering.triton.epilogue import region_error
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.signature import Signature, Tensor

LEAST_DEPTH = 32
"""Elements of K that one FP8 or i8 matrix instruction takes at least."""

MAX_DEPTH = 128
SCALE_TYPES = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Group:
    """The parts of one width and the results made of them; one launch works on them together."""

    width: int
    parts: tuple[int, ...]
    results: tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """A matmul as plain data; or, where there is an `indptr`, one by the weights of experts."""

    signature: Signature
    x: Tensor
    w: Tensor
    extras: tuple[Tensor, ...]
    maps: tuple[str, ...]
    widths: tuple[int, ...]
    starts: tuple[int, ...]
    """Row of w where each part begins."""
    groups: tuple[Group, ...]
    indptr: Tensor | None = None
    tokens: Tensor | None = None
    """Which rows of x are those of the product; without it, x has them in their order."""

    @property
    def k(self) -> int:
        return self.w.width

    @property
    def n(self) -> int:
        """Rows of the weight, or of each expert's."""
        return self.w.shaped.shape[-2]

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
        if self.w.dtype in gpu.unconverted and any(len(g.parts) > 1 for g in self.groups):
            depth //= 2  # codes decoded on their bits take the registers of the second total
        for tensor in (self.x, self.w):
            if tensor.shaped.scheme is not None and tensor.shaped.scheme.block[1] < self.k:
                depth = gcd(depth, tensor.shaped.scheme.block[1])
        return depth

    def quantized_groups(self) -> list[int]:
        """Group extents of the quantized results."""
        return [r.group for r in self.signature.results if r.shaped.quantized]


def read_product(signature: Signature) -> Product:
    """The operands, parts and groups of the product of `signature`."""
    op = signature.op
    inputs = inputs_of(op, signature.operands)
    x, w = inputs["x"], inputs["w"]
    assert x is not None and w is not None
    extras = signature.operands[sum(value is not None for value in inputs.values()) :]
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
    return Product(
        signature,
        x,
        w,
        tuple(extras),
        maps,
        widths,
        tuple(starts),
        tuple(groups),
        inputs.get("indptr"),
        inputs.get("tokens"),
    )


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


def bit_width(dtype: str) -> int:
    """Bits of a stored element: the number in its name, for all but FP8 and bf16."""
    return 8 if dtype.startswith("f8") else int(dtype.lstrip("bfi"))
