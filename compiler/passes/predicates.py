"""What patterns require of a match, by positive names, each with its reason for saying no."""

from qfuse.compiler.pdl import MISMATCH, Refusal, Verdict
from qfuse.compiler.remarks import function_of
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import MAX_EXTRA
from qfuse.dialects.types import shaped

_MADE_ONCE = (
    "qfuse.pack",
    "qfuse.concat",
    "qfuse.append_expert",
    "torch_c.to_builtin_tensor",
)


def is_operator(root: ir.Operation, name: str) -> Verdict:
    """`root`, a `torch.operator`, is the one named: for predicates that stand before all others.

    PDL may ask predicates before it compares an attribute.
    """
    return None if ir.StringAttr(root.attributes["name"]).value == name else MISMATCH


def readers(value: ir.Value) -> list[ir.Operation]:
    """The operations that read `value`, once for each operand that does."""
    return [use.owner.operation for use in value.uses]


def has_one_result(product: ir.Operation) -> Verdict:
    """The product yields one plain tensor."""
    if len(product.results) != 1:
        return Refusal(
            f"the product has {len(product.results)} results",
            "fuse what follows before products are merged",
        )
    if shaped(product.results[0].type).quantized:
        return Refusal(
            "the product's result is quantized", "fuse the epilogue before the quantization"
        )
    return None


def has_one_reader(product: ir.Operation) -> Verdict:
    """Every reader of the product's first result goes away with the fusion."""
    count = len(readers(product.results[0]))
    if count == 1:
        return None
    return Refusal(
        f"the product has {count} readers, and fusing one would compute it again for the others",
        "give the value one reader, or let the others read the fused result",
    )


def run_equally_often(reader: ir.Operation, producer: ir.Operation) -> Verdict:
    """Neither stands in a branch or loop that the other is not in."""
    if reader.block == producer.block:
        return None
    return Refusal(
        f"{producer.name} stands in another block than {reader.name}, which may run more often",
        "compute both in one block",
    )


def has_room_for_operand(product: ir.Operation) -> Verdict:
    """The epilogue can take one more operand."""
    if len(ir.ArrayAttr(product.attributes["maps"])) < MAX_EXTRA:
        return None
    return Refusal(f"the epilogue already has {MAX_EXTRA} extra operands")


def keeps_shape(consumer: ir.Operation, y: ir.Value) -> Verdict:
    """The consumer's result has the shape of `y`, which a product makes."""
    before, after = shaped(y.type), shaped(consumer.results[0].type)
    if before.shape == after.shape:
        return None
    return Refusal(
        f"the result {after} is broadcast up from the product's {before}",
        "reshape the other operand so that it broadcasts to the product",
    )


def is_made_once(weight: ir.Value) -> bool:
    """Whether a weight depends on function arguments only, so joining it costs nothing per call."""
    if isinstance(weight, ir.BlockArgument):
        return function_of(weight) is not None
    owner = weight.owner
    return owner.name in _MADE_ONCE and all(is_made_once(v) for v in owner.operands)


def defined_before(value: ir.Value, op: ir.Operation) -> bool:
    """Whether `value`, which something in the block of `op` reads, is available at `op`, too."""
    if isinstance(value, ir.BlockArgument):
        return True
    owner = value.owner.operation
    return owner.block != op.block or owner.is_before_in_block(op)


def given_scale(quantize: ir.Operation) -> ir.Value | None:
    """The scale that a `qfuse.quantize` is given beforehand, if it is."""
    _, *scale = quantize.operands
    return scale[0] if scale else None


def scale_comes_in_time(quantize: ir.Operation, producer: ir.Operation) -> Verdict:
    """What makes the value that is quantized can read the scale, if one is given."""
    scale = given_scale(quantize)
    if scale is None or defined_before(scale, producer):
        return None
    if scale.owner.name == "qfuse.tensor_scale":
        return Refusal(
            "the scale is that of the whole value, which is known when all of its rows are made",
            "use a static scale, or one for each row or group",
        )
    return Refusal(f"the scale is made after {producer.name}", "pass the scale as a parameter")


def ancestor_in(op: ir.Operation, block: ir.Block) -> ir.Operation | None:
    """What of `block` is `op` or holds it; None where it stands elsewhere."""
    while op.block != block:
        if op.name == "func.func" or op.parent is None:
            return None
        op = op.parent.operation
    return op
