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
from cpu_kernels import (
    TESTED_LEVELS,
    compiled,
    group_combine_text,
    group_text,
    kernel_text,
    matmul_text,
    plain,
    quantized,
    segment_sizes,
)
from schemes import int4, mxfp4, plain_weight, plain_x, q4_k, q6_k, q8_0, quantized_x, simple

from qfuse.dialects.types import Shaped

OBJDUMP = shutil.which("objdump") or shutil.which("llvm-objdump")
pytestmark = pytest.mark.skipif(OBJDUMP is None, reason="no objdump here")

N, K = 192, 256
_PREFIXES = {"66", "67", "2e", "36", "3e", "26", "64", "65", "f2", "f3", "f0"}
_REX = {f"4{digit:x}" for digit in range(16)}
_LATER = re.compile(r"^0f(38|3a|7[cd]|d0|f0|b8|bd)|^0f1[26]")
"""Two-byte opcodes with a mandatory prefix that SSE3, POPCNT or LZCNT brought; see `_baseline`."""


def _product(w: object, x: object) -> str:
    return matmul_text(x.type, w.type, [plain(-1, N)])  # type: ignore[attr-defined]


PRODUCTS = {
    "fp8": _product(simple(N, K, "f8E4M3FN", (128, 128)), quantized_x(2, K, "f8E4M3FN", 128)),
    "fp8 by bf16": _product(simple(N, K, "f8E4M3FN", (128, 128)), plain_x(2, K, "bf16")),
    "e5m2": _product(simple(N, K, "f8E5M2", (1, 0)), quantized_x(2, K, "f8E4M3FN", 0)),
    "int8": _product(simple(N, K, "i8", (1, 0)), quantized_x(2, K, "i8", 0)),
    "q8_0": _product(q8_0(N, K), quantized_x(2, K, "i8", 32, "f16", "q8_1")),
    "int4": _product(int4(N, K, 32), quantized_x(2, K, "i8", 32, "f16", "q8_1")),
    "int4 with zeros": _product(int4(N, K, 128, zeros=True), quantized_x(2, K, "i8", 128)),
    "int4 by bf16": _product(int4(N, K, 32), plain_x(2, K, "bf16")),
    "q4_k": _product(q4_k(N, K), quantized_x(2, K, "i8", 32, "f16", "q8_1")),
    "q6_k": _product(q6_k(N, K), quantized_x(2, K, "i8", 32, "f16", "q8_1")),
    "mxfp4": _product(mxfp4(N, K), quantized_x(2, K, "i8", 32, "f16", "q8_1")),
    "bf16": _product(plain_weight(N, K, "bf16"), plain_x(2, K, "bf16")),
    "f16": _product(plain_weight(N, K, "f16"), plain_x(2, K, "f16")),
}

_ROW, _Q = plain(-1, K), quantized(-1, K)
_BLOCKS = quantized(4, N, K, block=(128, 128))


def _norm(results: list[Shaped]) -> str:
    attributes = 'eps = 1.0e-5 : f64, offset = 0.0 : f64, rounding = "before", '
    sizes = segment_sizes("operand", [True] * 3), segment_sizes("result", [True, True, False, True])
    return kernel_text("rms_norm", [_ROW, plain(K), _ROW], results, attributes + ", ".join(sizes))


def _glu() -> str:
    sizes = segment_sizes("operand", [True] * 2), segment_sizes("result", [True] * 2)
    attributes = 'act = "silu", ' + ", ".join(sizes)
    return kernel_text("glu", [_ROW, _ROW], [_ROW, _Q], attributes)


OTHERS = {
    "group": group_text(_Q, _BLOCKS, [plain(-1, 2, N)], 2),
    "group combine": group_combine_text(
        _Q, _BLOCKS, plain(-1, 2, dtype="i32"), plain(-1, 2, dtype="f32"), plain(-1, N)
    ),
    "norm": _norm([_ROW, _Q, _ROW]),
    "glu": _glu(),
    "quantize": kernel_text("quantize", [plain(-1, K, dtype="f16")], [_Q]),
    "dequantize": kernel_text("dequantize", [_Q], [plain(-1, K, dtype="f16")]),
    "gelu": kernel_text("gelu", [_ROW], [_ROW]),
    "route": kernel_text(
        "route",
        [plain(-1, 2, dtype="i64")],
        [plain(-1, 2, dtype="i32")] * 2 + [plain(5, dtype="i32")],
        "num_experts = 4 : i64",
    ),
}
CASES = {**PRODUCTS, **OTHERS}


@lru_cache(maxsize=64)
def instructions(name: str, level: str, directory: Path) -> list[tuple[list[str], str]]:
    """Of a kernel: the bytes of each, and how it is written."""
    path = directory / "kernel.o"
    path.write_bytes(compiled(CASES[name], level).code)
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
@pytest.mark.parametrize("name", CASES)
def test_avx2(name: str, directory: Path) -> None:
    found = instructions(name, "avx2", directory)
    assert not [text for code, text in found if needs_avx512(code)]
    assert not [text for _, text in found if "%zmm" in text or "zmm" in text.split("#")[0]]
    if name != "route":  # which goes through whole numbers one by one
        assert any("ymm" in text for _, text in found)
        assert sum(needs_avx(code) for code, _ in found) > len(found) // 10


@pytest.mark.parametrize("name", CASES)
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
    elif name in ("int4", "int4 with zeros", "q4_k", "q6_k", "mxfp4"):
        assert bytes_ == words > 16 and named(generic, "pmaddwd") > 16
    else:
        fused = [text for _, text in avx2 if text.startswith("vfmadd")]
        assert not bytes_ and not words and len(fused) > 16
        assert named(generic, "mulps") > 16 and named(generic, "addps") > 16
    if name.startswith(("fp8", "e5m2", "f16")):
        assert named(avx2, "vcvtph2ps") > 8
    if name == "mxfp4":
        assert named(avx2, "vpshufb") > 4


@pytest.mark.skipif("avx512" not in TESTED_LEVELS, reason="this CPU lacks AVX-512")
def test_what_is_looked_for_is_there(directory: Path) -> None:
    """At a level that has it."""
    found = instructions("fp8", "avx512", directory)
    assert any(needs_avx512(code) for code, _ in found) and any("zmm" in t for _, t in found)
    assert not all(baseline(code) for code, _ in found)
