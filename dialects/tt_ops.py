"""Operations of `tt` that give a kernel its form: functions, programs, shapes, addresses."""

from typing import Any

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.tt_dialect import (
    Block,
    PointerType,
    TritonOp,
    block_of,
    same_error,
    shape_error,
)


class FuncOp(TritonOp, name="func", traits=[ir.IsIsolatedFromAboveTrait]):
    """A kernel: a function without results whose arguments are pointers and integers.

        "tt.func"() ({
        ^bb0(%x: !tt.ptr<bf16>, %m: i32):
          "tt.return"() : () -> ()
        }) {arg_attrs = [{tt.divisibility = 16 : i32}, {}],
            function_type = (!tt.ptr<bf16>, i32) -> (),
            sym_name = "k", sym_visibility = "public"} : () -> ()

    `tt.divisibility` is what the launcher guarantees about an argument, in bytes for a pointer.
    """

    body: ext.Region
    sym_name: ir.StringAttr
    sym_visibility: ir.StringAttr
    function_type: ir.TypeAttr
    arg_attrs: ir.ArrayAttr

    def violation(self) -> str | None:
        attributes = self.operation.attributes
        type_ = ir.TypeAttr(attributes["function_type"]).value
        if not isinstance(type_, ir.FunctionType) or type_.results:
            return f"function_type is {type_}; a kernel returns nothing"
        blocks = self.operation.regions[0].blocks
        if len(blocks) != 1:
            return f"has {len(blocks)} blocks; control flow is written with scf"
        arguments = [a.type for a in blocks[0].arguments]
        if arguments != list(type_.inputs):
            return f"has arguments ({', '.join(map(str, arguments))}), but its type is {type_}"
        for i, argument in enumerate(arguments):
            if not isinstance(argument, PointerType | ir.IntegerType | ir.F32Type):
                return f"argument {i} is {argument}; expected a pointer, an integer or f32"
        if len(attributes["arg_attrs"]) != len(arguments):
            return f"has {len(arguments)} arguments but {len(attributes['arg_attrs'])} arg_attrs"
        operations = list(blocks[0].operations)
        if not operations or operations[-1].operation.name != ReturnOp.OPERATION_NAME:
            return "must end with tt.return"
        return None


class ReturnOp(TritonOp, name="return", traits=[ir.IsTerminatorTrait]):
    """End a kernel.

    "tt.return"() : () -> ()
    """


class _ProgramOp(TritonOp):
    axis: ir.IntegerAttr
    out: ext.Result[ir.IntegerType]

    def violation(self) -> str | None:
        axis = ir.IntegerAttr(self.operation.attributes["axis"]).value
        if not 0 <= axis < 3:
            return f"axis {axis} is not 0, 1 or 2"
        return _i32_error("result", self.operation.results[0].type)


class GetProgramIdOp(_ProgramOp, name="get_program_id", traits=[ext.Pure]):
    """Which program of the grid this is.

    %pid = "tt.get_program_id"() {axis = 0 : i32} : () -> i32
    """


class GetNumProgramsOp(_ProgramOp, name="get_num_programs", traits=[ext.Pure]):
    """How many programs the grid has along an axis.

    %n = "tt.get_num_programs"() {axis = 0 : i32} : () -> i32
    """


class MakeRangeOp(TritonOp, name="make_range", traits=[ext.Pure]):
    """The numbers from start up to, not including, end.

    %r = "tt.make_range"() {start = 0 : i32, end = 128 : i32} : () -> tensor<128xi32>
    """

    start: ir.IntegerAttr
    end: ir.IntegerAttr
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        attributes = self.operation.attributes
        start, end = (ir.IntegerAttr(attributes[n]).value for n in ("start", "end"))
        out = block_of(self.operation.results[0])
        if out.shape != (end - start,) or str(out.dtype) != "i32":
            return f"result is {out}; expected tensor<{end - start}xi32>"
        return None


class SplatOp(TritonOp, name="splat", traits=[ext.Pure]):
    """A tensor that holds one scalar throughout.

    %t = "tt.splat"(%s) : (f32) -> tensor<64x128xf32>
    """

    scalar: ext.Operand[Any]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        scalar, out = block_of(self.operation.operands[0]), block_of(self.operation.results[0])
        if scalar.shape or scalar.dtype != out.dtype:
            return f"cannot splat {scalar} to {out}"
        return None


class BroadcastOp(TritonOp, name="broadcast", traits=[ext.Pure]):
    """Repeat a tensor along its dimensions of extent one.

    %t = "tt.broadcast"(%s) : (tensor<64x1xf32>) -> tensor<64x128xf32>
    """

    source: ext.Operand[ir.RankedTensorType]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        source, out = block_of(self.operation.operands[0]), block_of(self.operation.results[0])
        fits = len(source.shape) == len(out.shape) and all(
            a in (b, 1) for a, b in zip(source.shape, out.shape, strict=True)
        )
        if not fits or source.dtype != out.dtype:
            return f"cannot broadcast {source} to {out}"
        return None


class ExpandDimsOp(TritonOp, name="expand_dims", traits=[ext.Pure]):
    """Insert a dimension of extent one before `axis`.

    %t = "tt.expand_dims"(%v) {axis = 1 : i32} : (tensor<64xf32>) -> tensor<64x1xf32>
    """

    axis: ir.IntegerAttr
    source: ext.Operand[ir.RankedTensorType]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        source = block_of(self.operation.operands[0])
        axis = ir.IntegerAttr(self.operation.attributes["axis"]).value
        if not 0 <= axis <= len(source.shape):
            return f"axis {axis} is outside of {source}"
        shape = (*source.shape[:axis], 1, *source.shape[axis:])
        return same_error("result", self.operation.results[0].type, Block(shape, source.dtype))


class ReshapeOp(TritonOp, name="reshape", traits=[ext.Pure]):
    """The same elements, in the same row-major order, under another shape.

    %t = "tt.reshape"(%v) : (tensor<64x128xf32>) -> tensor<64x4x32xf32>
    """

    source: ext.Operand[ir.RankedTensorType]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        source, out = block_of(self.operation.operands[0]), block_of(self.operation.results[0])
        if source.dtype != out.dtype or _count(source.shape) != _count(out.shape):
            return f"cannot reshape {source} to {out}"
        return None


class TransOp(TritonOp, name="trans", traits=[ext.Pure]):
    """Permute dimensions.

    %t = "tt.trans"(%b) {order = array<i32: 1, 0>} : (tensor<128x64xbf16>) -> tensor<64x128xbf16>
    """

    order: Any
    source: ext.Operand[ir.RankedTensorType]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        source, order = block_of(self.operation.operands[0]), self.operation.attributes["order"]
        if not isinstance(order, ir.DenseI32ArrayAttr) or sorted(order) != list(
            range(len(source.shape))
        ):
            return f"order {order} is no permutation, as array<i32>, of {len(source.shape)} axes"
        shape = tuple(source.shape[i] for i in order)
        return same_error("result", self.operation.results[0].type, Block(shape, source.dtype))


class JoinOp(TritonOp, name="join", traits=[ext.Pure]):
    """Two tensors of one type as one, along a new last dimension.

    %t = "tt.join"(%a, %b) : (tensor<64x16xi8>, tensor<64x16xi8>) -> tensor<64x16x2xi8>
    """

    lhs: ext.Operand[ir.RankedTensorType]
    rhs: ext.Operand[ir.RankedTensorType]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        lhs, rhs = self.operation.operands
        if why := same_error("rhs", rhs.type, block_of(lhs)):
            return why
        block = block_of(lhs)
        wanted = Block((*block.shape, 2), block.dtype)
        return same_error("result", self.operation.results[0].type, wanted)


class AddPtrOp(TritonOp, name="addptr", traits=[ext.Pure]):
    """Move pointers by a number of elements.

    %p = "tt.addptr"(%base, %off) : (tensor<64x!tt.ptr<f32>>, tensor<64xi32>)
       -> tensor<64x!tt.ptr<f32>>
    """

    pointer: ext.Operand[Any]
    offset: ext.Operand[Any]
    out: ext.Result[Any]

    def violation(self) -> str | None:
        pointer, offset = (block_of(v) for v in self.operation.operands)
        if pointer.pointee is None:
            return f"pointer is {pointer}; expected !tt.ptr or a tensor of it"
        if str(offset.dtype) not in ("i32", "i64"):
            return f"offset is {offset}; expected i32 or i64"
        why = shape_error("offset", offset, pointer.shape)
        return why or same_error("result", self.operation.results[0].type, pointer)


def _i32_error(name: str, type_: ir.Type) -> str | None:
    return None if str(type_) == "i32" else f"{name} is {type_}; expected i32"


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
