"""`qfuse-expand-quantize`: dynamic activation quantization becomes an operation of its own."""

from dataclasses import dataclass, replace
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import build_yield, inline_block
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir, passmanager
from qfuse.dialects.matmul_op import build_matmul
from qfuse.dialects.quantization_ops import QuantizeOp
from qfuse.dialects.types import Scheme, SchemeAttr, scheme_of, shaped

INPUT_SCHEME = "qfuse.input_scheme"
"""Attribute of a product whose plain x is to be quantized dynamically to this scheme."""


@dataclass(frozen=True)
class ExpandQuantize(Pass):
    """Turn a product that quantizes its input into `qfuse.quantize` and a plain product.

    Before::

        %y = "qfuse.matmul"(%x, %w) {qfuse.input_scheme = #qfuse.scheme<array<i64: 1, 128>, ...>}

    After::

        %q = "qfuse.quantize"(%x)
        %y = "qfuse.matmul"(%q, %w)

    Equal quantizations of one value become one, which all its products then share.  A product
    without the attribute, or whose input is quantized already, stays as it is.
    """

    name: ClassVar[str] = "qfuse-expand-quantize"

    def run(self, module: ir.Operation) -> None:
        Patterns([expand_quantized_input]).apply(module)
        passmanager.PassManager.parse("builtin.module(func.func(cse))").run(module)


def expand_quantized_input(p: Pattern) -> None:
    product = p.op("qfuse.matmul", p.values(), many=True)
    p.require(input_can_be_quantized, product)
    p.rewrite(product, split_quantize)


def names_input_scheme(product: ir.Operation) -> Verdict:
    return None if INPUT_SCHEME in product.attributes else MISMATCH


def input_is_plain(product: ir.Operation) -> Verdict:
    return MISMATCH if shaped(product.operands[0].type).quantized else None


def input_can_be_quantized(product: ir.Operation) -> Verdict:
    if names_input_scheme(product) or input_is_plain(product):
        return MISMATCH  # predicates of one match run in no particular order
    x, w = shaped(product.operands[0].type), shaped(product.operands[1].type)
    scheme = _scheme(product)
    if w.scheme is None or w.scheme.block[1] != scheme.block[1]:
        return Refusal(
            f"x is to be scaled per {scheme.block[1]} elements of K, but w is {w}",
            "quantize x in groups of w's block",
        )
    if x.shape[-1] < 0:
        return Refusal("K is not static")
    return None


def split_quantize(rewriter, product: ir.Operation) -> None:
    x, w, *extra = product.operands
    value = shaped(x.type)
    storage = shaped(w.type).dtype
    quantized = replace(value, dtype=storage, scheme=_scheme(product))
    q = ir.Operation.create(
        QuantizeOp.OPERATION_NAME, results=[quantized.type()], operands=[x]
    ).result
    new, block = build_matmul(
        q,
        w,
        [r.type for r in product.results],
        parts=list(ir.DenseI64ArrayAttr(product.attributes["parts"])),
        extra=extra,
        maps=[ir.StringAttr(m).value for m in ir.ArrayAttr(product.attributes["maps"])],
    )
    with ir.InsertionPoint(block):
        build_yield(inline_block(product.regions[0].blocks[0], list(block.arguments)))
    remarks.fired("expand-quantized-input", product, remarks.argument_name(w))
    rewriter.replace_op(product, new.results)


def _scheme(product: ir.Operation) -> Scheme:
    return scheme_of(SchemeAttr(product.attributes[INPUT_SCHEME]))
