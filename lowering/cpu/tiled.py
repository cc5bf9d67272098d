"""Products for many rows of x: one decoded block of the weight serves all of them."""

from dataclasses import dataclass, replace

from qfuse.lowering.cpu.emit import F32, I32, Function, Index, Value, vector
from qfuse.lowering.cpu.layout import GROUP, LINE
from qfuse.lowering.cpu.product import (
    LANES,
    STRIPS,
    Product,
    add_run,
    first_sums,
    index_params,
    load_rows,
    load_step,
    load_strip,
    multiply,
    scale_source,
    scale_totals,
    source_params,
)
from qfuse.lowering.cpu.scales import ScaleSource

_LAST_STEPS = 2
"""Steps of a run that go row by row: what is done with the sums of each row, conversions, scales
and loads of totals, then stands among the products of the next one.  In one piece it would be
longer than what a CPU looks ahead, and its multipliers would wait."""


@dataclass(frozen=True)
class _Weights:
    """Where the steps of a column of strips of a block are: decoded, or in the weight itself."""

    source: Value
    at: Index
    step: int
    """Elements of `source` from one step to the next."""
    strip: int
    """And from one strip to the next."""

    def from_step(self, f: Function, step: Index) -> "_Weights":
        return replace(self, at=f.address(self.at, (step, self.step)))

    def load(self, p: Product, f: Function, step: Index) -> list[Value]:
        """A step of all strips."""
        of_step, strips = self.from_step(f, step), range(p.tile_strips)
        at = [f.iadd(of_step.at, s * self.strip) for s in strips]
        if not p.in_place:
            return [f.load(self.source, a, I32) for a in at]
        return [f.bitcast(f.load(self.source, a, vector("i8", LINE)), I32) for a in at]


@dataclass(frozen=True)
class _Place:
    """Where the strips of a column of a tile are."""

    weights: _Weights
    source: ScaleSource
    out: Index
    """Their totals."""


def build_decode(p: Product) -> Function:
    """Slices of one K block of one group of the weight to [64/strips][steps][strips * 16] at
    slots[to].

    Called as decode(w, w_scale, slots, from, to, group, column, ahead, first, last): the block,
    that of the columns from `column` on, begins at byte `from` of the weight; its slices from
    `first` to before `last` are decoded.  What lies `ahead` bytes further is fetched, if it is to
    be.  A weight that is multiplied where it lies is only fetched.
    """
    w, w_scale, _, slots = source_params(p)
    index = index_params("from", "to", "group", "column", "ahead", "first", "last")
    from_, to, group, column, ahead, first, last = index
    f = Function("decode_block", [w, w_scale, slots, *index])
    width = p.tile_strips * LANES
    layout = p.layout
    source = scale_source(p, f, w_scale, group, group, 0)
    with f.loop(first, last) as loop:
        number = loop.iv
        at = f.address(from_, (number, layout.slice_bytes))
        if p.tunables.tile_fetches:
            for line in range(0, layout.slice_bytes, LINE):
                f.prefetch(w, f.address(at, ahead, line), locality=3)
            source.prefetch(column, number, p.slices, 1)
        for s in range(0 if p.in_place else STRIPS):
            strip = load_strip(p, f, w, f.iadd(at, s * layout.strip_bytes))
            zero = None
            if p.decodes_zeros:
                run = f.idiv(number, p.slices // p.runs)
                zero = source.zeros(s, f.address(column, (run, p.run)))
            columns, place = divmod(s, p.tile_strips)
            out = f.address(
                to,
                columns * p.block_steps * width + place * LANES,
                (number, p.slice_steps * width),
            )
            for h, step in enumerate(p.codes.steps(f, strip, zero)):
                f.store(step, slots, f.iadd(out, h * width))
    return f


def build_products(p: Product) -> Function:
    """The scale of each row of x times that of w, for a K block, [units][16] at slots[to].

    Called as products(sources..., scale_row, last_scale_row, column, kb, x_at, units, to), with the
    arguments of `build_tile`.  A multiplication takes a number from memory for all lanes at once;
    from a register it would have to be shuffled there.
    """
    index = index_params("scale_row", "last", "column", "kb", "x_at", "units", "to")
    f = Function("products", [*source_params(p), *index])
    _, w_scale, x, slots = f.params[: len(f.params) - len(index)]
    scale_row, last, column, kb, x_at, units, to = index
    unit = p.tile_rows[0]
    source = scale_source(p, f, w_scale, scale_row, last, column)
    (of_strip,) = source.of_strips(1, f.imul(kb, p.layout.block))
    assert of_strip.scale is not None
    scale = f.broadcast(of_strip.scale)
    with f.loop(0, units) as turn:
        at = f.address(x_at, (turn.iv, p.block_elements(unit)), p.run_steps * unit)
        of_rows = f.bitcast(f.load(x, at, I32), F32)
        product = f.bitcast(f.mul(of_rows, scale), I32)
        f.store(product, slots, f.address(to, (turn.iv, LANES)))
    return f


def build_tile(p: Product, decode: Function, rows: int, stride: int) -> Function:
    """`rows` rows of packed x by a decoded K block of a tile of columns.

    Called as tile(sources..., scale_row, last_scale_row, column, kb, x_at, w_at, out_at, from,
    groups, turn, next_at, ahead, slices): the block of x at x[x_at], packed in tile_rows[0] rows,
    the decoded block at slots[w_at], behind it what `build_products` made if it has to, the totals
    [rows][stride] at slots[out_at].

    More rows than there are accumulators for with so many strips go by in turn.

    The block was decoded from w[from].  The next one is decoded to slots[next_at] meanwhile, spread
    over the calls, so that what decoding takes, and memory, work while the multipliers do: before
    each column of strips, in each run, go `slices` slices, and this is call number `turn`; what is
    to be decoded then is fetched `ahead` bytes further.
    """
    names = ("scale_row", "last", "column", "kb", "x_at", "w_at", "out_at")
    index = index_params(*names, "from", "groups", "turn", "next_at", "ahead", "slices")
    f = Function(f"tile{rows}", [*source_params(p), *index])
    w, w_scale, x, slots = f.params[: len(f.params) - len(index)]
    scale_row, last, column, kb, x_at, w_at, out_at = index[:7]
    from_, groups, turn, next_at, ahead, slices = index[7:]
    strips = p.tile_strips
    width = strips * LANES
    steps = p.block_steps
    unit = p.tile_rows[0]
    per_group = GROUP // width
    height = min(rows, p.tile_height)
    start = f.imul(kb, p.layout.block)

    def divide(columns: Index) -> tuple[Index, Index]:
        """The group of a column of strips, and its place in that."""
        return f.idiv(columns, per_group), f.imod(columns, per_group)

    def decode_next(columns: Index, run: Index) -> None:
        group, place = divide(columns)
        share = f.address((turn, per_group * p.runs), (place, p.runs), run)
        first = f.imul(share, slices)
        end = f.imin(f.iadd(first, slices), p.slices)
        with f.when(f.icompare("slt", first, end)):
            source = f.address(from_, p.layout.block_bytes, (group, p.layout.group_bytes))
            to = f.address(next_at, (group, GROUP * steps))
            of_zeros = [f.iadd(scale_row, group), f.iadd(start, p.layout.block)]
            f.call(decode, [w, w_scale, slots, source, to, *of_zeros, ahead, first, end])

    def weights_of(number: Index) -> _Weights:
        if not p.in_place:
            return _Weights(slots, f.address(w_at, (number, steps * width)), width, LANES)
        size, group, place = p.layout.strip_bytes, *divide(number)
        at = f.address(from_, (group, p.layout.group_bytes), (place, strips * size))
        return _Weights(w, at, p.layout.slice_bytes, size)

    def place_of(number: Index) -> _Place:
        at_column = f.iadd(column, f.imul(number, width))
        return _Place(
            weights_of(number),
            scale_source(p, f, w_scale, scale_row, last, at_column),
            f.address(out_at, (number, width)),
        )

    if p.runs > 1:
        with f.loop(0, p.runs) as run, f.loop(0, f.imul(groups, per_group)) as columns:
            decode_next(columns.iv, run.iv)
            x_run = f.address(x_at, (run.iv, p.run_elements(unit)))
            at = place_of(columns.iv)
            weights = at.weights.from_step(f, f.imul(run.iv, p.run_steps))
            scales = at.source.of_strips(strips, f.address(start, (run.iv, p.run)))
            for first in range(0, rows, height):
                x_rows, count = f.iadd(x_run, first), min(height, rows - first)
                sums = first_sums(p, f, load_rows(p, f, x, x_rows, unit, count), strips)
                head = p.run_steps - _LAST_STEPS
                sums = _multiply_steps(p, f, x, x_rows, weights, sums, head)
                tail = [weights.load(p, f, step) for step in range(head, p.run_steps)]
                for r in range(count):
                    own = sums[r * strips : (r + 1) * strips]
                    for i, of_strips in enumerate(tail):
                        step = load_step(f, x, f.address(x_rows, (head + i) * unit, r))
                        own = [multiply(p, f, own[s], of_strips[s], step) for s in range(strips)]
                    of_row = load_rows(p, f, x, f.iadd(x_rows, r), unit, 1)
                    out = f.iadd(at.out, (first + r) * stride)
                    add_run(p, f, scales, of_row, own, slots, out, stride)
        return f
    of_rows = load_rows(p, f, x, x_at, unit, rows)
    if p.scale_serves(stride):
        products = f.address(w_at, stride * p.block_steps, (turn, LANES))
        each = [f.load(slots, f.iadd(products, r), "i32") for r in range(rows)]
        of_rows = [
            replace(row, product=f.bitcast(product, "f32"))
            for row, product in zip(of_rows, each, strict=True)
        ]
    with f.loop(0, f.imul(groups, per_group)) as columns:
        decode_next(columns.iv, 0)
        at = place_of(columns.iv)
        for first in range(0, rows, height):
            those = of_rows[first : first + height]
            sums = first_sums(p, f, those, strips)
            sums = _multiply_steps(p, f, x, f.iadd(x_at, first), at.weights, sums, steps)
            scales = at.source.of_strips(strips, start)
            out = f.iadd(at.out, first * stride)
            add_run(p, f, scales, those, sums, slots, out, stride)
    return f


def _multiply_steps(
    p: Product,
    f: Function,
    x: Value,
    x_at: Index,
    weights: _Weights,
    sums: list[Value],
    count: int,
) -> list[Value]:
    """sums [rows][strips] plus the products of the first `count` steps."""
    strips, unit = p.tile_strips, p.tile_rows[0]
    with f.loop(0, count, carried=sums) as loop:
        sums = list(loop.carried)
        of_strips = weights.load(p, f, loop.iv)
        x_step = f.address(x_at, (loop.iv, unit))
        for i in range(0, len(sums), strips):
            of_row = load_step(f, x, f.iadd(x_step, i // strips))
            for s in range(strips):
                sums[i + s] = multiply(p, f, sums[i + s], of_strips[s], of_row)
        loop.yielded = sums
    return loop.results


def build_scale(p: Product, stride: int) -> Function:
    """The whole totals of a unit of rows, after the last block, become f32.

    Called as scale(sources..., scale_row, last_scale_row, column, x_at, out_at, groups), with the
    arguments of `build_tile`.
    """
    index = index_params("scale_row", "last", "column", "x_at", "out_at", "groups")
    f = Function("scale", [*source_params(p), *index])
    _, w_scale, x, slots = f.params[: len(f.params) - len(index)]
    scale_row, last, column, x_at, out_at, groups = index
    unit = p.tile_rows[0]
    of_rows = load_rows(p, f, x, x_at, unit, unit)
    with f.loop(0, groups) as group:
        of_group = f.imul(group.iv, GROUP)
        source = scale_source(p, f, w_scale, scale_row, last, f.iadd(column, of_group))
        scales = source.of_strips(STRIPS, 0)
        scale_totals(f, scales, of_rows, slots, f.iadd(out_at, of_group), stride)
    return f
