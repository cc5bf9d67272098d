"""Running a function of `lowering/cpu` that emits code for sixteen elements."""

import ctypes
from collections.abc import Callable

import torch

from qfuse.lowering.cpu.codegen import compile_text
from qfuse.lowering.cpu.emit import F32, I8, LANES, Function, Value, buffer, vector
from qfuse.lowering.cpu.loader import LoadedObject

_ELEMENTS = {
    torch.float32: ("f32", F32),
    torch.uint8: ("f8E4M3FN", I8),
    torch.int16: ("i16", vector("i16")),
}


def apply(
    emit: Callable[[Function, Value], Value], x: torch.Tensor, result: torch.dtype
) -> torch.Tensor:
    """`emit` on each element of `x`, f32 or codes of 8 or 16 bits; `result` is f32 or codes."""
    source = {1: torch.uint8, 2: torch.int16, 4: torch.float32}[x.itemsize]
    (from_, from_type), (to, _) = _ELEMENTS[source], _ELEMENTS[result]
    params = [Value("%x", buffer(from_)), Value("%y", buffer(to)), Value("%n", "index")]
    f = Function("apply", params)
    with f.loop(0, params[2], LANES) as loop:
        f.store(emit(f, f.load(params[0], loop.iv, from_type)), params[1], loop.iv)
    code = LoadedObject(compile_text(f.text()), "test")
    count = -(-x.numel() // LANES) * LANES
    padded = torch.zeros(count, dtype=source)
    padded[: x.numel()] = x.view(source)
    y = torch.empty(count, dtype=result)
    slots = (ctypes.c_int64 * 3)(padded.data_ptr(), y.data_ptr(), count)
    base = ctypes.addressof(slots)
    addresses = (ctypes.c_void_p * 3)(base, base + 8, base + 16)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address("apply"))(ctypes.addressof(addresses))
    return y[: x.numel()]
