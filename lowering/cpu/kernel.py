"""A compiled kernel: machine code and what a launcher must know to call it.  No MLIR here.

Every entry of a kernel takes the same arguments, each a 64-bit slot:

    data pointers    for each argument, then each result of the kernel function: one pointer for
                     a plain tensor; data, scales and, if there are any and it is not packed,
                     zero points for a quantized one (`parameters`)
    shared           scratch that all threads see: what one phase leaves to the next
    slots            scratch of the threads, `Entry.slot_bytes` each
    counters         int64, zero at the start of each phase: [0] next task, [8] next free slot,
                     and from [16] on those of the entry's own
    m                number of rows
    rows             rows of one task

The functions of an entry, its phases, run one after the other.  Each is called once per thread, as
`void phase(void **addresses_of_slots)`, and takes tasks from the counter until none is left, so any
number of callers computes the same result.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qfuse.lowering.cpu import entry_table

TASK_COUNTER, SLOT_COUNTER, OWN_COUNTERS = 0, 8, 16
"""Places in the counter block, whose elements are int64: a cache line for each that all change."""

ALIGNMENT = 64


@dataclass(frozen=True)
class Parameter:
    """One data pointer of the ABI."""

    source: Literal["operand", "result"]
    index: int
    """Which argument or result of the kernel function."""
    part: Literal["data", "scale", "zero"] = "data"
    packed: bool = False
    """The pointer is to a weight as `weights.pack_weight` lays it out."""


@dataclass(frozen=True)
class Entry:
    """A function of the object, the rows it serves, and how its work divides."""

    symbol: str
    m_min: int = 1
    m_max: int | None = None
    """Rows that it serves where nothing was measured."""
    limit: int | None = 0
    """From one row on it can serve so many (None: any number), where a table prefers it; 0: no
    others than those of its range."""
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    """Functions that run before and after it, each when all threads are done with the last."""
    tiles: int = 1
    """Tasks for each chunk of `rows` rows."""
    rows: int = 1
    """Rows of a task; a launch may choose fewer, in multiples of `rows_multiple`."""
    rows_multiple: int = 1
    row_groups: int = 1
    """The rows belong to up to this many groups, such as experts, and no task to two of them."""
    choices: int = 1
    """Rows that tasks are cut from, for each of the m; `work` and `row_work` are of m."""
    counters: int = 0
    """Counters of its own."""
    shared_row_bytes: int = 0
    """Shared scratch: this times the rows, each group rounded up to `rows_multiple`."""
    kept_row_bytes: int = 0
    """More of it, before that: this times the rows."""
    slot_bytes: int = 0
    slot_row_bytes: int = 0
    """Scratch of a thread: `slot_bytes` + this times the rows of a task."""
    work: int = 0
    row_work: int = 0
    """Cost in bytes of memory traffic, or the time it takes: `work` + `row_work` * m."""

    @property
    def phases(self) -> tuple[str, ...]:
        return (*self.before, self.symbol, *self.after)

    def serves(self, m: int) -> bool:
        return self.m_min <= m and (self.m_max is None or m <= self.m_max)

    def can_serve(self, m: int) -> bool:
        return self.serves(m) or 1 <= m <= (m if self.limit is None else self.limit)

    def task_rows(self, m: int, threads: int) -> int:
        """Rows of a task, so that there are a few tasks for each thread if there can be."""
        unit, total = self.rows_multiple, m * self.choices
        rows = self.whole_rows(m, self.rows)
        while threads > 1 and rows > unit and self.tiles * -(-total // rows) < 4 * threads:
            rows = _round_up(rows // 2, unit)
        return rows

    def whole_rows(self, m: int, rows: int) -> int:
        """About `rows` rows of a task, as many as a task can have and there are at most."""
        unit = self.rows_multiple
        most = min(self.rows, _round_up(m * self.choices, unit))
        return min(most, max(unit, rows // unit * unit))

    def tasks(self, m: int, rows: int) -> int:
        """The number of tasks for `m` rows, as many as there can be."""
        total = m * self.choices
        return self.tiles * (-(-total // rows) + min(self.row_groups, total) - 1)

    def shared_bytes(self, m: int) -> int:
        unit, total = self.rows_multiple, m * self.choices
        most = total + (unit - 1) * min(self.row_groups, total)
        return self.kept_row_bytes * total + self.shared_row_bytes * (most // unit * unit)

    def thread_bytes(self, rows: int) -> int:
        return _round_up(self.slot_bytes + self.slot_row_bytes * rows, ALIGNMENT)


@dataclass(frozen=True)
class Choice:
    """What a launch runs: an entry, and tasks of so many rows."""

    entry: Entry
    rows: int


@dataclass(frozen=True)
class CompiledKernel:
    """A relocatable x86-64 ELF object and the way to call it."""

    name: str
    level: str
    features: tuple[str, ...]
    """CPU flags of the machine it was compiled on; another one needs them all."""
    parameters: tuple[Parameter, ...]
    entries: tuple[Entry, ...]
    code: bytes
    product: str = ""
    """What tables of measurements find a product by; "" for other kernels."""

    def entry(self, m: int) -> Entry:
        """The entry whose range has `m`."""
        return next(e for e in self.entries if e.serves(m))

    def choose(self, m: int, threads: int) -> Choice:
        """What serves `m` rows on up to `threads` threads: as measured, else as modelled."""
        measured = entry_table.find(self.product, m, threads) if self.product else None
        for entry in self.entries:
            if measured and measured.entry == entry.symbol and entry.can_serve(m):
                return Choice(entry, entry.whole_rows(m, measured.rows))
        return self.modelled(m, threads)

    def modelled(self, m: int, threads: int) -> Choice:
        """What serves them where nothing was measured."""
        entry = self.entry(m)
        return Choice(entry, entry.task_rows(m, threads))

    def computes(self, m: int) -> bool:
        """Whether there is anything to do for `m` rows: for none there seldom is."""
        return m > 0 or any(e.serves(m) for e in self.entries)

    def scratch_bytes(self, m: int, threads: int, choice: Choice | None = None) -> int:
        """Scratch memory that a launch for `m` rows on up to `threads` threads works in.

        `choice` is by default what `choose` says.
        """
        if not self.computes(m):
            return 0
        choice = choice or self.choose(m, threads)
        thread_bytes = choice.entry.thread_bytes(choice.rows)
        return choice.entry.shared_bytes(m) + ALIGNMENT + threads * thread_bytes

    def describe(self) -> dict[str, Any]:
        """For people: what it runs on, its entries, and its size."""
        return {
            "level": self.level,
            "entries": ["+".join(entry.phases) for entry in self.entries],
            "bytes": len(self.code),
        }

    def metadata(self) -> dict[str, Any]:
        """Everything but the machine code, as JSON-able values."""
        values = {f: getattr(self, f) for f in ("name", "level", "product")}
        return values | {
            "features": list(self.features),
            "parameters": [asdict(p) for p in self.parameters],
            "entries": [asdict(e) for e in self.entries],
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], code: bytes) -> "CompiledKernel":
        """The inverse of `metadata`; TypeError or KeyError if it was made by other code."""
        return cls(
            name=metadata["name"],
            level=metadata["level"],
            features=tuple(metadata["features"]),
            parameters=tuple(Parameter(**p) for p in metadata["parameters"]),
            entries=tuple(_entry_from(e) for e in metadata["entries"]),
            code=code,
            product=metadata["product"],
        )


def _entry_from(data: Mapping[str, Any]) -> Entry:
    return Entry(**{**data, "before": tuple(data["before"]), "after": tuple(data["after"])})


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
