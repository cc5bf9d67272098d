"""The benchmarks of experts, but for the clock and the GPU."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from gpu_host import HOST, CountingTimer, HostGpu

from qfuse.compiler.options import CompileOptions
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.tools.bench import cpu_limits, cpu_moe, gemm, gpu_moe, moe, moe_suite, timing
from qfuse.tools.bench.cases import Case, error_of
from qfuse.tools.bench.cpu_moe import CpuOurs
from qfuse.tools.bench.gpu_moe import GpuMachine, GpuOurs
from qfuse.tools.bench.moe import make_tokens, make_weights, parse_experts, reference, sampled
from qfuse.tools.bench.moe_peers import Bf16Loop, Eager, GroupedMm, ScaledGroupedMm
from qfuse.tools.bench.moe_suite import Measured
from qfuse.tools.bench.subjects import Prepared
from qfuse.tools.qfuse import main

SM_90 = find_gpu("cuda:sm_90")
(SMALL,) = parse_experts("6x3x256x160")
"""I is no multiple of 128: up begins behind a gap."""
WEIGHTS = make_weights(SMALL, HOST)


# --- cases ----------------------------------------------------------------------------------------


def test_experts_as_text() -> None:
    assert [m.name for m in parse_experts(None)] == ["DeepSeek-V3", "Qwen3-30B-A3B", "Mixtral-8x7B"]
    qwen, other = parse_experts("qwen3-30b-a3b, 16x4x256x128")
    assert (qwen.count, qwen.choices, qwen.hidden, qwen.intermediate) == (128, 8, 2048, 768)
    assert (other.count, other.choices, str(other)) == (16, 4, "16x4x256x128")
    for text in ("qwen3", "4x2x256", "0x2x256x128", "16x4x256x128x1", ""):
        with pytest.raises(QfuseError, match="are unknown"):
            parse_experts(text or ",")
    for count in (7, 129):
        with pytest.raises(QfuseError, match=f"{count} experts are not what Qwen3"):
            qwen.cut(count)
    with pytest.raises(QfuseError, match="each token chooses 5"):
        parse_experts("4x5x256x128")


def test_what_memory_holds() -> None:
    deepseek, qwen, _ = moe.MODELS
    assert deepseek.elements * 256 == 11_274_289_152
    cut, notes = moe_suite.fitting([deepseek, qwen], None, 17 << 30)
    assert [c.count for c in cut] == [32, 128]
    assert notes == ["DeepSeek-V3: 32 of 256 experts, 18 GB of memory are free"]
    (least,), _ = moe_suite.fitting([deepseek], None, 0)
    assert least.count == 8, "as many as a token chooses"
    (asked,), notes = moe_suite.fitting([deepseek], 24, 17 << 30)
    assert asked.count == 24 and notes == ["DeepSeek-V3: 24 of 256 experts, as asked"]


@pytest.mark.parametrize("routing", moe.ROUTINGS)
def test_tokens_choose_different_experts(routing: str) -> None:
    experts = parse_experts("64x8x128x128")[0]
    tokens = make_tokens(experts, 300, routing, HOST)
    assert tokens.ids.shape == (300, 8) and tokens.ids.dtype == torch.int64
    assert all(len(set(chosen)) == 8 for chosen in tokens.ids.tolist())
    torch.testing.assert_close(tokens.weights.sum(1), torch.ones(300))
    rows = tokens.ids.flatten().bincount(minlength=64)
    if routing == "balanced":
        assert int(rows.max() - rows.min()) <= 1
    else:
        assert rows.max() > 4 * rows.float().mean() and rows.min() < rows.float().mean() / 3
    again = make_tokens(experts, 300, routing, HOST)
    assert torch.equal(again.ids, tokens.ids) and torch.equal(again.x, tokens.x)


def test_calls_in_turn_meet_other_experts() -> None:
    experts = parse_experts("64x8x128x128")[0]
    ids = [make_tokens(experts, 1, "balanced", HOST, i).ids for i in range(8)]
    assert torch.cat(ids).unique().numel() == 64


def test_weights() -> None:
    for codes in (WEIGHTS.gate_up, WEIGHTS.down):
        assert float(codes.float().abs().max()) == 1.875
        values = codes.view(torch.uint8).unique()
        assert values.numel() == 128, "every code below 2, of both signs"
    wide, narrow = WEIGHTS.of_expert(2)
    assert wide.shape == (320, 256) and narrow.shape == (256, 160)
    # up begins at 256, behind the gap, with the scales of its own blocks
    scale = WEIGHTS.gate_up_scale[2, 3].repeat_interleave(128)
    expected = WEIGHTS.gate_up[2, 256 + 130].float() * scale
    torch.testing.assert_close(wide[160 + 130], expected)
    x = torch.randn(200, 256, generator=torch.Generator().manual_seed(0))
    assert 0.8 < float((x @ wide.T).std()) < 1.3
    dense = WEIGHTS.dense
    assert torch.equal(dense[0][2], wide.bfloat16()) and torch.equal(dense[1][2], narrow.bfloat16())


def test_what_goes_through_memory() -> None:
    tokens = make_tokens(SMALL, 1, "balanced", HOST)
    expert = 3 * 256 * 160 + 4 * (2 * 2 * 2 + 2 * 2)
    assert SMALL.bytes == expert and tokens.touched == 3
    assert tokens.bytes(SMALL) == 3 * expert + 2 * 2 * 256 + 3 * (8 + 4)
    assert SMALL.flops(10) == 2 * 10 * 3 * 256 * 160


def test_sampled_tokens() -> None:
    assert sampled(3).tolist() == [0, 1, 2]
    many = sampled(8192)
    assert many[0] == 0 and many[-1] == 8191 and many.unique().numel() == 64


# --- subjects -------------------------------------------------------------------------------------


def errors_of(subject: Any, t: int, routing: str = "skewed") -> list[float]:
    """The relative error of each call of a subject."""
    sets = [make_tokens(SMALL, t, routing, HOST, i) for i in range(2)]
    made = subject.prepare(SMALL, WEIGHTS, sets)
    every = torch.arange(t)
    found = []
    for i, (call, tokens) in enumerate(zip(made.calls, sets, strict=True)):
        result = call()
        result = made.results()[i] if made.read else result
        found.append(error_of(result, reference(WEIGHTS, tokens, every)))
    return found


@pytest.mark.parametrize("subject", [Eager(), Bf16Loop(), GroupedMm()], ids=lambda s: s.name)
def test_peers(subject: Any) -> None:
    assert all(0 < error <= subject.tolerance for error in errors_of(subject, 17))


def test_scaled_grouped_mm_gets_its_layouts(monkeypatch) -> None:
    """Torch has it for CUDA only; here in f64, for what ScaledGroupMM on sm_90 demands."""
    functional: Any = torch.nn.functional
    row_wise = functional.ScalingType.RowWise

    def fake(a: Any, b: Any, scale_a: Any, scale_recipe_a: Any, scale_b: Any, scale_recipe_b: Any,
             *, offs: Any, output_dtype: Any, use_fast_accum: bool) -> torch.Tensor:  # fmt: skip
        assert scale_recipe_a == scale_recipe_b == row_wise and output_dtype == torch.bfloat16
        assert a.dtype == b.dtype == torch.float8_e4m3fn
        assert a.is_contiguous() and b.transpose(1, 2).is_contiguous()
        assert scale_a.shape == a.shape[:1] and scale_b.shape == (b.shape[0], b.shape[2])
        assert scale_a.is_contiguous() and scale_b.is_contiguous()
        assert offs.dtype == torch.int32 and int(offs[-1]) == len(a)
        values = a.double() * scale_a[:, None]
        parts = values.tensor_split(offs[:-1].long())
        made = [p @ (b[e].double() * scale_b[e]) for e, p in enumerate(parts)]
        return torch.cat(made).to(output_dtype)

    with pytest.raises(QfuseError, match="has no aten::_scaled_grouped_mm_v2 on cpu"):
        ScaledGroupedMm().prepare(SMALL, WEIGHTS, [])
    monkeypatch.setattr("qfuse.tools.bench.moe_peers._needs", lambda *_: None)
    monkeypatch.setattr(functional, "scaled_grouped_mm", fake)
    subject = ScaledGroupedMm()
    assert all(0.01 < error <= subject.tolerance for error in errors_of(subject, 17))


def test_ours_on_the_cpu() -> None:
    subject = CpuOurs(CompileOptions.make("cpu"), threads=2)
    for t in (1, 40):
        assert all(0 < error <= subject.tolerance for error in errors_of(subject, t))
    made = subject.prepare(SMALL, WEIGHTS, [make_tokens(SMALL, 2, "balanced", HOST)])
    assert torch.isnan(made.results()[0]).all(), "nothing is there before it is computed"
    kernels = ["quantize_0", "route_0", "group_matmul_0", "group_matmul_combine_0"]
    assert list(made.parts) == kernels
    for calls in made.parts.values():
        calls[0]()
    assert torch.isfinite(made.results()[0]).all(), "the parts are the whole"


@pytest.fixture
def host(monkeypatch) -> HostGpu:
    gpu = HostGpu(monkeypatch)
    monkeypatch.setattr(gpu_moe, "compiled", gpu._compiled)
    return gpu


@pytest.mark.parametrize("t", [1, 30])
def test_ours_on_a_gpu(host: HostGpu, t: int) -> None:
    subject = GpuOurs(SM_90, host.load)
    assert all(0 < error <= subject.tolerance for error in errors_of(subject, t))
    # quantize, route, two products; the sums of many tokens are a launch of the second's
    assert len(host.launched) == 2 * (4 if t == 1 else 5)


# --- the suite ------------------------------------------------------------------------------------


@dataclass
class Scripted:
    """A subject whose calls give the right result times what `factors` say, call by call."""

    name: str
    factors: tuple[float, ...] = (1.0,)
    tolerance: float = 1e-2
    made: int = 0

    def prepare(self, experts: Any, weights: Any, sets: Sequence[Any]) -> Prepared:
        expected = reference(weights, sets[0], torch.arange(len(sets[0].x)))
        out = torch.empty_like(expected)

        def call() -> None:
            out.copy_(expected * self.factors[min(self.made, len(self.factors) - 1)])
            self.made += 1

        return Prepared([call] * len(sets), [lambda: out] * len(sets), parts={"part_0": [call]})


class Refuses(Scripted):
    def prepare(self, *_: Any) -> Prepared:
        raise RuntimeError("CUDA says no\nand a lot more")


@dataclass
class FakeMachine:
    """Says how long everything takes: a subject its number in milliseconds."""

    device: torch.device = HOST
    cache_bytes: int = SMALL.bytes
    memory: float = 1e9
    measured: list[list[str]] = field(default_factory=list)

    def measure(self, prepared: Any) -> Measured:
        self.measured.append(list(prepared))
        for made in prepared.values():
            for call in made.calls:
                call()
        seconds = {name: (i + 1) * 1e-3 for i, name in enumerate(prepared)}
        parts = {"part_0": 5e-4}
        least = Measured({name: s / 2 for name, s in seconds.items()}, parts, 1e10, 1e12)
        other = {"dense_gflops": 7.0}
        return Measured(seconds, parts, self.memory, 1e12, other=other, least=least)


def test_rows_of_the_report() -> None:
    place = FakeMachine()
    found = [Scripted("qfuse"), Scripted("eager"), Refuses("grouped_mm"),
             Scripted("wrong", (1.1,)), Scripted("wrong later", (1.0, 1.0, 1.0, 2.0)),
             Scripted("no number", (float("nan"),))]  # fmt: skip
    balanced, skewed = moe_suite.report([SMALL], [1], found, place)
    json.dumps([balanced, skewed])
    assert [balanced["routing"], skewed["routing"]] == ["balanced", "skewed"]
    assert balanced["case"] == "6x3x256x160" and balanced["experts"] == 6
    assert balanced["sets"] == 2 and balanced["touched"] == 3, "two calls meet all six experts"
    size = make_tokens(SMALL, 1, "balanced", HOST).bytes(SMALL)
    assert balanced["ms"] == pytest.approx(1) and balanced["bound"] == "memory"
    assert balanced["floor_ms"] == pytest.approx(size / 1e9 * 1e3)
    assert balanced["of_floor"] == pytest.approx(size / 1e9 / 1e-3)
    assert balanced["gb_per_s"] == pytest.approx(size / 1e-3 / 1e9)
    assert balanced["gflops"] == pytest.approx(SMALL.flops(3) / 1e-3 / 1e9)
    assert balanced["peers"] == {"eager": pytest.approx(2)}
    assert balanced["ratios"] == {"eager": pytest.approx(2)}
    assert balanced["kernels"] == {"part_0": pytest.approx(0.5)}
    least = balanced["least"]
    assert least["ms"] == pytest.approx(0.5) and least["peers"] == {"eager": pytest.approx(1)}
    assert least["floor_ms"] == pytest.approx(size / 1e10 * 1e3)
    assert balanced["limits"] == {"read_gb_per_s": 1, "peak_gflops": 1000, "dense_gflops": 7}
    failed = balanced["failed"]
    assert failed["grouped_mm"] == "RuntimeError: CUDA says no"
    assert failed["wrong"] == "wrong numbers: relative error 0.1, not 0.01"
    assert failed["wrong later"].startswith("wrong numbers when measured: relative error 1")
    assert failed["no number"] == "wrong numbers: relative error inf, not 0.01"
    assert place.measured[0] == ["qfuse", "eager", "wrong later"]
    assert moe_suite.line(balanced).startswith("6x3x256x160 1 tokens balanced: 1.00 ms, ")


def test_many_tokens_are_bound_by_arithmetic() -> None:
    row = next(moe_suite.report([SMALL], [50], [Scripted("qfuse")], FakeMachine(memory=1e15)))
    assert row["bound"] == "arithmetic" and row["sets"] == 1
    assert row["floor_ms"] == pytest.approx(SMALL.flops(150) / 1e12 * 1e3)


def test_without_ours_there_are_no_ratios() -> None:
    row = next(moe_suite.report([SMALL], [1], [Refuses("qfuse"), Scripted("eager")], FakeMachine()))
    assert row["ms"] is None and row["of_floor"] is None and row["ratios"] == {}
    assert row["peers"] == {"eager": pytest.approx(1)}
    assert ": failed; " in moe_suite.line(row)


def test_rounds_take_turns(monkeypatch) -> None:
    monkeypatch.setattr(timing, "_MOST_ROUNDS", 4)
    order: list[str] = []
    calls = {name: [lambda n=f"{name}{i}": order.append(n) for i in range(k)]  # type: ignore[misc]
             for name, k in (("a", 1), ("b", 2))}  # fmt: skip
    samples = timing.interleaved(calls)
    assert order == ["a0", "b1", "a0", "b0", "a0", "b1", "a0", "b0"]
    assert {name: len(taken) for name, taken in samples.items()} == {"a": 4, "b": 4}


def test_what_is_slow_leaves(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call(seconds: float) -> None:
        now[0] += seconds

    samples = timing.interleaved({name: [partial(call, seconds)] for name, seconds in
                                  (("slow", 10.0), ("half", 0.25), ("fast", 0.001))})  # fmt: skip
    assert {name: len(taken) for name, taken in samples.items()} == {
        "slow": 3,
        "half": 7,
        "fast": 51,
    }
    assert samples["half"] == [0.25] * 7


@pytest.fixture
def small_probes(monkeypatch) -> None:
    monkeypatch.setattr(cpu_limits, "_BYTES", 1 << 20)
    monkeypatch.setattr(cpu_limits, "_CALL_BYTES", 1 << 18)
    monkeypatch.setattr(cpu_limits, "last_level_cache", lambda: 0)
    monkeypatch.setattr(cpu_limits, "_ROUNDS", 10)
    monkeypatch.setattr(cpu_limits, "_TASKS", 3)
    monkeypatch.setattr(cpu_moe, "_DENSE", Case(128, 128))
    monkeypatch.setattr(timing, "_MOST_ROUNDS", 2)


def test_probes_do_what_they_say(small_probes: None) -> None:
    """Each bit of memory arrives in what the reader leaves; each product in the sums."""
    calls, size = cpu_limits.read_probe(2)
    assert len(calls) == 4 and size == 1 << 18
    for call in calls:
        memory, sink = call.args[1]  # type: ignore[attr-defined]
        assert memory.numel() * 4 == size
        for position in (0, 5000, memory.numel() - 1):
            memory.zero_()
            memory[position] = 1 << 30
            call()
            assert sink.sum() == sink.view(-1, 16)[position // 16384].sum() == 1 << 30
    (call,), flops = cpu_limits.peak_probe(2)
    source, sums = call.args[1]  # type: ignore[attr-defined]
    source.view(torch.bfloat16).fill_(1.0)  # as f32, 1.0 and a little
    call()
    assert float(sums.view(torch.float32).sum()) == pytest.approx(flops / 2, rel=1e-2)
    (call,), flops = cpu_limits.peak_probe(2, integers=True)
    source, sums = call.args[1]  # type: ignore[attr-defined]
    source.view(torch.int8).fill_(1)
    call()
    assert int(sums.sum()) == flops / 2
    assert 1 << 20 <= cpu_moe.last_level_cache() <= 1 << 34


def test_the_cpu_suite_as_a_command(small_probes: None, capsys, tmp_path) -> None:
    out = tmp_path / "moe.json"
    argv = ["bench", "--suite", "cpu-moe", "--shapes", "6x3x256x160", "--tokens", "4"]
    assert main([*argv, "--experts", "6", "--json", "-o", str(out)]) == 0
    shown, announced = capsys.readouterr()
    data = json.loads(shown)
    assert json.loads(out.read_text()) == data
    assert data["suite"] == "cpu-moe" and data["threads"] >= 1 and data["notes"] == []
    assert [row["routing"] for row in data["rows"]] == ["balanced", "skewed"]
    for row in data["rows"]:
        assert row["ms"] > 0 and 0 < row["error"] < 1e-2
        assert {"eager", "bf16 loop"} <= set(row["peers"])
        assert list(row["kernels"])[2:] == ["group_matmul_0", "group_matmul_combine_0"]
        assert 0 <= row["limits"].pop("others_percent") <= 100
        assert set(row["limits"]) == {"read_gb_per_s", "peak_gflops", "dense_gflops"}
        assert all(value > 0 for value in row["limits"].values())
    assert announced.count("\n") == 2 and "4 tokens skewed" in announced


def test_the_gpu_suite_as_a_command(host: HostGpu, monkeypatch, capsys) -> None:
    """All of it, with the interpreter as the GPU and timers that know no time."""
    graphs, clock = CountingTimer(1e-6), CountingTimer(2e-6)
    limits = timing.Limits(memory=4e12, bf16=1e15)
    about = {"target": "cuda:sm_90", "gpu": "none", "date": "2026-11-20"}
    place = gemm.Machine(HOST, SMALL.bytes, graphs, limits)
    monkeypatch.setattr(gpu_moe, "open_machine", lambda gpu: (place, about))
    monkeypatch.setattr(gpu_moe, "GpuMachine", lambda machine: GpuMachine(machine, clock))
    monkeypatch.setattr(gpu_moe, "loader", lambda: host.load)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30))
    argv = ["bench", "--suite", "gpu-moe", "--shapes", "6x3x256x160", "--m", "2", "--experts", "5"]
    assert main(argv) == 0
    shown, announced = capsys.readouterr()
    assert "6x3x256x160: 5 of 6 experts, as asked" in shown
    assert "grouped_mm" in shown and "read_gb_per_s 4000 to 4000" in shown
    assert "has no aten::_scaled_grouped_mm_v2 on cpu" in shown
    assert "qfuse: error" not in announced and "balanced: 0.00 ms" in announced
    # ours and its four kernels, and grouped_mm, as graphs; the loops by the clock
    assert len(graphs.timed) == 2 * 6 and len(clock.timed) == 2 * 2


def test_a_capture_that_fails() -> None:
    def fails(calls: Any) -> float:
        raise RuntimeError("operation not permitted when stream is capturing")

    limits = timing.Limits(memory=4e12, bf16=1e15)
    place = GpuMachine(gemm.Machine(HOST, 1, fails, limits), CountingTimer(3e-6))
    measured = place.measure({"graph": Prepared([lambda: None]),
                              "loop": Prepared([lambda: None], captured=False)})  # fmt: skip
    assert measured.seconds == {"loop": 3e-6} and measured.arithmetic == 2e15
    assert measured.failed["graph"].startswith("RuntimeError: operation not permitted")


def test_calls_that_wait(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += 0.25

    assert timing.call_timer([call, call]) == 0.25


def test_static_rows_of_experts(capsys) -> None:
    pytest.importorskip("triton")
    argv = ["bench", "--suite", "gpu-static", "--shapes", "16x4x512x128", "--tokens", "1", "--json"]
    assert main(argv) == 0
    gate_up, down = json.loads(capsys.readouterr().out)["rows"]
    assert (gate_up["shape"], down["shape"]) == ("16x4x512x128 gate up", "16x4x512x128 down")
    assert gate_up["m"] == down["m"] == gate_up["touched"] == 4
    assert set(gate_up["mma"]) == set(down["mma"]) == {"QGMMA"} and not gate_up["spill_bytes"]
    assert gate_up["floor_us"] == pytest.approx(2 * down["floor_us"])


@pytest.mark.parametrize("argv, said", [
    (["gpu-gemm", "--experts", "8"], "--experts 8 is for cpu-moe and gpu-moe"),
    (["cpu-moe", "--shapes", "9x9"], "experts '9x9' are unknown"),
    (["cpu-moe", "--shapes", "Mixtral-8x7B", "--experts", "1"], "each token chooses 2"),
], ids=lambda value: value[0] if isinstance(value, list) else "")  # fmt: skip
def test_bad_words(capsys, argv: list[str], said: str) -> None:
    assert main(["bench", "--suite", *argv]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err
