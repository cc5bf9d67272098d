"""`qfuse-fuse-shared-expert`: an MLP added to the experts' sum becomes one more of the experts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.epilogue import build_yield, is_identity
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.expand_quantize import INPUT_SCHEME
from qfuse.compiler.passes.predicates import given_scale, is_made_once, readers, run_equally_often
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import build_product
from qfuse.dialects.moe_ops import SHARED, shared_experts
from qfuse.dialects.quantization_ops import QuantizeOp, build_append_expert, build_concat
from qfuse.dialects.types import Shaped, shaped

_PARTS = ("qfuse.matmul", "qfuse.glu", "qfuse.quantize")
"""What a shared expert consists of, as the others do."""

_FAR = 8
"""Steps from the input of a shared expert to its result at most, whatever else it may do."""


@dataclass(frozen=True)
class FuseSharedExpert(Pass):
    """Make the shared expert of a layer the last of its experts, which every token chooses.

    Before::

        %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 256 : i64}
        %g, %u = "qfuse.group_matmul"(%x, %w_both, %indptr, %tokens)
        %h = "qfuse.glu"(%g, %u) {act = "silu"}
        %y = "qfuse.group_matmul"(%h, %w_down, %indptr)
        %sum = "qfuse.combine"(%y, %slots, %weights)             : tensor<?x7168xbf16>
        %sg = "qfuse.matmul"(%x, %w_shared_gate)
        %su = "qfuse.matmul"(%x, %w_shared_up)
        %sh = "qfuse.glu"(%sg, %su) {act = "silu"}
        %shared = "qfuse.matmul"(%sh, %w_shared_down)
        %out = "qfuse.add"(%sum, %shared)

    After::

        %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 256 : i64, shared = 1 : i64}
        %w1 = "qfuse.append_expert"(%w_both, "qfuse.concat"(%w_shared_gate, %w_shared_up))
        %w2 = "qfuse.append_expert"(%w_down, %w_shared_down)
        %g, %u = "qfuse.group_matmul"(%x, %w1, %indptr, %tokens)
        %h = "qfuse.glu"(%g, %u) {act = "silu"}
        %y = "qfuse.group_matmul"(%h, %w2, %indptr)
        %out = "qfuse.combine"(%y, %slots, %weights)     // slots [T, k + 1], weights [T, k]

    Exact: each row meets the same weights, and is rounded and quantized where it was before.  So
    the shared expert must be as the others are, to the last type: a wider one, which stands for
    several, adds all of its features up before it rounds, as several experts would not; one with a
    static scale of its own would be quantized by the others'.  It stays a product of its own, with
    a remark, where that is so, where something is computed besides (a gate of the shared expert, a
    bias), or where anybody else reads what is in between.  Without a shared expert nothing is done.
    """

    name: ClassVar[str] = "qfuse-fuse-shared-expert"

    def run(self, module: ir.Operation) -> None:
        patterns = [_fuse(side, quantizes) for side in (0, 1) for quantizes in (None, 0, 1)]
        patterns += [_explain(side) for side in (0, 1)]
        Patterns(patterns).apply(module)


def _fuse(side: int, quantizes: int | None) -> Callable[[Pattern], None]:
    """The sum over experts, operand `side` of an add.

    Hidden values are quantized by so many scales that are given beforehand; None: they are not.
    """

    def shared_expert(p: Pattern) -> None:
        def mlp(gate: ir.Value, up: ir.Value) -> list[ir.Value]:
            """The operations between the products of an MLP."""
            glu = p.op("qfuse.glu", gate, up)
            if quantizes is None:
                return [glu]
            given = [p.value() for _ in range(quantizes)]
            return [glu, p.op("qfuse.quantize", p.result(glu), *given)]

        route = p.op("qfuse.route", p.value(), many=True)
        slots, tokens, indptr = (p.result(route, i) for i in range(3))
        both = p.op("qfuse.group_matmul", p.value(), p.value(), indptr, tokens, many=True)
        hidden = mlp(p.result(both, 0), p.result(both, 1))
        down = p.op("qfuse.group_matmul", p.result(hidden[-1]), p.value(), indptr)
        combine = p.op("qfuse.combine", p.result(down), slots, p.value())

        gate, up = (p.op("qfuse.matmul", p.value(), p.value()) for _ in range(2))
        shared_hidden = mlp(p.result(gate), p.result(up))
        shared_down = p.op("qfuse.matmul", p.result(shared_hidden[-1]), p.value())
        sums = [p.result(combine), p.result(shared_down)]
        add = p.op("qfuse.add", *(sums if side == 0 else sums[::-1]))

        products = (both, down, gate, up, shared_down)
        inner = (route, *products, *hidden, *shared_hidden, combine)
        p.require(has_no_shared_expert_yet, combine, route)
        for op in inner:
            p.require(run_equally_often, add, op)
        p.require(read_one_input, gate, up, both)
        p.require(products_are_plain, add, *products)
        p.require(activations_agree, shared_hidden[0], hidden[0])
        if quantizes is not None:
            p.require(scales_agree, shared_hidden[1], hidden[1])
        p.require(weights_are_of_one_kind, shared_down, gate, up, both, down)
        p.require(weights_are_made_once, *products)
        p.require(roundings_agree, gate, both)
        p.require(roundings_agree, up, both)
        for shared, expert in zip((*shared_hidden, shared_down), (*hidden, down), strict=True):
            p.require(roundings_agree, shared, expert)
        p.require(sum_has_one_type, add, combine)
        p.require(are_read_in_between_only, add, *inner)
        p.rewrite(add, append_shared_expert, route, combine, *products, *hidden, *shared_hidden)

    return shared_expert


def _explain(side: int) -> Callable[[Pattern], None]:
    """Matches any other shared expert, to say why it is none of ours."""

    def shared_expert(p: Pattern) -> None:
        combine, other = p.op("qfuse.combine", p.values()), p.value()
        add = p.op("qfuse.add", *([p.result(combine), other][:: 1 if side == 0 else -1]))
        p.require(is_as_experts_are, add, combine, other)
        p.rewrite(add, _never)

    return shared_expert


def has_no_shared_expert_yet(_combine: ir.Operation, route: ir.Operation) -> Verdict:
    if shared_experts(route) == 0:
        return None
    return Refusal("the experts have a shared one already")


def read_one_input(gate: ir.Operation, up: ir.Operation, both: ir.Operation) -> Verdict:
    if gate.operands[0] == up.operands[0] == both.operands[0]:
        return None
    return Refusal(
        "the shared expert reads another value than the experts", "give them one quantized input"
    )


def products_are_plain(_add: ir.Operation, *products: ir.Operation) -> Verdict:
    """Nothing is fused into them, and nothing left of what they are expanded from."""
    if any(INPUT_SCHEME in product.attributes for product in products):
        return Refusal(
            "the quantization of an input is still part of a product",
            "run qfuse-expand-quantize first",
        )
    return None if all(map(is_identity, products)) else _FUSED_ALREADY


def activations_agree(shared: ir.Operation, expert: ir.Operation) -> Verdict:
    one, other = (ir.StringAttr(glu.attributes["act"]).value for glu in (shared, expert))
    if one == other:
        return None
    return Refusal(f"the shared expert computes {one}, the experts {other}")


def weights_are_of_one_kind(
    shared_down: ir.Operation,
    gate: ir.Operation,
    up: ir.Operation,
    both: ir.Operation,
    down: ir.Operation,
) -> Verdict:
    """The shared expert's weights have shape, element type and scheme of one expert's."""
    (width, _), stacks = ir.DenseI64ArrayAttr(both.attributes["parts"]), _weights(both, down)
    of_expert = [replace(stack, shape=stack.shape[1:]) for stack in stacks]
    wide = replace(of_expert[0], shape=(width, of_expert[0].shape[1]))
    for found, wanted in zip(
        _weights(gate, up, shared_down), (wide, wide, of_expert[1]), strict=True
    ):
        if found.dtype != wanted.dtype or found.scheme != wanted.scheme:
            return Refusal(
                f"a weight of the shared expert is {found}, the experts' are {wanted}",
                "quantize both alike",
            )
        if found.shape != wanted.shape:
            inner = shaped(gate.operands[1].type).shape[0]
            return Refusal(
                f"the shared expert has {inner} hidden features, an expert {width}: its down "
                "product adds up all of them before it rounds, as several experts would not",
                "use n_shared_experts = 1",
            )
    return None


def weights_are_made_once(*products: ir.Operation) -> Verdict:
    if all(is_made_once(product.operands[1]) for product in products):
        return None
    return Refusal(
        "a weight is computed at run time, so joining it would cost a copy per call",
        "pass the weight as a parameter",
    )


def roundings_agree(shared: ir.Operation, expert: ir.Operation) -> Verdict:
    """One result of the shared expert has the type of its counterpart, rows apart."""
    one, other = (shaped(op.results[0].type) for op in (shared, expert))
    if (one.dtype, one.scheme) == (other.dtype, other.scheme):
        return None
    return Refusal(f"the shared expert's {shared.name} makes {one}, the experts' {other}")


def scales_agree(shared: ir.Operation, expert: ir.Operation) -> Verdict:
    one, other = given_scale(shared), given_scale(expert)
    if one == other:
        return None
    names = [remarks.argument_name(scale) for scale in (one, other) if scale is not None]
    return Refusal(
        "the shared expert's hidden values are quantized by another scale than the experts'"
        + (f", {names[0]} and {names[1]}" if all(names) else ""),
        "quantize them by one",
    )


def sum_has_one_type(add: ir.Operation, combine: ir.Operation) -> Verdict:
    if add.results[0].type == combine.results[0].type:
        return None
    one, other = (shaped(op.results[0].type) for op in (add, combine))
    return Refusal(f"with the shared expert the sum is {one}, without {other}", "round both alike")


def are_read_in_between_only(add: ir.Operation, *inner: ir.Operation) -> Verdict:
    """Nobody but the match reads what is computed on the way to the sum."""
    known = (add, *inner)
    for op in inner:
        if any(reader not in known for result in op.results for reader in readers(result)):
            return Refusal(
                f"a result of {op.name} has another reader", "let the layer alone read it"
            )
    return None


def is_as_experts_are(add: ir.Operation, combine: ir.Operation, other: ir.Value) -> Verdict:
    """A shared expert behind `other` is computed as the experts are, or there is none."""
    down = _product_of(combine.operands[0])
    both = _product_of(down.operands[0]) if down is not None else None
    if down is None or both is None:
        return MISMATCH
    shared = _between(_forms(both.operands[0]), other)
    products = [op for op in shared if op.name == "qfuse.matmul"]
    if len(products) < 2:
        return MISMATCH
    if len(combine.operands) > 3:
        return Refusal("the sum takes a residual already", "run this pass before the epilogues'")
    for op in shared:
        if op.name not in _PARTS:
            return Refusal(f"{op.name} is part of the shared expert, but of no other expert")
    if (why := products_are_plain(add, both, down, *products)) is not None:
        return why
    makers = [value.owner.operation for value in (down.operands[0], products[-1].operands[0])]
    if {op.name for op in makers} == {QuantizeOp.OPERATION_NAME} and (
        (given_scale(makers[0]) is None) != (given_scale(makers[1]) is None)
    ):
        which = "the shared expert's" if given_scale(makers[0]) is None else "the experts'"
        return Refusal(
            f"{which} hidden values alone are quantized by a scale given beforehand",
            "quantize both alike",
        )
    if makers[0].name != makers[1].name:
        return Refusal(
            f"the shared expert's last product reads what {makers[1].name} makes, the experts' "
            f"what {makers[0].name} does",
            "quantize both or none",
        )
    return MISMATCH


def append_shared_expert(
    rewriter,
    add: ir.Operation,
    route: ir.Operation,
    combine: ir.Operation,
    both: ir.Operation,
    down: ir.Operation,
    gate: ir.Operation,
    up: ir.Operation,
    shared_down: ir.Operation,
    *between: ir.Operation,
) -> None:
    """`between` are the operations between the products, of the experts and the shared one."""
    hidden = between[: len(between) // 2]
    slots, tokens, indptr = _route_with_shared(route).results
    x, experts = both.operands[0], both.operands[1]
    joined = build_append_expert(experts, build_concat([gate.operands[1], up.operands[1]]))
    values = _group_product(both, [x, joined, indptr, tokens])
    new = [slots.owner, values[0].owner]
    for op in hidden:
        values = _again(op, [*values, *_given(op)])
        new.append(values[0].owner)
    narrow = build_append_expert(down.operands[1], shared_down.operands[1])
    (rows,) = _group_product(down, [values[0], narrow, indptr, None])
    out = _like(combine, [rows, slots, combine.operands[2]], [add.results[0].type])
    new += [rows.owner, out[0].owner]
    old = [route, both, down, combine, gate, up, shared_down, *between, add]
    saved = savings(old, [op.operation for op in new])
    remarks.fired("shared-expert", add, remarks.argument_name(experts), saves=saved)
    rewriter.replace_op(add, out)


def _given(op: ir.Operation) -> list[ir.Value]:
    """The scale by which `op`, one between products, quantizes, if that is given beforehand."""
    scale = given_scale(op) if op.name == QuantizeOp.OPERATION_NAME else None
    return [] if scale is None else [scale]


def _route_with_shared(route: ir.Operation) -> ir.Operation:
    i64 = ir.IntegerType.get_signless(64)
    slots, tokens, indptr = (r.type for r in route.results)
    ends = shaped(indptr)
    with route.location:
        return ir.Operation.create(
            route.name,
            results=[
                _one_choice_more(slots),
                _one_choice_more(tokens),
                replace(ends, shape=(ends.shape[0] + 1,)).type(),
            ],
            operands=list(route.operands),
            attributes={
                "num_experts": route.attributes["num_experts"],
                SHARED: ir.IntegerAttr.get(i64, 1),
            },
        )


def _group_product(old: ir.Operation, inputs: Sequence[ir.Value | None]) -> list[ir.Value]:
    """`old`, which yields its accumulators, of other inputs with one choice more."""
    results = [_one_choice_more(r.type) for r in old.results]
    parts = list(ir.DenseI64ArrayAttr(old.attributes["parts"]))
    with old.location:
        new, block = build_product(old.name, inputs, results, parts)
        with ir.InsertionPoint(block):
            build_yield(list(block.arguments))
    return list(new.results)


def _again(old: ir.Operation, operands: Sequence[ir.Value]) -> list[ir.Value]:
    """`old` of other operands with one choice more."""
    return _like(old, operands, [_one_choice_more(r.type) for r in old.results])


def _like(
    old: ir.Operation, operands: Sequence[ir.Value], results: Sequence[ir.Type]
) -> list[ir.Value]:
    attributes = {name: old.attributes[name] for name in old.attributes}
    with old.location:
        new = ir.Operation.create(
            old.name, results=list(results), operands=list(operands), attributes=attributes
        )
    return list(new.results)


def _one_choice_more(type_: ir.Type) -> ir.Type:
    """From [T, k, ...] to [T, k + 1, ...]."""
    value = shaped(type_)
    tokens, choices, *rest = value.shape
    return replace(value, shape=(tokens, choices + 1, *rest)).type()


def _weights(*products: ir.Operation) -> list[Shaped]:
    return [shaped(product.operands[1].type) for product in products]


def _product_of(value: ir.Value) -> ir.Operation | None:
    """The product by experts' weights that `value` is made from, by a GLU or quantized or not."""
    while not isinstance(value, ir.BlockArgument):
        op = value.owner.operation
        if op.name == "qfuse.group_matmul":
            return op
        if op.name not in _PARTS:
            return None
        value = op.operands[0]
    return None


def _forms(x: ir.Value) -> set[ir.Value]:
    """`x`, what it is quantized from, and whatever else that is quantized to."""
    if not isinstance(x, ir.BlockArgument) and x.owner.name == "qfuse.quantize":
        x = x.owner.operands[0]
    return {x} | {op.results[0] for op in readers(x) if op.name == "qfuse.quantize"}


def _between(xs: set[ir.Value], end: ir.Value, steps: int = _FAR) -> list[ir.Operation]:
    """The operations on the way from dense products of `xs` to `end`, in order; [] if none is.

    So a residual has none: it comes from before `xs`.
    """
    if isinstance(end, ir.BlockArgument) or steps == 0:
        return []
    op = end.owner.operation
    if op.name == "qfuse.matmul" and op.operands[0] in xs:
        return [op]
    before = [found for value in op.operands for found in _between(xs, value, steps - 1)]
    return [*dict.fromkeys(before), op] if before else []


_FUSED_ALREADY = Refusal(
    "an epilogue is already fused into one of the products", "run this pass first of all fusions"
)


def _never(*_: object) -> None:
    raise AssertionError("_explain only explains")
