"""Tables of measurements on disk: how they are read, and what they are signed by."""

import json
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError


def read_json(path: Path, kind: str) -> Any:
    """What is in a file; raises QfuseError that names it as a `kind`, such as "CPU table"."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise QfuseError(f"cannot read {kind} {path}: {error.strerror}") from None
    except ValueError as error:
        raise QfuseError(f"{kind} {path} is not JSON: {error}") from None


def difference(measured: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """What is not as it was when a table was measured, in words, or None."""
    for name, value in here.items():
        if measured.get(name) != value:
            return f"{name} was {measured.get(name)!r} when it was measured, and is {value!r}"
    return None


@cache
def version_of(package: str) -> str:
    """The version of an installed distribution, "" where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def fields_of(value: Any, type_: type) -> dict[str, Any]:
    """The fields of the dataclass `type_` in a JSON object.

    Raises TypeError, ValueError or KeyError for what is none, has others, or lacks one.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{value!r} is not an object")
    names = [f.name for f in fields(type_)]
    if strange := sorted(set(value) - set(names)):
        raise ValueError(f"'{strange[0]}' is no field of an entry ({', '.join(names)})")
    return {name: value[name] for name in names}


def whole(name: str, value: Any) -> int:
    """`value` if it is a whole number from 1; raises TypeError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TypeError(f"{name} is {value!r}, not a whole number from 1")
    return value
