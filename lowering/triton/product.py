"""What a product asks for, and how its work is cut for a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import accumulators_of, given_scales, inputs_of
from qfuse.dialects.quantization_ops import concat_rows
from qfuse.dialects.types import STORAGE_BITS, Shaped
from qfuse.lowering.triton.epilogue import region_error
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.signature import Signature, Tensor

LEAST_DEPTH = 32
"""Elements of K that one FP8 or i8 matrix instruction takes at least."""

MAX_DEPTH = 128
SCALE_TYPES = ("f32", "f16", "bf16", "f8E8M0FNU")

K_QUANTS = ("q4_k", "q6_k")
"""Packings whose blocks of 256 columns have headers of bytes as scales."""

_FP8 = ("f8E4M3FN", "f8E5M2")
_PAIRS = {**dict.fromkeys(_FP8, _FP8), "i8": ("i8", "i4", "i6")}
"""What w may store beside an x that stores this."""


@dataclass(frozen=True)
class Runs:
    """How a step of K is multiplied: in runs of `depth` columns, each with one scale of x and of w.

    `offsets` are where the runs begin, from the first column of the step.
    """

    depth: int
    offsets: tuple[int, ...] = (0,)

    @property
    def columns(self) -> int:
        return self.depth * len(self.offsets)


_K_RUNS = {"q4_k": Runs(32, (0, 32)), "q6_k": Runs(16, (0, 32, 64, 96))}
"""A step of a K-quant: the columns whose codes share bytes."""


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

    def factor_type(self, gpu: Gpu) -> str:
        """The element type that is multiplied on `gpu`."""
        if not self.x.shaped.quantized:
            return self.x.dtype
        if self.w.dtype == "i6":  # runs of 16, for which no matrix instruction takes i8
            return "f16"
        if self.x.dtype == "i8":
            return "i8"
        is_one = self.x.dtype == self.w.dtype  # Triton multiplies FP8 of one kind; f16 holds both
        return self.x.dtype if is_one and self.x.dtype in gpu.fp8_products else "f16"

    @property
    def packing(self) -> str:
        """That of w; "none" where w is plain."""
        return self.w.shaped.scheme.packing if self.w.shaped.scheme else "none"

    @property
    def packed(self) -> bool:
        """Whether codes of w share bytes."""
        return self.packing != "none"

    @property
    def zero_points(self) -> bool:
        return self.w.shaped.scheme is not None and self.w.shaped.scheme.zero_point != "none"

    @property
    def scaled_once(self) -> bool:
        """Whether all of K has one scale of each row and column: it can wait for the whole sum."""
        if self.zero_points:
            return False  # they are in the loop in any case
        schemes = [t.shaped.scheme for t in (self.x, self.w) if t.shaped.scheme]
        return bool(schemes) and all(scheme.group >= self.k for scheme in schemes)

    def sums_apart(self, gpu: Gpu) -> bool:
        """Whether the product of a step is made apart from the sum that it is added to."""
        fp8 = self.factor_type(gpu).startswith("f8")
        return self.scaled and (fp8 or not self.scaled_once)

    def runs(self, gpu: Gpu) -> Runs:
        """How a step is multiplied."""
        return _K_RUNS.get(self.packing) or Runs(self._depth(gpu))

    def depth(self, gpu: Gpu) -> int:
        """Elements of K in one step."""
        return self.runs(gpu).columns

    def _depth(self, gpu: Gpu) -> int:
        """Of a step that is one run: all of it has one scale, and a row is 128 bytes."""
        depth = MAX_DEPTH
        if bit_width(self.w.dtype) >= 8:  # else rows of w would be 32 bytes
            depth = depth * 8 // bit_width(self.factor_type(gpu))
        if self.w.dtype in gpu.unconverted and any(len(g.parts) > 1 for g in self.groups):
            depth //= 2  # codes decoded on their bits take the registers of the second total
        for tensor in (self.x, self.w):
            if tensor.shaped.scheme is not None and tensor.shaped.scheme.block[1] < self.k:
                depth = gcd(depth, tensor.shaped.scheme.block[1])
        return depth

    @property
    def given(self) -> list[int | None]:
        """For each result, which extra operand is the scale that it is quantized by, if given."""
        return given_scales(self.signature.op)

    def quantized_groups(self, results: Sequence[int] | None = None) -> list[int]:
        """Group extents of the quantized ones, of all `results` or some, that find their scales."""
        given, made = self.given, self.signature.results
        numbers = range(len(made)) if results is None else results
        return [made[i].group for i in numbers if made[i].shaped.quantized and given[i] is None]


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
    if why := _pair_error(x, w):
        return why
    given = given_scales(op)
    for i, result in enumerate(results):
        if result.scheme is None:
            continue
        group = result.scheme.block[1]
        if given[i] is None and (group & (group - 1) or not 16 <= group <= MAX_DEPTH):
            return (
                f"result {i} is quantized in groups of {group}; a product quantizes in groups of "
                "16, 32, 64 or 128: use a separate qfuse.quantize"
            )
        if result.scheme.scale not in SCALE_TYPES:
            return f"result {i} has scales of {result.scheme.scale}; use {', '.join(SCALE_TYPES)}"
    return _unread_error(op, results) or region_error(op.regions[0].blocks[0])


def _unread_error(op: ir.Operation, results: list[Shaped]) -> str | None:
    """Why there is nothing to multiply for results of some width, or None."""
    parts = len(ir.DenseI64ArrayAttr(op.attributes["parts"]))
    yielded = list(op.regions[0].blocks[0].operations)[-1].operation.operands
    read = {r.shape[-1] for r, v in zip(results, yielded, strict=True) if accumulators_of(v, parts)}
    for i, result in enumerate(results):
        if result.shape[-1] not in read:
            return f"result {i} does not depend on the product; compute it by operations of its own"
    return None


def _pair_error(x: Shaped, w: Shaped) -> str | None:
    """Why elements of x and w are not multiplied, or None."""
    if x.quantized and not w.quantized:
        return f"x is {x.dtype} but w is plain {w.dtype}; quantize both or dequantize x"
    if x.quantized and w.dtype not in _PAIRS[x.dtype]:
        if w.dtype in ("i4", "i6"):
            return f"multiplies {x.dtype} by {w.dtype}; quantize x to i8, or leave it plain"
        if w.dtype == "f4E2M1FN":
            return f"multiplies {x.dtype} by {w.dtype}; leave x plain"
        return f"multiplies {x.dtype} by {w.dtype}; both operands must store FP8, or both integers"
    if not x.quantized and not w.quantized and x.dtype != w.dtype:
        return f"multiplies {x.dtype} by {w.dtype}; cast one of them"
    return None


def _operand_error(name: str, value: Shaped) -> str | None:
    scheme = value.scheme
    assert scheme is not None
    packings = ("none", "q8_1") if name == "x" else ("none", "int4", "fp4", *K_QUANTS)
    if scheme.packing not in packings:
        return (
            f'{name} stores {value.dtype} with packing "{scheme.packing}"; GPU kernels read '
            f"{name} with {', '.join(packings)}"
        )
    if scheme.packing in K_QUANTS:
        return None
    if scheme.scale not in SCALE_TYPES:
        return f"{name} has scales of {scheme.scale}; GPU kernels read {', '.join(SCALE_TYPES)}"
    block = scheme.block[1]
    if block < value.shape[-1] and gcd(block, MAX_DEPTH) < LEAST_DEPTH:
        return f"{name} is scaled per {block} of K; GPU kernels take multiples of {LEAST_DEPTH}"
    return None


def bit_width(dtype: str) -> int:
    """Bits of a stored element."""
    return STORAGE_BITS.get(dtype) or int(dtype.lstrip("bfi"))
