"""`qfuse tune --target cpu`: measure what can serve a product, and keep what is best in a table."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.entry_table import Entry, Table
from qfuse.lowering.cpu.kernel import Choice, CompiledKernel
from qfuse.tools.bench.cpu_report import Kernels
from qfuse.tools.bench.cpu_rounds import measure
from qfuse.tools.bench.cpu_schemes import CpuScheme, Weight, make_activations, product_text
from qfuse.tools.bench.kernels import Call

GAIN = 1.03
"""An entry is worth it if what the model chose takes this much longer at least: noise is less."""

CLOSE = 1.10
"""The model is right where what it chose takes this much of the best at most."""

_HALVINGS = 3
"""How often the rows of a task are halved for one more candidate."""

Measure = Callable[[Mapping[str, Sequence[Call]]], Mapping[str, float]]
"""Seconds of a call of each name; the calls of a name work on memory of their own."""


@dataclass(frozen=True)
class Product:
    """x [M, K] times w [N, K], quantized as `scheme` says; the result is bf16."""

    scheme: CpuScheme
    n: int
    k: int

    def __str__(self) -> str:
        return f"{self.n}x{self.k} {self.scheme.name}"

    @property
    def text(self) -> str:
        """A module with this product as its only kernel."""
        result = Shaped((DYNAMIC, self.n), "bf16")
        return product_text(
            self.scheme.x_type(self.k), self.scheme.weight_type(self.n, self.k), result
        )


@dataclass(frozen=True)
class Outcome:
    """What was measured of `m` rows, which stand for those from `first_m` on."""

    product: Product
    key: str
    first_m: int
    m: int
    modelled: Choice
    best: Choice
    seconds: Mapping[str, float]
    """Of each candidate, by `name_of`."""

    @property
    def ratio(self) -> float:
        """How many times the best's time the model's choice takes."""
        return self.seconds[name_of(self.modelled)] / self.seconds[name_of(self.best)]

    @property
    def gains(self) -> bool:
        return self.ratio >= GAIN

    @property
    def entry(self) -> Entry:
        """What a table says of these rows."""
        measured = {"m": self.m, "seconds": dict(self.seconds), "modelled": name_of(self.modelled)}
        best = self.best
        return Entry(self.key, self.first_m, self.m, best.entry.symbol, best.rows, measured)

    def to_json(self) -> dict[str, Any]:
        return {
            "case": f"{self.product.n}x{self.product.k}",
            "scheme": self.product.scheme.name,
            "first_m": self.first_m,
            "m": self.m,
            "modelled": name_of(self.modelled),
            "best": name_of(self.best),
            "us": {name: s * 1e6 for name, s in self.seconds.items()},
            "ratio": self.ratio,
        }


def name_of(choice: Choice) -> str:
    """`run8`; `run/128` where tasks of other numbers of rows are possible."""
    entry = choice.entry
    return entry.symbol if entry.rows == entry.rows_multiple else f"{entry.symbol}/{choice.rows}"


def candidates(kernel: CompiledKernel, m: int, threads: int) -> list[Choice]:
    """Everything that can serve `m` rows, what the model chooses first."""
    found = [kernel.modelled(m, threads)]
    for entry in kernel.entries:
        if not entry.can_serve(m):
            continue
        rows = entry.whole_rows(m, entry.rows)
        for _ in range(_HALVINGS + 1):
            found.append(Choice(entry, entry.whole_rows(m, rows)))
            rows //= 2
    return list({name_of(choice): choice for choice in found}.values())


def products(shapes: Sequence[tuple[int, int]], schemes: Sequence[CpuScheme]) -> list[Product]:
    return [Product(scheme, n, k) for n, k in shapes for scheme in schemes if scheme.fits(k)]


def tune(
    cases: Sequence[Product],
    rows: Sequence[int],
    kernels: Kernels,
    measure: Measure,
    seconds: float,
) -> Iterator[Outcome]:
    """Measure each product with each number of rows; begin none after so many seconds."""
    end = time.monotonic() + seconds
    for case in cases:
        made = _Made(case, kernels)
        for first, m in ranges_of(rows):
            if time.monotonic() > end:
                return
            yield _outcome(made, first, m, measure)


def ranges_of(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers of rows with the first of those that each stands for: (1, 1), (2, 2), (3, 4)."""
    known = sorted(set(rows))
    return [(before + 1, m) for before, m in zip([0, *known], known, strict=False)]


class _Made:
    """A product's kernel, and weights that no cache holds."""

    def __init__(self, case: Product, kernels: Kernels) -> None:
        self.case, self.kernels = case, kernels
        self.kernel = kernels.load(case.text).compiled

    @cached_property
    def weight(self) -> Weight:
        return Weight(self.case.scheme, self.case.n, self.case.k)

    def calls(self, choice: Choice, m: int) -> tuple[list[Call], list[torch.Tensor]]:
        """A call for each copy of the weight, and their results."""
        x = make_activations(self.case.scheme, m, self.case.k)
        weights = list(zip(*self.weight.packed, strict=True))
        outs = [torch.empty(m, self.case.n, dtype=torch.bfloat16) for _ in weights]
        text, bind = self.case.text, self.kernels.bind
        calls = [
            bind(text, [*x.tensors, *pair, out], m, choice)
            for pair, out in zip(weights, outs, strict=True)
        ]
        return calls, outs


def _outcome(made: _Made, first: int, m: int, measure: Measure) -> Outcome:
    found = {name_of(c): c for c in candidates(made.kernel, m, made.kernels.threads)}
    calls, expected = {}, None
    for name, choice in found.items():
        calls[name], outs = made.calls(choice, m)
        calls[name][0]()
        expected = outs[0] if expected is None else expected
        if not torch.equal(outs[0].view(torch.int16), expected.view(torch.int16)):
            raise QfuseError(
                f"{made.case} M {m}: {name} computes other bits than {next(iter(found))}"
            )
    seconds = measure(calls)
    best = min(seconds, key=lambda name: seconds[name])
    modelled = next(iter(found.values()))
    return Outcome(made.case, made.kernel.product, first, m, modelled, found[best], seconds)


def on_this_machine(calls: Mapping[str, Sequence[Call]]) -> Mapping[str, float]:
    """`Measure` by the clock, in rounds in which all take turns."""
    return measure(calls).seconds


def merged(table: Table, outcome: Outcome) -> Table:
    """`table` with what was found; where the model is right it says nothing."""
    if outcome.gains:
        return table.with_entry(outcome.entry)
    return table.without(outcome.entry)


def line(outcome: Outcome) -> str:
    """For people: what was chosen for some rows, and what is best."""
    times = ", ".join(f"{name} {s * 1e6:.0f}" for name, s in outcome.seconds.items())
    return (
        f"{outcome.product} M {outcome.m}: model {name_of(outcome.modelled)}, "
        f"best {name_of(outcome.best)} ({outcome.ratio:.2f} times); us: {times}"
    )


def summary(outcomes: Sequence[Outcome]) -> str:
    """How often the model's choice is about the best."""
    close = sum(outcome.ratio <= CLOSE for outcome in outcomes)
    worst = max((outcome.ratio for outcome in outcomes), default=1.0)
    share = close / max(len(outcomes), 1)
    return (
        f"the model's choice is within {CLOSE - 1:.0%} of the best for {close} of {len(outcomes)} "
        f"({share:.0%}); at most {worst:.2f} times"
    )
