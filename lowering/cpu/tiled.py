"""Products for many rows of x: one decoded block of the weight serves all of them."""

from dataclasses import dataclass, replace

from qfuse.lowering.cpu.emit import F32, I32, Function, Index, Value
from qfuse.lowering.cpu.layout import GROUP, LINE, ceil_div
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
class _Place:
    """Where the strips of a column of a tile are."""

    weights: Index
    """Their decoded block."""
    source: ScaleSource
    out: Index
    """Their totals."""


def build_decode(p: Product) -> Function:
    """One K block of one group of the weight to [64/strips][steps][strips * 16] at slots[to].

    Called as decode(w, w_scale, slots, from, to, group, column): from is a byte of the weight, the
    block is that of the columns from `column` on; group and column are read for zero points only.
    """
    w, w_scale, _, slots = source_params(p)
    from_, to, group, column = index = index_params("from", "to", "group", "column")
    f = Function("decode_block", [w, w_scale, slots, *index])
    width = p.tile_strips * LANES
    layout = p.layout
    source = scale_source(p, f, w_scale, group, group, 0)
    slices = layout.block // layout.columns
    runs = p.runs if p.decodes_zeros else 1
    with f.each(runs) as run:
        zeros: list[Value | None] = [None] * STRIPS
        if p.decodes_zeros:
            zeros = [source.zeros(s, f.address(column, (run, p.run))) for s in range(STRIPS)]
        with f.loop(0, slices // runs) as loop:
            number = f.address((run, slices // runs), loop.iv)
            at = f.address(from_, (number, layout.slice_bytes))
            for s in range(STRIPS):
                strip = load_strip(p, f, w, f.iadd(at, s * layout.strip_bytes))
                columns, place = divmod(s, p.tile_strips)
                out = f.address(
                    to,
                    columns * p.block_steps * width + place * LANES,
                    (number, p.slice_steps * width),
                )
                steps = p.codes.steps(f, strip, zeros[s])
                for h, step in enumerate(steps):
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


def build_tile(p: Product, rows: int, stride: int) -> Function:
    """`rows` rows of packed x by a decoded K block of a tile of columns.

    Called as tile(sources..., scale_row, last_scale_row, column, kb, x_at, w_at, out_at, from,
    groups, turn, lines): the block of x at x[x_at], packed in tile_rows[0] rows, the decoded block
    at slots[w_at], behind it what `build_products` made if it has to, the totals [rows][stride] at
    slots[out_at].

    More rows than there are accumulators for with so many strips go by in turn.

    The block was decoded from w[from]; the next one is prefetched meanwhile, spread over the
    calls, so that the memory works while the multipliers do: each column of strips fetches
    `lines` cache lines in each part of its steps, and this is call number `turn`.
    """
    names = ("scale_row", "last", "column", "kb", "x_at", "w_at", "out_at")
    index = index_params(*names, "from", "groups", "turn", "lines")
    f = Function(f"tile{rows}", [*source_params(p), *index])
    w, w_scale, x, slots = f.params[: len(f.params) - len(index)]
    scale_row, last, column, kb, x_at, w_at, out_at, from_, groups, turn, lines = index
    strips = p.tile_strips
    width = strips * LANES
    steps = p.block_steps // p.parts
    unit = p.tile_rows[0]
    per_group = GROUP // width
    height = min(rows, p.tile_height)

    def fetch(columns: Index, part: Index, first: int) -> None:
        if not p.tunables.tile_fetches:
            return
        group, place = (g(columns, per_group) for g in (f.idiv, f.imod))
        next_block = f.address(from_, (group, p.layout.group_bytes), p.layout.block_bytes)
        share = f.imul(f.address((turn, per_group), place), p.parts * ceil_div(unit, p.tile_height))
        number = f.iadd(share, f.iadd(part, first // height * p.parts))
        ahead = f.imul(number, f.imul(lines, LINE))
        with f.loop(0, lines) as line:
            f.prefetch(w, f.address(next_block, ahead, (line.iv, LINE)), locality=2)

    def place_of(number: Index) -> _Place:
        at_column = f.iadd(column, f.imul(number, width))
        return _Place(
            f.address(w_at, (number, p.block_steps * width)),
            scale_source(p, f, w_scale, scale_row, last, at_column),
            f.address(out_at, (number, width)),
        )

    start = f.imul(kb, p.layout.block)
    if p.runs > 1:
        with f.loop(0, p.runs) as run, f.loop(0, f.imul(groups, per_group)) as columns:
            x_run = f.address(x_at, (run.iv, p.run_elements(unit)))
            at = place_of(columns.iv)
            w_run = f.address(at.weights, (run.iv, steps * width))
            scales = at.source.of_strips(strips, f.address(start, (run.iv, p.run)))
            for first in range(0, rows, height):
                fetch(columns.iv, run.iv, first)
                x_rows, count = f.iadd(x_run, first), min(height, rows - first)
                sums = first_sums(p, f, load_rows(p, f, x, x_rows, unit, count), strips)
                head = steps - _LAST_STEPS
                sums = _multiply_steps(p, f, x, x_rows, slots, w_run, sums, head)
                tail = [_load_weights(p, f, slots, w_run, step) for step in range(head, steps)]
                for r in range(count):
                    own = sums[r * strips : (r + 1) * strips]
                    for i, weights in enumerate(tail):
                        step = load_step(f, x, f.address(x_rows, (head + i) * unit, r))
                        own = [multiply(p, f, own[s], weights[s], step) for s in range(strips)]
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
        at = place_of(columns.iv)
        for first in range(0, rows, height):
            those = of_rows[first : first + height]
            sums = first_sums(p, f, those, strips)
            with f.loop(0, p.parts, carried=sums) as part:
                fetch(columns.iv, part.iv, first)
                x_part = f.iadd(f.address(x_at, (part.iv, steps * unit)), first)
                w_part = f.address(at.weights, (part.iv, steps * width))
                part.yielded = _multiply_steps(p, f, x, x_part, slots, w_part, part.carried, steps)
            scales = at.source.of_strips(strips, start)
            out = f.iadd(at.out, first * stride)
            add_run(p, f, scales, those, part.results, slots, out, stride)
    return f


def _load_weights(p: Product, f: Function, slots: Value, w_at: Index, step: Index) -> list[Value]:
    """A step of all strips of a column, decoded at slots[w_at]."""
    at = f.address(w_at, (step, p.tile_strips * LANES))
    return [f.load(slots, f.iadd(at, s * LANES), I32) for s in range(p.tile_strips)]


def _multiply_steps(
    p: Product,
    f: Function,
    x: Value,
    x_at: Index,
    slots: Value,
    w_at: Index,
    sums: list[Value],
    count: int,
) -> list[Value]:
    """sums [rows][strips] plus the products of `count` steps, decoded at slots[w_at]."""
    strips, unit = p.tile_strips, p.tile_rows[0]
    with f.loop(0, count, carried=sums) as loop:
        sums = list(loop.carried)
        weights = _load_weights(p, f, slots, w_at, loop.iv)
        x_step = f.address(x_at, (loop.iv, unit))
        for i in range(0, len(sums), strips):
            of_row = load_step(f, x, f.iadd(x_step, i // strips))
            for s in range(strips):
                sums[i + s] = multiply(p, f, sums[i + s], weights[s], of_row)
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
