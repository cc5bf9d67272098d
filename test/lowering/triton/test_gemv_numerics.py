"""Products of one row without matrix instructions, on the interpreter against sums in f64."""

import pytest
from gpu_kernels import (
    SILU_GLU,
    assert_close,
    forced,
    matmul_text,
    parsed,
    plain,
    product,
    quantized,
    random,
    run,
    silu,
)

from qfuse.dialects.types import Shaped
from qfuse.lowering.triton import gemv
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.product import read_product
from qfuse.lowering.triton.signature import read_signature
from qfuse.lowering.triton.tiles import Config

ONE_ROW = Config(1, gemv.COLUMNS, gemv.DEPTH, gemv=True)
SLICED = Config(1, gemv.COLUMNS, gemv.DEPTH, gemv=True, slices=3)


@pytest.mark.parametrize("target", ["cuda:sm_90", "cuda:sm_80", "hip:gfx942"])
@pytest.mark.parametrize(
    ("x", "w"),
    [
        (plain(-1, 1536), quantized(200, 1536, block=(128, 128))),
        (plain(-1, 1000, dtype="f16"), quantized(77, 1000, block=(128, 128))),
        (plain(-1, 520, dtype="f32"), quantized(40, 520, block=(1, 520), dtype="i8", scale="f16")),
        (plain(-1, 37), plain(9, 37)),
        (quantized(-1, 700), quantized(130, 700, block=(128, 128))),
        (quantized(-1, 256, block=(1, 64), layout="col_major"), quantized(36, 256, block=(32, 64))),
        (quantized(-1, 600, block=(1, 96)), quantized(45, 600, block=(4, 96))),
        (quantized(-1, 600, block=(1, 600)), quantized(45, 600, block=(45, 600))),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_formats(x: Shaped, w: Shaped, target: str) -> None:
    operands, expected = product(x, w, 1)
    out = plain(-1, w.shape[0], dtype="f32")
    with forced(ONE_ROW, 1):
        (made,) = run(matmul_text(x, w, [out]), operands, [out], 1, target)
    assert_close(made, expected, "f32")


@pytest.mark.parametrize("config", [ONE_ROW, SLICED], ids=lambda c: c.name)
def test_gate_and_up_with_an_epilogue(config: Config) -> None:
    """Parts that begin at a block of scales, extra operands, and K in slices."""
    width, rows = 204, 460
    x, w = plain(-1, 1500), quantized(rows, 1500, block=(128, 128))
    operands, total = product(x, w, 1)
    residual = random((1, width), "bf16", 3)
    outs = [plain(-1, width)]
    text = matmul_text(
        x,
        w,
        outs,
        f"{SILU_GLU}%r = arith.addf %v, %e0 : f32",
        ["%r"],
        [(plain(-1, width), "[M,N]")],
        [width, width],
    )
    with forced(config, 1):
        (made,) = run(text, [*operands, residual], outs, 1)
    expected = silu(total[:, :width]) * total[:, rows - width :] + residual.astype("f8")
    assert_close(made, expected, "bf16")


def test_what_it_does_not_serve() -> None:
    x, w = plain(-1, 256), quantized(512, 256, block=(128, 128))
    gpu = find_gpu("cuda:sm_90")

    def why(*arguments, **options) -> str | None:
        with parsed(matmul_text(x, w, *arguments, **options)) as function:
            made = read_product(read_signature(function))
            return gemv.gemv_error(made, made.groups[0], gpu)

    assert why([plain(-1, 512)]) is None
    assert "a result scales 128 as one" in str(why([quantized(-1, 512)]))
    names = ["%acc0", "%acc1", "%acc2", "%acc3"]
    parts = {"yields": names, "parts": [128] * 4}
    assert "2 parts" in str(why([plain(-1, 128)] * 4, **parts))
