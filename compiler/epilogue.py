"""Rebuilding a product with a longer epilogue."""

from collections.abc import Callable, Sequence

from qfuse.dialects.activations import build_rounding
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import YieldOp, build_product, inputs_of
from qfuse.dialects.types import shaped

Extend = Callable[[list[ir.Value], list[ir.Value]], list[ir.Value]]
"""(rounded results of the old epilogue, arguments of the new extra operands) -> new results."""


def extend_epilogue(
    product: ir.Operation,
    results: Sequence[ir.Type],
    extend: Extend,
    *,
    extra: Sequence[ir.Value] = (),
    maps: Sequence[str] = (),
    into: tuple[str, Sequence[ir.Value | None]] | None = None,
) -> ir.Operation:
    """A copy of `product` at the insertion point that goes on with `extend`.

    `into` makes it another operation, of that name and with those inputs in the place of its own.
    Attributes that are none of a product's own (the scheme x is to be quantized to) stay.
    `extend` sees the old results as a reader would have: rounded to their element types.
    """
    inputs = list(inputs_of(product, product.operands).values())
    name, new_inputs = into or (product.name, inputs)
    old_extra = list(product.operands)[sum(value is not None for value in inputs) :]
    parts = list(ir.DenseI64ArrayAttr(product.attributes["parts"]))
    old_maps = [ir.StringAttr(m).value for m in ir.ArrayAttr(product.attributes["maps"])]
    new, block = build_product(
        name, new_inputs, results, parts, [*old_extra, *extra], [*old_maps, *maps]
    )
    for attribute in product.attributes:
        if attribute not in (*new.attributes, "resultSegmentSizes"):
            new.attributes[attribute] = product.attributes[attribute]
    old_block = product.regions[0].blocks[0]
    arguments = list(block.arguments)
    kept = len(old_block.arguments)
    with ir.InsertionPoint(block):
        yielded = inline_block(old_block, arguments[:kept])
        rounded = [
            value if shaped(r.type).quantized else build_rounding(value, shaped(r.type).dtype)
            for value, r in zip(yielded, product.results, strict=True)
        ]
        build_yield(extend(rounded, arguments[kept:]))
    return new


def inline_block(block: ir.Block, arguments: Sequence[ir.Value]) -> list[ir.Value]:
    """Copy an epilogue's operations to the insertion point; return what it yields there."""
    values = dict(zip(block.arguments, arguments, strict=True))
    *body, terminator = block.operations
    for op in body:
        copy = op.operation.clone()
        for i, operand in enumerate(op.operation.operands):
            if operand in values:
                copy.operands[i] = values[operand]
        values.update(zip(op.operation.results, copy.results, strict=True))
    return [values[v] for v in terminator.operation.operands]


def build_yield(values: Sequence[ir.Value]) -> None:
    ir.Operation.create(YieldOp.OPERATION_NAME, operands=list(values))


def is_identity(product: ir.Operation) -> bool:
    """Whether the epilogue yields its accumulators as they are."""
    block = product.regions[0].blocks[0]
    operations = list(block.operations)
    return len(operations) == 1 and list(operations[0].operation.operands) == list(block.arguments)
