"""`--suite cpu-norm`: the sum with a residual, its RMSNorm and quantization, in one kernel.

Rows are those of cpu_report.py, all in bf16; k is null, n the width.  The limit is that of moving
the operands and the results.  `copy` moves x alone, once each way.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from qfuse.compiler.options import CompileOptions
from qfuse.tools.bench.cpu_moe import cpu_header
from qfuse.tools.bench.cpu_report import Kernels, Reporter
from qfuse.tools.bench.cpu_rowwise import (
    Ours,
    RowCase,
    RowSubject,
    row_of,
    torch_subjects,
    ways_to_quantize,
)
from qfuse.tools.bench.cpu_schemes import CpuScheme
from qfuse.tools.bench.subjects import Prepared

WIDTH = 4096
ROWS = (1, 16, 512)


@dataclass(frozen=True)
class Copy:
    """Of x alone, into memory that is there; no numbers to compare."""

    name: str = "copy"
    tolerance: float = math.inf

    def prepare(self, case: RowCase, sets: Sequence[Sequence[torch.Tensor]]) -> Prepared:
        outs = [torch.empty_like(x) for x, *_ in sets]
        calls = [partial(out.copy_, x) for out, (x, *_) in zip(outs, sets, strict=True)]
        return Prepared(calls, [partial(case.values, *case.results(len(outs[0])))])


def run(
    rows: Sequence[int], schemes: Sequence[CpuScheme], compile: bool, width: int = WIDTH
) -> Iterator[dict[str, Any]]:
    """The whole suite: a header, then rows; `compile` has torch.compile take part."""
    threads = torch.get_num_threads()
    yield {"suite": "cpu-norm", **cpu_header(threads), "notes": []}
    kernels = Kernels(CompileOptions.make("cpu"), threads)
    subjects: list[RowSubject] = [Ours(kernels), *torch_subjects(compile), Copy()]
    reporter = Reporter(threads)
    with torch.inference_mode():
        for scheme in ways_to_quantize(schemes):
            for m in rows:
                case = RowCase(scheme, width, norm=True, residual=True)
                yield row_of(case, m, subjects, reporter)
