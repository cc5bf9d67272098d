"""What is refused and how, tile choices for odd shapes, and kernels as JSON."""

import json
from itertools import product

import pytest
from gpu_kernels import kernel_text, lowered, matmul_text, plain, quantized, segment_sizes

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.gpu import GPUS, find_gpu
from qfuse.lowering.triton.kernel import Grid, TritonKernel

X = quantized(-1, 256)
W = quantized(512, 256, block=(128, 128))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (matmul_text(X, plain(512, 256), [plain(-1, 512)]), "x is f8E4M3FN but w is plain bf16"),
        (
            matmul_text(X, quantized(512, 256, block=(128, 128), dtype="i8"), [plain(-1, 512)]),
            "multiplies f8E4M3FN by i8; both operands must store FP8, or both integers",
        ),
        (
            matmul_text(plain(-1, 256), plain(512, 256, dtype="f16"), [plain(-1, 512)]),
            "multiplies bf16 by f16; cast one of them",
        ),
        (
            matmul_text(X, W, [quantized(-1, 512, block=(1, 256))]),
            "result 0 is quantized in groups of 256",
        ),
        (
            matmul_text(
                quantized(-1, 256, block=(1, 16)), quantized(512, 256, block=(16, 16)),
                [plain(-1, 512)],
            ),
            "x is scaled per 16 of K; GPU kernels take multiples of 32",
        ),
        (
            matmul_text(X, W, [plain(-1, 512)], "%v = math.log %acc0 : f32", ["%v"]),
            "'math.log' has no Triton form",
        ),
        (
            kernel_text("tensor_scale", [plain(-1, -1)], [plain(1, dtype="f32")], "storage = i8"),
            "the last dimension of tensor<?x?xbf16> must be static",
        ),
        (
            kernel_text("quantize", [plain(-1, 40000)], [quantized(-1, 40000, block=(1, 40000))]),
            "one scale per row of 40000 elements",
        ),
        (
            kernel_text(
                "rms_norm",
                [plain(-1, 65536), plain(65536)],
                [plain(-1, 65536)],
                'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", '
                + segment_sizes("result", [True, False, False, False]),
            ),
            "a row has 65536 elements; GPU kernels hold at most 32768",
        ),
        (
            kernel_text(
                "combine",
                [plain(-1, -1, 64), plain(-1, -1, dtype="i32"), plain(-1, -1)],
                [plain(-1, 64)],
                segment_sizes("operand", [True] * 3 + [False]),
            ),
            "it reads tensor<?x?x64xbf16>; all extents but the first must be static",
        ),
        (
            kernel_text(
                "route",
                [plain(-1, 0, dtype="i64")],
                [plain(-1, 0, dtype="i32")] * 2 + [plain(4, dtype="i32")],
                "num_experts = 3 : i64",
            ),
            "tensor<?x0xi64> holds no elements",
        ),
        (
            kernel_text("add", [plain(-1, 4, 64), plain(4, 64)], [plain(-1, 4, 64)]),
            "operand 1 is tensor<4x64xbf16>, which GPU kernels cannot broadcast",
        ),
        (
            kernel_text(
                "rope", [plain(-1, -1, 2, 64), plain(1, -1, 64), plain(1, -1, 64)],
                [plain(-1, -1, 2, 64)],
            ),
            "cos is tensor<1x?x64xbf16>, shared by the sequences of tensor<?x?x2x64xbf16>",
        ),
        (
            matmul_text(plain(-1, 0), plain(512, 0), [plain(-1, 512)]),
            "w is tensor<512x0xbf16>, which holds no elements",
        ),
        (kernel_text("relu", [plain(-1, 0)], [plain(-1, 0)]), "holds no elements"),
    ],
    ids=range(15),
)  # fmt: skip
def test_refusals_name_cause_and_cure(text: str, message: str) -> None:
    with pytest.raises(QfuseError) as caught:
        lowered(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("qfuse.")


def test_a_kernel_is_one_operation() -> None:
    text = (
        "func.func private @k(%x: tensor<?x64xf32>) -> tensor<?x64xf32> attributes {qfuse.kernel} "
        "{ return %x : tensor<?x64xf32> }"
    )
    with pytest.raises(QfuseError, match="a GPU kernel is one qfuse operation and a return"):
        lowered(text)


@pytest.mark.parametrize("target", GPUS)
def test_variants_serve_every_number_of_rows(target: str) -> None:
    kernel = lowered(matmul_text(X, W, [plain(-1, 512)]), target)
    assert kernel.variants[0].first_m == 1 and kernel.variants[-1].last_m is None
    for before, after in zip(kernel.variants, kernel.variants[1:], strict=False):
        assert after.first_m == before.last_m + 1
    for m in (1, 16, 17, 64, 65, 100000):
        found = kernel.variant(m)
        assert found.first_m <= m and (found.last_m is None or m <= found.last_m)


@pytest.mark.parametrize("target", GPUS)
def test_stages_fit_into_shared_memory(target: str) -> None:
    text = matmul_text(X, quantized(1024, 256, block=(128, 128)), [quantized(-1, 512)],
                       "%v = arith.mulf %acc0, %acc1 : f32", ["%v"], parts=[512, 512])  # fmt: skip
    for variant in lowered(text, target).variants:
        for launch in variant.launches:
            assert 1 <= launch.num_stages <= 6


def test_kernels_survive_json() -> None:
    kernel = lowered(matmul_text(X, W, [plain(-1, 512)]))
    assert TritonKernel.from_json(json.loads(json.dumps(kernel.to_json()))) == kernel


def test_grids() -> None:
    assert Grid(128, 4, at_most=132).of(1) == (4, 1, 1)
    assert Grid(128, 4, at_most=132).of(128 * 33) == (132, 1, 1)
    assert Grid(128, 4, at_most=132).of(128 * 40) == (132, 1, 1)
    assert Grid(16, 3, y=7).of(17) == (6, 7, 1)


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_have_blocks_of_their_own(rows: int, groups: int) -> None:
    """As many as the worst of all ways to part the rows takes, and no more."""
    for m in range(1, 14):
        ways = (p for p in product(range(m + 1), repeat=groups) if sum(p) == m)
        worst = max(sum(-(-n // rows) for n in way) for way in ways)
        assert Grid(rows, 5, groups=groups).of(m) == (5 * worst, 1, 1)


def test_unknown_gpu() -> None:
    with pytest.raises(QfuseError, match=r"unknown GPU target 'cuda:sm_9'; .*'cuda:sm_90'"):
        find_gpu("cuda:sm_9")
