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
    VIEWS,
    builtin_type,
    constant_of,
    drop_dead,
    from_builtin,
    is_constant,
    made_by,
    to_builtin,
)
from qfuse.dialects.bindings import ir
from qfuse.dialects.norm_ops import RopeOp
from qfuse.dialects.types import is_float, shaped

_LIST = "torch.prim.ListConstruct"


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

    cos and sin must be [B, T, D] unsqueezed at dimension 1.  What rotates the first columns of a
    head only (GPT-NeoX), neighbors instead of halves (Cohere), or halves without rotate_half
    (gpt-oss) stays torch operations, each with a remark that says so.
    """

    name: ClassVar[str] = "qfuse-fuse-rope"

    def run(self, module: ir.Operation) -> None:
        orders = combinations((False, True), repeat=2)
        halves = [_rotate_half(*order) for order in orders]
        Patterns([*halves, rotated_neighbors, rotated_chunks]).apply(module)
        drop_dead(module)


def _rotate_half(cos_first: bool, sin_first: bool) -> Callable[[Pattern], None]:
    def rotary_embedding(p: Pattern) -> None:
        t = p.value()
        cos = p.op("torch.aten.unsqueeze", cos_rows := p.value(), cos_dim := p.value())
        sin = p.op("torch.aten.unsqueeze", sin_rows := p.value(), sin_dim := p.value())
        low = p.op("torch.aten.slice.Tensor", t, *(low_args := [p.value() for _ in range(4)]))
        high = p.op("torch.aten.slice.Tensor", t, *(high_args := [p.value() for _ in range(4)]))
        negated = p.op("torch.aten.neg", p.result(high))
        halves = p.op(_LIST, p.result(negated), p.result(low))
        rotated = p.op("torch.aten.cat", p.result(halves), cat_dim := p.value())
        straight = p.op("torch.aten.mul.Tensor", *_ordered(t, p.result(cos), cos_first))
        crossed = p.op(
            "torch.aten.mul.Tensor", *_ordered(p.result(rotated), p.result(sin), sin_first)
        )
        root = p.op(
            "torch.aten.add.Tensor", p.result(straight), p.result(crossed), alpha := p.value()
        )
        p.require(is_one, alpha)
        p.require(unsqueezes_heads, cos_dim, sin_dim)
        p.require(concatenates_last_dimension, cat_dim)
        p.require(takes_both_halves, t, *low_args, *high_args)
        p.require(rotates_whole_heads, root, t)
        p.require(has_rows_for_every_token, root, t, cos_rows, sin_rows)
        inner = (negated, halves, rotated, straight, crossed)
        p.rewrite(root, rotate, t, cos_rows, sin_rows, *inner)

    rotary_embedding.__name__ = "rope"
    return rotary_embedding


def rotated_neighbors(p: Pattern) -> None:
    """x * cos + stack([-x[..., 1::2], x[..., ::2]]).flatten(-2) * sin, cast in between or not"""
    products = [p.op("torch.aten.mul.Tensor", p.value(), p.value()) for _ in range(2)]
    root = p.op("torch.aten.add.Tensor", *map(p.result, products), alpha := p.value())
    p.require(is_one, alpha)
    p.require(rotates_halves, root, *products)
    p.rewrite(root, stay)


def rotated_chunks(p: Pattern) -> None:
    """cat([a * cos - b * sin, b * cos + a * sin]) of the chunks a and b of x"""
    chunks = p.op("torch.prim.ListUnpack", p.value(), many=True)
    a, b = p.result(chunks, 0), p.result(chunks, 1)
    cos, sin = p.value(), p.value()
    terms = [
        p.result(p.op("torch.aten.mul.Tensor", half, table))
        for half, table in ((a, cos), (b, sin), (b, cos), (a, sin))
    ]
    low = p.op("torch.aten.sub.Tensor", *terms[:2], minus := p.value())
    high = p.op("torch.aten.add.Tensor", *terms[2:], plus := p.value())
    halves = p.op(_LIST, p.result(low), p.result(high))
    root = p.op("torch.aten.cat", p.result(halves), p.value())
    p.require(is_one, minus)
    p.require(is_one, plus)
    p.require(is_spelled_with_rotate_half, root)
    p.rewrite(root, stay)


for _pattern in (rotated_neighbors, rotated_chunks):
    _pattern.__name__ = "rope"  # one line of the report has all rotations


def _ordered(a: ir.Value, b: ir.Value, swap: bool) -> tuple[ir.Value, ir.Value]:
    return (b, a) if swap else (a, b)


def is_one(alpha: ir.Value) -> Verdict:
    return None if is_constant(alpha, 1) else MISMATCH


def unsqueezes_heads(cos_dim: ir.Value, sin_dim: ir.Value) -> Verdict:
    return None if is_constant(cos_dim, 1) and is_constant(sin_dim, 1) else MISMATCH


def concatenates_last_dimension(dim: ir.Value) -> Verdict:
    return None if is_constant(dim, -1, 3) else MISMATCH


def rotates_whole_heads(_root: ir.Operation, t: ir.Value) -> Verdict:
    """`t` is the transpose to [B, H, T, D] of what is [B, T, H, D]."""
    if _swaps_heads_and_tokens(t):
        return None
    width = shaped(builtin_type(t.type)).shape[3]
    if (maker := made_by(t, "torch.aten.slice.Tensor")) is not None:
        whole = builtin_type(maker.operands[0].type)
        if whole is not None and (columns := shaped(whole).shape[3]) != width:
            return Refusal(
                f"{width} of {columns} columns of each head are rotated, qfuse.rope rotates all",
                "the nearest is a rotation of whole heads, partial_rotary_factor 1",
            )
    made = "is an argument" if isinstance(t, ir.BlockArgument) else f"is made by {t.owner.name}"
    return Refusal(
        f"what is rotated {made}, and qfuse.rope takes tokens before heads",
        "rotate x.transpose(1, 2) of x [B, T, H, D]",
    )


def _swaps_heads_and_tokens(t: ir.Value) -> bool:
    transpose = made_by(t, "torch.aten.transpose.int")
    if transpose is None:
        return False
    _, *dims = transpose.operands
    return any(
        is_constant(dims[0], first) and is_constant(dims[1], second)
        for first, second in ((1, 2), (2, 1))
    )


def rotates_halves(_root: ir.Operation, *products: ir.Operation) -> Verdict:
    """No factor is the neighbors of a value, exchanged and every other one negated."""
    if not any(_exchanges_neighbors(factor) for product in products for factor in product.operands):
        return MISMATCH
    return Refusal(
        "neighboring columns are rotated (the interleaved form), and qfuse.rope rotates halves",
        "the nearest is rotate_half of the halves of a head, with the columns of its weights "
        "sorted so",
    )


def _exchanges_neighbors(value: ir.Value) -> bool:
    """Whether `value` is flatten(stack([-x[..., 1::2], x[..., ::2]])), cast or not.

    A graph of torch.compile has views and a cat of what is unsqueezed instead.
    """
    pairs = _through(value, "torch.aten.to.dtype")
    pairs = _through(pairs, "torch.aten.flatten.using_ints", *VIEWS)
    listed = made_by(_through(pairs, "torch.aten.stack", "torch.aten.cat"), _LIST)
    if listed is None or len(listed.operands) != 2:
        return False
    odd, even = (_through(half, "torch.aten.unsqueeze") for half in listed.operands)
    negated = made_by(odd, "torch.aten.neg")
    return negated is not None and all(map(_is_every_other, (negated.operands[0], even)))


def _through(value: ir.Value, *names: str) -> ir.Value:
    """What an operation of one of these names makes `value` from; `value` if none does."""
    maker = next((op for name in names if (op := made_by(value, name)) is not None), None)
    return value if maker is None else maker.operands[0]


def _is_every_other(value: ir.Value) -> bool:
    part = made_by(value, "torch.aten.slice.Tensor")
    return part is not None and is_constant(part.operands[4], 2)


def is_spelled_with_rotate_half(_root: ir.Operation) -> Verdict:
    return Refusal(
        "the halves of each head are rotated apart and joined again",
        "write it as x * cos + rotate_half(x) * sin, with cos and sin for all columns",
    )


def stay(_rewriter, root: ir.Operation) -> None:
    """What a pattern that only tells why it declines would do to `root`."""
    raise AssertionError(f"a pattern of which every match is refused matched {root}")


def takes_both_halves(t: ir.Value, *slices: ir.Value) -> Verdict:
    """low is [0, D/2) and high is [D/2, D) of the last dimension, in steps of one."""
    type_ = builtin_type(t.type)
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
    _root: ir.Operation, t: ir.Value, cos: ir.Value, sin: ir.Value
) -> Verdict:
    types = [builtin_type(v.type) for v in (t.owner.operands[0], cos, sin)]
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
    t: ir.Value,
    cos: ir.Value,
    sin: ir.Value,
    *inner: ir.Operation,
) -> None:
    """`inner` are the operations between the slices and the root, which go where all do."""
    x, *dims = t.owner.operands
    operands = [to_builtin(v) for v in (x, cos, sin)]
    rope = ir.Operation.create(
        RopeOp.OPERATION_NAME, results=[operands[0].type], operands=operands
    ).result
    rotated = from_builtin(rope, x.type)
    transposed = ir.Operation.create(
        "torch.aten.transpose.int",
        results=[root.results[0].type],
        operands=[rotated, *dims],
    )
    remarks.fired("rope", root, saves=savings(_gone(root, inner), [rope.owner.operation]))
    rewriter.replace_op(root, transposed.results)


def _gone(root: ir.Operation, inner: Sequence[ir.Operation]) -> list[ir.Operation]:
    """The root, and what of `inner` only they read: each a launch, but for the list of a cat."""
    gone = [root]
    for op in reversed(inner):
        if all(reader in gone for reader in readers(op.results[0])):
            gone.append(op)
    return [op for op in gone if op.name != _LIST]
