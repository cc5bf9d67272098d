"""`qfuse explain`: which backend multiplies what, for how many rows, why, and how it is tuned.

And what stays on torch, and why.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qfuse.compiler.dispatch.table import Row
from qfuse.compiler.runtime.report import OnTorch, Report
from qfuse.dialects.errors import QfuseError

_WIDE = 160  # columns where nobody looks at a terminal


def decisions(
    model: Path, target: str | None, blas: str | None, roundings: str | None
) -> tuple[list[Row], list[OnTorch]]:
    """The decisions that an artifact carries, or those about a model on a target, and what stays
    on torch there.

    Raises QfuseError, in one line, for what is neither, or was decided when it was compiled.
    """
    if model.suffix == ".qfuse":
        if given := [n for n, v in (("target", target), ("blas", blas)) if v is not None]:
            raise QfuseError(
                f"{model} was compiled, with its decisions; --{given[0]} is for a model: name its "
                "directory or config.json"
            )
        from qfuse.compiler import load

        exe = load(model)
        stored = exe.program.report.get("dispatch")
        if stored is None:
            raise QfuseError(f"{model} has no record of dispatch; compile the model again")
        return [Row.from_json(row) for row in stored], exe.report().on_torch()
    from qfuse.compiler import remarks
    from qfuse.compiler.compilation import explain_config
    from qfuse.compiler.passes.dispatch import Dispatch

    chosen = Dispatch(target or "cpu", blas or "auto", roundings or "exact")
    with remarks.collect() as collected:
        rows = explain_config(model, chosen.machine())
    report = Report.from_json({"remarks": [remark.to_json() for remark in collected]})
    return rows, report.on_torch()


def tuning(model: Path) -> Mapping[str, Any] | None:
    """What an artifact of a CPU says of the tunables of its products; None for others."""
    if model.suffix != ".qfuse":
        return None
    from qfuse.compiler import load

    return load(model).report().tuning


def show_tuning(console: Console, tuning: Mapping[str, Any]) -> None:
    """Print, of each product, which tunables were measured to be better, and the defaults."""
    from qfuse.lowering.cpu.entry_table import cpu_name

    if not console.is_terminal:
        console.width = _WIDE
    table = Table("product", "tuned", "defaults", "why", title="Tunables", show_lines=True)
    for row in tuning["products"]:
        columns = [
            ", ".join(f"{n} {v}" for n, v in row["values"].items() if (n in row["tuned"]) is chosen)
            for chosen in (True, False)
        ]
        times = [
            f"M = {m}: {found * 1e6:.0f} us, by the defaults {usual * 1e6:.0f}"
            for m, (found, usual) in row["measured"].items()
        ]
        name = f"{row['kernel']} ({row['calls']} x)\n{row['product']}"
        why = "\n".join([row["why"], *times])
        table.add_row(*(escape(text) for text in (name, columns[0] or "-", columns[1], why)))
    console.print(table)
    where = f"for {tuning['cpu']}, {tuning['threads']} threads, level {tuning['level']}"
    if tuning["cpu"] != cpu_name():
        where += f"; this is {cpu_name()}: compile again to tune for it (results are the same)"
    console.print(f"tuning {tuning['mode']} {where}", highlight=False)


def show(console: Console, rows: Sequence[Row]) -> None:
    """Print one line for each decision, and under it what would have made a library call of it."""
    if not console.is_terminal:
        console.width = _WIDE
    table = Table("product", "M", "backend", "rule and reason", title="Dispatch", show_lines=True)
    for row in rows:
        times = f" ({row.count} x)" if row.count > 1 else ""
        product = f"{row.layer}{times}\n{row.scheme}, N x K = {row.n} x {row.k}"
        backend = f"{row.backend}\n{row.call}" if row.call else row.backend
        lines = [f"{row.rule}: {row.reason}", *row.near]
        table.add_row(*(escape(t) for t in (product, row.rows, backend, "\n".join(lines))))
    console.print(table)


def show_on_torch(console: Console, kinds: Sequence[OnTorch]) -> None:
    """Print, of each kind of operation that stays on torch, how often, where first and why."""
    if not console.is_terminal:
        console.width = _WIDE
    table = Table("pattern", "count", "where", "why", title="On torch", show_lines=True)
    for kind in kinds:
        first, *others = (_place(location) for location in kind.places)
        where = f"{first}\nand {len(others)} more" if others else first
        table.add_row(*(escape(t) for t in (kind.pattern, str(kind.count), where, kind.reason)))
    console.print(table)


def _place(location: str) -> str:
    """The name in `loc("model.norm")`; other locations as they are."""
    match = re.fullmatch(r'loc\("([^"]*)"\)', location)
    return match[1] if match else location
