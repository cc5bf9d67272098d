"""Rows of `--suite cpu-moe` and `--suite gpu-moe`: every subject verified, then measured."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from qfuse.tools.bench.cases import error_of
from qfuse.tools.bench.gemm import first_line
from qfuse.tools.bench.moe import (
    ROUTINGS,
    Experts,
    Tokens,
    Weights,
    make_tokens,
    make_weights,
    reference,
    sampled,
    touched,
)
from qfuse.tools.bench.moe_peers import MoeSubject
from qfuse.tools.bench.subjects import Prepared

OURS = "qfuse"

BYTES_PER_WEIGHT = 4
"""As codes, as bf16, and once more as our kernels or `scaled_grouped_mm` want them."""

_COLD = 4
"""Times the cache that the experts of all calls take together, where there are as many."""

_MOST_SETS = 16


@dataclass(frozen=True)
class Measured:
    """Seconds of a call of each subject, and of its parts; bytes/s that are read and FLOP/s that
    are multiplied at most; why some subjects have no time; anything else worth telling.

    Times are medians, and `least` has the shortest, where there are several."""

    seconds: dict[str, float]
    parts: dict[str, float]
    memory: float
    arithmetic: float
    failed: dict[str, str] = field(default_factory=dict)
    other: dict[str, float] = field(default_factory=dict)
    least: "Measured | None" = None


class MoeMachine(Protocol):
    """Where measurements take place."""

    @property
    def device(self) -> torch.device: ...

    @property
    def cache_bytes(self) -> int: ...

    def measure(self, prepared: Mapping[str, Prepared]) -> Measured: ...


def report(
    cases: Sequence[Experts],
    tokens: Sequence[int],
    subjects: Sequence[MoeSubject],
    machine: MoeMachine,
) -> Iterator[dict[str, Any]]:
    """One row for each case, number of tokens and routing."""
    for experts in cases:
        weights = make_weights(experts, machine.device)
        for t in tokens:
            for routing in ROUTINGS:
                yield _row(experts, weights, t, routing, subjects, machine)


def _row(
    experts: Experts,
    weights: Weights,
    t: int,
    routing: str,
    subjects: Sequence[MoeSubject],
    machine: MoeMachine,
) -> dict[str, Any]:
    sets = _sets(experts, t, routing, machine)
    which = sampled(t)
    expected = reference(weights, sets[0], which)
    tolerances = {subject.name: subject.tolerance for subject in subjects}
    prepared: dict[str, Prepared] = {}
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    for subject in subjects:
        try:
            made = subject.prepare(experts, weights, sets)
            errors[subject.name] = error = _error(made.first_result(), expected, which)
            for call in made.calls[1:]:
                call()
        except Exception as failure:  # torch, Triton and cuBLAS have no type of error in common
            failed[subject.name] = first_line(failure)
            continue
        if error <= subject.tolerance:
            prepared[subject.name] = made
        else:
            failed[subject.name] = (
                f"wrong numbers: relative error {error:.2g}, not {subject.tolerance:.2g}"
            )
    measured = machine.measure(prepared)
    failed |= measured.failed
    for name, made in prepared.items():
        if name in measured.seconds and made.read is not None:
            after = _error(made.results()[0], expected, which)
            if not after <= tolerances[name]:
                failed[name] = f"wrong numbers when measured: relative error {after:.2g}"
    figures = _figures(experts, sets, measured, failed)
    if measured.least is not None:
        least = _figures(experts, sets, measured.least, failed)
        figures["least"] = {key: least[key] for key in _LEAST}
    return {
        "case": str(experts),
        "experts": experts.count,
        "tokens": t,
        "routing": routing,
        "touched": touched(sets),
        "sets": len(sets),
        **figures,
        "error": errors.get(OURS),
        "failed": failed,
    }


_LEAST = ("ms", "floor_ms", "of_floor", "kernels", "peers", "ratios")
"""What is told of the shortest times."""


def _figures(
    experts: Experts, sets: Sequence[Tokens], measured: Measured, failed: Mapping[str, str]
) -> dict[str, Any]:
    """Times in milliseconds: ours, what the machine needs at least, the others."""
    rows = sets[0].ids.numel()
    size = sum(s.bytes(experts) for s in sets) / len(sets)
    memory, arithmetic = size / measured.memory, experts.flops(rows) / measured.arithmetic
    right = {name: s for name, s in measured.seconds.items() if name not in failed}
    floor, own = max(memory, arithmetic), right.pop(OURS, None)
    return {
        "ms": own and own * 1e3,
        "floor_ms": floor * 1e3,
        "of_floor": own and floor / own,
        "bound": "memory" if memory >= arithmetic else "arithmetic",
        "gb_per_s": own and size / own / 1e9,
        "gflops": own and experts.flops(rows) / own / 1e9,
        "kernels": {name: seconds * 1e3 for name, seconds in measured.parts.items()},
        "peers": {name: seconds * 1e3 for name, seconds in right.items()},
        "ratios": {name: seconds / own for name, seconds in right.items()} if own else {},
        "limits": {
            "read_gb_per_s": measured.memory / 1e9,
            "peak_gflops": measured.arithmetic / 1e9,
            **measured.other,
        },
    }


def _sets(experts: Experts, t: int, routing: str, machine: MoeMachine) -> list[Tokens]:
    """Tokens of as many calls as touch more experts than the cache holds."""
    first = make_tokens(experts, t, routing, machine.device)
    cold = _COLD * machine.cache_bytes
    wanted = -(-cold // (first.touched * experts.bytes))
    # One round of all experts is enough: what comes after it meets what came first.
    around = -(-experts.count // first.touched)
    count = min(_MOST_SETS, max(1, min(wanted, around)))
    more = [make_tokens(experts, t, routing, machine.device, i) for i in range(1, count)]
    return [first, *more]


def _error(made: torch.Tensor, expected: torch.Tensor, which: torch.Tensor) -> float:
    """Of the tokens `which`; infinite where any value at all is not finite."""
    if not torch.isfinite(made).all():
        return float("inf")
    return error_of(made[which.to(made.device)], expected)


def fitting(
    cases: Sequence[Experts], count: int | None, free: int
) -> tuple[list[Experts], list[str]]:
    """Cases with `count` experts, or by default as many as half of the `free` bytes hold; and
    what to say about it."""
    found, notes = [], []
    for case in cases:
        fits = case.count
        while 2 * fits * case.elements * BYTES_PER_WEIGHT > free and fits // 2 >= case.choices:
            fits //= 2
        made = case.cut(count or fits)
        found.append(made)
        if made.count < case.whole:
            why = "as asked" if count else f"{free / 1e9:.0f} GB of memory are free"
            notes.append(f"{case}: {made.count} of {case.whole} experts, {why}")
    return found, notes


def line(row: Mapping[str, Any]) -> str:
    """A row in short, while others are measured; peers as multiples of our time."""
    ratios = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratios"].items())
    own = f"{row['ms']:.2f} ms, {row['of_floor']:.0%} of floor" if row["ms"] else "failed"
    return f"{row['case']} {row['tokens']} tokens {row['routing']}: {own}; {ratios}"
