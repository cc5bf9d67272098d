"""Products by a library, and the choice between them and kernels of ours by the number of rows."""

from typing import Any

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.dialect import Op
from qfuse.dialects.types import is_float, shaped
from qfuse.dialects.verify import DYNAMIC, shape_text

CALLS = (
    *("mm", "scaled_mm_blocks", "scaled_mm_rows"),
    *("int_mm", "grouped_mm", "scaled_grouped_mm"),
)
"""Products that a library may have; `compiler/runtime/library.py` makes the calls."""

LIBRARY_ACTIVATIONS = ("none", "relu", "gelu_tanh")


class LibraryCallOp(Op, name="library_call", traits=[ext.Pure]):
    """x times the transpose of w by a library, and its epilogue: act(scale * product + bias).

        %y = "qfuse.library_call"(%x, %w, %bias) {call = "mm", activation = "relu",
             operandSegmentSizes = array<i32: 1, 1, 0, 1>}
           : (tensor<?x512xbf16>, tensor<1024x512xbf16>, tensor<1024xbf16>) -> tensor<?x1024xbf16>

    `call` is one of CALLS; `scale` is an f32, 1 where it is not there.  Product, scale, bias and
    activation are computed in f32 and rounded once, to the result's type.  With `indptr` the
    weights are those of experts, whose rows lie sorted in x, as for `qfuse.group_matmul`.
    """

    x: ext.Operand[Any]
    w: ext.Operand[Any]
    call: ir.StringAttr
    activation: ir.StringAttr
    out: ext.Result[ir.RankedTensorType]
    indptr: ext.Operand[ir.RankedTensorType] | None = None
    bias: ext.Operand[ir.RankedTensorType] | None = None

    def violation(self) -> str | None:
        x, w = (shaped(v.type) for v in list(self.operation.operands)[:2])
        out = shaped(self.out.type)
        if self.call.value not in CALLS:
            return f'call "{self.call.value}" is not one of {", ".join(CALLS)}'
        if self.activation.value not in LIBRARY_ACTIVATIONS:
            legal = ", ".join(LIBRARY_ACTIVATIONS)
            return f'activation "{self.activation.value}" is not one of {legal}'
        if "scale" in self.operation.attributes:
            scale = self.operation.attributes["scale"]
            if not isinstance(scale, ir.FloatAttr) or str(scale.type) != "f32":
                return f"scale is {scale}; expected an f32"
        if len(w.shape) < 2 or DYNAMIC in w.shape:
            return f"w has shape {shape_text(w.shape)}; a weight is static"
        if x.shape[-1] != w.shape[-1]:
            return f"K differs: x has {shape_text(x.shape)}, w has {shape_text(w.shape)}"
        wanted = (*x.rows, w.shape[-2])
        if not is_float(out) or out.shape != wanted:
            return f"the result is {out}; expected a float {shape_text(wanted)}"
        return None


class ChooseOp(Op, name="choose", traits=[ext.Pure]):
    """One of two ways to compute a value: by a library for some numbers of rows, else by kernels.

        %y = "qfuse.choose"(%x) ({
          %0 = "qfuse.library_call"(%x, %w) {call = "mm", ...}
          "qfuse.result"(%0) : (tensor<?x1024xbf16>) -> ()
        }, {
          %0 = "qfuse.matmul"(%x, %w) ...
          "qfuse.result"(%0) : (tensor<?x1024xbf16>) -> ()
        }) {call = "mm", ranges = array<i64: 2, 64, 257, -1>} : (tensor<?x512xbf16>) -> ...

    The number of rows is that of x, its leading dimensions multiplied.  `ranges` are pairs of the
    first and the last number (-1: no last) that the first region serves, where the library has
    `call`; the second region serves any number.
    """

    x: ext.Operand[Any]
    call: ir.StringAttr
    ranges: Any
    library: ext.Region
    kernel: ext.Region
    out: ext.Result[Any]

    def violation(self) -> str | None:
        if self.call.value not in CALLS:
            return f'call "{self.call.value}" is not one of {", ".join(CALLS)}'
        ranges = self.operation.attributes["ranges"]
        if not isinstance(ranges, ir.DenseI64ArrayAttr) or len(ranges) % 2 or not len(ranges):
            return f"ranges are {ranges}; expected pairs of i64, first and last number of rows"
        pairs = list(zip(list(ranges)[::2], list(ranges)[1::2], strict=True))
        if any(first < 1 or (last != -1 and last < first) for first, last in pairs):
            return f"ranges are {list(ranges)}; expected first <= last, or -1 for no last"
        for region in self.operation.regions:
            if len(region.blocks) != 1:
                return "each region is one block"
            *_, last_op = list(region.blocks[0].operations) or [None]
            if last_op is None or last_op.operation.name != ResultOp.OPERATION_NAME:
                return "each region ends with qfuse.result"
            given = [v.type for v in last_op.operation.operands]
            if given != [self.out.type]:
                return f"a region gives {', '.join(map(str, given))}, not {self.out.type}"
        return None


class ResultOp(Op, name="result", traits=[ir.IsTerminatorTrait]):
    """End a region of `qfuse.choose` with its value.

    "qfuse.result"(%y) : (tensor<?x1024xbf16>) -> ()
    """

    value: ext.Operand[Any]
