"""Imports run one way: tools -> compiler -> lowering -> dialects."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BELOW: dict[str, set[str]] = {
    "dialects": set(),
    "lowering": {"dialects"},
    "compiler": {"dialects", "lowering"},
    "tools": {"compiler", "dialects", "lowering"},
}
NAMES_BINDINGS = ("bindings.py", "bindings_fx.py", "bindings_jit.py")


def imported_modules(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            found.append((node.lineno, node.module or ""))
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("package", BELOW)
def test_imports_only_packages_below(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        for line, module in imported_modules(path):
            if module.startswith("qfuse."):
                target = module.split(".")[1]
                assert target == package or target in BELOW[package], f"{path}:{line}: {module}"


def test_one_place_names_the_bindings() -> None:
    for package in BELOW:
        for path in (ROOT / package).rglob("*.py"):
            for line, module in imported_modules(path):
                if module.split(".")[0] == "torch_mlir":
                    assert path.name in NAMES_BINDINGS, f"{path}:{line}: {module}"


def test_dialect_files_keep_annotations_live() -> None:
    """`from __future__ import annotations` would turn every dialect field into an attribute."""
    for path in (ROOT / "dialects").rglob("*.py"):
        assert "__future__" not in {m for _, m in imported_modules(path)}, path


def test_packages_of_pyproject_are_the_folders() -> None:
    """A sub-package missing from the list works in a checkout and fails installed."""
    import tomllib

    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    found = {
        "qfuse." + path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in BELOW
        for path in (ROOT / package).rglob("*.py")
    }
    assert listed == found


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("qfuse.tools.qfuse_opt", "torch"),
        ("qfuse.dialects.registry", "torch"),
        ("qfuse.compiler.verification", "torch"),
        ("qfuse.compiler", "torch_mlir"),
        ("qfuse.compiler.runtime.program", "torch_mlir"),
        ("qfuse.lowering.cpu.launcher", "torch_mlir"),
    ],
)
def test_importing_does_not_load(module: str, absent: str) -> None:
    code = f"import {module}, sys; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
