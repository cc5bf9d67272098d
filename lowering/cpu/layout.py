"""How a packed weight lies in memory.  Neither MLIR nor torch here.

Each part of a weight (a single weight has one) is padded with zeros to a multiple of 64 rows and
of `block` columns, and lies as groups of 64 rows, one after another, part after part:

    group g:  blocks kb = 0 .. KB-1             block columns each, so a group is one stream
    block kb: slices of 4, 8, 16, 2 or 1 columns    of elements of 8, 4, 6, 16 or 32 bits
    slice:    strips s = 0 .. 3                 64 bytes (192 of 6 bits): the rows 16s..16s+15

    strip of 8 bits: byte 16*lane + 8*half + 2*r + c   = row 16s + 4*lane + r, column 2*half + c

       byte  0    1    2    3    4    5    6    7  |  8    9   ...  | 16   17  ...
       row   0    0    1    1    2    2    3    3  |  0    0        |  4    4
       col   0    1    0    1    0    1    0    1  |  2    3        |  0    1

A table lookup gives the lower and the upper bytes of 64 bf16 values; interleaving them within
128-bit lanes then leaves, for each half, the pair (column 2h, column 2h+1) of row i in 32-bit
lane i: the operand of vdpbf16ps, which multiplies by the same pair of x in every lane.

    strip of 4 bits: byte 4*i + b = row i, columns o(b) in the lower and 4 + o(b) in the upper
                     bits, where o is 0, 2, 1, 3
    strip of 6 bits: two strips of 4 bits, A and B, with the lower bits of 8 columns each, then
                     64 bytes with two bits of A lower, A upper, B lower, B upper in each

There, masking leaves bytes of four columns of row i in lane i, the operand of vpdpbusd, and the
lower and the upper byte of each 16-bit word are a pair of columns, which one lookup of words
turns to bf16.

    strip of 16 bits: 32-bit lane i = row i, columns 0 and 1, the operand of vdpbf16ps as it is
    strip of 32 bits: lane i = row i

These are the elements of an unquantized weight, bf16, f16 or f32, which has no scales.

One copy serves every number of rows of x, every type of x and every level.  The order in which a
product adds up is the order of this layout, so an element of a result is the same bits for every
M, N and number of parts.

Scales of blocks that span whole strips are f32 [ceil(N/bn), ceil(K/bk)], the parts' one below the
other.  All others lie by row, as bytes: for each group of 64 rows, for each `bk` columns a record

    "none", "int4", "fp4"   64 scales as they were; then, if there are zero points, 64 of those
    "q4_k"                  64 f16 d, 64 f16 dmin; for each 32 columns 64 u8 scales, 64 u8 mins
    "q6_k"                  64 f16 d; for each 16 columns 64 i8 scales
"""

from dataclasses import dataclass

LINE = 64
"""Bytes of a cache line, and of a vector."""

STRIP = 16
GROUP = 64
BLOCK = 128
"""Columns of a block, where the scales do not ask for others."""

_MAX_BLOCK = 1024
_MIN_COLUMNS = 16

PLAIN = {"bf16": 16, "f16": 16, "f32": 32}
"""Bits of an element of an unquantized weight; its type takes the place of a packing."""

BITS = {"none": 8, "int4": 4, "fp4": 4, "q4_k": 4, "q6_k": 6, **PLAIN}
"""Bits of an element, by packing."""

_COLUMNS = {8: 4, 4: 8, 6: 16, 16: 2, 32: 1}  # of a slice, by the bits of an element
K_QUANTS = {"q4_k": 32, "q6_k": 16}
"""Columns that share a multiplier, by packing."""

_K_QUANT_RECORDS = {"q4_k": GROUP * (2 + 2 + 8 * 2), "q6_k": GROUP * (2 + 16)}
_SCALE_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "f8E8M0FNU": 1}

BYTE_COLUMNS = (0, 2, 1, 3)
"""Columns of the four bytes of a lane."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return ceil_div(a, b) * b


@dataclass(frozen=True)
class WeightLayout:
    """Where things are in a packed weight of `parts` rows each and `k` columns.

    The elements are packed as `packing` of `#qfuse.scheme` says, in blocks of [bn, bk] that share
    scales of type `scale`; those of an unquantized weight are as `plain_layout` says.
    """

    parts: tuple[int, ...]
    k: int
    bn: int
    bk: int
    packing: str = "none"
    scale: str = "f32"
    zeros: bool = False
    """Whether there are zero points."""
    joined: bool = False
    """The parts are rows of one tensor, each from a multiple of `bn` on, as experts whose scales
    serve several rows have them; it was packed as one part.  All parts but the last are then a
    multiple of 64 rows."""

    @property
    def plain(self) -> bool:
        """Whether the weight is unquantized."""
        return self.packing in PLAIN

    @property
    def bits(self) -> int:
        return BITS[self.packing]

    @property
    def columns(self) -> int:
        """Columns of a slice."""
        return _COLUMNS[self.bits]

    @property
    def strip_bytes(self) -> int:
        return STRIP * self.columns * self.bits // 8

    @property
    def slice_bytes(self) -> int:
        return GROUP * self.columns * self.bits // 8

    @property
    def by_block(self) -> bool:
        """Whether a scale serves all rows of a strip."""
        simple = self.packing not in K_QUANTS and not self.zeros
        return simple and self.bn % STRIP == 0

    @property
    def whole(self) -> bool:
        """Whether one scale serves all columns of a row."""
        return self.bk >= self.k and self.packing not in K_QUANTS

    @property
    def group(self) -> int:
        """Columns that share one multiplier."""
        return K_QUANTS.get(self.packing, self.bk)

    @property
    def block(self) -> int:
        """Columns that are decoded together."""
        if self.whole or BLOCK % self.bk == 0:
            return BLOCK
        return self.bk

    @property
    def k_blocks(self) -> int:
        return ceil_div(self.k, self.block)

    @property
    def padded_k(self) -> int:
        return self.k_blocks * self.block

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of one group."""
        return GROUP * self.block * self.bits // 8

    @property
    def group_bytes(self) -> int:
        return self.block_bytes * self.k_blocks

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
    def all_groups(self) -> int:
        last = len(self.parts) - 1
        return self.first_group(last) + self.groups(last)

    @property
    def packed_bytes(self) -> int:
        return self.all_groups * self.group_bytes

    @property
    def k_scales(self) -> int:
        """Scales along a row, or records."""
        return ceil_div(self.k, self.bk)

    @property
    def record_bytes(self) -> int:
        one_each = GROUP * (_SCALE_BYTES.get(self.scale, 0) + self.zeros)
        return _K_QUANT_RECORDS.get(self.packing, one_each)

    @property
    def group_scale_bytes(self) -> int:
        """Bytes of the records of a group."""
        return self.k_scales * self.record_bytes

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """f32 [rows, columns] by block, bytes [n] by row."""
        if self.by_block:
            return self.first_scale_row(len(self.parts)), self.k_scales
        return (self.all_groups * self.group_scale_bytes,)

    def error(self) -> str | None:
        """Why no weight with such blocks can be packed, or None."""
        if self.joined and any(self.first_scale_row(p) * self.bn % GROUP for p in self._later):
            return (
                f"parts of {list(self.parts)} rows have no CPU kernel in the weight of an expert; "
                f"each but the last must be a multiple of {GROUP}"
            )
        if self.whole or (self.bk % _MIN_COLUMNS == 0 and self.bk <= _MAX_BLOCK):
            return None
        return (
            f"blocks of {[self.bn, self.bk]} have no CPU kernel; columns must be a multiple of "
            f"{_MIN_COLUMNS}, at most {_MAX_BLOCK}, or all {self.k}"
        )

    @property
    def _later(self) -> range:
        return range(1, len(self.parts))


def plain_layout(parts: tuple[int, ...], k: int, dtype: str) -> WeightLayout:
    """That of an unquantized weight: nothing divides its columns, and records have no bytes."""
    return WeightLayout(parts, k, 1, k, dtype, "none")
