"""Outlining: each qfuse computation becomes a call of a kernel function."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from qfuse.compiler.passes.expand_quantize import INPUT_SCHEME
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.library_ops import ChooseOp
from qfuse.dialects.registry import COMPUTE_OPS
from qfuse.dialects.types import shaped

KERNEL = "qfuse.kernel"
"""Attribute of a function that is compiled as one kernel."""

ROWS = "qfuse.rows"
"""Attribute of a kernel function, (operand, dims): it works on as many rows, and its results that
have rows have as many, as the first `dims` extents of that operand make.  Without it they have
those of an operand of their rank."""

_ROWS = {
    "qfuse.group_matmul": (3, 2),
    "qfuse.group_matmul_combine": (3, 1),
    "qfuse.combine": (1, 1),
}


def outline_computations(module: ir.Operation) -> None:
    """Outline every qfuse computation of `module`; equal ones share a function.

    A kernel function holds one operation and a return.  A product that is still to quantize its
    input raises QfuseError: qfuse-expand-quantize comes first.
    """
    operations = _operations(module)
    functions = [op for op in operations if op.name == "func.func"]
    symbols = [op.attributes["sym_name"] for op in operations if "sym_name" in op.attributes]
    taken = {ir.StringAttr(symbol).value for symbol in symbols}
    kernels = _Kernels(module, taken)
    for function in functions:
        if KERNEL not in function.attributes:
            for op in _computations(function):
                _outline(op, kernels)


def kernel_functions(module: ir.Operation) -> list[func.FuncOp]:
    """The kernel functions of a module, in order."""
    return [
        op.opview
        for op in _operations(module)
        if op.name == "func.func" and KERNEL in op.attributes
    ]


def kernel_calls(module: ir.Operation) -> Counter[str]:
    """How often each function of a module is called in it, by name."""
    calls: Counter[str] = Counter()

    def count(op: ir.Operation) -> ir.WalkResult:
        if op.name == "func.call":
            calls[ir.FlatSymbolRefAttr(op.attributes["callee"]).value] += 1
        return ir.WalkResult.ADVANCE

    module.walk(count)
    return calls


@contextmanager
def single_kernel(op: ir.Operation) -> Iterator[func.FuncOp]:
    """A kernel function of `op` alone, in a module of its own, to ask about; `op` stays."""
    with op.context, ir.Location.unknown():
        module = ir.Module.create()
        _define(module.operation, op, "kernel")
        yield kernel_functions(module.operation)[0]


def _operations(module: ir.Operation) -> list[ir.Operation]:
    return [op.operation for op in module.regions[0].blocks[0].operations]


def _computations(holder: ir.Operation) -> list[ir.Operation]:
    """The computations in the regions of a function, or of a choice between ways to compute."""
    found = []
    for region in holder.regions:
        for block in region.blocks:
            for op in (op.operation for op in block.operations):
                if op.name in COMPUTE_OPS:
                    found.append(op)
                elif op.name == ChooseOp.OPERATION_NAME:
                    found += _computations(op)
    return found


class _Kernels:
    """The kernels outlined so far, by what they compute."""

    def __init__(self, module: ir.Operation, taken: set[str]) -> None:
        self.module, self.taken = module, taken
        self.names: dict[tuple[str, str], str] = {}

    def name_of(self, op: ir.Operation) -> str:
        """The kernel that computes `op`, defined where there is none yet."""
        key = (op.name, _body(op))
        if key not in self.names:
            prefix = op.name.removeprefix("qfuse.")
            name = next(n for i in count() if (n := f"{prefix}_{i}") not in self.taken)
            self.names[key] = name
            self.taken.add(name)
            _define(self.module, op, name)
        return self.names[key]


def _outline(op: ir.Operation, kernels: _Kernels) -> None:
    if INPUT_SCHEME in op.attributes:
        raise QfuseError(
            f"{op.name} at {op.location}: the quantization of its input is still part of it; "
            "run qfuse-expand-quantize first, and see why it declines"
        )
    name = kernels.name_of(op)
    with ir.InsertionPoint(op), op.location:
        call = func.CallOp([r.type for r in op.results], name, list(op.operands))
    for old, new in zip(op.results, call.results, strict=True):
        old.replace_all_uses_with(new)
    op.erase()


def _body(op: ir.Operation) -> str:
    """The text of `op` without its name and operands: equal for equal computations."""
    text = op.get_asm(print_generic_op_form=True, use_local_scope=True, assume_verified=True)
    return text[text.index("(") :].split(")", 1)[1]


def _define(module: ir.Operation, op: ir.Operation, name: str) -> None:
    inputs = [v.type for v in op.operands]
    results = [r.type for r in op.results]
    with ir.InsertionPoint(module.regions[0].blocks[0]), ir.Location.name(name):
        kernel = func.FuncOp(name, (inputs, results), visibility="private")
        kernel.operation.attributes[KERNEL] = ir.UnitAttr.get()
        rows = _rows_of(op)
        if rows is not None:
            kernel.operation.attributes[ROWS] = ir.DenseI64ArrayAttr.get(list(rows))
        block = kernel.add_entry_block()
        with ir.InsertionPoint(block):
            copy = op.clone()
            for i, argument in enumerate(block.arguments):
                copy.operands[i] = argument
            func.ReturnOp(list(copy.results))


def _rows_of(op: ir.Operation) -> tuple[int, int] | None:
    """The attribute ROWS of the kernel of `op`."""
    if op.name == "qfuse.tensor_scale":  # its result has no rows
        return 0, len(shaped(op.operands[0].type).shape) - 1
    rows = _ROWS.get(op.name)
    return rows if rows is not None and _has_operand(op, rows[0]) else None


def _has_operand(op: ir.Operation, field: int) -> bool:
    """Whether the optional operand `field` of an operation, and all before it, are there."""
    if "operandSegmentSizes" not in op.attributes:  # not needed for one optional operand
        return len(op.operands) > field
    return all(list(ir.DenseI32ArrayAttr(op.attributes["operandSegmentSizes"]))[: field + 1])
