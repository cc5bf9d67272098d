"""The runtime with kernels of machine code, from a module to a saved program."""

from pathlib import Path

import pytest
import torch
from fakes import from_builtin, main, qtensor, to_builtin

from qfuse.compiler import torch_ops
from qfuse.compiler.plan import build_plan
from qfuse.compiler.runtime.program import Program
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.registry import load_all
from qfuse.lowering.cpu.codegen import compile_kernel

ROWS, WIDTH = 192, 256
XQ, W0, W2 = (
    qtensor(f"?x{WIDTH}", "1, 128"),
    qtensor(f"{ROWS}x{WIDTH}", "128, 128"),
    qtensor(f"{256 + ROWS}x{WIDTH}", "128, 128"),
)
X, Y = f"tensor<?x{WIDTH}xf32>", f"tensor<?x{ROWS}xf32>"


def kernel(name: str, arguments: str, results: str, op: str) -> str:
    count = results.count("tensor<?")
    values = ", ".join(f"%r{i}" for i in range(count))
    types = results if count == 1 else f"({results})"
    return (
        f"func.func private @{name}({arguments}) -> {types} attributes {{qfuse.kernel}} {{\n"
        f"  {values} = {op}\n  return {values} : {results}\n}}\n"
    )


MODULE = (
    kernel("quantize", f"%x: {X}", XQ, f'"qfuse.quantize"(%x) : ({X}) -> {XQ}')
    + kernel(
        "linear",
        f"%x: {XQ}, %w: {W0}",
        Y,
        f"""\"qfuse.matmul"(%x, %w) ({{
    ^bb0(%acc: f32):
      "qfuse.yield"(%acc) : (f32) -> ()
  }}) {{parts = array<i64: {ROWS}>, maps = [],
       operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>,
       resultSegmentSizes = array<i32: 1, 0, 0, 0>}} : ({XQ}, {W0}) -> {Y}""",
    )
    + kernel(
        "two",
        f"%x: {XQ}, %w: {W2}",
        f"{Y}, {Y}",
        f"""\"qfuse.matmul"(%x, %w) ({{
    ^bb0(%a: f32, %b: f32):
      "qfuse.yield"(%a, %b) : (f32, f32) -> ()
  }}) {{parts = array<i64: {ROWS}, {ROWS}>, maps = [],
       operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>,
       resultSegmentSizes = array<i32: 1, 1, 0, 0>}} : ({XQ}, {W2}) -> ({Y}, {Y})""",
    )
    .replace("%r0, %r1 =", "%r:2 =")
    .replace("return %r0, %r1", "return %r#0, %r#1")
    + main(
        f"x: ?x{WIDTH}xf32 input\n"
        f"w0: {ROWS}x{WIDTH}xf8E4M3FN parameter\ns0: 2x2xf32 parameter\n"
        f"w1: {ROWS}x{WIDTH}xf8E4M3FN parameter\ns1: 2x2xf32 parameter",
        f"y0: ?x{ROWS}xf32 output\nz0: ?x{ROWS}xf32 output\nz1: ?x{ROWS}xf32 output",
        to_builtin("x", type=f"?x{WIDTH}xf32")
        + "\n"
        + to_builtin("w0", "w1", type=f"{ROWS}x{WIDTH}xf8E4M3FN")
        + "\n"
        + to_builtin("s0", "s1", type="2x2xf32")
        + f"""
  %q0 = "qfuse.pack"(%w0_b, %s0_b) : (tensor<{ROWS}x{WIDTH}xf8E4M3FN>, tensor<2x2xf32>) -> {W0}
  %q1 = "qfuse.pack"(%w1_b, %s1_b) : (tensor<{ROWS}x{WIDTH}xf8E4M3FN>, tensor<2x2xf32>) -> {W0}
  %j = "qfuse.concat"(%q0, %q1) {{operandSegmentSizes = array<i32: 1, 1, 0, 0>}}
    : ({W0}, {W0}) -> {W2}
  %xq = func.call @quantize(%x_b) : ({X}) -> {XQ}
  %y0_b = func.call @linear(%xq, %q0) : ({XQ}, {W0}) -> {Y}
  %z0_b, %z1_b = func.call @two(%xq, %j) : ({XQ}, {W2}) -> ({Y}, {Y})
"""
        + from_builtin("y0", "z0", "z1", type=f"?x{ROWS}xf32"),
    )
)


@pytest.fixture(scope="module")
def parameters() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {}
    for i in range(2):
        weight = torch.randn(ROWS, WIDTH, generator=generator)
        made[f"w{i}"], made[f"s{i}"] = torch_ops.quantize_blocks(weight, (128, 128))
    return made


@pytest.fixture(scope="module")
def program(parameters: dict[str, torch.Tensor]) -> Program:
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(MODULE)
        kernels = {
            f.name.value: compile_kernel(f)
            for f in module.body.operations
            if isinstance(f, func.FuncOp) and "qfuse.kernel" in f.attributes
        }
        return Program.prepare(build_plan(module, kernels), parameters, kernels)


@pytest.mark.parametrize("saved", [False, True])
def test_products_of_machine_code(
    program: Program, parameters: dict[str, torch.Tensor], saved: bool, tmp_path: Path
) -> None:
    assert not {"w0", "w1"} & {  # only the kernels' own layout is kept
        p.name for p in program.plan.parameters if p.value in program.constants
    }
    assert len(program.plan.prepares) == 2
    if saved:
        program.save(tmp_path / "p.qfuse")
        program = Program.load(tmp_path / "p.qfuse")
    session = Session(program, poison=True)
    for rows in (5, 1, 0, 5, 1, 33):
        x = torch.randn(rows, WIDTH)
        y0, z0, z1 = session(x)
        assert y0.equal(z0)  # joined or not, a part has the same bits
        for y, i in ((z0, 0), (z1, 1)):
            expected = torch_ops.quantized_linear(
                x, parameters[f"w{i}"], parameters[f"s{i}"], None, [128, 128], [1, 128]
            )
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-3)
    assert session.profile(x).launches == 3


def test_a_program_without_weights_is_profiled_the_same(program: Program) -> None:
    hollow = Program.hollow(program.plan, program.kernels)
    assert hollow.sizes()["weight_bytes"] == program.sizes()["weight_bytes"]
    for rows in (1, 7):
        x = torch.randn(rows, WIDTH)
        assert Session(hollow).profile(x) == Session(program).profile(x)
