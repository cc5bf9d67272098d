"""Operations of mixture-of-experts layers: rows sorted by expert, multiplied, and put back.

The contract that all of them share.  T tokens choose k experts each, out of E:

    ids      int [T, k]      the expert of each choice; one outside 0..E-1 is no expert (another
                             device's, in expert parallelism), and its choice adds nothing
    indptr   i32 [E + 1]     exclusive prefix of the rows per expert: expert e has the rows
                             indptr[e] to indptr[e+1] - 1; indptr[0] = 0, indptr[E] <= T * k
    tokens   i32 [T, k]      flattened, the token whose choice each row is; rows of one expert are
                             in the order of (token, choice).  0 for rows from indptr[E] on
    slots    i32 [T, k]      the row of each choice, -1 where it is no expert's

A shared expert is one more, number E, which is the last choice of every token without an id: then
tokens and slots are [T, k + 1], indptr is [E + 2], and its T rows come after those of the others.
An id of E is no expert all the same.

Tensors of rows have the shape [T, k, ...] though their T * k rows are in the order of experts:
so every extent is one of an operand.  Rows from indptr[E] on are never read, and hold anything.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.dialect import Op
from qfuse.dialects.matmul_op import attributes_error, epilogue_error, inputs_of, product_error
from qfuse.dialects.types import Shaped, is_float, shaped
from qfuse.dialects.verify import DYNAMIC, shape_text

IDS = ("i32", "i64")
SCORINGS = ("softmax", "sigmoid")

SIGMOID_EPSILON = 1e-20
"""What `select_experts` adds to the sum of sigmoid scores before it divides by it."""


def rows_agree(rows: Sequence[int], count: int) -> bool:
    """Whether leading dimensions `rows` can make `count` rows."""
    if count == DYNAMIC or DYNAMIC in rows:
        return len(rows) > 0
    return math.prod(rows) == count


class SelectExpertsOp(Op, name="select_experts", traits=[ext.Pure]):
    """The k experts of each token and how much each counts: a router from its logits on.

        %ids, %weights = "qfuse.select_experts"(%logits, %bias) {scoring = "sigmoid",
            normalize = true, scale = 2.5 : f64, num_groups = 8 : i64, groups_used = 4 : i64}
           : (tensor<?x256xf32>, tensor<256xf32>) -> (tensor<?x8xi64>, tensor<?x8xf32>)

    All in f32, for the logits l [E] of a token:

        score    softmax(l), or sigmoid(l) = 1 / (1 + exp(-l))
        choice   score + bias (DeepSeek-V3's correction), or score without a bias
        groups   experts in num_groups equal runs; a group counts as the sum of its two largest
                 choices (its largest where it has one), and no expert outside of the groups_used
                 largest groups is chosen
        ids      the k largest choices, largest first; of equal ones, the lowest id
        weights  their scores (not choices); `normalize` divides them by their sum (plus 1e-20 for
                 sigmoid, as in DeepSeek-V3's own code), added in the order of ids; then times
                 `scale`, and rounded to the result's type

    One group, all used, is no grouping.  A NaN counts as the largest, as for torch.topk.
    """

    logits: ext.Operand[ir.RankedTensorType]
    scoring: ir.StringAttr
    normalize: Any
    scale: ir.FloatAttr
    num_groups: ir.IntegerAttr
    groups_used: ir.IntegerAttr
    ids: ext.Result[ir.RankedTensorType]
    weights: ext.Result[ir.RankedTensorType]
    bias: ext.Operand[ir.RankedTensorType] | None = None

    def violation(self) -> str | None:
        logits, *bias = (shaped(v.type) for v in self.operation.operands)
        ids, weights = (shaped(r.type) for r in self.operation.results)
        if not is_float(logits) or len(logits.shape) != 2 or logits.shape[1] == DYNAMIC:
            return f"logits are {logits}; expected a float [T, E] with E known"
        tokens, experts = logits.shape
        if bias and bias[0] != Shaped((experts,), "f32"):
            return f"the bias is {bias[0]}; expected {Shaped((experts,), 'f32')}"
        if ids.dtype not in IDS or len(ids.shape) != 2 or ids.shape[0] != tokens:
            return f"ids are {ids}; expected whole numbers {shape_text((tokens, DYNAMIC))}"
        if not 1 <= ids.shape[1] <= experts:
            return f"ids are {ids}; a token chooses 1 to {experts} experts"
        if not is_float(weights) or weights.shape != ids.shape:
            return f"weights are {weights}; expected a float {shape_text(ids.shape)}"
        if not isinstance(self.operation.attributes["normalize"], ir.BoolAttr):
            return f"normalize is {self.operation.attributes['normalize']}; expected true or false"
        if self.scoring.value not in SCORINGS:
            return f'scoring "{self.scoring.value}" is not one of {", ".join(SCORINGS)}'
        groups, used = self.num_groups.value, self.groups_used.value
        if groups < 1 or experts % groups or not 1 <= used <= groups:
            return f"{used} of {groups} groups of {experts} experts; use equal groups, 1 or more"
        if ids.shape[1] > used * (experts // groups):
            return f"a token chooses {ids.shape[1]} experts of {used * (experts // groups)}"
        return None


class RouteOp(Op, name="route", traits=[ext.Pure]):
    """Sort the choices of tokens by expert; see the contract above.

        %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 128 : i64}
           : (tensor<?x8xi64>) -> (tensor<?x8xi32>, tensor<?x8xi32>, tensor<129xi32>)

    The order is the same each time (a counting sort by expert, token and choice).

    With `shared = 1 : i64` (0 where it is absent) there is a shared expert beside the
    `num_experts` that ids choose from; slots and tokens are then [T, k + 1], indptr [E + 2].
    """

    ids: ext.Operand[ir.RankedTensorType]
    num_experts: ir.IntegerAttr
    slots: ext.Result[ir.RankedTensorType]
    tokens: ext.Result[ir.RankedTensorType]
    indptr: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        ids, slots, tokens, indptr = map(
            shaped, (v.type for v in (self.ids, self.slots, self.tokens, self.indptr))
        )
        experts = self.num_experts.value
        if experts < 1:
            return f"num_experts is {experts}; there must be one at least"
        if (shared := shared_experts(self.operation)) not in (0, 1):
            given = self.operation.attributes[SHARED]
            return f"{SHARED} is {given}; expected 0 : i64, or 1 : i64 for a shared expert"
        if ids.dtype not in IDS or len(ids.shape) != 2 or ids.shape[1] == DYNAMIC:
            return f"ids are {ids}; expected whole numbers [T, k] with k known"
        rows = Shaped((ids.shape[0], ids.shape[1] + shared), "i32")
        for name, value in (("slots", slots), ("tokens", tokens)):
            if value != rows:
                return f"{name} are {value}; expected {rows}"
        ends = Shaped((experts + shared + 1,), "i32")
        return None if indptr == ends else f"indptr is {indptr}; expected {ends}"


SHARED = "shared"
"""Attribute of `qfuse.route`: how many shared experts there are, 0 or 1; 0 where it is absent."""


def shared_experts(route: ir.Operation) -> int:
    """How many experts every token chooses beside those of its ids, 0 or 1; -1 if it is no such."""
    if SHARED not in route.attributes:
        return 0
    given = route.attributes[SHARED]
    return ir.IntegerAttr(given).value if str(given) in ("0 : i64", "1 : i64") else -1


class GroupMatmulOp(Op, name="group_matmul", traits=[ext.Pure, ir.IsIsolatedFromAboveTrait]):
    """Each row of x times the transpose of its expert's w [E, N, K], then the epilogue region.

        %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({...}) {parts = array<i64: 768, 768>,
            maps = [], operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>,
            resultSegmentSizes = array<i32: 1, 0, 0, 0>}
           : (!xq [T, K], !wq [E, N, K], tensor<129xi32>, tensor<?x8xi32>) -> tensor<?x8x768xbf16>

    With `tokens`, row r of the product is row tokens[r] of x, whose leading dimensions are
    flattened to T; without, x is [T, k, K] and has the rows themselves.  Which expert's weight a
    row meets, `indptr` says.  An extra operand may have the map "[E,N]", too: [E, a part's width],
    of which each row sees the row of its expert, a bias for example.  Everything else (parts, maps,
    region, rounding, quantized results) is as in `qfuse.matmul`; the parts of each expert's weight
    begin at block boundaries.
    """

    x: ext.Operand[Any]
    w: ext.Operand[Any]
    indptr: ext.Operand[ir.RankedTensorType]
    parts: Any
    maps: ir.ArrayAttr
    epilogue: ext.Region
    out0: ext.Result[Any]
    out1: ext.Result[Any] | None = None
    out2: ext.Result[Any] | None = None
    out3: ext.Result[Any] | None = None
    tokens: ext.Operand[ir.RankedTensorType] | None = None
    extra0: ext.Operand[Any] | None = None
    extra1: ext.Operand[Any] | None = None
    extra2: ext.Operand[Any] | None = None
    extra3: ext.Operand[Any] | None = None
    extra4: ext.Operand[Any] | None = None
    extra5: ext.Operand[Any] | None = None

    def violation(self) -> str | None:
        if why := attributes_error(self.operation):
            return why
        operands = [shaped(v.type) for v in self.operation.operands]
        given = inputs_of(self.operation, operands)
        extra = operands[sum(value is not None for value in given.values()) :]
        x, tokens = given["x"], given["tokens"]
        assert x is not None
        rows = x.rows if tokens is None else tokens.shape
        return _product_of_experts_error(self.operation, given, rows) or epilogue_error(
            self.operation, rows, _parts(self.operation), extra, shaped(self.w.type).shape[0]
        )


class GroupMatmulCombineOp(
    Op, name="group_matmul_combine", traits=[ext.Pure, ir.IsIsolatedFromAboveTrait]
):
    """A `qfuse.group_matmul` whose rows a `qfuse.combine` alone reads, as one operation.

        %out = "qfuse.group_matmul_combine"(%x, %w, %indptr, %slots, %weights, %residual) ({
        ^bb0(%acc: f32):
          %0 = arith.truncf %acc : f32 to bf16
          %1 = arith.extf %0 : bf16 to f32
          "qfuse.yield"(%1) : (f32) -> ()
        }) {parts = array<i64: 2048>, maps = [],
            operandSegmentSizes = array<i32: 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0>}
           : (!xq [T, k, K], !wq [E, N, K], tensor<129xi32>, tensor<?x8xi32>, tensor<?x8xf32>,
              tensor<?x2048xbf16>) -> tensor<?x2048xbf16>

    The rows [T, k, N] are what the region yields: a rounding to the type that they would have been
    stored in is written out there, as any other.  `slots`, `weights` and `residual` then make the
    result of them, with the sums and roundings of `qfuse.combine`.  x, w, `indptr`, `tokens`, parts
    and maps are as in `qfuse.group_matmul`; extra operands of rows have those of the product.
    """

    x: ext.Operand[Any]
    w: ext.Operand[Any]
    indptr: ext.Operand[ir.RankedTensorType]
    slots: ext.Operand[ir.RankedTensorType]
    weights: ext.Operand[ir.RankedTensorType]
    parts: Any
    maps: ir.ArrayAttr
    epilogue: ext.Region
    out: ext.Result[ir.RankedTensorType]
    residual: ext.Operand[ir.RankedTensorType] | None = None
    tokens: ext.Operand[ir.RankedTensorType] | None = None
    extra0: ext.Operand[Any] | None = None
    extra1: ext.Operand[Any] | None = None
    extra2: ext.Operand[Any] | None = None
    extra3: ext.Operand[Any] | None = None
    extra4: ext.Operand[Any] | None = None
    extra5: ext.Operand[Any] | None = None

    def violation(self) -> str | None:
        if why := attributes_error(self.operation):
            return why
        operands = [shaped(v.type) for v in self.operation.operands]
        given = inputs_of(self.operation, operands)
        extra = operands[sum(value is not None for value in given.values()) :]
        out = shaped(self.operation.results[0].type)
        slots = given["slots"]
        assert slots is not None
        if len(slots.shape) != 2:
            return f"slots are {slots}; expected i32 [T, k]"
        if not out.shape:
            return f"the result is {out}; expected a float [T, N]"
        if why := _product_of_experts_error(self.operation, given, slots.shape):
            return why
        row = Shaped((*slots.shape, out.shape[-1]), "f32")
        experts = shaped(self.w.type).shape[0]
        return epilogue_error(
            self.operation, slots.shape, _parts(self.operation), extra, experts, outs=[row]
        ) or _sum_error(row, slots, given["weights"], given["residual"], out)


class CombineOp(Op, name="combine", traits=[ext.Pure]):
    """The rows of each token, weighted and added, and a residual.

        %out = "qfuse.combine"(%y, %slots, %weights, %residual)
           : (tensor<?x8x2048xbf16>, tensor<?x8xi32>, tensor<?x8xf32>, tensor<?x2048xbf16>)
           -> tensor<?x2048xbf16>

    out[t] = sum over j = 0 .. k-1, in order, of weights[t, j] * y[slots[t, j]], leaving out slots
    of -1; in f32, rounded to the result's type.  A residual of that type is added to the rounded
    sum in f32, and the result rounded again, as a separate `qfuse.add` would.  The T rows of the
    result may have several leading dimensions.

    Where `slots` has a column more than `weights`, the last choice is an expert that all tokens
    share: its row counts whole.  It is added to the rounded sum of the others, and the result
    rounded, before the residual; again as a separate `qfuse.add` would.
    """

    y: ext.Operand[ir.RankedTensorType]
    slots: ext.Operand[ir.RankedTensorType]
    weights: ext.Operand[ir.RankedTensorType]
    out: ext.Result[ir.RankedTensorType]
    residual: ext.Operand[ir.RankedTensorType] | None = None

    def violation(self) -> str | None:
        y, slots, weights, *residual = (shaped(v.type) for v in self.operation.operands)
        out = shaped(self.operation.results[0].type)
        if not is_float(y) or len(y.shape) != 3:
            return f"y is {y}; expected a float [T, k, N]"
        return _sum_error(y, slots, weights, residual[0] if residual else None, out)


def _product_of_experts_error(
    op: ir.Operation, given: Mapping[str, Shaped | None], rows: Sequence[int]
) -> str | None:
    """Why the inputs of a product by the weights of experts, which makes `rows`, are not legal."""
    x, w, indptr, tokens = (given[name] for name in ("x", "w", "indptr", "tokens"))
    assert x is not None and w is not None
    if len(w.shape) != 3 or DYNAMIC in w.shape:
        return f"w has shape {shape_text(w.shape)}; weights of experts are a static [E, N, K]"
    if indptr != Shaped((w.shape[0] + 1,), "i32"):
        return f"indptr is {indptr}; expected {Shaped((w.shape[0] + 1,), 'i32')}"
    if why := product_error(x, Shaped(w.shape[1:], w.dtype, w.scheme), _parts(op)):
        return why
    if tokens is None:
        if tuple(x.rows) == tuple(rows):
            return None
        return f"x has shape {shape_text(x.shape)}; without tokens its rows are {shape_text(rows)}"
    if tokens.dtype != "i32" or len(tokens.shape) != 2:
        return f"tokens are {tokens}; expected i32 [T, k]"
    if tokens.shape != tuple(rows):
        return f"tokens are {tokens}; expected i32 {shape_text(rows)}, as the rows"
    if not rows_agree(x.rows, tokens.shape[0]):
        return (
            f"x has shape {shape_text(x.shape)}; with tokens {shape_text(tokens.shape)} it has "
            f"{shape_text(tokens.shape[:1])} rows"
        )
    return None


def _parts(op: ir.Operation) -> list[int]:
    return [int(n) for n in op.attributes["parts"]]


def _sum_error(
    y: Shaped, slots: Shaped, weights: Shaped | None, residual: Shaped | None, out: Shaped
) -> str | None:
    """Why rows y [T, k, N] cannot be added up so."""
    tokens, choices, width = y.shape
    if slots != Shaped(y.rows, "i32"):
        return f"slots are {slots}; expected {Shaped(y.rows, 'i32')}"
    weighted = [y.rows] + [(tokens, choices - 1)] * (choices > 1)
    if weights is None or not is_float(weights) or weights.shape not in weighted:
        shapes = ", or with a shared expert ".join(map(shape_text, weighted))
        return f"weights are {weights}; expected a float {shapes}"
    fits = out.shape[-1:] == (width,) and rows_agree(out.rows, tokens)
    if not is_float(out) or not fits:
        return f"the result is {out}; expected a float {shape_text((tokens, width))}"
    if residual is not None and residual != out:
        return f"the residual is {residual}; expected {out}, as the result"
    return None
