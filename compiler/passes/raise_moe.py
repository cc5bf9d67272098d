"""Patterns of `qfuse-raise-torch` for experts, quantized and not."""

from qfuse.compiler import remarks
from qfuse.compiler.passes.expert_layer import Layer, replace_by_layer
from qfuse.compiler.passes.predicates import is_operator
from qfuse.compiler.passes.raise_linear import (
    INPUTS,
    STORED,
    at_the_top,
    pack_weight,
    parameter_error,
    weight_type,
)
from qfuse.compiler.pdl import MISMATCH, Pattern, Refusal, Verdict
from qfuse.compiler.torch_ir import builtin_type, constant_of, is_known, is_none
from qfuse.dialects.bindings import ir
from qfuse.dialects.glu import GLU_ACTS, Glu
from qfuse.dialects.matmul_op import groups_nest
from qfuse.dialects.quantization_ops import components_error, concat_rows
from qfuse.dialects.types import Scheme, Shaped, is_float, scheme_error, shaped
from qfuse.dialects.verify import DYNAMIC


def plain_experts(p: Pattern) -> None:
    x, _, _, gate_up, down = tensors = tuple(p.value() for _ in range(5))
    glu, biases = tuple(p.value() for _ in range(3)), (p.value(), p.value())
    root = p.op("torch.operator", *tensors, *glu, *biases)
    p.require(is_plain_experts, root)
    p.require(arguments_are_constant, root, *glu)
    p.require(is_typed_layer, root, *tensors)
    p.require(weights_are_parameters, root, gate_up, down)
    p.require(plain_weights_are_legal, root, x, gate_up, down)
    p.require(gluis_known, root, *glu)
    p.require(biases_fit, root, x, down, *biases)
    p.rewrite(root, make_plain_layer, *tensors, *glu, *biases)


plain_experts.__name__ = "moe_experts"  # one fusion, by one name


def is_plain_experts(root: ir.Operation) -> Verdict:
    return is_operator(root, "torch.qfuse.dense_experts")


def weights_are_parameters(_root: ir.Operation, *weights: ir.Value) -> Verdict:
    return parameter_error(weights)


def plain_weights_are_legal(
    _root: ir.Operation, x: ir.Value, gate_up: ir.Value, down: ir.Value
) -> Verdict:
    types = [shaped(builtin_type(v.type)) for v in (x, gate_up, down)]
    of_x, wide, narrow = types
    if any(t.dtype != of_x.dtype for t in types):
        return Refusal(f"x is {of_x} and the weights {wide} and {narrow}", "use one type for all")
    static = all(len(t.shape) == 3 and DYNAMIC not in t.shape for t in (wide, narrow))
    if not static or wide.shape != (narrow.shape[0], 2 * narrow.shape[2], narrow.shape[1]):
        return Refusal(
            f"gate_up is {wide} and down {narrow}", "use static weights [E, 2 I, H] and [E, H, I]"
        )
    return None


def make_plain_layer(
    rewriter,
    root: ir.Operation,
    x: ir.Value,
    ids: ir.Value,
    weights: ir.Value,
    gate_up: ir.Value,
    down: ir.Value,
    act: ir.Value,
    limit: ir.Value,
    alpha: ir.Value,
    gate_up_bias: ir.Value,
    down_bias: ir.Value,
) -> None:
    layer = Layer(
        at_the_top(gate_up),
        at_the_top(down),
        _glu_of(act, limit, alpha),
        gate_up_bias,
        down_bias,
    )
    remarks.fired("moe-experts", root, remarks.argument_name(gate_up))
    replace_by_layer(rewriter, root, x, ids, weights, layer)


def moe_experts(p: Pattern) -> None:
    x, ids, weights, gate_up, gate_up_scale, down, down_scale = (p.value() for _ in range(7))
    tensors = (x, ids, weights, gate_up, gate_up_scale, down, down_scale)
    intermediate, weight_block, input_block, *glu = constants = tuple(p.value() for _ in range(6))
    biases = p.value(), p.value()
    packing, input_format = p.value(), p.value()
    zeros = p.value(), p.value()
    of_down = down_block, down_input, down_packing = tuple(p.value() for _ in range(3))
    input_scales = p.value(), p.value()
    last = (*biases, packing, input_format, *zeros, *of_down, *input_scales)
    root = p.op("torch.operator", *tensors, *constants, *last)
    p.require(is_moe_experts, root)
    p.require(arguments_are_constant, root, *constants, packing, input_format, *of_down)
    p.require(formats_are_known, root, packing, input_format, down_packing)
    p.require(static_scales_are_there, root, input_format, *input_scales)
    p.require(is_typed_layer, root, *tensors)
    stored = (*tensors[3:], weight_block, packing, *zeros, down_block, down_packing)
    p.require(weights_are_legal, root, intermediate, *stored)
    p.require(gluis_known, root, *glu)
    p.require(biases_fit_packed, root, tensors[0], down, intermediate, *biases)
    of_inputs = (input_format, input_block, down_input)
    p.require(inputs_have_groups_that_nest, root, *of_inputs, intermediate, *stored)
    p.rewrite(root, make_layer, *tensors, *constants, *last)


def is_moe_experts(root: ir.Operation) -> Verdict:
    return is_operator(root, "torch.qfuse.moe_experts")


def arguments_are_constant(_root: ir.Operation, *constants: ir.Value) -> Verdict:
    if all(map(is_known, constants)):
        return None
    return Refusal("the intermediate size, a format or what the GLU is is not a constant")


def formats_are_known(
    _root: ir.Operation, packing: ir.Value, input_format: ir.Value, down_packing: ir.Value
) -> Verdict:
    names = constant_of(packing), constant_of(down_packing) or constant_of(packing)
    of_inputs = [name for name in INPUTS if name != "tensor"]
    for name, legal in (
        (names[0], STORED),
        (names[1], STORED),
        (constant_of(input_format), of_inputs),
    ):
        if name not in legal:
            return Refusal(f'"{name}" is not one of {", ".join(legal)}')
    return None


def static_scales_are_there(
    _root: ir.Operation, input_format: ir.Value, *scales: ir.Value
) -> Verdict:
    if constant_of(input_format) != "static":
        return None
    for name, scale in zip(("gate_up", "down"), scales, strict=True):
        type_ = None if is_none(scale) else builtin_type(scale.type)
        if type_ is None or shaped(type_) != Shaped((1,), "f32"):
            return Refusal(f"{name}_input_scale is {scale.type}", "give a tensor<1xf32>")
    return None


def is_typed_layer(_root: ir.Operation, *tensors: ir.Value) -> Verdict:
    types = [builtin_type(value.type) for value in tensors]
    if None in types:
        return MISMATCH
    x, ids, weights, *_ = map(shaped, types)
    if not is_float(x) or len(x.shape) != 2 or not is_float(weights):
        return Refusal(f"x is {x} and the weights of tokens {weights}", "use float x [T, H]")
    if len(ids.shape) != 2 or ids.shape[1] == DYNAMIC or weights.shape != ids.shape:
        return Refusal(f"ids are {ids} and weights {weights}", "use [T, k] with k known")
    return None


def weights_are_legal(_root: ir.Operation, intermediate: ir.Value, *stored: ir.Value) -> Verdict:
    types, width = _weight_types(*stored), constant_of(intermediate)
    gate_up, gate_up_scale, down, down_scale, _, _, zero, down_zero, *_ = stored
    components = (gate_up, gate_up_scale, zero), (down, down_scale, down_zero)
    for name, packed, values in zip(("gate_up", "down"), types, components, strict=True):
        if len(packed.shape) != 3 or DYNAMIC in packed.shape:
            return Refusal(f"{name} is {packed}", "use static weights [E, N, K]")
        there = [shaped(builtin_type(v.type)) for v in values if not is_none(v)]
        if why := scheme_error(packed) or components_error(there, packed):
            return Refusal(f"{name}: {why}")
    wide, narrow = types
    rows = concat_rows([width, width], wide)
    if wide.shape[1] != rows or narrow.shape != (wide.shape[0], wide.shape[2], width):
        return Refusal(
            f"gate_up is {wide} and down {narrow}, with {width} intermediate features",
            f"use [E, {rows}, H], each part at a block boundary, and [E, H, {width}]",
        )
    return None


def _weight_types(
    gate_up: ir.Value,
    gate_up_scale: ir.Value,
    down: ir.Value,
    down_scale: ir.Value,
    block: ir.Value,
    packing: ir.Value,
    zero: ir.Value,
    down_zero: ir.Value,
    down_block: ir.Value,
    down_packing: ir.Value,
) -> tuple[Shaped, Shaped]:
    """The types of both weights; what is empty for down is as for gate and up."""
    if not constant_of(down_block):
        down_block = block
    if not constant_of(down_packing):
        down_packing = packing
    return (
        weight_type(gate_up, gate_up_scale, block, packing, zero),
        weight_type(down, down_scale, down_block, down_packing, down_zero),
    )


def gluis_known(_root: ir.Operation, act: ir.Value, limit: ir.Value, alpha: ir.Value) -> Verdict:
    if constant_of(act) not in GLU_ACTS:
        return Refusal(f"the activation is {constant_of(act)}", f"use {', '.join(GLU_ACTS)}")
    why = _glu_of(act, limit, alpha).error()
    return None if why is None else Refusal(why)


def _glu_of(act: ir.Value, limit: ir.Value, alpha: ir.Value) -> Glu:
    numbers = {"limit": constant_of(limit), "alpha": constant_of(alpha)}
    given = {name: number for name, number in numbers.items() if number is not None}
    return Glu(constant_of(act), **given)


def biases_fit(
    _root: ir.Operation,
    x: ir.Value,
    down: ir.Value,
    gate_up_bias: ir.Value,
    down_bias: ir.Value,
) -> Verdict:
    width = shaped(builtin_type(down.type)).shape[-1]
    return _biases_error(x, down, width, gate_up_bias, down_bias)


def biases_fit_packed(
    _root: ir.Operation,
    x: ir.Value,
    down: ir.Value,
    intermediate: ir.Value,
    gate_up_bias: ir.Value,
    down_bias: ir.Value,
) -> Verdict:
    """As `biases_fit`, where an element of `down` may hold several codes."""
    return _biases_error(x, down, constant_of(intermediate), gate_up_bias, down_bias)


def _biases_error(
    x: ir.Value, down: ir.Value, width: int, gate_up_bias: ir.Value, down_bias: ir.Value
) -> Verdict:
    dtype = shaped(builtin_type(x.type)).dtype
    experts, hidden, _ = shaped(builtin_type(down.type)).shape
    wanted = {"gate_up_bias": (gate_up_bias, 2 * width), "down_bias": (down_bias, hidden)}
    for name, (bias, columns) in wanted.items():
        type_ = Shaped((experts, columns), dtype).type()
        if not is_none(bias) and builtin_type(bias.type) != type_:
            return Refusal(f"{name} is {builtin_type(bias.type)}", f"use {type_}")
    return None


def inputs_have_groups_that_nest(
    _root: ir.Operation,
    input_format: ir.Value,
    input_block: ir.Value,
    down_input: ir.Value,
    intermediate: ir.Value,
    *stored: ir.Value,
) -> Verdict:
    """The columns that share a scale of x are some of those that share one of w, or the reverse."""
    wide, narrow = _weight_types(*stored)
    blocks = constant_of(input_block), constant_of(down_input) or constant_of(input_block)
    for name, block, weight in zip(("gate_up", "down"), blocks, (wide, narrow), strict=True):
        if not block:
            continue
        assert weight.scheme is not None
        if len(block) != 2 or block[0] != 1:
            return Refusal(f"x is to be scaled in blocks of {block}", "use [1, group]")
        if constant_of(input_format) == "static" and block[1] != weight.shape[2]:
            return Refusal(
                f"the input of {name} has one scale, for blocks of {block}",
                f"use {[1, weight.shape[2]]}",
            )
        if not groups_nest(block[1], weight.scheme.group, weight.shape[2]):
            return Refusal(
                f"the input of {name} is to be scaled in blocks of {block}, the weight in groups "
                f"of {weight.scheme.group}",
                "one must divide the other",
            )
    return None


def make_layer(
    rewriter,
    root: ir.Operation,
    x: ir.Value,
    ids: ir.Value,
    weights: ir.Value,
    gate_up: ir.Value,
    gate_up_scale: ir.Value,
    down: ir.Value,
    down_scale: ir.Value,
    intermediate: ir.Value,
    weight_block: ir.Value,
    input_block: ir.Value,
    act: ir.Value,
    limit: ir.Value,
    alpha: ir.Value,
    gate_up_bias: ir.Value,
    down_bias: ir.Value,
    packing: ir.Value,
    input_format: ir.Value,
    zero: ir.Value,
    down_zero: ir.Value,
    down_block: ir.Value,
    down_input: ir.Value,
    down_packing: ir.Value,
    *input_scales: ir.Value,
) -> None:
    stored = (gate_up, gate_up_scale, down, down_scale, weight_block, packing)
    wide, narrow = _weight_types(*stored, zero, down_zero, down_block, down_packing)
    scales = INPUTS[constant_of(input_format)] or ("f32",)
    is_static = constant_of(input_format) == "static"
    given = [at_the_top(scale) if is_static else None for scale in input_scales]
    group = constant_of(input_block)
    layer = Layer(
        pack_weight(gate_up, gate_up_scale, wide, zero),
        pack_weight(down, down_scale, narrow, down_zero),
        _glu_of(act, limit, alpha),
        gate_up_bias,
        down_bias,
        _input_scheme(group, scales),
        _input_scheme(constant_of(down_input) or group, scales),
        *given,
    )
    remarks.fired("moe-experts", root, remarks.argument_name(gate_up))
    replace_by_layer(rewriter, root, x, ids, weights, layer)


def _input_scheme(block: list[int], scales: tuple[str, ...]) -> Scheme | None:
    """How the input of a product is quantized, None for not at all."""
    if not block:
        return None
    return Scheme((block[0], block[1]), *scales)


MOE = (moe_experts, plain_experts)
