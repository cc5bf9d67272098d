"""Products for few rows of x: the weight is decoded in registers, straight into the products."""

from dataclasses import dataclass

from qfuse.lowering.cpu.emit import Function, Index, Value
from qfuse.lowering.cpu.layout import GROUP, LINE, ceil_div
from qfuse.lowering.cpu.product import (
    LANES,
    STRIPS,
    Product,
    add_run,
    clear,
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
    layout = p.layout
    for r in range(rows):
        clear(f, slots, f.iadd(out_at, r * stride), GROUP)
    source = scale_source(p, f, w_scale, scale_row, last, column)
    chosen = p.tunables
    at_once = min(STRIPS if rows > 1 else chosen.row_strips, chosen.direct_sums // rows)
    with f.loop(0, layout.k_blocks) as block:
        base = f.address((group, layout.group_bytes), (block.iv, layout.block_bytes))
        x_block = f.address(x_at, (block.iv, x_stride))
        with f.each(p.runs) as run:
            if chosen.prefetch_bytes:
                ahead = ceil_div(_distance(p), layout.block_bytes)
                source.prefetch(f.imul(block.iv, layout.block), run, p.runs, ahead)
            start = f.address((block.iv, layout.block), (run, p.run))
            w_run = f.address(base, (run, layout.block_bytes // p.runs))
            x_run = f.address(x_block, (run, p.run_elements(rows)))
            scales = source.of_strips(STRIPS, start)
            of_rows = load_rows(p, f, x, x_run, rows, rows)
            for first in range(0, STRIPS, at_once):
                strips = range(first, first + at_once)
                zeros = [source.zeros(s, start) if p.decodes_zeros else None for s in strips]
                place = _Run(f.iadd(w_run, first * layout.strip_bytes), x_run, zeros)
                sums = first_sums(p, f, of_rows, at_once)
                sums = _multiply_run(p, f, w, x, rows, place, sums)
                to = f.iadd(out_at, first * LANES)
                add_run(p, f, [scales[s] for s in strips], of_rows, sums, slots, to, stride)
    if p.scaled_once:
        of_rows = load_rows(p, f, x, x_at, rows, rows)
        scale_totals(f, source.of_strips(STRIPS, 0), of_rows, slots, out_at, stride)
    return f


def _distance(p: Product) -> int:
    """Bytes ahead of what is read that are fetched.

    Of a run that is longer and read more than once, strips after strips, the whole.
    """
    return max(p.tunables.prefetch_bytes, p.layout.block_bytes // p.runs)


@dataclass(frozen=True)
class _Run:
    """Where a run of some strips begins."""

    w_at: Index
    x_at: Index
    zeros: list[Value | None]
    """Zero points to take off the codes of each strip."""


def _multiply_run(
    p: Product, f: Function, w: Value, x: Value, rows: int, run: _Run, sums: list[Value]
) -> list[Value]:
    """sums [rows][strips] plus the products of a run; a few slices for one row stand in line."""

    def multiply_slice(number: Index, sums: list[Value]) -> list[Value]:
        at = f.address(run.w_at, (number, p.layout.slice_bytes))
        x_at = f.address(run.x_at, (number, p.slice_steps * rows))
        return _multiply_slice(p, f, w, at, x, x_at, rows, sums, run.zeros)

    count = p.run // p.layout.columns
    if count == 1 or (rows == 1 and count <= p.tunables.unrolled):
        for number in range(count):
            sums = multiply_slice(number, sums)
        return sums
    with f.loop(0, count, carried=sums) as loop:
        loop.yielded = multiply_slice(loop.iv, loop.carried)
    return loop.results


def _multiply_slice(
    p: Product,
    f: Function,
    w: Value,
    at: Index,
    x: Value,
    x_at: Index,
    rows: int,
    sums: list[Value],
    zeros: list[Value | None],
) -> list[Value]:
    """sums [rows][strips] plus the products of a slice of strips at w[at]."""
    sums = list(sums)
    strips = len(sums) // rows
    steps = []
    for s in range(strips):
        strip_at = f.iadd(at, s * p.layout.strip_bytes)
        if p.tunables.prefetch_bytes:
            for line in range(0, p.layout.strip_bytes, LINE):
                f.prefetch(w, f.iadd(strip_at, _distance(p) + line), locality=3)
        strip = load_strip(p, f, w, strip_at)
        steps.append(p.codes.steps(f, strip, zeros[s]))
    for h in range(p.slice_steps):
        for r in range(rows):
            step = load_step(f, x, f.iadd(x_at, h * rows + r))
            for s in range(strips):
                i = r * strips + s
                sums[i] = multiply(p, f, sums[i], steps[s][h], step)
    return sums
