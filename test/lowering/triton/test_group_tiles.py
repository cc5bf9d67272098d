"""How products by the weights of experts are cut, for layers of models in use and odd ones."""

import pytest
from gpu_kernels import lowered, matmul_text, plain, quantized

from qfuse.lowering.triton.gpu import GPUS
from qfuse.lowering.triton.kernel import TritonKernel

LAYERS = {
    "Qwen3-30B-A3B, up": (128, 8, [1536], 2048),
    "Mixtral-8x7B, down": (8, 2, [4096], 14336),
    "DeepSeek-V3, down": (256, 8, [7168], 2048),
    "one expert": (1, 1, [256], 512),
    "512 experts, parts of two widths": (512, 10, [512, 200], 300),
}
"""Experts, choices, parts of the weight, K."""


def kernel_of(name: str, target: str) -> TritonKernel:
    experts, choices, parts, k = LAYERS[name]
    outs = [plain(-1, choices, n) for n in parts]
    accumulators = [f"%acc{i}" for i in range(len(parts))]
    w = quantized(experts, sum(parts), k, block=(128, 128))
    routing = [plain(experts + 1, dtype="i32"), plain(-1, choices, dtype="i32")]
    text = matmul_text(quantized(-1, k), w, outs, yields=accumulators, parts=parts, routing=routing)
    return lowered(text, target)


@pytest.mark.parametrize("target", GPUS)
@pytest.mark.parametrize("name", LAYERS)
def test_every_number_of_rows_is_served(name: str, target: str) -> None:
    """By few variants, of distinct names, with larger tiles for more rows."""
    kernel = kernel_of(name, target)
    experts, _, parts, _ = LAYERS[name]
    expected: int | None = 1
    for variant in kernel.variants:
        assert variant.first_m == expected
        assert len(variant.launches) == len(set(parts))
        expected = None if variant.last_m is None else variant.last_m + 1
    assert expected is None and len(kernel.variants) <= 6
    names = [launch.name for v in kernel.variants for launch in v.launches]
    assert len(set(names)) == len(names)
    few, *_, many = kernel.variants[0], kernel.variants[-1]
    for small, large in zip(few.launches, many.launches, strict=True):
        assert small.grid.rows <= large.grid.rows
        assert small.grid.groups == experts


def test_few_rows_have_no_room_for_many() -> None:
    """A row for each expert needs little more than its weights: 16 rows, and all processors."""
    for name in ("Qwen3-30B-A3B, up", "DeepSeek-V3, down"):
        (launch,) = kernel_of(name, "cuda:sm_90").variant(8).launches
        assert launch.grid.rows == 16
        x, y, _ = launch.grid.of(8)
        assert x * y >= 0.7 * GPUS["cuda:sm_90"].processors
        (launch,) = kernel_of(name, "cuda:sm_90").variant(65536).launches
        assert launch.grid.rows >= 64
