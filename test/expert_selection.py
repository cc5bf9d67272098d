"""What `qfuse.select_experts` says, in f64, and random routers: for the kernels of CPU and GPU."""

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

Array = np.ndarray

NEAR = 4e-6
"""Choices closer than this, relative to what they are sums of, may be in any order in f32."""


@dataclass(frozen=True)
class Router:
    """`experts` of which each token chooses `choices`; the rest as in the operation."""

    experts: int
    choices: int
    scoring: str
    bias: bool = False
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    used: int = 1

    @property
    def attributes(self) -> str:
        return (
            f'scoring = "{self.scoring}", normalize = {str(self.normalize).lower()}, '
            f"scale = {self.scale} : f64, num_groups = {self.groups} : i64, "
            f"groups_used = {self.used} : i64"
        )

    def select(self, logits: Array, bias: Array) -> tuple[Array, Array, Array]:
        """(ids, weights, whether f32 must choose the same) of logits [T, E]."""
        x = logits.astype(np.float64)
        if self.scoring == "softmax":
            e = np.exp(x - x.max(1, keepdims=True))
            score = e / e.sum(1, keepdims=True)
        else:
            score = 1 / (1 + np.exp(-x))
        choice, size = score, score
        if self.bias:
            choice, size = score + bias.astype(np.float64), score + np.abs(bias)
        clear = np.ones(len(x), bool)
        if self.used < self.groups:
            members = choice.reshape(len(x), self.groups, -1)
            best = np.argsort(-members, axis=2, kind="stable")[:, :, :2]
            count = np.take_along_axis(members, best, 2).sum(2)
            slack = np.take_along_axis(size.reshape(members.shape), best, 2).sum(2)
            group, clear = _largest(count, slack, self.used)
            kept = np.zeros(count.shape, bool)
            np.put_along_axis(kept, group, True, 1)
            kept = np.repeat(kept, self.experts // self.groups, 1)
            choice, size = np.where(kept, choice, -np.inf), np.where(kept, size, 0)
        ids, distinct = _largest(choice, size, self.choices)
        return ids, self.weigh(np.take_along_axis(score, ids, 1)), clear & distinct

    def weigh(self, scores: Array) -> Array:
        """Weights of the chosen scores [T, k], in their type and in the order of additions."""
        if self.normalize:
            total = np.zeros(len(scores), scores.dtype)
            for column in scores.T:
                total = total + column
            if self.scoring == "sigmoid":
                total = total + total.dtype.type(1e-20)
            scores = scores / total[:, None]
        return scores * scores.dtype.type(self.scale)


def _largest(values: Array, size: Array, count: int) -> tuple[Array, Array]:
    """The first `count` of each row, largest first, and whether none is close to another."""
    order = np.argsort(-values, axis=1, kind="stable")[:, : count + 1]
    step = -np.diff(np.take_along_axis(values, order, 1), axis=1)
    slack = NEAR * np.take_along_axis(size, order, 1)
    near = (step > 0) & (step <= slack[:, 1:] + slack[:, :-1])
    return order[:, :count], ~near.any(1)


ROUTERS = [
    Router(128, 8, "softmax"),
    Router(8, 2, "softmax", normalize=False),
    Router(7, 7, "softmax", bias=True, scale=0.5),
    Router(256, 8, "sigmoid", bias=True, scale=2.5, groups=8, used=4),
    Router(21, 5, "sigmoid", bias=True, normalize=False, groups=7, used=3),
    Router(60, 4, "softmax", scale=16.0, groups=3, used=1),
    Router(20, 6, "sigmoid", groups=20, used=6),
    Router(1, 1, "sigmoid", bias=True),
    Router(1000, 64, "sigmoid", scale=1.5),
]


def random_logits(router: Router, tokens: int, seed: int) -> tuple[Array, Array]:
    """Logits [T, E], exact in bf16, and bias [E]: equal ones, but no equal sums of different ones.

    So there are many ties, and few choices or groups whose order depends on roundings.
    """
    generator = np.random.default_rng(seed)
    spread = generator.choice([0, 3, 24], (tokens, 1))
    steps = generator.integers(-spread, spread + 1, (tokens, router.experts))
    biases = generator.standard_normal(router.experts // 2 + 1) * generator.integers(0, 2)
    bias = generator.choice(biases, router.experts)
    return (steps / 4 + 1 / 16).astype(np.float32), bias.astype(np.float32)


@st.composite
def strange_logits(draw: st.DrawFn, tokens: int, experts: int) -> Array:
    """f32 logits of which some are NaN of either sign, infinite, huge, or subnormal."""
    strange = [np.nan, -np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-42, -0.0, 1.0]
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pick = draw(st.lists(st.sampled_from(strange), min_size=1, max_size=4))
    values = generator.choice(np.array(pick, np.float32), (tokens, experts))
    plain = generator.random(values.shape) < draw(st.sampled_from([0.0, 0.5, 0.95]))
    return np.where(plain, generator.standard_normal(values.shape), values).astype(np.float32)
