"""Products for few rows of x: the weight is decoded in registers, straight into the products."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from qfuse.lowering.cpu.emit import I32, Function, Index, Value
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

    Called as direct(sources..., group, scale_row, last_scale_row, column, x_at, x_stride, kept,
    out_at): the rows are packed at x[x_at], x_stride elements from one K block to the next, and the
    totals [rows][stride] begin at slots[out_at].

    More rows than there are accumulators for go by in turn: what was decoded of a run for the first
    ones is kept at slots[kept] for the others.
    """
    index = index_params(
        "group", "scale_row", "last", "column", "x_at", "x_stride", "kept", "out_at"
    )
    f = Function(f"direct{rows}", [*source_params(p), *index])
    w, w_scale, x, slots = f.params[: len(f.params) - len(index)]
    group, scale_row, last, column, x_at, x_stride, kept, out_at = index
    layout = p.layout
    for r in range(rows):
        clear(f, slots, f.iadd(out_at, r * stride), GROUP)
    source = scale_source(p, f, w_scale, scale_row, last, column)
    height, strips = p.direct_height(rows), p.direct_strips(rows)
    keeps = p.kept_elements(rows) > 0
    fetches = _fetches(p)
    with f.loop(0, layout.k_blocks) as block:
        base = f.address((group, layout.group_bytes), (block.iv, layout.block_bytes))
        x_block = f.address(x_at, (block.iv, x_stride))
        with f.each(p.runs) as run:
            if fetches:
                ahead = ceil_div(max(fetches)[0], layout.block_bytes)
                source.prefetch(f.imul(block.iv, layout.block), run, p.runs, ahead)
            start = f.address((block.iv, layout.block), (run, p.run))
            w_run = f.address(base, (run, layout.block_bytes // p.runs))
            x_run = f.address(x_block, (run, p.run_elements(rows)))
            # A loop: LLVM would keep totals of strips in line in registers, which there are not.
            with f.each(STRIPS // strips) as turn:
                at_strips = f.iadd(column, f.imul(turn, strips * LANES))
                of_turn = scale_source(p, f, w_scale, scale_row, last, at_strips)
                scales = of_turn.of_strips(strips, start)
                zeros = [
                    of_turn.zeros(s, start) if p.decodes_zeros else None for s in range(strips)
                ]
                w_at = f.address(w_run, (turn, strips * layout.strip_bytes))
                steps = _Steps(p, f, w, w_at, zeros, slots, kept if keeps else None)
                to = f.address(out_at, (turn, strips * LANES))
                for first in range(0, rows, height):
                    x_rows = f.iadd(x_run, first)
                    sums = first_sums(p, f, load_rows(p, f, x, x_rows, rows, height), strips)
                    slices = steps.again if first else steps.decoded
                    for r, own in _multiply_run(p, f, slices, x, x_rows, rows, sums, strips):
                        of_row = load_rows(p, f, x, f.iadd(x_rows, r), rows, 1)
                        at = f.iadd(to, (first + r) * stride)
                        add_run(p, f, scales, of_row, own, slots, at, stride)
    if p.scaled_once:
        of_rows = load_rows(p, f, x, x_at, rows, rows)
        scale_totals(f, source.of_strips(STRIPS, 0), of_rows, slots, out_at, stride)
    return f


def _fetches(p: Product) -> list[tuple[int, int]]:
    """How many bytes ahead of what is read it fetches, and how near (`Function.prefetch`).

    Scales of each run lie elsewhere, and interrupt the stream: there it fetches from memory to the
    second cache, and later to the first, which alone cannot wait for as many lines at a time as
    memory has under way.  One stream goes to the first at once; of a run that is longer and may be
    read more than once, strips after strips, the whole.
    """
    near, far = p.tunables.prefetch_bytes, p.tunables.far_bytes
    if p.runs == 1 and far:
        return [(max(far, p.layout.block_bytes), 3)]
    return [(distance, locality) for distance, locality in ((far, 2), (near, 3)) if distance]


@dataclass(frozen=True)
class _Steps:
    """The steps of some strips of a run, slice by slice."""

    p: Product
    f: Function
    w: Value
    at: Index
    """Where the run begins there."""
    zeros: list[Value | None]
    """Zero points to take off the codes of each strip."""
    slots: Value
    kept: Index | None
    """Where they are kept once they are decoded, if they are wanted again."""

    def decoded(self, number: Index) -> list[list[Value]]:
        """Those of each strip of a slice."""
        p, f = self.p, self.f
        at = f.address(self.at, (number, p.layout.slice_bytes))
        steps = []
        for s, zero in enumerate(self.zeros):
            strip_at = f.iadd(at, s * p.layout.strip_bytes)
            for distance, locality in _fetches(p):
                for line in range(0, p.layout.strip_bytes, LINE):
                    f.prefetch(self.w, f.iadd(strip_at, distance + line), locality)
            steps.append(p.codes.steps(f, load_strip(p, f, self.w, strip_at), zero))
        for s, of_strip in enumerate(steps if self.kept is not None else []):
            for h, step in enumerate(of_strip):
                f.store(step, self.slots, self._place(number, s, h))
        return steps

    def again(self, number: Index) -> list[list[Value]]:
        """The same, as they were kept."""
        strips, steps = range(len(self.zeros)), range(self.p.slice_steps)
        places = [[self._place(number, s, h) for h in steps] for s in strips]
        return [[self.f.load(self.slots, place, I32) for place in each] for each in places]

    def _place(self, number: Index, strip: int, step: int) -> Index:
        steps = self.p.slice_steps
        size = len(self.zeros) * steps * LANES
        assert self.kept is not None
        return self.f.address(self.kept, (number, size), (strip * steps + step) * LANES)


def _multiply_run(
    p: Product,
    f: Function,
    slices: Callable[[Index], list[list[Value]]],
    x: Value,
    x_run: Index,
    unit: int,
    sums: list[Value],
    strips: int,
) -> Iterator[tuple[int, list[Value]]]:
    """Each row with its sums over a run, which begin as `sums` [rows][strips].

    `slices` gives the steps of each strip of a slice; the rows are the first of `unit` packed ones.

    A few slices for one row stand in line.  Where whole sums have to be scaled, the last one goes
    by rows, so that what is done with the sums of each stands among the products of the next.
    """
    rows = len(sums) // strips

    def multiply_slice(number: Index, sums: list[Value]) -> list[Value]:
        steps = slices(number)
        x_at = f.address(x_run, (number, p.slice_steps * unit))
        for h in range(p.slice_steps):
            for r in range(rows):
                step = load_step(f, x, f.iadd(x_at, h * unit + r))
                for s in range(strips):
                    i = r * strips + s
                    sums[i] = multiply(p, f, sums[i], steps[s][h], step)
        return sums

    count = p.run // p.layout.columns
    head = count - p.scales_by_rows
    if head == 1 or (unit == 1 and count <= p.tunables.unrolled):
        for number in range(head):
            sums = multiply_slice(number, list(sums))
    elif head > 0:
        with f.loop(0, head, carried=sums) as loop:
            loop.yielded = multiply_slice(loop.iv, list(loop.carried))
        sums = loop.results
    steps = slices(head) if p.scales_by_rows else []
    x_at = f.address(x_run, head * p.slice_steps * unit)
    for r in range(rows):
        own = sums[r * strips : (r + 1) * strips]
        for h in range(p.slice_steps if steps else 0):
            step = load_step(f, x, f.iadd(x_at, h * unit + r))
            own = [multiply(p, f, own[s], steps[s][h], step) for s in range(strips)]
        yield r, own
