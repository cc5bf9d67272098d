"""Compiling many launches in several processes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from gpu_kernels import kernel_text, lowered, plain

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton import ahead, binary
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.kernel import Launch

GPU = find_gpu("cuda:sm_90")


def launches(count: int) -> list[Launch]:
    """Launches that differ, and compile fast."""
    made = []
    for i in range(count):
        width = 64 + i
        kernel = lowered(kernel_text("relu", [plain(-1, width)], [plain(-1, width)]))
        made.append(kernel.variants[0].launches[0])
    return made


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def test_processes_fill_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    todo = launches(6)
    with ahead.compiled_ahead(todo, GPU, tmp_path) as directory:
        assert directory == tmp_path
        assert len(list(tmp_path.glob("*.gpu"))) == 6
        monkeypatch.setattr(binary, "_compile", None)  # nothing is left to compile
        names = [binary.compile_launch(launch, GPU, directory).name for launch in todo]
    assert names == [launch.name for launch in todo]


def test_a_cache_for_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    with ahead.compiled_ahead(launches(6), GPU, None) as directory:
        assert directory is not None
        assert len(list(directory.glob("*.gpu"))) == 6
    assert not directory.exists()


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_launches_start_no_process(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead.subprocess, "Popen", None)
    with ahead.compiled_ahead(launches(count), GPU, tmp_path) as directory:
        assert directory == tmp_path
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_compiled_is_said_by_the_caller(tmp_path: Path) -> None:
    *good, bad = launches(6)
    bad = replace(bad, text=bad.text.replace("tt.load", "tt.lost"))
    with ahead.compiled_ahead([bad, *good], GPU, tmp_path) as directory:
        assert len(list(tmp_path.glob("*.gpu"))) == 5
        with pytest.raises(QfuseError, match=r"cannot compile k for cuda:sm_90"):
            binary.compile_launch(bad, GPU, directory)
