"""Products on the interpreter against sums in f64: every kernel, ragged shapes, all epilogues."""

from dataclasses import replace

import numpy as np
import pytest
from gpu_kernels import (
    SILU_GLU,
    assert_close,
    assert_quantized,
    forced,
    lowered,
    matmul_text,
    plain,
    product,
    quantized,
    random,
    run,
    silu,
)

from qfuse.dialects.types import Shaped
from qfuse.lowering.triton.gpu import GPUS
from qfuse.lowering.triton.interpreter import Trap
from qfuse.lowering.triton.tiles import Config


def fp8(k: int, n: int, **options) -> tuple[Shaped, Shaped]:
    return quantized(-1, k, **options), quantized(n, k, block=(128, 128))


@pytest.mark.parametrize("m", [1, 5, 16, 17, 33, 64, 65, 200])
def test_every_range_of_rows(m: int) -> None:
    """K and N ragged in the split kernels; the persistent one pads K = 1296 within TMA."""
    x, w = fp8(1296, 200)
    operands, expected = product(x, w, m)
    out = plain(-1, 200)
    (made,) = run(matmul_text(x, w, [out]), operands, [out], m)
    assert_close(made, expected, "bf16")


KERNELS = {
    "few rows": Config(16, 128, 128, swap=True, slices=4, num_stages=4),
    "more slices than are in flight": Config(64, 64, 128, swap=True, slices=11),
    "slices of many rows": Config(64, 64, 128, slices=3),
    "tiles": Config(128, 64, 128, num_warps=8),
    "persistent": Config(128, 128, 128, persistent=True),
    "persistent, two products": Config(128, 128, 128, 2, persistent=True),
}


@pytest.mark.parametrize("name", KERNELS)
def test_every_kernel(name: str) -> None:
    """Whatever is chosen for these rows: K and N ragged, as many rows as it takes."""
    config = KERNELS[name]
    m = config.rows - 3 if config.swap else 2 * config.rows + 5
    x, w = fp8(1296, 200)
    operands, expected = product(x, w, m)
    out = plain(-1, 200)
    with forced(config, m):
        (made,) = run(matmul_text(x, w, [out]), operands, [out], m)
    assert_close(made, expected, "bf16")


@pytest.mark.parametrize("m", [3, 33])
def test_slices_add_up_alike_in_any_order(m: int) -> None:
    """Whichever program finishes last: the same bits, counters at zero, no race."""
    x, w = fp8(3000, 200)
    operands, expected = product(x, w, m)
    out = plain(-1, 200, dtype="f32")
    text = matmul_text(x, w, [out])
    with forced(Config(64, 64, 128, swap=True, slices=4), m):
        count = int(np.prod(lowered(text).variant(m).launches[0].grid.of(m)))
        assert count == 16
        order = np.random.default_rng(m).permutation(count)
        ways = [(None, None), (1, np.arange(count)), (1, np.arange(count)[::-1]), (2, order)]
        made = [run(text, operands, [out], m, parallel=n, order=o)[0] for n, o in ways]
    assert_close(made[0], expected, "f32")
    for other in made[1:]:
        np.testing.assert_array_equal(made[0], other)


@pytest.mark.parametrize(
    ("was", "is_now"), [("gpu.barrier", ""), ("sem = 4 : i32", "sem = 1 : i32")]
)
def test_slices_need_their_barrier_and_order(was: str, is_now: str) -> None:
    """The interpreter tells when the last program reads sums that it cannot rely on."""
    x, w = fp8(3000, 200)
    operands, _ = product(x, w, 3)
    out = plain(-1, 200)
    sliced = Config(16, 64, 128, swap=True, slices=4)
    with forced(sliced, 16), pytest.raises(Trap, match="reads what program"):
        run(matmul_text(x, w, [out]), operands, [out], 3, edit=lambda t: t.replace(was, is_now))


@pytest.mark.parametrize("programs", [1, 3])
def test_a_program_of_the_persistent_kernel_makes_many_tiles(programs: int) -> None:
    x, w = fp8(256, 700)
    operands, expected = product(x, w, 300)
    out = plain(-1, 700)
    (made,) = run(matmul_text(x, w, [out]), operands, [out], 300, programs=programs)
    assert_close(made, expected, "bf16")


@pytest.mark.parametrize(("m", "k", "n"), [(3, 300, 130), (70, 300, 130), (70, 37, 1), (1, 1, 1)])
def test_shapes_that_tma_cannot_take(m: int, k: int, n: int) -> None:
    x, w = fp8(k, n)
    operands, expected = product(x, w, m)
    out = plain(-1, n, dtype="f32")
    (made,) = run(matmul_text(x, w, [out]), operands, [out], m)
    assert_close(made, expected, "f32")


@pytest.mark.parametrize("target", [target for target in GPUS if target != "cuda:sm_90"])
@pytest.mark.parametrize("m", [4, 90])
def test_other_targets(target: str, m: int) -> None:
    """sm_80 has neither FP8 products nor conversions; gfx942 multiplies OCP FP8 as f16."""
    x, w = fp8(300, 140)
    operands, expected = product(x, w, m)
    out = plain(-1, 140, dtype="f16")
    (made,) = run(matmul_text(x, w, [out]), operands, [out], m, target)
    assert_close(made, expected, "f16")


@pytest.mark.parametrize("m", [3, 40, 130])
def test_extra_operands_of_every_map(m: int) -> None:
    x, w = fp8(512, 320)
    out = plain(-1, 320)
    extra = [
        (plain(320), "[N]"),
        (plain(-1, 1, dtype="f32"), "[M,1]"),
        (plain(-1, 320), "[M,N]"),
        (plain(1, dtype="f16"), "[]"),
    ]
    body = """
    %0 = arith.addf %acc0, %e0 : f32
    %1 = arith.mulf %0, %e1 : f32
    %2 = arith.addf %1, %e2 : f32
    %3 = arith.mulf %2, %e3 : f32
    """
    operands, total = product(x, w, m)
    more = [
        random((320,), "bf16", 5, 50),
        random((m, 1), "f32", 6),
        random((m, 320), "bf16", 7, 50),
        random((1,), "f16", 8),
    ]
    n, column, full, scalar = (e.astype(np.float64) for e in more)
    expected = ((total + n) * column + full) * scalar
    (made,) = run(matmul_text(x, w, [out], body, ["%3"], extra), [*operands, *more], [out], m)
    assert_close(made, expected, "bf16")


@pytest.mark.parametrize("m", [2, 33, 130])
@pytest.mark.parametrize("width", [256, 200, 208])
def test_glu_quantized(m: int, width: int) -> None:
    """Gate and up as two products of one kernel; what it writes is what the next one reads."""
    rows = -(-width // 128) * 128 + width
    x, w = fp8(384, rows)
    operands, total = product(x, w, m)
    operands[0] = (operands[0][0], operands[0][1] / 64)
    total /= 64
    expected = silu(total[:, :width]) * total[:, rows - width :]
    out = quantized(-1, width)
    text = matmul_text(x, w, [out], SILU_GLU, ["%v"], parts=[width, width])
    (made,) = run(text, operands, [out], m)
    assert_quantized(made, expected, out)


@pytest.mark.parametrize(
    "out",
    [
        quantized(-1, 272, block=(1, 32), layout="col_major"),
        quantized(-1, 272, block=(1, 64), layout="col_major"),
        quantized(-1, 272, block=(1, 32), dtype="i8", scale="f16"),
    ],
    ids=str,
)
@pytest.mark.parametrize("m", [5, 130])
def test_results_quantized_in_smaller_groups(m: int, out: Shaped) -> None:
    x, w = fp8(256, 272)
    operands, expected = product(x, w, m)
    (made,) = run(matmul_text(x, w, [out]), operands, [out], m)
    assert_quantized(made, expected, out)


@pytest.mark.parametrize("m", [5, 130])
def test_parts_of_several_widths(m: int) -> None:
    """q, k and v: the parts of one width share a launch, and each begins at a block of scales."""
    x, w = fp8(512, 384 + 128 + 72)
    operands, total = product(x, w, m)
    outs = [plain(-1, 300), plain(-1, 72), plain(-1, 72)]
    extra = [(plain(300), "[N]"), (plain(72), "[N]")]
    more = [random((300,), "bf16", 5, 50), random((72,), "bf16", 6, 50)]
    body = "%0 = arith.addf %acc0, %e0 : f32\n%1 = arith.addf %acc2, %e1 : f32"
    text = matmul_text(x, w, outs, body, ["%0", "%acc1", "%1"], extra, [300, 72, 72])
    made = run(text, [*operands, *more], outs, m)
    q = total[:, :300] + more[0].astype(np.float64)
    v = total[:, 512:584] + more[1].astype(np.float64)
    for actual, expected in zip(made, (q, total[:, 384:456], v), strict=True):
        assert_close(actual, expected, "bf16")


@pytest.mark.parametrize("m", [5, 130])
def test_several_results_of_one_accumulator(m: int) -> None:
    x, w = fp8(256, 256)
    operands, expected = product(x, w, m)
    outs = [plain(-1, 256, dtype="f32"), quantized(-1, 256), plain(-1, 256)]
    text = matmul_text(x, w, outs, yields=["%acc0", "%acc0", "%acc0"])
    full, codes, rounded = run(text, operands, outs, m)
    assert_close(full, expected, "f32")
    assert_quantized(codes, expected, outs[1])
    assert_close(rounded, expected, "bf16")


@pytest.mark.parametrize("width", [384, 264])
def test_the_second_of_two_products_may_lie_beyond_the_matrix(width: int) -> None:
    """What an epilogue reads and writes there is masked, where TMA does not do it."""
    x, w = fp8(256, width)
    operands, expected = product(x, w, 140)
    extra = [(plain(-1, width), "[M,N]"), (plain(width), "[N]")]
    more = [random((140, width), "bf16", 5, 10), random((width,), "bf16", 6, 10)]
    body = "%0 = arith.addf %acc0, %e0 : f32\n%v = arith.addf %0, %e1 : f32"
    outs = [plain(-1, width), quantized(-1, width)]
    text = matmul_text(x, w, outs, body, ["%v"] * 2, extra)
    with forced(KERNELS["persistent, two products"]):
        made, codes = run(text, [*operands, *more], outs, 140)
    expected = expected + more[0] + more[1]
    assert_close(made, expected, "bf16")
    assert_quantized(codes, expected, outs[1])


@pytest.mark.parametrize("adjacent", [1, 2])
@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_plain_operands_in_the_persistent_kernel(dtype: str, adjacent: int) -> None:
    """Without scales a step is added to its total where it is made; an epilogue all the same."""
    x, w = plain(-1, 200, dtype=dtype), plain(264, 200, dtype=dtype)
    operands, expected = product(x, w, 140)
    residual = random((140, 264), dtype, 5, 10)
    outs = [plain(-1, 264), quantized(-1, 264)]
    body = "%v = arith.addf %acc0, %e0 : f32"
    text = matmul_text(x, w, outs, body, ["%v"] * 2, [(plain(-1, 264, dtype=dtype), "[M,N]")])
    with forced(Config(128, 128, 64, adjacent, persistent=True)):
        made, codes = run(text, [*operands, residual], outs, 140)
    assert_close(made, expected + residual, "bf16")
    assert_quantized(codes, expected + residual, outs[1])


@pytest.mark.parametrize("m", [5, 70])
@pytest.mark.parametrize(
    ("x", "w"),
    [
        (plain(-1, 200), plain(72, 200)),
        (plain(-1, 200, dtype="f32"), plain(72, 200, dtype="f32")),
        (plain(-1, 200), quantized(72, 200, block=(128, 128))),
        (plain(-1, 200, dtype="f16"), quantized(72, 200, block=(1, 200), dtype="i8", scale="f16")),
        (quantized(-1, 200, block=(1, 64)), quantized(72, 200, block=(64, 64))),
        (quantized(-1, 200, block=(1, 96)), quantized(72, 200, block=(32, 96))),
        (quantized(-1, 200, block=(1, 200)), quantized(72, 200, block=(1, 200))),
        (quantized(-1, 200, block=(1, 200)), quantized(72, 200, block=(72, 200))),
        (
            quantized(-1, 200, block=(1, 200), dtype="i8"),
            quantized(72, 200, block=(1, 200), dtype="i8"),
        ),
        (quantized(-1, 256, layout="col_major"), quantized(72, 256, block=(128, 128))),
        (
            quantized(-1, 200, block=(1, 128), dtype="f8E5M2"),
            quantized(72, 200, block=(128, 128), dtype="f8E5M2"),
        ),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_formats(x: Shaped, w: Shaped, m: int) -> None:
    operands, expected = product(x, w, m)
    out = plain(-1, 72, dtype="f32")
    (made,) = run(matmul_text(x, w, [out]), operands, [out], m)
    assert_close(made, expected, "f32")


@pytest.mark.parametrize("kernel", ["few rows", "persistent"])
def test_fusion_does_not_change_a_bit(kernel: str) -> None:
    """One product over joined weights gives what each product over its own weight gives.

    That holds where K is cut alike; how it is cut may depend on the widths.

    Codes are integers here, so that the product of a step is exact whatever order numpy sums in;
    the order of the steps, which is the kernel's, shows in the scales.
    """
    k, n, m = 1280, 256, 15
    x, w = fp8(k, 2 * n)
    (x_codes, w_codes), _ = product(x, w, m)
    x_codes, w_codes = ((np.rint(c.astype("f4")).astype(c.dtype), s) for c, s in (x_codes, w_codes))
    outs = [plain(-1, n, dtype="f32")] * 2
    text = matmul_text(x, w, outs, yields=["%acc0", "%acc1"], parts=[n, n])
    with forced(KERNELS[kernel], m):
        joined = run(text, [x_codes, w_codes], outs, m)
    single = replace(w, shape=(n, k))
    for i, together in enumerate(joined):
        part = (w_codes[0][i * n : (i + 1) * n].copy(), w_codes[1][2 * i : 2 * i + 2].copy())
        text = matmul_text(x, single, outs[:1])
        with forced(KERNELS[kernel], m):
            (alone,) = run(text, [x_codes, part], outs[:1], m)
        np.testing.assert_array_equal(together, alone)
