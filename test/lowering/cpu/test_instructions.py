"""What the code of each level is made of: instructions that CPUs of that level have, and no others.

The bytes are looked at, so what a disassembler calls them does not matter: an instruction that
begins with 62 needs AVX-512, with c4 or c5 AVX, and 0f 38 or 0f 3a is later than SSE3.
"""

import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest
from cpu_kernels import TESTED_LEVELS, compiled
from every_kernel import EVERY, PRODUCTS

OBJDUMP = shutil.which("objdump") or shutil.which("llvm-objdump")
pytestmark = pytest.mark.skipif(OBJDUMP is None, reason="no objdump here")

_PREFIXES = {"66", "67", "2e", "36", "3e", "26", "64", "65", "f2", "f3", "f0"}
_REX = {f"4{digit:x}" for digit in range(16)}


@lru_cache(maxsize=64)
def instructions(name: str, level: str, directory: Path) -> list[tuple[list[str], str]]:
    """Of a kernel: the bytes of each, and how it is written."""
    path = directory / "kernel.o"
    path.write_bytes(compiled(EVERY[name].text, level).code)
    made = subprocess.run([OBJDUMP, "-d", "-w", path], capture_output=True, text=True, check=True)
    found = []
    for line in made.stdout.splitlines():
        match = re.match(r"\s*[0-9a-f]+:\s+((?:[0-9a-f]{2} )+)\s*(.*)", line)
        if match:
            found.append((match[1].split(), match[2]))
    assert len(found) > 50
    return found


def opcode(code: list[str]) -> tuple[str, str]:
    """The prefixes that say which instruction it is, and the rest."""
    place = 0
    while code[place] in _PREFIXES:
        place += 1
    mandatory = "".join(b for b in code[:place] if b in ("66", "f2", "f3"))
    if code[place] in _REX:
        place += 1
    return mandatory, "".join(code[place:])


def needs_avx512(code: list[str]) -> bool:
    return opcode(code)[1].startswith("62")


def needs_avx(code: list[str]) -> bool:
    return opcode(code)[1].startswith(("c4", "c5"))


def baseline(code: list[str]) -> bool:
    """Whether every x86-64 has it: SSE2 is part of that."""
    mandatory, rest = opcode(code)
    if needs_avx(code) or needs_avx512(code) or rest.startswith(("0f38", "0f3a")):
        return False
    if rest.startswith(("0f7c", "0f7d", "0fd0", "0ff0")):  # haddps, addsubps, lddqu: SSE3
        return False
    # movsldup, movddup, movshdup; popcnt, lzcnt
    return (mandatory, rest[:4]) not in (
        *(("f3", "0f12"), ("f2", "0f12"), ("f3", "0f16")),
        *(("f3", "0fb8"), ("f3", "0fbd")),
    )


def named(found: list[tuple[list[str], str]], *names: str) -> int:
    return sum(text.split()[0] in names for _, text in found if text)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("objects")


@pytest.mark.skipif("avx2" not in TESTED_LEVELS, reason="this CPU lacks AVX2")
@pytest.mark.parametrize("name", EVERY)
def test_avx2(name: str, directory: Path) -> None:
    found = instructions(name, "avx2", directory)
    assert not [text for code, text in found if needs_avx512(code)]
    assert not [text for _, text in found if "%zmm" in text or "zmm" in text.split("#")[0]]
    if name != "route":  # which goes through whole numbers one by one
        assert any("ymm" in text for _, text in found)
        assert sum(needs_avx(code) for code, _ in found) > len(found) // 10


@pytest.mark.parametrize("name", EVERY)
def test_generic(name: str, directory: Path) -> None:
    found = instructions(name, "generic", directory)
    assert not [text for code, text in found if not baseline(code)]
    assert not [text for _, text in found if "ymm" in text or "zmm" in text]


@pytest.mark.skipif("avx2" not in TESTED_LEVELS, reason="this CPU lacks AVX2")
@pytest.mark.parametrize("name", PRODUCTS)
def test_what_products_multiply_with(name: str, directory: Path) -> None:
    """The table in codes.py, as it comes out of LLVM."""
    avx2, generic = (instructions(name, level, directory) for level in ("avx2", "generic"))
    bytes_, words = named(avx2, "vpmaddubsw"), named(avx2, "vpmaddwd")
    if name in ("int8", "q8_0"):
        assert not bytes_ and words > 16 and named(generic, "pmaddwd") > 16
    elif name in ("int4", "int4 with zeros", "q4_0", "q4_k", "q6_k", "mxfp4"):
        assert bytes_ == words > 16 and named(generic, "pmaddwd") > 16
    else:
        fused = [text for _, text in avx2 if text.startswith("vfmadd")]
        assert not bytes_ and not words and len(fused) > 16
        assert named(generic, "mulps") > 16 and named(generic, "addps") > 16
    if name.startswith(("fp8", "e4m3", "e5m2", "f16")):
        assert named(avx2, "vcvtph2ps") > 8
    if name == "mxfp4":
        assert named(avx2, "vpshufb") > 4


@pytest.mark.skipif("avx512" not in TESTED_LEVELS, reason="this CPU lacks AVX-512")
def test_what_is_looked_for_is_there(directory: Path) -> None:
    """At a level that has it."""
    found = instructions("fp8", "avx512", directory)
    assert any(needs_avx512(code) for code, _ in found) and any("zmm" in t for _, t in found)
    assert not all(baseline(code) for code, _ in found)
