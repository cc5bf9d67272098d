"""Operators called on torch tensors directly; each is compiled when it is first called.

    y = fp8_groupwise_scaled_gemm(x, x_scale, weight, weight_scale, (128, 128), "bfloat16")
    y = fp8_groupwise_scaled_group_gemm(
        x, x_scale, weight, weight_scale, indptr, (128, 128), "bfloat16"
    )

They run where their tensors are: on the CPU, or on any NVIDIA GPU that kernels exist for.  They
are operators of torch too (`torch.ops.qfuse.*`), so torch.compile and torch.export keep them whole.
They have no gradients.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from qfuse.compiler.exclusive import LOCK
from qfuse.compiler.gemm import FP8, NAME, OUT, CpuGemm, Gemm, GpuGemm, Operands
from qfuse.compiler.group_gemm import NAME as GROUP_NAME
from qfuse.compiler.group_gemm import GroupGemm, GroupOperands
from qfuse.compiler.options import CompileOptions
from qfuse.compiler.routing import check_indptr
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton.driver import arch_of, kind_at_hand
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
    (`QFUSE_CACHE_DIR`).  Before a CUDA graph captures it, it must have been called once on that
    device, with any M: no code can be loaded during a capture.

    On the CPU a weight is also packed once, into memory of its own that goes when the weight
    does.  A change of the weight is noticed and packs it again, unless it goes through
    `weight.data`, of which torch keeps no record; a weight that was made in inference mode, whose
    changes torch does not record at all, is packed at every call.

    Raises QfuseError, in one line, for tensors that do not fit this description.
    """
    tensors = Operands(x, x_scale, weight, weight_scale)
    dtype = _check_kinds(NAME, tensors, block_size, out_dtype)
    return torch.ops.qfuse.fp8_groupwise_scaled_gemm(*tensors, list(block_size), dtype)


def fp8_groupwise_scaled_group_gemm(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    indptr: torch.Tensor,
    block_size: Sequence[int],
    out_dtype: str | torch.dtype,
    *,
    debug: bool = False,
) -> torch.Tensor:
    """Each row of `x` times the transpose of its expert's weight; MLC LLM's operator.

    `weight` is [E, N, K] and `weight_scale` float32 [E, ceil(N / bn), ceil(K / bk)].  The rows of
    `x` are sorted by expert: expert e has rows indptr[e] to indptr[e + 1] - 1, possibly none, with
    `indptr` int32 [E + 1], indptr[0] = 0 and indptr[E] = M (`qfuse.compiler.routing` makes it from
    the choices of tokens, `routing_adapters` from other conventions).  Everything else is as for
    `fp8_groupwise_scaled_gemm`, of whose results these rows are the same; kernels are compiled for
    each E also, and serve every `indptr`.

    On the CPU an `indptr` that does not fit is refused.  On a GPU, to read it would be to wait for
    it: with `debug=True` it is refused there too; without, rows that are no expert's, or several
    experts', hold anything, but nothing outside of the tensors is read or written.

    Raises QfuseError, in one line, for tensors that do not fit this description.
    """
    tensors = GroupOperands(x, x_scale, weight, weight_scale, indptr)
    dtype = _check_kinds(GROUP_NAME, tensors, block_size, out_dtype)
    return torch.ops.qfuse.fp8_groupwise_scaled_group_gemm(*tensors, list(block_size), dtype, debug)


def _check_kinds(
    name: str,
    tensors: Operands | GroupOperands,
    block_size: Sequence[int],
    out_dtype: str | torch.dtype,
) -> torch.dtype:
    """The type of the result; raises QfuseError for what torch could not even pass on."""
    for tensor, value in tensors._asdict().items():
        if not isinstance(value, torch.Tensor):
            raise QfuseError(f"{name}: {tensor} is a {type(value).__name__}, not a tensor")
    dtype = getattr(torch, out_dtype, None) if isinstance(out_dtype, str) else out_dtype
    if not isinstance(dtype, torch.dtype) or dtype not in OUT:
        raise QfuseError(f"{name}: out_dtype {out_dtype!r} is not one of {_names(OUT)}")
    if not isinstance(block_size, Sequence) or not all(isinstance(b, int) for b in block_size):
        raise QfuseError(f"{name}: block_size {block_size!r} is not two positive extents (bn, bk)")
    return dtype


_COMPILED: dict[tuple[Gemm, str], CpuGemm | GpuGemm] = {}


def _compiled(gemm: Gemm, device: torch.device) -> CpuGemm | GpuGemm:
    """The product for a device, compiled at the first call."""
    target = _target(device)
    key = gemm, target
    if key not in _COMPILED:
        with LOCK:
            if key not in _COMPILED:
                try:
                    options = CompileOptions.make(target)
                    make = CpuGemm if options.target.is_cpu else GpuGemm.compile
                    _COMPILED[key] = make(gemm, options)
                except QfuseError as error:
                    raise QfuseError(f"{gemm}: {error}") from None
    return _COMPILED[key]


def _target(device: torch.device) -> str:
    """What to compile for: "cpu", or the architecture of a GPU."""
    if device.type == "cpu":
        return "cpu"
    return f"{kind_at_hand()}:{arch_of(device)}"


def _compute(
    operands: Operands | GroupOperands,
    block_size: list[int],
    out_dtype: torch.dtype,
    debug: bool = False,
) -> torch.Tensor:
    """An operator, its arguments checked."""
    x = operands.x
    gemm = _check(operands, block_size, out_dtype)
    if isinstance(operands, GroupOperands):
        check_indptr(operands.indptr, len(x), whole=True, debug=debug)
    out = x.new_empty((len(x), gemm.n), dtype=out_dtype)
    if len(x):
        if x.device.type != "cpu":
            _check_alignment(operands)
        _compiled(gemm, x.device)(operands, out)
    return out


def _run(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    block_size: list[int],
    out_dtype: torch.dtype,
) -> torch.Tensor:
    with _errors_of(NAME):
        return _compute(Operands(x, x_scale, weight, weight_scale), block_size, out_dtype)


def _run_group(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    indptr: torch.Tensor,
    block_size: list[int],
    out_dtype: torch.dtype,
    debug: bool = False,
) -> torch.Tensor:
    operands = GroupOperands(x, x_scale, weight, weight_scale, indptr)
    with _errors_of(GROUP_NAME):
        return _compute(operands, block_size, out_dtype, debug)


def _fake(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    block_size: list[int],
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """What is known of the result without computing it; the checks are those of a call."""
    with _errors_of(NAME):
        _check(Operands(x, x_scale, weight, weight_scale), block_size, out_dtype)
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=out_dtype)


def _fake_group(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    indptr: torch.Tensor,
    block_size: list[int],
    out_dtype: torch.dtype,
    debug: bool = False,
) -> torch.Tensor:
    """As `_fake`; what `indptr` holds is not known yet."""
    with _errors_of(GROUP_NAME):
        _check(GroupOperands(x, x_scale, weight, weight_scale, indptr), block_size, out_dtype)
    return x.new_empty((x.shape[0], weight.shape[1]), dtype=out_dtype)


def _check(
    operands: Operands | GroupOperands, block_size: Sequence[int], out_dtype: torch.dtype
) -> Gemm:
    """What is to be computed; raises QfuseError if the arguments do not fit together."""
    x, x_scale, weight, weight_scale, *_ = operands
    if x.device.type not in ("cpu", "cuda", "meta"):
        raise QfuseError(f"x is on {x.device}; there are kernels for cpu and cuda")
    for name, tensor in operands._asdict().items():
        if tensor.device != x.device:
            raise QfuseError(f"{name} is on {tensor.device}, but x on {x.device}")
    if x.dtype not in FP8:
        raise QfuseError(f"x is {_name(x.dtype)}; expected {_names(FP8)}")
    if weight.dtype != x.dtype:
        raise QfuseError(
            f"weight is {_name(weight.dtype)}, but x is {_name(x.dtype)}; use one type"
        )
    if out_dtype not in OUT:
        raise QfuseError(f"out_dtype {_name(out_dtype)} is not one of {_names(OUT)}")
    if len(block_size) != 2 or min(block_size) < 1:
        raise QfuseError(f"block_size {list(block_size)} is not two positive extents (bn, bk)")
    if x.dim() != 2:
        raise QfuseError(f"x is {_shape(x)}; expected [M, K]")
    (m, k), (bn, bk) = x.shape, block_size
    extents = "E, N" if isinstance(operands, GroupOperands) else "N"
    if weight.dim() != len(extents.split()) + 1 or weight.shape[-1] != k:
        expected = f"[{extents}, {k}], as x is {_shape(x)}"
        raise QfuseError(f"weight is {_shape(weight)}; expected {expected}")
    *experts, n, _ = weight.shape
    if 0 in weight.shape:
        which = "none of E, N and K" if experts else "neither N nor K"
        raise QfuseError(f"x is {_shape(x)} and weight {_shape(weight)}; {which} may be 0")
    per_row = f"one per row and {bk} columns of x {_shape(x)}"
    per_block = f"one per block of {bn} x {bk} of weight {_shape(weight)}"
    groups = ceil_div(k, bk)
    for name, scale, wanted, why in (
        ("x_scale", x_scale, [m, groups], per_row),
        ("weight_scale", weight_scale, [*experts, ceil_div(n, bn), groups], per_block),
    ):
        if scale.dtype != torch.float32 or _shape(scale) != wanted:
            found = f"{_name(scale.dtype)} {_shape(scale)}"
            raise QfuseError(f"{name} is {found}; expected float32 {wanted}, {why}")
    if isinstance(operands, GroupOperands):
        _check_indptr_shape(operands.indptr, experts[0])
    by_columns = not x_scale.is_contiguous() and x_scale.t().is_contiguous()
    for name, tensor in operands._asdict().items():
        if not tensor.is_contiguous() and not (by_columns and tensor is x_scale):
            strides = f"{_shape(tensor)} with strides {list(tensor.stride())}"
            raise QfuseError(f"{name} is {strides}, not contiguous; pass {name}.contiguous()")
    # CPU kernels read a copy by rows.
    by_columns = by_columns and x.device.type != "cpu"
    if experts:
        return GroupGemm(
            n, k, (bn, bk), x.dtype, out_dtype, by_columns=by_columns, experts=experts[0]
        )
    return Gemm(n, k, (bn, bk), x.dtype, out_dtype, by_columns)


def _check_indptr_shape(indptr: torch.Tensor, experts: int) -> None:
    wanted = [experts + 1]
    if indptr.dtype != torch.int32 or _shape(indptr) != wanted:
        found = f"{_name(indptr.dtype)} {_shape(indptr)}"
        why = f"where the rows of each of {experts} experts begin, and M"
        if _shape(indptr) == [experts]:
            why += "; of ends of experts, qfuse.compiler.routing_adapters makes such"
        raise QfuseError(f"indptr is {found}; expected int32 {wanted}, {why}")


def _check_alignment(operands: Operands | GroupOperands) -> None:
    for name, tensor in operands._asdict().items():
        if tensor.data_ptr() % POINTER_ALIGNMENT:
            raise QfuseError(
                f"{name} lies at {tensor.data_ptr():#x}; GPU kernels take multiples of "
                f"{POINTER_ALIGNMENT} bytes; pass {name}.clone()"
            )


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Errors say whose they are."""
    try:
        yield
    except QfuseError as error:
        raise QfuseError(f"{name}: {error}") from None


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
    tensors = "Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale"
    choice = "int[] block_size, ScalarType out_dtype"
    for name, schema, run, fake in (
        (NAME, f"({tensors}, {choice}) -> Tensor", _run, _fake),
        (
            GROUP_NAME,
            f"({tensors}, Tensor indptr, {choice}, bool debug=False) -> Tensor",
            _run_group,
            _fake_group,
        ),
    ):
        library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, run, "CompositeExplicitAutograd")
        torch.library.register_fake(f"qfuse::{name}", fake, lib=library)
    # A Library takes its operators away when it dies: this one lives as long as torch does.
    namespace.operators = library


register()
