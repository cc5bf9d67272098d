"""Element-wise operations that the front end raises to and the epilogue patterns match.

`arithmetic.py` says what each computes; all of them compute in f32 and round once.
"""

from collections.abc import Mapping, Sequence
from math import inf, isnan
from typing import TypeVar

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.dialect import Op
from qfuse.dialects.glu import ACTIVATIONS as ACTIVATIONS
from qfuse.dialects.glu import Glu
from qfuse.dialects.quantization_ops import given_scale_error, quantize_error
from qfuse.dialects.types import FLOATS, QTensorType, Shaped, is_float, scheme_error, shaped
from qfuse.dialects.verify import (
    DYNAMIC,
    segments,
    shape_text,
    shapes_agree,
    unknown_attribute,
)

T = TypeVar("T")


class _Unary(Op):
    x: ext.Operand[ir.RankedTensorType]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        return _verify_elementwise(self)


class _Binary(Op):
    lhs: ext.Operand[ir.RankedTensorType]
    rhs: ext.Operand[ir.RankedTensorType]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        return _verify_elementwise(self)


class AddOp(_Binary, name="add", traits=[ext.Pure]):
    """lhs + rhs, broadcast as numpy does, computed in f32 and rounded to the result type.

    %y = "qfuse.add"(%a, %b) : (tensor<?x512xbf16>, tensor<512xbf16>) -> tensor<?x512xbf16>
    """


class MulOp(_Binary, name="mul", traits=[ext.Pure]):
    """lhs * rhs, broadcast as numpy does, computed in f32 and rounded to the result type.

    %y = "qfuse.mul"(%a, %b) : (tensor<?x512xbf16>, tensor<?x512xbf16>) -> tensor<?x512xbf16>
    """


class SubOp(_Binary, name="sub", traits=[ext.Pure]):
    """lhs - rhs, broadcast as numpy does, computed in f32 and rounded to the result type.

    %y = "qfuse.sub"(%a, %b) : (tensor<?x512xbf16>, tensor<?x1xbf16>) -> tensor<?x512xbf16>
    """


class DivOp(_Binary, name="div", traits=[ext.Pure]):
    """lhs / rhs, broadcast as numpy does, computed in f32 and rounded to the result type.

        %y = "qfuse.div"(%a, %b) : (tensor<?x512xbf16>, tensor<f32>) -> tensor<?x512xbf16>

    The f32 quotient is rounded once on the CPU, and within two units in the last place on a GPU.
    """


class SiluOp(_Unary, name="silu", traits=[ext.Pure]):
    """x / (1 + exp(-x)) in f32, rounded to the result type.

    %y = "qfuse.silu"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xbf16>
    """


class GeluOp(_Unary, name="gelu", traits=[ext.Pure]):
    """x/2 * (1 + erf(x / sqrt 2)) in f32, rounded to the result type.

    %y = "qfuse.gelu"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xbf16>
    """


class GeluTanhOp(_Unary, name="gelu_tanh", traits=[ext.Pure]):
    """x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))) in f32, rounded to the result type.

    %y = "qfuse.gelu_tanh"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xbf16>
    """


class ReluOp(_Unary, name="relu", traits=[ext.Pure]):
    """max(x, 0); NaN stays NaN.

    %y = "qfuse.relu"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xbf16>
    """


class SigmoidOp(_Unary, name="sigmoid", traits=[ext.Pure]):
    """1 / (1 + exp(-x)) in f32, rounded to the result type.

    %y = "qfuse.sigmoid"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xbf16>
    """


class TanhOp(_Unary, name="tanh", traits=[ext.Pure]):
    """tanh(x) in f32, rounded to the result type.

    %y = "qfuse.tanh"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xbf16>
    """


class ExpOp(_Unary, name="exp", traits=[ext.Pure]):
    """e^x in f32, rounded to the result type.

    %y = "qfuse.exp"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xbf16>
    """


class NegOp(_Unary, name="neg", traits=[ext.Pure]):
    """-x, exactly; the sign of zero changes, too.

    %y = "qfuse.neg"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xbf16>
    """


class SquareOp(_Unary, name="square", traits=[ext.Pure]):
    """x * x in f32, rounded to the result type.

    %y = "qfuse.square"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xbf16>
    """


class ClampOp(_Unary, name="clamp", traits=[ext.Pure]):
    """min(max(x, low), high); NaN stays NaN.

        %y = "qfuse.clamp"(%x) {low = 0xFFF0000000000000 : f64, high = 7.0 : f64}
           : (tensor<?x512xbf16>) -> tensor<?x512xbf16>

    A bound of infinity, as `low` here, is none.  The other is rounded to f32.
    """

    low: ir.FloatAttr
    high: ir.FloatAttr

    def violation(self) -> str | None:
        low, high = self.low.value, self.high.value
        if isnan(low) or isnan(high) or low > high:
            return f"low is {low} and high is {high}; expected low <= high"
        if low == -inf and high == inf:
            return "has no bound; give low, high or both"
        return super().violation()


class CastOp(_Unary, name="cast", traits=[ext.Pure]):
    """x as another float type, to nearest even.

    %y = "qfuse.cast"(%x) : (tensor<?x512xbf16>) -> tensor<?x512xf32>
    """


GLU_OUTPUTS = ("value", "quantized")


class GluOp(Op, name="glu", traits=[ext.Pure]):
    """act(gate) * up, or what gpt-oss makes of the two; both may be clamped first.

        %y = "qfuse.glu"(%gate, %up) {act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>,
            resultSegmentSizes = array<i32: 1, 0>}
           : (tensor<?x1400xbf16>, tensor<?x1400xbf16>) -> tensor<?x1400xbf16>
        %y = "qfuse.glu"(%gate, %up) {act = "swiglu_oai", limit = 7.0 : f64, alpha = 1.702 : f64,
            operandSegmentSizes = array<i32: 1, 1, 0>, resultSegmentSizes = array<i32: 1, 0>}
           : (tensor<?x2880xbf16>, tensor<?x2880xbf16>) -> tensor<?x2880xbf16>

    `act`, `limit` (by default none) and `alpha` (of swiglu_oai alone; by default 1.702) are those
    of `glu.Glu`, which says what is computed.  Every step is rounded to the operands' element
    type, and so is the result, as separate operations would; a NaN in either operand makes a NaN.
    With one operand, its first half is the gate and its second half is up.  The results are any
    subset of the value and the quantized value: the rounded result, quantized as `qfuse.quantize`
    would, by `scale` where that is given.
    """

    gate: ext.Operand[ir.RankedTensorType]
    act: ir.StringAttr
    value: ext.Result[ir.RankedTensorType] | None = None
    quantized: ext.Result[QTensorType] | None = None
    up: ext.Operand[ir.RankedTensorType] | None = None
    scale: ext.Operand[ir.RankedTensorType] | None = None

    def violation(self) -> str | None:
        factors, scale = glu_operands(self.operation, self.operation.operands)
        operands = [shaped(v.type) for v in factors]
        gate = operands[0]
        if why := _glu_attributes_error(self.operation) or glu_of(self.operation).error():
            return why
        if not is_float(gate):
            return f"operand element type {gate.dtype} is not f32, f16 or bf16"
        if not gate.shape:
            return f"gate is {gate}; it has no last dimension"
        width = gate.shape[-1]
        if len(operands) == 1 and width != DYNAMIC:
            if width % 2:
                return f"cannot halve a width of {width}"
            width //= 2
        elif operands[-1] != gate:
            return f"gate is {gate} but up is {operands[1]}"
        value = Shaped((*gate.shape[:-1], width), gate.dtype)
        return outputs_error(self, GLU_OUTPUTS, value, {"quantized": scale})


_GLU_NUMBERS = ("limit", "alpha")
"""Attributes of a GLU that may be left out, and that are numbers."""


def _glu_attributes_error(op: ir.Operation) -> str | None:
    if why := unknown_attribute(op, ("act", *_GLU_NUMBERS)):  # a misspelt limit would be none
        return why
    for name in _GLU_NUMBERS:
        if name in op.attributes and not isinstance(op.attributes[name], ir.FloatAttr):
            return f"attribute {name} is {op.attributes[name]}; expected a FloatAttr"
    return None


def glu_operands(op: ir.Operation, operands: Sequence[T]) -> tuple[list[T], T | None]:
    """Of `operands`, one for each of a GLU's: gate and perhaps up, and the scale if there is one"""
    *factors, scale = ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"])
    count = sum(factors)
    return list(operands[:count]), operands[count] if scale else None


def glu_of(op: ir.Operation) -> Glu:
    """What a `qfuse.glu` computes."""
    given = {name: op.attributes[name] for name in _GLU_NUMBERS if name in op.attributes}
    numbers = {name: ir.FloatAttr(value).value for name, value in given.items()}
    return Glu(ir.StringAttr(op.attributes["act"]).value, **numbers)


def create_glu(
    glu: Glu,
    operands: Sequence[ir.Value],
    value: ir.Type | None,
    quantized: ir.Type | None = None,
    scale: ir.Value | None = None,
    loc: ir.Location | None = None,
) -> ir.Operation:
    """A `qfuse.glu` of gate and perhaps up, at the insertion point.

    `value` and `quantized` are its results' types; `scale` is what to quantize by, if given.
    """
    default = Glu(glu.act)
    numbers = {name: getattr(glu, name) for name in _GLU_NUMBERS}
    return ir.Operation.create(
        GluOp.OPERATION_NAME,
        results=[type_ for type_ in (value, quantized) if type_ is not None],
        operands=[*operands, *([] if scale is None else [scale])],
        attributes={
            "act": ir.StringAttr.get(glu.act),
            **{
                name: ir.FloatAttr.get_f64(number)
                for name, number in numbers.items()
                if number != getattr(default, name)
            },
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get(
                [1, len(operands) - 1, int(scale is not None)]
            ),
            "resultSegmentSizes": ir.DenseI32ArrayAttr.get(
                [int(value is not None), int(quantized is not None)]
            ),
        },
        loc=loc,
    )


def outputs_error(
    op: ir.OpView, names: Sequence[str], value: Shaped, scales: Mapping[str, ir.Value | None]
) -> str | None:
    """Check the optional results `names` of an operation that computes `value`.

    `scales` are the operands, by the name of the result, that give a scale beforehand.
    """
    present = [n for n, there in zip(names, segments(op, "result"), strict=True) if there]
    results = [shaped(r.type) for r in op.operation.results]
    if not results:
        return f"needs at least one of the results {', '.join(names)}"
    for name, scale in scales.items():
        if scale is not None and name not in present:
            return f"has a scale for the result {name}, which is not there"
    for name, result in zip(present, results, strict=True):
        if result.quantized:
            if why := scheme_error(result) or quantize_error(result):
                return f"result {name}: {why}"
            scale = scales.get(name)
            if scale is not None and (why := given_scale_error(shaped(scale.type), result)):
                return f"result {name}: {why}"
        elif result.dtype != value.dtype:
            return f"result {name} is {result.dtype}; it follows the input, {value.dtype}"
        if not shapes_agree(result.shape, value.shape):
            return (
                f"result {name} has shape {shape_text(result.shape)}, not {shape_text(value.shape)}"
            )
    return None


def _verify_elementwise(op: ir.OpView) -> str | None:
    operands = [shaped(v.type) for v in op.operation.operands]
    out = shaped(op.operation.results[0].type)
    for value in (*operands, out):
        if value.dtype not in FLOATS:
            return f"element type {value.dtype} is not f32, f16 or bf16"
    shape = operands[0].shape
    for value in operands[1:]:
        broadcast = broadcast_shapes(shape, value.shape)
        if broadcast is None:
            return f"{shape_text(shape)} and {shape_text(value.shape)} do not broadcast"
        shape = broadcast
    if not shapes_agree(out.shape, shape):
        return f"result shape {shape_text(out.shape)} should be {shape_text(shape)}"
    return None


def broadcast_shapes(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...] | None:
    """The numpy broadcast of two shapes, or None; a dynamic extent may meet any."""
    rank = max(len(a), len(b))
    a, b = ((1,) * (rank - len(s)) + tuple(s) for s in (a, b))
    out = []
    for x, y in zip(a, b, strict=True):
        if not (x == y or 1 in (x, y) or min(x, y) < 0):
            return None
        out.append(y if x == 1 else x if y == 1 else max(x, y))
    return tuple(out)
