"""How long a fresh process takes to compile kernels, or to find them compiled; without torch.

The processes are plain Python programs, as in lowering/triton/ahead.py.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from qfuse.dialects import registry
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.cache import compile_cached

_PROGRAM = """
import json, sys
task = json.loads(sys.stdin.buffer.read())
sys.path[:] = task["path"]
from qfuse.tools.bench.kernel_clock import work
json.dump(work(task), sys.stdout)
"""


def clock(text: str, directory: Path, level: str | None) -> float:
    """Seconds for all kernel functions of a module, in a process that has compiled nothing yet;
    it takes from the cache in `directory` what is there, and leaves the rest there.

    Starting the process and reading the module do not count.  Raises QfuseError if it fails.
    """
    task = {"path": sys.path, "text": text, "directory": str(directory), "level": level}
    run = subprocess.run(
        [sys.executable, "-c", _PROGRAM], input=json.dumps(task), capture_output=True, text=True
    )
    if run.returncode:
        said = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
        raise QfuseError(f"a process that compiles kernels failed: {said[-1]}")
    seconds: float = json.loads(run.stdout)
    return seconds


def work(task: dict[str, Any]) -> float:
    """What a process does."""
    directory = Path(task["directory"])
    with ir.Context(), ir.Location.unknown():
        registry.load_all()
        module = ir.Module.parse(task["text"])
        start = time.perf_counter()
        for function in module.body.operations:
            compile_cached(function, directory, level=task["level"])
        return time.perf_counter() - start
