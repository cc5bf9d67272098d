"""The MLP of a transformer on a GPU: three kernels of ours, and the best that libraries chain."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from qfuse.dialects.types import Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.triton.gpu import Gpu
from qfuse.tools.bench.cases import (
    BLOCK,
    Case,
    dequantize,
    lower,
    make_operands,
    quantize,
)
from qfuse.tools.bench.kernels import Call, Runner, compiled, in_turn
from qfuse.tools.bench.subjects import Prepared, column_major, reading, scaled_mm_call

EPS = 1e-6


@dataclass(frozen=True)
class MlpOperands:
    """h [M, H] and the norm's weight [H] in bf16; weights of gate/up [2I, H] and down [H, I] as
    `cases.Operands` has them."""

    h: torch.Tensor
    norm: torch.Tensor
    gate_up: tuple[torch.Tensor, torch.Tensor]
    down: tuple[torch.Tensor, torch.Tensor]

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.h, self.norm, *self.gate_up, *self.down]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def copy(self) -> "MlpOperands":
        h, norm, w1, s1, w2, s2 = (t.clone() for t in self.tensors)
        return MlpOperands(h, norm, (w1, s1), (w2, s2))


@dataclass(frozen=True)
class Mlp:
    """h + down(silu(gate(n)) * up(n)) with n = RMSNorm(h); n and the product are quantized."""

    hidden: int = 7168
    intermediate: int = 2048

    def __str__(self) -> str:
        return f"MLP {self.hidden}-{self.intermediate}"

    @property
    def gate_up(self) -> Case:
        return Case(self.intermediate, self.hidden, glu=True)

    @property
    def down(self) -> Case:
        return Case(self.hidden, self.intermediate, residual=True)

    @property
    def norm_text(self) -> str:
        """The norm, quantized, as a module with one kernel."""
        row = Shaped((DYNAMIC, self.hidden), "bf16")
        weight = Shaped((self.hidden,), "bf16")
        out = Shaped(row.shape, "f8E4M3FN", Scheme((1, BLOCK), "f32"))
        return (
            f"func.func private @norm(%x: {row}, %w: {weight}) -> {out} "
            "attributes {qfuse.kernel} {\n"
            f'  %y = "qfuse.rms_norm"(%x, %w) {{eps = {EPS:e} : f64, offset = 0.0 : f64, '
            'rounding = "before", operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, '
            "resultSegmentSizes = array<i32: 0, 1, 0, 0>} : "
            f"({row}, {weight}) -> {out}\n  return %y : {out}\n}}\n"
        )

    def make(self, m: int, device: torch.device, seed: int = 0) -> MlpOperands:
        generator = torch.Generator(device).manual_seed(seed)
        h = torch.randn(m, self.hidden, generator=generator, device=device).bfloat16()
        norm = (torch.rand(self.hidden, generator=generator, device=device) + 0.5).bfloat16()
        weights: list[tuple[torch.Tensor, torch.Tensor]] = []
        for case in (self.gate_up, self.down):
            made = make_operands(case, 1, device, seed)
            # products of about the size of what goes in, so that the residual hides nothing
            weights.append((made.w, made.w_scale * (16 / case.k**0.5)))
        return MlpOperands(h, norm, weights[0], weights[1])

    def reference(self, o: MlpOperands) -> torch.Tensor:
        """[M, H] in f32; quantized where the fused kernels quantize."""
        n = dequantize(*quantize(rms_norm(o.h, o.norm)), 1)
        both = n @ dequantize(*o.gate_up, BLOCK).T
        acted = torch.nn.functional.silu(both[:, : self.intermediate])
        start = both.shape[1] - self.intermediate
        acted = dequantize(*quantize(acted * both[:, start:]), 1)
        return acted @ dequantize(*o.down, BLOCK).T + o.h.float()


class ChainSubject(Protocol):
    """A way to compute the MLP; see `subjects.Subject`."""

    @property
    def name(self) -> str: ...

    @property
    def tolerance(self) -> float: ...

    def prepare(self, mlp: Mlp, m: int, sets: Sequence[MlpOperands]) -> Prepared: ...


@dataclass(frozen=True)
class Fused:
    """Norm and quantization, gate/up with GLU and quantization, down with the residual."""

    gpu: Gpu
    load: Callable[[Any], Any]
    directory: Path | None = None
    name: str = "qfuse"
    tolerance: float = 1e-2  # codes that lie on a border may go either way

    def prepare(self, mlp: Mlp, m: int, sets: Sequence[MlpOperands]) -> Prepared:
        device = sets[0].h.device
        lowered = (lower(mlp.norm_text, self.gpu), mlp.gate_up.lower(self.gpu),
                   mlp.down.lower(self.gpu))  # fmt: skip
        norm, gate_up, down = (
            Runner(compiled(kernel, m, self.gpu, self.directory), m, device, self.load)
            for kernel in lowered
        )
        calls: list[Call] = []
        results = []
        for o in sets:
            n, acted = _quantized(m, mlp.hidden, device), _quantized(m, mlp.intermediate, device)
            out = torch.full_like(o.h, torch.nan)
            steps = [
                norm.call([o.h, o.norm, *n]),
                gate_up.call([*n, *o.gate_up, *acted]),
                down.call([*acted, *o.down, o.h, out]),
            ]
            calls.append(in_turn(steps))
            results.append(out)
        return Prepared(calls, reading(results))


@dataclass(frozen=True)
class Unfused:
    """scaled_mm (cuBLASLt) for the products; what is between them by torch.compile, or eager."""

    name: str = "scaled_mm + torch.compile"
    tolerance: float = 2e-2  # products are rounded to bf16 before they are quantized
    compile: Callable[[Callable[..., Any]], Callable[..., Any]] = torch.compile

    def prepare(self, mlp: Mlp, m: int, sets: Sequence[MlpOperands]) -> Prepared:
        torch._dynamo.reset()
        norm = self.compile(norm_quantize)
        glu = self.compile(glu_quantize)
        add = self.compile(torch.add)

        def call(o: MlpOperands) -> torch.Tensor:
            codes, scale = norm(o.h, o.norm)
            both = scaled_mm_call(codes, scale, *o.gate_up)()
            codes, scale = glu(both, mlp.intermediate)
            return add(scaled_mm_call(codes, scale, *o.down)(), o.h)

        return Prepared([partial(call, o) for o in sets])


@dataclass(frozen=True)
class UnfusedBf16:
    """torch.compile of the MLP with bf16 weights."""

    name: str = "torch.compile bf16"
    tolerance: float = 6e-2  # it does not quantize activations, as the reference does
    compile: Callable[[Callable[..., Any]], Callable[..., Any]] = torch.compile

    def prepare(self, mlp: Mlp, m: int, sets: Sequence[MlpOperands]) -> Prepared:
        torch._dynamo.reset()
        function = self.compile(mlp_bf16)
        calls: list[Call] = []
        for o in sets:
            gate_up, down = (dequantize(*w, BLOCK).bfloat16() for w in (o.gate_up, o.down))
            calls.append(partial(function, o.h, o.norm, gate_up, down))
        return Prepared(calls)


def chain_subjects(
    gpu: Gpu, load: Callable[[Any], Any], directory: Path | None
) -> list[ChainSubject]:
    return [Fused(gpu, load, directory), Unfused(), UnfusedBf16()]


def rms_norm(h: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """In f32, rounded to bf16 before and after the weight, as Llama does it."""
    values = h.float()
    normed = values * torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + EPS)
    return normed.to(h.dtype) * weight


def norm_quantize(h: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For cuBLASLt: scales column-major."""
    codes, scale = quantize(rms_norm(h, weight))
    return codes, column_major(scale)


def glu_quantize(both: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(gate) * up of [M, >= 2 * width], up in the last columns; scales column-major."""
    gate, up = both[:, :width].float(), both[:, both.shape[1] - width :].float()
    codes, scale = quantize(torch.nn.functional.silu(gate) * up)
    return codes, column_major(scale)


def mlp_bf16(
    h: torch.Tensor, norm: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    both = rms_norm(h, norm) @ gate_up.T
    width = down.shape[1]
    acted = torch.nn.functional.silu(both[:, :width]) * both[:, both.shape[1] - width :]
    return acted @ down.T + h


def _quantized(m: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for codes [M, width] and their scales."""
    codes = torch.empty(m, width, dtype=torch.float8_e4m3fn, device=device)
    return codes, torch.empty(m, -(-width // BLOCK), device=device)
