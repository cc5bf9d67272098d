"""Interpreter of the Triton dialect on numpy: proves our kernels on a machine without a GPU.

| module | what it holds |
| --- | --- |
| `machine` | `run`: a launch over a grid, blocks of instructions, the `Report` |
| `program`, `types` | a `tt.func` read from MLIR; element types as numpy dtypes |
| `values` | an SSA value of all programs that run together, with its undefined lanes |
| `elementwise`, `conversions`, `rounding`, `inline_asm` | arithmetic, bit for bit where IEEE says |
| `tensors` | shapes, `tt.dot`, reductions and scans |
| `control` | `scf`: programs that diverge run in groups |
| `memory`, `access`, `ordering` | allocations, shadows, traps, and what atomics order |
| `memory_ops`, `descriptors` | loads, stores, atomics; TMA |
| `hints`, `arguments` | promises made to the compiler; what the caller passes |
"""

from qfuse.lowering.triton.interpreter.access import Trap
from qfuse.lowering.triton.interpreter.descriptors import TensorMap
from qfuse.lowering.triton.interpreter.machine import Report, run
from qfuse.lowering.triton.interpreter.memory import Buffer

__all__ = ["Buffer", "Report", "TensorMap", "Trap", "run"]
