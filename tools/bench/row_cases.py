"""Products that libraries have besides FP8 in blocks: plain ones, and a scale for each row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import TritonKernel
from qfuse.lowering.triton.problem import Problem
from qfuse.tools.bench.cases import Case, lower, problem_of
from qfuse.tools.bench.cpu_schemes import product_text

DTYPES = {"bf16": torch.bfloat16, "f8E4M3FN": torch.float8_e4m3fn, "i8": torch.int8}
SCHEMES = {"bf16": "bf16", "fp8-rows": "f8E4M3FN", "int8": "i8"}
"""Names of schemes, and the type of x and w in them."""

_CODES = {"f8E4M3FN": 16.0, "i8": 32.0}
"""Deviation of random codes: few are saturated."""


@dataclass(frozen=True)
class RowOperands:
    """x [M, K] and w [N, K]; their f32 scales [M, 1] and [N, 1], None for plain ones."""

    x: torch.Tensor
    x_scale: torch.Tensor | None
    w: torch.Tensor
    w_scale: torch.Tensor | None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """In the order of a kernel's pointers."""
        return [t for t in (self.x, self.x_scale, self.w, self.w_scale) if t is not None]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def copy(self) -> "RowOperands":
        """The same values elsewhere in memory."""
        given = (self.x, self.x_scale, self.w, self.w_scale)
        return RowOperands(*(None if t is None else t.clone() for t in given))  # type: ignore[arg-type]


@dataclass(frozen=True)
class RowCase:
    """x [M, K] times w [N, K] into bf16, of a scheme in SCHEMES."""

    n: int
    k: int
    scheme: str
    glu = False
    residual = False

    def __str__(self) -> str:
        return f"{self.n}x{self.k} {self.scheme}"

    @property
    def dtype(self) -> str:
        return SCHEMES[self.scheme]

    @property
    def tolerance(self) -> float:
        """As that of `Case` without GLU: the result is rounded to bf16."""
        return 5e-3

    @property
    def text(self) -> str:
        """A module with this product as its only kernel."""
        scheme = None if self.scheme == "bf16" else Scheme((1, self.k), "f32")
        x, w = (Shaped((rows, self.k), self.dtype, scheme) for rows in (DYNAMIC, self.n))
        out = Shaped((DYNAMIC, self.n), "bf16")
        return product_text(x, w, out)

    def problem(self, gpu: Gpu) -> Problem:
        """What tiles are chosen for."""
        return problem_of(self.text, gpu)

    def lower(self, gpu: Gpu) -> TritonKernel:
        """Launches for every number of rows, by the table that is active."""
        return lower(self.text, gpu)

    def make(self, m: int, device: torch.device) -> RowOperands:
        """Random values, or random codes with scales between 0.5 and 1.5 of 2^-8."""
        generator = torch.Generator(device).manual_seed(0)

        def operand(rows: int) -> tuple[torch.Tensor, torch.Tensor | None]:
            values = torch.randn(rows, self.k, generator=generator, device=device)
            if self.scheme == "bf16":
                return values.bfloat16(), None
            codes = (values * _CODES[self.dtype]).to(DTYPES[self.dtype])
            scale = torch.rand(rows, 1, generator=generator, device=device) + 0.5
            return codes, scale / 256

        return RowOperands(*operand(m), *operand(self.n))

    def reference(self, operands: RowOperands) -> torch.Tensor:
        """The result [M, N] in f32; sums are in f64 on a CPU, in f32 (not TF32) on a GPU."""
        wide = torch.float64 if operands.x.device.type == "cpu" else torch.float32
        x, w = operands.x.to(wide), operands.w.to(wide)
        if operands.x_scale is not None and operands.w_scale is not None:
            x, w = x * operands.x_scale, w * operands.w_scale
        return (x @ w.T).float()


def parse_schemes(text: str | None, cases: Sequence[Case]) -> list[Case | RowCase]:
    """The cases, of FP8 in blocks, in the schemes `bf16,fp8,...`; raises QfuseError for others.

    Products with GLU are of FP8 in blocks alone.
    """
    names = (text or "fp8").split(",")
    found: list[Case | RowCase] = []
    for name in names:
        if name == "fp8":
            found += cases
        elif name in SCHEMES:
            found += [RowCase(case.n, case.k, name) for case in cases if not case.glu]
        else:
            known = ", ".join(("fp8", *SCHEMES))
            raise QfuseError(f"no scheme '{name}' for a GPU; there are {known}")
    if not found:
        raise QfuseError(f"no shape has a product of {', '.join(names)}; GLU is of fp8 alone")
    return found
