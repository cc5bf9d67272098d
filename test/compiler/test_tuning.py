"""Tuning whole programs: what it changes, what it keeps, and what it says."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qfuse.compiler import compile, load, tuning
from qfuse.compiler.options import CompileOptions
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu import autotune
from qfuse.lowering.cpu.autotune import OutOfTime, Subject
from qfuse.lowering.cpu.tunables import Search, Tunables
from qfuse.tools.qfuse import main

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


class Prefers:
    """In place of `Probes`: one strip at a time is twice as fast for one row."""

    measured = 0
    most = 1000

    def __init__(self, level: str, threads: int) -> None:
        """As `Probes`."""

    def __call__(
        self, subject: Subject, search: Search, choices: Sequence[Tunables], end: float
    ) -> list[float]:
        if Prefers.measured >= Prefers.most:
            raise OutOfTime
        Prefers.measured += 1
        return [0.5 if search.m == 1 and choice.row_strips < 4 else 1.0 for choice in choices]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Prefers]:
    """Products of all sizes are measured by `Prefers`, and kept for this test alone."""
    monkeypatch.setattr(tuning, "Probes", Prefers)
    monkeypatch.setattr(autotune, "LEAST_BYTES", 0)
    monkeypatch.setenv("QFUSE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(Prefers, "measured", 0)
    monkeypatch.setattr(Prefers, "most", 1000)
    return Prefers


def products(exe: Any) -> list[dict[str, Any]]:
    return exe.program.report["tuning"]["products"]


def test_a_tuned_program_computes_the_same_bits(
    checkpoints: Callable[..., Path], measured: type[Prefers], tmp_path: Path
) -> None:
    plain = compile(checkpoints(), max_len=32, tune="off")
    assert measured.measured == 0
    exe = compile(checkpoints(), max_len=32, tune="auto")
    assert measured.measured > 0
    assert all("row_strips" in row["tuned"] for row in products(exe))
    assert not any(row["tuned"] for row in products(plain))
    assert {row["why"] for row in products(plain)} == {"tuning is off"}
    for row in products(exe):
        mine, usual = exe.program.kernels[row["kernel"]], plain.program.kernels[row["kernel"]]
        assert mine.code != usual.code and mine.entries == usual.entries
    assert torch.equal(exe.logits(PROMPT), plain.logits(PROMPT))
    assert exe.generate(PROMPT, 6) == plain.generate(PROMPT, 6)
    exe.save(tmp_path / "model.qfuse")
    assert torch.equal(load(tmp_path / "model.qfuse").logits(PROMPT), plain.logits(PROMPT))


def test_the_second_compilation_measures_nothing(
    checkpoints: Callable[..., Path], measured: type[Prefers]
) -> None:
    first = compile(checkpoints(), max_len=32, tune="auto")
    count = measured.measured
    second = compile(checkpoints(), max_len=32, tune="auto")
    assert measured.measured == count > 0 and products(first) == products(second)
    compile(checkpoints(), max_len=32, tune="full")
    assert measured.measured == 2 * count


def test_what_there_was_no_time_for_is_said(
    checkpoints: Callable[..., Path],
    measured: type[Prefers],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(measured, "most", 3)

    def remarks() -> list[str]:
        return [r.getMessage() for r in caplog.records if "for tuning" in r.getMessage()]

    with caplog.at_level(logging.WARNING, logger="qfuse"):
        exe = compile(checkpoints(), max_len=32, tune="auto")
    (remark,) = remarks()
    assert "the 2 s for tuning ended before" in remark and "compile again" in remark
    late = [row for row in products(exe) if not row["measured"]]
    assert late and all(row["why"] == "there was no time to measure M = 1, 64" for row in late)
    assert not any(row["tuned"] for row in late)
    monkeypatch.setattr(measured, "most", 1000)
    caplog.clear()
    again = compile(checkpoints(), max_len=32, tune="auto")
    assert all(row["tuned"] == ["row_strips"] for row in products(again)) and not remarks()


def test_small_products_are_left_alone(
    checkpoints: Callable[..., Path], measured: type[Prefers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "LEAST_BYTES", 1 << 20)
    exe = compile(checkpoints(), max_len=32, tune="auto")
    assert measured.measured == 0
    assert {row["why"] for row in products(exe)} == {"its weight is below 1 MiB"}


def test_it_is_told(
    checkpoints: Callable[..., Path],
    measured: type[Prefers],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = str(tmp_path / "model.qfuse")
    argv = ["compile", str(checkpoints()), "-o", path, "--max-len", "32"]
    assert main([*argv, "--tune", "auto"]) == 0
    capsys.readouterr()
    assert main(["explain", path, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["tuning"]
    assert told["mode"] == "auto" and told["threads"] == torch.get_num_threads()
    for row in told["products"]:
        assert row["tuned"] == ["row_strips"] and row["values"]["row_strips"] < 4
        assert row["measured"] == {"1": [0.5, 1.0], "64": [1.0, 1.0]} and row["calls"] > 0
    assert main(["explain", path]) == 0
    shown = capsys.readouterr().out
    assert "row_strips" in shown and "by the defaults 1000000" in shown
    report = load(path).report()
    assert report.to_json()["tuning"] == told
    count = len(told["products"])
    assert f"of {count} products {count} measured, {count} with other values" in str(report)
    assert main([*argv, "--tune", "sometimes"]) == 1
    assert "tune 'sometimes' is not one of off, auto, full" in capsys.readouterr().err


def test_another_cpu_is_noticed(
    checkpoints: Callable[..., Path],
    measured: type[Prefers],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A program runs wherever its kernels do; that it was tuned elsewhere is said."""
    exe = compile(checkpoints(), max_len=32, tune="auto")
    exe.program.report["tuning"]["cpu"] = "another"
    exe.save(tmp_path / "model.qfuse")
    assert load(tmp_path / "model.qfuse").generate(PROMPT, 4) == exe.generate(PROMPT, 4)
    assert main(["explain", str(tmp_path / "model.qfuse")]) == 0
    shown = capsys.readouterr().out
    assert "for another, " in shown and "compile again to tune for it" in shown


@pytest.mark.parametrize(
    ("asked", "environment", "wanted"),
    [
        (None, {}, "auto"),
        (None, {"CI": "true"}, "off"),
        (None, {"CI": "false"}, "auto"),
        (None, {"QFUSE_TUNE": "full", "CI": "1"}, "full"),
        ("auto", {"QFUSE_TUNE": "off"}, "auto"),
        ("off", {}, "off"),
    ],
)
def test_who_decides(asked: str | None, environment: dict[str, str], wanted: str) -> None:
    environment = {"QFUSE_CACHE_DIR": "/somewhere", **environment}
    options = CompileOptions.make(environment=environment, tune=asked)
    assert options.tune == wanted and options.tuned_dir == Path("/somewhere/tuned")


def test_a_wrong_mode_is_refused() -> None:
    with pytest.raises(QfuseError, match="tune 'on' is not one of off, auto, full"):
        CompileOptions.make(environment={"QFUSE_TUNE": "on"})
    assert CompileOptions.from_mapping({"tune": "full"}).tune == "full"
