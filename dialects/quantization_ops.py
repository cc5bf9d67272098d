"""Operations that make, open and join quantized tensors."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.dialect import Op
from qfuse.dialects.types import (
    STORAGE_MAX,
    QTensorType,
    Shaped,
    is_float,
    scheme_error,
    shaped,
)
from qfuse.dialects.verify import (
    DYNAMIC,
    round_up,
    shape_text,
    shapes_agree,
)

AMAX_FLOOR = 1e-10
"""Smallest block maximum that a scale is computed from, so that a block of zeros gets a finite
scale (SGLang and MLC-LLM use the same value)."""


class PackOp(Op, name="pack", traits=[ext.Pure]):
    """Tie stored elements, their scales and zero points together as one quantized value.

        %q = "qfuse.pack"(%data, %scale)
           : (tensor<1024x4096xf8E4M3FN>, tensor<8x32xf32>) -> !qfuse.qtensor<...>
        %q = "qfuse.pack"(%data, %scale, %zero)
           : (tensor<1024x2048xi8>, tensor<1024x32xbf16>, tensor<1024x32xi8>) -> !qfuse.qtensor<...>

    The scale is a multiplier: value = code * scale of its block (Hugging Face calls this
    `weight_scale_inv`).  Elements of fewer than eight bits are bytes as `#qfuse.scheme` draws
    them; zero points, where the scheme has some, are one i8 for each scale.
    """

    data: ext.Operand[ir.RankedTensorType]
    scale: ext.Operand[ir.RankedTensorType]
    out: ext.Result[QTensorType]
    zero: ext.Operand[ir.RankedTensorType] | None = None

    def violation(self) -> str | None:
        components = [shaped(v.type) for v in self.operation.operands]
        return components_error(components, shaped(self.out.type))


class UnpackOp(Op, name="unpack", traits=[ext.Pure]):
    """The stored elements, the scales and, if there are any, the zero points of a quantized value.

    %data, %scale = "qfuse.unpack"(%q)
       : (!qfuse.qtensor<...>) -> (tensor<?x4096xf8E4M3FN>, tensor<?x32xf32>)
    """

    quantized: ext.Operand[QTensorType]
    data: ext.Result[ir.RankedTensorType]
    scale: ext.Result[ir.RankedTensorType]
    zero: ext.Result[ir.RankedTensorType] | None = None

    def violation(self) -> str | None:
        components = [shaped(v.type) for v in self.operation.results]
        return components_error(components, shaped(self.quantized.type))


class QuantizeOp(Op, name="quantize", traits=[ext.Pure]):
    """Quantize activations: one scale per block of the input, or a scale given beforehand.

        %q = "qfuse.quantize"(%x) : (tensor<?x4096xbf16>) -> !qfuse.qtensor<...>
        %q = "qfuse.quantize"(%x, %scale)
           : (tensor<?x4096xbf16>, tensor<1xf32>) -> !qfuse.qtensor<...>

    Dynamic, per block: amax = max(|x|, AMAX_FLOOR); scale = amax / max_finite; code =
    round-to-nearest-even of x * (max_finite / amax), saturated.  A scale of type e8m0 is amax /
    max_finite rounded up to a power of two; code = x / scale, rounded and saturated.

    With `scale`, one positive number for the whole tensor (a calibrated one, or that of
    `qfuse.tensor_scale`): code = x / scale, rounded and saturated, in blocks of [1, K], each with
    that scale.  A NaN anywhere in a block stays NaN where the storage type has one.
    """

    x: ext.Operand[ir.RankedTensorType]
    out: ext.Result[QTensorType]
    scale: ext.Operand[ir.RankedTensorType] | None = None

    def violation(self) -> str | None:
        x, *given = (shaped(v.type) for v in self.operation.operands)
        out = shaped(self.out.type)
        if not is_float(x):
            return f"input element type {x.dtype} is not f32, f16 or bf16"
        if why := scheme_error(out) or quantize_error(out):
            return why
        if not shapes_agree(x.shape, out.shape):
            return (
                f"result shape {shape_text(out.shape)} differs from the input's "
                f"{shape_text(x.shape)}"
            )
        return given_scale_error(given[0], out) if given else None


class TensorScaleOp(Op, name="tensor_scale", traits=[ext.Pure]):
    """The scale of a whole tensor, for a `qfuse.quantize` that is given its scale.

        %scale = "qfuse.tensor_scale"(%x) {storage = f8E4M3FN}
           : (tensor<?x4096xbf16>) -> tensor<1xf32>

    amax = max(|x|, AMAX_FLOOR) over all elements; scale = amax / the largest finite value of
    `storage`.  A NaN makes it NaN.  Of no elements at all it is AMAX_FLOOR / that value.
    """

    x: ext.Operand[ir.RankedTensorType]
    storage: ir.TypeAttr
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        x, out = shaped(self.x.type), shaped(self.out.type)
        storage = str(self.storage.value)
        if not is_float(x):
            return f"input element type {x.dtype} is not f32, f16 or bf16"
        if storage not in STORAGE_MAX:
            return f"storage {storage} is not one of {', '.join(STORAGE_MAX)}"
        wanted = Shaped((1,), "f32")
        return None if out == wanted else f"the result is {out}; expected {wanted}"


class DequantizeOp(Op, name="dequantize", traits=[ext.Pure]):
    """Expand a quantized value as `#qfuse.scheme` defines it, rounded once to the result type.

    %x = "qfuse.dequantize"(%q) : (!qfuse.qtensor<...>) -> tensor<?x4096xbf16>
    """

    quantized: ext.Operand[QTensorType]
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        value, out = shaped(self.quantized.type), shaped(self.out.type)
        if why := scheme_error(value):
            return why
        if not is_float(out):
            return f"result element type {out.dtype} is not f32, f16 or bf16"
        if not shapes_agree(value.shape, out.shape):
            return (
                f"result shape {shape_text(out.shape)} differs from the input's "
                f"{shape_text(value.shape)}"
            )
        return None


class ConcatOp(Op, name="concat", traits=[ext.Pure]):
    """Join the rows of weights [N_i, K] into one weight, without touching a code or a scale.

        %w = "qfuse.concat"(%gate, %up) {operandSegmentSizes = array<i32: 1, 1, 0, 0>}
           : (!qfuse.qtensor<tensor<1400x512x...>>, !qfuse.qtensor<tensor<1400x512x...>>)
           -> !qfuse.qtensor<tensor<2808x512x...>>

    Each part begins at a multiple of the scale block's rows; the rows between are zero.  That
    keeps every scale with its own rows also when N_i is no multiple of the block, so the join is
    exact for all N_i.  A product over the result names its parts in the attribute `parts`.
    """

    out: ext.Result[Any]
    weight0: ext.Operand[Any]
    weight1: ext.Operand[Any]
    weight2: ext.Operand[Any] | None = None
    weight3: ext.Operand[Any] | None = None

    def violation(self) -> str | None:
        parts = [shaped(v.type) for v in self.operation.operands]
        out = shaped(self.operation.results[0].type)
        first = parts[0]
        if first.quantized and (why := scheme_error(first)):
            return why
        for part in parts:
            if len(part.shape) != 2 or DYNAMIC in part.shape:
                return f"weight shape {shape_text(part.shape)} is not static [N, K]"
            if part.shape[1] != first.shape[1]:
                return f"K differs: {first.shape[1]} and {part.shape[1]}"
            if (part.dtype, part.scheme) != (first.dtype, first.scheme):
                return f"element type or scheme differs: {first} and {part}"
        rows = concat_rows([p.shape[0] for p in parts], first)
        expected = Shaped((rows, first.shape[1]), first.dtype, first.scheme)
        if out != expected:
            return f"result type should be {expected}, not {out}"
        return None


class AppendExpertOp(Op, name="append_expert", traits=[ext.Pure]):
    """One more expert behind those of stacked weights, without touching a code or a scale.

        %w = "qfuse.append_expert"(%experts, %shared)
           : (!qfuse.qtensor<tensor<256x4096x7168x...>>, !qfuse.qtensor<tensor<4096x7168x...>>)
           -> !qfuse.qtensor<tensor<257x4096x7168x...>>

    From [E, N, K] and [N, K] of the same element type and scheme to [E + 1, N, K].  A weight of
    several parts comes joined by `qfuse.concat`, which puts them where each expert has them.
    """

    experts: ext.Operand[Any]
    weight: ext.Operand[Any]
    out: ext.Result[Any]

    def violation(self) -> str | None:
        experts, weight, out = (shaped(v.type) for v in (self.experts, self.weight, self.out))
        if experts.quantized and (why := scheme_error(experts)):
            return why
        if len(experts.shape) != 3 or DYNAMIC in experts.shape:
            return f"experts have shape {shape_text(experts.shape)}; expected a static [E, N, K]"
        wanted = replace(experts, shape=experts.shape[1:])
        if weight != wanted:
            return f"the weight is {weight}; expected {wanted}, as of each expert"
        more = with_one_expert_more(experts)
        return None if out == more else f"result type should be {more}, not {out}"


def with_one_expert_more(experts: Shaped) -> Shaped:
    """The type of weights [E, N, K] with another expert behind them."""
    count, *each = experts.shape
    return replace(experts, shape=(count + 1, *each))


MAX_PARTS = 4
"""Weights that one `qfuse.concat` joins at most."""


def build_concat(weights: Sequence[ir.Value]) -> ir.Value:
    """A `qfuse.concat` of two to MAX_PARTS weights at the insertion point."""
    first = shaped(weights[0].type)
    rows = concat_rows([shaped(w.type).shape[0] for w in weights], first)
    joined = replace(first, shape=(rows, first.shape[1]))
    absent = MAX_PARTS - len(weights)
    return ir.Operation.create(
        ConcatOp.OPERATION_NAME,
        results=[joined.type()],
        operands=list(weights),
        attributes={
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1] * len(weights) + [0] * absent)
        },
    ).result


def build_append_expert(experts: ir.Value, weight: ir.Value) -> ir.Value:
    """A `qfuse.append_expert` at the insertion point."""
    return ir.Operation.create(
        AppendExpertOp.OPERATION_NAME,
        results=[with_one_expert_more(shaped(experts.type)).type()],
        operands=[experts, weight],
    ).result


def concat_rows(rows: Sequence[int], weight: Shaped) -> int:
    """N of the weight that joins parts of `rows` rows, each at a block boundary of `weight`."""
    block = weight.scheme.block[0] if weight.scheme else 1
    return sum(round_up(n, block) for n in rows[:-1]) + rows[-1]


def quantize_error(out: Shaped) -> str | None:
    """Why no activation can be quantized dynamically to `out`, or None."""
    scheme = out.scheme
    assert scheme is not None
    if out.dtype not in STORAGE_MAX:
        return f"cannot quantize dynamically to {out.dtype}; use one of {', '.join(STORAGE_MAX)}"
    if scheme.block[0] != 1:
        return f"dynamic quantization blocks are [1, group], not {list(scheme.block)}"
    if out.shape[-1] == DYNAMIC:
        return "the quantized dimension must be static"
    return None


def given_scale_error(scale: Shaped, out: Shaped) -> str | None:
    """Why an activation cannot be quantized to `out` with one scale for all of it, or None."""
    assert out.scheme is not None
    if scale != Shaped((1,), "f32"):
        return f"the scale is {scale}; expected {Shaped((1,), 'f32')}, one for the whole tensor"
    whole = (1, out.shape[-1])
    if (out.scheme.block, out.scheme.scale, out.scheme.packing) != (whole, "f32", "none"):
        return f"a scale for the whole tensor makes blocks of {list(whole)} with f32, not {out}"
    return None


def components_error(components: Sequence[Shaped], value: Shaped) -> str | None:
    """Why stored elements, scales and zero points are not those of `value`, or None."""
    if why := scheme_error(value):
        return why
    assert value.scheme is not None
    data, scales, *zeros = components
    if data.dtype != value.data_dtype:
        stored = f"the type stores {value.data_dtype}"
        if value.data_dtype != value.dtype:
            stored = f"{value.dtype} elements lie in bytes, i8"
        return f"data is {data.dtype} but {stored}"
    if data.shape != value.data_shape:
        return (
            f"data shape {shape_text(data.shape)} differs from the type's "
            f"{shape_text(value.data_shape)}"
        )
    if scales.dtype != value.scheme.scale:
        return f"scale is {scales.dtype} but the scheme says {value.scheme.scale}"
    wanted = value.scale_shape
    if not shapes_agree(scales.shape, wanted):
        return (
            f"scale shape {shape_text(scales.shape)} does not fit: blocks of "
            f"{list(value.scheme.block)} over {shape_text(value.shape)} need {shape_text(wanted)}"
        )
    if bool(zeros) != (value.scheme.zero_point != "none"):
        return f'zero points are "{value.scheme.zero_point}", but there are {len(zeros)} tensors'
    if zeros and zeros[0] != Shaped(wanted, "i8"):
        return f"zero points are {zeros[0]}; expected {Shaped(wanted, 'i8')}"
    return None
