"""Patterns of `qfuse-raise-torch` for mixture-of-experts layers: routers, and experts."""

from dataclasses import dataclass
from functools import partial

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import build_yield
from qfuse.compiler.passes.expand_quantize import INPUT_SCHEME
from qfuse.compiler.passes.predicates import readers
from qfuse.compiler.passes.raise_linear import (
    INPUTS,
    STORED,
    at_the_top,
    pack_weight,
    parameter_error,
    weight_type,
)
from qfuse.compiler.pdl import MISMATCH, Pattern, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    VIEWS,
    NotConstant,
    builtin_type,
    constant_of,
    create_constant,
    from_builtin,
    to_builtin,
)
from qfuse.dialects.activations import build_rounding
from qfuse.dialects.bindings import arith, ir
from qfuse.dialects.elementwise_ops import create_glu
from qfuse.dialects.glu import GLU_ACTS, Glu
from qfuse.dialects.matmul_op import build_product, groups_nest
from qfuse.dialects.moe_ops import SCORINGS, CombineOp, GroupMatmulOp, RouteOp, SelectExpertsOp
from qfuse.dialects.quantization_ops import components_error, concat_rows
from qfuse.dialects.types import Scheme, Shaped, is_float, scheme_error, shaped
from qfuse.dialects.verify import DYNAMIC


def select_experts(p: Pattern) -> None:
    logits, bias = p.value(), p.value()
    # k, scoring, normalize, scale, number of groups, groups used, dtype
    constants = tuple(p.value() for _ in range(7))
    root = p.op("torch.operator", logits, bias, *constants, many=True)
    p.require(is_select_experts, root)
    p.require(options_are_constant, root, *constants)
    p.require(is_typed_router, root, logits, bias)
    p.require(options_are_legal, root, logits, *constants)
    p.rewrite(root, make_selection, logits, bias, *constants)


def is_select_experts(root: ir.Operation) -> Verdict:
    return _is_operator(root, "torch.qfuse.select_experts")


def options_are_constant(_root: ir.Operation, *constants: ir.Value) -> Verdict:
    if all(map(_is_known, constants)):
        return None
    return Refusal("an option of the router is not a constant")


def is_typed_router(root: ir.Operation, logits: ir.Value, bias: ir.Value) -> Verdict:
    if None in (builtin_type(result.type) for result in root.results):
        return MISMATCH
    builtin = builtin_type(logits.type)
    type_ = shaped(builtin) if builtin is not None else None
    if type_ is None or not is_float(type_) or len(type_.shape) != 2 or type_.shape[1] == DYNAMIC:
        return Refusal(f"the logits are {type_}", "use float logits [T, E] with E known")
    wanted = Shaped((type_.shape[1],), "f32")
    if not _is_none(bias) and builtin_type(bias.type) != wanted.type():
        return Refusal(f"the bias is {builtin_type(bias.type)}", f"use {wanted}")
    return None


def options_are_legal(
    root: ir.Operation, logits: ir.Value, k: ir.Value, scoring: ir.Value, *rest: ir.Value
) -> Verdict:
    _normalize, _scale, num_groups, groups_used, _dtype = map(constant_of, rest)
    experts, chosen = shaped(builtin_type(logits.type)).shape[1], constant_of(k)
    if constant_of(scoring) not in SCORINGS:
        return Refusal(f"the scoring is {constant_of(scoring)}", f"use {', '.join(SCORINGS)}")
    if num_groups < 1 or experts % num_groups or not 1 <= groups_used <= num_groups:
        return Refusal(
            f"{groups_used} of {num_groups} groups of {experts} experts are used",
            "use equal groups, 1 or more",
        )
    candidates = groups_used * (experts // num_groups)
    if not 1 <= chosen <= candidates:
        return Refusal(
            f"a token chooses {chosen} experts of {candidates}", f"use 1 to {candidates}"
        )
    ids, weights = (shaped(builtin_type(result.type)) for result in root.results)
    if ids.shape[1:] != (chosen,) or weights.shape != ids.shape:
        return Refusal(f"ids are {ids} and weights {weights}", f"both are [T, {chosen}]")
    return None


def make_selection(
    rewriter,
    root: ir.Operation,
    logits: ir.Value,
    bias: ir.Value,
    _k: ir.Value,
    scoring: ir.Value,
    normalize: ir.Value,
    scale: ir.Value,
    num_groups: ir.Value,
    groups_used: ir.Value,
    _dtype: ir.Value,
) -> None:
    i64 = ir.IntegerType.get_signless(64)
    types = [result.type for result in root.results]
    selection = ir.Operation.create(
        SelectExpertsOp.OPERATION_NAME,
        results=[builtin_type(type_) for type_ in types],
        operands=[to_builtin(v) for v in (logits, bias) if not _is_none(v)],
        attributes={
            "scoring": ir.StringAttr.get(constant_of(scoring)),
            "normalize": ir.BoolAttr.get(constant_of(normalize)),
            "scale": ir.FloatAttr.get_f64(constant_of(scale)),
            "num_groups": ir.IntegerAttr.get(i64, constant_of(num_groups)),
            "groups_used": ir.IntegerAttr.get(i64, constant_of(groups_used)),
        },
    )
    remarks.fired("select-experts", root)
    values = zip(selection.results, types, strict=True)
    rewriter.replace_op(root, [from_builtin(value, type_) for value, type_ in values])


def plain_experts(p: Pattern) -> None:
    x, _, _, gate_up, down = tensors = tuple(p.value() for _ in range(5))
    glu, biases = tuple(p.value() for _ in range(3)), (p.value(), p.value())
    root = p.op("torch.operator", *tensors, *glu, *biases)
    p.require(is_plain_experts, root)
    p.require(arguments_are_constant, root, *glu)
    p.require(is_typed_layer, root, *tensors)
    p.require(weights_are_parameters, root, gate_up, down)
    p.require(plain_weights_are_legal, root, x, gate_up, down)
    p.require(glu_is_known, root, *glu)
    p.require(biases_fit, root, x, down, *biases)
    p.rewrite(root, make_plain_layer, *tensors, *glu, *biases)


plain_experts.__name__ = "moe_experts"  # one fusion, by one name


def is_plain_experts(root: ir.Operation) -> Verdict:
    return _is_operator(root, "torch.qfuse.dense_experts")


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
    layer = _Layer(
        at_the_top(gate_up),
        at_the_top(down),
        _glu_of(act, limit, alpha),
        gate_up_bias,
        down_bias,
    )
    remarks.fired("moe-experts", root, remarks.argument_name(gate_up))
    _make_layer(rewriter, root, x, ids, weights, layer)


def moe_experts(p: Pattern) -> None:
    x, ids, weights, gate_up, gate_up_scale, down, down_scale = (p.value() for _ in range(7))
    tensors = (x, ids, weights, gate_up, gate_up_scale, down, down_scale)
    intermediate, weight_block, input_block, *glu = constants = tuple(p.value() for _ in range(6))
    biases = p.value(), p.value()
    packing, input_format = p.value(), p.value()
    zeros = p.value(), p.value()
    of_down = down_block, down_input, down_packing = tuple(p.value() for _ in range(3))
    last = (*biases, packing, input_format, *zeros, *of_down)
    root = p.op("torch.operator", *tensors, *constants, *last)
    p.require(is_moe_experts, root)
    p.require(arguments_are_constant, root, *constants, packing, input_format, *of_down)
    p.require(formats_are_known, root, packing, input_format, down_packing)
    p.require(is_typed_layer, root, *tensors)
    stored = (*tensors[3:], weight_block, packing, *zeros, down_block, down_packing)
    p.require(weights_are_legal, root, intermediate, *stored)
    p.require(glu_is_known, root, *glu)
    p.require(biases_fit, root, tensors[0], down, *biases)
    p.require(inputs_have_groups_that_nest, root, input_block, down_input, intermediate, *stored)
    p.rewrite(root, make_layer, *tensors, *constants, *last)


def is_moe_experts(root: ir.Operation) -> Verdict:
    return _is_operator(root, "torch.qfuse.moe_experts")


def arguments_are_constant(_root: ir.Operation, *constants: ir.Value) -> Verdict:
    if all(map(_is_known, constants)):
        return None
    return Refusal("the intermediate size, a format or what the GLU is is not a constant")


def formats_are_known(
    _root: ir.Operation, packing: ir.Value, input_format: ir.Value, down_packing: ir.Value
) -> Verdict:
    names = constant_of(packing), constant_of(down_packing) or constant_of(packing)
    by_row = [name for name, scales in INPUTS.items() if scales is not None]
    for name, legal in (
        (names[0], STORED),
        (names[1], STORED),
        (constant_of(input_format), by_row),
    ):
        if name not in legal:
            return Refusal(f'"{name}" is not one of {", ".join(legal)}')
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
        there = [shaped(builtin_type(v.type)) for v in values if not _is_none(v)]
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


def glu_is_known(_root: ir.Operation, act: ir.Value, limit: ir.Value, alpha: ir.Value) -> Verdict:
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
    dtype = shaped(builtin_type(x.type)).dtype
    experts, hidden, width = shaped(builtin_type(down.type)).shape
    wanted = {"gate_up_bias": (gate_up_bias, 2 * width), "down_bias": (down_bias, hidden)}
    for name, (bias, columns) in wanted.items():
        type_ = Shaped((experts, columns), dtype).type()
        if not _is_none(bias) and builtin_type(bias.type) != type_:
            return Refusal(f"{name} is {builtin_type(bias.type)}", f"use {type_}")
    return None


def inputs_have_groups_that_nest(
    _root: ir.Operation,
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
) -> None:
    stored = (gate_up, gate_up_scale, down, down_scale, weight_block, packing)
    wide, narrow = _weight_types(*stored, zero, down_zero, down_block, down_packing)
    scales, group = INPUTS[constant_of(input_format)], constant_of(input_block)
    layer = _Layer(
        pack_weight(gate_up, gate_up_scale, wide, zero),
        pack_weight(down, down_scale, narrow, down_zero),
        _glu_of(act, limit, alpha),
        gate_up_bias,
        down_bias,
        _input_scheme(group, scales),
        _input_scheme(constant_of(down_input) or group, scales),
    )
    remarks.fired("moe-experts", root, remarks.argument_name(gate_up))
    _make_layer(rewriter, root, x, ids, weights, layer)


@dataclass(frozen=True)
class _Layer:
    """Experts: weights of gate and up [E, N, H], N at least 2 I, and of down [E, H, I]."""

    wide: ir.Value
    narrow: ir.Value
    glu: Glu
    gate_up_bias: ir.Value
    down_bias: ir.Value
    input_scheme: Scheme | None = None
    """How the input of gate and up is to be quantized; None: not at all."""
    down_scheme: Scheme | None = None


def _make_layer(
    rewriter, root: ir.Operation, x: ir.Value, ids: ir.Value, weights: ir.Value, layer: _Layer
) -> None:
    """Routing, two products and the sum in the place of `root`."""
    experts, features, width = shaped(layer.narrow.type).shape
    value, choices = to_builtin(_rows_of(x)), to_builtin(ids)
    dtype, sorted_rows = shaped(value.type).dtype, shaped(choices.type).shape

    place = Shaped(sorted_rows, "i32").type()
    slots, tokens, indptr = ir.Operation.create(
        RouteOp.OPERATION_NAME,
        results=[place, place, Shaped((experts + 1,), "i32").type()],
        operands=[choices],
        attributes={"num_experts": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), experts)},
    ).results
    part = Shaped((*sorted_rows, width), dtype).type()
    inputs = [value, layer.wide, indptr, tokens]
    biases = _parts_of(layer.gate_up_bias, [width, width])
    both = _group_product(inputs, [part, part], [width, width], layer.input_scheme, biases)
    hidden = create_glu(layer.glu, both, part).result
    wanted = Shaped((*sorted_rows, features), dtype).type()
    inputs = [hidden, layer.narrow, indptr, None]
    biases = _parts_of(layer.down_bias, [features])
    (rows,) = _group_product(inputs, [wanted], [features], layer.down_scheme, biases)
    _combine(rewriter, root, [rows, slots, to_builtin(weights)])


def _combine(rewriter, root: ir.Operation, operands: list[ir.Value]) -> None:
    """The result of the layer, in the shape that its one reader gives it."""
    target = root
    (result,) = root.results
    users = readers(result)
    if len(users) == 1 and users[0].name in VIEWS and _keeps_rows(users[0]):
        target = users[0]
    type_ = target.results[0].type
    combined = ir.Operation.create(
        CombineOp.OPERATION_NAME,
        results=[builtin_type(type_)],
        operands=operands,
        attributes={"operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 1, 1, 0])},
    ).result
    value = from_builtin(combined, type_)
    if target is not root:
        rewriter.replace_op(target, [value])
        rewriter.erase_op(root)
    else:
        rewriter.replace_op(root, [value])


def _group_product(
    inputs: list[ir.Value | None],
    results: list[ir.Type],
    parts: list[int],
    scheme: Scheme | None,
    biases: list[ir.Value],
) -> list[ir.Value]:
    """A group_matmul that yields its accumulators, each rounded and plus its bias, if any."""
    maps = ["[E,N]"] * len(biases)
    product, block = build_product(
        GroupMatmulOp.OPERATION_NAME, inputs, results, parts, biases, maps
    )
    sums, terms = list(block.arguments)[: len(parts)], list(block.arguments)[len(parts) :]
    with ir.InsertionPoint(block):
        if terms:
            rounded = map(build_rounding, sums, (shaped(type_).dtype for type_ in results))
            sums = [arith.addf(*both) for both in zip(rounded, terms, strict=True)]
        build_yield(sums)
    if scheme is not None:
        product.attributes[INPUT_SCHEME] = ir.Attribute.parse(str(scheme))
    return list(product.results)


def _input_scheme(block: list[int], scales: tuple[str, ...] | None) -> Scheme | None:
    """How the input of a product is quantized, None for not at all."""
    if not block:
        return None
    assert scales is not None
    return Scheme((block[0], block[1]), *scales)


def _parts_of(bias: ir.Value, parts: list[int]) -> list[ir.Value]:
    """A bias [E, N] as one tensor for each part of N, computed once; none for none."""
    if _is_none(bias):
        return []
    if len(parts) == 1:
        return [to_builtin(bias)]
    whole = shaped(builtin_type(bias.type))
    integer = partial(create_constant, "int")
    found, begin = [], 0
    for width in parts:
        type_ = ir.Type.parse(f"!torch.vtensor<[{whole.shape[0]},{width}],{whole.dtype}>")
        bounds = [integer(number) for number in (1, begin, begin + width, 1)]
        part = ir.Operation.create(
            "torch.aten.slice.Tensor", results=[type_], operands=[bias, *bounds]
        ).result
        # kernels read what is dense; made here, the copy is one for all shapes of a program
        dense = ir.Operation.create(
            "torch.aten.contiguous", results=[type_], operands=[part, integer(0)]
        ).result
        found.append(to_builtin(dense))
        begin += width
    return found


def _rows_of(x: ir.Value) -> ir.Value:
    """What `x` [T, H] is a view of, if that has the same rows in other leading dimensions."""
    if isinstance(x, ir.BlockArgument) or x.owner.operation.name not in VIEWS:
        return x
    return x.owner.operation.operands[0] if _keeps_rows(x.owner.operation) else x


def _keeps_rows(view: ir.Operation) -> bool:
    """Whether a view only splits or joins leading dimensions."""
    before, after = (builtin_type(v.type) for v in (view.operands[0], view.results[0]))
    if before is None or after is None:
        return False
    old, new = shaped(before), shaped(after)
    return len(old.shape) > 1 and len(new.shape) > 1 and old.shape[-1] == new.shape[-1] != DYNAMIC


def _is_operator(root: ir.Operation, name: str) -> Verdict:
    # A predicate, because PDL may ask the others before it compares an attribute.
    return None if ir.StringAttr(root.attributes["name"]).value == name else MISMATCH


def _is_known(value: ir.Value) -> bool:
    """Whether a torch value is a constant."""
    try:
        constant_of(value)
    except NotConstant:
        return False
    return True


def _is_none(value: ir.Value) -> bool:
    return str(value.type) == "!torch.none"


MOE = (select_experts, moe_experts, plain_experts)
