"""Reading the torch dialect: constants, types, and the border to builtin tensors."""

import re
from collections.abc import Callable
from typing import Any

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC

_VTENSOR = re.compile(r"!torch\.vtensor<\[([^\]]*)\],([A-Za-z0-9]+)>")

TO_BUILTIN = "torch_c.to_builtin_tensor"
FROM_BUILTIN = "torch_c.from_builtin_tensor"

VIEWS = ("torch.aten.view", "torch.aten.reshape", "torch.aten._unsafe_view")
"""The same elements in the same order, in another shape; the shape is operand 1."""

F32_CODE = 6
"""torch's ScalarType number of float32 (c10/core/ScalarType.h)."""


class NotConstant(Exception):
    """A torch value is not known at compile time."""


def constant_of(value: ir.Value) -> Any:
    """The Python value of a `torch.constant.*`, a list of them, or None; raises NotConstant."""
    if isinstance(value, ir.BlockArgument):
        raise NotConstant
    op = value.owner.operation
    kind = op.name
    if kind == "torch.constant.none":
        return None
    if kind.startswith("torch.constant."):
        attribute = op.attributes["value"]
        if isinstance(attribute, ir.StringAttr | ir.FloatAttr | ir.BoolAttr | ir.IntegerAttr):
            return attribute.value
    if kind == "torch.prim.ListConstruct":
        return [constant_of(v) for v in op.operands]
    raise NotConstant


def is_known(value: ir.Value) -> bool:
    """Whether `constant_of` has an answer."""
    try:
        constant_of(value)
    except NotConstant:
        return False
    return True


def is_none(value: ir.Value) -> bool:
    """Whether an optional argument is left out."""
    return str(value.type) == "!torch.none"


def is_constant(value: ir.Value, *wanted: Any) -> bool:
    """Whether `value` is a constant equal to one of `wanted`."""
    try:
        return constant_of(value) in wanted
    except NotConstant:
        return False


def made_by(value: ir.Value, name: str) -> ir.Operation | None:
    """The operation that makes `value`, if it is one of that name."""
    if isinstance(value, ir.BlockArgument) or value.owner.operation.name != name:
        return None
    return value.owner.operation


def builtin_type(type_: ir.Type) -> ir.RankedTensorType | None:
    """The builtin tensor of a `!torch.vtensor` with known rank and dtype; integers lose sign."""
    match = _VTENSOR.fullmatch(str(type_))
    if match is None:
        return None
    dims = [d.strip() for d in match[1].split(",") if d.strip()]
    dtype = re.sub(r"^[su]i", "i", match[2])
    return ir.Type.parse(f"tensor<{''.join(d + 'x' for d in dims)}{dtype}>", type_.context)


def torch_type(value: Shaped) -> ir.Type:
    """The `!torch.vtensor` of a plain float tensor."""
    dims = ",".join("?" if d == DYNAMIC else str(d) for d in value.shape)
    return ir.Type.parse(f"!torch.vtensor<[{dims}],{value.dtype}>")


def to_builtin(value: ir.Value) -> ir.Value:
    """`value` as a builtin tensor, looking through the cast it may come from."""
    if not isinstance(value, ir.BlockArgument) and value.owner.operation.name == FROM_BUILTIN:
        return value.owner.operation.operands[0]
    return ir.Operation.create(
        TO_BUILTIN, results=[builtin_type(value.type)], operands=[value]
    ).result


def from_builtin(value: ir.Value, type_: ir.Type) -> ir.Value:
    """`value` as the torch tensor type `type_`."""
    return ir.Operation.create(FROM_BUILTIN, results=[type_], operands=[value]).result


def create_constant(kind: str, value: Any) -> ir.Value:
    """A `torch.constant.<kind>` at the insertion point."""
    attributes = {
        "int": lambda: ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value),
        "bool": lambda: ir.IntegerAttr.get(ir.IntegerType.get_signless(1), int(value)),
    }
    if kind == "none":
        return ir.Operation.create(
            "torch.constant.none", results=[ir.Type.parse("!torch.none")]
        ).result
    return ir.Operation.create(
        f"torch.constant.{kind}",
        results=[ir.Type.parse(f"!torch.{kind}")],
        attributes={"value": attributes[kind]()},
    ).result


def _as_to_dtype(op: ir.Operation) -> None:
    """`op`, a cast whose second operand is the dtype, as `torch.aten.to.dtype`."""
    with ir.InsertionPoint(op), op.location:
        no = create_constant("bool", False)
        none = create_constant("none", None)
        cast = ir.Operation.create(
            "torch.aten.to.dtype",
            results=[op.results[0].type],
            operands=[op.operands[0], op.operands[1], no, no, none],
        )
    op.results[0].replace_all_uses_with(cast.results[0])
    op.erase()


def _to_copy_as_to_dtype(op: ir.Operation) -> None:
    """`aten._to_copy` that only changes the dtype; one that moves or relays stays."""
    _, dtype, layout, device, pin, _, _ = op.operands
    if not is_constant(dtype, None) and all(is_constant(v, None) for v in (layout, device, pin)):
        _as_to_dtype(op)


CASTS: dict[str, Callable[[ir.Operation], None]] = {
    "torch.aten._to_copy": _to_copy_as_to_dtype,
    "torch.prims.convert_element_type": _as_to_dtype,
}
"""Casts that tracers write in other ways than `aten.to.dtype`, and how to rewrite them."""

ASSERTIONS = ("torch.aten._assert_tensor_metadata",)


def find_operations(
    module: ir.Operation, wanted: Callable[[ir.Operation], bool]
) -> list[ir.Operation]:
    """The operations of a module, nested ones too, that `wanted` says yes to, in order."""
    found: list[ir.Operation] = []

    def collect(op: ir.Operation) -> ir.WalkResult:
        if wanted(op):
            found.append(op)
        return ir.WalkResult.ADVANCE

    module.walk(collect)
    return found


def drop_dead(module: ir.Operation) -> None:
    """Erase torch operations on value tensors that nothing reads.

    The torch dialect does not mark them free of side effects, so upstream's passes keep them.
    """
    dead = find_operations(module, _is_erasable)
    for op in reversed(dead):  # readers come after what they read
        if not any(True for result in op.results for _ in result.uses):
            op.erase()


_VALUE_OPS = ("torch.aten.", "torch.prims.", "torch.prim.", "torch.constant.", "torch_c.")


def _is_erasable(op: ir.Operation) -> bool:
    return op.name.startswith(_VALUE_OPS) and len(op.results) > 0 and not _is_in_place(op.name)


def _is_in_place(name: str) -> bool:
    """In-place operations end in an underscore; importers functionalize, but a file may not."""
    base = name.split(".")[2] if name.count(".") > 1 else ""
    return base.endswith("_") and not base.endswith("__")


def may_write(op: ir.Operation) -> bool:
    """Whether `op` may change memory that a torch tensor, or what was made of it, lies in."""
    name = op.name
    if name == "torch.operator":
        name = ir.StringAttr(op.attributes["name"]).value
    return name in _WRITERS or (name.startswith("torch.") and _is_in_place(name))


_WRITERS = ("torch.overwrite.tensor.contents", "func.call", "memref.store", "memref.copy")
