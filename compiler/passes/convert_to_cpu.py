"""`qfuse-convert-to-cpu`: each qfuse computation becomes a call of an outlined kernel."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.outline import outline_computations
from qfuse.dialects.bindings import ir


@dataclass(frozen=True)
class ConvertToCpu(Pass):
    """Outline every qfuse computation into a kernel function; equal ones share it.

    Before::

        %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, ...}

    After::

        %y = call @rms_norm_0(%x, %w)

        func.func private @rms_norm_0(%x, %w) attributes {qfuse.kernel} {
          %y = "qfuse.rms_norm"(%x, %w) {eps = 1.0e-6 : f64, ...}
          return %y
        }

    `qfuse.pack`, `qfuse.concat` and `qfuse.append_expert` stay: they prepare weights, once, and are
    no kernels.  A product that is still to quantize its input raises QfuseError:
    qfuse-expand-quantize comes first.
    """

    name: ClassVar[str] = "qfuse-convert-to-cpu"

    def run(self, module: ir.Operation) -> None:
        outline_computations(module)
