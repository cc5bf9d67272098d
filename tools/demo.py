"""`qfuse demo`: compile a model, show what fusion did, and compare it with everything at hand."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from qfuse.compiler.compilation import Progress, compile
from qfuse.compiler.frontend import baseline
from qfuse.compiler.frontend.source import Source, open_source
from qfuse.compiler.options import cache_dir
from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.runtime.report import Report
from qfuse.tools.demo_checkpoint import write_demo_checkpoint

PROMPT_TOKENS = 16
NEW_TOKENS = 32
MAX_ROUNDS = 7
MAX_SECONDS = 60.0
"""Speed is measured in rounds, ours and eager in turn, until either limit."""


@dataclass(frozen=True)
class DemoResult:
    """What `qfuse demo --json` prints.

    `kernels_before` and `kernels_after` are launches per decoded token, torch operations that
    compute included; `bytes_*` what they read and write.  `kernels_per_moe_layer_*` are those of
    one layer of experts, from its router to the sum (see compiler/expert_layers.py), of the layer
    with the most; None for a model without quantized experts.  `max_rel_err_vs_unfused` is the
    largest difference of a logit from the unfused program's, relative to the largest logit;
    `rel_err_vs_fp32` the Frobenius norm of the difference from transformers in f32 with
    dequantized weights and unquantized activations, relative to the reference's;
    `rel_err_vs_fp32_quantized` the same with the model's activation quantization simulated.
    Both compare the logits at every decoded token.  Fields are None where memory did not suffice.
    """

    model: str
    kernels_before: int
    kernels_after: int
    kernels_per_moe_layer_before: int | None
    kernels_per_moe_layer_after: int | None
    bytes_before: int
    bytes_after: int
    patterns: dict[str, dict[str, Any]]
    max_rel_err_vs_unfused: float
    rel_err_vs_fp32: float | None
    rel_err_vs_fp32_quantized: float | None
    greedy_tokens_equal: bool
    tokens: list[int]
    tokens_per_s: float
    eager_tokens_per_s: float | None
    compile_s: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def checkpoint(arch: str | None = None) -> Path:
    """A small checkpoint of an architecture ("qwen3" by default), written at the first call."""
    arch = arch or "qwen3"
    directory = cache_dir() / f"demo-{arch}-fp8"
    return write_demo_checkpoint(directory, architecture=arch.replace("-", "_"))


def run(
    model: Path, console: Console, progress: Progress, *, tokens: int = NEW_TOKENS
) -> DemoResult:
    """Run the demo on a checkpoint directory or a GGUF file; prints to `console`."""
    source = open_source(model)
    prompt = _prompt(source, PROMPT_TOKENS)
    room = PROMPT_TOKENS + tokens
    start = time.perf_counter()
    fused = compile(model, max_len=room, progress=progress)
    seconds = time.perf_counter() - start
    unfused = compile(model, max_len=room, disable=["all"], progress=progress)

    generated = fused.generate(prompt, tokens, eos=())
    equal = generated == unfused.generate(prompt, tokens, eos=())
    ours = decode_logits(fused, prompt, generated)
    plain = decode_logits(unfused, prompt, generated)
    before, after = decode_profile(unfused), decode_profile(fused)
    fused.program.report |= {"before": before, "after": after}
    report = fused.report()
    per_layer = report.most_of_an_expert_layer() or (None, None)
    del unfused

    sequence = [*prompt, *generated[:-1]]
    exact = _reference(source, sequence, len(prompt), simulate_activations=False)
    simulated = _reference(source, sequence, len(prompt), simulate_activations=True)
    speed, eager_speed = measure(fused, source, prompt, tokens)
    result = DemoResult(
        model=str(model),
        kernels_before=before["launches"],
        kernels_after=after["launches"],
        kernels_per_moe_layer_before=per_layer[0],
        kernels_per_moe_layer_after=per_layer[1],
        bytes_before=before["bytes"],
        bytes_after=after["bytes"],
        patterns=report.to_json()["patterns"],
        max_rel_err_vs_unfused=_max_rel_err(ours, plain),
        rel_err_vs_fp32=_rel_err(ours, exact),
        rel_err_vs_fp32_quantized=_rel_err(ours, simulated),
        greedy_tokens_equal=equal,
        tokens=generated,
        tokens_per_s=speed,
        eager_tokens_per_s=eager_speed,
        compile_s=seconds,
    )
    show(console, report, result)
    return result


def decode_logits(exe: Executable, prompt: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
    """f32 logits [len(tokens), V] from which each of `tokens` was, or would be, chosen."""
    session = exe.session()
    ids, position = torch.tensor([list(prompt)]), torch.arange(len(prompt))
    rows = []
    for token in tokens:
        rows.append(session(ids, position)[0][0, -1].float())
        ids, position = torch.tensor([[token]]), position[-1:] + 1
    return torch.stack(rows)


def decode_profile(exe: Executable) -> dict[str, Any]:
    """Launches and bytes of one decoded token after `PROMPT_TOKENS`."""
    profile = exe.session().profile(torch.tensor([[0]]), torch.tensor([PROMPT_TOKENS]))
    return profile.to_json()


def measure(
    fused: Executable, source: Source, prompt: Sequence[int], tokens: int
) -> tuple[float, float | None]:
    """Decoded tokens per second, of `fused` and of eager bf16: medians over alternating rounds.

    Prefill is not counted.  These machines are shared, so only the ratio of the two means much.
    """
    eager = None
    if _fits(source, 2):
        eager = baseline.eager_model(source)
    ours: list[float] = []
    theirs: list[float] = []
    start = time.perf_counter()
    while len(ours) < MAX_ROUNDS and (not ours or time.perf_counter() - start < MAX_SECONDS):
        ours.append(_decode_speed(fused, prompt, tokens))
        if eager is not None:
            theirs.append(_eager_speed(eager, prompt, tokens))
    return statistics.median(ours), statistics.median(theirs) if theirs else None


def _decode_speed(exe: Executable, prompt: Sequence[int], tokens: int) -> float:
    stream = exe.stream(prompt, tokens, eos=())
    next(stream)
    start = time.perf_counter()
    count = sum(1 for _ in stream)
    return count / (time.perf_counter() - start)


def _eager_speed(model: Any, prompt: Sequence[int], tokens: int) -> float:
    decoder = baseline.GreedyDecoder(model)
    token = decoder.step(prompt)
    start = time.perf_counter()
    for _ in range(tokens - 1):
        token = decoder.step([token])
    return (tokens - 1) / (time.perf_counter() - start)


def _reference(
    source: Source, sequence: Sequence[int], prompt: int, *, simulate_activations: bool
) -> torch.Tensor | None:
    """f32 logits at the last prompt token and all that follow; None if f32 does not fit."""
    if not _fits(source, 4):
        return None
    model = baseline.reference_model(source, simulate_activations=simulate_activations)
    return baseline.logits(model, sequence)[prompt - 1 :]


def _fits(source: Source, bytes_per_element: int) -> bool:
    """Whether the dequantized model leaves memory to spare."""
    return baseline.count_elements(source) * bytes_per_element * 1.2 < _available()


def _available() -> int:
    """Bytes of memory that can be had, cached files included; the weights' own pages are some."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)


def _max_rel_err(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value - reference).abs().max() / reference.abs().max())


def _rel_err(value: torch.Tensor, reference: torch.Tensor | None) -> float | None:
    if reference is None:
        return None
    return float(torch.linalg.norm(value - reference) / torch.linalg.norm(reference))


def _prompt(source: Source, count: int) -> list[int]:
    vocabulary = int(source.config["vocab_size"])
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, vocabulary, (count,), generator=generator).tolist()


def show(console: Console, report: Report, result: DemoResult) -> None:
    """The report and the comparison, for people."""
    console.print(report)
    table = Table("check", "value", title=result.model)
    table.add_row("greedy tokens equal unfused", "yes" if result.greedy_tokens_equal else "NO")
    table.add_row("largest logit error vs unfused", f"{result.max_rel_err_vs_unfused:.2e}")
    for name, error in (
        ("logit error vs f32", result.rel_err_vs_fp32),
        ("the same, activations quantized", result.rel_err_vs_fp32_quantized),
    ):
        table.add_row(name, "skipped: not enough memory" if error is None else f"{error:.2e}")
    table.add_row("compile", f"{result.compile_s:.1f} s")
    table.add_row("qfuse", f"{result.tokens_per_s:.0f} tokens/s")
    eager = result.eager_tokens_per_s
    table.add_row(
        "torch eager, dequantized bf16",
        "skipped: not enough memory" if eager is None else f"{eager:.0f} tokens/s",
    )
    console.print(table)
    console.print("tokens:", " ".join(map(str, result.tokens)), highlight=False)
