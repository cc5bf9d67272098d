"""Merging products that read one value: what gate/up and QKV have in common."""

from collections.abc import Sequence

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import is_identity
from qfuse.compiler.passes.expand_quantize import INPUT_SCHEME
from qfuse.compiler.passes.predicates import given_scale, is_made_once
from qfuse.compiler.pdl import Refusal
from qfuse.dialects.bindings import ir
from qfuse.dialects.quantization_ops import QuantizeOp, build_concat
from qfuse.dialects.types import shaped


def merge_error(first: ir.Operation, other: ir.Operation) -> Refusal | None:
    """Why the weights of two products cannot be joined exactly, or None.

    Both must be plain products (nothing fused yet) of one x, with weights of one K, element type
    and scheme, made from function arguments.  Rows need not be a multiple of the scale block:
    `qfuse.concat` begins each part at a block boundary.
    """
    if first.operands[0] != other.operands[0]:
        if (why := scales_error(first.operands[0], other.operands[0])) is not None:
            return why
        return Refusal(
            f"the products read different values, {_source(first)} and {_source(other)}",
            "share one quantized input",
        )
    for product in (first, other):
        if INPUT_SCHEME in product.attributes:
            return Refusal(
                "the quantization of an input is still part of the product",
                "run qfuse-expand-quantize first",
            )
        if len(product.results) != 1 or not is_identity(product):
            return Refusal(
                "an epilogue is already fused into one of the products",
                "run this pass before qfuse-fuse-epilogue",
            )
        if not is_made_once(product.operands[1]):
            return Refusal(
                "a weight is computed at run time, so joining it would cost a copy per call",
                "pass the weight as a parameter",
            )
    a, b = shaped(first.operands[1].type), shaped(other.operands[1].type)
    if a.dtype != b.dtype:
        return Refusal(f"weights are stored as {a.dtype} and {b.dtype}", "quantize both alike")
    if a.scheme != b.scheme:
        return Refusal(
            f"weight schemes differ: {a.scheme} and {b.scheme}", "quantize both weights alike"
        )
    if first.results[0].type.element_type != other.results[0].type.element_type:
        return Refusal("the products round their results to different types")
    return None


def scales_error(x: ir.Value, other: ir.Value) -> Refusal | None:
    """That two values are one that was quantized by two scales given beforehand, if they are."""
    makers = [v.owner.operation for v in (x, other) if not isinstance(v, ir.BlockArgument)]
    if len(makers) < 2 or any(op.name != QuantizeOp.OPERATION_NAME for op in makers):
        return None
    a, b = (given_scale(op) for op in makers)
    if a is None or b is None or a == b or makers[0].operands[0] != makers[1].operands[0]:
        return None
    names = [remarks.argument_name(scale) for scale in (a, b)]
    return Refusal(
        "the products read one value quantized by different scales"
        + (f", {names[0]} and {names[1]}" if all(names) else ""),
        "quantize it by one scale for both",
    )


def join_weights(products: Sequence[ir.Operation]) -> ir.Value:
    """A `qfuse.concat` of the products' weights at the insertion point."""
    return build_concat([p.operands[1] for p in products])


def _source(product: ir.Operation) -> str:
    x = product.operands[0]
    if isinstance(x, ir.BlockArgument):
        return f"argument {x.arg_number}"
    return f"a {x.owner.operation.name} result"
