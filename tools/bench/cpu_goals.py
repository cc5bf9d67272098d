"""What the CPU back end is to reach, as data, and which rows of a report miss it by how much."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_PRODUCT, _NORM = r"\d+x\d+", r"(residual\+)?norm\+quantize .*"

READ, LIMIT, BF16, PEERS = "read limit", "limit", "bf16 peak", "every peer"
COLD, WARM = "3 s cold", "0.3 s warm"
"""What a share is of; besides them, the name of a peer: how many times as fast as it we are."""

_SECONDS = {COLD: ("cold_s", 3.0), WARM: ("warm_s", 0.3)}
"""What a row has in seconds, and how many it may take: a share below 1 is too slow."""

_SHARES = (READ, LIMIT, BF16, *_SECONDS)

_LESS = {"copy"}
"""What does less than we do, measured for comparison: nobody's peer."""


@dataclass(frozen=True)
class Goal:
    """The least share of something that rows are to reach."""

    of: str
    least: float
    cases: str
    """A pattern of the names of cases."""
    schemes: str = ".*"
    rows: tuple[int, int] = (1, 1 << 30)
    """From the first to the last number of rows, where those are told."""

    def concerns(self, row: dict[str, Any]) -> bool:
        (low, high), m = self.rows, row["m"]
        named = (self.cases, row["case"]), (self.schemes, row["scheme"])
        within = m is None or low <= m <= high
        return within and all(re.fullmatch(p, name) for p, name in named)


GOALS = (
    Goal(READ, 0.90, _PRODUCT, r"fp8.*|int4.*", (1, 1)),
    Goal(READ, 0.80, _PRODUCT, "int8", (1, 1)),
    Goal(LIMIT, 0.80, _PRODUCT, rows=(4, 16)),
    Goal(BF16, 0.85, _PRODUCT, rows=(64, 64)),
    Goal(BF16, 0.92, _PRODUCT, rows=(512, 512)),
    Goal(PEERS, 1.0, r".*"),
    Goal("torch.compile", 2.5, _NORM),
    Goal(LIMIT, 0.90, r"mlp .*"),
    Goal(LIMIT, 0.85, "decode", "fp8"),
    Goal("torch bf16", 1.8, "decode", "fp8"),
    Goal(COLD, 1.0, r"kernels .*"),
    Goal(WARM, 1.0, r"kernels .*"),
)


@dataclass(frozen=True)
class Miss:
    """A goal that a row does not reach; `reached` is 0 where we have no time at all."""

    case: str
    scheme: str
    m: int | None
    of: str
    least: float
    reached: float
    limit: str | None = None
    """What binds, if that is known: see cpu_report.py."""

    def __str__(self) -> str:
        short = f"{1 - self.reached / self.least:.0%} short of {self.least:.2f}"
        of = f"of {self.of}" if self.of in _SECONDS else self.of
        of = of if self.of in _SHARES else f"times {of}"
        rows = "" if self.m is None else f" M {self.m}"
        return f"{self.case} {self.scheme}{rows}: {self.reached:.2f} {of}, {short}"


def missed(rows: Iterable[dict[str, Any]], goals: Sequence[Goal] = GOALS) -> list[Miss]:
    """What rows of a CPU suite miss; a peer that was not measured is no goal."""
    return [
        Miss(row["case"], row["scheme"], row["m"], of, goal.least, reached, row.get("limit"))
        for row, goal in _concerned(rows, goals)
        for of, reached in [_reached(row, goal.of)]
        if reached < goal.least
    ]


def goal_lines(rows: Sequence[dict[str, Any]], goals: Sequence[Goal] = GOALS) -> list[str]:
    """For people: what is missed, then how much of all that is."""
    misses, count = missed(rows, goals), sum(1 for _ in _concerned(rows, goals))
    binds = [f" ({miss.limit} binds)" if miss.limit else "" for miss in misses]
    each = [f"missed: {miss}{why}" for miss, why in zip(misses, binds, strict=True)]
    return [*each, f"{count - len(misses)} of {count} goals reached"]


def to_json(misses: Sequence[Miss]) -> list[dict[str, Any]]:
    return [asdict(miss) for miss in misses]


def _concerned(
    rows: Iterable[dict[str, Any]], goals: Sequence[Goal]
) -> Iterator[tuple[dict[str, Any], Goal]]:
    """Rows and the goals that can be judged by them."""
    for row in rows:
        for goal in goals:
            known = goal.of in _SHARES or goal.of in row["peers"]
            if goal.concerns(row) and (known or (goal.of == PEERS and _peers(row))):
                yield row, goal


def _peers(row: dict[str, Any]) -> set[str]:
    return set(row["peers"]) - _LESS


def _reached(row: dict[str, Any], of: str) -> tuple[str, float]:
    """The share, and what it is of: of all peers the fastest."""
    if of == PEERS:
        of = min(_peers(row), key=row["peers"].__getitem__)
    if of in _SECONDS:
        field, most = _SECONDS[of]
        return of, most / row[field]
    if not row["ms"]:
        return of, 0.0
    if of == READ:
        return of, row["gb_s"] / row["limits"]["read_gb_s"]
    if of in (LIMIT, BF16):
        return of, row["of_limit" if of == LIMIT else "of_bf16_peak"]
    return of, row["peers"][of] / row["ms"]
