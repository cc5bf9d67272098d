"""oneDNN against our kernels: measured by `qfuse tune --target cpu`, used where it is faster."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qfuse.compiler import compile
from qfuse.compiler.options import CompileOptions
from qfuse.compiler.runtime import library
from qfuse.compiler.runtime.plan import ChoiceStep
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.entry_table import VARIABLE, Table, plain_product, read_table, signature
from qfuse.lowering.measured_call import MeasuredCall
from qfuse.tools import cpu_tune
from qfuse.tools.bench.cpu_report import Kernels
from qfuse.tools.cpu_tune_calls import SCHEMES, Plain, line, parse, tune
from qfuse.tools.qfuse import main

N, K = 96, 128
THREADS = torch.get_num_threads()


def clock(ours: float, theirs: float) -> Any:
    """A measurement that makes each call once and says what it was told."""

    def measure(calls: Mapping[str, Sequence[Any]]) -> Mapping[str, float]:
        for each in calls.values():
            assert len(each) >= 2, "memory of their own"
            for call in each:
                call()
        return {"ours": ours, "mm": theirs}

    return measure


def kernels() -> Kernels:
    return Kernels(CompileOptions.make("cpu"), THREADS)


@pytest.mark.parametrize("dtype", SCHEMES)
def test_both_ways_are_checked_and_measured(dtype: str) -> None:
    found = list(tune([Plain(N, K, dtype)], [1, 8, 33], THREADS, clock(4e-6, 2e-6), kernels()))
    assert [(c.first_m, c.last_m, c.m) for c in found] == [(2, 8, (8,)), (9, 33, (33,))]
    assert all((c.ours, c.theirs) == ((4e-6,), (2e-6,)) for c in found)
    assert line(found[0]) == f"{N}x{K} {dtype} M 8: ours 4 us, torch 2 (0.50 times)"


def test_other_numbers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    right = library.mm
    monkeypatch.setattr(library, "mm", lambda *arguments: right(*arguments) * 1.5)
    with pytest.raises(QfuseError, match="96x128 bf16 M 8: torch and our kernel differ by"):
        list(tune([Plain(N, K, "bf16")], [8], THREADS, clock(1, 1), kernels()))


def test_names_of_schemes() -> None:
    assert parse(["fp8", "bf16"], [(N, K)]) == [Plain(N, K, "bf16")]
    assert parse([""], [(N, K)]) == []


def call(first: int, last: int, ours: float, theirs: float) -> MeasuredCall:
    return MeasuredCall(
        **plain_product(N, K, "bf16"),
        **{"first_m": first, "last_m": last, "call": "mm", "m": (last,)},
        **{"ours": (ours,), "theirs": (theirs,)},
    )


def test_calls_are_kept_in_the_table_of_the_cpu(tmp_path: Path) -> None:
    table = Table(signature(THREADS)).with_call(call(2, 8, 1e-6, 2e-6))
    table = table.with_call(call(9, 33, 4e-6, 2e-6)).with_call(call(4, 8, 5e-6, 2e-6))
    assert [(c.first_m, c.last_m) for c in table.calls] == [(9, 33), (4, 8)]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(table.to_json()))
    assert set(read_table(path).calls) == set(table.calls)
    data = table.to_json()
    data["calls"][0]["ours"] = []
    path.write_text(json.dumps(data))
    with pytest.raises(QfuseError, match=r"CPU table .*t\.json: ours is \[\], not a list"):
        read_table(path)


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(K, N, bias=False, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


def compiled(blas: str = "auto") -> Any:
    torch.manual_seed(0)
    rows = {0: torch.export.Dim("rows", min=1, max=4096)}
    x = torch.zeros(3, K, dtype=torch.bfloat16)
    return compile(Linear().eval(), (x,), dynamic_shapes=(rows,), blas=blas)


def test_onednn_multiplies_where_it_was_measured_faster(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "t.json"
    faster, slower = call(9, 33, 4e-6, 2e-6), call(34, 64, 2e-6, 4e-6)
    path.write_text(json.dumps(Table(signature(THREADS), (), (faster, slower)).to_json()))
    usual = compiled("on")
    assert not any(isinstance(s, ChoiceStep) for s in usual.program.plan.steps)
    (row,) = usual.program.report["dispatch"]
    assert list(row["near"]) == [
        "not plain-on-the-cpu (mm): nothing was measured of it (qfuse tune); wanted: the call is "
        "measured to be faster",
    ], "also where it is asked for"
    monkeypatch.setenv(VARIABLE, str(path))
    tuned = compiled()
    (choice,) = (s for s in tuned.program.plan.steps if isinstance(s, ChoiceStep))
    assert (choice.call, choice.ranges) == ("mm", ((9, 33),))
    rows = tuned.program.report["dispatch"]
    assert [(r["rows"], r["backend"], r["rule"]) for r in rows] == [
        ("M 1..8", "kernel", "own-kernel"),
        ("M 9..33", "oneDNN", "plain-on-the-cpu"),
        ("M 34..64", "kernel", "own-kernel"),
        ("M >= 65", "kernel", "own-kernel"),
    ]
    why = "measured: 0.002 ms against 0.004 ms of our kernel (M = 33)"
    assert rows[1]["reason"].endswith(why)
    assert "and not mm by plain-on-the-cpu: measured: 0.004 ms against" in rows[2]["reason"]
    x = torch.randn(40, K, generator=torch.Generator().manual_seed(1)).bfloat16()
    for m in range(1, 41):
        (y,), (expected,) = tuned(x[:m].clone()), usual(x[:m].clone())
        if not choice.serves(m):
            assert torch.equal(y, expected), m
        # sums in another order, and one rounding to bf16
        limit = 2**-7 * float(expected.abs().max())
        assert torch.allclose(y.float(), expected.float(), rtol=2**-7, atol=limit), m
    assert not any(isinstance(s, ChoiceStep) for s in compiled("off").program.plan.steps)


def test_a_table_of_another_machine_is_not_used(tmp_path: Path, monkeypatch, caplog) -> None:
    path = tmp_path / "t.json"
    of_another = signature(THREADS) | {"cpu": "another"}
    path.write_text(json.dumps(Table(of_another, (), (call(2, 64, 4e-6, 2e-6),)).to_json()))
    monkeypatch.setenv(VARIABLE, str(path))
    with caplog.at_level(logging.WARNING, logger="qfuse"):
        assert not any(isinstance(s, ChoiceStep) for s in compiled().program.plan.steps)
    assert f"table {path} is not used: cpu was 'another'" in caplog.text


def test_the_command(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cpu_tune, "on_this_machine", clock(4e-6, 2e-6))
    path = tmp_path / "t.json"
    argv = ["tune", "--target", "cpu", "--shapes", f"{N}x{K}", "--m", "1,16", "--only", "bf16,f32"]
    assert main([*argv, "--table", str(path)]) == 0
    said = capsys.readouterr().out
    assert "96x128 bf16 M 16: ours 4 us, torch 2 (0.50 times)" in said and VARIABLE in said
    assert "0 gained, torch faster in 2 of 2" in said
    assert [(c.w, c.first_m, c.last_m) for c in read_table(path).calls] == [
        ("bf16", 2, 16),
        ("f32", 2, 16),
    ]
    assert main([*argv, "--check", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["calls"]) == 2
