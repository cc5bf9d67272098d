"""What the verifiers share: how to say no, and arithmetic on shapes."""

from collections.abc import Sequence

from qfuse.dialects.bindings import ir

DYNAMIC = ir.ShapedType.get_dynamic_size()

FLOATS = ("f32", "f16", "bf16")
"""Element types of an unquantized activation, weight or result."""


class IllegalType(TypeError):
    """A type that no operation of ours takes; the text says what is wrong with it."""


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return ceil_div(a, b) * b


def shape_text(shape: Sequence[int]) -> str:
    return "[" + ", ".join("?" if d == DYNAMIC else str(d) for d in shape) + "]"


def dims_agree(a: int, b: int) -> bool:
    """Whether two extents can be equal at run time; a dynamic one agrees with any."""
    return a == b or DYNAMIC in (a, b)


def shapes_agree(a: Sequence[int], b: Sequence[int]) -> bool:
    return len(a) == len(b) and all(map(dims_agree, a, b))


def segments(op: ir.Operation | ir.OpView, kind: str) -> list[bool]:
    """Which optional operands or results are there; `kind` is "operand" or "result".

    IRDL gives every member of a variadic group one type, so operations whose operands or results
    differ in type have one optional field for each, and MLIR's own segment attributes say which
    are present.
    """
    return [bool(n) for n in op.operation.attributes[f"{kind}SegmentSizes"]]


def unknown_attribute(op: ir.Operation, known: Sequence[str]) -> str | None:
    """Why an attribute of `op` is none of `known`, those of other dialects and MLIR's own apart."""
    for name in op.attributes:
        foreign = "." in name or name.endswith("SegmentSizes")
        if name not in known and not foreign:
            return f"attribute {name} is not one of {', '.join(known)}"
    return None
