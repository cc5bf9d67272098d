"""`qfuse-fuse-norm-quantize`: a norm takes in the residual add before it and quantizes."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import defined_before, readers, run_equally_often
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir
from qfuse.dialects.norm_ops import RMS_NORM_OUTPUTS, RmsNormOp
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import segments

VALUE, QUANTIZED, NEW_RESIDUAL = RMS_NORM_OUTPUTS


@dataclass(frozen=True)
class FuseNormQuantize(Pass):
    """Make one `qfuse.rms_norm` of residual add, norm and quantization.

    Before::

        %h = "qfuse.add"(%x, %r)
        %y = "qfuse.rms_norm"(%h, %w)
        %q = "qfuse.quantize"(%y)

    After::

        %q, %h = "qfuse.rms_norm"(%x, %w, %r) {resultSegmentSizes = array<i32: 0, 1, 1>}

    The value stays a result where something else reads it too (a router, say), and the new
    residual %h where something reads that.  The value is rounded before it is quantized, as
    before.  A second quantization to another scheme, an add that broadcasts, and an add whose
    readers come before the norm's weight stay as they are, with a remark.
    """

    name: ClassVar[str] = "qfuse-fuse-norm-quantize"
    residual: bool = True

    def run(self, module: ir.Operation) -> None:
        patterns = [norm_quantize]
        if self.residual:
            patterns.append(norm_residual)
        Patterns(patterns).apply(module)


def norm_quantize(p: Pattern) -> None:
    norm = p.op("qfuse.rms_norm", p.values(), many=True)
    quantize = p.op("qfuse.quantize", p.result(norm))
    p.require(reads_the_normed_value, quantize, norm)
    p.require(run_equally_often, quantize, norm)
    p.require(norm_quantizes_nothing_yet, quantize, norm)
    p.rewrite(quantize, quantize_in_norm, norm)


def norm_residual(p: Pattern) -> None:
    add = p.op("qfuse.add", p.value(), p.value())
    norm = p.op("qfuse.rms_norm", p.result(add), p.value(), many=True)
    p.require(adds_equal_shapes, add)
    p.require(run_equally_often, norm, add)
    p.require(weight_precedes_add, norm, add)
    p.rewrite(norm, add_in_norm, add)


def reads_the_normed_value(quantize: ir.Operation, norm: ir.Operation) -> Verdict:
    return None if quantize.operands[0] == outputs(norm).get(VALUE) else MISMATCH


def norm_quantizes_nothing_yet(quantize: ir.Operation, norm: ir.Operation) -> Verdict:
    present = outputs(norm).get(QUANTIZED)
    if present is None:
        return None
    if present.type == quantize.results[0].type:
        return Refusal("the norm already yields this very value", "run cse first")
    return Refusal(
        f"the norm already yields {shaped(present.type)}, and this reader wants "
        f"{shaped(quantize.results[0].type)}",
        "quantize all readers of a norm to one scheme",
    )


def adds_equal_shapes(add: ir.Operation) -> Verdict:
    a, b = (shaped(v.type) for v in add.operands)
    out = shaped(add.results[0].type)
    if a == b == out:
        return None
    return Refusal(
        f"the add broadcasts or promotes: {a} and {b} to {out}",
        "a residual has the shape and type of the value it is added to",
    )


def weight_precedes_add(norm: ir.Operation, add: ir.Operation) -> Verdict:
    if defined_before(norm.operands[1], add):
        return None
    return Refusal(
        "the norm's weight is made after the residual add", "pass the weight as a parameter"
    )


def quantize_in_norm(rewriter, quantize: ir.Operation, norm: ir.Operation) -> None:
    old = outputs(norm)
    types = {name: value.type for name, value in old.items()}
    types[QUANTIZED] = quantize.results[0].type
    if len(readers(old[VALUE])) == 1:
        del types[VALUE]
    with ir.InsertionPoint(norm):
        fused = build_rms_norm(norm, list(norm.operands), types)
    saved = savings([norm, quantize], [fused])
    about = remarks.argument_name(norm.operands[1])
    remarks.fired("norm-quantize", quantize, about, saves=saved)
    new = outputs(fused)
    rewriter.replace_op(quantize, [new[QUANTIZED]])
    # The value's only reader is gone if it is no result any more; any result will do for it.
    any_value = new.get(VALUE, new[QUANTIZED])
    _replace(rewriter, norm, {name: new.get(name, any_value) for name in old})


def add_in_norm(rewriter, norm: ir.Operation, add: ir.Operation) -> None:
    old = outputs(norm)
    types = {name: value.type for name, value in old.items()}
    keep = len(readers(add.results[0])) > 1
    if keep:
        types[NEW_RESIDUAL] = add.results[0].type
    x, residual = add.operands
    with ir.InsertionPoint(add):
        fused = build_rms_norm(norm, [x, norm.operands[1], residual], types)
    saved = savings([add, norm], [fused])
    remarks.fired("norm-residual", norm, remarks.argument_name(norm.operands[1]), saves=saved)
    new = outputs(fused)
    _replace(rewriter, norm, {name: new[name] for name in old})
    if keep:
        rewriter.replace_op(add, [new[NEW_RESIDUAL]])


def outputs(norm: ir.Operation) -> dict[str, ir.Value]:
    """The results of a norm that are there, by name."""
    present = segments(norm, "result")
    names = [n for n, there in zip(RMS_NORM_OUTPUTS, present, strict=True) if there]
    return dict(zip(names, norm.results, strict=True))


def build_rms_norm(
    like: ir.Operation, operands: list[ir.Value], types: dict[str, ir.Type]
) -> ir.Operation:
    """A norm with the options of `like` that yields the results named in `types`."""
    attributes = {name: like.attributes[name] for name in ("eps", "offset", "rounding")}
    attributes["resultSegmentSizes"] = ir.DenseI32ArrayAttr.get(
        [int(name in types) for name in RMS_NORM_OUTPUTS]
    )
    return ir.Operation.create(
        RmsNormOp.OPERATION_NAME,
        results=[types[name] for name in RMS_NORM_OUTPUTS if name in types],
        operands=operands,
        attributes=attributes,
        loc=like.location,
    )


def _replace(rewriter, norm: ir.Operation, values: dict[str, ir.Value]) -> None:
    rewriter.replace_op(norm, [values[name] for name in outputs(norm)])
