"""Products by a library, chosen by the number of rows, in programs for a GPU that is not there.

Kernels are interpreted and torch runs on the host (gpu_fakes.py); the calls that torch has for
GPUs alone are stood in for by their definition, with the checks of ScaledBlas.cpp.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from gpu_fakes import FakeGpu, InterpretingDriver, as_binary

from qfuse.compiler import compilation, pipeline
from qfuse.compiler.block_scaled import dequantize_blocks, quantize_blocks
from qfuse.compiler.dispatch import cost
from qfuse.compiler.options import CompileOptions
from qfuse.compiler.passes.convert_to_blas import ConvertToBlas
from qfuse.compiler.passes.dispatch import Dispatch
from qfuse.compiler.plan import build_plan
from qfuse.compiler.runtime import library
from qfuse.compiler.runtime.plan import ChoiceStep, Plan
from qfuse.compiler.runtime.program import Program
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import load_all
from qfuse.lowering.measured_call import MeasuredCall
from qfuse.lowering.triton.embedding import read_kernel
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel
from qfuse.lowering.triton.launcher import LoadedGpuKernel
from qfuse.lowering.triton.tile_entry import about
from qfuse.lowering.triton.tile_table import Table, using
from qfuse.tools.bench.row_cases import RowCase

N, K = 96, 256
TARGET = "cuda:sm_90"


def scheme(block: str, layout: str = "row_major") -> str:
    return f'#qfuse.scheme<array<i64: {block}>, f32, "none", "none", "{layout}">'


def product(x: str, w: str, extra: str = "") -> str:
    """A matmul of %x and %w of these types, with a bias %b where `extra` is its type."""
    operands = "%x_q, %w" + (", %b" if extra else "")
    types = ", ".join(filter(None, (x, w, extra)))
    arguments, result = ("%acc: f32, %v: f32", "%s") if extra else ("%acc: f32", "%acc")
    add = "%s = arith.addf %acc, %v : f32" if extra else ""
    maps, count = ('"[N]"', 1) if extra else ("", 0)
    return f"""
      %y = "qfuse.matmul"({operands}) ({{
      ^bb0({arguments}):
        {add}
        "qfuse.yield"({result}) : (f32) -> ()
      }}) {{parts = array<i64: {N}>, maps = [{maps}],
          operandSegmentSizes = array<i32: 1, 1, {count}, 0, 0, 0, 0, 0>,
          resultSegmentSizes = array<i32: 1, 0, 0, 0>}} : ({types}) -> tensor<?x{N}xbf16>"""


def quantized(dtype: str, x_block: str, w_block: str, layout: str) -> tuple[str, str, str, str]:
    """(quantization of %x, the product, types of the weight and its scales)."""
    x = f"!qfuse.qtensor<tensor<?x{K}x{dtype}>, {scheme(x_block, layout)}>"
    w = f"!qfuse.qtensor<tensor<{N}x{K}x{dtype}>, {scheme(w_block)}>"
    rows, columns = (-(-n // int(b)) for n, b in zip((N, K), w_block.split(", "), strict=True))
    scales = f"tensor<{rows}x{columns}xf32>"
    body = f"""
      %w = "qfuse.pack"(%codes, %scale) : (tensor<{N}x{K}x{dtype}>, {scales}) -> {w}
      %x_q = "qfuse.quantize"(%x) : (tensor<?x{K}xbf16>) -> {x}""" + product(x, w)
    return body, f"tensor<{N}x{K}x{dtype}>", scales, dtype


def main(body: str, arguments: Sequence[tuple[str, str]]) -> str:
    given = [
        ("x", f"tensor<?x{K}xbf16>", "input"),
        *((name, type_, "parameter") for name, type_ in arguments),
    ]
    listed = ", ".join(f'%{n}: {t} {{qfuse.kind = "{k}", qfuse.name = "{n}"}}' for n, t, k in given)
    result = f'tensor<?x{N}xbf16> {{qfuse.kind = "output", qfuse.name = "y"}}'
    return f"func.func @main({listed}) -> ({result}) {{{body}\n  return %y : tensor<?x{N}xbf16>\n}}"


def compiled(text: str, parameters: dict[str, torch.Tensor], blas: str = "on") -> Program:
    """A program of one product, dispatched; its kernels are Triton IR."""
    with ir.Context() as context, ir.Location.unknown():
        load_all()
        module = ir.Module.parse(text)
        stages = [pipeline.Stage(p.name, p) for p in (Dispatch(TARGET, blas), ConvertToBlas())]
        pipeline.run(module, stages)
        options = CompileOptions.make(TARGET)
        functions = compilation.lower(module, options)
        kernels = compilation.compile_kernels(functions, options)
        with context:
            plan = build_plan(module, kernels)
    program = Program.prepare(plan, parameters, kernels, target=TARGET)
    driver = InterpretingDriver(
        [k for k in kernels.values() if isinstance(k, GpuKernel)], program.plan
    )
    program.load_kernel = lambda kernel: LoadedGpuKernel(kernel, driver)
    return program


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels stay Triton IR; the library's calls are defined below, and there."""

    def to_binaries(functions: Sequence[Any], *_: Any) -> dict[str, GpuKernel]:
        return {f.name.value: as_binary(read_kernel(f)) for f in functions}

    monkeypatch.setattr(compilation, "to_binaries", to_binaries)
    monkeypatch.setattr(library, "unavailable", lambda call, place: None)
    monkeypatch.setattr(torch.nn.functional, "scaled_mm", scaled_mm)
    monkeypatch.setattr(torch, "_int_mm", int_mm)


def scaled_mm(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_recipe_a: Any,
    scale_b: torch.Tensor,
    scale_recipe_b: Any,
    bias: torch.Tensor | None = None,
    output_dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """What cublasLt computes, after the checks of ScaledBlas.cpp."""
    (m, k), n = mat_a.shape, mat_b.shape[1]
    assert mat_a.is_contiguous() and mat_b.t().is_contiguous()
    assert k % 16 == 0 and n % 16 == 0
    recipe = torch.nn.functional.ScalingType
    if scale_recipe_a == recipe.RowWise:
        assert scale_a.shape == (m, 1) and scale_b.shape == (1, n) and scale_b.stride(1) == 1
        spread_a, spread_b = scale_a, scale_b.t()
    else:
        assert (scale_recipe_a, scale_recipe_b) == (recipe.BlockWise1x128, recipe.BlockWise128x128)
        groups = -(-k // 128)
        padded = -(-groups // 4) * 4
        assert scale_a.shape == (m, groups) and scale_a.stride() == (1, m)
        assert scale_b.shape == (padded, -(-n // 128)) and scale_b.stride(0) == 1
        assert scale_b.stride(1) == padded or scale_b.shape[1] == 1
        spread_a = scale_a.repeat_interleave(128, 1)[:, :k]
        spread_b = scale_b[:groups].t().repeat_interleave(128, 0)[:n]
        spread_b = spread_b.repeat_interleave(128, 1)[:, :k]
    y = (mat_a.float() * spread_a) @ (mat_b.t().float() * spread_b).t()
    return (y if bias is None else y + bias.float()).to(output_dtype)


def int_mm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    assert x.shape[0] > 16 and x.shape[1] % 4 == 0 and w.shape[1] % 4 == 0
    return x.int() @ w.int()


def cases() -> Iterator[tuple[str, str, dict[str, torch.Tensor], torch.Tensor]]:
    """(call, program, parameters, the weight in f32)."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(N, K, generator=generator)
    bias = torch.randn(N, generator=generator).bfloat16()
    body = product(f"tensor<?x{K}xbf16>", f"tensor<{N}x{K}xbf16>", f"tensor<{N}xbf16>")
    body = body.replace("%x_q", "%x")
    weight = dense.bfloat16()
    text = main(body, [("w", f"tensor<{N}x{K}xbf16>"), ("b", f"tensor<{N}xbf16>")])
    yield "mm", text, {"w": weight, "b": bias}, weight.float()

    for call, block, layout in (
        ("scaled_mm_blocks", (128, 128), "col_major"),
        ("scaled_mm_rows", (1, K), "row_major"),
    ):
        codes, scale = quantize_blocks(dense, block)
        x_block = f"1, {block[1]}"
        body, w_type, s_type, _ = quantized("f8E4M3FN", x_block, "{}, {}".format(*block), layout)
        text = main(body, [("codes", w_type), ("scale", s_type)])
        parameters = {"codes": codes, "scale": scale}
        yield call, text, parameters, dequantize_blocks(codes, scale, block)

    scale = dense.abs().amax(1, keepdim=True) / 127
    codes = (dense / scale).round().to(torch.int8)
    body, w_type, s_type, _ = quantized("i8", f"1, {K}", f"1, {K}", "row_major")
    text = main(body, [("codes", w_type), ("scale", s_type)])
    yield "int_mm", text, {"codes": codes, "scale": scale}, codes.float() * scale


CASES = {call: (text, parameters, weight) for call, text, parameters, weight in cases()}


@pytest.mark.parametrize("call", CASES)
def test_rows_agree_whatever_multiplies_them(call: str) -> None:
    """Every M from 1 to 40, across the borders of dispatch and of tiles."""
    text, parameters, weight = CASES[call]
    program = compiled(text, parameters)
    (choice,) = (s for s in program.plan.steps if isinstance(s, ChoiceStep))
    assert choice.call == call
    session = Session(program, device=FakeGpu(), poison=True)
    x = torch.randn(40, K, generator=torch.Generator().manual_seed(1)).bfloat16()
    bias = parameters.get("b", torch.zeros(N)).float()
    expected = x.float() @ weight.t() + bias
    scale = expected.abs().max()
    used = set()
    for m in range(1, 41):
        (y,) = session(x[:m].clone())
        # x is quantized to 8 bits (3 of mantissa for E4M3: 6 % at most, 2 % in the mean of an
        # element, averaged over K), the result rounded to bf16
        assert (y.float() - expected[:m]).abs().max() <= 0.03 * scale, m
        source = session.source(x[:m].clone())
        used.add("library" if f"library_{call}" in source else "kernel")
        assert ("library" in source) == choice.serves(m), source
        # no copy for the library's sake: scales lie as the quantization wrote them
        assert "copy" not in session.profile(x[:m].clone()).by_kind
        if m == 17:
            first = y
        elif m > 17:
            # one backend and one activation's codes: rows differ by the order of sums alone
            assert torch.allclose(y[:17].float(), first.float(), atol=0.02 * float(scale))
    assert used == {"library", "kernel"}


def test_a_measured_table_says_what_runs() -> None:
    """The library up to sixteen rows and our kernel from there on, whatever is estimated."""
    text, parameters, _ = CASES["mm"]
    gpu = find_gpu(TARGET)
    problem = RowCase(N, K, "bf16").problem(gpu)
    calls = tuple(
        MeasuredCall(**about(problem, gpu, rows), call="mm", m=(8,), ours=(2e-4,), theirs=(theirs,))
        for rows, theirs in (((2, 16), 1e-4), ((17, None), 3e-4))
    )
    with using(Table((), calls)):
        program = compiled(text, parameters, "auto")
    (choice,) = (s for s in program.plan.steps if isinstance(s, ChoiceStep))
    assert choice.ranges == ((2, 16),)
    session = Session(program, device=FakeGpu(), poison=True)
    for m, by_library in ((1, False), (2, True), (16, True), (17, False), (40, False)):
        x = torch.randn(m, K, generator=torch.Generator().manual_seed(m)).bfloat16()
        session(x)
        assert ("library_mm" in session.source(x)) is by_library, m


def scaled(text: str, number: float) -> str:
    """A program whose product is multiplied by a constant, before the bias where it has one."""
    times = f"%c = arith.constant {number:e} : f32\n%m = arith.mulf %acc, %c : f32\n"
    if "arith.addf" in text:
        return text.replace("%s = arith.addf %acc,", times + "%s = arith.addf %m,")
    return text.replace('"qfuse.yield"(%acc)', times + '"qfuse.yield"(%m)')


@pytest.mark.parametrize("call", [call for call in CASES if call != "int_mm"])
def test_a_scale_goes_with_the_call(call: str) -> None:
    """In the same launches; a power of two changes no bits but the exponent's."""
    text, parameters, _ = CASES[call]
    if "b" in parameters:
        parameters = {**parameters, "b": torch.zeros(N).bfloat16()}
    usual, times = compiled(text, parameters), compiled(scaled(text, 0.125), parameters)
    ours = compiled(scaled(text, 0.125), parameters, "off")
    x = torch.randn(40, K, generator=torch.Generator().manual_seed(1)).bfloat16()
    sessions = [Session(p, device=FakeGpu(), poison=True) for p in (usual, times, ours)]
    for m in (2, 17, 40):
        plain_y, (y,), (kernel_y,) = (s(x[:m].clone()) for s in sessions)
        assert torch.equal(y, plain_y[0] * 0.125), m
        assert f"library_{call}" in sessions[1].source(x[:m].clone())
        profiles = [s.profile(x[:m].clone()) for s in sessions[:2]]
        assert profiles[0].launches == profiles[1].launches
        # sums in another order
        scale = float(kernel_y.abs().max())
        assert torch.allclose(y.float(), kernel_y.float(), rtol=2**-7, atol=0.01 * scale)


def test_a_scale_of_a_product_with_a_bias() -> None:
    """act(scale * product + bias) by the library's epilogue."""
    generator = torch.Generator().manual_seed(3)
    x, w = (torch.randn(n, K, generator=generator).bfloat16() for n in (24, N))
    bias = torch.randn(N, generator=generator).bfloat16()
    exact = 0.3 * (x.double() @ w.double().t())
    for b, activation, act in (
        (None, "none", lambda y: y),
        (None, "relu", torch.relu),
        (bias, "none", lambda y: y),
        (bias, "gelu_tanh", lambda y: torch.nn.functional.gelu(y, approximate="tanh")),
    ):
        expected = act(exact + (0 if b is None else b.double()))
        y = library.mm(x, w, b, activation, 0.3)
        # one rounding to bf16 (2^-9), of sums in f32; torch on the host rounds before gelu, too
        error = (y.double() - expected).abs().max() / expected.abs().max()
        assert error <= 2**-7, (activation, float(error))


@pytest.mark.parametrize("call", CASES)
def test_a_choice_survives_a_file(call: str, tmp_path: Any) -> None:
    text, parameters, _ = CASES[call]
    program = compiled(text, parameters)
    assert Plan.from_json(program.plan.to_json()) == program.plan
    program.save(tmp_path / "model.qfuse")
    loaded = Program.load(tmp_path / "model.qfuse")
    assert loaded.plan == program.plan


def test_a_library_without_the_call_leaves_it_to_the_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    text, parameters, _ = CASES["scaled_mm_blocks"]
    program = compiled(text, parameters)
    monkeypatch.setattr(library, "unavailable", lambda call, place: "this torch has none")
    library.remark_unavailable.cache_clear()
    session = Session(program, device=FakeGpu())
    x = torch.randn(24, K).bfloat16()
    with caplog.at_level(logging.WARNING, logger="qfuse"):
        (found,) = session(x)
        session(x)
    assert "library" not in session.source(x)
    (record,) = caplog.records
    assert "no library call scaled_mm_blocks: this torch has none" in record.message
    monkeypatch.setattr(library, "unavailable", lambda call, place: None)
    (expected,) = Session(program, device=FakeGpu())(x)
    assert torch.allclose(found.float(), expected.float(), rtol=1e-2, atol=0.1)


def test_switched_off_there_is_no_choice() -> None:
    text, parameters, _ = CASES["mm"]
    assert not any(isinstance(s, ChoiceStep) for s in compiled(text, parameters, "off").plan.steps)


GATE_UP = f"""
      %x_q = "qfuse.quantize"(%x) : (tensor<?x{K}xbf16>)
        -> !qfuse.qtensor<tensor<?x{K}xf8E4M3FN>, {scheme("1, 128", "col_major")}>
      %w = "qfuse.pack"(%codes, %scale) : (tensor<{128 + N}x{K}xf8E4M3FN>, tensor<2x2xf32>)
        -> !qfuse.qtensor<tensor<{128 + N}x{K}xf8E4M3FN>, {scheme("128, 128")}>
      %y = "qfuse.matmul"(%x_q, %w, %r) ({{
      ^bb0(%gate: f32, %up: f32, %residual: f32):
        %g = arith.truncf %gate : f32 to bf16
        %g32 = arith.extf %g : bf16 to f32
        %u = arith.truncf %up : f32 to bf16
        %u32 = arith.extf %u : bf16 to f32
        %zero = arith.constant 0.0 : f32
        %a = arith.maximumf %g32, %zero : f32
        %h = arith.mulf %a, %u32 : f32
        %s = arith.addf %h, %residual : f32
        "qfuse.yield"(%s) : (f32) -> ()
      }}) {{parts = array<i64: {N}, {N}>, maps = ["[N]"],
          operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>,
          resultSegmentSizes = array<i32: 1, 0, 0, 0>}}
        : (!qfuse.qtensor<tensor<?x{K}xf8E4M3FN>, {scheme("1, 128", "col_major")}>,
           !qfuse.qtensor<tensor<{128 + N}x{K}xf8E4M3FN>, {scheme("128, 128")}>, tensor<{N}xf32>)
        -> tensor<?x{N}xbf16>"""
"""Gate and up of {N} rows each, the second from a block boundary on; relu(gate) * up + r."""


def test_an_epilogue_apart_gives_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's product, and a kernel for what it has not: two launches, the same numbers."""
    monkeypatch.setattr(cost, "_MARGIN", 0.0)  # as if it were always faster
    generator = torch.Generator().manual_seed(2)
    codes, scale = quantize_blocks(torch.randn(128 + N, K, generator=generator), (128, 128))
    residual = torch.randn(N, generator=generator)
    arguments = [
        ("codes", f"tensor<{128 + N}x{K}xf8E4M3FN>"),
        ("scale", "tensor<2x2xf32>"),
        ("r", f"tensor<{N}xf32>"),
    ]
    parameters = {"codes": codes, "scale": scale, "r": residual}
    program = compiled(main(GATE_UP, arguments), parameters)
    (choice,) = (s for s in program.plan.steps if isinstance(s, ChoiceStep))
    called = [getattr(s, "op", None) or s.kernel for s in choice.library]  # type: ignore[union-attr]
    assert called == ["library.block_scales", "library.scaled_mm_blocks", "epilogue_0"]
    ours = compiled(main(GATE_UP, arguments), parameters, "off")
    weight = dequantize_blocks(codes, scale, (128, 128))
    x = torch.randn(21, K, generator=generator).bfloat16()
    (apart,) = Session(program, device=FakeGpu(), poison=True)(x)
    (fused,) = Session(ours, device=FakeGpu(), poison=True)(x)
    gate, up = x.float() @ weight[:N].t(), x.float() @ weight[128:].t()
    expected = gate.relu() * up + residual
    scale_of = expected.abs().max()
    assert (apart.float() - expected).abs().max() <= 0.05 * scale_of  # two factors of E4M3 rows
    # products differ by the order of sums in f32; a rounding to bf16 may go the other way
    assert torch.allclose(apart.float(), fused.float(), rtol=2**-6, atol=2**-6 * float(scale_of))
