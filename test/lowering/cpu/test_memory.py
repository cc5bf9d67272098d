"""What kernels cost in memory, and that it goes with them; each case in a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qfuse.compiler import compile

_BEGIN = """
import gc, json, mmap, os, sys
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
import torch

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE

def growth(cycle, warm, count):
    "Bytes that `count` more cycles leave behind."
    for _ in range(warm):
        cycle()
    before = resident()
    for _ in range(count):
        cycle()
    return resident() - before
"""

_LIVE = """
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from test_launcher import LoadedKernel, product

compiled = product()[0].compiled
parts = [compiled.metadata() | {"name": f"k{i}"} for i in range(96)]
make = type(compiled).from_metadata

def load():
    "Distinct kernels, each with an object of its own."
    return [LoadedKernel(make(data, bytes(bytearray(compiled.code)))) for data in parts]

load()
before = resident()
live = load()
held = resident()
count = len(live)
del live
dropped = resident()
print(json.dumps({"code": len(compiled.code), "count": count, "each": (held - before) / count,
                  "left": dropped - before, "again": growth(load, 1, 4)}))
"""

_COMPILED = """
sys.path.insert(0, sys.argv[1])
from cpu_kernels import LoadedKernel, kernel_text, parsed, plain
from qfuse.lowering.cpu.codegen import compile_kernel

text = kernel_text("silu", [plain(-1, 64)], [plain(-1, 64)])

def cycle():
    with parsed(text) as kernel:
        LoadedKernel(compile_kernel(kernel))

print(json.dumps(growth(cycle, 8, 40)))
"""

_PROGRAMS = """
from qfuse.compiler import load

def cycle():
    exe = load(sys.argv[1])
    exe.logits([1, 2, 3])
    exe.logits([4])

print(json.dumps({"growth": growth(cycle, 40, 60), "mlir": "torch_mlir" in sys.modules}))
"""

_MODELS = """
import linecache
from qfuse.compiler import compile
from qfuse.dialects.errors import QfuseError
from torch import nn

class Untraceable(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x

class Refused(nn.Linear):
    def forward(self, x):
        return super().forward(x), x.shape[0]

def module(kind, dynamic=True):
    tokens = ({0: torch.export.Dim("T", min=1, max=64)},) if dynamic else None
    try:
        compile(kind(64, 128), (torch.randn(4, 64),), dynamic_shapes=tokens)
    except QfuseError as error:
        return str(error)

def live():
    for _ in range(4):  # what one round frees may free more in the next
        gc.collect()
    texts = sum(name.startswith("<eval_with_key>") for name in linecache.cache)
    return len(gc.get_objects()), texts

def each(cycle, warm=2, count=2):
    "Objects, and texts of traced graphs, that there are more of after each cycle."
    for _ in range(warm):
        cycle()
    before = live()
    for _ in range(count):
        cycle()
    return [(b - a) / count for a, b in zip(before, live())]

print(json.dumps({
    "checkpoint": each(lambda: compile(sys.argv[1], max_len=32)),
    "module": each(lambda: module(nn.Linear, dynamic=False)),
    "dynamic": each(lambda: module(nn.Linear)),
    "untraceable": each(lambda: module(Untraceable)),
    "refused": each(lambda: module(Refused)),
    "errors": [module(Untraceable), module(Refused)],
}))
"""

_BACKEND = """
import weakref
from qfuse.compiler.frontend.dynamo import GraphProgram
from qfuse.compiler.runtime.executable import Executable
from qfuse.lowering.cpu.launcher import LoadedKernel
from torch import nn

def count():
    gc.collect()
    kinds = [type(o) for o in gc.get_objects()]
    return {k.__name__: kinds.count(k) for k in (GraphProgram, Executable, LoadedKernel)}

def cycle(dynamic):
    "What there is of ours while a model is compiled; and its weights, weakly."
    model = nn.Sequential(nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64)).requires_grad_(False)
    run = torch.compile(model, backend="qfuse", dynamic=dynamic)
    for tokens in (4, 6):
        run(torch.randn(tokens, 64))
    weights = list(model.parameters())
    kept = weights + [weight.untyped_storage() for weight in weights]
    return count(), [weakref.ref(each) for each in kept]

found = []
for dynamic in (None, True, None, True):
    live, weights = cycle(dynamic)
    torch._dynamo.reset()
    left = count()
    found.append({"live": live, "left": left,
                  "weights": sum(weight() is not None for weight in weights)})
print(json.dumps(found))
"""


def run(script: str, argument: Path) -> Any:
    command = [sys.executable, "-c", _BEGIN + script, str(argument)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def test_a_live_kernel_takes_little_more_than_its_code() -> None:
    """Its object's bytes, its pages, and some Python; an execution engine would take 3.4 MB."""
    found = run(_LIVE, Path(__file__).parent)
    assert found["each"] <= 2 * found["code"] + (32 << 10), found
    # Of 96 kernels that were dropped, less is left than eight may take: what allocators keep.
    most = 8 * (2 * found["code"] + (32 << 10))
    assert found["left"] <= most, found
    assert found["again"] <= 2 * most, found  # of four times as many


def test_compiling_leaves_nothing_behind() -> None:
    """Had each of 40 compilations left a context or an engine, these were more than 100 MB."""
    assert run(_COMPILED, Path(__file__).parent) <= 4 << 20


def test_a_program_goes_with_its_kernels(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    exe = compile(checkpoints(), max_len=32)
    exe.save(tmp_path / "model.qfuse")
    sizes = exe.program.sizes()
    found = run(_PROGRAMS, tmp_path / "model.qfuse")
    assert not found["mlir"]
    # Sixty programs, after torch and the allocator have what they keep: had one in ten stayed,
    # with what it holds, there were more.
    assert found["growth"] <= 6 * (sizes["kernel_bytes"] + sizes["weight_bytes"]), (found, sizes)


def test_a_compiled_model_leaves_nothing_behind(checkpoints: Callable[..., Path]) -> None:
    """Of what torch keeps of every trace (frontend/traces.py), 4,600 objects and 120 KB of text.

    What is left is sympy's cache, of a fixed size, and 5 KB that safetensors leaks by itself.
    """
    found = run(_MODELS, checkpoints())
    untraceable, refused = found.pop("errors")
    assert "cannot export" in untraceable and "must be tensors" in refused
    for case, (objects, texts) in found.items():
        assert objects <= 60 and texts == 0, (case, found)


def test_a_dropped_backend_leaves_nothing_behind() -> None:
    """A model that torch.compile compiled goes with what was compiled for it, at the reset."""
    for cycle in run(_BACKEND, Path(__file__).parent):
        assert all(cycle["live"].values()), cycle
        assert not any(cycle["left"].values()) and not cycle["weights"], cycle
