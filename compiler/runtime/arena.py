"""One buffer for all intermediate results: where each lies, given when each is alive."""

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Interval:
    """`size` bytes that are written first at step `first` and read last at step `last`."""

    size: int
    first: int
    last: int


def assign(intervals: Sequence[Interval]) -> tuple[list[int], int]:
    """Offsets (multiples of ALIGNMENT) for the intervals, and the bytes needed in all.

    Two intervals share bytes only if one ends before the other begins; ending and beginning at
    the same step counts as overlap, since a kernel reads while it writes.  Each one gets the
    smallest hole that fits, which suits programs whose layers repeat the same few sizes.
    """
    offsets = [0] * len(intervals)
    holes: list[tuple[int, int]] = []  # (offset, size), ascending, never adjacent
    alive: list[int] = []
    top = 0
    for i in sorted(range(len(intervals)), key=lambda i: (intervals[i].first, -intervals[i].size)):
        now = intervals[i].first
        for j in [j for j in alive if intervals[j].last < now]:
            alive.remove(j)
            holes = _release(holes, offsets[j], _rounded(intervals[j].size))
        if holes and sum(holes[-1]) == top:  # the arena may shrink back before it grows
            top = holes.pop()[0]
        size = _rounded(intervals[i].size)
        fitting = [hole for hole in holes if hole[1] >= size]
        if fitting:
            offset, room = min(fitting, key=lambda hole: hole[1])
            at = holes.index((offset, room))
            holes[at : at + 1] = [(offset + size, room - size)] if room > size else []
        else:
            offset, top = top, top + size
        offsets[i] = offset
        alive.append(i)
    return offsets, max((offsets[i] + _rounded(r.size) for i, r in enumerate(intervals)), default=0)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _release(holes: list[tuple[int, int]], offset: int, size: int) -> list[tuple[int, int]]:
    """`holes` with [offset, offset + size) added, neighbours joined."""
    if not size:
        return holes
    merged: list[tuple[int, int]] = []
    for start, room in sorted([*holes, (offset, size)]):
        if merged and sum(merged[-1]) == start:
            merged[-1] = (merged[-1][0], merged[-1][1] + room)
        else:
            merged.append((start, room))
    return merged
