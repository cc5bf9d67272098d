"""Calling kernels: arguments laid out once, then a launch is a C call or a few.

Threads come from libgomp's pool, the one torch computes with, so the two never compete.  A
process that forks loses the pool (libgomp cannot be used on both sides of a fork); its children
run kernels on one thread.
"""

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.cpu import cpu_flags
from qfuse.lowering.cpu.kernel import ALIGNMENT, OWN_COUNTERS, Choice, CompiledKernel, Entry
from qfuse.lowering.cpu.loader import LoadedObject

PARALLEL_BYTES = 128 * 1024
"""Work below this runs on the caller alone: waking the pool costs about what it would save."""

_EntryFunction = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class LoadedKernel:
    """A kernel in executable memory."""

    def __init__(self, compiled: CompiledKernel) -> None:
        """Raises QfuseError if the object is damaged or was made for another CPU."""
        missing = [f for f in compiled.features if f not in cpu_flags()]
        if missing:
            raise QfuseError(
                f"kernel {compiled.name} was compiled for a CPU with {', '.join(missing)}, which "
                "this one lacks; compile the model again on this machine"
            )
        self.compiled = compiled
        self._object = LoadedObject(compiled.code, compiled.name)
        self._addresses = {
            symbol: self._object.address(symbol)
            for entry in compiled.entries
            for symbol in entry.phases
        }

    def bind(
        self,
        pointers: Sequence[int],
        m: int,
        threads: int,
        scratch: int | None = None,
        choice: Choice | None = None,
    ) -> "Launch":
        """A launch for `m` rows on up to `threads` threads; `choice` as for `scratch_bytes`.

        `pointers` are the addresses of `compiled.parameters`.  `scratch` is the address, a
        multiple of 64, of `compiled.scratch_bytes(m, threads, choice)` bytes that nothing else uses
        while the launch runs; by default the launch has its own.
        """
        wanted = len(self.compiled.parameters)
        if len(pointers) != wanted:
            raise QfuseError(
                f"kernel {self.compiled.name} takes {wanted} pointers, got {len(pointers)}"
            )
        return Launch(self, pointers, m, max(1, threads), scratch, choice)

    def address(self, symbol: str) -> int:
        return self._addresses[symbol]


class Launch:
    """A kernel with its arguments; calling it computes.

    `pointers[i] = address` changes a pointer for the calls to come.  Launches are independent of
    each other, but one launch must not run on two Python threads at once.
    """

    def __init__(
        self,
        kernel: LoadedKernel,
        pointers: Sequence[int],
        m: int,
        threads: int,
        scratch: int | None,
        choice: Choice | None,
    ) -> None:
        compiled = kernel.compiled
        count = len(pointers)
        slots = (ctypes.c_int64 * (count + 5))(*pointers)
        self.pointers = slots
        self._kernel = kernel  # keeps the code mapped
        self._steps: list[Callable[[], object]] = []
        if not compiled.computes(m):
            return
        choice = choice or compiled.choose(m, threads)
        entry, rows = choice.entry, choice.rows
        if scratch is None:
            self._scratch = _aligned_buffer(compiled.scratch_bytes(m, threads, choice))
            scratch = _aligned_address(self._scratch)
        count_bytes = 8 * (OWN_COUNTERS + entry.counters)
        counters = _aligned_buffer(count_bytes)
        counters_at = _aligned_address(counters)
        shared_bytes = -(-entry.shared_bytes(m) // ALIGNMENT) * ALIGNMENT
        slots[count : count + 5] = [scratch, scratch + shared_bytes, counters_at, m, rows]
        base = ctypes.addressof(slots)
        addresses = (ctypes.c_void_p * (count + 5))(*(base + 8 * i for i in range(count + 5)))
        zeros = (ctypes.c_char * count_bytes)()
        self._memory = (counters, addresses, zeros)
        reset = functools.partial(ctypes.memmove, counters_at, zeros, len(zeros))
        argument = ctypes.addressof(addresses)
        team = _team_size(entry, m, rows, threads)
        for symbol in entry.phases:
            self._steps += [reset, _step(kernel.address(symbol), argument, team)]

    def __call__(self) -> None:
        for step in self._steps:
            step()


def _team_size(entry: Entry, m: int, rows: int, threads: int) -> int:
    if entry.work + entry.row_work * m < PARALLEL_BYTES:
        return 1
    return min(threads, entry.tasks(m, rows))


def _step(address: int, argument: int, team: int) -> Callable[[], None]:
    serial = functools.partial(_EntryFunction(address), argument)
    pool = _pool()
    if team == 1 or pool is None:
        return serial
    parallel = functools.partial(pool.GOMP_parallel, address, argument, team, 0)

    def run() -> None:
        if _FORK.happened:
            serial()
        else:
            parallel()

    return run


class _ForkGuard:
    """Whether this process is a fork, and so cannot use its parent's pool."""

    def __init__(self) -> None:
        self.happened = False
        os.register_at_fork(after_in_child=self._note)

    def _note(self) -> None:
        self.happened = True


_FORK = _ForkGuard()


@functools.lru_cache(maxsize=1)
def _pool() -> ctypes.CDLL | None:
    """libgomp: torch's own copy, else the system's, else None."""
    for path in (*_torch_libgomp(), "libgomp.so.1"):
        try:
            library = ctypes.CDLL(path)
            library.GOMP_parallel.argtypes = [
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_uint,
                ctypes.c_uint,
            ]
            library.GOMP_parallel.restype = None
        except (OSError, AttributeError):
            continue
        return library
    return None


def _torch_libgomp() -> list[str]:
    """Where an installed torch keeps its libgomp; does not import torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return []
    return sorted(map(str, (Path(spec.origin).parent / "lib").glob("libgomp*.so*")))


def _aligned_buffer(size: int) -> ctypes.Array[ctypes.c_char]:
    return (ctypes.c_char * (size + ALIGNMENT))()


def _aligned_address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return -(-ctypes.addressof(buffer) // ALIGNMENT) * ALIGNMENT
