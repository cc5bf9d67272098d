"""Unquantized products by torch (oneDNN) against our kernels, for `qfuse tune --target cpu`."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from qfuse.compiler.runtime import library
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.entry_table import plain_product
from qfuse.lowering.cpu.launcher import LoadedKernel
from qfuse.lowering.cpu.weights import pack_weight
from qfuse.lowering.measured_call import MeasuredCall
from qfuse.tools.bench.cpu_limits import last_level_cache
from qfuse.tools.bench.cpu_report import Kernels
from qfuse.tools.bench.cpu_schemes import product_text
from qfuse.tools.bench.kernels import Call, aligned_bytes
from qfuse.tools.bench.timing import buffer_sets
from qfuse.tools.cpu_tune import Measure, ranges_of

SCHEMES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
"""Types of unquantized products."""

CALL = "mm"

_TOLERANCE = {"bf16": 2**-7, "f16": 2**-10, "f32": 1e-5}
"""Of the largest result: both round once, of sums in another order (those of f32, K times)."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plain:
    """x [M, K] times w [N, K], both and the result of one type."""

    n: int
    k: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.n}x{self.k} {self.dtype}"


def parse(names: Sequence[str], shapes: Sequence[tuple[int, int]]) -> list[Plain]:
    """The products of those of `names` that are unquantized, for each shape."""
    return [Plain(n, k, name) for n, k in shapes for name in names if name in SCHEMES]


def tune(
    products: Sequence[Plain],
    rows: Sequence[int],
    threads: int,
    measure: Measure,
    kernels: Kernels,
) -> Iterator[MeasuredCall]:
    """Both ways to multiply, with each number of rows from two on: one row stays with a kernel."""
    for product in products:
        made = _Made.of(product, kernels)
        for first, m in ranges_of(rows):
            if m > 1:
                yield made.measured(max(first, 2), m, threads, measure)


@dataclass(frozen=True)
class _Made:
    """A product with its kernel and weights that no cache holds together."""

    product: Plain
    kernel: LoadedKernel
    weights: list[tuple[torch.Tensor, torch.Tensor]]
    """Rows [N, K], and the same as the kernel reads it."""

    @staticmethod
    def of(product: Plain, kernels: Kernels) -> "_Made":
        n, k, dtype = product.n, product.k, product.dtype
        x, w, y = (Shaped(s, dtype) for s in ((DYNAMIC, k), (n, k), (DYNAMIC, n)))
        loaded = kernels.load(product_text(x, w, y))
        rows = torch.randn(n, k, generator=torch.Generator().manual_seed(0)).to(SCHEMES[dtype])
        packed = pack_weight([(rows,)], (1, k), dtype)[0]
        count = buffer_sets(rows.nbytes, last_level_cache())
        copies = [(rows.clone(), packed.clone()) for _ in range(count - 1)]
        return _Made(product, loaded, [(rows, packed), *copies])

    def measured(self, first: int, m: int, threads: int, measure: Measure) -> MeasuredCall:
        n, k, dtype = self.product.n, self.product.k, self.product.dtype
        x = torch.randn(m, k, generator=torch.Generator().manual_seed(1)).to(SCHEMES[dtype])
        y = torch.empty(m, n, dtype=x.dtype)
        ours = [self._kernel(x, packed, y, m, threads) for _, packed in self.weights]
        theirs: list[Call] = [partial(library.mm, x, w, None, "none") for w, _ in self.weights]
        ours[0]()
        expected = theirs[0]().float()
        error = float((y.float() - expected).abs().max() / expected.abs().max())
        if not error <= _TOLERANCE[dtype]:
            raise QfuseError(f"{self.product} M {m}: torch and our kernel differ by {error:.2g}")
        seconds = measure({"ours": ours, CALL: theirs})
        return MeasuredCall(
            **plain_product(n, k, dtype),
            first_m=first,
            last_m=m,
            call=CALL,
            m=(m,),
            ours=(seconds["ours"],),
            theirs=(seconds[CALL],),
        )

    def _kernel(
        self, x: torch.Tensor, packed: torch.Tensor, y: torch.Tensor, m: int, threads: int
    ) -> Callable[[], Any]:
        scratch = aligned_bytes(self.kernel.compiled.scratch_bytes(m, threads), _CPU)
        pointers = [t.data_ptr() for t in (x, packed, y)]
        launch = self.kernel.bind(pointers, m, threads, scratch.data_ptr())

        def call(kept: object = (x, packed, y, scratch)) -> None:
            launch()

        return call


def line(found: MeasuredCall) -> str:
    """For people: what both took."""
    (m,), (ours,), (theirs,) = found.m, found.ours, found.theirs
    return (
        f"{found.n}x{found.k} {found.w} M {m}: ours {ours * 1e6:.0f} us, "
        f"torch {theirs * 1e6:.0f} ({theirs / ours:.2f} times)"
    )
