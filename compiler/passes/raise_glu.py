"""Patterns of `qfuse-raise-torch` for GLUs whose gate and up are clamped.

Written out in torch they are four to seven operations:

    act(clamp(gate, None, limit)) * clamp(up, -limit, limit)
    (clamp(up, -limit, limit) + 1) * (g * sigmoid(g * alpha)), where g = clamp(gate, None, limit)

They come before the element-wise operations that they are made of.  A GLU without a limit is
raised from those (raise_elementwise.py).
"""

import math
from collections.abc import Callable

from qfuse.compiler import remarks
from qfuse.compiler.passes.raise_elementwise import (
    activation_has_one_reader,
    computes_floats,
    touches_qfuse,
)
from qfuse.compiler.pdl import MISMATCH, Pattern, Predicate, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    NotConstant,
    constant_of,
    from_builtin,
    is_constant,
    to_builtin,
)
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import create_glu
from qfuse.dialects.glu import ACTIVATIONS, SWIGLU_OAI, Glu


def is_erf_form(approximate: ir.Value) -> Verdict:
    return None if is_constant(approximate, "none") else MISMATCH


def is_tanh_form(approximate: ir.Value) -> Verdict:
    return None if is_constant(approximate, "tanh") else MISMATCH


def is_one(alpha: ir.Value) -> Verdict:
    return None if is_constant(alpha, 1, 1.0) else MISMATCH


_CLAMP, _MUL = "torch.aten.clamp", "torch.aten.mul.Tensor"

_GELU_FORMS: dict[str, Predicate] = {"gelu": is_erf_form, "gelu_tanh": is_tanh_form}


def _clamped(act: str, gate_first: bool) -> Callable[[Pattern], None]:
    """mul(act(clamp(gate)), clamp(up)), in either order"""

    def glu(p: Pattern) -> None:
        gate, up, *bounds = (p.value() for _ in range(6))
        clamped = p.result(p.op(_CLAMP, gate, *bounds[:2]))
        form = _GELU_FORMS.get(act)
        activated = (
            p.op(f"torch.aten.{act}", clamped)
            if form is None
            else p.op("torch.aten.gelu", clamped, approximate := p.value())
        )
        factors = p.result(activated), p.result(p.op(_CLAMP, up, *bounds[2:]))
        root = p.op(_MUL, *(factors if gate_first else reversed(factors)))
        if form is not None:
            p.require(form, approximate)
        _raise(p, root, activated, gate, up, bounds, make_glu)

    def make_glu(
        rewriter, root: ir.Operation, gate: ir.Value, up: ir.Value, *bounds: ir.Value
    ) -> None:
        _replace(rewriter, root, gate, up, Glu(act, float(constant_of(bounds[1]))))

    return glu


def _gpt_oss(up_first: bool, gate_first: bool) -> Callable[[Pattern], None]:
    """mul(add(u, 1), mul(g, sigmoid(mul(g, alpha)))) of clamped g and u, in either order"""

    def glu(p: Pattern) -> None:
        gate, up, *bounds = (p.value() for _ in range(6))
        g = p.result(p.op(_CLAMP, gate, *bounds[:2]))
        u = p.result(p.op(_CLAMP, up, *bounds[2:]))
        alpha, number, times = p.value(), p.value(), p.value()
        scaled = p.op("torch.aten.mul.Scalar", g, alpha)
        sigmoid = p.result(p.op("torch.aten.sigmoid", p.result(scaled)))
        gated = p.op(_MUL, *((g, sigmoid) if gate_first else (sigmoid, g)))
        factors = p.result(p.op("torch.aten.add.Scalar", u, number, times)), p.result(gated)
        root = p.op(_MUL, *(factors if up_first else reversed(factors)))
        p.require(is_one, number)
        p.require(is_one, times)
        _raise(p, root, gated, gate, up, [*bounds, alpha], make_glu)

    def make_glu(
        rewriter, root: ir.Operation, gate: ir.Value, up: ir.Value, *numbers: ir.Value
    ) -> None:
        limit, alpha = (float(constant_of(numbers[i])) for i in (1, 4))
        _replace(rewriter, root, gate, up, Glu(SWIGLU_OAI, limit, alpha))

    return glu


def _raise(
    p: Pattern,
    root: ir.Value,
    activated: ir.Value,
    gate: ir.Value,
    up: ir.Value,
    numbers: list[ir.Value],
    make_glu: Callable[..., None],
) -> None:
    p.require(touches_qfuse, root, gate, up)
    p.require(computes_floats, root, gate, up)
    p.require(types_are_equal, root, gate, up)
    p.require(activation_has_one_reader, activated)
    p.require(numbers_are_constant, root, *numbers)
    p.require(bounds_are_one_limit, root, *numbers[:4])
    p.require(numbers_make_sense, root, numbers[1], *numbers[4:])
    p.rewrite(root, make_glu, gate, up, *numbers)


def types_are_equal(root: ir.Operation, gate: ir.Value, up: ir.Value) -> Verdict:
    return None if gate.type == up.type == root.results[0].type else MISMATCH


def numbers_are_constant(_root: ir.Operation, *numbers: ir.Value) -> Verdict:
    try:
        for number in numbers:
            constant_of(number)
    except NotConstant:
        return Refusal("a bound or factor of the GLU is not a constant")
    return None


def bounds_are_one_limit(_root: ir.Operation, *bounds: ir.Value) -> Verdict:
    """The gate is clamped from above only, up alike from both sides."""
    missing = (-math.inf, math.inf, -math.inf, math.inf)
    low, limit, up_low, up_high = (
        default if bound is None else bound
        for bound, default in zip(map(constant_of, bounds), missing, strict=True)
    )
    if low == -math.inf and limit != math.inf and (up_low, up_high) == (-limit, limit):
        return None
    return Refusal(
        f"gate is clamped to {low} .. {limit} and up to {up_low} .. {up_high}",
        "clamp gate from above, and up at the same limit from both sides",
    )


def numbers_make_sense(_root: ir.Operation, limit: ir.Value, *alpha: ir.Value) -> Verdict:
    why = Glu(SWIGLU_OAI, constant_of(limit), *map(constant_of, alpha)).error()
    return None if why is None else Refusal(why)


def _replace(rewriter, root: ir.Operation, gate: ir.Value, up: ir.Value, glu: Glu) -> None:
    value, other = to_builtin(gate), to_builtin(up)
    made = create_glu(glu, [value, other], value.type)
    remarks.fired("glu", root)
    rewriter.replace_op(root, [from_builtin(made.result, root.results[0].type)])


_ORDERS = (True, False)

GLUS = (
    *(_clamped(act, gate_first) for act in ACTIVATIONS for gate_first in _ORDERS),
    *(_gpt_oss(up_first, gate_first) for up_first in _ORDERS for gate_first in _ORDERS),
)
