"""`qfuse-fuse-act-quantize`: the GLU that makes a value also quantizes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import extend_epilogue
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import readers, run_equally_often
from qfuse.compiler.pdl import Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import create_glu, glu_of
from qfuse.dialects.matmul_op import PRODUCTS
from qfuse.dialects.types import shaped


@dataclass(frozen=True)
class FuseActQuantize(Pass):
    """Quantize an activation's result where it is made: in a GLU, or in a product's epilogue.

    Before::

        %y = "qfuse.matmul"(%x, %w) ({... silu(gate) * up ...})
        %q = "qfuse.quantize"(%y)

    After::

        %q = "qfuse.matmul"(%x, %w) ({... the same, rounded ...}) : -> !qfuse.qtensor<...>

    A product of experts (`qfuse.group_matmul`) does the same.  With other readers the value stays a
    second result.  A plain product, one whose epilogue is no
    activation, keeps its quantization apart (vLLM PR 36689 measured 0.70 to 1.00 of the unfused
    speed for it); so does a producer that quantizes already.  Both leave a remark.
    """

    name: ClassVar[str] = "qfuse-fuse-act-quantize"

    def run(self, module: ir.Operation) -> None:
        Patterns([glu_quantize, *(_product(name) for name in PRODUCTS)]).apply(module)


def glu_quantize(p: Pattern) -> None:
    glu = p.op("qfuse.glu", p.values(), many=True)
    quantize = p.op("qfuse.quantize", p.result(glu))
    p.require(run_equally_often, quantize, glu)
    p.require(quantizes_nothing_yet, quantize, glu)
    p.rewrite(quantize, quantize_in_glu, glu)


def _product(name: str) -> Callable[[Pattern], None]:
    def product_quantize(p: Pattern) -> None:
        product = p.op(name, p.values(), many=True)
        quantize = p.op("qfuse.quantize", p.result(product))
        p.require(run_equally_often, quantize, product)
        p.require(quantizes_nothing_yet, quantize, product)
        p.require(has_one_plain_result, quantize, product)
        p.require(ends_in_activation, quantize, product)
        p.require(groups_fit_tiles, quantize)
        p.rewrite(quantize, quantize_in_product, product)

    return product_quantize


def quantizes_nothing_yet(quantize: ir.Operation, producer: ir.Operation) -> Verdict:
    for result in producer.results:
        if result.type == quantize.results[0].type:
            return Refusal(f"{producer.name} already yields this very value", "run cse first")
        if shaped(result.type).quantized:
            return Refusal(
                f"{producer.name} already yields {shaped(result.type)}",
                "quantize all readers of a value to one scheme",
            )
    return None


def has_one_plain_result(_quantize: ir.Operation, product: ir.Operation) -> Verdict:
    if len(product.results) == 1:
        return None
    return Refusal(f"the product has {len(product.results)} results")


def ends_in_activation(_quantize: ir.Operation, product: ir.Operation) -> Verdict:
    operations = product.regions[0].blocks[0].operations
    if any(op.operation.name in _ACTIVATION_OPS for op in operations):
        return None
    return Refusal(
        "the product has no activation in its epilogue, and quantizing a plain product's result "
        "there was measured slower than apart",
        "quantize in the operation that reads it, or fuse an activation first",
    )


def groups_fit_tiles(quantize: ir.Operation) -> Verdict:
    quantized = shaped(quantize.results[0].type)
    assert quantized.scheme is not None
    width, group = quantized.shape[-1], quantized.scheme.block[1]
    if width <= TILE or (group % LANES == 0 and TILE % group == 0):
        return None
    return Refusal(
        f"a group of {group} lies in several of the tiles of {TILE} columns that a product "
        "computes apart",
        f"quantize in groups of {LANES} to {TILE}, a power of two",
    )


TILE, LANES = 128, 16
"""Columns that the kernels of a product finish together, in vectors of LANES; a group's scale
needs all of the group."""

_ACTIVATION_OPS = ("math.exp", "math.erf", "math.tanh", "arith.maximumf")


def quantize_in_glu(rewriter, quantize: ir.Operation, glu: ir.Operation) -> None:
    keep = len(readers(glu.results[0])) > 1
    value_type, quantized_type = glu.results[0].type, quantize.results[0].type
    remarks.fired("glu-quantize", quantize)
    with ir.InsertionPoint(glu):
        new = create_glu(
            glu_of(glu),
            list(glu.operands),
            value_type if keep else None,
            quantized_type,
            loc=glu.location,
        )
    _replace(rewriter, quantize, glu, new)


def quantize_in_product(rewriter, quantize: ir.Operation, product: ir.Operation) -> None:
    keep = len(readers(product.results[0])) > 1
    types = [product.results[0].type] if keep else []
    remarks.fired("product-quantize", quantize, remarks.argument_name(product.operands[1]))
    with ir.InsertionPoint(product), product.location:
        new = extend_epilogue(
            product,
            [*types, quantize.results[0].type],
            lambda ys, _: [ys[0]] * (len(types) + 1),
        )
    _replace(rewriter, quantize, product, new)


def _replace(rewriter, quantize: ir.Operation, old: ir.Operation, new: ir.Operation) -> None:
    """The quantized value is the last result of `new`; without another, `old` has no reader."""
    rewriter.replace_op(quantize, [new.results[len(new.results) - 1]])
    rewriter.replace_op(old, [new.results[0]])
