"""`qfuse tune --target cpu`: measure what can serve a product, and keep what is best in a table."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from qfuse.compiler.runtime import plan
from qfuse.compiler.runtime.plan import KernelStep, KernelType, TensorType
from qfuse.compiler.runtime.program import Program
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.entry_table import Entry, Table
from qfuse.lowering.cpu.kernel import Choice, CompiledKernel
from qfuse.lowering.cpu.launcher import LoadedKernel
from qfuse.tools.bench.cpu_limits import last_level_cache
from qfuse.tools.bench.cpu_report import Kernels
from qfuse.tools.bench.cpu_schemes import CpuScheme, Weight, make_activations, product_text
from qfuse.tools.bench.kernels import Call, aligned_bytes
from qfuse.tools.bench.timing import buffer_sets

_CPU = torch.device("cpu")

GAIN = 1.03
"""An entry is worth it if what the model chose takes this much longer at least: noise is less."""

CLOSE = 1.10
"""The model is right where what it chose takes this much of the best at most."""

_HALVINGS = 3
"""How often the rows of a task are halved for one more candidate."""

_LEAST_ROUNDS, _MOST_ROUNDS = 5, 41
_SECONDS_EACH = 0.4
"""What takes part in rounds no longer does after that, unless rounds are too few."""

Measure = Callable[[Mapping[str, Sequence[Call]]], Mapping[str, float]]
"""Seconds of a call of each name; the calls of a name work on memory of their own."""


@dataclass(frozen=True)
class Subject:
    """A kernel of a product, and what it can be measured on.

    `make(m)` gives sets of tensors for `m` rows, in the order of the kernel's pointers, that no
    cache holds together; the last `results` of each are what the kernel writes.
    """

    name: str
    kernel: LoadedKernel
    make: Callable[[int], list[list[torch.Tensor]]]
    results: int = 1

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Outcome:
    """What was measured of `m` rows, which stand for those from `first_m` on."""

    product: Subject
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
        key, best = self.product.kernel.compiled.product, self.best
        return Entry(key, self.first_m, self.m, best.entry.symbol, best.rows, measured)

    def to_json(self) -> dict[str, Any]:
        return {
            "case": self.product.name,
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


def of_schemes(
    shapes: Sequence[tuple[int, int]], schemes: Sequence[CpuScheme], kernels: Kernels
) -> Iterator[Subject]:
    """x [M, K] times w [N, K] into bf16, for each shape and scheme that there is."""
    for n, k in shapes:
        for scheme in schemes:
            if scheme.fits(k):
                yield _of_scheme(n, k, scheme, kernels)


def _of_scheme(n: int, k: int, scheme: CpuScheme, kernels: Kernels) -> Subject:
    result = Shaped((DYNAMIC, n), "bf16")
    text = product_text(scheme.x_type(k), scheme.weight_type(n, k), result)
    weight = cache(lambda: Weight(scheme, n, k))

    def make(m: int) -> list[list[torch.Tensor]]:
        x = make_activations(scheme, m, k)
        pairs = zip(*weight().packed, strict=True)
        return [[*x.tensors, *pair, torch.empty(m, n, dtype=torch.bfloat16)] for pair in pairs]

    return Subject(f"{n}x{k} {scheme.name}", kernels.load(text), make)


def of_program(program: Program) -> Iterator[Subject]:
    """The products of a compiled model by their own weights, alike ones in several layers once.

    Those of a fixed number of rows, such as a head that reads the last token, are left out.
    """
    steps: dict[str, list[KernelStep]] = {}
    for step in program.plan.single_steps:
        if isinstance(step, KernelStep):
            kernel = program.kernels[step.kernel]
            if isinstance(kernel, CompiledKernel) and kernel.product:
                steps.setdefault(kernel.product, []).append(step)
    types = {kernel.name: kernel for kernel in program.plan.kernels}
    for alike in steps.values():
        alike = [step for step in alike if _has_any_rows(types[step.kernel])]
        if not alike:
            continue
        name = alike[0].kernel  # another with the same product differs in its epilogue only
        same = [step for step in alike if step.kernel == name]
        compiled = program.kernels[name]
        assert isinstance(compiled, CompiledKernel)
        make = partial(_of_steps, program, same, types[name])
        results = len(types[name].results)
        yield Subject(f"{name} ({len(alike)} x)", LoadedKernel(compiled), make, results)


def _has_any_rows(kernel: KernelType) -> bool:
    """Whether a kernel serves as many rows as it is given."""
    return any(plan.DYNAMIC in type_.shape for type_ in kernel.results)


def _of_steps(
    program: Program, steps: Sequence[KernelStep], type_: KernelType, m: int
) -> list[list[torch.Tensor]]:
    """The operands of each step, with random ones where they are computed."""
    sets = []
    for step in steps:
        pairs = zip(step.operands, type_.operands, strict=True)
        known = program.constants
        tensors = [known[v] if v in known else _random(t, m) for v, t in pairs]
        sets.append([*tensors, *(_random(t, m) for t in type_.results)])
    weights = sum(t.nbytes for t in sets[0])
    missing = buffer_sets(weights, last_level_cache()) - len(sets)
    return sets + [[t.clone() for t in sets[0]] for _ in range(missing)]


def _random(type_: TensorType | None, m: int) -> torch.Tensor:
    """Values that are no exceptions, of `m` rows."""
    assert type_ is not None
    shape = [m if extent == plan.DYNAMIC else extent for extent in type_.shape]
    dtype = plan.DTYPES[type_.dtype]
    if dtype.itemsize > 1 and dtype.is_floating_point:
        return torch.rand(shape).to(dtype)
    return torch.randint(0, 64, shape, dtype=torch.uint8).view(dtype)


def tune(
    subjects: Iterable[Subject],
    rows: Sequence[int],
    threads: int,
    measure: Measure,
    seconds: float,
) -> Iterator[Outcome]:
    """Measure each product with each number of rows; begin none after so many seconds."""
    end = time.monotonic() + seconds
    for subject in subjects:
        for first, m in ranges_of(rows):
            if time.monotonic() > end:
                return
            yield _outcome(subject, first, m, threads, measure)


def ranges_of(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers of rows with the first of those that each stands for: (1, 1), (2, 2), (3, 4)."""
    known = sorted(set(rows))
    return [(before + 1, m) for before, m in zip([0, *known], known, strict=False)]


def _outcome(subject: Subject, first: int, m: int, threads: int, measure: Measure) -> Outcome:
    found = {name_of(c): c for c in candidates(subject.kernel.compiled, m, threads)}
    sets = subject.make(m)
    calls: dict[str, list[Call]] = {}
    expected: list[torch.Tensor] = []
    for name, choice in found.items():
        calls[name] = [_bound(subject.kernel, tensors, m, threads, choice) for tensors in sets]
        calls[name][0]()
        made = [t.contiguous().view(torch.uint8) for t in sets[0][-subject.results :]]
        expected = expected or [t.clone() for t in made]
        if not all(map(torch.equal, made, expected)):
            usual = next(iter(found))
            raise QfuseError(f"{subject} M {m}: {name} computes other bits than {usual}")
        for tensor in made:
            tensor.zero_()
    seconds = measure(calls)
    best = min(seconds, key=lambda name: seconds[name])
    return Outcome(subject, first, m, next(iter(found.values())), found[best], seconds)


def _bound(
    kernel: LoadedKernel, tensors: list[torch.Tensor], m: int, threads: int, choice: Choice
) -> Call:
    scratch = aligned_bytes(kernel.compiled.scratch_bytes(m, threads, choice), _CPU)
    pointers = [t.data_ptr() for t in tensors]
    launch = kernel.bind(pointers, m, threads, scratch.data_ptr(), choice)

    def call(kept: object = (tensors, scratch)) -> None:
        launch()

    return call


def on_this_machine(calls: Mapping[str, Sequence[Call]]) -> Mapping[str, float]:
    """`Measure` by the clock: the least of rounds in which all take turns.

    What else the machine does makes some of them longer, and none shorter: each call works on
    other memory than those just before it, so none finds in a cache what one of them has read.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    turn = 0
    for number in range(-1, _MOST_ROUNDS):  # before the first, what made the memory has cached some
        for name, each in calls.items():
            taken = samples[name]
            if number >= _LEAST_ROUNDS and sum(taken) > _SECONDS_EACH:
                continue
            turn += 1
            start = time.perf_counter()
            each[turn % len(each)]()
            if number >= 0:
                taken.append(time.perf_counter() - start)
    return {name: min(taken) for name, taken in samples.items()}


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
