"""`fp8_groupwise_scaled_gemm` on the CPU: values, and what is compiled and packed when."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gemm_cases import BF16, BLOCK, E4M3, E5M2, assert_close, operands, reference
from hypothesis import given, settings
from hypothesis import strategies as st

from qfuse.compiler import fp8_groupwise_scaled_gemm, gemm, operators
from qfuse.compiler.gemm import Gemm, Operands
from qfuse.lowering.cpu import weights


@settings(max_examples=8, deadline=None)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 200),
    k=st.integers(1, 300),
    block=st.sampled_from([(128, 128), (16, 32), (64, 256), (1, 64)]),
    dtype=st.sampled_from([E4M3, E5M2]),
    out=st.sampled_from(["bfloat16", "float16", "float32"]),
    by_columns=st.booleans(),
)
def test_values(m, n, k, block, dtype, out, by_columns) -> None:
    o = operands(m, n, k, block, dtype)
    scale = o.x_scale.t().contiguous().t() if by_columns else o.x_scale
    y = fp8_groupwise_scaled_gemm(o.x, scale, o.weight, o.weight_scale, block, out)
    assert y.shape == (m, n) and y.dtype == getattr(torch, out) and y.is_contiguous()
    assert_close(y, reference(o, block))


def test_no_rows() -> None:
    y = fp8_groupwise_scaled_gemm(*operands(0, 130, 300), BLOCK, "bfloat16")
    assert y.shape == (0, 130) and y.dtype == BF16


def test_torch_sees_one_operator() -> None:
    """It is traced whole, with M open; its shape rule and its result agree."""
    o = operands(5, 130, 300)
    seen = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        seen.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    def model(*tensors: torch.Tensor) -> torch.Tensor:
        return fp8_groupwise_scaled_gemm(*tensors, BLOCK, "bfloat16").relu()

    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for m in (5, 7):
        now = operands(m, 130, 300)._replace(weight=o.weight, weight_scale=o.weight_scale)
        assert torch.equal(compiled(*now), model(*now))
    assert len(seen) == 1 and sum(operators.NAME in name for name in seen[0]) == 1
    torch.library.opcheck(
        torch.ops.qfuse.fp8_groupwise_scaled_gemm,
        (*o, [128, 128], BF16),
        test_utils=("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )  # test_schema compares inputs by allclose, which torch has not for FP8


def test_the_backend_qfuse_leaves_it_to_torch() -> None:
    o = operands(3, 130, 300)

    def model(*tensors: torch.Tensor) -> torch.Tensor:
        return fp8_groupwise_scaled_gemm(*tensors, BLOCK, "float32") * 2

    with torch.no_grad():
        assert torch.equal(torch.compile(model, backend="qfuse")(*o), model(*o))


def test_on_meta() -> None:
    o = Operands(*(t.to("meta") for t in operands(5, 130, 300)))
    y = fp8_groupwise_scaled_gemm(*o, BLOCK, torch.float16)
    assert y.shape == (5, 130) and y.dtype == torch.float16 and y.is_meta


def test_compiled_once(monkeypatch) -> None:
    monkeypatch.setattr(operators, "_COMPILED", {})
    made = []
    make = gemm.CpuGemm.__init__

    def count(self: gemm.CpuGemm, of: Gemm, *rest: Any) -> None:
        made.append(of)
        make(self, of, *rest)

    monkeypatch.setattr(gemm.CpuGemm, "__init__", count)
    for m in (1, 2, 33):
        fp8_groupwise_scaled_gemm(*operands(m, 130, 300), BLOCK, "bfloat16")
    o = operands(2, 130, 300)
    fp8_groupwise_scaled_gemm(
        o.x, o.x_scale.t().contiguous().t(), o.weight, o.weight_scale, [128, 128], BF16
    )
    assert len(made) == 1
    fp8_groupwise_scaled_gemm(*operands(2, 130, 300), BLOCK, "float16")
    fp8_groupwise_scaled_gemm(*operands(2, 130, 300, dtype=E5M2), BLOCK, "float16")
    fp8_groupwise_scaled_gemm(*operands(2, 131, 300), BLOCK, "float16")
    fp8_groupwise_scaled_gemm(*operands(2, 131, 301), BLOCK, "float16")
    fp8_groupwise_scaled_gemm(*operands(2, 131, 301, (16, 128)), (16, 128), "float16")
    assert len(made) == len(set(made)) == 6


@pytest.fixture
def packings(monkeypatch) -> list[int]:
    """Grows with every weight that is packed."""
    done: list[int] = []

    def pack(*args: Any) -> Any:
        done.append(1)
        return weights.pack_weight(*args)

    monkeypatch.setattr(gemm, "pack_weight", pack)
    return done


def test_a_weight_is_packed_once_and_again_when_it_changes(packings) -> None:
    o = operands(3, 130, 300)
    o = o._replace(weight=torch.nn.Parameter(o.weight, requires_grad=False))

    def check() -> None:
        y = fp8_groupwise_scaled_gemm(*o, BLOCK, "float32")
        assert_close(y, reference(o))

    check()
    check()
    with torch.no_grad():
        check()
    assert len(packings) == 1
    o.weight[:, 7:9] = 3.0
    check()
    assert len(packings) == 2
    o.weight.data = operands(1, 130, 300, seed=5).weight
    check()
    assert len(packings) == 3
    o.weight_scale.mul_(2)  # read at each call
    check()
    assert len(packings) == 3


def test_weights_of_inference_mode_are_packed_at_every_call(packings, monkeypatch, caplog) -> None:
    """Torch does not record how they change; that it costs time is said once."""
    monkeypatch.setattr(gemm, "_PACKED", gemm.PackedWeights())
    with torch.inference_mode():
        o = operands(3, 130, 300)
        for value in (1.0, 2.0):
            o.weight[:, 3] = value
            assert_close(fp8_groupwise_scaled_gemm(*o, BLOCK, "float32"), reference(o))
    assert len(packings) == 2
    (record,) = caplog.records
    assert "packs a weight that was made in inference mode at every call" in record.message


def test_a_packed_weight_goes_with_its_tensor(monkeypatch) -> None:
    packed = gemm.PackedWeights()
    monkeypatch.setattr(gemm, "_PACKED", packed)
    o = operands(3, 130, 300)
    fp8_groupwise_scaled_gemm(*o, BLOCK, "bfloat16")
    assert list(packed._packed) == [o.weight]
    del o
    gc.collect()
    assert len(packed._packed) == 0
