"""`qfuse-fuse-epilogue`: element-wise readers of a product join its epilogue."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import extend_epilogue
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import (
    has_one_reader,
    has_one_result,
    has_room_for_operand,
    keeps_shape,
    readers,
    run_equally_often,
)
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.activations import build_activation, build_glu
from qfuse.dialects.bindings import arith, ir
from qfuse.dialects.elementwise_ops import ACTIVATIONS, glu_of
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.matmul_op import map_of
from qfuse.dialects.types import shaped

STAGES = ("bias", "activation", "residual-binary", "residual-unary")


@dataclass(frozen=True)
class FuseEpilogue(Pass):
    """Fold bias, activation and residual into the epilogue of the product they read.

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
    join: bias (an [N] operand), activation (before any residual), residual-binary (an operand of
    another shape class, added or multiplied) and residual-unary (an activation after that).
    A GLU that qfuse-fuse-gate-up left, one side of which is the product, is an activation and a
    residual.

    What adds up the experts of a token (`qfuse.combine`) takes a residual in the same way.

    A product with a second reader, with several or quantized results, or whose reader broadcasts
    it to another shape stays as it is, with a remark.
    """

    name: ClassVar[str] = "qfuse-fuse-epilogue"
    stages: tuple[str, ...] = STAGES

    def run(self, module: ir.Operation) -> None:
        for stage in self.stages:
            if stage not in STAGES:
                raise QfuseError(f"{self.name}: no stage '{stage}'; stages are {', '.join(STAGES)}")
        allowed = frozenset(self.stages)
        patterns = [_unary(act, allowed) for act in ACTIVATIONS]
        patterns += [_binary(op, side, allowed) for op in _BINARY for side in (0, 1)]
        patterns += [_glu(side, allowed) for side in (0, 1)]
        patterns += [_combine(side, allowed) for side in (0, 1)]
        Patterns(patterns).apply(module)


_BINARY = {"add": arith.addf, "mul": arith.mulf}


def _unary(act: str, allowed: frozenset[str]) -> Callable[[Pattern], None]:
    """act(product)"""

    def stage_is_on(product: ir.Operation) -> Verdict:
        has_residual = any(kind != "[N]" for kind in _maps(product))
        return _on("residual-unary" if has_residual else "activation", allowed)

    def absorb_activation(rewriter, act_op: ir.Operation, product: ir.Operation) -> None:
        fused = extend_epilogue(
            product, [act_op.results[0].type], lambda ys, _: [build_activation(act, ys[0])]
        )
        remarks.fired(f"epilogue-{act}", act_op, _subject(product))
        rewriter.replace_op(act_op, fused.results)

    def pattern(p: Pattern) -> None:
        product = p.op("qfuse.matmul", p.values(), many=True)
        act_op = p.op(f"qfuse.{act}", p.result(product))
        for predicate in (has_one_result, has_one_reader, stage_is_on):
            p.require(predicate, product)
        p.require(run_equally_often, act_op, product)
        p.rewrite(act_op, absorb_activation, product)

    pattern.__name__ = f"epilogue_{act}"
    return pattern


def _binary(name: str, side: int, allowed: frozenset[str]) -> Callable[[Pattern], None]:
    """add or mul of a product, operand `side`, and another value"""

    def stage_is_on(product: ir.Operation, other: ir.Value) -> Verdict:
        is_bias = name == "add" and _map(product, other) == "[N]"
        return _on("bias" if is_bias else "residual-binary", allowed)

    def broadcasts_to_product(product: ir.Operation, other: ir.Value) -> Verdict:
        if _map(product, other) is not None:
            return None
        return Refusal(
            f"operand {shaped(other.type)} does not broadcast to the product's "
            f"{shaped(product.results[0].type)} as [N], [M,1], [M,N] or a scalar",
            "reshape it to one of these",
        )

    def absorb_operand(rewriter, op: ir.Operation, product: ir.Operation, other: ir.Value) -> None:
        def extend(ys: list[ir.Value], args: list[ir.Value]) -> list[ir.Value]:
            operands = [ys[0], args[0]] if side == 0 else [args[0], ys[0]]
            return [_BINARY[name](*operands)]

        kind = _map(product, other)
        assert kind is not None
        fused = extend_epilogue(product, [op.results[0].type], extend, extra=[other], maps=[kind])
        remarks.fired(f"epilogue-{name}", op, _subject(product))
        rewriter.replace_op(op, fused.results)

    def pattern(p: Pattern) -> None:
        product = p.op("qfuse.matmul", p.values(), many=True)
        other = p.value()
        y = p.result(product)
        op = p.op(f"qfuse.{name}", *((y, other) if side == 0 else (other, y)))
        p.require(has_one_result, product)
        p.require(has_one_reader, product)
        p.require(run_equally_often, op, product)
        p.require(keeps_shape, op, product)
        p.require(broadcasts_to_product, product, other)
        p.require(has_room_for_operand, product)
        p.require(stage_is_on, product, other)
        p.rewrite(op, absorb_operand, product, other)

    pattern.__name__ = f"epilogue_{name}"
    return pattern


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
        remarks.fired("epilogue-glu", glu, _subject(product))
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
        remarks.fired("combine-residual", add)
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


def _maps(product: ir.Operation) -> list[str]:
    return [ir.StringAttr(m).value for m in ir.ArrayAttr(product.attributes["maps"])]


def _subject(product: ir.Operation) -> str:
    return remarks.argument_name(product.operands[1])
