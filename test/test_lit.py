"""Every lit test of the tree as one pytest test."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FILES = sorted(
    p.relative_to(HERE).as_posix() for p in HERE.rglob("*.mlir") if "Output" not in p.parts
)


@pytest.mark.parametrize("name", FILES)
def test_lit(name: str, tmp_path: Path) -> None:
    environment = {**os.environ, "QFUSE_LIT_OUTPUT": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, "-c", "from lit.main import main; main()", "-v", "-j1", str(HERE / name)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Passed: 1" in run.stdout, run.stdout


def test_every_pass_has_a_lit_test() -> None:
    from qfuse.compiler.passes import ALL_PASSES

    for name in ALL_PASSES:
        stem = name.removeprefix("qfuse-").replace("-", "_")
        assert f"passes/{stem}.mlir" in FILES
