"""What all tests share: a cache of kernels, tiny checkpoints, and ways to damage copies of them."""

import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from qfuse.compiler.frontend import huggingface
from qfuse.compiler.frontend.imported import Imported
from qfuse.dialects.bindings import ir
from qfuse.lowering.cache_file import read_cached, write_cached
from qfuse.lowering.cpu import codegen
from qfuse.lowering.cpu.cpu import missing_flags
from qfuse.tools.demo_checkpoint import TINY, write_demo_checkpoint

torch.set_num_threads(1)

# What the clock says on a shared machine is no part of what a test holds.
os.environ["QFUSE_TUNE"] = "off"

# CI tells whether a change broke something, so it always draws the same examples; by hand, and in
# nightly runs, new ones are drawn each time.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# Kernels are compiled once for all tests and worker processes of a run; nothing of the user's
# cache is read, so a stale entry there cannot hide a fault.
if "QFUSE_CACHE_DIR" not in os.environ:
    os.environ["QFUSE_CACHE_DIR"] = tempfile.mkdtemp(prefix="qfuse-test-cache-")

OBJECTS = Path(os.environ["QFUSE_CACHE_DIR"]) / "objects-of-texts"


def _once(compile_text: Callable[[str], bytes]) -> Callable[[str], bytes]:
    """One text is compiled once in a run, in whichever process, into whichever cache.

    The object depends on nothing else on one machine.  Most of what tests take is compiling, and
    a sixth of the kernels have the text of another's, by a test with a cache of its own or by
    one whose types are written otherwise.  That a cache is used is seen by the calls of
    `compile_kernel`.
    """

    @functools.wraps(compile_text)
    def compiled(text: str) -> bytes:
        path = OBJECTS / hashlib.sha256(text.encode()).hexdigest()
        if (found := read_cached(path)) is not None:
            return found[1]
        code = compile_text(text)
        write_cached(path, None, code)
        return code

    return compiled


codegen.compile_text = _once(codegen.compile_text)

CHECKPOINTS = tempfile.mkdtemp(prefix="qfuse-test-checkpoints-")


def _import_once(import_checkpoint: Callable[..., Imported]) -> Callable[..., Imported]:
    """A checkpoint of the `checkpoints` fixture is imported once in a process with each choice.

    Nothing changes those; what is `editable` is imported as often as a test says.
    """
    found: dict[str, tuple[Imported, str]] = {}

    @functools.wraps(import_checkpoint)
    def imported(path: str | Path, **choices: Any) -> Imported:
        if not str(path).startswith(CHECKPOINTS):
            return import_checkpoint(path, **choices)
        key = f"{path} {sorted(choices.items())}"
        if key not in found:
            made = import_checkpoint(path, **choices)
            found[key] = made, made.module.operation.get_asm(enable_debug_info=True)
            return made
        made, text = found[key]
        return replace(made, module=ir.Module.parse(text, made.context))

    return imported


huggingface.import_checkpoint = _import_once(huggingface.import_checkpoint)

EXHAUSTIVE = bool(os.environ.get("QFUSE_EXHAUSTIVE"))
"""Whether tests run in full that take a part of their cases in other runs."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick_level: compiled for the CPU at avx2, see conftest.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Compile a test marked `quick_level` at avx2, whose kernels compile in half the time.

    For files that compile many programs: what they hold of fusions, plans and sources of weights
    is no matter of a level, and other files of theirs compile at the best one: clamped_glu,
    fusion_table and norm_quantize beside the numerics of fusions, checkpoint_end_to_end and
    scheme_programs beside the sources.  That every kernel is right at every level is held in
    test/lowering/cpu.  With QFUSE_EXHAUSTIVE all compile at the best level.
    """
    if item.get_closest_marker("quick_level") is None or EXHAUSTIVE or missing_flags("avx2"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QFUSE_CPU_LEVEL", "avx2")
        return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    """The main process, which made the cache before it started the workers, removes it.

    Checkpoints are each process's own.
    """
    shutil.rmtree(CHECKPOINTS, ignore_errors=True)
    directory = os.environ["QFUSE_CACHE_DIR"]
    if not hasattr(config, "workerinput") and "qfuse-test-cache-" in directory:
        shutil.rmtree(directory, ignore_errors=True)


class Editable:
    """A copy of a checkpoint that a test may damage."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def config(self, **changes: Any) -> None:
        """Replace entries of config.json; None removes one."""
        file = self.path / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    def quantization(self, **changes: Any) -> None:
        """Replace entries of `quantization_config`; None removes one."""
        config = json.loads((self.path / "config.json").read_text())["quantization_config"]
        config |= changes
        self.config(quantization_config={k: v for k, v in config.items() if v is not None})

    def tensors(self, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
        """Apply `edit` to the dictionary of all tensors and write the file again."""
        from safetensors.torch import load_file, save_file

        file = self.path / "model.safetensors"
        tensors = {name: t.clone() for name, t in load_file(file).items()}
        edit(tensors)
        save_file(tensors, file)


@pytest.fixture(scope="session")
def checkpoints() -> Callable[..., Path]:
    """Path of the tiny checkpoint of some choices, written once per session."""
    root = Path(CHECKPOINTS)

    def get(**choices: Any) -> Path:
        name = "-".join(f"{k}={v}" for k, v in sorted(choices.items())) or "default"
        return write_demo_checkpoint(root / name, **(TINY | choices))

    return get


@pytest.fixture
def editable(checkpoints: Callable[..., Path], tmp_path: Path) -> Callable[..., Editable]:
    """A copy of a tiny checkpoint in the test's own directory."""

    def get(**choices: Any) -> Editable:
        return Editable(shutil.copytree(checkpoints(**choices), tmp_path / "model"))

    return get
