"""Weights that torchao quantized, read from its tensor subclasses.

torchao itself is not imported: a tensor that comes from it says what it is.  What the operator
cannot compute is refused with the reason.  Inputs that are quantized dynamically are quantized as
`qfuse.quantize` does it: INT8 by the largest magnitude / 127, where torchao divides by 127.5.
"""

from collections.abc import Callable
from typing import Any

import torch

from qfuse.compiler.block_scaled import FP8_MAX
from qfuse.compiler.frontend.linear import (
    INPUT_SCALE,
    SCALE,
    WEIGHT,
    ZERO_POINT,
    LinearFormat,
)
from qfuse.compiler.packed_weights import pack_nibbles
from qfuse.dialects.errors import QfuseError

Read = tuple[LinearFormat, dict[str, torch.Tensor]]


def is_torchao(weight: object) -> bool:
    """Whether a weight is a tensor subclass of torchao's."""
    return isinstance(weight, torch.Tensor) and type(weight).__module__.startswith("torchao.")


def read(name: str, weight: torch.Tensor) -> Read:
    """Format and tensors of the weight of the layer `name`; raises QfuseError if it has none."""
    kind = type(weight).__name__
    if kind not in _READERS:
        raise QfuseError(
            f"{name}.weight is a {kind} of torchao, which is not supported; "
            f"supported: {', '.join(_READERS)}"
        )
    try:
        return _READERS[kind](weight)
    except _Unsupported as error:
        raise QfuseError(f"{name}.weight, a {kind} of torchao, has {error}") from error


class _Unsupported(Exception):
    """What is in the way of reading a weight."""


def _float8(weight: Any) -> Read:
    codes = weight.qdata
    if codes.dtype not in FP8_MAX:
        raise _Unsupported(f"codes of {codes.dtype}; supported: E4M3 and E5M2")
    block, scale = _rows(weight.scale.float(), weight.block_size or codes.shape, codes.shape)
    input_block, kind = _float8_input(weight.act_quant_kwargs, codes.shape[1])
    format = LinearFormat(block, input_block, "none", kind, codes.dtype)
    return format, {WEIGHT: codes.contiguous(), SCALE: scale}


def _float8_input(kwargs: Any, columns: int) -> tuple[tuple[int, ...], str]:
    if kwargs is None:
        return (), "dynamic"
    if kwargs.hp_value_lb is not None or kwargs.hp_value_ub is not None:
        raise _Unsupported("bounds on the scales of inputs, which qfuse.quantize does not have")
    if kwargs.float8_dtype != torch.float8_e4m3fn:
        raise _Unsupported(f"inputs quantized to {kwargs.float8_dtype}; supported: E4M3")
    return _input(kwargs.granularity, columns)


def _int8(weight: Any) -> Read:
    _refuse_pre_scale(weight)
    _refuse_zero_points(weight.zero_point)
    codes, kwargs = weight.qdata, weight.act_quant_kwargs
    columns = codes.shape[1]
    block, scale = _rows(weight.scale, weight.block_size, codes.shape)
    tensors = {WEIGHT: codes.contiguous(), SCALE: scale}
    input_block: tuple[int, ...] = ()
    kind = "dynamic"
    if kwargs is not None:
        if getattr(kwargs.mapping_type, "name", "SYMMETRIC") != "SYMMETRIC":
            raise _Unsupported("inputs quantized asymmetrically; supported: symmetric INT8")
        if kwargs.reduce_range:
            raise _Unsupported("inputs quantized to 7 bits (reduce_range); supported: INT8")
        input_block, kind = _input(kwargs.granularity, columns)
        if (given := weight.act_quant_scale) is not None:
            if given.numel() != 1:
                raise _Unsupported(f"static scales of inputs {list(given.shape)}; supported: one")
            _refuse_zero_points(weight.act_quant_zero_point)
            input_block, kind = (1, columns), "static"
            tensors[INPUT_SCALE] = given.detach().float().reshape(1)
    return LinearFormat(block, input_block, "none", kind, torch.int8, scale.dtype), tensors


def _intx(weight: Any) -> Read:
    if (kind := weight.activation_quantization) is not None:
        raise _Unsupported(
            f"inputs quantized as {getattr(kind, 'value', kind)!r}, with zero points, which "
            "qfuse.quantize does not make; supported: none (weight only)"
        )
    codes = weight.qdata
    bits = int(str(weight.target_dtype).rpartition("int")[2])
    if bits > 4:
        _refuse_zero_points(weight.zero_point)
        block, scale = _rows(weight.scale, weight.block_size, codes.shape)
        format = LinearFormat(block, weight_dtype=torch.int8, scale_dtype=scale.dtype)
        return format, {WEIGHT: codes.contiguous(), SCALE: scale}
    return _int4_codes(codes, weight.scale, _integers(weight.zero_point), weight.block_size)


def _int4(weight: Any) -> Read:
    """Signed codes, two a byte; value = code * scale + zero_point, both [K / group, N]."""
    _refuse_pre_scale(weight)
    if weight.activation_dtype != torch.bfloat16:
        raise _Unsupported(f"inputs quantized to {weight.activation_dtype}; supported: bfloat16")
    packed = weight.qdata.view(torch.uint8)
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
    codes = (codes ^ 8).to(torch.int8) - 8  # four bits with a sign
    scale, offset = weight.scale.t(), weight.zero_point.t().float()
    steps = torch.where(scale == 0, 0, -offset / scale.float()).round()
    if not torch.equal(-steps * scale.float(), offset):
        raise _Unsupported("zero points that are no multiple of their scales")
    return _int4_codes(codes, scale, _integers(steps), weight.block_size)


def _int4_codes(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, block_size: Any
) -> Read:
    """(code - zero) * scale with codes of -8 to 7, one a byte."""
    if codes.shape[1] % 2:
        raise _Unsupported(f"{codes.shape[1]} columns, an odd number, of four bits")
    block, scale = _rows(scale, block_size, codes.shape)
    tensors = {WEIGHT: pack_nibbles(codes + 8), SCALE: scale}
    has_zeros = bool(zero.any())
    if has_zeros:
        _, zero = _rows(zero + 8, block_size, codes.shape)
        tensors[ZERO_POINT] = zero.to(torch.int8)
    format = LinearFormat(block, (), "int4", "dynamic", torch.int8, scale.dtype, has_zeros)
    return format, tensors


_READERS: dict[str, Callable[[Any], Read]] = {
    "Float8Tensor": _float8,
    "Int8Tensor": _int8,
    "IntxUnpackedToInt8Tensor": _intx,
    "Int4Tensor": _int4,
}


def _rows(
    numbers: torch.Tensor, block_size: Any, shape: torch.Size
) -> tuple[tuple[int, int], torch.Tensor]:
    """A block of [rows, columns] and its scales; one for all rows becomes one for each."""
    rows, columns = (int(extent) for extent in block_size)
    numbers = numbers.detach().reshape(-(-shape[0] // rows), -(-shape[1] // columns))
    if rows == shape[0] > 1:
        return (1, columns), numbers.repeat(rows, 1)
    return (rows, columns), numbers.contiguous()


def _input(granularity: Any, columns: int) -> tuple[tuple[int, ...], str]:
    """`input_block` and `input_format` of the operator."""
    kind = type(granularity).__name__
    if kind in ("PerRow", "PerToken") and getattr(granularity, "dim", -1) == -1:
        return (1, columns), "dynamic"
    if kind == "PerTensor":
        return (1, columns), "tensor"
    block: Any = getattr(granularity, "block_size", ())
    if kind == "PerBlock" and len(block) == 2 and block[0] == 1:
        return (1, int(block[1])), "dynamic"
    raise _Unsupported(f"inputs quantized {granularity}; supported: PerRow, PerTensor, 1 x group")


def _integers(zero_point: torch.Tensor) -> torch.Tensor:
    """Zero points as signed codes of four bits, which is what the operator takes them for."""
    values = zero_point.detach().float()
    if not torch.equal(values, values.round()) or not ((values >= -8) & (values <= 7)).all():
        raise _Unsupported("zero points that are no codes, whole numbers from -8 to 7")
    return values.to(torch.int8)


def _refuse_zero_points(zero_point: torch.Tensor | None) -> None:
    if zero_point is not None and bool(zero_point.any()):
        raise _Unsupported("zero points; supported beside weights of 4 bits only")


def _refuse_pre_scale(weight: Any) -> None:
    if weight.act_pre_scale is not None:
        raise _Unsupported("a scale for inputs (act_pre_scale); fold it into the layer before")
