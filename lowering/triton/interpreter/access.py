"""Which programs touch which addresses in one operation, and the error that names one of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.interpreter.program import Instruction

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine


class Trap(QfuseError):
    """A kernel did what must not happen: the operation, where, in which program, at which lane."""

    def __init__(
        self,
        instruction: Instruction,
        program: tuple[int, ...] | None,
        index: tuple[int, ...],
        message: str,
    ) -> None:
        where = "" if program is None else f", program {program}"
        lane = f", lane {index}" if index else ""
        super().__init__(f"{instruction}{where}{lane}: {message}")
        self.operation = instruction.name
        self.location = instruction.location
        self.program = program
        self.index = index
        self.message = message


@dataclass(slots=True)
class Access:
    """The active lanes of a load, store or atomic.

    `shape` is [rows, *tile]: one row per program, or a single row that all programs share (loads
    of one address; every program then repeats it).  `addresses` [active lanes]; `lanes` are their
    numbers in `shape`, None for all of them.
    """

    machine: "Machine"
    addresses: np.ndarray
    lanes: np.ndarray | None
    shape: tuple[int, ...]
    programs: np.ndarray

    @property
    def repeats(self) -> int:
        """How many programs do each of the accesses."""
        return len(self.programs) if self.shape[0] == 1 else 1

    def rows(self) -> np.ndarray:
        """The row of each address."""
        lanes = np.arange(len(self.addresses)) if self.lanes is None else self.lanes
        return lanes // int(np.prod(self.shape[1:], dtype=np.int64))

    def owners(self) -> np.ndarray:
        """The program of each address; where programs share a row, the first of them."""
        return self.programs[self.rows()]

    def at(self, position: int) -> "Access":
        """The access to one of the addresses."""
        lane = position if self.lanes is None else int(self.lanes[position])
        some = self.addresses[position : position + 1]
        return Access(self.machine, some, np.array([lane]), self.shape, self.programs)

    def repeated(self) -> "Access":
        """The same access with a row for every program."""
        count = len(self.programs)
        size = int(np.prod(self.shape[1:], dtype=np.int64))
        lanes = np.arange(size) if self.lanes is None else self.lanes
        every = (np.arange(count)[:, None] * size + lanes).reshape(-1)
        shape = (count, *self.shape[1:])
        return Access(self.machine, np.tile(self.addresses, count), every, shape, self.programs)

    def fault(self, position: int, message: str) -> NoReturn:
        """Raise the trap of one of the addresses."""
        lane = position if self.lanes is None else int(self.lanes[position])
        row, *index = (int(i) for i in np.unravel_index(lane, self.shape))
        self.machine.trap(message, int(self.programs[row]), tuple(index))
