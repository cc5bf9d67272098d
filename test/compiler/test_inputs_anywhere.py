"""Inputs of an executable on the CPU: of any strides, at any address of their elements."""

from collections.abc import Callable

import pytest
import torch
from gemm_cases import BLOCK, E4M3, Operands, operands
from test_torch_compile import Block

from qfuse.compiler import compile, fp8_groupwise_scaled_gemm
from qfuse.compiler.frontend.linear import quantize_linears
from qfuse.compiler.runtime.executable import Executable

Tensor = torch.Tensor
HIDDEN, TOKENS = 160, 24


def at_odd_address(x: Tensor) -> Tensor:
    """`buffer[1:]` of a buffer that begins at a multiple of 64 bytes."""
    buffer = torch.empty(x.numel() + 1 + 64 // x.itemsize, dtype=x.dtype)
    first = -buffer.data_ptr() % 64 // x.itemsize + 1
    made = buffer[first : first + x.numel()].view(x.shape).copy_(x)
    assert made.data_ptr() % 64 == x.itemsize
    return made


def strided(x: Tensor) -> Tensor:
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 3), torch.nan, dtype=x.dtype)
    wide[..., 3::2] = x
    return wide[..., 3::2]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "odd address": at_odd_address,
    "every other column": strided,
    "rows of a wider tensor": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "columns first": lambda x: x.mT.contiguous().mT,
    "tokens first": lambda x: x.movedim(0, 1).contiguous().movedim(0, 1),
    "odd address and strided": lambda x: strided(at_odd_address(x)),
}


@pytest.fixture(scope="module")
def exe() -> Executable:
    torch.manual_seed(0)
    block = quantize_linears(Block(HIDDEN).bfloat16().eval().requires_grad_(False))
    tokens = torch.export.Dim("tokens", min=1, max=64)
    x = torch.randn(2, 5, HIDDEN).bfloat16()
    return compile(block, (x,), dynamic_shapes=({1: tokens},))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(exe: Executable, layout: str) -> None:
    """The input is read by the norm, which quantizes, and by the epilogue that adds it."""
    for count in (TOKENS, 1):
        x = torch.randn(2, count, HIDDEN, generator=torch.manual_seed(1)).bfloat16()
        given, kept = LAYOUTS[layout](x), x.clone()
        assert torch.equal(given, x)
        (wanted,), (got,) = exe(x), exe(given)
        assert torch.equal(got, wanted)
        assert torch.equal(given, kept), "an input was written to"


def test_one_row_for_all(exe: Executable) -> None:
    x = torch.randn(2, 1, HIDDEN, generator=torch.manual_seed(2)).bfloat16()
    (wanted,), (got,) = exe(x.repeat(1, TOKENS, 1)), exe(x.expand(2, TOKENS, HIDDEN))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("m", [1, 5, 40])
def test_every_tensor_of_a_product(m: int) -> None:
    """Weights and scales, too, given as tensors; strided ones are refused."""
    given = operands(m, 130, 300, BLOCK, E4M3)
    wanted = fp8_groupwise_scaled_gemm(*given, BLOCK, torch.bfloat16)
    odd = Operands(*map(at_odd_address, given))
    assert torch.equal(fp8_groupwise_scaled_gemm(*odd, BLOCK, torch.bfloat16), wanted)
