"""`qfuse-fuse-norm-quantize`: a norm takes in the residual add before it and quantizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import (
    defined_before,
    given_scale,
    readers,
    run_equally_often,
    scale_comes_in_time,
)
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.norm_ops import (
    QUANTIZE_ROUNDING,
    QUANTIZED,
    RMS_NORM_ATTRIBUTES,
    RMS_NORM_OPERANDS,
    RMS_NORM_OUTPUTS,
    SCALES,
    RmsNormOp,
    format_key,
    operands_of,
    output_names,
    quantize_rounding,
)
from qfuse.dialects.roundings import QUANTIZE_ROUNDINGS
from qfuse.dialects.types import shaped

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

    A scale given beforehand goes along as an operand of the norm, and makes a format of its own:

        %q = "qfuse.rms_norm"(%x, %w, %r, %scale) {operandSegmentSizes = array<i32: 1, 1, 1, 1, 0>}

    A third format, a scale of the whole value (`qfuse.tensor_scale`), an add that broadcasts, and
    an add whose readers come before the norm's weight stay as they are, with a remark.  `residual`
    false leaves all adds.
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
        patterns = [_norm_quantize(self.quantize_rounding, given) for given in (0, 1)]
        if self.residual:
            patterns += [_norm_residual(given) for given in range(len(SCALES) + 1)]
        Patterns(patterns).apply(module)


def _norm_quantize(rounding: str, given: int) -> Callable[[Pattern], None]:
    """A norm and a quantization of its value, which is rounded before as `rounding` says.

    The quantization has `given` operands beside the value: its scale, or none.
    """

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
        fused = _quantizing(norm, _format(quantize), rounding)
        saved = savings([norm, quantize], [fused])
        about = remarks.argument_name(norm.operands[1])
        remarks.fired("norm-quantize", quantize, about, saves=saved)
        new, made = outputs(fused), formats(fused)
        # A value that is no result any more has lost its only reader; any result will do for it.
        values = {VALUE: new.get(VALUE, new[QUANTIZED[0]]), NEW_RESIDUAL: new.get(NEW_RESIDUAL)}
        kept = [name for name in QUANTIZED if name in old]
        values |= {n: made[format_] for n, format_ in zip(kept, formats(norm), strict=True)}
        rewriter.replace_op(quantize, [made[_format(quantize)]])
        _replace(rewriter, norm, values)

    def pattern(p: Pattern) -> None:
        norm = p.op("qfuse.rms_norm", p.values(), many=True)
        quantize = p.op("qfuse.quantize", p.result(norm), *(p.value() for _ in range(given)))
        p.require(reads_the_normed_value, quantize, norm)
        p.require(run_equally_often, quantize, norm)
        p.require(scale_comes_in_time, quantize, norm)
        p.require(has_room_for_format, quantize, norm)
        p.require(quantizes_alike, quantize, norm)
        p.rewrite(quantize, quantize_in_norm, norm)

    pattern.__name__ = "norm_quantize"
    return pattern


def _norm_residual(given: int) -> Callable[[Pattern], None]:
    """An add and a norm of the sum, which reads `given` scales beside its weight."""

    def norm_residual(p: Pattern) -> None:
        add = p.op("qfuse.add", p.value(), p.value())
        others = [p.value() for _ in range(1 + given)]
        norm = p.op("qfuse.rms_norm", p.result(add), *others, many=True)
        p.require(adds_nothing_yet, norm)
        p.require(adds_equal_shapes, add)
        p.require(run_equally_often, norm, add)
        p.require(operands_precede_add, norm, add)
        p.rewrite(norm, add_in_norm, add)

    return norm_residual


def reads_the_normed_value(quantize: ir.Operation, norm: ir.Operation) -> Verdict:
    return None if quantize.operands[0] == outputs(norm).get(VALUE) else MISMATCH


def has_room_for_format(quantize: ir.Operation, norm: ir.Operation) -> Verdict:
    present, wanted = formats(norm), _format(quantize)
    listed, text = " and ".join(map(_text, present)), _text(wanted)
    if wanted in present:
        return Refusal("the norm already yields this very value", "run cse first")
    if any(_key(one) == _key(wanted) and one[1] == wanted[1] for one in present):
        return Refusal(
            f"the norm already yields {listed}, and {text} differs in the layout of its scales "
            "alone",
            "quantize for all readers in one layout",
        )
    if len(present) < len(QUANTIZED):
        return None
    return Refusal(
        f"the norm already yields {listed}, and this reader wants {text}",
        f"quantize for the readers of a norm in at most {len(QUANTIZED)} formats"
        + (", or by fewer scales" if wanted[1] is not None else ""),
    )


def adds_nothing_yet(norm: ir.Operation) -> Verdict:
    return MISMATCH if "residual" in operands_of(norm, norm.operands) else None


def adds_equal_shapes(add: ir.Operation) -> Verdict:
    a, b = (shaped(v.type) for v in add.operands)
    out = shaped(add.results[0].type)
    if a == b == out:
        return None
    return Refusal(
        f"the add broadcasts or promotes: {a} and {b} to {out}",
        "a residual has the shape and type of the value it is added to",
    )


def operands_precede_add(norm: ir.Operation, add: ir.Operation) -> Verdict:
    for name, value in operands_of(norm, norm.operands).items():
        if name != "x" and not defined_before(value, add):
            what = "weight" if name == "weight" else "scale"
            return Refusal(
                f"the norm's {what} is made after the residual add",
                f"pass the {what} as a parameter",
            )
    return None


Format = tuple[ir.Type, ir.Value | None]
"""What is quantized to: the type, and the scale if it is given beforehand."""


def _format(quantize: ir.Operation) -> Format:
    return quantize.results[0].type, given_scale(quantize)


def _key(format_: Format) -> str:
    type_, scale = format_
    return format_key(shaped(type_), scale is not None)


def _text(format_: Format) -> str:
    type_, scale = format_
    if scale is None:
        return str(shaped(type_))
    return f"{shaped(type_)} by {remarks.argument_name(scale) or 'a scale'}"


def _quantizing(norm: ir.Operation, wanted: Format, rounding: str) -> ir.Operation:
    """The norm that yields `wanted`, too, beside `norm`; without a value that only that needs."""
    types = {name: value.type for name, value in outputs(norm).items() if name not in QUANTIZED}
    if len(readers(outputs(norm)[VALUE])) == 1:
        del types[VALUE]
    operands = operands_of(norm, norm.operands)
    in_order = sorted([*formats(norm), wanted], key=_key)
    for result, operand, (type_, scale) in zip(QUANTIZED, SCALES, in_order, strict=False):
        types[result], operands[operand] = type_, scale
    with ir.InsertionPoint(norm):
        made = build_rms_norm(norm, operands, types)
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
    operands = operands_of(norm, norm.operands) | {"x": x, "residual": residual}
    with ir.InsertionPoint(add):
        fused = build_rms_norm(norm, operands, types)
    saved = savings([add, norm], [fused])
    remarks.fired("norm-residual", norm, remarks.argument_name(norm.operands[1]), saves=saved)
    new = outputs(fused)
    _replace(rewriter, norm, {name: new[name] for name in old})
    if keep:
        rewriter.replace_op(add, [new[NEW_RESIDUAL]])


def outputs(norm: ir.Operation) -> dict[str, ir.Value]:
    """The results of a norm that are there, by name."""
    return dict(zip(output_names(norm), norm.results, strict=True))


def formats(norm: ir.Operation) -> dict[Format, ir.Value]:
    """The quantized results of a norm, in order, by what they are quantized to."""
    made, given = outputs(norm), operands_of(norm, norm.operands)
    return {
        (made[result].type, given.get(scale)): made[result]
        for result, scale in zip(QUANTIZED, SCALES, strict=True)
        if result in made
    }


def build_rms_norm(
    like: ir.Operation, operands: Mapping[str, ir.Value | None], types: Mapping[str, ir.Type]
) -> ir.Operation:
    """A norm with the options of `like` that yields the results named in `types`.

    `operands` are by name, too; None for one left out.
    """
    given = like.attributes
    attributes = {name: given[name] for name in RMS_NORM_ATTRIBUTES if name in given}
    in_order = [operands.get(name) for name in RMS_NORM_OPERANDS]
    attributes["operandSegmentSizes"] = ir.DenseI32ArrayAttr.get(
        [int(value is not None) for value in in_order]
    )
    attributes["resultSegmentSizes"] = ir.DenseI32ArrayAttr.get(
        [int(name in types) for name in RMS_NORM_OUTPUTS]
    )
    return ir.Operation.create(
        RmsNormOp.OPERATION_NAME,
        results=[types[name] for name in RMS_NORM_OUTPUTS if name in types],
        operands=[value for value in in_order if value is not None],
        attributes=attributes,
        loc=like.location,
    )


def _replace(rewriter, norm: ir.Operation, values: dict[str, ir.Value]) -> None:
    rewriter.replace_op(norm, [values[name] for name in outputs(norm)])
