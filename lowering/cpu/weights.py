"""Preparing weights: from rows of elements to the layout that every product reads."""

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.layout import (
    BITS,
    BYTE_COLUMNS,
    GROUP,
    K_QUANTS,
    PLAIN,
    STRIP,
    WeightLayout,
    ceil_div,
    plain_layout,
)
from qfuse.lowering.cpu.pages import prefer_large_pages

Part = Sequence[torch.Tensor]
"""Codes [N, bytes of K columns], scales and, where the scheme has some, zero points; or one
unquantized weight [N, K]."""

_LANES, _LANE_ROWS = 4, 4  # 128-bit lanes of a strip, and the rows in each
_FIELD_BYTES = {"q4_k": 16, "q6_k": 18}  # of the scales of a block of ggml
_MAX_ROWS = 4096  # that are unpacked at a time, which bounds the memory it takes

_FLOATS = {
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.float8_e8m0fnu: "f8E8M0FNU",
}


def pack_weight(
    parts: Sequence[Part], block: Sequence[int], packing: str = "none"
) -> tuple[torch.Tensor, ...]:
    """Pack the weights that one product multiplies by, as `layout.py` draws it.

    Each part is (codes, scales) or (codes, scales, zero points) of a weight [N_i, K], as
    `qfuse.pack` takes them, with `block` = [bn, bk] and elements packed as `packing` of
    `#qfuse.scheme` says; or (weight,), unquantized, of the type `packing`, with blocks of [1, K].
    Returns (uint8 [bytes], scales), the scales f32 [rows, columns] or uint8 [bytes], converted
    exactly; or (uint8 [bytes],).  The bytes of a part are the same alone and joined with others.
    Raises QfuseError if the shapes or types disagree or the scheme is not supported.
    """
    if not parts:
        raise QfuseError("pack_weight: no weight given")
    layout = layout_of(parts, block, packing)
    made = empty_weight(layout)
    _pack("pack_weight", parts, layout, *made)
    return made


def pack_experts(
    codes: torch.Tensor,
    scale: torch.Tensor | None,
    block: Sequence[int],
    packing: str = "none",
    zero: torch.Tensor | None = None,
    appended: Sequence[Part] = (),
    rows: Sequence[int] = (),
) -> tuple[torch.Tensor, ...]:
    """Pack the weights of experts, one after the other.

    All tensors are those of `pack_weight` with E in front, `scale` None where there are none.  Each
    expert has the bytes that `pack_weight` gives it as a weight of one part, or, with `rows`, as
    one of parts of so many rows, which is for scales of single rows.  `appended` are the parts of
    one more expert behind them; without `rows`, quantized ones are joined, each at a block
    boundary.  Returns (uint8 [bytes], scales), the scales f32 [E, rows, columns] or uint8 [bytes];
    or (uint8 [bytes],).  Raises QfuseError as `pack_weight` does.
    """
    if codes.dim() != 3 or 0 in codes.shape:
        raise QfuseError(f"pack_experts: codes {list(codes.shape)}; expected [E, N, K]")
    tensors = [t for t in (codes, scale, zero) if t is not None]
    if any(len(t) != len(codes) for t in tensors):
        shapes = [list(t.shape) for t in tensors]
        raise QfuseError(f"pack_experts: {shapes} are not of equally many experts")
    if rows and sum(rows) != codes.shape[1]:
        raise QfuseError(f"pack_experts: codes {list(codes.shape)} are not of parts {list(rows)}")
    every: list[Sequence[Part]] = [split_rows(each, rows) for each in zip(*tensors, strict=True)]
    layout = layout_of(every[0], block, packing)
    if appended:
        whole = rows or layout.plain
        every.append(appended if whole else [_one_expert(appended, codes.shape[1], layout)])
    packed, *scales = made = empty_weight(layout, len(every))
    of_experts = (
        packed.view(len(every), -1),
        *(s.view(len(every), -1, *s.shape[2:]) for s in scales),
    )
    for parts, *memory in zip(every, *of_experts, strict=True):
        _pack("pack_experts", parts, layout, *memory)
    return made


def split_rows(weight: Part, rows: Sequence[int]) -> list[Part]:
    """The parts of so many rows of a weight with scales of one row, or of none; all without."""
    if not rows:
        return [weight]
    return [*zip(*(tensor.split(list(rows)) for tensor in weight), strict=True)]


def _pack(
    what: str,
    parts: Sequence[Part],
    layout: WeightLayout,
    packed: torch.Tensor,
    scales: torch.Tensor | None = None,
) -> None:
    """The parts of a weight to memory for it."""
    if len(parts) != len(layout.parts):
        raise QfuseError(f"{what}: {len(parts)} parts; expected {len(layout.parts)}")
    for i, part in enumerate(parts):
        _check(f"{what}: part {i}", part, layout.parts[i], layout)
        first, count = layout.first_group(i), layout.groups(i)
        codes = packed.view(-1, layout.group_bytes)[first : first + count]
        _pack_codes(part[0], layout, codes)
        if scales is None:
            continue
        if layout.by_block:
            row = layout.first_scale_row(i)
            scales[row : row + layout.scale_rows(i)] = part[1].detach().to(torch.float32)
        else:
            records = scales.view(-1, layout.group_scale_bytes)[first : first + count]
            _pack_records(part[1:], layout.parts[i], layout, records)


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


def empty_weight(layout: WeightLayout, experts: int = 0) -> tuple[torch.Tensor, ...]:
    """Memory for what `pack_weight` or, of `experts`, `pack_experts` returns."""
    packed = torch.empty(max(experts, 1) * layout.packed_bytes, dtype=torch.uint8)
    prefer_large_pages(packed.data_ptr(), packed.nbytes)
    if layout.plain:
        return (packed,)
    if not layout.by_block:
        size = max(experts, 1) * layout.scale_shape[0]
        return packed, torch.empty(size, dtype=torch.uint8)
    shape = (experts, *layout.scale_shape) if experts else layout.scale_shape
    return packed, torch.empty(shape, dtype=torch.float32)


def layout_of(parts: Sequence[Part], block: Sequence[int], packing: str) -> WeightLayout:
    """The layout of a weight of such parts; raises QfuseError if there is none."""
    codes, *others = parts[0]
    rows = tuple(part[0].shape[0] for part in parts)
    k = codes.shape[-1] * codes.itemsize * 8 // BITS[packing]
    if packing in PLAIN:
        return plain_layout(rows, k, packing)
    scale, *zero = others
    kind = _FLOATS.get(scale.dtype, "bytes")
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
    if layout.plain:
        _check_plain(what, part, rows, layout)
        return
    codes, scale, *zero = part
    bytes_ = ceil_div(layout.k * layout.bits, 8)
    numbers = _FIELD_BYTES.get(layout.packing, 1)
    wanted = (ceil_div(rows, layout.bn), layout.k_scales * numbers)
    if codes.dim() != 2 or codes.shape[1] != bytes_ or tuple(scale.shape) != wanted:
        raise QfuseError(
            f"{what} has codes {list(codes.shape)} and scales {list(scale.shape)}; expected "
            f"K = {layout.k} and scales {list(wanted)}"
        )
    if _FLOATS.get(scale.dtype, "bytes") != layout.scale or bool(zero) != layout.zeros:
        raise QfuseError(f"{what} has other scales or zero points than the first")
    for tensor in zero:
        if tuple(tensor.shape) != wanted:
            raise QfuseError(f"{what} has zero points {list(tensor.shape)}, not {list(wanted)}")
        if tensor.numel() and not 0 <= int(tensor.min()) <= int(tensor.max()) <= 15:
            raise QfuseError(f"{what} has zero points that are no codes, 0 to 15")


def _check_plain(what: str, part: Part, rows: int, layout: WeightLayout) -> None:
    weight, *others = part
    found = (_FLOATS.get(weight.dtype, str(weight.dtype)), tuple(weight.shape))
    if others or found != (layout.packing, (rows, layout.k)):
        raise QfuseError(
            f"{what} is {found[0]} {list(weight.shape)} with {len(others)} tensors of scales; "
            f"expected {layout.packing} [{rows}, {layout.k}] without"
        )


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


def _arrange_plain(rows: torch.Tensor, out: torch.Tensor) -> None:
    lanes = _by_slice(rows.view(torch.int32), len(out))
    out.view(torch.int32).view(lanes.shape).copy_(lanes)


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
    **dict.fromkeys(PLAIN, _arrange_plain),
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
