"""ggml's K-quants, a quarter of a block of 256 columns at a time: codes of its groups share bytes.

Quarters are counted over the whole row; their numbers, and what is read, may be scalars or blocks.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qfuse.dialects.bindings import ir
from qfuse.lowering.triton.builder import Builder

QUARTERS = 4

Q4_K_WORDS = 4
"""Of a header of q4_k: f16 d and dmin, and 12 bytes."""

_Q6_K_BLOCK, _Q6_K_HEADER = 192, 18


@dataclass(frozen=True)
class Q4KHeader:
    """d and dmin as f32; `scales` and `minima` have 6 bits of a quarter's groups in two bytes."""

    d: ir.Value
    dmin: ir.Value
    scales: ir.Value
    minima: ir.Value

    @staticmethod
    def read(b: Builder, words: list[ir.Value], quarter: ir.Value) -> "Q4KHeader":
        """From the four words of the block of a quarter, i32."""
        both, *packed = words
        within = b.rem(quarter, QUARTERS)
        first, shift = b.less(within, 2), b.mul(b.rem(within, 2), 16)
        d, dmin = (
            b.convert(b.bitcast(b.cast("trunci", bits, "i16"), "f16"), "f32")
            for bits in (both, b.binary("arith.shrui", both, 16))
        )
        scales, minima = (
            b.binary("arith.shrui", _four_of_six_bits(b, packed, first, place), shift)
            for place in (0, 1)
        )
        return Q4KHeader(d, dmin, scales, minima)

    def of_group(self, b: Builder, odd: bool | ir.Value) -> tuple[ir.Value, ir.Value]:
        """The multiplier of a group of the quarter, and what is added; `odd` may be i32."""
        right = b.mul(odd, 8) if isinstance(odd, ir.Value) else 8 * odd
        scale, minimum = (
            b.cast("sitofp", _bits(b, word, right, 63), "f32")
            for word in (self.scales, self.minima)
        )
        return b.mul(self.d, scale), b.sub(0.0, b.mul(self.dmin, minimum))


def _four_of_six_bits(b: Builder, packed: list[ir.Value], first: ir.Value, place: int) -> ir.Value:
    """Scales (place 0) or minima (place 1) of the first four groups of a block, or the others.

    Each has a byte; those of the others lie in pieces of four and two bits.
    """
    early = _bits(b, packed[place], 0, 0x3F3F3F3F)
    low = _bits(b, packed[2], 4 * place, 0x0F0F0F0F)
    late = b.binary("arith.ori", low, _bits(b, packed[place], 2, 0x30303030))
    return b.select(first, early, late)


def _bits(b: Builder, word: ir.Value, right: int | ir.Value, mask: int) -> ir.Value:
    if isinstance(right, ir.Value) or right:
        word = b.binary("arith.shrui", word, right)
    return b.binary("arith.andi", word, mask)


def q6_k_places(b: Builder, quarter: ir.Value) -> list[ir.Value]:
    """Where in a row a quarter has two times 16 bytes of lower bits, and 16 of upper ones."""
    half, sixteen = b.rem(b.div(quarter, 2), 2), b.mul(b.rem(quarter, 2), 16)
    block = b.add(b.mul(b.div(quarter, QUARTERS), _Q6_K_BLOCK), sixteen)
    lower = b.add(block, b.mul(half, 64))
    upper = b.add(b.add(block, b.mul(half, 32)), 128)
    return [lower, b.add(lower, 32), upper]


def q6_k_column(b: Builder, quarter: ir.Value) -> ir.Value:
    """The first column of a quarter: it has 16 from there on, and each 32 further on."""
    return b.add(b.mul(b.div(quarter, 2), 128), b.mul(b.rem(quarter, 2), 16))


def q6_k_multipliers(
    b: Builder,
    headers: ir.Value,
    quarter: ir.Value,
    read: Callable[[ir.Value, int], ir.Value],
) -> list[ir.Value]:
    """Those of the four groups of a quarter; `read` loads from a pointer into the first header.

    It is told how many elements headers are apart.
    """
    within = b.rem(quarter, QUARTERS)
    first = b.offset(headers, b.add(b.mul(b.div(within, 2), 8), b.rem(within, 2)))
    half_words = b.bitcast(headers, "!tt.ptr<f16>")
    d = b.convert(read(b.offset(half_words, 8), _Q6_K_HEADER // 2), "f32")
    groups = [read(b.offset(first, 2 * run), _Q6_K_HEADER) for run in range(4)]
    return [b.mul(d, b.cast("sitofp", group, "f32")) for group in groups]
