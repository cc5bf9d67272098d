"""How a packed FP8 weight lies in memory.  Neither MLIR nor torch here.

Each part of a weight (a single weight has one) is padded with zeros to a multiple of 64 rows and
of `bk` columns, and lies as groups of 64 rows, one after another, part after part:

    group g:  K blocks kb = 0 .. KB-1           64 * bk bytes each, so a group is one stream
    block kb: quads of columns q = 0 .. bk/4-1  256 bytes: the 4 columns 4q..4q+3 of 64 rows
    quad q:   strips s = 0 .. 3                 64 bytes: 4 columns of the 16 rows 16s..16s+15
    strip:    byte 16*lane + 8*half + 2*r + c   = row 16s + 4*lane + r, column 4q + 2*half + c

       byte  0    1    2    3    4    5    6    7  |  8    9   ...  | 16   17  ...
       row   0    0    1    1    2    2    3    3  |  0    0        |  4    4
       col   0    1    0    1    0    1    0    1  |  2    3        |  0    1

A table lookup gives the lower and the upper bytes of 64 bf16 values; interleaving them within
128-bit lanes then leaves, for each half, the pair (column 2h, column 2h+1) of row i in 32-bit
lane i: the operand of vdpbf16ps, which multiplies by the same pair of x in every lane.

One copy serves every number of rows of x and every level.  The order in which a product adds up
is the order of this layout, so an element of a result is the same bits for every M, N and number
of parts.  Scales stay as they are, f32 [ceil(N/bn), KB], the parts' one below the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

STRIP = 16
GROUP = 64
QUAD = 4


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return ceil_div(a, b) * b


@dataclass(frozen=True)
class WeightLayout:
    """Where things are in a packed weight of `parts` rows each and `k` columns."""

    parts: tuple[int, ...]
    k: int
    bn: int
    bk: int
    joined: bool = False
    """The parts are rows of one tensor, each from a multiple of `bn` on, as `qfuse.concat` joins
    them and experts have them; it was packed as one part.  `bn` is then a multiple of 64, or
    there is one part."""

    @property
    def k_blocks(self) -> int:
        return ceil_div(self.k, self.bk)

    @property
    def padded_k(self) -> int:
        return self.k_blocks * self.bk

    @property
    def group_bytes(self) -> int:
        return GROUP * self.padded_k

    def groups(self, part: int) -> int:
        return ceil_div(self.parts[part], GROUP)

    def scale_rows(self, part: int) -> int:
        return ceil_div(self.parts[part], self.bn)

    def first_group(self, part: int) -> int:
        if self.joined:
            return self.first_scale_row(part) * self.bn // GROUP
        return sum(self.groups(p) for p in range(part))

    def first_scale_row(self, part: int) -> int:
        return sum(self.scale_rows(p) for p in range(part))

    @property
    def packed_bytes(self) -> int:
        last = len(self.parts) - 1
        return (self.first_group(last) + self.groups(last)) * self.group_bytes

    @property
    def scale_shape(self) -> tuple[int, int]:
        return self.first_scale_row(len(self.parts)), self.k_blocks


def layout_error(block: Sequence[int]) -> str | None:
    """Why no weight with such blocks can be packed, or None."""
    bn, bk = block
    if bn % STRIP or bk % 32 or bk > 1024:
        return (
            f"blocks of {list(block)} have no CPU kernel; rows must be a multiple of {STRIP} and "
            "columns a multiple of 32, at most 1024, as in [128, 128]"
        )
    return None
