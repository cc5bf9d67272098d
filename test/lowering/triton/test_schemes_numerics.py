"""Products of every quantization scheme on the interpreter against sums in f64.

Memory around operands is poisoned, results are written once, and every address is checked; see
`gpu_kernels.run`.  Each tolerance is that of one rounding and of the order of f32 sums.
"""

import numpy as np
import pytest
from gpu_kernels import (
    SILU_GLU,
    Array,
    Value,
    assert_close,
    assert_quantized,
    forced,
    matmul_text,
    parsed,
    plain,
    quantized,
    random,
    run,
    silu,
)
from scheme_values import operand, packed, product

from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Shaped
from qfuse.lowering.triton import gemv
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.product import read_product
from qfuse.lowering.triton.signature import read_signature
from qfuse.lowering.triton.tiles import Config

TARGETS = ("cuda:sm_90", "cuda:sm_80", "hip:gfx942")
"""NVIDIA with FP8 and without, and arithmetic without NVIDIA's assembly."""

PACKED_TARGETS = ("cuda:sm_90", "hip:gfx942")
"""What is made of codes that share bytes is alike on all of NVIDIA's."""

K, N = 768, 77
RAGGED = 300


def i8(k: int, block: int) -> Shaped:
    return quantized(-1, k, block=(1, block), dtype="i8")


def q8_1(k: int) -> Shaped:
    return packed(-1, k, packing="q8_1")


def int4(k: int, n: int = N, **options) -> Shaped:
    return packed(n, k, packing="int4", **options)


PACKED: dict[str, Shaped] = {
    "int4 per 32": int4(K),
    "int4 per 64, by columns": int4(K, block=64, layout="col_major", scale="f32"),
    "int4 per 128 with zero points": int4(K, block=128, zero="int", scale="bf16"),
    "int4 per row": int4(K, block=K),
    "int4 per row with zero points": int4(K, block=K, zero="int"),
    "int4, ragged": int4(RAGGED, 40, block=32, zero="int"),
    "fp4": packed(N, K, packing="fp4"),
    "fp4, ragged": packed(40, RAGGED, packing="fp4"),
    "q4_k": packed(N, K, packing="q4_k"),
    "q6_k": packed(N, K, packing="q6_k"),
    "q4_k, one row": packed(1, K, packing="q4_k"),
    "q6_k, one row": packed(1, K, packing="q6_k"),
}
INTEGERS = [name for name in PACKED if not name.startswith("fp4")]


def check(x: Shaped, w: Shaped, m: int, target: str, config: Config | None = None) -> None:
    """The product of `m` rows, made as for `target` or, if given, cut as `config` says."""
    operands, expected = product(x, w, m)
    out = plain(-1, w.shape[0], dtype="f32")
    text = matmul_text(x, w, [out])
    if config is None:
        (made,) = run(text, operands, [out], m, target)
    else:
        with forced(config, m):
            (made,) = run(text, operands, [out], m, target)
    assert_close(made, expected, "f32")


def row_text(x: Shaped, w: Shaped) -> str:
    return matmul_text(x, w, [plain(-1, w.shape[0], dtype="f32")])


@pytest.mark.parametrize("target", PACKED_TARGETS)
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("name", PACKED)
def test_plain_rows(name: str, dtype: str, target: str) -> None:
    """W4A16: few rows in one tile, where K may be split, and several tiles."""
    w = PACKED[name]
    x = plain(-1, w.shape[1], dtype=dtype)
    for m in (3, 70) if target == "cuda:sm_90" else (20,):
        check(x, w, m, target)


@pytest.mark.parametrize("target", PACKED_TARGETS)
@pytest.mark.parametrize("name", INTEGERS)
def test_integer_rows(name: str, target: str) -> None:
    """W4A8: by blocks of q8_1, whose sums no kernel may read, by groups and whole rows of i8."""
    w = PACKED[name]
    k = w.shape[1]
    for m, x in ((3, q8_1(k)), (70, q8_1(k)), (20, i8(k, k)), (17, i8(k, 128))):
        check(x, w, m, target)


SWEPT: dict[str, tuple[Shaped, Shaped]] = {
    "bf16": (plain(-1, 256), plain(40, 256)),
    "f32": (plain(-1, 256, dtype="f32"), plain(40, 256, dtype="f32")),
    "fp8 in blocks": (quantized(-1, 256), quantized(40, 256, block=(128, 128))),
    "fp8 per row": (quantized(-1, 256, block=(1, 256)), quantized(40, 256, block=(1, 256))),
    "i8 per row": (i8(256, 256), quantized(40, 256, block=(1, 256), dtype="i8")),
    "int4 by bf16": (plain(-1, 256), int4(256, 40, block=128, zero="int", scale="bf16")),
    "fp4 by bf16": (plain(-1, 256), packed(40, 256, packing="fp4")),
    "q4_k by q8_1": (q8_1(256), packed(40, 256, packing="q4_k")),
    "q6_k by q8_1": (q8_1(256), packed(40, 256, packing="q6_k")),
}


@pytest.mark.parametrize("name", SWEPT)
def test_every_number_of_rows(name: str) -> None:
    """Decode and prefill agree, bias and all, whichever kernel serves them: M from 1 to 40."""
    x, w = SWEPT[name]
    most, out = 40, plain(-1, 40)
    (x_values, w_values), total = product(x, w, most)
    bias = random((40,), "bf16", 5, float(np.abs(total).mean()))
    expected = total + bias.astype(np.float64)
    body, extra = "%y = arith.addf %acc0, %e0 : f32", [(plain(40), "[N]")]
    text = matmul_text(x, w, [out], body, ["%y"], extra)
    for m in range(1, most + 1):
        rows = tuple(v[:m] for v in x_values) if isinstance(x_values, tuple) else x_values[:m]
        (made,) = run(text, [rows, w_values, bias], [out], m)
        assert_close(made, expected[:m], "bf16")


GEMV = Config(1, gemv.COLUMNS, gemv.DEPTH, gemv=True)
SLICED = Config(1, gemv.COLUMNS, gemv.DEPTH, gemv=True, slices=2)


@pytest.mark.parametrize("target", PACKED_TARGETS)
@pytest.mark.parametrize("name", PACKED)
def test_one_row(name: str, target: str) -> None:
    """The kernel without matrix instructions, with K whole and in slices."""
    w = PACKED[name]
    k = w.shape[1]
    xs = [plain(-1, k), plain(-1, k, dtype="f16"), plain(-1, k, dtype="f32")]
    if name in INTEGERS:
        xs += [q8_1(k), i8(k, k)]
    for x in xs:
        check(x, w, 1, target, GEMV)
    check(xs[0], w, 1, target, SLICED)


TILES = {
    "few rows, split": Config(16, 64, 0, swap=True, slices=3, num_stages=4),
    "many rows": Config(64, 64, 0, swap=True),
    "many rows, split": Config(64, 32, 0, swap=True, slices=2),
    "weights second": Config(64, 64, 0),
}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", ["int4 per 128 with zero points", "fp4", "q4_k", "q6_k"])
def test_every_tile(name: str, tile: str) -> None:
    """K in slices that begin within a block of a K-quant."""
    w = PACKED[name]
    xs = [plain(-1, K)] + ([q8_1(K)] if name in INTEGERS else [])
    for x in xs:
        depth = depth_of(x, w)
        config = Config(**{**vars(TILES[tile]), "depth": depth})
        check(x, w, 2 * config.rows + 3, "cuda:sm_90", config)


def depth_of(x: Shaped, w: Shaped, target: str = "cuda:sm_90") -> int:
    """Elements of K in a step of a tile."""
    with parsed(row_text(x, w)) as function:
        return read_product(read_signature(function)).depth(find_gpu(target))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("x", "w"),
    [
        (i8(K, K), quantized(N, K, block=(1, K), dtype="i8")),
        (plain(-1, K), quantized(N, K, block=(1, K), dtype="i8", scale="bf16")),
        (plain(-1, K, dtype="f16"), quantized(N, K, block=(1, 64), dtype="i8", scale="f16")),
        (q8_1(K), quantized(N, K, block=(1, 32), dtype="i8", scale="f16")),
        (q8_1(K), quantized(N, K, block=(1, 128), dtype="i8")),
        (i8(K, 128), quantized(N, K, block=(1, 32), dtype="i8")),
        (quantized(-1, K, block=(1, K)), quantized(N, K, block=(1, K))),
        (
            quantized(-1, K, block=(1, K), dtype="f8E5M2"),
            quantized(N, K, block=(1, K), dtype="f8E5M2"),
        ),
        (quantized(-1, K, block=(1, K)), quantized(N, K, block=(1, K), dtype="f8E5M2")),
        (quantized(-1, K, dtype="f8E5M2"), quantized(N, K, block=(128, 128))),
        (
            quantized(-1, K, scale="f8E8M0FNU"),
            quantized(N, K, block=(128, 128), scale="f8E8M0FNU"),
        ),
        (
            quantized(-1, RAGGED, block=(1, 32), scale="f8E8M0FNU", layout="col_major"),
            quantized(40, RAGGED, block=(32, 96), scale="f8E8M0FNU"),
        ),
        (plain(-1, K), quantized(N, K, block=(64, 64), dtype="f8E5M2", scale="f8E8M0FNU")),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_codes_of_eight_bits(x: Shaped, w: Shaped, target: str) -> None:
    """INT8 and FP8 per channel and token, e8m0 scales, and groups of x and w that nest."""
    for m in (1, 40):
        check(x, w, m, target)


@pytest.mark.parametrize("adjacent", [1, 2])
@pytest.mark.parametrize("dtype", ["f8E4M3FN", "i8"])
def test_scales_of_whole_rows_in_the_persistent_kernel(dtype: str, adjacent: int) -> None:
    """They are read after the sum; so is the epilogue's result quantized."""
    x, w = (quantized(n, 400, block=(1, 400), dtype=dtype) for n in (-1, 264))
    operands, expected = product(x, w, 140)
    operands[0] = (operands[0][0], operands[0][1] / 64)
    expected /= 64
    outs = [plain(-1, 264), quantized(-1, 264)]
    text = matmul_text(x, w, outs, yields=["%acc0"] * 2)
    with forced(Config(128, 128, 128, adjacent, persistent=True)):
        made, codes = run(text, operands, outs, 140)
    assert_close(made, expected, "bf16")
    assert_quantized(codes, expected, outs[1])


def test_sums_of_i8_are_exact() -> None:
    """Of 4096 codes at their limits: f32 could not tell them apart, i32 can."""
    k, m, n = 4096, 3, 16
    generator = np.random.default_rng(1)
    codes = [
        np.where(generator.random((rows, k)) < 0.999, 127, generator.integers(-127, 128, (rows, k)))
        for rows in (m, n)
    ]
    ones = [np.ones((rows, 1), np.float32) for rows in (m, n)]
    x, w = i8(k, k), quantized(n, k, block=(1, k), dtype="i8")
    out = plain(-1, n, dtype="f32")
    config = Config(16, 16, 128, swap=True)
    operands: list[Value] = [(c.astype(np.int8), s) for c, s in zip(codes, ones, strict=True)]
    with forced(config, 16):
        (made,) = run(matmul_text(x, w, [out]), operands, [out], m)
    sums = codes[0] @ codes[1].T
    assert (sums > 1 << 25).all() and (sums % 4 != 0).any()
    np.testing.assert_array_equal(made, sums.astype(np.float32))


@pytest.mark.parametrize("name", ["int4 per 128 with zero points", "q4_k", "q6_k"])
@pytest.mark.parametrize("m", [1, 9, 70])
def test_gate_and_up(name: str, m: int) -> None:
    """Two parts of one weight, a bias for each column, and GLU of what they make."""
    like, width = PACKED[name], 72
    w = Shaped((2 * width, K), like.dtype, like.scheme)
    x = plain(-1, K)
    operands, total = product(x, w, m)
    operands[0] = operands[0] / np.asarray(64, operands[0].dtype)
    total /= 64
    bias = random((width,), "bf16", 3)
    out = plain(-1, width)
    body = "%g = arith.addf %acc0, %e0 : f32\n" + SILU_GLU.replace("%acc0", "%g")
    text = matmul_text(x, w, [out], body, ["%v"], [(plain(width), "[N]")], [width, width])
    (made,) = run(text, [*operands, bias], [out], m)
    gate = total[:, :width] + bias.astype(np.float64)
    assert_close(made, silu(gate) * total[:, width:], "bf16")


@pytest.mark.parametrize("name", ["int4 per 128 with zero points", "fp4", "q4_k", "q6_k"])
def test_experts(name: str) -> None:
    """Each has codes, scales and zero points of its own; one of them gets no rows."""
    like, experts, m = PACKED[name], 3, 40
    each = Shaped((N, K), like.dtype, like.scheme)
    made = [operand(each, N, 10 + e) for e in range(experts)]
    w: Value = tuple(np.stack(parts) for parts in zip(*(value for value, _ in made), strict=True))
    x = random((m, K), "bf16", 1)
    indptr = np.array([0, 23, 23, m], np.int32)
    out = plain(-1, N, dtype="f32")
    text = matmul_text(
        plain(-1, K),
        Shaped((experts, N, K), like.dtype, like.scheme),
        [out],
        routing=[plain(experts + 1, dtype="i32")],
    )
    (result,) = run(text, [x, w, indptr], [out], m)
    expected: Array = np.empty((m, N))
    for e in range(experts):
        rows = slice(indptr[e], indptr[e + 1])
        expected[rows] = x[rows].astype(np.float64) @ made[e][1].T
    assert_close(result, expected, "f32")


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (
            quantized(-1, K, block=(1, 32)),
            int4(K),
            "multiplies f8E4M3FN by i4; quantize x to i8, or leave it plain",
        ),
        (
            q8_1(K),
            packed(N, K, packing="fp4"),
            "multiplies i8 by f4E2M1FN; leave x plain",
        ),
        (
            packed(-1, K, packing="int4"),
            int4(K),
            'x stores i4 with packing "int4"; GPU kernels read x with none, q8_1',
        ),
        (
            q8_1(K),
            packed(N, K, packing="q8_1"),
            'w stores i8 with packing "q8_1"; GPU kernels read w with none, int4, fp4, q4_k, q6_k',
        ),
        (plain(-1, K), int4(K, block=16), "w is scaled per 16 of K; GPU kernels take multiples"),
        (i8(K, 16), packed(N, K, packing="q6_k"), "x is scaled per 16 of K"),
    ],
)
def test_refusals(x: Shaped, w: Shaped, message: str) -> None:
    with pytest.raises(QfuseError) as caught:
        run(row_text(x, w), [], [plain(-1, N, dtype="f32")], 1)
    assert message in str(caught.value) and "\n" not in str(caught.value)
