"""Routers: the operator, transformers' own modules next to it, and what a graph holds of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from qfuse.compiler import torch_ops
from qfuse.compiler.frontend.huggingface import import_checkpoint
from qfuse.compiler.frontend.routers import select_by_operator
from qfuse.dialects.errors import QfuseError

assert torch_ops.NAMESPACE == "qfuse"
FAST = settings(max_examples=40, deadline=None)
MOE = ("qwen3_moe", "mixtral", "deepseek_v3")

SCORES = {"softmax": lambda x: x.softmax(-1), "sigmoid": torch.sigmoid}


def by_definition(logits, bias, k, scoring, normalize, scale, num_groups, groups_used):
    """Ids and f64 weights, token by token; scores and choices, which ids hang on, are f32."""
    scores = SCORES[scoring](logits.float()).numpy()
    choices = scores if bias is None else scores + bias.numpy()
    size = logits.shape[1] // num_groups
    ids, weights = [], []
    for score, choice in zip(scores, choices, strict=True):
        groups = choice.reshape(num_groups, size)
        counts = np.sort(groups, -1)[:, -2:].sum(-1, dtype=np.float32)
        used = sorted(range(num_groups), key=lambda g: (-counts[g], g))[:groups_used]
        counted = [choice[e] if e // size in used else -np.inf for e in range(len(choice))]
        chosen = sorted(range(len(choice)), key=lambda e: (-counted[e], e))[:k]
        factors = score[chosen].astype(np.float64)
        if normalize:
            factors /= factors.sum() + (1e-20 if scoring == "sigmoid" else 0.0)
        ids.append(chosen)
        weights.append(factors * scale)
    shape = (len(logits), k)
    return torch.tensor(ids).view(shape), torch.tensor(np.array(weights)).view(shape)


@FAST
@given(
    groups=st.integers(1, 4),
    size=st.integers(1, 5),
    tokens=st.integers(0, 4),
    scoring=st.sampled_from(sorted(SCORES)),
    normalize=st.booleans(),
    has_bias=st.booleans(),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_select_experts(groups, size, tokens, scoring, normalize, has_bias, tied, dtype, data):
    """Tied: logits of few values, so that ids hang on their order among equals."""
    used = data.draw(st.integers(1, groups))
    k = data.draw(st.integers(1, used * size))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    logits = torch.randn(tokens, groups * size, generator=generator) * 3
    bias = torch.randn(groups * size, generator=generator) if has_bias else None
    if tied:
        logits = logits.sign()
        bias = None if bias is None else bias.sign() / 2
    logits = logits.to(dtype)
    options = (k, scoring, normalize, 2.5, groups, used)
    ids, weights = torch.ops.qfuse.select_experts(logits, bias, *options, dtype)
    expected_ids, expected = by_definition(logits, bias, *options)
    assert ids.dtype == torch.int64 and weights.dtype == dtype
    assert torch.equal(ids, expected_ids)
    rtol = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(weights.double(), expected, rtol=rtol, atol=0)


def test_weights_are_added_in_the_order_of_ids():
    """2^-24 next to 1 is lost in f32, unless small terms come first."""
    scores = torch.tensor([[1.0, *[2.0**-24] * 4]])
    logits = scores.logit().clamp(max=30)
    assert torch.equal(logits.sigmoid(), scores)
    ids, weights = torch.ops.qfuse.select_experts(
        logits, None, 5, "sigmoid", True, 1.0, 1, 1, torch.float32
    )
    assert ids.tolist() == [[0, 1, 2, 3, 4]] and weights[0, 0] == 1.0


def router(architecture, **changes):
    """transformers' router with random parameters: 8 experts of 2 groups, 3 for each token."""
    import transformers.models.deepseek_v3.modeling_deepseek_v3 as deepseek
    import transformers.models.mixtral.modeling_mixtral as mixtral
    import transformers.models.qwen3_moe.modeling_qwen3_moe as qwen3

    config, module = {
        "qwen3_moe": (qwen3.Qwen3MoeConfig(num_experts=8), qwen3.Qwen3MoeTopKRouter),
        "mixtral": (mixtral.MixtralConfig(num_local_experts=8), mixtral.MixtralTopKRouter),
        "deepseek_v3": (
            deepseek.DeepseekV3Config(n_routed_experts=8, n_group=2, topk_group=1),
            deepseek.DeepseekV3TopkRouter,
        ),
    }[architecture]
    config.update({"hidden_size": 32, "num_experts_per_tok": 3, **changes})
    made = module(config).requires_grad_(False)
    made.weight.normal_()
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("qwen3_moe", {"norm_topk_prob": True}),
        ("qwen3_moe", {"norm_topk_prob": False}),
        ("mixtral", {}),
        ("deepseek_v3", {"norm_topk_prob": True, "routed_scaling_factor": 2.5}),
        ("deepseek_v3", {"norm_topk_prob": False, "n_group": 1}),
        ("deepseek_v3", {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.0}),
    ],
)
def test_routers_are_transformers(architecture, changes, dtype):
    """The same experts with the same weights, in the same types; DeepSeek's have no order there."""
    torch.manual_seed(0)
    module = router(architecture, **changes)
    module.weight.data = module.weight.to(dtype)
    if architecture == "deepseek_v3":
        module.e_score_correction_bias.uniform_(-2, 0.5)
    hidden = torch.randn(2, 50, 32, dtype=dtype)
    logits, weights, ids = module(hidden)
    select_by_operator(nn.ModuleList([module]))
    our_logits, our_weights, our_ids = module(hidden)
    assert torch.equal(our_logits, logits) and our_logits.dtype == logits.dtype
    assert our_weights.dtype == weights.dtype and our_ids.dtype == ids.dtype
    chosen, ours = (
        logits.new_zeros(logits.shape, dtype=torch.float32).scatter(-1, i, w.float())
        for i, w in ((ids, weights), (our_ids, our_weights))
    )
    differing = (chosen > 0) != (ours > 0)
    # of equal logits, of which bf16 has many, transformers chooses any
    ties = dtype == torch.bfloat16 and architecture != "deepseek_v3"
    assert differing.any(-1).float().mean() <= (0.1 if ties else 0.0)
    same = ~differing.any(-1)
    torch.testing.assert_close(ours[same], chosen[same], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        our_weights.sort(-1).values, weights.sort(-1).values, rtol=1e-6, atol=0
    )


def test_equal_logits_choose_the_lowest_ids():
    """Where transformers' order is anybody's guess; the weights are its own."""
    for architecture in MOE:
        module = router(architecture)
        module.weight.zero_()
        _, weights, _ = module(torch.ones(4, 32))
        select_by_operator(nn.ModuleList([module]))
        _, our_weights, ids = module(torch.ones(4, 32))
        assert ids.tolist() == [[0, 1, 2]] * 4
        torch.testing.assert_close(our_weights, weights, rtol=1e-6, atol=0)


def test_shape_rule_agrees_with_the_implementation():
    for dtype, bias in ((torch.float32, torch.zeros(8)), (torch.bfloat16, None)):
        torch.library.opcheck(
            torch.ops.qfuse.select_experts.default,
            (torch.randn(3, 8), bias, 2, "softmax", True, 1.0, 4, 2, dtype),
            test_utils=("test_schema", "test_faketensor"),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(8)}, r"float logits \[T, E\]; got torch.float32 \[8\]"),
        ({"logits": torch.zeros(3, 8, dtype=torch.int64)}, "float logits .* got torch.int64"),
        ({"bias": torch.zeros(7)}, r"bias .* \[7\]; expected float32 \[8\]"),
        ({"bias": torch.zeros(8).half()}, r"bias .* torch.float16 \[8\]; expected float32"),
        ({"scoring": "tanh"}, 'scoring "tanh" is not one of softmax, sigmoid'),
        ({"num_groups": 3}, "1 of 3 groups of 8 experts"),
        ({"num_groups": 0}, "1 of 0 groups of 8 experts"),
        ({"groups_used": 2}, "2 of 1 groups of 8 experts"),
        ({"k": 0}, "chooses 0 experts of 8; use 1 to 8"),
        ({"k": 3, "num_groups": 4}, "chooses 3 experts of 2; use 1 to 2"),
    ],
)
def test_operator_refuses(change, message):
    good = {
        **{"logits": torch.zeros(3, 8), "bias": None, "k": 2, "scoring": "softmax"},
        **{"normalize": True, "scale": 1.0, "num_groups": 1, "groups_used": 1},
    }
    with pytest.raises(QfuseError, match=message):
        torch.ops.qfuse.select_experts(*(good | change).values(), torch.float32)


@pytest.mark.parametrize("architecture", MOE)
def test_one_operator_for_the_router_of_a_layer(checkpoints, architecture):
    """And nothing else but its linear layer, in the type that transformers has it in."""
    imported = import_checkpoint(checkpoints(architecture=architecture), max_len=64)
    text = str(imported.module)
    sparse = 1 if architecture == "deepseek_v3" else 2
    calls = [line for line in text.splitlines() if '"torch.qfuse.select_experts"' in line]
    assert len(calls) == sparse
    dtype = "f32" if architecture == "deepseek_v3" else "bf16"
    weights = "bf16" if architecture == "qwen3_moe" else "f32"
    for call in calls:
        assert f": (!torch.vtensor<[?,8],{dtype}>," in call
        assert call.split("->")[1].split(",")[-1].startswith(f"{weights}>")
    for name in ("topk", "softmax", "sigmoid", "gather", "scatter", "masked_fill", "sum"):
        assert f"torch.aten.{name}" not in text, name
    debug = imported.module.operation.get_asm(enable_debug_info=True)
    assert 'loc("model.layers.1.mlp.gate")' in debug
