"""`qfuse-fuse-combine`: the product that makes the rows of experts adds them up for each token."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.epilogue import extend_epilogue
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import has_one_reader, has_one_result, run_equally_often
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import INPUTS, inputs_of
from qfuse.dialects.moe_ops import GroupMatmulCombineOp, GroupMatmulOp, RouteOp


@dataclass(frozen=True)
class FuseCombine(Pass):
    """Add up the rows of a token's experts in the product that makes them.

    Before::

        %slots, %tokens, %indptr = "qfuse.route"(%ids)
        %y = "qfuse.group_matmul"(%h, %down, %indptr) ({^bb0(%acc: f32): "qfuse.yield"(%acc)})
        %z = "qfuse.combine"(%y, %slots, %weights, %residual)

    After::

        %slots, %tokens, %indptr = "qfuse.route"(%ids)
        %z = "qfuse.group_matmul_combine"(%h, %down, %indptr, %slots, %weights, %residual) ({
        ^bb0(%acc: f32):
          %0 = arith.truncf %acc : f32 to bf16
          %1 = arith.extf %0 : bf16 to f32
          "qfuse.yield"(%1)
        })

    Rows are rounded as before, and added in the same order, so the result has the same bits.  The
    kernel is one launch for a few tokens, and on a GPU two for many: the second one adds up.

    Rows with a second reader, those of a product with several results, rows and slots of different
    routes, and a combine in another block than its product stay apart, with a remark; so do rows
    that no product of experts makes.  A residual joins the combine before, in qfuse-fuse-epilogue.
    """

    name: ClassVar[str] = "qfuse-fuse-combine"

    def run(self, module: ir.Operation) -> None:
        patterns = [_product_combine(operands) for operands in (2, 3)]
        Patterns([*patterns, rows_without_product]).apply(module)


def _product_combine(others: int) -> Callable[[Pattern], None]:
    """combine of the rows of a product and `others` operands: slots, weights, maybe a residual"""

    def product_combine(p: Pattern) -> None:
        product = p.op(GroupMatmulOp.OPERATION_NAME, p.values(), many=True)
        combine = p.op("qfuse.combine", p.result(product), *(p.value() for _ in range(others)))
        p.require(has_one_result, product)
        p.require(has_one_reader, product)
        p.require(run_equally_often, combine, product)
        p.require(are_of_one_route, combine, product)
        p.rewrite(combine, absorb_combine, product)

    return product_combine


def rows_without_product(p: Pattern) -> None:
    """Matches any other combine, to say why it stays."""
    combine = p.op("qfuse.combine", p.values())
    p.require(rows_are_first_of_a_product, combine)
    p.rewrite(combine, _never)


rows_without_product.__name__ = "product_combine"  # the pattern that its remarks are about


def are_of_one_route(combine: ir.Operation, product: ir.Operation) -> Verdict:
    """The slots are places in the order that the product's rows are in."""
    indptr, slots = inputs_of(product, product.operands)["indptr"], combine.operands[1]
    assert indptr is not None
    makers = _made_by(indptr), _made_by(slots)
    if makers == (RouteOp.OPERATION_NAME,) * 2 and indptr.owner == slots.owner:
        return None
    return Refusal(
        "the slots are not of the route that the rows are sorted by: indptr is made by "
        f"{makers[0]}, slots by {makers[1]}",
        "take indptr and slots from one qfuse.route",
    )


def rows_are_first_of_a_product(combine: ir.Operation) -> Verdict:
    rows = combine.operands[0]
    if _made_by(rows) != GroupMatmulOp.OPERATION_NAME:
        return Refusal(
            f"the rows are made by {_made_by(rows)}, not by a product of experts",
            "let qfuse.group_matmul make them",
        )
    return MISMATCH if rows == rows.owner.results[0] else has_one_result(rows.owner.operation)


def absorb_combine(rewriter, combine: ir.Operation, product: ir.Operation) -> None:
    _, slots, weights, *residual = combine.operands
    given = inputs_of(product, product.operands)
    given |= {"slots": slots, "weights": weights, "residual": residual[0] if residual else None}
    name = GroupMatmulCombineOp.OPERATION_NAME
    fused = extend_epilogue(
        product,
        [combine.results[0].type],
        lambda ys, _: ys,
        into=(name, [given[operand] for operand in INPUTS[name]]),
    )
    saved = savings([product, combine], [fused])
    about = remarks.argument_name(product.operands[1])
    remarks.fired("product-combine", combine, about, saves=saved)
    rewriter.replace_op(combine, fused.results)


def _made_by(value: ir.Value) -> str:
    return "an argument" if isinstance(value, ir.BlockArgument) else value.owner.operation.name


def _never(*_: object) -> None:
    raise AssertionError("rows_without_product only explains")
