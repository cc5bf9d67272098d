"""`qfuse-convert-to-cpu`: each qfuse computation becomes a call of an outlined kernel."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler.passes.base import Pass
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.registry import COMPUTE_OPS

KERNEL = "qfuse.kernel"
"""Attribute of a function that is compiled as one kernel."""


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

    `qfuse.pack` and `qfuse.concat` stay: they prepare weights, once, and are no kernels.
    """

    name: ClassVar[str] = "qfuse-convert-to-cpu"

    def run(self, module: ir.Operation) -> None:
        functions = [
            op
            for op in module.regions[0].blocks[0].operations
            if op.operation.name == "func.func" and KERNEL not in op.operation.attributes
        ]
        outlined: dict[str, str] = {}
        for function in functions:
            for op in _computations(function.operation):
                _outline(module, op, outlined)


def _computations(function: ir.Operation) -> list[ir.Operation]:
    found = []
    for block in function.regions[0].blocks:
        found += [op.operation for op in block.operations if op.operation.name in COMPUTE_OPS]
    return found


def _outline(module: ir.Operation, op: ir.Operation, outlined: dict[str, str]) -> None:
    key = _body(op)
    if key not in outlined:
        prefix = op.name.removeprefix("qfuse.")
        outlined[key] = f"{prefix}_{sum(n.rpartition('_')[0] == prefix for n in outlined.values())}"
        _define(module, op, outlined[key])
    with ir.InsertionPoint(op), op.location:
        call = func.CallOp([r.type for r in op.results], outlined[key], list(op.operands))
    for old, new in zip(op.results, call.results, strict=True):
        old.replace_all_uses_with(new)
    op.erase()


def _body(op: ir.Operation) -> str:
    """The text of `op` without its operands: equal for equal computations."""
    text = op.get_asm(print_generic_op_form=True, use_local_scope=True, assume_verified=True)
    return text[text.index("(") :].split(")", 1)[1]


def _define(module: ir.Operation, op: ir.Operation, name: str) -> None:
    inputs = [v.type for v in op.operands]
    results = [r.type for r in op.results]
    with ir.InsertionPoint(module.regions[0].blocks[0]), ir.Location.name(name):
        kernel = func.FuncOp(name, (inputs, results), visibility="private")
        kernel.operation.attributes[KERNEL] = ir.UnitAttr.get()
        block = kernel.add_entry_block()
        with ir.InsertionPoint(block):
            copy = op.clone()
            for i, argument in enumerate(block.arguments):
                copy.operands[i] = argument
            func.ReturnOp(list(copy.results))
