"""Reading an outlined kernel: its one operation, and the pointers that serve it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qfuse.dialects.bindings import func, ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton.builder import Builder
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Grid, Launch, Parameter, Source
from qfuse.lowering.triton.module import kernel, module_text


@dataclass(frozen=True)
class Tensor:
    """An operand or result of the qfuse operation; `index` is its place in the outlined kernel."""

    shaped: Shaped
    source: Source
    index: int

    @property
    def dtype(self) -> str:
        return self.shaped.dtype

    @property
    def width(self) -> int:
        """Extent of the last dimension, 1 for a scalar."""
        return self.shaped.shape[-1] if self.shaped.shape else 1

    @property
    def group(self) -> int:
        """Elements of a row that share a scale."""
        assert self.shaped.scheme is not None
        return min(self.shaped.scheme.block[1], self.width)

    @property
    def stored_width(self) -> int:
        """Stored elements of a row: bytes where several codes share one."""
        return self.shaped.data_shape[-1]

    def parameters(self) -> list[tuple[Parameter, str]]:
        """The pointers that carry it, with their element types."""
        found = [(Parameter(self.source, self.index), self.shaped.data_dtype)]
        scheme = self.shaped.scheme
        if scheme is not None:
            scale = _POINTEES.get(scheme.scale, scheme.scale)
            found.append((Parameter(self.source, self.index, "scale"), scale))
            if scheme.zero_point != "none":
                found.append((Parameter(self.source, self.index, "zero"), "i8"))
        return found

    def scale_strides(self, rows: ir.Value | None = None) -> tuple[int | ir.Value, int | ir.Value]:
        """Distance of scales from one row to the next, and from one group to the next.

        `rows` is how many rows of scales there are, where the layout needs to know.
        """
        scheme = self.shaped.scheme
        assert scheme is not None
        groups = ceil_div(self.width, scheme.block[1])
        if scheme.scale_layout == "row_major":
            return groups * scheme.numbers, scheme.numbers
        if rows is None:
            return 1, ceil_div(self.shaped.shape[0], scheme.block[0])
        return 1, rows


_POINTEES = {"f8E8M0FNU": "i8"}
"""What stands for element types that Triton has no pointers to."""

SCRATCH = Parameter("scratch")
COUNTERS = Parameter("counter")


@dataclass(frozen=True)
class Signature:
    """A kernel function: one qfuse operation on its arguments."""

    name: str
    op: ir.Operation
    operands: list[Tensor]
    results: list[Tensor]


@dataclass(frozen=True)
class Pointers:
    """The arguments of a launch while its body is emitted."""

    values: dict[Parameter, ir.Value]
    m: ir.Value
    """How many rows there are, i32."""

    def data(self, tensor: Tensor) -> ir.Value:
        return self.values[Parameter(tensor.source, tensor.index)]

    def scale(self, tensor: Tensor) -> ir.Value:
        return self.values[Parameter(tensor.source, tensor.index, "scale")]

    def zero(self, tensor: Tensor) -> ir.Value:
        return self.values[Parameter(tensor.source, tensor.index, "zero")]

    @property
    def scratch(self) -> ir.Value:
        return self.values[SCRATCH]

    @property
    def counters(self) -> ir.Value:
        return self.values[COUNTERS]


class LaunchBuilder:
    """A launch being emitted; `launch` is there when the context ends."""

    def __init__(self, builder: Builder, pointers: Pointers) -> None:
        self.b = builder
        self.pointers = pointers
        self.launch: Launch | None = None

    @property
    def made(self) -> Launch:
        assert self.launch is not None, "the launch is still being emitted"
        return self.launch


@contextmanager
def open_launch(
    gpu: Gpu,
    name: str,
    tensors: Sequence[Tensor],
    grid: Grid,
    *,
    scratch: str | None = None,
    counters: bool = False,
    num_warps: int = 4,
    num_stages: int = 3,
) -> Iterator[LaunchBuilder]:
    """Emit a kernel that takes `tensors` and M.

    Between them, where the programs have work to share: scratch of that type, and counters of i32.
    """
    found = [p for t in tensors for p in t.parameters()]
    if scratch is not None:
        found.append((SCRATCH, scratch))
    if counters:
        found.append((COUNTERS, "i32"))
    parameters = tuple(p for p, _ in found)
    with kernel(gpu, name, [dtype for _, dtype in found]) as opened:
        *pointers, m = opened.arguments
        values = Pointers(dict(zip(parameters, pointers, strict=True)), m)
        launch = LaunchBuilder(opened.builder, values)
        yield launch
    launch.launch = Launch(
        name, module_text(opened.module), parameters, grid, num_warps, num_stages
    )


def read_signature(function: func.FuncOp) -> Signature:
    """Raises QfuseError if the function is not one qfuse operation and a return."""
    name = function.name.value
    block = function.entry_block
    ops = [op.operation for op in block.operations]
    if len(ops) != 2 or not ops[0].name.startswith("qfuse."):
        raise QfuseError(
            f"kernel {name} at {function.location}: holds {[op.name for op in ops]}; a GPU kernel "
            "is one qfuse operation and a return, as qfuse-convert-to-cpu outlines it"
        )
    op, terminator = ops
    place = {v: i for i, v in enumerate(terminator.operands)}
    if len(place) != len(op.results) or any(r not in place for r in op.results):
        raise QfuseError(
            f"kernel {name} at {function.location}: must return each result of {op.name} once"
        )
    operands = [
        Tensor(shaped(o.type), "operand", ir.BlockArgument(o).arg_number) for o in op.operands
    ]
    results = [Tensor(shaped(r.type), "result", place[r]) for r in op.results]
    return Signature(name, op, operands, results)
