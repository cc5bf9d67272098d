"""`--suite cpu-model`: tokens of whole models, ours, by torch in bf16 and by torch.compile.

The models are shaped like Qwen3 and have about 10^9 parameters.  Rows are those of cpu_report.py:
`ms` and those of peers are of one token where it is decoded (m = 1), and of all of the prompt
otherwise; `tokens_per_s` is ours.  The limit is that of reading every weight once, or of all
products, whichever is more; attention is in none of them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qfuse.compiler.compilation import compile as compile_model
from qfuse.compiler.frontend import baseline
from qfuse.compiler.frontend.source import open_source
from qfuse.compiler.options import cache_dir
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.errors import QfuseError
from qfuse.tools.bench.cases import error_of
from qfuse.tools.bench.cpu_gguf import GgufShape, write_gguf
from qfuse.tools.bench.cpu_moe import cpu_header
from qfuse.tools.bench.cpu_peers import compiled
from qfuse.tools.bench.cpu_report import OURS, Reporter, Work
from qfuse.tools.bench.gemm import first_line
from qfuse.tools.bench.kernels import Call
from qfuse.tools.demo_checkpoint import write_demo_checkpoint

PROMPT = 512
"""Tokens of a prefill; decoding goes on behind them."""

_ROOM = 256
"""Tokens that caches hold behind a prompt."""

_TOLERANCE = 0.1
"""Relative error of logits: activations are quantized, and codes on a border go either way."""

BILLION = GgufShape(
    hidden=2048,
    layers=20,
    heads=16,
    kv_heads=8,
    head_dim=128,
    intermediate=6144,
    vocabulary=32768,
    positions=2048,
)


@dataclass(frozen=True)
class Model:
    """A model, and the bits of a weight of its layers and of its head."""

    scheme: str
    write: Callable[[Path, GgufShape], Path]
    layer_bits: float
    head_bits: float

    def work(self, shape: GgufShape, tokens: int) -> Work:
        """Of all products, the last of which has one row."""
        head = shape.vocabulary * shape.hidden
        layers = sum(n * k for n, k in shape.matrices.values()) - 2 * head
        size = (layers * self.layer_bits + head * self.head_bits) / 8
        return Work(size, 2.0 * (tokens * layers + head), self.scheme != "fp8")


def _fp8(directory: Path, shape: GgufShape) -> Path:
    return write_demo_checkpoint(
        directory,
        hidden_size=shape.hidden,
        layers=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.positions,
    )


def _q4_k(directory: Path, shape: GgufShape) -> Path:
    return write_gguf(directory.with_suffix(".gguf"), shape)


MODELS = {
    "fp8": Model("fp8", _fp8, 8 + 32 / 128**2, 16),
    "q4_k": Model("q4_k", _q4_k, 8 * 144 / 256, 8 * 210 / 256),
}
"""Those with FP8 in blocks of 128x128 and a head in bf16, and with Q4_K and a head in Q6_K."""


def parse_models(text: str | None) -> list[Model]:
    """Their schemes, with commas between; raises QfuseError for others."""
    names = [part.strip() for part in text.split(",")] if text else list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        raise QfuseError(f"model '{unknown[0]}' is unknown; use {', '.join(MODELS)}")
    return [MODELS[name] for name in names]


def run(
    models: Sequence[Model],
    compile: bool,
    shape: GgufShape = BILLION,
    prompt: int = PROMPT,
    directory: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """The whole suite: a header, then two rows for each model, which is written at the first run.

    Models are kept in `directory`, by default in the cache.
    """
    threads = torch.get_num_threads()
    kept = directory or cache_dir() / "bench"
    notes = [f"models are in {kept}; remove it to get the room back"]
    yield {"suite": "cpu-model", **cpu_header(threads), "notes": notes}
    reporter = Reporter(threads)
    for model in models:
        yield from _rows(model, shape, prompt, kept, compile, reporter)


def _rows(
    model: Model,
    shape: GgufShape,
    prompt: int,
    directory: Path,
    compile: bool,
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    path = model.write(directory / f"qwen3-{model.scheme}-{shape.layers}x{shape.hidden}", shape)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocabulary, (1, prompt), generator=generator)
    session = compile_model(path, max_len=prompt + _ROOM).session()
    ours = _Ours(session, ids)
    eager = baseline.eager_model(open_source(path))
    calls = {OURS: ours.calls, "torch bf16": _Eager(eager, ids).calls}
    absent = {}
    error = error_of(ours.logits(), _logits(eager, ids))
    if not error <= _TOLERANCE:
        absent[OURS] = f"wrong numbers: relative error {error:.2g}"
        del calls[OURS]
    try:
        calls["torch.compile"] = _Compiled(eager, ids, shape, compile).calls
    except Exception as failure:  # of dynamo, inductor or the compiler that it calls
        absent["torch.compile"] = (
            str(failure) if isinstance(failure, QfuseError) else first_line(failure)
        )
    for phase, tokens in (("decode", 1), ("prefill", prompt)):
        each = {name: [made[phase]] for name, made in calls.items()}
        row = reporter.measured(each, [model.work(shape, tokens)])
        yield {
            **{"case": phase, "m": tokens, "n": None, "k": None, "scheme": model.scheme},
            **row,
            "tokens_per_s": row["ms"] and 1e3 * tokens / row["ms"],
            "absent": absent,
            "error": error,
        }


@dataclass(frozen=True)
class _Ours:
    """A token is decoded behind the prompt, again and again at the same position."""

    session: Session
    ids: torch.Tensor

    def logits(self) -> torch.Tensor:
        """f32 [V], behind the prompt."""
        return self.session(self.ids, torch.arange(self.ids.shape[1]))[0][0, -1].float()

    @property
    def calls(self) -> dict[str, Call]:
        end = self.ids.shape[1]
        return {
            "decode": partial(self.session, self.ids[:, :1].clone(), torch.tensor([end])),
            "prefill": partial(self.session, self.ids, torch.arange(end)),
        }


@dataclass(frozen=True)
class _Eager:
    """transformers with weights in bf16; its cache grows by a token at each step."""

    model: Any
    ids: torch.Tensor

    @property
    def calls(self) -> dict[str, Call]:
        prompt = self.ids[0].tolist()
        decoder = baseline.GreedyDecoder(self.model)
        decoder.step(prompt)
        return {
            "decode": partial(decoder.step, prompt[:1]),
            "prefill": lambda: baseline.GreedyDecoder(self.model).step(prompt),
        }


@dataclass(frozen=True)
class _Compiled:
    """The same by torch.compile, with a cache of fixed extent, so that it is compiled once."""

    model: Any
    ids: torch.Tensor
    shape: GgufShape
    wanted: bool

    @property
    def calls(self) -> dict[str, Call]:
        function = compiled(self._step, self.wanted)
        from transformers import StaticCache

        end = self.ids.shape[1]
        cache = StaticCache(config=self.model.config, max_cache_len=end + _ROOM)

        def step(ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            for layer in cache.layers:  # which appends: it is told where to go on
                length: Any = getattr(layer, "cumulative_length")  # noqa: B009
                length.fill_(position[0])
            return function(ids, cache, position)

        return {
            "decode": partial(step, self.ids[:, :1].clone(), torch.tensor([end])),
            "prefill": partial(step, self.ids, torch.arange(end)),
        }

    def _step(self, ids: torch.Tensor, cache: Any, position: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            made = self.model(
                input_ids=ids,
                past_key_values=cache,
                cache_position=position,
                position_ids=position[None],
                logits_to_keep=1,
            )
        return made.logits


@torch.inference_mode()
def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """f32 [V], behind the prompt."""
    return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[0, -1].float()
