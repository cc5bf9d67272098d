"""Patterns of `qfuse-raise-torch` for RMSNorm, as models write it out and as torch has it."""

from collections.abc import Callable
from itertools import product as combinations

from qfuse.compiler import remarks
from qfuse.compiler.passes.raise_linear import at_the_top
from qfuse.compiler.pdl import MISMATCH, Pattern, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    F32_CODE,
    NotConstant,
    builtin_type,
    constant_of,
    from_builtin,
    is_constant,
    is_known,
    made_by,
    to_builtin,
)
from qfuse.dialects.bindings import ir
from qfuse.dialects.norm_ops import RmsNormOp
from qfuse.dialects.types import is_float, shaped


def _spelled_out(
    rounding: str | None, n_first: bool, weight_first: bool
) -> Callable[[Pattern], None]:
    """weight * to(x32 * rsqrt(mean(x32 ** 2, -1) + eps)), rounded "before" the weight; "after" it,
    to(weight * (x32 * rsqrt(...))); or, where `rounding` is None, with no casts around it.

    What is not rounded before it meets the weight may meet weight + a number, in f32 (Gemma).
    """
    cast = rounding is not None

    def spelled_out_norm(p: Pattern) -> None:
        x = p.value()
        x32, to_f32 = x, None
        if cast:
            to_f32 = p.op("torch.aten.to.dtype", x, *(p.value() for _ in range(4)))
            x32 = p.result(to_f32)
        square = p.op("torch.aten.pow.Tensor_Scalar", x32, exponent := p.value())
        mean = p.op(
            "torch.aten.mean.dim",
            p.result(square),
            dims := p.value(),
            keepdim := p.value(),
            dtype := p.value(),
        )
        shifted = p.op(
            "torch.aten.add.Scalar", p.result(mean), eps := p.value(), alpha := p.value()
        )
        rsqrt = p.op("torch.aten.rsqrt", p.result(shifted))
        factors = (x32, p.result(rsqrt)) if n_first else (p.result(rsqrt), x32)
        normed = p.result(p.op("torch.aten.mul.Tensor", *factors))
        if rounding == "before":
            normed = p.result(p.op("torch.aten.to.dtype", normed, *(p.value() for _ in range(4))))
        weight = p.value()
        root = product = p.op(
            "torch.aten.mul.Tensor", *((weight, normed) if weight_first else (normed, weight))
        )
        if rounding == "after":
            root = p.op("torch.aten.to.dtype", p.result(product), *(p.value() for _ in range(4)))
        p.require(is_mean_of_squares, exponent, dims, keepdim, dtype, alpha)
        p.require(is_float_constant, eps)
        p.require(computes_in_f32, root, x, x32)
        p.require(weights_last_dimension, root, x, weight)
        if rounding == "before":
            p.require(rounds_to_input_type, normed, x)
        p.rewrite(
            root, make_norm_after if rounding == "after" else make_norm_before, x, weight, eps
        )

    spelled_out_norm.__name__ = "rms_norm"
    return spelled_out_norm


def torch_rms_norm(p: Pattern) -> None:
    """aten.rms_norm(x, [N], weight, eps), which multiplies by weight before it rounds."""
    x, shape, weight, eps = (p.value() for _ in range(4))
    root = p.op("torch.aten.rms_norm", x, shape, weight, eps)
    p.require(is_float_constant, eps)
    p.require(weights_last_dimension, root, x, weight)
    p.rewrite(root, make_norm_after, x, weight, eps)


def is_mean_of_squares(
    exponent: ir.Value, dims: ir.Value, keepdim: ir.Value, dtype: ir.Value, alpha: ir.Value
) -> Verdict:
    good = is_constant(exponent, 2, 2.0) and is_constant(dims, [-1]) and is_constant(keepdim, True)
    good &= is_constant(dtype, None, F32_CODE) and is_constant(alpha, 1)  # eps is added times alpha
    return None if good else MISMATCH


def rounds_to_input_type(normed: ir.Value, x: ir.Value) -> Verdict:
    return None if normed.type == x.type else MISMATCH


def is_float_constant(eps: ir.Value) -> Verdict:
    try:
        return None if isinstance(constant_of(eps), float) else MISMATCH
    except NotConstant:
        return MISMATCH


def computes_in_f32(_root: ir.Operation, _x: ir.Value, x32: ir.Value) -> Verdict:
    type_ = builtin_type(x32.type)
    if type_ is None:
        return MISMATCH
    if str(type_.element_type) != "f32":
        return Refusal(
            f"the norm is computed in {type_.element_type}, qfuse.rms_norm in f32",
            "cast the input to f32 first, as Hugging Face models do",
        )
    return None


def weights_last_dimension(root: ir.Operation, x: ir.Value, weight: ir.Value) -> Verdict:
    types = [builtin_type(v.type) for v in (x, _stored(weight)[0], root.results[0])]
    if None in types:
        return MISMATCH
    x_type, w_type, y_type = (shaped(t) for t in types)
    if len(w_type.shape) != 1 or w_type.shape != x_type.shape[-1:] or x_type.shape[-1] < 0:
        return Refusal(f"weight {w_type} does not go with the last dimension of {x_type}")
    if not is_float(x_type) or not is_float(w_type) or y_type != x_type:
        return Refusal(
            f"the result is {y_type} for an input {x_type} and weight {w_type}",
            "give the weight the input's element type",
        )
    return None


def _stored(weight: ir.Value) -> tuple[ir.Value, float]:
    """What `weight` is a number more than, in f32, and the number: w and 1 for 1 + w.float().

    Only for f32: another type would round the sum, which the norm does not.
    """
    value, offset = weight, 0.0
    if _is_f32(value) and (added := made_by(value, "torch.aten.add.Scalar")) is not None:
        inner, number, alpha = added.operands
        if is_number(number) and is_constant(alpha, 1):
            value, offset = inner, float(constant_of(number))
    if _is_f32(value) and (cast := made_by(value, "torch.aten.to.dtype")) is not None:
        narrow = builtin_type(cast.operands[0].type)
        if narrow is not None and is_float(shaped(narrow)):
            value = cast.operands[0]
    return value, offset


def _is_f32(value: ir.Value) -> bool:
    type_ = builtin_type(value.type)
    return type_ is not None and shaped(type_).dtype == "f32"


def is_number(value: ir.Value) -> bool:
    return is_known(value) and type(constant_of(value)) in (int, float)


def make_norm_before(
    rewriter, root: ir.Operation, x: ir.Value, weight: ir.Value, eps: ir.Value
) -> None:
    _make_norm(rewriter, root, x, weight, eps, "before")


def make_norm_after(
    rewriter, root: ir.Operation, x: ir.Value, weight: ir.Value, eps: ir.Value
) -> None:
    _make_norm(rewriter, root, x, weight, eps, "after")


def _make_norm(
    rewriter, root: ir.Operation, x: ir.Value, weight: ir.Value, eps: ir.Value, rounding: str
) -> None:
    """Of a transpose that leaves the last dimension alone, the norm is the transpose of one.

    So heads are normed where they lie, one after the other, and a rotation follows.
    """
    transpose, stored = _transpose_of_rows(x), _stored(weight)
    value = to_builtin(x if transpose is None else transpose.operands[0])
    f64 = ir.F64Type.get()
    norm = ir.Operation.create(
        RmsNormOp.OPERATION_NAME,
        results=[value.type],
        operands=[value, at_the_top(stored[0])],
        attributes={
            "eps": ir.FloatAttr.get(f64, constant_of(eps)),
            "offset": ir.FloatAttr.get(f64, stored[1]),
            "rounding": ir.StringAttr.get(rounding),
            "operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 1, 0, 0, 0]),
            "resultSegmentSizes": ir.DenseI32ArrayAttr.get([1, 0, 0, 0]),
        },
    )
    remarks.fired("rms-norm", root, remarks.argument_name(stored[0]))
    type_ = root.results[0].type
    if transpose is None:
        rewriter.replace_op(root, [from_builtin(norm.results[0], type_)])
        return
    rows, *dims = transpose.operands
    made = ir.Operation.create(
        transpose.name,
        results=[type_],
        operands=[from_builtin(norm.results[0], rows.type), *dims],
    )
    rewriter.replace_op(root, made.results)


def _transpose_of_rows(x: ir.Value) -> ir.Operation | None:
    """The operation that `x` comes from, if it exchanges two dimensions before the last."""
    made = made_by(x, "torch.aten.transpose.int")
    if made is None or not all(map(is_known, list(made.operands)[1:])):
        return None
    type_ = builtin_type(x.type)
    assert type_ is not None  # the norm's shapes were looked at before
    dims = {constant_of(dim) % type_.rank for dim in list(made.operands)[1:]}
    return None if type_.rank - 1 in dims else made


_ORDERS = tuple(combinations((True, False), repeat=2))

NORMS = (
    *(_spelled_out(rounding, *order) for rounding in ("before", "after") for order in _ORDERS),
    torch_rms_norm,
)
BARE_NORMS = tuple(_spelled_out(None, *order) for order in _ORDERS)
"""Come after the others, of which they are the inside."""
