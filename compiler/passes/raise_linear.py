"""Patterns of `qfuse-raise-torch` for quantized linear layers."""

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import build_yield
from qfuse.compiler.passes.expand_quantize import INPUT_SCHEME
from qfuse.compiler.pdl import MISMATCH, Pattern, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    NotConstant,
    builtin_type,
    constant_of,
    from_builtin,
    to_builtin,
)
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import AddOp
from qfuse.dialects.matmul_op import build_matmul
from qfuse.dialects.quantization_ops import PackOp
from qfuse.dialects.types import Scheme, Shaped, is_float, scheme_error, shaped


def quantized_linear(p: Pattern) -> None:
    x, weight, scale, bias, weight_block, input_block = (p.value() for _ in range(6))
    root = p.op("torch.operator", x, weight, scale, bias, weight_block, input_block)
    p.require(is_quantized_linear, root)
    p.require(is_typed_product, root, x, weight, scale)
    p.require(blocks_are_constant, root, weight_block, input_block)
    p.require(weight_is_legal, root, weight, scale, weight_block)
    p.require(input_has_same_groups, root, weight_block, input_block)
    p.rewrite(root, make_product, x, weight, scale, bias, weight_block, input_block)


def plain_linear(p: Pattern) -> None:
    """Matches a linear layer that is not quantized, to say that it stays on torch."""
    root = p.op("torch.aten.linear", p.values())
    p.require(weight_is_quantized, root)
    p.rewrite(root, _never)


plain_linear.__name__ = "quantized_linear"  # it reports as the pattern that it speaks for


def weight_is_quantized(root: ir.Operation) -> Verdict:
    weight = builtin_type(root.operands[1].type)
    kind = "of unknown type" if weight is None else str(weight.element_type)
    return Refusal(
        f"the weight is {kind}, not quantized, so the product runs on torch",
        "quantize the layer, for example with quantize_linears",
    )


def is_quantized_linear(root: ir.Operation) -> Verdict:
    # A predicate, because PDL may ask the others before it compares an attribute.
    name = ir.StringAttr(root.attributes["name"]).value
    return None if name == "torch.qfuse.quantized_linear" else MISMATCH


def is_typed_product(
    _root: ir.Operation, x: ir.Value, weight: ir.Value, scale: ir.Value
) -> Verdict:
    types = [builtin_type(v.type) for v in (x, weight, scale)]
    if None in types:
        return MISMATCH
    x_type, w_type, _ = (shaped(t) for t in types)
    is_static = len(w_type.shape) == 2 and min(w_type.shape) > 0 and len(x_type.shape) > 1
    if not is_float(x_type) or not is_static or x_type.shape[-1] != w_type.shape[1]:
        return Refusal(
            f"x is {x_type} and weight {w_type}",
            "use float x [.., M, K] and a static weight [N, K]",
        )
    return None


def blocks_are_constant(_root: ir.Operation, *blocks: ir.Value) -> Verdict:
    try:
        for block in blocks:
            constant_of(block)
    except NotConstant:
        return Refusal("the block shape is not a constant")
    return None


def weight_is_legal(
    _root: ir.Operation, weight: ir.Value, scale: ir.Value, weight_block: ir.Value
) -> Verdict:
    packed, scales = weight_type(weight, scale, weight_block), shaped(builtin_type(scale.type))
    if why := scheme_error(packed):
        return Refusal(why)
    if scales.shape != packed.scale_shape:
        return Refusal(f"the scales are {scales}, which does not fit {packed}")
    return None


def input_has_same_groups(
    _root: ir.Operation, weight_block: ir.Value, input_block: ir.Value
) -> Verdict:
    """x is quantized per row in groups of the weight's block, or not at all."""
    block, wanted = constant_of(input_block), [1, constant_of(weight_block)[1]]
    if block in ([], wanted):
        return None
    return Refusal(f"x is to be scaled in blocks of {block}", f"use {wanted}, as the weight is")


def make_product(
    rewriter,
    root: ir.Operation,
    x: ir.Value,
    weight: ir.Value,
    scale: ir.Value,
    bias: ir.Value,
    weight_block: ir.Value,
    input_block: ir.Value,
) -> None:
    w_type = weight_type(weight, scale, weight_block)
    packed = pack_weight(weight, scale, w_type)
    value = to_builtin(x)
    x_type = shaped(value.type)
    y_type = Shaped((*x_type.rows, w_type.shape[0]), x_type.dtype).type()
    product, block = build_matmul(value, packed, [y_type])
    with ir.InsertionPoint(block):
        build_yield(list(block.arguments))
    if group := constant_of(input_block):
        product.attributes[INPUT_SCHEME] = ir.Attribute.parse(str(Scheme(tuple(group), "f32")))
    y = product.results[0]
    if not str(bias.type).startswith("!torch.none"):
        y = ir.Operation.create(
            AddOp.OPERATION_NAME, results=[y_type], operands=[y, to_builtin(bias)]
        ).result
    remarks.fired("quantized-linear", root, remarks.argument_name(weight))
    rewriter.replace_op(root, [from_builtin(y, root.results[0].type)])


def weight_type(weight: ir.Value, scale: ir.Value, block: ir.Value) -> Shaped:
    """The type of a weight of torch codes and scales, with a constant block."""
    codes, scales = (shaped(builtin_type(v.type)) for v in (weight, scale))
    return Shaped(codes.shape, codes.dtype, Scheme(tuple(constant_of(block)), scales.dtype))


def pack_weight(weight: ir.Value, scale: ir.Value, type_: Shaped) -> ir.Value:
    """The quantized weight; made at the top of the function where its components allow it."""
    if isinstance(weight, ir.BlockArgument) and isinstance(scale, ir.BlockArgument):
        with ir.InsertionPoint.at_block_begin(weight.owner):
            return _pack_here(weight, scale, type_)
    return _pack_here(weight, scale, type_)


def _pack_here(weight: ir.Value, scale: ir.Value, type_: Shaped) -> ir.Value:
    return ir.Operation.create(
        PackOp.OPERATION_NAME,
        results=[type_.type()],
        operands=[to_builtin(weight), to_builtin(scale)],
    ).result


def _never(*_: object) -> None:
    raise AssertionError("plain_linear only explains")


LINEAR = (quantized_linear, plain_linear)
