"""`qfuse tune`: measure the tiles that there are kernels for, and keep the best in a table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.problem import Problem
from qfuse.lowering.triton.tile_choice import RANGES, candidates, choose
from qfuse.lowering.triton.tile_model import estimate
from qfuse.lowering.triton.tile_table import (
    Entry,
    Table,
    entry_for,
    key_of,
    read_table,
    using,
)
from qfuse.lowering.triton.tiles import Config
from qfuse.tools.bench.cases import Case, error_of, make_operands, reference

GAIN = 1.02
"""An entry is worth it if what the model chose takes this much longer at least: noise is less."""

_MOST = 24
"""Candidates measured for each range of rows, the best by the model first."""

_TOO_SLOW = 3.0
"""Candidates that the model thinks are so much slower than its best are not measured."""


class Measure(Protocol):
    """Seconds of `case` with `m` rows cut as `config` says.

    Raises QfuseError if it does not compile, or gives wrong numbers.
    """

    def __call__(self, case: Case, config: Config, m: int) -> float: ...


@dataclass(frozen=True)
class Outcome:
    """What was measured for one range of rows; `entry` is None where the model was right."""

    case: Case
    first_m: int
    last_m: int | None
    rows: tuple[int, ...]
    measured: int
    failed: tuple[str, ...]
    by_model: Config
    model_seconds: float
    best: Config
    best_seconds: float
    entry: Entry | None

    @property
    def gain(self) -> float:
        """How many times the best's time the model's choice takes."""
        return self.model_seconds / self.best_seconds

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": str(self.case),
            "first_m": self.first_m,
            "last_m": self.last_m,
            "measured_m": list(self.rows),
            "candidates": self.measured,
            "failed": list(self.failed),
            "by_model": self.by_model.name,
            "model_us": self.model_seconds * 1e6,
            "best": self.best.name,
            "best_config": asdict(self.best),
            "best_us": self.best_seconds * 1e6,
            "gain": self.gain,
            "written": self.entry is not None,
        }


def tune(
    cases: Sequence[Case],
    rows: Sequence[int],
    gpu: Gpu,
    measure: Measure,
    about: dict[str, Any],
    most: int = _MOST,
) -> Iterator[Outcome]:
    """Measure each case for the ranges that `rows` lie in.

    `about` goes into the entries: which GPU, when, which versions.
    """
    for case in cases:
        problem = case.problem(gpu)
        for (first, last), within in ranges_of(rows).items():
            yield _tune_range(case, problem, first, last, within, gpu, measure, about, most)


def ranges_of(rows: Sequence[int]) -> dict[tuple[int, int | None], tuple[int, ...]]:
    """The ranges of `tile_choice` that numbers of rows lie in, with those of each."""
    found: dict[tuple[int, int | None], tuple[int, ...]] = {}
    for m in sorted(set(rows)):
        range_ = next((a, b) for a, b in RANGES if b is None or m <= b)
        found[range_] = (*found.get(range_, ()), m)
    return found


def _tune_range(
    case: Case,
    problem: Problem,
    first: int,
    last: int | None,
    rows: tuple[int, ...],
    gpu: Gpu,
    measure: Measure,
    about: dict[str, Any],
    most: int,
) -> Outcome:
    usual = untuned(problem, gpu, first)
    promising = shortlist(problem, first, last, rows, gpu, most)
    seconds: dict[Config, list[float]] = {}
    failed = []
    for config in dict.fromkeys((usual, *promising)):
        try:
            seconds[config] = [measure(case, config, m) for m in rows]
        except QfuseError as error:
            if config == usual:
                raise
            failed.append(f"{config.name}: {error}")

    def times(config: Config) -> float:
        """The model's choice's times, on average over the rows."""
        pairs = zip(seconds[config], seconds[usual], strict=True)
        return sum(a / b for a, b in pairs) / len(rows)

    best = min(seconds, key=times)
    if times(best) * GAIN > 1:
        best, entry = usual, None
    else:
        measured = {**about, "m": list(rows), "seconds": seconds[best],
                    "by_model": usual.name, "model_seconds": seconds[usual]}  # fmt: skip
        entry = entry_for(problem, gpu, (first, last), best, measured)
    return Outcome(
        case,
        first,
        last,
        rows,
        len(seconds),
        tuple(failed),
        usual,
        sum(seconds[usual]) / len(rows),
        best,
        sum(seconds[best]) / len(rows),
        entry,
    )


def untuned(problem: Problem, gpu: Gpu, m: int) -> Config:
    """The tiles that serve `m` rows where no table says anything."""
    with using(Table()):
        found = choose((problem,), gpu)
    configs = next(configs for _, last, configs in found if last is None or m <= last)
    return replace(configs[0], edition=0)


def shortlist(
    problem: Problem, first: int, last: int | None, rows: Sequence[int], gpu: Gpu, most: int
) -> list[Config]:
    """The candidates that the model thinks best, in its order."""

    def modelled(config: Config) -> float:
        return sum(estimate(problem, config, m, gpu).seconds for m in rows)

    found = sorted(candidates(problem, gpu, first, last), key=modelled)
    limit = _TOO_SLOW * modelled(found[0])
    return [config for config in found[:most] if modelled(config) <= limit]


def merged(table: Table, outcomes: Sequence[Outcome], gpu: Gpu) -> Table:
    """`table` with what was found: entries of ranges where the model is right go."""
    for outcome in outcomes:
        if outcome.entry is not None:
            table = table.with_entry(outcome.entry)
        else:
            key = key_of(outcome.case.problem(gpu), gpu)
            table = table.without(key, outcome.first_m, outcome.last_m)
    return table


def line(outcome: Outcome) -> str:
    """For people: what one range of rows gained."""
    rows = f"{outcome.first_m}.." + (str(outcome.last_m) if outcome.last_m else "")
    found = f"{outcome.case} M {rows}: model {outcome.by_model.name} "
    found += f"{outcome.model_seconds * 1e6:.1f} us"
    if outcome.entry is not None:
        found += f", best {outcome.best.name} {outcome.best_seconds * 1e6:.1f} us"
        found += f" ({outcome.gain:.2f} times)"
    else:
        found += f", best of {outcome.measured}"
    return found + (f"; {len(outcome.failed)} failed" if outcome.failed else "")


def open_table(path: Path) -> Table:
    """The table at `path`, or an empty one where there is no file yet."""
    return read_table(path) if path.exists() else Table()


class GpuMeasure:
    """`Measure` on the GPU of this machine; each candidate is compiled, checked, then timed.

    `machine` is a `bench.gemm.Machine`; `load` starts kernels, as `subjects.Ours` says.
    """

    def __init__(
        self, gpu: Gpu, machine: Any, load: Callable[[Any], Any], directory: Path | None
    ) -> None:
        self._gpu, self._machine = gpu, machine
        self._load, self._directory = load, directory
        self._made: tuple[Case, int] | None = None

    def __call__(self, case: Case, config: Config, m: int) -> float:
        from qfuse.tools.bench.subjects import Ours

        self._make(case, m)
        problem = case.problem(self._gpu)
        entry = entry_for(problem, self._gpu, (m, m), config, {})
        with using(Table((entry,))):
            prepared = Ours(self._gpu, self._load, self._directory).prepare(case, m, self._sets)
        error = error_of(prepared.first_result(), self._expected)
        if not error <= case.tolerance:
            raise QfuseError(f"wrong numbers: relative error {error:.2g}")
        return self._machine.timer(prepared.calls)

    def _make(self, case: Case, m: int) -> None:
        """Operands and what they give; kept for the next candidate."""
        from qfuse.tools.bench.timing import buffer_sets

        if self._made == (case, m):
            return
        first = make_operands(case, m, self._machine.device)
        count = buffer_sets(first.bytes, self._machine.l2_bytes)
        self._sets = [first] + [first.copy() for _ in range(count - 1)]
        self._expected = reference(case, first)
        self._made = (case, m)
