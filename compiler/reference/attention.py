"""attention."""

from collections.abc import Callable

import numpy as np

from qfuse.compiler.reference import balls
from qfuse.compiler.reference.balls import Array, Ball
from qfuse.compiler.reference.experts import softmax
from qfuse.compiler.reference.values import Misfit, Tensor, Value
from qfuse.dialects.bindings import ir


def attention(
    op: ir.Operation, q: Tensor, k: Tensor, v: Tensor, position: Tensor
) -> list[Value]:
    scale = ir.FloatAttr(op.attributes["scale"]).value
    window = ir.IntegerAttr(op.attributes["window"]).value
    _, tokens, heads, _ = q.shape
    own = int(position.array[0]) + np.arange(tokens)[:, None]
    used = int(own[-1, 0]) + 1
    if not tokens <= used <= k.shape[2]:
        raise Misfit(f"{tokens} tokens up to slot {used - 1} of caches of {k.shape[2]}")

    def of_heads(cache: Tensor) -> Ball:
        """[B, H, used, .]"""
        return cache.ball().map(lambda a: np.repeat(a[:, :, :used], heads // k.shape[1], 1))

    def swapped(a: Array) -> Array:
        return a.swapaxes(1, 2)

    queries = q.ball().map(swapped)[:, :, :, None]
    dots = balls.summed(balls.mul(queries, of_heads(k)[:, :, None]))[..., 0]
    slots = np.arange(used)
    seen = slots <= own
    if window:
        seen &= slots > own - window
    scores = balls.mul(dots, balls.constant(scale))
    weights = softmax(balls.select(Ball(seen), scores, balls.constant(-np.inf)))
    columns = of_heads(v).map(lambda a: a.swapaxes(2, 3))[:, :, None]
    result = balls.summed(balls.mul(weights[:, :, :, None], columns))[..., 0]
    return [Tensor.of(result.map(swapped), q.dtype)]


RULES: dict[str, Callable[..., list[Value]]] = {"qfuse.attention": attention}
