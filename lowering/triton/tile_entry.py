"""Tiles that were measured to be best, as data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from qfuse.dialects.types import STORAGE_BITS
from qfuse.lowering.measured_call import KEY, Rows, rows_of
from qfuse.lowering.table_file import fields_of, whole
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.problem import Problem
from qfuse.lowering.triton.tiles import Config

_MAX_STAGES = 8
_LEAST = 16
_CONFIG = {f.name: f.type for f in fields(Config) if f.name != "edition"}


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


def key_of(problem: Problem, gpu: Gpu) -> tuple[Any, ...]:
    """What entries for `problem` on `gpu` have as their `key`."""
    return (str(gpu), *(getattr(problem, name) for name in KEY))


def about(problem: Problem, gpu: Gpu, rows: tuple[int, int | None]) -> dict[str, Any]:
    """The fields of `Rows` for some rows of `problem`."""
    named = {name: getattr(problem, name) for name in KEY}
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
    found = rows_of(fields_of(value, Entry))
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
