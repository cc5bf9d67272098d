"""The `qfuse` dialect object, and the base of its operations."""

# Field annotations of dialect classes are read while the class is made, so no file under
# `dialects/` may import `annotations` from `__future__`: every field would become an attribute.

from collections.abc import Sequence
from typing import Any

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.verify import IllegalType


class QFuse(ext.Dialect, name="qfuse"):
    """Owner of every `qfuse.*` operation, type and attribute."""


class Op(QFuse.Operation):
    """A `qfuse` operation: its fields say what it consists of, `violation` says the rest."""

    def violation(self) -> str | None:
        """Why this operation, whose fields are all there, is not legal, or None."""
        return None

    def verify_invariants(self) -> bool:
        # IRDL checks the fields, too, but only after this.
        try:
            with self.location:  # some verifiers make types to compare with, which takes one
                why = _fields_error(self) or self.violation()
        except IllegalType as error:
            why = str(error)
        if why is not None:
            self.location.emit_error(f"'{self.operation.name}' op {why}")
        return why is None


def _fields_error(op: Op) -> str | None:
    """Why the operation has not the attributes, operands, results and regions of its class."""
    operation, by_kind = op.operation, ext.partition_fields(op._fields)
    operands, attributes, results, regions = by_kind
    for field in attributes:
        if field.name not in operation.attributes:
            return f"needs the attribute {field.name}"
        attribute, wanted = operation.attributes[field.name], field.constraint
        if wanted is not Any and not isinstance(attribute, wanted):
            return f"attribute {field.name} is {attribute}; expected a {wanted.__name__}"
    if len(operation.regions) != len(regions):
        return f"has {len(operation.regions)} regions; expected {len(regions)}"
    return _count_error(operation, "operand", operands, len(operation.operands)) or _count_error(
        operation, "result", results, len(operation.results)
    )


def _count_error(
    op: ir.Operation, kind: str, fields: Sequence[ext.FieldDef], count: int
) -> str | None:
    """Why `count` operands or results are not those that the segment attribute tells apart."""
    kinds = [f.variadicity for f in fields]
    if ext.Variadicity.variadic in kinds:
        return None
    optional = kinds.count(ext.Variadicity.optional)
    name = f"{kind}SegmentSizes"
    if optional < 2 and not 0 <= len(fields) - count <= optional:
        wanted = f"{len(fields)}" if optional == 0 else f"{len(fields) - 1} or {len(fields)}"
        return f"has {count} {kind}s, not {wanted}"
    if name not in op.attributes:  # with one optional field, the count tells whether it is there
        return None if optional < 2 else f"needs the attribute {name}"
    sizes = op.attributes[name]
    legal = (
        isinstance(sizes, ir.DenseI32ArrayAttr)
        and len(sizes) == len(fields)
        and sum(sizes) == count
        and all(
            n == 1 or (n == 0 and k == ext.Variadicity.optional)
            for n, k in zip(sizes, kinds, strict=True)
        )
    )
    if legal:
        return None
    names = ", ".join(f.name for f in fields)
    return f"{name} is {sizes}; expected 0 or 1, as i32, for each of {names}, {count} in all"
