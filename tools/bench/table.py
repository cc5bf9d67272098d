"""Reports as tables for people."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from qfuse.tools.bench.cpu_goals import goal_lines
from qfuse.tools.bench.static import COLUMNS


def show_static(console: Console, header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """What `static.report` found."""
    table = Table(*(heading for heading, _, _ in COLUMNS), title=_title(header))
    for row in rows:
        table.add_row(*(_cell(row.get(field), form) for _, field, form in COLUMNS))
    console.print(table)
    console.print(f"{header['note']}; floors assume {_assumed(header['assumed'])}")


def show_gemm(console: Console, header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """What `gemm.run` measured; the last column is how many times ours each takes."""
    table = Table(
        "what", "M", "by", "us", "TFLOP/s", "of limit", "bound", "/ ours", title=_title(header)
    )
    for row in rows:
        own = row["subjects"].get("qfuse", {}).get("seconds")
        for name, found in row["subjects"].items():
            what = row.get("shape") or row["chain"]
            if "failed" in found:
                table.add_row(what, str(row["m"]), name, found["failed"])
                continue
            times = found["seconds"] / own if own else None
            table.add_row(
                what,
                str(row["m"]),
                name,
                _cell(found["us"], ".1f"),
                _cell(found.get("tflops"), ".0f"),
                _cell(found.get("share"), ".0%"),
                row.get("bound", ""),
                _cell(times, ".2f"),
            )
    console.print(table)
    console.print(
        f"limits of this run: copy {header['copy_gb_per_s']:.0f} GB/s, "
        f"bf16 {header['bf16_tflops']:.0f} TFLOP/s, FP8 counted twice that"
    )


def show_moe(console: Console, header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """What `moe_suite.report` found; peers in milliseconds, and how many times ours."""
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    fixed = ("experts", "of", "tokens", "routing", "touched", "ms", "floor ms", "of floor", "bound")
    table = Table(*fixed, *peers, title=_title(header))
    for row in rows:
        table.add_row(
            row["case"],
            str(row["experts"]),
            str(row["tokens"]),
            row["routing"],
            _cell(row["touched"], ".0f"),
            _cell(row["ms"], ".3f"),
            _cell(row["floor_ms"], ".3f"),
            _cell(row["of_floor"], ".0%"),
            row["bound"],
            *(_times(row, name) for name in peers),
        )
        if least := row.get("least"):
            cells = (
                _cell(least[key], form)
                for key, form in (("ms", ".3f"), ("floor_ms", ".3f"), ("of_floor", ".0%"))
            )
            table.add_row("", "", "", "", "least", *cells, "", *(_times(least, n) for n in peers))
    console.print(table)
    failed = {f"{name}: {why}" for row in rows for name, why in row["failed"].items()}
    for said in [*header["notes"], *sorted(failed), _limits(rows)]:
        console.print(said, highlight=False)


def show_cpu(console: Console, header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """What `cpu_report` found; peers in milliseconds, and how many times ours."""
    peers = list(dict.fromkeys(name for row in rows for name in row["peers"]))
    fixed = ["case", "scheme", "M", "ms", "GB/s", "GFLOP/s", "of limit", "limit", "of bf16 peak"]
    models = any("tokens_per_s" in row for row in rows)
    table = Table(*fixed, *(["tokens/s"] if models else []), *peers, title=_title(header))
    for row in rows:
        own = row["ms"]
        times = {n: (ms, f" ({ms / own:.1f}x)" if own else "") for n, ms in row["peers"].items()}
        table.add_row(
            *(row["case"], row["scheme"], str(row["m"])),
            *(_cell(row["ms"], ".3f"), _cell(row["gb_s"], ".1f"), _cell(row["gflop_s"], ".0f")),
            *(_cell(row["of_limit"], ".0%"), row["limit"], _cell(row["of_bf16_peak"], ".0%")),
            *([_cell(row["tokens_per_s"], ".1f")] if models else []),
            *(f"{times[n][0]:.3f}{times[n][1]}" if n in times else "-" for n in peers),
        )
    console.print(table)
    absent = dict.fromkeys(f"{name}: {why}" for row in rows for name, why in row["absent"].items())
    goals = goal_lines(rows) if "missed" in header else []
    for said in [*header["notes"], *absent, _limits(rows), *goals]:
        console.print(said, highlight=False)


def show_compile(console: Console, header: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    """What `cpu_compile.run` measured."""
    table = Table(
        *("what", "scheme", "layers", "launches", "kernels", "cold s", "warm s", "others"),
        title=_title(header),
    )
    for row in rows:
        counts = (str(row[name]) for name in ("layers", "launches", "kernels"))
        seconds = (_cell(row[name], ".3f") for name in ("cold_s", "warm_s"))
        others = f"{row['others_percent']:.0f}%"
        table.add_row(row["case"], row["scheme"], *counts, *seconds, others)
    console.print(table)
    for said in goal_lines(rows) if "missed" in header else []:
        console.print(said, highlight=False)


def _times(row: dict[str, Any], name: str) -> str:
    """Milliseconds of a peer, and how many times ours that is."""
    ratio = row["ratios"].get(name)
    return _cell(row["peers"].get(name), ".3f") + ("" if ratio is None else f" ({ratio:.1f}x)")


def _limits(rows: Sequence[dict[str, Any]]) -> str:
    """From the least to the most that was measured in this run, beside the rows."""
    found = []
    for name in rows[0]["limits"]:
        values = [row["limits"][name] for row in rows]
        found.append(f"{name} {min(values):.0f} to {max(values):.0f}")
    return "measured beside: " + ", ".join(found)


SHOW = {
    "gpu-static": show_static,
    "gpu-gemm": show_gemm,
    "cpu-linear": show_cpu,
    "cpu-mlp": show_cpu,
    "cpu-norm": show_cpu,
    "cpu-model": show_cpu,
    "cpu-compile": show_compile,
    "cpu-moe": show_moe,
    "gpu-moe": show_moe,
}
"""How each suite is printed."""


def _title(header: dict[str, Any]) -> str:
    known = (header.get(k) for k in ("suite", "target", "gpu", "cpu", "date"))
    return ", ".join(str(k) for k in known if k)


def _assumed(assumed: dict[str, Any]) -> str:
    return (
        f"{assumed['memory_bytes_per_s'] / 1e9:.0f} GB/s and "
        f"{assumed['flops_per_s_of_8_bit_products'] / 1e12:.0f} TFLOP/s of 8-bit products"
    )


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return " ".join(f"{k} {v}" for k, v in value.items()) or "-"
    if isinstance(value, list):
        return "x".join(map(str, value))
    return format(value, form)
