"""Reading an outlined kernel: its one operation, and the pointers that serve it."""

from dataclasses import dataclass
from typing import Literal

from qfuse.dialects.bindings import func, ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.matmul_op import INPUTS
from qfuse.dialects.types import Shaped, shaped
from qfuse.lowering.cpu.emit import Function, Value, buffer
from qfuse.lowering.cpu.kernel import Entry, Parameter
from qfuse.lowering.cpu.layout import WeightLayout, plain_layout
from qfuse.lowering.cpu.rowwise import QuantizedTarget

Source = Literal["operand", "result"]
Component = Literal["data", "scale", "zero"]


@dataclass(frozen=True)
class Tensor:
    """An operand or result of the kernel's operation, as the pointers that carry it."""

    shaped: Shaped
    data: Value
    scale: Value | None = None
    zero: Value | None = None

    @property
    def dtype(self) -> str:
        return self.shaped.dtype

    @property
    def width(self) -> int:
        """Extent of the last dimension."""
        return self.shaped.shape[-1]

    def target(self, given: Value | None = None) -> QuantizedTarget:
        """Where it is quantized to, by the scale `given` if there is one."""
        assert self.scale is not None
        return QuantizedTarget(self.data, self.scale, self.shaped, given)


@dataclass(frozen=True)
class Signature:
    """A kernel function: one qfuse operation on its arguments, and their place in the ABI."""

    op: ir.Operation
    operands: list[Tensor]
    results: list[Tensor]
    parameters: tuple[Parameter, ...]
    data: list[Value]
    """The data pointers, one for each of `parameters`."""


@dataclass(frozen=True)
class Built:
    """What a family of kernels makes of a signature."""

    functions: list[Function]
    """Callees before their callers."""
    entries: list[Entry]
    product: str = ""
    """What tables of measurements find it by."""


def weight_layout(w: Shaped, parts: tuple[int, ...]) -> WeightLayout:
    """How a weight, [N, K] or of experts [E, N, K], of such parts is packed."""
    scheme, experts = w.scheme, len(w.shape) == 3
    if scheme is None:
        return plain_layout(parts, w.shape[-1], w.dtype)
    zeros = scheme.zero_point != "none"
    scale = "bytes" if scheme.scale == "i8" else scheme.scale
    joined = experts and scheme.block[0] > 1
    return WeightLayout(parts, w.shape[-1], *scheme.block, scheme.packing, scale, zeros, joined)


def read_signature(kernel: func.FuncOp) -> Signature:
    """Raises QfuseError if the function is not one qfuse operation and a return."""
    name = kernel.name.value
    block = kernel.entry_block
    ops = [op.operation for op in block.operations]
    if len(ops) != 2 or not ops[0].name.startswith("qfuse."):
        raise QfuseError(
            f"kernel {name} at {kernel.location}: holds {[op.name for op in ops]}; a CPU kernel is "
            "one qfuse operation and a return, as qfuse-convert-to-cpu outlines it"
        )
    op, terminator = ops
    weights = [op.operands[1]] if op.name in INPUTS else []
    packed = {ir.BlockArgument(w).arg_number for w in weights}
    parameters: list[Parameter] = []
    data: list[Value] = []

    def pointers(source: Source, index: int, type_: ir.Type) -> Tensor:
        value = shaped(type_)
        is_packed = source == "operand" and index in packed
        types: dict[Component, str] = {"data": "i8" if is_packed else value.data_dtype}
        if value.scheme is not None:
            by_row = is_packed and not weight_layout(value, (value.shape[-2],)).by_block
            scale = "f32" if is_packed else value.scheme.scale
            types["scale"] = "i8" if by_row else scale
            if value.scheme.zero_point != "none" and not is_packed:
                types["zero"] = "i8"
        components = []
        for part, dtype in types.items():
            suffix = "" if part == "data" else f"_{part}"
            components.append(Value(f"%{source}{index}{suffix}", buffer(dtype)))
            parameters.append(Parameter(source, index, part, is_packed))
        data.extend(components)
        return Tensor(value, *components)

    arguments = [pointers("operand", i, a.type) for i, a in enumerate(block.arguments)]
    returned = [pointers("result", i, v.type) for i, v in enumerate(terminator.operands)]
    place = {v: i for i, v in enumerate(terminator.operands)}
    if len(place) != len(op.results) or any(r not in place for r in op.results):
        raise QfuseError(
            f"kernel {name} at {kernel.location}: must return each result of {op.name} once"
        )
    return Signature(
        op,
        [arguments[ir.BlockArgument(o).arg_number] for o in op.operands],
        [returned[place[r]] for r in op.results],
        tuple(parameters),
        data,
    )
