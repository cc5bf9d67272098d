"""Verifying files and whole models: the command, `compile(verify=True)`, and what it takes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from programs import BLOCK, Program
from verification_cases import Patch, gated_mlp, halves_swapped, scales_of_the_other_weight

from qfuse.compiler import compile
from qfuse.compiler.reference import Quantized
from qfuse.compiler.reference.inputs import RandomInputs
from qfuse.compiler.verification import NotEquivalent
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import Scheme, Shaped
from qfuse.tools import qfuse_opt


def test_command_fails_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Patch
) -> None:
    p = Program()
    file = tmp_path / "mlp.mlir"
    file.write_text(p.text(gated_mlp(p)))
    argv = [str(file), "--qfuse-fuse-gate-up", "--verify-fusion", "-o", str(tmp_path / "out.mlir")]
    assert qfuse_opt.main(argv) == 0
    assert "3 values are the same before and after a pass" in capsys.readouterr().err
    halves_swapped(monkeypatch)
    assert qfuse_opt.main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "after qfuse-fuse-gate-up @main differs" in captured.err
    assert qfuse_opt.main([*argv, "--verify-fusion-seed=7"]) == 1
    assert "seed 7" in capsys.readouterr().err
    assert qfuse_opt.main([*argv, "--verify-fusion-seed=-1"]) == 1
    assert "seed -1 is negative" in capsys.readouterr().err


def test_compile_verifies_a_checkpoint(
    checkpoints: Callable[..., Path], monkeypatch: Patch
) -> None:
    """All of it: what torch has, every fusion, and the kernels outlined; with random weights."""
    exe = compile(checkpoints(), verify=True)
    (line,) = exe.program.report["verified"]
    assert line.endswith("values are the same before and after a pass")
    scales_of_the_other_weight(monkeypatch)
    new = r"from what is new, qfuse\.pack \(.*mlp\.up_proj\.weight, .*gate_proj\.weight_scale_inv\)"
    with pytest.raises(NotEquivalent, match=new):
        compile(checkpoints(), verify=True)


@pytest.mark.parametrize("quantized", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "qwen3_moe"])
def test_compile_verifies_layers_of_experts(
    checkpoints: Callable[..., Path], architecture: str, quantized: bool
) -> None:
    """Between bf16 products, which experts a token chooses may be left open by all inputs tried."""
    exe = compile(checkpoints(architecture=architecture, quantized=quantized), verify=True)
    *skipped, line = exe.program.report["verified"]
    assert line.endswith("values are the same before and after a pass")
    open_ = "qfuse-raise-torch of @main is not verified: which experts are largest depends on"
    assert not skipped or (not quantized and skipped == [f"{open_} roundings"])


def test_without_verify_nothing_runs_and_nothing_is_reported(
    checkpoints: Callable[..., Path],
) -> None:
    assert "verified" not in compile(checkpoints()).program.report


def test_large_weights_take_little_memory() -> None:
    """Rows of a large tensor share memory, and products take some of the terms."""
    with ir.Context(), ir.Location.unknown():
        load_all()
        weight = Shaped((64, 8192, 4096), "f8E4M3FN", Scheme((128, 128), "f32"))
        text = f"func.func private @f(%w: {weight}) {{ return }}"
        module = ir.Module.parse(text)
        (value,) = RandomInputs(0, 3).arguments(module.body.operations[0].operation)
    assert isinstance(value, Quantized)
    data = value.data.array
    assert data.shape == (64, 8192, 4096)
    assert np.lib.array_utils.byte_bounds(data)[1] - np.lib.array_utils.byte_bounds(data)[0] < 4e6
    rows = data[:2, :3, :BLOCK].reshape(6, -1).view(np.uint8)
    assert len({row.tobytes() for row in rows}) == 6
