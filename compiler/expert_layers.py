"""Which launches belong to a layer of experts: what the fusion report says of each.

A layer reaches from its router to its experts' sum.  Counted is every operation that the sum needs,
and that comes after the layer's input, the hidden state that its experts read:

    router      its product, and what chooses experts from the logits
    routing     `qfuse.route`
    experts     their products, GLU and quantization; that of the hidden state, too, unless the norm
                before the layer does it
    sum         `qfuse.combine`, or the product that does its work
    shared      where an MLP of the same hidden state is added to the sum: all of it, and the add

The norm before the layer is none of it, nor the add of a residual that is a launch of its own.
Layers are found by what reads what, from each `qfuse.route` on; no name is looked at.
"""

from dataclasses import dataclass

from qfuse.compiler import remarks
from qfuse.compiler.passes.predicates import readers
from qfuse.compiler.runtime import calls
from qfuse.compiler.torch_ir import builtin_type
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import COMPUTE_OPS

_FORMS = ("qfuse.quantize", "torch_c.to_builtin_tensor", "torch_c.from_builtin_tensor")
"""What makes another form of a hidden state."""


@dataclass(frozen=True)
class LayerLaunches:
    """A layer of experts, by the name of the weights of their first product, and its launches."""

    weight: str
    launches: int


def count_launches(module: ir.Module) -> list[LayerLaunches]:
    """The layers of experts of a module that is not lowered yet, in program order.

    Launches are as in `Session.profile`: a kernel, which each qfuse computation becomes, or a
    torch operator that computes.  Copies that a kernel's strides ask for are not foreseen.
    """
    found = []
    for function in module.body.operations:
        for block in function.regions[0].blocks:
            order = {op.operation: i for i, op in enumerate(block.operations)}
            found += [layer for op in order if (layer := _layer(op, order)) is not None]
    return found


def launches_of(op: ir.Operation) -> int:
    """How many launches an operation of the host program is, before the program is lowered."""
    if op.name in COMPUTE_OPS:
        return 1
    if op.name == "torch.operator":
        name = ir.StringAttr(op.attributes["name"]).value
    elif op.name.startswith(("torch.aten.", "torch.prims.")):
        name = op.name
    else:
        return 0
    name = name.removeprefix("torch.")
    made = builtin_type(op.results[0].type) if len(op.results) else None
    if made is None:  # an assertion, a number, a list of views
        return 0
    if calls.returns_view(name):  # but a conversion may be spelled as one
        source = builtin_type(op.operands[0].type)
        return int(source is not None and source.element_type != made.element_type)
    return calls.launches(name)


Order = dict[ir.Operation, int]
"""The operations of a block and their places."""


def _layer(route: ir.Operation, order: Order) -> LayerLaunches | None:
    """The layer of a `qfuse.route`; None for anything else, and for one whose sum nobody makes."""
    if route.name != "qfuse.route":
        return None
    slots, tokens, _ = route.results
    sums, products = readers(slots), readers(tokens)
    if not sums or not products:
        return None
    states, start = _hidden_states(products[0].operands[0], order)
    end = _with_shared_expert(sums[0], states, start, order)
    launches = sum(map(launches_of, _needed(end, start, order)))
    return LayerLaunches(remarks.argument_name(products[0].operands[1]), launches)


def _hidden_states(x: ir.Value, order: Order) -> tuple[set[ir.Value], int]:
    """The layer's input in all its forms, of which `x` is one, and the place of what makes it.

    That is -1 for an argument.
    """
    found = {x}
    while not isinstance(x, ir.BlockArgument):
        maker = x.owner.operation
        found.update(maker.results)
        if maker.name not in _FORMS:
            return found, order.get(maker, -1)
        x = maker.operands[0]
    return found | {x}, -1


def _with_shared_expert(
    end: ir.Operation, states: set[ir.Value], start: int, order: Order
) -> ir.Operation:
    """What adds an MLP of the layer's input to the sum `end` makes; `end` where nothing does."""
    reader, without = end, _needed(end, start, order)
    while len(reader.results) == 1 and len(users := readers(reader.results[0])) == 1:
        (reader,) = users
        if launches_of(reader) != 0:
            more = _needed(reader, start, order) - without - {reader}
            reads_input = any(value in states for op in more for value in op.operands)
            return reader if reads_input else end
    return end


def _needed(end: ir.Operation, start: int, order: Order) -> set[ir.Operation]:
    """The operations whose results `end` depends on, itself too, that stand after `start`."""
    found, waiting = {end}, [end]
    while waiting:
        for value in waiting.pop().operands:
            if isinstance(value, ir.BlockArgument):
                continue
            maker = value.owner.operation
            if order.get(maker, -1) > start and maker not in found:
                found.add(maker)
                waiting.append(maker)
    return found
