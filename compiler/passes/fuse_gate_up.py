"""`qfuse-fuse-gate-up`: the two products of a gated MLP become one, with the GLU as epilogue."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product as combinations
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.epilogue import build_yield, extend_epilogue, scalar_constant
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import has_one_reader, readers, run_equally_often
from qfuse.compiler.passes.siblings import join_weights, merge_error
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.activations import build_glu, build_rounding
from qfuse.dialects.arithmetic import build_elementwise
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import glu_of, glu_operands
from qfuse.dialects.matmul_op import PRODUCTS, build_matmul, map_of
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

    Biases that both sides add come along, as operands of the epilogue.

    Codes and scales are joined as they are, each part from a block boundary on; nothing is
    quantized again.  Products of different inputs, weights of different schemes, a bias on one
    side, a gate or up with another reader, and a product that already has an epilogue stay two,
    with a remark.
    """

    name: ClassVar[str] = "qfuse-fuse-gate-up"

    def run(self, module: ir.Operation) -> None:
        biased = [_gate_up_with_biases(*sides) for sides in combinations((0, 1), repeat=2)]
        Patterns([gate_up, *biased, gate_up_of_experts, glu_without_two_products]).apply(module)


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


def _gate_up_with_biases(gate_side: int, up_side: int) -> Callable[[Pattern], None]:
    """Products that are operand `gate_side` and `up_side` of the adds of their biases"""

    def gate_up(p: Pattern) -> None:
        products = [p.op("qfuse.matmul", p.values(), many=True) for _ in range(2)]
        biases = [p.value() for _ in range(2)]
        sums = [
            p.op("qfuse.add", *((p.result(product), bias)[:: -1 if side else 1]))
            for product, bias, side in zip(products, biases, (gate_side, up_side), strict=True)
        ]
        glu = p.op("qfuse.glu", *map(p.result, sums), many=True)
        p.require(makes_one_plain_value, glu)
        for product, bias, total in zip(products, biases, sums, strict=True):
            p.require(adds_a_bias, total, product, bias)
            p.require(has_one_reader, product)
            p.require(glu_alone_reads_the_sum, total)
            p.require(run_equally_often, glu, product)
            p.require(run_equally_often, glu, total)
        p.require(can_be_merged, glu, *products)
        p.rewrite(glu, merge_with_biases, *products, *sums, *biases)

    return gate_up


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
    p.require(makes_one_plain_value, glu)
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


def adds_a_bias(total: ir.Operation, product: ir.Operation, bias: ir.Value) -> Verdict:
    y = shaped(product.results[0].type)
    is_bias = map_of(shaped(bias.type), y.rows, y.shape[-1]) in ("[N]", "[]")
    keeps_rows = shaped(total.results[0].type).shape == y.shape
    return None if is_bias and keeps_rows and scalar_constant(bias) is None else MISMATCH


def glu_alone_reads_the_sum(total: ir.Operation) -> Verdict:
    if len(readers(total.results[0])) == 1:
        return None
    return Refusal("gate or up has another reader", "let the GLU alone read them")


def can_be_merged(_glu: ir.Operation, gate: ir.Operation, up: ir.Operation) -> Verdict:
    return merge_error(gate, up)


def both_operands_are_products(glu: ir.Operation) -> Verdict:
    operands, _ = glu_operands(glu, list(glu.operands))
    if len(operands) == 1:
        return Refusal("gate and up are halves of one value", "compute them by two products")
    makers = [
        "an argument" if isinstance(value, ir.BlockArgument) else value.owner.operation.name
        for value in operands
    ]
    biased = [_is_biased_product(value) for value in operands]
    if all(biased):
        return MISMATCH
    for i, side in enumerate(("gate", "up")):
        if biased[i] and makers[1 - i] in PRODUCTS:
            return Refusal(f"of gate and up, only {side} has a bias", "give both one, or none")
    for side, made_by in zip(("gate", "up"), makers, strict=True):
        if made_by not in PRODUCTS:
            cure = "apply bias or scale to both sides inside one product"
            return Refusal(f"{side} is made by {made_by}, not by a product", cure)
    return MISMATCH


def _is_biased_product(value: ir.Value) -> bool:
    """Whether `value` is the sum of what a product makes and a bias."""
    if isinstance(value, ir.BlockArgument) or value.owner.name != "qfuse.add":
        return False
    total = value.owner.operation
    for y, bias in (total.operands, list(total.operands)[::-1]):
        if not isinstance(y, ir.BlockArgument) and y.owner.name == "qfuse.matmul":
            return adds_a_bias(total, y.owner.operation, bias) is None
    return False


def merge_with_glu(rewriter, glu: ir.Operation, gate: ir.Operation, up: ir.Operation) -> None:
    _merge(rewriter, glu, (gate, up))


def merge_with_biases(
    rewriter,
    glu: ir.Operation,
    gate: ir.Operation,
    up: ir.Operation,
    gate_sum: ir.Operation,
    up_sum: ir.Operation,
    *biases: ir.Value,
) -> None:
    _merge(rewriter, glu, (gate, up), (gate_sum, up_sum), biases)


def _merge(
    rewriter,
    glu: ir.Operation,
    products: Sequence[ir.Operation],
    sums: Sequence[ir.Operation] = (),
    biases: Sequence[ir.Value] = (),
) -> None:
    """Replace gate and up, the adds of their biases if there are any, and the GLU by a product."""
    rows = [shaped(p.operands[1].type).shape[0] for p in products]
    merged, block = build_matmul(
        products[0].operands[0],
        join_weights(products),
        [glu.results[0].type],
        parts=rows,
        extra=biases,
        maps=[_map(p, bias) for p, bias in zip(products, biases, strict=False)],
    )
    with ir.InsertionPoint(block):
        arguments = list(block.arguments)
        values = [_rounded(a, p) for a, p in zip(arguments, products, strict=False)]
        for i, total in enumerate(sums):
            bias = arguments[len(products) + i]
            values[i] = _rounded(build_elementwise("add", [values[i], bias], {}), total)
        gate_value, up_value = values
        dtype = shaped(glu.operands[0].type).dtype
        build_yield([build_glu(glu_of(glu), gate_value, up_value, dtype)])
    weights = [remarks.argument_name(p.operands[1]) for p in products]
    saved = savings([*products, *sums, glu], [merged])
    remarks.fired("gate-up", glu, " + ".join(filter(None, weights)), saves=saved)
    rewriter.replace_op(glu, merged.results)


def _rounded(value: ir.Value, op: ir.Operation) -> ir.Value:
    """`value` as the result of `op` held it."""
    return build_rounding(value, shaped(op.results[0].type).dtype)


def _map(product: ir.Operation, bias: ir.Value) -> str:
    y = shaped(product.results[0].type)
    return map_of(shaped(bias.type), y.rows, y.shape[-1]) or ""


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
