"""`qfuse-fuse-norm-quantize`: a norm takes in the residual add before it and quantizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import defined_before, readers, run_equally_often
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.norm_ops import (
    QUANTIZE_ROUNDING,
    QUANTIZED,
    RMS_NORM_ATTRIBUTES,
    RMS_NORM_OUTPUTS,
    RmsNormOp,
    format_key,
    quantize_rounding,
)
from qfuse.dialects.roundings import QUANTIZE_ROUNDINGS
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import segments

VALUE, *_, NEW_RESIDUAL = RMS_NORM_OUTPUTS


@dataclass(frozen=True)
class FuseNormQuantize(Pass):
    """Make one `qfuse.rms_norm` of residual add, norm and quantization.

    Before::

        %h = "qfuse.add"(%x, %r)
        %y = "qfuse.rms_norm"(%h, %w)
        %q = "qfuse.quantize"(%y)

    After::

        %q, %h = "qfuse.rms_norm"(%x, %w, %r) {resultSegmentSizes = array<i32: 0, 1, 0, 1>}

    The value stays a result where something else reads it too (a router, say), and the new
    residual %h where something reads that.  Readers that want two formats get both of one norm.
    The value is rounded before it is quantized, as before; with `quantize-rounding` f32 it is not,
    which saves a rounding and changes what the program computes.

    What a product reads is the same for any number of rows: qfuse-dispatch, later, decides on the
    type of that very value, and all backends that it chooses among read it.

    A third format, an add that broadcasts, and an add whose readers come before the norm's weight
    stay as they are, with a remark.  `residual` false leaves all adds.
    """

    name: ClassVar[str] = "qfuse-fuse-norm-quantize"
    residual: bool = True
    quantize_rounding: str = "value"

    def run(self, module: ir.Operation) -> None:
        if self.quantize_rounding not in QUANTIZE_ROUNDINGS:
            raise QfuseError(
                f"{self.name}: quantize-rounding={self.quantize_rounding} is not one of "
                f"{', '.join(QUANTIZE_ROUNDINGS)}"
            )
        patterns = [_norm_quantize(self.quantize_rounding)]
        if self.residual:
            patterns.append(norm_residual)
        Patterns(patterns).apply(module)


def _norm_quantize(rounding: str) -> Callable[[Pattern], None]:
    """A norm and a quantization of its value, which is rounded before as `rounding` says."""

    def quantizes_alike(_quantize: ir.Operation, norm: ir.Operation) -> Verdict:
        found = quantize_rounding(norm)
        if found == rounding or not formats(norm):
            return None
        return Refusal(
            f"the norm already quantizes with {QUANTIZE_ROUNDING} {found}, not {rounding}",
            "run the pass once, with one rounding",
        )

    def quantize_in_norm(rewriter, quantize: ir.Operation, norm: ir.Operation) -> None:
        old = outputs(norm)
        fused = _quantizing(norm, quantize.results[0].type, rounding)
        saved = savings([norm, quantize], [fused])
        about = remarks.argument_name(norm.operands[1])
        remarks.fired("norm-quantize", quantize, about, saves=saved)
        new, made = outputs(fused), {value.type: value for value in formats(fused)}
        # A value that is no result any more has lost its only reader; any result will do for it.
        values = {VALUE: new.get(VALUE, new[QUANTIZED[0]]), NEW_RESIDUAL: new.get(NEW_RESIDUAL)}
        values |= {name: made[old[name].type] for name in QUANTIZED if name in old}
        rewriter.replace_op(quantize, [made[quantize.results[0].type]])
        _replace(rewriter, norm, values)

    def pattern(p: Pattern) -> None:
        norm = p.op("qfuse.rms_norm", p.values(), many=True)
        quantize = p.op("qfuse.quantize", p.result(norm))
        p.require(reads_the_normed_value, quantize, norm)
        p.require(run_equally_often, quantize, norm)
        p.require(has_room_for_format, quantize, norm)
        p.require(quantizes_alike, quantize, norm)
        p.rewrite(quantize, quantize_in_norm, norm)

    pattern.__name__ = "norm_quantize"
    return pattern


def norm_residual(p: Pattern) -> None:
    add = p.op("qfuse.add", p.value(), p.value())
    norm = p.op("qfuse.rms_norm", p.result(add), p.value(), many=True)
    p.require(adds_equal_shapes, add)
    p.require(run_equally_often, norm, add)
    p.require(weight_precedes_add, norm, add)
    p.rewrite(norm, add_in_norm, add)


def reads_the_normed_value(quantize: ir.Operation, norm: ir.Operation) -> Verdict:
    return None if quantize.operands[0] == outputs(norm).get(VALUE) else MISMATCH


def has_room_for_format(quantize: ir.Operation, norm: ir.Operation) -> Verdict:
    present, wanted = [shaped(v.type) for v in formats(norm)], shaped(quantize.results[0].type)
    listed = " and ".join(map(str, present))
    if wanted in present:
        return Refusal("the norm already yields this very value", "run cse first")
    if format_key(wanted) in map(format_key, present):
        return Refusal(
            f"the norm already yields {listed}, and {wanted} differs in the layout of its scales "
            "alone",
            "quantize for all readers in one layout",
        )
    if len(present) < len(QUANTIZED):
        return None
    return Refusal(
        f"the norm already yields {listed}, and this reader wants {wanted}",
        f"quantize for the readers of a norm in at most {len(QUANTIZED)} formats",
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


def _quantizing(norm: ir.Operation, wanted: ir.Type, rounding: str) -> ir.Operation:
    """The norm that yields `wanted`, too, beside `norm`; without a value that only that needs."""
    types = {name: value.type for name, value in outputs(norm).items() if name not in QUANTIZED}
    if len(readers(outputs(norm)[VALUE])) == 1:
        del types[VALUE]
    in_order = [wanted, *(value.type for value in formats(norm))]
    in_order.sort(key=lambda type_: format_key(shaped(type_)))
    types |= zip(QUANTIZED, in_order, strict=False)
    with ir.InsertionPoint(norm):
        made = build_rms_norm(norm, list(norm.operands), types)
    if quantize_rounding(made) != rounding:
        made.attributes[QUANTIZE_ROUNDING] = ir.StringAttr.get(rounding)
    return made


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


def formats(norm: ir.Operation) -> list[ir.Value]:
    """The quantized results of a norm, in order."""
    made = outputs(norm)
    return [made[name] for name in QUANTIZED if name in made]


def build_rms_norm(
    like: ir.Operation, operands: list[ir.Value], types: dict[str, ir.Type]
) -> ir.Operation:
    """A norm with the options of `like` that yields the results named in `types`."""
    given = like.attributes
    attributes = {name: given[name] for name in RMS_NORM_ATTRIBUTES if name in given}
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
