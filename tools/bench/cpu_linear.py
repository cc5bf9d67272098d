"""`--suite cpu-linear`: products by weights of each scheme, and what quantizes their inputs.

Rows are those of cpu_report.py.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qfuse.compiler.options import CompileOptions
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.tools.bench import cpu_rowwise
from qfuse.tools.bench.cpu_iree import Iree, check_installed
from qfuse.tools.bench.cpu_moe import cpu_header
from qfuse.tools.bench.cpu_peers import Peer, peers
from qfuse.tools.bench.cpu_report import CHECKED, OURS, Kernels, Reporter, Work
from qfuse.tools.bench.cpu_schemes import (
    Activations,
    CpuScheme,
    Weight,
    make_activations,
    product_text,
)
from qfuse.tools.bench.subjects import Prepared, reading

SHAPES = ((14336, 4096), (4096, 14336), (11008, 4096), (4864, 896))
ROWS = (1, 2, 4, 8, 16, 64, 512)

_SHAPE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class Ours:
    """The kernels of qfuse."""

    kernels: Kernels
    name: str = OURS
    tolerance: float = 5e-3  # of bf16, to which results are rounded

    def prepare(self, weight: Weight, x: Activations) -> Prepared:
        m, n = len(x.x), weight.n
        result = Shaped((DYNAMIC, n), "bf16")
        text = product_text(weight.scheme.x_type(weight.k), weight.type, result)
        outs = [torch.full((m, n), torch.nan, dtype=torch.bfloat16) for _ in weight.packed[0]]
        each = zip(*weight.packed, outs, strict=True)
        calls = [self.kernels.bind(text, [*x.tensors, *tensors], m) for tensors in each]
        return Prepared(calls, reading(outs))


def report(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    schemes: Sequence[CpuScheme],
    subjects: Sequence[Peer],
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    """One row for each shape, scheme and number of rows of x."""
    for n, k in shapes:
        for scheme in schemes:
            if not scheme.fits(k):
                continue
            weight = Weight(scheme, n, k)
            for m in rows:
                yield _row(weight, m, subjects, reporter)


def _row(weight: Weight, m: int, subjects: Sequence[Peer], reporter: Reporter) -> dict[str, Any]:
    scheme, n, k = weight.scheme, weight.n, weight.k
    x = make_activations(scheme, m, k)
    expected = x.values[:CHECKED] @ weight.values.T
    work = Work(weight.bytes + x.bytes + 2 * m * n, 2.0 * m * n * k, scheme.integers)
    row = reporter.row(subjects, lambda subject: subject.prepare(weight, x), expected, [work])
    return {"case": f"{n}x{k}", "m": m, "n": n, "k": k, "scheme": scheme.name, **row}


def run(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    schemes: Sequence[CpuScheme],
    compile: bool,
    iree: bool = False,
) -> Iterator[dict[str, Any]]:
    """The whole suite: a header, then rows; torch.compile and IREE take part where asked for."""
    if iree:
        check_installed()
    threads = torch.get_num_threads()
    skipped = [
        f"{n}x{k}: no {s.name}, whose blocks are of {s.multiple} columns"
        for n, k in shapes
        for s in schemes
        if not s.fits(k)
    ]
    yield {"suite": "cpu-linear", **cpu_header(threads), "notes": skipped}
    kernels = Kernels(CompileOptions.make("cpu"), threads)
    subjects = [Ours(kernels), *peers(compile), Iree(iree)]
    reporter = Reporter(threads)
    widths = list(dict.fromkeys(k for _, k in shapes))
    with torch.inference_mode():
        yield from report(shapes, rows, schemes, subjects, reporter)
        yield from cpu_rowwise.report(widths, max(rows), schemes, kernels, compile, reporter)


def parse_shapes(
    text: str | None, default: Sequence[tuple[int, int]] = SHAPES
) -> list[tuple[int, int]]:
    """`14336x4096,...` as N and K; raises QfuseError for other text."""
    if not text:
        return list(default)
    found = [_SHAPE.fullmatch(part.strip()) for part in text.split(",")]
    shapes = [(int(match[1]), int(match[2])) for match in found if match]
    if len(shapes) < len(found) or not all(n and k for n, k in shapes):
        raise QfuseError(f"shapes '{text}' are not N x K; write them as 14336x4096,4864x896")
    return shapes
