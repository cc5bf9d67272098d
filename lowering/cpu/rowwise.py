"""The frame of row-wise kernels: rows shared among threads, each cut into segments.

A row of `width` elements is walked in segments of `length` (the group of a quantized result, or
a few vectors), each in vectors of sixteen; the last segment and the last vector may be shorter.

    width 300, length 128:   [0..128) [128..256) [256..300) = 16 + 16 + 12 masked
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from qfuse.dialects.types import Shaped
from qfuse.lowering.cpu.emit import I8, LANES, Function, Index, Value, buffer
from qfuse.lowering.cpu.kernel import TASK_COUNTER, Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.quantized import dynamic_quantizer, given_quantizer

MAX_IN_REGISTERS = 16
"""Vectors of one segment that are kept in registers between the two passes of quantizing."""

# A task should be long enough that taking it costs nothing.
_TASK_ELEMENTS = 16384

_TRAILING = (
    ("shared", "i32"),
    ("slots", "i32"),
    ("counters", "i64"),
)


@dataclass(frozen=True)
class Piece:
    """A vector of a segment: its column, and its mask where it is not full."""

    column: Index
    mask: Value | None


@dataclass(frozen=True)
class Segment:
    """Consecutive elements of a row; `number` counts segments from the start of the row."""

    start: Index
    number: Index
    length: int


def entry_parameters(data: list[Value]) -> list[Value]:
    """The parameters of every entry, as `kernel.py` documents them."""
    trailing = [Value(f"%{name}", buffer(dtype)) for name, dtype in _TRAILING]
    return [*data, *trailing, Value("%m", "index"), Value("%rows", "index")]


def build_row_entry(
    symbol: str,
    data: list[Value],
    level: str,
    width: int,
    cost: int,
    emit_row: Callable[[Lanes, Value], None],
) -> tuple[Function, Entry]:
    """An entry that calls `emit_row(lanes, row)` in a loop over all rows.

    `cost` is the work of one element, in bytes of memory traffic or the time they take.
    """
    f = Function(symbol, entry_parameters(data))
    lanes = Lanes(f, level)
    with each_row(f) as row:
        emit_row(lanes, row)
    return f, row_entry(symbol, width, cost)


@contextmanager
def each_row(f: Function) -> Iterator[Value]:
    """A loop in the code over all rows of the tasks that a thread takes."""
    *_, counters, m, rows = f.params
    tasks = f.idiv(f.iadd(m, f.isub(rows, 1)), rows)
    with f.tickets(counters, TASK_COUNTER, tasks) as task:
        first = f.imul(task, rows)
        with f.loop(first, f.imin(f.iadd(first, rows), m)) as loop:
            yield loop.iv


def row_entry(symbol: str, width: int, cost: int, slot_bytes: int = 0) -> Entry:
    """The entry of a function that works through `each_row`; costs as for `build_row_entry`."""
    rows = max(1, _TASK_ELEMENTS // width)
    return Entry(symbol, rows=rows, slot_bytes=slot_bytes, row_work=width * cost)


def for_segments(f: Function, width: int, length: int, emit: Callable[[Segment], None]) -> None:
    """Emit `emit` for all segments of a row: one loop for the full ones, then the last."""
    full, rest = divmod(width, length)
    if full == 1:
        emit(Segment(0, 0, length))
    elif full:
        with f.loop(0, full) as loop:
            emit(Segment(f.imul(loop.iv, length), loop.iv, length))
    if rest:
        emit(Segment(full * length, full, rest))


def pieces(f: Function, segment: Segment) -> Iterator[Piece]:
    """The vectors of a segment, one after another in the code."""
    for offset in range(0, segment.length, LANES):
        left = segment.length - offset
        mask = f.first_lanes(left) if left < LANES else None
        yield Piece(f.iadd(segment.start, offset), mask)


def for_pieces(
    f: Function, segment: Segment, carried: list[Value], emit: Callable[..., list[Value]]
) -> list[Value]:
    """`carried = emit(piece, carried)` over the vectors of a segment, as a loop in the code."""
    full = segment.length // LANES
    if full:
        with f.loop(0, full, carried=carried) as loop:
            at = f.iadd(segment.start, f.imul(loop.iv, LANES))
            loop.yielded = emit(Piece(at, None), loop.carried)
        carried = loop.results
    if segment.length % LANES:
        mask = f.first_lanes(segment.length % LANES)
        carried = emit(Piece(f.iadd(segment.start, full * LANES), mask), carried)
    return carried


def each_piece(f: Function, segment: Segment, emit: Callable[[Piece], None]) -> None:
    """Emit `emit` for all vectors of a segment, as a loop if there are many."""
    if segment.length <= MAX_IN_REGISTERS * LANES:
        for piece in pieces(f, segment):
            emit(piece)
        return

    def emit_one(piece: Piece, carried: list[Value]) -> list[Value]:
        emit(piece)
        return carried

    for_pieces(f, segment, [], emit_one)


@dataclass(frozen=True)
class QuantizedTarget:
    """Where a quantized result goes: its buffers and its type [.., width]."""

    codes: Value
    scales: Value
    shaped: Shaped
    given: Value | None = None
    """A scale for all of it, f32, where it is not to be computed."""

    @property
    def group(self) -> int:
        assert self.shaped.scheme is not None
        return min(self.shaped.scheme.block[1], self.shaped.shape[-1])

    @property
    def numbers(self) -> int:
        assert self.shaped.scheme is not None
        return self.shaped.scheme.numbers

    @property
    def row_numbers(self) -> int:
        """Numbers among the scales of a row."""
        return self.shaped.scale_shape[-1]


def ignore(piece: Piece, value: Value) -> None:
    """What is done with values that are only quantized."""


def emit_quantized(
    lanes: Lanes,
    target: QuantizedTarget,
    row: Index,
    segment: Segment,
    compute: Callable[[Piece], Value],
    finish: Callable[[Piece, Value], None] = ignore,
) -> None:
    """Quantize one group of the values that `compute` gives; `finish` sees each of them once.

    Nothing is stored before all of the group was read, so a result may lie in the memory of an
    operand.  Long groups compute their values twice rather than keep them.
    """
    f = lanes.f
    short = segment.length <= MAX_IN_REGISTERS * LANES
    kept = [(piece, compute(piece)) for piece in pieces(f, segment)] if short else []
    _emit_group(lanes, target, row, segment, kept, compute, finish)


def _emit_group(
    lanes: Lanes,
    target: QuantizedTarget,
    row: Index,
    segment: Segment,
    kept: list[tuple[Piece, Value]],
    compute: Callable[[Piece], Value],
    finish: Callable[[Piece, Value], None],
) -> None:
    """Quantize a group whose values were `kept`, or else have to be computed twice."""
    f = lanes.f
    base = f.imul(row, target.shaped.shape[-1])
    scale_at = f.address((row, target.row_numbers), (segment.number, target.numbers))
    if target.given is None:
        quantizer = dynamic_quantizer(lanes, target.shaped, _largest(lanes, segment, kept, compute))
    else:
        quantizer = given_quantizer(lanes, target.shaped, target.given)
    quantizer.store_scale(target.scales, scale_at)

    def store_piece(piece: Piece, value: Value) -> Value:
        finish(piece, value)
        codes = quantizer.encode(value)
        f.store(codes, target.codes, f.iadd(base, piece.column), piece.mask)
        return codes if piece.mask is None else f.select(piece.mask, codes, f.isplat(0, I8))

    if kept:
        codes = [store_piece(piece, value) for piece, value in kept]
        if target.numbers == 2:
            quantizer.store_sum(codes, target.scales, f.iadd(scale_at, 1))
        return

    def compute_again(piece: Piece, carried: list[Value]) -> list[Value]:
        store_piece(piece, compute(piece))
        return []

    for_pieces(f, segment, [], compute_again)


def _largest(
    lanes: Lanes,
    segment: Segment,
    kept: list[tuple[Piece, Value]],
    compute: Callable[[Piece], Value],
) -> Value:
    """Bits of the largest magnitude of a segment, whose values were kept or are to be computed."""
    f = lanes.f

    def magnitude(piece: Piece, value: Value) -> Value:
        bits = lanes.magnitude(value)
        return bits if piece.mask is None else f.select(piece.mask, bits, f.isplat(0))

    if kept:
        largest = magnitude(*kept[0])
        for piece, value in kept[1:]:
            largest = f.binary("maxsi", largest, magnitude(piece, value))
    else:

        def raise_maximum(piece: Piece, carried: list[Value]) -> list[Value]:
            return [f.binary("maxsi", carried[0], magnitude(piece, compute(piece)))]

        largest = for_pieces(f, segment, [f.isplat(0)], raise_maximum)[0]
    return lanes.largest(largest)


def emit_outputs(
    lanes: Lanes,
    row: Value,
    width: int,
    compute: Callable[[Piece], Value],
    value: tuple[Value, str] | None,
    quantized: Sequence[QuantizedTarget] = (),
) -> None:
    """Write a row as a plain result (buffer and element type), quantized ones, or both.

    `compute` gives what is quantized; storing rounds it to the element type of the plain result.
    Quantized results whose groups nest share what was computed, if that stays in registers.  Others
    compute the row anew, each for itself; the plain result is stored with the last of them, for it
    may lie in the memory of an operand.
    """
    f = lanes.f

    def store_value(piece: Piece, result: Value) -> None:
        if value is not None:
            at = f.address((row, width), piece.column)
            lanes.store(result, value[0], at, value[1], piece.mask)

    def emit_plain(segment: Segment) -> None:
        for piece, result in [(p, compute(p)) for p in pieces(f, segment)]:
            store_value(piece, result)

    def emit_nested(segment: Segment) -> None:
        kept = [(piece, compute(piece)) for piece in pieces(f, segment)]
        for target in quantized:
            finish = store_value if target is quantized[-1] else ignore
            for number, part in enumerate(_parts(f, segment, target.group, coarsest)):
                first = number * target.group // LANES
                own = kept[first : first + -(-part.length // LANES)]
                _emit_group(lanes, target, row, part, own, compute, finish)

    def emit_format(target: QuantizedTarget, finish: Callable[[Piece, Value], None]) -> None:
        def emit_segment(segment: Segment) -> None:
            emit_quantized(lanes, target, row, segment, compute, finish)

        for_segments(f, width, target.group, emit_segment)

    if not quantized:
        for_segments(f, width, min(width, 4 * LANES), emit_plain)
        return
    coarsest = max(target.group for target in quantized)
    if len(quantized) > 1 and _nest_in_registers(quantized, coarsest):
        for_segments(f, width, coarsest, emit_nested)
        return
    *others, last = quantized
    for target in others:
        emit_format(target, ignore)
    emit_format(last, store_value)


def _nest_in_registers(targets: Sequence[QuantizedTarget], coarsest: int) -> bool:
    """Whether each group is whole vectors of a coarsest one, which is short."""
    nest = all(t.group == coarsest or coarsest % t.group == t.group % LANES == 0 for t in targets)
    return nest and coarsest <= MAX_IN_REGISTERS * LANES


def _parts(f: Function, segment: Segment, group: int, coarsest: int) -> Iterator[Segment]:
    """The groups within a segment that is a coarsest one, or the shorter last."""
    for offset in range(0, segment.length, group):
        number = f.iadd(f.imul(segment.number, coarsest // group), offset // group)
        yield Segment(f.iadd(segment.start, offset), number, min(group, segment.length - offset))
