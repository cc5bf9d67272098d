"""What the report says of norms: how many quantize what they make, and why others do not."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qfuse.compiler import compile
from qfuse.compiler.norms import count_norms
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import load_all

NORM = """ "qfuse.rms_norm"(%x, %n) {eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before",
  operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, resultSegmentSizes = array<i32: """
VALUE = NORM + "1, 0, 0, 0>} : (!x, tensor<512xbf16>) -> !x"
BOTH = NORM + "1, 1, 0, 0>} : (!x, tensor<512xbf16>) -> (!x, !xq)"
NORMS = f"""
!x = tensor<?x512xbf16>
!xq = !qfuse.qtensor<tensor<?x512xf8E4M3FN>, #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none",
  "row_major">>
func.func @main(%x: !x, %n: tensor<512xbf16>) -> (!x, !xq, !xq, !x, !x) {{
  %0:2 = {BOTH}
  %1 = {VALUE}
  %2 = "qfuse.quantize"(%1) : (!x) -> !xq
  %3 = {VALUE}
  %4 = "torch_c.from_builtin_tensor"(%3) : (!x) -> !torch.vtensor<[?,512],bf16>
  %5 = torch.aten.silu %4 : !torch.vtensor<[?,512],bf16> -> !torch.vtensor<[?,512],bf16>
  %6 = "torch_c.to_builtin_tensor"(%5) : (!torch.vtensor<[?,512],bf16>) -> !x
  %7 = {VALUE}
  return %0#0, %0#1, %2, %6, %7 : !x, !xq, !xq, !x, !x
}}
"""


def test_reasons() -> None:
    with ir.Context(), ir.Location.unknown():
        load_all()
        assert count_norms(ir.Module.parse(NORMS)) == {
            "total": 4,
            "fused": 1,
            "others": {
                "its quantization is apart": 1,
                "only torch.aten.silu reads it, unquantized": 1,
                "only func.return reads it, unquantized": 1,
            },
        }


@pytest.mark.parametrize("disable", [[], ["norm-quantize"]])
def test_norms_of_a_model(checkpoints: Callable[..., Path], disable: list[str]) -> None:
    report = compile(checkpoints(), max_len=32, disable=disable).report()
    norms = report.norms
    assert norms is not None and norms.fused + sum(norms.others.values()) == norms.total
    apart = norms.others.get("its quantization is apart", 0)
    assert (norms.fused, apart > 0) == (0, True) if disable else (norms.fused > 0, apart == 0)
    assert f"{norms.fused} of {norms.total} norms quantize what they make" in str(report)
    assert report.to_json()["norms"]["others"] == norms.others
