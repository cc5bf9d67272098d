"""Packing weights, against the picture in layout.py."""

import pytest
import torch
from schemes import Operand, int4, nibbles, plain_weight, q4_k, q6_k
from test_matmul import weight

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.layout import WeightLayout, plain_layout
from qfuse.lowering.cpu.weights import pack_experts, pack_scales, pack_weight


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


@pytest.mark.parametrize(("n", "k", "block"), [(70, 33, (16, 32)), (300, 200, (128, 128))])
def test_one_more_expert_is_as_if_it_had_been_there(n: int, k: int, block: tuple[int, int]) -> None:
    each = [weight(n, k, block, seed=e) for e in range(3)]
    codes, scales = (torch.stack(tensors) for tensors in zip(*each, strict=True))
    packed, packed_scales = pack_experts(codes[:2], scales[:2], block, appended=[each[2]])
    wanted, wanted_scales = pack_experts(codes, scales, block)
    assert torch.equal(packed, wanted) and torch.equal(packed_scales, wanted_scales)


def test_one_more_expert_may_have_parts() -> None:
    gate, up, k, block = weight(40, 64, (16, 32)), weight(48, 64, (16, 32)), 64, (16, 32)
    rows = torch.zeros(96, k, dtype=torch.uint8)
    rows[:40], rows[48:] = gate[0].view(torch.uint8), up[0].view(torch.uint8)
    last = rows.view(gate[0].dtype), torch.cat([gate[1], up[1]])
    first = weight(96, k, block, seed=1)
    codes, scales = (torch.stack(tensors) for tensors in zip(first, last, strict=True))
    packed = pack_experts(codes[:1], scales[:1], block, appended=[gate, up])
    for found, wanted in zip(packed, pack_experts(codes, scales, block), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(("n", "k"), [(1, 1), (70, 33), (130, 200)])
def test_every_unquantized_element_is_in_its_place(dtype: str, n: int, k: int) -> None:
    w = plain_weight(n, k, dtype)
    (packed,) = w.packed()
    layout, raw = plain_layout((n,), k, dtype), w.components[0]
    assert len(packed) == layout.packed_bytes
    elements = packed.view(raw.dtype)
    row, column = torch.meshgrid(torch.arange(n), torch.arange(k), indexing="ij")
    at = 4 // raw.itemsize  # columns of a lane
    lane = (row // 64) * layout.group_bytes // 4 + (column // at) * 64 + row % 64
    assert torch.equal(elements[lane * at + column % at], raw)
    assert int(elements.count_nonzero()) == int(raw.count_nonzero())  # padded with zeros


def test_unquantized_experts_have_the_bytes_of_each() -> None:
    """All, or one more that is appended, and cut into parts that begin anywhere."""
    n, k = 72, 33
    each = [plain_weight(2 * n, k, "bf16", seed=e).components[0] for e in range(3)]
    alone = [pack_weight([(w[:n],), (w[n:],)], (1, k), "bf16")[0] for w in each]
    both = {"block": (1, k), "packing": "bf16", "rows": [n, n]}
    assert torch.equal(pack_experts(torch.stack(each), None, **both)[0], torch.cat(alone))
    appended = [(each[2][:n],), (each[2][n:],)]
    (packed,) = pack_experts(torch.stack(each[:2]), None, **both, appended=appended)
    assert torch.equal(packed, torch.cat(alone))
    whole = pack_experts(torch.stack(each[:2]), None, (1, k), "bf16", appended=[(each[2],)])
    assert torch.equal(whole[0], torch.cat([pack_weight([(w,)], (1, k), "bf16")[0] for w in each]))


def test_refuses_one_more_expert_of_another_shape() -> None:
    codes, scale = weight(70, 33)
    with pytest.raises(QfuseError, match="of one more expert; expected \\[70, 33\\]"):
        pack_experts(codes[None], scale[None], (128, 128), appended=[weight(71, 33)])


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


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([weight(64, 128)], "part 0 is torch.float8_e4m3fn \\[64, 128\\] with 1 tensors of scales"),
        ([(torch.zeros(64, 128),)], "part 0 is f32 \\[64, 128\\] with 0 .*expected bf16"),
        ([(torch.zeros(64, n, dtype=torch.bfloat16),) for n in (8, 16)], "expected bf16 \\[64, 8"),
    ],
)
def test_refuses_unquantized(parts: list, reason: str) -> None:
    with pytest.raises(QfuseError, match=reason):
        pack_weight(parts, (1, 128), "bf16")


def test_refuses_parts_of_experts_that_are_none() -> None:
    experts = torch.zeros(2, 64, 8)
    with pytest.raises(QfuseError, match="are not of parts \\[32, 33\\]"):
        pack_experts(experts, None, (1, 8), "f32", rows=[32, 33])
    with pytest.raises(QfuseError, match="1 parts; expected 2"):
        pack_experts(experts, None, (1, 8), "f32", rows=[32, 32], appended=[(experts[0],)])


BYTES = (0, 2, 1, 3)  # which of four columns each byte of a lane has


def codes_at(packed: torch.Tensor, bits: int, padded_k: int, row: int, column: int) -> int:
    """One code of four or six bits, by the picture."""
    columns, strip_bytes = {4: (8, 64), 6: (16, 192)}[bits]
    group, row = divmod(row, 64)
    slice_, column = divmod(column, columns)
    strip, row = divmod(row, 16)
    at = group * 64 * padded_k * bits // 8 + (slice_ * 4 + strip) * strip_bytes
    byte = 4 * row + BYTES.index(column % 4)
    code = int(packed[at + 64 * (column // 8) + byte]) >> (4 * (column // 4 % 2)) & 15
    if bits == 6:
        code |= (int(packed[at + 128 + byte]) >> (2 * (column // 4)) & 3) << 4
    return code


@pytest.mark.parametrize(
    ("w", "padded_k"),
    [(int4(70, 34, 32, zeros=True), 128), (q4_k(66, 256), 256), (q6_k(66, 256), 256)],
    ids=["int4", "q4_k", "q6_k"],
)
def test_narrow_elements_are_in_their_places(w: Operand, padded_k: int) -> None:
    packed, _ = w.packed()
    (n, k), bits = w.type.shape, {"i4": 4, "i6": 6}[w.type.dtype]
    assert len(packed) == 128 * padded_k * bits // 8
    wanted = whole_codes(w)
    for row in range(0, n, 5):
        for column in range(k):
            assert codes_at(packed, bits, padded_k, row, column) == wanted[row, column]


def whole_codes(w: Operand) -> torch.Tensor:
    """Unsigned codes, from the values and what they are made of."""
    if w.type.scheme.packing == "int4":
        return nibbles(w.components[0])
    size = 128 if w.type.dtype == "i4" else 192
    blocks = w.components[0].view(torch.uint8).unflatten(1, (-1, size))
    columns = []
    for j in range(256):
        if w.type.dtype == "i4":
            byte = blocks[..., 32 * (j // 64) + j % 32]
            columns.append(byte >> (4 * (j // 32 % 2)) & 15)
        else:
            half, quarter, at = j // 128, j % 128 // 32, j % 32
            low = blocks[..., 64 * half + 32 * (quarter % 2) + at] >> (4 * (quarter // 2)) & 15
            high = blocks[..., 128 + 32 * half + at] >> (2 * quarter) & 3
            columns.append(low | high << 4)
    return torch.stack(columns, -1).flatten(1)


def test_records() -> None:
    """64 scales, then 64 zero points, for each group of rows and columns."""
    w = int4(70, 100, 32, zeros=True)
    _, scales = w.packed()
    records = scales.view(2, 4, 64 * 3)
    for row in (0, 5, 63, 64, 69):
        group, r = divmod(row, 64)
        stored = records[group, :, 2 * r : 2 * r + 2].contiguous().view(torch.float16)
        assert torch.equal(stored.flatten(), w.components[1][row])
        assert torch.equal(records[group, :, 128 + r], w.components[2][row].view(torch.uint8))
    assert not records[1, :, 12:128].any() and not records[1, :, 134:].any()


@pytest.mark.parametrize("rows", [1, 16, 24])
def test_scales_alone_are_those_of_the_weight(rows: int) -> None:
    codes, scales = weight(70, 200, (rows, 64))
    _, wanted = pack_weight([(codes, scales)], (rows, 64))
    assert torch.equal(pack_scales(scales, codes.shape, (rows, 64)), wanted)


@pytest.mark.parametrize(
    ("part", "packing", "reason"),
    [
        ((torch.zeros(8, 32), torch.ones(8, 2), torch.full((8, 2), 16)), "int4", "0 to 15"),
        (
            (torch.zeros(8, 32), torch.ones(8, 2), torch.zeros(8, 1)),
            "int4",
            "zero points \\[8, 1\\]",
        ),
        (
            (torch.zeros(8, 128), torch.ones(8, 2)),
            "q4_k",
            "expected K = 256 and scales \\[8, 16\\]",
        ),
    ],
)
def test_refuses_components(part: tuple, packing: str, reason: str) -> None:
    codes, scale, *zero = part
    block = (1, 256) if packing == "q4_k" else (1, 32)
    tensors = (codes.to(torch.int8), scale, *(z.to(torch.int8) for z in zero))
    with pytest.raises(QfuseError, match=reason):
        pack_weight([tensors], block, packing)


def test_parts_agree_in_their_scales() -> None:
    first, second = int4(64, 128, 32), int4(64, 128, 32, "bf16")
    with pytest.raises(QfuseError, match="part 1 has other scales or zero points"):
        pack_weight([first.components, second.components], (1, 32), "int4")
