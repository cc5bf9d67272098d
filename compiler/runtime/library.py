"""Products by the library behind torch on a GPU: cuBLAS or hipBLAS.

A plan calls these by name, as `library.mm`; `unavailable` says, at load, which of them there are
here.  x is [.., K], a weight [N, K] or [E, N, K]; results are [.., N].  Everything goes through
torch's public API, on torch's current stream.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.nn import functional

log = logging.getLogger("qfuse")

NAMESPACE = "library"

BLOCK = 128

_CUBLASLT = (12, 9)
"""The first version with scales per 1x128 and 128x128 (ScaledBlas.cpp)."""

_ANY = (99, 0)
_CAPABILITIES = {
    "scaled_mm_rows": ((8, 9), _ANY, "8.9 or later"),
    "scaled_mm_blocks": ((9, 0), (10, 0), "9.x"),
    "scaled_grouped_mm": ((9, 0), (10, 0), "9.x"),
    "grouped_mm": ((9, 0), _ANY, "9.0 or later"),
}
"""CUDA architectures with each call: from the first to before the second, and in words."""


def mm(
    x: torch.Tensor,
    w: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str,
    scale: float = 1.0,
) -> torch.Tensor:
    """act(scale * x w^T + bias), all of it in the library's epilogue, rounded once."""
    rows, right = _rows(x), w.t()
    if bias is None and scale == 1:
        y = _activated(torch.mm(rows, right), activation)
    elif bias is None:
        nothing = rows.new_empty(1)  # beta = 0: not read, whatever it is
        y = _activated(torch.addmm(nothing, rows, right, beta=0, alpha=scale), activation)
    elif activation == "none":
        y = torch.addmm(bias, rows, right, alpha=scale)
    else:
        use_gelu = activation == "gelu_tanh"
        y = torch._addmm_activation(bias, rows, right, alpha=scale, use_gelu=use_gelu)
    return y.view(*x.shape[:-1], w.shape[0])


def scaled_mm_blocks(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """FP8 with scales per 1x128 of x, lying [K/128, M], and 128x128 of w, as `block_scales` has."""
    groups = -(-x.shape[-1] // BLOCK)
    by_row = x_scale.reshape(groups, _rows(x).shape[0]).t()
    recipes = ("BlockWise1x128", "BlockWise128x128")
    return _scaled_mm(x, by_row, w, w_scale, recipes, bias, dtype)


def scaled_mm_rows(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """FP8 with one scale for each row of x and of w."""
    a, b = x_scale.reshape(-1, 1), w_scale.reshape(1, -1)
    return _scaled_mm(x, a, w, b, ("RowWise", "RowWise"), bias, dtype)


def _scaled_mm(
    x: torch.Tensor,
    scale_a: torch.Tensor,
    w: torch.Tensor,
    scale_b: torch.Tensor,
    recipes: tuple[str, str],
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`scaled_mm` by the names of two recipes, which say how the scales lie."""
    recipe_a, recipe_b = (getattr(functional.ScalingType, name) for name in recipes)  # type: ignore[attr-defined]
    y = functional.scaled_mm(  # type: ignore[attr-defined]
        _rows(x),
        w.t(),
        scale_a=scale_a,
        scale_recipe_a=recipe_a,
        scale_b=scale_b,
        scale_recipe_b=recipe_b,
        bias=bias,
        output_dtype=dtype,
    )
    return y.view(*x.shape[:-1], w.shape[0])


def int_mm(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """i8 with one scale for each row of x and of w: exact sums, scaled afterwards."""
    assert bias is None
    sums = torch._int_mm(_rows(x), w.t())
    scales = x_scale.reshape(-1, 1) * w_scale.reshape(1, -1)
    y = torch.mul(sums, scales, out=scales.new_empty(scales.shape, dtype=dtype))
    return y.view(*x.shape[:-1], w.shape[0])


def grouped_mm(x: torch.Tensor, w: torch.Tensor, indptr: torch.Tensor) -> torch.Tensor:
    """Rows sorted by expert, each by the weight of its expert; rows after the last hold anything.

    torch's `offs` are the inclusive ends: indptr without its leading zero.
    """
    y = functional.grouped_mm(  # type: ignore[attr-defined]
        _rows(x), w.transpose(-2, -1), offs=indptr[1:]
    )
    return y.view(*x.shape[:-1], w.shape[-2])


def scaled_grouped_mm(
    x: torch.Tensor,
    x_scale: torch.Tensor,
    w: torch.Tensor,
    w_scale: torch.Tensor,
    indptr: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The same of FP8 with one scale for each row of x and of each expert's w."""
    recipe: Any = functional.ScalingType  # type: ignore[attr-defined]
    y = functional.scaled_grouped_mm(  # type: ignore[attr-defined]
        _rows(x),
        w.transpose(-2, -1),
        scale_a=x_scale.reshape(-1),
        scale_recipe_a=recipe.RowWise,
        scale_b=w_scale.reshape(w.shape[0], -1),
        scale_recipe_b=recipe.RowWise,
        offs=indptr[1:],
        output_dtype=dtype,
    )
    return y.view(*x.shape[:-1], w.shape[-2])


def block_scales(scale: torch.Tensor) -> torch.Tensor:
    """Scales [N/128, K/128] of a weight as cublasLt reads them: K first, padded to 4 blocks."""
    rows, columns = scale.shape
    padded = scale.new_zeros(rows, -(-columns // 4) * 4)
    padded[:, :columns] = scale
    return padded.t()


FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    f"{NAMESPACE}.{f.__name__}": f
    for f in (
        *(mm, scaled_mm_blocks, scaled_mm_rows),
        *(int_mm, grouped_mm, scaled_grouped_mm, block_scales),
    )
}
"""What steps of a plan call, by name."""

LAUNCHES = {f"{NAMESPACE}.int_mm": 3}
"""Kernels that a call starts, where they are not one."""


@cache
def unavailable(call: str, place: torch.device) -> str | None:
    """Why there is no `call` on a device with the torch at hand, or None."""
    if call == "mm":
        return None
    needed = {"int_mm": (torch, "_int_mm"), "grouped_mm": (functional, "grouped_mm")}
    holder, name = needed.get(
        call, (functional, call.removesuffix("_blocks").removesuffix("_rows"))
    )
    if not hasattr(holder, name):
        return f"torch {torch.__version__} has no {name}"
    if place.type == "cpu":
        return f"{name} is for GPUs"
    if torch.version.hip is not None and call == "scaled_mm_blocks":
        return "hipBLASLt has no scales per block"
    if call == "int_mm" or torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability(place)
    least, below, wanted = _CAPABILITIES[call]
    if not least <= capability < below:
        return f"{name} needs CUDA of architecture {wanted}, not {capability[0]}.{capability[1]}"
    version = tuple(map(int, (torch.version.cuda or "0.0").split(".")[:2]))
    if call == "scaled_mm_blocks" and version < _CUBLASLT:
        return (
            f"scales per block need cublasLt 12.9; torch was built with CUDA {torch.version.cuda}"
        )
    return None


@cache
def remark_unavailable(call: str, why: str) -> None:
    """Say once that our kernel does what a library was to do."""
    log.warning("remark: no library call %s: %s; our kernel multiplies instead", call, why)


def _rows(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _activated(y: torch.Tensor, activation: str) -> torch.Tensor:
    if activation == "relu":
        return functional.relu(y)
    return functional.gelu(y, approximate="tanh") if activation == "gelu_tanh" else y
