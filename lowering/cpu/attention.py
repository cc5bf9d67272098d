"""Attention kernels: a few rows of q at a time over the slots of a cache, with a running softmax.

A row is a query of one token and head; those of all heads that share k and v go together, so that
a cache is read once.  The slots are cut into stretches of 512, and a stretch is gone through for
the rows of some tokens and one head of the caches, in blocks of 64:

    scores    [rows][64]  q k^T * scale, 16 slots at a time, whose keys become f32 in scratch
    softmax               the largest score so far; weights exp(score - largest), 0 where masked;
                          sums and results so far are scaled to the new largest
    results   [rows][E]   += weights * v, 16 slots at a time again

Then the stretches are added up, one after the other.  A task has all of them, or, where tokens are
few, one: then their states go to shared scratch, and whoever is done last adds them up.

Everything is f32.  What is computed for a row does not depend on what else a task has, nor on how
many tokens or threads there are: four rows, or two, at once make the same sums in the same order
as one, and a stretch is the same whoever goes through it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.attention_rows import BLOCK, RESULTS, SUMS, TOGETHER, RowFunctions, pieces
from qfuse.lowering.cpu.emit import F32, I32, LANES, Function, Index, Value
from qfuse.lowering.cpu.kernel import OWN_COUNTERS, SLOT_COUNTER, TASK_COUNTER, Entry
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.rowwise import entry_parameters
from qfuse.lowering.cpu.signature import Built, Signature, Tensor

OPS = ("qfuse.attention",)

_STRETCH = 512
"""Slots of a stretch, whole blocks: to read so many takes longer than to take a task."""

_SUBS = BLOCK // LANES

_TASK_ROWS = 32
"""Rows of a task, about: what is kept of so many stays in the first cache."""

_TASKS = 16
"""About so many, or more, where tokens are few.  A task of several stretches reads on and on."""

_FEW_TASKS = 4
"""There are a few for each of some threads, if there are more."""


def refuse(op: ir.Operation) -> str | None:
    q, k, *_ = (shaped(v.type) for v in op.operands)
    if DYNAMIC in (q.shape[0], *k.shape):
        return f"the batch of q {q}, or an extent of the caches {k}, is dynamic; make it static"
    return None


def build(signature: Signature, level: str) -> Built:
    return _Kernel(signature, level).build()


@dataclass(frozen=True)
class _Scratch:
    """Where a task keeps things, in elements of 32 bits from the start of its slot."""

    f32: Index
    """16 slots of k or v as f32."""
    q: Index
    scores: Index
    states: Index
    """Per row, of a stretch."""
    totals: Index
    """The same of all stretches."""


@dataclass(frozen=True)
class _Task:
    """Tokens, and the head of the caches, one of all batches, that their rows read."""

    head: Index
    first: Index
    count: Index

    @property
    def values(self) -> list[Index]:
        return [self.head, self.first, self.count]


class _Kernel:
    def __init__(self, signature: Signature, level: str) -> None:
        self.signature, self.level = signature, level
        self.q, self.k, self.v, self.position = signature.operands
        (self.out,) = signature.results
        self.batch, _, self.heads, width = self.q.shaped.shape
        _, self.kv_heads, self.capacity, out_width = self.v.shaped.shape
        self.group = self.heads // self.kv_heads
        attributes = signature.op.attributes
        self.window = ir.IntegerAttr(attributes["window"]).value
        scale = ir.FloatAttr(attributes["scale"]).value
        self.of_rows = RowFunctions(level, self.k.dtype, width, out_width, scale, self.window)
        self.stretches = -(-self.capacity // _STRETCH)

    def build(self) -> Built:
        """Two entries, unless there is one stretch: few tokens, whose stretches are tasks, and
        many."""
        functions, whole = [*self.of_rows.every, self.stretch, self.finish], self._whole()
        if self.stretches == 1:
            return Built([*functions, whole], [self._entry(whole)])
        heads = self.batch * self.kv_heads
        few = max(1, self._task_tokens * (_FEW_TASKS // heads))
        apart, limit = self._apart(), few * self.batch * self.heads
        return Built(
            [*functions, apart, whole],
            [
                self._entry(
                    apart,
                    m_max=limit,
                    tiles=self.stretches,
                    counters=few * heads,
                    shared_row_bytes=4 * self.stretches * self.of_rows.state_elements,
                ),
                self._entry(whole, m_min=limit + 1),
            ],
        )

    def _entry(self, f: Function, **fields: Any) -> Entry:
        widths = self.of_rows.width + self.of_rows.out_width
        return Entry(
            f.symbol,
            rows=self._task_tokens * self.group,
            rows_multiple=self.group,
            slot_bytes=4 * self._slot_elements,
            slot_row_bytes=4 * self._row_elements,
            # nobody knows how much of the caches is in use: as if all were
            work=2 * self.batch * self.kv_heads * self.capacity * widths,
            **fields,
        )

    @property
    def _task_tokens(self) -> int:
        return max(1, _TASK_ROWS // self.group)

    @property
    def _slot_elements(self) -> int:
        return LANES * max(self.of_rows.padded, self.of_rows.out_padded)

    @property
    def _row_elements(self) -> int:
        return self.of_rows.padded + BLOCK + 2 * self.of_rows.state_elements

    # -- the tasks of an entry -----------------------------------------------------------------

    def _whole(self) -> Function:
        """Tasks that go through all of their stretches."""
        f = Function("run", entry_parameters(self.signature.data))
        _, slots, counters, *_ = self._trailing(f)
        slot, size = self._take_slot(f), self.of_rows.state_elements
        scratch = self._scratch(f, slot)
        with f.tickets(counters, TASK_COUNTER, self._units(f)) as ticket:
            task = self._task(f, ticket)
            self._clear(f, task, scratch.totals)
            begin, end = self._seen(f, task.first, task.count)
            stretches = f.idiv(f.iadd(end, _STRETCH - 1), _STRETCH)
            with f.loop(f.idiv(begin, _STRETCH), stretches) as number:
                f.call(self.stretch, [*f.params, slot, *task.values, number.iv, stretches])
                self._fold(
                    f,
                    task,
                    slots,
                    lambda row: f.address(scratch.states, (row, size)),
                    scratch.totals,
                )
            f.call(self.finish, [*f.params, slot, *task.values])
        return f

    def _apart(self) -> Function:
        """Tasks of one stretch; the last one of its tokens and head adds them up."""
        f = Function("stretches", entry_parameters(self.signature.data))
        shared, slots, counters, *_ = self._trailing(f)
        slot, size = self._take_slot(f), self.of_rows.state_elements
        begin, end = self._seen(f, 0, self._tokens(f))
        stretches = f.imax(f.idiv(f.iadd(end, _STRETCH - 1), _STRETCH), 1)
        first = f.imin(f.idiv(begin, _STRETCH), f.isub(stretches, 1))
        each = f.isub(stretches, first)
        scratch = self._scratch(f, slot)

        def kept(task: _Task, row: Index, number: Index) -> Index:
            """Where the state of a row lies that is left by a stretch."""
            place = f.address((self._place(f, task, row), self.stretches), number)
            return f.imul(place, size)

        units = self._units(f)
        span = f.imax(f.idiv(f.imul(units, each), _TASKS), 1)
        tasks = f.idiv(f.iadd(each, f.isub(span, 1)), span)
        with f.tickets(counters, TASK_COUNTER, f.imul(units, tasks)) as ticket:
            unit = f.idiv(ticket, tasks)
            task = self._task(f, unit)
            own = f.address(first, (f.imod(ticket, tasks), span))
            behind = f.imin(f.iadd(own, span), stretches)
            with f.loop(own, f.imax(behind, f.iadd(own, 1))) as number:
                f.call(self.stretch, [*f.params, slot, *task.values, number.iv, behind])
                with f.loop(0, f.imul(task.count, self.group)) as row:
                    to = kept(task, row.iv, number.iv)
                    for offset in range(0, size, LANES):
                        at = f.address(scratch.states, (row.iv, size), offset)
                        f.store(f.load(slots, at, I32), shared, f.iadd(to, offset))
            done = f.take_ticket(counters, f.iadd(unit, OWN_COUNTERS))
            with f.when(f.icompare("eq", done, f.isub(tasks, 1))):
                self._clear(f, task, scratch.totals)
                with f.loop(first, stretches) as one:
                    self._fold(f, task, shared, lambda row: kept(task, row, one.iv), scratch.totals)
                f.call(self.finish, [*f.params, slot, *task.values])
        return f

    def _units(self, f: Function) -> Index:
        """How many groups of tokens there are for all heads of the caches."""
        per_task = f.idiv(self._trailing(f)[4], self.group)
        tiles = f.idiv(f.iadd(self._tokens(f), f.isub(per_task, 1)), per_task)
        return f.imul(tiles, self.batch * self.kv_heads)

    def _task(self, f: Function, unit: Index) -> _Task:
        """The last tokens see most: they come first, so that nobody waits for them in the end."""
        heads, per_task = self.batch * self.kv_heads, f.idiv(self._trailing(f)[4], self.group)
        tiles = f.idiv(self._units(f), heads)
        first = f.imul(f.isub(f.isub(tiles, 1), f.idiv(unit, heads)), per_task)
        count = f.imin(per_task, f.isub(self._tokens(f), first))
        return _Task(f.imod(unit, heads), first, count)

    def _seen(self, f: Function, first: Index, count: Index) -> tuple[Index, Index]:
        """From where on, and up to where, `count` tokens from `first` on see slots."""
        slot = f.iadd(f.load_index(self.position.data, 0), first)
        end = f.imax(f.imin(f.iadd(slot, count), self.capacity), 0)
        return f.imax(f.isub(slot, self.window - 1), 0) if self.window else 0, end

    def _clear(self, f: Function, task: _Task, states: Index) -> None:
        slots, size = self._trailing(f)[1], self.of_rows.state_elements
        with f.loop(0, f.imul(task.count, self.group)) as row:
            self.of_rows.clear(f, slots, f.address(states, (row.iv, size)))

    def _fold(
        self,
        f: Function,
        task: _Task,
        part: Value,
        place: Callable[[Index], Index],
        totals: Index,
    ) -> None:
        """Add to the totals of all rows their states of one stretch, `part` [place(row)]."""
        slots, size = self._trailing(f)[1], self.of_rows.state_elements
        with f.loop(0, f.imul(task.count, self.group)) as row:
            state = f.address(totals, (row.iv, size))
            f.call(self.of_rows.fold, [part, place(row.iv), slots, state])

    # -- one stretch, and the end ----------------------------------------------------------------

    def _task_function(
        self, name: str, *more: str
    ) -> tuple[Function, _Scratch, _Task, list[Value]]:
        """A function of the entries' parameters, a slot and a task, and `more`."""
        names = ("slot", "head", "first", "count", *more)
        own = [Value(f"%{name}", "index") for name in names]
        f = Function(name, [*entry_parameters(self.signature.data), *own])
        return f, self._scratch(f, own[0]), _Task(*own[1:4]), own[4:]

    @cached_property
    def stretch(self) -> Function:
        """stretch(parameters..., slot, head, first, count, number, behind): the states of rows.

        `behind` is the number of the stretch that follows the task's last one.
        """
        f, scratch, task, (number, behind) = self._task_function("stretch", "number", "behind")
        of_rows, lanes, slots = self.of_rows, Lanes(f, self.level), self._trailing(f)[1]
        rows, size = f.imul(task.count, self.group), of_rows.state_elements
        with f.loop(0, rows) as row:
            at = f.imul(self._place(f, task, row.iv), of_rows.width)
            for column, mask in pieces(f, of_rows.width):
                x = lanes.load(self.q.data, f.iadd(at, column), self.q.dtype, mask)
                to = f.address(scratch.q, (row.iv, of_rows.padded), column)
                f.store(f.bitcast(x, I32), slots, to)
        self._clear(f, task, scratch.states)
        slot = f.iadd(f.load_index(self.position.data, 0), task.first)  # of the first token
        begin, end = self._seen(f, task.first, task.count)
        start = f.imul(number, _STRETCH)
        limit = f.imin(end, f.imul(behind, _STRETCH))
        first = f.idiv(f.imax(begin, start), BLOCK)
        blocks = f.idiv(f.iadd(f.imin(end, f.iadd(start, _STRETCH)), BLOCK - 1), BLOCK)
        with f.loop(first, blocks) as block:
            base = f.imul(block.iv, BLOCK)
            left = f.isub(end, base)
            subs = f.imin(f.idiv(f.iadd(left, LANES - 1), LANES), _SUBS)
            with f.loop(0, subs) as sub:
                offset = f.imul(sub.iv, LANES)
                self._to_f32(f, self.k, scratch, task.head, f.iadd(base, offset), end, limit)
                scores = f.iadd(scratch.scores, offset)
                self._by_rows(f, of_rows.scores, rows, scratch, scores, (scratch.q, of_rows.padded))
            with f.loop(0, rows) as row:
                seen = f.iadd(f.isub(slot, base), f.iadd(f.idiv(row.iv, self.group), 1))
                scores = f.address(scratch.scores, (row.iv, BLOCK))
                state = f.address(scratch.states, (row.iv, size))
                f.call(of_rows.softmax, [slots, scores, state, f.imin(seen, left)])
            with f.loop(0, subs) as sub:
                offset = f.imul(sub.iv, LANES)
                self._to_f32(f, self.v, scratch, task.head, f.iadd(base, offset), end, limit)
                scores = f.iadd(scratch.scores, offset)
                results = (f.iadd(scratch.states, RESULTS), size)
                self._by_rows(f, of_rows.add_values, rows, scratch, scores, results)
        return f

    @cached_property
    def finish(self) -> Function:
        """finish(parameters..., slot, head, first, count): from totals to results."""
        f, scratch, task, _ = self._task_function("finish")
        lanes, slots, width = Lanes(f, self.level), self._trailing(f)[1], self.of_rows.out_width
        with f.loop(0, f.imul(task.count, self.group)) as row:
            state = f.address(scratch.totals, (row.iv, self.of_rows.state_elements))
            sums = f.bitcast(f.load(slots, f.iadd(state, SUMS), I32), F32)
            total = f.broadcast(lanes.sum(sums))
            to = f.imul(self._place(f, task, row.iv), width)
            for column, mask in pieces(f, width):
                bits = f.load(slots, f.iadd(state, RESULTS + column), I32)
                result = f.div(f.bitcast(bits, F32), total)
                lanes.store(result, self.out.data, f.iadd(to, column), self.out.dtype, mask)
        return f

    def _trailing(self, f: Function) -> list[Value]:
        """shared, slots, counters, m and rows."""
        data = len(self.signature.data)
        return f.params[data : data + 5]

    def _tokens(self, f: Function) -> Index:
        return f.idiv(self._trailing(f)[3], self.batch * self.heads)

    def _take_slot(self, f: Function) -> Index:
        _, _, counters, _, rows = self._trailing(f)
        size = f.address((rows, self._row_elements), self._slot_elements)
        return f.imul(f.take_ticket(counters, SLOT_COUNTER), size)

    def _scratch(self, f: Function, slot: Index) -> _Scratch:
        rows, of_rows = self._trailing(f)[4], self.of_rows
        places, at = [slot], f.iadd(slot, self._slot_elements)
        for size in (of_rows.padded, BLOCK, of_rows.state_elements, of_rows.state_elements):
            places.append(at)
            at = f.address(at, (rows, size))
        return _Scratch(*places)

    def _place(self, f: Function, task: _Task, row: Index) -> Index:
        """Where a row of a task, token * group + one of the heads, lies among those of q."""
        of_batch, of_head = f.idiv(task.head, self.kv_heads), f.imod(task.head, self.kv_heads)
        token, of_group = f.idiv(row, self.group), f.imod(row, self.group)
        token = f.iadd(f.iadd(f.imul(of_batch, self._tokens(f)), task.first), token)
        return f.address((token, self.heads), (of_head, self.group), of_group)

    def _to_f32(
        self,
        f: Function,
        cache: Tensor,
        scratch: _Scratch,
        head: Index,
        slot: Index,
        end: Index,
        limit: Index,
    ) -> None:
        """The 16 slots of a cache from `slot` on; the last before `end` again for those behind.

        What the task goes on with is fetched, up to `limit`.
        """
        slots, first = self._trailing(f)[1], f.imul(head, self.capacity)
        lasts = [f.iadd(first, f.isub(bound, 1)) for bound in (end, limit)]
        args = [cache.data, slots, f.iadd(first, slot), *lasts, scratch.f32]
        f.call(self.of_rows.convert[cache.width], args)

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
        slots = self._trailing(f)[1]

        def call(count: int, row: Index) -> None:
            place = f.address(of_rows[0], (row, of_rows[1]))
            f.call(functions[count], [slots, f.address(scores, (row, BLOCK)), scratch.f32, place])

        first: Index = 0
        for count in TOGETHER:
            turns = f.idiv(f.isub(rows, first), count)
            with f.loop(0, turns) as turn:
                call(count, f.address(first, (turn.iv, count)))
            first = f.address(first, (turns, count))
