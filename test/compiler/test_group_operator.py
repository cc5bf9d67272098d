"""`fp8_groupwise_scaled_group_gemm` on the CPU: values, and what is compiled and packed when."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gemm_cases import BF16, BLOCK, E4M3, E5M2, assert_close
from group_gemm_cases import group_operands, group_reference, of_experts
from hypothesis import given, settings
from hypothesis import strategies as st

from qfuse.compiler import (
    fp8_groupwise_scaled_gemm,
    fp8_groupwise_scaled_group_gemm,
    gemm,
    operators,
)
from qfuse.compiler.gemm import Gemm
from qfuse.compiler.group_gemm import GroupGemm, GroupOperands
from qfuse.lowering.cpu import weights

COUNTS, N, K = (3, 0, 9, 1), 130, 300


def counts(most_experts: int, most_rows: int) -> st.SearchStrategy[list[int]]:
    """Rows of each expert, often none."""
    return st.lists(st.just(0) | st.integers(0, most_rows), min_size=1, max_size=most_experts)


@settings(max_examples=6, deadline=None)
@given(
    counts=counts(6, 20),
    n=st.integers(1, 200),
    k=st.integers(1, 300),
    block=st.sampled_from([(128, 128), (16, 32), (64, 256)]),
    dtype=st.sampled_from([E4M3, E5M2]),
    out=st.sampled_from(["bfloat16", "float16", "float32"]),
    by_columns=st.booleans(),
)
def test_values(counts, n, k, block, dtype, out, by_columns) -> None:
    o = group_operands(counts, n, k, block, dtype)
    scale = o.x_scale.t().contiguous().t() if by_columns else o.x_scale
    y = fp8_groupwise_scaled_group_gemm(*o._replace(x_scale=scale), block, out)
    assert y.shape == (sum(counts), n) and y.dtype == getattr(torch, out) and y.is_contiguous()
    assert_close(y, group_reference(o, block))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.just(0) | st.integers(0, 40), min_size=4, max_size=4))
def test_rows_are_those_of_dense_products(counts: list[int]) -> None:
    """Bit for bit, whatever rows the other experts have."""
    o = group_operands(counts, N, K)
    y = fp8_groupwise_scaled_group_gemm(*o, BLOCK, "bfloat16")
    dense = [fp8_groupwise_scaled_gemm(*of, BLOCK, "bfloat16") for of in of_experts(o)]
    assert torch.equal(y, torch.cat(dense))


@pytest.mark.parametrize("expert", [0, 2, 3])
def test_one_expert_with_everything(expert: int) -> None:
    o = group_operands([600 * (e == expert) for e in range(4)], N, K)
    assert_close(fp8_groupwise_scaled_group_gemm(*o, BLOCK, "bfloat16"), group_reference(o))


def test_many_experts() -> None:
    rows = [0] * 512
    rows[0], rows[17], rows[511] = 2, 9, 1
    o = group_operands(rows, 17, 40, (16, 32))
    y = fp8_groupwise_scaled_group_gemm(*o, (16, 32), "float32")
    assert_close(y, group_reference(o, (16, 32)))


def test_no_rows() -> None:
    y = fp8_groupwise_scaled_group_gemm(*group_operands([0] * 4, N, K), BLOCK, "bfloat16")
    assert y.shape == (0, N) and y.dtype == BF16


def test_torch_sees_one_operator() -> None:
    """It is traced whole, with M and the experts' rows open; its shape rule and result agree."""
    o = group_operands(COUNTS, N, K)
    seen = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        seen.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    def model(*tensors: torch.Tensor) -> torch.Tensor:
        return fp8_groupwise_scaled_group_gemm(*tensors, BLOCK, "bfloat16", debug=True).relu()

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for rows in (COUNTS, (0, 0, 4, 11)):
        now = group_operands(rows, N, K)._replace(weight=o.weight, weight_scale=o.weight_scale)
        assert torch.equal(compiled(*now), model(*now))
    assert len(seen) == 1 and sum("scaled_group_gemm" in name for name in seen[0]) == 1
    torch.library.opcheck(
        torch.ops.qfuse.fp8_groupwise_scaled_group_gemm,
        (*o, [128, 128], BF16),
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )  # test_schema compares inputs by allclose, which torch has not for FP8


def test_on_meta() -> None:
    """What `indptr` holds is not known, nor asked for."""
    o = GroupOperands(*(t.to("meta") for t in group_operands(COUNTS, N, K)))
    y = fp8_groupwise_scaled_group_gemm(*o, BLOCK, torch.float16)
    assert y.shape == (sum(COUNTS), N) and y.dtype == torch.float16 and y.is_meta


def test_what_is_compiled_is_a_legal_product() -> None:
    with gemm._kernel(GroupGemm(N, K, BLOCK, E4M3, BF16, experts=4)) as kernel:
        assert kernel.operation.verify()
        assert kernel.entry_block.operations[0].operation.name == "qfuse.group_matmul"


def test_compiled_once(monkeypatch) -> None:
    """For any rows of any expert, M and layout of scales; not for each E, N, K, block or type."""
    monkeypatch.setattr(operators, "_COMPILED", {})
    made = []

    class Counted:
        def __init__(self, of: Gemm, *_: Any) -> None:
            made.append(of)

        def __call__(self, _operands: GroupOperands, out: torch.Tensor) -> None:
            out.zero_()

    monkeypatch.setattr(operators, "CpuGemm", Counted)

    def call(rows=COUNTS, n=N, k=K, block=BLOCK, dtype=E4M3, out="bfloat16") -> None:
        fp8_groupwise_scaled_group_gemm(*group_operands(rows, n, k, block, dtype), block, out)

    for rows in (COUNTS, (1, 0, 0, 0), (0, 9, 9, 0)):
        call(rows)
    o = group_operands(COUNTS, N, K)
    turned = o._replace(x_scale=o.x_scale.t().contiguous().t())
    fp8_groupwise_scaled_group_gemm(*turned, [128, 128], BF16)
    fp8_groupwise_scaled_group_gemm(*o, BLOCK, BF16, debug=True)
    assert made == [GroupGemm(N, K, BLOCK, E4M3, BF16, experts=4)]
    call((*COUNTS, 1))
    call(n=131)
    call(k=301)
    call(block=(16, 128))
    call(dtype=E5M2)
    call(out="float16")
    assert len(made) == len(set(made)) == 7


@pytest.fixture
def packings(monkeypatch) -> list[int]:
    """Grows with every weight that is packed."""
    done: list[int] = []

    def pack(*args: Any) -> Any:
        done.append(1)
        return weights.pack_experts(*args)

    monkeypatch.setattr(gemm, "pack_experts", pack)
    return done


def test_a_weight_is_packed_once_and_again_when_it_changes(packings) -> None:
    o = group_operands(COUNTS, N, K)
    o = o._replace(weight=torch.nn.Parameter(o.weight, requires_grad=False))

    def check() -> None:
        assert_close(fp8_groupwise_scaled_group_gemm(*o, BLOCK, "bfloat16"), group_reference(o))

    check()
    check()
    assert len(packings) == 1
    o.weight[2, :, 7:9] = 3.0
    check()
    assert len(packings) == 2
    o.weight_scale.mul_(2)  # read at each call
    o.indptr[1] -= 1  # as is whose the rows are
    check()
    assert len(packings) == 2


def test_weights_of_inference_mode_are_packed_at_every_call(packings, monkeypatch) -> None:
    monkeypatch.setattr(gemm, "_PACKED", gemm.PackedWeights())
    with torch.inference_mode():
        o = group_operands(COUNTS, N, K)
        for value in (1.0, 2.0):
            o.weight[0, :, 3] = value
            y = fp8_groupwise_scaled_group_gemm(*o, BLOCK, "bfloat16")
            assert_close(y, group_reference(o))
    assert len(packings) == 2


def test_a_packed_weight_goes_with_its_tensor(monkeypatch) -> None:
    packed = gemm.PackedWeights()
    monkeypatch.setattr(gemm, "_PACKED", packed)
    o = group_operands(COUNTS, N, K)
    fp8_groupwise_scaled_group_gemm(*o, BLOCK, "bfloat16")
    assert list(packed._packed) == [o.weight]
    del o
    gc.collect()
    assert len(packed._packed) == 0
