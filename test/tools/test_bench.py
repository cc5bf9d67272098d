"""The benchmarks, but for the timer and the GPU: subjects, their numbers, and what is reported."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from gpu_host import HOST, CountingTimer, HostGpu, fake_scaled_mm

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.tools.bench import chain, gemm, subjects, timing
from qfuse.tools.bench.cases import (
    Case,
    dequantize,
    error_of,
    make_operands,
    parse_cases,
    parse_rows,
    quantize,
    reference,
)
from qfuse.tools.bench.chain import Fused, Mlp, Unfused, UnfusedBf16
from qfuse.tools.bench.subjects import Bf16, Compiled, Ours, Prepared, ScaledMm
from qfuse.tools.qfuse import main

SM_90 = find_gpu("cuda:sm_90")
LIMITS = timing.Limits(memory=4e12, bf16=1e15)


@pytest.fixture
def host(monkeypatch) -> HostGpu:
    return HostGpu(monkeypatch)


def machine(*seconds: float) -> gemm.Machine:
    return gemm.Machine(HOST, 4096, CountingTimer(*seconds), LIMITS)


# --- cases ----------------------------------------------------------------------------------------


def test_shapes_and_rows_as_text() -> None:
    assert parse_cases("96x300, 2*64x256") == [Case(96, 300), Case(64, 256, glu=True)]
    assert str(Case(64, 256, glu=True)) == "2*64x256"
    assert len(parse_cases(None)) == 7
    assert parse_rows("1,64") == [1, 64]
    for text in ("3", "0x4", "axb", "3*4x5", "4x5x6"):
        with pytest.raises(QfuseError, match="is not N x K"):
            parse_cases(text)
    with pytest.raises(QfuseError, match="are not whole numbers from 1"):
        parse_rows("1,x")


def test_a_reference_by_loops() -> None:
    """Scales of x for 128 of a row, of w for 128 x 128; ragged on both sides."""
    case = Case(130, 200)
    o = make_operands(case, 3, HOST)
    made = reference(case, o)
    for row, column in ((0, 0), (2, 129), (1, 128)):
        total = 0.0
        for k in range(200):
            x = float(o.x[row, k].float() * o.x_scale[row, k // 128])
            total += x * float(o.w[column, k].float() * o.w_scale[column // 128, k // 128])
        assert float(made[row, column]) == pytest.approx(total, rel=1e-4, abs=1e-6)


def test_errors_are_relative_and_see_what_is_no_number() -> None:
    expected = torch.ones(4, 4)
    assert error_of(expected * 1.01, expected) == pytest.approx(0.01, rel=1e-3)
    assert error_of(torch.full((4, 4), torch.nan), expected) == float("inf")
    codes, scale = quantize(torch.tensor([[0.0] * 128 + [3.0, -1.5]]))
    assert scale.shape == (1, 2) and torch.equal(dequantize(codes, scale, 1)[0, 128:],
                                                 torch.tensor([3.0, -1.5]))  # fmt: skip


@pytest.mark.parametrize("m", [1, 20, 70])
@pytest.mark.parametrize("case", [Case(200, 384), Case(160, 256, glu=True),
                                  Case(130, 256, residual=True)], ids=str)  # fmt: skip
def test_our_kernels(host: HostGpu, case: Case, m: int) -> None:
    sets = [make_operands(case, m, HOST, seed) for seed in (0, 1)]
    prepared = Ours(SM_90, host.load).prepare(case, m, sets)
    for call in prepared.calls:
        call()
    for operands, made in zip(sets, prepared.results(), strict=True):
        assert error_of(made, reference(case, operands)) <= case.tolerance
    assert len(host.launched) == 2


# --- the subjects ---------------------------------------------------------------------------------


def test_scaled_mm_gets_the_layouts_of_cublas(monkeypatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "scaled_mm", fake_scaled_mm)
    for case, m in ((Case(384, 640), 5), (Case(256, 512), 1)):
        operands = make_operands(case, m, HOST)
        made = ScaledMm().prepare(case, m, [operands]).first_result()
        assert error_of(made, reference(case, operands)) <= case.tolerance


@pytest.mark.parametrize("subject", [Bf16(), Compiled(mode="default")], ids=lambda s: s.name)
def test_torch_subjects(subject: Any, monkeypatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    case = Case(96, 256)
    operands = make_operands(case, 5, HOST)
    made = subject.prepare(case, 5, [operands, operands.copy()])
    assert len(made.calls) == 2
    error = error_of(made.first_result(), reference(case, operands))
    assert 0 < error <= case.tolerance + subject.rounds


def test_others_only_multiply() -> None:
    for subject in subjects.subjects(SM_90, lambda k: k, None)[1:]:
        with pytest.raises(QfuseError, match="it multiplies, and nothing else"):
            subject.prepare(Case(128, 128, glu=True), 1, [])


def test_the_baseline_in_triton_s_own_interpreter() -> None:
    pytest.importorskip("triton")
    code = """
import torch
from qfuse.tools.bench.cases import Case, error_of, make_operands, reference
from qfuse.tools.bench.subjects import Baseline
case = Case(200, 384)
operands = make_operands(case, 70, torch.device("cpu"))
made = Baseline().prepare(case, 70, [operands])
assert error_of(made.first_result(), reference(case, operands)) <= case.tolerance
print("right")
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "right\n", done.stderr


def test_the_baseline_has_the_seed_s_tiles_and_uses_tensor_cores(monkeypatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")  # what 3.9 does where nobody says
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from qfuse.lowering.triton.binary import Binary
    from qfuse.lowering.triton.sass import sass_report
    from qfuse.tools.bench import baseline

    constants = {"N": 512, "K": 1024, **baseline.TILES}
    types = {"x": "*fp8e4nv", "w": "*fp8e4nv", "out": "*bf16", "x_scale": "*fp32",
             "w_scale": "*fp32", "M": "i32"}  # fmt: skip
    signature = {n: types.get(n, "constexpr") for n in baseline.kernel.arg_names}
    attributes = {(i,): [["tt.divisibility", 16]] for i in range(5)}
    source = ASTSource(baseline.kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=baseline.OPTIONS)
    metadata = {"shared": made.metadata.shared, "num_warps": 4, "num_stages": 3}
    report = sass_report(Binary("baseline", "cuda:sm_90", {"cubin": made.asm["cubin"]}, metadata))
    assert set(report["mma"]) == {"QGMMA"} and report["spill_bytes"] == 0
    assert report["async_copies"] and not report["tma_loads"]
    assert made.metadata.shared >= 3 * (64 + 128) * 128 and made.metadata.num_warps == 4
    assert baseline.grid(65, 129) == (4,)


# --- the suite ------------------------------------------------------------------------------------


@dataclass
class Scripted:
    """A subject that multiplies by what `factor` says, call by call."""

    name: str
    factors: tuple[float, ...] = (1.0,)
    rounds: float = 0.0

    def prepare(self, case: Case, m: int, sets: Any) -> Prepared:
        expected = reference(case, sets[0])
        made = torch.empty_like(expected)
        count = 0

        def call() -> None:
            nonlocal count
            made.copy_(expected * self.factors[min(count, len(self.factors) - 1)])
            count += 1

        return Prepared([call] * len(sets), [lambda: made])


class Refuses(Scripted):
    def prepare(self, case: Case, m: int, sets: Any) -> Prepared:
        raise RuntimeError("CUDA says no\nand a lot more")


def test_a_row_of_the_report(host: HostGpu) -> None:
    """Each subject is checked, then measured; ratios and rates are those of the times."""
    case, m = Case(256, 256), 16
    found = [Ours(SM_90, host.load), Scripted("scaled_mm"), Refuses("torch bf16"),
             Scripted("wrong", (1.1,)), Scripted("wrong later", (1.0, 1.0, 2.0))]  # fmt: skip
    place = machine(2e-6, 3e-6, 1e-6)
    (row,) = gemm.report([case], [m], found, place)
    own, library = row["subjects"]["qfuse"], row["subjects"]["scaled_mm"]
    size = make_operands(case, m, HOST).bytes + 2 * m * 256
    assert own["us"] == pytest.approx(2) and own["error"] <= case.tolerance
    assert own["tflops"] == pytest.approx(2 * m * 256 * 256 / 2e-6 / 1e12)
    assert own["gb_per_s"] == pytest.approx(size / 2e-6 / 1e9)
    assert row["bound"] == "memory" and row["limit_us"] == pytest.approx(size / 4e12 * 1e6)
    assert own["share"] == pytest.approx(size / 4e12 / 2e-6)
    assert library["seconds"] == 3e-6
    assert row["ratios"] == {"scaled_mm": pytest.approx(1.5), "best library": pytest.approx(1.5)}
    assert row["subjects"]["torch bf16"] == {"failed": "RuntimeError: CUDA says no"}
    assert row["subjects"]["wrong"]["failed"].startswith("wrong numbers: relative error 0.1")
    assert "wrong numbers in the graph" in row["subjects"]["wrong later"]["failed"]
    assert isinstance(place.timer, CountingTimer)
    assert place.timer.timed == [2] * 3, "what is wrong at first is not measured"
    json.dumps(row)


def test_large_products_are_bound_by_tensor_cores() -> None:
    seconds, bound = LIMITS.seconds(1e6, 4e12)
    assert bound == "tensor cores" and seconds == pytest.approx(4e12 / 2e15)


def test_without_ours_there_are_no_ratios() -> None:
    assert gemm.ratios({"qfuse": {"failed": "x"}, "torch bf16": {"seconds": 1.0}}) == {}


# --- the MLP --------------------------------------------------------------------------------------

SMALL = Mlp(256, 160)


def test_the_fused_mlp(host: HostGpu) -> None:
    sets = [SMALL.make(20, HOST, seed) for seed in (0, 1)]
    prepared = Fused(SM_90, host.load).prepare(SMALL, 20, sets)
    for call in prepared.calls:
        call()
    for operands, made in zip(sets, prepared.results(), strict=True):
        assert error_of(made, SMALL.reference(operands)) <= 1e-2
        assert error_of(operands.h, SMALL.reference(operands)) > 0.2, "the residual is not all"
    assert len(host.launched) == 2 * 3


def test_unfused_mlps(monkeypatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "scaled_mm", fake_scaled_mm)
    operands = SMALL.make(7, HOST)
    expected = SMALL.reference(operands)
    for subject in (Unfused(compile=lambda f: f), UnfusedBf16(compile=lambda f: f)):
        made = subject.prepare(SMALL, 7, [operands]).first_result()
        assert 0 < error_of(made, expected) <= subject.tolerance, subject.name


def test_a_row_of_the_mlp(host: HostGpu, monkeypatch) -> None:
    monkeypatch.setattr(torch.nn.functional, "scaled_mm", fake_scaled_mm)
    found = [Fused(SM_90, host.load), Unfused(compile=lambda f: f),
             UnfusedBf16(compile=lambda f: f)]  # fmt: skip
    row = gemm.chain_row(SMALL, 3, found, machine(1e-6, 3e-6, 2e-6))
    assert row["ratios"] == {"best unfused": pytest.approx(2)}
    assert all("seconds" in result for result in row["subjects"].values()), row


def test_quantization_agrees_with_the_operation() -> None:
    """`norm_quantize` and `glu_quantize` give cuBLASLt scales by columns."""
    h = torch.randn(5, 256).bfloat16()
    codes, scale = chain.norm_quantize(h, torch.ones(256, dtype=torch.bfloat16))
    assert scale.stride() == (1, 5)
    plain = chain.rms_norm(h, torch.ones(256, dtype=torch.bfloat16)).float()
    assert error_of(dequantize(codes, scale, 1), plain) < 0.05


# --- timing ---------------------------------------------------------------------------------------


class FakeCuda:
    """Streams, events and graphs on a clock of its own: a call takes what it says."""

    def __init__(self, monkeypatch) -> None:
        self.now = 0.0
        self.recorded: list[float] | None = None
        cuda = self

        class Graph:
            seconds = 0.0

            def replay(self) -> None:
                cuda.now += self.seconds

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = cuda.now

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, other: "Event") -> float:
                return (other.at - self.at) * 1e3

        class Stream:
            def wait_stream(self, other: Any) -> None:
                pass

        @contextmanager
        def graph(into: Graph):
            cuda.recorded = []
            yield
            into.seconds, cuda.recorded = sum(cuda.recorded), None

        @contextmanager
        def stream(_: Any):
            yield

        for name, value in {
            "CUDAGraph": Graph, "Event": Event, "Stream": Stream, "graph": graph,
            "stream": stream, "current_stream": Stream, "synchronize": lambda: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)

    def call(self, seconds: float) -> Any:
        def run() -> None:
            if self.recorded is not None:
                self.recorded.append(seconds)

        return run


@pytest.mark.parametrize("seconds", [1e-6, 5e-4, 0.1])
def test_the_timer_says_what_one_call_takes(monkeypatch, seconds: float) -> None:
    cuda = FakeCuda(monkeypatch)
    calls = [cuda.call(seconds * share) for share in (0.5, 1.5)]
    assert timing.graph_timer(calls) == pytest.approx(seconds)
    assert cuda.now < 5 + 30 * seconds, "no measurement takes minutes"


def test_limits_of_a_machine(monkeypatch) -> None:
    monkeypatch.setattr(timing, "_COPIED", 1024)
    monkeypatch.setattr(timing, "_PEAK", 16)
    limits = timing.measure_limits(CountingTimer(1e-6, 2e-6), HOST)
    assert limits.memory == pytest.approx(4 * 1024 / 1e-6)  # read and written, 2 bytes each
    assert limits.bf16 == pytest.approx(2 * 16**3 / 2e-6)


def test_buffers_do_not_stay_in_l2() -> None:
    assert timing.buffer_sets(1 << 30, 50 << 20) == 2
    assert timing.buffer_sets(10 << 20, 50 << 20) == 20
    assert timing.buffer_sets(1, 50 << 20) == 64


# --- commands -------------------------------------------------------------------------------------


def test_static_suite(capsys, tmp_path) -> None:
    pytest.importorskip("triton")
    out = tmp_path / "static.json"
    argv = ["bench", "--suite", "gpu-static", "--shapes", "4096x2048", "--m", "4096"]
    assert main([*argv, "--json", "-o", str(out)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == data
    assert "no GPU figure was taken" in data["note"]
    (row,) = data["rows"]
    assert row["kernel"] == "ws128x256" and row["grid"] == [132, 1, 1]
    assert set(row["mma"]) == {"QGMMA"} and row["warp_specialized"] and not row["spill_bytes"]
    assert row["occupancy"] == 1 and row["shared_bytes"] <= SM_90.shared_bytes
    assert row["floor_us"] < row["modelled_us"] < 2 * row["floor_us"]
    assert row["floor_bound"] == "tensor cores" and row["bound"] == "shared memory"
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "ws128x256" in shown and "QGMMA" in shown and "no GPU figure was taken" in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
@pytest.mark.parametrize(
    "argv",
    [
        ["bench", "--suite", "gpu-gemm"],
        ["bench", "--suite", "gpu-moe"],
        ["tune", "--table", "TABLE"],
    ],
    ids=["gemm", "moe", "tune"],
)
def test_measuring_needs_a_gpu(capsys, tmp_path, argv: list[str]) -> None:
    table = tmp_path / "t.json"
    assert main([str(table) if a == "TABLE" else a for a in argv]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "needs an NVIDIA GPU" in err and not table.exists()


def test_the_gemm_suite_as_a_command(host: HostGpu, monkeypatch, capsys) -> None:
    """All of it, with the interpreter as the GPU and a timer that knows no time."""
    about = {"target": "cuda:sm_90", "gpu": "none", "date": "2026-11-20",
             "copy_gb_per_s": 4000.0, "bf16_tflops": 1000.0}  # fmt: skip
    monkeypatch.setattr(gemm, "open_machine", lambda gpu: (machine(1e-6), about))
    monkeypatch.setattr(gemm, "loader", lambda: host.load)
    monkeypatch.setattr(gemm, "Mlp", lambda: SMALL)
    unfused = [Fused(SM_90, host.load), UnfusedBf16(compile=lambda f: f)]
    monkeypatch.setattr(gemm, "chain_subjects", lambda *_: unfused)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(torch.nn.functional, "scaled_mm", fake_scaled_mm)
    argv = ["bench", "--suite", "gpu-gemm", "--shapes", "128x256", "--m", "16"]
    assert main([*argv, "--json"]) == 0
    product, mlp = json.loads(capsys.readouterr().out)["rows"]
    assert {n for n, r in product["subjects"].items() if "seconds" in r} >= {
        "qfuse", "scaled_mm", "torch bf16", "torch.compile",
    }  # fmt: skip
    assert mlp["chain"] == "MLP 256-160" and "seconds" in mlp["subjects"]["qfuse"]
    assert main([*argv, "--no-chain"]) == 0
    out, err = capsys.readouterr()
    assert "scaled_mm" in out and "copy 4000 GB/s" in out and "128x256 M 16" in err
