"""Patterns of `qfuse-fuse-epilogue`: reshapes and transposes between a product and its reader.

A reshape changes no element, so an element-wise operation may as well be applied before it:

    %y = "qfuse.matmul"(%x, %w)                         %y = "qfuse.matmul"(%x, %w)
    %v = torch.aten.view %y, [..]              ->       %z = "qfuse.add"(%y, %bias)
    %z = "qfuse.add"(%v, %bias)                         %v = torch.aten.view %z, [..]

So it may before a transpose, if it reads nothing else: another operand would have to be moved as
the elements are, and stays behind the transpose with its operation, with a remark.
"""

from collections.abc import Callable, Sequence

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import scalar_constant
from qfuse.compiler.passes.epilogue_stages import is_product
from qfuse.compiler.passes.predicates import keeps_shape, readers
from qfuse.compiler.pdl import MISMATCH, Pattern, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    FROM_BUILTIN,
    TO_BUILTIN,
    VIEWS,
    builtin_type,
    create_constant,
    from_builtin,
    to_builtin,
    torch_type,
)
from qfuse.dialects.arithmetic import ELEMENTWISE
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import map_of
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import DYNAMIC

_TRANSPOSES = ("torch.aten.transpose.int", "torch.aten.permute", "torch.aten.t")


def _pattern(name: str, side: int) -> Callable[[Pattern], None]:
    """`name` of `v`, operand `side`, and perhaps of another value"""

    def apply_before_view(rewriter, reader: ir.Operation, v: ir.Value, *other: ir.Value) -> None:
        remarks.fired("epilogue-view", reader)
        view = _maker(v)
        assert view is not None
        source = _as_builtin(view.operands[0])
        dtype = shaped(reader.results[0].type).dtype
        inner = Shaped(shaped(source.type).shape, dtype)
        others = [_reshaped(o, v, source) for o in other]
        operation = ir.Operation.create(
            reader.name,
            results=[inner.type()],
            operands=[*others[:side], source, *others[side:]],
            attributes={key: reader.attributes[key] for key in reader.attributes},
        )
        outer = torch_type(Shaped(shaped(v.type).shape, dtype))
        moved = ir.Operation.create(
            view.name,
            results=[outer],
            operands=[
                from_builtin(operation.result, torch_type(inner)),
                *list(view.operands)[1:],
            ],
        )
        rewriter.replace_op(reader, [to_builtin(moved.result)])
        for value in dict.fromkeys((v, *other)):
            _erase_unread(rewriter, value)

    def pattern(p: Pattern) -> None:
        v = p.value()
        other = [p.value() for _ in range(ELEMENTWISE[name].operands - 1)]
        reader = p.op(f"qfuse.{name}", *other[:side], v, *other[side:])
        for predicate in (reads_a_view_of_a_product, view_has_its_shape, operand_can_follow):
            p.require(predicate, reader, v, *other)
        p.rewrite(reader, apply_before_view, v, *other)

    pattern.__name__ = "epilogue_view"
    return pattern


def reads_a_view_of_a_product(_reader: ir.Operation, v: ir.Value, *other: ir.Value) -> Verdict:
    view = _maker(v)
    if view is None or view.name not in (*VIEWS, *_TRANSPOSES):
        return MISMATCH
    source = v
    while (maker := _maker(source)) is not None and maker.name in (*VIEWS, *_TRANSPOSES):
        source = maker.operands[0]
        if maker.name in _TRANSPOSES:
            view = maker
    if not is_product(_uncast(source)):
        return MISMATCH
    if view.name in _TRANSPOSES and any(scalar_constant(value) is None for value in other):
        return Refusal(
            f"{view.name} stands between the product and its reader, and moves elements, but not "
            "those of the other operand",
            "apply the operation before it",
        )
    return None


def view_has_its_shape(reader: ir.Operation, v: ir.Value, *_: ir.Value) -> Verdict:
    return keeps_shape(reader, v)


def operand_can_follow(_reader: ir.Operation, v: ir.Value, *other: ir.Value) -> Verdict:
    """What is read beside the view can be had in the shape before it."""
    after = shaped(v.type)
    before = _before(v)
    for value in other:
        kind = map_of(shaped(value.type), after.rows, after.shape[-1])
        if kind == "[]" or scalar_constant(value) is not None:
            continue
        if kind is None:
            return Refusal(f"operand {shaped(value.type)} does not broadcast to {after}")
        if before.shape[-1] != after.shape[-1] or DYNAMIC in before.shape[-1:]:
            return Refusal(
                f"the reshape from {before} to {after} splits or joins columns, and the operation "
                f"reads {shaped(value.type)} beside it",
                "apply the operation before the reshape",
            )
        if kind != "[N]" and before.shape.count(DYNAMIC) > 1:
            return Refusal(
                f"operand {shaped(value.type)} would have to be reshaped to {before}, which has "
                "several dynamic extents",
                "apply the operation before the reshape",
            )
    return None


def _reshaped(other: ir.Value, v: ir.Value, source: ir.Value) -> ir.Value:
    """What is read beside the view `v` of `source`, to be read beside `source`."""
    after, before, own = shaped(v.type), shaped(source.type), shaped(other.type)
    wanted = own
    if (map_of(own, after.rows, after.shape[-1]) or "").startswith("[M"):
        wanted = Shaped((*before.rows, own.shape[-1]), own.dtype)
    elif len(own.shape) > len(before.shape):  # it would broadcast to its rank
        wanted = Shaped(own.shape[-1:], own.dtype)
    if wanted == own:
        return other
    view = _maker(other)
    if view is not None and view.name in VIEWS:
        inner = _uncast(view.operands[0])
        if inner.type == wanted.type():
            return inner
    extents = [create_constant("int", -1 if d == DYNAMIC else d) for d in wanted.shape]
    shape = ir.Operation.create(
        "torch.prim.ListConstruct",
        results=[ir.Type.parse("!torch.list<int>")],
        operands=extents,
    ).result
    reshape = ir.Operation.create(
        "torch.aten.reshape",
        results=[torch_type(wanted)],
        operands=[from_builtin(other, torch_type(own)), shape],
    )
    return to_builtin(reshape.result)


def _before(v: ir.Value) -> Shaped:
    """The type of what `v` is a view of."""
    view = _maker(v)
    assert view is not None
    type_ = _uncast(view.operands[0]).type
    return shaped(type_ if isinstance(type_, ir.RankedTensorType) else builtin_type(type_))


def _maker(value: ir.Value) -> ir.Operation | None:
    """The operation that makes a value, be it cast to a builtin or a torch tensor."""
    value = _uncast(value)
    return None if isinstance(value, ir.BlockArgument) else value.owner.operation


def _uncast(value: ir.Value) -> ir.Value:
    while not isinstance(value, ir.BlockArgument):
        op = value.owner.operation
        if op.name not in (TO_BUILTIN, FROM_BUILTIN):
            return value
        value = op.operands[0]
    return value


def _as_builtin(value: ir.Value) -> ir.Value:
    value = _uncast(value)
    return value if isinstance(value.type, ir.RankedTensorType) else to_builtin(value)


def _erase_unread(rewriter, value: ir.Value) -> None:
    """Erase the views and casts that make `value`, as far as nothing reads them.

    Else what they are made of would have a reader too many.
    """
    while not isinstance(value, ir.BlockArgument):
        op = value.owner.operation
        passes_on = op.name in (TO_BUILTIN, FROM_BUILTIN, *VIEWS, *_TRANSPOSES)
        if not passes_on or readers(op.results[0]):
            return
        value = op.operands[0]
        rewriter.erase_op(op)


def _patterns() -> Sequence[Callable[[Pattern], None]]:
    return [
        _pattern(name, side)
        for name, entry in ELEMENTWISE.items()
        for side in range(entry.operands)
    ]


VIEW_PATTERNS = _patterns()
