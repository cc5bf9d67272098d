"""The one module that names the package our MLIR bindings come from.

Everything else imports `ir`, `passmanager` and the dialects from here, so a move to another
build of the upstream bindings is an edit of this file.  Importing it never imports torch.
"""

import importlib
import sys
import types

from torch_mlir import ir, passmanager, rewrite

# `torch_mlir.dialects.torch` would also import a class for each of torch's operations (50 ms).
from torch_mlir._mlir_libs import _torchMlir as torch_dialect
from torch_mlir.dialects import arith, ext, func, math, pdl

# For each operation they hand to Python the bindings import a module of the operation's dialect,
# and remember only success.  These dialects have none; an empty one saves a search of the disk,
# which took two thirds of the time of our passes.
for _dialect in ("qfuse", "torch_c", "tt"):
    _name = f"{ir.__name__.partition('.')[0]}.dialects.{_dialect}"
    sys.modules.setdefault(_name, types.ModuleType(_name))


def gpu_dialect() -> types.ModuleType:
    """Upstream's gpu dialect, imported when it is asked for: few commands need its classes."""
    return importlib.import_module(f"{ir.__name__.partition('.')[0]}.dialects.gpu")


__all__ = [
    "arith",
    "ext",
    "func",
    "gpu_dialect",
    "ir",
    "math",
    "passmanager",
    "pdl",
    "rewrite",
    "torch_dialect",
]
