"""Programs in processes of other kinds: forked after loading, on one core, with too many threads.

Each in a process of its own, with a limit of time: what went wrong there would hang.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qfuse.compiler import compile

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]

_BEGIN = """
import json, os, sys, tempfile
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
path, prompt = sys.argv[1], json.loads(sys.argv[2])
"""

_FORKED = """
from qfuse.compiler import load

exe = load(path)
exe.logits(prompt)  # the pools of torch and of the kernels have their threads now
wanted = exe.generate(prompt, 6)
reading, writing = os.pipe()
child = os.fork()
if child == 0:
    status = 1
    try:
        import torch

        torch.set_num_threads(1)  # torch's own pool did not survive the fork either
        os.write(writing, json.dumps(exe.generate(prompt, 6)).encode())
        status = 0
    finally:
        os._exit(status)
_, status = os.waitpid(child, 0)
os.close(writing)
found = os.read(reading, 1 << 16)
print(json.dumps({"status": status, "child": json.loads(found or b"null"), "wanted": wanted,
                  "after": exe.generate(prompt, 6)}))
"""

_THREADS = """
cores, threads = json.loads(sys.argv[3])
if cores:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
import torch

torch.set_num_threads(threads)
from qfuse.compiler import load

exe = load(path)
logits = exe.logits(prompt).flatten().float()
print(json.dumps({"tokens": exe.generate(prompt, 6), "logits": logits.tolist()}))
"""


@pytest.fixture(scope="module")
def artifact(
    checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """A program in a file, large enough for teams of threads, and the program."""
    exe = compile(checkpoints(hidden_size=512, intermediate_size=1024), max_len=64)
    path = tmp_path_factory.mktemp("processes") / "model.qfuse"
    exe.save(path)
    return path, exe


def run(script: str, path: Path, *arguments: Any) -> Any:
    words = [str(path), *(json.dumps(argument) for argument in (PROMPT, *arguments))]
    command = [sys.executable, "-c", _BEGIN + script, *words]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def test_a_fork_after_loading_works(artifact: tuple[Path, Any]) -> None:
    """The child has no pool: it computes on one thread, and the parent goes on with its own."""
    path, _ = artifact
    found = run(_FORKED, path)
    assert found["status"] == 0
    assert found["child"] == found["wanted"] == found["after"]


@pytest.mark.parametrize(
    ("cores", "threads"), [(0, 1), (0, 2), (0, 33), (1, 1), (1, 2)], ids=lambda n: str(n)
)
def test_cores_and_threads_change_nothing(
    artifact: tuple[Path, Any], cores: int, threads: int
) -> None:
    """On all cores or on one, as under taskset, by one thread or by more than there are cores.

    Attention and what else torch computes may round otherwise with other threads; logits of this
    model differ by 1e-3 where a single element of bf16 does.
    """
    path, exe = artifact
    found = run(_THREADS, path, [cores, threads])
    wanted = exe.logits(PROMPT).flatten().float()
    assert len(found["logits"]) == len(wanted)
    assert max(abs(a - b) for a, b in zip(found["logits"], wanted.tolist(), strict=True)) < 0.05
    assert found["tokens"] == exe.generate(PROMPT, 6)
