"""The inner loops of a product: decoding the weight, and multiplying.

codes.py says what a *step* is.  Columns go by in *runs* that share one scale of x and one of each
row of w, and blocks, which are decoded together, have one or more of them.

Each element of the result is one chain: for every run an accumulator that starts at zero and
takes the steps in order, then total = fma(accumulator, x scale * w scale, total); for a weight
without scales, one that is not quantized, total = accumulator + total.  Where codes are multiplied
by codes the accumulators are whole numbers; where one scale then serves all of K, the accumulators
are added up as such, and the total is scaled in the end.

A run of 32 columns is eight vpdpbusd, a product of scales and an fma (one more for minimums), all
of which share two pipes of Zen 5; conversions to f32, additions and logic take the other two.  So
such a product reaches 8/10 of the multipliers' peak at most, with minimums 8/11, and q6_k, whose
runs have 16 columns, 8/12.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qfuse.lowering.cpu.codes import KINDS, Codes
from qfuse.lowering.cpu.emit import F32, I32, Function, Index, Value, buffer, vector
from qfuse.lowering.cpu.fp8 import FORMATS
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.layout import GROUP, LINE, STRIP, WeightLayout
from qfuse.lowering.cpu.scales import ScaleSource, StripScale
from qfuse.lowering.cpu.tunables import DEFAULTS, Tunables

LANES = STRIP
STRIPS = GROUP // STRIP

_INTEGERS = ("i8", "i4", "i6", "f4E2M1FN")
_MAX_EXACT = 1 << 17  # columns whose products of codes add up to less than 2^31


@dataclass(frozen=True)
class Product:
    """What the code of a product depends on, apart from its epilogue."""

    level: str
    layout: WeightLayout
    w_dtype: str
    x_dtype: str
    x_group: int | None = None
    """Columns that share a scale of x, where x has scales."""
    tuned: Tunables | None = None
    """What was measured to be best; None: the defaults."""

    @property
    def kind(self) -> str:
        """What is multiplied: see codes.py."""
        wide = self.level == "avx512"
        if self.layout.plain:
            return "bf16" if wide and self.x_dtype == self.w_dtype == "bf16" else "f32"
        if self.x_dtype == "i8" and self.w_dtype in _INTEGERS:
            return "i8" if wide or (self.level == "avx2" and self.layout.bits < 8) else "i16"
        return "bf16" if wide and self.x_dtype in ("bf16", "i8", *FORMATS) else "f32"

    @property
    def codes(self) -> Codes:
        return Codes(self.layout, self.w_dtype, self.level, self.kind)

    @property
    def exact(self) -> bool:
        """Whether sums are whole numbers."""
        return self.kind in ("i8", "i16")

    @property
    def step_columns(self) -> int:
        return KINDS[self.kind]

    @property
    def x_whole(self) -> bool:
        """Whether one scale of x, or none, serves all columns of a row."""
        return self.x_group is None or self.x_group >= self.layout.k

    @property
    def run(self) -> int:
        """Columns of a run, at most a block."""
        block = self.layout.block
        x_group = block if self.x_group is None or self.x_whole else self.x_group
        w_group = block if self.layout.whole else self.layout.group
        return min(x_group, w_group, block)

    @property
    def runs(self) -> int:
        """Runs of a block."""
        return self.layout.block // self.run

    @property
    def run_steps(self) -> int:
        return self.run // self.step_columns

    @property
    def block_steps(self) -> int:
        return self.layout.block // self.step_columns

    @property
    def slice_steps(self) -> int:
        return self.layout.columns // self.step_columns

    @property
    def scaled_once(self) -> bool:
        """Whether whole numbers are added up over all of K."""
        return self.exact and self.layout.whole and self.x_whole

    @property
    def scales_by_rows(self) -> bool:
        """Whether the direct loop takes the last slice of a run row by row.

        That pays for whole sums, which need more instructions than others to become totals.
        """
        return self.exact and not self.scaled_once

    @property
    def has_minimums(self) -> bool:
        return self.layout.packing == "q4_k"

    @property
    def offset(self) -> int:
        """What unsigned codes of the weight are too large by; zero points are apart."""
        if self.kind != "i8" or self.layout.zeros:
            return 0
        return self.codes.offset

    @property
    def corrects_zeros(self) -> bool:
        """Whether zero points come off the sums; otherwise they come off the codes."""
        return self.layout.zeros and self.kind == "i8"

    @property
    def decodes_zeros(self) -> bool:
        return self.layout.zeros and self.kind != "i8"

    @property
    def corrected(self) -> bool:
        """Whether packed x carries the sum of each run, for what codes or values are off by."""
        return self.has_minimums or self.offset != 0 or self.corrects_zeros

    def run_elements(self, rows: int) -> int:
        """32-bit elements of a run of `rows` packed rows of x: steps, then scales and sums."""
        trailer = 2 * trailer_rows(rows) if self.x_group is not None or self.corrected else 0
        return self.run_steps * rows + trailer

    def block_elements(self, rows: int) -> int:
        return self.run_elements(rows) * self.runs

    def packed_elements(self, rows: int) -> int:
        return self.block_elements(rows) * self.layout.k_blocks

    @property
    def tunables(self) -> Tunables:
        """What its loops take at once, and how far ahead they fetch."""
        return self.tuned or DEFAULTS[self.level]

    @property
    def tile_rows(self) -> tuple[int, ...]:
        return self.tunables.tile_rows

    @property
    def tile_strips(self) -> int:
        return self.tunables.tile_strips

    @property
    def tile_height(self) -> int:
        """Rows that the tiled loop multiplies by at once."""
        return max(1, self.tunables.tile_sums // self.tile_strips)

    @property
    def wide_groups(self) -> int:
        """Groups of columns that a wide tile of the tiled loop has.

        Where runs have scales of their own, a decoded block of one group and the totals of 64 rows
        stay in the first cache together; two would not, and reading x once for both saves less.
        """
        return 1 if self.runs > 1 else 2

    @property
    def direct_rows(self) -> tuple[int, ...]:
        return self.tunables.direct_rows

    def direct_height(self, rows: int) -> int:
        """Of so many rows in the direct loop, those that it multiplies by at once.

        All, where the weight lies in memory as it is multiplied: nothing is saved by decoding once.
        """
        return rows if self.layout.plain else min(rows, self.tunables.direct_height)

    def direct_strips(self, rows: int) -> int:
        """Strips that it takes at once for them."""
        most = STRIPS if rows > 1 else self.tunables.row_strips
        return min(most, self.tunables.direct_sums // self.direct_height(rows))

    def kept_elements(self, rows: int) -> int:
        """What it keeps of a run that was decoded."""
        if rows == self.direct_height(rows):
            return 0
        return self.direct_strips(rows) * self.run_steps * LANES

    @property
    def slices(self) -> int:
        """Slices of a block."""
        return self.layout.block // self.layout.columns

    @property
    def in_place(self) -> bool:
        """Whether the tiled loop multiplies by the weight where it lies, as steps already."""
        return self.layout.plain and (self.kind == "bf16" or self.w_dtype == "f32")

    @property
    def shares(self) -> int:
        """Into how many stretches the tiled loop divides a unit of rows by a block of one group."""
        return STRIPS // self.tile_strips * self.runs

    def scale_serves(self, columns: int) -> bool:
        """Whether rows of x have one scale for a block, and `columns` of w have another."""
        by_block = self.layout.by_block and self.layout.bn % columns == 0
        return by_block and self.x_group is not None and self.runs == 1 and not self.scaled_once

    def error(self) -> str | None:
        """Why there is no code for it, or None."""
        layout = self.layout
        group = layout.block if self.x_group is None or self.x_whole else self.x_group
        if layout.block % group and group % layout.block:
            return (
                f"x is scaled per {group} columns, for which there is no CPU kernel with this w; "
                f"use a divisor or a multiple of {layout.block}"
            )
        steps = self.run_steps
        if self.block_steps % LANES or (steps % LANES and LANES % steps):
            return (
                f"runs of {self.run} columns with one scale, in blocks of {layout.block}, have no "
                f"CPU kernel for such x and w; use {LANES * self.step_columns}"
            )
        if self.scaled_once and layout.k >= _MAX_EXACT:
            return f"sums of {layout.k} products of codes may not fit in i32; use groups"
        return None


def trailer_rows(rows: int) -> int:
    """How many scales, and sums, lie behind a run: whole vectors of both."""
    return max(rows, LANES // 2)


@dataclass(frozen=True)
class RowOfX:
    """What one packed row carries for a run."""

    scale: Value | None
    correction: Value | None
    """Minus what its sum stands for: i32, or f32 where values have minimums."""
    product: Value | None = None
    """Its scale times that of w, where all of a tile share the latter."""


def load_rows(p: Product, f: Function, x: Value, run: Index, rows: int, count: int) -> list[RowOfX]:
    """The first `count` of `rows` packed rows, for the run at x[run]."""

    def load(row: int) -> RowOfX:
        scale = correction = None
        if p.x_group is not None:
            at = f.iadd(run, p.run_steps * rows + row)
            scale = f.bitcast(f.load(x, at, "i32"), "f32")
        if p.corrected:
            at = f.iadd(run, p.run_steps * rows + trailer_rows(rows) + row)
            correction = f.load(x, at, "i32")
            if p.has_minimums:
                correction = f.bitcast(correction, "f32")
        return RowOfX(scale, correction)

    return [load(row) for row in range(count)]


def multiply(p: Product, f: Function, total: Value, w: Value, x: Value) -> Value:
    """total + w * x for one step, all in i32 lanes but for sums that are f32."""
    if p.kind == "f32":
        return f.fma(f.bitcast(w, F32), f.bitcast(x, F32), total)
    if p.kind == "bf16":
        bf16 = vector("bf16", 2 * LANES)
        a, b = f.bitcast(w, bf16), f.bitcast(x, bf16)
        return f.op(f"x86.avx512.dot {total}, {a}, {b} : {bf16} -> {F32}", F32)
    if p.kind == "i8" and p.level == "avx2":
        return _multiply_bytes(f, total, w, x)
    if p.kind == "i8":
        bytes_ = vector("i8", 4 * LANES)
        a, b = f.bitcast(w, bytes_), f.bitcast(x, bytes_)
        return f.op(
            f'llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.512"({total}, {a}, {b}) : '
            f"({I32}, {bytes_}, {bytes_}) -> {I32}",
            I32,
        )
    words, wide = vector("i16", 2 * LANES), vector("i32", 2 * LANES)
    a, b = (f.cast("arith.extsi", f.bitcast(v, words), wide) for v in (w, x))
    products = f.binary("muli", a, b)  # with the sum of neighbours, this is pmaddwd
    even, odd = (f.shuffle(products, products, range(i, 2 * LANES, 2)) for i in range(2))
    return f.binary("addi", total, f.binary("addi", even, odd))


def _multiply_bytes(f: Function, total: Value, w: Value, x: Value) -> Value:
    """Sums of two products of bytes as i16, and then of four as i32; codes are below 128."""
    bytes_, words, lanes = vector("i8", 32), vector("i16", 16), vector("i32", 8)
    sums = []
    for a, b in zip(f.halves(w), f.halves(x), strict=True):
        a, b = f.bitcast(a, bytes_), f.bitcast(b, bytes_)
        pairs = f.op(
            f'llvm.call_intrinsic "llvm.x86.avx2.pmadd.ub.sw"({a}, {b}) : '
            f"({bytes_}, {bytes_}) -> {words}",
            words,
        )
        quads = f.op(
            f'llvm.call_intrinsic "llvm.x86.avx2.pmadd.wd"({pairs}, {f.isplat(1, words)}) : '
            f"({words}, {words}) -> {lanes}",
            lanes,
        )
        sums.append(quads)
    return f.binary("addi", total, f.join(*sums))


def first_sums(p: Product, f: Function, rows: Sequence[RowOfX], strips: int) -> list[Value]:
    """What the accumulators of a run start with, [rows][strips]."""
    sums = []
    for row in rows:
        first = f.isplat(0) if p.exact else f.splat(0.0)
        if p.offset:
            assert row.correction is not None
            first = f.broadcast(row.correction, I32)
        sums += [first] * strips
    return sums


def load_step(f: Function, source: Value, at: Index) -> Value:
    return f.broadcast(f.load(source, at, "i32"), I32)


def add_run(
    p: Product,
    f: Function,
    scales: Sequence[StripScale],
    rows: Sequence[RowOfX],
    sums: Sequence[Value],
    slots: Value,
    at: Index,
    stride: int,
) -> None:
    """totals += sums * scales; sums are [rows][strips], totals lie at slots[at], [rows][stride]."""
    for i, total in enumerate(sums):
        (r, s), row = divmod(i, len(scales)), rows[i // len(scales)]
        of_strip, place = scales[s], f.iadd(at, r * stride + s * LANES)
        if p.corrects_zeros:
            assert of_strip.zero is not None and row.correction is not None
            zero = f.binary("muli", of_strip.zero, f.broadcast(row.correction, I32))
            total = f.binary("addi", total, zero)
        if p.scaled_once:
            f.store(f.binary("addi", f.load(slots, place, I32), total), slots, place)
            continue
        old = f.bitcast(f.load(slots, place, I32), F32)
        if p.layout.plain:
            f.store(f.bitcast(f.add(total, old), I32), slots, place)
            continue
        scale = _scale_of(f, of_strip, row)
        if of_strip.minimum is not None:
            assert row.correction is not None
            old = f.fma(of_strip.minimum, f.broadcast(row.correction), old)
        if p.exact:
            total = f.cast("arith.sitofp", total, F32)
        f.store(f.bitcast(f.fma(total, scale, old), I32), slots, place)


def _scale_of(f: Function, of_strip: StripScale, row: RowOfX) -> Value:
    """f32 lanes."""
    if row.product is not None:
        return f.broadcast(row.product)
    scale = of_strip.scale
    assert scale is not None
    if scale.type == F32:
        return scale if row.scale is None else f.mul(scale, f.broadcast(row.scale))
    return f.broadcast(scale if row.scale is None else f.mul(row.scale, scale))


def scale_totals(
    f: Function,
    scales: Sequence[StripScale],
    rows: Sequence[RowOfX],
    slots: Value,
    at: Index,
    stride: int,
) -> None:
    """Whole totals [rows][stride] of some strips, at slots[at], become f32."""
    for r, row in enumerate(rows):
        for s, of_strip in enumerate(scales):
            place = f.iadd(at, r * stride + s * LANES)
            total = f.cast("arith.sitofp", f.load(slots, place, I32), F32)
            f.store(f.bitcast(f.mul(total, _scale_of(f, of_strip, row)), I32), slots, place)


def clear(f: Function, slots: Value, at: Index, count: Index) -> None:
    """Zero `count` elements, a multiple of sixteen."""
    with f.loop(0, count, LANES) as loop:
        f.store(f.isplat(0), slots, f.iadd(at, loop.iv))


def index_params(*names: str) -> list[Value]:
    return [Value(f"%{name}", "index") for name in names]


def source_params(p: Product) -> list[Value]:
    """w, its scales, packed x, and the scratch of the thread."""
    scale = "f32" if p.layout.by_block else "i8"
    names = [("w", "i8"), ("w_scale", scale), ("x", "i32"), ("slots", "i32")]
    return [Value(f"%{name}", buffer(dtype)) for name, dtype in names]


def scale_source(
    p: Product, f: Function, w_scale: Value, first: Value, last: Value, column: Index
) -> ScaleSource:
    lanes = Lanes(f, p.level)
    return ScaleSource(lanes, p.layout, w_scale, first, last, column, p.codes.factor)


def load_strip(p: Product, f: Function, w: Value, at: Index) -> list[Value]:
    """The 64-byte vectors of a strip."""
    size = p.layout.strip_bytes
    return [f.load(w, f.iadd(at, i), vector("i8", LINE)) for i in range(0, size, LINE)]
