"""What the GPU suite measures for one product: each subject as calls on given operands."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.gpu import Gpu
from qfuse.tools.bench.cases import BLOCK, Case, Operands, dequantize
from qfuse.tools.bench.kernels import Call, Runner, compiled

Read = Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Prepared:
    """Calls of one subject, one for each set of operands, and how to read what each has made.

    A call that makes its result anew returns it instead; `read` is None, then.  Calls that are
    not `captured` wait for the device, so no CUDA graph can hold them.  `parts` are calls that
    make a part of the result, by name; all calls before have to have been made once.
    """

    calls: Sequence[Call]
    read: Sequence[Read] | None = None
    captured: bool = True
    parts: Mapping[str, list[Call]] = field(default_factory=dict)

    def first_result(self) -> torch.Tensor:
        """Make the first call and return what it made."""
        made = self.calls[0]()
        return made if self.read is None else self.read[0]()

    def results(self) -> list[torch.Tensor]:
        """What all calls have made, where that can be told afterwards."""
        return [read() for read in self.read or []]


def reading(tensors: Sequence[torch.Tensor]) -> list[Read]:
    """Results that are read as they are."""
    return [partial(torch.Tensor.detach, t) for t in tensors]


class Subject(Protocol):
    """A way to multiply.

    `rounds` is the relative error that it has because it rounds what others do not.
    """

    @property
    def name(self) -> str: ...

    @property
    def rounds(self) -> float: ...

    def prepare(self, case: Case, m: int, sets: Sequence[Operands]) -> Prepared:
        """Raises QfuseError, RuntimeError or ImportError where it cannot serve the case."""
        ...


@dataclass(frozen=True)
class Ours:
    """The kernels of qfuse, by its tables and model."""

    gpu: Gpu
    load: Callable[[Any], Any]
    directory: Path | None = None
    name: str = "qfuse"
    rounds: float = 0.0

    def prepare(self, case: Case, m: int, sets: Sequence[Operands]) -> Prepared:
        device = sets[0].x.device
        kernel = compiled(case.lower(self.gpu), m, self.gpu, self.directory)
        runner = Runner(kernel, m, device, self.load)
        calls: list[Call] = []
        read: list[Read] = []
        for operands in sets:
            results = _results(case, m, device)
            calls.append(runner.call([*operands.tensors, *results]))
            read += (
                [partial(dequantize, results[0], results[1], 1)] if case.glu else reading(results)
            )
        return Prepared(calls, read)


def _results(case: Case, m: int, device: torch.device) -> list[torch.Tensor]:
    """Memory that a kernel writes: bf16, or codes and scales; nothing in it is a number yet."""
    if not case.glu:
        return [torch.full((m, case.n), torch.nan, dtype=torch.bfloat16, device=device)]
    codes = torch.full((m, case.n), 0x7F, dtype=torch.uint8, device=device)
    scales = torch.full((m, -(-case.n // BLOCK)), torch.nan, device=device)
    return [codes.view(torch.float8_e4m3fn), scales]


@dataclass(frozen=True)
class ScaledMm:
    """`torch.nn.functional.scaled_mm` with 1x128 and 128x128 blocks: cuBLASLt, sm_90 only.

    Its layouts are prepared outside the measurement, as a model that is built for it would have
    them: scales of x column-major, those of w [N/128, K/128 in multiples of 4].
    """

    name: str = "scaled_mm"
    rounds: float = 0.0

    def prepare(self, case: Case, m: int, sets: Sequence[Operands]) -> Prepared:
        _only_products(case, self.name)
        calls = [scaled_mm_call(s.x, column_major(s.x_scale), s.w, s.w_scale) for s in sets]
        return Prepared(calls)


def column_major(scale: torch.Tensor) -> torch.Tensor:
    """The same values with strides (1, M)."""
    made = torch.empty_strided(scale.shape, (1, scale.shape[0]), device=scale.device)
    return made.copy_(scale)


def scaled_mm_call(
    x: torch.Tensor, x_scale: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor
) -> Call:
    """x [M, K] times w [N, K], bf16 [M, N]; x_scale is column-major."""
    functional: Any = torch.nn.functional
    recipe = functional.ScalingType
    # Strides are checked even where there is one row, of which torch may tell anything.
    scale_a = x_scale.as_strided(x_scale.shape, (1, x_scale.shape[0]))
    scale_b = scales_for_cublas(w_scale)

    def call() -> torch.Tensor:
        return functional.scaled_mm(
            x,
            w.T,
            scale_a=scale_a,
            scale_recipe_a=recipe.BlockWise1x128,
            scale_b=scale_b,
            scale_recipe_b=recipe.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )

    return call


def scales_for_cublas(w_scale: torch.Tensor) -> torch.Tensor:
    """Block scales [K/128 (in multiples of 4), N/128], K the contiguous dimension.

    ScaledBlas.cpp: cuBLASLt wants the scales of 128x128 blocks padded to 4 along K.
    """
    blocks_n, blocks_k = w_scale.shape
    padded = torch.zeros(
        blocks_n, -(-blocks_k // 4) * 4, dtype=torch.float32, device=w_scale.device
    )
    padded[:, :blocks_k] = w_scale
    return padded.T


def dequantized_bf16(operands: Operands) -> tuple[torch.Tensor, torch.Tensor]:
    """x and w as bf16."""
    x = dequantize(operands.x, operands.x_scale, 1).bfloat16()
    return x, dequantize(operands.w, operands.w_scale, BLOCK).bfloat16()


@dataclass(frozen=True)
class Bf16:
    """torch.matmul of bf16 values: what an unquantized model does."""

    name: str = "torch bf16"
    rounds: float = 5e-3  # its inputs, to bf16

    def prepare(self, case: Case, m: int, sets: Sequence[Operands]) -> Prepared:
        _only_products(case, self.name)
        calls: list[Call] = []
        results = []
        for operands in sets:
            x, w = dequantized_bf16(operands)
            out = torch.empty(m, case.n, dtype=torch.bfloat16, device=x.device)
            calls.append(partial(torch.matmul, x, w.T, out=out))
            results.append(out)
        return Prepared(calls, reading(results))


@dataclass(frozen=True)
class Compiled:
    """torch.compile (max-autotune-no-cudagraphs) of the dequantization and the product."""

    name: str = "torch.compile"
    rounds: float = 5e-3
    mode: str = "max-autotune-no-cudagraphs"

    def prepare(self, case: Case, m: int, sets: Sequence[Operands]) -> Prepared:
        _only_products(case, self.name)
        torch._dynamo.reset()
        function = torch.compile(dequantized_product, mode=self.mode, dynamic=False)
        calls: list[Call] = [partial(function, s.x, s.x_scale, s.w, s.w_scale) for s in sets]
        return Prepared(calls)


def dequantized_product(
    x: torch.Tensor, x_scale: torch.Tensor, w: torch.Tensor, w_scale: torch.Tensor
) -> torch.Tensor:
    """The product as its definition says, in bf16: what torch.compile is given."""
    x = dequantize(x, x_scale, 1).bfloat16()
    w = dequantize(w, w_scale, BLOCK).bfloat16()
    return x @ w.T


@dataclass(frozen=True)
class Baseline:
    """The seed's Triton kernel with its fixed tiles."""

    name: str = "baseline"
    rounds: float = 0.0

    def prepare(self, case: Case, m: int, sets: Sequence[Operands]) -> Prepared:
        _only_products(case, self.name)
        from qfuse.tools.bench import baseline

        grid = baseline.grid(m, case.n)
        calls: list[Call] = []
        results = []
        for s in sets:
            out = torch.full((m, case.n), torch.nan, dtype=torch.bfloat16, device=s.x.device)
            arguments = (s.x, s.w, out, s.x_scale, s.w_scale, m, case.n, case.k)
            options = {**baseline.TILES, **baseline.OPTIONS}
            calls.append(partial(baseline.kernel[grid], *arguments, **options))
            results.append(out)
        return Prepared(calls, reading(results))


def _only_products(case: Case, name: str) -> None:
    """Raises QfuseError for a case that has more than a product."""
    if case.glu or case.residual:
        raise QfuseError(f"{name} has no kernel for {case}: it multiplies, and nothing else")


def subjects(gpu: Gpu, load: Callable[[Any], Any], directory: Path | None) -> list[Subject]:
    """Ours first, then what it is compared with."""
    return [Ours(gpu, load, directory), ScaledMm(), Bf16(), Compiled(), Baseline()]
