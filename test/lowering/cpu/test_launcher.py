"""Launches: their arguments, threads, forks, and what they refuse."""

import mmap
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cpu_kernels import (
    Tensor,
    compiled,
    kernel_text,
    loaded,
    matmul_text,
    plain,
    quantized,
    same_bits,
)
from test_matmul import activations, weight

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.kernel import CompiledKernel, Entry
from qfuse.lowering.cpu.launcher import Launch, LoadedKernel
from qfuse.lowering.cpu.weights import pack_weight

N, K = 640, 512  # large enough that a launch goes to the pool


def product() -> tuple[LoadedKernel, Tensor, tuple[Tensor, Tensor]]:
    text = matmul_text(plain(-1, K), quantized(N, K, block=(128, 128)), [plain(-1, N)])
    return loaded(text), activations(17, K), pack_weight([weight(N, K)], (128, 128))


def bind(kernel: LoadedKernel, x: Tensor, w: tuple, y: Tensor, m: int, threads: int) -> Launch:
    return kernel.bind([t.data_ptr() for t in (x, *w, y)], m, threads)


@pytest.mark.parametrize("m", [1, 17])
def test_threads_do_not_change_the_result(m: int) -> None:
    kernel, x, w = product()
    outputs = []
    for threads in (1, 2, 5, 4 * (os.cpu_count() or 1)):  # more than cores take turns
        y = torch.zeros(m, N, dtype=torch.bfloat16)
        launch = bind(kernel, x, w, y, m, threads)
        for _ in range(3):
            y.zero_()
            launch()
        outputs.append(y)
    assert all(same_bits(outputs[0], y) for y in outputs[1:])


def test_pointers_can_be_changed() -> None:
    kernel, x, w = product()
    first, second, wanted = (torch.zeros(1, N, dtype=torch.bfloat16) for _ in range(3))
    launch = bind(kernel, x, w, first, 1, 2)
    launch()
    launch.pointers[0] = x[5].data_ptr()
    launch.pointers[3] = second.data_ptr()
    launch()
    bind(kernel, x[5:6], w, wanted, 1, 1)()
    assert same_bits(second, wanted) and not same_bits(first, second)


def test_no_rows_do_nothing() -> None:
    kernel, x, w = product()
    y = torch.full((4,), 7.0)
    bind(kernel, x, w, y, 0, 2)()
    assert bool((y == 7).all())


def test_wrong_number_of_pointers() -> None:
    kernel, *_ = product()
    with pytest.raises(QfuseError, match="takes 4 pointers, got 1"):
        kernel.bind([0], 1, 1)


def test_several_python_threads() -> None:
    kernel, x, w = product()
    wanted = torch.zeros(17, N, dtype=torch.bfloat16)
    bind(kernel, x, w, wanted, 17, 2)()
    outputs = [torch.zeros_like(wanted) for _ in range(4)]

    def work(y: Tensor) -> None:
        launch = bind(kernel, x, w, y, 17, 2)
        for _ in range(5):
            launch()

    workers = [threading.Thread(target=work, args=(y,)) for y in outputs]
    for t in workers:
        t.start()
    for t in workers:
        t.join()
    assert all(same_bits(y, wanted) for y in outputs)


def test_stress() -> None:
    """Ten thousand calls from four threads, each bound anew: right bits, and no memory kept."""
    kernel, x, w = product()
    wanted = {m: torch.zeros(m, N, dtype=torch.bfloat16) for m in (1, 7, 16, 17)}
    for m, y in wanted.items():
        bind(kernel, x, w, y, m, 2)()
    wrong: list[int] = []

    def work(calls: int) -> None:
        y = torch.zeros(17, N, dtype=torch.bfloat16)
        for number in range(calls):
            m = list(wanted)[number % len(wanted)]
            bind(kernel, x, w, y.fill_(0), m, 2)()
            if not torch.equal(y[:m], wanted[m]) or bool(y[m:].any()):
                wrong.append(m)

    def call(calls: int) -> int:
        """`calls` in all; returns the bytes that the process then has."""
        workers = [threading.Thread(target=work, args=(calls // 4,)) for _ in range(4)]
        for t in workers:
            t.start()
        for t in workers:
            t.join()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE

    before = call(2000)  # starts the pools of the threads
    after = call(10000)
    assert not wrong
    # A launch for 17 rows has some 100 KB of scratch: had each kept its own, this were a gigabyte.
    assert after - before < 16 << 20


_ON_ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.path.insert(0, sys.argv[1])
import torch
from test_launcher import N, bind, product, same_bits
kernel, x, w = product()
outputs = [torch.zeros(17, N, dtype=torch.bfloat16) for _ in range(2)]
for y, threads in zip(outputs, (1, 4)):
    bind(kernel, x, w, y, 17, threads)()
print(same_bits(*outputs), float(outputs[0].float().norm()))
"""


def test_on_one_core() -> None:
    """As under taskset: a team of four threads takes turns there."""
    kernel, x, w = product()
    wanted = torch.zeros(17, N, dtype=torch.bfloat16)
    bind(kernel, x, w, wanted, 17, 2)()
    command = [sys.executable, "-c", _ON_ONE_CORE, str(Path(__file__).parent)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    same, norm = found.stdout.split()
    assert same == "True" and float(norm) == float(wanted.float().norm())


def test_works_after_fork() -> None:
    """The child has no pool; it must neither hang nor compute something else."""
    kernel, x, w = product()
    y = torch.zeros(1, N, dtype=torch.bfloat16)
    launch = bind(kernel, x, w, y, 1, 2)
    launch()
    wanted = bytes(y.view(torch.uint8).flatten().tolist())
    pid = os.fork()
    if pid == 0:  # no torch in the child: its own pool is gone, too
        launch()
        import ctypes

        os._exit(0 if ctypes.string_at(y.data_ptr(), len(wanted)) == wanted else 1)
    assert os.waitpid(pid, 0)[1] == 0


def test_another_cpu_is_refused() -> None:
    row = plain(-1, 8)
    kernel = compiled(kernel_text("relu", [row], [row]))
    foreign = replace(kernel, features=(*kernel.features, "avx2048"))
    with pytest.raises(QfuseError, match="was compiled for a CPU with avx2048"):
        LoadedKernel(foreign)


def test_metadata_round_trip() -> None:
    kernel = product()[0].compiled
    assert CompiledKernel.from_metadata(kernel.metadata(), kernel.code) == kernel
    assert [(p.source, p.index, p.part, p.packed) for p in kernel.parameters] == [
        ("operand", 0, "data", False),
        ("operand", 1, "data", True),
        ("operand", 1, "scale", True),
        ("result", 0, "data", False),
    ]


def test_entries_serve_every_number_of_rows_once() -> None:
    entries = product()[0].compiled.entries
    for m in range(1, 600):
        assert sum(e.serves(m) for e in entries) == 1


@pytest.mark.parametrize("sizes", [[1], [1, 1, 1], [8, 9], [100, 0, 3], [0, 0, 17], [7] * 40])
def test_groups_of_rows_fit(sizes: list[int]) -> None:
    """Scratch and tasks suffice however the rows fall into groups."""
    m, groups = sum(sizes), len(sizes)
    entry = Entry("run", tiles=3, rows=16, rows_multiple=8, row_groups=groups, shared_row_bytes=4)
    assert entry.shared_bytes(m) >= 4 * sum(-(-n // 8) * 8 for n in sizes)
    assert entry.tasks(m, 16) >= 3 * sum(-(-n // 16) for n in sizes)


@pytest.mark.parametrize("m", [1, 9, 100, 513, 5000])
@pytest.mark.parametrize("threads", [1, 2, 64])
def test_task_rows(m: int, threads: int) -> None:
    entry = Entry("run", tiles=3, rows=512, rows_multiple=8)
    rows = entry.task_rows(m, threads)
    assert rows % 8 == 0 and 8 <= rows <= 512
    tasks = 3 * -(-m // rows)
    assert threads == 1 or tasks >= 4 * threads or rows == 8
