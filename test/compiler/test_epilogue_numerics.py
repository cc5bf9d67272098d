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

from qfuse.compiler.block_scaled import dequantize_blocks, quantize_blocks
from qfuse.compiler.compilation import compile_imported
from qfuse.compiler.frontend.imported import Imported
from qfuse.compiler.options import CompileOptions
from qfuse.dialects import arithmetic
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC

pytestmark = pytest.mark.quick_level

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


@settings(some, max_examples=12)
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


@some
@given(dtypes, ranks, widths, st.sampled_from([32, 128]), st.booleans(), seeds)
def test_chain_ends_in_a_quantization(dtype, rank, n, group, is_read, seed):
    """relu(x)^2 / c, with a residual, quantized; and the value itself where it is read."""
    program = Program(dtype, seed)
    y = program.matmul(program.input(*rank, 72), program.weight(n, 72))
    y = program.activate("relu", y)
    y = program.elementwise("square", [y], y.type)
    y = program.elementwise("div", [y, program.constant(3.0)], y.type)
    rows = tuple(-1 if d == DYNAMIC else d for d in y.type.rows)
    y = program.add(program.input(*rows, n), y, y.type)
    outputs = [program.dequantize(program.quantize(y, group)), *([y] if is_read else [])]
    fired = {"epilogue-activation": 3, "epilogue-residual-binary": 1, "product-quantize": 1}
    check(program, outputs, ["epilogue", "act-quantize"], fired, kernels=2, growth=2.0)


SPECIAL = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 1e4, 1e-7]


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("names", [UNARY[:3], UNARY[3:6], UNARY[6:9], UNARY[9:]], ids=" ".join)
def test_special_numbers(names, dtype):
    """NaN, infinities and zeros of both signs come out of a fused kernel as of separate ones."""
    program, n = Program(dtype), 40
    y = program.matmul(program.input(-1, 72), program.weight(n, 72))
    # a product of zeros is 0, and 0 * x + y * 1 keeps no -0: so the residual is multiplied
    y = program.mul(y, program.input(-1, n), y.type)
    outputs = [apply(program, Link(name), y, y) for name in names]
    fused, plain = (program.compile(outputs, fusions) for fusions in (["epilogue"], ()))
    assert len(fused.program.plan.steps) == 1
    x, residual = program.inputs(len(SPECIAL))
    residual.copy_(torch.tensor(SPECIAL)[:, None])
    for a, b in zip(fused(x, residual), plain(x, residual), strict=True):
        assert torch.equal(a.isnan(), b.isnan())  # which NaN it is may differ
        assert same_bits(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("name", BINARY)
def test_special_operands(name):
    program, n = Program("f32"), 9
    y = program.matmul(program.input(-1, 72), program.weight(n, 72))
    y = program.mul(y, program.input(-1, n), y.type)
    other = program.input(n)
    outputs = [program.elementwise(name, pair, y.type) for pair in ([y, other], [other, y])]
    fused, plain = (program.compile(outputs, fusions) for fusions in (["epilogue"], ()))
    assert len(fused.program.plan.steps) == 1
    x, residual, bias = program.inputs(len(SPECIAL))
    residual.copy_(torch.tensor(SPECIAL)[:, None])
    bias.copy_(torch.tensor(SPECIAL))
    for a, b in zip(fused(x, residual, bias), plain(x, residual, bias), strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert same_bits(a.nan_to_num(7.0), b.nan_to_num(7.0))


EXPERTS, CHOICES, IN = 5, 2, 72


def _group_program(n: int, number: float) -> str:
    """Rows of tokens by experts, a chain on them, and their weighted sums."""
    scheme = '#qfuse.scheme<array<i64: 128, 128>, f32, "none", "none", "row_major">'
    w = f"!qfuse.qtensor<tensor<{EXPERTS}x{n}x{IN}xf8E4M3FN>, {scheme}>"
    codes, scale = f"tensor<{EXPERTS}x{n}x{IN}xf8E4M3FN>", f"tensor<{EXPERTS}x{-(-n // 128)}x1xf32>"
    rows, y = f"tensor<?x{CHOICES}xi32>", f"tensor<?x{CHOICES}x{n}xbf16>"
    arguments = {
        "logits": (f"tensor<?x{EXPERTS}xf32>", "input"),
        "x": (f"tensor<?x{IN}xbf16>", "input"),
        "codes": (codes, "parameter"),
        "scale": (scale, "parameter"),
        "bias": (f"tensor<{n}xbf16>", "parameter"),
    }
    text = ", ".join(
        f'%{name}: {type_} {{qfuse.kind = "{kind}", qfuse.name = "{name}"}}'
        for name, (type_, kind) in arguments.items()
    )
    return f"""
func.func @main({text}) -> (tensor<?x{n}xbf16> {{qfuse.kind = "output", qfuse.name = "out"}}) {{
  %w = "qfuse.pack"(%codes, %scale) : ({codes}, {scale}) -> {w}
  %ids, %weights = "qfuse.select_experts"(%logits) {{scoring = "softmax", normalize = true,
    scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64}}
    : (tensor<?x{EXPERTS}xf32>) -> (tensor<?x{CHOICES}xi64>, tensor<?x{CHOICES}xf32>)
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {{num_experts = {EXPERTS} : i64}}
    : (tensor<?x{CHOICES}xi64>) -> ({rows}, {rows}, tensor<{EXPERTS + 1}xi32>)
  %y = "qfuse.group_matmul"(%x, %w, %indptr, %tokens) ({{
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }}) {{parts = array<i64: {n}>, maps = [],
    operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>,
    resultSegmentSizes = array<i32: 1, 0, 0, 0>}}
    : (tensor<?x{IN}xbf16>, {w}, tensor<{EXPERTS + 1}xi32>, {rows}) -> {y}
  %c = arith.constant dense<{number:e}> : tensor<f32>
  %0 = "qfuse.add"(%y, %bias) : ({y}, tensor<{n}xbf16>) -> {y}
  %1 = "qfuse.div"(%0, %c) : ({y}, tensor<f32>) -> {y}
  %2 = "qfuse.tanh"(%1) : ({y}) -> {y}
  %3 = "qfuse.mul"(%2, %0) : ({y}, {y}) -> {y}
  %out = "qfuse.combine"(%3, %slots, %weights) {{operandSegmentSizes = array<i32: 1, 1, 1, 0>}}
    : ({y}, {rows}, tensor<?x{CHOICES}xf32>) -> tensor<?x{n}xbf16>
  return %out : tensor<?x{n}xbf16>
}}
"""


@pytest.mark.parametrize("n", [40, 200])
def test_products_of_experts(n):
    """tanh((y + bias) / c) * (y + bias) joins the product of experts, which adds up its rows."""
    torch.manual_seed(n)
    number = 0.75
    codes, scale = quantize_blocks(torch.randn(EXPERTS, n, IN) * IN**-0.5, [128, 128])
    bias = torch.randn(n).bfloat16()
    with ir.Context():
        load_all()
        text = _group_program(n, number)
        parameters = {"codes": codes, "scale": scale, "bias": bias}
        fused, plain = (
            compile_imported(
                Imported(ir.Module.parse(text), parameters, (), ()),
                CompileOptions.make("cpu", disable),
            )
            for disable in ((), ("all",))
        )
    assert (len(fused.program.plan.steps), len(plain.program.plan.steps)) == (3, 8)
    w = dequantize_blocks(codes, scale, (128, 128)).double()
    for count in (1, 3, 33):
        logits, x = torch.randn(count, EXPERTS), torch.randn(count, IN).bfloat16()
        (got,), (apart,) = fused(logits, x), plain(logits, x)
        assert same_bits(got, apart)
        share, ids = logits.double().softmax(1).topk(CHOICES)
        y = torch.einsum("tk,tjnk->tjn", x.double(), w[ids]).bfloat16().double()
        y = (y + bias.double()).bfloat16().double()
        value = (y / number).bfloat16().double().tanh().bfloat16().double() * y
        wanted = (value.bfloat16().double() * (share / share.sum(1, keepdim=True))[:, :, None]).sum(
            1
        )
        # f32 sums flip a rounding to bf16 now and then: 2^-8 of a value, five in a row
        assert (got.double() - wanted).norm() <= 5 * 2**-8 * wanted.norm()
