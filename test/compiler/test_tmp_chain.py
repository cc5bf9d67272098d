"""Chains of any element-wise operations become one product, bit for bit what they were apart."""

import math
from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import ACTIVATIONS, ELEMENTWISE, Program, Value
from test_fusion_numerics import check, depths, dtypes, ranks, same_bits, seeds, some, widths

from qfuse.dialects import arithmetic
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC

BINARY = [name for name, entry in arithmetic.ELEMENTWISE.items() if entry.operands == 2]
UNARY = [name for name in arithmetic.ELEMENTWISE if name not in BINARY]
ROW_INVARIANT = ("bias", "bias32", "one", "scalar")
VARYING = ("residual", "residual32", "column")
INSIDE = ("number", "self", "earlier")
"""Second operands that are none of the product: a constant, the value itself, one before it."""


def test_every_operation_has_a_definition():
    assert set(ELEMENTWISE) == set(arithmetic.ELEMENTWISE)


@dataclass(frozen=True)
class Link:
    """One operation of a chain, and whether something else reads the value it makes."""

    name: str
    other: str = ""
    left: bool = False
    is_read: bool = False


@st.composite
def chains(draw: st.DrawFn) -> list[Link]:
    """At most six operands, three other readers, one square and one exponential.

    More of the last two leave the range of f16, and with it what the reference can tell.
    """
    links: list[Link] = []
    budget = {"square": 1, "exp": 1, "self": 1, "earlier": 1, "read": 2}

    def left(what: str) -> bool:
        return budget.get(what, 1) > 0

    def take(what: str) -> str:
        if what in budget:
            budget[what] -= 1
        return what

    for _ in range(draw(st.integers(1, 8))):
        names = [n for n in (*UNARY, *BINARY) if left(n)]
        if links and links[-1].name in ACTIVATIONS:
            names.remove("mul")  # the import reads act(y) * other as a GLU
        name = take(draw(st.sampled_from(names)))
        if name == "exp":  # of what is at most 4
            links.append(Link("clamp"))
        other = ""
        if name in BINARY:
            operands = sum(link.other in (*ROW_INVARIANT, *VARYING) for link in links)
            kinds = [*((*ROW_INVARIANT, *VARYING) if operands < 6 else ()), *INSIDE]
            kinds = [k for k in kinds if left(k) and (k != "earlier" or links)]
            kinds = [k for k in kinds if (k, name) not in (("self", "sub"), ("self", "div"))]
            other = take(draw(st.sampled_from(kinds)))
        is_read = left("read") and draw(st.booleans())
        if is_read:
            take("read")
        links.append(Link(name, other, draw(st.booleans()), is_read))
    return links


@settings(some, max_examples=40, derandomize=False)
@given(chains(), dtypes, ranks, widths, depths, st.booleans(), seeds)
def test_chain(chain, dtype, rank, n, k, quantize, seed):
    """Everything joins, in the order of the program, whoever else reads what is in between."""
    program = Program(dtype, seed)
    y = program.matmul(program.input(*rank, k), program.weight(n, k), quantize=quantize)
    before, outputs, fired = y, [], []
    growth, has_residual = 2.0, False
    for link in chain:
        made = apply(program, link, y, before)
        has_residual |= link.other in VARYING
        if link.other in ROW_INVARIANT:
            fired.append("bias")
        elif link.other in VARYING:
            fired.append("residual-binary")
        else:
            fired.append("residual-unary" if has_residual else "activation")
        before, y = y, made
        if link.is_read:
            outputs.append(y)
        # exp multiplies a relative error by its argument, and a square doubles it
        growth *= {"exp": 4, "square": 2, "mul": 2, "div": 2}.get(link.name, 1)
    if y not in outputs:
        outputs.append(y)
    counts = Counter(f"epilogue-{name}" for name in fired)
    check(program, outputs, ["epilogue"], dict(counts), 1 + quantize, growth=growth)


def apply(program: Program, link: Link, y: Value, before: Value) -> Value:
    if link.name == "cast":
        dtype = {"f32": program.dtype, program.dtype: "f32"}.get(y.type.dtype, "f32")
        return program.elementwise("cast", [y], Shaped(y.type.shape, dtype))
    if link.name == "clamp":
        return program.elementwise("clamp", [y], y.type, low=-4.0, high=4.0)
    if not link.other:
        return program.elementwise(link.name, [y], y.type)
    other = operand(program, link.other, y, before)
    wide = "f32" in (y.type.dtype, other.type.dtype) and link.other != "number"
    out = Shaped(y.type.shape, "f32" if wide else y.type.dtype)
    return program.elementwise(link.name, [other, y] if link.left else [y, other], out)


def operand(program: Program, kind: str, y: Value, before: Value) -> Value:
    n = y.type.shape[-1]
    rows = tuple(-1 if d == DYNAMIC else d for d in y.type.rows)
    return {
        "bias": lambda: program.parameter(n),
        "bias32": lambda: program.parameter(1, n, dtype="f32"),
        "one": lambda: program.parameter(1),
        "scalar": lambda: program.input(dtype="f32"),
        "residual": lambda: program.input(*rows, n),
        "residual32": lambda: program.input(*rows, n, dtype="f32"),
        "column": lambda: program.input(*rows, 1),
        "number": lambda: program.constant(0.3),
        "self": lambda: y,
        "earlier": lambda: before,
    }[kind]()
