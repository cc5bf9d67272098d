"""`qfuse tune`: measure tiles and library calls on this GPU, and keep what is best in a table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.measured_call import MeasuredCall
from qfuse.lowering.table_file import difference
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.problem import Problem
from qfuse.lowering.triton.tile_choice import RANGES, candidates, choose
from qfuse.lowering.triton.tile_entry import Entry, about, entry_for, key_of
from qfuse.lowering.triton.tile_model import estimate
from qfuse.lowering.triton.tile_table import Table, read_table, using
from qfuse.lowering.triton.tiles import Config
from qfuse.tools.bench.cases import error_of
from qfuse.tools.tune_calls import LEAST_ROWS, AnyCase, call_of, calls_on

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

    def __call__(self, case: AnyCase, config: Config, m: int) -> float: ...


class MeasureCall(Protocol):
    """Seconds of the library's `call` for `case` with `m` rows.

    Raises QfuseError if there is none here, or it gives wrong numbers.
    """

    def __call__(self, case: AnyCase, call: str, m: int) -> float: ...


@dataclass(frozen=True)
class Outcome:
    """What was measured for one range of rows.

    `entry` is None where the model was right, `call` where a library has nothing to compare.
    """

    case: AnyCase
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
    call: MeasuredCall | None = None

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
            "call": self.call and self.call.call,
            "call_us": self.call and _mean(self.call.theirs) * 1e6,
        }


def tune(
    cases: Sequence[AnyCase],
    rows: Sequence[int],
    gpu: Gpu,
    measure: Measure,
    known: dict[str, Any],
    most: int = _MOST,
    measure_call: MeasureCall | None = None,
) -> Iterator[Outcome]:
    """Measure each case for the ranges that `rows` lie in, with the library's call if it is given.

    `known` goes into the entries: which GPU, when, which versions.
    """
    for case in cases:
        problem = case.problem(gpu)
        for range_, within in ranges_of(rows).items():
            outcome = _tune_range(case, problem, range_, within, gpu, measure, known, most)
            if measure_call is not None:
                outcome = _against_library(outcome, problem, gpu, measure, measure_call)
            yield outcome


def ranges_of(rows: Sequence[int]) -> dict[tuple[int, int | None], tuple[int, ...]]:
    """The ranges of `tile_choice` that numbers of rows lie in, with those of each."""
    found: dict[tuple[int, int | None], tuple[int, ...]] = {}
    for m in sorted(set(rows)):
        range_ = next((a, b) for a, b in RANGES if b is None or m <= b)
        found[range_] = (*found.get(range_, ()), m)
    return found


def _tune_range(
    case: AnyCase,
    problem: Problem,
    range_: tuple[int, int | None],
    rows: tuple[int, ...],
    gpu: Gpu,
    measure: Measure,
    known: dict[str, Any],
    most: int,
) -> Outcome:
    first, last = range_
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
        measured = {**known, "m": list(rows), "seconds": seconds[best],
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


def _against_library(
    outcome: Outcome, problem: Problem, gpu: Gpu, measure: Measure, measure_call: MeasureCall
) -> Outcome:
    """`outcome` with what the library's call took, or why it took nothing.

    Our best tiles are measured once more, beside it: what the clocks do meets both alike.
    """
    call = call_of(outcome.case)
    if call is None or outcome.first_m < LEAST_ROWS.get(call, 2):
        return outcome
    theirs, ours = [], []
    try:
        for m in outcome.rows:
            theirs.append(measure_call(outcome.case, call, m))
            ours.append(measure(outcome.case, outcome.best, m))
    except QfuseError as error:
        return replace(outcome, failed=(*outcome.failed, f"{call}: {error}"))
    rows = about(problem, gpu, (outcome.first_m, outcome.last_m))
    found = MeasuredCall(**rows, call=call, m=outcome.rows, ours=tuple(ours), theirs=tuple(theirs))
    return replace(outcome, call=found)


def _mean(seconds: Sequence[float]) -> float:
    return sum(seconds) / len(seconds)


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
        if outcome.call is not None:
            table = table.with_call(outcome.call)
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
    if outcome.call is not None:
        theirs, ours = (_mean(s) * 1e6 for s in (outcome.call.theirs, outcome.call.ours))
        found += f"; {outcome.call.call} {theirs:.1f} us against {ours:.1f}"
    return found + (f"; {len(outcome.failed)} failed" if outcome.failed else "")


SIGNED = ("target", "gpu", "driver", "torch", "library", "triton")
"""What a table is signed by, as `gpu_signature.signature` has it."""


def open_table(path: Path) -> Table:
    """The table at `path`, or an empty one where there is no file yet."""
    return read_table(path) if path.exists() else Table()


def signed(table: Table, path: Path, signature: dict[str, str]) -> Table:
    """`table` for what is measured now; raises QfuseError if it has what was measured otherwise."""
    if (table.entries or table.calls) and (why := difference(table.signature, signature)):
        raise QfuseError(f"{path} cannot be added to: {why}; name another file")
    return replace(table, signature=signature)


class GpuMeasure:
    """`Measure` on the GPU of this machine; each candidate is compiled, checked, then timed.

    `machine` is a `bench.gemm.Machine`; `load` starts kernels, as `subjects.Ours` says.
    """

    def __init__(
        self, gpu: Gpu, machine: Any, load: Callable[[Any], Any], directory: Path | None
    ) -> None:
        self._gpu, self._machine = gpu, machine
        self._load, self._directory = load, directory
        self._made: tuple[AnyCase, int] | None = None

    def __call__(self, case: AnyCase, config: Config, m: int) -> float:
        from qfuse.tools.bench.subjects import Ours

        self._make(case, m)
        problem = case.problem(self._gpu)
        entry = entry_for(problem, self._gpu, (m, m), config, {})
        with using(Table((entry,))):
            ours: Any = Ours(self._gpu, self._load, self._directory)  # of any kind of case
            prepared = ours.prepare(case, m, self._sets)
        self._check(case, prepared.first_result())
        return self._machine.timer(prepared.calls)

    def call(self, case: AnyCase, call: str, m: int) -> float:
        """`MeasureCall`, as a program makes it."""
        from qfuse.compiler.runtime import library
        from qfuse.tools.bench.gemm import first_line

        if why := library.unavailable(call, self._machine.device):
            raise QfuseError(why)
        self._make(case, m)
        try:
            calls = calls_on(case, self._sets)
            self._check(case, calls[0]())
            return self._machine.timer(calls)
        except QfuseError:
            raise
        except Exception as error:  # torch and cuBLAS have no type of error in common
            raise QfuseError(first_line(error)) from error

    def _check(self, case: AnyCase, made: Any) -> None:
        error = error_of(made, self._expected)
        if not error <= case.tolerance:
            raise QfuseError(f"wrong numbers: relative error {error:.2g}")

    def _make(self, case: AnyCase, m: int) -> None:
        """Operands and what they give; kept for the next candidate."""
        from qfuse.tools.bench.timing import buffer_sets

        if self._made == (case, m):
            return
        first: Any = case.make(m, self._machine.device)
        count = buffer_sets(first.bytes, self._machine.l2_bytes)
        self._sets = [first] + [first.copy() for _ in range(count - 1)]
        self._expected = case.reference(first)
        self._made = (case, m)
