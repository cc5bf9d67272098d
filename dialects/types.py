"""`!qfuse.qtensor` and `#qfuse.scheme`: quantization as part of the type."""

from dataclasses import dataclass
from typing import Any

from qfuse.dialects.bindings import ir
from qfuse.dialects.dialect import QFuse
from qfuse.dialects.verify import DYNAMIC, FLOATS, IllegalType, ceil_div

# Bit width of a stored element is part of its MLIR type; the scale types that each may carry are
# what the formats in the field use (HF fine-grained FP8: f32 or e8m0; ggml q8: f16).
STORAGE_SCALES: dict[str, tuple[str, ...]] = {
    "f8E4M3FN": ("f32", "f8E8M0FNU"),
    "f8E5M2": ("f32", "f8E8M0FNU"),
    "i8": ("f32", "f16", "bf16"),
    "i4": ("f32", "f16", "bf16"),
}

STORAGE_MAX: dict[str, float] = {"f8E4M3FN": 448.0, "f8E5M2": 57344.0, "i8": 127.0}
"""Largest finite magnitude of a storage type that `qfuse.quantize` can produce."""

PACKINGS = ("none", "int4", "q4_k", "q6_k", "q8_0", "q8_1")
ZERO_POINTS = ("none", "int")
SCALE_LAYOUTS = ("row_major", "col_major")


class SchemeAttr(QFuse.Attribute, name="scheme"):
    """How the elements of a `!qfuse.qtensor` are quantized.

        #qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">

    `block` is the extent, over the last two dimensions, that shares one scale: [1, 128] for
    activations quantized per token and group, [128, 128] for weight blocks.  The other fields
    are the element type of the scales, the packing of the stored elements, what zero points
    there are, and in which order the scales lie in memory.  Packing "q8_1" (ggml's block_q8_1, for
    activations) keeps with each block's scale d its sum, d times the sum of its codes.
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
        """Numbers that each block has among the scales: q8_1 has its scale, then its sum."""
        return 2 if self.packing == "q8_1" else 1

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

        Packing q8_1 has two numbers per block, next to each other.
        """
        if self.scheme is None:
            raise ValueError("a plain tensor has no scales")
        block = (1,) * (len(self.shape) - 2) + self.scheme.block[-len(self.shape) :]
        *rows, last = (
            d if d == DYNAMIC and b == 1 else DYNAMIC if d == DYNAMIC else ceil_div(d, b)
            for d, b in zip(self.shape, block, strict=True)
        )
        return (*rows, last if last == DYNAMIC else last * self.scheme.numbers)

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
    params = attr.params
    block, scale, *names = (params[0].maybe_downcast(), *params[1:])
    if not isinstance(block, ir.DenseI64ArrayAttr):
        raise IllegalType(f"the block of a scheme is an array<i64: rows, columns>, not {block}")
    return Scheme(
        tuple(ir.DenseI64ArrayAttr(block)),
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
        ("packing", PACKINGS),
        ("zero_point", ZERO_POINTS),
        ("scale_layout", SCALE_LAYOUTS),
    ):
        if getattr(scheme, field) not in legal_values:
            return f'{field} "{getattr(scheme, field)}" is not one of {", ".join(legal_values)}'
    if scheme.packing == "q8_1" and (value.dtype, scheme) != _Q8_1:
        return f"packing q8_1 is i8 in row-major blocks of [1, 32] with f16 scales, not {value}"
    return None


_Q8_1 = ("i8", Scheme((1, 32), "f16", packing="q8_1"))
"""What carries sums beside its scales: the block_q8_1 of ggml."""


def is_float(value: Shaped) -> bool:
    return not value.quantized and value.dtype in FLOATS
