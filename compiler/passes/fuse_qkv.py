"""`qfuse-fuse-qkv`: products that read one value become one product with several results."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import build_yield
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import readers
from qfuse.compiler.passes.siblings import join_weights, merge_error
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import MatmulOp, build_matmul
from qfuse.dialects.quantization_ops import MAX_PARTS
from qfuse.dialects.types import shaped


@dataclass(frozen=True)
class FuseQkv(Pass):
    """Merge the plain products of one value, such as q, k and v, into one launch.

    Before::

        %q = "qfuse.matmul"(%x, %w_q)
        %k = "qfuse.matmul"(%x, %w_k)
        %v = "qfuse.matmul"(%x, %w_v)

    After::

        %w = "qfuse.concat"(%w_q, %w_k, %w_v)
        %q, %k, %v = "qfuse.matmul"(%x, %w) {parts = array<i64: 512, 256, 256>}

    Widths may differ.  At most four products are merged.  A sibling whose weight has another
    scheme, is computed at run time, or that already has an epilogue is left alone, with a remark;
    so is the only product of a value, without one.
    """

    name: ClassVar[str] = "qfuse-fuse-qkv"

    def run(self, module: ir.Operation) -> None:
        Patterns([siblings]).apply(module)


def siblings(p: Pattern) -> None:
    product = p.op("qfuse.matmul", p.values(), many=True)
    p.require(leads_its_siblings, product)
    p.rewrite(product, merge_siblings)


def leads_its_siblings(product: ir.Operation) -> Verdict:
    """The product is the first of its value, and others can be merged with it."""
    candidates = _products_of(product.operands[0])
    if len(candidates) < 2 or product != candidates[0]:
        return MISMATCH
    group = _group(product)
    if len(group) > 1:
        return None
    error = merge_error(product, candidates[1])
    return error or Refusal("no sibling can be merged")


def merge_siblings(rewriter, product: ir.Operation) -> None:
    group = _group(product)
    rows = [shaped(p.operands[1].type).shape[0] for p in group]
    merged, block = build_matmul(
        product.operands[0],
        join_weights(group),
        [p.results[0].type for p in group],
        parts=rows,
    )
    with ir.InsertionPoint(block):
        build_yield(list(block.arguments))
    weights = [remarks.argument_name(p.operands[1]) for p in group]
    remarks.fired("siblings", product, " + ".join(filter(None, weights)))
    for old, new in zip(group, merged.results, strict=True):
        rewriter.replace_op(old, [new])


def _group(leader: ir.Operation) -> list[ir.Operation]:
    group = [leader]
    for sibling in _products_of(leader.operands[0])[1:]:
        error = merge_error(leader, sibling) or _placement_error(leader, sibling)
        if error is None and len(group) == MAX_PARTS:
            error = Refusal(f"{MAX_PARTS} products are merged already")
        if error is None:
            group.append(sibling)
        else:
            remarks.refused("siblings", sibling, sibling, error.cause, error.cure)
    return group


def _placement_error(leader: ir.Operation, sibling: ir.Operation) -> Refusal | None:
    weight = sibling.operands[1]
    if isinstance(weight, ir.BlockArgument) or weight.owner.operation.is_before_in_block(leader):
        return None
    return Refusal("the weight is made after the first product", "make weights at the top")


def _products_of(x: ir.Value) -> list[ir.Operation]:
    """The products of one weight each whose x is `x`, in program order."""
    found = [op for op in readers(x) if _is_single_product(op) and op.operands[0] == x]
    found = [op for op in found if op.block == found[0].block]
    return _in_order(found)


def _is_single_product(op: ir.Operation) -> bool:
    if op.name != MatmulOp.OPERATION_NAME:
        return False
    return len(ir.DenseI64ArrayAttr(op.attributes["parts"])) == 1


def _in_order(ops: list[ir.Operation]) -> list[ir.Operation]:
    ordered: list[ir.Operation] = []
    for op in ops:
        position = sum(other.is_before_in_block(op) for other in ordered)
        ordered.insert(position, op)
    return ordered
