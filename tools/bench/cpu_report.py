"""Rows of the CPU suites: every subject verified, then measured beside the limits of the machine.

All rows have

    case, m, n, k, scheme      what is computed; k is null where nothing is multiplied
    ms, gb_s, gflop_s          ours: what it takes, and what that is of memory and arithmetic
    of_limit, bound            the time that the machine needs at least, of ours; what decides it
    limit                      the same by name: read, or the instruction that multiplies
    of_bf16_peak               gflop_s of what products of bf16 reach at most
    peers, absent              milliseconds by name; why others have none
    limits                     read_gb_s, peak_gflop_s and bf16_gflop_s, measured in the same rounds
    others_percent, error      what other processes did in them; our relative error

The peak is that of the instruction that serves: vdpbf16ps, or vpdpbusd for codes by codes, where
there is AVX-512.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from qfuse.compiler.options import CompileOptions
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.cache import compile_cached
from qfuse.lowering.cpu.launcher import LoadedKernel
from qfuse.tools.bench.cases import error_of, parsed
from qfuse.tools.bench.cpu_limits import multiplier, peak_probe, read_probe
from qfuse.tools.bench.cpu_rounds import measure
from qfuse.tools.bench.gemm import first_line
from qfuse.tools.bench.kernels import Call, aligned_bytes
from qfuse.tools.bench.subjects import Prepared

OURS = "qfuse"

CHECKED = 16
"""Rows that are compared with the reference."""

_READ, _PEAKS = "read limit", {False: "peak", True: "peak of integers"}

_CPU = torch.device("cpu")


class Named(Protocol):
    """A way to compute; `tolerance` is the relative error (of norms) it may have."""

    @property
    def name(self) -> str: ...

    @property
    def tolerance(self) -> float: ...


S = TypeVar("S", bound=Named)


@dataclass(frozen=True)
class Kernels:
    """Our kernels, compiled once for each text, and bound to tensors."""

    options: CompileOptions
    threads: int
    _loaded: dict[str, LoadedKernel] = field(default_factory=dict)

    def load(self, text: str) -> LoadedKernel:
        """The kernel of a module with one."""
        if text not in self._loaded:
            options = self.options
            with parsed(text) as function:
                compiled = compile_cached(function, options.cache_dir, level=options.level)
            self._loaded[text] = LoadedKernel(compiled)
        return self._loaded[text]

    def bind(self, text: str, tensors: Sequence[torch.Tensor], m: int) -> Call:
        """A launch on tensors, which stay alive with it, and on scratch of its own."""
        return self.launch(self.load(text), tensors, m)

    def launch(self, kernel: LoadedKernel, tensors: Sequence[torch.Tensor], m: int) -> Call:
        """A launch of a loaded kernel."""
        scratch = aligned_bytes(kernel.compiled.scratch_bytes(m, self.threads), _CPU)
        pointers = [t.data_ptr() for t in tensors]
        launch = kernel.bind(pointers, m, self.threads, scratch.data_ptr())

        def call(kept: object = (tensors, scratch)) -> None:
            launch()

        return call


@dataclass(frozen=True)
class Work:
    """What a row computes: bytes that go through memory at least, and what is multiplied."""

    bytes: float
    flops: float = 0.0
    integers: bool = False


class Reporter:
    """Makes rows; what shows the limits of the machine takes part in the rounds of each."""

    def __init__(self, threads: int) -> None:
        self._read = read_probe(threads)
        self._peaks = {integers: peak_probe(threads, integers) for integers in (False, True)}

    def row(
        self,
        subjects: Sequence[S],
        prepare: Callable[[S], Prepared],
        expected: torch.Tensor,
        works: Sequence[Work],
    ) -> dict[str, Any]:
        """All but what is computed: `expected` are the first rows of its result, f32; `works`
        come one after the other."""
        ready: dict[str, Prepared] = {}
        absent: dict[str, str] = {}
        own_error = None
        for subject in subjects:
            try:
                made = prepare(subject)
                error = error_of(made.first_result()[: len(expected)], expected)
            except QfuseError as why:
                absent[subject.name] = str(why)
                continue
            except Exception as failure:  # torch and IREE have no type of error in common
                absent[subject.name] = first_line(failure)
                continue
            own_error = error if subject.name == OURS else own_error
            if error <= subject.tolerance:
                ready[subject.name] = made
            else:
                absent[subject.name] = f"wrong numbers: relative error {error:.2g}"
        calls = {name: made.calls for name, made in ready.items()}
        return {**self.measured(calls, works), "absent": absent, "error": own_error}

    def measured(
        self, subjects: Mapping[str, Sequence[Call]], works: Sequence[Work]
    ) -> dict[str, Any]:
        """What is measured of a row, by calls that were found to be right."""
        integers = any(work.integers for work in works)
        probes = {_READ: self._read, _PEAKS[False]: self._peaks[False]}
        probes[_PEAKS[integers]] = self._peaks[integers]
        found = measure({name: calls for name, (calls, _) in probes.items()} | {**subjects})
        seconds = found.seconds
        reached = {name: amount / seconds[name] for name, (_, amount) in probes.items()}
        read, peak, bf16 = (reached[n] for n in (_READ, _PEAKS[integers], _PEAKS[False]))
        size, flops = sum(work.bytes for work in works), sum(work.flops for work in works)
        floor = sum(max(work.bytes / read, work.flops / peak) for work in works)
        own = seconds.get(OURS)
        reads = size / read >= flops / peak
        return {
            "ms": own and own * 1e3,
            "gb_s": own and size / own / 1e9,
            "gflop_s": own and flops / own / 1e9,
            "of_limit": own and floor / own,
            "bound": "memory" if reads else "arithmetic",
            "limit": "read" if reads else multiplier(integers),
            "of_bf16_peak": own and flops / own / bf16,
            "peers": {name: seconds[name] * 1e3 for name in subjects if name != OURS},
            "limits": {
                "read_gb_s": read / 1e9,
                "peak_gflop_s": peak / 1e9,
                "bf16_gflop_s": bf16 / 1e9,
            },
            "others_percent": found.others_percent,
        }


def line(row: dict[str, Any]) -> str:
    """A row in short, while others are measured; peers as multiples of our time."""
    head = f"{row['case']} {row['scheme']} M {row['m']}: "
    if not row["ms"]:
        return head + row["absent"].get(OURS, "failed")
    times = ", ".join(f"{name} {ms / row['ms']:.2f}x" for name, ms in row["peers"].items())
    return f"{head}{row['ms']:.3f} ms, {row['of_limit']:.0%} of {row['limit']}; {times}"
