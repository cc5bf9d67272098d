"""What autotuning found, on disk: a file for each CPU, number of threads, level and versions.

Processes may tune at once: a file is replaced whole, with what others had found by then.  One that
is damaged, or of another code generator, is not there.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qfuse.lowering.cache_file import read_cached, write_cached
from qfuse.lowering.cpu import entry_table
from qfuse.lowering.cpu.autotune import Found
from qfuse.lowering.cpu.cache import code_generator
from qfuse.lowering.cpu.tunables import DEFAULTS


def signature(level: str, threads: int) -> dict[str, Any]:
    """What measurements depend on: that of entry tables, the level, and our kernels."""
    return {**entry_table.signature(threads), "level": level, "kernels": code_generator()[:16]}


def read(directory: Path | None, signature: Mapping[str, Any]) -> dict[str, Found]:
    """What was found with that signature, by product; nothing where no file tells."""
    cached = None if directory is None else read_cached(_path(directory, signature))
    if cached is None:
        return {}
    try:
        data, _ = cached
        if data["signature"] != dict(signature):
            return {}
        return {name: _found(value, signature) for name, value in data["products"].items()}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def write(directory: Path | None, signature: Mapping[str, Any], found: Mapping[str, Found]) -> None:
    """Keep it, beside what is there; a directory that cannot be written is no error."""
    if directory is None:
        return
    products = {
        name: {
            "changes": dict(one.changes),
            "measured": {str(m): list(pair) for m, pair in one.measured.items()},
        }
        for name, one in (read(directory, signature) | dict(found)).items()
    }
    write_cached(
        _path(directory, signature), {"signature": dict(signature), "products": products}, b""
    )


def _path(directory: Path, signature: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(signature, sort_keys=True).encode()).hexdigest()
    return directory / f"{digest[:40]}.tuned"


def _found(value: Mapping[str, Any], signature: Mapping[str, Any]) -> Found:
    measured = {int(m): (float(a), float(b)) for m, (a, b) in value["measured"].items()}
    found = Found(dict(value["changes"]), measured)
    found.apply(DEFAULTS[signature["level"]])  # raises where no kernel can be built so
    return found
