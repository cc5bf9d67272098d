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

from qfuse.compiler.frontend.checkpoint import CONFIG, INDEX, SCALE_SUFFIX, SINGLE, read_json
from qfuse.compiler.torch_ops import quantize_blocks
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


TINY = {
    "hidden_size": 128,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 32,
    "intermediate_size": 200,
    "vocab_size": 256,
    "max_position_embeddings": 128,
}
"""Choices for tests, where seconds count: `write_demo_checkpoint(path, **TINY)`."""

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


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
    generator = torch.Generator().manual_seed(choice.seed)
    tensors: dict[str, torch.Tensor] = {}

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def linear(name: str, rows: int, columns: int, gain: float, bias: bool = False) -> None:
        weight = normal(rows, columns) * (gain * columns**-0.5)
        if choice.quantized:
            codes, scale = quantize_blocks(weight, choice.weight_block)
            tensors[f"{name}.weight"], tensors[f"{name}.weight{SCALE_SUFFIX}"] = codes, scale
        else:
            tensors[f"{name}.weight"] = weight.bfloat16()
        if bias:
            tensors[f"{name}.bias"] = (normal(rows) * 0.1).bfloat16()

    def norm(name: str, width: int, gain: float = 1.0) -> None:
        tensors[f"{name}.weight"] = (gain * torch.exp(0.2 * normal(width))).bfloat16()

    hidden, inner = choice.hidden_size, choice.intermediate_size
    query, key = choice.heads * choice.head_dim, choice.kv_heads * choice.head_dim
    embedding = normal(choice.vocab_size, hidden).bfloat16()
    tensors["model.embed_tokens.weight"] = embedding
    for layer in range(choice.layers):
        at = f"model.layers.{layer}"
        norm(f"{at}.input_layernorm", hidden)
        biased = choice.bias or choice.architecture == "qwen2"
        linear(f"{at}.self_attn.q_proj", query, hidden, 1.0, biased)
        linear(f"{at}.self_attn.k_proj", key, hidden, 1.0, biased)
        linear(f"{at}.self_attn.v_proj", key, hidden, 1.0, biased)
        linear(f"{at}.self_attn.o_proj", hidden, query, _UPDATE, choice.bias)
        if choice.architecture == "qwen3":
            norm(f"{at}.self_attn.q_norm", choice.head_dim, 1.5)
            norm(f"{at}.self_attn.k_norm", choice.head_dim)
        norm(f"{at}.post_attention_layernorm", hidden)
        linear(f"{at}.mlp.gate_proj", inner, hidden, 1.0)
        linear(f"{at}.mlp.up_proj", inner, hidden, 1.0)
        linear(f"{at}.mlp.down_proj", hidden, inner, 2 * _UPDATE)
    norm("model.norm", hidden)
    if not choice.tied:
        successor = torch.randperm(choice.vocab_size, generator=generator)
        head = normal(choice.vocab_size, hidden) * hidden**-0.5
        head[successor] += embedding.float() * (_LEAD / hidden)
        tensors["lm_head.weight"] = head.bfloat16()
    return tensors


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
