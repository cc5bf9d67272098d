"""Compiled kernels on disk."""

import errno
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cpu_kernels import kernel_text, matmul_text, parsed, plain

from qfuse.lowering.cpu import cache
from qfuse.lowering.cpu.cpu import choose_level
from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.tunables import DEFAULTS

ROW = plain(-1, 8)
TEXT = kernel_text("relu", [ROW], [ROW])


def compile_once(directory: Path, text: str = TEXT, level: str | None = None) -> CompiledKernel:
    with parsed(text) as kernel:
        return cache.compile_cached(kernel, directory, level=level)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that were really compiled."""
    names: list[str] = []
    compile_kernel = cache.compile_kernel

    def counting(kernel, **options):
        names.append(kernel.name.value)
        return compile_kernel(kernel, **options)

    monkeypatch.setattr(cache, "compile_kernel", counting)
    return names


def test_second_compilation_is_read(tmp_path: Path, compilations: list[str]) -> None:
    first, second = compile_once(tmp_path), compile_once(tmp_path)
    assert first == second and compilations == ["k"]


def test_name_does_not_matter(tmp_path: Path, compilations: list[str]) -> None:
    compile_once(tmp_path)
    other = compile_once(tmp_path, TEXT.replace("@k", "@another"))
    assert other.name == "another" and compilations == ["k"]


def test_key_depends_on_text_and_level(tmp_path: Path, compilations: list[str]) -> None:
    compile_once(tmp_path)
    compile_once(tmp_path, TEXT.replace("relu", "silu"))
    if choose_level() != "generic":
        compile_once(tmp_path, level="generic")
    assert len(compilations) == len(list(tmp_path.iterdir())) >= 2


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped"])
def test_damaged_entry_is_made_again(tmp_path: Path, compilations: list[str], damage: str) -> None:
    first = compile_once(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    flipped = bytes([*whole[:500], whole[500] ^ 1, *whole[501:]])
    path.write_bytes({"empty": b"", "cut": whole[:-9], "flipped": flipped}[damage])
    assert compile_once(tmp_path) == first and compilations == ["k", "k"]
    assert path.read_bytes() == whole


def test_unwritable_directory_is_no_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert compile_once(file / "below").code


def test_a_directory_that_only_can_be_read(tmp_path: Path, compilations: list[str]) -> None:
    """What is there is read; what is not is compiled each time, and nothing is left behind."""
    first = compile_once(tmp_path)
    os.chmod(tmp_path, 0o500)
    try:
        if os.access(tmp_path, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert compile_once(tmp_path) == first and compilations == ["k"]
        for _ in range(2):
            assert compile_once(tmp_path, TEXT.replace("relu", "silu")).code
        assert compilations == ["k"] * 3 and len(list(tmp_path.iterdir())) == 1
    finally:
        os.chmod(tmp_path, 0o700)


def test_a_full_disk_is_no_error(
    tmp_path: Path, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for whoever may write everywhere, where permissions show nothing."""

    def full(source: str, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        assert compile_once(tmp_path).code and not list(tmp_path.iterdir())
    assert compile_once(tmp_path).code and compilations == ["k", "k"]


def test_tuned_kernels_are_others(tmp_path: Path, compilations: list[str]) -> None:
    level = choose_level()
    text = matmul_text(plain(-1, 128), plain(64, 128), [plain(-1, 64)])
    near = replace(DEFAULTS[level], prefetch_bytes=64)
    for tuned in (None, near, None, near):
        with parsed(text) as kernel:
            assert cache.compile_cached(kernel, tmp_path, tuned=tuned).code
    assert compilations == ["k", "k"] and len(list(tmp_path.iterdir())) == 2


def test_no_directory(compilations: list[str]) -> None:
    with parsed(TEXT) as kernel:
        assert cache.compile_cached(kernel, None).code and compilations == ["k"]


def _compile_in_process(directory: Path, start: object, results: object) -> None:
    start.wait()  # type: ignore[attr-defined]
    results.put(compile_once(directory).code)  # type: ignore[attr-defined]


def test_two_processes_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    workers = [
        context.Process(target=_compile_in_process, args=(tmp_path, start, results))
        for _ in range(2)
    ]
    for w in workers:
        w.start()
    objects = [results.get(timeout=60) for _ in workers]
    for w in workers:
        w.join()
    assert objects[0] == objects[1] == compile_once(tmp_path).code
    assert [p.suffix for p in tmp_path.iterdir()] == [".kernel"]
