"""Tiles that were measured to be best, as data: a file of entries, each for some rows of a product.

`tile_table.json` beside this file comes with qfuse.  Entries of a table of your own, which
`qfuse tune` writes and the variable QFUSE_TILE_TABLE names, precede it.  An entry is for a target,
compiled for anywhere; with another Triton than it was measured with, whose code is other code, it
does not count, and a remark says so.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import STORAGE_BITS
from qfuse.lowering.triton.gpu import GPUS, Gpu
from qfuse.lowering.triton.problem import Problem
from qfuse.lowering.triton.tiles import Config

log = logging.getLogger("qfuse")

VERSION = 1
VARIABLE = "QFUSE_TILE_TABLE"
SHIPPED = Path(__file__).with_name("tile_table.json")

_KEY = ("n", "k", "parts", "x", "w", "scheme", "results")
"""Fields of a problem that an entry is found by."""

_MAX_STAGES = 8
_LEAST = 16
_CONFIG = {f.name: f.type for f in fields(Config) if f.name != "edition"}


@dataclass(frozen=True)
class Entry:
    """The tiles for rows first_m to last_m (None: any larger number) of one problem on one GPU.

    `measured` says where that is known from: the GPU's name, versions, date, seconds, and the
    seconds of what the model would have chosen.
    """

    target: str
    n: int
    k: int
    parts: int
    x: str
    w: str
    scheme: str
    results: tuple[str, ...]
    first_m: int
    last_m: int | None
    config: Config
    measured: Mapping[str, Any]

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.target, *(getattr(self, name) for name in _KEY))

    @property
    def title(self) -> str:
        rows = f"M >= {self.first_m}" if self.last_m is None else f"M {self.first_m}..{self.last_m}"
        return (
            f"{self.target}, N x K = {self.n} x {self.k}, parts {self.parts}, {self.x} x {self.w}, "
            f"{self.scheme}, {rows}"
        )

    def covers(self, m: int) -> bool:
        return self.first_m <= m and (self.last_m is None or m <= self.last_m)

    def to_json(self) -> dict[str, Any]:
        config = {name: value for name, value in asdict(self.config).items() if name in _CONFIG}
        return {**asdict(self), "config": config, "measured": dict(self.measured)}


@dataclass(frozen=True)
class Table:
    """Entries; of two that cover a number of rows, the first counts."""

    entries: tuple[Entry, ...] = ()

    def entries_of(self, problem: Problem, gpu: Gpu) -> list[Entry]:
        """Those for any number of rows of `problem`."""
        key = key_of(problem, gpu)
        return [e for e in self.entries if e.key == key]

    def find(self, problem: Problem, gpu: Gpu, m: int) -> Entry | None:
        """The entry for `m` rows, or None."""
        return next((e for e in self.entries_of(problem, gpu) if e.covers(m)), None)

    def with_entry(self, entry: Entry) -> "Table":
        """With one more, in place of those for the same rows or a part of them."""
        rest = self.without(entry.key, entry.first_m, entry.last_m)
        return Table(tuple(sorted((*rest.entries, entry), key=lambda e: (*e.key, e.first_m))))

    def without(self, key: tuple[Any, ...], first_m: int, last_m: int | None) -> "Table":
        """Without what entries of `key` say about these rows."""
        kept: list[Entry] = []
        for entry in self.entries:
            if entry.key != key:
                kept.append(entry)
                continue
            below = first_m - 1 if entry.last_m is None else min(entry.last_m, first_m - 1)
            if entry.first_m <= below:
                kept.append(replace(entry, last_m=below))
            if last_m is not None and (entry.last_m is None or entry.last_m > last_m):
                kept.append(replace(entry, first_m=max(entry.first_m, last_m + 1)))
        return Table(tuple(kept))

    def to_json(self) -> dict[str, Any]:
        return {"version": VERSION, "entries": [e.to_json() for e in self.entries]}


_active: ContextVar[Table | None] = ContextVar("active tile table", default=None)


def active_table() -> Table:
    """The table that kernels are built by; raises QfuseError if one of its files is bad."""
    chosen = _active.get()
    if chosen is not None:
        return chosen
    own = os.environ.get(VARIABLE)
    shipped = read_table(SHIPPED)
    return Table(read_table(Path(own)).entries + shipped.entries) if own else shipped


@contextmanager
def using(table: Table) -> Iterator[None]:
    """Build kernels by `table` alone, in this context."""
    token = _active.set(table)
    try:
        yield
    finally:
        _active.reset(token)


def key_of(problem: Problem, gpu: Gpu) -> tuple[Any, ...]:
    """What entries for `problem` on `gpu` have as their `key`."""
    return (str(gpu), *(getattr(problem, name) for name in _KEY))


def entry_for(
    problem: Problem,
    gpu: Gpu,
    rows: tuple[int, int | None],
    config: Config,
    measured: Mapping[str, Any],
) -> Entry:
    """An entry that serves `rows` of `problem`."""
    named = {name: getattr(problem, name) for name in _KEY}
    return Entry(
        target=str(gpu),
        first_m=rows[0],
        last_m=rows[1],
        config=config,
        measured=measured,
        **named,
    )


def read_table(path: Path) -> Table:
    """The table in a file; raises QfuseError that names the file and what is wrong with it."""
    try:
        stamp = path.stat().st_mtime_ns
    except OSError as error:
        raise QfuseError(f"cannot read tile table {path}: {error.strerror}") from None
    return _read(path, stamp)


@lru_cache(maxsize=8)
def _read(path: Path, stamp: int) -> Table:
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        raise QfuseError(f"cannot read tile table {path}: {error.strerror}") from None
    except ValueError as error:
        raise QfuseError(f"tile table {path} is not JSON: {error}") from None
    return _of_this_triton(parse_table(data, str(path)), path)


def _of_this_triton(table: Table, path: Path) -> Table:
    """Without the entries that were measured with another Triton."""
    try:
        here = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return table  # nothing is compiled without it
    others = {e.measured.get("triton", here) for e in table.entries} - {here}
    if not others:
        return table
    kept = tuple(e for e in table.entries if e.measured.get("triton", here) == here)
    log.warning(
        "remark: %d entries of tile table %s are not used: they were measured with Triton %s, and "
        "this is %s; measure again with qfuse tune",
        len(table.entries) - len(kept),
        path,
        ", ".join(sorted(map(str, others))),
        here,
    )
    return Table(kept)


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
    entries: list[Entry] = []
    for number, value in enumerate(data["entries"]):
        place = f"tile table {name}, entry {number}"
        try:
            entry = _entry(value)
        except (KeyError, TypeError, ValueError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise QfuseError(f"{place}: {why}") from None
        for other in entries:
            if other.key == entry.key and _overlap(other, entry):
                raise QfuseError(f"{place} ({entry.title}): {other.title} is there already")
        entries.append(entry)
    return Table(tuple(entries))


def _entry(value: Any) -> Entry:
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    names = [f.name for f in fields(Entry)]
    if strange := sorted(set(value) - set(names)):
        raise ValueError(f"'{strange[0]}' is no field of an entry ({', '.join(names)})")
    found = {name: value[name] for name in names}
    if found["target"] not in GPUS:
        raise ValueError(f"target '{found['target']}' is not one of {', '.join(GPUS)}")
    for name in ("n", "k", "parts", "first_m"):
        _whole(name, found[name])
    if found["last_m"] is not None and _whole("last_m", found["last_m"]) < found["first_m"]:
        raise ValueError(f"last_m {found['last_m']} comes before first_m {found['first_m']}")
    for name in ("x", "w", "scheme"):
        if not isinstance(found[name], str):
            raise TypeError(f"{name} is {found[name]!r}, not a text")
    results = found["results"]
    if not isinstance(results, (list, tuple)) or not all(isinstance(r, str) for r in results):
        raise TypeError(f"results are {results!r}, not a list of element types")
    if not isinstance(found["measured"], dict):
        raise TypeError(f"measured is {found['measured']!r}, not an object")
    config = _config(found["config"])
    last = found["last_m"]
    packed = STORAGE_BITS.get(found["w"], 8) < 8
    if config.swap and not packed and (last is None or last > config.rows):
        raise ValueError(f"a tile with weights first holds all rows, and has {config.rows}")
    if config.slices > 1 and last is None:
        raise ValueError("K can only be split for a limited number of rows")
    if config.gemv and last != 1:
        raise ValueError("the kernel without matrix instructions serves one row")
    return Entry(**{**found, "results": tuple(results), "config": config})


def _config(value: Any) -> Config:
    if not isinstance(value, dict):
        raise TypeError(f"config is {value!r}, not an object")
    if strange := sorted(set(value) - set(_CONFIG)):
        raise ValueError(f"'{strange[0]}' is no field of a config ({', '.join(_CONFIG)})")
    for name, given in value.items():
        if _CONFIG[name] is bool:
            if not isinstance(given, bool):
                raise TypeError(f"{name} is {given!r}, not true or false")
        else:
            _whole(name, given)
    config = Config(**value)
    for name in ("rows", "columns", "depth", "num_warps"):
        number = getattr(config, name)
        if number & (number - 1):
            raise ValueError(f"{name} is {number}, not a power of two")
    if not config.gemv and min(config.rows, config.columns) < _LEAST:
        raise ValueError(f"a tile has {_LEAST} rows and columns at least")
    if config.num_stages > _MAX_STAGES or config.num_warps > 16:
        raise ValueError(f"more than {_MAX_STAGES} stages or 16 warps")
    if config.swap + config.gemv + config.persistent > 1:
        raise ValueError("swap, gemv and persistent exclude each other")
    return config


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TypeError(f"{name} is {value!r}, not a whole number from 1")
    return value


def _overlap(a: Entry, b: Entry) -> bool:
    return (b.last_m is None or a.first_m <= b.last_m) and (
        a.last_m is None or b.first_m <= a.last_m
    )
