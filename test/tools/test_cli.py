"""The `qfuse` command: the main jobs, and the one line that each kind of bad input gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qfuse.tools.qfuse import main


@pytest.fixture(scope="module")
def artifact(checkpoints, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "model.qfuse"
    assert main(["compile", str(checkpoints()), "--target", "cpu", "-o", str(path)]) == 0
    return path


def fails(capsys, *argv: str) -> str:
    """Run a command that must fail; return the one line it says."""
    assert main(list(argv)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("qfuse: error: ")
    return lines[0].removeprefix("qfuse: error: ")


def test_compile_run_inspect(artifact, capsys):
    capsys.readouterr()
    assert main(["run", str(artifact), "--prompt-ids", "1,2,3", "--max-new-tokens", "5"]) == 0
    printed = [int(t) for t in capsys.readouterr().out.split()]
    assert 1 <= len(printed) <= 5
    assert (
        main(["run", str(artifact), "--prompt-ids", "1 2 3", "--max-new-tokens", "5", "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["tokens"] == printed
    assert main(["inspect", str(artifact), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["model"]["model_type"] == "qwen3"
    assert data["report"]["patterns"]["gate-up"]["fired"] == 2
    assert data["sizes"]["kernels"] == len(data["kernels"]) > 0
    assert main(["inspect", str(artifact)]) == 0
    assert "rms_norm_0" in capsys.readouterr().out


def test_run_without_the_compiler(artifact):
    """An artifact runs where the MLIR bindings cannot be imported."""
    code = (
        "import sys; sys.modules['torch_mlir'] = None\n"
        "from qfuse.tools.qfuse import main\n"
        f"sys.exit(main(['run', {str(artifact)!r}, '--prompt-ids', '1', '--max-new-tokens', '2']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()


def test_demo_json(checkpoints, capsys):
    """The fields and relations that the README promises, on a tiny model."""
    assert main(["demo", "--model", str(checkpoints()), "--tokens", "8", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["greedy_tokens_equal"] is True
    assert data["max_rel_err_vs_unfused"] == 0.0
    assert data["kernels_after"] < 0.6 * data["kernels_before"]
    assert data["bytes_after"] < data["bytes_before"]
    assert len(data["tokens"]) == 8
    assert data["tokens_per_s"] > 0 and data["eager_tokens_per_s"] > 0
    # Two layers of random FP8 weights with quantized activations: a few percent is what e4m3's
    # three bits of mantissa leave (relative step 2^-4), far from what a wrong kernel gives.
    assert data["rel_err_vs_fp32"] < 0.05
    assert data["patterns"]["norm-quantize"]["fired"] == 4


def test_demo_as_the_readme_runs_it(capsys):
    """The demo's own checkpoint meets the bounds that the project set itself."""
    assert main(["demo", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["greedy_tokens_equal"] is True and len(data["tokens"]) == 32
    assert data["kernels_after"] < 0.6 * data["kernels_before"]
    assert data["rel_err_vs_fp32"] < 1e-2


def test_config_only(checkpoints, tmp_path, capsys):
    config, out = checkpoints() / "config.json", tmp_path / "fused.mlir"
    argv = ["compile", "--config-only", str(config), "--target", "cpu", "--emit=fused-ir"]
    assert main([*argv, "-o", str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["ops"]["fused"]["qfuse.matmul"] == 9  # per layer: qkv, o, gate-up, down; the head
    assert data["ops"]["imported"]["torch.operator"] > 0
    assert data["seconds"]["qfuse-fuse-gate-up"] > 0
    assert '"qfuse.matmul"' in out.read_text()
    assert main(argv) == 0
    assert "qfuse.rms_norm" in capsys.readouterr().out


def test_quantize_rounding(checkpoints, tmp_path, capsys):
    out = tmp_path / "fused.mlir"
    argv = ["compile", "--config-only", str(checkpoints() / "config.json"), "--emit=fused-ir"]
    assert main([*argv, "-o", str(out), "--quantize-rounding", "f32"]) == 0
    assert out.read_text().count('quantize_rounding = "f32"') == 4  # two norms of two layers
    capsys.readouterr()
    message = fails(capsys, *argv, "--quantize-rounding", "f16")
    assert "quantize_rounding 'f16' is not one of value, f32" in message


def test_remarks_and_disable(checkpoints, tmp_path, capsys):
    out = tmp_path / "m.qfuse"
    argv = ["compile", str(checkpoints()), "-o", str(out), "--disable", "gate-up", "--remarks"]
    assert main(argv) == 0
    err = capsys.readouterr().err
    fired = [line for line in err.splitlines() if "norm-quantize: fired at qfuse.quantize" in line]
    assert fired and all(": saves 1 launch, " in line for line in fired)
    assert "gate-up: fired" not in err


def test_not_a_checkpoint(tmp_path, capsys):
    out = tmp_path / "m.qfuse"
    message = fails(capsys, "compile", str(tmp_path), "-o", str(out))
    assert "config.json" in message and str(tmp_path) in message
    message = fails(capsys, "compile", str(tmp_path / "nowhere"), "-o", str(out))
    assert "nowhere" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda e: e.tensors(lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
         ["model.layers.1.mlp.up_proj.weight", "model.safetensors"]),
        (lambda e: e.tensors(lambda t: t.update(
            {"model.layers.0.self_attn.q_proj.weight_scale_inv": torch.ones(3, 1)})),
         ["model.layers.0.self_attn.q_proj.weight_scale_inv", "[3, 1]", "[1, 1]"]),
        (lambda e: e.quantization(quant_method="gptq"), ["gptq", "fp8"]),
        (lambda e: (e.path / "model.safetensors").write_bytes(
            (e.path / "model.safetensors").read_bytes()[:-1000]), ["model.safetensors"]),
        (lambda e: e.config(model_type="lama"), ["lama", "llama"]),
        (lambda e: (e.path / "config.json").write_text("{"), ["config.json"]),
    ],
    ids=["missing-tensor", "scale-shape", "quant-method", "truncated", "model-type", "config"],
)  # fmt: skip
def test_bad_checkpoint(editable, tmp_path, capsys, damage, words):
    model = editable()
    damage(model)
    out = tmp_path / "out" / "m.qfuse"
    out.parent.mkdir()
    message = fails(capsys, "compile", str(model.path), "-o", str(out))
    for word in words:
        assert word in message
    assert list(out.parent.iterdir()) == []


def test_unknown_target(checkpoints, tmp_path, capsys):
    out = tmp_path / "m.qfuse"
    message = fails(capsys, "compile", str(checkpoints()), "--target", "cuda:sm_91", "-o", str(out))
    assert message.startswith("unknown target 'cuda:sm_91'; the nearest supported one is 'cuda:s")
    assert not out.exists()


def test_unknown_fusion(checkpoints, tmp_path, capsys):
    argv = ("compile", str(checkpoints()), "-o", str(tmp_path / "m.qfuse"), "--disable", "gateup")
    assert "did you mean 'gate-up'?" in fails(capsys, *argv)


@pytest.mark.parametrize("command", ["compile", "config"])
def test_output_that_cannot_be_written(checkpoints, tmp_path, capsys, command):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "m.qfuse"
    source = [str(checkpoints())]
    if command == "config":
        source = ["--config-only", str(checkpoints() / "config.json"), "--emit=fused-ir"]
    message = fails(capsys, "compile", *source, "-o", str(out))
    assert message.startswith(f"cannot write {out}")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_directory_as_output(checkpoints, tmp_path, capsys):
    message = fails(capsys, "compile", str(checkpoints()), "-o", str(tmp_path))
    assert message == f"cannot write {tmp_path}: Is a directory"


def test_missing_arguments(checkpoints, capsys):
    assert "checkpoint directory" in fails(capsys, "compile", "-o", "m.qfuse")
    assert "-o" in fails(capsys, "compile", str(checkpoints()))


def test_wrong_words(capsys):
    assert "choose from 'demo', 'compile'" in fails(capsys, "frob")
    assert "required: COMMAND; see qfuse --help" in fails(capsys)
    assert "--suite; see qfuse bench --help" in fails(capsys, "bench")
    assert "unrecognized arguments: --fast" in fails(capsys, "inspect", "m.qfuse", "--fast")


def test_arguments_that_do_not_go_together(checkpoints, tmp_path, capsys):
    model, config = str(checkpoints()), str(checkpoints() / "config.json")
    out = tmp_path / "out"
    message = fails(capsys, "compile", model, "--emit=fused-ir", "-o", str(out))
    assert message == "--emit=fused-ir needs --config-only"
    assert "--json needs --config-only" in fails(capsys, "compile", model, "--json", "-o", str(out))
    assert "takes neither" in fails(capsys, "compile", model, "--config-only", config)
    assert "takes neither" in fails(capsys, "compile", "--config-only", config, "--max-len", "9")
    assert "use 2 or more" in fails(capsys, "demo", "--tokens", "1")
    assert not out.exists()


def test_bad_artifact(artifact, tmp_path, capsys):
    message = fails(capsys, "run", str(tmp_path / "no.qfuse"), "--prompt-ids", "1")
    assert "no.qfuse" in message
    text = tmp_path / "text.qfuse"
    text.write_text("this is no artifact")
    assert "text.qfuse" in fails(capsys, "inspect", str(text))
    cut = tmp_path / "cut.qfuse"
    cut.write_bytes(artifact.read_bytes()[:-4096])
    assert "cut.qfuse" in fails(capsys, "run", str(cut), "--prompt-ids", "1")


def test_bad_prompt(artifact, capsys):
    run = ("run", str(artifact), "--prompt-ids")
    assert "1,x" in fails(capsys, *run, "1,x")
    assert "not in the vocabulary" in fails(capsys, *run, "1,99999")
    assert "empty" in fails(capsys, *run, "")
    many = ",".join(["1"] * 500)
    assert "caches hold" in fails(capsys, *run, many)
