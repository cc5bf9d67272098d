"""`--suite gpu-static`: what machine code and model say of our kernels, without a GPU."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qfuse.lowering.triton.binary import compile_launch, triton_version
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Launch
from qfuse.lowering.triton.sass import sass_report
from qfuse.lowering.triton.tile_choice import choose
from qfuse.lowering.triton.tile_model import SPEEDS, estimate, floor
from qfuse.lowering.triton.tiles import Config
from qfuse.tools.bench.cases import SHAPES, Case
from qfuse.tools.bench.gpu_moe import lowered
from qfuse.tools.bench.moe import Experts, is_experts, parse_experts

NOTE = "modelled and read from machine code; no GPU figure was taken"

_SASS = (
    "mma",
    "registers",
    "spill_bytes",
    "spills_in_product_loops",
    "shared_bytes",
    "num_warps",
    "num_stages",
    "occupancy",
    "warp_specialized",
)


def header(gpu: Gpu) -> dict[str, Any]:
    """What all rows have in common."""
    speeds = SPEEDS[gpu.arch]
    return {
        "suite": "gpu-static",
        "target": str(gpu),
        "triton": triton_version(),
        "note": NOTE,
        "assumed": {
            "memory_bytes_per_s": speeds.memory,
            "flops_per_s_of_8_bit_products": 2 * speeds.peak("f8E4M3FN", gpu),
            "processors": gpu.processors,
        },
    }


def parse(texts: str | None) -> list[Case | Experts]:
    """Shapes of products as `cases.parse_cases` reads them, experts as `moe.parse_experts`."""
    if not texts:
        return list(SHAPES)
    parts = texts.split(",")
    return [parse_experts(p)[0] if is_experts(p) else Case.parse(p) for p in parts]


def report(
    cases: Sequence[Case | Experts], rows: Sequence[int], gpu: Gpu, directory: Path | None
) -> Iterator[dict[str, Any]]:
    """One row of the report for each shape and number of rows (for experts, of tokens); compiles
    only what serves them."""
    for case in cases:
        if isinstance(case, Experts):
            yield from _report_experts(case, rows, gpu, directory)
            continue
        problem, kernel = case.problem(gpu), case.lower(gpu)
        chosen = choose((problem,), gpu)
        reports: dict[str, dict[str, Any]] = {}
        for m in rows:
            (launch,) = kernel.variant(m).launches
            config = next(c for _, last, (c,) in chosen if last is None or m <= last)
            if launch.name not in reports:
                reports[launch.name] = _machine_code(launch, gpu, directory)
            least, modelled = floor(problem, m, gpu), estimate(problem, config, m, gpu)
            flops = 2 * problem.products(m)
            yield {
                "shape": str(case),
                "n": case.n,
                "k": case.k,
                "m": m,
                "kernel": config.name,
                "slices": config.slices,
                "grid": list(launch.grid.of(m)),
                "waves": modelled.waves,
                **reports[launch.name],
                "floor_us": least.seconds * 1e6,
                "floor_bound": least.bound,
                "modelled_us": modelled.seconds * 1e6,
                "bound": modelled.bound,
                "share_of_floor": least.seconds / modelled.seconds,
                "modelled_tflops": flops / modelled.seconds / 1e12,
                "modelled_gb_per_s": problem.bytes(m) / modelled.seconds / 1e9,
            }


def _report_experts(
    experts: Experts, rows: Sequence[int], gpu: Gpu, directory: Path | None
) -> Iterator[dict[str, Any]]:
    """The products of experts that as many choices meet as there are; nothing is modelled."""
    speeds = SPEEDS[gpu.arch]
    chain = lowered(experts, gpu)
    steps = [step for step in chain.steps if step.name.startswith("group_matmul")]
    halves = (2 * experts.intermediate, experts.hidden), (experts.hidden, experts.intermediate)
    reports: dict[str, dict[str, Any]] = {}
    for tokens in rows:
        m = tokens * experts.choices
        touched = min(experts.count, m)
        for step, (n, k), which in zip(steps, halves, ("gate up", "down"), strict=True):
            memory = touched * n * k / speeds.memory
            compute = m * n * k / speeds.peak("f8E4M3FN", gpu)
            of_launch = chain.rows(step, tokens)
            launch = step.kernel.variant(of_launch).launches[0]  # a second one only adds up rows
            if launch.name not in reports:
                reports[launch.name] = _machine_code(launch, gpu, directory)
            yield {
                "shape": f"{experts} {which}",
                "n": n,
                "k": k,
                "m": m,
                "touched": touched,
                "kernel": launch.name.removeprefix(f"{step.name}_"),
                "grid": list(launch.grid.of(of_launch)),
                **reports[launch.name],
                "floor_us": max(memory, compute) * 1e6,
                "floor_bound": "memory" if memory >= compute else "tensor cores",
            }


def _machine_code(launch: Launch, gpu: Gpu, directory: Path | None) -> dict[str, Any]:
    binary = compile_launch(launch, gpu, directory)
    if not gpu.is_cuda:  # nothing here disassembles it
        return {name: binary.metadata.get(name) for name in ("num_warps", "num_stages")}
    found = sass_report(binary)
    return {name: found[name] for name in _SASS}


COLUMNS = (
    ("N x K", "shape", "s"),
    ("M", "m", "d"),
    ("kernel", "kernel", "s"),
    ("grid", "grid", "s"),
    ("mma", "mma", "s"),
    ("regs", "registers", "d"),
    ("spill", "spill_bytes", "d"),
    ("smem", "shared_bytes", "d"),
    ("occ", "occupancy", "d"),
    ("floor us", "floor_us", ".1f"),
    ("model us", "modelled_us", ".1f"),
    ("of floor", "share_of_floor", ".0%"),
    ("bound", "bound", "s"),
)
"""Heading, field and format of each column of the printed table."""


def chosen_config(case: Case, gpu: Gpu, m: int) -> Config:
    """The tiles that serve `m` rows."""
    found = choose((case.problem(gpu),), gpu)
    return next(configs[0] for _, last, configs in found if last is None or m <= last)
