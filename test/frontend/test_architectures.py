"""Every architecture that checkpoints may have, tiny, against transformers.

What transformers saves is what is read, so names and layouts in files are the released ones.
"""

import json
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from qfuse.compiler import compile
from qfuse.compiler.frontend import baseline
from qfuse.compiler.frontend.checkpoint import Checkpoint
from qfuse.compiler.frontend.linear import quantize_linears
from qfuse.compiler.frontend.model_types import MODEL_TYPES
from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.runtime.report import ON_TORCH
from qfuse.compiler.torch_ops import quantize_blocks
from qfuse.dialects.errors import QfuseError

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 35]

COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SLIDING = {"sliding_window": 4}
BOTH_KINDS = {
    **SLIDING,
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.0625,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
ROUTED_EXPERTS = {
    "num_hidden_layers": 2,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
GPT_OSS = {
    **BOTH_KINDS,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}


# Scales of queries by position, as past the length that it was trained for.
MINISTRAL_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 4,
    "llama_4_scaling_beta": 0.1,
}


@dataclass(frozen=True)
class Architecture:
    """A config, and what one step of decoding does with the unquantized model.

    `launches` counts all that computes or copies, of which `torch` run on torch.
    """

    launches: int
    torch: int
    config: dict[str, Any] = field(default_factory=dict)


ARCHITECTURES = {
    "llama": Architecture(19, 8),
    "mistral": Architecture(19, 8, SLIDING),
    "ministral3": Architecture(28, 17, {"head_dim": 16, "rope_parameters": MINISTRAL_ROPE}),
    "qwen2": Architecture(19, 8),
    "qwen3": Architecture(21, 8, {"head_dim": 16}),
    "gemma": Architecture(20, 9, {"head_dim": 16}),
    "gemma2": Architecture(39, 27, {**SLIDING, "head_dim": 16, "query_pre_attn_scalar": 16}),
    "gemma3_text": Architecture(
        44, 16, {**BOTH_KINDS, "head_dim": 16, "query_pre_attn_scalar": 16}
    ),
    "phi": Architecture(35, 23, {"partial_rotary_factor": 0.5}),
    "phi3": Architecture(19, 8, SLIDING),
    "granite": Architecture(20, 8, GRANITE),
    "olmo": Architecture(19, 11, {"clip_qkv": 0.5}),
    "olmo2": Architecture(22, 8),
    "olmo3": Architecture(42, 15, BOTH_KINDS),
    "cohere": Architecture(58, 40, {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": Architecture(57, 36, {**BOTH_KINDS, "logit_scale": 0.25}),
    "smollm3": Architecture(
        28, 11, {**BOTH_KINDS, "use_sliding_window": True, "no_rope_layers": [1, 0]}
    ),
    "glm": Architecture(31, 22, {"head_dim": 16}),
    "glm4": Architecture(33, 22, {"head_dim": 16}),
    "exaone4": Architecture(35, 10, BOTH_KINDS),
    "seed_oss": Architecture(19, 8, {"head_dim": 16}),
    "ernie4_5": Architecture(29, 21, {"head_dim": 16}),
    "helium": Architecture(29, 20, {"head_dim": 16}),
    "nemotron": Architecture(29, 23, {"partial_rotary_factor": 0.5}),
    "starcoder2": Architecture(19, 12, {**SLIDING, "use_bias": True}),
    "stablelm": Architecture(
        36, 30, {"partial_rotary_factor": 0.25, "qk_layernorm": True, "use_parallel_residual": True}
    ),
    "gpt_neox": Architecture(29, 23, {"num_key_value_heads": 4, "rotary_pct": 0.25}),
    "qwen2_moe": Architecture(
        42,
        10,
        {
            **EXPERTS,
            **BOTH_KINDS,
            "use_sliding_window": True,
            "shared_expert_intermediate_size": 64,
        },
    ),
    "qwen3_moe": Architecture(24, 8, {**EXPERTS, "head_dim": 16, "norm_topk_prob": True}),
    "olmoe": Architecture(
        24, 8, {"num_experts": 8, "num_experts_per_tok": 2, "norm_topk_prob": True}
    ),
    "mixtral": Architecture(22, 8, {**SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "phimoe": Architecture(
        42, 28, {**SLIDING, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_scaling": None}
    ),
    "granitemoe": Architecture(
        24, 8, {**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "gpt_oss": Architecture(81, 61, GPT_OSS),
    "glm4_moe": Architecture(53, 34, {**ROUTED_EXPERTS, "head_dim": 16}),
    "deepseek_v3": Architecture(47, 14, {**ROUTED_EXPERTS, **LATENT}),
}
"""Layers differ within a model where its type has several kinds of them."""


def tiny(name: str) -> Any:
    """A model in f32 with random weights, norms and biases included."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[name].from_dict(COMMON | ARCHITECTURES[name].config)
    # transformers has no other attention with a cap or sinks for a CPU
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = torch.randn(parameter.shape) * parameter.shape[-1] ** -0.5
        else:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    for buffer_name, buffer in model.named_buffers():
        if buffer_name.endswith("e_score_correction_bias"):
            buffer.data = 0.1 * torch.randn(buffer.shape)
    return model.requires_grad_(False)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def run_steps(exe: Executable, lengths: list[int]) -> torch.Tensor:
    """Logits [T, V] of IDS, fed `lengths` tokens at a time."""
    session, start, logits = exe.session(), 0, []
    for tokens in lengths:
        ids = torch.tensor([IDS[start : start + tokens]])
        position = torch.arange(start, start + tokens)
        made = session.run({"input_ids": ids, "position": position})["logits"]
        logits.append(made[0].clone())
        start += tokens
    return torch.cat(logits)


def launches(exe: Executable) -> tuple[int, int]:
    """Of one step of decoding: all, and those that run on torch."""
    profile = exe.session().profile(torch.tensor([[1]]), torch.tensor([len(IDS)]))
    return profile.launches, profile.by_kind.get("torch", (0, 0))[0]


def quantize_file(path: Path) -> None:
    """Make a saved model one of FP8 blocks of 32 x 32, all its linear layers but the head."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    for name, weight in list(tensors.items()):
        if not name.endswith(("_proj.weight", ".dense.weight")):
            continue
        tensors[name], tensors[f"{name}_scale_inv"] = quantize_blocks(weight, (32, 32))
    save_file(tensors, file, {"format": "pt"})
    quantization = {
        "quant_method": "fp8",
        "weight_block_size": [32, 32],
        "activation_scheme": "dynamic",
    }
    edit_config(path, quantization_config=quantization)


def edit_config(path: Path, **changes: Any) -> None:
    """Replace entries of a saved model's config."""
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_every_model_type_is_tested() -> None:
    assert set(ARCHITECTURES) == set(MODEL_TYPES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpoint(name: str, tmp_path: Path) -> None:
    """In f32: products add up in another order than torch, a few units in the last place."""
    model = tiny(name)
    model.save_pretrained(tmp_path)
    expected = model(torch.tensor([IDS]), use_cache=False).logits[0]
    exe = compile(tmp_path, max_len=32, logits="all")
    assert relative(run_steps(exe, [6, 1, 3]), expected) < 2e-6
    wanted = ARCHITECTURES[name]
    assert launches(exe) == (wanted.launches, wanted.torch)
    listed = sum(kind.count for kind in exe.report().on_torch() if kind.pattern == ON_TORCH)
    assert listed == wanted.torch, "nothing stays on torch unseen"


QUANTIZED = {
    "gemma3_text": (80, 46),
    "granite": (41, 21),
    "qwen2_moe": (98, 46),
}
"""Launches of one step of decoding without fusion, and with it."""


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_checkpoint(name: str, tmp_path: Path) -> None:
    """FP8: fused and unfused give the same bits.  Where a sum differs from transformers' in its
    last place, a code of an input may be the next one, 2^-4 of a value away; wrong scales,
    windows, norms or rotations are off by 10 % and more."""
    tiny(name).save_pretrained(tmp_path)
    quantize_file(tmp_path)
    fused = compile(tmp_path, max_len=32, logits="all")
    unfused = compile(tmp_path, max_len=32, logits="all", disable=["all"])
    logits = run_steps(fused, [6, 1, 3])
    assert torch.equal(logits, run_steps(unfused, [6, 1, 3]))
    reference = baseline.reference_model(Checkpoint(tmp_path), simulate_activations=True)
    assert relative(logits, baseline.logits(reference, IDS)) < 2e-2
    assert (launches(unfused)[0], launches(fused)[0]) == QUANTIZED[name]


def test_gpt_oss_as_released(tmp_path: Path) -> None:
    """Experts in MXFP4, whose products are exact: rounding is that of the unquantized model."""
    model = tiny("gpt_oss")
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for layer, block in enumerate(model.model.layers):
        for name in ("gate_up_proj", "down_proj"):
            full = f"model.layers.{layer}.mlp.experts.{name}"
            experts, columns, rows = tensors.pop(full).shape
            blocks = torch.randint(256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
            scales = torch.randint(122, 125, blocks.shape[:3], dtype=torch.uint8)
            tensors |= {f"{full}_blocks": blocks, f"{full}_scales": scales}
            values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
            getattr(block.mlp.experts, name).data = values
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    edit_config(tmp_path, quantization_config={"quant_method": "mxfp4"})
    expected = model(torch.tensor([IDS]), use_cache=False).logits[0]
    exe = compile(tmp_path, max_len=32, logits="all")
    assert relative(run_steps(exe, [6, 1, 3]), expected) < 2e-6
    assert exe.report().expert_layers is not None


def test_what_is_not_causal_is_refused(tmp_path: Path) -> None:
    tiny("gemma3_text").save_pretrained(tmp_path)
    edit_config(tmp_path, use_bidirectional_attention=True)
    with pytest.raises(QfuseError, match="attention to later tokens is not supported"):
        compile(tmp_path)


def test_rotations_of_any_layer_are_checked(tmp_path: Path) -> None:
    """Layers of two kinds have an entry each."""
    tiny("gemma3_text").save_pretrained(tmp_path)
    rope = json.loads((tmp_path / "config.json").read_text())["rope_parameters"]
    rope["full_attention"] |= {"rope_type": "dynamic", "factor": 2.0}
    edit_config(tmp_path, rope_parameters=rope)
    with pytest.raises(QfuseError, match='rope_type "dynamic" is not supported'):
        compile(tmp_path)


@pytest.mark.parametrize("name", ["gemma3_text", "phi3", "gpt_neox"])
def test_torch_compile(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """The whole model in one graph, its FP8 layers on kernels, through Dynamo."""
    torch._dynamo.reset()
    model = quantize_linears(tiny(name), (32, 32))
    ids = torch.tensor([IDS])
    expected = model(ids, use_cache=False).logits
    with caplog.at_level(logging.WARNING, "qfuse"):
        made = torch.compile(model, backend="qfuse", fullgraph=True)(ids, use_cache=False).logits
    assert "runs on torch" not in caplog.text
    assert relative(made, expected) < 2e-2, "an FP8 code may be the next one; see above"
