"""Rebuilding a product with a longer epilogue."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from qfuse.dialects.activations import build_rounding
from qfuse.dialects.arithmetic import build_constant
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import YieldOp, build_product, inputs_of, map_of
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
    `extend` sees the old results as a reader would have: rounded to their element types.
    """
    new, yielded, arguments = _reopen(product, results, extra, maps, into)
    with ir.InsertionPoint(new.regions[0].blocks[0]):
        rounded = [
            value if shaped(r.type).quantized else build_rounding(value, shaped(r.type).dtype)
            for value, r in zip(yielded, product.results, strict=True)
        ]
        build_yield(extend(rounded, arguments))
    return new


Build = Callable[[ir.Operation, list[ir.Value]], ir.Value]
"""(an element-wise operation, its operands as f32) -> its result, before it is rounded."""


@dataclass(frozen=True)
class Absorbed:
    """A product with an operation on its results in its epilogue."""

    product: ir.Operation
    result: ir.Value
    """What the operation computed."""
    kept: dict[int, ir.Value]
    """Results of the old product that others read, by their old numbers."""


def absorb_reader(product: ir.Operation, reader: ir.Operation, build: Build) -> Absorbed:
    """A copy of `product` at the insertion point that also computes the element-wise `reader`.

    `reader` sees results of the product as it did: rounded to their element types.  Its other
    operand becomes one of the product, unless it is one already or a constant; its place in the
    results is that of the first result which nobody else reads, and the last if all are read.
    """
    own = {v: i for i, v in enumerate(product.results)}
    y = next(shaped(v.type) for v in reader.operands if v in own)
    wanted = {
        v: map_of(shaped(v.type), y.rows, y.shape[-1]) or ""
        for v in reader.operands
        if v not in own and scalar_constant(v) is None
    }
    held = list(zip(extras_of(product), maps_of(product), strict=True))
    extra = {v: kind for v, kind in wanted.items() if (v, kind) not in held}
    order = places(product, reader)
    types = [reader.results[0].type if i is None else product.results[i].type for i in order]
    new, yielded, _ = _reopen(product, types, list(extra), list(extra.values()))
    block = new.regions[0].blocks[0]
    seen = [*held, *extra.items()]
    arguments = dict(zip(seen, list(block.arguments)[-len(seen) :], strict=True)) if seen else {}

    def operand(value: ir.Value) -> ir.Value:
        if value in own:
            return build_rounding(yielded[own[value]], shaped(value.type).dtype)
        constant = scalar_constant(value)
        return arguments[value, wanted[value]] if constant is None else build_constant(constant)

    with ir.InsertionPoint(block):
        computed = build(reader, [operand(v) for v in reader.operands])
        build_yield([computed if i is None else yielded[i] for i in order])
    results = dict(zip(order, new.results, strict=True))
    result = results.pop(None)
    return Absorbed(new, result, {i: r for i, r in results.items() if i is not None})


def places(product: ir.Operation, reader: ir.Operation) -> list[int | None]:
    """The results when `product` has absorbed `reader`: old ones by number, None for the new."""
    found: list[int | None] = []
    for i, result in enumerate(product.results):
        users = [use.owner.operation for use in result.uses]
        if any(user != reader for user in users):
            found.append(i)
        elif users and None not in found:
            found.append(None)
    return found if None in found else [*found, None]


def extras_of(product: ir.Operation) -> list[ir.Value]:
    """The operands that only the epilogue of a product reads."""
    count = sum(value is not None for value in _inputs(product))
    return list(product.operands)[count:]


def _inputs(product: ir.Operation) -> Iterable[ir.Value | None]:
    """The operands that its epilogue does not read; None for one left out."""
    return inputs_of(product, product.operands).values()


def maps_of(product: ir.Operation) -> list[str]:
    """How each of those broadcasts."""
    return [ir.StringAttr(m).value for m in ir.ArrayAttr(product.attributes["maps"])]


def scalar_constant(value: ir.Value) -> float | None:
    """The number that `value` holds, if it is a constant of one element."""
    if isinstance(value, ir.BlockArgument):
        return None
    op = value.owner.operation
    if op.name == "torch_c.to_builtin_tensor":
        value = op.operands[0]
        if isinstance(value, ir.BlockArgument):
            return None
        op = value.owner.operation
    if op.name not in ("arith.constant", "torch.vtensor.literal"):
        return None
    attribute = op.attributes["value"]
    if not isinstance(attribute, ir.DenseFPElementsAttr) or len(attribute) != 1:
        return None
    return attribute.get_splat_value().value


def _reopen(
    product: ir.Operation,
    results: Sequence[ir.Type],
    extra: Sequence[ir.Value],
    maps: Sequence[str],
    into: tuple[str, Sequence[ir.Value | None]] | None = None,
) -> tuple[ir.Operation, list[ir.Value], list[ir.Value]]:
    """A copy of `product` with more operands whose epilogue has no end yet.

    Returns it, what the old epilogue yielded, and the arguments of the new operands.
    """
    parts = list(ir.DenseI64ArrayAttr(product.attributes["parts"]))
    name, inputs = into or (product.name, list(_inputs(product)))
    new, block = build_product(
        name,
        inputs,
        results,
        parts,
        [*extras_of(product), *extra],
        [*maps_of(product), *maps],
    )
    carry_attributes(product, new)
    old_block = product.regions[0].blocks[0]
    arguments = list(block.arguments)
    kept = len(old_block.arguments)
    with ir.InsertionPoint(block):
        yielded = inline_block(old_block, arguments[:kept])
    return new, yielded, arguments[kept:]


def carry_attributes(product: ir.Operation, new: ir.Operation) -> None:
    """Attributes that are none of a product's own, such as the scheme x is to be quantized to."""
    for name in product.attributes:
        if name not in (*new.attributes, "resultSegmentSizes"):
            new.attributes[name] = product.attributes[name]


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
