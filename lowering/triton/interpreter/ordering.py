"""Which writes of one program another may rely on: happens-before by vector clocks."""

import numpy as np

from qfuse.dialects.errors import QfuseError

LIMIT = 4096
"""Programs of a launch with acquiring or releasing atomics; the clocks take LIMIT^2 * 4 bytes."""


class Ordering:
    """The order that atomics impose on the programs of one launch.

    A program's plain accesses carry its clock, which a barrier advances: an atomic is done by one
    thread, so it publishes only what all threads had done before their last barrier.
    """

    def __init__(self, count: int) -> None:
        self._clock = np.ones(count, np.int32)
        self._known: np.ndarray | None = None  # [reader, writer]: newest clock it relies on
        self._published: dict[int, np.ndarray] = {}  # address -> what an acquire there learns

    @property
    def used(self) -> bool:
        """Whether any atomic has ordered programs in this launch."""
        return self._known is not None

    def stamp(self, programs: np.ndarray) -> np.ndarray:
        """The clocks that accesses of these programs carry now."""
        return self._clock[programs]

    def barrier(self, programs: np.ndarray) -> None:
        """All threads of each of these programs meet."""
        self._clock[programs] += 1

    def atomic(self, program: int, address: int, acquire: bool, release: bool) -> None:
        """One atomic operation of `program` on `address`, at device scope."""
        if not acquire and not release:
            return
        if self._known is None:
            if len(self._clock) > LIMIT:
                raise QfuseError(
                    f"acquire or release atomics in a launch of {len(self._clock)} programs; the"
                    f" interpreter follows them for at most {LIMIT}: interpret a smaller grid"
                )
            self._known = np.zeros((len(self._clock), len(self._clock)), np.int32)
        mine = self._known[program]
        if acquire and address in self._published:
            np.maximum(mine, self._published[address], out=mine)
        if release:
            told = mine.copy()
            told[program] = self._clock[program] - 1
            if address in self._published:
                np.maximum(told, self._published[address], out=told)
            self._published[address] = told

    def ordered(self, now: np.ndarray, before: np.ndarray, stamps: np.ndarray) -> np.ndarray:
        """Whether programs `now` may rely on accesses that `before` made at clock `stamps`."""
        if self._known is None:
            return now == before
        return (now == before) | (self._known[now, before] >= stamps)
