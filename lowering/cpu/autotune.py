"""Measuring which of the choices of tunables.py are fastest for a product, on this CPU.

A product is measured alone, with an epilogue that only rounds, and where it has many columns by a
part of them: what is chosen depends on how the K of one tile streams through the caches, and more
tiles are more of the same.  So products that differ in nothing else are measured once.  Weights
are read in turn from more memory than the last-level cache holds, all candidates take turns, and
their medians are compared; a candidate must be clearly faster to be taken.

All of it keeps to a budget: what there was no time for is said, and has the defaults.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from qfuse.dialects import matmul_op, registry
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.codegen import compile_kernel
from qfuse.lowering.cpu.kernel import ALIGNMENT, Choice, CompiledKernel
from qfuse.lowering.cpu.launcher import LoadedKernel
from qfuse.lowering.cpu.layout import WeightLayout, round_up
from qfuse.lowering.cpu.product import Product
from qfuse.lowering.cpu.product_kernel import product_key, product_of
from qfuse.lowering.cpu.signature import weight_layout
from qfuse.lowering.cpu.tunables import SEARCHES, Search, Tunables

GAIN = 1.03
"""A choice is taken if what was best before takes so many times as long: noise is less."""

LEAST_BYTES = 1 << 20
"""Smaller weights are not measured: a core's own cache holds them, and launching takes as long."""

_MOST_BYTES = 16 << 20
"""A weight is cut to about so much, but to no fewer columns than `_LEAST_COLUMNS`."""

_LEAST_COLUMNS, _COLUMNS = 1024, 128
"""The columns left are a multiple of the latter."""

_COLD, _MEMORY = 4, (64 << 20, 512 << 20)
"""Weights are read in turn from so many times the last-level cache, within bounds of bytes: a
machine may have several of which it tells of one."""

_FILL = 0x3C
"""Every byte that is read: as an element or a scale of any type a normal number."""

_LEAST_ROUNDS, _MOST_ROUNDS, _SECONDS_EACH = 5, 41, 0.015
"""Of a candidate's calls; it has no more once it had the least of them and took that long."""

Call = Callable[[], None]
Now = Callable[[], float]


class OutOfTime(Exception):
    """The budget ended before a measurement did."""


@dataclass(frozen=True)
class Subject:
    """A product x [M, K] by w [N, K] as it is measured."""

    x: Shaped
    w: Shaped

    def __str__(self) -> str:
        """What tables of tunables find it by."""
        return product_key(self.x, self.w, self.parts)

    @property
    def parts(self) -> tuple[int, ...]:
        return (self.w.shape[0],)

    @property
    def layout(self) -> WeightLayout:
        return weight_layout(self.w, self.parts)

    def defaults(self, level: str) -> Tunables:
        return product_of(self.x, self.w, level, self.layout).tunables


@dataclass(frozen=True)
class Found:
    """What searches found for a product: fields of Tunables with values that are not the default.

    `measured` has, for each number of rows, the seconds of what was found and of the defaults.
    """

    changes: Mapping[str, Any]
    measured: Mapping[int, tuple[float, float]]

    def apply(self, usual: Tunables) -> Tunables:
        """Raises ValueError or TypeError where nothing can be built so."""
        return Tunables.from_json({**usual.to_json(), **self.changes})

    def is_complete(self, level: str) -> bool:
        """Whether there is nothing more to search for."""
        return all(search.m in self.measured for search in SEARCHES[level])


class Measure(Protocol):
    """Median seconds of each of `choices`, for what a search is about.

    Raises OutOfTime if it would take longer than until `end`.
    """

    def __call__(
        self, subject: Subject, search: Search, choices: Sequence[Tunables], end: float
    ) -> list[float]: ...


def product_of_op(op: ir.Operation, level: str) -> Product:
    """The code of an operation that multiplies by one weight, or by those of experts."""
    x, w, parts = _operands(op)
    return product_of(x, w, level, weight_layout(w, parts))


def key_of(op: ir.Operation) -> str:
    return product_key(*_operands(op))


def weight_bytes(op: ir.Operation) -> int:
    """Of its weight, or of one expert's."""
    _, w, parts = _operands(op)
    return weight_layout(w, parts).packed_bytes


def _operands(op: ir.Operation) -> tuple[Shaped, Shaped, tuple[int, ...]]:
    x, w = (shaped(v.type) for v in list(op.operands)[:2])
    return x, w, tuple(ir.DenseI64ArrayAttr(op.attributes["parts"]))


def subject_of(op: ir.Operation) -> Subject | None:
    """What is measured of such an operation; None where its weight is too small for that."""
    x, w, _ = _operands(op)
    n, k = w.shape[-2:]
    whole = Subject(replace(x, shape=(DYNAMIC, k)), replace(w, shape=(n, k)))
    size = whole.layout.packed_bytes
    if size < LEAST_BYTES:
        return None
    fit = n * _MOST_BYTES // size // _COLUMNS * _COLUMNS
    return replace(whole, w=replace(w, shape=(min(n, max(_LEAST_COLUMNS, fit)), k)))


def tune(
    subjects: Iterable[Subject],
    level: str,
    known: Mapping[str, Found],
    measure: Measure,
    seconds: float,
    now: Now = time.perf_counter,
) -> tuple[dict[str, Found], list[tuple[Subject, Search]]]:
    """Search for what is not known, and return that, by name, and what there was no time for.

    It takes no longer than `seconds`: a step begins if it may take as long as the longest so far.
    """
    budget = _Budget(seconds, now)
    found, left = dict(known), []
    subjects = list(subjects)
    for search in SEARCHES[level]:
        for subject in subjects:
            before = found.get(str(subject), Found({}, {}))
            if search.m in before.measured:
                continue
            try:
                usual = subject.defaults(level)
                best, pair = _search(subject, search, before.apply(usual), measure, budget)
            except OutOfTime:
                left.append((subject, search))
                continue
            measured = {**before.measured, search.m: pair}
            found[str(subject)] = Found(_differing(best, usual), measured)
    return found, left


class _Budget:
    """Until when there is time, and how long a step may take."""

    def __init__(self, seconds: float, now: Now) -> None:
        self._now, self._longest = now, 0.0
        self.end = now() + seconds

    def step(self, measure: Callable[[], list[float]]) -> list[float]:
        begun = self._now()
        if begun + self._longest > self.end:
            raise OutOfTime
        times = measure()
        self._longest = max(self._longest, self._now() - begun)
        return times


def _search(
    subject: Subject, search: Search, first: Tunables, measure: Measure, budget: _Budget
) -> tuple[Tunables, tuple[float, float]]:
    """What is clearly faster than `first`, or that, with the seconds of both."""

    def seconds(choices: Sequence[Tunables]) -> list[float]:
        return budget.step(lambda: measure(subject, search, choices, budget.end))

    best = first
    for number in range(len(search.lists)):
        choices = [best, *search.alternatives(best, number)]
        times = seconds(choices)
        fastest = min(range(len(times)), key=times.__getitem__)
        if times[0] >= GAIN * times[fastest]:
            best = choices[fastest]
        taken = min(times[0], times[fastest])
    if best == first:
        return first, (taken, taken)
    # The least of several is too small by luck, so what was found has to show it once more.
    before, after = seconds([first, best])
    if before < GAIN * after:
        return first, (before, before)
    return best, (after, before)


def _differing(tunables: Tunables, usual: Tunables) -> dict[str, Any]:
    as_usual = usual.to_json()
    return {k: v for k, v in tunables.to_json().items() if v != as_usual[k]}


class Probes:
    """`Measure` by the clock, on this CPU."""

    def __init__(self, level: str, threads: int, now: Now = time.perf_counter) -> None:
        self._level, self._threads, self._now = level, threads, now
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._made: dict[tuple[Subject, int, Tunables], list[Call]] = {}
        self._context = ir.Context()
        with self._context:
            registry.load_all()

    def __call__(
        self, subject: Subject, search: Search, choices: Sequence[Tunables], end: float
    ) -> list[float]:
        calls = []
        for tuned in choices:
            key = subject, search.m, tuned
            if key not in self._made:
                if self._now() > end:
                    raise OutOfTime
                self._made[key] = self._calls(subject, search, tuned)
            calls.append(self._made[key])
        return self._medians(calls, end)

    def _calls(self, subject: Subject, search: Search, tuned: Tunables) -> list[Call]:
        """Launches of one kernel, each on a weight of its own."""
        kernel = LoadedKernel(self._compiled(subject, search, tuned))
        (entry,) = kernel.compiled.entries
        m, layout = search.m, subject.layout
        choice = Choice(entry, entry.task_rows(m, self._threads))
        x = _filled(8 * m * subject.x.shape[-1])  # 4 bytes an element at most, and as much scales
        out = torch.empty(2 * m * subject.w.shape[0], dtype=torch.uint8)
        codes = round_up(layout.packed_bytes, ALIGNMENT)
        scales = math.prod(layout.scale_shape) * (4 if layout.by_block else 1)
        size = codes + round_up(scales, ALIGNMENT)
        if len(self._memory) < size:
            self._memory = _filled(max(size, _memory_bytes()))
        calls: list[Call] = []
        for at in range(0, len(self._memory) - size + 1, size):
            w = self._memory.data_ptr() + at
            places = {"data": w, "scale": w + codes}
            pointers = [
                out.data_ptr()
                if p.source == "result"
                else (places[p.part] if p.index == 1 else x.data_ptr())
                for p in kernel.compiled.parameters
            ]
            launch = kernel.bind(pointers, m, self._threads, choice=choice)
            calls.append(_Kept(launch, (kernel, x, out, self._memory)))
        return calls

    def _compiled(self, subject: Subject, search: Search, tuned: Tunables) -> CompiledKernel:
        """The one entry that is measured, without what other numbers of rows take."""
        tuned = replace(tuned, direct_rows=(1,), tile_rows=tuned.tile_rows[:1])
        with self._context, ir.Location.unknown():
            module = _module(subject)
            (kernel,) = module.body.operations
            return compile_kernel(kernel, level=self._level, tuned=tuned, entry=search.entry)

    def _medians(self, calls: Sequence[Sequence[Call]], end: float) -> list[float]:
        samples: list[list[float]] = [[] for _ in calls]
        turn = 0
        for number in range(_MOST_ROUNDS):
            for each, taken in zip(calls, samples, strict=True):
                if number >= _LEAST_ROUNDS and sum(taken) > _SECONDS_EACH:
                    continue
                turn += 1
                start = self._now()
                each[turn % len(each)]()
                taken.append(self._now() - start)
            if self._now() > end:
                raise OutOfTime
        return [statistics.median(taken) for taken in samples]


@dataclass(frozen=True)
class _Kept:
    """A launch with what it works on."""

    launch: Call
    memory: object

    def __call__(self) -> None:
        self.launch()


def _module(subject: Subject) -> ir.Module:
    """The product alone as a kernel, in the current context."""
    result = Shaped((DYNAMIC, *subject.parts), "bf16").type()
    module = ir.Module.create()
    with ir.InsertionPoint(module.body):
        kernel = func.FuncOp("probe", ([subject.x.type(), subject.w.type()], [result]))
    with ir.InsertionPoint(kernel.add_entry_block()):
        name, inputs = matmul_op.MatmulOp.OPERATION_NAME, list(kernel.arguments)
        product, epilogue = matmul_op.build_product(name, inputs, [result], subject.parts)
        with ir.InsertionPoint(epilogue):
            matmul_op.YieldOp([epilogue.arguments[0]])
        func.ReturnOp(product.results)
    return module


def _filled(size: int) -> torch.Tensor:
    """So many bytes, or a few less, from a multiple of 64 on."""
    whole = torch.full((size + ALIGNMENT,), _FILL, dtype=torch.uint8)
    return whole[-whole.data_ptr() % ALIGNMENT :]


def _memory_bytes() -> int:
    try:
        cache = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError):
        cache = 0
    least, most = _MEMORY
    return min(most, max(least, _COLD * cache))
