"""Which norms of a fused program quantize what they make, and who reads those that do not."""

from collections import Counter
from typing import Any

from qfuse.compiler.passes.fuse_norm_quantize import VALUE, formats, outputs
from qfuse.compiler.passes.predicates import readers
from qfuse.compiler.reference.values import name_of
from qfuse.dialects.bindings import ir

_CASTS = ("torch_c.to_builtin_tensor", "torch_c.from_builtin_tensor")


def count_norms(module: ir.Module) -> dict[str, Any]:
    """The norms of a module that is not lowered yet, as `Report.from_json` reads them.

    `fused` counts those of `total` that also quantize; `others` maps why the rest does not to how
    many that is true of.
    """
    total, fused = 0, 0
    others: Counter[str] = Counter()
    for function in module.body.operations:
        for block in function.regions[0].blocks:
            for op in block.operations:
                if op.operation.name != "qfuse.rms_norm":
                    continue
                total += 1
                if formats(op.operation):
                    fused += 1
                else:
                    others[_why(outputs(op.operation)[VALUE])] += 1
    return {"total": total, "fused": fused, "others": dict(others)}


def _why(value: ir.Value) -> str:
    names = sorted({name_of(op) for op in _readers(value)})
    if "qfuse.quantize" in names:
        return "its quantization is apart"
    return f"only {' and '.join(names)} reads it, unquantized" if names else "nothing reads it"


def _readers(value: ir.Value) -> list[ir.Operation]:
    """Those of a value, through casts between torch's types and ours."""
    found = []
    for op in readers(value):
        found += _readers(op.results[0]) if op.name in _CASTS else [op]
    return found
