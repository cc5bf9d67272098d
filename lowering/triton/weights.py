"""Preparing weights for GPU kernels, which read rows of codes as they are: joining parts."""

from collections.abc import Sequence

import torch

from qfuse.dialects.errors import QfuseError


def join_rows(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], block: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Join weights below each other, each at a block boundary, as `qfuse.concat` defines it.

    Each part is (codes [N_i, K], scales [ceil(N_i/bn), ceil(K/bk)]) with `block` = [bn, bk].
    Returns codes [N, K] and scales [ceil(N/bn), ceil(K/bk)] of the same types, on the same device;
    rows between parts are zero.  Raises QfuseError if the shapes or types disagree.
    """
    bn, bk = block
    first_codes, first_scale = parts[0]
    k = first_codes.shape[-1]
    for i, (codes, scale) in enumerate(parts):
        wanted = (-(-codes.shape[0] // bn), -(-k // bk))
        if codes.dim() != 2 or codes.shape[1] != k or tuple(scale.shape) != wanted:
            raise QfuseError(
                f"join_rows: part {i} has codes {list(codes.shape)} and scales "
                f"{list(scale.shape)}; expected K = {k} and scales {list(wanted)}"
            )
        if codes.dtype != first_codes.dtype or scale.dtype != first_scale.dtype:
            raise QfuseError(
                f"join_rows: part {i} is {codes.dtype} with scales of {scale.dtype}, the first is "
                f"{first_codes.dtype} with {first_scale.dtype}"
            )
    starts, total = joined_rows([codes.shape[0] for codes, _ in parts], bn)
    joined = torch.zeros(total, k, dtype=torch.uint8, device=first_codes.device)
    for start, (codes, _) in zip(starts, parts, strict=True):
        joined[start : start + codes.shape[0]] = codes.detach().view(torch.uint8)
    scales = torch.cat([scale.detach() for _, scale in parts])
    return joined.view(first_codes.dtype), scales


def append_expert(
    codes: torch.Tensor,
    scale: torch.Tensor,
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]],
    block: Sequence[int],
) -> torch.Tensor:
    """Make `parts`, joined by rows, the last expert of weights that have room for it.

    `codes` [E + 1, N, K] have E experts, and what is written over in the last place; `scale`
    [E, ceil(N/bn), ceil(K/bk)] has those of the E.  Returns all scales, [E + 1, ...].  Raises
    QfuseError if the shapes or types disagree.
    """
    more, more_scale = join_rows(parts, block)
    wanted, found = (codes.shape[1:], codes.dtype, scale.dtype), (more.shape, more.dtype)
    if wanted != (*found, more_scale.dtype) or scale.shape[1:] != more_scale.shape:
        raise QfuseError(
            f"append_expert: codes {list(more.shape)} of {more.dtype} with scales "
            f"{list(more_scale.shape)} of {more_scale.dtype}; the others have codes "
            f"{list(codes.shape[1:])} of {codes.dtype} with scales {list(scale.shape[1:])} of "
            f"{scale.dtype}"
        )
    codes.view(torch.uint8)[-1] = more.view(torch.uint8)
    return torch.cat([scale.detach(), more_scale[None]])


def joined_rows(rows: Sequence[int], bn: int) -> tuple[list[int], int]:
    """Where parts of `rows` rows begin, and how many rows there are in all."""
    starts, total = [], 0
    for n in rows:
        start = -(-total // bn) * bn
        starts.append(start)
        total = start + n
    return starts, total
