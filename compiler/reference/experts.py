"""select_experts, route, combine: the operations of `dialects/moe_ops.py` but the product."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qfuse.compiler.reference import balls
from qfuse.compiler.reference.balls import Array, Ball
from qfuse.compiler.reference.values import Inexecutable, Misfit, Tensor, Value
from qfuse.dialects.bindings import ir
from qfuse.dialects.moe_ops import SIGMOID_EPSILON, shared_experts
from qfuse.dialects.types import shaped


class Undecided(Inexecutable):
    """Which experts a token gets depends on what f32 leaves open."""


@dataclass(frozen=True)
class Router:
    """The attributes of `qfuse.select_experts`; a token chooses `count` experts."""

    count: int
    scoring: str
    normalize: bool
    scale: float
    groups: int
    used: int

    def select(self, logits: Tensor, bias: Tensor | None) -> tuple[Array, Ball]:
        """ids and weights [T, k] of logits [T, E]."""
        x = logits.ball()
        sigmoid = self.scoring == "sigmoid"
        score = _sigmoid(x) if sigmoid else softmax(x)
        choice = score if bias is None else balls.add(score, bias.ball())
        if self.used < self.groups:
            choice = _in_groups(choice, self.groups, self.used)
        ids = _largest(choice, self.count)
        weights = score.map(lambda a: np.take_along_axis(a, ids, 1))
        if self.normalize:
            total = balls.constant(0.0)
            for j in range(self.count):
                total = balls.add(total, weights[:, j, None])
            if sigmoid:
                total = balls.add(total, balls.constant(SIGMOID_EPSILON))
            weights = balls.div(weights, total)
        return ids, balls.mul(weights, balls.constant(self.scale))


def select_experts(op: ir.Operation, logits: Tensor, bias: Tensor | None = None) -> list[Value]:
    attributes = op.attributes
    ids_type, weights_type = (shaped(r.type) for r in op.results)
    router = Router(
        ids_type.shape[1],
        ir.StringAttr(attributes["scoring"]).value,
        ir.BoolAttr(attributes["normalize"]).value,
        ir.FloatAttr(attributes["scale"]).value,
        ir.IntegerAttr(attributes["num_groups"]).value,
        ir.IntegerAttr(attributes["groups_used"]).value,
    )
    ids, weights = router.select(logits, bias)
    whole = Tensor(ids.astype(balls.NUMPY[ids_type.dtype]), no_slack(logits))
    return [whole, Tensor.of(weights, weights_type.dtype)]


def no_slack(like: Tensor) -> Array | None:
    """No slack, in a run with slack or without."""
    return None if like.slack is None else np.zeros(())


def softmax(x: Ball) -> Ball:
    """Of the last dimension."""
    e = balls.exp(balls.sub(x, balls.largest(x)))
    return balls.div(e, balls.summed(e))


def _sigmoid(x: Ball) -> Ball:
    one = balls.constant(1.0)
    return balls.div(one, balls.add(one, balls.exp(balls.negative(x))))


def _in_groups(choice: Ball, groups: int, used: int) -> Ball:
    """Choices outside of the `used` largest groups become the smallest of all."""
    members = choice.map(lambda a: a.reshape(len(a), groups, -1))
    tokens, _, size = members.mid.shape
    best = members.map(lambda a: a.reshape(tokens * groups, size))
    pair = _largest(best, min(2, size), ordered=False)
    top = best.map(lambda a: np.take_along_axis(a, pair, 1))
    counts = top[:, :1]
    if size > 1:
        counts = balls.add(counts, top[:, 1:])
    kept = np.zeros((tokens, groups), bool)
    chosen = _largest(counts.map(lambda a: a.reshape(tokens, groups)), used, ordered=False)
    np.put_along_axis(kept, chosen, True, 1)
    kept = np.repeat(kept, size, 1)
    slack = None if choice.slack is None else np.where(kept, choice.reach, 0.0)
    return Ball(np.where(kept, choice.mid, -np.inf), slack)


def _largest(x: Ball, count: int, ordered: bool = True) -> Array:
    """Places of the largest of each row, largest first, of equal ones the first; NaN is larger.

    Raises Undecided where the slack of x allows other places (`ordered`: or another order).
    """
    keys = np.where(np.isnan(x.mid), np.inf, x.mid)
    order = np.lexsort((-keys, ~np.isnan(x.mid)), axis=1)[:, : count + 1]
    if x.slack is not None:
        reach = np.take_along_axis(np.broadcast_to(x.slack, keys.shape), order, 1)
        step = -np.diff(np.take_along_axis(keys, order, 1), axis=1)
        # Equal inputs make equal numbers in a kernel, too; so only different ones are undecided.
        close = (step > 0) & (step <= reach[:, 1:] + reach[:, :-1])
        if close.any() if ordered else close[:, count - 1 :].any():
            raise Undecided("which experts are largest depends on roundings")
    return order[:, :count]


def route(op: ir.Operation, ids: Tensor) -> list[Value]:
    experts = ir.IntegerAttr(op.attributes["num_experts"]).value
    chosen = ids.array.astype(np.int64)
    nobody = experts + shared_experts(op)
    chosen = np.where((chosen >= 0) & (chosen < experts), chosen, nobody)
    if shared_experts(op):  # the last choice of every token
        chosen = np.pad(chosen, ((0, 0), (0, 1)), constant_values=experts)
    shape, expert, experts = chosen.shape, chosen.reshape(-1), nobody
    order = np.argsort(expert, kind="stable")
    rows = int((expert < experts).sum())
    slots = np.full(len(expert), -1, np.int32)
    slots[order[:rows]] = np.arange(rows)
    tokens = np.zeros(len(expert), np.int32)
    tokens[:rows] = order[:rows] // shape[1]
    indptr = np.zeros(experts + 1, np.int32)
    indptr[1:] = np.bincount(expert, minlength=experts + 1)[:experts].cumsum()
    slack = no_slack(ids)
    return [
        Tensor(slots.reshape(shape), slack),
        Tensor(tokens.reshape(shape), slack),
        Tensor(indptr, slack),
    ]


def combine(
    op: ir.Operation, y: Tensor, slots: Tensor, weights: Tensor, residual: Tensor | None = None
) -> list[Value]:
    type_ = shaped(op.results[0].type)
    width, shared = y.shape[-1], slots.shape[1] - weights.shape[1]
    rows = y.ball().map(lambda a: a.reshape(-1, width))
    total = Ball(np.zeros((slots.shape[0], width)), no_slack(y))
    for j in range(slots.shape[1]):
        slot = slots.array[:, j]
        if len(slot) and slot.max() >= len(rows.mid):
            raise Misfit(f"slots name rows of y outside of 0 to {len(rows.mid) - 1}")
        row = rows[np.maximum(slot, 0)]
        if j < weights.shape[1]:
            row = balls.mul(row, weights[:, j, None].ball())
        else:
            total = balls.rounded(total, type_.dtype)
        there = Ball((slot >= 0)[:, None])
        total = balls.select(there, balls.add(total, row), total)
    if shared:
        total = balls.rounded(total, type_.dtype)
    shape = (*_rows(op, type_.shape, slots.shape[0], residual), width)
    total = total.map(lambda a: a.reshape(shape))
    if residual is not None:
        total = balls.add(balls.rounded(total, type_.dtype), residual.ball())
    return [Tensor.of(total, type_.dtype)]


def _rows(
    op: ir.Operation, shape: tuple[int, ...], tokens: int, residual: Tensor | None
) -> tuple[int, ...]:
    """The leading dimensions of a result: one of them may be known at run time only."""
    if residual is not None:
        return residual.shape[:-1]
    rows = list(shape[:-1])
    unknown = [i for i, d in enumerate(rows) if d < 0]
    if len(unknown) > 1:
        raise Inexecutable(f"{op.name} has several results' extents that nothing tells")
    for i in unknown:
        known = int(np.prod([d for d in rows if d >= 0]))
        rows[i] = tokens // known
    return tuple(rows)


RULES: dict[str, Callable[..., list[Value]]] = {
    "qfuse.select_experts": select_experts,
    "qfuse.route": route,
    "qfuse.combine": combine,
}
