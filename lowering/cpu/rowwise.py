"""The frame of row-wise kernels: rows shared among threads, each cut into segments.

A row of `width` elements is walked in segments of `length` (the group of a quantized result, or
a few vectors), each in vectors of sixteen; the last segment and the last vector may be shorter.

    width 300, length 128:   [0..128) [128..256) [256..300) = 16 + 16 + 12 masked
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, reduce

from qfuse.dialects.types import Shaped
from qfuse.lowering.cpu.emit import I8, LANES, Function, Index, Value, buffer
from qfuse.lowering.cpu.kernel import TASK_COUNTER, Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.quantized import Quantizer, dynamic_quantizer, given_quantizer

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
    with each_row(f) as (row, _):
        emit_row(lanes, row)
    return f, row_entry(symbol, width, cost)


@contextmanager
def each_row(f: Function) -> Iterator[tuple[Value, Index]]:
    """A loop in the code over all rows of the tasks that a thread takes.

    Gives a row and the one after it, which is the row itself where that is the last of a task.
    """
    *_, counters, m, rows = f.params
    tasks = f.idiv(f.iadd(m, f.isub(rows, 1)), rows)
    with f.tickets(counters, TASK_COUNTER, tasks) as task:
        first = f.imul(task, rows)
        end = f.imin(f.iadd(first, rows), m)
        last = f.isub(end, 1)
        with f.loop(first, end) as loop:
            yield loop.iv, f.imin(f.iadd(loop.iv, 1), last)


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
    if segment.length <= MAX_IN_REGISTERS * LANES:
        kept = [(piece, compute(piece)) for piece in pieces(f, segment)]
        _emit_group(lanes, target, row, segment, kept, finish)
        return
    quantizer = _quantizer(lanes, target, row, segment, lambda: _largest(lanes, segment, compute))

    def compute_again(piece: Piece, carried: list[Value]) -> list[Value]:
        _store_piece(quantizer, target, row, piece, compute(piece), finish)
        return []

    for_pieces(f, segment, [], compute_again)


def _emit_group(
    lanes: Lanes,
    target: QuantizedTarget,
    row: Index,
    segment: Segment,
    kept: list[tuple[Piece, Value]],
    finish: Callable[[Piece, Value], None],
) -> None:
    """Quantize a group whose values were `kept`."""
    quantizer = _quantizer(lanes, target, row, segment, lambda: _largest_kept(lanes, kept))
    _store_group(quantizer, target, row, segment, kept, finish)


def _emit_groups(
    lanes: Lanes,
    target: QuantizedTarget,
    row: Index,
    width: int,
    compute: Callable[[Piece], Value],
    finish: Callable[[Piece, Value], None],
) -> None:
    """Quantize the groups of a row, all full and short, each while the next one is computed.

    From the values of a group to its codes there is a long chain, of the largest, its lanes, and a
    division; what a CPU looks ahead is less than a group, and so it would wait for it.
    """
    f, group = lanes.f, target.group

    def segment(number: Index) -> Segment:
        return Segment(f.imul(number, group), number, group)

    def kept(number: Index, values: list[Value]) -> list[tuple[Piece, Value]]:
        return list(zip(pieces(f, segment(number)), values, strict=True))

    first = [compute(piece) for piece in pieces(f, segment(0))]
    count = width // group
    with f.loop(1, count, carried=first) as loop:
        before = f.isub(loop.iv, 1)
        values = kept(before, loop.carried)
        largest = partial(_largest_kept, lanes, values)
        quantizer = _quantizer(lanes, target, row, segment(before), largest)
        loop.yielded = [compute(piece) for piece in pieces(f, segment(loop.iv))]
        _store_group(quantizer, target, row, segment(before), values, finish)
    last = kept(count - 1, loop.results)
    _emit_group(lanes, target, row, segment(count - 1), last, finish)


def _quantizer(
    lanes: Lanes,
    target: QuantizedTarget,
    row: Index,
    segment: Segment,
    largest: Callable[[], Value],
) -> Quantizer:
    """That of a group, whose scale it stores; `largest` gives its largest magnitude, if wanted."""
    if target.given is None:
        quantizer = dynamic_quantizer(lanes, target.shaped, largest())
    else:
        quantizer = given_quantizer(lanes, target.shaped, target.given)
    quantizer.store_scale(target.scales, _scale_at(lanes.f, target, row, segment))
    return quantizer


def _scale_at(f: Function, target: QuantizedTarget, row: Index, segment: Segment) -> Index:
    return f.address((row, target.row_numbers), (segment.number, target.numbers))


def _store_group(
    quantizer: Quantizer,
    target: QuantizedTarget,
    row: Index,
    segment: Segment,
    kept: list[tuple[Piece, Value]],
    finish: Callable[[Piece, Value], None],
) -> None:
    """The codes of a group whose values were `kept`, and for q8_1 their sum."""
    codes = [_store_piece(quantizer, target, row, piece, value, finish) for piece, value in kept]
    if target.numbers == 2:
        f = quantizer.lanes.f
        quantizer.store_sum(codes, target.scales, f.iadd(_scale_at(f, target, row, segment), 1))


def _store_piece(
    quantizer: Quantizer,
    target: QuantizedTarget,
    row: Index,
    piece: Piece,
    value: Value,
    finish: Callable[[Piece, Value], None],
) -> Value:
    """Store the codes of some values, and give them, zeros outside the mask."""
    f = quantizer.lanes.f
    finish(piece, value)
    codes = quantizer.encode(value)
    at = f.address((row, target.shaped.shape[-1]), piece.column)
    f.store(codes, target.codes, at, piece.mask)
    return codes if piece.mask is None else f.select(piece.mask, codes, f.isplat(0, I8))


def _largest(lanes: Lanes, segment: Segment, compute: Callable[[Piece], Value]) -> Value:
    """Bits of the largest magnitude of a segment, as a loop over its vectors."""
    f = lanes.f

    def raise_maximum(piece: Piece, carried: list[Value]) -> list[Value]:
        return [f.binary("maxsi", carried[0], _magnitude(lanes, piece, compute(piece)))]

    return lanes.largest(for_pieces(f, segment, [f.isplat(0)], raise_maximum)[0])


def _largest_kept(lanes: Lanes, kept: list[tuple[Piece, Value]]) -> Value:
    """Bits of the largest magnitude of values that were kept."""
    magnitudes = [_magnitude(lanes, *each) for each in kept]
    return lanes.largest(reduce(partial(lanes.f.binary, "maxsi"), magnitudes))


def _magnitude(lanes: Lanes, piece: Piece, value: Value) -> Value:
    f, bits = lanes.f, lanes.magnitude(value)
    return bits if piece.mask is None else f.select(piece.mask, bits, f.isplat(0))


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
                _emit_group(lanes, target, row, part, own, finish)

    def emit_format(target: QuantizedTarget, finish: Callable[[Piece, Value], None]) -> None:
        short = target.group <= MAX_IN_REGISTERS * LANES
        if short and width % target.group == 0 and width > target.group:
            _emit_groups(lanes, target, row, width, compute, finish)
            return

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
