"""Device memory: allocations, and shadows of what was written, by whom and read by whom.

An address is `number << 40` plus a byte offset, so that a pointer carries its allocation and no
arithmetic that a kernel does by mistake makes it reach another one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.interpreter.access import Access
from qfuse.lowering.triton.interpreter.ordering import Ordering
from qfuse.lowering.triton.interpreter.types import DTYPES, poison

SHIFT = 40
_HALF = 1 << (SHIFT - 1)
_ALIGNED = 512  # what the allocator of the GPU aligns to; offsets into an array keep their rest
_MANY = -1


class Buffer:
    """Memory that a kernel is to write: poisoned, and knows which elements hold a value.

    Passed again to a later launch, it stays exactly as initialised as the earlier one left it.
    """

    def __init__(self, shape: int | Sequence[int], dtype: str | np.dtype | type) -> None:
        if isinstance(dtype, str) and dtype not in DTYPES:
            raise QfuseError(f"a Buffer of '{dtype}'; elements may be {', '.join(DTYPES)}")
        self.array = np.empty(shape, DTYPES[dtype] if isinstance(dtype, str) else np.dtype(dtype))
        self.array[...] = poison(self.array.dtype)
        self.initialised = np.zeros(self.array.size, bool)

    @property
    def missing(self) -> int:
        """How many elements nothing has written."""
        return int(self.array.size - np.count_nonzero(self.initialised))


class _Storage:
    """An array that owns memory, with one shadow entry per element (`unit` bytes) of it."""

    def __init__(self, array: np.ndarray, initialised: np.ndarray | None) -> None:
        if not array.flags.c_contiguous:
            raise QfuseError("an argument lies in an array that is not contiguous; copy it first")
        self.bytes = array.reshape(-1).view(np.uint8)
        self.start = array.ctypes.data
        self.unit = max(array.itemsize, 1)
        self.initialised = initialised
        self.writer: np.ndarray | None = None  # program + 1; negative where written atomically
        self.stamp: np.ndarray | None = None
        self.reader = np.zeros(array.size, np.int32)  # program + 1, or _MANY

    def view(self, dtype: np.dtype) -> np.ndarray:
        usable = len(self.bytes) // dtype.itemsize * dtype.itemsize
        return self.bytes[:usable].view(dtype)

    def units(self, at: np.ndarray, size: int) -> np.ndarray:
        """Numbers [n, units per access] of the shadow entries of accesses at byte offsets `at`."""
        if size == self.unit:
            return at // size
        if size < self.unit:
            raise QfuseError(
                f"a kernel accesses {size} bytes of an array of {self.unit}-byte elements;"
                " pass it as a view with the smaller elements"
            )
        return at[:, None] // self.unit + np.arange(size // self.unit)


@dataclass(slots=True)
class Allocation:
    """What one pointer argument may reach: a window of a storage."""

    name: str
    start: int  # virtual address
    size: int  # bytes
    storage: _Storage | None
    offset: int  # of the window in the storage, bytes


class Memory:
    """All memory of a launch, and the rules for touching it."""

    def __init__(self, ordering: Ordering, same_value: bool) -> None:
        self.ordering = ordering
        self.same_value = same_value
        self.loaded = 0
        self.stored = 0
        self._storages: list[_Storage] = []
        self._allocations = [Allocation("the null pointer", 0, 0, None, 0)]

    def add(self, memory: np.ndarray | Buffer | int, name: str) -> int:
        """Make an array, or that many bytes without content, reachable; returns the address."""
        number = len(self._allocations)
        if isinstance(memory, int):
            self._allocations.append(Allocation(name, number << SHIFT, memory, None, 0))
            return number << SHIFT
        array = memory.array if isinstance(memory, Buffer) else memory
        storage = self._storage(memory)
        offset = array.ctypes.data - storage.start if array.size else 0
        start = (number << SHIFT) + offset % _ALIGNED
        size = 0
        if array.size:
            low, high = np.lib.array_utils.byte_bounds(array)
            if low != array.ctypes.data:
                raise QfuseError(f"{name} has a negative stride; copy it first")
            size = high - low
        self._allocations.append(Allocation(name, start, size, storage, offset))
        return start

    def _storage(self, memory: np.ndarray | Buffer) -> _Storage:
        if isinstance(memory, Buffer):
            root, initialised = memory.array, memory.initialised
        else:
            root, initialised = memory, None
            while isinstance(root.base, np.ndarray):
                root = root.base
        low, high = root.ctypes.data, root.ctypes.data + root.nbytes
        for storage in self._storages:
            if root.size and storage.start < high and low < storage.start + len(storage.bytes):
                if storage.start <= low and high <= storage.start + len(storage.bytes):
                    if initialised is not None:
                        storage.initialised = initialised
                    return storage
                raise QfuseError("two arguments overlap in memory but not as views of one array")
        self._storages.append(_Storage(root, initialised))
        return self._storages[-1]

    def locate(self, address: int) -> tuple[Allocation, int]:
        """The allocation that an address belongs to, and the byte offset in it."""
        number = (address + _HALF) >> SHIFT
        known = 0 <= number < len(self._allocations)
        allocation = self._allocations[number if known else 0]
        return allocation, address - allocation.start

    def load(self, access: Access, dtype: np.dtype) -> np.ndarray:
        """The values at the addresses of an access; traps what must not be read."""
        if access.repeats > 1 and self._written(access):
            # Whether a program may read it depends on the program: check them one by one.
            return self.load(access.repeated(), dtype)[: len(access.addresses)]
        values = np.empty(len(access.addresses), dtype)
        for storage, at, where in self._resolve(access, dtype, "reads"):
            units = storage.units(at, dtype.itemsize)
            if storage.initialised is not None:
                missing = ~storage.initialised[units]
                if missing.any():
                    access.fault(_first(missing, where), "reads memory that was never initialised")
            self._check_read(storage, units, access, where)
            values[where] = storage.view(dtype)[at // dtype.itemsize]
        self.loaded += len(values) * dtype.itemsize * access.repeats
        return values

    def store(self, access: Access, values: np.ndarray) -> None:
        """Write values to the addresses of an access; traps what must not be written."""
        dtype = values.dtype
        for storage, at, where in self._resolve(access, dtype, "writes"):
            units = storage.units(at, dtype.itemsize)
            target, index = storage.view(dtype), at // dtype.itemsize
            new = _bits(values[where])
            old = _bits(target[index])
            self._check_write(storage, units, access, where, old == new)
            target[index] = values[where]
            lost = _bits(target[index]) != new
            if lost.any():
                access.fault(
                    _first(lost, where), "two lanes of one store write different values there"
                )
        self.stored += len(values) * dtype.itemsize

    def cell(self, access: Access, dtype: np.dtype, position: int) -> tuple[np.ndarray, int]:
        """The array and index in it of one address, for an atomic operation on it."""
        one = access.at(position)
        for storage, at, where in self._resolve(one, dtype, "updates"):
            units = storage.units(at, dtype.itemsize)
            if storage.initialised is not None and not storage.initialised[units].all():
                one.fault(0, "updates memory that was never initialised")
            self._check_write(storage, units, one, where, np.zeros(1, bool), atomic=True)
            self.loaded += dtype.itemsize
            self.stored += dtype.itemsize
            return storage.view(dtype), int(at[0]) // dtype.itemsize
        raise AssertionError("an address was neither resolved nor trapped")

    def _written(self, access: Access) -> bool:
        """Whether this launch wrote to the allocation that a load of shared addresses reads."""
        if not len(access.addresses):
            return False
        storage = self.locate(int(access.addresses[0]))[0].storage
        return storage is not None and storage.writer is not None

    def _resolve(
        self, access: Access, dtype: np.dtype, verb: str
    ) -> Iterator[tuple[_Storage, np.ndarray, np.ndarray | slice]]:
        """Group addresses by allocation: (storage, byte offsets in it, their positions)."""
        addresses = access.addresses
        if not len(addresses):
            return
        odd = addresses & (dtype.itemsize - 1)
        if odd.any():
            position = int(np.argmax(odd != 0))
            allocation, offset = self.locate(int(addresses[position]))
            access.fault(
                position,
                f"{verb} {dtype.itemsize} bytes at a misaligned address,"
                f" byte {offset} of {allocation.name}",
            )
        first, _ = self.locate(int(addresses[0]))
        low, high = int(addresses.min()), int(addresses.max()) + dtype.itemsize
        if first.storage is not None and first.start <= low and high <= first.start + first.size:
            yield first.storage, addresses - (first.start - first.offset), slice(None)
            return
        numbers = (addresses + _HALF) >> SHIFT
        for number in np.unique(numbers):
            where = np.flatnonzero(numbers == number)
            some = addresses[where]
            allocation, _ = self.locate(int(some[0]))
            offsets = some - allocation.start
            outside = (offsets < 0) | (offsets + dtype.itemsize > allocation.size)
            if outside.any() or allocation.storage is None:
                position = int(np.argmax(outside))
                access.fault(
                    int(where[position]),
                    f"{verb} out of bounds: element {offsets[position] // dtype.itemsize} of"
                    f" {allocation.name}, which holds {allocation.size // dtype.itemsize}",
                )
            else:
                yield allocation.storage, offsets + allocation.offset, where

    def _check_read(
        self, storage: _Storage, units: np.ndarray, access: Access, where: np.ndarray | slice
    ) -> None:
        """Trap a read of what another program wrote, and remember the reader."""
        if access.repeats > 1:
            storage.reader[units] = _MANY
            return
        readers = np.broadcast_to(_align(access.owners()[where], units), units.shape)
        if storage.writer is not None:
            self._ordered(storage, units, readers, access, where, "reads what {} wrote")
        before = storage.reader[units]
        mine = readers + 1
        storage.reader[units] = np.where((before == 0) | (before == mine), mine, _MANY)
        clash = storage.reader[units] != mine
        storage.reader[units[clash]] = _MANY

    def _check_write(
        self,
        storage: _Storage,
        units: np.ndarray,
        access: Access,
        where: np.ndarray | slice,
        same: np.ndarray,
        atomic: bool = False,
    ) -> None:
        """Trap a write that races with another program's access, and remember the writer."""
        mine = np.broadcast_to(_align(access.owners()[where], units), units.shape)
        if storage.writer is None:
            storage.writer = np.zeros(len(storage.reader), np.int32)
            storage.stamp = np.zeros(len(storage.reader), np.int32)
        assert storage.stamp is not None
        exempt = _align(same & self.same_value, units)
        self._ordered(
            storage, units, mine, access, where, "writes what {} also writes", exempt, atomic
        )
        reader = storage.reader[units]
        others = (reader != 0) & (reader != mine + 1) & ~exempt
        # With atomics the order of earlier reads is unknown; without, nothing orders them.
        if others.any() and not atomic and not self.ordering.used:
            position = _first(others, where)
            access.fault(position, "writes what another program reads in the same launch")
        storage.writer[units] = -(mine + 1) if atomic else mine + 1
        storage.stamp[units] = self.ordering.stamp(mine)
        if storage.initialised is not None:
            storage.initialised[units] = True
        clash = np.abs(storage.writer[units]) != mine + 1
        if clash.any() and not self.same_value:
            other = int(abs(storage.writer[units][clash][0])) - 1
            access.fault(
                _first(clash, where),
                f"writes what program {access.machine.coordinates(other)} also writes"
                " in the same launch",
            )

    def _ordered(
        self,
        storage: _Storage,
        units: np.ndarray,
        mine: np.ndarray,
        access: Access,
        where: np.ndarray | slice,
        complaint: str,
        exempt: np.ndarray | bool = False,
        atomic: bool = False,
    ) -> None:
        assert storage.writer is not None and storage.stamp is not None
        writer = storage.writer[units]
        suspect = (writer != 0) & (np.abs(writer) != mine + 1) & ~np.asarray(exempt)
        if atomic:
            suspect &= writer > 0
        if not suspect.any():
            return
        before = np.abs(writer[suspect]) - 1
        now = np.broadcast_to(mine, writer.shape)[suspect]
        suspect[suspect] = ~self.ordering.ordered(now, before, storage.stamp[units][suspect])
        if suspect.any():
            other = int(abs(writer[suspect][0])) - 1
            who = f"program {access.machine.coordinates(other)}"
            access.fault(
                _first(suspect, where),
                f"{complaint.format(who)} in the same launch, with no barrier and"
                " acquire/release atomics between them",
            )


def _bits(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")


def _align(per_access: np.ndarray, units: np.ndarray) -> np.ndarray:
    """One entry per access, shaped to meet `units`, which may have several per access."""
    return per_access if units.ndim == 1 else per_access[:, None]


def _first(bad: np.ndarray, where: np.ndarray | slice) -> int:
    """The position in the whole access of the first bad entry of a group of it."""
    position = int(np.argmax(bad if bad.ndim == 1 else bad.any(axis=1)))
    return position if isinstance(where, slice) else int(where[position])
