"""`--suite gpu-moe`: the experts of a layer on a GPU, ours and torch's in one run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qfuse.compiler.options import CompileOptions
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import TritonKernel
from qfuse.lowering.triton.lower import lower_kernel
from qfuse.tools.bench.gemm import Machine, first_line, loader, open_machine
from qfuse.tools.bench.kernels import Call, Runner, compiled, in_turn
from qfuse.tools.bench.moe import Experts, Tokens, Weights
from qfuse.tools.bench.moe_chain import Chain, compile_chain, tensors_of
from qfuse.tools.bench.moe_peers import peers
from qfuse.tools.bench.moe_suite import OURS, Measured, fitting, report
from qfuse.tools.bench.subjects import Prepared, reading
from qfuse.tools.bench.timing import Timer, call_timer


@dataclass(frozen=True)
class GpuOurs:
    """The kernels of qfuse, by its tables and model."""

    gpu: Gpu
    load: Callable[[Any], Any]
    directory: Path | None = None
    name: str = OURS
    tolerance: float = 2e-2  # codes that lie on a border may go either way

    def prepare(self, experts: Experts, weights: Weights, sets: Sequence[Tokens]) -> Prepared:
        t, device = len(sets[0].x), weights.device
        chain = lowered(experts, self.gpu)
        runners = {}
        for step in chain.steps:
            m = chain.rows(step, t)
            kernel = compiled(step.kernel, m, self.gpu, self.directory)
            runners[step.name] = Runner(kernel, m, device, self.load)
        calls: list[Call] = []
        results = []
        parts: dict[str, list[Call]] = {step.name: [] for step in chain.steps}
        for s in sets:
            values = chain.allocate([*s.tensors, *weights.tensors], t, device)
            steps = []
            for step in chain.steps:
                steps.append(runners[step.name].call(tensors_of(step, values)))
                parts[step.name].append(steps[-1])
            calls.append(in_turn(steps))
            results.append(values[chain.result][0])
        return Prepared(calls, reading(results), parts=parts)


def lowered(experts: Experts, gpu: Gpu) -> Chain[TritonKernel]:
    """The launches of the experts, for any number of tokens."""
    options = CompileOptions.make(str(gpu))
    return compile_chain(experts.text, options, partial(lower_kernel, gpu=gpu))


@dataclass(frozen=True)
class GpuMachine:
    """Subjects in CUDA graphs one after the other; those that wait for the GPU by the clock."""

    machine: Machine
    waiting_timer: Timer = call_timer

    @property
    def device(self) -> torch.device:
        return self.machine.device

    @property
    def cache_bytes(self) -> int:
        return self.machine.l2_bytes

    def measure(self, prepared: Mapping[str, Prepared]) -> Measured:
        limits = self.machine.limits
        measured = Measured({}, {}, limits.memory, 2 * limits.bf16)
        for name, made in prepared.items():
            timer = self.machine.timer if made.captured else self.waiting_timer
            try:
                measured.seconds[name] = timer(made.calls)
                for part, calls in made.parts.items():
                    measured.parts[part] = timer(calls)
            except Exception as failure:  # of a capture, say
                measured.failed[name] = first_line(failure)
        return measured


def run(
    gpu: Gpu,
    cases: Sequence[Experts],
    tokens: Sequence[int],
    count: int | None,
    directory: Path | None,
) -> Iterator[dict[str, Any]]:
    """The whole suite on the GPU of this machine: a header, then rows.

    `count` cuts the experts; see `fitting`.  Raises QfuseError where there is no such GPU.
    """
    machine, about = open_machine(gpu)
    cut, notes = fitting(cases, count, torch.cuda.mem_get_info(machine.device)[0])
    yield {"suite": "gpu-moe", **about, "notes": notes}
    subjects = [GpuOurs(gpu, loader(), directory), *peers()]
    yield from report(cut, tokens, subjects, GpuMachine(machine))
