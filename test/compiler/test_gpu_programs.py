"""Programs for a GPU, compiled where there is none: what is in them, and on disk."""

import json

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from qfuse.compiler import compile, load
from qfuse.compiler.compilation import compile_imported, lower
from qfuse.compiler.frontend.dynamo import import_functional
from qfuse.compiler.options import CompileOptions
from qfuse.compiler.runtime.plan import KernelStep
from qfuse.compiler.runtime.program import Program
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.registry import load_all
from qfuse.lowering.target import Target
from qfuse.lowering.triton import driver
from qfuse.lowering.triton.gpu_kernel import GpuKernel
from qfuse.tools.qfuse import main


@pytest.fixture(scope="module")
def artifact(checkpoints, tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "model.qfuse"
    arguments = ["compile", str(checkpoints()), "--target", "cuda:sm_90", "-o", str(path)]
    assert main([*arguments, "--max-len", "32"]) == 0
    return path


def test_a_checkpoint_becomes_cubins_and_rows_of_weights(artifact, checkpoints):
    program = Program.load(artifact)
    cpu = compile(checkpoints(), max_len=32).program
    assert program.target == "cuda:sm_90"
    # the same fusions: only kernels differ, and attention is torch's on a GPU
    assert set(program.kernels) == {k for k in cpu.kernels if not k.startswith("attention")}
    for kernel in program.kernels.values():
        assert isinstance(kernel, GpuKernel)
        assert kernel.variants[0].first_m == 1
        assert kernel.variants[-1].last_m is None
        for variant in kernel.variants:
            assert all(launch.code.startswith(b"\x7fELF") for launch in variant.launches)
    # gate/up and q/k/v are joined, rows of codes as they came; nothing else is prepared
    joined = [p for p in program.plan.prepares]
    assert {p.layout for p in joined} == {"rows"}
    assert sorted({len(p.parts) for p in joined}) == [2, 3]
    for prepare in joined:
        codes, scale = program.constants[prepare.packed], program.constants[prepare.scale]
        assert codes.dtype == torch.float8_e4m3fn
        assert scale.shape == tuple(
            -(-n // b) for n, b in zip(codes.shape, (128, 128), strict=True)
        )


def test_a_kernels_types_are_those_of_its_pointers(artifact):
    program = Program.load(artifact)
    for type_ in program.plan.kernels:
        parameters = program.kernels[type_.name].parameters
        count = {s: sum(p.source == s for p in parameters) for s in ("operand", "result")}
        assert (len(type_.operands), len(type_.results)) == (count["operand"], count["result"])
        assert None not in type_.operands
    steps = [s for s in program.plan.steps if isinstance(s, KernelStep)]
    types = {t.name: t for t in program.plan.kernels}
    assert all(len(s.operands) == len(types[s.kernel].operands) for s in steps)


def test_inspecting_needs_no_gpu(artifact, capsys):
    assert main(["inspect", str(artifact), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["target"] == "cuda:sm_90"
    assert {k["level"] for k in data["kernels"].values()} == {"cuda:sm_90"}
    assert main(["inspect", str(artifact)]) == 0
    assert "cuda:sm_90" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU does")
def test_running_without_a_gpu_says_so(artifact, capsys):
    assert main(["run", str(artifact), "--prompt-ids", "1,2", "--max-new-tokens", "2"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "cuda:sm_90" in line
    assert "compile for cpu" in line
    with pytest.raises(QfuseError, match="cuda:sm_90"):
        Session(load(artifact).program)


def test_an_operation_without_a_gpu_kernel_is_refused():
    wide = "tensor<?x65536xbf16>"
    text = f"""
      func.func @main(%x: {wide}, %w: tensor<65536xbf16>) -> {wide} {{
        %0 = "qfuse.rms_norm"(%x, %w) {{eps = 1.0e-6 : f64, offset = 0.0 : f64,
          rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>,
          resultSegmentSizes = array<i32: 1, 0, 0, 0>}}
          : ({wide}, tensor<65536xbf16>) -> {wide}
        return %0 : {wide}
      }}"""
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(text)
        with pytest.raises(QfuseError, match=r"qfuse\.rms_norm at .*65536 elements"):
            lower(module, CompileOptions.make("cuda:sm_90"))


def graph_on_a_gpu() -> torch.fx.GraphModule:
    """A linear layer and an arange on cuda:0, traced without one."""
    with FakeTensorMode():
        x = torch.empty(4, 256, device="cuda", dtype=torch.bfloat16)
        weight = torch.empty(512, 256, device="cuda").to(torch.float8_e4m3fn)
        scale = torch.empty(4, 2, device="cuda")

        def layer(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            y = torch.ops.qfuse.quantized_linear(x, weight, scale, None, [128, 128], [1, 128])
            return y + torch.arange(4, device=x.device).view(4, 1)

        return make_fx(layer, tracing_mode="fake")(x, weight, scale)


def test_a_graph_on_a_gpu_is_compiled_for_one():
    options = CompileOptions.make("cuda:sm_90", blas="off")
    weights = {1: torch.ones(512, 256).to(torch.float8_e4m3fn), 2: torch.ones(4, 2)}
    graph = graph_on_a_gpu()
    imported, inputs, _ = import_functional(graph, weights, (), options.target.devices)
    program = compile_imported(imported, options).program
    assert inputs == [0]
    assert [s.kernel for s in program.plan.steps if isinstance(s, KernelStep)] == [
        "quantize_0",
        "matmul_0",
    ]
    # which GPU is said when it runs: in the plan every device is the cpu
    (arange,) = (s for s in program.plan.steps if getattr(s, "op", "") == "aten.arange")
    assert dict(arange.kwargs)["device"] == torch.device("cpu")


def test_a_graph_on_a_gpu_is_not_compiled_for_the_cpu():
    with pytest.raises(QfuseError, match="is on cuda:0; the target takes cpu, meta"):
        import_functional(graph_on_a_gpu(), {})


@pytest.mark.parametrize(
    ("capability", "target"),
    [((9, 0), "cuda:sm_90"), ((8, 9), "cuda:sm_89"), ((8, 6), "cuda:sm_80"), ((12, 0), None)],
)
def test_the_gpu_at_hand(monkeypatch, capability, target):
    monkeypatch.setattr(driver, "gpu_error", lambda kind: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    if target is not None:
        assert str(CompileOptions.make("cuda").target) == target
    else:
        with pytest.raises(QfuseError, match="the GPU at hand is sm_120; programs are compiled"):
            CompileOptions.make("cuda")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cuda:sm_91", "nearest supported one is 'cuda:sm_90'"),
        ("cuda", "nearest supported one is 'cuda:sm_"),
        ("cpu:avx512", "use 'cpu'"),
        ("hip:gfx90a", "nearest supported one is 'hip:gfx9"),
        ("rocm", "nearest supported one is 'hip:gfx942'"),
        ("tpu", "unknown target 'tpu'"),
    ],
)
def test_targets_that_are_none(text, words):
    with pytest.raises(QfuseError, match=words):
        Target.parse(text)


def test_targets():
    assert Target.parse("cpu").is_cpu
    assert str(Target.parse("cuda:sm_100")) == "cuda:sm_100"
    assert str(Target.parse("hip:gfx942")) == "hip:gfx942"
