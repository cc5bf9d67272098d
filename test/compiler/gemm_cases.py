"""Operands of `fp8_groupwise_scaled_gemm` for its tests, and what it is to compute."""

import torch

from qfuse.compiler.gemm import Operands

E4M3, E5M2, BF16 = torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16
BLOCK = (128, 128)
STEP = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2.0**-20}


def operands(
    m: int, n: int, k: int, block: tuple[int, int] = BLOCK, dtype: torch.dtype = E4M3, seed: int = 0
) -> Operands:
    generator = torch.Generator().manual_seed(seed)
    bn, bk = block

    def scale(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator) + 0.5

    return Operands(
        (torch.randn(m, k, generator=generator) * 4).to(dtype),
        scale(m, -(-k // bk)),
        (torch.randn(n, k, generator=generator) * 4).to(dtype),
        scale(-(-n // bn), -(-k // bk)),
    )


def reference(o: Operands, block: tuple[int, int] = BLOCK) -> torch.Tensor:
    """In f64, element by element as the operator's documentation says."""
    bn, bk = block
    n, k = o.weight.shape
    of_k = torch.arange(k) // bk
    x = o.x.float().double() * o.x_scale.double()[:, of_k]
    rows = (torch.arange(n) // bn)[:, None]
    return x @ (o.weight.float().double() * o.weight_scale.double()[rows, of_k]).T


def assert_close(y: torch.Tensor, expected: torch.Tensor) -> None:
    """One rounding to the type of `y`, and sums in f32."""
    limit = STEP[y.dtype] * expected.abs() + 1e-5 * expected.abs().mean()
    worst = (y.double() - expected).abs() - limit
    assert bool((worst <= 0).all()), float(worst.max())
