"""Whether a library product is faster than ours: as measured, else by an estimate.

A table that `qfuse tune` wrote has what both took on this GPU.  Where it says nothing, ours is what
`tile_model` says of the tiles that would be chosen, by a table or by that model.  The library's is
a roofline with what such products reach of the peak, plus the same overhead of a launch, plus one
pass over the result for an epilogue that it has not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from qfuse.compiler.dispatch.decide import Preference, Verdict
from qfuse.compiler.passes.outline import single_kernel
from qfuse.dialects.bindings import ir
from qfuse.lowering.triton.gpu import GPUS, Gpu
from qfuse.lowering.triton.problem import Problem, read_problem
from qfuse.lowering.triton.product import read_product
from qfuse.lowering.triton.signature import read_signature
from qfuse.lowering.triton.tile_choice import choose
from qfuse.lowering.triton.tile_entry import MeasuredCall
from qfuse.lowering.triton.tile_model import OVERHEAD, SPEEDS, estimate
from qfuse.lowering.triton.tile_table import active_table

EFFICIENCY = {"mm": 0.75, "scaled_mm_rows": 0.72, "scaled_mm_blocks": 0.55}
"""What the library's products reach of the model's peak on large matrices.

FBGEMM #2546, H100, 8192^3: bf16 585, FP8 per row 1125, FP8 in blocks 870 TFLOPS, of 784 and 1568 at
the clock the model takes for granted."""

_EFFICIENCY_OF_EXPERTS = 0.5
"""grouped_mm and scaled_grouped_mm: no figure published; below the dense products."""

BANDWIDTH = 0.85
"""What it reaches of memory bandwidth with few rows (DeepGEMM's README has 0.4 to 0.65 of H800's
for comparable kernels; cuBLAS is better for plain ones)."""

_MARGIN = 1.05
"""How many times faster a call must be: it costs the fusion of what is around the product."""

_MANY = 8192
"""Rows that stand for any larger number."""


@dataclass(frozen=True)
class Costs:
    """The preference for one product: by `measured`, else by estimates."""

    problem: Problem
    gpu: Gpu
    measured: Sequence[MeasuredCall] = ()

    @property
    def starts(self) -> list[int]:
        """Where what is known of a number of rows begins or ends."""
        lasts = [c.last_m for c in self.measured]
        return [*(c.first_m for c in self.measured), *(m + 1 for m in lasts if m is not None)]

    def __call__(self, call: str, apart: bool, first: int, last: int | None) -> Verdict:
        for found in self.measured:
            if found.call == call and found.covers(first):
                return self._by_measurement(found, apart)
        rows = last or max(_MANY, first)
        ours, theirs = self.ours(rows), self.library(call, rows)
        theirs += self.epilogue(rows) if apart else 0.0
        text = f"at M = {rows} estimated {_text(theirs)}, ours {_text(ours)}"
        return Verdict(theirs * _MARGIN < ours, text)

    def _by_measurement(self, found: MeasuredCall, apart: bool) -> Verdict:
        """An epilogue was not measured, and its kernel is estimated."""
        more = [self.epilogue(m) if apart else 0.0 for m in found.m]
        theirs = [t + extra for t, extra in zip(found.theirs, more, strict=True)]
        faster = fmean(t / o for t, o in zip(theirs, found.ours, strict=True)) * _MARGIN < 1
        rows = ", ".join(map(str, found.m))
        kernel = f", {_ms(fmean(more))} of them estimated for its epilogue," if apart else ""
        text = (
            f"measured: {_ms(fmean(theirs))}{kernel} against {_ms(fmean(found.ours))} of our kernel"
        )
        return Verdict(faster, f"{text} (M = {rows})", measured=True)

    def ours(self, m: int) -> float:
        """Seconds of our kernel with `m` rows."""
        for first, last, (config,) in choose((self.problem,), self.gpu):
            if first <= m and (last is None or m <= last):
                return estimate(self.problem, config, m, self.gpu).seconds
        raise AssertionError(f"no tiles for {m} rows of {self.problem}")

    def library(self, call: str, m: int) -> float:
        """Seconds of the library's product."""
        speeds = SPEEDS[self.gpu.arch]
        reached = EFFICIENCY.get(call, _EFFICIENCY_OF_EXPERTS)
        compute = self.problem.products(m) / (reached * speeds.peak(self.problem.factor, self.gpu))
        memory = self.problem.bytes(m) / (BANDWIDTH * speeds.memory)
        return max(compute, memory) + OVERHEAD

    def epilogue(self, m: int) -> float:
        """Seconds of one more kernel that reads what the library wrote, of 2 bytes an element."""
        read = 2 * m * self.problem.n * self.problem.parts
        return 2 * read / SPEEDS[self.gpu.arch].memory + OVERHEAD


def _text(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2g} ms"


def preference_of(product: ir.Operation, target: str) -> Preference:
    """Which is faster for a product on a target; off a GPU rules ask for no cost."""
    gpu = GPUS.get(target)
    if gpu is None or product.name != "qfuse.matmul":
        return _never
    problem = problem_of(product, gpu)
    if problem is None:
        return _never
    return Costs(problem, gpu, active_table().calls_of(problem, gpu))


def starts_of(preference: Preference) -> list[int]:
    """Numbers of rows from which on a preference may be another."""
    return preference.starts if isinstance(preference, Costs) else []


def _never(_call: str, _apart: bool, _first: int, _last: int | None) -> Verdict:
    return Verdict(False, "there is no estimate for it")


def problem_of(product: ir.Operation, gpu: Gpu) -> Problem | None:
    """The product as tiles are chosen for it; None where it is cut into several launches."""
    with single_kernel(product) as function:
        read = read_product(read_signature(function))
        if len(read.groups) != 1:
            return None
        return read_problem(read, read.groups[0], gpu)
