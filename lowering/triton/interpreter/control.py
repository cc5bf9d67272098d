"""Structured control flow: programs that go the same way go together, others by groups."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qfuse.lowering.triton.interpreter.program import Instruction
from qfuse.lowering.triton.interpreter.values import Held, Value, scatter

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine

WHILE_LIMIT = 100_000
"""Iterations after which a scf.while counts as endless."""


def _defined(machine: "Machine", value: Value, what: str) -> np.ndarray:
    if value.undefined is not None:
        machine.trap_first(value.undefined, f"{what} is an undefined lane")
    return value.data


def _some(values: Sequence[Held], rows: np.ndarray) -> list[Held]:
    return [value.take(rows) for value in values]


def _replace(old: Sequence[Held], rows: np.ndarray, new: Sequence[Held], count: int) -> list[Held]:
    """Values of all programs, after those in `rows` got new ones."""
    everyone = np.arange(count)
    return [scatter([(everyone, a), (rows, b)], count) for a, b in zip(old, new, strict=True)]


def _for(
    machine: "Machine",
    instruction: Instruction,
    lower: Value,
    upper: Value,
    step: Value,
    *carried: Held,
) -> Sequence[Held]:
    if instruction.attribute("unsignedCmp", False):
        raise instruction.refuse("loops with unsigned bounds are not interpreted")
    dtype = lower.data.dtype
    start, stop, by = (
        _defined(machine, bound, "a loop bound").astype(np.int64) for bound in (lower, upper, step)
    )
    if (by <= 0).any():
        machine.trap_first(by <= 0, "the loop's step is not positive")
    trips = np.maximum(0, -((start - stop) // by))
    body = instruction.blocks[0]
    assert body is not None

    def iterate(first: int, last: int, values: Sequence[Held], rows: Any) -> Sequence[Held]:
        for trip in range(first, last):
            index = start + trip * by
            index = index if len(index) == 1 else index[rows]
            values = machine.block(body, (Value(index.astype(dtype)), *values))
        return values

    done = 0
    count = len(machine.scope)
    values: Sequence[Held] = carried
    for trip in np.unique(trips):
        rows = np.flatnonzero(trips > done)
        if len(rows) == len(trips):  # none has left the loop yet
            values = iterate(done, int(trip), values, slice(None))
        elif len(rows):
            with machine.only(rows):
                new = iterate(done, int(trip), _some(values, rows), rows)
            values = _replace(values, rows, new, count)
        done = int(trip)
    return values


def _if(machine: "Machine", instruction: Instruction, condition: Value) -> Sequence[Held]:
    chosen = _defined(machine, condition, "the condition")
    yes, no = (*instruction.blocks, None)[:2]
    if chosen.all() or not chosen.any():
        block = yes if chosen.all() else no
        return machine.block(block, ()) if block else ()
    parts = []
    for block, rows in ((yes, np.flatnonzero(chosen)), (no, np.flatnonzero(~chosen))):
        if block is not None:
            with machine.only(rows):
                parts.append((rows, machine.block(block, ())))
    if not instruction.results:
        return ()
    columns = zip(*(values for _, values in parts), strict=True)
    groups = [rows for rows, _ in parts]
    return [
        scatter(list(zip(groups, values, strict=True)), len(machine.scope)) for values in columns
    ]


def _while(machine: "Machine", instruction: Instruction, *carried: Held) -> Sequence[Held]:
    before, after = instruction.blocks
    assert before is not None and after is not None
    count = len(machine.scope)
    running = np.arange(count)
    values: list[Held] = list(carried)
    results: list[Held] | None = None
    for _ in range(WHILE_LIMIT):
        with machine.only(running):
            condition, *forwarded = machine.block(before, values)
            machine.instruction = instruction
            assert isinstance(condition, Value)
            data = _defined(machine, condition, "the condition")
            goes_on = np.broadcast_to(data, (len(running),))
        if results is None:
            results = list(forwarded)
        else:
            results = _replace(results, running, forwarded, count)
        stays = np.flatnonzero(goes_on)
        if not len(stays):
            return results
        if len(stays) < len(running):
            forwarded = _some(forwarded, stays)
            running = running[stays]
        with machine.only(running):
            values = list(machine.block(after, forwarded))
    machine.instruction = instruction
    machine.trap_row(int(running[0]), f"still loops after {WHILE_LIMIT} iterations")


HANDLERS: dict[str, Callable[..., Any]] = {"scf.for": _for, "scf.if": _if, "scf.while": _while}
