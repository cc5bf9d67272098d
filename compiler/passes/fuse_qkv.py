"""`qfuse-fuse-qkv`: products that read one value become one product with several results."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.epilogue import build_yield
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import defined_before, readers
from qfuse.compiler.passes.siblings import join_weights, merge_error, scales_error
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import MatmulOp, build_matmul
from qfuse.dialects.quantization_ops import MAX_PARTS, QuantizeOp
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
    scheme, is computed at run time, that already has an epilogue, or that reads the value quantized
    by another static scale is left alone, with a remark; so is the only product of a value, without
    one.
    """

    name: ClassVar[str] = "qfuse-fuse-qkv"

    def run(self, module: ir.Operation) -> None:
        Patterns([siblings, siblings_by_scales]).apply(module)


def siblings(p: Pattern) -> None:
    product = p.op("qfuse.matmul", p.values(), many=True)
    p.require(has_one_weight, product)
    p.require(leads_its_siblings, product)
    p.rewrite(product, merge_siblings)


def siblings_by_scales(p: Pattern) -> None:
    """Matches only to say why products of one value by several scales stay alone."""
    product = p.op("qfuse.matmul", p.values(), many=True)
    p.require(has_one_weight, product)
    p.require(siblings_have_its_scale, product)
    p.rewrite(product, _never)


siblings_by_scales.__name__ = "siblings"  # the pattern that its remarks are about


def siblings_have_its_scale(product: ir.Operation) -> Verdict:
    """No product reads what `product` does, quantized by another scale; if so, no candidate."""
    x = product.operands[0]
    if isinstance(x, ir.BlockArgument) or x.owner.name != QuantizeOp.OPERATION_NAME:
        return MISMATCH
    for other in readers(x.owner.operands[0]):
        if other.name != QuantizeOp.OPERATION_NAME:
            continue
        why = scales_error(x, other.results[0])
        of_products = any(op.name == MatmulOp.OPERATION_NAME for op in readers(other.results[0]))
        if why is not None and of_products:
            return why
    return MISMATCH


def _never(*_: object) -> None:
    raise AssertionError("siblings_by_scales only explains")


def has_one_weight(product: ir.Operation) -> Verdict:
    return None if _is_single_product(product) else MISMATCH


def leads_its_siblings(product: ir.Operation) -> Verdict:
    """The product is the first of a group that can be merged.

    The first product of a value also says why others stay alone, while all are still there.
    """
    groups = _groups(product)
    if product == groups[0][0]:
        _explain(groups)
    leads = any(product == leader and rest for leader, *rest in groups)
    return None if leads else MISMATCH


def _explain(groups: list[list[ir.Operation]]) -> None:
    first = groups[0][0]
    alone = [group[0] for group in groups[1:] if len(group) == 1]
    for sibling in alone:
        error = _error(first, sibling) or Refusal(f"{MAX_PARTS} products are merged already")
        remarks.refused("siblings", sibling, sibling, error.cause, error.cure)
    if len(groups[0]) == 1 and alone and (why := merge_error(first, alone[0])):
        remarks.refused("siblings", first, first, why.cause, why.cure)


def merge_siblings(rewriter, product: ir.Operation) -> None:
    group = next(group for group in _groups(product) if product == group[0])
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
    about = " + ".join(filter(None, weights))
    remarks.fired("siblings", product, about, saves=savings(group, [merged]))
    for old, new in zip(group, merged.results, strict=True):
        rewriter.replace_op(old, [new])


def _groups(product: ir.Operation) -> list[list[ir.Operation]]:
    """The siblings of `product` and itself, split into groups that can be merged."""
    groups: list[list[ir.Operation]] = []
    for sibling in _siblings(product):
        fitting = (g for g in groups if len(g) < MAX_PARTS and _error(g[0], sibling) is None)
        group = next(fitting, None)
        if group is None:
            groups.append([sibling])
        else:
            group.append(sibling)
    return groups


def _error(leader: ir.Operation, sibling: ir.Operation) -> Refusal | None:
    """Why the merged product, which stands where `leader` does, cannot compute `sibling`."""
    if error := merge_error(leader, sibling):
        return error
    if defined_before(sibling.operands[1], leader):
        return None
    return Refusal("the weight is made after the first product", "make weights at the top")


def _siblings(product: ir.Operation) -> list[ir.Operation]:
    """The products of one weight each of the same x in the same block, in program order."""
    x = product.operands[0]
    found = [op for op in readers(x) if op.operands[0] == x and op.block == product.block]
    # a product that reads x twice is found twice
    return _in_order(list(dict.fromkeys(op for op in found if _is_single_product(op))))


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
