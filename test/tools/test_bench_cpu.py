"""The benchmarks of products on a CPU: tiny shapes, so what they tell of time means nothing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qfuse.compiler.options import CompileOptions
from qfuse.dialects.errors import QfuseError
from qfuse.tools.bench import (
    cpu_goals,
    cpu_iree,
    cpu_limits,
    cpu_linear,
    cpu_mlp,
    cpu_model,
    cpu_norm,
    cpu_peers,
    cpu_report,
    cpu_rounds,
    cpu_rowwise,
    cpu_schemes,
)
from qfuse.tools.bench.cases import error_of
from qfuse.tools.bench.cpu_gguf import GgufShape, write_gguf
from qfuse.tools.bench.cpu_goals import BF16, LIMIT, READ, Goal, Miss
from qfuse.tools.bench.cpu_iree import Iree
from qfuse.tools.bench.cpu_peers import Bf16, Compiled, Dequantize, Int4Pack, Int8Pack, IntMm
from qfuse.tools.bench.cpu_report import Kernels, Reporter, Work
from qfuse.tools.bench.cpu_rowwise import RowCase
from qfuse.tools.bench.cpu_schemes import (
    SCHEMES,
    CpuScheme,
    Weight,
    make_activations,
    parse_schemes,
)
from qfuse.tools.bench.subjects import Prepared
from qfuse.tools.qfuse import main

FIELDS = {
    *("case", "m", "n", "k", "scheme", "ms", "gb_s", "gflop_s", "of_limit", "bound", "peers"),
    *("limit", "of_bf16_peak", "absent", "limits", "others_percent", "error"),
}
MULTIPLIERS = [cpu_limits.multiplier(integers) for integers in (False, True)]
TINY = GgufShape(
    hidden=256,
    layers=1,
    heads=4,
    kv_heads=2,
    head_dim=64,
    intermediate=512,
    vocabulary=128,
    positions=512,
)

schemes = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=lambda s: s.name)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory is read and multiplied, in few rounds, with two copies of each weight."""
    monkeypatch.setattr(cpu_limits, "_BYTES", 1 << 20)
    monkeypatch.setattr(cpu_limits, "_CALL_BYTES", 1 << 18)
    monkeypatch.setattr(cpu_limits, "_ROUNDS", 10)
    monkeypatch.setattr(cpu_limits, "_TASKS", 3)
    monkeypatch.setattr(cpu_limits, "last_level_cache", lambda: 0)
    monkeypatch.setattr(cpu_schemes, "last_level_cache", lambda: 0)
    monkeypatch.setattr(cpu_rounds, "_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(cpu_rounds, "_MOST_ROUNDS", 3)


def kernels() -> Kernels:
    return Kernels(CompileOptions.make("cpu"), 2)


# --- weights and activations ----------------------------------------------------------------------


def test_schemes_by_name() -> None:
    assert [s.name for s in parse_schemes(None)] == list(SCHEMES)
    assert [s.name for s in parse_schemes("q4_k, fp8")] == ["q4_k", "fp8"]
    assert [s.name for s in parse_schemes("q4_0")] == ["int4"]
    with pytest.raises(QfuseError, match="scheme 'fp4' is unknown; use fp8, fp8-a16, int8"):
        parse_schemes("fp8,fp4")


def test_shapes() -> None:
    assert cpu_linear.parse_shapes(None) == list(cpu_linear.SHAPES)
    assert cpu_linear.parse_shapes("14336x4096, 70x128") == [(14336, 4096), (70, 128)]
    for text in ("70", "70x0", "2*64x64", "70x128,"):
        with pytest.raises(QfuseError, match="are not N x K"):
            cpu_linear.parse_shapes(text)


@schemes
def test_products_are_as_large_as_x(scheme: CpuScheme) -> None:
    weight, x = Weight(scheme, 192, 512), make_activations(scheme, 64, 512)
    assert 0.8 < float((x.values @ weight.values.T).std()) < 1.25
    assert float((x.values - x.x.float()).norm() / x.x.float().norm()) < 0.03
    again = Weight(scheme, 192, 512)
    assert len(again.components) == (1 if scheme.w is None else 2)
    for a, b in zip(again.components, weight.components, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_copies_lie_apart() -> None:
    weight = Weight(SCHEMES["fp8"], 128, 128)
    for form in (weight.dense, weight.packed[0], weight.stored[1]):
        assert len({t.data_ptr() for t in form}) == 2 and torch.equal(
            form[0].view(torch.uint8), form[1].view(torch.uint8)
        )


def test_blocks_have_to_be_full() -> None:
    assert not SCHEMES["q4_k"].fits(896) and SCHEMES["int4"].fits(896)
    with pytest.raises(QfuseError, match="q4_k has blocks of 256 columns; 896 are no multiple"):
        Weight(SCHEMES["q4_k"], 64, 896)


# --- subjects -------------------------------------------------------------------------------------


@schemes
@pytest.mark.parametrize("m", [1, 9, 17])
def test_ours(scheme: CpuScheme, m: int) -> None:
    weight, x = Weight(scheme, 70, 512), make_activations(scheme, m, 512)
    made = cpu_linear.Ours(kernels()).prepare(weight, x)
    for call in made.calls:
        call()
    for result in made.results():
        assert error_of(result, x.values @ weight.values.T) < 5e-3


@pytest.mark.parametrize(
    ("subject", "names"),
    [
        (Bf16(), list(SCHEMES)),
        (Dequantize(), [name for name in SCHEMES if name != "bf16"]),
        (IntMm(), ["int8"]),
        (Int8Pack(), ["int8"]),
        (Int4Pack(), [name for name in SCHEMES if name.startswith("int4")]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_torch(subject: Any, names: Sequence[str]) -> None:
    for scheme in SCHEMES.values():
        weight, x = Weight(scheme, 128, 512), make_activations(scheme, 32, 512)
        if scheme.name in names:
            error = error_of(subject.prepare(weight, x).first_result(), x.values @ weight.values.T)
            assert 0 < error <= subject.tolerance
        else:
            says = f"serves {' and '.join(names)} only"
            if subject.name == "torch dequantize":
                says = "is given quantized weights only"
            with pytest.raises(QfuseError, match=says):
                subject.prepare(weight, x)


def test_torch_compile_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = Weight(SCHEMES["fp8"], 64, 128), make_activations(SCHEMES["fp8"], 2, 128)
    with pytest.raises(QfuseError, match="not asked for; --compile does"):
        Compiled(False).prepare(weight, x)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    assert error_of(Compiled(True).prepare(weight, x).first_result(), x.x.float() @ weight.values.T)


@pytest.mark.parametrize("name", ["fp8", "fp8-a16", "int8", "q8_0", "int4", "int4-g128", "bf16"])
def test_iree(name: str) -> None:
    pytest.importorskip("iree.compiler")
    weight, x = Weight(SCHEMES[name], 128, 256), make_activations(SCHEMES[name], 3, 256)
    made = Iree().prepare(weight, x)
    assert error_of(made.first_result(), x.values @ weight.values.T) <= Iree().tolerance


def test_iree_says_what_it_does_not_serve() -> None:
    pytest.importorskip("iree.compiler")
    for name, n, says in (("q4_k", 128, "is given fp8, int8, "), ("fp8", 70, "whole blocks only")):
        with pytest.raises(QfuseError, match=says):
            weight = Weight(SCHEMES[name], n, 256)
            Iree().prepare(weight, make_activations(SCHEMES[name], 1, 256))


def test_iree_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weight, x = Weight(SCHEMES["fp8"], 128, 128), make_activations(SCHEMES["fp8"], 1, 128)
    with pytest.raises(QfuseError, match="not asked for; --iree does"):
        Iree(False).prepare(weight, x)
    monkeypatch.setattr(cpu_iree, "find_spec", lambda name: None)
    assert main(["bench", "--suite", "cpu-linear", "--iree"]) == 1
    assert capsys.readouterr().err.endswith("pip install 'qfuse[bench]' does\n")


@pytest.mark.parametrize("name", ["fp8", "int8", "q8_0"])
@pytest.mark.parametrize("norm", [True, False])
def test_rows(name: str, norm: bool) -> None:
    case = RowCase(SCHEMES[name], 256, norm)
    x = make_activations(case.scheme, 5, 256).x
    weight = torch.linspace(0.5, 1.5, 256).bfloat16()
    operands = [x, weight] if norm else [x]
    expected = case.values(*case.compute(*operands))
    ours = cpu_rowwise.Ours(kernels()).prepare(case, [operands])
    eager = cpu_rowwise.Torch("torch eager", lambda f: f).prepare(case, [operands])
    assert error_of(ours.first_result(), expected) <= 1e-2
    assert torch.equal(eager.first_result(), expected)
    plain = error_of(expected, x.float())
    assert plain > 0.1 if norm else plain < 0.03


# --- rows -----------------------------------------------------------------------------------------


def check(row: dict[str, Any], peers: set[str]) -> None:
    assert row.keys() >= FIELDS
    assert row["ms"] > 0 and row["of_limit"] > 0 and row["error"] < 2e-2
    assert set(row["peers"]) | set(row["absent"]) == peers and all(row["absent"].values())
    limits = row["limits"]
    assert limits.keys() == {"read_gb_s", "peak_gflop_s", "bf16_gflop_s"}
    assert row["of_bf16_peak"] == pytest.approx(row["gflop_s"] / limits["bf16_gflop_s"])
    assert row["limit"] in (["read"] if row["bound"] == "memory" else MULTIPLIERS)
    json.dumps(row)


def test_linear(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "--suite", "cpu-linear", "--shapes", "70x256", "--m", "1,17"]
    assert main([*argv, "--only", "fp8,int4", "--json", "--goals"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["suite"] == "cpu-linear" and report["threads"] == torch.get_num_threads()
    rows = report["rows"]
    misses = [str(miss) for miss in cpu_goals.missed(rows)]
    assert misses and [Miss(**miss) for miss in report["missed"]] == cpu_goals.missed(rows)
    products = [(r["scheme"], r["m"]) for r in rows if r["case"] == "70x256"]
    assert products == [("fp8", 1), ("fp8", 17), ("int4", 1), ("int4", 17)]
    names = {subject.name for subject in (*cpu_peers.peers(False), Iree())}
    for row in rows[:4]:
        check(row, names)
        size = row["gb_s"] * row["ms"] * 1e6
        bits = {"fp8": 8, "int4": 4.5}[row["scheme"]]
        assert 70 * 256 * bits / 8 < size < 1.8 * 70 * 256 * bits / 8
        assert row["gflop_s"] * row["ms"] == pytest.approx(2e-6 * row["m"] * 70 * 256)
    assert [r["case"] for r in rows[4:]] == ["norm+quantize 256", "quantize 256"] * 2
    for row in rows[4:]:
        check(row, {"torch eager", "torch.compile"})
        assert row["k"] is None and row["m"] == 17
    assert len(err.splitlines()) == len(rows) and "70x256 int4 M 17: " in err


def test_every_scheme_and_limit(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "--suite", "cpu-linear", "--shapes", "70x256", "--m", "2", "--goals"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("70x256")]
    assert [line.split()[1] for line in lines] == list(SCHEMES)
    assert all(" ms, " in line for line in lines)
    assert "bf16" in captured.out.partition("70x256")[0], "a column of its own"
    assert " goals reached" in captured.out


def test_mlp_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "--suite", "cpu-mlp", "--shapes", "128x192", "--m", "2", "--only", "fp8"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "mlp 128-192" in out and "qfuse unfused" in out
    assert "torch.compile bf16: not asked for; --compile does" in out


def test_norm() -> None:
    header, *rows = cpu_norm.run([1, 20], list(SCHEMES.values()), False, width=256)
    assert header["suite"] == "cpu-norm"
    assert [(r["scheme"], r["m"]) for r in rows] == [
        (name, m) for name in ("fp8", "int8", "q8_0", "int4-g128") for m in (1, 20)
    ]
    for row in rows:
        check(row, {"torch eager", "torch.compile", "copy"})
        assert row["case"] == "residual+norm+quantize 256" and "copy" in row["peers"]
        size = row["gb_s"] * row["ms"] * 1e6
        assert 7 * 256 * row["m"] < size < 7.5 * 256 * row["m"] + 2 * 256


@pytest.mark.parametrize("name", ["fp8", "int8", "q4_k", "int4-a16", "bf16"])
@pytest.mark.parametrize("m", [1, 20])
def test_mlp(name: str, m: int) -> None:
    mlp = cpu_mlp.Mlp(SCHEMES[name], 256, 512)
    h = torch.randn(m, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    results = []
    for disable in ((), ("all",)):
        ours = cpu_mlp.Ours(kernels(), CompileOptions.make("cpu", disable))
        made = ours.prepare(mlp, h)
        for call in made.calls:
            call()
        results += made.results()
        assert error_of(results[-1], mlp.reference(h)) <= ours.tolerance
    assert all(torch.equal(result, results[0]) for result in results[1:])
    bf16 = cpu_mlp.Bf16()
    assert error_of(bf16.prepare(mlp, h).first_result(), mlp.reference(h)) <= bf16.tolerance
    norm, wide, narrow = mlp.works(m)
    assert wide.bytes > 2 * 256 * 512 * 0.5 and narrow.flops * 2 == wide.flops == 4 * m * 256 * 512
    assert norm.flops == 0 and 3 * m * 256 <= norm.bytes <= 4 * m * 256


@pytest.mark.parametrize("name", ["fp8", "q4_k"])
def test_model(name: str, tmp_path: Path) -> None:
    model = cpu_model.MODELS[name]
    header, *rows = cpu_model.run([model], False, TINY, prompt=8, directory=tmp_path)
    assert header["suite"] == "cpu-model"
    assert [(r["case"], r["m"]) for r in rows] == [("decode", 1), ("prefill", 8)]
    for row in rows:
        check(row, {"torch bf16", "torch.compile"})
        assert row["scheme"] == name and list(row["peers"]) == ["torch bf16"]
        assert row["tokens_per_s"] == pytest.approx(1e3 * row["m"] / row["ms"])
    layer = 2 * 256 * 256 + 2 * 128 * 256 + 3 * 512 * 256
    one, eight = model.work(TINY, 1), model.work(TINY, 8)
    assert one.flops == 2 * (layer + 128 * 256) and eight.flops == 2 * (8 * layer + 128 * 256)
    assert one.bytes == eight.bytes > (0.5 if name == "q4_k" else 1) * layer


def test_gguf_model(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = write_gguf(tmp_path / "a.gguf", TINY)
    first = path.read_bytes()
    assert write_gguf(tmp_path / "b.gguf", TINY).read_bytes() == first
    tensors = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert tensors.keys() == {*TINY.matrices, *TINY.norms}
    for name, (n, k) in TINY.matrices.items():
        values = gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type)
        assert values.shape == (n, k)
        gain = 16 if name == "token_embd.weight" else 1
        if name.endswith(("attn_output.weight", "ffn_down.weight")):
            gain = 0.05
        assert values.std() == pytest.approx(gain * k**-0.5, rel=0.2)
    with pytest.raises(QfuseError, match="model 'int8' is unknown; use fp8, q4_k"):
        cpu_model.parse_models("int8")


# --- what is reported -----------------------------------------------------------------------------


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


def test_goals_name_cases_and_schemes_that_there_are() -> None:
    for goal in cpu_goals.GOALS:
        row = {"case": "", "scheme": "", "m": goal.rows[0]}
        cases = ["1x1", "norm+quantize 8", "mlp 1-1", "decode"]
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


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--suite", "cpu-linear", "--only", "fp4"], "scheme 'fp4' is unknown"),
        (["--suite", "cpu-linear", "--shapes", "4"], "are not N x K"),
        (["--suite", "cpu-model", "--m", "4"], "not for cpu-model"),
        (["--suite", "cpu-moe", "--only", "fp8"], "--only and --compile are for cpu-linear"),
        (["--suite", "gpu-static", "--compile"], "--only and --compile are for cpu-linear"),
        (
            ["--suite", "cpu-moe", "--goals"],
            "--goals is for cpu-linear, cpu-mlp, cpu-norm, cpu-model",
        ),
        (["--suite", "cpu-mlp", "--iree"], "--iree is for cpu-linear"),
    ],
)
def test_bad_input(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *argv]) == 1
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_schemes_differ_in_x_only_where_they_say() -> None:
    pairs = ("fp8", "fp8-a16"), ("int4", "int4-a16"), ("int4-g128", "int4-g128-a16")
    for a, b in pairs:
        assert replace(SCHEMES[a], name=b, x=None) == SCHEMES[b]
