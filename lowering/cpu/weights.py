"""Preparing weights: from rows of codes to the layout that every product reads."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.layout import (
    BITS,
    BYTE_COLUMNS,
    GROUP,
    K_QUANTS,
    STRIP,
    WeightLayout,
    ceil_div,
)

Part = Sequence[torch.Tensor]
"""Codes [N, bytes of K columns], scales and, where the scheme has some, zero points."""

_LANES, _LANE_ROWS = 4, 4  # 128-bit lanes of a strip, and the rows in each
_FIELD_BYTES = {"q4_k": 16, "q6_k": 18}  # of the scales of a block of ggml
_MAX_ROWS = 4096  # that are unpacked at a time, which bounds the memory it takes

_SCALES = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e8m0fnu: "f8E8M0FNU",
}


def pack_weight(
    parts: Sequence[Part], block: Sequence[int], packing: str = "none"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack the weights that one product multiplies by, as `layout.py` draws it.

    Each part is (codes, scales) or (codes, scales, zero points) of a weight [N_i, K], as
    `qfuse.pack` takes them, with `block` = [bn, bk] and elements packed as `packing` of
    `#qfuse.scheme` says.  Returns (uint8 [bytes], scales): f32 [rows, columns] or uint8 [bytes],
    converted exactly.  The bytes of a part are the same alone and joined with others.  Raises
    QfuseError if the shapes or types disagree or the scheme is not supported.
    """
    if not parts:
        raise QfuseError("pack_weight: no weight given")
    layout = layout_of(parts, block, packing)
    packed, scales = empty_weight(layout)
    for i, part in enumerate(parts):
        _check(f"pack_weight: part {i}", part, layout.parts[i], layout)
        first, count = layout.first_group(i), layout.groups(i)
        codes = packed.view(-1, layout.group_bytes)[first : first + count]
        _pack_codes(part[0], layout, codes)
        if layout.by_block:
            row = layout.first_scale_row(i)
            scales[row : row + layout.scale_rows(i)] = part[1].detach().to(torch.float32)
        else:
            records = scales.view(-1, layout.group_scale_bytes)[first : first + count]
            _pack_records(part[1:], layout.parts[i], layout, records)
    return packed, scales


def pack_experts(
    codes: torch.Tensor,
    scale: torch.Tensor,
    block: Sequence[int],
    packing: str = "none",
    zero: torch.Tensor | None = None,
    appended: Sequence[Part] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack the weights of experts, one after the other.

    All tensors are those of `pack_weight` with E in front.  Each expert has the bytes that
    `pack_weight` gives it as a weight of one part.  `appended` are the parts of one more expert
    behind them, joined by rows at block boundaries.  Returns (uint8 [bytes], scales): f32
    [E, rows, columns] or uint8 [bytes].  Raises QfuseError as `pack_weight` does.
    """
    if codes.dim() != 3 or 0 in codes.shape:
        raise QfuseError(f"pack_experts: codes {list(codes.shape)}; expected [E, N, K]")
    tensors = [codes, scale] if zero is None else [codes, scale, zero]
    experts = len(codes)
    if any(len(t) != experts for t in tensors):
        shapes = [list(t.shape) for t in tensors]
        raise QfuseError(f"pack_experts: {shapes} are not of equally many experts")
    layout = layout_of([[t[0] for t in tensors]], block, packing)
    every: list[Part] = [*zip(*tensors, strict=True)]
    if appended:
        every.append(_one_expert(appended, codes.shape[1], layout))
    experts = len(every)
    packed, scales = empty_weight(layout, experts)
    of_expert = packed.view(experts, -1, layout.group_bytes)
    for e, part in enumerate(every):
        _check("pack_experts", part, layout.parts[0], layout)
        _pack_codes(part[0], layout, of_expert[e])
        if layout.by_block:
            scales[e] = part[1].detach().to(torch.float32)
        else:
            records = scales.view(experts, -1, layout.group_scale_bytes)[e]
            _pack_records(part[1:], layout.parts[0], layout, records)
    return packed, scales


def pack_scales(scale: torch.Tensor, shape: Sequence[int], block: Sequence[int]) -> torch.Tensor:
    """The f32 scales of weights of `shape` [N, K] as `pack_weight` or `pack_experts` returns them.

    Those that kernels read as they are become no copy.
    """
    n, k = shape
    layout = WeightLayout((n,), k, block[0], block[1])
    if layout.by_block:
        return scale.detach().contiguous()
    each = scale.detach().reshape(-1, *scale.shape[-2:])
    records = torch.empty(len(each), layout.all_groups, layout.group_scale_bytes, dtype=torch.uint8)
    for part, out in zip(each, records, strict=True):
        _pack_records([part], n, layout, out)
    return records.flatten()


def empty_weight(layout: WeightLayout, experts: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for what `pack_weight` or, of `experts`, `pack_experts` returns."""
    packed = torch.empty(max(experts, 1) * layout.packed_bytes, dtype=torch.uint8)
    if not layout.by_block:
        size = max(experts, 1) * layout.scale_shape[0]
        return packed, torch.empty(size, dtype=torch.uint8)
    shape = (experts, *layout.scale_shape) if experts else layout.scale_shape
    return packed, torch.empty(shape, dtype=torch.float32)


def layout_of(parts: Sequence[Part], block: Sequence[int], packing: str) -> WeightLayout:
    """The layout of a weight of such parts; raises QfuseError if there is none."""
    codes, scale, *zero = parts[0]
    rows = tuple(part[0].shape[0] for part in parts)
    k = codes.shape[-1] * 8 // BITS[packing]
    kind = _SCALES.get(scale.dtype, "bytes")
    layout = WeightLayout(rows, k, block[0], block[1], packing, kind, bool(zero))
    if kind == "bytes" and packing not in K_QUANTS:
        raise QfuseError(f"a weight with scales of {scale.dtype} cannot be packed")
    if why := layout.error():
        raise QfuseError(f"a weight cannot be packed: {why}")
    return layout


def _one_expert(parts: Sequence[Part], rows: int, layout: WeightLayout) -> Part:
    """The parts of one expert joined by rows, each beginning where a block does."""
    counts = [len(part[0]) for part in parts]
    gaps = [-count % layout.bn for count in counts[:-1]] + [0]
    total = sum(counts) + sum(gaps)
    if total != rows:
        raise QfuseError(
            f"pack_experts: codes [{total}, {parts[0][0].shape[1]}] of one more expert; expected "
            f"[{rows}, {layout.k * layout.bits // 8}]"
        )
    codes = [
        pad(part[0].detach().view(torch.uint8), (0, 0, 0, gap))
        for part, gap in zip(parts, gaps, strict=True)
    ]
    others = zip(*(part[1:] for part in parts), strict=True)
    return torch.cat(codes), *(torch.cat(tensors) for tensors in others)


def _check(what: str, part: Part, rows: int, layout: WeightLayout) -> None:
    codes, scale, *zero = part
    bytes_ = ceil_div(layout.k * layout.bits, 8)
    numbers = _FIELD_BYTES.get(layout.packing, 1)
    wanted = (ceil_div(rows, layout.bn), layout.k_scales * numbers)
    if codes.dim() != 2 or codes.shape[1] != bytes_ or tuple(scale.shape) != wanted:
        raise QfuseError(
            f"{what} has codes {list(codes.shape)} and scales {list(scale.shape)}; expected "
            f"K = {layout.k} and scales {list(wanted)}"
        )
    if _SCALES.get(scale.dtype, "bytes") != layout.scale or bool(zero) != layout.zeros:
        raise QfuseError(f"{what} has other scales or zero points than the first")
    for tensor in zero:
        if tuple(tensor.shape) != wanted:
            raise QfuseError(f"{what} has zero points {list(tensor.shape)}, not {list(wanted)}")
        if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) <= 15:
            raise QfuseError(f"{what} has zero points that are no codes, 0 to 15")


def _pack_codes(codes: torch.Tensor, layout: WeightLayout, out: torch.Tensor) -> None:
    """Rows of stored elements to `out` [groups, bytes of a group]."""
    bytes_ = codes.detach().contiguous().view(torch.uint8)
    for first in range(0, len(bytes_), _MAX_ROWS):
        rows = bytes_[first : first + _MAX_ROWS]
        target = out[first // GROUP : ceil_div(first + len(rows), GROUP)]
        padding = (0, layout.padded_k * layout.bits // 8 - rows.shape[1])
        if any((*padding, len(rows) % GROUP)):
            rows = pad(rows, (*padding, 0, len(target) * GROUP - len(rows)))
        elif rows.storage_offset() % 4:  # no view of wider elements
            rows = rows.clone()
        _ARRANGE[layout.packing](rows, target)


def _arrange_8(rows: torch.Tensor, out: torch.Tensor) -> None:
    groups, slices = len(out), rows.shape[1] // 4
    # [group, strip, lane, row, slice, half, column] -> [group, slice, strip, lane, half, row, col]
    split = rows.view(groups, GROUP // STRIP, _LANES, _LANE_ROWS, slices, 2, 2)
    target = out.view(groups, slices, GROUP // STRIP, _LANES, 2, _LANE_ROWS, 2)
    target.copy_(split.permute(0, 4, 1, 2, 5, 3, 6))


def _arrange_4(rows: torch.Tensor, out: torch.Tensor) -> None:
    """From two codes a byte, the even column in the low bits."""
    out.view(torch.int32).view(len(out), -1, GROUP).copy_(_by_slice(_lanes(rows), len(out)))


def _arrange_q4_k(rows: torch.Tensor, out: torch.Tensor) -> None:
    _arrange_4(torch.cat(_pairs(rows, 32), -1).flatten(1), out)


def _arrange_q6_k(rows: torch.Tensor, out: torch.Tensor) -> None:
    blocks = rows.view(len(rows), -1, 192)
    # Halves of 128 columns: 64 bytes of lower bits, 32 of upper ones; columns in quarters of 32.
    low = torch.cat(_pairs(blocks[..., :128].flatten(1), 64), -1).flatten(1)
    quarters = blocks[..., 128:].unflatten(-1, (2, 32))
    high = torch.stack([(quarters >> shift) & 3 for shift in (0, 2, 4, 6)], -2)
    high = high.view(len(rows), -1, 4, 4)  # four times four columns
    bytes_ = high[:, :, 0]
    for i in range(1, 4):
        bytes_ = bytes_ | (high[:, :, i] << (2 * i))
    upper = bytes_[..., list(BYTE_COLUMNS)].view(torch.int32).squeeze(-1)
    lanes = torch.cat([_lanes(low).unflatten(1, (-1, 2)), upper.unsqueeze(2)], 2)
    by_slice = _by_slice(lanes, len(out))  # [group, slice, row, part]
    strips = by_slice.unflatten(2, (-1, STRIP)).transpose(3, 4)
    out.view(torch.int32).view(strips.shape).copy_(strips)


_ARRANGE: dict[str, Callable[[torch.Tensor, torch.Tensor], None]] = {
    "none": _arrange_8,
    "int4": _arrange_4,
    "fp4": _arrange_4,
    "q4_k": _arrange_q4_k,
    "q6_k": _arrange_q6_k,
}
"""From rows of bytes as `#qfuse.scheme` draws them, of whole groups and blocks."""


def _pairs(bytes_: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Runs of `size` bytes, the low bits of which are columns before those of the high bits.

    Returns the low and the high columns [rows, runs, size / 2], two neighbours a byte.
    """
    words = bytes_.view(torch.int16).unflatten(1, (-1, size // 2))
    low = (words & 0x0F) | ((words >> 4) & 0xF0)
    high = ((words >> 4) & 0x0F) | ((words >> 8) & 0xF0)
    return [low.to(torch.uint8), high.to(torch.uint8)]


def _lanes(pairs: torch.Tensor) -> torch.Tensor:
    """Eight columns of a row as one lane, i32: from column order to that of a strip of 4 bits."""
    words = pairs.view(torch.int32)
    stay = words & _signed(0xF0F00F0F)
    return stay | ((words & 0xF0F0) << 12) | ((words >> 12) & 0xF0F0)


def _signed(bits: int) -> int:
    return bits - (1 << 32) if bits >> 31 else bits


def _by_slice(lanes: torch.Tensor, groups: int) -> torch.Tensor:
    """[rows, slices, ...] as [group, slice, row of the group, ...]."""
    return lanes.unflatten(0, (groups, GROUP)).transpose(1, 2)


def _pack_records(
    tensors: Sequence[torch.Tensor], rows: int, layout: WeightLayout, out: torch.Tensor
) -> None:
    """Scales, and zero points, of a part by row, to `out` [groups, bytes of its records]."""
    records = out.view(len(out), layout.k_scales, layout.record_bytes)
    at = 0
    for field in _FIELDS.get(layout.packing, _plain_fields)(tensors, layout):
        size = GROUP * field.shape[-1]
        padded = pad(field[:rows], (0, 0, 0, 0, 0, len(out) * GROUP - rows))
        by_group = padded.unflatten(0, (-1, GROUP)).transpose(1, 2)
        records[..., at : at + size] = by_group.flatten(2)
        at += size


# The fields of records, each [rows, records, bytes of a number].


def _plain_fields(tensors: Sequence[torch.Tensor], layout: WeightLayout) -> list[torch.Tensor]:
    numbers = [t.detach().contiguous() for t in tensors]
    fields = [t.view(torch.uint8).unflatten(1, (-1, t.itemsize)) for t in numbers]
    return [field.repeat_interleave(layout.bn, 0) for field in fields]


def _q4_k_fields(tensors: Sequence[torch.Tensor], layout: WeightLayout) -> list[torch.Tensor]:
    """f16 d and dmin, then 12 bytes with a scale and a min of 6 bits for each 32 columns."""
    bytes_ = tensors[0].detach().contiguous().view(torch.uint8).unflatten(1, (-1, 16))
    low, middle, high = bytes_[..., 4:].unflatten(-1, (3, 4)).unbind(-2)
    scales = [low & 63, (high & 15) | ((low >> 6) << 4)]
    mins = [middle & 63, (high >> 4) | ((middle >> 6) << 4)]
    pairs = torch.stack([torch.cat(scales, -1), torch.cat(mins, -1)], -1)
    return [bytes_[..., :2], bytes_[..., 2:4], *pairs.flatten(-2).split(1, -1)]


def _q6_k_fields(tensors: Sequence[torch.Tensor], layout: WeightLayout) -> list[torch.Tensor]:
    bytes_ = tensors[0].detach().contiguous().view(torch.uint8).unflatten(1, (-1, 18))
    return [bytes_[..., 16:], *bytes_[..., :16].split(1, -1)]


_FIELDS = {"q4_k": _q4_k_fields, "q6_k": _q6_k_fields}
