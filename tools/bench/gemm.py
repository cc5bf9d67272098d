"""`--suite gpu-gemm`: products of ours and of others on a GPU, in one run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import torch

from qfuse.lowering.triton.gpu import Gpu
from qfuse.tools.bench.cases import Case, error_of, make_operands, reference
from qfuse.tools.bench.chain import ChainSubject, Mlp, chain_subjects
from qfuse.tools.bench.subjects import Prepared, Subject, subjects
from qfuse.tools.bench.timing import Limits, Timer, buffer_sets, graph_timer, measure_limits

LIBRARIES = ("scaled_mm", "torch bf16", "torch.compile")


@dataclass(frozen=True)
class Machine:
    """Where measurements take place."""

    device: torch.device
    l2_bytes: int
    timer: Timer
    limits: Limits


def report(
    cases: Sequence[Case], rows: Sequence[int], found: Sequence[Subject], machine: Machine
) -> Iterator[dict[str, Any]]:
    """One row for each shape and number of rows: every subject, verified, then measured."""
    for case in cases:
        for m in rows:
            yield _row(case, m, found, machine)


def _row(case: Case, m: int, found: Sequence[Subject], machine: Machine) -> dict[str, Any]:
    first = make_operands(case, m, machine.device)
    size = first.bytes + m * case.n * (1 if case.glu else 2)
    sets = [first] + [first.copy() for _ in range(buffer_sets(size, machine.l2_bytes) - 1)]
    expected = reference(case, first)
    flops = 2.0 * m * case.n * case.k * (2 if case.glu else 1)
    least, bound = machine.limits.seconds(size, flops)
    measured = {}
    for subject in found:
        prepare = partial(subject.prepare, case, m, sets)
        measured[subject.name] = measure(
            prepare, expected, case.tolerance + subject.rounds, machine.timer
        )
    for result in measured.values():
        if seconds := result.get("seconds"):
            result["tflops"] = flops / seconds / 1e12
            result["gb_per_s"] = size / seconds / 1e9
            result["share"] = least / seconds
    return {
        "shape": str(case),
        "n": case.n,
        "k": case.k,
        "m": m,
        "bound": bound,
        "limit_us": least * 1e6,
        "buffer_sets": len(sets),
        "subjects": measured,
        "ratios": ratios(measured),
    }


def measure(
    prepare: Callable[[], Prepared], expected: torch.Tensor, tolerance: float, timer: Timer
) -> dict[str, Any]:
    """Seconds of one subject, or why there are none; numbers are checked before and after.

    `prepare` makes what is measured; checked after, because a graph may have replayed something
    else than what was called.
    """
    try:
        prepared = prepare()
        error = error_of(prepared.first_result(), expected)
        if not error <= tolerance:
            return {"failed": f"wrong numbers: relative error {error:.2g}, not {tolerance:.2g}"}
        seconds = timer(prepared.calls)
        error = max([error, *(error_of(r, expected) for r in prepared.results())])
        if not error <= tolerance:
            return {"failed": f"wrong numbers in the graph: relative error {error:.2g}"}
    except Exception as failure:  # torch, Triton and cuBLAS have no type of error in common
        return {"failed": first_line(failure)}
    return {"seconds": seconds, "us": seconds * 1e6, "error": error}


def ratios(measured: dict[str, dict[str, Any]], ours: str = "qfuse") -> dict[str, float]:
    """How many times as long as ours each of the others takes, and the best library."""
    own = measured.get(ours, {}).get("seconds")
    if not own:
        return {}
    found = {
        name: result["seconds"] / own
        for name, result in measured.items()
        if name != ours and "seconds" in result
    }
    libraries = [ratio for name, ratio in found.items() if name in LIBRARIES]
    return {**found, **({"best library": min(libraries)} if libraries else {})}


def run(
    gpu: Gpu,
    cases: Sequence[Case],
    rows: Sequence[int],
    directory: Any,
    chain: bool,
) -> Iterator[dict[str, Any]]:
    """The whole suite on the GPU of this machine: a header, then rows.

    Raises QfuseError where there is no GPU of that architecture.
    """
    machine, about = open_machine(gpu)
    yield {"suite": "gpu-gemm", **about}
    load = loader()
    yield from report(cases, rows, subjects(gpu, load, directory), machine)
    if chain:
        found = chain_subjects(gpu, load, directory)
        for m in rows:
            yield chain_row(Mlp(), m, found, machine)


def open_machine(gpu: Gpu) -> tuple[Machine, dict[str, Any]]:
    """The GPU of this machine, measured, and what a report says about it."""
    from qfuse.lowering.triton.gpu_signature import signature

    signed = signature(str(gpu))
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device("cuda", torch.cuda.current_device())
    properties = torch.cuda.get_device_properties(device)
    limits = measure_limits(graph_timer, device)
    machine = Machine(device, properties.L2_cache_size, graph_timer, limits)
    about = {
        **signed,
        "processors": properties.multi_processor_count,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cuda": torch.version.cuda,
        "copy_gb_per_s": limits.memory / 1e9,
        "bf16_tflops": limits.bf16 / 1e12,
    }
    return machine, about


def chain_row(mlp: Mlp, m: int, found: Sequence[ChainSubject], machine: Machine) -> dict[str, Any]:
    """The MLP of `m` tokens: fused, and the ways that libraries do it."""
    first = mlp.make(m, machine.device)
    sets = [first] + [first.copy() for _ in range(buffer_sets(first.bytes, machine.l2_bytes) - 1)]
    expected = mlp.reference(first)
    measured = {}
    for subject in found:
        prepare = partial(subject.prepare, mlp, m, sets)
        measured[subject.name] = measure(prepare, expected, subject.tolerance, machine.timer)
    own = measured.get("qfuse", {}).get("seconds")
    others = [r["seconds"] for n, r in measured.items() if n != "qfuse" and "seconds" in r]
    return {
        "chain": str(mlp),
        "m": m,
        "subjects": measured,
        "ratios": {"best unfused": min(others) / own} if own and others else {},
    }


def loader() -> Any:
    from qfuse.lowering.triton.launcher import LoadedGpuKernel

    return LoadedGpuKernel


def first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def line(row: dict[str, Any]) -> str:
    """A row in short, while others are measured."""
    found = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratios"].items())
    return f"{row.get('shape') or row['chain']} M {row['m']}: {found}"
