"""Diagnostics of one run of `qfuse-opt`: collecting, printing, and checking what was expected."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qfuse.compiler.remarks import Remark
from qfuse.dialects.bindings import ir

_LOCATION = re.compile(r'"([^"]*)":(\d+):(\d+)')
_EXPECTED = re.compile(
    r"expected-(error|warning|remark|note)\s*(@[+-]\d+|@above|@below)?\s*\{\{(.*?)\}\}"
)


@dataclass(frozen=True)
class Diagnostic:
    """A message at a place: `line` counts from 1 in the input, 0 is nowhere in it."""

    severity: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        place = f"{self.line}:{self.column}: " if self.line else ""
        return f"{place}{self.severity}: {self.message}"


@contextmanager
def collect(context: ir.Context) -> Iterator[list[Diagnostic]]:
    """Collect what MLIR reports in `context` instead of letting it print."""
    found: list[Diagnostic] = []

    def handle(diagnostic: ir.Diagnostic) -> bool:
        severity = str(diagnostic.severity).rpartition(".")[2].lower()
        found.append(_at(str(diagnostic.location), severity, diagnostic.message))
        for note in diagnostic.notes:
            found.append(_at(str(note.location), "note", note.message))
        return True

    handler = context.attach_diagnostic_handler(handle)
    try:
        yield found
    finally:
        handler.detach()


def from_error(error: ir.MLIRError) -> list[Diagnostic]:
    """The diagnostics that an MLIRError carries."""
    found = []
    for info in error.error_diagnostics:
        found.append(_at(str(info.location), "error", info.message))
        found += [_at(str(note.location), "note", note.message) for note in info.notes]
    return found


def from_remark(remark: Remark) -> Diagnostic:
    return _at(remark.location, "remark", str(remark))


def unmet(text: str, found: list[Diagnostic]) -> list[str]:
    """How `found` differs from the `expected-*` comments of `text`; empty if it does not.

    A comment reads `expected-error @+1 {{part of the message}}`, with `@above`, `@below`, an
    offset in lines, or nothing for its own line.  Errors and warnings must all be expected;
    remarks and notes only where the text expects any.
    """
    problems = []
    rest = list(found)
    checked = {"error", "warning"}
    for number, line in enumerate(text.splitlines(), start=1):
        for severity, offset, message in _EXPECTED.findall(line):
            checked.add(severity)
            wanted = number + {"": 0, "@above": -1, "@below": 1}.get(offset, 0)
            if offset.startswith(("@+", "@-")):
                wanted = number + int(offset[1:])
            match = next(
                (
                    d
                    for d in rest
                    if d.severity == severity and d.line == wanted and message in d.message
                ),
                None,
            )
            if match is None:
                problems.append(f"{wanted}: expected {severity} was not reported: {message}")
            else:
                rest.remove(match)
    problems += [f"unexpected {d}" for d in rest if d.severity in checked]
    return problems


def _at(location: str, severity: str, message: str) -> Diagnostic:
    match = _LOCATION.search(location)
    if match is None:
        return Diagnostic(severity, 0, 0, message)
    return Diagnostic(severity, int(match[2]), int(match[3]), message)
