"""The table of dispatch as data, and what is shown of its decisions."""

import json
import re
from pathlib import Path

import pytest

from qfuse.compiler import dispatch
from qfuse.compiler.compilation import explain_config
from qfuse.compiler.dispatch.conditions import CONDITIONS
from qfuse.compiler.dispatch.cost import Costs
from qfuse.compiler.dispatch.decide import RANGES, Decision, Verdict, decide
from qfuse.compiler.dispatch.epilogue_form import EpilogueForm
from qfuse.compiler.dispatch.rules import KERNEL, RULES, rules_text
from qfuse.compiler.dispatch.subject import Machine, Subject
from qfuse.compiler.passes.dispatch import decisions_for
from qfuse.compiler.runtime import library
from qfuse.dialects.library_ops import CALLS
from qfuse.dialects.types import Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.measured_call import MeasuredCall
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.tile_entry import about
from qfuse.lowering.triton.tile_table import VARIABLE, Table, using
from qfuse.tools.bench.cases import parsed, problem_of
from qfuse.tools.bench.row_cases import RowCase
from qfuse.tools.qfuse import main


def test_rules_as_text_are_those_of_the_table() -> None:
    """After a change: `python -c "from qfuse.compiler.dispatch.rules import rules_text;
    print(rules_text(), end='')" > compiler/dispatch/RULES.md`"""
    path = Path(dispatch.__file__).with_name("RULES.md")
    assert path.read_text() == rules_text()


def test_every_condition_is_in_a_rule_and_every_call_in_the_library() -> None:
    used = {name for rule in RULES for name in rule.conditions}
    assert used == set(CONDITIONS)
    assert {rule.call for rule in RULES if rule.call} == set(CALLS)
    assert {f"{library.NAMESPACE}.{call}" for call in CALLS} <= set(library.FUNCTIONS)
    assert len({rule.name for rule in RULES}) == len(RULES)


def test_rules_begin_where_ranges_do() -> None:
    firsts, lasts = zip(*RANGES, strict=True)
    assert all(rule.first_m in firsts and rule.last_m in lasts for rule in RULES)
    assert RULES[-1].conditions == () and RULES[-1].backend == KERNEL


def plain(rows: int | None = None, blas: str = "auto") -> Subject:
    m = DYNAMIC if rows is None else rows
    return Subject(
        Machine("cuda", "sm_90", blas),
        "qfuse.matmul",
        Shaped((m, 512), "bf16"),
        Shaped((1024, 512), "bf16"),
        Shaped((m, 1024), "bf16"),
        (1024,),
        EpilogueForm(),
        rows,
    )


_FP8 = "f8E4M3FN"
_SCHEMES: dict[str, tuple[Shaped, Shaped]] = {
    **{t: (Shaped((DYNAMIC, 512), t), Shaped((1024, 512), t)) for t in ("f16", "bf16", "f32")},
    "e4m3, blocks": (
        Shaped((DYNAMIC, 512), _FP8, Scheme((1, 128), "f32", scale_layout="col_major")),
        Shaped((1024, 512), _FP8, Scheme((128, 128), "f32")),
    ),
    "e5m2, blocks": (
        Shaped((DYNAMIC, 512), _FP8, Scheme((1, 128), "f32", scale_layout="col_major")),
        Shaped((1024, 512), "f8E5M2", Scheme((128, 128), "f32")),
    ),
    "e4m3, rows": (
        Shaped((DYNAMIC, 512), _FP8, Scheme((1, 512), "f32")),
        Shaped((1024, 512), _FP8, Scheme((1, 512), "f32")),
    ),
    "int4": (
        Shaped((DYNAMIC, 512), "bf16"),
        Shaped((1024, 512), "i4", Scheme((1, 32), "bf16", "int4")),
    ),
    "w8a16": (
        Shaped((DYNAMIC, 512), "bf16"),
        Shaped((1024, 512), "i8", Scheme((1, 512), "f32")),
    ),
    "fp8, a16": (
        Shaped((DYNAMIC, 512), "bf16"),
        Shaped((1024, 512), _FP8, Scheme((128, 128), "f32")),
    ),
}
_UNQUANTIZED = ("f16", "bf16", "f32")
_LIBRARY: dict[str, tuple[str, ...]] = {
    "cuda:sm_80": _UNQUANTIZED,
    "cuda:sm_90": (*_UNQUANTIZED, "e4m3, blocks", "e5m2, blocks", "e4m3, rows"),
    "cuda:sm_100": (*_UNQUANTIZED, "e4m3, rows"),
    "hip:gfx942": _UNQUANTIZED,
    "hip:gfx950": (*_UNQUANTIZED, "e4m3, rows"),
    "cpu": (),
}
"""Schemes whose products a library may have: unquantized ones, and FP8 where there is a call."""


@pytest.mark.parametrize("target", _LIBRARY)
@pytest.mark.parametrize("scheme", _SCHEMES)
def test_the_rule_of_the_seed(target: str, scheme: str) -> None:
    """Unquantized or FP8, on CUDA or ROCm, only when enabled, and never a single row; by shape."""
    x, w = _SCHEMES[scheme]
    kind, _, arch = target.partition(":")
    y = Shaped((DYNAMIC, 1024), x.dtype if scheme in _UNQUANTIZED else "bf16")
    for blas in ("on", "off"):
        machine = Machine(kind, arch, blas)
        subject = Subject(machine, "qfuse.matmul", x, w, y, (1024,), EpilogueForm())
        decisions = decide(subject, lambda *_: Verdict(False, "there is no estimate"))
        sent = [d.rows for d in decisions if d.call]
        wanted = blas == "on" and scheme in _LIBRARY[target]
        assert sent == (["M >= 2"] if wanted else []), (target, scheme, blas)
        if blas == "on" and not wanted:
            assert decisions[-1].near, "why there is none of it"


def test_a_preference_counts_for_its_rows_alone() -> None:
    def from_65(_call: str, _apart: bool, first: int, _last: int | None) -> Verdict:
        return Verdict(first > 64, f"measured from {first} on")

    decisions = decide(plain(), from_65)
    assert [(d.rows, d.backend, d.call) for d in decisions] == [
        ("M = 1", "kernel", ""),
        ("M 2..64", "kernel", ""),
        ("M >= 65", "library", "mm"),
    ]
    (miss,) = decisions[1].near
    assert str(miss) == (
        "not plain (mm): measured from 17 on; wanted: the call is faster, or asked for (blas=on)"
    )
    assert decisions[2].reason.endswith("measured from 65 on")
    # asked for, nobody is asked what is faster
    assert [d.rows for d in decide(plain(blas="on"), from_65)] == ["M = 1", "M >= 2"]


PLAIN_TEXT = RowCase(1024, 512, "bf16").text
SM_90 = find_gpu("cuda:sm_90")


def measured(first: int, last: int | None, theirs: float, ours: float) -> MeasuredCall:
    """What a table says of the plain product below, with as many rows."""
    rows = about(problem_of(PLAIN_TEXT, SM_90), SM_90, (first, last))
    return MeasuredCall(**rows, call="mm", m=(first,), ours=(ours,), theirs=(theirs,))


def by_table(*calls: MeasuredCall, blas: str = "auto") -> list[Decision]:
    """The decisions about that product where a table has these."""
    with using(Table((), calls)), parsed(PLAIN_TEXT) as function:
        (product, *_) = function.entry_block.operations
        machine = Machine("cuda", "sm_90", blas)
        return decisions_for(product.operation, machine)[1]


def test_the_table_decides_against_the_estimate() -> None:
    """Per range of M, in both directions; elsewhere the estimate does."""
    usual = by_table()
    assert [(d.rows, d.backend) for d in usual] == [
        ("M = 1", "kernel"),
        ("M 2..4096", "library"),
        ("M >= 4097", "kernel"),
    ]
    tuned = by_table(measured(17, 32, 2e-4, 1.2e-4), measured(4097, None, 1.2e-4, 2e-4))
    assert [(d.rows, d.backend, d.rule) for d in tuned] == [
        ("M = 1", "kernel", "single-row"),
        ("M 2..16", "library", "plain"),
        ("M 17..32", "kernel", "own-kernel"),
        ("M >= 33", "library", "plain"),
    ]
    kept = tuned[2]
    why = "measured: 0.2 ms against 0.12 ms of our kernel (M = 17)"
    assert kept.reason.endswith(f"; and not mm by plain: {why}")
    assert str(kept.near[0]).startswith(f"not plain (mm): {why}; wanted: the call is faster")
    (*_, made) = by_table(measured(2, None, 1.2e-4, 2e-4))
    assert (made.rows, made.call) == ("M >= 2", "mm")
    assert made.reason.endswith("; measured: 0.12 ms against 0.2 ms of our kernel (M = 2)")


def test_a_call_without_an_estimate_is_made_where_it_was_measured() -> None:
    """That of i8, three launches, which nothing else sends to the library."""
    text = RowCase(1024, 512, "int8").text
    rows = about(problem_of(text, SM_90), SM_90, (17, 64))
    call = MeasuredCall(**rows, call="int_mm", m=(64,), ours=(2e-4,), theirs=(1e-4,))
    with using(Table((), (call,))), parsed(text) as function:
        (product, *_) = function.entry_block.operations
        _, decisions = decisions_for(product.operation, Machine("cuda", "sm_90"))
    assert [(d.rows, d.call) for d in decisions if d.call] == [("M 17..64", "int_mm")]


def test_what_is_asked_for_or_off_is_not_measured() -> None:
    slower, faster = measured(2, None, 2e-4, 1e-4), measured(2, None, 1e-4, 2e-4)
    assert [d.backend for d in by_table(slower, blas="on")] == ["kernel", "library"]
    assert {d.backend for d in by_table(faster, blas="off")} == {"kernel"}
    assert by_table(measured(1, 1, 1e-9, 1.0))[0].rule == "single-row", "a single row stays ours"


def test_an_epilogue_apart_is_estimated_beside_a_measured_call() -> None:
    problem = problem_of(PLAIN_TEXT, SM_90)
    for theirs, faster in ((1e-4, True), (2.5e-4, False)):
        costs = Costs([measured(65, None, theirs, 2e-4)], problem=problem, gpu=SM_90)
        verdict = costs("mm", True, 65, None)
        assert verdict.measured and verdict.faster is faster
        assert "of them estimated for its epilogue, against 0.2 ms of our kernel" in verdict.why
    assert not costs("scaled_mm_rows", False, 65, None).measured, "another call"
    assert not costs("mm", False, 2, 16).measured, "other rows"


def test_explain_shows_what_was_measured(checkpoints, tmp_path, monkeypatch, capsys) -> None:
    """The output projection, by a table on disk."""
    argv = ["explain", str(checkpoints()), "--target", "cuda:sm_90"]
    assert main(argv) == 0
    assert "cuBLAS" not in capsys.readouterr().out
    call = MeasuredCall(
        *("cuda:sm_90", 128, 128, 1, "f8E4M3FN", "f8E4M3FN", "1xK,128xK,-", ("bf16",)),
        *(2, None, "scaled_mm_blocks", (64,), (2e-4,), (1.2e-4,)),
    )
    path = tmp_path / "t.json"
    path.write_text(json.dumps(Table((), (call,)).to_json()))
    monkeypatch.setenv(VARIABLE, str(path))
    assert main([*argv, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["dispatch"]
    (made,) = (r for r in rows if r["backend"] == "cuBLAS")
    assert "o_proj" in made["layer"] and made["call"] == "scaled_mm_blocks + epilogue"
    assert re.search(r"measured: 0\.12 ms, 0\.00\d+ ms of them estimated", made["reason"])
    assert main(argv) == 0
    assert "measured: 0.12 ms" in capsys.readouterr().out


LIT = Path(__file__).parents[1] / "passes"


def test_every_rule_and_guard_has_a_lit_case() -> None:
    """Each rule decides somewhere, each library rule is refused somewhere, and each of its guards
    is what it lacks."""
    text = "\n".join(path.read_text() for path in sorted(LIT.glob("dispatch*.mlir")))
    refused = [line for line in text.splitlines() if "refused" in line]
    for rule in RULES:
        by_cost_alone = rule.apart and rule.name != "plain-apart"  # what the model never prefers
        # what was measured is of one machine: test_cpu_tune_calls.py
        assert by_cost_alone or rule.measured or f" by {rule.name}" in text, rule.name
        assert rule.backend == KERNEL or any(f"dispatch-{rule.name}" in line for line in refused)
        for name in rule.conditions:
            guard = CONDITIONS[name]
            if rule.backend == KERNEL or guard.kind == "about":
                continue
            assert any(guard.wanted in line.partition(";")[2] for line in refused), name


@pytest.mark.parametrize(
    ("x", "w", "call"),
    [
        (Shaped((DYNAMIC, 512), "bf16"), Shaped((1024, 512), "bf16"), "mm"),
        (
            Shaped((DYNAMIC, 512), "f8E4M3FN", Scheme((1, 128), "f32", scale_layout="col_major")),
            Shaped((1024, 512), "f8E4M3FN", Scheme((128, 128), "f32")),
            "scaled_mm_blocks",
        ),
        (
            Shaped((DYNAMIC, 512), "f8E4M3FN", Scheme((1, 512), "f32")),
            Shaped((1024, 512), "f8E4M3FN", Scheme((1, 512), "f32")),
            "scaled_mm_rows",
        ),
    ],
)
def test_an_epilogue_is_computed_apart_where_that_is_faster(
    x: Shaped, w: Shaped, call: str
) -> None:
    """By measurement or estimate alone, also where library products are asked for."""
    form = EpilogueForm(other="a residual", rounded_to="bf16")
    y = Shaped((DYNAMIC, 1024), "bf16")
    for blas in ("auto", "on"):
        machine = Machine("cuda", "sm_90", blas)
        subject = Subject(machine, "qfuse.matmul", x, w, y, (1024,), form)
        few, many = decide(subject, lambda *_: Verdict(True, "measured"))
        assert (few.rule, many.call, many.apart) == ("single-row", call, True)
        assert many.rule.endswith("-apart") and many.reason.endswith("measured")
        slower = decide(subject, lambda *_: Verdict(False, "measured"))
        assert [d.rule for d in slower] == ["single-row", "own-kernel"]


def test_the_nearest_rule_is_one_for_the_scheme() -> None:
    """FP8 per row into f16 on sm_80 lacks the hardware and the type, and not other scales."""
    x, w = (Shaped((n, 512), "f8E4M3FN", Scheme((1, 512), "f32")) for n in (DYNAMIC, 1024))
    y = Shaped((DYNAMIC, 1024), "f16")
    machine = Machine("cuda", "sm_80", "on")
    *_, many = decide(
        Subject(machine, "qfuse.matmul", x, w, y, (1024,), EpilogueForm()),
        lambda *_: Verdict(False, ""),
    )
    (miss,) = many.near
    assert miss.rule == "fp8-rows" and miss.found == "the target is cuda:sm_80 and it is f16"


@pytest.mark.parametrize(("rows", "backend"), [(1, "kernel"), (2, "library"), (5000, "library")])
def test_a_static_number_of_rows_has_one_decision(rows: int, backend: str) -> None:
    (decision,) = decide(plain(rows), lambda *_: Verdict(True, "faster"))
    assert (decision.rows, decision.backend) == (f"M = {rows}", backend)


@pytest.mark.parametrize(
    ("machine", "library_of_it"),
    [(Machine("cuda", "sm_90", "on"), "cuBLAS"), (Machine("hip", "gfx942", "on"), "hipBLAS")],
)
def test_a_model_is_explained_without_its_gpu(checkpoints, machine, library_of_it) -> None:
    rows = explain_config(checkpoints(), machine)
    assert machine.library == library_of_it
    assert {row.rows for row in rows} >= {"M = 1"}
    down = [row for row in rows if "down_proj" in row.layer and row.rows == "M >= 2"]
    assert down and all(row.near for row in down)
    assert all(row.count > 1 and "layers.*." in row.layer for row in down)


def test_explain_prints_a_table_and_json(checkpoints, tmp_path, capsys) -> None:
    directory = checkpoints()
    assert main(["explain", str(directory), "--target", "cuda:sm_90"]) == 0
    shown = capsys.readouterr().out
    assert "single-row" in shown and "o_proj" in shown
    path = tmp_path / "model.qfuse"
    assert main(["compile", str(directory), "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["explain", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["dispatch"]
    assert {row["backend"] for row in rows} == {"kernel"}
    assert main(["explain", str(path)]) == 0
    assert "own-kernel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "cuda:sm_91"], "nearest supported one is 'cuda:sm_90'"),
        (["--blas", "maybe"], "blas=maybe is not one of auto, on, off"),
        (["--roundings", "none"], "roundings=none is not one of exact, library"),
    ],
)
def test_what_cannot_be_explained(checkpoints, capsys, arguments, words) -> None:
    assert main(["explain", str(checkpoints()), *arguments]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_an_artifact_has_its_decisions(checkpoints, tmp_path, capsys) -> None:
    path = tmp_path / "model.qfuse"
    assert main(["compile", str(checkpoints()), "-o", str(path)]) == 0
    capsys.readouterr()
    assert main(["explain", str(path), "--target", "cuda:sm_90"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "was compiled, with its decisions; --target is for a model" in line
