"""Tiny GGUF models, written by the package `gguf` from transformers models with seeded weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ggml_quantizers
import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

WIDTHS = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}


EXPERTS = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "num_experts": 8,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 256,
        "norm_topk_prob": True,
    },
}


def q4_k_m(name: str) -> str:
    """The types of llama.cpp's Q4_K_M: Q6_K for the head and half of the sensitive tensors."""
    if name in ("output.weight", "token_embd.weight"):
        return "Q6_K"
    sensitive = name.endswith(("attn_v.weight", "ffn_down.weight", "ffn_down_exps.weight"))
    return "Q6_K" if sensitive and name.startswith("blk.0.") else "Q4_K"


def transformers_model(architecture: str, seed: int = 0, **choices: Any) -> Any:
    """A model in f32 with random weights; norms differ per channel."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        architecture, **(WIDTHS | EXPERTS.get(architecture, {}) | choices)
    )
    config._attn_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.exp(0.2 * torch.randn_like(parameter)))
            elif name.endswith("bias"):
                parameter.normal_(0, 0.1)
            else:
                parameter.normal_(0, deviation(name, parameter.shape[-1]))
    return model


def deviation(name: str, columns: int) -> float:
    """Standard deviation of a weight, by what a trained model's residual stream is made of.

    Embeddings outweigh what a block adds, so that a code of an input that a rounding moved to its
    neighbour shows little in the logits, and not as much as everything.
    """
    if "embed_tokens" in name:
        return 1.0
    return (0.05 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0) * columns**-0.5


def write(
    path: Path,
    model: Any,
    type_of: Callable[[str], str] = q4_k_m,
    metadata: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> dict[str, torch.Tensor]:
    """Write `model` with matrices of the types that `type_of` names by ggml's names of them.

    `metadata` replaces keys (None leaves one out), `extra` adds f32 tensors.  Returns what gguf's
    own dequantizer makes of each tensor, f32, by transformers' names.
    """
    config = model.config
    architecture = _ARCHITECTURES[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    width = config.hidden_size // config.num_attention_heads
    width = getattr(config, "head_dim", None) or width
    keys: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": width,
        "attention.value_length": width,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        "rope.dimension_count": width,
    }
    keys |= _expert_keys(config)
    for key, value in (keys | dict(metadata or {})).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add[type(value)](f"{writer.arch}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(config.vocab_size)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    values: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        parts = []
        for leaf, part in _stacks(name, parameter.detach()):
            stored = names.get_name(leaf, (".weight", ".bias"))
            assert stored is not None
            stored += "" if "." in stored[-7:] else ".weight"
            array = part.numpy()
            order = _llama_cpp_order(model, name, len(array))
            plain = array.ndim == 1 or "ffn_gate_inp" in stored
            kind = Type.F32 if plain else Type[type_of(stored)]
            data = quantize(array[order], kind)
            writer.add_tensor(stored, data, raw_dtype=kind)
            back = gguf.dequantize(data, kind).reshape(array.shape)
            parts.append(torch.from_numpy(back[np.argsort(order)].copy()))
        values[name] = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def quantize(array: np.ndarray, kind: Type) -> np.ndarray:
    own = {Type.Q4_K: ggml_quantizers.q4_k, Type.Q6_K: ggml_quantizers.q6_k}
    if kind not in own:
        return gguf.quantize(array, kind)
    made = own[kind](array.reshape(-1, array.shape[-1]))
    return made.reshape(*array.shape[:-1], -1)


def _stacks(name: str, parameter: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """A parameter, or the two that llama.cpp has for one of transformers' experts."""
    if not name.endswith("experts.gate_up_proj"):
        return [(name, parameter)]
    halves = zip(("gate_proj", "up_proj"), parameter.chunk(2, 1), strict=True)
    return [(name.replace("gate_up_proj", leaf), half) for leaf, half in halves]


def _expert_keys(config: Any) -> dict[str, Any]:
    if not hasattr(config, "num_experts_per_tok"):
        return {}
    count = getattr(config, "num_local_experts", None) or config.num_experts
    keys = {"expert_count": count, "expert_used_count": config.num_experts_per_tok}
    if config.model_type == "qwen3_moe":
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
    return keys


_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
}


def _llama_cpp_order(model: Any, name: str, rows: int) -> np.ndarray:
    """The rows as llama.cpp's converter orders them: `LlamaModel.permute`."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    key = heads.get(name.split(".")[-2])
    order = np.arange(rows)
    if model.config.model_type not in ("llama", "mixtral") or key is None:
        return order
    count = getattr(model.config, key)
    return order.reshape(count, 2, rows // count // 2).swapaxes(1, 2).reshape(-1)
