"""Runs a kernel: all programs of a grid, many at once along the first axis of every array."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.interpreter import (
    control,
    descriptors,
    elementwise,
    memory_ops,
    tensors,
)
from qfuse.lowering.triton.interpreter.access import Trap
from qfuse.lowering.triton.interpreter.arguments import Argument, bind
from qfuse.lowering.triton.interpreter.descriptors import TensorMap
from qfuse.lowering.triton.interpreter.hints import check_hints
from qfuse.lowering.triton.interpreter.memory import Buffer, Memory
from qfuse.lowering.triton.interpreter.ordering import Ordering
from qfuse.lowering.triton.interpreter.program import (
    TERMINATORS,
    Block,
    Instruction,
    Kernel,
    read_kernel,
)
from qfuse.lowering.triton.interpreter.values import Held, Scope, Value

_TOGETHER = 1 << 19
"""Elements of the largest tensor, times programs that run together: bounds memory, fits caches."""


@dataclass(frozen=True)
class Report:
    """What a launch did.

    `unwritten`: for each argument that is a Buffer (or a tensor map of one), how many of its
    elements still hold no value.
    Bytes count what is transferred by lanes that are active, per program.
    """

    programs: int
    load_bytes: int
    store_bytes: int
    atomics: int
    flops: int
    unwritten: Mapping[int, int]
    warnings: tuple[str, ...]


def run(
    module: ir.Module | str,
    kernel: str,
    args: Sequence[Argument],
    grid: int | Sequence[int] = 1,
    *,
    target: str = "cuda:sm_90",
    parallel: int | None = None,
    order: Sequence[int] | None = None,
    same_value: bool = False,
) -> Report:
    """Launch a `tt.func` of a module (or of its generic-form text) on numpy arrays, in place.

    Pointers take arrays of the pointee's dtype (ml_dtypes for FP8 and bf16, or the raw unsigned
    integers), `Buffer`s for memory that is not initialised, `TensorMap`s, or None.  `grid` has up
    to three sizes.  `parallel` programs run together (1: one after another), in the order of
    `order`, a permutation of their numbers.  `same_value` lets programs write one address when
    they write the same bits.  Raises Trap for what a kernel must not do and QfuseError for what
    cannot be interpreted or passed.
    """
    read = read_kernel(module, kernel)
    sizes = (grid,) if isinstance(grid, int) else tuple(grid)
    if not 1 <= len(sizes) <= 3 or any(size < 0 for size in sizes):
        raise QfuseError(f"a grid has one to three sizes of 0 or more, not {sizes}")
    x, y, z = (*sizes, 1, 1)[:3]
    machine = Machine((x, y, z), target, same_value)
    _refuse_unknown(read.body)
    with np.errstate(all="ignore"):
        bound = bind(machine, read, args)
        _launch(machine, read, bound, parallel, order)
    return Report(
        programs=x * y * z,
        load_bytes=machine.memory.loaded,
        store_bytes=machine.memory.stored,
        atomics=machine.atomics,
        flops=machine.flops,
        unwritten=_unwritten(args),
        warnings=tuple(machine.warnings),
    )


def _unwritten(args: Sequence[Argument]) -> dict[int, int]:
    memory = {i: a.array if isinstance(a, TensorMap) else a for i, a in enumerate(args)}
    return {i: a.missing for i, a in memory.items() if isinstance(a, Buffer)}


def _launch(
    machine: "Machine",
    kernel: Kernel,
    arguments: Sequence[Held],
    parallel: int | None,
    order: Sequence[int] | None,
) -> None:
    count = int(np.prod(machine.grid))
    programs = np.arange(count) if order is None else np.asarray(order, np.int64)
    if not np.array_equal(np.sort(programs), np.arange(count)):
        raise QfuseError(f"order must name each of the {count} programs once")
    together = parallel or max(1, _TOGETHER // kernel.largest)
    for first in range(0, count, together):
        machine.scope = Scope(programs[first : first + together])
        machine.block(kernel.body, arguments)


class Machine:
    """The state of a launch that the handlers of operations work on."""

    def __init__(self, grid: tuple[int, int, int], target: str, same_value: bool) -> None:
        self.grid = grid
        self.target = target
        self.memory = Memory(Ordering(int(np.prod(grid))), same_value)
        self.maps: dict[int, list[descriptors.MapEntry]] = {}  # by address of the table
        self.scope = Scope(np.arange(0))
        self.instruction: Instruction | None = None
        self.warnings: dict[str, None] = {}
        self.atomics = 0
        self.flops = 0
        self._lane_by_lane = False

    def block(self, block: Block, arguments: Sequence[Held]) -> list[Any]:
        """Run a block in the current programs; gives the operands of its terminator."""
        scope = self.scope
        for slot, value in zip(block.arguments, arguments, strict=True):
            scope[slot] = value
        for instruction in block.instructions:
            operands = [scope[slot] for slot in instruction.operands]
            if instruction.name in TERMINATORS:
                return operands
            for slot, held in zip(
                instruction.results, self._execute(instruction, operands), strict=True
            ):
                scope[slot] = held
            scope.drop(instruction.dead)
        raise QfuseError("a block of the kernel has no terminator")

    def _execute(self, instruction: Instruction, operands: Sequence[Held]) -> Sequence[Held]:
        self.instruction = instruction
        try:
            results = HANDLERS[instruction.name](self, instruction, *operands)
            if results is None:
                results = ()
            elif not isinstance(results, tuple | list):
                results = (results,)
        except (ValueError, TypeError, IndexError, AssertionError) as error:
            raise instruction.refuse(f"malformed: {' '.join(str(error).split())}") from error
        for held, of in zip(results, instruction.result_types, strict=True):
            if not isinstance(held, Value):
                continue
            shape = held.data.shape[1:]
            if held.data.dtype != of.dtype or (shape != of.shape and not self._lane_by_lane):
                raise instruction.refuse(
                    f"gives {held.data.dtype}{list(shape)}, its type says {of.dtype}"
                    f"{list(of.shape)}"
                )
        if instruction.hints and isinstance(results[0], Value):
            check_hints(self, instruction, results[0])
        return results

    @contextmanager
    def only(self, rows: np.ndarray) -> Iterator[None]:
        """Run what follows in some of the current programs."""
        outer = self.scope
        self.scope = outer.only(rows)
        try:
            yield
        finally:
            self.scope = outer

    @contextmanager
    def lane_by_lane(self) -> Iterator[None]:
        """Run operations on scalars for all lanes of a tensor at once."""
        outer, self._lane_by_lane = self._lane_by_lane, True
        try:
            yield
        finally:
            self._lane_by_lane = outer

    def coordinates(self, program: int) -> tuple[int, ...]:
        """The place of a program in the grid; axes of size 1 at the end are left out."""
        x, y, _ = self.grid
        place = (program % x, program // x % y, program // (x * y))
        return place[: max(i + 1 for i, size in enumerate((2, *self.grid[1:])) if size > 1)]

    def trap(self, message: str, program: int | None = None, index: tuple = ()) -> NoReturn:
        """Stop at the operation that runs now."""
        if self.instruction is None:
            raise QfuseError(message)
        place = None if program is None else self.coordinates(program)
        raise Trap(self.instruction, place, index, message)

    def trap_row(self, row: int, message: str) -> NoReturn:
        """Stop because of one of the programs that run now."""
        programs = self.scope.programs
        self.trap(message, int(programs[row]) if len(programs) else None)

    def trap_first(self, bad: np.ndarray, message: str) -> NoReturn:
        """Stop because of the first lane marked in [rows, *tile]."""
        row, *index = (int(i) for i in np.unravel_index(int(np.argmax(bad)), bad.shape))
        self.trap(message, int(self.scope.programs[row]), tuple(index))

    def warn(self, message: str) -> None:
        """Add a warning about the operation that runs now, once."""
        self.warnings.setdefault(f"{self.instruction}: {message}")

    def count_dot(self, depth: int, product: np.ndarray) -> None:
        """Count the arithmetic of a product [rows, .., M, N]."""
        repeats = len(self.scope) if len(product) == 1 else 1
        self.flops += 2 * depth * product.size * repeats


def _program_id(machine: Machine, instruction: Instruction) -> Value:
    axis = instruction.attribute("axis")
    x, y, _ = machine.grid
    if machine.grid[axis] == 1:
        return Value(np.zeros(1, np.int32))
    place = machine.scope.programs // (1, x, x * y)[axis] % machine.grid[axis]
    return Value(place.astype(np.int32))


def _program_count(machine: Machine, instruction: Instruction) -> Value:
    return Value(np.array([machine.grid[instruction.attribute("axis")]], np.int32))


def _assert(machine: Machine, instruction: Instruction, condition: Value) -> None:
    if not condition.data.all():
        machine.trap_first(~condition.data, instruction.attribute("message", "assertion failed"))


HANDLERS: dict[str, Any] = {
    **elementwise.HANDLERS,
    **tensors.HANDLERS,
    **memory_ops.HANDLERS,
    **descriptors.HANDLERS,
    **control.HANDLERS,
    "tt.get_program_id": _program_id,
    "tt.get_num_programs": _program_count,
    "tt.assert": _assert,
}
"""Every operation that can be interpreted, besides the terminators."""

_ADVICE = {
    "arith.negf": "Triton 3.6 cannot convert it; subtract from zero",
    "math.tanh": "Triton cannot convert it; compute it by math.exp",
    "tt.int_to_ptr": "pointers must come from the arguments",
    "tt.ptr_to_int": "pointers must stay pointers",
    "tt.make_tensor_ptr": "block pointers are gone in Triton 3.9; use a tensor descriptor",
    "tt.descriptor_gather": "TMA gathers need sm_100; load through pointers",
    "tt.descriptor_scatter": "TMA scatters need sm_100; store through pointers",
}


def _refuse_unknown(block: Block) -> None:
    for instruction in block.instructions:
        if instruction.name not in HANDLERS and instruction.name not in TERMINATORS:
            advice = _ADVICE.get(instruction.name, "the interpreter does not know this operation")
            raise instruction.refuse(advice)
        for inner in instruction.blocks:
            if inner is not None:
                _refuse_unknown(inner)
