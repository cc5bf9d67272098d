"""`qfuse-fuse-epilogue`: element-wise readers of a product join its epilogue."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.epilogue import extend_epilogue
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.epilogue_stages import (
    STAGES,
    absorb_into,
    has_room,
    is_of,
    is_product,
    runs_as_often,
    stage_patterns,
)
from qfuse.compiler.passes.epilogue_views import VIEW_PATTERNS
from qfuse.compiler.passes.predicates import (
    has_one_reader,
    has_one_result,
    has_room_for_operand,
    readers,
    run_equally_often,
)
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.activations import build_glu
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import glu_of
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.matmul_op import map_of
from qfuse.dialects.types import shaped


@dataclass(frozen=True)
class FuseEpilogue(Pass):
    """Fold bias, activation and residual, in any chain, into the epilogue of the product they read.

    Before::

        %y = "qfuse.matmul"(%x, %w) ({^bb0(%acc: f32): "qfuse.yield"(%acc)})
        %z = "qfuse.add"(%residual, %y)

    After::

        %z = "qfuse.matmul"(%x, %w, %residual) ({
        ^bb0(%acc: f32, %r: f32):
          %0 = arith.truncf %acc : f32 to bf16
          %1 = arith.extf %0 : bf16 to f32
          %2 = arith.addf %r, %1 : f32
          "qfuse.yield"(%2)
        }) {maps = ["[M,N]"]}

    The rounding in between is kept, so the result has the same bits.  `stages` names what may
    join: bias (operands that are the same for every row), activation (what reads the product only,
    before any residual), residual-binary (operands that differ from row to row) and residual-unary
    (what reads the product only, after that).  Constants are written into the region.

    Products of experts (`qfuse.group_matmul`) do the same.  Of two products that meet, the one
    joins that saves more bytes; of two that save the same, the later.

    Where others read the product, too, the fused one yields both values: it is computed once, and
    its readers have one launch less and one read less.  A reshape between a product and
    its reader moves behind the reader; so does a transpose, if that reads nothing else.

    A GLU that qfuse-fuse-gate-up left, one side of which is the product, is an activation and a
    residual.  What adds up the experts of a token (`qfuse.combine`) takes a residual in the same
    way.

    What stays as it is, with a remark: an operation in another block, one that broadcasts the
    product to another shape, one whose other operand is made from the product or behind another
    reader of it, one behind a write in place, one with another operand behind a transpose, and a
    seventh operand or fifth result.
    """

    name: ClassVar[str] = "qfuse-fuse-epilogue"
    stages: tuple[str, ...] = STAGES

    def run(self, module: ir.Operation) -> None:
        for stage in self.stages:
            if stage not in STAGES:
                raise QfuseError(f"{self.name}: no stage '{stage}'; stages are {', '.join(STAGES)}")
        allowed = frozenset(self.stages)
        patterns = [*stage_patterns(allowed, module), *VIEW_PATTERNS]
        patterns += [_glu(side, allowed) for side in (0, 1)] + [_glu_of_results(allowed)]
        patterns += [_combine(side, allowed) for side in (0, 1)]
        Patterns(patterns).apply(module)


def _glu(side: int, allowed: frozenset[str]) -> Callable[[Pattern], None]:
    """A GLU, where the product is gate (side 0) or up (side 1)"""

    def makes_one_plain_value(glu: ir.Operation) -> Verdict:
        return MISMATCH if shaped(glu.results[0].type).quantized else None

    def stages_are_on(_product: ir.Operation) -> Verdict:
        return _on("activation", allowed) or _on("residual-binary", allowed)

    def absorb_glu(rewriter, glu: ir.Operation, product: ir.Operation, other: ir.Value) -> None:
        def extend(ys: list[ir.Value], args: list[ir.Value]) -> list[ir.Value]:
            gate, up = (ys[0], args[0]) if side == 0 else (args[0], ys[0])
            return [build_glu(glu_of(glu), gate, up, shaped(other.type).dtype)]

        kind = _map(product, other)
        assert kind is not None
        fused = extend_epilogue(product, [glu.results[0].type], extend, extra=[other], maps=[kind])
        saved = savings([product, glu], [fused])
        remarks.fired("epilogue-glu", glu, _subject(product), saves=saved)
        rewriter.replace_op(glu, fused.results)

    def pattern(p: Pattern) -> None:
        product = p.op("qfuse.matmul", p.values(), many=True)
        other = p.value()
        y = p.result(product)
        glu = p.op("qfuse.glu", *((y, other) if side == 0 else (other, y)))
        p.require(makes_one_plain_value, glu)
        p.require(has_one_result, product)
        p.require(has_one_reader, product)
        p.require(run_equally_often, glu, product)
        p.require(has_room_for_operand, product)
        p.require(stages_are_on, product)
        p.rewrite(glu, absorb_glu, product, other)

    pattern.__name__ = "epilogue_glu"
    return pattern


def _glu_of_results(allowed: frozenset[str]) -> Callable[[Pattern], None]:
    """A GLU of two results of one product"""

    def makes_one_plain_value(glu: ir.Operation, *_: ir.Value) -> Verdict:
        return MISMATCH if shaped(glu.results[0].type).quantized else None

    def reads_one_product(_glu: ir.Operation, gate: ir.Value, up: ir.Value) -> Verdict:
        return None if is_product(gate) and is_of(gate.owner.operation, up) else MISMATCH

    def stage_is_on(_glu: ir.Operation, *_: ir.Value) -> Verdict:
        return _on("activation", allowed)

    def compute(glu: ir.Operation, operands: list[ir.Value]) -> ir.Value:
        gate, up = operands
        return build_glu(glu_of(glu), gate, up, shaped(glu.operands[0].type).dtype)

    def absorb_glu(rewriter, glu: ir.Operation, gate: ir.Value, _up: ir.Value) -> None:
        absorb_into(rewriter, "epilogue-glu", gate.owner.operation, glu, compute)

    def pattern(p: Pattern) -> None:
        gate, up = p.value(), p.value()
        glu = p.op("qfuse.glu", gate, up)
        for predicate in (makes_one_plain_value, reads_one_product, runs_as_often, has_room):
            p.require(predicate, glu, gate, up)
        p.require(stage_is_on, glu, gate, up)
        p.rewrite(glu, absorb_glu, gate, up)

    pattern.__name__ = "epilogue_glu"
    return pattern


def _combine(side: int, allowed: frozenset[str]) -> Callable[[Pattern], None]:
    """combine, operand `side` of an add, and a residual of its type"""

    def stage_is_on(_combined: ir.Operation) -> Verdict:
        return _on("residual-binary", allowed)

    def has_no_residual(combined: ir.Operation) -> Verdict:
        return None if len(combined.operands) == 3 else Refusal("it adds a residual already")

    def sum_has_one_reader(combined: ir.Operation) -> Verdict:
        count = len(readers(combined.results[0]))
        if count == 1:
            return None
        return Refusal(
            f"the sum has {count} readers, and the others want it without the residual",
            "give the sum one reader, or let the others read the fused result",
        )

    def is_like_the_sum(combined: ir.Operation, residual: ir.Value) -> Verdict:
        y = combined.results[0]
        if residual.type == y.type:
            return None
        return Refusal(f"the residual is {shaped(residual.type)}, the sum {shaped(y.type)}")

    def comes_from_no_free_product(_combined: ir.Operation, residual: ir.Value) -> Verdict:
        """A product (of shared experts, say) takes the sum instead, and later residuals too."""
        if isinstance(residual, ir.BlockArgument):
            return None
        producer = residual.owner.operation
        if producer.name != "qfuse.matmul" or has_one_result(producer) or has_one_reader(producer):
            return None
        return MISMATCH

    def absorb_residual(
        rewriter, add: ir.Operation, combined: ir.Operation, residual: ir.Value
    ) -> None:
        fused = ir.Operation.create(
            combined.name,
            results=[add.results[0].type],
            operands=[*combined.operands, residual],
            attributes={"operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 1, 1, 1])},
        )
        remarks.fired("combine-residual", add, saves=savings([combined, add], [fused]))
        rewriter.replace_op(add, fused.results)

    def pattern(p: Pattern) -> None:
        combined = p.op("qfuse.combine", p.values())
        residual = p.value()
        y = p.result(combined)
        add = p.op("qfuse.add", *((y, residual) if side == 0 else (residual, y)))
        p.require(has_no_residual, combined)
        p.require(sum_has_one_reader, combined)
        p.require(run_equally_often, add, combined)
        p.require(is_like_the_sum, combined, residual)
        p.require(comes_from_no_free_product, combined, residual)
        p.require(stage_is_on, combined)
        p.rewrite(add, absorb_residual, combined, residual)

    pattern.__name__ = "combine_residual"
    return pattern


def _on(stage: str, allowed: frozenset[str]) -> Verdict:
    if stage in allowed:
        return None
    return Refusal(f"stage {stage} is switched off", f"add it to {FuseEpilogue.name}=stages")


def _map(product: ir.Operation, other: ir.Value) -> str | None:
    y = shaped(product.results[0].type)
    return map_of(shaped(other.type), y.rows, y.shape[-1])


def _subject(product: ir.Operation) -> str:
    return remarks.argument_name(product.operands[1])
