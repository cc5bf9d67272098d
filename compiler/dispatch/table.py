"""The decisions of a program, as data: what `qfuse explain` shows and an artifact keeps."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qfuse.compiler.dispatch.decide import Decision
from qfuse.compiler.dispatch.subject import Subject


@dataclass(frozen=True)
class Row:
    """One decision about one product, or about `count` that are alike but for their layer.

    `layer` names the weight (a `*` for what differs between layers), `near` the rules that would
    have counted but for one condition.
    """

    layer: str
    op: str
    scheme: str
    n: int
    k: int
    rows: str
    backend: str
    call: str
    rule: str
    reason: str
    near: tuple[str, ...] = ()
    count: int = 1

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Row":
        return Row(**{**data, "near": tuple(data["near"])})


def rows_of(decided: Iterable[tuple[Subject, list[Decision]]]) -> list[Row]:
    """The rows of a program's products, in order; those alike in several layers are one."""
    found: dict[Row, int] = {}
    for subject, decisions in decided:
        for decision in decisions:
            row = _row(subject, decision)
            found[row] = found.get(row, 0) + 1
    return [Row(**{**row.__dict__, "count": count}) for row, count in found.items()]


def _row(subject: Subject, decision: Decision) -> Row:
    return Row(
        layer=re.sub(r"\.\d+\.", ".*.", subject.name) or "-",
        op=subject.op,
        scheme=subject.scheme,
        n=subject.n,
        k=subject.k,
        rows=decision.rows,
        backend=subject.machine.library if decision.call else decision.backend,
        call=decision.call + (" + epilogue" if decision.apart else ""),
        rule=decision.rule,
        reason=decision.reason,
        near=tuple(map(str, decision.near)),
    )
