"""In what order: the compiler, and what runs its results.

    from qfuse.compiler import compile, load

    exe = compile("path/to/checkpoint")
    exe.generate([1, 2, 3], max_new_tokens=32)
    exe.save("model.qfuse")
    exe = load("model.qfuse")                  # needs neither MLIR nor the checkpoint

    y = fp8_groupwise_scaled_gemm(x, x_scale, weight, weight_scale, (128, 128), "bfloat16")
    y = fp8_groupwise_scaled_group_gemm(
        x, x_scale, weight, weight_scale, indptr, (128, 128), "bfloat16"
    )

| file or folder | what it holds |
|---|---|
| compilation.py | `compile`: the whole flow on one page |
| options.py | what can be chosen, and the environment variables |
| exclusive.py | one compilation at a time |
| changes.py | noticing that a tensor holds something else than it did |
| frontend/ | checkpoints, GGUF files and torch modules to MLIR; the torch.compile backend |
| torch_ops.py, torch_moe.py, torch_router.py | our torch operators |
| torch_glu.py | gated linear units on tensors |
| block_scaled.py | the arithmetic of block-scaled FP8 tensors that they share |
| quantized_linear.py | a linear layer of any quantization scheme, from its definition |
| block_scaled.py, packed_weights.py | the arithmetic of quantized tensors that they share |
| gpu_attention.py | attention over caches on a GPU, without waiting for it |
| torch_ir.py | reading the torch dialect |
| operators.py | operators to call on tensors directly |
| gemm.py, group_gemm.py | the kernels behind them |
| tuning.py | choosing how products' loops run on this CPU, by measuring |
| routing.py, routing_adapters.py | which rows are whose: one contract, and those of others |
| pipeline.py | pass pipelines: the built-in order, and as text |
| passes/ | one pass per file |
| verification.py | running a program before and after each pass |
| reference/ | the dialect, executed in numpy |
| pdl.py, epilogue.py, remarks.py | what passes are written with |
| benefit.py | what a fusion saves, for its remark |
| on_torch.py | what stays on torch, and why |
| norms.py | which norms quantize what they make, for the report |
| expert_layers.py | launches of a layer of experts, for the report |
| plan/ | the lowered host program as data |
| runtime/ | running that, without MLIR |
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qfuse.compiler.compilation import compile
    from qfuse.compiler.operators import (
        fp8_groupwise_scaled_gemm,
        fp8_groupwise_scaled_group_gemm,
    )
    from qfuse.compiler.runtime.executable import Executable

__all__ = [
    "Executable",
    "compile",
    "fp8_groupwise_scaled_gemm",
    "fp8_groupwise_scaled_group_gemm",
    "load",
]

_OPERATORS = ("fp8_groupwise_scaled_gemm", "fp8_groupwise_scaled_group_gemm")


def load(path: Any) -> "Executable":
    """Read a program that `Executable.save` wrote; needs neither MLIR nor the model."""
    from qfuse.compiler.runtime.executable import Executable

    return Executable.load(path)


def __getattr__(name: str) -> Any:
    """Import the compiler only when it is asked for: what runs an artifact does without MLIR."""
    if name == "compile":
        from qfuse.compiler.compilation import compile

        return compile
    if name == "Executable":
        from qfuse.compiler.runtime.executable import Executable

        return Executable
    if name in _OPERATORS:
        from qfuse.compiler import operators

        return getattr(operators, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
