"""`!qfuse.qtensor` and `#qfuse.scheme`: quantization as part of the type."""

from dataclasses import dataclass
from typing import Any

from qfuse.dialects.bindings import ir
from qfuse.dialects.dialect import QFuse
from qfuse.dialects.verify import DYNAMIC, FLOATS, IllegalType, ceil_div

# The scale types that each stored element may carry are what the formats in the field use (Hugging
# Face fine-grained FP8: f32 or e8m0; ggml: f16, or bytes of its own packing; MXFP4: e8m0).
STORAGE_SCALES: dict[str, tuple[str, ...]] = {
    "f8E4M3FN": ("f32", "f8E8M0FNU"),
    "f8E5M2": ("f32", "f8E8M0FNU"),
    "i8": ("f32", "f16", "bf16"),
    "i6": ("i8",),
    "i4": ("f32", "f16", "bf16", "i8"),
    "f4E2M1FN": ("f8E8M0FNU",),
}

STORAGE_BITS = {"f8E4M3FN": 8, "f8E5M2": 8, "i8": 8, "i6": 6, "i4": 4, "f4E2M1FN": 4}
"""Bits of a stored element; those of fewer than eight lie packed in bytes."""

STORAGE_MAX: dict[str, float] = {"f8E4M3FN": 448.0, "f8E5M2": 57344.0, "i8": 127.0}
"""Largest finite magnitude of a storage type that `qfuse.quantize` can produce."""


@dataclass(frozen=True)
class Packing:
    """How stored elements and scales lie in memory where they are not one tensor element each."""

    storage: tuple[str, ...]
    """Element types that it packs."""
    scale: tuple[str, ...] = ()
    """Scale types that it goes with; any legal one if empty."""
    block: tuple[int, int] | None = None
    """The block that shares `numbers` of scales, where there is but one."""
    numbers: int = 1
    """Numbers that each block has among the scales."""
    group: int | None = None
    """Columns that share one multiplier, where they are fewer than a block's."""
    offset: bool = False
    """The scales hold an offset for each group, too: value = code * multiplier + offset."""


PACKINGS: dict[str, Packing] = {
    "none": Packing(("f8E4M3FN", "f8E5M2", "i8")),
    "int4": Packing(("i4",), scale=("f32", "f16", "bf16")),
    "fp4": Packing(("f4E2M1FN",), block=(1, 32)),
    "q4_k": Packing(("i4",), ("i8",), block=(1, 256), numbers=16, group=32, offset=True),
    "q6_k": Packing(("i6",), ("i8",), block=(1, 256), numbers=18, group=16),
    "q8_1": Packing(("i8",), ("f16",), block=(1, 32), numbers=2),
}
"""What the packings of `#qfuse.scheme` are; its docstring draws them."""

ZERO_POINTS = ("none", "int")
SCALE_LAYOUTS = ("row_major", "col_major")


class SchemeAttr(QFuse.Attribute, name="scheme"):
    """How the elements of a `!qfuse.qtensor` are quantized.

        #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">

    `block` is the extent, over the last two dimensions, that shares one scale: [1, 128] for
    activations quantized per token and group, [128, 128] for weight blocks, [1, K] for one scale
    per token or output channel.  One scale for a whole weight is [1, K] with equal scales, which
    joins with others exactly.  The other fields are the element type of the scales, the packing
    of the stored elements, what zero points there are, and in which order the scales lie in
    memory.  A value is code * scale, in exact arithmetic, of

        "none"   a code in each element: FP8, or i8 from -128 to 127 (ggml's Q8_0: [1, 32], f16)
        "int4"   i4: two unsigned codes u a byte, the even column in the low bits; the code is
                 u - 8, or u - zero where zero points are "int" (one i8, a code from 0 to 15, for
                 each scale)
        "fp4"    f4E2M1FN: two codes a byte, as int4; blocks of [1, 32], e8m0 scales (MXFP4)
        "q4_k"   ggml's block_q4_K per 256 columns, its 128 bytes `qs` as data and the 16 before
                 them (f16 d, f16 dmin, u8 scales[12]) as scales; value = d sc u - dmin m per 32
        "q6_k"   ggml's block_q6_K per 256 columns, its 192 bytes `ql`, `qh` as data and the 18
                 after them (i8 scales[16], f16 d) as scales; value = d sc (u - 32) per 16
        "q8_1"   for activations: i8 in blocks of [1, 32]; beside each f16 scale d there is the
                 f16 sum of its block, d times the sum of its codes (ggml's block_q8_1)
    """

    block: Any  # DenseI64ArrayAttr has no attr_name to constrain by; `check_scheme` does it
    scale: ir.TypeAttr
    packing: ir.StringAttr
    zero_point: ir.StringAttr
    scale_layout: ir.StringAttr


class QTensorType(QFuse.Type, name="qtensor"):
    """A quantized tensor: stored elements and their scales as one SSA value.

        !qfuse.qtensor<tensor<?x4096xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, ...>>

    The first parameter gives the logical shape and the storage element type.
    """

    data: ir.TypeAttr
    scheme: SchemeAttr


@dataclass(frozen=True)
class Scheme:
    """A `#qfuse.scheme`, as plain Python values."""

    block: tuple[int, int]
    scale: str
    packing: str = "none"
    zero_point: str = "none"
    scale_layout: str = "row_major"

    @property
    def numbers(self) -> int:
        """Numbers that each block has among the scales; one but for packings that say more."""
        return PACKINGS[self.packing].numbers

    @property
    def group(self) -> int:
        """Columns that share one multiplier."""
        return PACKINGS[self.packing].group or self.block[1]

    def __str__(self) -> str:
        block = ", ".join(map(str, self.block))
        return (
            f"#qfuse.scheme<array<i64: {block}>, {self.scale}, "
            f'"{self.packing}", "{self.zero_point}", "{self.scale_layout}">'
        )


@dataclass(frozen=True)
class Shaped:
    """A tensor or qtensor type, as plain Python values: what verifiers and passes look at."""

    shape: tuple[int, ...]
    dtype: str
    scheme: Scheme | None = None

    @property
    def quantized(self) -> bool:
        return self.scheme is not None

    @property
    def rows(self) -> tuple[int, ...]:
        """All extents but the last: the M of a product."""
        return self.shape[:-1]

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """Shape of the scales: one per block, the last two extents divided rounding up.

        The numbers of a block that has several lie next to each other.
        """
        if self.scheme is None:
            raise ValueError("a plain tensor has no scales")
        block = (1,) * (len(self.shape) - 2) + self.scheme.block[-len(self.shape) :]
        *rows, last = (
            d if d == DYNAMIC and b == 1 else DYNAMIC if d == DYNAMIC else ceil_div(d, b)
            for d, b in zip(self.shape, block, strict=True)
        )
        return (*rows, last if last == DYNAMIC else last * self.scheme.numbers)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of the stored elements: the logical one, or bytes where several share one."""
        bits = STORAGE_BITS.get(self.dtype, 8)
        if bits == 8 or self.shape[-1] == DYNAMIC:
            return self.shape
        return (*self.shape[:-1], ceil_div(self.shape[-1] * bits, 8))

    @property
    def data_dtype(self) -> str:
        """Element type of the stored elements' tensor: i8, bytes, where several share one."""
        return self.dtype if STORAGE_BITS.get(self.dtype, 8) == 8 else "i8"

    def __str__(self) -> str:
        dims = "".join("?x" if d == DYNAMIC else f"{d}x" for d in self.shape)
        tensor = f"tensor<{dims}{self.dtype}>"
        return tensor if self.scheme is None else f"!qfuse.qtensor<{tensor}, {self.scheme}>"

    def type(self) -> ir.Type:
        """The MLIR type in the current context."""
        return ir.Type.parse(str(self))


def shaped(type_: ir.Type) -> Shaped:
    """Read a ranked tensor or a qtensor type; raises IllegalType on anything else."""
    if isinstance(type_, ir.RankedTensorType):
        return Shaped(tuple(type_.shape), str(type_.element_type))
    if isinstance(type_, QTensorType):
        data = ir.TypeAttr(type_.data).value
        if not isinstance(data, ir.RankedTensorType):
            raise IllegalType(f"the data of a qtensor is a ranked tensor, not {data}")
        scheme = scheme_of(SchemeAttr(type_.scheme))
        return Shaped(tuple(data.shape), str(data.element_type), scheme)
    raise IllegalType(f"{type_} is neither a ranked tensor nor a qtensor")


def scheme_of(attr: SchemeAttr) -> Scheme:
    """The fields of a `#qfuse.scheme`; raises IllegalType if its block is no list of extents."""
    first, scale, *names = attr.params
    try:
        block = ir.DenseI64ArrayAttr(first)
    except ValueError:  # `maybe_downcast` knows no array<bf16>, and fails
        raise IllegalType(
            f"the block of a scheme is an array<i64: rows, columns>, not {first}"
        ) from None
    return Scheme(
        tuple(block),
        str(ir.TypeAttr(scale).value),
        *(ir.StringAttr(name).value for name in names),
    )


def scheme_error(value: Shaped) -> str | None:
    """Why `value` is no legal quantized tensor, or None."""
    scheme = value.scheme
    assert scheme is not None
    if value.dtype not in STORAGE_SCALES:
        return f"storage type {value.dtype} is not one of {', '.join(STORAGE_SCALES)}"
    if scheme.scale not in STORAGE_SCALES[value.dtype]:
        legal = ", ".join(STORAGE_SCALES[value.dtype])
        return f"scale type {scheme.scale} does not go with {value.dtype}; use one of {legal}"
    if len(scheme.block) != 2 or min(scheme.block) < 1:
        return f"block {list(scheme.block)} is not two positive extents"
    if len(value.shape) < 2:
        return "a quantized tensor has at least two dimensions"
    for field, legal_values in (
        ("packing", tuple(PACKINGS)),
        ("zero_point", ZERO_POINTS),
        ("scale_layout", SCALE_LAYOUTS),
    ):
        if getattr(scheme, field) not in legal_values:
            return f'{field} "{getattr(scheme, field)}" is not one of {", ".join(legal_values)}'
    return _packing_error(value, scheme)


def _packing_error(value: Shaped, scheme: Scheme) -> str | None:
    """Why elements of such a type cannot be packed as the scheme says, or None."""
    name, packing = scheme.packing, PACKINGS[scheme.packing]
    if value.dtype not in packing.storage:
        fitting = [n for n, p in PACKINGS.items() if value.dtype in p.storage]
        return f'packing "{name}" does not store {value.dtype}; use {" or ".join(fitting)}'
    if packing.scale and scheme.scale not in packing.scale:
        return f'packing "{name}" has scales of {" or ".join(packing.scale)}, not {scheme.scale}'
    if packing.block and scheme.block != packing.block:
        return f'packing "{name}" has blocks of {list(packing.block)}, not {list(scheme.block)}'
    if scheme.zero_point != "none" and name != "int4":
        return f'packing "{name}" has no zero points; "int4" has'
    if (name not in ("none", "int4", "fp4")) and scheme.scale_layout != "row_major":
        return f'the scales of packing "{name}" lie row_major'
    columns = value.shape[-1]
    if packing.numbers > 2 and columns != DYNAMIC and columns % scheme.block[1]:
        return f'packing "{name}" needs a multiple of {scheme.block[1]} columns, not {columns}'
    if STORAGE_BITS[value.dtype] == 4 and columns != DYNAMIC and columns % 2:
        return f"two elements share a byte, so columns must be even, not {columns}"
    return None


def is_float(value: Shaped) -> bool:
    return not value.quantized and value.dtype in FLOATS
