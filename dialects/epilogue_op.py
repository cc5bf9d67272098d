"""`qfuse.epilogue`: the epilogue of a product that something else computed."""

from collections.abc import Sequence
from typing import Any

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.dialect import Op
from qfuse.dialects.matmul_op import MAX_EXTRA, MAX_RESULTS, attributes_error, epilogue_error
from qfuse.dialects.types import is_float, shaped
from qfuse.dialects.verify import DYNAMIC


class EpilogueOp(Op, name="epilogue", traits=[ext.Pure, ir.IsIsolatedFromAboveTrait]):
    """The region of a `qfuse.matmul`, on a product y [.., N] that a library computed.

        %h = "qfuse.epilogue"(%y) ({
        ^bb0(%gate: f32, %up: f32): ...
        }) {parts = array<i64: 1400, 1400>, starts = array<i64: 0, 1408>, maps = [],
            operandSegmentSizes = array<i32: 1, 0, 0, 0, 0, 0, 0>,
            resultSegmentSizes = array<i32: 1, 0, 0, 0>}
           : (tensor<?x2808xbf16>) -> tensor<?x1400xbf16>

    Accumulator i is the column of y that part i has there: `starts` says where each of the `parts`
    begins.  Everything else is as in `qfuse.matmul`.
    """

    y: ext.Operand[ir.RankedTensorType]
    parts: Any
    starts: Any
    maps: ir.ArrayAttr
    epilogue: ext.Region
    out0: ext.Result[Any]
    out1: ext.Result[Any] | None = None
    out2: ext.Result[Any] | None = None
    out3: ext.Result[Any] | None = None
    extra0: ext.Operand[Any] | None = None
    extra1: ext.Operand[Any] | None = None
    extra2: ext.Operand[Any] | None = None
    extra3: ext.Operand[Any] | None = None
    extra4: ext.Operand[Any] | None = None
    extra5: ext.Operand[Any] | None = None

    def violation(self) -> str | None:
        if why := attributes_error(self.operation):
            return why
        y, *extra = (shaped(v.type) for v in self.operation.operands)
        if not is_float(y) or len(y.shape) < 2 or y.shape[-1] == DYNAMIC:
            return f"y is {y}; expected a float [.., N] with N known"
        parts, starts = self.operation.attributes["parts"], self.operation.attributes["starts"]
        if not isinstance(starts, ir.DenseI64ArrayAttr) or len(starts) != len(parts):
            return f"starts are {starts}; expected as many i64 as there are parts"
        for start, width in zip(starts, parts, strict=True):
            if start < 0 or start + width > y.shape[-1]:
                return f"a part of {width} columns from {start} on is not in y, {y}"
        return epilogue_error(self.operation, y.rows, list(parts), extra)


def build_epilogue(
    y: ir.Value, product: ir.Operation, extra: Sequence[ir.Value], starts: Sequence[int]
) -> list[ir.Value]:
    """The results of `product` from its accumulators `y`, by the region that it has."""
    results = [r.type for r in product.results]
    copy = product.clone()  # for its region
    op = ir.Operation.create(
        EpilogueOp.OPERATION_NAME,
        results=results,
        operands=[y, *extra],
        attributes={
            "parts": product.attributes["parts"],
            "starts": ir.DenseI64ArrayAttr.get(list(starts)),
            "maps": product.attributes["maps"],
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get(
                [1] * (1 + len(extra)) + [0] * (MAX_EXTRA - len(extra))
            ),
            "resultSegmentSizes": ir.DenseI32ArrayAttr.get(
                [1] * len(results) + [0] * (MAX_RESULTS - len(results))
            ),
        },
        regions=1,
    )
    copy.regions[0].blocks[0].append_to(op.regions[0])
    copy.erase()
    return list(op.results)
