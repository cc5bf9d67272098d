"""torch.compile(backend="qfuse"): what reaches the compiler, and that nothing ever fails.

The compiler is replaced by stubs; programs run for real in the end-to-end tests.
"""

import logging
import sys
import types

import pytest
import torch
from torch import nn
from torch.nn import functional

from qfuse.compiler.frontend import dynamo
from qfuse.compiler.frontend.baseline import eager_model
from qfuse.compiler.frontend.checkpoint import Checkpoint
from qfuse.compiler.frontend.linear import QuantizedLinear, quantize_linears
from qfuse.compiler.torch_ops import quantize_blocks
from qfuse.dialects.errors import QfuseError


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16, bias=False)
        self.register_buffer("gain", torch.full((16,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(functional.silu(self.up(x))) * self.gain


class Compiled:
    """As much of an Executable as the backend looks at."""

    def __init__(self, run) -> None:
        self.run = run
        self.program = types.SimpleNamespace(kernels={"matmul_0": None})

    def __call__(self, *inputs):
        return self.run(*inputs)


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch.manual_seed(0)


@pytest.fixture
def compiler(monkeypatch):
    """Put a stub in the compiler's place: set `.compile`; all it was given is in `.seen`."""
    stub = types.ModuleType("qfuse.compiler.compilation")
    stub.seen = []

    def refuse(imported):
        raise QfuseError("matmul at up: not today; supported: tomorrow")

    def compile_imported(imported, options):
        stub.seen.append((imported, options))
        return Compiled(stub.compile(imported))

    stub.compile, stub.compile_imported = refuse, compile_imported
    monkeypatch.setitem(sys.modules, "qfuse.compiler.compilation", stub)
    return stub


def test_is_an_entry_point():
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="torch_dynamo_backends", name="qfuse")
    assert entry.load() is dynamo.qfuse_backend


@torch.no_grad()
def test_refusal_runs_on_torch_with_a_remark(compiler, caplog):
    model, x = Mlp(), torch.randn(2, 3, 16)
    with caplog.at_level(logging.WARNING, "qfuse"):
        y = torch.compile(model, backend="qfuse", options={"disable": "rope"})(x)
    assert torch.equal(y, model(x))
    assert "remark: a graph runs on torch: matmul at up: not today" in caplog.text
    ((imported, options),) = compiler.seen
    assert options.disable == {"rope"}
    assert list(imported.parameters) == ["up.weight", "up.bias", "down.weight", "gain"]
    assert imported.parameters["up.weight"].data_ptr() == model.up.weight.data_ptr()
    assert [s.shape for s in imported.inputs] == [(2, 3, 16)]
    assert [s.shape for s in imported.outputs] == [(2, 3, 16)]


@torch.no_grad()
def test_composites_arrive_whole(compiler):
    torch.compile(Mlp(), backend="qfuse")(torch.randn(2, 3, 16))
    text = str(compiler.seen[0][0].module)
    assert text.count("torch.aten.linear") == 2 and "torch.aten.silu" in text
    assert not any(part in text for part in ("aten.mm", "aten.addmm", "aten.t ", "aten.view"))


@torch.no_grad()
def test_dynamic_shapes_come_from_tensors(compiler):
    model = Mlp()
    compiled = torch.compile(model, backend="qfuse", dynamic=True)
    for tokens in (3, 5, 1):
        x = torch.randn(2, tokens, 16)
        assert torch.equal(compiled(x), model(x))
    assert compiler.seen[0][0].inputs[0].shape == (None, None, 16)
    text = str(compiler.seen[0][0].module)
    assert "!torch.int {" not in text, "no argument is a number"


@torch.no_grad()
def test_results_of_every_kind(compiler):
    """Computed tensors, an argument handed back, its size, a constant."""
    compiler.compile = lambda imported: lambda x: [x + 1]

    def function(x):
        return x + 1, x, x.shape[0], None

    compiled = torch.compile(function, backend="qfuse", dynamic=True)
    for rows in (4, 6):
        x = torch.randn(rows, 2)
        new, same, size, nothing = compiled(x)
        assert torch.equal(new, x + 1) and same is x and size == rows and nothing is None


@torch.no_grad()
def test_changed_weights_are_noticed(compiler):
    """Weights are packed once, so a change must compile again; a buffer becomes an input."""
    model, x = Mlp(), torch.randn(4, 16)

    def compile_(imported):
        named = dict(imported.parameters)
        names = [spec.name for spec in imported.inputs]

        def run(*inputs):
            given = named | dict(zip(names, inputs, strict=True))
            (source,) = [v for n, v in given.items() if n not in dict(model.state_dict())]
            weights = {n: given[n].clone() for n in model.state_dict()}
            return [torch.func.functional_call(model, weights, (source,))]

        return run

    compiler.compile = compile_
    compiled = torch.compile(model, backend="qfuse")
    assert torch.equal(compiled(x), model(x)) and len(compiler.seen) == 1
    assert torch.equal(compiled(x), model(x)) and len(compiler.seen) == 1
    model.up.weight.mul_(2)
    assert torch.equal(compiled(x), model(x)) and len(compiler.seen) == 2
    assert "up.weight" in compiler.seen[1][0].parameters
    model.gain.add_(1)
    assert torch.equal(compiled(x), model(x)) and len(compiler.seen) == 3
    assert "gain" not in compiler.seen[2][0].parameters
    model.gain.add_(1)
    assert torch.equal(compiled(x), model(x)) and len(compiler.seen) == 3


def test_training_runs_on_torch_with_a_remark(compiler, caplog):
    model, x = Mlp(), torch.randn(4, 16)
    with caplog.at_level(logging.WARNING, "qfuse"):
        torch.compile(model, backend="qfuse")(x).sum().backward()
    assert model.up.weight.grad is not None and not compiler.seen
    assert caplog.text.count("a graph that needs gradients runs on torch") == 1
    assert "torch.no_grad()" in caplog.text


@torch.no_grad()
def test_frozen_model_needs_no_context(compiler):
    model = Mlp().requires_grad_(False)
    with torch.enable_grad():
        torch.compile(model, backend="qfuse")(torch.randn(4, 16))
    assert len(compiler.seen) == 1


@torch.no_grad()
def test_graph_break_gives_two_graphs(compiler):
    def function(x):
        y = x * 2
        print("break", end="")
        return y + 1

    x = torch.randn(3)
    assert torch.equal(torch.compile(function, backend="qfuse")(x), x * 2 + 1)
    assert len(compiler.seen) == 2


@torch.no_grad()
def test_operator_that_cannot_be_imported(compiler, caplog):
    """torch-mlir has no type for uint16: the remark names the operator, the result is right."""

    def function(x):
        return x.to(torch.uint16).to(torch.float32) + 1

    x = torch.arange(4.0)
    with caplog.at_level(logging.WARNING, "qfuse"):
        y = torch.compile(function, backend="qfuse")(x)
    assert torch.equal(y, x + 1) and not compiler.seen
    assert "operator aten.to.dtype cannot be imported" in caplog.text


@torch.no_grad()
def test_mutated_input(compiler):
    """AOTAutograd makes it a result and copies it back."""

    def function(cache, x):
        cache[1:2] = x
        return cache.sum()

    cache, x = torch.zeros(3, 2), torch.ones(1, 2)
    compiled = torch.compile(function, backend="qfuse")
    assert compiled(cache, x) == 2 and cache[1].tolist() == [1, 1]
    assert len(compiler.seen[0][0].outputs) == 2


@torch.no_grad()
def test_constants_are_parameters(compiler):
    table = torch.arange(6.0).view(2, 3)

    def function(x):
        return x + torch.tensor([1.0, 2.0, 3.0]) + table

    x = torch.randn(2, 3)
    assert torch.equal(torch.compile(function, backend="qfuse")(x), function(x))
    assert "dense<" not in str(compiler.seen[0][0].module)


@torch.no_grad()
def test_quantized_model(compiler, checkpoints):
    """A transformers model with FP8 layers: one graph, our operator, the model's names."""
    model = quantize_linears(eager_model(Checkpoint(checkpoints())), (64, 64))
    assert isinstance(model.model.layers[0].mlp.up_proj, QuantizedLinear)
    assert not isinstance(model.lm_head, QuantizedLinear)
    ids = torch.tensor([[1, 2, 3]])
    expected = model(ids, use_cache=False).logits
    got = torch.compile(model, backend="qfuse", fullgraph=True)(ids, use_cache=False).logits
    torch.testing.assert_close(got, expected)
    ((imported, _),) = compiler.seen
    text = str(imported.module)
    assert text.count('"torch.qfuse.quantized_linear"') == 14
    assert "model.layers.0.mlp.up_proj.weight_scale_inv" in imported.parameters
    debug = imported.module.operation.get_asm(enable_debug_info=True)
    assert 'loc("model.layers.1.mlp.down_proj")' in debug


def fp8_linear() -> nn.Module:
    from transformers.integrations.finegrained_fp8 import FP8Linear

    layer = FP8Linear(160, 200, block_size=(128, 128))
    codes, scale = quantize_blocks(torch.randn(200, 160), (128, 128))
    layer.weight = nn.Parameter(codes, requires_grad=False)
    layer.weight_scale_inv = nn.Parameter(scale, requires_grad=False)
    return layer


@torch.no_grad()
def test_transformers_fp8_layer(compiler):
    """Importing the backend does this by itself where transformers' FP8 layers are in use."""
    layer, x = fp8_linear(), torch.randn(3, 160)
    dynamo.serve_transformers_fp8()
    got = torch.compile(layer, backend="qfuse")(x)
    adopted = quantize_linears(layer)
    assert isinstance(adopted, QuantizedLinear)
    assert torch.equal(got, adopted(x)) and torch.equal(got, layer(x))
    assert '"torch.qfuse.quantized_linear"' in str(compiler.seen[0][0].module)


def test_quantize_linears_approximates():
    linear, x = nn.Linear(200, 150), torch.randn(5, 200)
    quantized = quantize_linears(nn.Sequential(linear))[0]
    assert quantized.weight.dtype == torch.float8_e4m3fn
    assert quantized.weight_scale_inv.shape == (2, 2)
    expected = linear(x)
    assert (quantized(x) - expected).norm() / expected.norm() < 0.06


def test_quantize_linears_refuses_what_fp8_cannot_hold():
    linear = nn.Linear(4, 4)
    linear.weight.data[0, 0] = float("inf")
    with pytest.raises(QfuseError, match=r"0\.weight has values that are not finite"):
        quantize_linears(nn.Sequential(linear))
    with pytest.raises(QfuseError, match="is not two positive extents"):
        quantize_linears(nn.Linear(4, 4), (0, 128))
