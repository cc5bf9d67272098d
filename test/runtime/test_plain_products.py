"""Modules with weights that are not quantized, for a GPU that is not there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_gpu_generation import (
    PROMPT,
    TARGET,
    OnFakeGpu,
    distance,
    far,  # noqa: F401  # a fixture that every test here uses
)
from torch import nn

from qfuse.compiler import compile
from qfuse.compiler.runtime import library
from qfuse.compiler.runtime.plan import ChoiceStep, TorchStep

WIDTH, HIDDEN = 96, 160


class Layer(nn.Module):
    """Three siblings with biases, a gated MLP, a residual, and a product with an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, n, bias=False) for n in (96, 48, 48))
        self.gate, self.up = (nn.Linear(WIDTH, HIDDEN, bias=False) for _ in range(2))
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        x = q + torch.cat([k, v], -1)
        x = x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))
        return nn.functional.relu(self.head(x))


def compiled(blas: str) -> tuple[Layer, OnFakeGpu]:
    torch.manual_seed(0)
    layer = Layer().bfloat16().eval()
    rows = {"x": {0: torch.export.Dim("rows", min=1, max=64)}}
    example = (torch.randn(4, WIDTH).bfloat16(),)
    exe = compile(layer, example, target=TARGET, dynamic_shapes=rows, blas=blas)
    return layer, OnFakeGpu(exe, graphs=False)


@pytest.mark.parametrize("blas", ["off", "on"])
def test_a_layer(blas: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gate and up, and the siblings, are one product each, their weights joined by rows."""
    monkeypatch.setattr(library, "unavailable", lambda call, place: None)
    layer, gpu = compiled(blas)
    plan = gpu.exe.program.plan
    assert sorted(len(p.parts) for p in plan.prepares) == [2, 3]
    assert all(p.made == (p.packed,) for p in plan.prepares)
    steps = [s.op for s in plan.single_steps if isinstance(s, TorchStep)]
    assert "aten.linear" not in steps
    # a residual has no place in a library's epilogue, and `on` does not ask for an extra kernel
    calls = [s.call for s in plan.steps if isinstance(s, ChoiceStep)]
    assert calls == (["mm"] if blas == "on" else [])
    with torch.inference_mode():
        for m in (1, 2, 7, 17, 40):
            x = torch.randn(m, WIDTH, generator=torch.Generator().manual_seed(m)).bfloat16()
            (found,) = gpu.exe(x)
            # products in another order of sums, each rounded to bf16 (2^-9), in a chain of four
            assert distance(found, layer(x)) < 0.01, m


class Scaled(nn.Module):
    """Logits, with the factor that some models multiply them by, or the divisor."""

    def __init__(self, divides: bool) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, 48, bias=False)
        self.divides = divides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.head(x)
        return y / 8.0 if self.divides else y * 0.125


@pytest.mark.parametrize("divides", [False, True])
def test_a_scale_of_logits_is_the_library_s(divides: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the module to the call: the same bits in one launch."""
    monkeypatch.setattr(library, "unavailable", lambda call, place: None)
    torch.manual_seed(0)
    module = Scaled(divides).bfloat16().eval()
    rows = {"x": {0: torch.export.Dim("rows", min=1, max=64)}}
    example = (torch.randn(4, WIDTH).bfloat16(),)
    exe = compile(module, example, target=TARGET, dynamic_shapes=rows, blas="on")
    gpu = OnFakeGpu(exe, graphs=False)
    (choice,) = gpu.exe.program.plan.steps
    assert isinstance(choice, ChoiceStep)
    (step,) = choice.library
    assert isinstance(step, TorchStep) and step.args[-1] == 0.125
    x = torch.randn(7, WIDTH, generator=torch.Generator().manual_seed(7)).bfloat16()
    (found,) = gpu.exe(x)
    with torch.inference_mode():
        assert torch.equal(found, module(x))


def test_the_head_of_a_model_is_dispatched(checkpoints: Callable[..., Any]) -> None:
    """Logits are a product of ours for one row, and for more whoever is faster's."""
    directory = checkpoints()
    cpu = compile(directory, max_len=32, logits="all")
    exe = compile(directory, max_len=32, logits="all", target=TARGET)
    rows = [row for row in exe.program.report["dispatch"] if row["layer"] == "lm_head.weight"]
    assert rows and rows[0]["scheme"] == "bf16 by bf16" and rows[0]["rule"] == "single-row"
    gpu = OnFakeGpu(exe)
    ids = torch.tensor(PROMPT)
    assert distance(gpu.exe.logits(ids), cpu.logits(ids)) < 0.02
