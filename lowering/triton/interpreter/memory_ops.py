"""Loads, stores and atomics through pointers."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from qfuse.lowering.triton.interpreter.access import Access
from qfuse.lowering.triton.interpreter.conversions import unsigned
from qfuse.lowering.triton.interpreter.program import Instruction
from qfuse.lowering.triton.interpreter.types import DTYPES, poison
from qfuse.lowering.triton.interpreter.values import Value, lift, mark

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine

_ACQUIRE, _RELEASE, _ACQUIRE_RELEASE = 2, 3, 4
_THIS_BLOCK_ONLY = 2


def pointee(instruction: Instruction) -> np.dtype:
    """The dtype of the memory that the first operand points to."""
    of = instruction.operand_types[0]
    if of.kind != "pointer" or of.element == "i1":
        raise instruction.refuse(f"memory is accessed by pointers to whole bytes, not by {of}")
    return DTYPES[of.element]


def access_of(
    machine: "Machine", pointer: Value, mask: Value | None, each_program: bool
) -> tuple[Access, np.ndarray | None]:
    """The active lanes of an access, and the mask [rows, *tile] where there is one.

    `each_program` gives every program a row of its own even where all of them do the same.
    """
    rows = len(pointer.data) if mask is None else max(len(pointer.data), len(mask.data))
    if each_program:
        rows = len(machine.scope)
    shape = (rows, *pointer.data.shape[1:])
    active = None
    if mask is not None:
        if mask.undefined is not None:
            machine.trap_first(mask.undefined, "is masked by an undefined lane")
        active = np.broadcast_to(lift(mask.data, len(shape) - 1), shape)
        if active.all():
            active = None
    if pointer.undefined is not None:
        bad = np.broadcast_to(pointer.undefined, shape)
        if active is not None:
            bad = bad & active
        if bad.any():
            machine.trap_first(bad, "uses an address computed from an undefined lane")
    addresses = np.broadcast_to(pointer.data, shape).reshape(-1)
    lanes = None
    if active is not None:
        lanes = np.flatnonzero(active)
        addresses = addresses[lanes]
    return Access(machine, addresses, lanes, shape, machine.scope.programs), active


def active_values(
    machine: "Machine", access: Access, active: np.ndarray | None, value: Value, use: str
) -> np.ndarray:
    """A value's lanes at the addresses of an access; traps undefined ones."""
    if value.undefined is not None:
        bad = np.broadcast_to(value.undefined, access.shape)
        bad = bad if active is None else bad & active
        if bad.any():
            machine.trap_first(bad, f"{use} an undefined lane (masked off in a load, or no result)")
    flat = np.broadcast_to(value.data, access.shape).reshape(-1)
    return flat if access.lanes is None else flat[access.lanes]


def load_tile(
    machine: "Machine", access: Access, active: np.ndarray | None, dtype: np.dtype, other: Any
) -> np.ndarray:
    """What a load gives [rows, *tile]: memory where active, `other` elsewhere."""
    loaded = machine.memory.load(access, dtype)
    if active is None:
        return loaded.reshape(access.shape)
    tile = np.empty(access.shape, dtype)
    tile[...] = other
    tile.reshape(-1)[access.lanes] = loaded
    return tile


def _optional(instruction: Instruction, operands: tuple[Value, ...]) -> list[Value | None]:
    """Operands by segment: pointer, mask, other."""
    sizes = instruction.attribute("operandSegmentSizes", (1,) * len(operands))
    rest = iter(operands)
    return [next(rest) if size else None for size in (*sizes, 0, 0)[:3]]


def _load(machine: "Machine", instruction: Instruction, *operands: Value) -> Value:
    if instruction.attribute("boundaryCheck", ()):
        raise instruction.refuse("block pointers are not interpreted; use masks or descriptors")
    pointer, mask, other = _optional(instruction, operands)
    assert pointer is not None
    dtype = pointee(instruction)
    access, active = access_of(machine, pointer, mask, each_program=False)
    if other is None:
        tile = load_tile(machine, access, active, dtype, poison(dtype))
        return Value(tile) if active is None else mark(tile, ~active)
    if active is None:
        return Value(load_tile(machine, access, None, dtype, None))
    if len(other.data) > access.shape[0]:
        access, active = access_of(machine, pointer, mask, each_program=True)
        if active is None:
            return Value(load_tile(machine, access, None, dtype, None))
    tile = load_tile(machine, access, active, dtype, other.data)
    return mark(tile, None if other.undefined is None else other.undefined & ~active)


def _store(
    machine: "Machine",
    instruction: Instruction,
    pointer: Value,
    value: Value,
    mask: Value | None = None,
) -> None:
    if instruction.attribute("boundaryCheck", ()):
        raise instruction.refuse("block pointers are not interpreted; use masks or descriptors")
    dtype = pointee(instruction)
    if value.data.dtype != dtype:
        raise instruction.refuse(f"stores {value.data.dtype} through a pointer to {dtype}")
    access, active = access_of(machine, pointer, mask, each_program=True)
    machine.memory.store(access, active_values(machine, access, active, value, "stores"))


def _by_unsigned(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda a, b: function(unsigned(a), unsigned(b)).view(a.dtype)


COMBINE: dict[int, Callable[..., Any]] = {
    1: np.bitwise_and,
    2: np.bitwise_or,
    3: np.bitwise_xor,
    4: np.add,
    5: np.add,
    6: np.maximum,
    7: np.minimum,
    8: _by_unsigned(np.maximum),
    9: _by_unsigned(np.minimum),
    10: lambda old, new: new,
}
"""Triton's numbers of read-modify-write operations: and or xor add fadd max min umax umin xchg."""
_FADD = 5


def _atomic(
    machine: "Machine",
    instruction: Instruction,
    pointer: Value,
    mask: Value | None,
    operands: tuple[Value, ...],
    update: Callable[..., Any],
) -> Value:
    """Update memory lane by lane, in the order of the programs; gives what was there before."""
    dtype = pointee(instruction)
    semantics = instruction.attribute("sem", _ACQUIRE_RELEASE)
    visible = instruction.attribute("scope", 1) != _THIS_BLOCK_ONLY
    acquire = visible and semantics in (_ACQUIRE, _ACQUIRE_RELEASE)
    release = visible and semantics in (_RELEASE, _ACQUIRE_RELEASE)
    access, active = access_of(machine, pointer, mask, each_program=True)
    flat = [active_values(machine, access, active, v, "updates by") for v in operands]
    owners = access.owners()
    before = np.empty(len(access.addresses), dtype)
    for position, address in enumerate(access.addresses):
        # Learn from the releases first: the update may depend on them.
        machine.memory.ordering.atomic(int(owners[position]), int(address), acquire, release)
        cell, index = machine.memory.cell(access, dtype, position)
        old = cell[index : index + 1].copy()
        before[position] = old[0]
        cell[index : index + 1] = update(old, *(v[position : position + 1] for v in flat))
    machine.atomics += len(before)
    tile = np.empty(access.shape, dtype)
    tile[...] = poison(dtype)
    if access.lanes is None:
        return Value(before.reshape(access.shape))
    tile.reshape(-1)[access.lanes] = before
    assert active is not None
    return mark(tile, ~active)


def _read_modify_write(
    machine: "Machine",
    instruction: Instruction,
    pointer: Value,
    value: Value,
    mask: Value | None = None,
) -> Value:
    kind = instruction.attribute("atomic_rmw_op")
    if kind not in COMBINE:
        raise instruction.refuse(f"atomic_rmw_op = {kind} is not one of {sorted(COMBINE)}")
    if kind == _FADD:
        machine.warn("a floating-point sum by atomics depends on the order of the programs")
    return _atomic(machine, instruction, pointer, mask, (value,), COMBINE[kind])


def _compare_and_swap(
    machine: "Machine", instruction: Instruction, pointer: Value, expected: Value, value: Value
) -> Value:
    def update(old: np.ndarray, wanted: np.ndarray, new: np.ndarray) -> np.ndarray:
        return new if unsigned(old) == unsigned(wanted) else old

    return _atomic(machine, instruction, pointer, None, (expected, value), update)


def _barrier(machine: "Machine", instruction: Instruction) -> None:
    machine.memory.ordering.barrier(machine.scope.programs)


HANDLERS: dict[str, Callable[..., Any]] = {
    "tt.load": _load,
    "tt.store": _store,
    "tt.atomic_rmw": _read_modify_write,
    "tt.atomic_cas": _compare_and_swap,
    "gpu.barrier": _barrier,  # how tl.debug_barrier is spelt up to Triton 3.6
    "ttg.barrier": _barrier,  # and in 3.9
}
