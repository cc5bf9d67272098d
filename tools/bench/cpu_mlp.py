"""`--suite cpu-mlp`: the MLP of a transformer, fused, unfused and by torch.

Rows are those of cpu_report.py; the limit is the sum of the least times of the three fused kernels:
norm and quantization, gate and up with the GLU, down with the residual.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch

from qfuse.compiler.options import CompileOptions
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.cache import compile_cached
from qfuse.lowering.cpu.launcher import LoadedKernel
from qfuse.tools.bench.chain import EPS, mlp_bf16, rms_norm
from qfuse.tools.bench.cpu_moe import cpu_header
from qfuse.tools.bench.cpu_peers import compiled
from qfuse.tools.bench.cpu_report import CHECKED, OURS, Kernels, Reporter, Work
from qfuse.tools.bench.cpu_schemes import CpuScheme, Weight, quantized
from qfuse.tools.bench.kernels import Call, in_turn
from qfuse.tools.bench.moe_chain import Chain, compile_chain, tensors_of
from qfuse.tools.bench.subjects import Prepared, reading

SHAPES = ((4096, 14336), (896, 4864))
"""Hidden and intermediate size."""

_CPU = torch.device("cpu")
_BEFORE = "qfuse unfused"


class Mlp:
    """h + down(silu(gate(n)) * up(n)) with n = RMSNorm(h), by random weights of a scheme.

    gate and up are the rows of one weight.  Inputs of products are quantized if the scheme does.
    """

    def __init__(self, scheme: CpuScheme, hidden: int, intermediate: int) -> None:
        self.scheme, self.hidden, self.intermediate = scheme, hidden, intermediate
        self.wide = Weight(scheme, 2 * intermediate, hidden)
        self.narrow = Weight(scheme, hidden, intermediate, seed=1)
        generator = torch.Generator().manual_seed(2)
        self.norm = (torch.rand(hidden, generator=generator) + 0.5).bfloat16()

    @property
    def sets(self) -> int:
        """Copies of both weights that there are."""
        return min(len(self.wide.packed[0]), len(self.narrow.packed[0]))

    @cached_property
    def dense(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """bf16 weights of both products."""
        return list(zip(self.wide.dense, self.narrow.dense, strict=False))

    @property
    def text(self) -> str:
        """What a front end makes of it before anything is fused, as a module with `@main`."""
        h, act = (Shaped((DYNAMIC, d), "bf16") for d in (self.hidden, self.intermediate))
        norm, wide, narrow = Shaped((self.hidden,), "bf16"), self.wide.type, self.narrow.type
        width = self.intermediate
        xq, quantize_x = self._quantized("%n", "%xq", h)
        hq, quantize_h = self._quantized("%a", "%hq", act)
        x, inner = ("%n", "%a") if self.scheme.x is None else ("%xq", "%hq")
        segments = "operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>"
        return f"""
func.func @main(%h: {h}, %norm: {norm}, %wide: {wide}, %narrow: {narrow}) -> {h} {{
  %n = "qfuse.rms_norm"(%h, %norm) {{eps = {EPS:e} : f64, offset = 0.0 : f64,
    rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>,
    resultSegmentSizes = array<i32: 1, 0, 0, 0>}} : ({h}, {norm}) -> {h}
  {quantize_x}
  %gate, %up = "qfuse.matmul"({x}, %wide) ({{
  ^bb0(%g: f32, %u: f32):
    "qfuse.yield"(%g, %u) : (f32, f32) -> ()
  }}) {{parts = array<i64: {width}, {width}>, maps = [], {segments},
    resultSegmentSizes = array<i32: 1, 1, 0, 0>}} : ({xq}, {wide}) -> ({act}, {act})
  %a = "qfuse.glu"(%gate, %up) {{act = "silu", operandSegmentSizes = array<i32: 1, 1, 0>,
    resultSegmentSizes = array<i32: 1, 0>}}
    : ({act}, {act}) -> {act}
  {quantize_h}
  %y = "qfuse.matmul"({inner}, %narrow) ({{
  ^bb0(%d: f32):
    "qfuse.yield"(%d) : (f32) -> ()
  }}) {{parts = array<i64: {self.hidden}>, maps = [], {segments},
    resultSegmentSizes = array<i32: 1, 0, 0, 0>}} : ({hq}, {narrow}) -> {h}
  %out = "qfuse.add"(%y, %h) : ({h}, {h}) -> {h}
  return %out : {h}
}}
"""

    def _quantized(self, name: str, made: str, value: Shaped) -> tuple[Shaped, str]:
        """What a product reads of a value, and the operation that makes it."""
        if self.scheme.x is None:
            return value, ""
        type_ = self.scheme.x_type(value.shape[-1])
        return type_, f'{made} = "qfuse.quantize"({name}) : ({value}) -> {type_}'

    def reference(self, h: torch.Tensor) -> torch.Tensor:
        """f32; quantized where the fused kernels quantize."""
        n = rms_norm(h, self.norm)
        both = self._values(n) @ self.wide.values.T
        gate, up = both.chunk(2, -1)
        acted = self._values(torch.nn.functional.silu(gate) * up)
        return acted @ self.narrow.values.T + h.float()

    def _values(self, x: torch.Tensor) -> torch.Tensor:
        """f32 values of what a product reads of x."""
        return quantized(self.scheme, x).values

    def works(self, m: int) -> list[Work]:
        """Of the fused kernels."""
        hidden, width, scheme = self.hidden, self.intermediate, self.scheme
        quantized = [m * k * (2 if scheme.x is None else 1) for k in (hidden, width)]
        product = 2.0 * m * hidden * width
        return [
            Work(2 * m * hidden + quantized[0]),
            Work(self.wide.bytes + sum(quantized), 2 * product, scheme.integers),
            Work(self.narrow.bytes + quantized[1] + 4 * m * hidden, product, scheme.integers),
        ]


class MlpSubject(Protocol):
    """A way to compute it; see `cpu_report.Named`."""

    @property
    def name(self) -> str: ...

    @property
    def tolerance(self) -> float: ...

    def prepare(self, mlp: Mlp, h: torch.Tensor) -> Prepared: ...


@dataclass
class Ours:
    """The kernels of qfuse, with fusions or without."""

    kernels: Kernels
    options: CompileOptions
    name: str = OURS
    tolerance: float = 2e-2  # codes that lie on a border may go either way
    _made: tuple[str, Chain[LoadedKernel]] | None = None

    def prepare(self, mlp: Mlp, h: torch.Tensor) -> Prepared:
        chain, m = self._chain(mlp.text), len(h)
        calls: list[Call] = []
        results = []
        wide, narrow = (zip(*w.packed, strict=True) for w in (mlp.wide, mlp.narrow))
        for _, of_wide, of_narrow in zip(range(mlp.sets), wide, narrow, strict=False):
            arguments = [[h], [mlp.norm], list(of_wide), list(of_narrow)]
            values = chain.allocate(arguments, m, _CPU)
            steps = []
            for step in chain.steps:
                tensors, rows = tensors_of(step, values), chain.rows(step, m)
                steps.append(self.kernels.launch(step.kernel, tensors, rows))
            calls.append(in_turn(steps))
            results.append(values[chain.result][0])
        return Prepared(calls, reading(results))

    def _chain(self, text: str) -> Chain[LoadedKernel]:
        if self._made is None or self._made[0] != text:
            directory, level = self.options.cache_dir, self.options.level
            chain = compile_chain(
                text,
                self.options,
                lambda f: LoadedKernel(compile_cached(f, directory, level=level)),
            )
            self._made = (text, chain)
        return self._made[1]


@dataclass(frozen=True)
class Bf16:
    """torch with bf16 weights."""

    name: str = "torch bf16"
    tolerance: float = 6e-2  # it does not quantize activations, as the reference does
    compile: Any = None

    def prepare(self, mlp: Mlp, h: torch.Tensor) -> Prepared:
        function = mlp_bf16 if self.compile is None else self.compile(mlp_bf16)
        return Prepared([partial(function, h, mlp.norm, *both) for both in mlp.dense])


def report(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    schemes: Sequence[CpuScheme],
    subjects: Sequence[MlpSubject],
    reporter: Reporter,
) -> Iterator[dict[str, Any]]:
    """One row for each shape, scheme and number of rows."""
    for hidden, intermediate in shapes:
        for scheme in schemes:
            if scheme.fits(hidden) and scheme.fits(intermediate):
                mlp = Mlp(scheme, hidden, intermediate)
                for m in rows:
                    yield _row(mlp, m, subjects, reporter)


def _row(mlp: Mlp, m: int, subjects: Sequence[MlpSubject], reporter: Reporter) -> dict[str, Any]:
    h = torch.randn(m, mlp.hidden, generator=torch.Generator().manual_seed(3)).bfloat16()
    expected = mlp.reference(h[:CHECKED])
    row = reporter.row(subjects, lambda s: s.prepare(mlp, h), expected, mlp.works(m))
    return {
        "case": f"mlp {mlp.hidden}-{mlp.intermediate}",
        "m": m,
        "n": mlp.hidden,
        "k": mlp.intermediate,
        "scheme": mlp.scheme.name,
        **row,
    }


def run(
    shapes: Sequence[tuple[int, int]],
    rows: Sequence[int],
    schemes: Sequence[CpuScheme],
    compile: bool,
) -> Iterator[dict[str, Any]]:
    """The whole suite: a header, then rows."""
    threads = torch.get_num_threads()
    yield {"suite": "cpu-mlp", **cpu_header(threads), "notes": []}
    fused, unfused = CompileOptions.make("cpu"), CompileOptions.make("cpu", ["all"])
    kernels = Kernels(fused, threads)
    subjects: list[MlpSubject] = [
        Ours(kernels, fused),
        Ours(kernels, unfused, _BEFORE),
        Bf16(),
        Bf16("torch.compile bf16", compile=partial(compiled, wanted=compile)),
    ]
    with torch.inference_mode():
        yield from report(shapes, rows, schemes, subjects, Reporter(threads))
