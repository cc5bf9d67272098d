"""Puts what the caller passes into the memory of a launch, checked against the kernel's types."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.interpreter.descriptors import (
    MAP_BYTES,
    MapEntry,
    TensorMap,
    check_map,
)
from qfuse.lowering.triton.interpreter.memory import Buffer
from qfuse.lowering.triton.interpreter.program import Kernel
from qfuse.lowering.triton.interpreter.types import DTYPES, Type
from qfuse.lowering.triton.interpreter.values import Held, Value

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine

Argument = np.ndarray | Buffer | TensorMap | Sequence[TensorMap] | int | float | None
"""Memory for a pointer (None is null), a tensor map or table of them, or a scalar."""


def bind(machine: "Machine", kernel: Kernel, arguments: Sequence[Argument]) -> list[Held]:
    """The values of the kernel's parameters; QfuseError names the argument that does not fit."""
    if len(arguments) != len(kernel.argument_types):
        raise QfuseError(
            f"kernel '{kernel.name}' takes {len(kernel.argument_types)} arguments,"
            f" {len(arguments)} were passed"
        )
    bound = []
    for number, (argument, of) in enumerate(zip(arguments, kernel.argument_types, strict=True)):
        name = f"argument {number}"
        held = _bind(machine, name, argument, of)
        promise = kernel.divisibility[number]
        if isinstance(held, Value) and promise > 1 and int(held.data[0]) % promise:
            what = "its address" if of.kind == "pointer" else str(held.data[0])
            raise QfuseError(
                f"{name} of '{kernel.name}': {what} is not a multiple of tt.divisibility ="
                f" {promise}, on which the compiled kernel relies"
            )
        bound.append(held)
    return bound


def _bind(machine: "Machine", name: str, argument: Argument, of: Type) -> Held:
    if of.kind == "descriptor":
        if not isinstance(argument, TensorMap):
            raise QfuseError(f"{name}: a !tt.tensordesc parameter takes a TensorMap")
        entry = _entry(machine, name, argument)
        check_map(None, entry, of, machine)
        return entry.descriptor()
    if of.kind == "value":
        return _scalar(name, argument, of)
    if argument is None:
        return _pointer(0)
    if isinstance(argument, TensorMap):
        argument = [argument]
    if isinstance(argument, Buffer | np.ndarray):
        return _pointer(machine.memory.add(_memory(name, argument, of), name))
    if isinstance(argument, Sequence) and all(isinstance(m, TensorMap) for m in argument):
        address = machine.memory.add(MAP_BYTES * len(argument), f"the tensor maps of {name}")
        machine.maps[address] = [
            _entry(machine, f"tensor map {i} of {name}", m) for i, m in enumerate(argument)
        ]
        return _pointer(address)
    raise QfuseError(f"{name}: a pointer takes an array, Buffer, TensorMap(s) or None")


def _pointer(address: int) -> Value:
    return Value(np.array([address], np.int64))


def _entry(machine: "Machine", name: str, map_: TensorMap) -> MapEntry:
    return MapEntry(map_, machine.memory.add(map_.array, f"the tensor of {name}"))


def _memory(name: str, memory: np.ndarray | Buffer, of: Type) -> np.ndarray | Buffer:
    array = memory.array if isinstance(memory, Buffer) else memory
    wanted = DTYPES[of.element]
    raw = array.dtype.kind == "u" and array.dtype.itemsize == wanted.itemsize
    if array.dtype != wanted and not raw:
        raise QfuseError(f"{name} is an array of {array.dtype}; the kernel wants {of.element}")
    return memory


def _scalar(name: str, argument: Any, of: Type) -> Value:
    if of.shape:
        raise QfuseError(f"{name}: a kernel's parameters are pointers and scalars, not tensors")
    numbers = (int, float, np.number) if of.is_float else (int, np.integer)
    if not isinstance(argument, numbers):
        raise QfuseError(f"{name}: the kernel wants a number of type {of.element}")
    if not of.is_float and of.dtype != bool:
        limits = np.iinfo(of.dtype)
        if not limits.min <= int(argument) <= limits.max:
            raise QfuseError(f"{name}: {argument} does not fit into {of.element}")
    return Value(np.array([argument]).astype(of.dtype))
