"""Products that were measured on a GPU, as a file: the best tiles, and where a library is faster.

`tile_table.json` beside this file comes with qfuse.  Entries of a table of your own, which
`qfuse tune` writes and the variable QFUSE_TILE_TABLE names, precede it.  A table is signed by the
GPU, its driver, torch, its library and Triton; where one of them is another, it is not used, and a
remark says which.  A table without a signature, written by hand, counts anywhere.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.measured_call import MeasuredCall, Rows, parse_call
from qfuse.lowering.table_file import difference, read_json
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.gpu_signature import known_here
from qfuse.lowering.triton.problem import Problem
from qfuse.lowering.triton.tile_entry import Entry, key_of, parse_entry

log = logging.getLogger("qfuse")

VERSION = 2
VARIABLE = "QFUSE_TILE_TABLE"
SHIPPED = Path(__file__).with_name("tile_table.json")

Some = TypeVar("Some", bound=Rows)


@dataclass(frozen=True)
class Table:
    """Entries and calls; of two about a number of rows, the first counts.

    `signature` says what they were measured with, as `gpu_signature.signature` has it; empty where
    nothing is said.
    """

    entries: tuple[Entry, ...] = ()
    calls: tuple[MeasuredCall, ...] = ()
    signature: Mapping[str, str] = field(default_factory=dict)

    def entries_of(self, problem: Problem, gpu: Gpu) -> list[Entry]:
        """Those for any number of rows of `problem`."""
        key = key_of(problem, gpu)
        return [e for e in self.entries if e.key == key]

    def find(self, problem: Problem, gpu: Gpu, m: int) -> Entry | None:
        """The entry for `m` rows, or None."""
        return next((e for e in self.entries_of(problem, gpu) if e.covers(m)), None)

    def calls_of(self, problem: Problem, gpu: Gpu) -> list[MeasuredCall]:
        """What was measured of any call for `problem`."""
        key = key_of(problem, gpu)
        return [c for c in self.calls if c.key == (*key, c.call)]

    def with_entry(self, entry: Entry) -> "Table":
        """With one more, in place of those for the same rows or a part of them."""
        rest = self.without(entry.key, entry.first_m, entry.last_m)
        return replace(rest, entries=_sorted((*rest.entries, entry)))

    def with_call(self, call: MeasuredCall) -> "Table":
        """The same with a call."""
        kept = _without(self.calls, call.key, call.first_m, call.last_m)
        return replace(self, calls=_sorted((*kept, call)))

    def without(self, key: tuple[Any, ...], first_m: int, last_m: int | None) -> "Table":
        """Without what entries of `key` say about these rows."""
        return replace(self, entries=_without(self.entries, key, first_m, last_m))

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "signature": dict(self.signature),
            "entries": [e.to_json() for e in self.entries],
            "calls": [c.to_json() for c in self.calls],
        }


def _sorted(rows: tuple[Some, ...]) -> tuple[Some, ...]:
    return tuple(sorted(rows, key=lambda r: (*r.key, r.first_m)))


def _without(
    rows: tuple[Some, ...], key: tuple[Any, ...], first_m: int, last_m: int | None
) -> tuple[Some, ...]:
    kept: list[Some] = []
    for one in rows:
        if one.key != key:
            kept.append(one)
            continue
        below = first_m - 1 if one.last_m is None else min(one.last_m, first_m - 1)
        if one.first_m <= below:
            kept.append(replace(one, last_m=below))
        if last_m is not None and (one.last_m is None or one.last_m > last_m):
            kept.append(replace(one, first_m=max(one.first_m, last_m + 1)))
    return tuple(kept)


_active: ContextVar[Table | None] = ContextVar("active tile table", default=None)


def active_table() -> Table:
    """The table that kernels are built and products dispatched by.

    Raises QfuseError if one of its files is bad.
    """
    chosen = _active.get()
    if chosen is not None:
        return chosen
    own = os.environ.get(VARIABLE)
    shipped = _if_measured_here(SHIPPED)
    if not own:
        return shipped
    first = _if_measured_here(Path(own))
    return Table(first.entries + shipped.entries, first.calls + shipped.calls)


@contextmanager
def using(table: Table) -> Iterator[None]:
    """Build kernels by `table` alone, in this context."""
    token = _active.set(table)
    try:
        yield
    finally:
        _active.reset(token)


def _if_measured_here(path: Path) -> Table:
    """The table in a file; an empty one, with a remark, where it was measured with other things."""
    table = read_table(path)
    target = table.signature.get("target")
    if target is None:
        return table
    why = difference(table.signature, known_here(target))
    if why is None:
        return table
    _remark_unused(path, why, target)
    return Table()


@cache
def _remark_unused(path: Path, why: str, target: str) -> None:
    log.warning(
        "remark: tile table %s is not used: %s; make a new one with "
        "qfuse tune --target %s --table FILE",
        *(path, why, target),
    )


def read_table(path: Path) -> Table:
    """The table in a file, wherever it was measured.

    Raises QfuseError that names the file and what is wrong with it.
    """
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as error:
        raise QfuseError(f"cannot read tile table {path}: {error.strerror}") from None
    return _read(path, stamp)


@lru_cache(maxsize=8)
def _read(path: Path, stamp: int) -> Table:
    return parse_table(read_json(path, "tile table"), str(path))


def parse_table(data: Any, name: str) -> Table:
    """A table from JSON values; `name` stands in messages.

    Raises QfuseError for the first entry that is no entry, or that another one contradicts.
    """
    if not isinstance(data, dict) or not isinstance(data.get("entries"), list):
        raise QfuseError(f"tile table {name} is not an object with a list of entries")
    if data.get("version") != VERSION:
        raise QfuseError(
            f"tile table {name} has version {data.get('version')!r}; this qfuse reads {VERSION}: "
            "make it again with qfuse tune"
        )
    signature, calls = data.get("signature", {}), data.get("calls", [])
    if not isinstance(signature, dict) or not isinstance(calls, list):
        raise QfuseError(f"tile table {name} has no object as its signature, or no list of calls")
    return Table(
        tuple(_parsed(data["entries"], parse_entry, f"tile table {name}, entry")),
        tuple(_parsed(calls, parse_call, f"tile table {name}, call")),
        signature,
    )


def _parsed(values: list[Any], parse: Any, place: str) -> list[Any]:
    found: list[Any] = []
    for number, value in enumerate(values):
        try:
            one = parse(value)
        except (KeyError, TypeError, ValueError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise QfuseError(f"{place} {number}: {why}") from None
        if other := next(filter(one.overlaps, found), None):
            raise QfuseError(f"{place} {number} ({one.title}): {other.title} is there already")
        found.append(one)
    return found
