"""`--suite cpu-moe`: the experts of a layer on this CPU, ours and torch's in one run."""

import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from qfuse.compiler.options import CompileOptions
from qfuse.lowering.cpu.cache import compile_cached
from qfuse.lowering.cpu.launcher import LoadedKernel
from qfuse.lowering.cpu.weights import pack_experts, pack_weight
from qfuse.tools.bench.cases import BLOCK, Case, make_operands, parsed
from qfuse.tools.bench.cpu_limits import busy_seconds, last_level_cache, peak_probe, read_probe
from qfuse.tools.bench.kernels import Call, aligned_bytes, in_turn
from qfuse.tools.bench.moe import Experts, Tokens, Weights
from qfuse.tools.bench.moe_chain import Chain, compile_chain, tensors_of
from qfuse.tools.bench.moe_peers import peers
from qfuse.tools.bench.moe_suite import OURS, Measured, fitting, report
from qfuse.tools.bench.subjects import Prepared, reading
from qfuse.tools.bench.timing import interleaved

_CPU = torch.device("cpu")
_DENSE = Case(4096, 4096)
_DENSE_ROWS = 256
"""The dense product whose rate is told beside: large enough to be bound by arithmetic."""


@dataclass
class CpuOurs:
    """The kernels of qfuse."""

    options: CompileOptions
    threads: int
    name: str = OURS
    tolerance: float = 1e-2  # codes that lie on a border may go either way
    _packed: tuple[Weights, list[list[torch.Tensor]]] | None = None

    def prepare(self, experts: Experts, weights: Weights, sets: Sequence[Tokens]) -> Prepared:
        chain = self._chain(experts)
        t = len(sets[0].x)
        rows = {step.name: chain.rows(step, t) for step in chain.steps}
        scratch = aligned_bytes(
            max(s.kernel.compiled.scratch_bytes(rows[s.name], self.threads) for s in chain.steps),
            _CPU,
        )
        calls: list[Call] = []
        results = []
        parts: dict[str, list[Call]] = {step.name: [] for step in chain.steps}
        for s in sets:
            values = chain.allocate([*s.tensors, *self._weights(weights)], t, _CPU)
            steps: list[Call] = []
            for step in chain.steps:
                pointers = [tensor.data_ptr() for tensor in tensors_of(step, values)]
                launch = step.kernel.bind(
                    pointers, rows[step.name], self.threads, scratch.data_ptr()
                )
                steps.append(launch)
                parts[step.name].append(launch)
            calls.append(partial(_run, in_turn(steps), (values, scratch)))
            results.append(values[chain.result][0])
        return Prepared(calls, reading(results), parts=parts)

    def _chain(self, experts: Experts) -> Chain[LoadedKernel]:
        options = self.options
        return compile_chain(
            experts.text,
            options,
            lambda f: LoadedKernel(compile_cached(f, options.cache_dir, level=options.level)),
        )

    def _weights(self, weights: Weights) -> list[list[torch.Tensor]]:
        """As the kernels want them; those of one case at a time."""
        if self._packed is None or self._packed[0] is not weights:
            self._packed = None  # frees those before
            packed = [pack_experts(w, scale, (BLOCK, BLOCK)) for w, scale in weights.tensors]
            self._packed = (weights, [list(pair) for pair in packed])
        return self._packed[1]


def _run(call: Call, kept: object) -> None:
    """`kept` is what the call works on."""
    call()


@dataclass(frozen=True)
class CpuMachine:
    """All subjects take turns with what shows the limits of the machine.

    `others_percent` of what the processors did was the work of other processes.  Where that is
    much, medians are of little use, for threads that wait for one another wait for those, too.
    """

    threads: int
    cache_dir: Path | None
    device: torch.device = _CPU

    @cached_property
    def cache_bytes(self) -> int:
        return last_level_cache()

    @cached_property
    def probes(self) -> dict[str, tuple[list[Call], float]]:
        """Calls, and what one does: bytes read, flops, flops."""
        made = {
            "read": read_probe(self.threads),
            "peak": peak_probe(self.threads),
            "dense": dense_probe(self.threads, self.cache_dir),
        }
        for calls, _ in made.values():
            calls[0]()  # the first one is slower
        return made

    def measure(self, prepared: Mapping[str, Prepared]) -> Measured:
        calls: dict[tuple[str, str], Sequence[Call]] = {}
        for name, (each, _) in self.probes.items():
            calls["probe", name] = each
        for name, made in prepared.items():
            calls["subject", name] = made.calls
            for part, each in made.parts.items():
                calls["part", part] = each
        own_before, others_before = busy_seconds()
        samples = interleaved(calls)
        own, others = busy_seconds()
        own, others = own - own_before, max(0.0, others - others_before)
        # Limits are those of the rounds in which ours took part, not of what else came later.
        rounds = len(samples.get(("subject", OURS), ())) or None
        samples |= {key: samples[key][:rounds] for key in samples if key[0] == "probe"}
        busy = 100 * others / max(own + others, 1e-9)
        least = self._measured({name: min(taken) for name, taken in samples.items()}, {})
        medians = {name: statistics.median(taken) for name, taken in samples.items()}
        return replace(self._measured(medians, {"others_percent": busy}), least=least)

    def _measured(self, seconds: dict[tuple[str, str], float], other: dict[str, float]) -> Measured:
        rates = {name: amount / seconds["probe", name] for name, (_, amount) in self.probes.items()}
        return Measured(
            {name: s for (kind, name), s in seconds.items() if kind == "subject"},
            {name: s for (kind, name), s in seconds.items() if kind == "part"},
            memory=rates["read"],
            arithmetic=rates["peak"],
            other={"dense_gflops": rates["dense"] / 1e9, **other},
        )


def dense_probe(threads: int, cache_dir: Path | None) -> tuple[list[Call], float]:
    """One call of our dense kernel, and its flops."""
    with parsed(_DENSE.text) as function:
        kernel = LoadedKernel(compile_cached(function, cache_dir))
    operands = make_operands(_DENSE, _DENSE_ROWS, _CPU)
    w, w_scale = pack_weight([(operands.w, operands.w_scale)], (BLOCK, BLOCK))
    out = torch.empty(_DENSE_ROWS, _DENSE.n, dtype=torch.bfloat16)
    tensors = [operands.x, operands.x_scale, w, w_scale, out]
    scratch = aligned_bytes(kernel.compiled.scratch_bytes(_DENSE_ROWS, threads), _CPU)
    pointers = [tensor.data_ptr() for tensor in tensors]
    launch = kernel.bind(pointers, _DENSE_ROWS, threads, scratch.data_ptr())
    call = partial(_run, launch, (tensors, scratch))
    return [call], 2.0 * _DENSE_ROWS * _DENSE.n * _DENSE.k


def run(
    cases: Sequence[Experts], tokens: Sequence[int], count: int | None
) -> Iterator[dict[str, Any]]:
    """The whole suite: a header, then rows.  `count` cuts the experts; see `fitting`."""
    options, threads = CompileOptions.make("cpu"), torch.get_num_threads()
    cut, notes = fitting(cases, count, free_memory())
    yield {"suite": "cpu-moe", **cpu_header(threads), "notes": notes}
    machine = CpuMachine(threads, options.cache_dir)
    yield from report(cut, tokens, [CpuOurs(options, threads), *peers()], machine)


def cpu_header(threads: int) -> dict[str, Any]:
    """What a report says of this machine."""
    return {
        "cpu": _cpu_name(),
        "threads": threads,
        "load": os.getloadavg()[0],
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "torch": torch.__version__,
    }


def free_memory() -> int:
    """Bytes that can be had, cached files included."""
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if "MemAvailable" in line)


def _cpu_name() -> str:
    with open("/proc/cpuinfo") as lines:
        names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
        return next(names, "unknown")
