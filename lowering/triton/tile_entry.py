"""What was measured of a product on a GPU, as data: tiles, and library calls against them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qfuse.dialects.types import STORAGE_BITS
from qfuse.lowering.table_file import fields_of, whole
from qfuse.lowering.triton.gpu import GPUS, Gpu
from qfuse.lowering.triton.problem import Problem
from qfuse.lowering.triton.tiles import Config

_KEY = ("n", "k", "parts", "x", "w", "scheme", "results")
"""Fields of a problem that an entry is found by."""

_MAX_STAGES = 8
_LEAST = 16
_CONFIG = {f.name: f.type for f in fields(Config) if f.name != "edition"}


@dataclass(frozen=True)
class Rows:
    """Rows first_m to last_m (None: any larger number) of one problem on one GPU."""

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

    @property
    def key(self) -> tuple[Any, ...]:
        """What it is about, but for the rows."""
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

    def overlaps(self, other: "Rows") -> bool:
        """Whether both are about some number of rows of the same thing."""
        return self.key == other.key and _meets(self, other)


def _meets(a: Rows, b: Rows) -> bool:
    return (b.last_m is None or a.first_m <= b.last_m) and (
        a.last_m is None or b.first_m <= a.last_m
    )


@dataclass(frozen=True)
class Entry(Rows):
    """The tiles that are best for these rows.

    `measured` says where that is known from: date, seconds, and the seconds of what the model
    would have chosen.
    """

    config: Config
    measured: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        config = {name: value for name, value in asdict(self.config).items() if name in _CONFIG}
        return {**asdict(self), "config": config, "measured": dict(self.measured)}


@dataclass(frozen=True)
class MeasuredCall(Rows):
    """A library's `call` against our best kernel: seconds of both for each number of rows `m`."""

    call: str
    m: tuple[int, ...]
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def key(self) -> tuple[Any, ...]:
        return (*super().key, self.call)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def key_of(problem: Problem, gpu: Gpu) -> tuple[Any, ...]:
    """What entries for `problem` on `gpu` have as their `key`."""
    return (str(gpu), *(getattr(problem, name) for name in _KEY))


def about(problem: Problem, gpu: Gpu, rows: tuple[int, int | None]) -> dict[str, Any]:
    """The fields of `Rows` for some rows of `problem`."""
    named = {name: getattr(problem, name) for name in _KEY}
    return {"target": str(gpu), **named, "first_m": rows[0], "last_m": rows[1]}


def entry_for(
    problem: Problem,
    gpu: Gpu,
    rows: tuple[int, int | None],
    config: Config,
    measured: Mapping[str, Any],
) -> Entry:
    """An entry that serves `rows` of `problem`."""
    return Entry(**about(problem, gpu, rows), config=config, measured=measured)


def parse_entry(value: Any) -> Entry:
    """An entry from JSON values; raises TypeError, ValueError or KeyError for what is none."""
    found = _rows(fields_of(value, Entry))
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
    return Entry(**{**found, "config": config})


def parse_call(value: Any) -> MeasuredCall:
    """A measured call from JSON values; raises as `parse_entry` does."""
    found = _rows(fields_of(value, MeasuredCall))
    if not isinstance(found["call"], str):
        raise TypeError(f"call is {found['call']!r}, not a text")
    for name in ("m", "ours", "theirs"):
        if not isinstance(found[name], (list, tuple)) or not found[name]:
            raise TypeError(f"{name} is {found[name]!r}, not a list of numbers")
        found[name] = tuple(found[name])
    for m in found["m"]:
        whole("m", m)
    for seconds in (*found["ours"], *found["theirs"]):
        if not isinstance(seconds, float) or not seconds > 0:
            raise TypeError(f"{seconds!r} is no number of seconds")
    if not len(found["m"]) == len(found["ours"]) == len(found["theirs"]):
        raise ValueError("m, ours and theirs differ in length")
    return MeasuredCall(**found)


def _rows(found: dict[str, Any]) -> dict[str, Any]:
    """`found` with those of its fields checked that `Rows` has."""
    if found["target"] not in GPUS:
        raise ValueError(f"target '{found['target']}' is not one of {', '.join(GPUS)}")
    for name in ("n", "k", "parts", "first_m"):
        whole(name, found[name])
    if found["last_m"] is not None and whole("last_m", found["last_m"]) < found["first_m"]:
        raise ValueError(f"last_m {found['last_m']} comes before first_m {found['first_m']}")
    for name in ("x", "w", "scheme"):
        if not isinstance(found[name], str):
            raise TypeError(f"{name} is {found[name]!r}, not a text")
    results = found["results"]
    if not isinstance(results, (list, tuple)) or not all(isinstance(r, str) for r in results):
        raise TypeError(f"results are {results!r}, not a list of element types")
    return {**found, "results": tuple(results)}


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
            whole(name, given)
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
