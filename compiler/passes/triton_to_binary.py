"""`qfuse-triton-to-binary`: Triton kernels become machine code, as gpu.binary."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.outline import kernel_functions
from qfuse.dialects.bindings import func, ir
from qfuse.lowering.triton.ahead import compiled_ahead
from qfuse.lowering.triton.binary import compile_kernel
from qfuse.lowering.triton.embedding import VARIANTS, embed_binaries, is_binary, read_kernel
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel
from qfuse.lowering.triton.kernel import Launch


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
        lowered = (f for f in kernel_functions(module) if VARIANTS in f.operation.attributes)
        to_binaries([f for f in lowered if not is_binary(f)], directory)


def to_binaries(
    functions: Sequence[func.FuncOp],
    directory: Path | None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, GpuKernel]:
    """Compile lowered kernels in place, and return what they became, by name."""
    kernels = {function.name.value: read_kernel(function) for function in functions}
    binaries: dict[str, GpuKernel] = {}
    by_target: dict[str, list[Launch]] = {}
    for kernel in kernels.values():
        launches = [launch for variant in kernel.variants for launch in variant.launches]
        by_target.setdefault(kernel.target, []).extend(launches)
    with ExitStack() as stack:
        caches = {
            target: stack.enter_context(compiled_ahead(launches, find_gpu(target), directory))
            for target, launches in by_target.items()
        }
        for i, function in enumerate(functions):
            progress(i)
            kernel = kernels[function.name.value]
            binary = compile_kernel(kernel, find_gpu(kernel.target), caches[kernel.target])
            with function.context, function.location:
                embed_binaries(function, binary)
            binaries[kernel.name] = binary
    return binaries
