"""`qfuse tune --target cpu` with a clock that knows what is best."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from qfuse.compiler import compile, load
from qfuse.compiler.options import CompileOptions
from qfuse.lowering.cpu import entry_table
from qfuse.lowering.cpu.cpu import missing_flags
from qfuse.lowering.cpu.entry_table import VARIABLE, Table, read_table, signature
from qfuse.lowering.cpu.launcher import LoadedKernel
from qfuse.tools import cpu_tune
from qfuse.tools.bench.cpu_report import Kernels
from qfuse.tools.bench.cpu_schemes import SCHEMES
from qfuse.tools.bench.kernels import Call
from qfuse.tools.cpu_tune import (
    Outcome,
    Subject,
    candidates,
    merged,
    name_of,
    of_program,
    of_schemes,
    ranges_of,
    tune,
)
from qfuse.tools.qfuse import main

pytestmark = pytest.mark.skipif(
    bool(missing_flags("avx512")), reason="names entries that kernels with AVX-512 have"
)

ROWS = (1, 4, 8, 200)


@pytest.fixture(scope="module")
def case() -> Subject:
    (subject,) = of_schemes([(192, 256)], [SCHEMES["fp8"]], Kernels(CompileOptions.make("cpu"), 2))
    return subject


def preferring(*names: str) -> cpu_tune.Measure:
    """Everything takes a second, but for what has these names: half of that."""

    def measure(calls: Mapping[str, Sequence[Call]]) -> Mapping[str, float]:
        return {name: 0.5 if name in names else 1.0 for name in calls}

    return measure


def found(case: Subject, *best: str, rows: Sequence[int] = ROWS) -> list[Outcome]:
    return list(tune([case], rows, 2, preferring(*best), 600))


def test_numbers_of_rows_stand_for_those_before() -> None:
    assert ranges_of([4, 1, 16, 4]) == [(1, 1), (2, 4), (5, 16)]


def test_candidates_are_all_that_can_serve(case: Subject) -> None:
    kernel = case.kernel.compiled
    names = {m: [name_of(c) for c in candidates(kernel, m, 2)] for m in (1, 8, 200)}
    assert names[1] == ["run1", "run4", "run8", "run16", "run_units/8", "run/8"]
    assert names[8] == ["run8", "run16", "run_units/8", "run/8"]
    assert set(names[200]) >= {"run/200", "run/96", "run/48", "run/24"}
    assert not any(name.startswith("run_units") for name in names[200])
    for m in names:
        assert candidates(kernel, m, 2)[0] == kernel.modelled(m, 2)


def test_what_is_measured_to_be_best_is_kept_and_used(
    case: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(signature(2))
    outcomes = found(case, "run_units/8")
    for outcome in outcomes:
        table = merged(table, outcome)
    assert [(o.m, o.ratio) for o in outcomes] == [(1, 2), (4, 2), (8, 2), (200, 1)]
    assert [(e.first_m, e.last_m, e.entry) for e in table.entries] == [
        (1, 1, "run_units"), (2, 4, "run_units"), (5, 8, "run_units"),
    ]  # fmt: skip
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(table.to_json()))
    assert read_table(path) == table
    monkeypatch.setenv(VARIABLE, str(path))
    entry_table._in_use.cache_clear()
    kernel = case.kernel.compiled
    assert [kernel.choose(m, 2).entry.symbol for m in (1, 3, 8)] == ["run_units"] * 3
    assert kernel.choose(200, 2) == kernel.modelled(200, 2)


def test_where_the_model_is_right_there_is_no_entry(case: Subject) -> None:
    (wrong,) = found(case, "run8", rows=[1])
    (right,) = found(case, rows=[1])
    assert wrong.gains and not right.gains and right.ratio == 1
    assert merged(merged(Table({}), wrong), right).entries == ()


def test_the_share_of_right_choices(case: Subject) -> None:
    outcomes = found(case, "run_units/8", rows=[1, 4, 200, 300])
    assert cpu_tune.summary(outcomes) == (
        "the model's choice is within 10% of the best for 2 of 4 (50%); at most 2.00 times"
    )


def test_time_is_bounded(case: Subject) -> None:
    assert list(tune([case], ROWS, 2, preferring(), -1)) == []


def test_other_bits_are_no_candidate(case: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    bind = LoadedKernel.bind

    def wrong(self, pointers, m, threads, scratch, choice):
        launch = bind(self, pointers, m, threads, scratch, choice)
        return launch if choice.entry.symbol != "run8" else lambda: None

    monkeypatch.setattr(LoadedKernel, "bind", wrong)
    with pytest.raises(cpu_tune.QfuseError, match="192x256 fp8 M 1: run8 computes other bits"):
        found(case, rows=[1])


def test_the_products_of_a_model(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    """By their own weights and in their own parts, which the kernels of the model then find."""
    path = tmp_path / "model.qfuse"
    compile(checkpoints(), max_len=32).save(path)
    subjects = list(of_program(load(path).program))
    keys = {subject.kernel.compiled.product for subject in subjects}
    assert len(keys) == len(subjects) >= 4
    assert any(subject.results == 3 for subject in subjects), "q, k and v are one"
    assert all("(2 x)" in subject.name for subject in subjects)
    for subject in subjects:
        one, many = tune([subject], [1, 12], 2, preferring("run/8", "run/16"), 600)
        assert (one.best.entry.symbol, many.best.entry.symbol) == ("run", "run")
    argv = ["tune", "--target", "cpu", "--model", str(path), "--m", "1", "--table"]
    table = tmp_path / "cpu.json"
    assert main([*argv, str(table)]) == 0
    assert {entry.product for entry in read_table(table).entries} <= keys


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.json"
    argv = ["tune", "--target", "cpu", "--shapes", "192x256", "--m", "1,12", "--only", "fp8,q4_k"]
    assert main([*argv, "--table", str(path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in shown[:4]] == [
        "192x256 fp8 M 1", "192x256 fp8 M 12", "192x256 q4_k M 1", "192x256 q4_k M 12",
    ]  # fmt: skip
    assert "within 10% of the best for" in shown[4] and f"QFUSE_CPU_TABLE={path}" in shown[5]
    assert read_table(path).signature["threads"] >= 1
    assert main([*argv, "--check", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["outcomes"]) == 4 and not data["stopped"]
    assert data["signature"] == signature(data["signature"]["threads"])
    assert all(o["ratio"] >= 1 and o["modelled"] in o["us"] for o in data["outcomes"])


def test_what_cannot_be_tuned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(Table({"cpu": "another"}).to_json()))
    for argv, words in (
        ([], "name the table to write with --table"),
        (["--target", "cpu", "--table", str(path)], "cannot be added to: cpu was 'another'"),
        (["--target", "cpu", "--check", "--only", "int5"], "scheme 'int5' is unknown"),
        (["--check"], "--check and --model are for --target cpu"),
        (
            ["--target", "cpu", "--check", "--model", "m.qfuse", "--only", "fp8"],
            "--model has shapes and schemes of its own",
        ),
    ):
        assert main(["tune", *argv]) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert words in line
