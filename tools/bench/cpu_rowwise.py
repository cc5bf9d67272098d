"""Rows for what makes the inputs of products: quantization, after a norm or not.

Those of `cpu-linear` are here; `--suite cpu-norm` has a residual before the norm (cpu_norm.py).
"""

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
    """x [M, K] in bf16 quantized as a scheme has its activations, normalized first or not.

    With a residual, which a norm may have, their sum is normalized, and is a result, too.
    """

    scheme: CpuScheme
    k: int
    norm: bool
    residual: bool = False

    @property
    def name(self) -> str:
        before = "residual+" * self.residual + "norm+" * self.norm
        return f"{before}quantize {self.k}"

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
        operands = {"%x": row}
        results = {"%y": self.type}
        name, attributes = "quantize", ""
        if self.norm:
            operands["%w"] = weight
            name = "rms_norm"
            attributes = (
                f'{{eps = {EPS:e} : f64, offset = 0.0 : f64, rounding = "before", '
                f"operandSegmentSizes = array<i32: 1, 1, {int(self.residual)}, 0, 0>, "
                f"resultSegmentSizes = array<i32: 0, 1, 0, {int(self.residual)}>}} "
            )
        if self.residual:
            operands["%r"] = results["%h"] = row
        arguments = ", ".join(f"{value}: {type_}" for value, type_ in operands.items())
        read, made = ", ".join(operands), ", ".join(results)
        types = ", ".join(map(str, results.values()))
        return (
            f"func.func private @rows({arguments}) -> ({types}) attributes {{qfuse.kernel}} {{\n"
            f'  {made} = "qfuse.{name}"({read}) {attributes}: '
            f"({', '.join(map(str, operands.values()))}) -> ({types})\n"
            f"  return {made} : {types}\n}}\n"
        )

    def operands(self, m: int) -> list[torch.Tensor]:
        """Random ones: x [M, K], a norm's weight [K] and a residual [M, K]."""
        made = [make_activations(self.scheme, m, self.k).x]
        if self.norm:
            generator = torch.Generator().manual_seed(1)
            made.append(torch.rand(self.k, generator=generator).bfloat16() + 0.5)
        if self.residual:
            made.append(make_activations(self.scheme, m, self.k, seed=2).x)
        return made

    def results(self, m: int) -> list[torch.Tensor]:
        """Memory for codes and scales, and behind them for the sum with the residual."""
        width = self.type.scale_shape[-1]
        made = [
            torch.zeros(m, self.k, dtype=TORCH[self.type.dtype]),
            torch.full((m, width), torch.nan, dtype=TORCH[self.block.scale]),
        ]
        return [*made, torch.zeros(m, self.k, dtype=torch.bfloat16)] if self.residual else made

    def compute(
        self,
        x: torch.Tensor,
        weight: torch.Tensor | None = None,
        residual: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """In torch: what `results` has room for."""
        h = x if residual is None else x + residual
        n = h if weight is None else rms_norm(h, weight)
        block = self.block
        codes = quantize_blocks(n, block.block, TORCH[self.type.dtype], TORCH[block.scale])
        return codes if residual is None else (*codes, h)

    def values(self, codes: torch.Tensor, scale: torch.Tensor, *sums: torch.Tensor) -> torch.Tensor:
        """f32 values of the results, one below the other; every other number of q8_1's scales is
        a sum."""
        numbers = scale.shape[1] // -(-self.k // self.block.block[1])
        values = dequantize_blocks(codes, scale[:, ::numbers], self.block.block)
        return torch.cat([values, *sums])


class RowSubject(Protocol):
    """A way to compute a case; see `cpu_report.Named`."""

    @property
    def name(self) -> str: ...

    @property
    def tolerance(self) -> float: ...

    def prepare(self, case: RowCase, sets: Sequence[Sequence[torch.Tensor]]) -> Prepared:
        """`sets` are operands, each where no other is."""
        ...


@dataclass(frozen=True)
class Ours:
    """The kernels of qfuse."""

    kernels: Kernels
    name: str = OURS
    tolerance: float = _CODES

    def prepare(self, case: RowCase, sets: Sequence[Sequence[torch.Tensor]]) -> Prepared:
        m = len(sets[0][0])
        results = [case.results(m) for _ in sets]
        calls = [
            self.kernels.bind(case.text, [*operands, *result], m)
            for operands, result in zip(sets, results, strict=True)
        ]
        return Prepared(calls, [partial(case.values, *result) for result in results])


@dataclass(frozen=True)
class Torch:
    """The same in torch, as `compile` makes it."""

    name: str
    compile: Callable[[Callable[..., Any]], Callable[..., Any]]
    tolerance: float = _CODES

    def prepare(self, case: RowCase, sets: Sequence[Sequence[torch.Tensor]]) -> Prepared:
        function = self.compile(case.compute)
        calls = [partial(function, *operands) for operands in sets]
        return Prepared(calls, [lambda: case.values(*calls[0]())])


def torch_subjects(compile: bool) -> list[RowSubject]:
    """`compile` says whether torch.compile is wanted."""
    return [
        Torch("torch eager", lambda function: function),
        Torch("torch.compile", partial(compiled, wanted=compile), _UNROUNDED),
    ]


def report(
    widths: Sequence[int],
    m: int,
    schemes: Sequence[CpuScheme],
    kernels: Kernels,
    compile: bool,
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    """One row for each width and way to quantize, with a norm and without."""
    subjects: list[RowSubject] = [Ours(kernels), *torch_subjects(compile)]
    for k in widths:
        for scheme in ways_to_quantize(schemes):
            if scheme.fits(k):
                for norm in (True, False):
                    yield row_of(RowCase(scheme, k, norm), m, subjects, reporter)


def ways_to_quantize(schemes: Sequence[CpuScheme]) -> list[CpuScheme]:
    """Those of `schemes` that quantize activations, without ones that do it alike."""
    ways: dict[object, CpuScheme] = {}
    for scheme in schemes:
        if scheme.x is not None:
            ways.setdefault((scheme.x, scheme.x_dtype), scheme)
    return list(ways.values())


def row_of(
    case: RowCase, m: int, subjects: Sequence[RowSubject], reporter: Reporter
) -> dict[str, Any]:
    """All that a report says of a case."""
    operands = case.operands(m)
    size = sum(t.nbytes for t in (*operands, *case.results(m)))
    sets = [list(each) for each in zip(*copies(operands, size), strict=True)]
    expected = case.values(*case.compute(*operands))

    def prepare(subject: RowSubject) -> Prepared:
        return subject.prepare(case, sets)

    row = reporter.row(subjects, prepare, expected, [Work(size)])
    return {
        **{"case": case.name, "m": m, "n": case.k, "k": None, "scheme": case.scheme.name},
        **row,
    }
