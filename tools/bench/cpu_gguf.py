"""A GGUF model with seeded random weights, written by the package `gguf`, which has no quantizer
for K-quants: so codes and scales are drawn, and not made from values."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Scheme, Shaped
from qfuse.tools.bench.cpu_schemes import SCHEMES, random_weight
from qfuse.tools.files import check_writable

_UPDATE = 0.05
"""Of what a layer adds to the residual stream; embeddings outweigh it, as in trained models."""

_SENSITIVE = ("token_embd.weight", "output.weight")
"""Q6_K, as in llama.cpp's Q4_K_M; the other matrices are Q4_K."""


@dataclass(frozen=True)
class GgufShape:
    """A model of the architecture qwen3; all widths are multiples of 256."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int

    @property
    def metadata(self) -> dict[str, int | float]:
        return {
            "block_count": self.layers,
            "context_length": self.positions,
            "embedding_length": self.hidden,
            "feed_forward_length": self.intermediate,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "attention.key_length": self.head_dim,
            "attention.value_length": self.head_dim,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "rope.freq_base": 1e6,
            "rope.dimension_count": self.head_dim,
        }

    @property
    def matrices(self) -> Mapping[str, tuple[int, int]]:
        """N and K by name."""
        hidden, inner = self.hidden, self.intermediate
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = {
            "attn_q": (query, hidden),
            "attn_k": (key, hidden),
            "attn_v": (key, hidden),
            "attn_output": (hidden, query),
            "ffn_gate": (inner, hidden),
            "ffn_up": (inner, hidden),
            "ffn_down": (hidden, inner),
        }
        whole = dict.fromkeys(_SENSITIVE, (self.vocabulary, hidden))
        each = {
            f"blk.{i}.{name}.weight": shape
            for i in range(self.layers)
            for name, shape in layer.items()
        }
        return {**whole, **each}

    @property
    def norms(self) -> Mapping[str, int]:
        """Widths by name."""
        widths = {
            "attn_norm": self.hidden,
            "attn_q_norm": self.head_dim,
            "attn_k_norm": self.head_dim,
            "ffn_norm": self.hidden,
        }
        each = {
            f"blk.{i}.{name}.weight": width
            for i in range(self.layers)
            for name, width in widths.items()
        }
        return {"output_norm.weight": self.hidden, **each}


def write_gguf(path: Path, shape: GgufShape) -> Path:
    """Write the model, unless it is there; the same for the same shape.

    Raises QfuseError without the package gguf, or where the file cannot be written.
    """
    if path.is_file():
        return path
    try:
        import gguf
    except ImportError:
        raise QfuseError("a GGUF model is written by the package gguf; install it") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    check_writable(path)
    staging = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        _write(gguf, staging, shape)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)
    return path


def _write(gguf: Any, path: Path, shape: GgufShape) -> None:
    writer = gguf.GGUFWriter(path, "qwen3", use_temp_file=False)
    for key, value in shape.metadata.items():
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"qwen3.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(shape.vocabulary)])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for seed, (name, (n, k)) in enumerate(shape.matrices.items()):
        kind = "q6_k" if name in _SENSITIVE else "q4_k"
        data = _blocks(kind, n, k, seed, _gain(name, k))
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind.upper()])
    generator = torch.Generator().manual_seed(0)
    for name, width in shape.norms.items():
        writer.add_tensor(name, torch.exp(0.2 * torch.randn(width, generator=generator)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gain(name: str, columns: int) -> float:
    if name == "token_embd.weight":
        return columns**0.5
    return _UPDATE if name.endswith(("attn_output.weight", "ffn_down.weight")) else 1.0


def _blocks(kind: str, n: int, k: int, seed: int, gain: float) -> Any:
    """The bytes of ggml's blocks [N, bytes]."""
    scheme = SCHEMES[kind]
    type_ = Shaped((n, k), scheme.dtype, Scheme((1, 256), "i8", kind))
    codes, scale = (t.view(torch.uint8) for t in random_weight(type_, seed, gain))
    parts = [t.view(n, k // 256, -1) for t in (codes, scale)]
    whole = torch.cat(parts[::-1] if kind == "q4_k" else parts, -1)
    return whole.flatten(1).numpy()
