"""Operations of `tt` that touch memory: through pointers and through descriptors."""

from collections.abc import Sequence
from typing import Any

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.tt_dialect import (
    Block,
    PointerType,
    TensorDescType,
    TritonOp,
    block_of,
    desc_block,
    same_error,
)

ATOMIC_OPS = {"add": 4, "exchange": 10}
ATOMIC_ORDERS = {"relaxed": 1, "acquire_release": 4}
ATOMIC_SCOPES = {"gpu": 1}
"""Triton's numbers for what `tt.atomic_rmw` does, what it orders, and for whom."""

DESCRIPTOR_ALIGNMENT = 16
"""Bytes that the rows of a tensor behind a descriptor are multiples of (cuTensorMapEncodeTiled)."""


class LoadOp(TritonOp, name="load"):
    """Read what pointers point to; where the mask is false, `other`, or nothing defined.

    %v = "tt.load"(%p, %mask, %other) {boundaryCheck = array<i32>, cache = 1 : i32,
       evict = 1 : i32, isVolatile = false, operandSegmentSizes = array<i32: 1, 1, 1>}
       : (tensor<64x!tt.ptr<f32>>, tensor<64xi1>, tensor<64xf32>) -> tensor<64xf32>
    """

    boundaryCheck: Any
    cache: ir.IntegerAttr
    evict: ir.IntegerAttr
    isVolatile: Any
    pointer: ext.Operand[Any]
    out: ext.Result[Any]
    mask: ext.Operand[Any] | None = None
    other: ext.Operand[Any] | None = None

    def violation(self) -> str | None:
        pointer, *rest = (v for v in self.operation.operands)
        at = block_of(pointer)
        if at.pointee is None:
            return f"pointer is {at}; expected !tt.ptr or a tensor of it"
        value = at.with_dtype(at.pointee)
        sizes = list(ir.DenseI32ArrayAttr(self.operation.attributes["operandSegmentSizes"]))
        if sizes == [1, 0, 1]:
            return "has a value for masked elements but no mask"
        wanted = [("mask", at.with_dtype(ir.IntegerType.get_signless(1))), ("other", value)]
        for (name, block), operand in zip(wanted, rest, strict=False):
            if why := same_error(name, operand.type, block):
                return why
        return same_error("result", self.operation.results[0].type, value)


class StoreOp(TritonOp, name="store"):
    """Write values where pointers point to, where the mask is true.

    "tt.store"(%p, %v, %mask) {boundaryCheck = array<i32>, cache = 1 : i32, evict = 1 : i32}
       : (tensor<64x!tt.ptr<f32>>, tensor<64xf32>, tensor<64xi1>) -> ()
    """

    boundaryCheck: Any
    cache: ir.IntegerAttr
    evict: ir.IntegerAttr
    pointer: ext.Operand[Any]
    value: ext.Operand[Any]
    mask: ext.Operand[Any] | None = None

    def violation(self) -> str | None:
        pointer, value, *mask = (v for v in self.operation.operands)
        at = block_of(pointer)
        if at.pointee is None:
            return f"pointer is {at}; expected !tt.ptr or a tensor of it"
        if why := same_error("value", value.type, at.with_dtype(at.pointee)):
            return why
        if mask:
            return same_error("mask", mask[0].type, at.with_dtype(ir.IntegerType.get_signless(1)))
        return None


class AtomicRmwOp(TritonOp, name="atomic_rmw"):
    """Update what a pointer points to in one step; gives what was there before.

        %old = "tt.atomic_rmw"(%p, %one) {atomic_rmw_op = 4 : i32, scope = 1 : i32, sem = 4 : i32}
           : (!tt.ptr<i32>, i32) -> i32

    Of Triton's operations, those on one integer whose result does not depend on the order of the
    programs, or tells it; a sum of floats by atomics would differ from run to run.  scope 1 is
    the whole GPU; sem 1 is relaxed and 4 acquires and releases.
    """

    atomic_rmw_op: ir.IntegerAttr
    scope: ir.IntegerAttr
    sem: ir.IntegerAttr
    pointer: ext.Operand[PointerType]
    value: ext.Operand[ir.IntegerType]
    out: ext.Result[ir.IntegerType]

    def violation(self) -> str | None:
        pointer, value = self.operation.operands
        attributes = self.operation.attributes
        for name, known in (
            ("atomic_rmw_op", ATOMIC_OPS),
            ("scope", ATOMIC_SCOPES),
            ("sem", ATOMIC_ORDERS),
        ):
            number = ir.IntegerAttr(attributes[name]).value
            if number not in known.values():
                return f"{name} {number} is not one of {known}"
        counter = Block((), ir.IntegerType.get_signless(32))
        if block_of(pointer).pointee != counter.dtype:
            return f"pointer is {pointer.type}; expected !tt.ptr<i32>"
        return same_error("value", value.type, counter) or same_error(
            "result", self.operation.results[0].type, counter
        )


class MakeTensorDescriptorOp(TritonOp, name="make_tensor_descriptor", traits=[ext.Pure]):
    """Describe a row-major tensor in memory, to be copied block by block.

        %d = "tt.make_tensor_descriptor"(%p, %m, %k, %stride, %one)
           {operandSegmentSizes = array<i32: 1, 2, 2>}
           : (!tt.ptr<bf16>, i32, i32, i64, i64) -> !tt.tensordesc<tensor<128x64xbf16>>

    Extents are i32 and strides, in elements, i64; the last stride is one.  Every other stride is
    a multiple of 16 bytes, and so is the pointer.  Blocks beyond an extent read as zeros and are
    not written.
    """

    base: ext.Operand[PointerType]
    extents: Sequence[ext.Operand[Any]]
    strides: Sequence[ext.Operand[Any]]
    out: ext.Result[TensorDescType]

    def violation(self) -> str | None:
        base, *rest = self.operation.operands
        block = desc_block(self.operation.results[0].type)
        rank = len(block.shape)
        sizes = self.operation.attributes["operandSegmentSizes"]
        if list(ir.DenseI32ArrayAttr(sizes)) != [1, rank, rank]:
            return f"operandSegmentSizes is {sizes}; expected 1, {rank}, {rank} for its block"
        if [str(v.type) for v in rest] != ["i32"] * rank + ["i64"] * rank:
            return f"takes {rank} extents of i32 and {rank} strides of i64"
        if block_of(base).pointee != block.dtype:
            return f"base is {base.type} but the block is {block}"
        last = _constant(rest[-1])
        if last is not None and last != 1:
            return f"the last stride is {last}, not 1"
        width = block.dtype.width if isinstance(block.dtype, ir.FloatType | ir.IntegerType) else 8
        for stride in rest[rank:-1]:
            value = _constant(stride)
            if value is not None and value * width // 8 % DESCRIPTOR_ALIGNMENT:
                return (
                    f"a stride of {value} x {block.dtype} is no multiple of "
                    f"{DESCRIPTOR_ALIGNMENT} bytes"
                )
        return None


class DescriptorLoadOp(TritonOp, name="descriptor_load"):
    """Read the block that begins at an index.

    %a = "tt.descriptor_load"(%d, %row, %col) {cache = 1 : i32, evict = 1 : i32}
       : (!tt.tensordesc<tensor<128x64xbf16>>, i32, i32) -> tensor<128x64xbf16>
    """

    cache: ir.IntegerAttr
    evict: ir.IntegerAttr
    desc: ext.Operand[TensorDescType]
    index: Sequence[ext.Operand[Any]]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        desc, *index = self.operation.operands
        block = desc_block(desc.type)
        return _index_error(index, block) or same_error(
            "result", self.operation.results[0].type, block
        )


class DescriptorStoreOp(TritonOp, name="descriptor_store"):
    """Write the block that begins at an index.

    "tt.descriptor_store"(%d, %v, %row, %col)
       : (!tt.tensordesc<tensor<128x64xbf16>>, tensor<128x64xbf16>, i32, i32) -> ()
    """

    desc: ext.Operand[TensorDescType]
    value: ext.Operand[ir.RankedTensorType]
    index: Sequence[ext.Operand[Any]]

    def violation(self) -> str | None:
        desc, value, *index = self.operation.operands
        block = desc_block(desc.type)
        return _index_error(index, block) or same_error("value", value.type, block)


def _index_error(index: Sequence[ir.Value], block: Block) -> str | None:
    if [str(v.type) for v in index] != ["i32"] * len(block.shape):
        types = ", ".join(str(v.type) for v in index)
        return f"index is ({types}); expected {len(block.shape)} values of i32"
    return None


def _constant(value: ir.Value) -> int | None:
    """The value of an `arith.constant` integer, None for anything else."""
    if isinstance(value, ir.BlockArgument) or value.owner.operation.name != "arith.constant":
        return None
    attribute = value.owner.operation.attributes["value"]
    return attribute.value if isinstance(attribute, ir.IntegerAttr) else None
