"""Patterns of `qfuse-raise-torch` for element-wise operations next to what qfuse owns."""

from collections.abc import Callable

from qfuse.compiler import remarks
from qfuse.compiler.passes.predicates import readers
from qfuse.compiler.pdl import MISMATCH, Pattern, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    FROM_BUILTIN,
    TO_BUILTIN,
    builtin_type,
    from_builtin,
    is_constant,
    to_builtin,
)
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import ACTIVATIONS, create_glu
from qfuse.dialects.glu import Glu
from qfuse.dialects.matmul_op import map_of
from qfuse.dialects.types import is_float, shaped
from qfuse.dialects.verify import DYNAMIC


def silu(p: Pattern) -> None:
    root = p.op("torch.aten.silu", x := p.value())
    _raise_unary(p, root, x, "silu")


def relu(p: Pattern) -> None:
    root = p.op("torch.aten.relu", x := p.value())
    _raise_unary(p, root, x, "relu")


def gelu(p: Pattern) -> None:
    root = p.op("torch.aten.gelu", x := p.value(), approximate := p.value())
    p.require(is_erf_form, approximate)
    _raise_unary(p, root, x, "gelu")


def gelu_tanh(p: Pattern) -> None:
    root = p.op("torch.aten.gelu", x := p.value(), approximate := p.value())
    p.require(is_tanh_form, approximate)
    _raise_unary(p, root, x, "gelu_tanh")


def mul(p: Pattern) -> None:
    root = p.op("torch.aten.mul.Tensor", a := p.value(), b := p.value())
    _raise_binary(p, root, a, b, "mul")


def add(p: Pattern) -> None:
    root = p.op("torch.aten.add.Tensor", a := p.value(), b := p.value(), alpha := p.value())
    p.require(is_one, alpha)
    _raise_binary(p, root, a, b, "add")


def _raise_unary(p: Pattern, root: ir.Value, x: ir.Value, name: str) -> None:
    p.require(touches_qfuse, root, x)
    p.require(computes_floats, root, x)
    p.require(keeps_shape, root, x)
    p.rewrite(root, _maker(name), x)


def _raise_binary(p: Pattern, root: ir.Value, a: ir.Value, b: ir.Value, name: str) -> None:
    p.require(touches_qfuse, root, a, b)
    p.require(computes_floats, root, a, b)
    p.require(broadcasts_by_rows, root, a, b)
    p.rewrite(root, _maker(name), a, b)


def _maker(name: str) -> Callable[..., None]:
    def make(rewriter, root: ir.Operation, *operands: ir.Value) -> None:
        type_ = root.results[0].type
        op = ir.Operation.create(
            f"qfuse.{name}",
            results=[builtin_type(type_)],
            operands=[to_builtin(v) for v in operands],
        )
        rewriter.replace_op(root, [from_builtin(op.result, type_)])

    return make


def is_erf_form(approximate: ir.Value) -> Verdict:
    return None if is_constant(approximate, "none") else MISMATCH


def is_tanh_form(approximate: ir.Value) -> Verdict:
    return None if is_constant(approximate, "tanh") else MISMATCH


def is_one(alpha: ir.Value) -> Verdict:
    return None if is_constant(alpha, 1, 1.0) else MISMATCH


def touches_qfuse(root: ir.Operation, *operands: ir.Value) -> Verdict:
    """An operand comes from a qfuse operation, or a reader is one."""
    for value in operands:
        if not isinstance(value, ir.BlockArgument) and value.owner.operation.name == FROM_BUILTIN:
            return None
    if any(op.name == TO_BUILTIN for op in readers(root.results[0])):
        return None
    return MISMATCH


def computes_floats(root: ir.Operation, *operands: ir.Value) -> Verdict:
    types = [builtin_type(v.type) for v in (*operands, root.results[0])]
    if None in types or not all(is_float(shaped(t)) for t in types):
        return MISMATCH
    shape = shaped(types[-1]).shape
    if not shape:
        return MISMATCH
    if shape[-1] == DYNAMIC:
        return Refusal("the last dimension is not static")
    return None


def keeps_shape(root: ir.Operation, x: ir.Value) -> Verdict:
    before, after = (shaped(builtin_type(v.type)) for v in (x, root.results[0]))
    return None if before.shape == after.shape else MISMATCH


def broadcasts_by_rows(root: ir.Operation, *operands: ir.Value) -> Verdict:
    """One operand has the result's shape, the other is [N], [M,1], [M,N] or a scalar over it."""
    y = shaped(builtin_type(root.results[0].type))
    values = [shaped(builtin_type(v.type)) for v in operands]
    if any(not v.shape and v.dtype != y.dtype for v in values):
        return MISMATCH  # torch rounds a scalar tensor to the other operand's type first
    if any(v.shape == y.shape for v in values) and all(
        map_of(v, y.rows, y.shape[-1]) is not None for v in values
    ):
        return None
    return MISMATCH


def _glu(act: str, gate_first: bool) -> Callable[[Pattern], None]:
    """mul(act(gate), up), in either order"""

    def glu(p: Pattern) -> None:
        activated = p.op(f"qfuse.{act}", gate := p.value())
        up = p.value()
        factors = (p.result(activated), up) if gate_first else (up, p.result(activated))
        root = p.op("qfuse.mul", *factors)
        p.require(activation_has_one_reader, activated)
        p.require(types_are_equal, root, gate, up)
        p.rewrite(root, make_glu, gate, up)

    def make_glu(rewriter, root: ir.Operation, gate: ir.Value, up: ir.Value) -> None:
        op = create_glu(Glu(act), [gate, up], root.results[0].type)
        remarks.fired("glu", root)
        rewriter.replace_op(root, op.results)

    return glu


def activation_has_one_reader(activated: ir.Operation) -> Verdict:
    count = len(readers(activated.results[0]))
    if count == 1:
        return None
    return Refusal(
        f"the activation has {count} readers", "read the product with up only, to make it a GLU"
    )


def types_are_equal(root: ir.Operation, gate: ir.Value, up: ir.Value) -> Verdict:
    if gate.type == up.type == root.results[0].type:
        return None
    return Refusal(f"gate is {shaped(gate.type)} but up is {shaped(up.type)}")


ELEMENTWISE = (
    *(silu, relu, gelu, gelu_tanh, mul, add),
    *(_glu(act, gate_first) for act in ACTIVATIONS for gate_first in (True, False)),
)
