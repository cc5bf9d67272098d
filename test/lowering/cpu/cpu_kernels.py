"""What the tests of CPU kernels share: kernels as text, running them, and references in torch."""

import ctypes
import math
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch

from qfuse.dialects.bindings import func, ir
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.cache import compile_cached
from qfuse.lowering.cpu.cpu import missing_flags
from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.launcher import LoadedKernel

TESTED_LEVELS = [level for level in ("avx512", "generic") if not missing_flags(level)]
"""The level avx2 emits what generic does."""

TORCH = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f8E4M3FN": torch.float8_e4m3fn,
    "f8E5M2": torch.float8_e5m2,
    "f8E8M0FNU": torch.float8_e8m0fnu,
    "i8": torch.int8,
    "i32": torch.int32,
    "i64": torch.int64,
}
FP8_MAX = {"f8E4M3FN": 448.0, "f8E5M2": 57344.0}

Tensor = torch.Tensor
Quantized = tuple[Tensor, Tensor]

_RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
CACHE = Path(tempfile.gettempdir()) / f"qfuse-test-kernels-{os.getuid()}-{_RUN}"
"""Shared by the processes of one test run."""


def plain(*shape: int, dtype: str = "bf16") -> Shaped:
    """A tensor type; -1 is a dynamic extent."""
    return Shaped(tuple(DYNAMIC if d < 0 else d for d in shape), dtype)


def quantized(*shape: int, block: tuple[int, int] = (1, 128), dtype: str = "f8E4M3FN") -> Shaped:
    return Shaped(plain(*shape).shape, dtype, Scheme(block, "f32"))


FIELDS = {"rms_norm": 5, "glu": 3}
"""Operations with optional operands, and how many they may have."""


def kernel_text(
    op: str,
    operands: Sequence[Shaped],
    results: Sequence[Shaped],
    attributes: str = "",
    region: str = "",
) -> str:
    """An outlined kernel: one operation on all arguments, returning all results.

    Norms and GLUs have no scales among their operands, unless `attributes` say so.
    """
    if op in FIELDS and "operandSegmentSizes" not in attributes:
        present = [i < len(operands) for i in range(FIELDS[op])]
        attributes += ", " + segment_sizes("operand", present)
    args = ", ".join(f"%a{i}: {t}" for i, t in enumerate(operands))
    names = ", ".join(f"%a{i}" for i in range(len(operands)))
    outs = ", ".join(f"%r{i}" for i in range(len(results)))
    ins, types = (", ".join(map(str, ts)) for ts in (operands, results))
    body = f" ({{\n{region}\n}})" if region else ""
    return (
        f"func.func private @k({args}) -> ({types}) attributes {{qfuse.kernel}} {{\n"
        f'  {outs} = "qfuse.{op}"({names}){body} {{{attributes}}} : ({ins}) -> ({types})\n'
        f"  return {outs} : {types}\n}}\n"
    )


def segment_sizes(kind: str, present: Sequence[bool]) -> str:
    sizes = ", ".join(str(int(p)) for p in present)
    return f"{kind}SegmentSizes = array<i32: {sizes}>"


Extra = Sequence[tuple[Shaped, str]]


def matmul_text(
    x: Shaped,
    w: Shaped,
    results: Sequence[Shaped],
    body: str = "",
    yields: Sequence[str] = ("%acc0",),
    extra: Extra = (),
    parts: Sequence[int] = (),
) -> str:
    """A product; the region's arguments are %acc0.. and %e0.., `body` is what it computes."""
    return _product_text("matmul", [x, w], results, body, yields, extra, parts or [w.shape[0]])


def group_text(
    x: Shaped,
    w: Shaped,
    results: Sequence[Shaped],
    choices: int = 0,
    body: str = "",
    yields: Sequence[str] = ("%acc0",),
    extra: Extra = (),
    parts: Sequence[int] = (),
) -> str:
    """As `matmul_text`, by experts; with `choices`, rows of x are those of tokens [T, choices]."""
    indptr, tokens = plain(w.shape[0] + 1, dtype="i32"), plain(-1, choices, dtype="i32")
    operands = [x, w, indptr, tokens if choices else None]
    parts = parts or [w.shape[1]]
    return _product_text("group_matmul", operands, results, body, yields, extra, parts)


def group_combine_text(
    x: Shaped,
    w: Shaped,
    slots: Shaped,
    weights: Shaped,
    result: Shaped,
    residual: bool = False,
    row: str = "bf16",
    choices: int = 0,
    body: str = "",
    value: str = "%acc0",
    extra: Extra = (),
    parts: Sequence[int] = (),
) -> str:
    """As `group_text`, for rows of type `row` that it adds up; `value` is what they are."""
    indptr, tokens = plain(w.shape[0] + 1, dtype="i32"), plain(-1, choices, dtype="i32")
    operands = [x, w, indptr, slots, weights]
    operands += [result if residual else None, tokens if choices else None]
    if row != "f32":
        body += f"\n%cut = arith.truncf {value} : f32 to {row}"
        body += f"\n%row = arith.extf %cut : {row} to f32"
        value = "%row"
    parts = parts or [w.shape[1]]
    name = "group_matmul_combine"
    return _product_text(name, operands, [result], body, [value], extra, parts)


def _product_text(
    op: str,
    operands: Sequence[Shaped | None],
    results: Sequence[Shaped],
    body: str,
    yields: Sequence[str],
    extra: Extra,
    parts: Sequence[int],
) -> str:
    arguments = [f"%acc{i}: f32" for i in range(len(parts))]
    arguments += [f"%e{i}: f32" for i in range(len(extra))]
    types = ", ".join(["f32"] * len(yields))
    region = (
        f"^bb0({', '.join(arguments)}):\n{body}\n"
        f'"qfuse.yield"({", ".join(yields)}) : ({types}) -> ()'
    )
    maps = ", ".join(f'"{m}"' for _, m in extra)
    present = [o is not None for o in operands] + [i < len(extra) for i in range(6)]
    attributes = (
        f"parts = array<i64: {', '.join(map(str, parts))}>, maps = [{maps}], "
        + segment_sizes("operand", present)
    )
    if op != "group_matmul_combine":
        made = [True] * len(results) + [False] * (4 - len(results))
        attributes += ", " + segment_sizes("result", made)
    given = [o for o in operands if o is not None]
    return kernel_text(op, [*given, *(t for t, _ in extra)], results, attributes, region)


@contextmanager
def parsed(text: str) -> Iterator[func.FuncOp]:
    """The first function of a module, alive as long as the context manager."""
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(text)
    yield next(iter(module.body.operations))


def compiled(text: str, level: str | None = None) -> CompiledKernel:
    with parsed(text) as kernel:
        return compile_cached(kernel, CACHE, level=level)


@lru_cache(maxsize=64)
def loaded(text: str, level: str | None = None) -> LoadedKernel:
    return LoadedKernel(compiled(text, level))


def run(
    text: str,
    level: str | None,
    arguments: Sequence[Tensor | Quantized],
    results: Sequence[Shaped],
    m: int,
    rows: Sequence[int] | None = None,
    threads: int = 1,
) -> list[Tensor | Quantized]:
    """Run a kernel on `m` rows; results have leading extents `rows`, by default [m].

    A result of one dimension has no rows.  Results are filled with a pattern before and guarded by
    it on both sides, as scratch is: a kernel that writes too little or too much is noticed.  One
    that reads beyond an argument ends the process, for no memory follows.
    """
    kernel = loaded(text, level)
    rows = [m] if rows is None else rows
    held = [t for a in arguments for t in (a if isinstance(a, tuple) else (a,))]
    held = [fenced(t.contiguous()) for t in held]
    guarded, out = [], []
    for r in results:
        pieces = [(r.shape[-1], TORCH[r.dtype])]
        pieces += [(r.scale_shape[-1], TORCH[r.scheme.scale])] if r.scheme else []
        leading = rows if len(r.shape) > 1 else []
        tensors = []
        for width, dtype in pieces:
            shape = (*leading, width)
            memory, used = poisoned(math.prod(shape) * dtype.itemsize)
            guarded.append((memory, used))
            tensors.append(used.view(dtype).view(shape))
        out.append(tuple(tensors) if r.quantized else tensors[0])
    scratch = poisoned(kernel.compiled.scratch_bytes(m, threads))
    pointers = [t.data_ptr() for t in (*held, *(used for _, used in guarded))]
    kernel.bind(pointers, m, threads, scratch[1].data_ptr())()
    for memory, used in [*guarded, scratch]:
        begin = used.data_ptr() - memory.data_ptr()
        assert bool((memory[:begin] == POISON).all()), "wrote before a result"
        assert bool((memory[begin + len(used) :] == POISON).all()), "wrote beyond a result"
    return out


def fenced(tensor: Tensor) -> Tensor:
    """A copy with an inaccessible page right behind it."""
    size = tensor.numel() * tensor.itemsize
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = torch.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), dtype=torch.uint8)
    ctypes.CDLL(None).mprotect(ctypes.c_void_p(memory.data_ptr() + pages), mmap.PAGESIZE, 0)
    copy = memory[pages - size : pages].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)


POISON = 0xA5
_GUARD = 4096


def poisoned(size: int) -> tuple[Tensor, Tensor]:
    """(all memory, the `size` bytes in the middle of it, aligned to 64), filled with a pattern."""
    memory = torch.full((size + 2 * _GUARD,), POISON, dtype=torch.uint8)
    begin = -memory.data_ptr() % 64 + _GUARD - 64
    return memory, memory[begin : begin + size]


def quantize_reference(x: Tensor, block: tuple[int, int], dtype: str = "f8E4M3FN") -> Quantized:
    """The definition in `qfuse.quantize`, in torch."""
    rows, columns = x.shape
    r, c = block
    padded = torch.nn.functional.pad(x.float(), (0, -columns % c, 0, -rows % r))
    tiles = padded.unflatten(1, (-1, c)).unflatten(0, (-1, r))
    amax = tiles.abs().amax((1, 3), keepdim=True).clamp_min(1e-10)
    limit = FP8_MAX[dtype]
    # `limit / amax` would be limit * (1 / amax), rounded twice: torch has no reversed division.
    inverse = torch.full_like(amax, limit) / amax
    codes = (tiles * inverse).clamp(-limit, limit).to(TORCH[dtype]).view(torch.uint8)
    codes = codes.flatten(2).flatten(0, 1)[:rows, :columns].contiguous().view(TORCH[dtype])
    return codes, (amax / limit).squeeze(3).squeeze(1)


def dequantize_reference(q: Quantized, block: tuple[int, int]) -> Tensor:
    """f64, so that it is exact."""
    codes, scale = q
    rows, columns = codes.shape
    spread = scale.double().repeat_interleave(block[0], 0)[:rows]
    spread = spread.repeat_interleave(block[1], 1)[:, :columns]
    return codes.float().double() * spread


def same_bits(a: Tensor | Quantized, b: Tensor | Quantized) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return all(map(same_bits, a, b))
    assert isinstance(a, Tensor) and isinstance(b, Tensor)
    return a.shape == b.shape and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )
