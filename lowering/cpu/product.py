"""The inner loops of a product: packing x, decoding the weight, and multiplying.

A *step* is what one multiply instruction consumes of a row of x, a 32-bit element: a pair of
bf16 (AVX-512) or one f32.  In both cases a vector of the weight holds that step of 16 rows, so
the loops are the same for both.

Packed rows of x carry their scales: each K block is [steps][rows], and then, where x is
quantized, the scale of each row, so a product needs to know nothing else of x.

Each element of the result is one chain: for every K block an accumulator that starts at zero and
takes the steps in order, then total = fma(accumulator, x scale * w scale, total).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qfuse.lowering.cpu.emit import F32, I8, I32, Function, Index, Value, buffer, vector
from qfuse.lowering.cpu.fp8 import FORMATS, Format, decode, decode_to_bf16
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.layout import GROUP, QUAD, STRIP, WeightLayout

LANES = STRIP

_PREFETCH_BYTES = 8192  # ahead of the reader of a linear stream
_LINE = 64
_QUARTERS = 4  # of the steps of a block; blocks have a multiple of 16
_MAX_SUMS = 16  # accumulators that leave enough registers for the operands

_LOW = [i for j in range(8) for i in (j, 16 + j)]
_HIGH = [i for j in range(8, 16) for i in (j, 16 + j)]


@dataclass(frozen=True)
class Product:
    """What the code of a product depends on, apart from its epilogue."""

    level: str
    layout: WeightLayout
    format: Format
    x_dtype: str
    x_scaled: bool

    @property
    def pairs(self) -> bool:
        """Whether a step is a pair of bf16; only for x that is exactly bf16."""
        return self.level == "avx512" and self.x_dtype in ("bf16", *FORMATS)

    @property
    def quad_steps(self) -> int:
        return 2 if self.pairs else 4

    @property
    def block_steps(self) -> int:
        return self.layout.bk // QUAD * self.quad_steps

    def block_elements(self, rows: int) -> int:
        """32-bit elements of a K block of `rows` packed rows of x: steps, then scales."""
        return self.block_steps * rows + (LANES if self.x_scaled else 0)

    def packed_elements(self, rows: int) -> int:
        return self.block_elements(rows) * self.layout.k_blocks

    @property
    def tile_rows(self) -> tuple[int, ...]:
        """Rows of x that the tiled loop takes at once; the first is its usual number."""
        return (8, 4, 2) if self.level == "avx512" else (4, 2)

    @property
    def tile_strips(self) -> int:
        """Strips of the weight that the tiled loop takes at once."""
        return 2 if self.level == "avx512" else 1

    @property
    def direct_rows(self) -> tuple[int, ...]:
        """Numbers of rows for which decoded weights go straight into the products."""
        return (1, 4, 8) if self.level == "avx512" else (1,)


def pack_rows(
    p: Product,
    lanes: Lanes,
    x: Value,
    x_scale: Value | None,
    rows: Sequence[Index],
    target: Value,
    at: Index,
    stride: Index,
) -> None:
    """Write rows of x to target[at] as 32-bit elements [steps][rows], each block with its scales.

    `rows` says which rows; `stride` elements lie from one K block to the next.  Columns beyond K
    become zero.
    """
    f = lanes.f
    count = len(rows)
    k, padded = p.layout.k, p.layout.padded_k
    columns = 2 * LANES if p.pairs else LANES
    bases = [f.imul(row, k) for row in rows]
    with f.loop(0, padded // columns) as loop:
        column = f.imul(loop.iv, columns)
        left = f.isub(k, column) if padded != k else None
        vectors = [_x_steps(p, lanes, x, f.iadd(base, column), left) for base in bases]
        block, chunk = (g(loop.iv, p.block_steps // LANES) for g in (f.idiv, f.imod))
        out = f.address(at, (block, stride), (chunk, LANES * count))
        for i, v in enumerate(_interleave(f, vectors)):
            f.store(v, target, f.iadd(out, i * LANES))
    if x_scale is None:
        return
    of_rows = [f.imul(row, p.layout.k_blocks) for row in rows]
    with f.loop(0, p.layout.k_blocks) as loop:
        out = f.address(at, (loop.iv, stride), p.block_steps * count)
        for i, base in enumerate(of_rows):
            scale = f.load(x_scale, f.iadd(base, loop.iv), "f32")
            f.store(f.bitcast(scale, "i32"), target, f.iadd(out, i))


def _x_steps(p: Product, lanes: Lanes, x: Value, at: Index, left: Index | None) -> Value:
    """Sixteen steps of a row of x; those beyond the `left` remaining columns are zero."""
    f = lanes.f

    def mask(done: int, lanes_: int = LANES) -> Value | None:
        return None if left is None else f.first_lanes(f.isub(left, done), lanes_)

    if p.x_dtype in FORMATS:
        fmt = FORMATS[p.x_dtype]
        halves = [
            decode(f, f.load(x, f.iadd(at, i * LANES), I8, mask(i * LANES)), fmt)
            for i in range(2 if p.pairs else 1)
        ]
        if not p.pairs:
            return f.bitcast(halves[0], I32)
        low, high = (lanes.narrow(h, "bf16") for h in halves)
        return f.bitcast(f.shuffle(low, high, range(2 * LANES)), I32)
    if p.pairs:
        return f.bitcast(f.load(x, at, vector("i16", 2 * LANES), mask(0, 2 * LANES)), I32)
    return f.bitcast(lanes.load(x, at, p.x_dtype, mask(0)), I32)


def _interleave(f: Function, rows: list[Value]) -> list[Value]:
    """Transpose: from one vector per row to lanes that go through the rows first."""
    if len(rows) == 1:
        return rows
    even, odd = _interleave(f, rows[::2]), _interleave(f, rows[1::2])
    return [
        f.shuffle(e, o, order) for e, o in zip(even, odd, strict=True) for order in (_LOW, _HIGH)
    ]


def decode_steps(p: Product, f: Function, strip: Value) -> list[Value]:
    """The steps of 64 bytes of packed weight, as i32 lanes."""
    if p.level != "avx512":
        return [f.bitcast(decode(f, b, p.format), I32) for b in _columns(f, strip)]
    halves = [f.bitcast(h, I32) for h in decode_to_bf16(f, strip, p.format)]
    if p.pairs:
        return halves
    return [
        step
        for h in halves
        for step in (
            f.binary("shli", h, f.isplat(16)),
            f.binary("andi", h, f.isplat(0xFFFF0000)),
        )
    ]


def _columns(f: Function, strip: Value) -> list[Value]:
    return [
        f.shuffle(
            strip,
            strip,
            [16 * lane + 8 * half + 2 * r + c for lane in range(4) for r in range(4)],
        )
        for half in range(2)
        for c in range(2)
    ]


def multiply(p: Product, f: Function, total: Value, w: Value, x: Value) -> Value:
    """total + w * x for one step."""
    if not p.pairs:
        return f.fma(f.bitcast(w, F32), f.bitcast(x, F32), total)
    bf16 = vector("bf16", 2 * LANES)
    a, b = f.bitcast(w, bf16), f.bitcast(x, bf16)
    return f.op(f"x86.avx512.dot {total}, {a}, {b} : {bf16} -> {F32}", F32)


def load_step(f: Function, source: Value, at: Index) -> Value:
    return f.broadcast(f.load(source, at, "i32"), I32)


@dataclass(frozen=True)
class ScaleSource:
    """Where the scales of a block of w come from."""

    w: Value
    row: Value
    """Scale row of w for the first column."""
    last_row: Value
    column: Value
    """Column of the part that the first strip begins with."""

    def of_strips(self, p: Product, f: Function, strips: int, kb: Value) -> list[Value]:
        """The scale of each strip; strips that share a block share the value."""
        bn = p.layout.bn
        found: list[Value] = []
        for s in range(strips):
            if s and bn % GROUP == 0:
                found.append(found[0])
                continue
            row = f.iadd(self.row, f.idiv(f.iadd(self.column, s * STRIP), bn))
            if bn % GROUP:  # padding strips may lie beyond the last scale
                row = f.imin(row, self.last_row)
            at = f.address((row, p.layout.k_blocks), kb)
            found.append(f.load(self.w, at, "f32"))
        return found


def add_block(
    p: Product,
    f: Function,
    scales: list[Value],
    x_scale: Value | None,
    block: list[Value],
    slots: Value,
    at: Index,
) -> None:
    """totals += block sums * scales, for the strips of one row, whose totals lie at slots[at]."""
    for s, (total, w_scale) in enumerate(zip(block, scales, strict=True)):
        scale = w_scale if x_scale is None else f.mul(x_scale, w_scale)
        place = f.iadd(at, s * LANES)
        old = f.bitcast(f.load(slots, place, I32), F32)
        f.store(f.bitcast(f.fma(total, f.broadcast(scale), old), I32), slots, place)


def clear(f: Function, slots: Value, at: Index, count: Index) -> None:
    """Zero `count` elements, a multiple of sixteen."""
    with f.loop(0, count, LANES) as loop:
        f.store(f.isplat(0), slots, f.iadd(at, loop.iv))


def index_params(*names: str) -> list[Value]:
    return [Value(f"%{name}", "index") for name in names]


def source_params(p: Product) -> list[Value]:
    """w, its scales, packed x, and the scratch of the thread."""
    names = [("w", p.format.name), ("w_scale", "f32"), ("x", "i32"), ("slots", "i32")]
    return [Value(f"%{name}", buffer(dtype)) for name, dtype in names]


def row_scale(p: Product, f: Function, x: Value, block: Index, rows: int, row: int) -> Value | None:
    """The scale of one of `rows` packed rows in the K block at x[block], if x is quantized."""
    if not p.x_scaled:
        return None
    at = f.iadd(block, p.block_steps * rows + row)
    return f.bitcast(f.load(x, at, "i32"), "f32")


def build_direct(p: Product, rows: int, stride: int) -> Function:
    """`rows` rows of x by one group of the weight, decoded in registers.

    Called as direct(sources..., group, scale_row, last_scale_row, column, x_at, x_stride, out_at):
    the rows are packed at x[x_at], x_stride elements from one K block to the next, and the totals
    [rows][stride] begin at slots[out_at].
    """
    index = index_params("group", "scale_row", "last", "column", "x_at", "x_stride", "out_at")
    f = Function(f"direct{rows}", [*source_params(p), *index])
    w, w_scale, x, slots = f.params[: len(f.params) - len(index)]
    group, scale_row, last, column, x_at, x_stride, out_at = index
    strips = GROUP // STRIP
    for r in range(rows):
        clear(f, slots, f.iadd(out_at, r * stride), GROUP)
    quads = p.layout.bk // QUAD
    source = ScaleSource(w_scale, scale_row, last, column)
    at_once = min(strips, _MAX_SUMS // rows)
    with f.loop(0, p.layout.k_blocks) as block:
        base = f.address((group, p.layout.group_bytes), (block.iv, GROUP * p.layout.bk))
        x_base = f.address(x_at, (block.iv, x_stride))
        scales = source.of_strips(p, f, strips, block.iv)
        for first in range(0, strips, at_once):
            zeros = [f.splat(0.0)] * (rows * at_once)
            with f.loop(0, quads, carried=zeros) as quad:
                at = f.address(base, (quad.iv, GROUP * QUAD), first * STRIP * QUAD)
                x_quad = f.address(x_base, (quad.iv, p.quad_steps * rows))
                quad.yielded = _multiply_quad(p, f, w, at, x, x_quad, rows, quad.carried)
            for r in range(rows):
                of_row = row_scale(p, f, x, x_base, rows, r)
                totals = quad.results[r * at_once : (r + 1) * at_once]
                of_strips = scales[first : first + at_once]
                to = f.iadd(out_at, r * stride + first * LANES)
                add_block(p, f, of_strips, of_row, totals, slots, to)
    return f


def _multiply_quad(
    p: Product,
    f: Function,
    w: Value,
    at: Index,
    x: Value,
    x_at: Index,
    rows: int,
    sums: list[Value],
) -> list[Value]:
    """sums [rows][strips] plus the products of four columns of strips at w[at]."""
    sums = list(sums)
    strips = len(sums) // rows
    steps = []
    for s in range(strips):
        strip_at = f.iadd(at, s * STRIP * QUAD)
        if p.pairs:
            f.prefetch(w, f.iadd(strip_at, _PREFETCH_BYTES), locality=3)
        strip = f.load(w, strip_at, vector("i8", STRIP * QUAD))
        steps.append(decode_steps(p, f, strip))
    for h in range(p.quad_steps):
        for r in range(rows):
            step = load_step(f, x, f.iadd(x_at, h * rows + r))
            for s in range(strips):
                i = r * strips + s
                sums[i] = multiply(p, f, sums[i], steps[s][h], step)
    return sums


def build_decode(p: Product) -> Function:
    """One K block of one group of the weight to [64/strips][steps][strips * 16] at slots[to].

    Called as decode(w, slots, from, to): from is a byte of the weight.
    """
    w, slots = Value("%w", buffer(p.format.name)), Value("%slots", buffer("i32"))
    from_, to = index_params("from", "to")
    f = Function("decode_block", [w, slots, from_, to])
    width = p.tile_strips * LANES
    with f.loop(0, p.layout.bk // QUAD) as quad:
        at = f.address(from_, (quad.iv, GROUP * QUAD))
        for s in range(GROUP // STRIP):
            strip = f.load(w, f.iadd(at, s * STRIP * QUAD), vector("i8", STRIP * QUAD))
            column, place = divmod(s, p.tile_strips)
            out = f.address(
                to,
                column * p.block_steps * width + place * LANES,
                (quad.iv, p.quad_steps * width),
            )
            for h, step in enumerate(decode_steps(p, f, strip)):
                f.store(step, slots, f.iadd(out, h * width))
    return f


def build_tile(p: Product, rows: int, stride: int) -> Function:
    """`rows` rows of packed x by a decoded K block of a tile of columns.

    Called as tile(sources..., scale_row, last_scale_row, column, kb, x_at, w_at, out_at, from,
    groups, turn, lines): the block of x at x[x_at], packed in tile_rows[0] rows, the decoded block
    at slots[w_at], the totals [rows][stride] at slots[out_at].

    The block was decoded from w[from]; the next one is prefetched meanwhile, spread over the
    calls, so that the memory works while the multipliers do: each column of strips fetches
    `lines` cache lines in each quarter of its steps, and this is call number `turn`.
    """
    names = ("scale_row", "last", "column", "kb", "x_at", "w_at", "out_at")
    index = index_params(*names, "from", "groups", "turn", "lines")
    f = Function(f"tile{rows}", [*source_params(p), *index])
    w, w_scale, x, slots = f.params[: len(f.params) - len(index)]
    scale_row, last, column, kb, x_at, w_at, out_at, from_, groups, turn, lines = index
    strips = p.tile_strips
    width = strips * LANES
    quarter = p.block_steps // _QUARTERS
    unit = p.tile_rows[0]
    of_rows = [row_scale(p, f, x, x_at, unit, r) for r in range(rows)]
    per_group = GROUP // width
    with f.loop(0, f.imul(groups, per_group)) as columns:
        group, place = (g(columns.iv, per_group) for g in (f.idiv, f.imod))
        next_block = f.address(from_, (group, p.layout.group_bytes), GROUP * p.layout.bk)
        share = f.imul(f.address((turn, per_group), place), _QUARTERS)
        weights_at = f.address(w_at, (columns.iv, p.block_steps * width))
        sums = [f.splat(0.0)] * (rows * strips)
        with f.loop(0, _QUARTERS, carried=sums) as part:
            if p.pairs:
                ahead = f.imul(f.iadd(share, part.iv), f.imul(lines, _LINE))
                with f.loop(0, lines) as line:
                    f.prefetch(w, f.address(next_block, ahead, (line.iv, _LINE)), locality=2)
            with f.loop(0, quarter, carried=part.carried) as step:
                number = f.address((part.iv, quarter), step.iv)
                sums = list(step.carried)
                at = f.address(weights_at, (number, width))
                weights = [f.load(slots, f.iadd(at, s * LANES), I32) for s in range(strips)]
                x_step = f.address(x_at, (number, unit))
                for r in range(rows):
                    of_row = load_step(f, x, f.iadd(x_step, r))
                    for s in range(strips):
                        i = r * strips + s
                        sums[i] = multiply(p, f, sums[i], weights[s], of_row)
                step.yielded = sums
            part.yielded = step.results
        at_column = f.iadd(column, f.imul(columns.iv, width))
        assert isinstance(at_column, Value)
        source = ScaleSource(w_scale, scale_row, last, at_column)
        scales = source.of_strips(p, f, strips, kb)
        for r in range(rows):
            totals = part.results[r * strips : (r + 1) * strips]
            to = f.address(out_at, r * stride, (columns.iv, width))
            add_block(p, f, scales, of_rows[r], totals, slots, to)
    return f
