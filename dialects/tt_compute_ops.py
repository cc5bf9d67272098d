"""Operations of `tt` that compute on values: products, reductions, conversions, inline assembly."""

from collections.abc import Sequence
from typing import Any

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.tt_dialect import Block, TritonOp, block_of, pointee_of, same_error, shape_error

FP8 = ("f8E4M3FN", "f8E5M2")
DOT_INPUTS = (*FP8, "f16", "bf16", "f32", "i8")
INPUT_PRECISIONS = {"tf32": 0, "tf32x3": 1, "ieee": 2}
ROUNDINGS = {"rtz": 0, "rtne": 1}
FULL_PRECISION_STEPS = 1 << 30
"""`maxNumImpreciseAcc` that lets the FP8 tensor cores of sm_90 accumulate a whole `tt.dot`."""


class DotOp(TritonOp, name="dot", traits=[ext.Pure]):
    """a [M, K] times b [K, N] plus c [M, N].

        %d = "tt.dot"(%a, %b, %c) {inputPrecision = 2 : i32,
           maxNumImpreciseAcc = 1073741824 : i32}
           : (tensor<64x128xf8E4M3FN>, tensor<128x128xf8E4M3FN>, tensor<64x128xf32>)
           -> tensor<64x128xf32>

    With FP8 operands `maxNumImpreciseAcc` below K keeps sm_90 off its FP8 tensor cores (it
    multiplies in f16, at half the speed), so it is refused.
    """

    inputPrecision: ir.IntegerAttr  # Triton's spelling
    maxNumImpreciseAcc: ir.IntegerAttr
    a: ext.Operand[ir.RankedTensorType]
    b: ext.Operand[ir.RankedTensorType]
    c: ext.Operand[ir.RankedTensorType]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        a, b, c = (block_of(v) for v in self.operation.operands)
        if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[1] != b.shape[0]:
            return f"cannot multiply {a} by {b}"
        if str(a.dtype) not in DOT_INPUTS or a.dtype != b.dtype:
            return f"multiplies {a.dtype} by {b.dtype}; use one of {', '.join(DOT_INPUTS)} twice"
        total = "i32" if str(a.dtype) == "i8" else "f32"
        if c.shape != (a.shape[0], b.shape[1]) or str(c.dtype) != total:
            shape = "x".join(map(str, (a.shape[0], b.shape[1])))
            return f"c is {c}; expected tensor<{shape}x{total}>"
        attributes = self.operation.attributes
        precision = ir.IntegerAttr(attributes["inputPrecision"]).value
        if precision not in INPUT_PRECISIONS.values():
            return f"inputPrecision {precision} is not one of {INPUT_PRECISIONS}"
        imprecise = ir.IntegerAttr(attributes["maxNumImpreciseAcc"]).value
        if str(a.dtype) in FP8 and imprecise < a.shape[1]:
            return (
                f"maxNumImpreciseAcc {imprecise} is below K = {a.shape[1]}, which keeps FP8 off "
                "the tensor cores of sm_90"
            )
        return same_error("result", self.operation.results[0].type, c)


class ReduceOp(TritonOp, name="reduce"):
    """Fold one dimension of a tensor.

    %m = "tt.reduce"(%x) ({
    ^bb0(%a: f32, %b: f32):
      %0 = arith.maximumf %a, %b : f32
      "tt.reduce_return"(%0) : (f32) -> ()
    }) {axis = 1 : i32} : (tensor<64x128xf32>) -> tensor<64xf32>
    """

    axis: ir.IntegerAttr
    source: ext.Operand[ir.RankedTensorType]
    combine: ext.Region
    out: ext.Result[Any]

    def violation(self) -> str | None:
        source, axis = _source_and_axis(self.operation)
        if why := _fold_error(self.operation, source, axis, ReduceReturnOp):
            return why
        shape = (*source.shape[:axis], *source.shape[axis + 1 :])
        return same_error("result", self.operation.results[0].type, Block(shape, source.dtype))


class ReduceReturnOp(TritonOp, name="reduce_return", traits=[ir.IsTerminatorTrait]):
    """End the region of a reduction.

        "tt.reduce_return"(%m) : (f32) -> ()

    Triton calls it `tt.reduce.return`; IRDL takes no dot in a name, so printing renames it.
    """

    value: ext.Operand[Any]


class ScanOp(TritonOp, name="scan"):
    """Fold each element of a dimension with all that come before it.

    %s = "tt.scan"(%x) ({
    ^bb0(%a: i32, %b: i32):
      %0 = arith.addi %a, %b : i32
      "tt.scan_return"(%0) : (i32) -> ()
    }) {axis = 0 : i32, reverse = false} : (tensor<128xi32>) -> tensor<128xi32>
    """

    axis: ir.IntegerAttr
    reverse: Any  # BoolAttr has no attr_name to constrain by
    source: ext.Operand[ir.RankedTensorType]
    combine: ext.Region
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        source, axis = _source_and_axis(self.operation)
        if why := _fold_error(self.operation, source, axis, ScanReturnOp):
            return why
        if not isinstance(self.operation.attributes["reverse"], ir.BoolAttr):
            return f"reverse is {self.operation.attributes['reverse']}; expected true or false"
        return same_error("result", self.operation.results[0].type, source)


class ScanReturnOp(TritonOp, name="scan_return", traits=[ir.IsTerminatorTrait]):
    """End the region of a scan; Triton calls it `tt.scan.return`, as with reductions.

    "tt.scan_return"(%s) : (i32) -> ()
    """

    value: ext.Operand[Any]


class FpToFpOp(TritonOp, name="fp_to_fp", traits=[ext.Pure]):
    """Convert between float types of which one is FP8; FP8 results saturate.

        %q = "tt.fp_to_fp"(%x) {rounding = 1 : i32} : (tensor<64xf32>) -> tensor<64xf8E4M3FN>
        %w = "tt.fp_to_fp"(%q) : (tensor<64xf8E4M3FN>) -> tensor<64xf16>

    rounding 1 is to nearest even, 0 toward zero; a conversion to a wider type has none.
    """

    source: ext.Operand[Any]
    out: ext.Result[Any]

    def violation(self) -> str | None:
        source, out = block_of(self.operation.operands[0]), block_of(self.operation.results[0])
        for name, value in (("source", source), ("result", out)):
            if not isinstance(value.dtype, ir.FloatType):
                return f"{name} is {value}; expected floats"
        attributes = self.operation.attributes
        if out.dtype.width >= source.dtype.width:
            if "rounding" in attributes:
                return f"rounds although {out.dtype} holds every {source.dtype}"
        elif "rounding" not in attributes:
            return "needs the attribute rounding, because the result is narrower"
        elif attributes["rounding"].value not in ROUNDINGS.values():
            return f"rounding {attributes['rounding'].value} is not one of {ROUNDINGS}"
        return shape_error("result", out, source.shape)


class BitcastOp(TritonOp, name="bitcast", traits=[ext.Pure]):
    """The same bits under another type of the same width.

    %i = "tt.bitcast"(%x) : (tensor<64xf32>) -> tensor<64xi32>
    """

    source: ext.Operand[Any]
    out: ext.Result[Any]

    def violation(self) -> str | None:
        source, out = block_of(self.operation.operands[0]), block_of(self.operation.results[0])
        if bit_width(source.dtype) != bit_width(out.dtype):
            return f"cannot cast {source} to {out}: widths differ"
        return shape_error("result", out, source.shape)


class PreciseDivFOp(TritonOp, name="precise_divf", traits=[ext.Pure]):
    """Division rounded as IEEE 754 says; `arith.divf` may be two units off on NVIDIA.

    %q = "tt.precise_divf"(%a, %b) : (tensor<64xf32>, tensor<64xf32>) -> tensor<64xf32>
    """

    lhs: ext.Operand[Any]
    rhs: ext.Operand[Any]
    out: ext.Result[Any]

    def violation(self) -> str | None:
        return _elementwise_f32_error(self.operation)


class PreciseSqrtOp(TritonOp, name="precise_sqrt", traits=[ext.Pure]):
    """Square root rounded as IEEE 754 says.

    %s = "tt.precise_sqrt"(%a) : (tensor<64xf32>) -> tensor<64xf32>
    """

    source: ext.Operand[Any]
    out: ext.Result[Any]

    def violation(self) -> str | None:
        return _elementwise_f32_error(self.operation)


class ElementwiseInlineAsmOp(TritonOp, name="elementwise_inline_asm", traits=[ext.Pure]):
    """Target instructions on each element; `$0` is the result, `$1` on are the operands.

        %d = "tt.elementwise_inline_asm"(%a, %b, %c) {asm_string = "fma.rn.f32 $0, $1, $2, $3;",
           constraints = "=f,f,f,f", packed_element = 1 : i32, pure = true}
           : (tensor<64xf32>, tensor<64xf32>, tensor<64xf32>) -> tensor<64xf32>

    With a `packed_element` above one that many elements, registers of 32 bits full of them, are
    worked on together; the result may take several registers.
    Only pure text with one result is emitted: an impure one breaks warp specialization.
    """

    asm_string: ir.StringAttr
    constraints: ir.StringAttr
    packed_element: ir.IntegerAttr
    pure: Any  # BoolAttr has no attr_name to constrain by
    arguments: Sequence[ext.Operand[Any]]
    out: ext.Result[Any]

    def violation(self) -> str | None:
        attributes, out = self.operation.attributes, block_of(self.operation.results[0])
        if attributes["pure"] != ir.BoolAttr.get(True):
            return "pure is not true, which breaks warp specialization"
        constraints = ir.StringAttr(attributes["constraints"]).value.split(",")
        count = len(self.operation.operands)
        results = [c.startswith("=") for c in constraints]
        packed = ir.IntegerAttr(attributes["packed_element"]).value
        least = max(1, packed * (bit_width(out.dtype) or 0) // 32)
        if results != [True] * least + [False] * count:
            wanted = "one result" if least == 1 else f"{least} registers of a result"
            return f"constraints {','.join(constraints)} are not {wanted} and {count} operands"
        for i, value in enumerate(self.operation.operands):
            if why := shape_error(f"operand {i}", block_of(value), out.shape):
                return why
        return None


class ExternElementwiseOp(TritonOp, name="extern_elementwise", traits=[ext.Pure]):
    """Call a function of the target's math library on each element.

    %t = "tt.extern_elementwise"(%x) {libname = "", libpath = "", pure = true,
       symbol = "__nv_tanhf"} : (tensor<64xf32>) -> tensor<64xf32>
    """

    libname: ir.StringAttr
    libpath: ir.StringAttr
    pure: Any
    symbol: ir.StringAttr
    source: ext.Operand[Any]
    out: ext.Result[Any]

    def violation(self) -> str | None:
        return _elementwise_f32_error(self.operation)


def bit_width(dtype: ir.Type) -> int | None:
    """Bits of an integer, float or pointer type; None for any other."""
    if isinstance(dtype, ir.IntegerType | ir.FloatType):
        return dtype.width
    return 64 if pointee_of(dtype) is not None else None


def _source_and_axis(op: ir.Operation) -> tuple[Block, int]:
    return block_of(op.operands[0]), ir.IntegerAttr(op.attributes["axis"]).value


def _fold_error(
    op: ir.Operation, source: Block, axis: int, terminator: type[TritonOp]
) -> str | None:
    """Why the axis or the region of a reduction or scan of `source` is not legal, or None."""
    if not 0 <= axis < len(source.shape):
        return f"axis {axis} is outside of {source}"
    blocks = op.regions[0].blocks
    if len(blocks) != 1 or [a.type for a in blocks[0].arguments] != [source.dtype] * 2:
        return f"the region must be one block with two arguments of {source.dtype}"
    operations = [inner.operation for inner in blocks[0].operations]
    if not operations or operations[-1].name != terminator.OPERATION_NAME:
        return f"the region must end with {terminator.OPERATION_NAME}"
    if [v.type for v in operations[-1].operands] != [source.dtype]:
        return f"the region must return one {source.dtype}"
    return None


def _elementwise_f32_error(op: ir.Operation) -> str | None:
    out = block_of(op.results[0])
    if not isinstance(out.dtype, ir.F32Type):
        return f"result is {out}; expected f32"
    for i, value in enumerate(op.operands):
        if why := same_error(f"operand {i}", value.type, out):
            return why
    return None
