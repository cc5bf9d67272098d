"""Tensor descriptors with the semantics of TMA: loads fill with zeros, stores are clipped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qfuse.lowering.triton.interpreter.access import Access
from qfuse.lowering.triton.interpreter.memory import Buffer
from qfuse.lowering.triton.interpreter.memory_ops import COMBINE, active_values, load_tile
from qfuse.lowering.triton.interpreter.program import Instruction
from qfuse.lowering.triton.interpreter.types import Type
from qfuse.lowering.triton.interpreter.values import Descriptor, Value, lift

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine

MAP_BYTES = 128
"""Size of a CUtensorMap, and the step between entries of a table of them."""
_PAD_NAN = 2
_MAX_RANK = 5


@dataclass(frozen=True)
class TensorMap:
    """A CUtensorMap that the host encoded for `array`: its shape, strides and element type.

    An argument of type `!tt.tensordesc`, or (one, or a list as a table) a `!tt.ptr<i8>` that the
    kernel turns into descriptors.  `box`: what the host encoded as the box, if it is to be checked.
    """

    array: np.ndarray | Buffer
    box: tuple[int, ...] | None = None

    @property
    def memory(self) -> np.ndarray:
        """The array that the map describes."""
        return self.array.array if isinstance(self.array, Buffer) else self.array


@dataclass(slots=True)
class MapEntry:
    """A tensor map whose array has an address."""

    map: TensorMap
    address: int

    def descriptor(self) -> Descriptor:
        """As a value that is the same in all programs."""
        array = self.map.memory
        return Descriptor(
            np.array([self.address], np.int64),
            [np.array([extent], np.int64) for extent in array.shape],
            [np.array([stride // array.itemsize], np.int64) for stride in array.strides],
        )


def check_map(instruction: Instruction | None, entry: MapEntry, of: Type, machine: Any) -> None:
    """Trap a map that does not fit the descriptor type it is used as."""
    array = entry.map.memory
    if array.dtype.itemsize != of.dtype.itemsize or array.ndim != len(of.shape):
        machine.trap(
            f"the tensor map is of {array.dtype}{list(array.shape)}, the descriptor of"
            f" {of.element} and rank {len(of.shape)}"
        )
    box = entry.map.box
    if box is not None and (
        len(box) != len(of.shape) or any(b % x for x, b in zip(box, of.shape, strict=True))
    ):
        machine.trap(f"the encoded box {box} does not divide the descriptor's block {of.shape}")
    check_descriptor(entry.descriptor(), of, machine)


def check_descriptor(descriptor: Descriptor, of: Type, machine: "Machine") -> None:
    """Trap what cuTensorMapEncodeTiled and the TMA unit refuse."""
    size = of.dtype.itemsize
    if not 1 <= len(of.shape) <= _MAX_RANK:
        machine.trap(f"a descriptor of rank {len(of.shape)}; TMA has 1 to {_MAX_RANK}")
    if of.shape[-1] * size < 16:
        machine.trap(f"the block's last dimension has {of.shape[-1] * size} bytes; TMA wants 16")
    for row, base in enumerate(descriptor.base):
        if base % 16:
            allocation, offset = machine.memory.locate(int(base))
            machine.trap_row(
                row, f"the base, byte {offset} of {allocation.name}, is not 16-byte aligned"
            )
    for axis, extent in enumerate(descriptor.shape):
        if (extent <= 0).any():
            row = int(np.argmax(extent <= 0))
            machine.trap_row(row, f"extent {extent[row]} of dimension {axis} is not positive")
    *outer, last = descriptor.strides
    if (last != 1).any():
        machine.trap(f"the last stride is {last[last != 1][0]}; TMA wants 1")
    for axis, stride in enumerate(outer):
        wrong = ((stride * size) % 16 != 0) | (stride <= 0)
        if wrong.any():
            row = int(np.argmax(wrong))
            machine.trap_row(
                row,
                f"stride of dimension {axis} is {stride[row]} elements = {stride[row] * size}"
                " bytes; TMA wants a positive multiple of 16",
            )


def _make(machine: "Machine", instruction: Instruction, *operands: Value) -> Descriptor:
    _, rank, _ = instruction.attribute("operandSegmentSizes")
    for value in operands:
        if value.undefined is not None:
            machine.trap_first(value.undefined, "makes a descriptor of an undefined lane")
    base, *rest = (value.data.astype(np.int64) for value in operands)
    pad_nan = instruction.attribute("padding", 1) == _PAD_NAN
    descriptor = Descriptor(base, rest[:rank], rest[rank:], pad_nan)
    check_descriptor(descriptor, instruction.result_types[0], machine)
    return descriptor


def _reinterpret(machine: "Machine", instruction: Instruction, pointer: Value) -> Descriptor:
    of = instruction.result_types[0]
    found = []
    for row, address in enumerate(pointer.data):
        allocation, offset = machine.memory.locate(int(address))
        maps = machine.maps.get(allocation.start, ())
        number, rest = divmod(offset, MAP_BYTES)
        if rest or not 0 <= number < len(maps):
            machine.trap_row(row, f"no tensor map lies at byte {offset} of {allocation.name}")
        check_map(instruction, maps[number], of, machine)
        found.append(maps[number].descriptor())
    return Descriptor(
        np.concatenate([d.base for d in found]),
        [np.concatenate(x) for x in zip(*(d.shape for d in found), strict=True)],
        [np.concatenate(x) for x in zip(*(d.strides for d in found), strict=True)],
    )


def _window(
    machine: "Machine", of: Type, descriptor: Descriptor, at: Sequence[Value], writes: bool
) -> tuple[Access, np.ndarray | None]:
    """The block at some coordinates: the lanes inside of the tensor are active."""
    rank = len(of.shape)
    address = lift(descriptor.base, rank)
    inside: np.ndarray = np.ones((1,) * (rank + 1), bool)
    for axis, coordinate in enumerate(at):
        if coordinate.undefined is not None:
            machine.trap_first(coordinate.undefined, "has an undefined coordinate")
        steps = np.arange(of.shape[axis]).reshape((-1,) + (1,) * (rank - 1 - axis))
        index = lift(coordinate.data.astype(np.int64), rank) + steps
        inside = inside & (index >= 0) & (index < lift(descriptor.shape[axis], rank))
        address = address + index * lift(descriptor.strides[axis], rank) * of.dtype.itemsize
    rows = len(machine.scope) if writes else max(len(address), len(inside))
    shape = (rows, *of.shape)
    flat = np.broadcast_to(address, shape).reshape(-1)
    if inside.all():
        return Access(machine, flat, None, shape, machine.scope.programs), None
    active = np.broadcast_to(inside, shape)
    lanes = np.flatnonzero(active)
    return Access(machine, flat[lanes], lanes, shape, machine.scope.programs), active


def _load(
    machine: "Machine", instruction: Instruction, descriptor: Descriptor, *at: Value
) -> Value:
    of = instruction.operand_types[0]
    access, active = _window(machine, of, descriptor, at, writes=False)
    fill = np.array(np.nan if descriptor.pad_nan else 0, np.float32).astype(of.dtype)
    tile = load_tile(machine, access, active, of.dtype, fill)
    return Value(tile.reshape(len(tile), *instruction.result_types[0].shape))


def _source(machine: "Machine", instruction: Instruction, of: Type, value: Value) -> Value:
    if value.data.dtype != of.dtype:
        raise instruction.refuse(f"stores {value.data.dtype} to a descriptor of {of.element}")
    return value.map(lambda array: array.reshape(len(array), *of.shape))


def _store(
    machine: "Machine",
    instruction: Instruction,
    descriptor: Descriptor,
    value: Value,
    *at: Value,
) -> None:
    of = instruction.operand_types[0]
    access, active = _window(machine, of, descriptor, at, writes=True)
    source = _source(machine, instruction, of, value)
    machine.memory.store(access, active_values(machine, access, active, source, "stores"))


_KINDS = {1: COMBINE[4], 2: COMBINE[7], 3: COMBINE[6], 6: COMBINE[1], 7: COMBINE[2], 8: COMBINE[3]}
"""Reductions of `tt.descriptor_reduce`: add, min, max, and, or, xor."""


def _reduce(
    machine: "Machine",
    instruction: Instruction,
    descriptor: Descriptor,
    value: Value,
    *at: Value,
) -> None:
    of = instruction.operand_types[0]
    kind = instruction.attribute("kind")
    if kind not in _KINDS:
        raise instruction.refuse(f"kind = {kind} is not one of {sorted(_KINDS)}")
    if of.is_float or of.element.startswith(("f", "bf")):
        machine.warn("a floating-point sum by atomics depends on the order of the programs")
    access, active = _window(machine, of, descriptor, at, writes=True)
    source = _source(machine, instruction, of, value)
    flat = active_values(machine, access, active, source, "updates by")
    for position in range(len(flat)):
        cell, index = machine.memory.cell(access, of.dtype, position)
        one = slice(index, index + 1)
        cell[one] = _KINDS[kind](cell[one], flat[position : position + 1])
    machine.atomics += len(flat)


def _fence(machine: "Machine", instruction: Instruction, pointer: Value) -> None:
    """The tensor maps of a launch were written before it, so the fence has nothing to order."""


HANDLERS: dict[str, Callable[..., Any]] = {
    "tt.make_tensor_descriptor": _make,
    "ttng.reinterpret_tensor_descriptor": _reinterpret,
    "ttng.tensormap_fenceproxy_acquire": _fence,
    "tt.descriptor_load": _load,
    "tt.descriptor_store": _store,
    "tt.descriptor_reduce": _reduce,
}
