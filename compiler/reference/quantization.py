"""pack, unpack, quantize, dequantize, concat."""

from collections.abc import Callable
from dataclasses import replace

from qfuse.compiler.reference import schemes
from qfuse.compiler.reference.values import Misfit, Quantized, Tensor, Value, stack
from qfuse.dialects.bindings import ir
from qfuse.dialects.types import shaped


def pack(op: ir.Operation, data: Tensor, scale: Tensor) -> list[Value]:
    type_ = replace(shaped(op.results[0].type), shape=data.shape)
    if type_.scale_shape != scale.shape:
        raise Misfit(
            f"{data.shape} elements of {type_} need {type_.scale_shape} scales, not {scale.shape}"
        )
    return [Quantized(data, scale, type_)]


def unpack(op: ir.Operation, value: Quantized) -> list[Value]:
    return [value.data, value.scale]


def quantize(op: ir.Operation, x: Tensor) -> list[Value]:
    return [schemes.encode(x.ball(), shaped(op.results[0].type))]


def dequantize(op: ir.Operation, value: Quantized) -> list[Value]:
    return [Tensor.of(schemes.decode(value), shaped(op.results[0].type).dtype)]


def concat(op: ir.Operation, *weights: Value) -> list[Value]:
    if all(isinstance(w, Quantized) for w in weights):
        return [schemes.join([w for w in weights if isinstance(w, Quantized)])]
    return [stack([w for w in weights if isinstance(w, Tensor)])]


RULES: dict[str, Callable[..., list[Value]]] = {
    "qfuse.pack": pack,
    "qfuse.unpack": unpack,
    "qfuse.quantize": quantize,
    "qfuse.dequantize": dequantize,
    "qfuse.concat": concat,
}
