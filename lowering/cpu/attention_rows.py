"""What is computed for rows of attention: scores, a softmax that runs, results, and adding up.

These are functions of a kernel, which pass places of its scratch, in elements of 32 bits, to each
other.  A row has a state there: [the largest score so far, in all lanes][a part of the sum of the
weights in each lane][the results so far, not divided by it yet].
"""

from dataclasses import dataclass
from functools import cached_property

from qfuse.lowering.cpu.emit import F32, I32, LANES, Function, Index, Value, buffer
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.layout import LINE, round_up
from qfuse.lowering.cpu.math_functions import exp

BLOCK = 64
"""Slots between two looks at the largest score."""

TOGETHER = (4, 2, 1)
"""Rows that are computed at once: with four slots or more, or vectors of a result, sixteen sums."""

SUMS, RESULTS = LANES, 2 * LANES
"""Where these lie in a row's state."""

_LOWEST = -3.4028234663852886e38
"""The largest score before there is one: finite, so that differences are no NaN."""


@dataclass(frozen=True)
class RowFunctions:
    """Those of a kernel, by widths of q and k, and of v; each is built once."""

    level: str
    dtype: str
    width: int
    out_width: int
    scale: float
    window: int

    @property
    def padded(self) -> int:
        return round_up(self.width, LANES)

    @property
    def out_padded(self) -> int:
        return round_up(self.out_width, LANES)

    @property
    def state_elements(self) -> int:
        return RESULTS + self.out_padded

    @property
    def every(self) -> list[Function]:
        parts = (self.convert, self.scores, self.add_values)
        return [*(f for part in parts for f in part.values()), self.softmax, self.fold]

    @cached_property
    def convert(self) -> dict[int, Function]:
        """By width."""
        return {w: self._build_convert(w) for w in sorted({self.width, self.out_width})}

    @cached_property
    def scores(self) -> dict[int, Function]:
        """By how many rows they compute, as `add_values`."""
        return {rows: self._build_scores(rows) for rows in TOGETHER}

    @cached_property
    def add_values(self) -> dict[int, Function]:
        return {rows: self._build_add_values(rows) for rows in TOGETHER}

    def _build_convert(self, width: int) -> Function:
        """convert(cache, slots, row, last, limit, to): 16 rows to f32 [16][padded width].

        Rows behind the last are the last one.  What lies a block ahead is fetched, up to `limit`.
        """
        params = [Value("%cache", buffer(self.dtype)), Value("%slots", buffer("i32"))]
        params += [Value(f"%{name}", "index") for name in ("row", "last", "limit", "to")]
        f = Function(f"convert{width}", params)
        cache, slots, row, last, limit, to = params
        lanes = Lanes(f, self.level)
        size = 4 if self.dtype == "f32" else 2
        with f.loop(0, LANES) as loop:
            source = f.imul(f.imin(f.iadd(row, loop.iv), last), width)
            target = f.address(to, (loop.iv, round_up(width, LANES)))
            ahead = f.imul(f.imin(f.iadd(f.iadd(row, loop.iv), BLOCK), limit), width)
            for line in range(0, width, LINE // size):
                f.prefetch(cache, f.iadd(ahead, line), locality=2)
            for column, mask in pieces(f, width):
                x = lanes.load(cache, f.iadd(source, column), self.dtype, mask)
                f.store(f.bitcast(x, I32), slots, f.iadd(target, column))
        return f

    def _row_function(self, name: str) -> Function:
        """A function for some rows, of which the first is at `place`."""
        places = [Value(f"%{name}", "index") for name in ("scores", "f32", "place")]
        return Function(name, [Value("%slots", buffer("i32")), *places])

    def _build_scores(self, rows: int) -> Function:
        """scores [rows][64] of rows of q at `place` by the 16 slots of k at `f32`."""
        f = self._row_function(f"scores{rows}")
        slots, scores, k, q = f.params
        at_once = LANES // rows  # slots, so that there are sixteen sums
        scale = f.splat(self.scale)
        with f.each(rows) as number:
            of_slots = f.address(k, (number, at_once * self.padded))
            with f.loop(0, self.padded, LANES, carried=[f.splat(0.0)] * LANES) as loop:
                of_rows = [
                    self._f32(f, f.address(q, r * self.padded, loop.iv)) for r in range(rows)
                ]
                for s in range(at_once):
                    of_slot = self._f32(f, f.address(of_slots, s * self.padded, loop.iv))
                    for r in range(rows):
                        total = loop.carried[s * rows + r]
                        loop.yielded.append(f.fma(of_rows[r], of_slot, total))
            found = f.bitcast(f.mul(_sums_of(f, _by_lanes(loop.results, rows)), scale), I32)
            for r in range(rows):
                to = f.address(scores, r * BLOCK, (number, at_once))
                f.store(f.shuffle(found, found, range(r * at_once, (r + 1) * at_once)), slots, to)
        return f

    def clear(self, f: Function, slots: Value, state: Index) -> None:
        """The state of a row that saw nothing yet."""
        f.store(f.bitcast(f.splat(_LOWEST), I32), slots, state)
        for offset in range(SUMS, self.state_elements, LANES):
            f.store(f.isplat(0), slots, f.iadd(state, offset))

    @cached_property
    def softmax(self) -> Function:
        """softmax(slots, scores, state, seen), for one row.

        Scores of a block, of which the first `seen` slots count, become weights; the sum of the
        weights and the results so far are scaled to the new largest score.
        """
        names = ("scores", "state", "seen")
        params = [Value("%slots", buffer("i32")), *(Value(f"%{name}", "index") for name in names)]
        f = Function("softmax", params)
        slots, scores, state, seen = params
        sums_at, results = f.iadd(state, SUMS), f.iadd(state, RESULTS)
        lowest = f.splat(_LOWEST)
        of_slots, masks = [], []
        before = self._f32(f, state)
        largest = before
        for first in range(0, BLOCK, LANES):
            mask = f.first_lanes(f.isub(seen, first))
            if self.window:
                gone = f.first_lanes(f.isub(seen, self.window + first))
                mask = f.binary("andi", mask, f.binary("xori", gone, f.first_lanes(LANES)))
            score = f.select(mask, self._f32(f, f.iadd(scores, first)), lowest)
            of_slots.append(score)
            masks.append(mask)
            largest = _larger(f, largest, score)
        for distance in (8, 4, 2, 1):
            turned = [(lane + distance) % LANES for lane in range(LANES)]
            largest = _larger(f, largest, f.shuffle(largest, largest, turned))
        shrunk = exp(f, f.sub(before, largest))
        total = f.mul(self._f32(f, sums_at), shrunk)
        for i, (score, mask) in enumerate(zip(of_slots, masks, strict=True)):
            weight = f.select(mask, exp(f, f.sub(score, largest)), f.splat(0.0))
            total = f.add(total, weight)
            f.store(f.bitcast(weight, I32), slots, f.iadd(scores, i * LANES))
        f.store(f.bitcast(largest, I32), slots, state)
        f.store(f.bitcast(total, I32), slots, sums_at)
        for column in range(0, self.out_padded, LANES):
            at = f.iadd(results, column)
            f.store(f.bitcast(f.mul(self._f32(f, at), shrunk), I32), slots, at)
        return f

    def _build_add_values(self, rows: int) -> Function:
        """results [rows][E] at `place` += the weights of 16 slots by v at `f32`."""
        f = self._row_function(f"add_values{rows}")
        slots, weights, v, results = f.params
        at_once = LANES * LANES // rows
        for first in range(0, self.out_padded, at_once):
            columns = range(first, min(first + at_once, self.out_padded), LANES)
            places = [
                f.iadd(results, r * self.state_elements + column)
                for r in range(rows)
                for column in columns
            ]
            sums = [self._f32(f, place) for place in places]
            with f.loop(0, LANES, carried=sums) as loop:
                of_slot = f.address(v, (loop.iv, self.out_padded))
                values = [self._f32(f, f.iadd(of_slot, column)) for column in columns]
                for r in range(rows):
                    bits = f.load(slots, f.address(weights, r * BLOCK, loop.iv), "i32")
                    weight = f.broadcast(f.bitcast(bits, "f32"))
                    for value in values:
                        total = loop.carried[len(loop.yielded)]
                        loop.yielded.append(f.fma(weight, value, total))
            for place, total in zip(places, loop.results, strict=True):
                f.store(f.bitcast(total, I32), slots, place)
        return f

    @cached_property
    def fold(self) -> Function:
        """fold(part, part_at, slots, state): a state += the state of other slots, `part` [part_at].

        Both are scaled to the larger of their largest scores; one that saw nothing changes nothing.
        """
        places = {"part": buffer("i32"), "part_at": "index", "slots": buffer("i32")}
        f = Function("fold", [Value(f"%{n}", t) for n, t in {**places, "state": "index"}.items()])
        part, part_at, slots, state = f.params
        before, other = self._f32(f, state), f.bitcast(f.load(part, part_at, I32), F32)
        largest = _larger(f, before, other)
        shrunk, others = exp(f, f.sub(before, largest)), exp(f, f.sub(other, largest))
        f.store(f.bitcast(largest, I32), slots, state)
        for offset in range(SUMS, self.state_elements, LANES):
            at = f.iadd(state, offset)
            more = f.bitcast(f.load(part, f.iadd(part_at, offset), I32), F32)
            total = f.add(f.mul(self._f32(f, at), shrunk), f.mul(more, others))
            f.store(f.bitcast(total, I32), slots, at)
        return f

    def _f32(self, f: Function, at: Index) -> Value:
        """A vector of the scratch, which is the first parameter of the functions of rows."""
        return f.bitcast(f.load(Value("%slots", buffer("i32")), at, I32), F32)


def pieces(f: Function, width: int) -> list[tuple[int, Value | None]]:
    """The vectors of a row: where they begin, and the mask of one that is not full."""
    starts = range(0, width, LANES)
    return [(at, f.first_lanes(width - at) if width - at < LANES else None) for at in starts]


def _larger(f: Function, a: Value, b: Value) -> Value:
    return f.select(f.compare("ogt", a, b), a, b)


def _by_lanes(sums: list[Value], rows: int) -> list[Value]:
    """From [slots][rows] of sixteen sums to what `_sums_of` takes, for lanes [rows][slots]."""
    slots = LANES // rows
    of_lane = [sums[slot * rows + row] for row in range(rows) for slot in range(slots)]
    return [of_lane[4 * j + c] for c in range(4) for j in range(4)]


def _sums_of(f: Function, vectors: list[Value]) -> Value:
    """The sums of sixteen vectors: that of vectors[4 * c + j] in lane 4 * j + c.

    Halves are added until one lane is left, in the same order for all of them.
    """
    halves = [([*range(8), *range(16, 24)], [*range(8, 16), *range(24, 32)])]
    quads = [i for item in range(0, 32, 8) for i in range(item, item + 4)]
    pairs = [i for lane in range(0, 16, 4) for i in (lane, lane + 1, 16 + lane, 17 + lane)]
    ones = [i for lane in range(0, 16, 4) for i in (lane, lane + 2, 16 + lane, 18 + lane)]
    orders = [
        *halves,
        (quads, [i + 4 for i in quads]),
        (pairs, [i + 2 for i in pairs]),
        (ones, [i + 1 for i in ones]),
    ]
    for low, high in orders:
        both = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [f.add(f.shuffle(a, b, low), f.shuffle(a, b, high)) for a, b in both]
    return vectors[0]
