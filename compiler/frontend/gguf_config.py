"""The Hugging Face config of a GGUF file, from its metadata and the shapes of its tensors."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError

_MODELS = {
    ("llama", False): ("llama", "LlamaForCausalLM"),
    ("llama", True): ("mixtral", "MixtralForCausalLM"),
    ("qwen2", False): ("qwen2", "Qwen2ForCausalLM"),
    ("qwen3", False): ("qwen3", "Qwen3ForCausalLM"),
    ("qwen3moe", True): ("qwen3_moe", "Qwen3MoeForCausalLM"),
}
"""`general.architecture`, with experts or without, to the model type and its class."""

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor that divides rotary frequencies, where the file has one (Llama 3.1)."""

ROUTER = "ffn_gate_inp"
EMBEDDING, HEAD, NORM = "token_embd.weight", "output.weight", "output_norm.weight"

_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
_MLP = ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")
_STACKS = ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
_MOE = ("ffn_norm", ROUTER, *_STACKS)

_SOFTMAX = 1
"""The only `expert_gating_func` of these models."""

# Keys that scale or clamp what transformers' models of these architectures do not.
_FOREIGN = (
    "attention.scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_group_count",
    "expert_shared_count",
    "expert_weights_scale",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "rope.scaling.attn_factor",
)


@dataclass(frozen=True)
class Metadata:
    """Key-value pairs of a file, for one architecture; `get` leaves out its prefix."""

    values: Mapping[str, Any]
    source: Path
    architecture: str

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(f"{self.architecture}.{key}", default)

    def number(self, key: str, default: Any = None) -> Any:
        """A number; a list of equal ones, one per layer, counts as one."""
        value = self.get(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]
        if not isinstance(value, int | float) or isinstance(value, bool):
            what = "is missing" if value is None else f"is {value!r}, not a number"
            raise QfuseError(f"{self.source}: metadata {self.architecture}.{key} {what}")
        return value


def config_of(
    values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], source: Path
) -> dict[str, Any]:
    """The config of the model in a file with these metadata and tensors (name to shape).

    `tie_word_embeddings` is false also where the file has no head: the head then is a product with
    the embedding as stored, and the embedding a table of its own.  Raises QfuseError, in one line,
    on what transformers' model would compute otherwise.
    """
    architecture = values.get("general.architecture")
    if architecture not in {name for name, _ in _MODELS}:
        raise QfuseError(
            f"{source}: architecture {architecture!r} is not supported; "
            f"supported: {', '.join(dict.fromkeys(name for name, _ in _MODELS))}"
        )
    meta = Metadata(values, source, architecture)
    experts = meta.number("expert_count", 0)
    if (architecture, experts > 0) not in _MODELS:
        raise QfuseError(
            f"{source}: metadata {architecture}.expert_count {experts} is not supported"
        )
    model_type, model_class = _MODELS[architecture, experts > 0]
    for key in _FOREIGN:
        if meta.get(key) not in (None, 0, 0.0):
            raise QfuseError(f"{source}: metadata {architecture}.{key} is not supported")
    hidden, heads = meta.number("embedding_length"), meta.number("attention.head_count")
    width = meta.number("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if meta.number(key, width) != width:
            raise QfuseError(
                f"{source}: {architecture}.{key} is {meta.number(key)}, but a key's length is "
                f"{width}; supported: equal lengths"
            )
    length = meta.number("context_length")
    if meta.number("attention.sliding_window", length) < length:
        raise QfuseError(f"{source}: {architecture}.attention.sliding_window is not supported")
    if EMBEDDING not in tensors:
        raise QfuseError(f"tensor {EMBEDDING} is missing from {source}")
    config: dict[str, Any] = {
        "architectures": [model_class],
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": values.get("tokenizer.ggml.eos_token_id"),
        "head_dim": width,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": meta.number("feed_forward_length"),
        "max_position_embeddings": length,
        "model_type": model_type,
        "num_attention_heads": heads,
        "num_hidden_layers": meta.number("block_count"),
        "num_key_value_heads": meta.number("attention.head_count_kv", heads),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": meta.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": False,
        "vocab_size": tensors[EMBEDDING][0],
    }
    if experts:
        config |= _experts(meta, model_type, tensors)
    if (scaling := _rope_scaling(meta)) is not None:
        config["rope_scaling"] = scaling
    if model_type in ("llama", "qwen3", "qwen3_moe"):
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if model_type == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    _check_names(config, tensors, source)
    return config


def _experts(
    meta: Metadata, model_type: str, tensors: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """The entries that say what experts there are, in every layer.

    llama.cpp's Mixtral and Qwen3-MoE divide the weights of a token's experts by their sum.
    """
    count, chosen = meta.number("expert_count"), meta.number("expert_used_count")
    gating = meta.number("expert_gating_func", _SOFTMAX)
    if gating != _SOFTMAX:
        raise QfuseError(
            f"{meta.source}: metadata {meta.architecture}.expert_gating_func is {gating}; "
            f"supported: {_SOFTMAX}, softmax"
        )
    for layer in range(meta.number("block_count")):
        for leaf in _STACKS:
            shape = tensors.get(f"blk.{layer}.{leaf}.weight", (count,))
            if shape[0] != count:
                raise QfuseError(
                    f"tensor blk.{layer}.{leaf}.weight of {meta.source} has {shape[0]} experts; "
                    f"the metadata ask for {count}"
                )
    if model_type == "mixtral":
        return {"num_local_experts": count, "num_experts_per_tok": chosen}
    return {
        "num_experts": count,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": meta.number("expert_feed_forward_length"),
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _rope_scaling(meta: Metadata) -> dict[str, Any] | None:
    kind = meta.get("rope.scaling.type", "none")
    factor = meta.number("rope.scaling.factor", meta.number("rope.scale_linear", 1.0))
    if kind == "linear" or (kind == "none" and meta.get("rope.scale_linear") is not None):
        return {"rope_type": "linear", "factor": factor}
    if kind != "none":
        raise QfuseError(
            f"{meta.source}: {meta.architecture}.rope.scaling.type {kind!r} is not supported; "
            f"supported: none, linear, and factors in {ROPE_FACTORS}"
        )
    return None


def _check_names(config: Mapping[str, Any], tensors: Collection[str], source: Path) -> None:
    """Raise QfuseError if the file has tensors that the model would not use."""
    expected = {EMBEDDING, HEAD, NORM, ROPE_FACTORS}
    for layer in range(config["num_hidden_layers"]):
        at = f"blk.{layer}."
        mlp = _MOE if "num_experts_per_tok" in config else _MLP
        expected |= {f"{at}{leaf}.weight" for leaf in (*_LAYER, *mlp)}
        if config["model_type"] in ("qwen3", "qwen3_moe"):
            expected |= {f"{at}attn_q_norm.weight", f"{at}attn_k_norm.weight"}
        if config["model_type"] == "qwen2":
            expected |= {f"{at}{leaf}.bias" for leaf in _LAYER[1:4]}
        if config.get("attention_bias"):
            expected |= {f"{at}{leaf}.bias" for leaf in _LAYER[1:]}
        if config.get("mlp_bias"):
            expected |= {f"{at}{leaf}.bias" for leaf in _MLP[1:]}
    foreign = [name for name in tensors if name not in expected]
    if foreign:
        raise QfuseError(
            f"{source}: tensor {foreign[0]} has no place in a {config['model_type']} model of "
            f"{config['num_hidden_layers']} layers"
        )
