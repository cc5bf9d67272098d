"""Attention kernels: a few rows of q at a time over the slots of a cache, with a running softmax.

A row is a query of one token and head; those of all heads that share k and v go together, so that
a cache is read once.  A task has the rows of some tokens for one head of the caches, and goes
through the slots in blocks of 64:

    scores    [rows][64]  q k^T * scale, 16 slots at a time, whose keys become f32 in scratch
    softmax               the largest score so far; weights exp(score - largest), 0 where masked;
                          sums and results so far are scaled to the new largest
    results   [rows][E]   += weights * v, 16 slots at a time again

Everything is f32.  What is computed for a row does not depend on what else a task has, nor on how
many tokens there are: four rows, or two, at once make the same sums in the same order as one.
"""

from dataclasses import dataclass

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.emit import F32, I32, LANES, Function, Index, Value, buffer
from qfuse.lowering.cpu.kernel import SLOT_COUNTER, TASK_COUNTER, Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.layout import LINE, round_up
from qfuse.lowering.cpu.math_functions import exp
from qfuse.lowering.cpu.rowwise import entry_parameters
from qfuse.lowering.cpu.signature import Built, Signature, Tensor

OPS = ("qfuse.attention",)

_BLOCK = 64
"""Slots between two looks at the largest score."""

_SUBS = _BLOCK // LANES

_TOGETHER = (4, 2, 1)
"""Rows that are computed at once: with four slots or more, or vectors of a result, sixteen sums."""

_TASK_ROWS = 32
"""Rows of a task, about: what is kept of so many stays in the first cache."""

_LOWEST = -3.4028234663852886e38
"""The largest score before there is one: finite, so that differences are no NaN."""


def refuse(op: ir.Operation) -> str | None:
    q, k, *_ = (shaped(v.type) for v in op.operands)
    if DYNAMIC in (q.shape[0], *k.shape):
        return f"the batch of q {q}, or an extent of the caches {k}, is dynamic; make it static"
    return None


def build(signature: Signature, level: str) -> Built:
    kernel = _Kernel(signature, level)
    function, entry = kernel.entry()
    return Built([*kernel.functions, function], [entry])


@dataclass(frozen=True)
class _Scratch:
    """Where a task keeps things, in elements of 32 bits from the start of its slot."""

    f32: Index
    """16 slots of k or v as f32."""
    q: Index
    results: Index
    scores: Index
    largest: Index
    """Per row a vector, all lanes alike."""
    sums: Index
    """Per row a vector, a part of the sum in each lane."""


class _Kernel:
    def __init__(self, signature: Signature, level: str) -> None:
        self.signature, self.level = signature, level
        self.q, self.k, self.v, self.position = signature.operands
        (self.out,) = signature.results
        self.batch, _, self.heads, self.width = self.q.shaped.shape
        _, self.kv_heads, self.capacity, self.out_width = self.v.shaped.shape
        self.group = self.heads // self.kv_heads
        self.padded = round_up(self.width, LANES)
        self.out_padded = round_up(self.out_width, LANES)
        attributes = signature.op.attributes
        self.scale = ir.FloatAttr(attributes["scale"]).value
        self.window = ir.IntegerAttr(attributes["window"]).value
        widths = sorted({self.width, self.out_width})
        self.convert = {width: self._build_convert(width) for width in widths}
        self.scores = {rows: self._build_scores(rows) for rows in _TOGETHER}
        self.softmax = self._build_softmax()
        self.add_values = {rows: self._build_add_values(rows) for rows in _TOGETHER}

    @property
    def functions(self) -> list[Function]:
        parts = (self.convert, self.scores, self.add_values)
        return [*(f for part in parts for f in part.values()), self.softmax]

    @property
    def _slot_elements(self) -> int:
        return LANES * max(self.padded, self.out_padded)

    @property
    def _row_elements(self) -> int:
        return self.padded + self.out_padded + _BLOCK + 2 * LANES

    def entry(self) -> tuple[Function, Entry]:
        f = Function("run", entry_parameters(self.signature.data))
        counters, m, rows = f.params[-3:]
        tokens = f.idiv(m, self.batch * self.heads)
        per_task = f.idiv(rows, self.group)
        tiles = f.idiv(f.iadd(tokens, f.isub(per_task, 1)), per_task)
        heads = self.batch * self.kv_heads
        size = f.address((rows, self._row_elements), self._slot_elements)
        slot = f.imul(f.take_ticket(counters, SLOT_COUNTER), size)
        scratch = self._scratch(f, slot, rows)
        position = f.load_index(self.position.data, 0)
        with f.tickets(counters, TASK_COUNTER, f.imul(tiles, heads)) as ticket:
            # the last tokens see most: first, so that nobody waits for them in the end
            tile = f.isub(f.isub(tiles, 1), f.idiv(ticket, heads))
            first = f.imul(tile, per_task)
            count = f.imin(per_task, f.isub(tokens, first))
            self._task(f, scratch, f.imod(ticket, heads), tokens, first, count, position)
        rows_of_task = max(1, _TASK_ROWS // self.group) * self.group
        return f, Entry(
            f.symbol,
            rows=rows_of_task,
            rows_multiple=self.group,
            slot_bytes=4 * self._slot_elements,
            slot_row_bytes=4 * self._row_elements,
            # nobody knows how much of the caches is in use: as if all were
            work=2 * self.batch * self.kv_heads * self.capacity * (self.width + self.out_width),
        )

    def _scratch(self, f: Function, slot: Index, rows: Index) -> _Scratch:
        places, at = [slot], f.iadd(slot, self._slot_elements)
        for size in (self.padded, self.out_padded, _BLOCK, LANES, LANES):
            places.append(at)
            at = f.address(at, (rows, size))
        return _Scratch(*places)

    def _task(
        self,
        f: Function,
        scratch: _Scratch,
        head: Index,
        tokens: Index,
        first: Index,
        count: Index,
        position: Index,
    ) -> None:
        """`count` tokens from `first` on, by the caches of `head`, one of all batches."""
        lanes, slots = Lanes(f, self.level), f.params[-4]
        rows = f.imul(count, self.group)
        of_batch, of_head = (g(head, self.kv_heads) for g in (f.idiv, f.imod))
        # of a row, which is token * group + one of the heads
        start = f.address((f.iadd(f.imul(of_batch, tokens), first), self.heads))
        start = f.iadd(start, f.imul(of_head, self.group))

        def place(row: Index) -> Index:
            """Where the row lies among those of q and of the result."""
            token, of_group = (g(row, self.group) for g in (f.idiv, f.imod))
            return f.address(start, (token, self.heads), of_group)

        with f.loop(0, rows) as row:
            at = f.imul(place(row.iv), self.width)
            for column, mask in _pieces(f, self.width):
                x = lanes.load(self.q.data, f.iadd(at, column), self.q.dtype, mask)
                to = f.address(scratch.q, (row.iv, self.padded), column)
                f.store(f.bitcast(x, I32), slots, to)
            for column in range(0, self.out_padded, LANES):
                to = f.address(scratch.results, (row.iv, self.out_padded), column)
                f.store(f.isplat(0), slots, to)
            lowest = f.bitcast(f.splat(_LOWEST), I32)
            f.store(lowest, slots, f.address(scratch.largest, (row.iv, LANES)))
            f.store(f.isplat(0), slots, f.address(scratch.sums, (row.iv, LANES)))

        slot = f.iadd(position, first)  # of the first token
        end = f.imax(f.imin(f.iadd(slot, count), self.capacity), 0)
        begin: Index = 0
        if self.window:
            begin = f.idiv(f.imax(f.isub(slot, self.window - 1), 0), _BLOCK)
        blocks = f.idiv(f.iadd(end, _BLOCK - 1), _BLOCK)
        with f.loop(begin, blocks) as block:
            base = f.imul(block.iv, _BLOCK)
            left = f.isub(end, base)
            subs = f.imin(f.idiv(f.iadd(left, LANES - 1), LANES), _SUBS)
            with f.loop(0, subs) as sub:
                offset = f.imul(sub.iv, LANES)
                self._to_f32(f, self.k, scratch, head, f.iadd(base, offset), end)
                scores = f.iadd(scratch.scores, offset)
                self._by_rows(f, self.scores, rows, scratch, scores, (scratch.q, self.padded))
            with f.loop(0, rows) as row:
                seen = f.iadd(f.isub(slot, base), f.iadd(f.idiv(row.iv, self.group), 1))
                places = [
                    f.address(scratch.scores, (row.iv, _BLOCK)),
                    f.address(scratch.largest, (row.iv, LANES)),
                    f.address(scratch.sums, (row.iv, LANES)),
                    f.address(scratch.results, (row.iv, self.out_padded)),
                ]
                f.call(self.softmax, [slots, *places, f.imin(seen, left)])
            with f.loop(0, subs) as sub:
                offset = f.imul(sub.iv, LANES)
                self._to_f32(f, self.v, scratch, head, f.iadd(base, offset), end)
                scores = f.iadd(scratch.scores, offset)
                results = (scratch.results, self.out_padded)
                self._by_rows(f, self.add_values, rows, scratch, scores, results)
        with f.loop(0, rows) as row:
            sums = f.load(slots, f.address(scratch.sums, (row.iv, LANES)), I32)
            total = f.broadcast(lanes.sum(f.bitcast(sums, F32)))
            to = f.imul(place(row.iv), self.out_width)
            for column, mask in _pieces(f, self.out_width):
                at = f.address(scratch.results, (row.iv, self.out_padded), column)
                result = f.div(f.bitcast(f.load(slots, at, I32), F32), total)
                lanes.store(result, self.out.data, f.iadd(to, column), self.out.dtype, mask)

    def _to_f32(
        self, f: Function, cache: Tensor, scratch: _Scratch, head: Index, slot: Index, end: Index
    ) -> None:
        """The 16 slots of a cache from `slot` on; the last before `end` again for those behind."""
        slots, first = f.params[-4], f.imul(head, self.capacity)
        last = f.iadd(first, f.isub(end, 1))
        args = [cache.data, slots, f.iadd(first, slot), last, scratch.f32]
        f.call(self.convert[cache.width], args)

    def _by_rows(
        self,
        f: Function,
        functions: dict[int, Function],
        rows: Index,
        scratch: _Scratch,
        scores: Index,
        of_rows: tuple[Index, int],
    ) -> None:
        """Calls for all rows: function(slots, scores, f32, place), with the places of the rows, the
        first and the distance, in `of_rows`."""
        slots = f.params[-4]

        def call(count: int, row: Index) -> None:
            place = f.address(of_rows[0], (row, of_rows[1]))
            f.call(functions[count], [slots, f.address(scores, (row, _BLOCK)), scratch.f32, place])

        first: Index = 0
        for count in _TOGETHER:
            turns = f.idiv(f.isub(rows, first), count)
            with f.loop(0, turns) as turn:
                call(count, f.address(first, (turn.iv, count)))
            first = f.address(first, (turns, count))

    def _build_convert(self, width: int) -> Function:
        """convert(cache, slots, row, last, to): 16 rows of a cache to f32 [16][padded width].

        Rows behind the last are the last one.  What lies a block ahead is fetched.
        """
        params = [Value("%cache", buffer(self.k.dtype)), Value("%slots", buffer("i32"))]
        params += [Value(f"%{name}", "index") for name in ("row", "last", "to")]
        f = Function(f"convert{width}", params)
        cache, slots, row, last, to = params
        lanes = Lanes(f, self.level)
        size = 4 if self.k.dtype == "f32" else 2
        with f.loop(0, LANES) as loop:
            source = f.imul(f.imin(f.iadd(row, loop.iv), last), width)
            target = f.address(to, (loop.iv, round_up(width, LANES)))
            for line in range(0, width, LINE // size):
                f.prefetch(cache, f.iadd(source, _BLOCK * width + line), locality=2)
            for column, mask in _pieces(f, width):
                x = lanes.load(cache, f.iadd(source, column), self.k.dtype, mask)
                f.store(f.bitcast(x, I32), slots, f.iadd(target, column))
        return f

    def _row_function(self, name: str) -> Function:
        """A function as `_by_rows` calls it."""
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
                to = f.address(scores, r * _BLOCK, (number, at_once))
                f.store(f.shuffle(found, found, range(r * at_once, (r + 1) * at_once)), slots, to)
        return f

    def _build_softmax(self) -> Function:
        """softmax(slots, scores, largest, sums, results, seen), for one row.

        Scores of a block, of which the first `seen` slots count, become weights; the sum of the
        weights and the results so far are scaled to the new largest score.
        """
        names = ("scores", "largest", "sums", "results", "seen")
        params = [Value("%slots", buffer("i32")), *(Value(f"%{name}", "index") for name in names)]
        f = Function("softmax", params)
        slots, scores, largest_at, sums_at, results, seen = params
        lowest = f.splat(_LOWEST)
        of_slots, masks = [], []
        before = self._f32(f, largest_at)
        largest = before
        for first in range(0, _BLOCK, LANES):
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
        f.store(f.bitcast(largest, I32), slots, largest_at)
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
                f.iadd(results, r * self.out_padded + column)
                for r in range(rows)
                for column in columns
            ]
            sums = [self._f32(f, place) for place in places]
            with f.loop(0, LANES, carried=sums) as loop:
                of_slot = f.address(v, (loop.iv, self.out_padded))
                values = [self._f32(f, f.iadd(of_slot, column)) for column in columns]
                for r in range(rows):
                    bits = f.load(slots, f.address(weights, r * _BLOCK, loop.iv), "i32")
                    weight = f.broadcast(f.bitcast(bits, "f32"))
                    for value in values:
                        total = loop.carried[len(loop.yielded)]
                        loop.yielded.append(f.fma(weight, value, total))
            for place, total in zip(places, loop.results, strict=True):
                f.store(f.bitcast(total, I32), slots, place)
        return f

    def _f32(self, f: Function, at: Index) -> Value:
        """A vector of the scratch, which is the first parameter of the functions of rows."""
        return f.bitcast(f.load(Value("%slots", buffer("i32")), at, I32), F32)


def _pieces(f: Function, width: int) -> list[tuple[int, Value | None]]:
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
