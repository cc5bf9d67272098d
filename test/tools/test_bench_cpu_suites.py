"""The suites of benchmarks on a CPU, from the command to the rows that they report."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from cpu_bench import check, kernels

from qfuse.compiler.frontend.gguf_file import GgufFile
from qfuse.compiler.options import CompileOptions
from qfuse.dialects.errors import QfuseError
from qfuse.tools.bench import (
    cpu_compile,
    cpu_goals,
    cpu_linear,
    cpu_mlp,
    cpu_model,
    cpu_norm,
    cpu_peers,
    kernel_clock,
)
from qfuse.tools.bench.cases import error_of
from qfuse.tools.bench.cpu_gguf import GgufShape, write_gguf
from qfuse.tools.bench.cpu_goals import Miss
from qfuse.tools.bench.cpu_iree import Iree
from qfuse.tools.bench.cpu_schemes import SCHEMES
from qfuse.tools.qfuse import main

pytestmark = pytest.mark.usefixtures("small")

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

LLAMA = partial(
    cpu_compile.LlamaShape,
    hidden=256,
    intermediate=512,
    heads=4,
    kv_heads=2,
    head_dim=64,
    vocabulary=128,
)


def test_shapes() -> None:
    assert cpu_linear.parse_shapes(None) == list(cpu_linear.SHAPES)
    assert cpu_linear.parse_shapes("14336x4096, 70x128") == [(14336, 4096), (70, 128)]
    for text in ("70", "70x0", "2*64x64", "70x128,"):
        with pytest.raises(QfuseError, match="are not N x K"):
            cpu_linear.parse_shapes(text)


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


def test_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QFUSE_CPU_LEVEL", "generic")
    header, row = cpu_compile.run(["fp8"], LLAMA(layers=1), rounds=1)
    assert header["suite"] == "cpu-compile"
    assert row["case"] == "kernels 1x256-512" and row["scheme"] == "fp8"
    assert 0 < row["warm_s"] < row["cold_s"] and 0 <= row["others_percent"] <= 100


@pytest.mark.parametrize("scheme", cpu_compile.SCHEMES)
def test_layers_share_kernels(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_compile, "clock", lambda *_: 1.0)
    rows = [list(cpu_compile.run([scheme], LLAMA(layers=n)))[1] for n in (2, 3, 4)]
    assert [row["layers"] for row in rows] == [2, 3, 4]
    (kernels,) = {row["kernels"] for row in rows}
    two, three, four = (row["launches"] for row in rows)
    assert 5 <= kernels < two < three and four - three == three - two


def test_q4_k_is_as_gguf_files_have_it(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    source = GgufFile(write_gguf(tmp_path / "a.gguf", TINY))
    for name, (n, k) in {
        "lm_head": (TINY.vocabulary, TINY.hidden),
        "model.layers.0.mlp.down_proj": (TINY.hidden, TINY.intermediate),
    }.items():
        format = cpu_compile.q4_k(name, n, k)
        assert format == source.linear_format(name, n, k) and format.packing[:3] in ("q4_", "q6_")


def test_compile_for_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter([4.0, 0.1, 5.0, 0.2, 3.75, 0.3])
    monkeypatch.setattr(cpu_compile, "clock", lambda *_: next(taken))
    run = partial(cpu_compile.run, shape=LLAMA(layers=1), rounds=3)
    monkeypatch.setattr(cpu_compile, "run", run)
    assert main(["bench", "--suite", "cpu-compile", "--only", "fp8", "--goals"]) == 0
    out, err = capsys.readouterr()
    assert "4.000" in out and "0.200" in out and "1 of 2 goals reached" in out
    assert "missed: kernels 1x256-512 fp8: 0.75 of 3 s cold, 25% short of 1.00\n" in out
    assert "4.00 s, 0.200 s" in err


def test_compile_that_fails(tmp_path: Path) -> None:
    with pytest.raises(QfuseError, match=r"that compiles kernels failed: .*(E|e)rror"):
        kernel_clock.clock("func.func nonsense", tmp_path, "generic")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--suite", "cpu-linear", "--only", "fp4"], "scheme 'fp4' is unknown"),
        (["--suite", "cpu-linear", "--shapes", "4"], "are not N x K"),
        (["--suite", "cpu-model", "--m", "4"], "not for cpu-model"),
        (["--suite", "cpu-compile", "--m", "4"], "not for cpu-compile"),
        (["--suite", "cpu-compile", "--compile"], "--compile is not for cpu-compile"),
        (["--suite", "cpu-compile", "--only", "int8"], "scheme 'int8' is unknown; use fp8, q4_k"),
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
