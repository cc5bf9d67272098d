"""Epilogues whose values are read twice, over and over: 2 to the power of their length paths."""

from qfuse.compiler import pipeline, remarks
from qfuse.dialects import registry
from qfuse.dialects.bindings import ir

LINKS = 100


QUANTIZED = "!qfuse.qtensor<tensor<?x48xf8E4M3FN>, #act>"


def program(parts: str, result: str, end: str) -> str:
    """A product whose epilogue squares its accumulator `LINKS` times."""
    squares = "\n".join(f"    %v{i + 1} = arith.mulf %v{i}, %v{i} : f32" for i in range(LINKS))
    accumulators = ", ".join(f"%v0{'_' * i}: f32" for i in range(parts.count(",") + 1))
    return f"""
#act = #qfuse.scheme<array<i64: 1, 16>, f32, "none", "none", "row_major">
func.func @main(%x: tensor<?x8xbf16>, %w: tensor<48x8xbf16>) -> {end.rpartition(" : ")[2]} {{
  %y = "qfuse.matmul"(%x, %w) ({{
  ^bb0({accumulators}):
{squares}
    "qfuse.yield"(%v{LINKS}) : (f32) -> ()
  }}) {{parts = array<i64: {parts}>, maps = [],
        operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>,
        resultSegmentSizes = array<i32: 1, 0, 0, 0>}}
     : (tensor<?x8xbf16>, tensor<48x8xbf16>) -> {result}
  {end}
}}"""


def test_verifier() -> None:
    text = program("32, 16", "tensor<?x32xbf16>", "return %y : tensor<?x32xbf16>")
    with ir.Context(), ir.Location.unknown():
        registry.load_all()
        assert ir.Module.parse(text).operation.verify()


def test_search_for_an_activation() -> None:
    quantize = f'%q = "qfuse.quantize"(%y) : (tensor<?x48xbf16>) -> {QUANTIZED}'
    text = program("48", "tensor<?x48xbf16>", f"{quantize}\n  return %q : {QUANTIZED}")
    with ir.Context(), ir.Location.unknown(), remarks.collect() as found:
        registry.load_all()
        pipeline.run(ir.Module.parse(text), pipeline.stages_of(["qfuse-fuse-act-quantize"]))
    assert any("no activation in its epilogue" in str(remark) for remark in found)
