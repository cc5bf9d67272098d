"""Every family compiled for every target, and what must hold in the machine code of sm_90.

No GPU is needed: the Triton wheel carries the compilers and the disassembler.
"""

import os
import tempfile
from functools import lru_cache
from pathlib import Path

import pytest
from gpu_kernels import SILU_GLU, kernel_text, lowered, matmul_text, plain, quantized, segment_sizes

pytest.importorskip("triton")

from qfuse.lowering.triton.binary import Binary, compile_launch
from qfuse.lowering.triton.gpu import GPUS, find_gpu
from qfuse.lowering.triton.kernel import Launch
from qfuse.lowering.triton.sass import disassemble, sass_report

CACHE = Path(os.environ.get("QFUSE_CACHE_DIR", tempfile.gettempdir())) / "gpu"
TARGETS = ["cuda:sm_80", "cuda:sm_89", "cuda:sm_90", "cuda:sm_100", "hip:gfx942"]

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

ROWS = {
    "quantize": kernel_text("quantize", [plain(-1, 4096)], [quantized(-1, 4096)]),
    "rms_norm": kernel_text(
        "rms_norm",
        [plain(-1, 4096), plain(4096), plain(-1, 4096)],
        [plain(-1, 4096), quantized(-1, 4096), plain(-1, 4096)],
        'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", '
        + segment_sizes("result", [True] * 3),
    ),
    "glu": kernel_text(
        "glu",
        [plain(-1, 8192)],
        [quantized(-1, 4096)],
        'act = "gelu_tanh", ' + segment_sizes("result", [False, True]),
    ),
    "dequantize": kernel_text("dequantize", [quantized(-1, 4096)], [plain(-1, 4096)]),
    "gelu": kernel_text("gelu", [plain(-1, 4096)], [plain(-1, 4096)]),
    "rope": kernel_text(
        "rope", [plain(1, -1, 8, 128), *[plain(1, -1, 128)] * 2], [plain(1, -1, 8, 128)]
    ),
    "add": kernel_text("add", [plain(-1, 4096), plain(4096)], [plain(-1, 4096)]),
}


@lru_cache(maxsize=256)
def compiled(launch: Launch, target: str) -> Binary:
    return compile_launch(launch, find_gpu(target), CACHE)


def launches(text: str, target: str, m: int) -> tuple[Launch, ...]:
    return lowered(text, target).variant(m).launches


@pytest.mark.parametrize("name", PRODUCTS)
def test_persistent_kernels_of_sm_90(name: str) -> None:
    """FP8 tensor cores only, really warp specialized, nothing spilled while they work."""
    (launch,) = launches(PRODUCTS[name], "cuda:sm_90", 4096)
    binary = compiled(launch, "cuda:sm_90")
    report = sass_report(binary)
    assert set(report["mma"]) == {"QGMMA"}, report
    assert report["num_warps"] == 12, "one producer and two consumers of four warps each"
    assert report["warp_specialized"], report
    assert report["spills_in_product_loops"] == 0, report
    assert report["shared_bytes"] <= GPUS["cuda:sm_90"].shared_bytes
    assert report["num_stages"] >= (2 if name == "f32 and bf16" else 4), report
    loops = disassemble(binary).product_loops()
    assert len(loops) == 2, "one for each consumer"
    for loop in loops:
        # Products are waited for before their operands' buffers go back (TRITON.md, section 2).
        waits = [line for line in loop.lines if "WARPGROUP.DEPBAR" in line]
        assert waits and all("gsb0, 0x0" in line for line in waits), waits


@pytest.mark.parametrize("m", [1, 32, 64])
@pytest.mark.parametrize("name", ["plain", "glu quantized"])
def test_split_kernels_of_sm_90(name: str, m: int) -> None:
    product, reduction = launches(PRODUCTS[name], "cuda:sm_90", m)
    report = sass_report(compiled(product, "cuda:sm_90"))
    assert set(report["mma"]) == {"QGMMA"}, report
    assert report["spill_bytes"] == 0, report
    assert report["async_copies"] > 0, "loads run ahead of the products"
    assert report["occupancy"] >= 1
    report = sass_report(compiled(reduction, "cuda:sm_90"))
    assert report["mma"] == {} and report["spill_bytes"] == 0, report


@pytest.mark.parametrize(
    ("name", "mma"), [("bf16", "HGMMA"), ("W8A16", "HGMMA"), ("i8 per row", "IGMMA"),
                      ("K = 300", "QGMMA")],
)  # fmt: skip
def test_tiled_kernels_of_sm_90(name: str, mma: str) -> None:
    for m in (8, 1000):
        report = sass_report(compiled(launches(OTHERS[name], "cuda:sm_90", m)[0], "cuda:sm_90"))
        assert set(report["mma"]) == {mma}, report
        assert report["spills_in_product_loops"] == 0, report


@pytest.mark.parametrize("name", ROWS)
def test_row_kernels_of_sm_90(name: str) -> None:
    (launch,) = launches(ROWS[name], "cuda:sm_90", 1)
    report = sass_report(compiled(launch, "cuda:sm_90"))
    assert report["spill_bytes"] == 0 and report["registers"] <= 64, report


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "cuda:sm_90"])
def test_every_family_compiles(target: str) -> None:
    wanted = {"cuda:sm_80": "HMMA", "cuda:sm_89": "QMMA", "cuda:sm_100": "UTCQMMA"}
    for text in (PRODUCTS["glu quantized"], ROWS["quantize"], ROWS["rms_norm"], ROWS["glu"]):
        for m in (1, 4096):
            for launch in launches(text, target, m):
                binary = compiled(launch, target)
                assert int(binary.metadata["shared"]) <= GPUS[target].shared_bytes
                if "cubin" in binary.stages:
                    mma = sass_report(binary)["mma"]
                    assert set(mma) <= {wanted[target]}, (launch.name, mma)
                else:
                    assert "s_endpgm" in binary.text("amdgcn")
    product = launches(PRODUCTS["glu quantized"], target, 4096)[0]
    if target.startswith("cuda"):
        assert sass_report(compiled(product, target))["mma"]
    else:
        assert "v_mfma_f32" in compiled(product, target).text("amdgcn")
