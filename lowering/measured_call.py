"""What was measured of a product, as data: rows that share something, and a library's call."""

from dataclasses import asdict, dataclass
from typing import Any

from qfuse.lowering.table_file import fields_of, whole
from qfuse.lowering.target import TARGETS

KEY = ("n", "k", "parts", "x", "w", "scheme", "results")
"""What a product is, but for the target and the rows."""


@dataclass(frozen=True)
class Rows:
    """Rows first_m to last_m (None: any larger number) of one product on one target."""

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
        return (self.target, *(getattr(self, name) for name in KEY))

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


def parse_call(value: Any) -> MeasuredCall:
    """A measured call from JSON values.

    Raises TypeError, ValueError or KeyError for what is none.
    """
    found = rows_of(fields_of(value, MeasuredCall))
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


def rows_of(found: dict[str, Any]) -> dict[str, Any]:
    """`found` with those of its fields checked that `Rows` has."""
    if found["target"] not in TARGETS:
        raise ValueError(f"target '{found['target']}' is not one of {', '.join(TARGETS)}")
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
