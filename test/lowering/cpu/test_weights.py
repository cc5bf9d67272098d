"""Packing weights, against the picture in layout.py."""

import pytest
import torch
from test_matmul import weight

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.layout import WeightLayout
from qfuse.lowering.cpu.weights import pack_experts, pack_weight


def place(layout: WeightLayout, part: int, row: int, column: int) -> int:
    """The byte of one element."""
    group, row = divmod(row, 64)
    quad, column = divmod(column, 4)
    strip, row = divmod(row, 16)
    lane, r = divmod(row, 4)
    half, c = divmod(column, 2)
    start = (layout.first_group(part) + group) * layout.group_bytes
    return start + quad * 256 + strip * 64 + 16 * lane + 8 * half + 2 * r + c


@pytest.mark.parametrize(("n", "k"), [(1, 1), (70, 33), (128, 128), (130, 200)])
def test_every_element_is_in_its_place(n: int, k: int) -> None:
    codes, scale = weight(n, k)
    packed, scales = pack_weight([(codes, scale)], (128, 128))
    layout = WeightLayout((n,), k, 128, 128)
    raw = codes.view(torch.uint8)
    wanted = torch.zeros(layout.packed_bytes, dtype=torch.uint8)
    for row in range(n):
        for column in range(k):
            wanted[place(layout, 0, row, column)] = raw[row, column]
    assert torch.equal(packed, wanted) and torch.equal(scales, scale)


def test_joined_parts_have_the_bytes_of_each() -> None:
    parts = [weight(n, 200, seed=n) for n in (130, 7, 256)]
    packed, scales = pack_weight(parts, (128, 128))
    alone = [pack_weight([p], (128, 128)) for p in parts]
    assert torch.equal(packed, torch.cat([p for p, _ in alone]))
    assert torch.equal(scales, torch.cat([s for _, s in alone]))


@pytest.mark.parametrize(("n", "k", "block"), [(70, 33, (16, 32)), (300, 200, (128, 128))])
def test_experts_have_the_bytes_of_each(n: int, k: int, block: tuple[int, int]) -> None:
    each = [weight(n, k, block, seed=e) for e in range(3)]
    codes, scales = (torch.stack(tensors) for tensors in zip(*each, strict=True))
    packed, packed_scales = pack_experts(codes, scales, block)
    alone = [pack_weight([expert], block) for expert in each]
    assert torch.equal(packed, torch.cat([p for p, _ in alone]))
    assert torch.equal(packed_scales, torch.stack([s for _, s in alone]))


def test_parts_of_an_expert_begin_at_their_blocks() -> None:
    """As one part of an expert, and as its parts: the same bytes and scales in the same places."""
    n, k = 150, 200
    codes, scales = weight(256 + n, k)
    joined = WeightLayout((n, n), k, 128, 128, joined=True)
    packed, _ = pack_experts(codes[None], scales[None], (128, 128))
    assert joined.packed_bytes == len(packed) and joined.scale_shape == tuple(scales.shape)
    for part, first in enumerate((0, 256)):
        begin = joined.first_group(part) * joined.group_bytes
        assert begin == place(WeightLayout((256 + n,), k, 128, 128), 0, first, 0)
        assert joined.first_scale_row(part) == first // 128


@pytest.mark.parametrize(
    ("codes", "scale", "block", "reason"),
    [
        ((64, 128), (1, 1), (128, 128), "expected \\[E, N, K\\]"),
        ((0, 64, 128), (0, 1, 1), (128, 128), "expected \\[E, N, K\\]"),
        ((2, 64, 128), (2, 2, 1), (128, 128), "expected K = 128 and scales \\[1, 1\\]"),
        ((2, 64, 128), (1, 1, 1), (128, 128), "not of equally many experts"),
        ((2, 64, 128), (2, 1, 16), (128, 8), "columns must be a multiple of 16"),
    ],
)
def test_refuses_experts(
    codes: tuple[int, ...], scale: tuple[int, ...], block: tuple[int, int], reason: str
) -> None:
    with pytest.raises(QfuseError, match=reason):
        pack_experts(torch.zeros(codes, dtype=torch.uint8), torch.zeros(scale), block)


@pytest.mark.parametrize(
    ("parts", "block", "reason"),
    [
        ([], (128, 128), "no weight"),
        ([weight(64, 128)], (128, 8), "columns must be a multiple of 16"),
        ([(weight(64, 128)[0], torch.ones(1, 1).double())], (128, 128), "scales of torch.float64"),
        ([(weight(64, 128)[0], torch.ones(2, 1))], (128, 128), "expected K = 128 and scales"),
        ([weight(64, 128), weight(64, 64)], (128, 128), "part 1 has codes"),
    ],
)
def test_refuses(parts: list, block: tuple[int, int], reason: str) -> None:
    with pytest.raises(QfuseError, match=reason):
        pack_weight(parts, block)
