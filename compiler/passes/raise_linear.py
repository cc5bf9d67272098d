"""Patterns of `qfuse-raise-torch` for linear layers, quantized ones and plain ones."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import build_yield
from qfuse.compiler.passes.expand_quantize import INPUT_SCHEME, stored_beside
from qfuse.compiler.passes.predicates import readers
from qfuse.compiler.pdl import MISMATCH, Pattern, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    TO_BUILTIN,
    NotConstant,
    builtin_type,
    constant_of,
    from_builtin,
    is_none,
    to_builtin,
)
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import AddOp
from qfuse.dialects.matmul_op import build_matmul, groups_nest
from qfuse.dialects.quantization_ops import (
    PackOp,
    QuantizeOp,
    TensorScaleOp,
    components_error,
)
from qfuse.dialects.types import STORAGE_BITS, Scheme, Shaped, is_float, shaped

STORED = {"none": None, "int4": "i4", "fp4": "f4E2M1FN", "q4_k": "i4", "q6_k": "i6"}
"""Element type of a weight by the operator's `packing`; None for that of its codes."""

INPUTS: dict[str, tuple[str, ...] | None] = {
    "dynamic": ("f32",),
    "e8m0": ("f8E8M0FNU",),
    "q8_1": ("f16", "q8_1"),
    "tensor": None,
    "static": None,
}
"""Scale type and packing of x by the operator's `input_format`; None for one scale in all."""


def quantized_linear(p: Pattern) -> None:
    x, weight, scale, bias = (p.value() for _ in range(4))
    weight_block, input_block, packing, input_format = (p.value() for _ in range(4))
    zero, input_scale = p.value(), p.value()
    constants = (weight_block, input_block, packing, input_format)
    root = p.op("torch.operator", x, weight, scale, bias, *constants, zero, input_scale)
    p.require(is_quantized_linear, root)
    p.require(formats_are_constant, root, *constants)
    p.require(is_typed_product, root, x, weight, scale, packing)
    p.require(weight_is_legal, root, weight, scale, weight_block, packing, zero)
    p.require(input_can_be_quantized, root, x, input_block, input_format, input_scale)
    p.require(groups_nest_in_k, root, weight, scale, weight_block, input_block, packing)
    p.rewrite(root, make_product, x, weight, scale, bias, *constants, zero, input_scale)


def _plain_product(packs: bool) -> Callable[[Pattern], None]:
    """A linear layer that is not quantized, for kernels that have weights packed, or as they are"""

    def plain_product(p: Pattern) -> None:
        x, weight, bias = p.value(), p.value(), p.value()
        root = p.op("torch.aten.linear", x, weight, bias)
        p.require(weight_is_a_parameter, root, weight)
        p.require(types_are_equal, root, x, weight, bias)
        if packs:
            p.require(products_alone_read_it, root, weight)
        p.rewrite(root, make_plain_product, x, weight, bias)

    return plain_product


def weight_is_a_parameter(_root: ir.Operation, weight: ir.Value) -> Verdict:
    return parameter_error([weight])


def parameter_error(weights: Sequence[ir.Value]) -> Verdict:
    """Why plain weights are not the same in each call, or None."""
    for weight in weights:
        if not isinstance(weight, ir.BlockArgument) or remarks.argument_kind(weight) == "input":
            return Refusal(
                "the weight is computed at run time, or given with each call, so the product runs "
                "on torch",
                "pass the weight as a parameter",
            )
    return None


def types_are_equal(root: ir.Operation, x: ir.Value, weight: ir.Value, bias: ir.Value) -> Verdict:
    """All are of one float type."""
    values = [x, weight, *([] if is_none(bias) else [bias]), root.results[0]]
    types = [builtin_type(v.type) for v in values]
    if None in types:
        return MISMATCH
    x_type, w_type, *_ = shapes = [shaped(t) for t in types]
    if not is_float(x_type) or any(s.dtype != x_type.dtype for s in shapes):
        return Refusal(
            f"x is {x_type} and the weight {w_type}, so the product runs on torch",
            "use one of f16, bf16 and f32 for both and the bias",
        )
    is_static = len(w_type.shape) == 2 and min(w_type.shape) > 0 and len(x_type.shape) > 1
    if not is_static or x_type.shape[-1] != w_type.shape[1]:
        return Refusal(
            f"x is {x_type} and the weight {w_type}, so the product runs on torch",
            "use x [.., M, K] and a static weight [N, K]",
        )
    return None


_PRODUCTS = ("torch.aten.linear", "qfuse.matmul", "qfuse.concat")
"""What reads a weight in the layout of the kernels."""


def products_alone_read_it(_root: ir.Operation, weight: ir.Value) -> Verdict:
    """Nothing reads the weight as it is, such as the embedding a model's head is tied to.

    That would keep a table, the largest of many models, twice.
    """
    read = [op for op in readers(weight) if op.name != TO_BUILTIN]
    read += [r for op in readers(weight) if op.name == TO_BUILTIN for r in readers(op.results[0])]
    others = [op.name for op in read if op.name not in _PRODUCTS]
    if not others:
        return None
    return Refusal(
        f"{others[0]} reads the rows of the weight, too, which packed for a kernel would be kept "
        "twice, so the product runs on torch",
        "give the product a weight of its own",
    )


def make_plain_product(
    rewriter, root: ir.Operation, x: ir.Value, weight: ir.Value, bias: ir.Value
) -> None:
    """As torch computes it: a bias is added to the sum before that is rounded."""
    y_type = shaped(builtin_type(root.results[0].type))
    sum_type = y_type if is_none(bias) else replace(y_type, dtype="f32")
    product, block = build_matmul(to_builtin(x), at_the_top(weight), [sum_type.type()])
    with ir.InsertionPoint(block):
        build_yield(list(block.arguments))
    y = product.results[0]
    if not is_none(bias):
        y = ir.Operation.create(
            AddOp.OPERATION_NAME, results=[y_type.type()], operands=[y, at_the_top(bias)]
        ).result
    remarks.fired("plain-product", root, remarks.argument_name(weight))
    rewriter.replace_op(root, [from_builtin(y, root.results[0].type)])


def at_the_top(value: ir.Value) -> ir.Value:
    """An argument as a builtin tensor at the top of the function, where all products see it."""
    if not isinstance(value, ir.BlockArgument):
        return to_builtin(value)
    with ir.InsertionPoint.at_block_begin(value.owner):
        return to_builtin(value)


def is_quantized_linear(root: ir.Operation) -> Verdict:
    # A predicate, because PDL may ask the others before it compares an attribute.
    name = ir.StringAttr(root.attributes["name"]).value
    return None if name == "torch.qfuse.quantized_linear" else MISMATCH


def formats_are_constant(_root: ir.Operation, *formats: ir.Value) -> Verdict:
    try:
        *blocks, packing, input_format = (constant_of(value) for value in formats)
    except NotConstant:
        return Refusal("the block shape or the format is not a constant")
    for name, legal in ((packing, STORED), (input_format, INPUTS)):
        if name not in legal:
            return Refusal(f'"{name}" is not one of {", ".join(legal)}')
    return None if all(len(b) in (0, 2) for b in blocks) else Refusal(f"blocks are {blocks}")


def is_typed_product(
    _root: ir.Operation, x: ir.Value, weight: ir.Value, scale: ir.Value, packing: ir.Value
) -> Verdict:
    types = [builtin_type(v.type) for v in (x, weight, scale)]
    if None in types:
        return MISMATCH
    x_type, w_type, _ = (shaped(t) for t in types)
    is_static = len(w_type.shape) == 2 and min(w_type.shape) > 0 and len(x_type.shape) > 1
    if not is_float(x_type) or not is_static or x_type.shape[-1] != _logical(w_type, packing)[1]:
        return Refusal(
            f"x is {x_type} and weight {w_type}",
            "use float x [.., M, K] and a static weight [N, K]",
        )
    return None


def weight_is_legal(
    _root: ir.Operation,
    weight: ir.Value,
    scale: ir.Value,
    weight_block: ir.Value,
    packing: ir.Value,
    zero: ir.Value,
) -> Verdict:
    packed = weight_type(weight, scale, weight_block, packing, zero)
    components = [shaped(builtin_type(v.type)) for v in (weight, scale, zero) if not is_none(v)]
    why = components_error(components, packed)
    return None if why is None else Refusal(why)


def input_can_be_quantized(
    _root: ir.Operation,
    x: ir.Value,
    input_block: ir.Value,
    input_format: ir.Value,
    input_scale: ir.Value,
) -> Verdict:
    block, kind = constant_of(input_block), constant_of(input_format)
    if not block:
        return None
    whole = [1, shaped(builtin_type(x.type)).shape[-1]]
    if block[0] != 1 or (INPUTS[kind] is None and block != whole):
        wanted = whole if INPUTS[kind] is None else [1, "group"]
        return Refusal(f"x is to be scaled in blocks of {block}", f"use {wanted}")
    if kind != "static":
        return None
    type_ = None if is_none(input_scale) else builtin_type(input_scale.type)
    if type_ is None or shaped(type_) != Shaped((1,), "f32"):
        return Refusal(f"the scale of x is {input_scale.type}", "give a tensor<1xf32>")
    return None


def groups_nest_in_k(
    _root: ir.Operation,
    weight: ir.Value,
    scale: ir.Value,
    weight_block: ir.Value,
    input_block: ir.Value,
    packing: ir.Value,
) -> Verdict:
    """The columns that share a scale of x are some of those that share one of w, or the reverse."""
    block, w = constant_of(input_block), weight_type(weight, scale, weight_block, packing)
    assert w.scheme is not None
    if not block or groups_nest(block[1], w.scheme.group, w.shape[1]):
        return None
    return Refusal(
        f"x is to be scaled in blocks of {block}, the weight in groups of {w.scheme.group}",
        "one must divide the other",
    )


def make_product(
    rewriter,
    root: ir.Operation,
    x: ir.Value,
    weight: ir.Value,
    scale: ir.Value,
    bias: ir.Value,
    weight_block: ir.Value,
    input_block: ir.Value,
    packing: ir.Value,
    input_format: ir.Value,
    zero: ir.Value,
    input_scale: ir.Value,
) -> None:
    w_type = weight_type(weight, scale, weight_block, packing, zero)
    packed = pack_weight(weight, scale, w_type, zero)
    value = to_builtin(x)
    x_type = shaped(value.type)
    group, scales = constant_of(input_block), INPUTS[constant_of(input_format)]
    if group and scales is None:
        given = None if constant_of(input_format) == "tensor" else input_scale
        value = _quantize_whole(value, replace(x_type, dtype=stored_beside(w_type)), given)
    y_type = Shaped((*x_type.rows, w_type.shape[0]), x_type.dtype).type()
    product, block = build_matmul(value, packed, [y_type])
    with ir.InsertionPoint(block):
        build_yield(list(block.arguments))
    if group and scales is not None:
        product.attributes[INPUT_SCHEME] = ir.Attribute.parse(str(Scheme(tuple(group), *scales)))
    y = product.results[0]
    if not is_none(bias):
        y = ir.Operation.create(
            AddOp.OPERATION_NAME, results=[y_type], operands=[y, at_the_top(bias)]
        ).result
    remarks.fired("quantized-linear", root, remarks.argument_name(weight))
    rewriter.replace_op(root, [from_builtin(y, root.results[0].type)])


def _quantize_whole(x: ir.Value, stored: Shaped, scale: ir.Value | None) -> ir.Value:
    """x with one scale: the one given, or its own."""
    if scale is None:
        given = ir.Operation.create(
            TensorScaleOp.OPERATION_NAME,
            results=[Shaped((1,), "f32").type()],
            operands=[x],
            attributes={"storage": ir.TypeAttr.get(ir.Type.parse(stored.dtype))},
        ).result
    else:
        given = at_the_top(scale)
    quantized = replace(stored, scheme=Scheme((1, stored.shape[-1]), "f32"))
    return ir.Operation.create(
        QuantizeOp.OPERATION_NAME, results=[quantized.type()], operands=[x, given]
    ).result


def weight_type(
    weight: ir.Value,
    scale: ir.Value,
    block: ir.Value,
    packing: ir.Value | None = None,
    zero: ir.Value | None = None,
) -> Shaped:
    """The type of a weight of torch codes and scales, with a constant block and packing."""
    codes, scales = (shaped(builtin_type(v.type)) for v in (weight, scale))
    name = "none" if packing is None else constant_of(packing)
    zeros = "none" if zero is None or is_none(zero) else "int"
    scheme = Scheme(tuple(constant_of(block)), scales.dtype, name, zeros)
    return Shaped(_logical(codes, packing), STORED[name] or codes.dtype, scheme)


def _logical(codes: Shaped, packing: ir.Value | None) -> tuple[int, ...]:
    """The shape of a weight whose stored elements are `codes`."""
    stored = STORED["none" if packing is None else constant_of(packing)]
    bits = STORAGE_BITS[stored] if stored else 8
    return (*codes.shape[:-1], codes.shape[-1] * 8 // bits)


def pack_weight(
    weight: ir.Value, scale: ir.Value, type_: Shaped, zero: ir.Value | None = None
) -> ir.Value:
    """The quantized weight; made at the top of the function where its components allow it."""
    components = [v for v in (weight, scale, zero) if v is not None and not is_none(v)]
    if all(isinstance(v, ir.BlockArgument) for v in components):
        with ir.InsertionPoint.at_block_begin(weight.owner):
            return _pack_here(components, type_)
    return _pack_here(components, type_)


def _pack_here(components: Sequence[ir.Value], type_: Shaped) -> ir.Value:
    return ir.Operation.create(
        PackOp.OPERATION_NAME,
        results=[type_.type()],
        operands=[to_builtin(v) for v in components],
    ).result


LINEAR = (quantized_linear, _plain_product(packs=True))

LINEAR_OF_ROWS = (quantized_linear, _plain_product(packs=False))
"""Where kernels read the rows of plain weights as they are."""
