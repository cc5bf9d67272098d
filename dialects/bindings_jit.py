"""The execution engine of the MLIR bindings.

Apart from `bindings` because it loads LLVM's code generator, which only the CPU back end needs.
"""

from torch_mlir.execution_engine import ExecutionEngine

__all__ = ["ExecutionEngine"]
