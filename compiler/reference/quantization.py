"""pack, unpack, quantize, tensor_scale, dequantize, concat, append_expert."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from qfuse.compiler.reference import balls, schemes
from qfuse.compiler.reference.values import Misfit, Quantized, Tensor, Value, stack
from qfuse.dialects.bindings import ir
from qfuse.dialects.quantization_ops import AMAX_FLOOR
from qfuse.dialects.types import STORAGE_MAX, shaped


def pack(op: ir.Operation, data: Tensor, scale: Tensor, *zero: Tensor) -> list[Value]:
    schemes.known(shaped(op.results[0].type))
    type_ = replace(shaped(op.results[0].type), shape=data.shape)
    if type_.scale_shape != scale.shape:
        raise Misfit(
            f"{data.shape} elements of {type_} need {type_.scale_shape} scales, not {scale.shape}"
        )
    return [Quantized(data, scale, type_)]


def unpack(op: ir.Operation, value: Quantized) -> list[Value]:
    return [value.data, value.scale]


def quantize(op: ir.Operation, x: Tensor, scale: Tensor | None = None) -> list[Value]:
    return [schemes.encode(x.ball(), shaped(op.results[0].type), scale)]


def tensor_scale(op: ir.Operation, x: Tensor) -> list[Value]:
    limit = STORAGE_MAX[str(ir.TypeAttr(op.attributes["storage"]).value)]
    flat = balls.absolute(x.ball()).map(lambda a: a.reshape(1, -1))
    floor = balls.constant(AMAX_FLOOR)
    amax = balls.maximum(balls.largest(flat), floor) if x.array.size else floor
    scale = balls.div(amax, balls.constant(limit))
    return [Tensor.of(scale.map(lambda a: np.reshape(a, (1,))), "f32")]


def dequantize(op: ir.Operation, value: Quantized) -> list[Value]:
    return [Tensor.of(schemes.decode(value), shaped(op.results[0].type).dtype)]


def concat(op: ir.Operation, *weights: Value) -> list[Value]:
    if all(isinstance(w, Quantized) for w in weights):
        return [schemes.join([w for w in weights if isinstance(w, Quantized)])]
    return [stack([w for w in weights if isinstance(w, Tensor)])]


def append_expert(op: ir.Operation, experts: Value, weight: Value) -> list[Value]:
    if isinstance(experts, Quantized) and isinstance(weight, Quantized):
        type_ = replace(experts.type, shape=(experts.shape[0] + 1, *experts.shape[1:]))
        data, scale = (
            stack([experts.data, weight.data[None]]),
            stack([experts.scale, weight.scale[None]]),
        )
        return [Quantized(data, scale, type_)]
    assert isinstance(experts, Tensor) and isinstance(weight, Tensor)
    return [stack([experts, weight[None]])]


RULES: dict[str, Callable[..., list[Value]]] = {
    "qfuse.pack": pack,
    "qfuse.unpack": unpack,
    "qfuse.quantize": quantize,
    "qfuse.tensor_scale": tensor_scale,
    "qfuse.dequantize": dequantize,
    "qfuse.concat": concat,
    "qfuse.append_expert": append_expert,
}
