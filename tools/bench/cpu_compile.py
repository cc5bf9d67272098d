"""`--suite cpu-compile`: what the kernels of a model of 80 layers cost to compile.

The model is a Llama of 70 * 10^9 parameters; of its weights there are only the shapes.  Rows have

    case, scheme           layers, hidden and intermediate size; how the weights are quantized
    layers, launches       of the model, and of a step of it
    kernels                distinct ones: equal computations share one, whatever layer they are in
    cold_s                 seconds to compile all, in a fresh process with an empty cache directory
    warm_s                 the same in another fresh process, from what the first has left there
    others_percent         what other processes did meanwhile

which are medians over the quiet rounds; each round has a directory of its own.  Starting processes,
importing, the passes before and tuning do not count; products have their default tunables.
m is null, and peers there are none.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qfuse.compiler.compilation import dispatch, fuse, lower
from qfuse.compiler.exclusive import exclusive
from qfuse.compiler.frontend.huggingface import Formats, import_config
from qfuse.compiler.frontend.linear import LinearFormat
from qfuse.compiler.options import CompileOptions
from qfuse.compiler.passes.outline import kernel_calls
from qfuse.dialects.errors import QfuseError
from qfuse.tools.bench.cpu_limits import busy_seconds
from qfuse.tools.bench.cpu_moe import cpu_header
from qfuse.tools.bench.cpu_rounds import quiet
from qfuse.tools.bench.kernel_clock import clock

_ROUNDS = 5


@dataclass(frozen=True)
class LlamaShape:
    """What of a config is free to choose."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int

    @property
    def config(self) -> dict[str, Any]:
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


LLAMA_70B = LlamaShape(
    layers=80,
    hidden=8192,
    intermediate=28672,
    heads=64,
    kv_heads=8,
    head_dim=128,
    vocabulary=128256,
)


def q4_k(name: str, rows: int, columns: int) -> LinearFormat:
    """As GGUF files have it; the head is Q6_K."""
    packing = "q6_k" if name == "lm_head" else "q4_k"
    return LinearFormat((1, 256), (1, 32), packing, "q8_1", torch.int8, torch.int8)


SCHEMES: dict[str, str | Formats] = {"fp8": "fp8", "q4_k": q4_k}
"""FP8 in blocks of 128x128 with a head in bf16, and Q4_K with a head in Q6_K."""


def parse_schemes(text: str | None) -> list[str]:
    """Names with commas between, all by default; raises QfuseError for others."""
    names = [part.strip() for part in text.split(",")] if text else list(SCHEMES)
    if unknown := [name for name in names if name not in SCHEMES]:
        raise QfuseError(f"scheme '{unknown[0]}' is unknown; use {', '.join(SCHEMES)}")
    return names


def run(
    schemes: Sequence[str], shape: LlamaShape = LLAMA_70B, rounds: int = _ROUNDS
) -> Iterator[dict[str, Any]]:
    """The whole suite: a header, then a row for each of `schemes`."""
    options = CompileOptions.make("cpu", tune="off")
    yield {"suite": "cpu-compile", **cpu_header(torch.get_num_threads()), "notes": []}
    for scheme in schemes:
        text, launches, kernels = _lowered(shape, scheme, options)
        yield {
            "case": f"kernels {shape.layers}x{shape.hidden}-{shape.intermediate}",
            **{"scheme": scheme, "m": None, "layers": shape.layers},
            **{"launches": launches, "kernels": kernels},
            **_measured(text, options.level, rounds),
            "peers": {},
        }


@exclusive
def _lowered(shape: LlamaShape, scheme: str, options: CompileOptions) -> tuple[str, int, int]:
    """The kernels of a model as text, how often they are called, and how many they are."""
    with tempfile.TemporaryDirectory(prefix="qfuse-") as directory:
        path = Path(directory) / "config.json"
        path.write_text(json.dumps(shape.config))
        module = import_config(path, quantize=SCHEMES[scheme]).module
    fuse(module, options)
    dispatch(module, options)
    functions = lower(module, options)
    calls = kernel_calls(module.operation)
    launches = sum(calls[function.name.value] for function in functions)
    return "".join(f"{function}\n" for function in functions), launches, len(functions)


def _measured(text: str, level: str | None, rounds: int) -> dict[str, float]:
    samples: dict[str, list[tuple[float, float]]] = {"cold_s": [], "warm_s": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(prefix="qfuse-") as directory:
            for found in samples.values():  # the first of them fills the directory
                own_before, others_before = busy_seconds()
                seconds = clock(text, Path(directory), level)
                own, others = busy_seconds()
                own, others = own - own_before, max(0.0, others - others_before)
                found.append((seconds, others / max(own + others, 1e-9)))
    kept = {name: quiet(found) for name, found in samples.items()}
    shares = [share for found in kept.values() for _, share in found]
    return {
        **{name: statistics.median(s for s, _ in found) for name, found in kept.items()},
        "others_percent": 100 * statistics.mean(shares),
    }


def line(row: dict[str, Any]) -> str:
    """A row in short, while others are measured."""
    counts = f"{row['kernels']} kernels for {row['launches']} launches"
    return f"{row['case']} {row['scheme']}: {counts}, {row['cold_s']:.2f} s, {row['warm_s']:.3f} s"
