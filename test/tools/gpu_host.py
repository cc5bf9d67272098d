"""A GPU's place taken by the host: our kernels are interpreted, on the memory of CPU tensors."""

import ctypes
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel, GpuLaunch, GpuVariant
from qfuse.lowering.triton.interpreter import run
from qfuse.lowering.triton.interpreter.types import DTYPES
from qfuse.lowering.triton.kernel import TritonKernel
from qfuse.tools.bench import kernels, subjects

HOST = torch.device("cpu")


class Interpreted:
    """What `LoadedGpuKernel` is on a GPU; `sizes` are the bytes of tensors by their address."""

    def __init__(self, kernel: GpuKernel, sizes: dict[int, int], launched: list[str]) -> None:
        self.kernel, self.sizes, self.launched = kernel, sizes, launched

    def bind(self, pointers: Sequence[int], m: int, *, scratch: int, counters: int) -> Any:
        variant = self.kernel.variant(m)
        places = dict(zip(self.kernel.parameters, pointers, strict=True))
        assert scratch % 256 == 0 and counters % 256 == 0

        def array(parameter: Any, dtype: np.dtype) -> np.ndarray:
            if parameter.source == "scratch":
                address, size = scratch, variant.scratch_per_row * m
            elif parameter.source == "counter":
                address, size = counters, variant.counter_bytes
            else:
                address = places[parameter]
                size = self.sizes[address]
            raw = (ctypes.c_uint8 * size).from_address(address)
            return np.ndarray(size // dtype.itemsize, dtype, buffer=raw)

        def start() -> None:
            for launch in variant.launches:
                self.launched.append(launch.name)
                text = launch.code.decode()
                found = re.search(r"function_type = \(([^)]*)\)", text)
                assert found is not None
                types = [DTYPES[name] for name in re.findall(r"!tt\.ptr<(\w+)", found[1])]
                arrays = [array(*pair) for pair in zip(launch.parameters, types, strict=True)]
                run(text, launch.name, [*arrays, m], launch.grid.of(m), target=self.kernel.target)

        return start


class HostGpu:
    """Patches what compiles and starts kernels; `load` is what `Ours` and others take."""

    def __init__(self, monkeypatch: Any) -> None:
        self.sizes: dict[int, int] = {}
        self.launched: list[str] = []
        for module in (kernels, subjects):
            monkeypatch.setattr(module, "compiled", self._compiled)
        monkeypatch.setattr("qfuse.tools.bench.chain.compiled", self._compiled)
        original = kernels.Runner.call

        def call(runner: kernels.Runner, tensors: Sequence[torch.Tensor]) -> Any:
            for tensor in tensors:
                assert tensor.is_contiguous()
                self.sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return original(runner, tensors)

        monkeypatch.setattr(kernels.Runner, "call", call)

    def load(self, kernel: GpuKernel) -> Interpreted:
        return Interpreted(kernel, self.sizes, self.launched)

    @staticmethod
    def _compiled(kernel: TritonKernel, m: int, gpu: Gpu, directory: Path | None) -> GpuKernel:
        """A kernel whose machine code is its text."""
        variant = kernel.variant(m)
        launches = tuple(
            GpuLaunch(x.name, x.parameters, x.grid, x.num_warps, 1024, 0, x.text.encode())
            for x in variant.launches
        )
        made = GpuVariant(
            variant.first_m,
            variant.last_m,
            launches,
            variant.scratch_per_row,
            variant.counter_bytes,
        )
        return GpuKernel(kernel.name, kernel.target, kernel.parameters, (made,))


class CountingTimer:
    """A timer that makes each call once and says what it was told."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.timed: list[int] = []

    def __call__(self, calls: Sequence[Any]) -> float:
        for call in calls:
            call()
        self.timed.append(len(calls))
        return self.seconds[(len(self.timed) - 1) % len(self.seconds)]


def fake_scaled_mm(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    scale_a: torch.Tensor,
    scale_recipe_a: Any,
    scale_b: torch.Tensor,
    scale_recipe_b: Any,
    output_dtype: torch.dtype,
) -> torch.Tensor:
    """`torch.nn.functional.scaled_mm` in f64, for the layouts that ScaledBlas.cpp demands."""
    recipe = torch.nn.functional.ScalingType  # type: ignore[attr-defined]
    assert (scale_recipe_a, scale_recipe_b) == (recipe.BlockWise1x128, recipe.BlockWise128x128)
    (m, k), (_, n) = x.shape, w.shape
    groups, blocks = -(-k // 128), -(-n // 128)
    assert x.is_contiguous() and w.T.is_contiguous()
    assert tuple(scale_a.shape) == (m, groups) and scale_a.stride() == (1, m)
    assert tuple(scale_b.shape) == (-(-groups // 4) * 4, blocks)
    assert scale_b.stride() == (1, scale_b.shape[0])
    a = scale_a.double().repeat_interleave(128, 1)[:, :k] * x.double()
    b = scale_b[:groups].double().repeat_interleave(128, 0)[:k]
    b = b.repeat_interleave(128, 1)[:, :n] * w.double()
    return (a @ b).to(output_dtype)
