"""Preparing weights: from rows of FP8 codes to the layout that every product reads."""

from collections.abc import Sequence

import torch

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.layout import GROUP, QUAD, STRIP, WeightLayout, layout_error

_LANES, _LANE_ROWS = 4, 4  # 128-bit lanes of a strip, and the rows in each


def pack_weight(
    parts: Sequence[tuple[torch.Tensor, torch.Tensor]], block: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack the weights that one product multiplies by, as `layout.py` draws it.

    Each part is (codes [N_i, K] of an 8-bit type, scales f32 [ceil(N_i/bn), ceil(K/bk)]) with
    `block` = [bn, bk].  Returns (uint8 [bytes], f32 [scale rows, ceil(K/bk)]).  The bytes of a
    part are the same alone and joined with others.  Raises QfuseError if the shapes disagree or
    the block is not supported.
    """
    if not parts:
        raise QfuseError("pack_weight: no weight given")
    k = parts[0][0].shape[-1]
    layout = WeightLayout(tuple(c.shape[0] for c, _ in parts), k, block[0], block[1])
    if why := layout_error(block):
        raise QfuseError(f"pack_weight: {why}")
    packed = torch.empty(layout.packed_bytes, dtype=torch.uint8)
    scales = torch.empty(layout.scale_shape, dtype=torch.float32)
    for i, (codes, scale) in enumerate(parts):
        wanted = (layout.scale_rows(i), layout.k_blocks)
        if codes.dim() != 2 or codes.shape[1] != k or tuple(scale.shape) != wanted:
            raise QfuseError(
                f"pack_weight: part {i} has codes {list(codes.shape)} and scales "
                f"{list(scale.shape)}; expected K = {k} and scales {list(wanted)}"
            )
        begin = layout.first_group(i) * layout.group_bytes
        end = begin + layout.groups(i) * layout.group_bytes
        _pack_part(codes, layout, packed[begin:end])
        first = layout.first_scale_row(i)
        scales[first : first + wanted[0]] = scale
    return packed, scales


def pack_experts(
    codes: torch.Tensor,
    scale: torch.Tensor,
    block: Sequence[int],
    appended: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack the weights of experts, codes [E, N, K] of an 8-bit type, one after the other.

    `scale` is f32 [E, ceil(N/bn), ceil(K/bk)] with `block` = [bn, bk].  Each expert has the bytes
    that `pack_weight` gives it as a weight of one part.  `appended` is (codes, scale) of one more
    expert behind them, [N, K] and [ceil(N/bn), ceil(K/bk)].  Returns (uint8 [bytes], f32 scales of
    the same shape).  Raises QfuseError if the shapes disagree or the block is not supported.
    """
    if why := layout_error(block):
        raise QfuseError(f"pack_experts: {why}")
    if codes.dim() != 3 or 0 in codes.shape:
        raise QfuseError(f"pack_experts: codes {list(codes.shape)}; expected [E, N, K]")
    experts, n, k = codes.shape
    layout = WeightLayout((n,), k, block[0], block[1])
    wanted = (experts, *layout.scale_shape)
    if tuple(scale.shape) != wanted:
        raise QfuseError(
            f"pack_experts: codes {list(codes.shape)} with scales {list(scale.shape)}; expected "
            f"scales {list(wanted)}"
        )
    all_codes, all_scales = list(codes), [scale.detach().to(torch.float32)]
    if appended is not None:
        more, more_scale = appended
        if more.shape != (n, k) or tuple(more_scale.shape) != layout.scale_shape:
            raise QfuseError(
                f"pack_experts: codes {list(more.shape)} with scales {list(more_scale.shape)} of "
                f"one more expert; expected {[n, k]} with scales {list(layout.scale_shape)}"
            )
        all_codes.append(more)
        all_scales.append(more_scale.detach().to(torch.float32)[None])
    packed = torch.empty(len(all_codes), layout.packed_bytes, dtype=torch.uint8)
    for expert, out in zip(all_codes, packed, strict=True):
        _pack_part(expert, layout, out)
    return packed.flatten(), torch.cat(all_scales)


def _pack_part(codes: torch.Tensor, layout: WeightLayout, out: torch.Tensor) -> None:
    rows, k = codes.shape
    bytes_ = codes.detach().contiguous().view(torch.uint8)
    groups = out.numel() // layout.group_bytes
    padding = (0, layout.padded_k - k, 0, groups * GROUP - rows)
    if any(padding):
        bytes_ = torch.nn.functional.pad(bytes_, padding)
    quads = layout.padded_k // QUAD
    # [group, strip, lane, row, quad, half, column] -> [group, quad, strip, lane, half, row, column]
    split = bytes_.view(groups, GROUP // STRIP, _LANES, _LANE_ROWS, quads, 2, 2)
    target = out.view(groups, quads, GROUP // STRIP, _LANES, 2, _LANE_ROWS, 2)
    target.copy_(split.permute(0, 4, 1, 2, 5, 3, 6))
