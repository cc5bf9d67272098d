"""The fusions of an expert layer change no bit, and stay close to the operators' definition."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imported_once import module_once
from torch import nn

from qfuse.compiler.torch_ops import quantize_blocks

pytestmark = pytest.mark.quick_level

FUSED = ("norm-quantize", "gate-up", "product-quantize", "combine-residual", "product-combine")


def codes(experts: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    return quantize_blocks(torch.randn(experts, rows, columns) * columns**-0.5, [128, 128])


class Layer(nn.Module):
    """Norm, router from its logits on, experts, residual; `glu` is act, limit and alpha."""

    def __init__(
        self,
        experts: int,
        k: int,
        hidden: int,
        inner: int,
        glu: tuple[str, float | None, float | None],
        biased: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(hidden, eps=1e-6)
        self.k, self.inner, self.glu = k, inner, glu
        up_begins = -(-inner // 128) * 128  # where a block of scales begins
        both = torch.zeros(experts, up_begins + inner, hidden).to(torch.float8_e4m3fn)
        gate, gate_scale = codes(experts, inner, hidden)
        up, up_scale = codes(experts, inner, hidden)
        both.view(torch.uint8)[:, :inner] = gate.view(torch.uint8)
        both.view(torch.uint8)[:, up_begins:] = up.view(torch.uint8)
        down, down_scale = codes(experts, hidden, inner)
        self.register_buffer("both", both)
        self.register_buffer("both_scale", torch.cat([gate_scale, up_scale], 1))
        self.register_buffer("down", down)
        self.register_buffer("down_scale", down_scale)
        widths = {"gate_up_bias": 2 * inner, "down_bias": hidden}
        for name, width in widths.items():
            bias = torch.randn(experts, width).bfloat16() if biased else None
            self.register_buffer(name, bias)

    def forward(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        ids, weights = torch.ops.qfuse.select_experts(
            logits, None, self.k, "softmax", True, 1.0, 1, 1, torch.float32
        )
        experts = (self.both, self.both_scale, self.down, self.down_scale, self.inner)
        y = torch.ops.qfuse.moe_experts(
            self.norm(x),
            ids,
            weights,
            *experts,
            [128, 128],
            [1, 128],
            *self.glu,
            self.gate_up_bias,
            self.down_bias,
        )
        return x + y


CASES = {
    "silu": (("silu", None, None), False),
    "gelu_tanh with biases": (("gelu_tanh", None, None), True),
    "clamped silu": (("silu", 0.4, None), False),
    "clamped relu with biases": (("relu", 1.3, None), True),
    "gpt-oss": (("swiglu_oai", 0.7, None), True),
    "gpt-oss without limit": (("swiglu_oai", None, 1.3), False),
}


@pytest.mark.parametrize("case", CASES)
@settings(
    max_examples=2,
    deadline=None,
    derandomize=True,  # the same layers in every run: their kernels are compiled once
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    experts=st.integers(1, 9),
    chosen=st.integers(1, 4),
    hidden=st.sampled_from([72, 160]),
    inner=st.sampled_from([40, 200]),
)
def test_fused_equals_unfused(
    case: str, experts: int, chosen: int, hidden: int, inner: int
) -> None:
    torch.manual_seed(experts)
    layer = Layer(experts, min(chosen, experts), hidden, inner, *CASES[case])
    layer.eval().requires_grad_(False)
    layer.norm.bfloat16()
    tokens = torch.export.Dim("tokens", min=1, max=64)

    def arguments(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(count, hidden).bfloat16(), torch.randn(count, experts)

    shapes = ({0: tokens}, {0: tokens})
    imported = module_once(layer, arguments(5), shapes)
    fused, plain = imported.compile(), imported.compile("all")
    patterns = {p.name: p.fired for p in fused.report().patterns}
    assert [patterns.get(name) for name in FUSED] == [1] * 5
    assert len(plain.program.plan.steps) - len(fused.program.plan.steps) == 5
    for count in (1, 3, 33):
        x, logits = arguments(count)
        got, wanted = fused(x, logits)[0], layer(x, logits)
        assert torch.equal(got, plain(x, logits)[0])
        # bf16 between the steps, 2^-8 relative each, and codes that a rounding moves by one
        assert (got - wanted).float().norm() <= 0.02 * wanted.float().norm()
