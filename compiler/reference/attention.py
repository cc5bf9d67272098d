"""attention."""

from collections.abc import Callable

import numpy as np

from qfuse.compiler.reference import balls
from qfuse.compiler.reference.balls import Array, Ball
from qfuse.compiler.reference.experts import softmax
from qfuse.compiler.reference.values import Tensor, Value
from qfuse.dialects.bindings import ir


def attention(op: ir.Operation, q: Tensor, k: Tensor, v: Tensor, position: Tensor) -> list[Value]:
    scale = ir.FloatAttr(op.attributes["scale"]).value
    window = ir.IntegerAttr(op.attributes["window"]).value
    return [attend(q.map(heads_first), k, v, position, scale, window)]


def attend(q: Tensor, k: Tensor, v: Tensor, position: Tensor, scale: float, window: int) -> Tensor:
    """[B, T, H, E] from q [B, H, T, D], and the rest as `qfuse.attention` has it."""
    _, heads, tokens, _ = q.shape
    own = int(position.array[0]) + np.arange(tokens)[:, None]
    slots = np.arange(max(0, min(int(own[-1, 0]) + 1, k.shape[2])))
    seen = slots <= own
    if window:
        seen &= slots > own - window

    def of_heads(cache: Tensor) -> Ball:
        """[B, H, slots, .]"""
        return cache.ball().map(lambda a: np.repeat(a[:, :, slots], heads // k.shape[1], 1))

    dots = balls.summed(balls.mul(q.ball()[:, :, :, None], of_heads(k)[:, :, None]))[..., 0]
    scores = balls.mul(dots, balls.constant(scale))
    weights = softmax(balls.select(Ball(seen), scores, balls.constant(-np.inf)))
    columns = of_heads(v).map(lambda a: a.swapaxes(2, 3))[:, :, None]
    result = balls.summed(balls.mul(weights[:, :, :, None], columns))[..., 0]
    return Tensor.of(result.map(heads_first), q.dtype)


def heads_first(x: Array) -> Array:
    """[B, T, H, D] as [B, H, T, D], or the other way round."""
    return x.swapaxes(1, 2)


RULES: dict[str, Callable[..., list[Value]]] = {"qfuse.attention": attention}
