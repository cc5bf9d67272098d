"""Patterns of `qfuse-fuse-epilogue`: the four stages, over any element-wise operation.

    unary(binary(act(x.W + bias), residual))

An element-wise operation (those of `dialects/arithmetic.py`) that reads a product joins its
epilogue.  Which stage it belongs to depends on what else it reads and on what joined before:

| stage | the operation |
|---|---|
| bias | reads an operand that is the same for every row, [N] or a scalar |
| activation | reads the product only (or constants), before any residual |
| residual-binary | reads an operand that differs from row to row, [M,N] or [M,1] |
| residual-unary | reads the product only, after a residual |

Stages do not order anything: the region holds the operations in the order of the program, any
number of each.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache

from qfuse.compiler import remarks
from qfuse.compiler.benefit import savings
from qfuse.compiler.epilogue import (
    Build,
    absorb_reader,
    extras_of,
    maps_of,
    places,
    scalar_constant,
)
from qfuse.compiler.passes.predicates import (
    ancestor_in,
    defined_before,
    has_room_for_operand,
    keeps_shape,
    readers,
    run_equally_often,
)
from qfuse.compiler.pdl import MISMATCH, Pattern, Predicate, Refusal, Verdict
from qfuse.compiler.torch_ir import find_operations, may_write
from qfuse.dialects.arithmetic import ELEMENTWISE, attributes_of, build_elementwise
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import MAX_RESULTS, PRODUCTS, map_of
from qfuse.dialects.types import shaped

STAGES = ("bias", "activation", "residual-binary", "residual-unary")


def stage_patterns(
    allowed: frozenset[str], module: ir.Operation
) -> Iterator[Callable[[Pattern], None]]:
    """A pattern for each stage, operation and place of the product among its operands."""
    legal = (*_LEGAL, _nothing_writes_between(module), _stage_is_on(allowed))
    for stage in STAGES:
        for name, entry in ELEMENTWISE.items():
            for side in range(entry.operands):
                yield _pattern(stage, name, side, legal)


def _pattern(
    stage: str, name: str, side: int, legal: Sequence[Predicate]
) -> Callable[[Pattern], None]:
    """`name` of `y`, operand `side`, which a product makes, and perhaps of another value"""

    def belongs_to_stage(_reader: ir.Operation, y: ir.Value, *other: ir.Value) -> Verdict:
        if side == 1 and is_of(y.owner.operation, *other):
            return MISMATCH  # both operands are the product's; one pattern for that is enough
        return None if stage_of(y, *other) == stage else MISMATCH

    def saves_most(reader: ir.Operation, y: ir.Value, *other: ir.Value) -> Verdict:
        """If the other operand is a product, too, this one is the better one to join."""
        rivals = [v for v in other if is_product(v) and v.owner != y.owner]
        for rival in rivals:
            if all(p(reader, rival, y) is None for p in legal) and saves_more(reader, rival, y):
                return MISMATCH
        return None

    def absorb(rewriter, reader: ir.Operation, y: ir.Value, *other: ir.Value) -> None:
        absorb_into(rewriter, f"epilogue-{stage}", y.owner.operation, reader, _compute)

    def pattern(p: Pattern) -> None:
        y = p.value()
        other = [p.value() for _ in range(ELEMENTWISE[name].operands - 1)]
        reader = p.op(f"qfuse.{name}", *other[:side], y, *other[side:])
        for predicate in (reads_a_product, belongs_to_stage, *legal, saves_most):
            p.require(predicate, reader, y, *other)
        p.rewrite(reader, absorb, y, *other)

    pattern.__name__ = f"epilogue_{stage}"
    return pattern


def absorb_into(
    rewriter, pattern: str, product: ir.Operation, reader: ir.Operation, build: Build
) -> None:
    """Replace `product` and `reader`, which `build` makes of scalars, by one product.

    The remark names `pattern`.
    """
    late = made_late(product, *reader.operands)
    with ir.InsertionPoint.after(late) if late else ir.InsertionPoint(product):
        absorbed = absorb_reader(product, reader, build)
    about = remarks.argument_name(product.operands[1])
    saved = savings([product, reader], [absorbed.product])
    remarks.fired(pattern, reader, about, saves=saved)
    rewriter.replace_op(reader, [absorbed.result])
    numbers = range(len(product.results))
    rewriter.replace_op(product, [absorbed.kept.get(i, absorbed.result) for i in numbers])


def _compute(reader: ir.Operation, operands: list[ir.Value]) -> ir.Value:
    return build_elementwise(reader.name.removeprefix("qfuse."), operands, attributes_of(reader))


def stage_of(y: ir.Value, *other: ir.Value) -> str:
    """The stage of an operation on `y`, a result of a product, and possibly another value."""
    product = y.owner.operation
    kinds = [_map(y, v) for v in other if is_operand(product, v)]
    if kinds:
        return "bias" if kinds[0] in ("[N]", "[]") else "residual-binary"
    has_residual = any(kind.startswith("[M") for kind in maps_of(product))
    return "residual-unary" if has_residual else "activation"


def is_product(value: ir.Value) -> bool:
    return not isinstance(value, ir.BlockArgument) and value.owner.operation.name in PRODUCTS


def is_of(product: ir.Operation, *values: ir.Value) -> bool:
    """Whether all of `values`, and there are some, are results of `product`."""
    return bool(values) and all(v.owner == product for v in values)


def is_operand(product: ir.Operation, other: ir.Value) -> bool:
    """Whether `other` would be an operand of the product, not written into its region."""
    return not is_of(product, other) and scalar_constant(other) is None


def made_late(product: ir.Operation, *other: ir.Value) -> ir.Operation | None:
    """What makes the other operand, if it stands behind the product."""
    for value in other:
        if is_operand(product, value) and not defined_before(value, product):
            return value.owner.operation
    return None


def saves_more(reader: ir.Operation, y: ir.Value, other: ir.Value) -> bool:
    """Whether it saves more to join the product of `y` than that of `other`.

    What the product makes is not read again, and not written where nobody else reads it.  Of two
    that save the same, the later one joins, because then nothing has to move.
    """

    def bytes_saved(value: ir.Value) -> int:
        is_only = all(op == reader for op in readers(value))
        width = ir.RankedTensorType(value.type).element_type.width
        return width // 8 * (2 if is_only else 1)

    mine, others = bytes_saved(y), bytes_saved(other)
    return mine > others or (mine == others and defined_before(other, y.owner.operation))


# What must hold of (the operation, the result it reads, its other operand if it has one)


def reads_a_product(_reader: ir.Operation, y: ir.Value, *_: ir.Value) -> Verdict:
    return None if is_product(y) else MISMATCH


def runs_as_often(reader: ir.Operation, y: ir.Value, *_: ir.Value) -> Verdict:
    return run_equally_often(reader, y.owner.operation)


def has_shape_of_product(reader: ir.Operation, y: ir.Value, *_: ir.Value) -> Verdict:
    return keeps_shape(reader, y)


def broadcasts_to_product(_reader: ir.Operation, y: ir.Value, *other: ir.Value) -> Verdict:
    product = y.owner.operation
    if is_of(product, *other) and other[0].type.shape != y.type.shape:
        return Refusal(
            f"it reads results {shaped(y.type)} and {shaped(other[0].type)} of one product, which "
            "are made apart",
        )
    refused = [v for v in other if is_operand(product, v) and _map(y, v) is None]
    if not refused:
        return None
    if product.name == "qfuse.group_matmul":
        return Refusal(
            f"operand {shaped(refused[0].type)} is no [N] and no scalar, and the rows of "
            f"{shaped(y.type)} are in the order of experts, not of tokens",
            "apply it to the result of qfuse.combine",
        )
    return Refusal(
        f"operand {shaped(refused[0].type)} does not broadcast to the product's "
        f"{shaped(y.type)} as [N], [M,1], [M,N] or a scalar",
        "reshape it to one of these",
    )


def has_room(reader: ir.Operation, y: ir.Value, *other: ir.Value) -> Verdict:
    """For one more operand, unless the epilogue has it already, and for one more result."""
    product = y.owner.operation
    held = list(zip(extras_of(product), maps_of(product), strict=True))
    if any(is_operand(product, v) and (v, _map(y, v)) not in held for v in other):
        verdict = has_room_for_operand(product)
        if verdict is not None:
            return verdict
    if len(places(product, reader)) <= MAX_RESULTS:
        return None
    return Refusal(
        f"others read the product, too, and it already has {MAX_RESULTS} results",
        "let them read the fused value",
    )


def operand_comes_in_time(reader: ir.Operation, y: ir.Value, *other: ir.Value) -> Verdict:
    """Nothing that reads the product stands before, or makes, the other operand."""
    product = y.owner.operation
    late = made_late(product, *other)
    if late is None:
        return None
    for user in (op for result in product.results for op in readers(result)):
        here = ancestor_in(user, product.block)
        if user == reader or here is None:
            continue
        if here == late or here.is_before_in_block(late):
            return Refusal(
                f"the other operand is made by {late.name}, behind {user.name}, which reads the "
                "product as well",
                "make it before the product",
            )
    return None


_LEGAL = (
    runs_as_often,
    has_shape_of_product,
    broadcasts_to_product,
    has_room,
    operand_comes_in_time,
)


def _nothing_writes_between(module: ir.Operation) -> Predicate:
    """The predicate for a module: values of torch may share memory."""

    @cache
    def writers() -> list[ir.Operation]:
        return find_operations(module, may_write)

    def nothing_writes_between(reader: ir.Operation, y: ir.Value, *_: ir.Value) -> Verdict:
        product = y.owner.operation
        for writer in writers():
            here = ancestor_in(writer, product.block)
            if here and product.is_before_in_block(here) and here.is_before_in_block(reader):
                return Refusal(
                    f"{writer.name} between the product and {reader.name} may write to what they "
                    "read",
                    "functionalize the graph",
                )
        return None

    return nothing_writes_between


def _stage_is_on(allowed: frozenset[str]) -> Predicate:
    def stage_is_on(_reader: ir.Operation, y: ir.Value, *other: ir.Value) -> Verdict:
        stage = stage_of(y, *other)
        if stage in allowed:
            return None
        return Refusal(f"stage {stage} is switched off", "add it to qfuse-fuse-epilogue=stages")

    return stage_is_on


def _map(y: ir.Value, other: ir.Value) -> str | None:
    type_ = shaped(y.type)
    return map_of(shaped(other.type), type_.rows, type_.shape[-1])
