"""Row-wise operations of a transformer block: RMSNorm and rotary embedding."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.dialect import Op
from qfuse.dialects.elementwise_ops import outputs_error
from qfuse.dialects.roundings import QUANTIZE_ROUNDINGS, WEIGHT_ROUNDINGS
from qfuse.dialects.types import FLOATS, QTensorType, Shaped, is_float, shaped
from qfuse.dialects.verify import DYNAMIC, segments, shape_text, shapes_agree, unknown_attribute

T = TypeVar("T")

RMS_NORM_OUTPUTS = ("value", "quantized", "quantized2", "new_residual")
QUANTIZED = RMS_NORM_OUTPUTS[1:3]
"""The results that may be quantized values, each in a format of its own."""
SCALES = ("scale", "scale2")
"""The operands that these are quantized by where their scales are given beforehand."""

QUANTIZE_ROUNDING = "quantize_rounding"
RMS_NORM_ATTRIBUTES = ("eps", "offset", "rounding", QUANTIZE_ROUNDING)
"""Those it may have; the last may be left out."""


class RmsNormOp(Op, name="rms_norm", traits=[ext.Pure]):
    """Root-mean-square norm of the last dimension, with what models put around it.

        %y, %q, %h = "qfuse.rms_norm"(%x, %w, %residual)
           {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before",
            operandSegmentSizes = array<i32: 1, 1, 1, 0, 0>,
            resultSegmentSizes = array<i32: 1, 1, 0, 1>}
           : (tensor<?x512xbf16>, tensor<512xbf16>, tensor<?x512xbf16>)
           -> (tensor<?x512xbf16>, !qfuse.qtensor<...>, tensor<?x512xbf16>)

    h = x + residual, rounded to x's element type; without residual, h = x.
    n = h * rsqrt(mean(h^2) + eps) in f32.
    value = round(round(n) * (weight + offset)) for rounding "before" (Llama, Qwen), and
    round(n * (weight + offset)) for "after" (Gemma, with offset 1); round is to x's element type.
    The results are any subset of the value, up to two quantized values (quantized as
    `qfuse.quantize` would) and h, the new residual.  `scale` is the scale of `quantized`, and
    `scale2` that of `quantized2`, where they are given beforehand.  Two quantized ones differ in
    format or in the scale given, and stand in the order of `format_key`; a single one is
    `quantized`.  `quantize_rounding` says what of: "value", the default, of the rounded value;
    "f32", of what it is rounded from.
    """

    x: ext.Operand[ir.RankedTensorType]
    weight: ext.Operand[ir.RankedTensorType]
    eps: ir.FloatAttr
    offset: ir.FloatAttr
    rounding: ir.StringAttr
    value: ext.Result[ir.RankedTensorType] | None = None
    quantized: ext.Result[QTensorType] | None = None
    quantized2: ext.Result[QTensorType] | None = None
    new_residual: ext.Result[ir.RankedTensorType] | None = None
    residual: ext.Operand[ir.RankedTensorType] | None = None
    scale: ext.Operand[ir.RankedTensorType] | None = None
    scale2: ext.Operand[ir.RankedTensorType] | None = None

    def violation(self) -> str | None:
        given = operands_of(self.operation, self.operation.operands)
        x, weight = shaped(self.x.type), shaped(self.weight.type)
        attributes = self.operation.attributes
        if why := unknown_attribute(
            self.operation, RMS_NORM_ATTRIBUTES
        ):  # misspelt, it would be none
            return why
        if not is_float(x):
            return f"input element type {x.dtype} is not f32, f16 or bf16"
        if not x.shape or x.shape[-1] == DYNAMIC:
            return f"input is {x}; the normalized dimension must be static"
        if weight.dtype not in FLOATS or weight.shape != x.shape[-1:]:
            return f"weight is {weight}; expected {x.shape[-1]} values of f32, f16 or bf16"
        if (residual := given.get("residual")) is not None and shaped(residual.type) != x:
            return f"residual is {shaped(residual.type)} but x is {x}"
        if attributes["rounding"].value not in WEIGHT_ROUNDINGS:
            return (
                f'rounding "{attributes["rounding"].value}" is not one of '
                f"{', '.join(WEIGHT_ROUNDINGS)}"
            )
        if why := _quantize_rounding_error(self.operation):
            return why
        scales = dict(zip(QUANTIZED, map(given.get, SCALES), strict=True))
        value = Shaped(x.shape, x.dtype)
        return outputs_error(self, RMS_NORM_OUTPUTS, value, scales) or _formats_error(
            self.operation
        )


RMS_NORM_OPERANDS = ("x", "weight", "residual", *SCALES)


def operands_of(norm: ir.Operation, operands: Sequence[T]) -> dict[str, T]:
    """Of `operands`, one for each of a norm's, those that are there, by name."""
    present = ir.DenseI32ArrayAttr(norm.attributes["operandSegmentSizes"])
    names = [name for name, there in zip(RMS_NORM_OPERANDS, present, strict=True) if there]
    return dict(zip(names, operands, strict=True))


def output_names(norm: ir.Operation) -> list[str]:
    """The names of the results that a norm has, in order."""
    present = segments(norm, "result")
    return [name for name, there in zip(RMS_NORM_OUTPUTS, present, strict=True) if there]


def quantize_rounding(norm: ir.Operation) -> str:
    """What a `qfuse.rms_norm` quantizes, one of QUANTIZE_ROUNDINGS."""
    if QUANTIZE_ROUNDING not in norm.attributes:
        return "value"
    return ir.StringAttr(norm.attributes[QUANTIZE_ROUNDING]).value


def format_key(quantized: Shaped, scale_is_given: bool = False) -> str:
    """The format of a quantized value, as text: element type and scheme but for `scale_layout`.

    A pass may change the layout, so it neither tells formats apart nor orders them.
    """
    assert quantized.scheme is not None
    given = " by a scale" if scale_is_given else ""
    return f"{quantized.dtype} {replace(quantized.scheme, scale_layout='row_major')}{given}"


def _quantize_rounding_error(norm: ir.Operation) -> str | None:
    if QUANTIZE_ROUNDING not in norm.attributes:
        return None
    given = norm.attributes[QUANTIZE_ROUNDING]
    if isinstance(given, ir.StringAttr) and given.value in QUANTIZE_ROUNDINGS:
        return None
    return f"{QUANTIZE_ROUNDING} {given} is not one of {', '.join(QUANTIZE_ROUNDINGS)}"


def _formats_error(norm: ir.Operation) -> str | None:
    """Why the quantized results of a norm, legal each by itself, do not go together."""
    first, second = segments(norm, "result")[1:3]
    if not second:
        return None
    if not first:
        return f"has a result {QUANTIZED[1]} but no {QUANTIZED[0]}; a single one is {QUANTIZED[0]}"
    results = [shaped(r.type) for r in norm.results]
    a, b = (value for value in results if value.quantized)
    by_a, by_b = map(operands_of(norm, norm.operands).get, SCALES)
    keys = format_key(a, by_a is not None), format_key(b, by_b is not None)
    if keys[0] == keys[1] and by_a == by_b:
        return f"quantizes twice to {a}; one result serves all of its readers"
    if keys[0] > keys[1]:
        return f"quantized results stand in the order of their formats' text: {b} before {a}"
    return None


class RopeOp(Op, name="rope", traits=[ext.Pure]):
    """Rotary position embedding of x [B, T, H, D] by cos and sin [B, T, D] (or [1, T, D]).

        %y = "qfuse.rope"(%x, %cos, %sin) : (tensor<1x?x8x64xbf16>, tensor<1x?x64xbf16>,
           tensor<1x?x64xbf16>) -> tensor<1x?x8x64xbf16>

    y = round(round(x * cos) + round(r * sin)), where r is x with its halves of D exchanged and
    the new first half negated (`rotate_half` in Hugging Face transformers).
    """

    x: ext.Operand[ir.RankedTensorType]
    cos: ext.Operand[ir.RankedTensorType]
    sin: ext.Operand[ir.RankedTensorType]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        x, cos, sin = (shaped(v.type) for v in self.operation.operands)
        out = shaped(self.operation.results[0].type)
        if not is_float(x) or len(x.shape) != 4 or x.shape[3] == DYNAMIC or x.shape[3] % 2:
            return f"x is {x}; expected floats [B, T, H, D] with D even"
        wanted = (x.shape[0], x.shape[1], x.shape[3])
        for name, value in (("cos", cos), ("sin", sin)):
            if value.dtype != x.dtype:
                return f"{name} is {value.dtype} but x is {x.dtype}"
            if not (
                shapes_agree(value.shape, wanted) or shapes_agree(value.shape, (1, *wanted[1:]))
            ):
                return f"{name} has shape {shape_text(value.shape)}; expected {shape_text(wanted)}"
        if out != x:
            return f"result is {out}; it follows x, {x}"
        return None
