"""Gated MLPs of torch that clamp gate and up, as transformers writes them: raised, and fused."""

from collections.abc import Callable

import pytest
import torch
from imported_once import module_once
from torch import nn
from torch.nn.functional import gelu, relu, silu

from qfuse.compiler.frontend.linear import quantize_linears

Gate = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LIMIT = 0.5


def gpt_oss(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    gate, up = gate.clamp(min=None, max=LIMIT), up.clamp(min=-LIMIT, max=LIMIT)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


def deepseek_v4(act: Callable[[torch.Tensor], torch.Tensor]) -> Gate:
    return lambda gate, up: act(gate.clamp(max=LIMIT)) * up.clamp(min=-LIMIT, max=LIMIT)


GATES: dict[str, Gate] = {
    "gpt-oss": gpt_oss,
    "silu": deepseek_v4(silu),
    "relu": deepseek_v4(relu),
    "gelu": deepseek_v4(gelu),
    "gelu_tanh": deepseek_v4(lambda x: gelu(x, approximate="tanh")),
}


class Mlp(nn.Module):
    def __init__(self, gated: Gate) -> None:
        super().__init__()
        self.gated = gated
        self.gate, self.up = (nn.Linear(128, 200, bias=False) for _ in range(2))
        self.down = nn.Linear(200, 128, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.gated(self.gate(x), self.up(x)))


@pytest.mark.parametrize("name", GATES)
def test_a_clamped_mlp_is_three_kernels(name: str) -> None:
    """Fused to the unfused program's bits, close to torch's, and so under torch.compile."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = quantize_linears(Mlp(GATES[name]).bfloat16()).eval().requires_grad_(False)
    tokens = torch.export.Dim("tokens", min=1, max=64)
    example, shapes = (torch.randn(1, 5, 128).bfloat16(),), ({1: tokens},)
    imported = module_once(model, example, shapes)
    fused, unfused = imported.compile(), imported.compile("all")
    fired = {p.name: p.fired for p in fused.report().patterns}
    assert fired["glu"] == fired["gate-up"] == fired["product-quantize"] == 1
    assert len(fused.program.plan.steps) == 3 and len(unfused.program.plan.steps) == 6
    compiled = torch.compile(model, backend="qfuse")
    for count in (1, 2, 33):
        x = 3 * torch.randn(1, count, 128).bfloat16()
        got, wanted = fused(x)[0], model(x)
        assert torch.equal(got, unfused(x)[0]) and torch.equal(got, compiled(x))
        # sums in another order round to bf16 otherwise now and then, and move a code by one
        assert (got - wanted).float().norm() <= 0.02 * wanted.float().norm()
