"""`qfuse-triton-to-binary`: Triton kernels become machine code, as gpu.binary."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.outline import kernel_functions
from qfuse.dialects.bindings import func, ir
from qfuse.lowering.triton.binary import compile_kernel
from qfuse.lowering.triton.embedding import VARIANTS, embed_binaries, is_binary, read_kernel
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel


@dataclass(frozen=True)
class TritonToBinary(Pass):
    """Compile the tt functions of each lowered kernel with the installed Triton; needs no GPU.

    Before::

        module @rms_norm_0_launch attributes {qfuse.grid = {...}, ...} { "tt.func"() ... }

    After::

        gpu.binary @rms_norm_0_launch {qfuse.grid = {...}, ...}
            [#gpu.object<#nvvm.target<chip = "sm_90">, properties = {...}, bin = "...">]

    The properties say what a launch needs: num_warps, bytes of dynamic shared memory, and bytes of
    global memory for each program.  `cache` is a directory that keeps machine code between runs.
    Does nothing to modules without lowered kernels.
    """

    name: ClassVar[str] = "qfuse-triton-to-binary"

    cache: str = ""

    def run(self, module: ir.Operation) -> None:
        directory = Path(self.cache) if self.cache else None
        for function in kernel_functions(module):
            if VARIANTS in function.operation.attributes and not is_binary(function):
                to_binary(function, directory)


def to_binary(function: func.FuncOp, directory: Path | None) -> GpuKernel:
    """Compile one lowered kernel in place, and return what it became."""
    kernel = read_kernel(function)
    with function.context, function.location:
        binary = compile_kernel(kernel, find_gpu(kernel.target), directory)
        embed_binaries(function, binary)
    return binary
