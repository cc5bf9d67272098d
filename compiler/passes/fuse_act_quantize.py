"""`qfuse-fuse-act-quantize`: the GLU that makes a value also quantizes it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.epilogue import extend_epilogue, extras_of, places
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.epilogue_stages import reads_a_product, runs_as_often
from qfuse.compiler.passes.predicates import (
    given_scale,
    has_room_for_operand,
    readers,
    run_equally_often,
    scale_comes_in_time,
)
from qfuse.compiler.pdl import Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import GluOp, create_glu, glu_of, glu_operands
from qfuse.dialects.matmul_op import MAX_RESULTS, behind, build_with_scale, given_scales
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
    speed for it); so does a producer that quantizes already, or has no room for a fifth result.
    All leave a remark.

    A scale given beforehand is an operand of the GLU, or of the product, whose epilogue names it:

        %q = "qfuse.matmul"(%x, %w, %scale) ({... "qfuse.with_scale"(%rounded, %s) ...})

    There is no scale to find then, so any width will do, and a plain product quantizes as well.  A
    scale of the whole value (`qfuse.tensor_scale`) keeps it apart, with a remark.
    """

    name: ClassVar[str] = "qfuse-fuse-act-quantize"

    def run(self, module: ir.Operation) -> None:
        patterns = [make(given) for make in (_glu_quantize, _product_quantize) for given in (0, 1)]
        Patterns(patterns).apply(module)


def _glu_quantize(given: int) -> Callable[[Pattern], None]:
    """The quantization has `given` operands beside the value: its scale, or none"""

    def glu_quantize(p: Pattern) -> None:
        glu = p.op("qfuse.glu", p.values(), many=True)
        quantize = p.op("qfuse.quantize", p.result(glu), *(p.value() for _ in range(given)))
        p.require(run_equally_often, quantize, glu)
        p.require(scale_comes_in_time, quantize, glu)
        p.require(quantizes_nothing_yet, quantize, glu)
        p.rewrite(quantize, quantize_in_glu, glu)

    return glu_quantize


def _product_quantize(given: int) -> Callable[[Pattern], None]:
    """The same for a product, whose epilogue needs an operand more for a scale"""

    def product_quantize(p: Pattern) -> None:
        y = p.value()
        quantize = p.op("qfuse.quantize", y, *(p.value() for _ in range(given)))
        p.require(reads_a_product, quantize, y)
        p.require(runs_as_often, quantize, y)
        p.require(products_scale_comes_in_time, quantize, y)
        p.require(product_quantizes_nothing_yet, quantize, y)
        p.require(has_room_for_result, quantize, y)
        for predicate in (has_room_for_scale,) if given else (ends_in_activation, groups_fit_tiles):
            p.require(predicate, quantize, y)
        p.rewrite(quantize, quantize_in_product, y)

    return product_quantize


def products_scale_comes_in_time(quantize: ir.Operation, y: ir.Value) -> Verdict:
    return scale_comes_in_time(quantize, y.owner.operation)


def quantizes_nothing_yet(quantize: ir.Operation, producer: ir.Operation) -> Verdict:
    wanted, scale = quantize.results[0].type, given_scale(quantize)
    for result, by in zip(producer.results, _scales_of(producer), strict=True):
        if result.type == wanted and by == scale:
            return Refusal(f"{producer.name} already yields this very value", "run cse first")
        if shaped(result.type).quantized:
            other = " by another scale" if result.type == wanted else ""
            return Refusal(
                f"{producer.name} already yields {shaped(result.type)}{other}",
                "quantize all readers of a value to one scheme",
            )
    return None


def _scales_of(producer: ir.Operation) -> list[ir.Value | None]:
    """For each result, the scale that it is quantized by, if that is given beforehand."""
    if producer.name == GluOp.OPERATION_NAME:
        _, scale = glu_operands(producer, list(producer.operands))
        return [scale if shaped(r.type).quantized else None for r in producer.results]
    extras = extras_of(producer)
    return [None if i is None else extras[i] for i in given_scales(producer)]


def product_quantizes_nothing_yet(quantize: ir.Operation, y: ir.Value) -> Verdict:
    return quantizes_nothing_yet(quantize, y.owner.operation)


def has_room_for_scale(_quantize: ir.Operation, y: ir.Value) -> Verdict:
    return has_room_for_operand(y.owner.operation)


def has_room_for_result(quantize: ir.Operation, y: ir.Value) -> Verdict:
    if len(places(y.owner.operation, quantize)) <= MAX_RESULTS:
        return None
    return Refusal(
        f"others read the value, too, and the product already has {MAX_RESULTS} results",
        "quantize in the operation that reads it",
    )


def ends_in_activation(_quantize: ir.Operation, y: ir.Value) -> Verdict:
    """What is quantized, that is: another result of the product may be another value."""
    for value in behind(_yielded(y)):
        if isinstance(value, ir.OpResult) and value.owner.operation.name in _ACTIVATION_OPS:
            return None
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


def groups_fit_tiles(quantize: ir.Operation, _y: ir.Value) -> Verdict:
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
            glu_operands(glu, list(glu.operands))[0],
            value_type if keep else None,
            quantized_type,
            given_scale(quantize),
            loc=glu.location,
        )
    remarks.fired("glu-quantize", quantize, saves=savings([glu, quantize], [new]))
    _replace(rewriter, quantize, glu, new)


def quantize_in_product(rewriter, quantize: ir.Operation, y: ir.Value) -> None:
    product = y.owner.operation
    number = list(product.results).index(y)
    order = places(product, quantize)
    types = [quantize.results[0].type if i is None else product.results[i].type for i in order]
    scale = [value for value in (given_scale(quantize),) if value is not None]

    def extend(ys: list[ir.Value], scales: list[ir.Value]) -> list[ir.Value]:
        quantized = build_with_scale(ys[number], scales[0]) if scales else ys[number]
        return [quantized if i is None else ys[i] for i in order]

    with ir.InsertionPoint(product), product.location:
        new = extend_epilogue(product, types, extend, extra=scale, maps=["[]"] * len(scale))
    about = remarks.argument_name(product.operands[1])
    remarks.fired("product-quantize", quantize, about, saves=savings([product, quantize], [new]))
    made = dict(zip(order, new.results, strict=True))
    rewriter.replace_op(quantize, [made[None]])
    rewriter.replace_op(product, [made.get(i, made[None]) for i in range(len(product.results))])


def _replace(rewriter, quantize: ir.Operation, old: ir.Operation, new: ir.Operation) -> None:
    """The quantized value is the last result of `new`; without another, `old` has no reader."""
    rewriter.replace_op(quantize, [new.results[len(new.results) - 1]])
    rewriter.replace_op(old, [new.results[0]])
