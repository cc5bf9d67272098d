"""The `tt` dialect object, its types, and the base of its operations.

`tt` is Triton's own dialect.  What stands here is the subset that we emit, with verifiers, so that
tests can check it and a mistake is found before Triton is asked.  Attributes that Triton defaults
are required, because its generic form wants them spelled out.
"""

# As in `dialect.py`: no `annotations` from `__future__` in files that declare operations.

from dataclasses import dataclass

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.dialect import Op
from qfuse.dialects.verify import IllegalType, shape_text

MAX_ELEMENTS = 1 << 20
"""Elements of a tensor that Triton accepts at most."""


class Triton(ext.Dialect, name="tt"):
    """Owner of the `tt.*` operations and types that we emit."""


class PointerType(Triton.Type, name="ptr"):
    """An address in global memory: `!tt.ptr<f32>`."""

    pointee: ir.TypeAttr


class TensorDescType(Triton.Type, name="tensordesc"):
    """A descriptor that copies whole blocks: `!tt.tensordesc<tensor<128x128xf8E4M3FN>>`.

    That is the spelling of Triton 3.6; `lowering/triton/text.py` prints the one of later versions.
    """

    block: ir.TypeAttr


class TritonOp(Triton.Operation):
    """A `tt` operation: its fields say what it consists of, `violation` says the rest."""

    def violation(self) -> str | None:
        """Why this operation, whose fields are all there, is not legal, or None."""
        return None

    verify_invariants = Op.verify_invariants


@dataclass(frozen=True)
class Block:
    """A scalar (shape ()) or a tensor, as plain Python values; `dtype` is the element type."""

    shape: tuple[int, ...]
    dtype: ir.Type

    @property
    def pointee(self) -> ir.Type | None:
        """What the elements point to, None if they are no pointers."""
        return pointee_of(self.dtype)

    def with_dtype(self, dtype: ir.Type) -> "Block":
        return Block(self.shape, dtype)

    def type(self) -> ir.Type:
        return ir.RankedTensorType.get(self.shape, self.dtype) if self.shape else self.dtype

    def __str__(self) -> str:
        return str(self.type())


def block_of(value: ir.Value) -> Block:
    """The scalar or tensor that `value` is; raises IllegalType for what Triton cannot hold."""
    return block_type(value.type)


def block_type(type_: ir.Type) -> Block:
    """As `block_of`, of a type."""
    if not isinstance(type_, ir.RankedTensorType):
        return Block((), type_)
    shape = tuple(type_.shape)
    count = 1
    for extent in shape:
        count *= extent
        if extent < 1 or extent & (extent - 1):
            raise IllegalType(f"{type_} has an extent that is no power of two")
    if count > MAX_ELEMENTS:
        raise IllegalType(f"{type_} has {count} elements; Triton takes at most {MAX_ELEMENTS}")
    return Block(shape, type_.element_type)


def pointer_type(pointee: ir.Type) -> ir.Type:
    return PointerType.get(pointee)


def pointee_of(type_: ir.Type) -> ir.Type | None:
    """What a pointer type points to, None for any other type."""
    return ir.TypeAttr(type_.pointee).value if isinstance(type_, PointerType) else None


def desc_type(shape: tuple[int, ...], dtype: ir.Type) -> ir.Type:
    return TensorDescType.get(ir.RankedTensorType.get(shape, dtype))


def desc_block(type_: ir.Type) -> Block:
    """The block that a descriptor type copies; raises IllegalType if it is no descriptor."""
    if not isinstance(type_, TensorDescType):
        raise IllegalType(f"{type_} is not a !tt.tensordesc")
    return block_type(ir.TypeAttr(type_.block).value)


def same_error(name: str, actual: ir.Type, wanted: Block) -> str | None:
    """Why `actual` is not `wanted`, or None."""
    return None if actual == wanted.type() else f"{name} is {actual}; expected {wanted}"


def shape_error(name: str, actual: Block, wanted: tuple[int, ...]) -> str | None:
    if actual.shape == wanted:
        return None
    return f"{name} has shape {shape_text(actual.shape)}, not {shape_text(wanted)}"
