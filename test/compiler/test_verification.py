"""`Verification` names the pass that is wrong, where, and by how much; and right ones pass."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import verification_cases as cases
from programs import Program, Value
from verification_cases import Patch, verify

from qfuse.compiler import pipeline
from qfuse.compiler.passes import fuse_rope
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.pipeline import Stage
from qfuse.compiler.verification import NotEquivalent
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC

FAULTS: list[tuple[Callable[[Patch], None], str, Callable[[Program], list[Value]], str]] = [
    (cases.halves_swapped, "qfuse-fuse-gate-up", cases.gated_mlp, "qfuse.matmul"),
    (cases.activation_is_not_rounded, "qfuse-fuse-gate-up", cases.gated_mlp, "qfuse.matmul"),
    (cases.scales_of_the_other_weight, "qfuse-fuse-gate-up", cases.gated_mlp, "qfuse.matmul"),
    (cases.weights_in_another_order, "qfuse-fuse-qkv", cases.qkv, "qfuse.matmul"),
    (cases.activation_is_another, "qfuse-fuse-epilogue", cases.activated, "qfuse.matmul"),
    (cases.activation_is_dropped, "qfuse-fuse-epilogue", cases.activated, "qfuse.matmul"),
    (cases.rounding_is_missing, "qfuse-fuse-epilogue", cases.activated, "qfuse.matmul"),
    (cases.residual_is_not_added, "qfuse-fuse-norm-quantize", cases.normed, "qfuse.rms_norm"),
    (cases.eps_is_lost, "qfuse-fuse-norm-quantize", cases.normed, "qfuse.dequantize"),
    (cases.input_is_not_quantized, "qfuse-expand-quantize", cases.implied, "qfuse.matmul"),
]


@pytest.mark.parametrize(("fault", "name", "program", "maker"), FAULTS)
def test_a_fault_is_found_and_named(
    fault: Callable[[Patch], None],
    name: str,
    program: Callable[[Program], list[Value]],
    maker: str,
    monkeypatch: Patch,
) -> None:
    p = Program()
    text = p.text(program(p))
    stages = pipeline.stages_of([name])
    assert verify(text, stages).compared
    fault(monkeypatch)
    with pytest.raises(NotEquivalent) as error:
        verify(text, stages)
    message = str(error.value)
    assert message.startswith(f"after {name} @main differs: result ")
    assert re.search(rf"made by {re.escape(maker)}( \(.*\))? at loc\(", message)
    assert " before and " in message and "seed 0" in message
    assert "\n" not in message


def test_a_missing_rounding_of_a_quantized_result(monkeypatch: Patch) -> None:
    """Two passes: gate and up first, then the fault in the pass that quantizes their result."""
    p = Program()
    text = p.text(cases.quantized_mlp(p))
    stages = pipeline.stages_of(["qfuse-fuse-gate-up", "qfuse-fuse-act-quantize"])
    assert verify(text, stages).compared
    cases.quantizes_before_rounding(monkeypatch)
    with pytest.raises(NotEquivalent, match="after qfuse-fuse-act-quantize @main differs"):
        verify(text, stages)


ROPE = Path(__file__).parents[1] / "passes" / "fuse_rope.mlir"


def test_rope_with_cos_and_sin_exchanged(monkeypatch: Patch) -> None:
    text = ROPE.read_text().split("// -----")[0]
    stages = pipeline.stages_of(["qfuse-fuse-rope"])
    assert not verify(text, stages).skipped
    right = fuse_rope.rotate
    monkeypatch.setattr(
        fuse_rope,
        "rotate",
        lambda rewriter, root, x, cos, sin, *rest: right(rewriter, root, x, sin, cos, *rest),
    )
    with pytest.raises(NotEquivalent, match=r"@rotate_half differs: result 0, made by torch\.aten"):
        verify(text, stages)


@dataclass(frozen=True)
class DropCombineResidual(Pass):
    """A pass of somebody else's: nothing in `CRITERIA`, so it must keep every bit."""

    name: ClassVar[str] = "drop-combine-residual"

    def run(self, module: ir.Operation) -> None:
        for op in list(module.regions[0].blocks[0].operations[0].regions[0].blocks[0].operations):
            if op.operation.name == "qfuse.combine":
                with ir.InsertionPoint(op), op.location:
                    sizes = ir.DenseI32ArrayAttr.get([1, 1, 1, 0])
                    new = ir.Operation.create(
                        "qfuse.combine",
                        results=[op.operation.results[0].type],
                        operands=list(op.operation.operands)[:3],
                        attributes={"operandSegmentSizes": sizes},
                    )
                op.operation.results[0].replace_all_uses_with(new.results[0])
                op.operation.erase()


COMBINE = """
func.func @experts(%y: tensor<?x2x24xbf16>, %s: tensor<?x2xi32>, %w: tensor<?x2xf32>,
                   %r: tensor<?x24xbf16>) -> tensor<?x24xbf16> {
  %0 = "qfuse.combine"(%y, %s, %w, %r) {operandSegmentSizes = array<i32: 1, 1, 1, 1>}
     : (tensor<?x2x24xbf16>, tensor<?x2xi32>, tensor<?x2xf32>, tensor<?x24xbf16>)
     -> tensor<?x24xbf16>
  return %0 : tensor<?x24xbf16>
}"""


def test_any_other_pass_must_keep_every_bit() -> None:
    fault = DropCombineResidual()
    with pytest.raises(NotEquivalent, match="after drop-combine-residual @experts differs"):
        verify(COMBINE, [Stage(fault.name, fault)])


def test_a_wrong_map_is_found_by_the_verifier_already() -> None:
    """An operand fits one map only, unless an extent is one; so no map can be wrong in secret."""
    p = Program()
    x, column = p.input(-1, 72), p.input(-1, 1)
    y = p.add(p.matmul(x, p.weight(40, 72)), column, Shaped((DYNAMIC, 40), "bf16"))
    text = p.text([y])
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(text)
        pipeline.run(module, pipeline.stages_of(["qfuse-fuse-epilogue"]))
        fused = str(module)
        assert '"[M,1]"' in fused
        with pytest.raises(ir.MLIRError, match="does not fit its map"):
            ir.Module.parse(fused.replace('"[M,1]"', '"[N]"'))
