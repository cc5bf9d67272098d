"""`qfuse tune` with a clock that knows what is best, and with the interpreter as the GPU."""

import json
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_host import HOST, CountingTimer, HostGpu, fake_scaled_mm

from qfuse.compiler.runtime import library
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.tile_choice import candidates
from qfuse.lowering.triton.tile_entry import entry_for
from qfuse.lowering.triton.tile_model import estimate
from qfuse.lowering.triton.tile_table import VARIABLE, Table, read_table, using
from qfuse.lowering.triton.tiles import Config
from qfuse.tools.bench import gemm
from qfuse.tools.bench.cases import Case
from qfuse.tools.bench.row_cases import RowCase, parse_schemes
from qfuse.tools.bench.static import chosen_config
from qfuse.tools.bench.timing import Limits
from qfuse.tools.qfuse import main
from qfuse.tools.tune import GpuMeasure, line, merged, ranges_of, shortlist, tune, untuned
from qfuse.tools.tune_calls import AnyCase, call_of

SM_90 = find_gpu("cuda:sm_90")
CASE = Case(2112, 7168)
ABOUT = {"gpu": "none", "date": "2026-11-20"}


def slower_than_modelled(kind: str) -> Any:
    """A GPU on which everything takes what the model says, but for one kind: four times that."""

    def measure(case: Case, config: Config, m: int) -> float:
        seconds = estimate(case.problem(SM_90), config, m, SM_90).seconds
        return seconds * (4 if config.name.startswith(kind) else 1)

    return measure


def test_rows_lie_in_ranges() -> None:
    assert ranges_of([1, 16, 2, 64, 20000]) == {
        (1, 1): (1,), (2, 16): (2, 16), (33, 64): (64,), (16385, None): (20000,),
    }  # fmt: skip


def test_what_is_measured_to_be_best_is_kept_and_used() -> None:
    problem = CASE.problem(SM_90)
    usual = untuned(problem, SM_90, 1024)
    assert usual.persistent
    (outcome,) = tune([CASE], [600, 1024], SM_90, slower_than_modelled("ws"), ABOUT, most=1000)
    assert outcome.entry is not None and outcome.rows == (600, 1024)
    assert not outcome.best.persistent and outcome.gain > 1.02
    best = min(
        (c for c in candidates(problem, SM_90, 513, 1024) if not c.persistent),
        key=lambda c: sum(estimate(problem, c, m, SM_90).seconds
                          / estimate(problem, usual, m, SM_90).seconds for m in (600, 1024)),
    )  # fmt: skip
    assert outcome.best == best
    measured = outcome.entry.measured
    assert measured["gpu"] == "none" and measured["m"] == [600, 1024]
    assert measured["by_model"] == usual.name
    table = merged(Table(), [outcome], SM_90)
    with using(table):
        assert chosen_config(CASE, SM_90, 1000) == best
        assert chosen_config(CASE, SM_90, 1025).persistent, "other ranges are the model's"


def test_where_the_model_is_right_there_is_no_entry() -> None:
    case = Case(24576, 7168)
    old = entry_for(case.problem(SM_90), SM_90, (1, 9000), Config(64, 64, 128), ABOUT)
    (outcome,) = tune([case], [4096], SM_90, slower_than_modelled("nothing"), ABOUT)
    assert outcome.entry is None and outcome.gain == 1
    left = merged(Table((old,)), [outcome], SM_90).entries
    assert [(e.first_m, e.last_m) for e in left] == [(1, 1024), (4097, 9000)]


def test_candidates_that_fail_are_told_and_passed_over() -> None:
    def measure(case: Case, config: Config, m: int) -> float:
        if config.swap:
            raise QfuseError("wrong numbers")
        return 1e-3 * config.rows

    problem = CASE.problem(SM_90)
    assert not untuned(problem, SM_90, 100).swap
    (outcome,) = tune([CASE], [100], SM_90, measure, ABOUT)
    assert not outcome.failed

    def all_but_usual(case: Case, config: Config, m: int) -> float:
        if config != untuned(problem, SM_90, 100):
            raise QfuseError("does not compile")
        return 1e-3

    (outcome,) = tune([CASE], [100], SM_90, all_but_usual, ABOUT)
    assert outcome.failed and outcome.measured == 1 and outcome.entry is None
    assert all("does not compile" in text for text in outcome.failed)


def test_the_model_s_own_choice_must_work() -> None:
    def measure(case: Case, config: Config, m: int) -> float:
        raise QfuseError("wrong numbers")

    with pytest.raises(QfuseError, match="wrong numbers"):
        list(tune([CASE], [100], SM_90, measure, ABOUT))


def test_only_promising_tiles_are_measured() -> None:
    problem = CASE.problem(SM_90)
    found = shortlist(problem, 2, 16, [16], SM_90, most=5)
    assert len(found) == 5
    times = [estimate(problem, c, 16, SM_90).seconds for c in found]
    assert times == sorted(times)


def host_machine(*seconds: float) -> gemm.Machine:
    return gemm.Machine(HOST, 1024, CountingTimer(*seconds), Limits(1e12, 1e15))


def test_each_candidate_is_checked_before_it_is_timed(monkeypatch) -> None:
    host = HostGpu(monkeypatch)
    place = host_machine(2e-6)
    measure = GpuMeasure(SM_90, place, host.load, None)
    case = Case(256, 512)
    for config in (
        Config(16, 64, 128, swap=True, slices=2),
        Config(64, 32, 128),
        Config(128, 128, 128, persistent=True),
    ):
        assert measure(case, config, 9) == 2e-6
        assert host.launched[-1] == f"product_{config.name}"
    assert measure(case, Config(1, 8, 512, gemv=True), 1) == 2e-6
    assert isinstance(place.timer, CountingTimer)
    assert place.timer.timed == [2] * 4
    monkeypatch.setattr("qfuse.tools.tune.error_of", lambda *_: float("nan"))
    with pytest.raises(QfuseError, match="wrong numbers: relative error nan"):
        measure(case, Config(64, 32, 128), 9)
    assert len(place.timer.timed) == 4


def seconds_of_calls(**seconds: float) -> Any:
    """A library whose calls take that long; those that are not named it lacks."""

    def measure(case: AnyCase, call: str, m: int) -> float:
        if call not in seconds:
            raise QfuseError(f"this torch has no {call}")
        return seconds[call]

    return measure


def test_calls_are_measured_against_our_best() -> None:
    """Per product and range of M, but for the single row, and for what is more than a product."""
    usual = slower_than_modelled("nothing")
    cases = [RowCase(2048, 512, "bf16"), Case(2048, 512, glu=True), RowCase(2048, 512, "int8")]
    found = list(
        tune(cases, [1, 16, 20], SM_90, usual, ABOUT, 3, seconds_of_calls(mm=5e-6, int_mm=9e-6))
    )
    rows = [(o.case, o.first_m, o.call.call) for o in found if o.call is not None]
    assert rows == [(cases[0], 2, "mm"), (cases[0], 17, "mm"), (cases[2], 17, "int_mm")]
    call = found[1].call
    assert call is not None and (call.m, call.theirs) == ((16,), (5e-6,))
    assert call.ours == (usual(cases[0], found[1].best, 16),)
    assert "mm 5.0 us against" in line(found[1])
    table = merged(Table(), found, SM_90)
    assert len(table.calls) == 3 and table.calls_of(cases[0].problem(SM_90), SM_90)


def test_a_library_without_the_call_is_told() -> None:
    usual = slower_than_modelled("nothing")
    (outcome,) = tune([CASE], [16], SM_90, usual, ABOUT, 3, seconds_of_calls())
    assert outcome.call is None
    assert outcome.failed == ("scaled_mm_blocks: this torch has no scaled_mm_blocks",)


@pytest.mark.parametrize("scheme", ["bf16", "fp8-rows", "int8", "fp8"])
def test_a_call_is_checked_before_it_is_timed(monkeypatch, scheme: str) -> None:
    """Through the function that programs call, on operands that lie as theirs do."""
    host = HostGpu(monkeypatch)
    monkeypatch.setattr(library, "unavailable", lambda call, place: None)
    monkeypatch.setattr(torch.nn.functional, "scaled_mm", library_scaled_mm)
    monkeypatch.setattr(torch, "_int_mm", lambda x, w: x.int() @ w.int())
    (case,) = parse_schemes(scheme, [Case(96, 256)])
    place = host_machine(3e-6)
    measure = GpuMeasure(SM_90, place, host.load, None)
    call = call_of(case)
    assert call is not None and measure.call(case, call, 20) == 3e-6
    # ours has the same numbers
    assert measure(case, untuned(case.problem(SM_90), SM_90, 20), 20) == 3e-6
    right = library.FUNCTIONS[f"library.{call}"]
    monkeypatch.setitem(library.FUNCTIONS, f"library.{call}", lambda *a: right(*a) * 1.1)
    with pytest.raises(QfuseError, match=r"wrong numbers: relative error 0\.1"):
        measure.call(case, call, 20)
    monkeypatch.setattr(library, "unavailable", lambda call, place: "there is none")
    with pytest.raises(QfuseError, match="there is none"):
        measure.call(case, call, 20)


def library_scaled_mm(x: Any, w: Any, *, bias: Any, **options: Any) -> torch.Tensor:
    """`fake_scaled_mm`, and the same with a scale for each row."""
    assert bias is None
    recipe = torch.nn.functional.ScalingType  # type: ignore[attr-defined]
    if options["scale_recipe_a"] != recipe.RowWise:
        return fake_scaled_mm(x, w, **options)
    scale_a, scale_b = options["scale_a"], options["scale_b"]
    assert scale_a.shape == (len(x), 1) and scale_b.shape == (1, w.shape[1])
    y = (x.double() * scale_a) @ (w.double() * scale_b)
    return y.to(options["output_dtype"])


def test_schemes_to_tune() -> None:
    cases = [Case(96, 256), Case(64, 256, glu=True)]
    assert parse_schemes(None, cases) == cases
    assert parse_schemes("bf16,fp8", cases) == [RowCase(96, 256, "bf16"), *cases]
    with pytest.raises(QfuseError, match="no scheme 'q4_k' for a GPU; there are fp8, bf16"):
        parse_schemes("q4_k", cases)
    with pytest.raises(QfuseError, match="no shape has a product of bf16"):
        parse_schemes("bf16", cases[1:])


def test_the_command(monkeypatch, capsys, tmp_path: Path) -> None:
    """From nothing to a table that kernels are built by."""
    host = HostGpu(monkeypatch)
    triton = metadata.version("triton")
    about = {"target": "cuda:sm_90", "gpu": "none", "date": "2026-11-20", "torch": "2",
             "driver": "13.0", "library": "13.1", "triton": triton}  # fmt: skip
    place = host_machine(9e-6, 1e-6, 8e-6, 7e-6)  # the second is the fastest
    monkeypatch.setattr(gemm, "open_machine", lambda gpu: (place, about))
    monkeypatch.setattr("qfuse.lowering.triton.launcher.LoadedGpuKernel", host.load)
    path = tmp_path / "t.json"
    argv = ["tune", "--shapes", "256x512", "--m", "16", "--most", "3", "--table", str(path)]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "1 of 1 ranges gained, 9.00 times at most" in said and f"{VARIABLE}={path}" in said
    (entry,) = read_table(path).entries
    signature = {name: about[name] for name in about if name != "date"}
    assert read_table(path).signature == signature
    assert (entry.n, entry.k, entry.first_m, entry.last_m) == (256, 512, 2, 16)
    assert entry.measured["seconds"] == [1e-6] and entry.measured["triton"] == triton
    monkeypatch.setenv(VARIABLE, str(path))
    assert chosen_config(Case(256, 512), SM_90, 5) == entry.config
    monkeypatch.delenv(VARIABLE)
    path.write_text("{}")
    assert main(argv) == 1
    assert "is not an object with a list of entries" in capsys.readouterr().err
    assert path.read_text() == "{}", "a table that cannot be read is not overwritten"
    table = Table((entry,), (), signature | {"driver": "12.8"})
    path.write_text(json.dumps(table.to_json()))
    assert main(argv) == 1
    why = "cannot be added to: driver was '12.8' when it was measured, and is '13.0'"
    assert why in capsys.readouterr().err
    path.unlink()
    assert main([*argv, "--json"]) == 0
    (outcome,) = json.loads(capsys.readouterr().out)["outcomes"]
    assert outcome["written"] and outcome["candidates"] == 3


def test_bad_arguments(capsys, tmp_path: Path) -> None:
    table = str(tmp_path / "t.json")
    for argv, words in (
        (["--shapes", "12"], "shape '12' is not N x K"),
        (["--m", "0"], "rows '0' are not whole numbers"),
        (["--target", "cuda:sm_9"], "unknown GPU target"),
    ):
        assert main(["tune", "--table", table, *argv]) == 1
        assert words in capsys.readouterr().err
    assert main(["tune", "--table", str(tmp_path)]) == 1
    assert "Is a directory" in capsys.readouterr().err
