"""What the tests of the benchmarks on a CPU share: tiny shapes, so times mean nothing."""

import json
from typing import Any

import pytest

from qfuse.compiler.options import CompileOptions
from qfuse.tools.bench import cpu_limits
from qfuse.tools.bench.cpu_report import Kernels
from qfuse.tools.bench.cpu_schemes import SCHEMES

FIELDS = {
    *("case", "m", "n", "k", "scheme", "ms", "gb_s", "gflop_s", "of_limit", "bound", "peers"),
    *("limit", "of_bf16_peak", "absent", "limits", "others_percent", "error"),
}
MULTIPLIERS = [cpu_limits.multiplier(integers) for integers in (False, True)]

schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)


def kernels() -> Kernels:
    return Kernels(CompileOptions.make("cpu"), 2)


def check(row: dict[str, Any], peers: set[str]) -> None:
    assert row.keys() >= FIELDS
    assert row["ms"] > 0 and row["of_limit"] > 0 and row["error"] < 2e-2
    assert set(row["peers"]) | set(row["absent"]) == peers and all(row["absent"].values())
    limits = row["limits"]
    assert limits.keys() == {"read_gb_s", "peak_gflop_s", "bf16_gflop_s"}
    assert row["of_bf16_peak"] == pytest.approx(row["gflop_s"] / limits["bf16_gflop_s"])
    assert row["limit"] in (["read"] if row["bound"] == "memory" else MULTIPLIERS)
    json.dumps(row)
