"""Operators for experts: against a reference, rounding by rounding, and what they refuse."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qfuse.compiler import block_scaled
from qfuse.compiler.torch_glu import apply_glu
from qfuse.compiler.torch_moe import padded_rows
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.glu import Glu

FAST = settings(max_examples=25, deadline=None)
ACTIVATIONS = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": lambda x: x.clamp(min=0),
}


def gated(act, limit, gate, up):
    """A GLU in f64, from its definition."""
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    if act == "swiglu_oai":
        return gate * torch.sigmoid(1.702 * gate) * (up + 1)
    return ACTIVATIONS[act](gate) * up


def stacked(generator, count, parts, columns, block):
    """Codes and scales of `count` weights whose parts begin at block boundaries; and f64 values."""
    height = block[0]
    rows = sum(padded_rows(p, height) for p in parts[:-1]) + parts[-1]
    codes = torch.zeros(count, rows, columns, dtype=torch.float8_e4m3fn)
    scales, values = [], []
    for e in range(count):
        at, found = 0, []
        for part in parts:
            c, s = block_scaled.quantize_blocks(
                torch.randn(part, columns, generator=generator), block
            )
            codes[e, at : at + part] = c
            found.append((s, block_scaled.dequantize_blocks(c, s, block).double()))
            at += padded_rows(part, height)
        scales.append(torch.cat([s for s, _ in found]))
        values.append([v for _, v in found])
    return codes, torch.stack(scales), values


@FAST
@given(
    count=st.integers(1, 5),
    choices=st.integers(1, 3),
    tokens=st.integers(0, 4),
    hidden=st.integers(1, 9),
    inner=st.integers(1, 9),
    block=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    act=st.sampled_from([*sorted(ACTIVATIONS), "swiglu_oai"]),
    limit=st.sampled_from([None, 0.5, 2.0]),
    biased=st.tuples(st.booleans(), st.booleans()),
    data=st.data(),
)
def test_moe_experts(count, choices, tokens, hidden, inner, block, act, limit, biased, data):
    """Token by token in f64, as the definition says; ids beyond the experts add nothing.

    Inputs stay as they are: how they are quantized, `test_roundings...` says to the last bit.
    """
    generator = torch.Generator().manual_seed(hidden * 10 + inner)
    drawn = st.integers(-2, count + 1)
    ids = torch.tensor(
        [[data.draw(drawn) for _ in range(choices)] for _ in range(tokens)], dtype=torch.int64
    ).view(tokens, choices)
    weights = torch.rand(tokens, choices, generator=generator)
    weights[(ids < 0) | (ids >= count)] = float("nan")
    x = torch.randn(tokens, hidden, generator=generator)
    gate_up, gate_up_scale, up_values = stacked(generator, count, (inner, inner), hidden, block)
    down, down_scale, down_values = stacked(generator, count, (hidden,), inner, block)
    biases = [
        torch.randn(count, width, generator=generator) if there else None
        for width, there in zip((2 * inner, hidden), biased, strict=True)
    ]
    expected = torch.zeros(tokens, hidden, dtype=torch.float64)
    for t in range(tokens):
        for j in range(choices):
            e = int(ids[t, j])
            if 0 <= e < count:
                gate, up = (w @ x[t].double() for w in up_values[e])
                if biased[0]:
                    gate, up = gate + biases[0][e, :inner], up + biases[0][e, inner:]
                row = down_values[e][0] @ gated(act, limit, gate, up)
                expected[t] += weights[t, j].double() * (row + biases[1][e] if biased[1] else row)
    experts = (gate_up, gate_up_scale, down, down_scale, inner, list(block), [])
    y = torch.ops.qfuse.moe_experts(x, ids, weights, *experts, act, limit, None, *biases)
    assert y.dtype == torch.float32 and y.shape == x.shape
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


def arguments(dtype=torch.bfloat16, block=(4, 4)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 10, generator=generator).to(dtype)
    ids = torch.tensor([[0, 1], [1, 5], [-1, 0]])
    gate_up, gate_up_scale, _ = stacked(generator, 2, (6, 6), 10, block)
    down, down_scale, _ = stacked(generator, 2, (10,), 6, block)
    weights = torch.rand(3, 2, generator=generator)
    return [x, ids, weights, gate_up, gate_up_scale, down, down_scale, 6, [4, 4], [1, 4], "silu"]


@pytest.mark.parametrize("biased", [False, True])
def test_roundings_are_those_of_separate_operators(biased):
    """In bf16, every step rounded, the sum in f32 in the order of the choices, bit for bit."""
    args = arguments()
    x, ids, weights, gate_up, gate_up_scale, down, down_scale, _, block, group, _ = args
    biases = [torch.randn(2, 12).bfloat16(), torch.randn(2, 10).bfloat16()]
    expected = torch.zeros(3, 10)
    for t in range(3):
        for j in range(2):
            e = int(ids[t, j])
            if e not in (0, 1):
                continue
            product = torch.ops.qfuse.quantized_linear
            row = x[t : t + 1]
            gate = product(row, gate_up[e, :6], gate_up_scale[e, :2], None, block, group)
            up = product(row, gate_up[e, 8:], gate_up_scale[e, 2:], None, block, group)
            if biased:
                gate, up = gate + biases[0][e, :6], up + biases[0][e, 6:]
            hidden = nn.functional.silu(gate) * up
            y = product(hidden, down[e], down_scale[e], None, block, group)
            if biased:
                y = y + biases[1][e]
            expected[t] += weights[t, j] * y[0].float()
    more = (None, None, *biases) if biased else ()
    assert torch.equal(torch.ops.qfuse.moe_experts(*args, *more), expected.bfloat16())


@pytest.mark.parametrize("input_format", ["dynamic", "e8m0", "q8_1", "static"])
def test_formats_are_those_of_linear_layers(input_format):
    """Gate and up of int4 with zero points, down otherwise: each expert as two linear layers."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 64, generator=generator).bfloat16()
    ids, weights = torch.tensor([[0], [1], [1], [0]]), torch.rand(4, 1, generator=generator)

    def ints(*shape, most=127):
        return torch.randint(-most - 1, most + 1, shape, generator=generator).to(torch.int8)

    def scales(*shape):
        return torch.rand(*shape, generator=generator) / 64

    both, both_scale, zero = ints(2, 96, 32), scales(2, 96, 2), ints(2, 96, 2, most=7)
    down, down_scale = ints(2, 64, 48), scales(2, 64, 1)
    is_static = input_format == "static"
    groups = ([1, 64], [1, 48]) if is_static else ([1, 32], [1, 16])
    given = [torch.tensor([0.02]), torch.tensor([0.05])] if is_static else [None, None]
    linear = torch.ops.qfuse.quantized_linear
    expected = torch.empty_like(x)
    for t, e in enumerate(ids[:, 0].tolist()):
        rows = x[t : t + 1]
        gate, up = (
            linear(rows, both[e, part], both_scale[e, part], None, [1, 32], groups[0], "int4",
                   input_format, zero[e, part], given[0])
            for part in (slice(0, 48), slice(48, 96))
        )  # fmt: skip
        hidden = nn.functional.silu(gate) * up
        y = linear(hidden, down[e], down_scale[e], None, [1, 48], groups[1], "none", input_format,
                   None, given[1])  # fmt: skip
        expected[t] = (weights[t] * y[0].float()).bfloat16()
    made = torch.ops.qfuse.moe_experts(
        x, ids, weights, both, both_scale, down, down_scale, 48, [1, 32], groups[0], "silu",
        None, None, None, None, "int4", input_format, zero, None, [1, 48], groups[1], "none",
        *given,
    )  # fmt: skip
    assert torch.equal(made, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("entries", "glu"),
    [
        ({}, Glu("silu")),
        ({"swiglu_limit": 1.5}, Glu("silu", 1.5)),
        ({"swiglu_limit": 0.7, "hidden_act": "gelu"}, Glu("gelu", 0.7)),
        ({"swiglu_limit": 7.0, "swiglu_alpha": 1.702}, Glu("swiglu_oai", 7.0)),
        ({"swiglu_limit": 0.7, "swiglu_alpha": 1.3}, Glu("swiglu_oai", 0.7, 1.3)),
    ],
)
def test_glus_are_those_of_transformers_fp8_experts(entries, glu, dtype):
    """Bit for bit, a NaN in either included."""
    from transformers import MixtralConfig
    from transformers.integrations.finegrained_fp8 import FP8Experts

    config = MixtralConfig(hidden_size=12, intermediate_size=8, num_local_experts=5, **entries)
    module = FP8Experts(config, block_size=(4, 4))
    both = (3 * torch.randn(40, 16)).to(dtype)
    gate, up = both.chunk(2, -1)
    gate[0, :2], up[0, 2:4], up[1, 0] = float("nan"), float("nan"), float("inf")
    expected = module._apply_gate(both)
    made = apply_glu(glu, gate, up)
    assert made.dtype == dtype and made[0, :4].isnan().all()
    assert torch.equal(made.nan_to_num(9e4), expected.nan_to_num(9e4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_experts_of_gpt_oss(dtype):
    """Their weights lie the other way in transformers, gate and up in turns."""
    from transformers import GptOssConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts

    config = GptOssConfig(hidden_size=12, intermediate_size=8, num_local_experts=5)
    config._experts_implementation = "eager"
    module = GptOssExperts(config).requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_()
    module.to(dtype)
    x, weights = torch.randn(7, 12).to(dtype), torch.rand(7, 1).to(dtype)
    ids = torch.randint(0, 5, (7, 1))

    def apart(stack):
        return torch.cat((stack[..., ::2], stack[..., 1::2]), -1)

    y = torch.ops.qfuse.dense_experts(
        x,
        ids,
        weights,
        apart(module.gate_up_proj).transpose(1, 2).contiguous(),
        module.down_proj.transpose(1, 2).contiguous(),
        "swiglu_oai",
        config.swiglu_limit,
        config.swiglu_alpha,
        apart(module.gate_up_proj_bias),
        module.down_proj_bias,
    )
    # transformers rounds weight * y, where the operator rounds the sum: half an ulp each
    rtol = {torch.bfloat16: 2**-7, torch.float32: 1e-5}[dtype]
    torch.testing.assert_close(y, module(x, ids, weights), rtol=rtol, atol=10 * rtol)


def test_dense_experts_are_transformers():
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = MixtralConfig(hidden_size=12, intermediate_size=8, num_local_experts=5)
    config._experts_implementation = "eager"
    module = MixtralExperts(config).requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_()
    x, weights = torch.randn(7, 12), torch.rand(7, 2)
    ids = torch.randint(0, 5, (7, 2))
    y = torch.ops.qfuse.dense_experts(
        x, ids, weights, module.gate_up_proj, module.down_proj, "silu"
    )
    torch.testing.assert_close(y, module(x, ids, weights), rtol=1e-5, atol=1e-4)


def test_shape_rules_agree_with_the_implementations():
    args = arguments()
    biases = torch.randn(2, 12), torch.randn(2, 10)
    more = (1.5, None, *(b.bfloat16() for b in biases))
    for arguments_ in (args, [*args, *more]):
        torch.library.opcheck(
            torch.ops.qfuse.moe_experts.default, tuple(arguments_), test_utils=("test_faketensor",)
        )
    dense = [args[0].float(), *args[1:3], torch.randn(2, 12, 10), torch.randn(2, 10, 6)]
    for more in (
        ("gelu",),
        ("swiglu_oai", 7.0, 1.7, *biases),
        ("silu", None, None, None, biases[1]),
    ):
        torch.library.opcheck(
            torch.ops.qfuse.dense_experts.default,
            (*dense, *more),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3), "experts take x"),
        (1, torch.zeros(3, 2), "experts take x .* whole ids .* torch.float32"),
        (1, torch.zeros(4, 2, dtype=torch.int64), r"ids .* shape \[4, 2\]; expected \[3, 2\]"),
        (2, torch.zeros(3, 1), r"weights .* expected \[3, 2\]"),
        (3, torch.zeros(2, 12, 10), r"gate_up .* expected \[2, 14, 10\]"),
        (4, torch.zeros(2, 3, 3), r"gate_up_scale .* expected \[2, 4, 3\]"),
        (5, torch.zeros(3, 10, 6), r"down .* expected \[2, 10, 6\]"),
        (6, torch.zeros(2, 3, 1), r"down_scale .* expected \[2, 3, 2\]"),
        (10, "tanh", 'act "tanh" is not one of silu, gelu, gelu_tanh, relu, swiglu_oai'),
        (11, -1.0, "limit is -1.0; it must be positive"),
        (12, 1.5, 'alpha is 1.5, but act "silu" has none'),
        (13, torch.zeros(2, 10).bfloat16(), r"gate_up_bias .* \[2, 10\]; expected \[2, 12\]"),
        (13, torch.zeros(2, 12), "gate_up_bias .* torch.float32; expected torch.bfloat16, as x is"),
        (14, torch.zeros(10).bfloat16(), r"down_bias .* \[10\]; expected \[2, 10\]"),
        (15, "int3", 'packing "int3" of the experts is not one of none, int4, fp4, q4_k, q6_k'),
        (15, "int4", r"gate_up .* expected \[2, 14, 5\]"),
        (
            16,
            "tensor",
            'input_format "tensor" of the experts is not one of dynamic, e8m0, q8_1',
        ),
        (16, "static", 'input_format "static" of the experts needs gate_up_input_scale'),
        (17, torch.zeros(2, 4, 2), r"gate_up_zero_point .* expected \[2, 4, 3\]"),
        (18, torch.zeros(2, 3, 1), r"down_zero_point .* expected \[2, 3, 2\]"),
        (19, [1, 6], r"down_scale .* expected \[2, 10, 1\]"),
        (21, "q6_k", r"down .* expected \[2, 10, 4\]"),
    ],
)
def test_operator_refuses(index, value, message):
    defaults = [None, None, None, None, "none", "dynamic", None, None, [], [], ""]
    args = [*arguments(), *defaults]
    args[index] = value
    with pytest.raises(QfuseError, match=message):
        torch.ops.qfuse.moe_experts(*args)
