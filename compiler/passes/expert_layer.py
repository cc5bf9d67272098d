"""What experts are in the dialect: a route, two products by experts, a GLU, and their sum."""

from dataclasses import dataclass, replace
from functools import partial

from qfuse.compiler.epilogue import build_yield
from qfuse.compiler.passes.expand_quantize import INPUT_SCHEME, stored_beside
from qfuse.compiler.passes.predicates import readers
from qfuse.compiler.torch_ir import (
    VIEWS,
    builtin_type,
    create_constant,
    from_builtin,
    is_none,
    to_builtin,
)
from qfuse.dialects.activations import build_rounding
from qfuse.dialects.bindings import arith, ir
from qfuse.dialects.elementwise_ops import create_glu
from qfuse.dialects.glu import Glu
from qfuse.dialects.matmul_op import build_product
from qfuse.dialects.moe_ops import CombineOp, GroupMatmulOp, RouteOp
from qfuse.dialects.quantization_ops import QuantizeOp
from qfuse.dialects.types import Scheme, Shaped, shaped
from qfuse.dialects.verify import DYNAMIC


@dataclass(frozen=True)
class Layer:
    """Experts: weights of gate and up [E, N, H], N at least 2 I, and of down [E, H, I].

    Biases are torch values, !torch.none for none.  The schemes are those to which the inputs of
    both products are to be quantized; the scales, those to quantize by if they are static.
    """

    wide: ir.Value
    narrow: ir.Value
    glu: Glu
    gate_up_bias: ir.Value
    down_bias: ir.Value
    gate_up_input: Scheme | None = None
    down_input: Scheme | None = None
    gate_up_scale: ir.Value | None = None
    down_scale: ir.Value | None = None


def replace_by_layer(
    rewriter, root: ir.Operation, x: ir.Value, ids: ir.Value, weights: ir.Value, layer: Layer
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
    of_input = layer.gate_up_input, layer.gate_up_scale
    both = _group_product(inputs, [part, part], [width, width], *of_input, biases)
    hidden = create_glu(layer.glu, both, part).result
    wanted = Shaped((*sorted_rows, features), dtype).type()
    inputs = [hidden, layer.narrow, indptr, None]
    biases = _parts_of(layer.down_bias, [features])
    of_input = layer.down_input, layer.down_scale
    (rows,) = _group_product(inputs, [wanted], [features], *of_input, biases)
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
    scale: ir.Value | None,
    biases: list[ir.Value],
) -> list[ir.Value]:
    """A group_matmul that yields its accumulators, each rounded and plus its bias, if any.

    By a static `scale`, the input is quantized at once; else the product says to which scheme.
    """
    x, w, *others = inputs
    assert x is not None and w is not None
    if scale is not None:
        stored = replace(shaped(x.type), dtype=stored_beside(shaped(w.type)), scheme=scheme)
        x = ir.Operation.create(
            QuantizeOp.OPERATION_NAME, results=[stored.type()], operands=[x, scale]
        ).result
    inputs = [x, w, *others]
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
    if scheme is not None and scale is None:
        product.attributes[INPUT_SCHEME] = ir.Attribute.parse(str(scheme))
    return list(product.results)


def _parts_of(bias: ir.Value, parts: list[int]) -> list[ir.Value]:
    """A bias [E, N] as one tensor for each part of N, computed once; none for none."""
    if is_none(bias):
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
