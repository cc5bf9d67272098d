"""Compiling: the cache on disk, damaged entries, refusals of Triton, and a missing Triton."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_kernels import kernel_text, lowered, plain

pytest.importorskip("triton")

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton import binary
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.kernel import Launch
from qfuse.lowering.triton.sass import disassemble
from qfuse.lowering.triton.text import respell

GPU = find_gpu("cuda:sm_90")


@pytest.fixture(scope="module")
def launch() -> Launch:
    row = plain(-1, 256)
    return lowered(kernel_text("relu", [row], [row])).variants[0].launches[0]


def test_a_second_process_would_find_it(launch: Launch, tmp_path: Path, monkeypatch) -> None:
    first = binary.compile_launch(launch, GPU, tmp_path)
    (entry,) = tmp_path.iterdir()
    monkeypatch.setattr(binary, "_compile", lambda *_: pytest.fail("compiled again"))
    assert binary.compile_launch(launch, GPU, tmp_path) == first
    assert entry.suffix == ".gpu" and first.stages["cubin"].startswith(b"\x7fELF")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_a_damaged_entry_is_made_again(launch: Launch, tmp_path: Path, damage: str) -> None:
    first = binary.compile_launch(launch, GPU, tmp_path)
    (entry,) = tmp_path.iterdir()
    content = entry.read_bytes()
    entry.write_bytes(
        {
            "truncated": content[:-100],
            "flipped": content[:500] + bytes([content[500] ^ 1]) + content[501:],
            "empty": b"",
            "foreign": b"not a kernel",
        }[damage]
    )
    assert binary.compile_launch(launch, GPU, tmp_path) == first
    assert entry.read_bytes() == content


def test_a_directory_that_cannot_be_written_is_no_error(launch: Launch, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert binary.compile_launch(launch, GPU, file / "cache").name == launch.name


def test_the_key_holds_all_that_matters(launch: Launch, monkeypatch) -> None:
    keys = {
        binary.binary_key(launch, GPU),
        binary.binary_key(replace(launch, num_warps=8), GPU),
        binary.binary_key(replace(launch, num_stages=2), GPU),
        binary.binary_key(replace(launch, text=launch.text.replace("256", "128")), GPU),
        binary.binary_key(launch, find_gpu("cuda:sm_80")),
    }
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/elsewhere/ptxas")
    keys.add(binary.binary_key(launch, GPU))
    monkeypatch.setattr(binary, "triton_version", lambda: "3.99")
    keys.add(binary.binary_key(launch, GPU))
    assert len(keys) == 7


def test_what_triton_refuses(launch: Launch, capfd) -> None:
    """One line with the cause and a command that repeats it, nothing printed on the side."""
    broken = replace(launch, text=launch.text.replace("arith.maximumf", "arith.no_such"))
    with pytest.raises(QfuseError) as caught:
        binary.compile_launch(broken, GPU)
    message = str(caught.value)
    assert "\n" not in message
    assert "cannot compile relu" in message or f"cannot compile {launch.name}" in message
    assert "no_such" in message and "triton.compile(" in message and ".log" in message
    out, err = capfd.readouterr()
    assert out == "" and err == ""
    path = message.split("triton.compile('")[1].split("'")[0]
    assert "no_such" in Path(path).read_text()
    Path(path).unlink()
    Path(f"{path}.log").unlink()


def test_settings_of_the_user_stay(launch: Launch, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("TRITON_DEFAULT_FP_FUSION", raising=False)
    binary.compile_launch(launch, GPU)
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path)
    assert "TRITON_DEFAULT_FP_FUSION" not in os.environ
    assert not list(tmp_path.iterdir())


def test_sass_is_of_cuda_only(launch: Launch) -> None:
    made = binary.compile_launch(launch, find_gpu("hip:gfx942"))
    with pytest.raises(QfuseError, match="SASS is the code of a cuda target"):
        disassemble(made)


def test_spellings() -> None:
    text = "%0 : !tt.tensordesc<tensor<128x64xf8E4M3FN>>, tensor<4xf32>"
    assert respell(text, "tensor") == text
    assert respell(text, "plain") == "%0 : !tt.tensordesc<128x64xf8E4M3FN>, tensor<4xf32>"
    assert binary.spelling() in ("tensor", "plain")


def test_lowering_needs_no_triton(tmp_path: Path) -> None:
    """TTIR is made without it; compiling then says what is missing."""
    code = """
import sys
sys.modules["triton"] = None
from pathlib import Path
from qfuse.tools.qfuse_translate import main
text = sys.argv[2]
path = Path(sys.argv[1]) / "in.mlir"
path.write_text(text)
assert main(["--to=ttir", str(path)]) == 0
assert main(["--to=ptx", str(path)]) == 1
"""
    row = "tensor<?x64xf32>"
    text = (
        f"func.func @main(%x: {row}) -> {row} {{\n"
        f'%0 = "qfuse.relu"(%x) : ({row}) -> {row}\n return %0 : {row}\n}}'
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), text], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "needs Triton" in run.stderr and run.stderr.count("\n") == 1
