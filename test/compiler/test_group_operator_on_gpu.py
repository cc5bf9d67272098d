"""`fp8_groupwise_scaled_group_gemm` on a GPU, as far as that goes without one."""

import pytest
import torch
from gemm_cases import BF16, BLOCK, E4M3, assert_close
from group_gemm_cases import group_operands, group_reference
from test_operators_on_gpu import InterpretingDriver, aligned, gpu_gemm

from qfuse.compiler import fp8_groupwise_scaled_group_gemm, gemm, operators
from qfuse.compiler.gemm import GpuGemm
from qfuse.compiler.group_gemm import GroupGemm, GroupOperands
from qfuse.compiler.routing import check_indptr
from qfuse.dialects.errors import QfuseError


def test_how_the_scales_of_x_lie_is_part_of_a_gpu_kernel() -> None:
    o = group_operands([2, 0, 3], 130, 300)
    turned = o._replace(x_scale=o.x_scale.t().contiguous().t())
    for tensors, device, by_columns in (
        (o, "meta", False),
        (turned, "meta", True),
        (turned, "cpu", False),
    ):
        there = GroupOperands(*(t.to(device) for t in tensors))
        found = operators._check(there, BLOCK, BF16)
        assert found == GroupGemm(130, 300, BLOCK, E4M3, BF16, by_columns, experts=3)


def compute(of: GroupGemm, o: GroupOperands) -> tuple[torch.Tensor, InterpretingDriver]:
    """On the interpreter; rows that nothing writes are NaN."""
    product, driver = gpu_gemm(of)
    out = aligned(torch.full((len(o.x), of.n), float("nan"), dtype=BF16))
    product(GroupOperands(*map(aligned, o)), out)
    return out, driver


@pytest.mark.parametrize(
    ("counts", "n", "k", "by_columns"),
    [
        ([2, 0, 1, 0], 80, 4096, False),
        ([2, 0, 1, 0], 80, 4096, True),
        ([0, 70, 3, 30], 144, 600, True),
    ],
)
def test_gpu_launches(counts: list[int], n: int, k: int, by_columns: bool) -> None:
    """Pointers, scratch and counters reach the kernels, for few rows and many."""
    o = group_operands(counts, n, k)
    if by_columns:
        o = o._replace(x_scale=o.x_scale.t().contiguous().t())
    out, driver = compute(GroupGemm(n, k, BLOCK, E4M3, BF16, by_columns, experts=4), o)
    assert_close(out, group_reference(o))
    assert driver.loaded == list(driver.launches), "for every M, before a graph captures it"


@pytest.mark.parametrize("bad", [[4, 2, 9, 60], [-5, -(2**31), 4, 30], [7, 9, 9, 2**31 - 1]])
def test_a_bad_indptr_stays_within_bounds(bad: list[int]) -> None:
    """The interpreter traps an access outside; what is nobody's stays as it was."""
    o = group_operands([5, 0, 7], 80, 600)
    o.indptr.copy_(torch.tensor(bad, dtype=torch.int32))
    o.x.zero_()  # of rows that several experts claim, any may win
    out, _ = compute(GroupGemm(80, 600, BLOCK, E4M3, BF16, experts=3), o)
    assert ((out == 0).all(1) | out.isnan().all(1)).all() and (out == 0).any()


def test_gpu_code_is_compiled_without_one(monkeypatch) -> None:
    """All that a call on a GPU does before it starts anything, but for the driver itself."""
    pytest.importorskip("triton")
    monkeypatch.setattr(gemm, "driver_for", lambda kind: "driver")
    of = GroupGemm(32, 64, BLOCK, E4M3, BF16, experts=2)
    kernel = GpuGemm.compile(of, operators.CompileOptions.make("cuda:sm_90"))._loaded.kernel
    assert kernel.target == "cuda:sm_90" and kernel.code.startswith(b"\x7fELF")
    assert [(p.source, p.index, p.part) for p in kernel.parameters] == [
        ("operand", 0, "data"),
        ("operand", 0, "scale"),
        ("operand", 1, "data"),
        ("operand", 1, "scale"),
        ("operand", 2, "data"),
        ("result", 0, "data"),
    ], "the order of `GroupOperands`, then the result"


class OnAGpu(torch.Tensor):
    """A CPU tensor that says it is on a GPU, as `check_indptr` would see one."""

    is_cuda = True
    device = torch.device("cuda", 0)


def test_debug_reads_what_lies_on_a_gpu(monkeypatch) -> None:
    """By default nothing waits; in a graph nothing can."""
    indptr = torch.tensor([0, 4, 2, 5], dtype=torch.int32).as_subclass(OnAGpu)
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    check_indptr(indptr, 5, whole=True)
    with pytest.raises(QfuseError, match=r"indptr\[2\] is 2, less than indptr\[1\] = 4"):
        check_indptr(indptr, 5, whole=True, debug=True)
    capturing = True
    check_indptr(indptr, 5, whole=True)
    with pytest.raises(QfuseError, match="debug=True waits for the GPU, which a CUDA graph"):
        check_indptr(indptr, 5, whole=True, debug=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    for counts in ([0] * 8, [1, 0, 0, 0, 2, 0, 0, 0], [100, 0, 3, 64, 0, 1, 17, 0]):
        o = group_operands(counts, 384, 1200)
        here = GroupOperands(*(t.cuda() for t in o))
        y = fp8_groupwise_scaled_group_gemm(*here, BLOCK, "bfloat16", debug=True)
        assert y.is_cuda
        assert_close(y.cpu(), group_reference(o))
    here.indptr[3] = -1
    assert fp8_groupwise_scaled_group_gemm(*here, BLOCK, "bfloat16").shape == y.shape
    with pytest.raises(QfuseError, match=r"indptr\[3\] is -1, less than indptr\[2\] = 100"):
        fp8_groupwise_scaled_group_gemm(*here, BLOCK, "bfloat16", debug=True)
