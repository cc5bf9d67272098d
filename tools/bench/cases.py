"""What is measured: block-scaled FP8 products, as qfuse operations and as torch tensors."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from qfuse.dialects import tt
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import TritonKernel
from qfuse.lowering.triton.lower import lower_kernel
from qfuse.lowering.triton.problem import Problem, read_problem
from qfuse.lowering.triton.product import read_product
from qfuse.lowering.triton.signature import read_signature

BLOCK = 128
ROWS = (1, 16, 64, 128, 1024, 4096)

_LARGEST = 448.0  # of e4m3
_LEAST = 1e-10  # amax that a scale is made of at least, as qfuse.quantize has it

_SHAPE = re.compile(r"(2\*)?(\d+)x(\d+)")
_GLU = """
%one = arith.constant 1.0 : f32
%n = arith.negf %acc0 : f32
%e = math.exp %n : f32
%d = arith.addf %one, %e : f32
%s = arith.divf %acc0, %d : f32
%v = arith.mulf %s, %acc1 : f32
"""


@dataclass(frozen=True)
class Case:
    """x [M, K] in groups of 128 times w [N, K] in blocks of 128 x 128, both e4m3 with f32 scales.

    `glu`: w has gate and up, N rows each; the result is silu(gate) * up, in e4m3 again with one
    f32 scale for each 128 of a row.  Else the result is bf16.  `residual` is added to it.
    """

    n: int
    k: int
    glu: bool = False
    residual: bool = False

    def __str__(self) -> str:
        return f"{'2*' if self.glu else ''}{self.n}x{self.k}"

    @staticmethod
    def parse(text: str) -> "Case":
        """`4096x7168` is N x K, `2*2048x7168` gate and up; raises QfuseError for other text."""
        match = _SHAPE.fullmatch(text.strip())
        if match is None or not (int(match[2]) and int(match[3])):
            raise QfuseError(
                f"shape '{text}' is not N x K; write 4096x7168, or 2*2048x7168 for GLU"
            )
        return Case(int(match[2]), int(match[3]), bool(match[1]))

    @property
    def tolerance(self) -> float:
        """Relative error (of norms) that right numbers may have.

        Of bf16: a rounding is 2^-8 at most, and FP8 tensor cores of sm_90 keep 14 bits of a sum.
        Of codes: a few lie on a border, and go either way, by 2^-4 to 2^-3.
        """
        return 3e-2 if self.glu else 5e-3

    @property
    def weight_rows(self) -> int:
        """Rows of w; up begins at a multiple of 128."""
        return _round_up(self.n) + self.n if self.glu else self.n

    @property
    def text(self) -> str:
        """A module with this product as its only kernel."""
        x = Shaped((DYNAMIC, self.k), "f8E4M3FN", Scheme((1, BLOCK), "f32"))
        w = Shaped((self.weight_rows, self.k), "f8E4M3FN", Scheme((BLOCK, BLOCK), "f32"))
        out = Shaped((DYNAMIC, self.n), "bf16")
        if self.glu:
            out = Shaped((DYNAMIC, self.n), "f8E4M3FN", Scheme((1, BLOCK), "f32"))
        operands = [x, w, out] if self.residual else [x, w]
        body, value = (_GLU, "%v") if self.glu else ("", "%acc0")
        if self.residual:
            body, value = f"{body}%r = arith.addf {value}, %e0 : f32\n", "%r"
        sums = "%acc0: f32, %acc1: f32" if self.glu else "%acc0: f32"
        maps = '"[M,N]"' if self.residual else ""
        names = ", ".join(f"%a{i}" for i in range(len(operands)))
        arguments = ", ".join(f"%a{i}: {t}" for i, t in enumerate(operands))
        segments = [1] * len(operands) + [0] * (8 - len(operands))
        return (
            f"func.func private @product({arguments}) -> {out} attributes {{qfuse.kernel}} {{\n"
            f'  %y = "qfuse.matmul"({names}) ({{\n'
            f"  ^bb0({sums}{', %e0: f32' if self.residual else ''}):\n{body}"
            f'  "qfuse.yield"({value}) : (f32) -> ()\n'
            f"  }}) {{parts = array<i64: {f'{self.n}, {self.n}' if self.glu else self.n}>, "
            f"maps = [{maps}], "
            f"operandSegmentSizes = array<i32: {', '.join(map(str, segments))}>, "
            "resultSegmentSizes = array<i32: 1, 0, 0, 0>} : "
            f"({', '.join(map(str, operands))}) -> {out}\n"
            f"  return %y : {out}\n}}\n"
        )

    def problem(self, gpu: Gpu) -> Problem:
        """What tiles are chosen for."""
        return problem_of(self.text, gpu)

    def lower(self, gpu: Gpu) -> TritonKernel:
        """Launches for every number of rows, by the table that is active."""
        return lower(self.text, gpu)

    def make(self, m: int, device: torch.device) -> "Operands":
        """What `make_operands` makes."""
        return make_operands(self, m, device)

    def reference(self, operands: "Operands") -> torch.Tensor:
        """What `reference` computes."""
        return reference(self, operands)


SHAPES = (
    Case(2112, 7168),
    Case(24576, 1536),
    Case(32768, 512),
    Case(7168, 16384),
    Case(4096, 7168),
    Case(7168, 2048),
    Case(24576, 7168),
)
"""N x K of DeepSeek-V3's layers, which DeepGEMM and SGLang publish figures for."""


@contextmanager
def parsed(text: str) -> Iterator[func.FuncOp]:
    """The kernel of a module; alive inside."""
    with ir.Context(), ir.Location.unknown():
        load_all()
        tt.load()
        module = ir.Module.parse(text)
        yield next(iter(module.body.operations))


def problem_of(text: str, gpu: Gpu) -> Problem:
    """What tiles of the only product of a module are chosen for."""
    with parsed(text) as function:
        product = read_product(read_signature(function))
        return read_problem(product, product.groups[0], gpu)


def lower(text: str, gpu: Gpu) -> TritonKernel:
    with parsed(text) as function:
        return lower_kernel(function, gpu)


@dataclass(frozen=True)
class Operands:
    """Tensors of a case with M rows: codes e4m3, scales f32, all row-major.

    x [M, K], x_scale [M, ceil(K/128)], w [rows, K], w_scale [ceil(rows/128), ceil(K/128)],
    residual [M, N] bf16 or None.
    """

    x: torch.Tensor
    x_scale: torch.Tensor
    w: torch.Tensor
    w_scale: torch.Tensor
    residual: torch.Tensor | None = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """In the order of a kernel's pointers."""
        extra = [] if self.residual is None else [self.residual]
        return [self.x, self.x_scale, self.w, self.w_scale, *extra]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def copy(self) -> "Operands":
        """The same values elsewhere in memory."""
        x, x_scale, w, w_scale, *extra = (t.clone() for t in self.tensors)
        return Operands(x, x_scale, w, w_scale, *extra)


def make_operands(case: Case, m: int, device: torch.device, seed: int = 0) -> Operands:
    """Random codes, normal with deviation 16, and scales between 0.5 and 1.5 of 2^-8."""
    generator = torch.Generator(device).manual_seed(seed)

    def codes(rows: int) -> torch.Tensor:
        values = torch.randn(rows, case.k, generator=generator, device=device)
        return (values * 16).to(torch.float8_e4m3fn)

    def scales(rows: int) -> torch.Tensor:
        shape = (rows, _ceil_div(case.k, BLOCK))
        return (torch.rand(shape, generator=generator, device=device) + 0.5) / 256

    x, x_scale = codes(m), scales(m)
    w, w_scale = codes(case.weight_rows), scales(_ceil_div(case.weight_rows, BLOCK))
    residual = None
    if case.residual:
        residual = torch.randn(m, case.n, generator=generator, device=device).bfloat16()
    return Operands(x, x_scale, w, w_scale, residual)


def dequantize(codes: torch.Tensor, scale: torch.Tensor, rows: int) -> torch.Tensor:
    """The f32 values of codes [R, C] with a scale for each `rows` x 128 of them."""
    wide = scale.repeat_interleave(rows, 0).repeat_interleave(BLOCK, 1)
    return codes.float() * wide[: codes.shape[0], : codes.shape[1]]


def quantize(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes e4m3 and f32 scales for each 128 of a row, as `qfuse.quantize` makes them."""
    m, k = x.shape
    groups = torch.nn.functional.pad(x.float(), (0, -k % BLOCK)).view(m, -1, BLOCK)
    amax = groups.abs().amax(-1, keepdim=True).clamp(min=_LEAST)
    # torch computes `number / tensor` as number * (1 / tensor), which rounds twice.
    inverse = torch.full_like(amax, _LARGEST) / amax
    codes = (groups * inverse).clamp(-_LARGEST, _LARGEST).to(torch.float8_e4m3fn)
    return codes.view(m, -1)[:, :k].contiguous(), (amax / _LARGEST).squeeze(-1)


def reference(case: Case, operands: Operands) -> torch.Tensor:
    """The result [M, N] in f32, quantized and dequantized where it is stored as codes.

    Sums are in f64 on a CPU, in f32 (not TF32) on a GPU.
    """
    x = dequantize(operands.x, operands.x_scale, 1)
    w = dequantize(operands.w, operands.w_scale, BLOCK)
    if x.device.type == "cpu":
        x, w = x.double(), w.double()
    made = x @ w.T
    if case.glu:
        start = _round_up(case.n)
        made = torch.nn.functional.silu(made[:, : case.n]) * made[:, start : start + case.n]
    if operands.residual is not None:
        made = made + operands.residual
    return dequantize(*quantize(made.float()), 1) if case.glu else made.float()


def error_of(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference by the norm of what is expected; infinite where values are not."""
    difference = (made.float() - expected).norm() / expected.norm()
    return float(difference) if torch.isfinite(made.float()).all() else float("inf")


def parse_cases(texts: str | None, default: Sequence[Case] = SHAPES) -> list[Case]:
    """`4096x7168,2*2048x7168` as cases."""
    return [Case.parse(part) for part in texts.split(",")] if texts else list(default)


def parse_rows(text: str | None, default: Sequence[int] = ROWS) -> list[int]:
    """`1,16,64` as numbers of rows; raises QfuseError for other text."""
    if not text:
        return list(default)
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise QfuseError(f"rows '{text}' are not whole numbers from 1; write them as 1,16,64")
    return [int(part) for part in parts]


def _round_up(n: int) -> int:
    return _ceil_div(n, BLOCK) * BLOCK


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)
