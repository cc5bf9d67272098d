"""What must hold in the machine code of sm_90; test_compile_matrix.py has the other targets.

No GPU is needed: the Triton wheel carries the compilers and the disassembler.
"""

import os
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from gpu_kernels import (
    SILU_GLU,
    forced,
    kernel_text,
    lowered,
    matmul_text,
    plain,
    quantized,
    segment_sizes,
)
from scheme_values import packed

pytest.importorskip("triton")

from qfuse.lowering.triton import gemv
from qfuse.lowering.triton.binary import Binary, compile_launch
from qfuse.lowering.triton.gpu import GPUS, find_gpu
from qfuse.lowering.triton.kernel import Launch
from qfuse.lowering.triton.sass import Sass, disassemble, sass_report
from qfuse.lowering.triton.tiles import Config

CACHE = Path(os.environ.get("QFUSE_CACHE_DIR", tempfile.gettempdir())) / "gpu"

X = quantized(-1, 2048)
WIDE = 4096
EXTRAS = [
    (plain(WIDE), "[N]"),
    (plain(-1, 1, dtype="f32"), "[M,1]"),
    (plain(-1, WIDE), "[M,N]"),
    (plain(1), "[]"),
]
MANY_EXTRAS = """
%0 = arith.addf %acc0, %e0 : f32
%1 = arith.mulf %0, %e1 : f32
%2 = arith.addf %1, %e2 : f32
%3 = arith.mulf %2, %e3 : f32
%v = math.erf %3 : f32
"""


def weight(n: int, k: int = 2048):
    return quantized(n, k, block=(128, 128))


def by_scale(n: int):
    """What has one scale for all of it, given beforehand."""
    return quantized(-1, n, block=(1, n))


SCALE = [(plain(1, dtype="f32"), "[]")]
WITH_SCALE = '%q = "qfuse.with_scale"(%v, %e0) : (f32, f32) -> f32'

PRODUCTS = {
    "plain": matmul_text(X, weight(WIDE), [plain(-1, WIDE)]),
    "four extras": matmul_text(X, weight(WIDE), [plain(-1, WIDE)], MANY_EXTRAS, ["%v"], EXTRAS),
    "glu quantized": matmul_text(
        X, weight(2 * WIDE), [quantized(-1, WIDE)], SILU_GLU, ["%v"], parts=[WIDE, WIDE]
    ),
    "glu quantized, ragged": matmul_text(
        X, weight(1536 + 1424), [quantized(-1, 1424)], SILU_GLU, ["%v"], parts=[1424, 1424]
    ),
    "glu, ragged": matmul_text(
        X, weight(1408 + 1404), [plain(-1, 1404)], SILU_GLU, ["%v"], parts=[1404, 1404]
    ),
    "quantized, ragged": matmul_text(X, weight(1400), [quantized(-1, 1400)]),
    "glu quantized by a given scale": matmul_text(
        X, weight(2 * WIDE), [by_scale(WIDE)], SILU_GLU + WITH_SCALE, ["%q"], SCALE, [WIDE, WIDE]
    ),
    "f32 and bf16": matmul_text(
        X, weight(WIDE), [plain(-1, WIDE, dtype="f32"), plain(-1, WIDE)], yields=["%acc0"] * 2
    ),
    "two residuals": matmul_text(
        X,
        weight(2 * WIDE),
        [plain(-1, WIDE)] * 2,
        "%a = arith.addf %acc0, %e0 : f32\n%b = arith.addf %acc1, %e1 : f32",
        ["%a", "%b"],
        [(plain(-1, WIDE), "[M,N]")] * 2,
        [WIDE, WIDE],
    ),
}
"""FP8 products that the persistent kernel of sm_90 serves for many rows."""

BF16 = plain(-1, 2048)
PLAIN_PRODUCTS = {
    "plain": matmul_text(BF16, plain(WIDE, 2048), [plain(-1, WIDE)]),
    "four extras": matmul_text(
        BF16, plain(WIDE, 2048), [plain(-1, WIDE)], MANY_EXTRAS, ["%v"], EXTRAS
    ),
    "glu quantized": matmul_text(
        BF16, plain(2 * WIDE, 2048), [quantized(-1, WIDE)], SILU_GLU, ["%v"], parts=[WIDE, WIDE]
    ),
}
"""The same without scales."""

OTHERS = {
    "bf16": matmul_text(plain(-1, 1024), plain(768, 1024), [plain(-1, 768)]),
    "W8A16": matmul_text(plain(-1, 1024), weight(768, 1024), [plain(-1, 768)]),
    "i8 per row": matmul_text(
        quantized(-1, 1024, block=(1, 1024), dtype="i8"),
        quantized(768, 1024, block=(1, 1024), dtype="i8"),
        [plain(-1, 768)],
    ),
    "K = 300": matmul_text(quantized(-1, 300), weight(130, 300), [plain(-1, 130)]),
}

PLAIN_BY_CODES = {
    name: matmul_text(plain(-1, 2048), w, [plain(-1, 768)])
    for name, w in {
        "int4 per 32": packed(768, 2048, packing="int4"),
        "int4 with zero points": packed(
            768, 2048, packing="int4", block=128, zero="int", scale="bf16"
        ),
        "fp4": packed(768, 2048, packing="fp4"),
        "q4_k": packed(768, 2048, packing="q4_k"),
        "q6_k": packed(768, 2048, packing="q6_k"),
    }.items()
}
"""Codes that share bytes, multiplied in the type of x."""

INTEGERS = {
    name: matmul_text(packed(-1, 2048, packing="q8_1"), w, [plain(-1, 768)])
    for name, w in {
        "q8_0": quantized(768, 2048, block=(1, 32), dtype="i8", scale="f16"),
        "int4": packed(768, 2048, packing="int4"),
        "int4 with zero points": packed(768, 2048, packing="int4", block=128, zero="int"),
        "q4_k": packed(768, 2048, packing="q4_k"),
    }.items()
}
"""Multiplied as i8; those of q6_k are groups of 16, for which f16 is exact as well."""

BY_ROWS = {
    "i8": matmul_text(
        quantized(-1, 2048, block=(1, 2048), dtype="i8"),
        quantized(WIDE, 2048, block=(1, 2048), dtype="i8"),
        [plain(-1, WIDE)],
    ),
    "fp8": matmul_text(
        quantized(-1, 2048, block=(1, 2048)),
        quantized(WIDE, 2048, block=(1, 2048)),
        [plain(-1, WIDE)],
    ),
}
"""A scale per token and per channel."""

ROWS = {
    "quantize": kernel_text("quantize", [plain(-1, 4096)], [quantized(-1, 4096)]),
    "rms_norm": kernel_text(
        "rms_norm",
        [plain(-1, 4096), plain(4096), plain(-1, 4096)],
        [plain(-1, 4096), quantized(-1, 4096), plain(-1, 4096)],
        'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", '
        + segment_sizes("result", [True, True, False, True]),
    ),
    "rms_norm in two formats": kernel_text(
        "rms_norm",
        [plain(-1, 4096), plain(4096), plain(-1, 4096)],
        [plain(-1, 4096), quantized(-1, 4096), packed(-1, 4096, packing="q8_1"), plain(-1, 4096)],
        'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", '
        + segment_sizes("result", [True] * 4),
    ),
    "glu": kernel_text(
        "glu",
        [plain(-1, 8192)],
        [quantized(-1, 4096)],
        'act = "gelu_tanh", ' + segment_sizes("result", [False, True]),
    ),
    "clamped glu": kernel_text(
        "glu",
        [plain(-1, 4096)] * 2,
        [quantized(-1, 4096)],
        'act = "swiglu_oai", limit = 7.0 : f64, ' + segment_sizes("result", [False, True]),
    ),
    "rms_norm by given scales": kernel_text(
        "rms_norm",
        [plain(-1, 4096), plain(4096), plain(-1, 4096), *[plain(1, dtype="f32")] * 2],
        [plain(-1, 4096), by_scale(4096), by_scale(4096), plain(-1, 4096)],
        'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", '
        + segment_sizes("operand", [True] * 5)
        + ", "
        + segment_sizes("result", [True] * 4),
    ),
    "glu by a given scale": kernel_text(
        "glu",
        [plain(-1, 8192), plain(1, dtype="f32")],
        [by_scale(4096)],
        'act = "silu", '
        + segment_sizes("operand", [True, False, True])
        + ", "
        + segment_sizes("result", [False, True]),
    ),
    **{
        f"dequantize {packing}": kernel_text(
            "dequantize", [packed(-1, 4096, packing=packing)], [plain(-1, 4096)]
        )
        for packing in ("q4_k", "q6_k")
    },
    "dequantize": kernel_text("dequantize", [quantized(-1, 4096)], [plain(-1, 4096)]),
    "gelu": kernel_text("gelu", [plain(-1, 4096)], [plain(-1, 4096)]),
    "rope": kernel_text(
        "rope", [plain(1, -1, 8, 128), *[plain(1, -1, 128)] * 2], [plain(1, -1, 8, 128)]
    ),
    "add": kernel_text("add", [plain(-1, 4096), plain(4096)], [plain(-1, 4096)]),
    "quantize by a scale": kernel_text(
        "quantize", [plain(-1, 4096), plain(1, dtype="f32")], [quantized(-1, 4096, block=(1, 4096))]
    ),
    "quantize to e8m0": kernel_text(
        "quantize", [plain(-1, 4096)], [quantized(-1, 4096, scale="f8E8M0FNU")]
    ),
    "dequantize int4": kernel_text(
        "dequantize", [packed(-1, 4096, packing="int4", zero="int")], [plain(-1, 4096)]
    ),
}


@lru_cache(maxsize=256)
def compiled(launch: Launch, target: str) -> Binary:
    return compile_launch(launch, find_gpu(target), CACHE)


def launches(text: str, target: str, m: int) -> tuple[Launch, ...]:
    return lowered(text, target).variant(m).launches


@pytest.mark.parametrize("name", PRODUCTS)
def test_persistent_kernels_of_sm_90(name: str) -> None:
    report = persistent_report(PRODUCTS[name], "QGMMA")
    assert report["num_stages"] >= (2 if name == "f32 and bf16" else 4), report


@pytest.mark.parametrize("name", PLAIN_PRODUCTS)
def test_persistent_kernels_without_scales(name: str) -> None:
    report = persistent_report(PLAIN_PRODUCTS[name], "HGMMA")
    assert report["num_stages"] >= 3, report


@pytest.mark.parametrize(("name", "mma"), [("i8", "IGMMA"), ("fp8", "QGMMA")])
def test_persistent_kernels_with_scales_of_rows(name: str, mma: str) -> None:
    report = persistent_report(BY_ROWS[name], mma)
    assert report["num_stages"] >= 4, report


def persistent_report(text: str, mma: str) -> dict[str, Any]:
    """One kind of tensor core, really warp specialized, nothing spilled while they work."""
    (launch,) = launches(text, "cuda:sm_90", 4096)
    binary = compiled(launch, "cuda:sm_90")
    report = sass_report(binary)
    assert set(report["mma"]) == {mma}, report
    assert report["num_warps"] == 12, "one producer and two consumers of four warps each"
    assert report["warp_specialized"], report
    assert report["spills_in_product_loops"] == 0, report
    assert report["shared_bytes"] <= GPUS["cuda:sm_90"].shared_bytes
    loops = disassemble(binary).product_loops()
    assert len(loops) == 2, "one for each consumer"
    for loop in loops:
        # Products are waited for before their operands' buffers go back (TRITON.md, section 2).
        waits = [line for line in loop.lines if "WARPGROUP.DEPBAR" in line]
        assert waits and all("gsb0, 0x0" in line for line in waits), waits
    return report


@pytest.mark.parametrize(
    ("name", "rows", "columns", "warps"),
    [("plain", 16, 128, 4), ("plain", 64, 64, 4), ("glu quantized", 64, 128, 8)],
)
def test_split_kernels_of_sm_90(name: str, rows: int, columns: int, warps: int) -> None:
    config = Config(rows, columns, 128, swap=True, slices=7, num_warps=warps, num_stages=3)
    with forced(config, rows):
        (launch,) = launches(PRODUCTS[name], "cuda:sm_90", rows)
    binary = compiled(launch, "cuda:sm_90")
    report = sass_report(binary)
    assert set(report["mma"]) == {"QGMMA"}, report
    assert report["spill_bytes"] == 0, report
    assert report["async_copies"] > 0, "loads run ahead of the products"
    assert report["occupancy"] >= 1
    assert disassemble(binary).count("ATOMG") == 2, "slices are counted, and the counter reset"


@pytest.mark.parametrize(
    ("name", "mma"), [("bf16", "HGMMA"), ("W8A16", "HGMMA"), ("i8 per row", "IGMMA"),
                      ("K = 300", "QGMMA")],
)  # fmt: skip
def test_tiled_kernels_of_sm_90(name: str, mma: str) -> None:
    for m in (8, 1000):
        report = sass_report(compiled(launches(OTHERS[name], "cuda:sm_90", m)[0], "cuda:sm_90"))
        assert set(report["mma"]) == {mma}, report
        assert report["spills_in_product_loops"] == 0, report


PACKED_GATES = [
    (PLAIN_BY_CODES["int4 with zero points"], "HGMMA", (16, 4096)),
    (PLAIN_BY_CODES["q6_k"], "HGMMA", (16,)),
    (INTEGERS["int4 with zero points"], "IGMMA", (16,)),
    (INTEGERS["q4_k"], "IGMMA", (4096,)),
]


@pytest.mark.parametrize("case", range(len(PACKED_GATES)))
def test_packed_codes_of_sm_90(case: int) -> None:
    """Codes pass from registers to the tensor cores: weights are the first factor.

    Zero points and scales are converted, the many more codes are not.
    """
    text, mma, rows = PACKED_GATES[case]
    for m in rows:
        (launch,) = launches(text, "cuda:sm_90", m)
        binary = compiled(launch, "cuda:sm_90")
        report = sass_report(binary)
        assert set(report["mma"]) == {mma}, report
        assert report["spills_in_product_loops"] == 0, report
        assert report["async_copies"] > 0, report
        assert all(loop.count("I2F") <= 16 for loop in disassemble(binary).product_loops())


@pytest.mark.parametrize("name", ["int4 with zero points", "q4_k"])
def test_packed_codes_for_one_row(name: str) -> None:
    """Scales that threads share are read once by each, codes 16 bytes at a time."""
    with forced(Config(1, gemv.COLUMNS, gemv.DEPTH, gemv=True), 1):
        (launch,) = launches(PLAIN_BY_CODES[name], "cuda:sm_90", 1)
    binary = compiled(launch, "cuda:sm_90")
    report = sass_report(binary)
    assert report["mma"] == {} and report["spill_bytes"] == 0, report
    assert report["occupancy"] >= 6, report
    sass = disassemble(binary)
    first, last = max(sass.ranges(), key=lambda place: place[1] - place[0])
    loop = Sass(sass.lines[first : last + 1])
    loads = [line for line in loop.lines if "LDG.E" in line]
    assert sum("LDG.E.128" in line for line in loads) == 5, "x and codes, one step of 32"
    assert len(loads) <= 9 and loop.count("BAR") == 0, loads


@pytest.mark.parametrize("name", ["bf16", "W8A16", "K = 300"])
def test_kernels_for_one_row(name: str) -> None:
    """Loads of 16 bytes straight to registers, enough of them, and nothing that waits for them."""
    with forced(Config(1, gemv.COLUMNS, gemv.DEPTH, gemv=True), 1):
        (launch,) = launches(OTHERS[name], "cuda:sm_90", 1)
    binary = compiled(launch, "cuda:sm_90")
    report = sass_report(binary)
    assert report["mma"] == {} and report["spill_bytes"] == 0, report
    assert report["occupancy"] >= 4, report
    sass = disassemble(binary)
    if name != "K = 300":  # whose rows are not aligned
        loads = [line for line in sass.lines if "LDG.E" in line]
        assert sum("LDG.E.128" in line for line in loads) >= len(loads) - 2, loads
    for first, last in sass.ranges():
        assert not any("BAR.SYNC" in line for line in sass.lines[first : last + 1])


@pytest.mark.parametrize("name", ROWS)
def test_row_kernels_of_sm_90(name: str) -> None:
    (launch,) = launches(ROWS[name], "cuda:sm_90", 1)
    report = sass_report(compiled(launch, "cuda:sm_90"))
    assert report["spill_bytes"] == 0 and report["registers"] <= 64, report


@pytest.mark.parametrize("target", [t for t in GPUS if t != "cuda:sm_90"])
def test_one_row_and_slices_compile(target: str) -> None:
    """Counters, barriers, and codes decoded to f32, on every other target."""
    depth = 128 if find_gpu(target).fp8_products else 64
    configs = {
        OTHERS["W8A16"]: Config(1, gemv.COLUMNS, gemv.DEPTH, gemv=True),
        PRODUCTS["plain"]: Config(16, 64, depth, swap=True, slices=4, num_stages=2),
    }
    for text, config in configs.items():
        with forced(config, config.rows):
            (launch,) = launches(text, target, config.rows)
        binary = compiled(launch, target)
        if "cubin" in binary.stages:
            assert sass_report(binary)["spill_bytes"] == 0, launch.name
        elif config.slices > 1:
            assert "global_atomic_add" in binary.text("amdgcn")


def test_gate_and_up_of_sm_80() -> None:
    """Decoding on the bits leaves registers for two totals."""
    (launch,) = launches(PRODUCTS["glu quantized"], "cuda:sm_80", 4096)
    report = sass_report(compiled(launch, "cuda:sm_80"))
    assert set(report["mma"]) == {"HMMA"} and report["spill_bytes"] == 0, report
