"""Layers as people write them: each is one product, and computes what torch does."""

from collections.abc import Callable

import pytest
import torch
from imported_once import module_once
from torch import nn
from torch.nn import functional

from qfuse.compiler.frontend.linear import quantize_linears
from qfuse.compiler.runtime.plan import KernelStep

pytestmark = pytest.mark.quick_level

WIDTH, HIDDEN = 160, 200

Layer = Callable[[Callable[..., torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]

LAYERS: dict[str, Layer] = {
    "soft-cap": lambda f, x, r: torch.tanh(f(0, x) / 30.0) * 30.0,
    "relu squared": lambda f, x, r: functional.relu(f(0, x)).square(),
    "power of two": lambda f, x, r: functional.relu(f(0, x)) ** 2,
    "clamp above": lambda f, x, r: f(0, x).clamp(max=0.5),
    "clamp below": lambda f, x, r: torch.clamp(f(0, x), min=-0.1),
    "relu6": lambda f, x, r: functional.hardtanh(f(0, x), 0.0, 0.6),
    "cast and back": lambda f, x, r: (f(0, x).float() * 0.3 + 1).to(x.dtype),
    "reversed difference": lambda f, x, r: -(3 - f(0, x)),
    "two residuals": lambda f, x, r: r - (f(0, x) - r * 1.0) + r,
    "quotients": lambda f, x, r: r / (functional.silu(f(0, x)) + 4) / 3,
    "swish, spelled out": lambda f, x, r: (y := f(0, x)) * torch.sigmoid(1.702 * y),
    "sigmoid gate": lambda f, x, r: torch.sigmoid(f(0, x)) * f(1, x),
    "tanh gate": lambda f, x, r: torch.tanh(f(0, x)) * f(1, x),
    "exponential gate": lambda f, x, r: torch.exp(-f(0, x).clamp(-4, 4)) * f(1, x),
    "clamped gate": lambda f, x, r: f(0, x).clamp(max=1) * (f(1, x).clamp(-1, 1) + 1),
    "joined rows": lambda f, x, r: functional.silu(f(0, x).view(-1, HIDDEN)).view(r.shape),
    "heads": lambda f, x, r: f(0, x).view(*x.shape[:2], 8, 25).tanh().view(r.shape),
    "transposed": lambda f, x, r: functional.silu(f(0, x).transpose(0, 1)).transpose(0, 1),
    "read twice": lambda f, x, r: (y := f(0, x)) + functional.softplus(y),
}
"""By name, where `f(i, x)` is linear layer i of x; the layers of one x are merged."""


PART = 256

MERGED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu of a chunk": lambda y: functional.silu(y.chunk(2, -1)[0]) * y.chunk(2, -1)[1],
    "gelu of a split": lambda y: functional.gelu(y.split(PART, -1)[0]) * y.split(PART, -1)[1],
    "sigmoid of slices": lambda y: torch.sigmoid(y[..., PART:]) * y[..., :PART],
    "clamps of sizes": lambda y: (
        (p := y.split([PART, PART], -1))[0].clamp(max=1) * (p[1].clamp(-1, 1) + 1)
    ),
    "tanh of one half": lambda y: torch.tanh(y[..., :PART]),
}
"""What is made of the two halves of a merged layer."""


class Module(nn.Module):
    def __init__(self, layer: Layer, bias: bool, width: int = HIDDEN, count: int = 2) -> None:
        super().__init__()
        self.layer = layer
        self.linears = nn.ModuleList(nn.Linear(WIDTH, width, bias=bias) for _ in range(count))

    def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.layer(lambda i, x: self.linears[i](x), x, residual)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str, bias: bool) -> None:
    kernels = check(Module(LAYERS[name], bias))
    if name == "read twice":  # the sum joins neither: softplus, which is torch's, comes between
        assert kernels == ["add", "matmul", "quantize"]
    else:
        assert kernels == ["matmul", "quantize"]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", MERGED)
def test_merged_layer(name: str, bias: bool) -> None:
    """The halves are two results of one product, which meet in its epilogue."""
    module = Module(lambda f, x, r: MERGED[name](f(0, x)), bias, 2 * PART, 1)
    assert check(module) == ["matmul", "quantize"]


def test_merged_layer_off_a_block() -> None:
    """200 features are no multiple of 128: the product stays whole, and torch cuts it."""
    module = Module(lambda f, x, r: torch.tanh(f(0, x)[..., :HIDDEN]), False, 2 * HIDDEN, 1)
    assert "matmul" in check(module)


def check(module: nn.Module) -> list[str]:
    """The kernels of the fused program, which computes what the unfused one and torch do."""
    torch.manual_seed(0)
    module = quantize_linears(module.bfloat16().eval().requires_grad_(False))

    def arguments(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(2, tokens, WIDTH).bfloat16(), torch.randn(2, tokens, HIDDEN).bfloat16()

    tokens = torch.export.Dim("tokens", min=2, max=64)
    shapes = ({1: tokens}, {1: tokens})
    imported = module_once(module, arguments(5), shapes)
    fused, plain = imported.compile(), imported.compile("all")
    kernels = [s.kernel for s in fused.program.plan.steps if isinstance(s, KernelStep)]
    for count in (5, 2, 17):
        x, residual = arguments(count)
        got, wanted = fused(x, residual)[0], module(x, residual)
        assert torch.equal(got, plain(x, residual)[0])
        # a few roundings to bf16 that may go the other way, 2^-8 each; differences may cancel
        torch.testing.assert_close(got, wanted, rtol=2**-5, atol=2**-5)
    return sorted(k.rsplit("_", 1)[0] for k in kernels)
