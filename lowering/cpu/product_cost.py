"""Which entry serves how many rows of a product, where nothing was measured: a written model.

For few rows the weight is decoded in registers: the first pass over it waits for memory, and each
further one, over a tile that a cache holds, costs instructions again.  For many rows blocks of it
are decoded once, into a cache.  So the question is how often decoding in registers is cheaper than
that detour.  Times are those of one thread for each element of the weight, in picoseconds, fitted
to `qfuse tune --target cpu --check` on Zen 5 (AVX-512 with bf16); what they are compared for is
alike on others, for all of them grow with the clock.
"""

from collections.abc import Sequence
from dataclasses import replace

from qfuse.lowering.cpu.kernel import Entry
from qfuse.lowering.cpu.product import Product

UNITS_ROWS = 128
"""Rows that `run_units` can serve: tasks of more leave no room in the cache for the weight."""

_READ = 42.0
"""A byte of memory, by one thread of those that share it."""

_STAGE, _STAGE_READ = 12.0, 14.0
"""Decoding into a cache: an element, and what a byte costs that was not prefetched in time."""

_ROW = {"bf16": 3.95, "i8": 2.15, "f32": 7.9, "i16": 8.6}
"""Multiplying one row, by what is multiplied."""

_SCALE = {"bf16": 9.0, "i8": 25.0, "f32": 9.0, "i16": 25.0}
"""Adding up one row of a run with its scales, for all its columns: whole sums become f32 first."""

_DECODE = {8: 3.0, 4: 2.0, 6: 13.0}
"""Decoding in registers, by the bits of an element; unquantized ones need none."""

_DECODE_AVX2 = 15.0
"""What 8 bits cost there, of which no table makes what is multiplied."""

_MINIMUMS = 4.5
"""Taking minimums off each row of a run of q4_k, at each pass."""

_CLEARLY = 0.98
"""Of the time of `run` that `run_units` takes at most where it is chosen."""


def assign_rows(entries: Sequence[Entry], p: Product) -> list[Entry]:
    """The entries of a product with the rows that each serves, one after the other.

    Those that decode in registers serve what they can in one pass; `run_units` as many as are
    cheaper than by `run`, which serves the rest.
    """
    assigned, low = [], 1
    for entry in entries:
        high = entry.limit
        if entry.symbol == "run_units":
            high = p.tile_rows[0] * most_units(p)
        if high is not None and high < low:
            assigned.append(replace(entry, m_min=1, m_max=0))  # by measurement alone
            continue
        assigned.append(replace(entry, m_min=low, m_max=high))
        low = low if high is None else high + 1
    return assigned


def most_units(p: Product) -> int:
    """How many units of rows `run_units` multiplies faster than `run` does."""
    every = range(2, UNITS_ROWS // p.tile_rows[0] + 1)
    return max((n for n in every if in_units(p, n) < _CLEARLY * staged(p, n)), default=1)


def in_units(p: Product, units: int) -> float:
    """Picoseconds for each element of the weight, decoded in registers for each unit of rows."""
    each = _decode(p) + _minimums(p) + p.tile_rows[0] * _row(p)
    return max(each, _READ * p.layout.bits / 8) + (units - 1) * each


def staged(p: Product, units: int) -> float:
    """The same, decoded once, into a cache."""
    return _STAGE + _STAGE_READ * p.layout.bits / 8 + units * p.tile_rows[0] * _row(p)


def _row(p: Product) -> float:
    return _ROW[p.kind] + _SCALE[p.kind] / p.run


def _decode(p: Product) -> float:
    if p.level == "avx2" and p.layout.bits == 8:
        return _DECODE_AVX2
    return _DECODE.get(p.layout.bits, 0.0)


def _minimums(p: Product) -> float:
    return _MINIMUMS if p.has_minimums else 0.0
