"""The interpreter of Triton kernels: shapes, products, reductions and scans against numpy."""

import numpy as np
import pytest
from test_interpreter_writer import Writer, evaluate, tensor

from qfuse.lowering.triton.interpreter.types import DTYPES

F32 = np.float32
RANDOM = np.random.default_rng(11)


def one(body, *inputs):
    return evaluate(body, *inputs)[0][0]


def same(actual, expected):
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


def test_shapes():
    x = np.arange(24, dtype=np.int32).reshape(4, 6)
    v = np.arange(4, dtype=np.int32)

    def shaped(name, shape, attributes=""):
        return lambda w, *values: w.op(name, values, [tensor(shape, "i32")], attributes)

    same(one(lambda w, a: w.transposed(a), x), x.T)
    same(
        one(shaped("tt.trans", (3, 4, 2), "order = array<i32: 2, 0, 1>"), x.reshape(4, 2, 3)),
        x.reshape(4, 2, 3).transpose(2, 0, 1),
    )
    same(one(shaped("tt.reshape", (3, 8)), x), x.reshape(3, 8))
    same(one(lambda w, a: w.spread(w.row(a), (3, 4)), v), np.tile(v, (3, 1)))
    same(one(lambda w, a: w.spread(w.column(a), (4, 3)), v), np.tile(v[:, None], (1, 3)))
    same(one(lambda w, a: w.spread(a, (2, 2)), np.array(5, np.int32)), np.full((2, 2), 5, np.int32))
    same(one(shaped("tt.cat", (8,)), v, v + 9), np.concatenate([v, v + 9]))
    same(one(shaped("tt.join", (4, 2)), v, v + 9), np.stack([v, v + 9], -1))
    halves = evaluate(lambda w, a: w.op("tt.split", [a], [tensor((4,), "i32")] * 2), x[:, :2])[0]
    same(np.stack(halves, -1), x[:, :2])
    index = np.array([3, 0, 2, 2], np.int32)
    same(one(shaped("tt.gather", (4,), "axis = 0 : i32"), v * 5, index), (v * 5)[index])
    same(one(shaped("tt.unsplat", ()), np.array([7], np.int32)), np.array(7, np.int32))


@pytest.mark.parametrize("dtype", ["f8E4M3FN", "f8E5M2", "bf16", "f16", "f32", "f64"])
def test_dot(dtype):
    a, b = (
        RANDOM.standard_normal(s).astype(F32).astype(DTYPES[dtype]) for s in ((32, 64), (64, 16))
    )
    total = "f64" if dtype == "f64" else "f32"
    c = RANDOM.standard_normal((32, 16)).astype(DTYPES[total])
    expected = a.astype(float) @ b.astype(float) + c
    # 64 products of size 1 added in f32, in some order.
    np.testing.assert_allclose(one(lambda w, *v: w.dot(*v), a, b, c), expected, atol=64 * 2.0**-22)


def test_dot_of_integers_is_exact():
    a, b = (RANDOM.integers(-128, 128, s).astype(np.int8) for s in ((16, 256), (256, 16)))
    c = np.full((16, 16), 2**31 - 1, np.int32)
    expected = (a.astype(np.int64) @ b.astype(np.int64) + c).astype(np.int32)
    same(one(lambda w, *v: w.dot(*v), a, b, c), expected)


def test_dot_of_batches_and_in_tf32():
    a, b = (RANDOM.standard_normal((3, 8, 8)).astype(F32) for _ in range(2))
    c = np.zeros((3, 8, 8), F32)
    np.testing.assert_allclose(one(lambda w, *v: w.dot(*v), a, b, c), a @ b, atol=1e-5)

    def tf32(w, *v):
        return w.op("tt.dot", v, [w.types[v[2]]], "inputPrecision = 0 : i32")

    wrong = np.abs(one(tf32, a, b, c) - a @ b).max()
    assert 1e-5 < wrong < 8 * 8 * 2.0**-10  # each factor loses up to 2^-10 of itself


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("combine", "function"),
    [("arith.addf", np.sum), ("arith.maxnumf", np.max), ("arith.mulf", np.prod)],
)
def test_reduce(combine, function, axis):
    x = RANDOM.standard_normal((8, 12)).astype(F32)
    actual = one(lambda w, v: w.reduce(v, axis, combine), x)
    np.testing.assert_allclose(actual, function(x.astype(float), axis=axis), rtol=1e-4, atol=1e-6)


def test_reduce_to_a_scalar_and_of_pairs():
    x = RANDOM.permutation(64).astype(F32)
    same(one(lambda w, v: w.reduce(v, 0, "arith.maximumf"), x), np.array(63, F32))

    def argmax(w: Writer, v: str) -> list[str]:
        def body(a, i, b, j):
            first = w.op("arith.cmpf", [a, b], ["i1"], "predicate = 2 : i64")
            larger = w.op("arith.select", [first, a, b], ["f32"])
            index = w.op("arith.select", [first, i, j], ["i32"])
            w.op("tt.reduce.return", [larger, index])

        region = (["f32", "i32", "f32", "i32"], body)
        return w.op("tt.reduce", [v, w.range(64)], ["f32", "i32"], "axis = 0 : i32", region)

    most, where = evaluate(argmax, x)[0]
    assert (most, where) == (63, np.argmax(x))


@pytest.mark.parametrize("backwards", ["false", "true"])
def test_scan(backwards):
    x = RANDOM.integers(0, 9, (3, 13)).astype(np.int32)

    def body(w, v):
        def add(a, b):
            w.op("tt.scan.return", [w.add(a, b)])

        attributes = f"axis = 1 : i32, reverse = {backwards}"
        return w.op("tt.scan", [v], [w.types[v]], attributes, (["i32", "i32"], add))

    expected = np.cumsum(x[:, ::-1], 1)[:, ::-1] if backwards == "true" else np.cumsum(x, 1)
    same(one(body, x), expected.astype(np.int32))


def test_constants_with_differing_elements():
    def body(w, _):
        t = tensor((4,), "i32")
        return w.op("arith.constant", (), [t], f"value = dense<[1, -2, 3, 4]> : {t}")

    same(one(body, np.zeros(1, F32)), np.array([1, -2, 3, 4], np.int32))
