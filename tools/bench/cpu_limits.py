"""What a CPU does at most: reading memory, and multiplying in registers, by small kernels."""

import os
from collections.abc import Callable
from functools import partial

import torch

from qfuse.lowering.cpu.codegen import compile_text
from qfuse.lowering.cpu.codes import KINDS
from qfuse.lowering.cpu.cpu import choose_level, cpu_features
from qfuse.lowering.cpu.emit import I32, LANES, Function, Value, buffer
from qfuse.lowering.cpu.kernel import CompiledKernel, Parameter
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.launcher import LoadedKernel
from qfuse.lowering.cpu.layout import BLOCK, GROUP, WeightLayout
from qfuse.lowering.cpu.pages import prefer_large_pages
from qfuse.lowering.cpu.product import Product, multiply
from qfuse.lowering.cpu.rowwise import build_row_entry
from qfuse.tools.bench.kernels import Call

_CHUNK = 16384
"""Elements of i32 that one task reads, in `_STREAMS` places at a time (TOOLCHAIN/CPU.md)."""

_STREAMS, _UNROLLED = 4, 2

_SUMS = 24
"""Registers that are added to in turn: more than the latency of a product times two per clock."""

_INSTRUCTIONS = {
    **{("avx512", "bf16"): "vdpbf16ps", ("avx512", "i8"): "vpdpbusd"},
    **{("avx2", "f32"): "vfmadd231ps", ("avx2", "i16"): "vpmaddwd"},
    **{("generic", "f32"): "mulps", ("generic", "i16"): "pmaddwd"},
}
"""What multiplies, by level and by kind (codes.py)."""

_ROUNDS, _TASKS = 4096, 256
_BYTES = 256 << 20
"""Read by all calls in turn, or four times the last level cache."""

_CALL_BYTES = 32 << 20
"""Read by one call: short enough that some find the processors free where others work."""


def last_level_cache() -> int:
    """Bytes; 32 MiB where nobody knows."""
    try:
        return max(os.sysconf("SC_LEVEL3_CACHE_SIZE"), 0) or 32 << 20
    except (ValueError, OSError):
        return 32 << 20


def busy_seconds() -> tuple[float, float]:
    """Seconds that all processors have worked since the start, for this process and those that it
    has waited for, and for others, time that other virtual machines took included."""
    with open("/proc/stat") as lines:
        user, nice, system, _, _, irq, soft_irq, steal = map(int, lines.readline().split()[1:9])
    every = (user + nice + system + irq + soft_irq + steal) / os.sysconf("SC_CLK_TCK")
    own = sum(os.times()[:4])
    return own, every - own


def read_probe(threads: int) -> tuple[list[Call], float]:
    """Calls that read a part each of memory that no cache holds, and how many bytes one reads."""

    def emit_row(lanes: Lanes, row: Value) -> None:
        f, source, sink = lanes.f, *lanes.f.params[:2]
        stride = _CHUNK // _STREAMS
        with f.loop(0, stride, _UNROLLED * LANES, carried=[f.isplat(0)] * _STREAMS) as loop:
            seen = loop.carried
            for u in range(_UNROLLED):
                for i in range(_STREAMS):
                    at = f.address((row, _CHUNK), loop.iv, i * stride + u * LANES)
                    seen[i] = f.binary("ori", seen[i], f.load(source, at, I32))
            loop.yielded = seen
        _store_all(f, "ori", loop.results, sink, row)

    rows = _CALL_BYTES // (4 * _CHUNK)
    count = -(-max(_BYTES, 4 * last_level_cache()) // _CALL_BYTES)
    memory = torch.empty(count, rows * _CHUNK, dtype=torch.int32)
    prefer_large_pages(memory.data_ptr(), memory.nbytes)
    memory.fill_(1)  # zeros may all be one page
    return _bound("read", "i32", emit_row, memory, rows, threads), 4.0 * rows * _CHUNK


def peak_probe(threads: int, integers: bool = False) -> tuple[list[Call], float]:
    """One call that multiplies what is in registers, as products of this CPU do, and its flops.

    They multiply floats, or `integers`, which are bytes.
    """
    product = _product(integers)

    def emit_row(lanes: Lanes, row: Value) -> None:
        f, source, sink = lanes.f, *lanes.f.params[:2]
        x = f.load(source, 0, I32)
        zero = f.isplat(0) if product.exact else f.splat(0.0)
        with f.loop(0, _ROUNDS, carried=[zero] * _SUMS) as loop:
            w = x
            if product.kind == "i16":  # of which LLVM would move the product out of the loop
                w = f.broadcast(f.cast("arith.index_cast", loop.iv, "i32"), I32)
            loop.yielded = [multiply(product, f, total, w, x) for total in loop.carried]
        _store_all(f, "addi" if product.exact else "addf", loop.results, sink, row)

    memory = torch.zeros(1, LANES, dtype=torch.int32)
    calls = _bound("peak", "i32", emit_row, memory, _TASKS, threads)
    return calls, 2.0 * LANES * KINDS[product.kind] * _SUMS * _ROUNDS * _TASKS


def multiplier(integers: bool) -> str:
    """The instruction that `peak_probe` measures."""
    product = _product(integers)
    return _INSTRUCTIONS[product.level, product.kind]


def _product(integers: bool) -> Product:
    w, x = ("i8", "i8") if integers else ("f8E4M3FN", "bf16")
    return Product(choose_level(None), WeightLayout((GROUP,), BLOCK, BLOCK, BLOCK), w, x)


def _store_all(f: Function, name: str, values: list[Value], sink: Value, row: Value) -> None:
    """What is never stored would never be computed."""
    total = values[0]
    for value in values[1:]:
        total = f.binary(name, total, value)
    f.store(f.bitcast(total, I32), sink, f.address((row, LANES)))


def _bound(
    name: str,
    dtype: str,
    emit_row: Callable[[Lanes, Value], None],
    memory: torch.Tensor,
    rows: int,
    threads: int,
) -> list[Call]:
    """A call for each row of `memory`: `rows` times `emit_row`, each of which leaves a vector."""
    data = [Value(f"%{which}", buffer(dtype)) for which in ("source", "sink")]
    level = choose_level(None)
    function, entry = build_row_entry("run", data, level, _CHUNK, 4, emit_row)
    parameters = Parameter("operand", 0), Parameter("result", 0)
    code = compile_text(function.text())
    kernel = LoadedKernel(CompiledKernel(name, level, cpu_features(), parameters, (entry,), code))
    sink = torch.zeros(rows * LANES, dtype=memory.dtype)
    return [
        partial(
            _launch, kernel.bind([part.data_ptr(), sink.data_ptr()], rows, threads), (part, sink)
        )
        for part in memory
    ]


def _launch(launch: Call, kept: object) -> None:
    """`kept` is what the launch works on."""
    launch()
