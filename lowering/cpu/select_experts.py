"""Kernels of routers: the experts of each token, from its logits on.

A thread works in scratch on one token after another:

    scores     f32 [E]    softmax or sigmoid of the logits
    choices    i32 [E]    what to choose by, as keys: whole numbers that order like the floats
    kept       i32 [E]    with groups: choices of the groups that are used, the key of 0 elsewhere
    groups     i32 [G]    with groups: keys of what each group counts as
    chosen     f32 [k]    scores of the experts that were taken

each rounded up to whole vectors, which end in keys below that of any number.  The largest key is
taken k times, and lowered below all others each time: so ids are in range and differ, whatever the
logits are.  NaN counts as the largest number, as torch has it.
"""

from dataclasses import dataclass

from qfuse.dialects.bindings import ir
from qfuse.dialects.moe_ops import SIGMOID_EPSILON
from qfuse.lowering.cpu import math_functions
from qfuse.lowering.cpu.emit import F32, I32, LANES, Function, Index, Value
from qfuse.lowering.cpu.kernel import SLOT_COUNTER
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.rowwise import (
    Piece,
    Segment,
    each_piece,
    each_row,
    entry_parameters,
    for_pieces,
    row_entry,
)
from qfuse.lowering.cpu.signature import Built, Signature

OPS = ("qfuse.select_experts",)

_COST = 10  # bytes of memory traffic in the time of one exponential
_ROUNDS = 2  # times that an element is looked at, in the time of one byte

_NOTHING, _NAN = -(2**31), 2**31 - 1
"""Keys below and above those of all numbers."""


def refuse(op: ir.Operation) -> str | None:
    return None


def build(signature: Signature, level: str) -> Built:
    experts, choices = signature.operands[0].width, signature.results[0].width
    f = Function("run", entry_parameters(signature.data))
    row = _Row(Lanes(f, level), signature)
    with each_row(f) as (token, _):
        row.emit(token)
    entry = row_entry("run", experts, _COST + choices // _ROUNDS, slot_bytes=4 * row.elements)
    return Built([f], [entry])


@dataclass(frozen=True)
class _List:
    """`count` elements of scratch from `start` on."""

    start: Index
    count: int

    @property
    def vectors(self) -> int:
        return -(-self.count // LANES)


class _Row:
    """Emits what is done for one token; made before the loop over tokens."""

    def __init__(self, lanes: Lanes, signature: Signature) -> None:
        f = lanes.f
        self.lanes, self.f = lanes, f
        self.logits, *self.bias = signature.operands
        self.ids, self.weights = signature.results
        attributes = signature.op.attributes
        self.softmax = ir.StringAttr(attributes["scoring"]).value == "softmax"
        self.normalize = ir.BoolAttr(attributes["normalize"]).value
        self.scale = ir.FloatAttr(attributes["scale"]).value
        self.used = ir.IntegerAttr(attributes["groups_used"]).value
        experts, groups = self.logits.width, ir.IntegerAttr(attributes["num_groups"]).value
        self.group = experts // groups
        self._experts = Segment(0, 0, experts)
        counts = [experts, experts, experts, groups, self.ids.width]
        if self.used == groups:
            counts[2] = counts[3] = 0
        begins = [0]
        for count in counts:
            begins.append(begins[-1] + -(-count // LANES) * LANES)
        self.elements = begins[-1]
        _, self.scratch, counters, *_ = f.params[-5:]
        mine = f.imul(f.take_ticket(counters, SLOT_COUNTER), self.elements)
        lists = [_List(f.iadd(mine, b), c) for b, c in zip(begins, counts, strict=False)]
        self.scores, self.choices, self.kept, self.groups, self.chosen = lists

    def emit(self, token: Value) -> None:
        if self.softmax:
            self._score_softmax(token)
        else:
            self._score_sigmoid(token)
        candidates = self.choices
        if self.kept.count:
            self._count_groups()
            self._keep_groups()
            candidates = self.kept
        total = self._choose(token, candidates)
        self._weigh(token, total)

    # -- scores --------------------------------------------------------------------------------

    def _score_softmax(self, token: Value) -> None:
        """Fill `scores` and `choices`."""
        f = self.f

        def raise_largest(piece: Piece, carried: list[Value]) -> list[Value]:
            return [f.binary("maxsi", carried[0], _key(f, self._logits(token, piece)))]

        (keys,) = for_pieces(f, self._experts, [f.isplat(_NOTHING)], raise_largest)
        largest = _number(f, f.broadcast(self.lanes.largest(keys), I32))

        def exponential(piece: Piece, carried: list[Value]) -> list[Value]:
            e = math_functions.exp(f, f.sub(self._logits(token, piece), largest))
            self._put(self.scores, piece.column, f.bitcast(e, I32))
            return [f.add(carried[0], e)]

        (sums,) = for_pieces(f, self._experts, [f.splat(0.0)], exponential)
        total = f.broadcast(self.lanes.sum(sums))

        def divide(piece: Piece) -> None:
            e = f.bitcast(self._get(self.scores, piece.column), F32)
            self._put_score(piece, f.div(e, total))

        each_piece(f, self._experts, divide)

    def _score_sigmoid(self, token: Value) -> None:
        """Fill `scores` and `choices`."""
        f = self.f
        zero, one = f.splat(0.0), f.splat(1.0)

        def sigmoid(piece: Piece) -> None:
            e = math_functions.exp(f, f.sub(zero, self._logits(token, piece)))
            self._put_score(piece, f.div(one, f.add(one, e)))

        each_piece(f, self._experts, sigmoid)

    def _logits(self, token: Value, piece: Piece) -> Value:
        """Logits as f32; minus infinity beyond the last."""
        f = self.f
        at = f.address((token, self.logits.width), piece.column)
        logits = self.lanes.load(self.logits.data, at, self.logits.dtype, piece.mask)
        return self._filled(logits, piece, f.splat(float("-inf")))

    def _put_score(self, piece: Piece, score: Value) -> None:
        f = self.f
        self._put(self.scores, piece.column, f.bitcast(score, I32))
        choice = score
        if self.bias:
            bias = self.lanes.load(self.bias[0].data, piece.column, "f32", piece.mask)
            choice = f.add(score, bias)
        key = self._filled(_key(f, choice), piece, f.isplat(_NOTHING))
        self._put(self.choices, piece.column, key)

    # -- groups --------------------------------------------------------------------------------

    def _count_groups(self) -> None:
        """Fill `groups` from the choices."""
        f = self.f
        nothing = f.isplat(_NOTHING)
        for number in range(self.groups.vectors):
            self._put(self.groups, number * LANES, nothing)

        def raise_two(piece: Piece, carried: list[Value]) -> list[Value]:
            """The two largest of each lane."""
            first, second = carried
            loaded = self._get(self.choices, piece.column, piece.mask)
            key = self._filled(loaded, piece, nothing)
            lesser = f.binary("minsi", first, key)
            return [f.binary("maxsi", first, key), f.binary("maxsi", second, lesser)]

        with f.loop(0, self.groups.count) as loop:
            members = Segment(f.imul(loop.iv, self.group), loop.iv, self.group)
            firsts, seconds = for_pieces(f, members, [nothing, nothing], raise_two)
            first = f.broadcast(self.lanes.largest(firsts), I32)
            key = first
            if self.group > 1:
                is_first = f.compare("eq", firsts, first)
                others = f.broadcast(self.lanes.largest(f.select(is_first, seconds, firsts)), I32)
                ones = f.select(is_first, f.isplat(1), f.isplat(0))
                twice = f.compare("sgt", f.broadcast(self.lanes.count(ones), I32), f.isplat(1))
                second = f.select(twice, first, others)
                key = _key(f, f.add(_number(f, first), _number(f, second)))
            scalar = f.op(f"vector.extract {key}[0] : i32 from {key.type}", "i32")
            self._put(self.groups, loop.iv, scalar)

    def _keep_groups(self) -> None:
        """Fill `kept`: copy the choices of the largest groups."""
        f = self.f
        nothing = f.isplat(_NOTHING)

        def clear(piece: Piece) -> None:
            self._put(self.kept, piece.column, nothing)

        each_piece(f, self._experts, clear)
        with f.loop(0, self.used):
            group = self._take_largest(self.groups)

            def copy(piece: Piece) -> None:
                keys = self._get(self.choices, piece.column, piece.mask)
                self._put(self.kept, piece.column, keys, piece.mask)

            each_piece(f, Segment(f.imul(group, self.group), group, self.group), copy)

    # -- choosing ------------------------------------------------------------------------------

    def _choose(self, token: Value, candidates: _List) -> Value:
        """Write the ids, fill `chosen` with their scores, and return the sum of these."""
        f, choices = self.f, self.chosen.count
        with f.loop(0, choices, carried=[f.scalar(0.0)]) as loop:
            expert = self._take_largest(candidates)
            f.store_index(expert, self.ids.data, f.address((token, choices), loop.iv))
            score = f.load(self.scratch, f.iadd(self.scores.start, expert), "i32")
            self._put(self.chosen, loop.iv, score)
            loop.yielded = [f.add(loop.carried[0], f.bitcast(score, "f32"))]
        return loop.results[0]

    def _take_largest(self, keys: _List) -> Value:
        """Where the largest key is, the first of equal ones; it becomes the least."""
        f = self.f
        # Counted from the end, so that the first is the largest place as well.
        lanes = f.constant(f"dense<{list(range(LANES))[::-1]}>", I32)
        last = keys.vectors * LANES - 1
        best, place = self._get(keys, 0), f.isplat(last - LANES + 1)
        with f.loop(1, keys.vectors, carried=[best, place]) as loop:
            best, place = loop.carried
            column = f.imul(loop.iv, LANES)
            key = self._get(keys, column)
            higher = f.compare("sgt", key, best)
            here = f.index(f.isub(last - LANES + 1, column))
            here = f.broadcast(f.cast("arith.index_cast", here, "i32"), I32)
            loop.yielded = [f.select(higher, key, best), f.select(higher, here, place)]
        best, place = loop.results
        largest = f.broadcast(self.lanes.largest(best), I32)
        is_largest = f.compare("eq", best, largest)
        place = f.select(is_largest, f.binary("addi", place, lanes), f.isplat(-1))
        found = f.cast("arith.index_cast", self.lanes.largest(place), "index")
        at = f.index(f.isub(last, found))
        self._put(keys, at, f.constant(str(_NOTHING), "i32"))
        return at

    def _weigh(self, token: Value, total: Value) -> None:
        """Write the weights: the chosen scores, divided by their sum, times the scale."""
        f, choices = self.f, self.chosen.count
        if not self.softmax:
            total = f.add(total, f.scalar(SIGMOID_EPSILON))
        divisor = f.broadcast(total)

        def weigh(piece: Piece) -> None:
            weight = f.bitcast(self._get(self.chosen, piece.column), F32)
            if self.normalize:
                weight = f.div(weight, divisor)
            weight = f.mul(weight, f.splat(self.scale))
            at = f.address((token, choices), piece.column)
            self.lanes.store(weight, self.weights.data, at, self.weights.dtype, piece.mask)

        each_piece(f, Segment(0, 0, choices), weigh)

    # -- scratch -------------------------------------------------------------------------------

    def _get(self, list_: _List, at: Index, mask: Value | None = None) -> Value:
        return self.f.load(self.scratch, self.f.iadd(list_.start, at), I32, mask)

    def _put(self, list_: _List, at: Index, value: Value, mask: Value | None = None) -> None:
        self.f.store(value, self.scratch, self.f.iadd(list_.start, at), mask)

    def _filled(self, value: Value, piece: Piece, rest: Value) -> Value:
        """`value`, and `rest` in the lanes beyond the piece."""
        return value if piece.mask is None else self.f.select(piece.mask, value, rest)


def _key(f: Function, x: Value) -> Value:
    """f32 lanes as keys."""
    key = _flipped(f, f.bitcast(x, I32))
    return f.select(f.compare("uno", x, x), f.isplat(_NAN), key)


def _number(f: Function, key: Value) -> Value:
    """The inverse of `_key`."""
    return f.bitcast(_flipped(f, key), F32)


def _flipped(f: Function, bits: Value) -> Value:
    """All bits of negative numbers inverted but the sign, so that larger magnitudes are less."""
    negative = f.binary("shrsi", bits, f.isplat(31))
    return f.binary("xori", bits, f.binary("andi", negative, f.isplat(0x7FFFFFFF)))
