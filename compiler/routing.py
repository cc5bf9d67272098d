"""Which rows are whose, in torch: the contract of `qfuse.route`; see `dialects/moe_ops.py`.

This runs on any device and waits for none.  Shapes and types are always checked, values where they
are on the CPU; with `debug=True` also elsewhere, for which the call waits.
"""

from typing import NamedTuple

import torch
from torch._subclasses import FakeTensor

from qfuse.dialects.errors import QfuseError

MAX_ROWS = 2**31 - 1
"""Rows are counted in int32."""


class Routing(NamedTuple):
    """What `qfuse.route` computes: the rows of each expert, and whose the rows are."""

    indptr: torch.Tensor
    """int32 [E + 1]: expert e has the rows indptr[e] to indptr[e + 1] - 1; indptr[0] is 0.

    E counts a shared expert, too; k below counts the choice of it."""
    tokens: torch.Tensor
    """int32 [T, k], flattened: the token of each row; 0 for rows from indptr[E] on."""
    slots: torch.Tensor
    """int32 [T, k]: the row of each choice, -1 where it is no expert's."""


def route(ids: torch.Tensor, num_experts: int, *, shared: bool = False) -> Routing:
    """Sort the choices of tokens by expert, exactly as `qfuse.route` does.

    `ids` are int32 or int64 [T, k]; one outside of 0 .. num_experts - 1 is no expert.  `shared`:
    each token chooses expert number num_experts, too, which no id does.
    """
    expect("route: ids", ids, (torch.int32, torch.int64), ("T", "k"))
    expect_positive("route: num_experts", num_experts)
    if shared:
        ids = ids.masked_fill((ids < 0) | (ids >= num_experts), -1)
        ids = torch.nn.functional.pad(ids, (0, 1), value=num_experts)
        num_experts += 1
    if ids.numel() > MAX_ROWS:
        raise QfuseError(f"route: ids are {ids.numel()}; rows are counted in int32")
    flat = ids.flatten().long()
    nobody = (flat < 0) | (flat >= num_experts)
    experts, choices = flat.masked_fill(nobody, num_experts).sort(stable=True)
    numbers = torch.arange(num_experts + 1, device=ids.device)
    there = experts < num_experts
    tokens = torch.where(there, choices // max(1, ids.shape[1]), 0)
    rows = torch.where(there, torch.arange(len(flat), device=ids.device), -1)
    return Routing(
        torch.searchsorted(experts, numbers, out_int32=True),
        tokens.int().view_as(ids),
        torch.empty_like(flat).scatter(0, choices, rows).int().view_as(ids),
    )


def check_indptr(
    indptr: torch.Tensor, rows: int, *, whole: bool = False, debug: bool = False
) -> None:
    """Raise QfuseError unless `indptr` divides `rows` rows among experts; `whole`: all of them."""
    expect_indptr("indptr", indptr)
    if not readable(indptr, debug):
        return
    values = indptr.cpu()
    first, last = int(values[0]), int(values[-1])
    if first != 0:
        raise QfuseError(f"indptr[0] is {first}; the rows of the first expert begin at 0")
    decreases = values[1:] < values[:-1]
    if bool(decreases.any()):
        e = int(decreases.int().argmax())
        raise QfuseError(
            f"indptr[{e + 1}] is {int(values[e + 1])}, less than indptr[{e}] = {int(values[e])}; "
            "an expert has no fewer than 0 rows"
        )
    if last > rows or (whole and last != rows):
        wanted = "it must be" if whole else "it is at most"
        raise QfuseError(
            f"indptr[{len(values) - 1}] is {last}; {wanted} the number of rows, {rows}"
        )


def experts_of_rows(indptr: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [rows]: the expert of each row, E where it is nobody's.  And int32 [rows]: how many
    rows of that expert come before it."""
    row = torch.arange(rows, dtype=torch.int32, device=indptr.device)
    expert = torch.searchsorted(indptr[1:].contiguous(), row, right=True)
    return expert, row - indptr[expert]


def readable(tensor: torch.Tensor, debug: bool) -> bool:
    """Whether values are to be looked at: they are at hand, or the caller wants to wait."""
    if torch.compiler.is_compiling() or isinstance(tensor, FakeTensor) or tensor.is_meta:
        return False
    if debug and tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        raise QfuseError(
            "debug=True waits for the GPU, which a CUDA graph cannot capture; leave it out there"
        )
    return debug or tensor.device.type == "cpu"


def expect(
    name: str,
    tensor: torch.Tensor,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int | str, ...],
) -> None:
    """Raise QfuseError unless a tensor has one of `dtypes` and `shape`, where letters are any."""
    types = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
    wanted = f"{types} [{', '.join(map(str, shape))}]"
    if not isinstance(tensor, torch.Tensor):
        raise QfuseError(f"{name} is a {type(tensor).__name__}, not a tensor; expected {wanted}")
    fits = tensor.dim() == len(shape) and all(
        isinstance(w, str) or w == n for w, n in zip(shape, tensor.shape, strict=True)
    )
    if tensor.dtype not in dtypes or not fits:
        found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise QfuseError(f"{name} is {found}; expected {wanted}")


def expect_indptr(name: str, indptr: torch.Tensor) -> None:
    expect(name, indptr, (torch.int32,), ("E + 1",))
    expect_positive(f"{name}: the number of experts", len(indptr) - 1)


def expect_positive(name: str, number: int) -> None:
    if number < 1:
        raise QfuseError(f"{name} is {number}; expected 1 or more")
