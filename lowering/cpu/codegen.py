"""From an outlined kernel function to machine code.

func.func private @k(...) { one qfuse operation }
  -> MLIR text of vector, scf, memref and arith     (matmul.py, norm.py, elementwise.py)
  -> LLVM dialect                                    (_PIPELINE)
  -> relocatable object, compiled for this CPU       (the bindings' execution engine)
"""

import tempfile
from pathlib import Path
from types import ModuleType

from qfuse.dialects.bindings import func, ir, passmanager
from qfuse.dialects.bindings_jit import ExecutionEngine
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu import (
    attention,
    elementwise,
    group_combine,
    group_matmul,
    matmul,
    norm,
    routing,
    select_experts,
    tensor_scale,
)
from qfuse.lowering.cpu.cpu import choose_level, cpu_features, target_attributes
from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.signature import Built, read_signature
from qfuse.lowering.cpu.tunables import Tunables

_PRODUCTS = (matmul, group_matmul, group_combine)
_MODULES = (*_PRODUCTS, norm, elementwise, tensor_scale, routing, select_experts, attention)

_FAMILIES: dict[str, ModuleType] = {op: family for family in _MODULES for op in family.OPS}

_PIPELINE = (
    "builtin.module(canonicalize,cse,convert-scf-to-cf,"
    "convert-vector-to-llvm{enable-x86=true},"
    "convert-math-to-llvm,finalize-memref-to-llvm,convert-arith-to-llvm,"
    "convert-index-to-llvm,convert-ub-to-llvm,"
    "convert-func-to-llvm{use-bare-ptr-memref-call-conv=1},convert-cf-to-llvm,"
    "reconcile-unrealized-casts)"
)


def unsupported(op: ir.Operation | ir.OpView) -> str | None:
    """Why `op` cannot become a CPU kernel, or None; generates no code."""
    op = op.operation
    family = _FAMILIES.get(op.name)
    if family is None:
        return f"{op.name} has no CPU kernel; there are kernels for {', '.join(_FAMILIES)}"
    return family.refuse(op)


def compile_kernel(
    kernel: func.FuncOp,
    *,
    level: str | None = None,
    tuned: Tunables | None = None,
    entry: str | None = None,
) -> CompiledKernel:
    """Machine code for a function that `qfuse-convert-to-cpu` outlined.

    `level` is one of cpu.LEVELS, by default the best that this CPU runs; `tuned` is for products,
    by default what `tunables.py` says; `entry` names the only one to compile, by default there are
    all.  Raises QfuseError, naming the operation, where it is, why it is not supported, and what
    would be.
    """
    level = choose_level(level)
    signature = read_signature(kernel)
    if why := unsupported(signature.op):
        raise QfuseError(f"{signature.op.name} at {signature.op.location}: {why}")
    with kernel.context, ir.Location.unknown():
        family = _FAMILIES[signature.op.name]
        choices = (tuned,) if family in _PRODUCTS else ()
        built = family.build(signature, level, *choices)
    if entry is not None:
        built = built.only(entry)
    return CompiledKernel(
        name=kernel.name.value,
        level=level,
        features=cpu_features(),
        parameters=signature.parameters,
        entries=tuple(built.entries),
        code=compile_text(kernel_text(built, level)),
        product=built.product,
    )


def kernel_text(built: Built, level: str) -> str:
    """The MLIR module of a kernel, before it is lowered to LLVM."""
    target = target_attributes(level)
    return "".join(f.text(target) for f in built.functions)


def compile_text(text: str) -> bytes:
    """The object of a module of vector, scf, memref and arith operations."""
    with ir.Context(), ir.Location.unknown():
        try:
            module = ir.Module.parse(text)
            lower = passmanager.PassManager.parse(_PIPELINE)
            # Parsing verifies the text; verifying after each pass takes a seventh of all this time.
            lower.enable_verifier(False)
            lower.run(module.operation)
        except ir.MLIRError as error:
            raise QfuseError(f"internal error: kernel does not lower: {error}") from error
        # LLVM's third level unrolls more of what stands unrolled already: an eighth more of all
        # this time, for code that was faster nowhere, and in products of int4 and Q4_K by few
        # rows slower by 5 to 25 %.
        engine = ExecutionEngine(module, opt_level=2, shared_libs=[], enable_object_dump=True)
        with tempfile.TemporaryDirectory(prefix="qfuse-") as directory:
            path = Path(directory) / "kernel.o"
            engine.dump_to_object_file(str(path))
            return path.read_bytes()
