"""What of a product's loops may be chosen freely: every choice computes the same bits.

A kernel takes what `DEFAULTS` says for its level, or what was measured to be faster for its product
on this CPU; `SEARCHES` says what is tried.  Neither MLIR nor torch here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from qfuse.lowering.cpu.layout import GROUP, STRIP

_STRIPS = GROUP // STRIP


@dataclass(frozen=True)
class Tunables:
    """Those of one kernel.  Raises ValueError where no loops can be built so.

    Rows are powers of two, for x is packed by transposing; strips divide a group of the weight.
    """

    direct_rows: tuple[int, ...]
    """Numbers of rows, rising from 1, that decoded weights are multiplied by in registers."""
    row_strips: int
    """Strips of the weight, which are streams of memory, that one row takes at once there."""
    direct_height: int
    """Rows that are multiplied at once there, at most, where decoding costs; others in turn."""
    direct_sums: int
    """Accumulators there, at most; the more rows, the fewer strips at once."""
    unrolled: int
    """Slices of a run that stand in line there, for one row; more are a loop."""
    prefetch_bytes: int
    """How far ahead of the reader it fetches from the second cache to the first, where scales
    interrupt the stream (direct.py); 0: not."""
    far_bytes: int
    """How far ahead of it it fetches from memory, at least; 0: not."""
    tile_rows: tuple[int, ...]
    """Rows that the tiled loop takes, falling; the first is its usual number, a unit."""
    tile_strips: int
    """Strips of the weight that it takes at once."""
    tile_sums: int
    """Accumulators there, at most; the more strips, the fewer rows at once."""
    tile_fetches: bool
    """Whether it fetches the block after the next one while it multiplies by this one."""
    chunk_rows: int
    """Rows that one decoding of a block serves, at most."""
    wide_part: int
    """Columns of a part from which on its tiles may be two groups wide."""

    def __post_init__(self) -> None:
        for rows, least in ((self.direct_rows, 1), (self.tile_rows[::-1], 2)):
            powers = all(n in (1, 2, 4, 8, 16) for n in rows)
            if not rows or not powers or rows[0] < least or list(rows) != sorted(set(rows)):
                raise ValueError(f"rows {list(rows)} are not powers of two from {least} to 16")
        if self.direct_rows[0] != 1:
            raise ValueError("there is no loop for one row")
        if not {self.row_strips, self.tile_strips} <= {1, 2, _STRIPS}:
            raise ValueError(f"{self.row_strips} or {self.tile_strips} strips divide no group")
        if self.direct_height not in (1, 2, 4, 8, 16):
            raise ValueError(f"{self.direct_height} rows at once are no power of two up to 16")
        if self.direct_sums < self.direct_rows[-1] or self.tile_sums < self.tile_strips:
            raise ValueError("there are fewer accumulators than rows, or strips, at once")
        if self.chunk_rows < self.tile_rows[0]:
            raise ValueError("a chunk has fewer rows than a unit")
        if min(self.unrolled - 1, self.prefetch_bytes, self.far_bytes, self.wide_part) < 0:
            raise ValueError("no slices in line, or bytes less than none")

    def to_json(self) -> dict[str, Any]:
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Tunables":
        """The inverse; raises ValueError, TypeError or KeyError for anything else."""
        found: dict[str, Any] = {}
        for field in fields(Tunables):
            value = data[field.name]
            numbers = value if isinstance(value, list | tuple) else [value]
            wanted = bool if field.name == "tile_fetches" else int
            if not all(type(n) is wanted for n in numbers):
                raise TypeError(f"{field.name} is {value!r}")
            found[field.name] = tuple(value) if isinstance(value, list) else value
        return Tunables(**found)


_AVX512 = Tunables(
    direct_rows=(1, 4, 8, 16),  # an entry each
    row_strips=_STRIPS,  # a slice of all strips is one stretch of memory
    direct_height=8,  # which leaves registers for two strips at a time, 4 for all four
    direct_sums=16,  # half of the registers; the others hold decoded weights, tables, scales
    unrolled=4,
    prefetch_bytes=4096,
    far_bytes=8192,  # measured: 0.9 to 1.0 of the read limit, 0.6 to 0.7 with none
    tile_rows=(8, 4, 2),
    tile_strips=2,  # 8 x 2 sums, as 4 x 4, are at 0.94 to 0.95 of the peak; 4 x 2 loads too often
    tile_sums=16,
    tile_fetches=True,
    chunk_rows=512,  # more would push the packed x of a chunk out of the cache
    wide_part=1024,  # a wider tile reads packed x less often, but leaves fewer tasks
)

_AVX2 = replace(
    _AVX512,
    direct_rows=(1, 4),
    direct_height=4,
    direct_sums=4,  # each takes two of the 16 registers, and what is multiplied takes others
    tile_rows=(4, 2),
    tile_strips=1,
)

# Arithmetic without vectors of 32 bytes is the limit, not memory.
_GENERIC = replace(_AVX2, direct_rows=(1,), prefetch_bytes=0, far_bytes=0, tile_fetches=False)

DEFAULTS: Mapping[str, Tunables] = {"avx512": _AVX512, "avx2": _AVX2, "generic": _GENERIC}
"""By level: what is taken where nothing was measured."""


@dataclass(frozen=True)
class Search:
    """What is tried for `m` rows of a product, which `entry` of its kernel serves.

    List after list: each change in one is applied to the best of those before.
    """

    m: int
    entry: str
    lists: tuple[tuple[Mapping[str, Any], ...], ...]

    def alternatives(self, best: Tunables, number: int) -> list[Tunables]:
        """What list `number` makes of the best so far, without that."""
        changed = [replace(best, **change) for change in self.lists[number]]
        return [one for one in changed if one != best]


def _each(name: str, *values: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple({name: value} for value in values)


_FETCHES = (
    {"prefetch_bytes": 0, "far_bytes": 0},
    {"prefetch_bytes": 4096, "far_bytes": 8192},
    {"prefetch_bytes": 4096, "far_bytes": 16384},
)

_WIDE_SEARCHES = (
    Search(1, "run1", (_each("far_bytes", 4096, 16384), ({"unrolled": 1}, {"row_strips": 2}))),
    Search(64, "run", (_each("tile_strips", 4),)),
)

_OTHER_SEARCHES = (
    Search(1, "run1", (_FETCHES, _each("row_strips", 1, 2))),
    Search(64, "run", (_each("tile_strips", 2),)),
)

SEARCHES = {"avx512": _WIDE_SEARCHES, "avx2": _OTHER_SEARCHES, "generic": _OTHER_SEARCHES}
"""By level: decoding, then a batch; few enough to take some 0.7 s for a product."""
