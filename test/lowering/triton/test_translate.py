"""`qfuse-translate`: bad input is one line and exit code 1; good input goes where -o says."""

import json
from pathlib import Path

import pytest

from qfuse.tools.qfuse_translate import main

RELU = """
func.func @main(%x: tensor<?x64xf32>) -> tensor<?x64xf32> {
  %0 = "qfuse.relu"(%x) : (tensor<?x64xf32>) -> tensor<?x64xf32>
  return %0 : tensor<?x64xf32>
}
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    path = tmp_path / "in.mlir"
    path.write_text(RELU)
    return str(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to=ttir", "--target=cuda:sm_91"], "unknown GPU target 'cuda:sm_91'; the nearest"),
        (["--to=ttir", "--target=cpu"], "unknown GPU target 'cpu'"),
        (["--to=ptx", "--target=hip:gfx942"], "--to=ptx is for cuda targets, not hip:gfx942"),
        (["--to=amdgcn"], "--to=amdgcn is for hip targets, not cuda:sm_90"),
        (["--to=cubin"], "writes one file per kernel; name a directory with -o"),
        (["--to=llvm"], "invalid choice: 'llvm'"),
        (["--to=ttir", "--m=0"], "'0' is not a number of rows, 1 or more"),
        (["--to=ttir", "-o", "/proc/x/y"], "cannot write /proc/x/y"),
        ([], "the following arguments are required: --to"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, program: str, capsys) -> None:
    assert main([program, *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert err.startswith("qfuse-translate: error: ") and message in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("module {", "in.mlir:1:7: error: expected operation name"),
        ("func.func @f() { return }", "holds no qfuse computation"),
        (RELU.replace("relu", "rely"), "unregistered operation 'qfuse.rely'"),
        (RELU.replace("?x64xf32>) ->", "?x64xi32>) ->"), "error: "),
        ("\x00\xff", "error: "),
    ],
)
def test_bad_programs(text: str, message: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "in.mlir"
    path.write_text(text)
    assert main([str(path), "--to=ttir"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and message in err


def test_missing_and_binary_files(tmp_path: Path, capsys) -> None:
    path = tmp_path / "in.mlir"
    assert main([str(path), "--to=ttir"]) == 1
    assert "No such file" in capsys.readouterr().err
    path.write_bytes(b"\xff\xfe\x00\x80")
    assert main([str(path), "--to=ttir"]) == 1
    assert "not a text file" in capsys.readouterr().err


def test_output_files(program: str, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out.ttir"
    assert main([program, "--to=ttir", "-o", str(out)]) == 0
    assert '"tt.func"' in out.read_text() and capsys.readouterr().out == ""


def test_machine_code_and_report(program: str, tmp_path: Path, capsys) -> None:
    pytest.importorskip("triton")
    assert main([program, "--to=cubin", "-o", str(tmp_path / "code")]) == 0
    assert (tmp_path / "code/relu_0.cubin").read_bytes().startswith(b"\x7fELF")
    assert main([program, "--to=sass-report"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    wanted = {
        *("name", "mma", "registers", "spill_bytes", "shared_bytes"),
        *("num_warps", "num_stages", "occupancy"),
    }
    assert wanted <= set(report) and report["kernel"] == "relu_0"
    for kind, sign in (("ttgir", "ttg.num-ctas"), ("ptx", ".visible .entry relu_0")):
        assert main([program, f"--to={kind}"]) == 0
        assert sign in capsys.readouterr().out.replace('"', "")
    assert main([program, "--to=amdgcn", "--target=hip:gfx950"]) == 0
    assert "s_endpgm" in capsys.readouterr().out
