"""Which fusion fires for which scheme on which backend: the README's table, cell by cell.

A cell is a small program of that scheme.  On the CPU it is compiled with the fusion and without,
which give the same bits; for a GPU it is fused and lowered to Triton IR of sm_90, whose kernels
`test/lowering/triton` compiles and interprets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import Program, Value
from test_fusions_off import MODELS, PATTERNS
from test_scheme_programs import WEIGHTS, X_SCHEMES, K, N, gate_up, pack, quantize

from qfuse.compiler import pipeline
from qfuse.compiler.compilation import fuse
from qfuse.compiler.frontend.huggingface import import_checkpoint
from qfuse.compiler.options import FUSIONS, CompileOptions
from qfuse.compiler.passes.convert_to_triton import ConvertToTriton
from qfuse.compiler.passes.outline import kernel_functions
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.registry import load_all
from qfuse.lowering.triton.embedding import TARGET

README = Path(__file__).parents[2] / "README.md"

SCHEMES = {
    "FP8 E4M3, blocks 128x128; per token and 128": "e4m3 blocks",
    "the same, scales e8m0": "e4m3 blocks of e8m0",
    "FP8 E4M3, per channel; per token": "e4m3 channel",
    "FP8 E4M3, per channel; one scale, static": "e4m3 channel, static",
    "FP8 E5M2, per channel; E4M3 per token": "e5m2 channel",
    "INT8, per channel; per token": "i8 channel",
    "INT8, per channel; plain": "i8 channel, W8A16",
    "INT4, groups of 32; plain": "int4 per 32",
    "INT4, groups of 64; plain": "int4 per 64",
    "INT4, groups of 128; plain": "int4 per 128",
    "INT4, groups of 32 with zero points; plain": "int4 per 32, zeros",
    "INT4, groups of 128 with zero points; plain": "int4 per 128, zeros",
    "INT4, groups of 32; q8_1": "int4 per 32, W4A8",
    "Q8_0; q8_1": "q8_0",
    "Q4_0; q8_1": "q4_0",
    "Q4_K; q8_1": "q4_k",
    "Q6_K; q8_1": "q6_k",
    "MXFP4; plain": "mxfp4",
}
"""What weights and inputs are, for people, and the scheme in test_scheme_programs.py."""


Built = tuple[Program, list[Value]]


def gated(scheme: str) -> Built:
    p, y = gate_up(scheme)
    return p, [y]


def siblings(scheme: str) -> Built:
    p = Program()
    x = quantize(p, p.input(-1, K), scheme)
    weights = [pack(p, WEIGHTS[scheme](seed)) for seed in (1, 2)]
    return p, [p.matmul(x, w) for w in weights]


def with_epilogue(scheme: str) -> Built:
    p = Program()
    y = p.matmul(quantize(p, p.input(-1, K), scheme), pack(p, WEIGHTS[scheme](1)))
    y = p.activate("silu", p.add(y, p.parameter(N), y.type))
    return p, [p.add(p.input(-1, N), y, y.type)]


def normed(scheme: str) -> Built:
    p = Program()
    x = p.rms_norm(p.input(-1, K), p.parameter(K))
    return p, [p.matmul(quantize(p, x, scheme), pack(p, WEIGHTS[scheme](1)))]


def gated_and_quantized(scheme: str) -> Built:
    p, y = gate_up(scheme)
    q = quantize(p, y, scheme)
    return p, [p.dequantize(q) if q.type.quantized else q]


@dataclass(frozen=True)
class Column:
    """A fusion: its program for a scheme, the patterns that fire there, what else must be on."""

    program: Callable[[str], Built]
    patterns: Sequence[str]
    also: Sequence[str] = ()


STAGES = ["epilogue-activation", "epilogue-bias", "epilogue-residual-binary"]
COLUMNS = {
    "gate-up": Column(gated, ["gate-up"]),
    "qkv": Column(siblings, ["siblings"]),
    "epilogue": Column(with_epilogue, STAGES),
    "norm-quantize": Column(normed, ["norm-quantize"]),
    "act-quantize": Column(gated_and_quantized, ["product-quantize"], also=["gate-up"]),
}
OF_EXPERTS = ("combine", "shared-expert")
EXPERTS = "experts: FP8 E4M3, blocks 128x128; per token and 128"

FIRES, ON_CPU, PLAIN = "CPU, GPU", "CPU", "-"
WIDE, GIVEN = "no: a scale of all columns", "no: static"
REASONS = {
    (WIDE, "act-quantize"): f"a group of {N} lies in several of the tiles",
    (GIVEN, "act-quantize"): "the scale is given beforehand",
    (GIVEN, "norm-quantize"): "",
}
"""What the remark says; a norm looks at no such quantization."""

NO_KERNEL = {"e5m2 channel": "multiplies f8E4M3FN by f8E5M2; both operands must store one type"}
"""What has no GPU kernel, fused or not, and what compiling says."""


def wanted(scheme: str, fusion: str) -> str:
    """A cell: the backends on which the fusion fires, or why it does not."""
    fires = ON_CPU if scheme in NO_KERNEL else FIRES
    if fusion not in ("norm-quantize", "act-quantize"):
        return fires
    if scheme not in X_SCHEMES:
        return PLAIN
    if scheme.endswith("static"):
        return GIVEN
    is_wide = fusion == "act-quantize" and X_SCHEMES[scheme][1] == 0
    return WIDE if is_wide else fires


def table() -> str:
    """As the README has it."""
    columns = [*COLUMNS, *OF_EXPERTS]
    rows = [["weights; inputs", *columns], ["---"] * (len(columns) + 1)]
    for title, scheme in SCHEMES.items():
        rows.append([title, *(wanted(scheme, fusion) for fusion in COLUMNS), "", ""])
    rows.append([EXPERTS, *("" if fusion == "qkv" else FIRES for fusion in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_readme_has_it() -> None:
    assert table() in README.read_text(), f"README.md should have\n{table()}"


CELLS = [(scheme, fusion) for scheme in SCHEMES.values() for fusion in COLUMNS]


@pytest.mark.parametrize(("scheme", "fusion"), CELLS)
def test_on_the_cpu(scheme: str, fusion: str) -> None:
    column = COLUMNS[fusion]
    p, outputs = column.program(scheme)
    fused, plain = p.compile(outputs, [fusion, *column.also]), p.compile(outputs, column.also)
    hold(fused.program.report["remarks"], scheme, fusion)
    for m in (1, 4):
        inputs = p.inputs(m)
        for a, b in zip(fused(*inputs), plain(*inputs), strict=True):
            assert b.abs().max() > 0
            assert torch.equal(a, b)


@pytest.mark.parametrize(("scheme", "fusion"), CELLS)
def test_for_a_gpu(scheme: str, fusion: str) -> None:
    column = COLUMNS[fusion]
    p, outputs = column.program(scheme)
    with ir.Context():
        load_all()
        module = ir.Module.parse(p.text(outputs))
    if scheme in NO_KERNEL:
        with pytest.raises(QfuseError, match=NO_KERNEL[scheme]):
            lowered_for_a_gpu(module, [fusion, *column.also])
    else:
        hold(lowered_for_a_gpu(module, [fusion, *column.also]), scheme, fusion)


def test_experts_for_a_gpu(checkpoints: Callable[..., Path]) -> None:
    """On the CPU, test_fusions_off.py runs the same model with each of these off."""
    columns = [fusion for fusion in (*COLUMNS, *OF_EXPERTS) if fusion != "qkv"]
    assert set(columns) <= set(MODELS["deepseek_v3"])
    path = checkpoints(architecture="deepseek_v3", layers=2)
    remarks = lowered_for_a_gpu(import_checkpoint(path, max_len=16).module, columns)
    fired = {r["pattern"] for r in remarks if r["outcome"] == "fired"}
    assert all(fired >= set(PATTERNS[fusion]) for fusion in columns)


def lowered_for_a_gpu(module: ir.Module, fusions: Sequence[str]) -> list[dict[str, Any]]:
    """The remarks of these fusions; what is left to compute is Triton IR then."""
    off = [fusion for fusion in FUSIONS if fusion not in fusions]
    fused = fuse(module, CompileOptions.make("cuda:sm_90", off, blas="off"))
    lower = ConvertToTriton("cuda:sm_90")
    pipeline.run(module, [pipeline.Stage(lower.name, lower)])
    functions = kernel_functions(module.operation)
    assert functions and all(TARGET in f.operation.attributes for f in functions)
    return [remark.to_json() for remark in fused.remarks]


def hold(remarks: Sequence[dict[str, Any]], scheme: str, fusion: str) -> None:
    """What the patterns of a fusion did is what the table says."""
    patterns, cell = COLUMNS[fusion].patterns, wanted(scheme, fusion)
    about = [r for r in remarks if r["pattern"] in patterns]
    fired = sorted(r["pattern"] for r in about if r["outcome"] == "fired")
    assert fired == (sorted(patterns) if cell in (FIRES, ON_CPU) else []), about
    reasons = [r["cause"] for r in about if r["outcome"] == "refused"]
    if reason := REASONS.get((cell, fusion), ""):
        assert any(reason in text for text in reasons), reasons
    else:
        assert not reasons
