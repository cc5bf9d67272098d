"""Operations of torch that passes raise or fuse, so that what comes before a pass can run, too.

Anything else of torch (attention, embeddings, views with sizes from outside) has no rule:
`execute` answers None, and whoever runs a program says what such an operation yields.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from qfuse.compiler.reference import balls, schemes
from qfuse.compiler.reference.activations import ACTIVATIONS
from qfuse.compiler.reference.balls import Ball
from qfuse.compiler.reference.values import Other, Quantized, Tensor, Value, stack
from qfuse.compiler.torch_ir import FROM_BUILTIN, TO_BUILTIN, builtin_type
from qfuse.dialects.bindings import ir
from qfuse.dialects.types import Scheme, Shaped, shaped


class _NoRule(Exception):
    """The operation is none of ours in this form."""


Dot = Callable[[Tensor | Quantized, Quantized], Ball]
"""x [.., K] times the transpose of a weight [N, K], as [M, N]: as `qfuse.matmul` sums it."""


def execute(op: ir.Operation, operands: list[Value], dot: Dot) -> list[Value] | None:
    """What an operation of torch yields; None where no rule executes it."""
    name = op.name
    if name in (FROM_BUILTIN, TO_BUILTIN):
        return [operands[0]]
    if name.startswith("torch.constant."):
        return [Other(_constant(op), known=True)]
    if name == "torch.prim.ListConstruct":
        return [Other(tuple(operands), known=True)]
    if name == "torch.operator":
        name = ir.StringAttr(op.attributes["name"]).value
    rule = partial(_quantized_linear, dot) if name == _LINEAR else _RULES.get(name)
    if rule is None:
        return None
    try:
        arguments = [_plain(v) for v in operands]
        dtype = shaped(builtin_type(op.results[0].type) or _no_rule()).dtype
        return [rule(dtype, *arguments)]
    except (_NoRule, ValueError, IndexError):  # shapes that only torch makes fit
        return None


def _no_rule() -> Any:
    raise _NoRule


def _constant(op: ir.Operation) -> object:
    if op.name == "torch.constant.none":
        return None
    value = op.attributes["value"]
    if isinstance(value, ir.IntegerAttr | ir.FloatAttr | ir.BoolAttr | ir.StringAttr):
        return value.value
    return _no_rule()


def _plain(value: Value) -> Any:
    """Tensors as they are, constants and lists of them as Python's."""
    if isinstance(value, Other):
        if not value.known:
            raise _NoRule
        if isinstance(value.constant, tuple):
            return [_plain(v) for v in value.constant]
        return value.constant
    return value


def _transpose(dtype: str, x: Tensor, a: int, b: int) -> Tensor:
    return x.map(lambda v: np.swapaxes(v, a, b))


def _unsqueeze(dtype: str, x: Tensor, dim: int) -> Tensor:
    return x.map(lambda v: np.expand_dims(v, dim))


def _slice(
    dtype: str, x: Tensor, dim: int, start: int | None, end: int | None, step: int
) -> Tensor:
    index = [slice(None)] * len(x.shape)
    index[dim] = slice(start, end, step)
    return x.map(lambda v: v[tuple(index)])


def _cat(dtype: str, parts: list[Tensor], dim: int) -> Tensor:
    return stack(parts, dim)


def _to_dtype(dtype: str, x: Tensor, *_: Any) -> Tensor:
    return _float(dtype, x.ball() if x.dtype in _FLOATS else _no_rule())


_FLOATS = ("f32", "f16", "bf16")


def _float(dtype: str, x: Ball) -> Tensor:
    if dtype not in _FLOATS:
        raise _NoRule
    return Tensor.of(x, dtype)


def _number(value: Any) -> Ball:
    if isinstance(value, Tensor):
        if value.dtype not in _FLOATS:
            raise _NoRule
        return value.ball()
    return balls.constant(float(value))


def _arithmetic(compute: Callable[..., Ball]) -> Callable[..., Tensor]:
    return lambda dtype, *operands: _float(dtype, compute(*map(_number, operands)))


def _add(dtype: str, a: Any, b: Any, alpha: float) -> Tensor:
    if alpha != 1:
        raise _NoRule
    return _float(dtype, balls.add(_number(a), _number(b)))


def _gelu(dtype: str, x: Tensor, approximate: str) -> Tensor:
    act = ACTIVATIONS["gelu_tanh" if approximate == "tanh" else "gelu"]
    return _float(dtype, act(_number(x)))


def _power(dtype: str, x: Tensor, exponent: float) -> Tensor:
    if exponent != 2:
        raise _NoRule
    return _float(dtype, balls.mul(_number(x), _number(x)))


def _mean(dtype: str, x: Tensor, dims: list[int], keepdim: bool, _dtype: Any) -> Tensor:
    if dims not in ([-1], [len(x.shape) - 1]) or not keepdim:
        raise _NoRule
    total = balls.summed(_number(x))
    return _float(dtype, balls.div(total, balls.constant(float(x.shape[-1]))))


def _rms_norm(dtype: str, x: Tensor, shape: list[int], weight: Tensor, eps: float) -> Tensor:
    h = _number(x)
    mean = balls.div(balls.summed(balls.mul(h, h)), balls.constant(float(x.shape[-1])))
    normed = balls.mul(h, balls.rsqrt(balls.add(mean, balls.constant(eps))))
    return _float(dtype, balls.mul(normed, _number(weight)))


_LINEAR = "torch.qfuse.quantized_linear"


def _quantized_linear(
    dot: Dot,
    dtype: str,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    weight_block: list[int],
    input_block: list[int],
) -> Tensor:
    """`qfuse::quantized_linear`; whether it rounds before it adds the bias is open."""
    type_ = Shaped(weight.shape, weight.dtype, Scheme(_pair(weight_block), scale.dtype))
    source: Tensor | Quantized = x
    if input_block:
        quantized = Shaped(x.shape, "f8E4M3FN", Scheme(_pair(input_block), "f32"))
        source = schemes.encode(x.ball(), quantized)
    y = dot(source, Quantized(weight, scale, type_))
    y = y.map(lambda a: a.reshape(*x.shape[:-1], -1))
    if bias is not None:
        once = balls.rounded(y, dtype)
        y = balls.ball(y.mid, once.reach + abs(once.mid - y.mid) + y.reach, y)
        y = balls.add(y, bias.ball())
    return _float(dtype, y)


def _pair(block: list[int]) -> tuple[int, int]:
    rows, columns = block
    return rows, columns


_RULES: dict[str, Callable[..., Tensor]] = {
    "torch.aten.transpose.int": _transpose,
    "torch.aten.unsqueeze": _unsqueeze,
    "torch.aten.slice.Tensor": _slice,
    "torch.aten.cat": _cat,
    "torch.aten.neg": lambda dtype, x: _float(dtype, balls.negative(_number(x))),
    "torch.aten.to.dtype": _to_dtype,
    "torch.aten._to_copy": _to_dtype,
    "torch.aten.add.Tensor": _add,
    "torch.aten.add.Scalar": _add,
    "torch.aten.mul.Tensor": _arithmetic(balls.mul),
    "torch.aten.mul.Scalar": _arithmetic(balls.mul),
    "torch.aten.silu": _arithmetic(ACTIVATIONS["silu"]),
    "torch.aten.relu": _arithmetic(ACTIVATIONS["relu"]),
    "torch.aten.gelu": _gelu,
    "torch.aten.pow.Tensor_Scalar": _power,
    "torch.aten.mean.dim": _mean,
    "torch.aten.rsqrt": _arithmetic(balls.rsqrt),
    "torch.aten.rms_norm": _rms_norm,
}
