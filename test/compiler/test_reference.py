"""The reference interpreter against numbers written down, formulas in torch, and its own bounds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qfuse.compiler.reference import Inexecutable, Interpreter, Quantized, Tensor, Value, balls
from qfuse.compiler.reference.activations import ACTIVATIONS
from qfuse.compiler.reference.balls import NUMPY, Ball
from qfuse.compiler.reference.schemes import decode, encode
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import Scheme, Shaped


def run(text: str, *arguments: Value, **choices) -> list[Value]:
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(text)
        functions = [op.operation for op in module.body.operations]
        return Interpreter(**choices).run(functions[-1], arguments)


def tensor(values, dtype: str = "f32") -> Tensor:
    return Tensor(np.array(values, np.float32).astype(NUMPY[dtype]))


def quantized(shape: tuple[int, ...], block: tuple[int, int], dtype="f8E4M3FN", **fields) -> Shaped:
    return Shaped(shape, dtype, Scheme(block, fields.pop("scale", "f32"), **fields))


# Schemes


def test_encode_rounds_to_even_and_saturates() -> None:
    type_ = quantized((1, 4), (1, 4))
    q = encode(Ball(np.array([[448.0, 17.0, 19.0, -500.0]])), type_)
    assert q.scale.array == np.float32(500 / 448)
    # 17 * 448 / 500 = 15.2 lies between 15 and 16, 19 * 448 / 500 = 17.02 between 16 and 18
    assert q.data.array.astype(float).tolist() == [[416.0, 15.0, 18.0, -448.0]]


def test_encode_of_zeros_has_a_finite_scale() -> None:
    q = encode(Ball(np.zeros((2, 3))), quantized((2, 3), (1, 2)))
    assert q.data.array.astype(float).tolist() == [[0.0] * 3] * 2
    assert np.all(q.scale.array == np.float32(1e-10) / np.float32(448))
    assert q.scale.shape == (2, 2)


def test_encode_keeps_nan_in_its_block() -> None:
    q = encode(Ball(np.array([[np.nan, 1.0, 2.0, 4.0]])), quantized((1, 4), (1, 2)))
    numbers = decode(q).mid
    assert np.isnan(numbers[0, :2]).all()
    assert numbers[0, 2:] == pytest.approx([2.0, 4.0], rel=2.0**-23)  # the scale is rounded


def test_encode_rounds_scales_up_to_powers_of_two() -> None:
    """One that is a power stays; NaN and infinity make all of their block NaN."""
    type_ = quantized((5, 2), (1, 2), scale="f8E8M0FNU")
    x = [[448.0, 7.0], [450.0, -7.0], [448 * 2.0**-9, 0.0], [np.nan, 1.0], [np.inf, 1.0]]
    with np.errstate(invalid="ignore"):
        q = encode(Ball(np.array(x)), type_)
    assert q.scale.array[:3, 0].astype(float).tolist() == [1.0, 2.0, 2.0**-9]
    assert q.data.array[:2].astype(float).tolist() == [[448.0, 7.0], [224.0, -3.5]]
    assert np.isnan(decode(q).mid[3:]).all()


def test_encode_q8_1_keeps_the_sum_of_each_block() -> None:
    type_ = quantized((1, 40), (1, 32), "i8", scale="f16", packing="q8_1")
    x = np.arange(40.0)[None] - 20
    q = encode(Ball(x), type_)
    assert q.scale.shape == (1, 4)
    codes = q.data.array.astype(np.float64)
    for block, columns in enumerate((slice(0, 32), slice(32, 40))):
        scale = abs(x[0, columns]).max() / 127
        assert q.scale.array[0, 2 * block] == np.float16(scale)
        total = scale * codes[0, columns].sum()
        assert q.scale.array[0, 2 * block + 1] == pytest.approx(total, rel=1e-3)
    assert abs(decode(q).mid - x).max() < 20 / 127


def test_decode_of_blocks_with_ragged_edges() -> None:
    data = tensor(np.arange(15).reshape(3, 5), "f8E4M3FN")
    scale = tensor([[1, 10], [100, 1000]])
    numbers = decode(Quantized(data, scale, quantized((3, 5), (2, 3))))
    rounded = data.array.astype(float)
    assert numbers.mid[0].tolist() == [0, 1, 2, 30, 40]
    assert numbers.mid[2].tolist() == [*(100 * rounded[2, :3]), *(1000 * rounded[2, 3:])]


@pytest.mark.parametrize(
    ("type_", "why"),
    [
        (quantized((32, 256), (1, 32), "i8", packing="q4_k"), 'i8 of packing "q4_k"'),
        (quantized((32, 256), (1, 32), "i8", zero_point="int"), "no zero points"),
    ],
)
def test_an_unknown_scheme_is_named(type_: Shaped, why: str) -> None:
    zeros = Tensor(np.zeros(type_.shape, np.int8))
    with pytest.raises(Inexecutable, match=why):
        decode(Quantized(zeros, tensor(np.ones(type_.scale_shape)), type_))


# Operations


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_those_of_torch(name: str) -> None:
    functional = torch.nn.functional
    x = torch.linspace(-12, 12, 4001)
    wanted = {
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
        "relu": torch.relu,
    }[name](x.double())
    got = ACTIVATIONS[name](Ball(x.double().numpy())).mid
    # four roundings at most, of x or of 1 times x
    assert (abs(got - wanted.numpy()) <= 4 * 2.0**-24 * x.abs().numpy()).all()


def test_region_operations_and_an_unknown_one() -> None:
    text = """
func.func @f(%x: tensor<1x2xf32>, %w: tensor<2x2xf32>) -> tensor<1x2xbf16> {{
  %0 = "qfuse.matmul"(%x, %w) ({{
  ^bb0(%acc: f32):
    {body}
    "qfuse.yield"(%y) : (f32) -> ()
  }}) {{parts = array<i64: 2>, maps = [], operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0>}}
     : (tensor<1x2xf32>, tensor<2x2xf32>) -> tensor<1x2xbf16>
  return %0 : tensor<1x2xbf16>
}}"""
    x, w = tensor([[1, 2]]), tensor([[3, 4], [-5, 1]])
    clamp = """
    %four = arith.constant 4.0 : f32
    %small = arith.cmpf olt, %acc, %four : f32
    %y = arith.select %small, %acc, %four : f32"""
    (y,) = run(text.format(body=clamp), x, w)
    assert isinstance(y, Tensor)
    assert y.array.astype(float).tolist() == [[4.0, -3.0]]
    with pytest.raises(Inexecutable, match=r"qfuse\.matmul at loc\(.*does not execute math\.sin"):
        run(text.format(body="%y = math.sin %acc : f32"), x, w)


def test_calls_of_outlined_functions_run_them() -> None:
    text = """
func.func private @double(%a: tensor<?xf32>) -> tensor<?xf32> {
  %0 = "qfuse.add"(%a, %a) : (tensor<?xf32>, tensor<?xf32>) -> tensor<?xf32>
  return %0 : tensor<?xf32>
}
func.func @f(%a: tensor<?xf32>) -> tensor<?xf32> {
  %0 = call @double(%a) : (tensor<?xf32>) -> tensor<?xf32>
  return %0 : tensor<?xf32>
}"""
    (y,) = run(text, tensor([1, 2, 3]))
    assert isinstance(y, Tensor)
    assert y.array.tolist() == [2, 4, 6]


def test_what_has_no_rule_is_named_with_its_place() -> None:
    text = """
func.func @f(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = arith.negf %a : tensor<4xf32> loc("here")
  return %0 : tensor<4xf32>
}"""
    with pytest.raises(Inexecutable, match=r'does not execute arith\.negf, at loc\("here"\)'):
        run(text, tensor([1, 2, 3, 4]))


def test_terms_of_long_sums_are_the_same_for_all_products() -> None:
    """So a product by a joined weight gives the bits of the products it replaces."""
    text = """
func.func @f(%x: tensor<2x1000xf32>, %w: tensor<{n}x1000xf32>) -> tensor<2x{n}xf32> {{
  %0 = "qfuse.matmul"(%x, %w) ({{
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }}) {{parts = array<i64: {n}>, maps = [],
      operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>,
      resultSegmentSizes = array<i32: 1, 0, 0, 0>}}
     : (tensor<2x1000xf32>, tensor<{n}x1000xf32>) -> tensor<2x{n}xf32>
  return %0 : tensor<2x{n}xf32>
}}"""
    generator = np.random.default_rng(0)
    x, w = (tensor(generator.standard_normal((n, 1000))) for n in (2, 10))
    for terms in (None, 64):
        (whole,) = run(text.format(n=10), x, w, terms=terms)
        parts = [
            run(text.format(n=n), x, Tensor(w.array[at : at + n]), terms=terms)[0]
            for at, n in ((0, 3), (3, 7))
        ]
        assert isinstance(whole, Tensor)
        joined = np.concatenate([p.array for p in parts if isinstance(p, Tensor)], 1)
        assert np.array_equal(whole.array, joined)
        exact = x.array.astype(float) @ w.array.astype(float).T
        assert np.allclose(whole.array, exact, rtol=1e-6) == (terms is None)


# Bounds


numbers = arrays.arrays(
    np.float64, 8, elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=True)
)
slacks = arrays.arrays(np.float64, 8, elements=st.floats(0, 10, width=32))
places = arrays.arrays(np.float64, 8, elements=st.floats(-1, 1))

OPERATIONS = {
    "add": balls.add,
    "sub": balls.sub,
    "mul": balls.mul,
    "div": balls.div,
    "maximum": balls.maximum,
    "select": lambda a, b: balls.select(balls.compare(a, b, np.less), a, b),
    "silu": lambda a, b: ACTIVATIONS["silu"](a),
    "gelu": lambda a, b: ACTIVATIONS["gelu"](a),
    "bf16": lambda a, b: balls.rounded(a, "bf16"),
    "sum": lambda a, b: balls.summed(a),
    "largest": lambda a, b: balls.largest(a),
    "quantized": lambda a, b: decode(encode(a.map(lambda v: v[None]), quantized((1, 8), (1, 4)))),
    "quantized, e8m0": lambda a, b: decode(
        encode(a.map(lambda v: v[None]), quantized((1, 8), (1, 4), scale="f8E8M0FNU"))
    ),
    "dot": lambda a, b: balls.dot(a.map(lambda v: v[None]), b.map(lambda v: v[None])),
}


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=40, deadline=None)
@given(numbers, numbers, slacks, slacks, places, places)
def test_results_of_other_members_lie_within_the_slack(name, a, b, s, t, u, v) -> None:
    """Of any members of the operands, evaluated without slack."""
    operation = OPERATIONS[name]
    with np.errstate(all="ignore"):
        bounded = operation(Ball(a, s), Ball(b, t))
        other = operation(Ball(a + s * u), Ball(b + t * v)).mid
        assert bounded.slack is not None
        # 1e-12: the members are computed in f64 themselves
        reach = bounded.slack * (1 + 1e-12) + 1e-12 * abs(bounded.mid)
        good = (abs(other - bounded.mid) <= reach) | (other == bounded.mid)
    good |= np.isinf(bounded.slack) | (np.isnan(other) & np.isnan(bounded.mid))
    assert good.all()
