"""Row-wise operations of a transformer block: RMSNorm and rotary embedding."""

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.dialect import Op
from qfuse.dialects.elementwise_ops import outputs_error
from qfuse.dialects.types import FLOATS, QTensorType, Shaped, is_float, shaped
from qfuse.dialects.verify import DYNAMIC, shape_text, shapes_agree

WEIGHT_ROUNDINGS = ("before", "after")
RMS_NORM_OUTPUTS = ("value", "quantized", "new_residual")


class RmsNormOp(Op, name="rms_norm", traits=[ext.Pure]):
    """Root-mean-square norm of the last dimension, with what models put around it.

        %y, %q, %h = "qfuse.rms_norm"(%x, %w, %residual)
           {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before",
            resultSegmentSizes = array<i32: 1, 1, 1>}
           : (tensor<?x512xbf16>, tensor<512xbf16>, tensor<?x512xbf16>)
           -> (tensor<?x512xbf16>, !qfuse.qtensor<...>, tensor<?x512xbf16>)

    h = x + residual, rounded to x's element type; without residual, h = x.
    n = h * rsqrt(mean(h^2) + eps) in f32.
    value = round(round(n) * (weight + offset)) for rounding "before" (Llama, Qwen), and
    round(n * (weight + offset)) for "after" (Gemma, with offset 1); round is to x's element type.
    The results are any subset of the value, the quantized value (quantized as `qfuse.quantize`
    would) and h, the new residual.
    """

    x: ext.Operand[ir.RankedTensorType]
    weight: ext.Operand[ir.RankedTensorType]
    eps: ir.FloatAttr
    offset: ir.FloatAttr
    rounding: ir.StringAttr
    value: ext.Result[ir.RankedTensorType] | None = None
    quantized: ext.Result[QTensorType] | None = None
    new_residual: ext.Result[ir.RankedTensorType] | None = None
    residual: ext.Operand[ir.RankedTensorType] | None = None

    def violation(self) -> str | None:
        x, weight, *residual = (shaped(v.type) for v in self.operation.operands)
        attributes = self.operation.attributes
        if not is_float(x):
            return f"input element type {x.dtype} is not f32, f16 or bf16"
        if not x.shape or x.shape[-1] == DYNAMIC:
            return f"input is {x}; the normalized dimension must be static"
        if weight.dtype not in FLOATS or weight.shape != x.shape[-1:]:
            return f"weight is {weight}; expected {x.shape[-1]} values of f32, f16 or bf16"
        if residual and residual[0] != x:
            return f"residual is {residual[0]} but x is {x}"
        if attributes["rounding"].value not in WEIGHT_ROUNDINGS:
            return (
                f'rounding "{attributes["rounding"].value}" is not one of '
                f"{', '.join(WEIGHT_ROUNDINGS)}"
            )
        return outputs_error(self, RMS_NORM_OUTPUTS, Shaped(x.shape, x.dtype))


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
