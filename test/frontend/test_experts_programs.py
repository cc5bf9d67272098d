"""Tiny checkpoints of mixtures of experts, from the file to tokens."""

import json

import pytest
import torch

from qfuse.tools.qfuse import main


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_demo(checkpoints, capsys, architecture):
    """Fused and unfused programs say the same, and it is near what transformers says in f32."""
    path = checkpoints(architecture=architecture)
    assert main(["demo", "--model", str(path), "--tokens", "8", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["greedy_tokens_equal"] is True and len(data["tokens"]) == 8
    assert data["max_rel_err_vs_unfused"] == 0.0
    assert data["rel_err_vs_fp32"] < 0.05 and data["rel_err_vs_fp32_quantized"] < 0.05
    assert data["kernels_after"] <= 0.6 * data["kernels_before"]
    before, after = (data[f"kernels_per_moe_layer_{when}"] for when in ("before", "after"))
    # router, selection, routing, gate and up, down with the sum: 5, and a conversion in DeepSeek
    assert (before, after) == ((16, 6) if architecture == "deepseek_v3" else (9, 5))
    assert ("shared-expert" in data["patterns"]) == (architecture == "deepseek_v3")
    for pattern in ("select-experts", "moe-experts", "product-combine"):
        assert data["patterns"][pattern]["fired"] == (1 if architecture == "deepseek_v3" else 2)


@pytest.mark.parametrize("architecture", ["qwen3_moe", "mixtral", "deepseek_v3"])
def test_unquantized_experts(checkpoints, capsys, architecture):
    """The same of bf16 weights; 72 features of an expert are no multiple of a kernel's groups."""
    path = checkpoints(architecture=architecture, quantized=False)
    assert main(["demo", "--model", str(path), "--tokens", "8", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["greedy_tokens_equal"] is True and len(data["tokens"]) == 8
    assert data["max_rel_err_vs_unfused"] == 0.0 and data["rel_err_vs_fp32"] < 0.05
    before, after = (data[f"kernels_per_moe_layer_{when}"] for when in ("before", "after"))
    assert (before, after) == ((13, 6) if architecture == "deepseek_v3" else (7, 5))
    for pattern in ("select-experts", "moe-experts", "product-combine"):
        assert data["patterns"][pattern]["fired"] == (1 if architecture == "deepseek_v3" else 2)
    # routers, too, and DeepSeek's in f32
    assert data["patterns"]["plain-product"]["refused"] == 0


@pytest.mark.parametrize("quantized", [True, False])
def test_demo_of_clamped_experts_with_biases(editable, capsys, quantized):
    """gpt-oss's GLU in FP8 experts, and in unquantized ones."""
    model = editable(architecture="qwen3_moe", quantized=quantized)

    def edit(tensors):
        for name in [n for n in tensors if ".experts." in n and n.endswith(".weight")]:
            bias = torch.randn(tensors[name].shape[0]) * (0.02 if "down" in name else 0.5)
            tensors[name.removesuffix("weight") + "bias"] = bias.bfloat16()

    model.tensors(edit)
    model.config(swiglu_limit=1.5, swiglu_alpha=1.702)
    assert main(["demo", "--model", str(model.path), "--tokens", "8", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["greedy_tokens_equal"] is True and data["max_rel_err_vs_unfused"] == 0.0
    assert data["rel_err_vs_fp32"] < 0.05 and data["rel_err_vs_fp32_quantized"] < 0.05
    assert data["patterns"]["moe-experts"]["fired"] == 2
    if quantized:
        assert data["kernels_after"] <= 0.6 * data["kernels_before"]


def test_arch_and_model_exclude_each_other(checkpoints, capsys):
    assert main(["demo", "--model", str(checkpoints()), "--arch", "qwen3-moe"]) == 1
    assert "give one of them" in capsys.readouterr().err


def test_config_only(checkpoints, capsys):
    config = checkpoints(architecture="deepseek_v3") / "config.json"
    assert main(["compile", "--config-only", str(config), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    ops = data["ops"]["fused"]
    (layer,) = data["expert_layers"]
    assert (layer["before"], layer["after"]) == (16, 6)
    assert layer["weight"].endswith("experts.gate_up_proj")
    names = ("select_experts", "route", "group_matmul", "group_matmul_combine")
    assert [ops.get(f"qfuse.{name}") for name in (*names, "combine")] == [1, 1, 1, 1, None]
