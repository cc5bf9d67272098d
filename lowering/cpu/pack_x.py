"""Packing rows of x: as steps, with what the product needs of each run.

Each run is [steps][rows] of 32-bit elements.  Where x has scales or sums are needed, as many
elements follow for each: the scales of the rows, f32, and what each row corrects by; for no fewer
than eight rows, so that all begin at vectors.
So the loops that multiply need to know nothing else of x.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from qfuse.dialects.types import PACKINGS
from qfuse.lowering.cpu.emit import F32, I8, I32, Function, Index, Value, vector
from qfuse.lowering.cpu.fp8 import FORMATS, decode
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.layout import BYTE_COLUMNS
from qfuse.lowering.cpu.product import LANES, Product, trailer_rows
from qfuse.lowering.cpu.scales import load_scale
from qfuse.lowering.cpu.signature import Tensor

_LOW = [i for j in range(8) for i in (j, 16 + j)]
_HIGH = [i for j in range(8, 16) for i in (j, 16 + j)]


@dataclass(frozen=True)
class PackedX:
    """Where packed rows go: `stride` elements lie from one K block to the next."""

    target: Value
    at: Index
    stride: Index


def pack_rows(p: Product, lanes: Lanes, x: Tensor, rows: Sequence[Index], to: PackedX) -> None:
    """Write rows of x, whose numbers are `rows`; columns beyond K become zero."""
    f = lanes.f
    count = len(rows)
    k, padded = p.layout.k, p.layout.padded_k
    columns = p.step_columns * LANES
    bases = [f.imul(row, k) for row in rows]
    with f.loop(0, padded // columns) as loop:
        column = f.imul(loop.iv, columns)
        left = f.isub(k, column) if padded != k else None
        vectors = [_steps(p, lanes, x, f.iadd(base, column), left) for base in bases]
        _store_steps(p, f, _interleave(f, vectors), loop.iv, count, to)
    if x.scale is not None or p.corrected:
        _pack_trailers(p, lanes, x, rows, bases, to)


def _store_steps(
    p: Product, f: Function, steps: list[Value], number: Value, count: int, to: PackedX
) -> None:
    """Sixteen steps of `count` rows, vector `number` of each row."""
    if p.run_steps % LANES == 0:
        block, chunk = (g(number, p.block_steps // LANES) for g in (f.idiv, f.imod))
        out = f.address(to.at, (block, to.stride), (chunk, LANES * count))
        if p.runs > 1:
            trailer = p.run_elements(count) - p.run_steps * count
            out = f.address(out, (f.idiv(chunk, p.run_steps // LANES), trailer))
        for i, v in enumerate(steps):
            f.store(v, to.target, f.iadd(out, i * LANES))
        return
    shorter = p.run_steps * count  # elements of a run
    for i in range(LANES // p.run_steps):
        run = f.address((number, LANES // p.run_steps), i)
        block, place = (g(run, p.runs) for g in (f.idiv, f.imod))
        out = f.address(to.at, (block, to.stride), (place, p.run_elements(count)))
        vectors = [steps[at // LANES] for at in range(i * shorter, (i + 1) * shorter, LANES)]
        if shorter < LANES:
            first = i * shorter % LANES
            v = vectors[0]
            vectors = [f.shuffle(v, v, range(first, first + shorter))]
        for j, v in enumerate(vectors):
            f.store(v, to.target, f.iadd(out, j * LANES))


def _pack_trailers(
    p: Product,
    lanes: Lanes,
    x: Tensor,
    rows: Sequence[Index],
    bases: Sequence[Index],
    to: PackedX,
) -> None:
    f = lanes.f
    count = len(rows)
    numbers = 1
    of_rows: list[Index] = [0] * count
    if x.scale is not None:
        assert x.shaped.scheme is not None
        numbers = PACKINGS[x.shaped.scheme.packing].numbers
        of_rows = [f.imul(row, x.shaped.scale_shape[-1]) for row in rows]
    with f.loop(0, p.layout.k_blocks) as block, f.each(p.runs) as run:
        start = f.address((block.iv, p.layout.block), (run, p.run))
        place = f.address((block.iv, to.stride), (run, p.run_elements(count)))
        out = f.address(to.at, place, p.run_steps * count)
        for i in range(count):
            scale = None
            if x.scale is not None:
                at = f.address(of_rows[i], _scale_column(p, f, x, start, numbers))
                scale = load_scale(lanes, x.scale, at, _scale_type(x))
                f.store(f.bitcast(scale, "i32"), to.target, f.iadd(out, i))
            if p.corrected:
                total = _sum_of_run(p, lanes, x, bases[i], start)
                value = _correction(p, f, total, scale)
                f.store(value, to.target, f.iadd(out, trailer_rows(count) + i))


def _scale_type(x: Tensor) -> str:
    assert x.shaped.scheme is not None
    return x.shaped.scheme.scale


def _scale_column(p: Product, f: Function, x: Tensor, start: Index, numbers: int) -> Index:
    """Which scale of a row serves the columns from `start` on; padding takes the last."""
    assert p.x_group is not None
    groups = x.shaped.scale_shape[-1] // numbers
    if groups == 1:
        return 0
    column = f.idiv(start, p.x_group)
    if p.layout.padded_k > groups * p.x_group:
        column = f.imin(column, groups - 1)
    return f.imul(column, numbers)


def _sum_of_run(p: Product, lanes: Lanes, x: Tensor, base: Index, start: Index) -> Value:
    """The sum of a run of a row: of its codes, i32, or of its plain values or FP8 codes, f32."""
    f = lanes.f
    whole = x.dtype == "i8"
    zero = f.isplat(0) if whole else f.splat(0.0)
    with f.loop(0, p.run // LANES, carried=[zero]) as loop:
        column = f.iadd(start, f.imul(loop.iv, LANES))
        mask = None
        if p.layout.padded_k != p.layout.k:
            mask = f.first_lanes(f.isub(p.layout.k, column))
        value = _elements(lanes, x, f.iadd(base, column), mask)
        loop.yielded = [f.binary("addi" if whole else "addf", loop.carried[0], value)]
    total = loop.results[0]
    return lanes.count(total) if whole else lanes.sum(total)


def _elements(lanes: Lanes, x: Tensor, at: Index, mask: Value | None) -> Value:
    """Sixteen elements as i32 lanes (i8) or f32 lanes (others)."""
    f = lanes.f
    if x.dtype == "i8":
        return f.cast("arith.extsi", f.load(x.data, at, I8, mask), I32)
    if x.dtype in FORMATS:
        return decode(f, f.load(x.data, at, I8, mask), FORMATS[x.dtype])
    return lanes.load(x.data, at, x.dtype, mask)


def _correction(p: Product, f: Function, total: Value, scale: Value | None) -> Value:
    """Minus what `total` makes the accumulator, or the result, too large by, as i32 bits."""
    if p.has_minimums:
        if total.type == "i32":
            total = f.cast("arith.sitofp", total, "f32")
        if scale is not None:
            total = f.mul(total, scale)
        return f.bitcast(f.op(f"arith.negf {total} : f32", "f32"), "i32")
    return f.binary("muli", total, f.constant(str(-max(p.offset, 1)), "i32"))


def _steps(p: Product, lanes: Lanes, x: Tensor, at: Index, left: Index | None) -> Value:
    """Sixteen steps of a row of x; those beyond the `left` remaining columns are zero."""
    f = lanes.f
    count = p.step_columns * LANES

    def mask(done: int, lanes_: int) -> Value | None:
        return None if left is None else f.first_lanes(f.isub(left, done), lanes_)

    if p.kind == "i8":
        codes = f.load(x.data, at, vector("i8", count), mask(0, count))
        order = [4 * quad + column for quad in range(LANES) for column in BYTE_COLUMNS]
        return f.bitcast(f.shuffle(codes, codes, order), I32)
    if p.kind == "i16":
        codes = f.load(x.data, at, vector("i8", count), mask(0, count))
        return f.bitcast(f.cast("arith.extsi", codes, vector("i16", count)), I32)
    if p.kind == "bf16" and x.dtype == "bf16":
        return f.bitcast(f.load(x.data, at, vector("i16", count), mask(0, count)), I32)
    halves = []
    for i in range(0, count, LANES):
        value = _elements(lanes, x, f.iadd(at, i), mask(i, LANES))
        halves.append(f.cast("arith.sitofp", value, F32) if x.dtype == "i8" else value)
    if p.kind == "f32":
        return f.bitcast(halves[0], I32)
    low, high = (lanes.narrow(h, "bf16") for h in halves)
    return f.bitcast(f.shuffle(low, high, range(count)), I32)


def _interleave(f: Function, rows: list[Value]) -> list[Value]:
    """Transpose: from one vector per row to lanes that go through the rows first."""
    if len(rows) == 1:
        return rows
    even, odd = _interleave(f, rows[::2]), _interleave(f, rows[1::2])
    return [
        f.shuffle(e, o, order) for e, o in zip(even, odd, strict=True) for order in (_LOW, _HIGH)
    ]
