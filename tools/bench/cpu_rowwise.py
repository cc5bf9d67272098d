"""Rows of `cpu-linear` for what makes the inputs of products: quantization, after a norm or not."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch

from qfuse.compiler.block_scaled import dequantize_blocks, quantize_blocks
from qfuse.dialects.types import Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.tools.bench.chain import EPS, rms_norm
from qfuse.tools.bench.cpu_peers import compiled
from qfuse.tools.bench.cpu_report import OURS, Kernels, Reporter, Work
from qfuse.tools.bench.cpu_schemes import TORCH, CpuScheme, copies, make_activations
from qfuse.tools.bench.subjects import Prepared

_CODES = 1e-2
"""Relative error: codes that lie on a border may go either way."""


_UNROUNDED = 3e-2
"""torch.compile does not round to bf16 between operations, so more codes go the other way."""


@dataclass(frozen=True)
class RowCase:
    """x [M, K] in bf16 quantized as a scheme has its activations, normalized first or not."""

    scheme: CpuScheme
    k: int
    norm: bool

    @property
    def name(self) -> str:
        return f"{'norm+' if self.norm else ''}quantize {self.k}"

    @property
    def type(self) -> Shaped:
        return self.scheme.x_type(self.k)

    @property
    def block(self) -> Scheme:
        assert self.type.scheme is not None
        return self.type.scheme

    @property
    def text(self) -> str:
        """A module with this as its only kernel."""
        row, weight = Shaped((DYNAMIC, self.k), "bf16"), Shaped((self.k,), "bf16")
        if self.norm:
            arguments, types = f"%x: {row}, %w: {weight}", f"({row}, {weight}) -> {self.type}"
            op = (
                f'"qfuse.rms_norm"(%x, %w) {{eps = {EPS:e} : f64, offset = 0.0 : f64, '
                'rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, '
                "resultSegmentSizes = array<i32: 0, 1, 0, 0>}"
            )
        else:
            arguments, types = f"%x: {row}", f"({row}) -> {self.type}"
            op = '"qfuse.quantize"(%x)'
        return (
            f"func.func private @rows({arguments}) -> {self.type} attributes {{qfuse.kernel}} {{\n"
            f"  %y = {op} : {types}\n  return %y : {self.type}\n}}\n"
        )

    def compute(self, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """In torch: codes and scales."""
        h = rms_norm(x, weight) if self.norm else x
        return quantize_blocks(h, self.block.block, TORCH[self.type.dtype], TORCH[self.block.scale])

    def values(self, codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """f32 values of a result; every other number of q8_1's scales is a sum."""
        numbers = scale.shape[1] // -(-self.k // self.block.block[1])
        return dequantize_blocks(codes, scale[:, ::numbers], self.block.block)


class RowSubject(Protocol):
    """A way to compute a case; see `cpu_report.Named`."""

    @property
    def name(self) -> str: ...

    @property
    def tolerance(self) -> float: ...

    def prepare(
        self, case: RowCase, xs: Sequence[torch.Tensor], weight: torch.Tensor
    ) -> Prepared: ...


@dataclass(frozen=True)
class Ours:
    """The kernels of qfuse."""

    kernels: Kernels
    name: str = OURS
    tolerance: float = _CODES

    def prepare(self, case: RowCase, xs: Sequence[torch.Tensor], weight: torch.Tensor) -> Prepared:
        m = len(xs[0])
        results = [_results(case, m) for _ in xs]
        inputs = [weight] if case.norm else []
        calls = [
            self.kernels.bind(case.text, [x, *inputs, *result], m)
            for x, result in zip(xs, results, strict=True)
        ]
        return Prepared(calls, [partial(case.values, *result) for result in results])


@dataclass(frozen=True)
class Torch:
    """The same in torch, as `compile` makes it."""

    name: str
    compile: Callable[[Callable[..., Any]], Callable[..., Any]]
    tolerance: float = _CODES

    def prepare(self, case: RowCase, xs: Sequence[torch.Tensor], weight: torch.Tensor) -> Prepared:
        function = self.compile(case.compute)
        calls = [partial(function, x, weight) for x in xs]
        return Prepared(calls, [lambda: case.values(*calls[0]())])


def report(
    widths: Sequence[int],
    m: int,
    schemes: Sequence[CpuScheme],
    kernels: Kernels,
    compile: bool,
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    """One row for each width and way to quantize, with a norm and without."""
    subjects: list[RowSubject] = [
        Ours(kernels),
        Torch("torch eager", lambda function: function),
        Torch("torch.compile", partial(compiled, wanted=compile), _UNROUNDED),
    ]
    ways: dict[object, CpuScheme] = {}
    for scheme in schemes:
        if scheme.x is not None:
            ways.setdefault((scheme.x, scheme.x_dtype), scheme)
    for k in widths:
        for scheme in ways.values():
            if scheme.fits(k):
                for norm in (True, False):
                    yield _row(RowCase(scheme, k, norm), m, subjects, reporter)


def _row(
    case: RowCase, m: int, subjects: Sequence[RowSubject], reporter: Reporter
) -> dict[str, Any]:
    made = make_activations(case.scheme, m, case.k)
    size = made.bytes + 2 * made.x.numel()
    (xs,) = copies([made.x], size)
    weight = torch.rand(case.k, generator=torch.Generator().manual_seed(1)).bfloat16() + 0.5
    expected = case.values(*case.compute(made.x, weight))

    def prepare(subject: RowSubject) -> Prepared:
        return subject.prepare(case, xs, weight)

    row = reporter.row(subjects, prepare, expected, [Work(size)])
    return {
        **{"case": case.name, "m": m, "n": case.k, "k": None, "scheme": case.scheme.name},
        **row,
    }


def _results(case: RowCase, m: int) -> list[torch.Tensor]:
    codes = torch.zeros(m, case.k, dtype=TORCH[case.type.dtype])
    width = case.type.scale_shape[-1]
    return [codes, torch.full((m, width), torch.nan, dtype=TORCH[case.block.scale])]
