"""`qfuse-convert-to-triton`: each qfuse computation becomes launches of Triton kernels."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.outline import kernel_functions, outline_computations
from qfuse.dialects.bindings import ir
from qfuse.lowering.triton.embedding import TARGET, embed
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.lower import lower_kernel


@dataclass(frozen=True)
class ConvertToTriton(Pass):
    """Outline every qfuse computation, and lower each outlined kernel to the tt dialect.

    Before::

        %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, ...}

    After::

        %y = call @rms_norm_0(%x, %w)

        func.func private @rms_norm_0(...) attributes {qfuse.kernel, qfuse.target = "cuda:sm_90",
            qfuse.variants = [{first_m = 1 : i64, launches = [@rms_norm_0_launch], ...}], ...}
        module @rms_norm_0_launch attributes {qfuse.grid = {...}, ...} { "tt.func"() ... }

    A variant serves a range of M, the number of rows; its launches run in order.  Raises
    QfuseError for a computation that has no GPU kernel, with the reason.  `qfuse.pack` and
    `qfuse.concat` stay, as in qfuse-convert-to-cpu.  Kernels that have been lowered, by an
    earlier run of this pass, stay as they are.
    """

    name: ClassVar[str] = "qfuse-convert-to-triton"

    target: str = "cuda:sm_90"

    def run(self, module: ir.Operation) -> None:
        gpu = find_gpu(self.target)
        outline_computations(module)
        for function in kernel_functions(module):
            if TARGET not in function.operation.attributes:
                embed(function, lower_kernel(function, gpu))
