"""`qfuse-expand-quantize`: dynamic activation quantization becomes an operation of its own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import build_yield, inline_block
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir, passmanager
from qfuse.dialects.matmul_op import INPUTS, build_product, groups_nest, inputs_of
from qfuse.dialects.quantization_ops import QuantizeOp, quantize_error
from qfuse.dialects.types import Scheme, SchemeAttr, Shaped, scheme_error, scheme_of, shaped
from qfuse.dialects.verify import IllegalType

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

    The same goes for a `qfuse.group_matmul`.  Equal quantizations of one value become one, which
    all its products then share.  A product
    without the attribute, or whose input is quantized already, stays as it is.
    """

    name: ClassVar[str] = "qfuse-expand-quantize"

    def run(self, module: ir.Operation) -> None:
        Patterns([_expand(name) for name in INPUTS]).apply(module)
        passmanager.PassManager.parse("builtin.module(func.func(cse))").run(module)


def _expand(name: str) -> Callable[[Pattern], None]:
    def expand_quantized_input(p: Pattern) -> None:
        product = p.op(name, p.values(), many=True)
        p.require(names_input_scheme, product)
        p.require(input_is_plain, product)
        p.require(weight_is_quantized, product)
        p.require(scheme_can_be_produced, product)
        p.require(groups_fit, product)
        p.rewrite(product, split_quantize)

    return expand_quantized_input


def names_input_scheme(product: ir.Operation) -> Verdict:
    return None if INPUT_SCHEME in product.attributes else MISMATCH


def input_is_plain(product: ir.Operation) -> Verdict:
    return MISMATCH if shaped(product.operands[0].type).quantized else None


def weight_is_quantized(product: ir.Operation) -> Verdict:
    w = shaped(product.operands[1].type)
    return (
        None if w.quantized else Refusal(f"x is to be quantized, but w is {w}", "quantize w, too")
    )


def scheme_can_be_produced(product: ir.Operation) -> Verdict:
    attribute = product.attributes[INPUT_SCHEME]
    if not isinstance(attribute, SchemeAttr):
        return Refusal(f"{INPUT_SCHEME} is {attribute}", "give it a #qfuse.scheme")
    try:
        quantized = _quantized_input(product)
    except IllegalType as error:
        return Refusal(f"{INPUT_SCHEME}: {error}")
    why = scheme_error(quantized) or quantize_error(quantized)
    return None if why is None else Refusal(f"{INPUT_SCHEME}: {why}")


def groups_fit(product: ir.Operation) -> Verdict:
    """The columns that share a scale of x are some of those that share one of w, or the reverse."""
    w, group = shaped(product.operands[1].type), _scheme(product).group
    assert w.scheme is not None
    if groups_nest(group, w.scheme.group, w.shape[-1]):
        return None
    return Refusal(
        f"x is to be scaled per {group} elements of K, but w is {w}",
        "quantize x in groups that divide w's",
    )


def split_quantize(rewriter, product: ir.Operation) -> None:
    x, *others = inputs_of(product, product.operands).values()
    extra = list(product.operands)[1 + sum(value is not None for value in others) :]
    q = ir.Operation.create(
        QuantizeOp.OPERATION_NAME, results=[_quantized_input(product).type()], operands=[x]
    ).result
    new, block = build_product(
        product.name,
        [q, *others],
        [r.type for r in product.results],
        list(ir.DenseI64ArrayAttr(product.attributes["parts"])),
        extra,
        [ir.StringAttr(m).value for m in ir.ArrayAttr(product.attributes["maps"])],
    )
    with ir.InsertionPoint(block):
        build_yield(inline_block(product.regions[0].blocks[0], list(block.arguments)))
    remarks.fired("expand-quantized-input", product, remarks.argument_name(others[0]))
    rewriter.replace_op(product, new.results)


_STORED_AS = {"f8E5M2": "f8E4M3FN", "i6": "i8", "i4": "i8", "f4E2M1FN": "i8"}
"""How x is stored beside a weight of this type; otherwise as the weight is.

E4M3 as in `qfuse::quantized_linear`; eight bits as in ggml's products of q8_1."""


def _quantized_input(product: ir.Operation) -> Shaped:
    """The type of x quantized: stored as suits w, scaled as the attribute says."""
    x, w = (shaped(v.type) for v in list(product.operands)[:2])
    return replace(x, dtype=stored_beside(w), scheme=_scheme(product))


def stored_beside(w: Shaped) -> str:
    """Element type of an x that is quantized for a product with w."""
    return _STORED_AS.get(w.dtype, w.dtype)


def _scheme(product: ir.Operation) -> Scheme:
    return scheme_of(SchemeAttr(product.attributes[INPUT_SCHEME]))
