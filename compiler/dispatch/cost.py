"""Whether a library product is faster than ours: as measured, else by an estimate.

A table that `qfuse tune` wrote has what both took on this GPU.  Where it says nothing, ours is what
`tile_model` says of the tiles that would be chosen, by a table or by that model.  The library's is
a roofline with what such products reach of the peak, plus the same overhead of a launch, plus one
pass over the result for an epilogue that it has not.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from qfuse.compiler.dispatch.decide import Preference, Verdict
from qfuse.compiler.passes.outline import single_kernel
from qfuse.dialects.bindings import ir
from qfuse.dialects.types import shaped
from qfuse.lowering.cpu.entry_table import calls_of
from qfuse.lowering.measured_call import MeasuredCall
from qfuse.lowering.triton.gpu import GPUS, Gpu
from qfuse.lowering.triton.problem import Problem, read_problem
from qfuse.lowering.triton.product import read_product
from qfuse.lowering.triton.signature import read_signature
from qfuse.lowering.triton.tile_choice import choose
from qfuse.lowering.triton.tile_model import OVERHEAD, SPEEDS, estimate
from qfuse.lowering.triton.tile_table import active_table

EFFICIENCY = {"mm": 0.75, "scaled_mm_rows": 0.72, "scaled_mm_blocks": 0.55}
"""What the library's products reach of the model's peak on large matrices.

FBGEMM #2546, H100, 8192^3: bf16 585, FP8 per row 1125, FP8 in blocks 870 TFLOPS, of 784 and 1568 at
the clock the model takes for granted."""

_EFFICIENCY_OF_EXPERTS = 0.5
"""grouped_mm and scaled_grouped_mm: no figure published; below the dense products."""

_UNKNOWN = ("int_mm",)
"""Three launches, of which nobody says what they take."""

BANDWIDTH = 0.85
"""What it reaches of memory bandwidth with few rows (DeepGEMM's README has 0.4 to 0.65 of H800's
for comparable kernels; cuBLAS is better for plain ones)."""

_MARGIN = 1.05
"""How many times faster a call must be: it costs the fusion of what is around the product."""

_MANY = 8192
"""Rows that stand for any larger number."""


@dataclass(frozen=True)
class Measured:
    """The preference for one product by what was measured of it, and by nothing else."""

    measured: Sequence[MeasuredCall] = ()

    @property
    def starts(self) -> list[int]:
        """Where what is known of a number of rows begins or ends."""
        lasts = [c.last_m for c in self.measured]
        return [*(c.first_m for c in self.measured), *(m + 1 for m in lasts if m is not None)]

    def __call__(self, call: str, apart: bool, first: int, last: int | None) -> Verdict:
        found = self.found(call, first)
        if found is None:
            return Verdict(False, "nothing was measured of it (qfuse tune)")
        return _by_measurement(found)

    def found(self, call: str, m: int) -> MeasuredCall | None:
        """What was measured of a call with `m` rows."""
        return next((c for c in self.measured if c.call == call and c.covers(m)), None)


def _by_measurement(found: MeasuredCall, apart: Sequence[float] = ()) -> Verdict:
    """`apart` are estimated seconds of a kernel for the epilogue, which was not measured."""
    more = apart or [0.0] * len(found.m)
    theirs = [t + extra for t, extra in zip(found.theirs, more, strict=True)]
    faster = fmean(t / o for t, o in zip(theirs, found.ours, strict=True)) * _MARGIN < 1
    kernel = f", {_ms(fmean(more))} of them estimated for its epilogue," if apart else ""
    text = f"measured: {_ms(fmean(theirs))}{kernel} against {_ms(fmean(found.ours))} of our kernel"
    return Verdict(faster, f"{text} (M = {', '.join(map(str, found.m))})", measured=True)


@dataclass(frozen=True)
class Costs(Measured):
    """The preference for one product on a GPU: by measurements, else by estimates."""

    problem: Problem = field(kw_only=True)
    gpu: Gpu = field(kw_only=True)

    def __call__(self, call: str, apart: bool, first: int, last: int | None) -> Verdict:
        found = self.found(call, first)
        if found is not None:
            return _by_measurement(found, [self.epilogue(m) for m in found.m] if apart else ())
        if call in _UNKNOWN:
            return Verdict(False, "there is no estimate for it, and no measurement (qfuse tune)")
        rows = last or max(_MANY, first)
        ours, theirs = self.ours(rows), self.library(call, rows)
        theirs += self.epilogue(rows) if apart else 0.0
        text = f"at M = {rows} estimated {_text(theirs)}, ours {_text(ours)}"
        return Verdict(theirs * _MARGIN < ours, text)

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
    """Which is faster for a product on a target."""
    if product.name != "qfuse.matmul":
        return _never
    gpu = GPUS.get(target)
    if gpu is None:
        return Measured(_measured_here(product))
    problem = problem_of(product, gpu)
    if problem is None:
        return _never
    return Costs(active_table().calls_of(problem, gpu), problem=problem, gpu=gpu)


def _measured_here(product: ir.Operation) -> list[MeasuredCall]:
    """What was measured of a product on this CPU, with the threads that torch has now.

    qfuse-opt, which never imports torch, knows of none.
    """
    torch = sys.modules.get("torch")
    w = shaped(product.operands[1].type)
    if torch is None or w.quantized:
        return []
    return calls_of(w.shape[-2], w.shape[-1], w.dtype, torch.get_num_threads())


def starts_of(preference: Preference) -> list[int]:
    """Numbers of rows from which on a preference may be another."""
    return preference.starts if isinstance(preference, Measured) else []


def _never(_call: str, _apart: bool, _first: int, _last: int | None) -> Verdict:
    return Verdict(False, "there is no estimate for it")


def problem_of(product: ir.Operation, gpu: Gpu) -> Problem | None:
    """The product as tiles are chosen for it; None where it is cut into several launches."""
    with single_kernel(product) as function:
        read = read_product(read_signature(function))
        if len(read.groups) != 1:
            return None
        return read_problem(read, read.groups[0], gpu)
