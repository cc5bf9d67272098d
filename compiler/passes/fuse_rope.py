"""`qfuse-fuse-rope`: the torch operations of a rotary embedding become one `qfuse.rope`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product as combinations
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import readers
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    builtin_type,
    constant_of,
    drop_dead,
    from_builtin,
    is_constant,
    to_builtin,
)
from qfuse.dialects.bindings import ir
from qfuse.dialects.norm_ops import RopeOp
from qfuse.dialects.types import is_float, shaped


@dataclass(frozen=True)
class FuseRope(Pass):
    """Recognize `x * cos + rotate_half(x) * sin` and compute it in one operation.

    Before::

        %t = torch.aten.transpose.int %x, 1, 2             // [B, H, T, D]
        %a = torch.aten.mul.Tensor %t, %cos
        %r = torch.aten.cat [neg(%t[..., D/2:]), %t[..., :D/2]], -1
        %b = torch.aten.mul.Tensor %r, %sin
        %y = torch.aten.add.Tensor %a, %b, 1

    After::

        %r = "qfuse.rope"(%x, %cos, %sin)                  // [B, T, H, D]
        %y = torch.aten.transpose.int %r, 1, 2

    cos and sin must be [B, T, D] unsqueezed at dimension 1.  The interleaved form (DeepSeek) and
    a partial rotation stay torch operations.
    """

    name: ClassVar[str] = "qfuse-fuse-rope"

    def run(self, module: ir.Operation) -> None:
        orders = combinations((False, True), repeat=2)
        Patterns([_rotate_half(*order) for order in orders]).apply(module)
        drop_dead(module)


def _rotate_half(cos_first: bool, sin_first: bool) -> Callable[[Pattern], None]:
    def rotary_embedding(p: Pattern) -> None:
        x = p.value()
        heads_first = p.op("torch.aten.transpose.int", x, dim0 := p.value(), dim1 := p.value())
        t = p.result(heads_first)
        cos = p.op("torch.aten.unsqueeze", cos_rows := p.value(), cos_dim := p.value())
        sin = p.op("torch.aten.unsqueeze", sin_rows := p.value(), sin_dim := p.value())
        low = p.op("torch.aten.slice.Tensor", t, *(low_args := [p.value() for _ in range(4)]))
        high = p.op("torch.aten.slice.Tensor", t, *(high_args := [p.value() for _ in range(4)]))
        negated = p.op("torch.aten.neg", p.result(high))
        halves = p.op("torch.prim.ListConstruct", p.result(negated), p.result(low))
        rotated = p.op("torch.aten.cat", p.result(halves), cat_dim := p.value())
        straight = p.op("torch.aten.mul.Tensor", *_ordered(t, p.result(cos), cos_first))
        crossed = p.op(
            "torch.aten.mul.Tensor", *_ordered(p.result(rotated), p.result(sin), sin_first)
        )
        root = p.op(
            "torch.aten.add.Tensor", p.result(straight), p.result(crossed), alpha := p.value()
        )
        p.require(is_one, alpha)
        p.require(swaps_heads_and_tokens, dim0, dim1)
        p.require(unsqueezes_heads, cos_dim, sin_dim)
        p.require(concatenates_last_dimension, cat_dim)
        p.require(takes_both_halves, x, *low_args, *high_args)
        p.require(has_rows_for_every_token, root, x, cos_rows, sin_rows)
        inner = (negated, halves, rotated, straight, crossed)
        p.rewrite(root, rotate, x, cos_rows, sin_rows, dim0, dim1, *inner)

    rotary_embedding.__name__ = "rope"
    return rotary_embedding


def _ordered(a: ir.Value, b: ir.Value, swap: bool) -> tuple[ir.Value, ir.Value]:
    return (b, a) if swap else (a, b)


def is_one(alpha: ir.Value) -> Verdict:
    return None if is_constant(alpha, 1) else MISMATCH


def swaps_heads_and_tokens(dim0: ir.Value, dim1: ir.Value) -> Verdict:
    swap = (is_constant(dim0, 1), is_constant(dim1, 2))
    back = (is_constant(dim0, 2), is_constant(dim1, 1))
    return None if all(swap) or all(back) else MISMATCH


def unsqueezes_heads(cos_dim: ir.Value, sin_dim: ir.Value) -> Verdict:
    return None if is_constant(cos_dim, 1) and is_constant(sin_dim, 1) else MISMATCH


def concatenates_last_dimension(dim: ir.Value) -> Verdict:
    return None if is_constant(dim, -1, 3) else MISMATCH


def takes_both_halves(x: ir.Value, *slices: ir.Value) -> Verdict:
    """low is [0, D/2) and high is [D/2, D) of the last dimension, in steps of one."""
    type_ = builtin_type(x.type)
    if type_ is None or len(type_.shape) != 4 or not all(is_known(v) for v in slices):
        return MISMATCH
    width = type_.shape[3]
    low, high = ([constant_of(v) for v in half] for half in (slices[:4], slices[4:]))
    last_dimension = {low[0], high[0]} <= {3, -1}
    is_low = low[1:] == [0, width // 2, 1]
    is_high = high[1] == width // 2 and high[2] >= width and high[3] == 1
    return None if last_dimension and is_low and is_high else MISMATCH


def is_known(value: ir.Value) -> bool:
    if isinstance(value, ir.BlockArgument):
        return False
    return value.owner.operation.name == "torch.constant.int"


def has_rows_for_every_token(
    _root: ir.Operation, x: ir.Value, cos: ir.Value, sin: ir.Value
) -> Verdict:
    types = [builtin_type(v.type) for v in (x, cos, sin)]
    if None in types:
        return MISMATCH
    x_type, *tables = (shaped(t) for t in types)
    if not is_float(x_type) or x_type.shape[3] < 0 or x_type.shape[3] % 2:
        return Refusal(f"x is {x_type}; rope needs floats with an even, static last dimension")
    batch, tokens, _, width = x_type.shape
    for table in tables:
        if table.dtype != x_type.dtype:
            return Refusal(
                f"cos or sin is {table.dtype} but x is {x_type.dtype}",
                "cast cos and sin to x's type before the product",
            )
        if table.shape not in ((batch, tokens, width), (1, tokens, width)):
            return Refusal(f"cos or sin is {table}; expected [B, T, {width}] like x {x_type}")
    return None


def rotate(
    rewriter,
    root: ir.Operation,
    x: ir.Value,
    cos: ir.Value,
    sin: ir.Value,
    dim0: ir.Value,
    dim1: ir.Value,
    *inner: ir.Operation,
) -> None:
    """`inner` are the operations between the slices and the root, which go where all do."""
    operands = [to_builtin(v) for v in (x, cos, sin)]
    rope = ir.Operation.create(
        RopeOp.OPERATION_NAME, results=[operands[0].type], operands=operands
    ).result
    rotated = from_builtin(rope, x.type)
    transposed = ir.Operation.create(
        "torch.aten.transpose.int",
        results=[root.results[0].type],
        operands=[rotated, dim0, dim1],
    )
    remarks.fired("rope", root, saves=savings(_gone(root, inner), [rope.owner.operation]))
    rewriter.replace_op(root, transposed.results)


def _gone(root: ir.Operation, inner: Sequence[ir.Operation]) -> list[ir.Operation]:
    """The root, and what of `inner` only they read: each a launch, but for the list of a cat."""
    gone = [root]
    for op in reversed(inner):
        if all(reader in gone for reader in readers(op.results[0])):
            gone.append(op)
    return [op for op in gone if op.name != "torch.prim.ListConstruct"]
