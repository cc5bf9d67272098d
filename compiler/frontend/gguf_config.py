"""The Hugging Face config of a GGUF file, from its metadata and the shapes of its tensors."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""`general.architecture`, which is the model type here, too, and the class it names."""

ROPE_FACTORS = "rope_freqs.weight"
"""The tensor that divides rotary frequencies, where the file has one (Llama 3.1)."""

EMBEDDING, HEAD, NORM = "token_embd.weight", "output.weight", "output_norm.weight"

_LAYER = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output")
_MLP = ("ffn_norm", "ffn_gate", "ffn_up", "ffn_down")

# Keys that scale or clamp what transformers' models of these architectures do not.
_FOREIGN = (
    "attention.scale",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_count",
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
    if architecture not in _CLASSES:
        raise QfuseError(
            f"{source}: architecture {architecture!r} is not supported; "
            f"supported: {', '.join(_CLASSES)}"
        )
    meta = Metadata(values, source, architecture)
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
        "architectures": [_CLASSES[architecture]],
        "bos_token_id": values.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": values.get("tokenizer.ggml.eos_token_id"),
        "head_dim": width,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": meta.number("feed_forward_length"),
        "max_position_embeddings": length,
        "model_type": architecture,
        "num_attention_heads": heads,
        "num_hidden_layers": meta.number("block_count"),
        "num_key_value_heads": meta.number("attention.head_count_kv", heads),
        "rms_norm_eps": meta.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": meta.number("rope.freq_base", 10000.0),
        "tie_word_embeddings": False,
        "vocab_size": tensors[EMBEDDING][0],
    }
    if (scaling := _rope_scaling(meta)) is not None:
        config["rope_scaling"] = scaling
    if architecture in ("llama", "qwen3"):
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if architecture == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    _check_names(config, tensors, source)
    return config


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
        expected |= {f"{at}{leaf}.weight" for leaf in (*_LAYER, *_MLP)}
        if config["model_type"] == "qwen3":
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
