"""How a product by the weights of experts is cut: as a dense one that takes about as long.

R rows that meet the weights of E experts read as much, and start as many programs, as R / E rows
that meet one weight of E times the columns; so the model of dense products chooses for them.
"""

from dataclasses import replace
from itertools import pairwise
from math import ceil, sqrt

from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.problem import Problem, read_problem
from qfuse.lowering.triton.product import Product
from qfuse.lowering.triton.tile_choice import by_model
from qfuse.lowering.triton.tiles import Config

_ROWS = (16, 32, 64, 128)
"""Rows of an expert from which on other tiles may do better."""

_FEW = 4
"""From one range to the next with fewer rows than experts: how many times as many."""

Choice = tuple[int, int | None, tuple[Config, ...]]
"""First M, last M, and tiles for each group of the product."""


def choose_group_configs(product: Product, experts: int, gpu: Gpu) -> list[Choice]:
    """Tiles for every number of rows of all experts, which is the M of the launch."""
    problems = [_as_dense(read_problem(product, group, gpu)) for group in product.groups]
    following: list[Config | None] = [None] * len(problems)
    found: list[Choice] = []
    for first, last in reversed(_ranges(experts)):
        hit = _experts_with_rows(experts, sqrt(first * (last or 2 * first)))
        least, most = _rows_of_one(first, experts), last and _rows_of_one(last, experts)
        for i, problem in enumerate(problems):
            dense = replace(problem, n=problem.n * round(hit))
            following[i] = by_model(dense, gpu, least, most, following[i])
        configs = tuple(c for c in following if c is not None)
        if found and found[-1][2] == configs:
            last = found.pop()[1]
        found.append((first, last, configs))
    return found[::-1]


def _as_dense(problem: Problem) -> Problem:
    """With the kernels that there are: rows are gathered, which TMA cannot do on sm_90."""
    return replace(problem, persistent=False, adjacent=False, gemv=False)


def _ranges(experts: int) -> list[tuple[int, int | None]]:
    """Numbers of rows that share a choice."""
    ends: list[int] = []
    while (end := 8 * _FEW ** len(ends)) < _mean(_ROWS[0]) * experts:
        ends.append(end)
    ends += sorted({max(1, int(_mean(rows) * experts)) for rows in _ROWS} - set(ends))
    starts = [1, *(end + 1 for end in ends)]
    return [*((a, b - 1) for a, b in pairwise(starts)), (starts[-1], None)]


def _mean(rows: int) -> float:
    """How many rows experts have on average where almost none has more than `rows`."""
    return (sqrt(rows + 1) - 1) ** 2


def _rows_of_one(rows: int, experts: int) -> int:
    """The inverse: as many as all but a few experts have, twice the deviation above the mean.

    That of a Poisson distribution, as if each choice were independent of the others.
    """
    mean = rows / _experts_with_rows(experts, rows)
    return ceil(mean + 2 * sqrt(mean))


def _experts_with_rows(experts: int, rows: float) -> float:
    """Of `rows` independent choices, how many experts there are on average."""
    return experts * (1 - (1 - 1 / experts) ** rows) if experts > 1 else 1.0
