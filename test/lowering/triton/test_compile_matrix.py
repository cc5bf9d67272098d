"""Every family of kernels compiled for every architecture, and gates on the machine code.

test_sass.py looks closer at what sm_90 runs.  No GPU is needed.  `QFUSE_EXHAUSTIVE=1` compiles
every kernel of both files for every architecture and every range of M: minutes, by hand.
"""

import os
import re
import struct
import subprocess
from pathlib import Path

import pytest
from gpu_kernels import matmul_text, plain, quantized
from scheme_values import packed
from test_sass import INTEGERS, OTHERS, PLAIN_BY_CODES, PRODUCTS, ROWS, compiled, lowered, weight

from qfuse.lowering.triton.binary import Binary
from qfuse.lowering.triton.gpu import GPUS, Gpu
from qfuse.lowering.triton.kernel import Launch
from qfuse.lowering.triton.sass import sass_report

E5M2 = "f8E5M2"
PER_TOKEN = matmul_text(
    quantized(-1, 1024, block=(1, 1024)), quantized(768, 1024, block=(1, 1024)), [plain(-1, 768)]
)
BY_COLUMNS = matmul_text(
    quantized(-1, 1024, layout="col_major"), weight(768, 1024), [plain(-1, 768, dtype="f16")]
)
E5M2_PRODUCT = matmul_text(
    quantized(-1, 1024, dtype=E5M2),
    quantized(768, 1024, block=(128, 128), dtype=E5M2),
    [plain(-1, 768)],
)
E4M3_BY_E5M2 = matmul_text(
    quantized(-1, 1024, block=(1, 1024)),
    quantized(768, 1024, block=(1, 1024), dtype=E5M2),
    [plain(-1, 768)],
)

FAMILIES: dict[str, tuple[str, str, int]] = {
    "fp8, few rows": ("fp8", PRODUCTS["plain"], 16),
    "fp8, many rows": ("fp8", PRODUCTS["glu quantized"], 4096),
    "fp8, by a given scale": ("fp8", PRODUCTS["glu quantized by a given scale"], 4096),
    "bf16": ("bf16", OTHERS["bf16"], 4096),
    "W8A16": ("bf16", OTHERS["W8A16"], 4096),
    "i8": ("i8", OTHERS["i8 per row"], 4096),
    "int4": ("bf16", PLAIN_BY_CODES["int4 with zero points"], 4096),
    "q4_k by q8_1": ("i8", INTEGERS["q4_k"], 16),
    "rms_norm": ("", ROWS["rms_norm"], 1),
    "rms_norm in two formats": ("", ROWS["rms_norm in two formats"], 1),
    "rms_norm by given scales": ("", ROWS["rms_norm by given scales"], 1),
    "glu": ("", ROWS["glu"], 1),
    "glu by a given scale": ("", ROWS["glu by a given scale"], 1),
    "clamped glu": ("", ROWS["clamped glu"], 1),
    "dequantize q4_k": ("", ROWS["dequantize q4_k"], 1),
    "dequantize q6_k": ("", ROWS["dequantize q6_k"], 1),
    "rope": ("", ROWS["rope"], 1),
}
"""What is multiplied, the kernel, and a number of rows: one representative of each family."""

MORE = {
    "per token": ("fp8", PER_TOKEN),
    "by columns": ("fp8", BY_COLUMNS),
    "e5m2": ("fp8", E5M2_PRODUCT),
    "e4m3 by e5m2": ("f16", E4M3_BY_E5M2),
    **{name: ("fp8", text) for name, text in PRODUCTS.items()},
    "K = 300": ("fp8", OTHERS["K = 300"]),
    **{name: (kind, text) for name, (kind, text, _) in FAMILIES.items() if kind != "fp8"},
    **{name: ("", text) for name, text in ROWS.items()},
    **{name: ("bf16", text) for name, text in PLAIN_BY_CODES.items()},
    **{f"{name} by q8_1": ("i8", text) for name, text in INTEGERS.items()},
    "q6_k by q8_1": (
        "f16",
        matmul_text(
            packed(-1, 2048, packing="q8_1"), packed(768, 2048, packing="q6_k"), [plain(-1, 768)]
        ),
    ),
}

MMA = {
    "sm_80": {"f16": "HMMA", "fp8": "HMMA", "bf16": "HMMA", "i8": "IMMA"},
    "sm_89": {"f16": "HMMA", "fp8": "QMMA", "bf16": "HMMA", "i8": "IMMA"},
    "sm_90": {"f16": "HGMMA", "fp8": "QGMMA", "bf16": "HGMMA", "i8": "IGMMA"},
    "sm_100": {"f16": "UTCHMMA", "fp8": "UTCQMMA", "bf16": "UTCHMMA", "i8": "UTCIMMA"},
    "gfx942": {"f16": "f16", "fp8": "f16", "bf16": "bf16", "i8": "i8"},
    "gfx950": {"f16": "f16", "fp8": "f8f6f4", "bf16": "bf16", "i8": "i8"},
}
"""The matrix instructions that a kind of product uses: those for FP8 where there are some."""

# EF_AMDGPU_MACH of the ELF header (LLVM, BinaryFormat/ELF.h).
AMD_MACHINES = {"gfx942": 0x4C, "gfx950": 0x4F}


@pytest.mark.parametrize("target", [t for t in GPUS if t != "cuda:sm_90"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_compiles(family: str, target: str) -> None:
    kind, text, m = FAMILIES[family]
    for launch in lowered(text, target).variant(m).launches:
        hold_gates(launch, GPUS[target], kind)


@pytest.mark.skipif(not os.environ.get("QFUSE_EXHAUSTIVE"), reason="minutes; by hand")
@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("name", MORE)
def test_every_variant_compiles(name: str, target: str) -> None:
    kind, text = MORE[name]
    for variant in lowered(text, target).variants:
        for launch in variant.launches:
            hold_gates(launch, GPUS[target], kind)


def hold_gates(launch: Launch, gpu: Gpu, kind: str) -> None:
    """Right machine, right matrix instructions, nothing spilled, and it fits."""
    binary = compiled(launch, str(gpu))
    wanted = {MMA[gpu.arch][kind]} if kind and '"tt.dot"' in launch.text else set()
    assert int(binary.metadata["shared"]) <= gpu.shared_bytes
    if gpu.is_cuda:
        assert cubin_capability(binary.stages["cubin"]) == gpu.capability
        report = sass_report(binary)
        assert set(report["mma"]) == wanted, report
        assert report["spills_in_product_loops"] == 0, report
        assert kind or report["spill_bytes"] == 0, report
        assert report["occupancy"] >= 1 and report["registers"] <= 255, report
    else:
        assert amd_machine(binary.stages["hsaco"]) == AMD_MACHINES[gpu.arch]
        report = amd_report(binary)
        assert report["mma"] == wanted, report
        assert report["vgpr_spill_count"] == 0 and report["private_segment_fixed_size"] == 0
        assert report["group_segment_fixed_size"] <= gpu.shared_bytes
        # 512 registers, from which waves of 64 lanes are cut (CDNA3 ISA, 3.6.4).
        assert report["vgpr_count"] <= 512, report


def cubin_capability(code: bytes) -> int:
    """90 for sm_90, from the flags of the ELF header: the low byte in old ones, else the second."""
    (flags,) = struct.unpack_from("<I", code, 48)
    return flags >> 8 & 0xFF if code[8] == 8 else flags & 0xFF


def amd_machine(code: bytes) -> int:
    (flags,) = struct.unpack_from("<I", code, 48)
    return flags & 0xFF


def amd_report(binary: Binary) -> dict[str, object]:
    """What the metadata of a code object says, and what its matrix instructions multiply."""
    text = binary.text("amdgcn")
    assert "s_endpgm" in text
    numbers = re.findall(r"\.(\w+_(?:count|size)):\s+(\d+)", text)
    mma = re.findall(r"\bv_mfma_(?:f32|i32)_\d+x\d+x\d+_(\w+)", text)
    return {**{name: int(value) for name, value in numbers}, "mma": set(mma)}


SHAPES = [
    matmul_text(quantized(-1, k), weight(n, k), [plain(-1, n)])
    for n, k in ((96, 512), (1024, 7168), (7168, 2048))
]


@pytest.mark.parametrize("target", GPUS)
def test_products_keep_their_type(target: str) -> None:
    """FP8 is multiplied as FP8 wherever the architecture can.

    sm_90 decodes the codes and uses HMMA, at half the speed or less, where the attribute is
    missing or where the first factor has fewer than the 64 rows that wgmma takes.
    """
    gpu = GPUS[target]
    seen = 0
    for text in (*SHAPES, PRODUCTS["glu quantized"], E5M2_PRODUCT, OTHERS["K = 300"]):
        stored = "f8E5M2" if text is E5M2_PRODUCT else "f8E4M3FN"
        for variant in lowered(text, target).variants:
            for launch in variant.launches:
                for line in re.findall(r'"tt\.dot".*', launch.text):
                    factors = re.search(r": \(tensor<(\d+)x\d+x(\w+)>, tensor<\d+x\d+x(\w+)>", line)
                    assert factors is not None and factors[2] == factors[3], line
                    assert factors[2] == (stored if stored in gpu.fp8_products else "f16"), line
                    if stored in gpu.fp8_products:
                        assert "maxNumImpreciseAcc = 1073741824" in line
                    if gpu.arch in ("sm_90", "sm_100"):
                        assert int(factors[1]) >= 64 and launch.num_warps % 4 == 0, launch.name
                    seen += 1
    assert seen >= 12, "every shape has products for few rows and for many"


@pytest.mark.parametrize(("name", "m"), [("plain", 16), ("plain", 4096), ("glu quantized", 4096)])
def test_ptxas_serializes_no_products_of_sm_90(name: str, m: int, tmp_path: Path) -> None:
    """It warns (C7510, C7514 and others) where it has to wait after each wgmma."""
    for launch in lowered(PRODUCTS[name], "cuda:sm_90").variant(m).launches:
        binary = compiled(launch, "cuda:sm_90")
        said = ptxas(binary.text("ptx"), tmp_path)
        assert "Compiling entry function" in said, "ptxas has looked at it"
        assert "wgmma" not in said and "warning" not in said.lower(), said
        assert re.search(r"\bC\d{4}\b", said) is None, said


def test_ptxas_warns_of_serialized_products(tmp_path: Path) -> None:
    """The gate above can fail: a sum that is touched while wgmma works on it."""
    (launch,) = lowered(PRODUCTS["plain"], "cuda:sm_90").variant(4096).launches
    text = compiled(launch, "cuda:sm_90").text("ptx")
    waits = re.sub(r"wgmma\.wait_group\.sync\.aligned\s+0;", "", text)
    assert waits != text
    assert re.search(r"\bC75\d\d\b|serializ", ptxas(waits, tmp_path))


def ptxas(text: str, directory: Path) -> str:
    """What the assembler says, called as Triton does."""
    from triton.backends.nvidia.compiler import get_ptxas

    path = directory / "kernel.ptx"
    path.write_text(text)
    command = [get_ptxas(90).path, "-v", "--fmad=false", "--gpu-name=sm_90a", str(path)]
    run = subprocess.run(
        [*command, "-o", str(directory / "kernel.cubin")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stderr + run.stdout
