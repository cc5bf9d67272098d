"""A shared expert as one more expert changes no bit, and its weights are held once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imported_once import file_once, module_once
from test_expert_fusions import Layer, codes

from qfuse.compiler import compile, load
from qfuse.compiler.frontend.lazy_tensors import Filled
from qfuse.compiler.runtime.program import Program

pytestmark = pytest.mark.quick_level

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


class LayerWithSharedExpert(Layer):
    """Beside the experts, `width` hidden features that every token has.

    Inputs are quantized per token and 128, or, where `static`, by one scale each.
    """

    def __init__(self, *sizes: int, act: str, width: int, static: bool) -> None:
        super().__init__(*sizes, (act, None, None))
        (_, _, hidden, inner), self.act, self.width = sizes, act, width
        self.input_format = "static" if static else "dynamic"
        self.groups = {hidden: [1, hidden], inner: [1, inner]} if static else {}
        if static:
            self.register_buffer("input_scale", torch.tensor([0.01]))
            self.register_buffer("hidden_scale", torch.tensor([0.02]))
        else:  # torch.export takes no buffers that are None
            self.input_scale = self.hidden_scale = None
        for name, rows, columns in (
            ("gate", width, hidden),
            ("up", width, hidden),
            ("last", hidden, width),
        ):
            (weight,), (scale,) = codes(1, rows, columns)
            self.register_buffer(name, weight)
            self.register_buffer(f"{name}_scale", scale)

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, scale = self.get_buffer(name), self.get_buffer(f"{name}_scale")
        group = self.groups.get(x.shape[-1], [1, 128])
        given = self.hidden_scale if name == "last" else self.input_scale
        formats = ("none", self.input_format, None, given)
        return torch.ops.qfuse.quantized_linear(x, weight, scale, None, [128, 128], group, *formats)

    def forward(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        ids, weights = torch.ops.qfuse.select_experts(
            logits, None, self.k, "sigmoid", True, 2.5, 1, 1, torch.float32
        )
        experts = (self.both, self.both_scale, self.down, self.down_scale, self.inner)
        normed = self.norm(x)
        hidden, inner = (self.groups.get(n, [1, 128]) for n in (x.shape[-1], self.inner))
        y = torch.ops.qfuse.moe_experts(
            normed, ids, weights, *experts, [128, 128], hidden, self.act, None, None, None, None,
            "none", self.input_format, None, None, [], inner, "",
            self.input_scale, self.hidden_scale,
        )  # fmt: skip
        approximate = {"silu": None, "gelu_tanh": "tanh"}[self.act]
        gate = self.linear("gate", normed)
        if approximate is None:
            activated = torch.nn.functional.silu(gate)
        else:
            activated = torch.nn.functional.gelu(gate, approximate=approximate)
        shared = self.linear("last", activated * self.linear("up", normed))
        return x + (y + shared)


DISABLED: tuple[tuple[str, ...], ...] = ((), ("shared-expert",), ("all",))
"""All fusions, all but that of the shared expert, none."""


def example(layer: LayerWithSharedExpert) -> tuple[Any, Any]:
    """Inputs, and which of their extents are dynamic."""
    tokens = torch.export.Dim("tokens", min=1, max=64)
    hidden, experts = layer.down.shape[1], len(layer.down)
    arguments = torch.randn(5, hidden).bfloat16(), torch.randn(5, experts)
    return arguments, ({0: tokens}, {0: tokens})


def layer_of(*sizes: int, act: str, width: int, static: bool = False) -> LayerWithSharedExpert:
    torch.manual_seed(sizes[0])
    layer = LayerWithSharedExpert(*sizes, act=act, width=width, static=static)
    layer = layer.eval().requires_grad_(False)
    layer.norm.bfloat16()
    return layer


def fired(exe: Any, pattern: str) -> int:
    return next((p.fired for p in exe.report().patterns if p.name == pattern), 0)


@settings(
    max_examples=4,
    deadline=None,
    derandomize=True,  # the same layers in every run: their kernels are compiled once
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    experts=st.integers(1, 9),
    chosen=st.integers(1, 4),
    hidden=st.sampled_from([72, 160]),
    inner=st.sampled_from([40, 200]),
    act=st.sampled_from(["silu", "gelu_tanh"]),
    static=st.booleans(),
)
def test_fused_equals_unfused(
    experts: int, chosen: int, hidden: int, inner: int, act: str, static: bool
) -> None:
    sizes = experts, min(chosen, experts), hidden, inner
    layer = layer_of(*sizes, act=act, width=inner, static=static)
    imported = module_once(layer, *example(layer))
    fused, apart, plain = (imported.compile(*disable) for disable in DISABLED)
    assert [fired(exe, "shared-expert") for exe in (fused, apart, plain)] == [1, 0, 0]
    assert len(apart.program.plan.steps) - len(fused.program.plan.steps) == 2
    for count in (1, 3, 33):
        x, logits = torch.randn(count, hidden).bfloat16(), torch.randn(count, experts)
        got, wanted = fused(x, logits)[0], layer(x, logits)
        assert torch.equal(got, apart(x, logits)[0])
        assert torch.equal(got, plain(x, logits)[0])
        # bf16 between the steps, 2^-8 relative each, and codes that a rounding moves by one
        assert (got - wanted).float().norm() <= 0.02 * wanted.float().norm()


def test_static_scales() -> None:
    """All that is quantized is quantized where it is made, by the layer's two scales."""
    layer = layer_of(5, 2, 160, 200, act="silu", width=200, static=True)
    imported = module_once(layer, *example(layer))
    fused, plain = imported.compile(), imported.compile("all")
    patterns = ("shared-expert", "norm-quantize", "product-quantize", "product-combine")
    assert [fired(fused, pattern) for pattern in patterns] == [1] * 4
    for count in (1, 3, 33):
        x, logits = torch.randn(count, 160).bfloat16(), torch.randn(count, 5)
        got, wanted = fused(x, logits)[0], layer(x, logits)
        assert torch.equal(got, plain(x, logits)[0])
        assert (got - wanted).float().norm() <= 0.02 * wanted.float().norm()  # as above


def test_a_wider_one_stays_alone() -> None:
    """Two shared experts in one MLP are no expert twice as often, and the result says so."""
    layer = layer_of(4, 2, 72, 40, act="silu", width=80)
    imported = module_once(layer, *example(layer))
    fused, plain = imported.compile(), imported.compile("all")
    (report,) = (p for p in fused.report().patterns if p.name == "shared-expert")
    assert (report.fired, report.refused) == (0, 1)
    assert "80 hidden features, an expert 40" in report.reasons[0][0]
    x, logits = torch.randn(3, 72).bfloat16(), torch.randn(3, 4)
    assert torch.equal(fused(x, logits)[0], plain(x, logits)[0])


def test_a_checkpoint(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    """Tokens and logits to the last bit, in fewer launches, and once more from a file."""
    directory = checkpoints(architecture="deepseek_v3")
    imported = file_once(directory, max_len=32)
    fused, apart, plain = (imported.compile(*disable) for disable in DISABLED)
    assert [fired(exe, "shared-expert") for exe in (fused, apart, plain)] == [1, 0, 0]
    logits = fused.logits(PROMPT)
    assert torch.equal(logits, apart.logits(PROMPT)) and torch.equal(logits, plain.logits(PROMPT))
    tokens = fused.generate(PROMPT, 16, eos=())
    assert tokens == apart.generate(PROMPT, 16, eos=()) == plain.generate(PROMPT, 16, eos=())
    token, position = torch.tensor([[0]]), torch.tensor([8])
    launches = [e.session().profile(token, position).launches for e in (fused, apart, plain)]
    assert launches[1] - launches[0] == 2
    fused.save(tmp_path / "model.qfuse")
    loaded = load(tmp_path / "model.qfuse")
    assert loaded.generate(PROMPT, 16, eos=()) == tokens
    assert loaded.report() == fused.report()
    hollow = Program.hollow(fused.program.plan, fused.program.kernels)
    assert hollow.sizes()["weight_bytes"] == fused.program.sizes()["weight_bytes"]


def test_weights_of_a_gpu_program(checkpoints: Callable[..., Path]) -> None:
    """Rows as they came: those of the experts, and of the shared one behind them."""
    directory = checkpoints(architecture="deepseek_v3")
    parameters: list[Any] = []
    prepare = Program.prepare

    def spy(plan: Any, given: Any, *args: Any, **options: Any) -> Program:
        parameters.append(given)
        return prepare(plan, given, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Program, "prepare", spy)
        program = compile(directory, max_len=32, target="cuda:sm_90").program
    names = {p.value: p.name for p in program.plan.parameters}
    hollow = Program.hollow(program.plan, program.kernels)
    assert hollow.sizes()["weight_bytes"] == program.sizes()["weight_bytes"]
    stacks = [p for p in program.plan.prepares if p.layout == "stack"]
    assert [len(p.parts) for p in stacks] == [3, 2]
    for prepared in stacks:
        (stack, *more), scales = (
            [parameters[0][names[part[i]]] for part in prepared.parts] for i in (0, 1)
        )
        made, made_scales = (program.constants[v] for v in (prepared.packed, prepared.scale))
        assert made.shape == (len(stack) + 1, *stack.shape[1:])
        found = made.view(torch.uint8)
        assert torch.equal(found[:-1], stack.view(torch.uint8))
        rows = more[0].shape[0]
        assert torch.equal(found[-1, :rows], more[0].view(torch.uint8))
        assert torch.equal(found[-1, -rows:], more[-1].view(torch.uint8))
        assert torch.equal(made_scales[:-1], scales[0])
        assert torch.equal(made_scales[-1], torch.cat(scales[1:]))


def test_no_second_copy_of_the_experts(
    checkpoints: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU program's stack is read into the place it stays in, never made on its own before."""
    made: list[tuple[int, ...]] = []

    def noting(entry: Filled) -> torch.Tensor:
        made.append(entry.shape)
        return original(entry)

    original = Filled.__call__
    monkeypatch.setattr(Filled, "__call__", noting)
    directory = checkpoints(architecture="deepseek_v3")
    compile(directory, max_len=32, target="cuda:sm_90")
    assert made == []
    compile(directory, max_len=32, target="cuda:sm_90", disable=["shared-expert"])
    assert len(made) == 2  # the stack itself is what the kernels read


def test_experts_that_are_tensors_already() -> None:
    """Those of a module are joined, too; its own stay as they are."""
    layer = layer_of(4, 2, 72, 40, act="silu", width=40)
    arguments, shapes = example(layer)
    program = compile(layer, arguments, dynamic_shapes=shapes, target="cuda:sm_90").program
    both, down = (p for p in program.plan.prepares if p.layout == "stack")
    made = program.constants[both.packed].view(torch.uint8)
    assert torch.equal(made[:-1], layer.both.view(torch.uint8))
    assert torch.equal(made[-1, :40], layer.gate.view(torch.uint8))
    assert torch.equal(made[-1, -40:], layer.up.view(torch.uint8))
    assert not made[-1, 40:-40].any()
    made = program.constants[down.packed].view(torch.uint8)
    assert torch.equal(made[-1], layer.last.view(torch.uint8))
