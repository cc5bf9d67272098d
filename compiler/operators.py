"""Operators called on torch tensors directly; each is compiled when it is first called.

    y = fp8_groupwise_scaled_gemm(x, x_scale, weight, weight_scale, (128, 128), "bfloat16")

They run where their tensors are: on the CPU, or on any NVIDIA GPU that kernels exist for.  They
are operators of torch too (`torch.ops.qfuse.*`), so torch.compile and torch.export keep them whole.
They have no gradients.
"""

import threading
from collections.abc import Sequence
from typing import Any

import torch

from qfuse.compiler.gemm import FP8, NAME, OUT, CpuGemm, Gemm, GpuGemm, Operands
from qfuse.compiler.options import CompileOptions
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton.launcher import POINTER_ALIGNMENT


def fp8_groupwise_scaled_gemm(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    block_size: Sequence[int],
    out_dtype: str | torch.dtype,
) -> torch.Tensor:
    """`x` times the transpose of `weight`, both FP8 with f32 scales per block; MLC LLM's operator.

    `block_size` is (bn, bk).  `x` is [M, K] and `weight` [N, K], contiguous, both float8_e4m3fn
    or both float8_e5m2; `x_scale` is float32 [M, ceil(K / bk)], lying by rows or by columns, and
    `weight_scale` float32 [ceil(N / bn), ceil(K / bk)], by rows.  A scale multiplies the codes of
    its block, and the last block of a row or column may be partial:

        out[m, n] = sum over k of  x[m, k] * x_scale[m, k // bk]
                                 * weight[n, k] * weight_scale[n // bn, k // bk]

    summed in f32 and rounded once to `out_dtype`: "float16", "bfloat16" or "float32", or the
    torch.dtype.  Returns [M, N], empty for M = 0.

    The first call for an N, K, block, types and device compiles; kernels are kept on disk
    (`QFUSE_CACHE_DIR`).  Before a CUDA graph captures it, it must have been called once, as no
    code can be loaded during a capture.

    On the CPU a weight is also packed once, into memory of its own that goes when the weight
    does.  A change of the weight is noticed and packs it again, unless it goes through
    `weight.data`, of which torch keeps no record; a weight that was made in inference mode, whose
    changes torch does not record at all, is packed at every call.

    Raises QfuseError, in one line, for tensors that do not fit this description.
    """
    arguments = {"x": x, "x_scale": x_scale, "weight": weight, "weight_scale": weight_scale}
    for name, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            raise _error(f"{name} is a {type(value).__name__}, not a tensor")
    dtype = getattr(torch, out_dtype, None) if isinstance(out_dtype, str) else out_dtype
    if not isinstance(dtype, torch.dtype) or dtype not in OUT:
        raise _error(f"out_dtype {out_dtype!r} is not one of {_names(OUT)}")
    if not isinstance(block_size, Sequence) or not all(isinstance(b, int) for b in block_size):
        raise _error(f"block_size {block_size!r} is not two positive extents (bn, bk)")
    return torch.ops.qfuse.fp8_groupwise_scaled_gemm(
        x, x_scale, weight, weight_scale, list(block_size), dtype
    )


_COMPILED: dict[tuple[Gemm, str], CpuGemm | GpuGemm] = {}
_COMPILING = threading.Lock()


def _compiled(gemm: Gemm, device: torch.device) -> CpuGemm | GpuGemm:
    """The product for a device, compiled at the first call."""
    target = _target(device)
    key = gemm, target
    if key not in _COMPILED:
        with _COMPILING:
            if key not in _COMPILED:
                try:
                    options = CompileOptions.make(target)
                    make = CpuGemm if options.target.is_cpu else GpuGemm.compile
                    _COMPILED[key] = make(gemm, options)
                except QfuseError as error:
                    raise _error(f"{gemm}: {error}") from None
    return _COMPILED[key]


def _target(device: torch.device) -> str:
    """What to compile for: "cpu", or the architecture of a GPU."""
    if device.type == "cpu":
        return "cpu"
    if torch.version.hip is not None:
        arch = torch.cuda.get_device_properties(device).gcnArchName
        return f"hip:{arch.partition(':')[0]}"
    major, minor = torch.cuda.get_device_capability(device)
    return f"cuda:sm_{major}{minor}"


def _run(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    block_size: list[int],
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """The operator."""
    operands = Operands(x, x_scale, weight, weight_scale)
    gemm = _check(operands, block_size, out_dtype)
    out = x.new_empty((len(x), gemm.n), dtype=out_dtype)
    if len(x):
        if x.device.type != "cpu":
            _check_alignment(operands)
        _compiled(gemm, x.device)(operands, out)
    return out


def _fake(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    block_size: list[int],
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """What is known of the result without computing it; the checks are those of a call."""
    _check(Operands(x, x_scale, weight, weight_scale), block_size, out_dtype)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=out_dtype)


def _check(operands: Operands, block_size: Sequence[int], out_dtype: torch.dtype) -> Gemm:
    """What is to be computed; raises QfuseError if the arguments do not fit together."""
    x, x_scale, weight, weight_scale = operands
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise _error(f"x is on {x.device}; there are kernels for cpu and cuda")
    for name, tensor in operands._asdict().items():
        if tensor.device != x.device:
            raise _error(f"{name} is on {tensor.device}, but x on {x.device}")
    if x.dtype not in FP8:
        raise _error(f"x is {_name(x.dtype)}; expected {_names(FP8)}")
    if weight.dtype != x.dtype:
        raise _error(f"weight is {_name(weight.dtype)}, but x is {_name(x.dtype)}; use one type")
    if out_dtype not in OUT:
        raise _error(f"out_dtype {_name(out_dtype)} is not one of {_names(OUT)}")
    if len(block_size) != 2 or min(block_size) < 1:
        raise _error(f"block_size {list(block_size)} is not two positive extents (bn, bk)")
    if x.dim() != 2:
        raise _error(f"x is {_shape(x)}; expected [M, K]")
    if weight.dim() != 2 or weight.shape[1] != x.shape[1]:
        raise _error(f"weight is {_shape(weight)}; expected [N, {x.shape[1]}], as x is {_shape(x)}")
    (m, k), (n, _), (bn, bk) = x.shape, weight.shape, block_size
    if k == 0 or n == 0:
        raise _error(f"x is {_shape(x)} and weight {_shape(weight)}; neither N nor K may be 0")
    per_row = f"one per row and {bk} columns of x {_shape(x)}"
    per_block = f"one per block of {bn} x {bk} of weight {_shape(weight)}"
    groups = ceil_div(k, bk)
    for name, scale, wanted, why in (
        ("x_scale", x_scale, [m, groups], per_row),
        ("weight_scale", weight_scale, [ceil_div(n, bn), groups], per_block),
    ):
        if scale.dtype != torch.float32 or _shape(scale) != wanted:
            found = f"{_name(scale.dtype)} {_shape(scale)}"
            raise _error(f"{name} is {found}; expected float32 {wanted}, {why}")
    by_columns = not x_scale.is_contiguous() and x_scale.t().is_contiguous()
    for name, tensor in operands._asdict().items():
        if not tensor.is_contiguous() and not (by_columns and tensor is x_scale):
            strides = f"{_shape(tensor)} with strides {list(tensor.stride())}"
            raise _error(f"{name} is {strides}, not contiguous; pass {name}.contiguous()")
    # CPU kernels read a copy by rows.
    return Gemm(n, k, (bn, bk), x.dtype, out_dtype, by_columns and x.device.type != "cpu")


def _check_alignment(operands: Operands) -> None:
    for name, tensor in operands._asdict().items():
        if tensor.data_ptr() % POINTER_ALIGNMENT:
            raise _error(
                f"{name} lies at {tensor.data_ptr():#x}; GPU kernels take multiples of "
                f"{POINTER_ALIGNMENT} bytes; pass {name}.clone()"
            )


def _error(message: str) -> QfuseError:
    return QfuseError(f"{NAME}: {message}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _names(dtypes: dict[torch.dtype, str]) -> str:
    return ", ".join(map(_name, dtypes))


def _shape(tensor: torch.Tensor) -> list[int]:
    return list(tensor.shape)


def register() -> None:
    """Define the operators in torch; a second call, also after a re-import, does nothing."""
    namespace: Any = torch.ops.qfuse
    if hasattr(namespace, "operators"):
        return
    library = torch.library.Library("qfuse", "FRAGMENT")
    library.define(
        f"{NAME}(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, int[] block_size, "
        "ScalarType out_dtype) -> Tensor",
        tags=(torch.Tag.pt2_compliant_tag,),
    )
    library.impl(NAME, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"qfuse::{NAME}", _fake, lib=library)
    # A Library takes its operators away when it dies: this one lives as long as torch does.
    namespace.operators = library


register()
