"""`qfuse-fuse-act-quantize`: the GLU that makes a value also quantizes it."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.epilogue import extend_epilogue, places
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.epilogue_stages import reads_a_product, runs_as_often
from qfuse.compiler.passes.predicates import readers, run_equally_often
from qfuse.compiler.pdl import Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import create_glu, glu_of
from qfuse.dialects.matmul_op import MAX_RESULTS
from qfuse.dialects.types import shaped


@dataclass(frozen=True)
class FuseActQuantize(Pass):
    """Quantize an activation's result where it is made: in a GLU, or in a product's epilogue.

    Before::

        %y = "qfuse.matmul"(%x, %w) ({... silu(gate) * up ...})
        %q = "qfuse.quantize"(%y)

    After::

        %q = "qfuse.matmul"(%x, %w) ({... the same, rounded ...}) : -> !qfuse.qtensor<...>

    A product of experts (`qfuse.group_matmul`) does the same.  With other readers the value stays
    a result, as the other results of a product do.  A plain product, one whose epilogue is no
    activation, keeps its quantization apart (vLLM PR 36689 measured 0.70 to 1.00 of the unfused
    speed for it); so does a producer that quantizes already, or has no room for a fifth result,
    and a quantization by a scale given beforehand.  All leave a remark.
    """

    name: ClassVar[str] = "qfuse-fuse-act-quantize"

    def run(self, module: ir.Operation) -> None:
        Patterns([glu_quantize, product_quantize, *_WITH_GIVEN_SCALE]).apply(module)


def glu_quantize(p: Pattern) -> None:
    glu = p.op("qfuse.glu", p.values(), many=True)
    quantize = p.op("qfuse.quantize", p.result(glu))
    p.require(run_equally_often, quantize, glu)
    p.require(quantizes_nothing_yet, quantize, glu)
    p.rewrite(quantize, quantize_in_glu, glu)


def product_quantize(p: Pattern) -> None:
    y = p.value()
    quantize = p.op("qfuse.quantize", y)
    p.require(reads_a_product, quantize, y)
    p.require(runs_as_often, quantize, y)
    p.require(product_quantizes_nothing_yet, quantize, y)
    p.require(has_room_for_result, quantize, y)
    p.require(ends_in_activation, quantize, y)
    p.require(groups_fit_tiles, quantize)
    p.rewrite(quantize, quantize_in_product, y)


def glu_with_given_scale(p: Pattern) -> None:
    """Matches only to say why it stays; so does the next one."""
    glu = p.op("qfuse.glu", p.values(), many=True)
    quantize = p.op("qfuse.quantize", p.result(glu), p.value())
    p.require(finds_its_scale, quantize)
    p.rewrite(quantize, _never)


def product_with_given_scale(p: Pattern) -> None:
    y = p.value()
    quantize = p.op("qfuse.quantize", y, p.value())
    p.require(reads_a_product, quantize, y)
    p.require(finds_its_scale, quantize)
    p.rewrite(quantize, _never)


_WITH_GIVEN_SCALE = (glu_with_given_scale, product_with_given_scale)
glu_with_given_scale.__name__ = "glu_quantize"  # the patterns that their remarks are about
product_with_given_scale.__name__ = "product_quantize"


def finds_its_scale(_quantize: ir.Operation) -> Verdict:
    return Refusal(
        "the scale is given beforehand, and what makes a value only quantizes it by scales that "
        "it finds itself",
        "quantize dynamically",
    )


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


def product_quantizes_nothing_yet(quantize: ir.Operation, y: ir.Value) -> Verdict:
    return quantizes_nothing_yet(quantize, y.owner.operation)


def has_room_for_result(quantize: ir.Operation, y: ir.Value) -> Verdict:
    if len(places(y.owner.operation, quantize)) <= MAX_RESULTS:
        return None
    return Refusal(
        f"others read the value, too, and the product already has {MAX_RESULTS} results",
        "quantize in the operation that reads it",
    )


def ends_in_activation(_quantize: ir.Operation, y: ir.Value) -> Verdict:
    """What is quantized, that is: another result of the product may be another value."""
    stack = [_yielded(y)]
    while stack:
        value = stack.pop()
        if isinstance(value, ir.BlockArgument):
            continue
        if value.owner.operation.name in _ACTIVATION_OPS:
            return None
        stack += value.owner.operands
    return Refusal(
        "the product has no activation in its epilogue, and quantizing a plain product's result "
        "there was measured slower than apart",
        "quantize in the operation that reads it, or fuse an activation first",
    )


def _yielded(y: ir.Value) -> ir.Value:
    """What the epilogue yields for the result `y`."""
    product = y.owner.operation
    terminator = list(product.regions[0].blocks[0].operations)[-1]
    return terminator.operation.operands[list(product.results).index(y)]


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
    with ir.InsertionPoint(glu):
        new = create_glu(
            glu_of(glu),
            list(glu.operands),
            value_type if keep else None,
            quantized_type,
            loc=glu.location,
        )
    remarks.fired("glu-quantize", quantize, saves=savings([glu, quantize], [new]))
    _replace(rewriter, quantize, glu, new)


def quantize_in_product(rewriter, quantize: ir.Operation, y: ir.Value) -> None:
    product = y.owner.operation
    number = list(product.results).index(y)
    order = places(product, quantize)
    types = [quantize.results[0].type if i is None else product.results[i].type for i in order]
    with ir.InsertionPoint(product), product.location:
        new = extend_epilogue(
            product, types, lambda ys, _: [ys[number if i is None else i] for i in order]
        )
    about = remarks.argument_name(product.operands[1])
    remarks.fired("product-quantize", quantize, about, saves=savings([product, quantize], [new]))
    made = dict(zip(order, new.results, strict=True))
    rewriter.replace_op(quantize, [made[None]])
    rewriter.replace_op(product, [made.get(i, made[None]) for i in range(len(product.results))])


def _replace(rewriter, quantize: ir.Operation, old: ir.Operation, new: ir.Operation) -> None:
    """The quantized value is the last result of `new`; without another, `old` has no reader."""
    rewriter.replace_op(quantize, [new.results[len(new.results) - 1]])
    rewriter.replace_op(old, [new.results[0]])


def _never(*_: object) -> None:
    raise AssertionError("patterns with a given scale only explain")
