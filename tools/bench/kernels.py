"""Our kernels, compiled for the rows that are asked for, and started on torch tensors."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from qfuse.lowering.triton.binary import compile_kernel
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.gpu_kernel import ALIGNMENT, GpuKernel
from qfuse.lowering.triton.kernel import TritonKernel

Call = Callable[[], Any]


def compiled(kernel: TritonKernel, m: int, gpu: Gpu, directory: Path | None) -> GpuKernel:
    """Machine code of the launches that serve `m` rows, and of no others."""
    variant = kernel.variant(m)
    return compile_kernel(replace(kernel, variants=(variant,)), gpu, directory)


class Runner:
    """Starts one kernel on many sets of tensors, with one scratch memory and one set of counters.

    `load` makes of a GpuKernel something with `bind`, as `launcher.LoadedGpuKernel` does.
    """

    def __init__(
        self,
        kernel: GpuKernel,
        m: int,
        device: torch.device,
        load: Callable[[GpuKernel], Any],
    ) -> None:
        self._loaded, self._m = load(kernel), m
        self._scratch = aligned_bytes(kernel.scratch_bytes(m), device)
        self._counters = aligned_bytes(kernel.counter_bytes, device).zero_()

    def call(self, tensors: Sequence[torch.Tensor]) -> Call:
        """A launch on `tensors`, which are those of the kernel's parameters and stay alive."""
        launch = self._loaded.bind(
            [t.data_ptr() for t in tensors],
            self._m,
            scratch=self._scratch.data_ptr(),
            counters=self._counters.data_ptr(),
        )
        kept = (tuple(tensors), self._scratch, self._counters)

        def start(kept: Any = kept) -> None:
            launch()

        return start


def aligned_bytes(size: int, device: torch.device) -> torch.Tensor:
    """Memory that begins at a multiple of 256."""
    whole = torch.empty(max(size, 1) + ALIGNMENT, dtype=torch.uint8, device=device)
    start = -whole.data_ptr() % ALIGNMENT
    return whole[start : start + max(size, 1)]


def in_turn(steps: Sequence[Call]) -> Call:
    """One call for several."""

    def call() -> None:
        for step in steps:
            step()

    return call
