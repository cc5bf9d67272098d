"""What was measured of products on this CPU: which entry of a kernel serves which rows best, and
whether torch's own product (oneDNN) is faster.

`qfuse tune --target cpu` writes a table, and the variable QFUSE_CPU_TABLE names the one to use.
It counts on the machine, and with the versions, that it was measured with; anywhere else a remark
says so, once, and the model decides.  No MLIR here.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.measured_call import MeasuredCall, parse_call
from qfuse.lowering.table_file import difference, fields_of, read_json, version_of, whole

VERSION = 1
VARIABLE = "QFUSE_CPU_TABLE"

log = logging.getLogger("qfuse")

_PACKAGES = {"qfuse": "qfuse", "torch": "torch", "llvm": "torch-mlir"}
"""The distributions whose versions a table is signed by; the bindings bring LLVM."""


@dataclass(frozen=True)
class Entry:
    """Rows first_m to last_m of `product` are served best by `entry`, in tasks of `rows` rows.

    `product` is `CompiledKernel.product`.  `measured` says what was: seconds of each candidate.
    """

    product: str
    first_m: int
    last_m: int
    entry: str
    rows: int
    measured: Mapping[str, Any]

    @property
    def title(self) -> str:
        return f"{self.product}, M {self.first_m}..{self.last_m}"


@dataclass(frozen=True)
class Table:
    """Entries, and the machine and the versions that they were measured with."""

    signature: Mapping[str, Any]
    entries: tuple[Entry, ...] = ()
    calls: tuple[MeasuredCall, ...] = ()

    def find(self, product: str, m: int) -> Entry | None:
        """The entry for `m` rows, or None."""
        of_product = (e for e in self.entries if e.product == product)
        return next((e for e in of_product if e.first_m <= m <= e.last_m), None)

    def with_entry(self, entry: Entry) -> "Table":
        """With one more, in place of those of the product that share rows with it."""
        return replace(self, entries=(*self.without(entry).entries, entry))

    def without(self, entry: Entry) -> "Table":
        kept = (
            e
            for e in self.entries
            if e.product != entry.product or e.last_m < entry.first_m or entry.last_m < e.first_m
        )
        return replace(self, entries=tuple(kept))

    def with_call(self, call: MeasuredCall) -> "Table":
        """With one more, in place of those of the product that share rows with it."""
        return replace(self, calls=(*(c for c in self.calls if not c.overlaps(call)), call))

    def to_json(self) -> dict[str, Any]:
        entries = [asdict(e) for e in sorted(self.entries, key=lambda e: (e.product, e.first_m))]
        calls = [c.to_json() for c in sorted(self.calls, key=lambda c: (*c.key, c.first_m))]
        signature = dict(self.signature)
        return {"version": VERSION, "signature": signature, "entries": entries, "calls": calls}


def find(product: str, m: int, threads: int) -> Entry | None:
    """What the table in use says of `m` rows of `product` on `threads` threads, or None.

    Raises QfuseError if it cannot be read.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    table = _in_use(path, threads)
    return None if table is None else table.find(product, m)


def calls_of(n: int, k: int, dtype: str, threads: int) -> list[MeasuredCall]:
    """What the table in use says of plain products x [M, K] times w [N, K], all of one type.

    Raises QfuseError if it cannot be read.
    """
    path = os.environ.get(VARIABLE)
    table = _in_use(path, threads) if path else None
    wanted = plain_product(n, k, dtype)
    found = [] if table is None else table.calls
    return [c for c in found if wanted.items() <= vars(c).items()]


def plain_product(n: int, k: int, dtype: str) -> dict[str, Any]:
    """The fields of a `MeasuredCall` of a plain product, but for its rows."""
    types = {"x": dtype, "w": dtype, "results": (dtype,), "scheme": "-,-,-"}
    return {"target": "cpu", "n": n, "k": k, "parts": 1, **types}


@cache
def _in_use(path: str, threads: int) -> Table | None:
    """The table at `path`; None, with a remark, where it was measured elsewhere."""
    table = read_table(Path(path))
    if why := difference(table.signature, signature(threads)):
        log.warning("remark: table %s is not used: %s; measure with qfuse tune", path, why)
        return None
    return table


def signature(threads: int) -> dict[str, Any]:
    """What measurements of this process depend on: CPU, threads, versions ("" for none)."""
    versions = {name: version_of(package) for name, package in _PACKAGES.items()}
    return {"cpu": cpu_name(), "threads": threads, **versions}


@cache
def cpu_name() -> str:
    """The model of the first CPU in /proc/cpuinfo, "unknown" where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "unknown"
    named = [line.partition(":")[2].strip() for line in text.splitlines() if "model" in line]
    return " ".join(dict.fromkeys(named)) or "unknown"  # number and name: names may be vague


def read_table(path: Path) -> Table:
    """The table in a file; raises QfuseError that names the file and what is wrong with it."""
    data = read_json(path, "CPU table")
    if not isinstance(data, dict) or data.get("version") != VERSION:
        found = data.get("version") if isinstance(data, dict) else None
        raise QfuseError(
            f"CPU table {path} has version {found!r}; this qfuse reads {VERSION}: make it again "
            "with qfuse tune --target cpu"
        )
    try:
        calls = tuple(map(parse_call, data.get("calls", [])))
        return Table(dict(data["signature"]), tuple(map(_entry, data["entries"])), calls)
    except (KeyError, TypeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise QfuseError(f"CPU table {path}: {why}") from None


def _entry(value: Any) -> Entry:
    found = fields_of(value, Entry)
    for name in ("product", "entry"):
        if not isinstance(found[name], str):
            raise TypeError(f"{name} is {found[name]!r}, not a text")
    for name in ("first_m", "last_m", "rows"):
        whole(name, found[name])
    return Entry(**found)
