"""`qfuse-fuse-gate-up`: the two products of a gated MLP become one, with the GLU as epilogue."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.epilogue import build_yield, extend_epilogue
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import has_one_reader, readers, run_equally_often
from qfuse.compiler.passes.siblings import join_weights, merge_error
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.activations import build_glu, build_rounding
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import glu_of
from qfuse.dialects.matmul_op import PRODUCTS, build_matmul
from qfuse.dialects.types import shaped


@dataclass(frozen=True)
class FuseGateUp(Pass):
    """Merge gate and up, exactly, and make the GLU the epilogue of the merged product.

    Before::

        %g = "qfuse.matmul"(%x, %w_gate)
        %u = "qfuse.matmul"(%x, %w_up)
        %y = "qfuse.glu"(%g, %u) {act = "silu"}

    After::

        %w = "qfuse.concat"(%w_gate, %w_up)
        %y = "qfuse.matmul"(%x, %w) ({
        ^bb0(%gate: f32, %up: f32): ... silu(gate) * up, rounded as before ...
        }) {parts = array<i64: 1400, 1400>}

    The gate and up of experts are one product already, `qfuse.group_matmul` with both as results;
    the GLU that reads them becomes its epilogue.

    Codes and scales are joined as they are, each part from a block boundary on; nothing is
    quantized again.  Products of different inputs, weights of different schemes, a gate or up
    with another reader, and a product that already has an epilogue stay two, with a remark.
    """

    name: ClassVar[str] = "qfuse-fuse-gate-up"

    def run(self, module: ir.Operation) -> None:
        Patterns([gate_up, gate_up_of_experts, glu_without_two_products]).apply(module)


def gate_up(p: Pattern) -> None:
    gate = p.op("qfuse.matmul", p.values(), many=True)
    up = p.op("qfuse.matmul", p.values(), many=True)
    glu = p.op("qfuse.glu", p.result(gate), p.result(up), many=True)
    p.require(makes_one_plain_value, glu)
    p.require(has_one_reader, gate)
    p.require(has_one_reader, up)
    p.require(run_equally_often, glu, gate)
    p.require(run_equally_often, glu, up)
    p.require(can_be_merged, glu, gate, up)
    p.rewrite(glu, merge_with_glu, gate, up)


def gate_up_of_experts(p: Pattern) -> None:
    product = p.op("qfuse.group_matmul", p.values(), many=True)
    glu = p.op("qfuse.glu", p.result(product, 0), p.result(product, 1), many=True)
    p.require(makes_one_plain_value, glu)
    p.require(yields_gate_and_up_only, product)
    p.require(run_equally_often, glu, product)
    p.rewrite(glu, absorb_glu, product)


gate_up_of_experts.__name__ = "gate_up"  # one fusion, by one name


def glu_without_two_products(p: Pattern) -> None:
    """Matches any other GLU, to say why it is none of ours."""
    glu = p.op("qfuse.glu", p.values())
    p.require(both_operands_are_products, glu)
    p.rewrite(glu, _never)


glu_without_two_products.__name__ = "gate_up"  # the pattern that its remarks are about


def makes_one_plain_value(glu: ir.Operation) -> Verdict:
    if len(glu.results) == 1 and not shaped(glu.results[0].type).quantized:
        return None
    return Refusal(
        "the GLU already quantizes its result", "run this pass before qfuse-fuse-act-quantize"
    )


def yields_gate_and_up_only(product: ir.Operation) -> Verdict:
    """Nothing but the GLU reads what the product yields."""
    if len(product.results) == 2 and all(len(readers(r)) == 1 for r in product.results):
        return None
    return Refusal(
        "gate or up has another reader", "let the GLU alone read them, or read its result"
    )


def can_be_merged(_glu: ir.Operation, gate: ir.Operation, up: ir.Operation) -> Verdict:
    return merge_error(gate, up)


def both_operands_are_products(glu: ir.Operation) -> Verdict:
    if len(glu.operands) == 1:
        return Refusal("gate and up are halves of one value", "compute them by two products")
    for side, value in zip(("gate", "up"), glu.operands, strict=True):
        made_by = (
            "an argument" if isinstance(value, ir.BlockArgument) else value.owner.operation.name
        )
        if made_by not in PRODUCTS:
            cure = "apply bias or scale to both sides inside one product"
            return Refusal(f"{side} is made by {made_by}, not by a product", cure)
    return MISMATCH


def merge_with_glu(rewriter, glu: ir.Operation, gate: ir.Operation, up: ir.Operation) -> None:
    dtype = shaped(gate.results[0].type).dtype
    rows = shaped(gate.operands[1].type).shape[0]
    merged, block = build_matmul(
        gate.operands[0], join_weights([gate, up]), [glu.results[0].type], parts=[rows, rows]
    )
    with ir.InsertionPoint(block):
        gate_value, up_value = (build_rounding(a, dtype) for a in block.arguments)
        build_yield([build_glu(glu_of(glu), gate_value, up_value, dtype)])
    weights = [remarks.argument_name(p.operands[1]) for p in (gate, up)]
    saved = savings([gate, up, glu], [merged])
    remarks.fired("gate-up", glu, " + ".join(filter(None, weights)), saves=saved)
    rewriter.replace_op(glu, merged.results)


def absorb_glu(rewriter, glu: ir.Operation, product: ir.Operation) -> None:
    dtype = shaped(product.results[0].type).dtype
    fused = extend_epilogue(
        product, [glu.results[0].type], lambda ys, _: [build_glu(glu_of(glu), ys[0], ys[1], dtype)]
    )
    saved = savings([product, glu], [fused])
    remarks.fired("gate-up", glu, remarks.argument_name(product.operands[1]), saves=saved)
    rewriter.replace_op(glu, fused.results)


def _never(*_: object) -> None:
    raise AssertionError("glu_without_two_products only explains")
