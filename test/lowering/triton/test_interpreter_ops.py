"""The interpreter of Triton kernels: element-wise operations against numpy."""

from fractions import Fraction

import numpy as np
import pytest
from test_interpreter_writer import NAMES, evaluate, tensor

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.interpreter.types import DTYPES

F32 = np.float32
RANDOM = np.random.default_rng(7)
SPECIAL = np.array([0.0, -0.0, 1.5, -2.25, np.inf, -np.inf, np.nan, 3e38, 1e-40], F32)
PAIRS = np.meshgrid(SPECIAL, SPECIAL)


def one(body, *inputs, **options):
    return evaluate(body, *inputs, **options)[0][0]


def same(actual, expected):
    assert actual.dtype == expected.dtype
    if actual.dtype.kind == "V":  # numpy does not know the NaN of ml_dtypes
        actual, expected = actual.astype(F32), expected.astype(F32)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "f64"])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("arith.addf", np.add),
        ("arith.subf", np.subtract),
        ("arith.mulf", np.multiply),
        ("arith.divf", np.divide),
        ("arith.maxnumf", np.fmax),
        ("arith.minnumf", np.fmin),
        ("arith.maximumf", np.maximum),
        ("arith.minimumf", np.minimum),
        ("tt.precise_divf", np.divide),
    ],
)
def test_float_arithmetic(name, function, dtype):
    with np.errstate(all="ignore"):
        a, b = (x.reshape(-1).astype(DTYPES[dtype]) for x in PAIRS)
        same(one(lambda w, x, y: w.binary(name, x, y), a, b), function(a, b))


@pytest.mark.parametrize("dtype", ["i8", "i32", "i64"])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("arith.addi", lambda a, b: a + b),
        ("arith.subi", lambda a, b: a - b),
        ("arith.muli", lambda a, b: a * b),
        ("arith.divsi", lambda a, b: int(Fraction(a, b))),
        ("arith.remsi", lambda a, b: a - b * int(Fraction(a, b))),
        ("arith.floordivsi", lambda a, b: a // b),
        ("arith.ceildivsi", lambda a, b: -(-a // b)),
        ("arith.minsi", min),
        ("arith.maxsi", max),
        ("arith.andi", lambda a, b: a & b),
        ("arith.ori", lambda a, b: a | b),
        ("arith.xori", lambda a, b: a ^ b),
    ],
)
def test_signed_arithmetic(name, function, dtype):
    numbers = [-128, -127, -7, -1, 1, 3, 8, 127]
    a, b = (x.reshape(-1).astype(DTYPES[dtype]) for x in np.meshgrid(numbers, numbers))
    wrap = 1 << DTYPES[dtype].itemsize * 8
    exact = [function(int(x), int(y)) for x, y in zip(a, b, strict=True)]
    expected = np.array([(v + wrap // 2) % wrap - wrap // 2 for v in exact], DTYPES[dtype])
    same(one(lambda w, x, y: w.binary(name, x, y), a, b), expected)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("arith.divui", np.floor_divide),
        ("arith.remui", np.remainder),
        ("arith.minui", np.minimum),
        ("arith.maxui", np.maximum),
        ("arith.shli", lambda a, b: a << (b & 31)),
        ("arith.shrui", lambda a, b: a >> (b & 31)),
    ],
)
def test_unsigned_arithmetic(name, function):
    a = np.array([-8, -1, 5, 2**31 - 1], np.int32)
    b = np.array([3, 31, 2, 7], np.int32)
    expected = function(a.view(np.uint32), b.view(np.uint32)).view(np.int32)
    same(one(lambda w, x, y: w.binary(name, x, y), a, b), expected)


def test_arithmetic_shift_keeps_the_sign():
    a = np.array([-8, 8], np.int32)
    same(one(lambda w, x: w.binary("arith.shrsi", x, 2), a), np.array([-2, 2], np.int32))


def test_booleans_are_one_bit():
    a, b = np.array([True, True, False]), np.array([True, False, False])
    add, times = (
        one(lambda w, x, y, name=name: w.binary(name, x, y), a, b)
        for name in ("arith.addi", "arith.muli")
    )
    same(add, np.array([0, 1, 0], np.int8))
    same(times, np.array([1, 0, 0], np.int8))
    same(one(lambda w, x: w.unary("arith.extsi", x, "i32"), a), np.array([-1, -1, 0], np.int32))


@pytest.mark.parametrize("predicate", range(10))
def test_comparison_of_integers(predicate):
    a = np.array([-2, -1, 0, 1, 1], np.int32)
    b = np.array([1, -1, 0, -1, 2], np.int32)
    if predicate > 5:
        x, y = a.view(np.uint32), b.view(np.uint32)
    else:
        x, y = a, b
    kind = predicate if predicate < 6 else predicate - 4
    expected = (x == y, x != y, x < y, x <= y, x > y, x >= y)[kind]
    same(one(lambda w, p, q: w.compare(p, q, predicate), a, b), expected.astype(np.int8))


@pytest.mark.parametrize("predicate", range(16))
def test_comparison_of_floats(predicate):
    """MLIR numbers them: bit 3 set means that unordered operands compare true."""
    a, b = (x.reshape(-1) for x in PAIRS)
    nan = np.isnan(a) | np.isnan(b)
    ordered = (0 * nan, a == b, a > b, a >= b, a < b, a <= b, (a != b) & ~nan, ~nan)[predicate % 8]
    if predicate >= 8:  # ueq ugt uge ult ule une uno true
        table = (a == b, a > b, a >= b, a < b, a <= b, a != b, 0 * nan, ~nan)
        ordered = table[predicate - 8] | nan

    def body(w, x, y):
        result = tensor(a.shape, "i1")
        return w.op("arith.cmpf", [x, y], [result], f"predicate = {predicate} : i64")

    same(one(body, a, b), ordered.astype(np.int8))


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("math.exp", np.exp),
        ("math.exp2", np.exp2),
        ("math.log", np.log),
        ("math.log2", np.log2),
        ("math.sqrt", np.sqrt),
        ("tt.precise_sqrt", np.sqrt),
        ("math.absf", np.abs),
        ("math.floor", np.floor),
        ("math.ceil", np.ceil),
        ("math.sin", np.sin),
        ("math.cos", np.cos),
        ("math.rsqrt", lambda x: 1 / np.sqrt(x)),
        ("math.erf", lambda x: np.vectorize(__import__("math").erf)(x)),
    ],
)
def test_functions(name, function):
    x = RANDOM.uniform(0.1, 5, 64).astype(F32)
    actual = one(lambda w, v: w.unary(name, v), x)
    np.testing.assert_allclose(actual, function(x.astype(float)), rtol=3e-7)


def _nearest(x: Fraction) -> np.float32:
    """The f32 nearest to an exact number, ties to the even one."""
    guess = F32(float(x))
    around = [np.nextafter(guess, F32(-np.inf)), guess, np.nextafter(guess, F32(np.inf))]
    return min(around, key=lambda c: (abs(Fraction(float(c)) - x), int(c.view(np.int32)) & 1))


@pytest.mark.parametrize("how", ["math", "asm"])
def test_fma_rounds_once(how):
    a, b = (RANDOM.standard_normal(500).astype(F32) for _ in range(2))
    scale = F32(2.0) ** RANDOM.integers(-30, 3, 500).astype(F32)
    c = (-(a * b) + RANDOM.standard_normal(500).astype(F32) * scale).astype(F32)
    c[:100] = (a * F32(2.0**24))[:100]  # ties
    b[:100] = RANDOM.choice([1.0, 3.0, 1 + 2.0**-23], 100)

    def body(w, x, y, z):
        return w.fma(x, y, z) if how == "asm" else w.op("math.fma", [x, y, z], [w.types[x]])

    exact = [
        Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        for x, y, z in zip(a, b, c, strict=True)
    ]
    same(one(body, a, b, c), np.array([_nearest(x) for x in exact], F32))


@pytest.mark.parametrize("target", ["f8E4M3FN", "f8E5M2", "f8E4M3FNUZ", "f8E5M2FNUZ"])
@pytest.mark.parametrize("rounding", [0, 1])
def test_fp8_rounds_and_saturates(target, rounding):
    table = np.arange(256, dtype=np.uint8).view(DTYPES[target]).astype(np.float64)
    codes = np.flatnonzero(np.isfinite(table))
    most = table[codes].max()
    x = np.concatenate([RANDOM.standard_normal(200) * s for s in (0.01, 1, 100)]).astype(F32)
    middle = np.sort(table[codes])
    x = np.concatenate([x, ((middle[1:] + middle[:-1]) / 2).astype(F32), [most * 2, -np.inf]])
    x = x.astype(F32)
    clipped = np.clip(x.astype(float), -most, most)
    distance = np.abs(clipped[:, None] - table[codes])
    if rounding == 0:
        distance[np.abs(table[codes]) > np.abs(clipped)[:, None]] = np.inf
    odd = np.broadcast_to(codes % 2, distance.shape)  # of two equally near ones the even code
    expected = table[codes[np.lexsort((odd, distance), axis=1)[:, 0]]]
    attributes = f"rounding = {rounding} : i32"
    actual = one(lambda w, v: w.unary("tt.fp_to_fp", v, target, attributes), x)
    np.testing.assert_array_equal(actual.astype(float), expected)
    back = one(lambda w, v: w.unary("tt.fp_to_fp", v, "bf16"), actual)
    np.testing.assert_array_equal(back.astype(float), expected)


def test_nan_survives_conversion_to_fp8():
    x = np.array([np.nan], F32)
    for target in ("f8E4M3FN", "f8E5M2", "f8E4M3FNUZ"):
        q = one(lambda w, v, t=target: w.unary("tt.fp_to_fp", v, t, "rounding = 1 : i32"), x)
        assert np.isnan(q.astype(F32)).all()


@pytest.mark.parametrize(
    ("name", "source", "target"),
    [
        ("arith.truncf", "f32", "bf16"),
        ("arith.truncf", "f32", "f16"),
        ("arith.extf", "bf16", "f32"),
        ("arith.extsi", "i8", "i32"),
        ("arith.trunci", "i32", "i8"),
        ("arith.sitofp", "i32", "f32"),
        ("arith.fptosi", "f32", "i8"),
    ],
)
def test_conversions(name, source, target):
    x = (RANDOM.standard_normal(64) * 40).astype(DTYPES[source])
    expected = x.astype(DTYPES[target])
    same(one(lambda w, v: w.unary(name, v, target), x), expected)


def test_unsigned_conversions_and_bitcasts():
    x = np.array([-1, 200 - 256], np.int8)
    same(one(lambda w, v: w.unary("arith.extui", v, "i32"), x), np.array([255, 200], np.int32))
    same(one(lambda w, v: w.unary("arith.uitofp", v, "f32"), x), np.array([255, 200], F32))
    y = np.array([1.5, -0.0], F32)
    for name in ("arith.bitcast", "tt.bitcast"):
        same(one(lambda w, v, n=name: w.unary(n, v, "i32"), y), y.view(np.int32))


def test_select_clamp_and_high_product():
    a, b = np.arange(8, dtype=F32), -np.arange(8, dtype=F32)
    condition = a > 3

    def select(w, c, x, y):
        return w.op("arith.select", [c, x, y], [w.types[x]])

    same(one(select, condition, a, b), np.where(condition, a, b))
    same(one(select, np.array(True), a, b), a)

    def clamp(w, x):
        low, high = w.constant(1.0, w.types[x]), w.constant(5.0, w.types[x])
        return w.op("tt.clampf", [x, low, high], [w.types[x]], "propagateNan = 0 : i32")

    same(one(clamp, a), np.clip(a, 1, 5))
    x = np.array([-1, 1 << 20], np.int32)
    product = x.view(np.uint32).astype(np.uint64) * x.view(np.uint32)
    expected = (product >> np.uint64(32)).astype(np.uint32).view(np.int32)
    same(one(lambda w, v: w.op("tt.mulhiui", [v, v], [w.types[v]]), x), expected)


def test_library_functions_and_unknown_ones():
    x = RANDOM.standard_normal(16).astype(F32)

    def call(symbol):
        return lambda w, v: w.op("tt.extern_elementwise", [v], [w.types[v]], f'symbol = "{symbol}"')

    np.testing.assert_allclose(one(call("__nv_tanhf"), x), np.tanh(x), rtol=1e-6)
    with pytest.raises(QfuseError, match="'__nv_j0f' is not one of"):
        one(call("__nv_j0f"), x)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda w, v: w.unary("arith.negf", v), r'"arith.negf" at "-":\d+:\d+: Triton 3.6 cannot'),
        (lambda w, v: w.unary("math.tanh", v), "Triton cannot convert it; compute it by math.exp"),
        (lambda w, v: w.unary("tt.mystery", v), "does not know this operation"),
        (lambda w, v: w.unary("tt.fp_to_fp", v, "f8E4M3FN"), "attribute 'rounding' is missing"),
        (lambda w, v: w.unary("arith.truncf", v, "f8E4M3FN"), "converts FP8 only by tt.fp_to_fp"),
        (lambda w, v: w.unary("tt.bitcast", v, "i8"), "must keep the width"),
        (lambda w, v: w.unary("tt.splat", v, "f16"), r"gives float32\[16\], its type says float16"),
        (
            lambda w, v: w.op(
                "tt.elementwise_inline_asm",
                [v],
                [w.types[v]],
                'asm_string = "sin.approx.f32 $0, $1;", constraints = "=f,f"',
            ),
            "assembly 'sin.approx.f32",
        ),
    ],
)
def test_what_triton_or_the_interpreter_lacks_is_refused(body, message):
    with pytest.raises(QfuseError, match=message):
        one(body, np.ones(16, F32))


def test_every_element_type_is_loaded_and_stored_bit_for_bit():
    for dtype, name in NAMES.items():
        if name != "i1":
            bits = RANDOM.integers(0, 256, 64 * dtype.itemsize).astype(np.uint8)
            assert one(lambda w, v: v, bits.view(dtype)).tobytes() == bits.tobytes(), name
