"""The kernels of mixture-of-experts layers compiled for every architecture; no GPU is needed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from gpu_kernels import (
    SILU_GLU,
    biased_glu,
    kernel_text,
    lowered,
    matmul_text,
    plain,
    quantized,
    segment_sizes,
)

pytest.importorskip("triton")

from test_compile_matrix import hold_gates, ptxas
from test_group_combine_numerics import combine_text
from test_sass import compiled

from qfuse.dialects.glu import SWIGLU_OAI, Glu
from qfuse.dialects.types import Shaped
from qfuse.lowering.triton.gpu import GPUS
from qfuse.lowering.triton.sass import disassemble, sass_report

EXPERTS, CHOICES, HIDDEN, WIDTH = 128, 8, 2048, 768
"""Those of Qwen3-30B-A3B."""

INDPTR, TOKENS = plain(EXPERTS + 1, dtype="i32"), plain(-1, CHOICES, dtype="i32")


def gate_and_up(results: Sequence[Shaped]) -> str:
    w = quantized(EXPERTS, 2 * WIDTH, HIDDEN, block=(128, 128))
    return matmul_text(
        quantized(-1, HIDDEN, layout="col_major"),
        w,
        results,
        SILU_GLU,
        ["%v"],
        parts=[WIDTH, WIDTH],
        routing=[INDPTR, TOKENS],
    )


GATE_UP = gate_and_up([quantized(-1, CHOICES, WIDTH, layout="col_major")])
DOWN = matmul_text(
    quantized(-1, CHOICES, WIDTH, layout="col_major"),
    quantized(EXPERTS, HIDDEN, WIDTH, block=(128, 128)),
    [plain(-1, CHOICES, HIDDEN)],
    routing=[INDPTR],
)
DOWN_COMBINE = combine_text(
    quantized(-1, CHOICES, WIDTH, layout="col_major"),
    quantized(EXPERTS, HIDDEN, WIDTH, block=(128, 128)),
    plain(-1, HIDDEN),
    residual=True,
    choices=CHOICES,
)
ROUTE = kernel_text(
    "route",
    [plain(-1, CHOICES, dtype="i64")],
    [TOKENS, TOKENS, INDPTR],
    f"num_experts = {EXPERTS} : i64",
)
COMBINE = kernel_text(
    "combine",
    [plain(-1, CHOICES, HIDDEN), TOKENS, plain(-1, CHOICES, dtype="f32"), plain(-1, HIDDEN)],
    [plain(-1, HIDDEN)],
    segment_sizes("operand", [True] * 4),
)
MORE_TOKENS = plain(-1, CHOICES + 1, dtype="i32")
ROUTE_SHARED = kernel_text(
    "route",
    [plain(-1, CHOICES, dtype="i64")],
    [MORE_TOKENS, MORE_TOKENS, plain(EXPERTS + 2, dtype="i32")],
    f"num_experts = {EXPERTS} : i64, shared = 1 : i64",
)
COMBINE_SHARED = kernel_text(
    "combine",
    [
        plain(-1, CHOICES + 1, HIDDEN),
        MORE_TOKENS,
        plain(-1, CHOICES, dtype="f32"),
        plain(-1, HIDDEN),
    ],
    [plain(-1, HIDDEN)],
    segment_sizes("operand", [True] * 4),
)
GPT_OSS = matmul_text(
    quantized(-1, 2880, layout="col_major"),
    quantized(EXPERTS, 2944 + 2880, 2880, block=(128, 128)),  # up begins at a block boundary
    [quantized(-1, 4, 2880, layout="col_major")],
    biased_glu(Glu(SWIGLU_OAI, 7.0)),
    ["%v"],
    [(plain(EXPERTS, 2880), "[E,N]")] * 2,
    [2880, 2880],
    [INDPTR, plain(-1, 4, dtype="i32")],
)
"""Gate and up of gpt-oss-120b, were its weights FP8: biases, and a clamped GLU."""

FAMILIES = {
    "gate and up": ("fp8", GATE_UP, 64),
    "gate and up of gpt-oss": ("fp8", GPT_OSS, 64),
    "down and combine, a token": ("fp8", DOWN_COMBINE, 1),
    "down and combine, some": ("fp8", DOWN_COMBINE, 16),
    "down and combine, many": ("fp8", DOWN_COMBINE, 1000),
    "route": ("", ROUTE, 1000),
    "route, shared expert": ("", ROUTE_SHARED, 1000),
    "combine": ("", COMBINE, 1),
    "combine, shared expert": ("", COMBINE_SHARED, 1),
}


@pytest.mark.parametrize("target", [t for t in GPUS if t != "cuda:sm_90"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_compiles(family: str, target: str) -> None:
    kind, text, m = FAMILIES[family]
    product, *others = lowered(text, target).variant(m).launches
    hold_gates(product, GPUS[target], kind)
    for launch in others:  # what adds up has no product
        hold_gates(launch, GPUS[target], "")


@pytest.mark.parametrize("name", [name for name, (kind, *_) in FAMILIES.items() if not kind])
def test_row_kernels_of_sm_90(name: str) -> None:
    for variant in lowered(FAMILIES[name][1]).variants:
        report = sass_report(compiled(variant.launches[0], "cuda:sm_90"))
        assert report["spill_bytes"] == 0 and report["occupancy"] >= 2, report


DOWN_SHARED = matmul_text(
    quantized(-1, CHOICES + 1, WIDTH, layout="col_major"),
    quantized(EXPERTS + 1, HIDDEN, WIDTH, block=(128, 128)),
    [plain(-1, CHOICES + 1, HIDDEN)],
    routing=[plain(EXPERTS + 2, dtype="i32")],
)
"""With a shared expert there is an odd number of both."""

PRODUCTS = {
    "gate and up": GATE_UP,
    "gpt-oss": GPT_OSS,
    "down": DOWN,
    "down and combine": DOWN_COMBINE,
    "down, shared expert": DOWN_SHARED,
}


@pytest.mark.parametrize(
    ("name", "m"),
    [
        *(("gate and up", 8), ("gate and up", 65536), ("down", 64), ("down", 65536)),
        *(("down and combine", 1), ("down and combine", 16), ("down and combine", 8192)),
        ("down, shared expert", 64),
        *(("gpt-oss", 8), ("gpt-oss", 65536)),
    ],
)
def test_products_of_sm_90(name: str, m: int, tmp_path: Path) -> None:
    """FP8 tensor cores without waiting for each, loads ahead of them, nothing spilled."""
    text = PRODUCTS[name]
    launch, *others = lowered(text).variant(m).launches
    assert len(others) == (name == "down and combine" and m > 16)
    for other in others:
        assert sass_report(compiled(other, "cuda:sm_90"))["spill_bytes"] == 0
    binary = compiled(launch, "cuda:sm_90")
    report = sass_report(binary)
    assert set(report["mma"]) == {"QGMMA"}, report
    assert report["spill_bytes"] == 0, report
    assert "wgmma" not in ptxas(binary.text("ptx"), tmp_path)
    copies = [line for line in disassemble(binary).lines if "LDGSTS" in line]
    assert copies, "loads run ahead of the products"
    assert all(".128" in line for line in copies), "16 bytes at a time, also of x"


def test_what_a_decoding_step_starts() -> None:
    """One token: a block for each of its choices, no more, and its weights read once."""
    for text, m in ((GATE_UP, CHOICES), (DOWN, CHOICES), (DOWN_COMBINE, 1)):
        (launch,) = lowered(text).variant(m).launches
        assert launch.grid.groups == EXPERTS
        assert launch.grid.blocks(m) == CHOICES
        x, y, _ = launch.grid.of(m)
        assert 100 <= x * y <= 4 * GPUS["cuda:sm_90"].processors, launch.grid
