"""Preparing weights for GPU kernels, which read rows as they are: joining parts.

That goes for K-quants, too, whose blocks are split into codes and headers: in a step that is a
quarter of a block a row has 32 bytes of q4_k, or three times 16 of q6_k that lie with those of the
other steps in lines of 128, and a header is read once per step of all its codes.  Nothing would be
gained by another order, and mapped files would have to be copied.
"""

from collections.abc import Sequence

import torch

from qfuse.dialects.errors import QfuseError

_NAMES = ("codes", "scales", "zero points")


def join_rows(
    parts: Sequence[tuple[torch.Tensor, ...]],
    block: Sequence[int],
    scale_columns: int | None = None,
) -> tuple[torch.Tensor, ...]:
    """Join weights below each other, each at a block boundary, as `qfuse.concat` defines it.

    Each part is codes [N_i, K], or their bytes, scales [ceil(N_i/bn), scale_columns], by default
    ceil(K/bk) with `block` = [bn, bk], and possibly zero points like the scales; or a plain weight
    alone.  Returns codes [N, K] and the others [ceil(N/bn), ..] of the same types, on the same
    device; rows between parts are zero.  Raises QfuseError if the shapes or types disagree.
    """
    bn, bk = block
    first_codes = parts[0][0]
    k = first_codes.shape[-1]
    columns = -(-k // bk) if scale_columns is None else scale_columns
    for i, part in enumerate(parts):
        codes, *others = part
        wanted = (-(-codes.shape[0] // bn), columns)
        for name, other in zip(_NAMES[1:], others, strict=False):
            if codes.dim() != 2 or codes.shape[1] != k or tuple(other.shape) != wanted:
                raise QfuseError(
                    f"join_rows: part {i} has codes {list(codes.shape)} and {name} "
                    f"{list(other.shape)}; expected K = {k} and {name} {list(wanted)}"
                )
        types, first_types = ([t.dtype for t in tensors] for tensors in (part, parts[0]))
        if types != first_types:
            raise QfuseError(
                f"join_rows: part {i} is {_described(types)}, the first is "
                f"{_described(first_types)}"
            )
    starts, total = joined_rows([part[0].shape[0] for part in parts], bn)
    row_bytes = k * first_codes.element_size()
    joined = torch.zeros(total, row_bytes, dtype=torch.uint8, device=first_codes.device)
    for start, (codes, *_) in zip(starts, parts, strict=True):
        joined[start : start + codes.shape[0]] = codes.detach().view(torch.uint8)
    _, *rest = zip(*parts, strict=True)
    below = [torch.cat([tensor.detach() for tensor in tensors]) for tensors in rest]
    return joined.view(first_codes.dtype), *below


def _described(types: Sequence[torch.dtype]) -> str:
    """ "torch.int8 with scales of torch.float16"."""
    codes, *others = types
    named = (f"{name} of {dtype}" for name, dtype in zip(_NAMES[1:], others, strict=False))
    return f"{codes} with {' and '.join(named)}"


def append_expert(
    experts: tuple[torch.Tensor, ...],
    parts: Sequence[tuple[torch.Tensor, ...]],
    block: Sequence[int],
) -> tuple[torch.Tensor, ...]:
    """Make `parts`, joined by rows, the last expert of weights whose codes have room for it.

    `experts` are codes [E + 1, N, K], or their bytes, of E experts, and what is written over in
    the last place; then their scales [E, ceil(N/bn), columns], and possibly zero points like them.
    Returns the same codes and all of the others, [E + 1, ..].  Raises QfuseError if the shapes or
    types disagree.
    """
    codes, *others = experts
    more, *rest = join_rows(parts, block, others[0].shape[-1] if others else None)
    wanted = [(tuple(t.shape[1:]), t.dtype) for t in experts]
    found = [(tuple(t.shape), t.dtype) for t in (more, *rest)]
    if wanted != found:
        raise QfuseError(
            f"append_expert: one more expert has {_listed(found)}; the others have "
            f"{_listed(wanted)}"
        )
    codes.view(torch.uint8)[-1] = more.view(torch.uint8)
    pairs = zip(others, rest, strict=True)
    return codes, *(torch.cat([all_.detach(), one[None]]) for all_, one in pairs)


def _listed(tensors: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> str:
    """ "codes [3, 4] of torch.int8 with scales [1, 1] of torch.float32"."""
    each = zip(_NAMES, tensors, strict=False)
    codes, *others = (f"{name} {list(shape)} of {dtype}" for name, (shape, dtype) in each)
    return " with ".join([codes, *([" and ".join(others)] if others else [])])


def joined_rows(rows: Sequence[int], bn: int) -> tuple[list[int], int]:
    """Where parts of `rows` rows begin, and how many rows there are in all."""
    starts, total = [], 0
    for n in rows:
        start = -(-total // bn) * bn
        starts.append(start)
        total = start + n
    return starts, total
