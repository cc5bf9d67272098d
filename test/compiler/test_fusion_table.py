"""Which fusion fires for which scheme on which backend: the README's table, row by row.

A row is a small program of that scheme, with something for each fusion.  On the CPU it is compiled
with all of them and with none, which give the same bits; for a GPU it is fused and lowered to
Triton IR of sm_90, whose kernels `test/lowering/triton` compiles and interprets.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import Program, Value
from test_fusions_off import MODELS
from test_scheme_programs import WEIGHTS, X_SCHEMES, K, N, pack, quantize
from test_shared_expert import layer_of

from qfuse.compiler import pipeline
from qfuse.compiler.compilation import fuse
from qfuse.compiler.frontend.module import import_module
from qfuse.compiler.options import FUSIONS, CompileOptions
from qfuse.compiler.passes.convert_to_triton import ConvertToTriton
from qfuse.compiler.passes.outline import kernel_functions
from qfuse.dialects.bindings import ir
from qfuse.dialects.glu import Glu
from qfuse.dialects.registry import load_all
from qfuse.lowering.triton.embedding import TARGET

README = Path(__file__).parents[2] / "README.md"
GPU = "cuda:sm_90"

UNQUANTIZED = "bf16"

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
    "none, bf16; plain": UNQUANTIZED,
}
"""What weights and inputs are, for people, and the scheme in test_scheme_programs.py."""


PATTERNS = {
    "gate-up": {"gate-up"},
    "qkv": {"siblings"},
    "epilogue": {"epilogue-bias", "epilogue-activation", "epilogue-residual-binary"},
    "norm-quantize": {"norm-quantize"},
    "act-quantize": {"product-quantize"},
}
"""What fires in the program of a row, by fusion, the columns of the table."""

OF_EXPERTS = {
    "gate-up": {"gate-up"},
    "epilogue": {"combine-residual"},
    "norm-quantize": {"norm-quantize"},
    "act-quantize": {"product-quantize"},
    "combine": {"product-combine"},
    "shared-expert": {"shared-expert"},
}
EXPERTS = {
    "experts: FP8 E4M3, blocks 128x128; per token and 128": False,
    "the same; one scale, static": True,
}
"""Rows of layers of experts, and whether scales of inputs are static."""

FIRES, PLAIN = "CPU, GPU", "-"
WIDE = "no: a scale of all columns"
REASONS = {(WIDE, "act-quantize"): f"a group of {N} lies in several of the tiles"}
"""What the remark says."""


def wanted(scheme: str, fusion: str) -> str:
    """A cell: the backends on which the fusion fires, or why it does not."""
    if fusion not in ("norm-quantize", "act-quantize"):
        return FIRES
    if scheme not in X_SCHEMES:
        return PLAIN
    found = X_SCHEMES[scheme][1] == 0 and not scheme.endswith("static")
    is_wide = fusion == "act-quantize" and found
    return WIDE if is_wide else FIRES


def table() -> str:
    """As the README has it."""
    columns = list(PATTERNS | OF_EXPERTS)
    rows = [["weights; inputs", *columns], ["---"] * (len(columns) + 1)]
    for title, scheme in SCHEMES.items():
        cells = (wanted(scheme, fusion) if fusion in PATTERNS else "" for fusion in columns)
        rows.append([title, *cells])
    for title in EXPERTS:
        rows.append([title, *(FIRES if fusion in OF_EXPERTS else "" for fusion in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def test_readme_has_it() -> None:
    assert table() in README.read_text(), f"README.md should have\n{table()}"


def program_of(scheme: str) -> tuple[Program, list[Value]]:
    """A norm, a gated MLP up to the input of its last product, and two products, one with more."""
    p = Program()
    if scheme == UNQUANTIZED:
        weights = [p.parameter(N, K) for _ in range(4)]
    else:
        weights = [pack(p, WEIGHTS[scheme](seed)) for seed in range(4)]
    x = quantize(p, p.rms_norm(p.input(-1, K), p.parameter(K)), scheme)
    gate, up, q, k = (p.matmul(x, w) for w in weights)
    hidden = quantize(p, p.glu(Glu("silu"), gate, up), scheme)
    q = p.activate("silu", p.add(q, p.parameter(N), q.type))
    q = p.add(p.input(-1, N), q, q.type)
    return p, [p.dequantize(hidden) if hidden.type.quantized else hidden, q, k]


@pytest.mark.parametrize("scheme", SCHEMES.values())
def test_on_the_cpu(scheme: str) -> None:
    p, outputs = program_of(scheme)
    fused, plain = p.compile(outputs, FUSIONS), p.compile(outputs, ())
    hold(fused.program.report["remarks"], scheme)
    for m in (1, 4):
        inputs = p.inputs(m)
        for a, b in zip(fused(*inputs), plain(*inputs), strict=True):
            assert b.abs().max() > 0
            assert torch.equal(a, b)


@pytest.mark.parametrize("scheme", SCHEMES.values())
def test_for_a_gpu(scheme: str) -> None:
    p, outputs = program_of(scheme)
    with ir.Context():
        load_all()
        module = ir.Module.parse(p.text(outputs))
    hold(lowered_for_a_gpu(module), scheme)


@pytest.mark.parametrize("static", EXPERTS.values())
def test_experts_for_a_gpu(static: bool) -> None:
    """On the CPU, test_fusions_off.py runs a model with each of these off.

    Static scales there: test_shared_expert.py.
    """
    assert set(OF_EXPERTS) <= set(MODELS["deepseek_v3"])
    layer = layer_of(4, 2, 160, 72, act="silu", width=72, static=static)
    tokens = torch.export.Dim("tokens", min=1, max=64)
    arguments = torch.randn(5, 160).bfloat16(), torch.randn(5, 4)
    module = import_module(layer, arguments, ({0: tokens}, {0: tokens})).module
    remarks = lowered_for_a_gpu(module)
    fired = {r["pattern"] for r in remarks if r["outcome"] == "fired"}
    assert fired >= set().union(*OF_EXPERTS.values())


def lowered_for_a_gpu(module: ir.Module) -> list[dict[str, Any]]:
    """The remarks of all fusions; what is left to compute is Triton IR then."""
    fused = fuse(module, CompileOptions.make(GPU, blas="off"))
    lower = ConvertToTriton(GPU)
    pipeline.run(module, [pipeline.Stage(lower.name, lower)])
    functions = kernel_functions(module.operation)
    assert functions and all(TARGET in f.operation.attributes for f in functions)
    return [remark.to_json() for remark in fused.remarks]


def hold(remarks: Sequence[dict[str, Any]], scheme: str) -> None:
    """What the patterns of each fusion did is what the row says."""
    for fusion, patterns in PATTERNS.items():
        cell = wanted(scheme, fusion)
        about = [r for r in remarks if r["pattern"] in patterns]
        fired = {r["pattern"] for r in about if r["outcome"] == "fired"}
        assert fired == (patterns if cell == FIRES else set()), (fusion, about)
        reasons = [r["cause"] for r in about if r["outcome"] == "refused"]
        if reason := REASONS.get((cell, fusion)):
            assert any(reason in text for text in reasons), (fusion, reasons)
        else:
            assert not reasons, (fusion, reasons)
