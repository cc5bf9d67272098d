"""Compiled objects on disk, shared by processes.

A file is named by a digest of everything its content depends on: the kernel's text with its name
made neutral, the level, what was tuned, the CPU's features, the source of the code generator and
the version of the toolchain.  It holds a digest of its own bytes, so a damaged file is noticed and
made again.
"""

import hashlib
import json
from dataclasses import replace
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from qfuse.dialects import activations, glu
from qfuse.dialects.bindings import func, ir
from qfuse.lowering.cache_file import read_cached, write_cached
from qfuse.lowering.cpu.codegen import compile_kernel
from qfuse.lowering.cpu.cpu import choose_level, cpu_features
from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.tunables import Tunables


def compile_cached(
    kernel: func.FuncOp,
    directory: Path | None,
    *,
    level: str | None = None,
    tuned: Tunables | None = None,
) -> CompiledKernel:
    """`compile_kernel`, or what an earlier call left in `directory`; None means no cache.

    A directory that cannot be written is no error: the kernel is compiled each time.
    """
    if directory is None:
        return compile_kernel(kernel, level=level, tuned=tuned)
    path = Path(directory) / f"{kernel_key(kernel, choose_level(level), tuned)}.kernel"
    cached = _read(path)
    if cached is not None:
        return replace(cached, name=kernel.name.value)
    compiled = compile_kernel(kernel, level=level, tuned=tuned)
    write_cached(path, compiled.metadata(), compiled.code)
    return compiled


def kernel_key(kernel: func.FuncOp, level: str, tuned: Tunables | None = None) -> str:
    """What identifies the machine code of a kernel; equal for kernels that differ in name only."""
    choices = "" if tuned is None else json.dumps(tuned.to_json())
    with kernel.context, kernel.location:
        neutral = kernel.operation.clone()
        neutral.attributes["sym_name"] = ir.StringAttr.get("kernel")
        text = neutral.get_asm(enable_debug_info=False, print_generic_op_form=True)
        neutral.erase()
    fields = [text, level, choices, " ".join(cpu_features()), code_generator(), _toolchain()]
    return hashlib.sha256("\0".join(fields).encode()).hexdigest()[:40]


@lru_cache(maxsize=1)
def code_generator() -> str:
    """A digest of the source that kernels come from: no change of it can meet an older kernel."""
    definitions = (Path(activations.__file__), Path(glu.__file__))
    files = [*sorted(Path(__file__).parent.glob("*.py")), *definitions]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


@lru_cache(maxsize=1)
def _toolchain() -> str:
    return metadata.version("torch-mlir")


def _read(path: Path) -> CompiledKernel | None:
    """The kernel in a file, or None if there is none or it is not whole."""
    cached = read_cached(path)
    if cached is None:
        return None
    try:
        return CompiledKernel.from_metadata(*cached)
    except (ValueError, KeyError, TypeError):
        return None
