"""`qfuse-choose-scale-layout`: scales of activations lie as the products on a GPU read them."""

from dataclasses import dataclass, replace
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.passes.base import Pass
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import INPUTS
from qfuse.dialects.registry import COMPUTE_OPS
from qfuse.dialects.types import QTensorType, shaped

PATTERN = "scale-layout"
_READERS = (*INPUTS, "qfuse.dequantize")


@dataclass(frozen=True)
class ChooseScaleLayout(Pass):
    """Give quantized activations between our kernels column-major scales.

    Before::

        %q = "qfuse.quantize"(%x) : (...) -> !qfuse.qtensor<..., #qfuse.scheme<..., "row_major">>
        %y = "qfuse.matmul"(%q, %w) ...

    After::

        %q = "qfuse.quantize"(%x) : (...) -> !qfuse.qtensor<..., #qfuse.scheme<..., "col_major">>
        %y = "qfuse.matmul"(%q, %w) ...

    A step of a product needs the scales of one group of K for all of its rows: 128 floats one
    after the other in [K / group, M], 128 sectors of memory apart in [M, K / group] (cuBLASLt and
    DeepGEMM want them like this, too).  Leading dimensions are flattened: M is T for the tokens of
    a layer of experts, and T * k for the rows between its products.  Values are the same.  Runs for
    GPU targets only: the kernels of the CPU read scales row by row.

    Does nothing to a value that something else than a product or a dequantize reads (its scales
    would be seen), to one that no kernel of ours makes, and where a row has a single scale.
    """

    name: ClassVar[str] = "qfuse-choose-scale-layout"

    def run(self, module: ir.Operation) -> None:
        for function in module.regions[0].blocks[0].operations:
            for region in function.operation.regions:
                for block in region.blocks:
                    for op in block.operations:
                        if op.operation.name in COMPUTE_OPS:
                            _choose(op.operation)


def _choose(op: ir.Operation) -> None:
    for result in op.results:
        value = shaped(result.type)
        scheme = value.scheme
        if scheme is None or scheme.scale_layout != "row_major" or scheme.packing != "none":
            continue
        if scheme.block[0] != 1 or scheme.block[1] >= value.shape[-1]:
            continue
        other = next((u.owner for u in result.uses if not _reads_any_layout(u)), None)
        if other is not None:
            remarks.refused(
                PATTERN,
                op,
                other.operation,
                f"it reads the scales of {op.name} row by row",
                "let only products and dequantizes read the quantized value",
            )
            continue
        chosen = replace(value, scheme=replace(scheme, scale_layout="col_major"))
        result.set_type(QTensorType(chosen.type()))
        remarks.fired(PATTERN, op)


def _reads_any_layout(use: ir.OpOperand) -> bool:
    return use.owner.operation.name in _READERS
