"""Operations of torch that passes raise or fuse, so that what comes before a pass can run, too.

Anything else of torch (embeddings, cache updates, views with sizes from outside) has no rule:
`execute` answers None, and whoever runs a program says what such an operation yields.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from qfuse.compiler.reference import balls, schemes
from qfuse.compiler.reference.activations import ACTIVATIONS
from qfuse.compiler.reference.attention import attend
from qfuse.compiler.reference.balls import Ball
from qfuse.compiler.reference.elementwise import glu_factors
from qfuse.compiler.reference.experts import Router, no_slack
from qfuse.compiler.reference.values import Other, Quantized, Tensor, Value, stack
from qfuse.compiler.torch_ir import FROM_BUILTIN, TO_BUILTIN, builtin_type
from qfuse.dialects.bindings import ir
from qfuse.dialects.glu import ALPHA, Glu
from qfuse.dialects.types import Scheme, Shaped, shaped
from qfuse.dialects.verify import DYNAMIC


class _NoRule(Exception):
    """The operation is none of ours in this form."""


Dot = Callable[[Tensor | Quantized, Tensor | Quantized], Ball]
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
    rule = partial(_PRODUCTS[name], dot) if name in _PRODUCTS else _RULES.get(name)
    if rule is None:
        return None
    try:
        # the sizes of a view may be unknown: its type says enough
        read = operands[:1] if rule is _reshape else operands
        arguments = [_plain(v) for v in read]
        types = [shaped(builtin_type(r.type) or _no_rule()) for r in op.results]
        results = rule(types[-1], *arguments)  # of select_experts, the weights
        return [results] if isinstance(results, Tensor) else results
    except (_NoRule, KeyError, ValueError, IndexError):  # unknown to us, or torch's to refuse
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


def _transpose(out: Shaped, x: Tensor, a: int, b: int) -> Tensor:
    return x.map(lambda v: np.swapaxes(v, a, b))


def _unsqueeze(out: Shaped, x: Tensor, dim: int) -> Tensor:
    return x.map(lambda v: np.expand_dims(v, dim))


def _slice(
    out: Shaped, x: Tensor, dim: int, start: int | None, end: int | None, step: int
) -> Tensor:
    index = [slice(None)] * len(x.shape)
    index[dim] = slice(start, end, step)
    return x[tuple(index)]


def _reshape(out: Shaped, x: Tensor) -> Tensor:
    """To the shape of the result's type, which may have one extent that follows from x."""
    if sum(d == DYNAMIC for d in out.shape) > 1:
        raise _NoRule
    return x.map(lambda v: v.reshape([-1 if d == DYNAMIC else d for d in out.shape]))


def _cat(out: Shaped, parts: list[Tensor], dim: int) -> Tensor:
    return stack(parts, dim)


def _to_dtype(out: Shaped, x: Tensor, *_: Any) -> Tensor:
    return _float(out, x.ball() if x.dtype in _FLOATS else _no_rule())


_FLOATS = ("f32", "f16", "bf16")


def _float(out: Shaped, x: Ball) -> Tensor:
    if out.dtype not in _FLOATS:
        raise _NoRule
    return Tensor.of(x, out.dtype)


def _number(value: Any) -> Ball:
    if isinstance(value, Tensor):
        if value.dtype not in _FLOATS:
            raise _NoRule
        return value.ball()
    return balls.constant(float(value))


def _arithmetic(compute: Callable[..., Ball]) -> Callable[..., Tensor]:
    return lambda out, *operands: _float(out, compute(*map(_number, operands)))


def _add(out: Shaped, a: Any, b: Any, alpha: float) -> Tensor:
    if alpha != 1:
        raise _NoRule
    return _float(out, balls.add(_number(a), _number(b)))


def _gelu(out: Shaped, x: Tensor, approximate: str) -> Tensor:
    act = ACTIVATIONS["gelu_tanh" if approximate == "tanh" else "gelu"]
    return _float(out, act(_number(x)))


def _power(out: Shaped, x: Tensor, exponent: float) -> Tensor:
    if exponent != 2:
        raise _NoRule
    return _float(out, balls.mul(_number(x), _number(x)))


def _mean(out: Shaped, x: Tensor, dims: list[int], keepdim: bool, _dtype: Any) -> Tensor:
    if dims not in ([-1], [len(x.shape) - 1]) or not keepdim:
        raise _NoRule
    total = balls.summed(_number(x))
    return _float(out, balls.div(total, balls.constant(float(x.shape[-1]))))


def _rms_norm(out: Shaped, x: Tensor, shape: list[int], weight: Tensor, eps: float) -> Tensor:
    h = _number(x)
    mean = balls.div(balls.summed(balls.mul(h, h)), balls.constant(float(x.shape[-1])))
    normed = balls.mul(h, balls.rsqrt(balls.add(mean, balls.constant(eps))))
    return _float(out, balls.mul(normed, _number(weight)))


def _linear(dot: Dot, out: Shaped, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`aten.linear`: a bias is added before the sum is rounded."""
    y = dot(x, weight).map(lambda a: a.reshape(*x.shape[:-1], -1))
    return _float(out, y if bias is None else balls.add(y, bias.ball()))


def _quantized_linear(
    dot: Dot,
    out: Shaped,
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    weight_block: list[int],
    input_block: list[int],
    packing: str = "none",
    input_format: str = "dynamic",
    zero_point: Tensor | None = None,
    input_scale: Tensor | None = None,
) -> Tensor:
    """`qfuse::quantized_linear`; whether it rounds before it adds the bias is open."""
    formats = ("dynamic", "static")
    if packing != "none" or input_format not in formats or zero_point is not None:
        _no_rule()
    type_ = Shaped(weight.shape, weight.dtype, Scheme(_pair(weight_block), scale.dtype))
    source: Tensor | Quantized = x
    if input_block:
        stored = "f8E4M3FN" if weight.dtype.startswith("f8") else weight.dtype
        quantized = Shaped(x.shape, stored, Scheme(_pair(input_block), "f32"))
        source = schemes.encode(x.ball(), quantized, input_scale)
    y = dot(source, Quantized(weight, scale, type_))
    y = y.map(lambda a: a.reshape(*x.shape[:-1], -1))
    if bias is not None:
        once = balls.rounded(y, out.dtype)
        y = balls.ball(y.mid, once.reach + abs(once.mid - y.mid) + y.reach, y)
        y = balls.add(y, bias.ball())
    return _float(out, y)


def _select_experts(
    out: Shaped,
    logits: Tensor,
    bias: Tensor | None,
    count: int,
    scoring: str,
    normalize: bool,
    scale: float,
    groups: int,
    used: int,
    _code: int,
) -> list[Tensor]:
    router = Router(count, scoring, bool(normalize), scale, groups, used)
    ids, weights = router.select(logits, bias)
    return [Tensor(ids.astype(np.int64), no_slack(logits)), _float(out, weights)]


def _attention(
    out: Shaped, q: Tensor, k: Tensor, v: Tensor, position: Tensor, scale: float, window: int
) -> Tensor:
    """Without bounds alone: with them it stays what cuts a function into pieces, so that what
    layers leave open does not add up."""
    if any(x.slack is not None for x in (q, k, v)):
        raise _NoRule
    return attend(q, k, v, position, scale, window)


def _moe_experts(
    dot: Dot,
    out: Shaped,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    gate_up_scale: Tensor,
    down: Tensor,
    down_scale: Tensor,
    width: int,
    weight_block: list[int],
    input_block: list[int],
    act: str,
    limit: float | None = None,
    alpha: float | None = None,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    packing: str = "none",
    input_format: str = "dynamic",
    gate_up_zero_point: Tensor | None = None,
    down_zero_point: Tensor | None = None,
    down_block: Sequence[int] = (),
    down_input: Sequence[int] = (),
    down_packing: str = "",
    gate_up_input_scale: Tensor | None = None,
    down_input_scale: Tensor | None = None,
) -> Tensor:
    """`qfuse::moe_experts`: for each choice of each token its expert, and their weighted sum."""
    if gate_up_zero_point is not None or down_zero_point is not None:
        _no_rule()
    wide = (weight_block, input_block, packing, input_format, None, gate_up_input_scale)
    narrow = (
        list(down_block) or weight_block,
        list(down_input) or input_block,
        down_packing or packing,
        input_format,
        None,
        down_input_scale,
    )
    height = weight_block[0]
    start = -(-width // height)  # the block of rows where up begins
    glu = Glu(act, math.inf if limit is None else limit, ALPHA if alpha is None else alpha)
    up_rows = slice(start * height, None)

    def product(
        rows: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, stored: tuple[Any, ...]
    ) -> Ball:
        return _quantized_linear(dot, out, rows, codes, scale, bias, *stored).ball()

    def expert(row: Tensor, e: int) -> Ball:
        codes, scales = gate_up[e], gate_up_scale[e]
        bias, more = (b and b[e] for b in (gate_up_bias, down_bias))
        gate = product(row, codes[:width], scales[:start], bias and bias[:width], wide)
        up = product(row, codes[up_rows], scales[start:], bias and bias[up_rows], wide)
        hidden = balls.mul(*glu_factors(glu, gate, up, out.dtype))
        return product(_float(out, hidden), down[e], down_scale[e], more, narrow)

    return _sum_of_experts(out, x, ids, weights, down, expert)


def _dense_experts(
    dot: Dot,
    out: Shaped,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    act: str,
    limit: float | None = None,
    alpha: float | None = None,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
) -> Tensor:
    """`qfuse::dense_experts`: products are rounded before their biases are added."""
    width = down.shape[2]
    glu = Glu(act, math.inf if limit is None else limit, ALPHA if alpha is None else alpha)

    def product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Ball:
        y = _linear(dot, out, rows, weight, None).ball()
        return y if bias is None else _float(out, balls.add(y, bias.ball())).ball()

    def expert(row: Tensor, e: int) -> Ball:
        bias, more = (b and b[e] for b in (gate_up_bias, down_bias))
        gate, up = (
            product(row, gate_up[e][part], bias and bias[part])
            for part in (slice(width), slice(width, None))
        )
        hidden = balls.mul(*glu_factors(glu, gate, up, out.dtype))
        return product(_float(out, hidden), down[e], more)

    return _sum_of_experts(out, x, ids, weights, down, expert)


def _sum_of_experts(
    out: Shaped,
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
    down: Tensor,
    expert: Callable[[Tensor, int], Ball],
) -> Tensor:
    """The weighted sum of `expert(row, e)` over the choices of each token; `down` is [E, H, ..]."""
    totals = []
    for t in range(x.shape[0]):
        total = Ball(np.zeros((1, down.shape[1])), no_slack(x))
        for j in range(ids.shape[1]):
            e = int(ids.array[t, j])
            if 0 <= e < down.shape[0]:
                weight = weights[t : t + 1, j : j + 1].ball()
                y = expert(x[t : t + 1], e)
                total = balls.add(total, balls.mul(weight, y))
        totals.append(_float(out, total))
    return stack(totals) if totals else x


def _pair(block: list[int]) -> tuple[int, int]:
    rows, columns = block
    return rows, columns


_PRODUCTS: dict[str, Callable[..., Any]] = {
    "torch.aten.linear": _linear,
    "torch.qfuse.dense_experts": _dense_experts,
    "torch.qfuse.quantized_linear": _quantized_linear,
    "torch.qfuse.moe_experts": _moe_experts,
}

_RULES: dict[str, Callable[..., Any]] = {
    "torch.aten.view": _reshape,
    "torch.aten.reshape": _reshape,
    "torch.aten._unsafe_view": _reshape,
    "torch.qfuse.select_experts": _select_experts,
    "torch.qfuse.attention": _attention,
    "torch.aten.transpose.int": _transpose,
    "torch.aten.unsqueeze": _unsqueeze,
    "torch.aten.slice.Tensor": _slice,
    "torch.aten.cat": _cat,
    "torch.aten.neg": lambda out, x: _float(out, balls.negative(_number(x))),
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
