"""Kernels of routers: the experts of each token, from its logits on.

One program, of one warp where it can be, for each token.  It holds a place for each expert, in a
power of two of groups and of members, from which it takes the largest k times:

    keys      choices as whole numbers that order like the floats, NaN above all
    largest   reduce max; then the first place that has it, reduce min; then it is below all others

The rest of what `qfuse.select_experts` says is elementwise.
"""

from dataclasses import dataclass

from qfuse.dialects.bindings import ir
from qfuse.dialects.moe_ops import SIGMOID_EPSILON
from qfuse.dialects.types import shaped
from qfuse.lowering.triton.builder import Builder
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Grid, Variant
from qfuse.lowering.triton.rows import power_of_two
from qfuse.lowering.triton.signature import LaunchBuilder, Signature, open_launch

OPS = ("qfuse.select_experts",)

_MAX_PLACES = 4096

_PER_WARP = 1024
"""Places of one warp: 32 for each thread, in two registers each."""

_NOTHING, _NAN = -(2**31), 2**31 - 1
"""Keys below and above those of all numbers."""

_UNO = 14  # arith.cmpf


@dataclass(frozen=True)
class _Places:
    """Where experts are: in `groups` of `members`, each padded to a power of two."""

    groups: int
    members: int
    used: int
    """As many of the groups can be chosen from."""

    @staticmethod
    def of(op: ir.Operation) -> "_Places":
        experts = shaped(op.operands[0].type).shape[1]
        groups = ir.IntegerAttr(op.attributes["num_groups"]).value
        used = ir.IntegerAttr(op.attributes["groups_used"]).value
        return (
            _Places(1, experts, 1) if used == groups else _Places(groups, experts // groups, used)
        )

    @property
    def shape(self) -> tuple[int, int]:
        return power_of_two(self.groups), power_of_two(self.members)

    @property
    def count(self) -> int:
        groups, members = self.shape
        return groups * members

    def expert(self, b: Builder, place: ir.Value) -> ir.Value:
        """The expert in each place; those that are none's get any number."""
        padded = self.shape[1]
        if self.groups == 1 or self.members == padded:
            return place
        return b.add(b.mul(b.div(place, padded), self.members), b.rem(place, padded))

    def there(self, b: Builder, place: ir.Value) -> ir.Value | None:
        """Whether a place is an expert's; None where all are."""
        groups, members = self.shape
        mask = None
        if self.members < members:
            mask = b.less(b.rem(place, members), self.members)
        if self.groups < groups:
            mask = b.both(mask, b.less(place, self.groups * members))
        return mask


def refuse(op: ir.Operation, gpu: Gpu) -> str | None:
    """Why `op` cannot become a GPU kernel, or None."""
    places = _Places.of(op)
    if places.count > _MAX_PLACES:
        return (
            f"{places.groups} groups of {places.members} experts take {places.count} places; GPU "
            f"kernels hold at most {_MAX_PLACES}"
        )
    return None


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """One launch for any number of tokens."""
    places = _Places.of(signature.op)
    with open_launch(
        gpu,
        signature.name,
        [*signature.operands, *signature.results],
        Grid(1),
        num_warps=max(1, places.count // _PER_WARP),
        num_stages=1,
    ) as launch:
        _Router(launch, signature, places).emit()
    return [Variant(1, None, (launch.made,))]


class _Router:
    """One program: what is done for one token."""

    def __init__(self, launch: LaunchBuilder, signature: Signature, places: _Places) -> None:
        self.b, self.pointers, self.places = launch.b, launch.pointers, places
        self.logits, *self.bias = signature.operands
        self.ids, self.weights = signature.results
        attributes = signature.op.attributes
        self.softmax = ir.StringAttr(attributes["scoring"]).value == "softmax"
        self.normalize = ir.BoolAttr(attributes["normalize"]).value
        self.scale = ir.FloatAttr(attributes["scale"]).value
        self.token = self.b.i64(self.b.program_id(0))
        self.place = self.b.range(places.count)
        self.expert = places.expert(self.b, self.place)
        self.there = places.there(self.b, self.place)

    def emit(self) -> None:
        b, choices = self.b, self.ids.width
        scores = self._scores()
        by = scores
        if self.bias:
            bias = b.offset(self.pointers.data(self.bias[0]), self.expert)
            by = b.add(scores, b.load(bias, self.there))
        keys = self._only(_key(b, by), _NOTHING)
        if self.places.groups > 1:
            keys = self._only(self._keep_groups(keys), _NOTHING)
        bits = b.bitcast(scores, "i32")
        slots = power_of_two(choices)
        slot = b.range(slots)

        def choose(number: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            keys, ids, chosen, total = carried
            keys, place, taken = _take_largest(b, keys, self.place)
            # One of the addends is not zero: so the sum is its bits.
            score = b.bitcast(b.reduce(b.select(taken, bits, 0), 0, "arith.addi"), "f32")
            here = b.equal(slot, number)
            ids = b.select(here, self.places.expert(b, place), ids)
            chosen = b.select(here, score, chosen)
            return [keys, ids, chosen, b.add(total, score)]

        nobody, nothing = b.full(0, "i32", (slots,)), b.full(0.0, "f32", (slots,))
        carried = [keys, nobody, nothing, b.full(0.0, "f32")]
        _, ids, weights, total = b.loop((0, choices, 1), carried, choose)
        if self.normalize:
            total = total if self.softmax else b.add(total, SIGMOID_EPSILON)
            weights = b.precise_div(weights, total)
        weights = b.mul(weights, self.scale)
        mask = None if slots == choices else b.less(slot, choices)
        ids = b.i64(ids) if self.ids.dtype == "i64" else ids
        weights = b.convert(weights, self.weights.dtype)
        for tensor, value in ((self.ids, ids), (self.weights, weights)):
            row = b.offset(self.pointers.data(tensor), b.mul(self.token, choices))
            b.store(b.offset(row, slot), value, mask)

    def _scores(self) -> ir.Value:
        """Of all places; what those have that are none's, does not matter."""
        b = self.b
        row = b.offset(self.pointers.data(self.logits), b.mul(self.token, self.logits.width))
        logits = b.convert(b.load(b.offset(row, self.expert), self.there), "f32")
        if not self.softmax:
            return b.precise_div(1.0, b.add(b.unary("math.exp", b.sub(0.0, logits)), 1.0))
        keys = self._only(_key(b, logits), _NOTHING)
        largest = _number(b, b.reduce(keys, 0, "arith.maxsi"))
        shares = self._only(b.unary("math.exp", b.sub(logits, largest)), 0.0)
        total = b.reduce(shares, 0, "arith.addf")
        return b.precise_div(shares, total)

    def _only(self, value: ir.Value, rest: float) -> ir.Value:
        """`value`, and `rest` in places that are no expert's."""
        return value if self.there is None else self.b.select(self.there, value, rest)

    def _keep_groups(self, keys: ir.Value) -> ir.Value:
        """The keys of the largest groups, and elsewhere one that is never the largest."""
        b, shape = self.b, self.places.shape
        grouped = b.reshape(keys, shape)
        first = b.reduce(grouped, 1, "arith.maxsi")
        if self.places.members == 1:
            counts = first
        else:
            member = b.expand(b.range(shape[1]), 0)
            largest = b.equal(grouped, b.expand(first, 1))
            at = b.reduce(b.select(largest, member, _NAN), 1, "arith.minsi")
            others = b.select(b.equal(member, b.expand(at, 1)), _NOTHING, grouped)
            second = b.reduce(others, 1, "arith.maxsi")
            counts = _key(b, b.add(_number(b, first), _number(b, second)))
        number = b.range(shape[0])
        if self.places.groups < shape[0]:
            counts = b.select(b.less(number, self.places.groups), counts, _NOTHING)

        def take(_: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            return [_take_largest(b, carried[0], number)[0]]

        (counts,) = b.loop((0, self.places.used, 1), [counts], take)
        taken = b.expand(b.equal(counts, _NOTHING), 1)
        return b.reshape(b.select(taken, grouped, _NOTHING), (self.places.count,))


def _take_largest(
    b: Builder, keys: ir.Value, place: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """The keys without the largest, the first place that has it, and where that is."""
    largest = b.reduce(keys, 0, "arith.maxsi")
    at = b.reduce(b.select(b.equal(keys, largest), place, _NAN), 0, "arith.minsi")
    taken = b.equal(place, at)
    return b.select(taken, _NOTHING, keys), at, taken


def _key(b: Builder, x: ir.Value) -> ir.Value:
    """f32 as whole numbers that order like them."""
    key = _flipped(b, b.bitcast(x, "i32"))
    return b.select(b.compare(_UNO, x, x, "arith.cmpf"), _NAN, key)


def _number(b: Builder, key: ir.Value) -> ir.Value:
    """The inverse of `_key`."""
    return b.bitcast(_flipped(b, key), "f32")


def _flipped(b: Builder, bits: ir.Value) -> ir.Value:
    """All bits of negative numbers inverted but the sign, so that larger magnitudes are less."""
    negative = b.binary("arith.shrsi", bits, 31)
    return b.binary("arith.xori", bits, b.binary("arith.andi", negative, 0x7FFFFFFF))
