"""Large pages for what is read from memory: each page costs a walk through tables, which takes long
on virtual machines, and a weight has thousands of small ones."""

import ctypes
import functools
import mmap

LEAST_BYTES = 4 << 20
"""Less than that is not asked for: two large pages at least."""


def prefer_large_pages(address: int, size: int) -> None:
    """Ask the system for large pages for memory that nobody has touched yet.

    It is a wish: where there are none, nothing changes.
    """
    advise = _madvise()
    if advise is None or size < LEAST_BYTES:
        return
    begin = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    advise(begin, end - begin, mmap.MADV_HUGEPAGE)


@functools.lru_cache(maxsize=1)
def _madvise() -> "ctypes._NamedFuncPointer | None":
    """That of the C library; None where there is none, or no such wish."""
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is None or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function
