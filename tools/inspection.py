"""`qfuse inspect`: what a compiled model consists of, for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from qfuse.compiler.runtime.report import Report, size_text


def show(console: Console, path: Path, data: Mapping[str, Any], report: Report) -> None:
    """Print the model, its sizes, its steps and the fusion report."""
    model = data["model"]
    sizes = data["sizes"]
    console.print(
        f"[bold]{path}[/bold]  {model.get('model_type', 'a torch module')} for {data['target']}"
    )
    console.print(
        f"weights {size_text(sizes['weight_bytes'])}, "
        f"{sizes['kernels']} kernels of {size_text(sizes['kernel_bytes'])}, "
        f"{sizes['kernel_steps']} kernel steps, {sizes['torch_steps']} torch steps"
    )
    for title, values in (("inputs", data["inputs"]), ("caches", data["caches"])):
        shown = list(values.items())
        more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
        text = ", ".join(f"{name}: {type_}" for name, type_ in shown[:4])
        console.print(f"{title}: {text}{more}", highlight=False)
    steps = Table("step", "calls", "level", "code", title="Steps")
    for name, calls in sorted(data["steps"].items(), key=lambda item: -item[1]):
        kernel = data["kernels"].get(name)
        level, code = (kernel["level"], size_text(kernel["bytes"])) if kernel else ("torch", "")
        steps.add_row(name, str(calls), level, code)
    console.print(steps, report)
