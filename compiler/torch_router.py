"""`qfuse::select_experts`, a router from its logits on, as a torch operator."""

from collections.abc import Callable
from functools import partial

import torch

from qfuse.dialects.errors import QfuseError

SCORINGS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": partial(torch.softmax, dim=-1),
    "sigmoid": torch.sigmoid,
}

_SIGMOID_EPSILON = 1e-20  # which DeepSeek-V3's own code adds to the sum it divides by


def select_experts(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    scoring: str,
    normalize: bool,
    scale: float,
    num_groups: int,
    groups_used: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k experts of each token, int64 [T, k], and how much each counts, `dtype` [T, k].

    `logits` [T, E] of any float type, `bias` f32 [E] or None.  All in f32, as the dialect's
    `qfuse.select_experts` says: scores are the softmax or sigmoid of the logits; the k largest
    of score + bias are chosen, largest first and of equal ones the lowest id first, where those
    outside of the `groups_used` largest of `num_groups` groups do not count; their scores are
    divided by their sum if `normalize`, and multiplied by `scale`.  Raises QfuseError on
    arguments that do not fit each other.
    """
    _check_router(logits, bias, k, scoring, num_groups, groups_used)
    scores = SCORINGS[scoring](logits.float())
    choices = scores if bias is None else scores + bias
    if groups_used < num_groups:
        groups = choices.unflatten(-1, (num_groups, -1))
        counts = groups.topk(min(2, groups.shape[-1])).values.sum(-1)
        used = torch.zeros_like(counts, dtype=torch.bool)
        used.scatter_(-1, _largest(counts, groups_used), value=True)
        choices = torch.where(used[..., None], groups, -torch.inf).flatten(-2)
    ids = _largest(choices, k)
    weights = scores.gather(-1, ids)
    if normalize:
        total = torch.zeros_like(weights[:, :1])
        for j in range(k):  # `sum` adds in another order
            total += weights[:, j, None]
        weights = weights / (total + _SIGMOID_EPSILON if scoring == "sigmoid" else total)
    return ids, (weights * scale).to(dtype)


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the largest in each row, largest first; `topk` has no order among equal ones."""
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :count].contiguous()


def _check_router(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    scoring: str,
    num_groups: int,
    groups_used: int,
) -> None:
    """Raise QfuseError, naming the argument, unless `select_experts` can use them together."""
    if logits.dim() != 2 or not logits.is_floating_point():
        raise QfuseError(
            f"a router takes float logits [T, E]; got {logits.dtype} {list(logits.shape)}"
        )
    experts = logits.shape[1]
    if bias is not None and (bias.dtype != torch.float32 or bias.shape != (experts,)):
        raise QfuseError(
            f"bias of a router is {bias.dtype} {list(bias.shape)}; expected float32 [{experts}]"
        )
    if scoring not in SCORINGS:
        raise QfuseError(f'scoring "{scoring}" is not one of {", ".join(SCORINGS)}')
    if num_groups < 1 or experts % num_groups or not 1 <= groups_used <= num_groups:
        raise QfuseError(
            f"{groups_used} of {num_groups} groups of {experts} experts; use equal groups, 1 or "
            "more"
        )
    candidates = groups_used * (experts // num_groups)
    if not 1 <= k <= candidates:
        raise QfuseError(f"a token chooses {k} experts of {candidates}; use 1 to {candidates}")


def _fake_select_experts(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    scoring: str,
    normalize: bool,
    scale: float,
    num_groups: int,
    groups_used: int,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    _check_router(logits, bias, k, scoring, num_groups, groups_used)
    shape = (logits.shape[0], k)
    return logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape, dtype=dtype)


OPERATORS = (
    (
        "select_experts(Tensor logits, Tensor? bias, int k, str scoring, bool normalize, "
        "float scale, int num_groups, int groups_used, ScalarType dtype) -> (Tensor, Tensor)",
        select_experts,
        _fake_select_experts,
    ),
)
"""Schema, eager implementation and shape rule."""
