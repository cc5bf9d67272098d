"""A small FP8 checkpoint with seeded random weights, in the layout of released ones.

The weights are shaped like a trained model's where it matters to numerics: the residual stream is
dominated by the embeddings, each block adds a modest update, norm weights differ per channel, and
the head prefers one successor per token by a clear margin, so that greedy decoding compares
implementations and not roundings of a tie.
"""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qfuse.compiler.block_scaled import quantize_blocks
from qfuse.compiler.frontend.checkpoint import CONFIG, INDEX, SCALE_SUFFIX, SINGLE, read_json
from qfuse.dialects.errors import QfuseError

# Root mean square of what a block adds to the residual stream, whose own is about one.
_UPDATE = 0.045
# Standard deviations of the logits by which the preferred successor leads.
_LEAD = 8.0


@dataclass(frozen=True)
class DemoConfig:
    """What is free to choose; `intermediate_size` is no multiple of the block on purpose."""

    seed: int = 0
    architecture: str = "qwen3"
    hidden_size: int = 512
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    intermediate_size: int = 1400
    vocab_size: int = 4096
    max_position_embeddings: int = 2048
    weight_block: tuple[int, int] = (128, 128)
    quantized: bool = True
    tied: bool = False
    bias: bool = False
    shards: int = 1
    # what follows is for mixtures of experts
    experts: int = 16
    experts_per_token: int = 4
    expert_size: int = 344
    dense_layers: int = 1


TINY = {
    "hidden_size": 128,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 32,
    "intermediate_size": 200,
    "vocab_size": 256,
    "max_position_embeddings": 128,
    "experts": 8,
    "experts_per_token": 2,
    "expert_size": 72,
}
"""Choices for tests, where seconds count: `write_demo_checkpoint(path, **TINY)`."""

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}
_MOE = ("qwen3_moe", "mixtral", "deepseek_v3")
_MOE_CHOICES = ("experts", "experts_per_token", "expert_size", "dense_layers")
# The experts of DeepSeek-V3 are in groups of this many, of which a token may use some.
_GROUP = 4
_ROUTED_SCALE = 2.5  # their weights add up to this
_MATRICES = ("gate_proj", "up_proj", "down_proj")


def write_demo_checkpoint(directory: str | Path, **choices: Any) -> Path:
    """Write the checkpoint of `DemoConfig(**choices)` once; a complete one is used again.

    The directory appears whole or not at all.  Raises QfuseError if it exists with other content
    or cannot be written.
    """
    choice = DemoConfig(**choices)
    target = Path(directory)
    config = _config(choice)
    if _is_complete(target, config):
        return target
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise QfuseError(
            f"{target} exists and is not this demo checkpoint; remove it or go elsewhere"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise QfuseError(f"{target} cannot be written: {error.strerror or error}") from error
    try:
        staging.chmod(0o755)
        _write(staging, config, make_tensors(choice), choice.shards)
        os.replace(staging, target)
    except OSError as error:
        # another process may have been first
        if not _is_complete(target, config):
            raise QfuseError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def make_tensors(choice: DemoConfig) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint by name, the same for the same choice."""
    make = _Maker(choice)
    embedding = make.normal(choice.vocab_size, choice.hidden_size).bfloat16()
    make.tensors["model.embed_tokens.weight"] = embedding
    for layer in range(choice.layers):
        at = f"model.layers.{layer}"
        make.norm(f"{at}.input_layernorm", choice.hidden_size)
        if choice.architecture == "deepseek_v3":
            make.latent_attention(f"{at}.self_attn")
        else:
            make.attention(f"{at}.self_attn")
        make.norm(f"{at}.post_attention_layernorm", choice.hidden_size)
        if _is_sparse(choice, layer):
            make.experts(at)
        else:
            make.mlp(f"{at}.mlp", choice.intermediate_size)
    make.norm("model.norm", choice.hidden_size)
    if not choice.tied:
        successor = torch.randperm(choice.vocab_size, generator=make.generator)
        head = make.normal(choice.vocab_size, choice.hidden_size) * choice.hidden_size**-0.5
        head[successor] += embedding.float() * (_LEAD / choice.hidden_size)
        make.tensors["lm_head.weight"] = head.bfloat16()
    return make.tensors


class _Maker:
    """Draws the tensors of one checkpoint, in the order of the calls."""

    def __init__(self, choice: DemoConfig) -> None:
        self.choice = choice
        self.generator = torch.Generator().manual_seed(choice.seed)
        self.tensors: dict[str, torch.Tensor] = {}

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator)

    def linear(self, name: str, rows: int, columns: int, gain: float, bias: bool = False) -> None:
        weight = self.normal(rows, columns) * (gain * columns**-0.5)
        if self.choice.quantized:
            codes, scale = quantize_blocks(weight, self.choice.weight_block)
            self.tensors[f"{name}.weight"] = codes
            self.tensors[f"{name}.weight{SCALE_SUFFIX}"] = scale
        else:
            self.tensors[f"{name}.weight"] = weight.bfloat16()
        if bias:
            self.tensors[f"{name}.bias"] = (self.normal(rows) * 0.1).bfloat16()

    def norm(self, name: str, width: int, gain: float = 1.0) -> None:
        self.tensors[f"{name}.weight"] = (gain * torch.exp(0.2 * self.normal(width))).bfloat16()

    def attention(self, at: str) -> None:
        choice, hidden = self.choice, self.choice.hidden_size
        query, key = choice.heads * choice.head_dim, choice.kv_heads * choice.head_dim
        biased = choice.bias or choice.architecture == "qwen2"
        self.linear(f"{at}.q_proj", query, hidden, 1.0, biased)
        self.linear(f"{at}.k_proj", key, hidden, 1.0, biased)
        self.linear(f"{at}.v_proj", key, hidden, 1.0, biased)
        self.linear(f"{at}.o_proj", hidden, query, _UPDATE, choice.bias)
        if choice.architecture in ("qwen3", "qwen3_moe"):
            self.norm(f"{at}.q_norm", choice.head_dim, 1.5)
            self.norm(f"{at}.k_norm", choice.head_dim)

    def latent_attention(self, at: str) -> None:
        heads, hidden = self.choice.heads, self.choice.hidden_size
        width = _latent_widths(self.choice)
        rope, value = width["qk_rope_head_dim"], width["v_head_dim"]
        straight = width["qk_nope_head_dim"]
        query, key = width["q_lora_rank"], width["kv_lora_rank"]
        self.linear(f"{at}.q_a_proj", query, hidden, 1.0)
        self.norm(f"{at}.q_a_layernorm", query)
        self.linear(f"{at}.q_b_proj", heads * (straight + rope), query, 1.0)
        self.linear(f"{at}.kv_a_proj_with_mqa", key + rope, hidden, 1.0)
        self.norm(f"{at}.kv_a_layernorm", key)
        self.linear(f"{at}.kv_b_proj", heads * (straight + value), key, 1.0)
        self.linear(f"{at}.o_proj", hidden, heads * value, _UPDATE)

    def mlp(
        self,
        at: str,
        inner: int,
        names: tuple[str, str, str] = _MATRICES,
        gain: float = 2 * _UPDATE,
    ) -> None:
        hidden, (gate, up, down) = self.choice.hidden_size, names
        self.linear(f"{at}.{gate}", inner, hidden, 1.0)
        self.linear(f"{at}.{up}", inner, hidden, 1.0)
        self.linear(f"{at}.{down}", hidden, inner, gain)

    def experts(self, layer: str) -> None:
        """The router, the experts and, where the architecture has one, the shared expert."""
        choice, mixtral = self.choice, self.choice.architecture == "mixtral"
        at = f"{layer}.block_sparse_moe" if mixtral else f"{layer}.mlp"
        router = self.normal(choice.experts, choice.hidden_size) * (2 * choice.hidden_size**-0.5)
        self.tensors[f"{at}.gate.weight"] = router.bfloat16()
        names = ("w1", "w3", "w2") if mixtral else _MATRICES
        # Half of a dense layer's: where bf16 makes a token change one expert for another, as it
        # does in released models too, that must not outweigh all other roundings.
        gain = _UPDATE / (_ROUTED_SCALE if choice.architecture == "deepseek_v3" else 1.0)
        for expert in range(choice.experts):
            self.mlp(f"{at}.experts.{expert}", choice.expert_size, names, gain)
        if choice.architecture == "deepseek_v3":
            self.tensors[f"{at}.gate.e_score_correction_bias"] = 0.1 * self.normal(choice.experts)
            self.mlp(f"{at}.shared_experts", choice.expert_size)


def _is_sparse(choice: DemoConfig, layer: int) -> bool:
    """Whether a layer has experts."""
    first = choice.dense_layers if choice.architecture == "deepseek_v3" else 0
    return choice.architecture in _MOE and layer >= first


def _latent_widths(choice: DemoConfig) -> dict[str, int]:
    """Extents of DeepSeek's attention, as its config names them."""
    return {
        "q_lora_rank": choice.hidden_size // 2,
        "kv_lora_rank": choice.hidden_size // 4,
        "qk_nope_head_dim": choice.head_dim,
        "qk_rope_head_dim": choice.head_dim // 2,
        "v_head_dim": choice.head_dim,
    }


def _expert_entries(choice: DemoConfig) -> dict[str, Any]:
    """What the config of a mixture of experts has beside a dense model's."""
    entries: dict[str, Any] = {"num_experts_per_tok": choice.experts_per_token}
    if choice.architecture == "mixtral":
        return entries | {
            "num_local_experts": choice.experts,
            "intermediate_size": choice.expert_size,
        }
    entries |= {"moe_intermediate_size": choice.expert_size, "norm_topk_prob": True}
    if choice.architecture == "qwen3_moe":
        return entries | {
            "num_experts": choice.experts,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return entries | {
        "first_k_dense_replace": choice.dense_layers,
        "n_group": choice.experts // _GROUP,
        "n_routed_experts": choice.experts,
        "n_shared_experts": 1,
        "num_key_value_heads": choice.heads,
        "num_nextn_predict_layers": 0,
        "routed_scaling_factor": _ROUTED_SCALE,
        "scoring_func": "sigmoid",
        "topk_group": max(1, choice.experts // _GROUP // 2),
        "topk_method": "noaux_tc",
        **_latent_widths(choice),
    }


def _config(choice: DemoConfig) -> dict[str, Any]:
    if choice.architecture not in _CLASSES:
        raise QfuseError(
            f"architecture {choice.architecture!r} is not one of {', '.join(_CLASSES)}"
        )
    config: dict[str, Any] = {
        "architectures": [_CLASSES[choice.architecture]],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "head_dim": choice.head_dim,
        "hidden_act": "silu",
        "hidden_size": choice.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": choice.intermediate_size,
        "max_position_embeddings": choice.max_position_embeddings,
        "model_type": choice.architecture,
        "num_attention_heads": choice.heads,
        "num_hidden_layers": choice.layers,
        "num_key_value_heads": choice.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": choice.tied,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": choice.vocab_size,
        "qfuse_demo": asdict(choice) | {"weight_block": list(choice.weight_block)},
    }
    if choice.architecture in _MOE:
        config |= _expert_entries(choice)
    else:
        for name in _MOE_CHOICES:
            del config["qfuse_demo"][name]
    if choice.architecture == "deepseek_v3":
        del config["head_dim"]
    if choice.architecture in ("llama", "qwen3"):
        config["attention_bias"] = choice.bias
    if choice.quantized:
        config["quantization_config"] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": ["lm_head"],
            "quant_method": "fp8",
            "weight_block_size": list(choice.weight_block),
        }
    return config


def _write(
    directory: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], shards: int
) -> None:
    from safetensors.torch import save_file

    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, directory / SINGLE, metadata=metadata)
    else:
        names = list(tensors)
        weight_map: dict[str, str] = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
            save_file({name: tensors[name] for name in part}, directory / file, metadata=metadata)
            weight_map |= dict.fromkeys(part, file)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")
    generation = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False}
    (directory / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    (directory / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def _is_complete(directory: Path, config: dict[str, Any]) -> bool:
    weights = (directory / SINGLE).is_file() or (directory / INDEX).is_file()
    return weights and (directory / CONFIG).is_file() and read_json(directory / CONFIG) == config
