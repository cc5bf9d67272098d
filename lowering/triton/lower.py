"""From an outlined kernel function to launches of Triton IR."""

from types import ModuleType

from qfuse.dialects.bindings import func, ir
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton import (
    apart,
    gemm,
    group_combine,
    group_gemm,
    norm,
    rope,
    routing,
    rowwise,
    select_experts,
    tensor_scale,
)
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import TritonKernel
from qfuse.lowering.triton.signature import read_signature

_MODULES = (
    apart,
    gemm,
    group_gemm,
    group_combine,
    norm,
    rope,
    routing,
    rowwise,
    select_experts,
    tensor_scale,
)

_FAMILIES: dict[str, ModuleType] = {op: family for family in _MODULES for op in family.OPS}


def unsupported(op: ir.Operation | ir.OpView, gpu: Gpu) -> str | None:
    """Why `op` cannot become a kernel for `gpu`, or None; generates no code."""
    op = op.operation
    family = _FAMILIES.get(op.name)
    if family is None:
        return f"{op.name} has no GPU kernel; there are kernels for {', '.join(_FAMILIES)}"
    return family.refuse(op, gpu)


def lower_kernel(kernel: func.FuncOp, gpu: Gpu) -> TritonKernel:
    """Launches for a function that holds one qfuse operation, as `qfuse-convert-to-cpu` outlines.

    Raises QfuseError, naming the operation, where it is, why it is not supported, and what
    would be.
    """
    signature = read_signature(kernel)
    op = signature.op
    if why := unsupported(op, gpu):
        raise QfuseError(f"{op.name} at {op.location}: {why}")
    with kernel.context, ir.Location.unknown():
        variants = _FAMILIES[op.name].build(signature, gpu)
    tensors = (*signature.operands, *signature.results)
    parameters = tuple(parameter for t in tensors for parameter, _ in t.parameters())
    return TritonKernel(signature.name, str(gpu), parameters, tuple(variants))
