"""Compiling many launches at once, each in one of several processes that fill the cache.

Triton compiles one kernel on one core, in 0.1 to 1 s; a model has some dozens.  The processes are
plain Python programs: `multiprocessing` would run the user's main module again.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qfuse.lowering.triton.binary import binary_path, compile_launch
from qfuse.lowering.triton.gpu import Gpu, find_gpu
from qfuse.lowering.triton.kernel import Launch, launch_from_json

MAX_PROCESSES = 16

_LEAST = 3
"""Launches for each process at least: it takes about a second to start."""

_PROGRAM = """
import json, sys
task = json.loads(sys.stdin.buffer.read())
sys.path[:] = task["path"]
from qfuse.lowering.triton.ahead import work
work(task)
"""


@contextlib.contextmanager
def compiled_ahead(
    launches: Iterable[Launch], gpu: Gpu, directory: Path | None
) -> Iterator[Path | None]:
    """A cache directory in which `compile_launch` finds `launches` already compiled.

    It is `directory`, or a temporary one.  What cannot be compiled is not there:
    `compile_launch` says why.  Where one process would do, nothing is compiled ahead.
    """
    with contextlib.ExitStack() as stack:
        place = directory
        if place is None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qfuse-")))
        missing = {binary_path(x, gpu, place): x for x in launches}
        todo = [x for path, x in missing.items() if not path.exists()]
        count = min(len(os.sched_getaffinity(0)), MAX_PROCESSES, len(todo) // _LEAST)
        if count < 2:
            yield directory
            return
        _run(todo, gpu, place, count)
        yield place


def work(task: dict[str, Any]) -> None:
    """What a process does: compile its launches into the cache; errors are for the parent."""
    gpu, directory = find_gpu(task["target"]), Path(task["directory"])
    for data in task["launches"]:
        with contextlib.suppress(Exception):  # the parent meets it again, and says it
            compile_launch(launch_from_json(data), gpu, directory)


def _run(launches: list[Launch], gpu: Gpu, directory: Path, count: int) -> None:
    # Long texts take longest: dealt out in that order, each process gets its share of them.
    launches = sorted(launches, key=lambda x: len(x.text), reverse=True)
    processes = []
    for i in range(count):
        task = {
            "path": sys.path,
            "target": str(gpu),
            "directory": str(directory),
            "launches": [asdict(x) for x in launches[i::count]],
        }
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        processes.append(process)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(task).encode())
            process.stdin.close()
    try:
        for process in processes:
            process.wait()
    except BaseException:  # Ctrl-C: nobody is left behind
        for process in processes:
            process.kill()
        raise
