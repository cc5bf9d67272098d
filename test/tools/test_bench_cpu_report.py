"""What benchmarks on a CPU make of what they measure: rows, limits, goals, quiet rounds."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from qfuse.dialects.errors import QfuseError
from qfuse.tools.bench import cpu_goals, cpu_report, cpu_rounds
from qfuse.tools.bench.cpu_goals import BF16, LIMIT, READ, WARM, Goal, Miss
from qfuse.tools.bench.cpu_report import Reporter, Work
from qfuse.tools.bench.cpu_schemes import SCHEMES
from qfuse.tools.bench.subjects import Prepared

pytestmark = pytest.mark.usefixtures("small")


class Scripted:
    """Gives `result`, or raises."""

    tolerance = 1e-3

    def __init__(self, name: str, result: torch.Tensor | Exception) -> None:
        self.name, self.result = name, result

    def prepare(self) -> Prepared:
        if isinstance(self.result, Exception):
            raise self.result
        return Prepared([lambda: self.result])


def report(*subjects: Scripted, works: Sequence[Work] = (Work(1e6, 1e6),)) -> dict[str, Any]:
    return Reporter(1).row(subjects, lambda s: s.prepare(), torch.ones(2, 3), works)


def test_wrong_numbers_have_no_time() -> None:
    row = report(
        Scripted("qfuse", torch.full((2, 3), 1.1)),
        Scripted("right", torch.ones(5, 3)),
        Scripted("refuses", QfuseError("serves others only")),
        Scripted("fails", RuntimeError("no kernel\nat all")),
    )
    assert row["ms"] is None and row["of_limit"] is None and row["error"] == pytest.approx(0.1)
    assert set(row["peers"]) == {"right"}
    assert row["absent"] == {
        "qfuse": "wrong numbers: relative error 0.1",
        "refuses": "serves others only",
        "fails": "RuntimeError: no kernel",
    }
    line = cpu_report.line({**row, "case": "a", "scheme": "b", "m": 3})
    assert line == "a b M 3: wrong numbers: relative error 0.1"


def test_limits_of_parts_add_up() -> None:
    reads, multiplies = Work(1e6, 1.0), Work(1.0, 1e9)
    row = report(Scripted("qfuse", torch.ones(2, 3)), works=[reads, multiplies])
    read, peak = (row["limits"][name] * 1e9 for name in ("read_gb_s", "peak_gflop_s"))
    assert row["of_limit"] * row["ms"] == pytest.approx(1e3 * (1e6 / read + 1e9 / peak))


def reached(**changes: Any) -> dict[str, Any]:
    """A row that reaches every goal of a product with 64 rows."""
    row = {"case": "64x128", "scheme": "fp8", "m": 64, "ms": 1.0, "limit": "vdpbf16ps"}
    row |= {"gb_s": 9.0, "of_limit": 0.9, "of_bf16_peak": 0.9}
    return row | {"peers": {"torch bf16": 1.5, "other": 2.0}, "limits": {"read_gb_s": 10}} | changes


def test_goals() -> None:
    assert not cpu_goals.missed([reached()])
    assert not cpu_goals.missed([reached(peers={"copy": 0.1})])
    assert cpu_goals.goal_lines([reached()]) == ["2 of 2 goals reached"]
    (miss,) = cpu_goals.missed([reached(of_bf16_peak=0.765)])
    assert miss == Miss("64x128", "fp8", 64, BF16, 0.85, 0.765, "vdpbf16ps")
    assert str(miss) == "64x128 fp8 M 64: 0.77 bf16 peak, 10% short of 0.85"
    lines = cpu_goals.goal_lines([reached(of_bf16_peak=0.765)])
    assert lines == [f"missed: {miss} (vdpbf16ps binds)", "1 of 2 goals reached"]


@pytest.mark.parametrize(
    ("changes", "of", "least"),
    [
        ({"m": 1, "gb_s": 8.9}, READ, 0.90),
        ({"m": 1, "scheme": "int4-g128-a16", "gb_s": 8.9}, READ, 0.90),
        ({"m": 1, "scheme": "int8", "gb_s": 7.9}, READ, 0.80),
        ({"m": 4, "scheme": "q6_k", "of_limit": 0.79}, LIMIT, 0.80),
        ({"m": 16, "of_limit": 0.79}, LIMIT, 0.80),
        ({"m": 512, "of_bf16_peak": 0.91}, BF16, 0.92),
        ({"m": 2, "peers": {"slow": 3.0, "fast": 0.9}}, "fast", 1.0),
        ({"case": "norm+quantize 64", "peers": {"torch.compile": 2.4}}, "torch.compile", 2.5),
        (
            {"case": "residual+norm+quantize 64", "peers": {"torch.compile": 2.4, "copy": 0.1}},
            "torch.compile",
            2.5,
        ),
        ({"case": "mlp 64-128", "of_limit": 0.89}, LIMIT, 0.90),
        ({"case": "decode", "m": 1, "of_limit": 0.84, "peers": {"torch bf16": 2.0}}, LIMIT, 0.85),
        ({"case": "decode", "m": 1, "peers": {"torch bf16": 1.7}}, "torch bf16", 1.8),
        ({"ms": None, "peers": {}}, BF16, 0.85),
    ],
)
def test_a_goal_that_is_missed(changes: dict[str, Any], of: str, least: float) -> None:
    (miss,) = cpu_goals.missed([reached(**changes)])
    assert (miss.of, miss.least) == (of, least) and miss.reached < least


def test_goals_in_seconds() -> None:
    row = {"case": "kernels 80x1-1", "scheme": "fp8", "m": None, "peers": {}}
    assert not cpu_goals.missed([{**row, "cold_s": 3.0, "warm_s": 0.3}])
    (miss,) = cpu_goals.missed([{**row, "cold_s": 1.0, "warm_s": 0.4}])
    assert (miss.of, miss.least, miss.reached) == (WARM, 1.0, pytest.approx(0.75))
    assert cpu_goals.goal_lines([{**row, "cold_s": 4.0, "warm_s": 0.1}]) == [
        "missed: kernels 80x1-1 fp8: 0.75 of 3 s cold, 25% short of 1.00",
        "1 of 2 goals reached",
    ]


def test_goals_name_cases_and_schemes_that_there_are() -> None:
    for goal in cpu_goals.GOALS:
        row = {"case": "", "scheme": "", "m": goal.rows[0]}
        cases = ["1x1", "norm+quantize 8", "mlp 1-1", "decode", "kernels 80x1-1"]
        assert any(
            goal.concerns({**row, "case": case, "scheme": scheme})
            for case in cases
            for scheme in SCHEMES
        )
    assert not Goal(LIMIT, 1.0, r"mlp .*").concerns({"case": "decode", "scheme": "a", "m": 1})


def test_quiet_rounds_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others work, both what is measured and the rest of a round take longer."""
    monkeypatch.setattr(cpu_rounds, "_MOST_ROUNDS", 10)
    now, own, others = [0.0], [0.0], [0.0]
    monkeypatch.setattr(cpu_rounds.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(cpu_rounds, "busy_seconds", lambda: (own[0], others[0]))
    count = [0]

    def call() -> None:
        count[0] += 1
        noisy = count[0] % 2
        now[0] += 0.002 if noisy else 0.001
        own[0] += 0.001
        others[0] += 0.001 if noisy else 0.0

    found = cpu_rounds.measure({"a": [call]})
    assert found.seconds == {"a": pytest.approx(0.001)}
    assert found.others_percent < 15
    monkeypatch.setattr(cpu_rounds, "_QUIET", 1.0)
    assert cpu_rounds.measure({"a": [call]}).others_percent == pytest.approx(25)


def test_calls_go_round(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    calls = {n: [lambda s=f"{n}{i}": order.append(s) for i in range(2)] for n in "ab"}  # type: ignore[misc]
    cpu_rounds.measure(calls)
    rounds = order[-6:]
    assert [name[0] for name in rounds] == list("ababab")
    assert rounds[0] != rounds[2] != rounds[4], "each on memory of its own"
