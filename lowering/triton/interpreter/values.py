"""What an SSA value is at run time: one array for all programs that run together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qfuse.dialects.errors import QfuseError


@dataclass(slots=True)
class Value:
    """A scalar, tensor or pointer tensor in every program.

    The first axis of `data` counts the programs, or has length 1 where all of them agree.
    `undefined` marks lanes that hold no meaningful value: masked off in a load without `other`,
    a division by zero, and all that was computed from such.  It has the shape of `data`.
    """

    data: np.ndarray
    undefined: np.ndarray | None = None

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "Value":
        """Apply a change of shape to the data and to the undefined lanes."""
        marks = None if self.undefined is None else change(self.undefined)
        return Value(change(self.data), marks)

    def take(self, rows: np.ndarray) -> "Value":
        """The value in some of the programs."""
        return self if len(self.data) == 1 else self.map(lambda array: array[rows])


@dataclass(slots=True)
class Descriptor:
    """A TMA tensor descriptor: address, extents and strides (elements), one per program or one."""

    base: np.ndarray
    shape: list[np.ndarray]
    strides: list[np.ndarray]
    pad_nan: bool = False

    def take(self, rows: np.ndarray) -> "Descriptor":
        """The descriptor in some of the programs."""

        def some(array: np.ndarray) -> np.ndarray:
            return array if len(array) == 1 else array[rows]

        return Descriptor(
            some(self.base),
            [some(x) for x in self.shape],
            [some(x) for x in self.strides],
            self.pad_nan,
        )


Held = Value | Descriptor


def lift(array: np.ndarray, rank: int) -> np.ndarray:
    """Append axes of length 1, so that one scalar per program meets tensors of `rank` axes."""
    return array.reshape(array.shape + (1,) * (rank + 1 - array.ndim))


def undefined_lanes(values: Iterable[Value], shape: tuple[int, ...]) -> np.ndarray | None:
    """Lanes of an element-wise result for which some operand is undefined."""
    marks: np.ndarray | None = None
    for value in values:
        if value.undefined is not None:
            mark = lift(value.undefined, len(shape) - 1)
            marks = mark if marks is None else marks | mark
    return None if marks is None else np.broadcast_to(marks, shape)


def mark(data: np.ndarray, *marks: np.ndarray | None) -> Value:
    """A value with some lanes undefined; no lane at all costs nothing later."""
    found = [m for m in marks if m is not None and m.any()]
    if not found:
        return Value(data)
    union = found[0]
    for more in found[1:]:
        union = union | more
    return Value(data, np.broadcast_to(union, data.shape))


def scatter(parts: Sequence[tuple[np.ndarray, Held]], count: int) -> Held:
    """One value of `count` programs from values of groups of them, as (row numbers, value).

    Later groups replace what earlier ones said of a row.
    """
    if len(parts) == 1 and isinstance(parts[0][1], Descriptor):
        return parts[0][1]
    values = [value for _, value in parts if isinstance(value, Value)]
    if len(values) != len(parts):
        raise QfuseError("programs that take different ways cannot merge tensor descriptors")
    data = np.empty((count, *values[0].data.shape[1:]), values[0].data.dtype)
    marks = None
    if any(value.undefined is not None for value in values):
        marks = np.zeros(data.shape, bool)
    for (rows, _), value in zip(parts, values, strict=True):
        data[rows] = value.data
        if marks is not None:
            marks[rows] = False if value.undefined is None else value.undefined
    return Value(data, marks)


class Scope:
    """The values of the programs that run now; a scope of some of them sees the others' sliced."""

    def __init__(
        self,
        programs: np.ndarray,
        outer: "Scope | None" = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self.programs = programs
        self._outer = outer
        self._rows = rows
        self._values: dict[int, Held] = {}

    def __len__(self) -> int:
        return len(self.programs)

    def __getitem__(self, slot: int) -> Held:
        held = self._values.get(slot)
        if held is None:
            assert self._outer is not None and self._rows is not None
            held = self._outer[slot].take(self._rows)
            self._values[slot] = held
        return held

    def __setitem__(self, slot: int, held: Held) -> None:
        self._values[slot] = held

    def drop(self, slots: Iterable[int]) -> None:
        """Forget values that nothing will read."""
        for slot in slots:
            self._values.pop(slot, None)

    def only(self, rows: np.ndarray) -> "Scope":
        """The scope of some of these programs."""
        return Scope(self.programs[rows], self, rows)
