"""`Verification` names the pass that is wrong, where, and by how much; and right ones pass."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from programs import BLOCK, Program, Value

from qfuse.compiler import compile, pipeline
from qfuse.compiler.passes import (
    epilogue_stages,
    expand_quantize,
    fuse_gate_up,
    fuse_norm_quantize,
    fuse_rope,
)
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.pipeline import Stage
from qfuse.compiler.reference import Quantized
from qfuse.compiler.reference.inputs import RandomInputs
from qfuse.compiler.verification import NotEquivalent, Verification
from qfuse.dialects.bindings import ir
from qfuse.dialects.glu import Glu
from qfuse.dialects.quantization_ops import build_concat
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.tools import qfuse_opt

Patch = pytest.MonkeyPatch


def verify(text: str, stages: Sequence[Stage], **choices) -> Verification:
    verification = Verification(**choices)
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(text)
        pipeline.run(module, stages, around=verification.around)
    return verification


# Programs


def gated_mlp(p: Program) -> list[Value]:
    x = p.input(-1, 72)
    gate, up = (p.matmul(x, p.weight(40, 72)) for _ in range(2))
    return [p.glu(Glu("silu"), gate, up)]


def qkv(p: Program) -> list[Value]:
    x = p.input(-1, 72)
    weights = [p.weight(n, 72) for n in (40, 40, 24)]
    return [p.matmul(x, w) for w in weights]


def activated(p: Program) -> list[Value]:
    x = p.input(-1, 72)
    y = p.matmul(x, p.weight(40, 72))
    z = p.activate("gelu", p.add(y, p.parameter(40), y.type))
    return [p.mul(z, p.input(-1, 40), y.type)]


def normed(p: Program) -> list[Value]:
    x = p.input(-1, 72)
    h = p.add(x, p.input(-1, 72), x.type)
    y = p.rms_norm(h, p.parameter(72))
    return [h, p.dequantize(p.quantize(y))]


def quantized_mlp(p: Program) -> list[Value]:
    return [p.dequantize(p.quantize(*gated_mlp(p), group=32))]


def implied(p: Program) -> list[Value]:
    return [p.matmul(p.input(-1, 72), p.weight(40, 72), quantize=True)]


# Faults: each breaks one pass in the way its authors could have


def halves_swapped(patch: Patch) -> None:
    right = fuse_gate_up.build_glu
    patch.setattr(fuse_gate_up, "build_glu", lambda glu, g, u, dtype: right(glu, u, g, dtype))


def activation_is_another(patch: Patch) -> None:
    right = epilogue_stages.build_elementwise
    names = {"gelu": "gelu_tanh"}
    patch.setattr(
        epilogue_stages,
        "build_elementwise",
        lambda name, xs, attributes: right(names.get(name, name), xs, attributes),
    )


def activation_is_dropped(patch: Patch) -> None:
    right = epilogue_stages.build_elementwise
    patch.setattr(
        epilogue_stages,
        "build_elementwise",
        lambda name, xs, attributes: xs[0] if name == "gelu" else right(name, xs, attributes),
    )


def rounding_is_missing(patch: Patch) -> None:
    patch.setattr("qfuse.compiler.epilogue.build_rounding", lambda x, _dtype: x)


def activation_is_not_rounded(patch: Patch) -> None:
    patch.setattr(fuse_gate_up, "build_rounding", lambda x, _dtype: x)


def weights_in_another_order(patch: Patch) -> None:
    def join(products: Sequence[ir.Operation]) -> ir.Value:
        weights = [p.operands[1] for p in products]
        return build_concat([weights[1], weights[0], *weights[2:]])

    patch.setattr("qfuse.compiler.passes.fuse_qkv.join_weights", join)


def scales_of_the_other_weight(patch: Patch) -> None:
    """Codes stay, and the scales of the first weight serve both."""

    def join(products: Sequence[ir.Operation]) -> ir.Value:
        first, second = (p.operands[1].owner.operation for p in products)
        mixed = ir.Operation.create(
            "qfuse.pack",
            results=[second.results[0].type],
            operands=[second.operands[0], first.operands[1]],
        )
        return build_concat([first.results[0], mixed.results[0]])

    patch.setattr(fuse_gate_up, "join_weights", join)


def residual_is_not_added(patch: Patch) -> None:
    right = fuse_norm_quantize.build_rms_norm
    patch.setattr(
        fuse_norm_quantize,
        "build_rms_norm",
        lambda like, ops, t: right(like, {**ops, "residual": None}, t),
    )


def eps_is_lost(patch: Patch) -> None:
    right = fuse_norm_quantize.build_rms_norm

    def build(*arguments) -> ir.Operation:
        norm = right(*arguments)
        norm.attributes["eps"] = ir.FloatAttr.get(ir.F64Type.get(), 1e-3)
        return norm

    patch.setattr(fuse_norm_quantize, "build_rms_norm", build)


def quantizes_before_rounding(patch: Patch) -> None:
    patch.setattr("qfuse.compiler.epilogue.build_rounding", lambda x, _dtype: x)


def input_is_not_quantized(patch: Patch) -> None:
    def split(rewriter, product: ir.Operation) -> None:
        with ir.InsertionPoint(product):
            copy = product.clone()
        del copy.attributes[expand_quantize.INPUT_SCHEME]
        rewriter.replace_op(product, copy.results)

    patch.setattr(expand_quantize, "split_quantize", split)


FAULTS: list[tuple[Callable[[Patch], None], str, Callable[[Program], list[Value]], str]] = [
    (halves_swapped, "qfuse-fuse-gate-up", gated_mlp, "qfuse.matmul"),
    (activation_is_not_rounded, "qfuse-fuse-gate-up", gated_mlp, "qfuse.matmul"),
    (scales_of_the_other_weight, "qfuse-fuse-gate-up", gated_mlp, "qfuse.matmul"),
    (weights_in_another_order, "qfuse-fuse-qkv", qkv, "qfuse.matmul"),
    (activation_is_another, "qfuse-fuse-epilogue", activated, "qfuse.matmul"),
    (activation_is_dropped, "qfuse-fuse-epilogue", activated, "qfuse.matmul"),
    (rounding_is_missing, "qfuse-fuse-epilogue", activated, "qfuse.matmul"),
    (residual_is_not_added, "qfuse-fuse-norm-quantize", normed, "qfuse.rms_norm"),
    (eps_is_lost, "qfuse-fuse-norm-quantize", normed, "qfuse.dequantize"),
    (input_is_not_quantized, "qfuse-expand-quantize", implied, "qfuse.matmul"),
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
    text = p.text(quantized_mlp(p))
    stages = pipeline.stages_of(["qfuse-fuse-gate-up", "qfuse-fuse-act-quantize"])
    assert verify(text, stages).compared
    quantizes_before_rounding(monkeypatch)
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


# Torch


def opaque(name: str, x: str, result: str) -> str:
    return f'%{result} = torch.operator "torch.test.{name}"(%{x}) : (!t) -> !t'


def with_torch(*body: str, returns: str) -> str:
    lines = "\n".join(body)
    return f"""
!t = !torch.vtensor<[?,8],f32>
!b = tensor<?x8xf32>
func.func @f(%a: !t) -> !t {{
{lines}
return %{returns} : !t
}}"""


AROUND = with_torch(
    opaque("first", "a", "x"),
    "%b = torch_c.to_builtin_tensor %x : !t -> !b",
    '%c = "qfuse.relu"(%b) : (!b) -> !b',
    "%y = torch_c.from_builtin_tensor %c : !b -> !t",
    opaque("second", "y", "z"),
    returns="z",
)


@dataclass(frozen=True)
class Edit(Pass):
    """Does to every operation of a name what `change` says."""

    change: Callable[[ir.Operation], None]
    of: str = "qfuse.relu"
    name: ClassVar[str] = "edit"

    def run(self, module: ir.Operation) -> None:
        for function in module.regions[0].blocks[0].operations:
            for op in list(function.operation.regions[0].blocks[0].operations):
                if op.operation.name == self.of:
                    self.change(op.operation)

    @property
    def stages(self) -> list[Stage]:
        return [Stage(self.name, self)]


def forward(op: ir.Operation) -> None:
    op.results[0].replace_all_uses_with(op.operands[0])
    op.erase()


def test_what_torch_reads_is_compared() -> None:
    """The function's result is what torch yields, which cannot be run; what it reads can."""
    with pytest.raises(NotEquivalent, match=r"operand 0 of torch\.test\.second at loc\(") as error:
        verify(AROUND, Edit(forward).stages)
    assert "made by torch.test.first" in str(error.value)


def test_what_depends_on_a_replaced_operation_is_skipped_with_a_reason() -> None:
    verification = verify(AROUND, Edit(forward, "torch.operator").stages)
    assert list(verification.skipped) == [
        "edit of @f is not verified: the reference does not execute torch.test.second, on which "
        "result 0 depends"
    ]


def test_equal_operations_of_torch_yield_equal_values() -> None:
    """As cse may merge them."""
    text = with_torch(
        opaque("one", "a", "x"),
        opaque("one", "a", "y"),
        "%b = torch_c.to_builtin_tensor %x : !t -> !b",
        "%c = torch_c.to_builtin_tensor %y : !t -> !b",
        '%d = "qfuse.add"(%b, %c) : (!b, !b) -> !b',
        "%z = torch_c.from_builtin_tensor %d : !b -> !t",
        returns="z",
    )

    def read_the_first_twice(op: ir.Operation) -> None:
        op.operands[1] = op.operands[0]

    verification = verify(text, Edit(read_the_first_twice, "qfuse.add").stages)
    assert verification.compared and not verification.skipped


def test_a_function_that_cannot_run_is_skipped_with_a_reason() -> None:
    text = """
func.func @f(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = arith.negf %a : tensor<4xf32>
  return %0 : tensor<4xf32>
}"""
    (line,) = verify(text, Edit(forward).stages).skipped
    assert "edit of @f is not verified: the reference does not execute arith.negf, at loc(" in line


def test_a_program_that_fits_no_more_fails() -> None:
    """Shapes known at run time only, so that the verifier cannot see it."""
    p = Program()
    y = p.add(p.input(-1, 8), p.input(4, 8), Shaped((DYNAMIC, 8), "bf16"))
    (line, *_) = verify(p.text([y]), Edit(forward).stages).skipped
    assert "do not fit" in line


def test_kernels_of_a_gpu_are_not_run() -> None:
    p = Program()
    name = "qfuse-convert-to-triton"
    verification = verify(p.text(gated_mlp(p)), [Stage(name, Edit(forward))])
    assert verification.report() == [
        f"{name} is not verified: kernels of a GPU run in lowering/triton/interpreter",
        "0 values are the same before and after a pass",
    ]


# The command and the API


def test_command_fails_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Patch
) -> None:
    p = Program()
    file = tmp_path / "mlp.mlir"
    file.write_text(p.text(gated_mlp(p)))
    argv = [str(file), "--qfuse-fuse-gate-up", "--verify-fusion", "-o", str(tmp_path / "out.mlir")]
    assert qfuse_opt.main(argv) == 0
    assert "3 values are the same before and after a pass" in capsys.readouterr().err
    halves_swapped(monkeypatch)
    assert qfuse_opt.main(argv) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "after qfuse-fuse-gate-up @main differs" in captured.err
    assert qfuse_opt.main([*argv, "--verify-fusion-seed=7"]) == 1
    assert "seed 7" in capsys.readouterr().err
    assert qfuse_opt.main([*argv, "--verify-fusion-seed=-1"]) == 1
    assert "seed -1 is negative" in capsys.readouterr().err


def test_compile_verifies_a_checkpoint(
    checkpoints: Callable[..., Path], monkeypatch: Patch
) -> None:
    """All of it: what torch has, every fusion, and the kernels outlined; with random weights."""
    exe = compile(checkpoints(), verify=True)
    (line,) = exe.program.report["verified"]
    assert line.endswith("values are the same before and after a pass")
    scales_of_the_other_weight(monkeypatch)
    new = r"from what is new, qfuse\.pack \(.*mlp\.up_proj\.weight, .*gate_proj\.weight_scale_inv\)"
    with pytest.raises(NotEquivalent, match=new):
        compile(checkpoints(), verify=True)


@pytest.mark.parametrize("quantized", [True, False], ids=["fp8", "bf16"])
@pytest.mark.parametrize("architecture", ["mixtral", "deepseek_v3", "qwen3_moe"])
def test_compile_verifies_layers_of_experts(
    checkpoints: Callable[..., Path], architecture: str, quantized: bool
) -> None:
    """Between bf16 products, which experts a token chooses may be left open by all inputs tried."""
    exe = compile(checkpoints(architecture=architecture, quantized=quantized), verify=True)
    *skipped, line = exe.program.report["verified"]
    assert line.endswith("values are the same before and after a pass")
    open_ = "qfuse-raise-torch of @main is not verified: which experts are largest depends on"
    assert not skipped or (not quantized and skipped == [f"{open_} roundings"])


def test_without_verify_nothing_runs_and_nothing_is_reported(
    checkpoints: Callable[..., Path],
) -> None:
    assert "verified" not in compile(checkpoints()).program.report


def test_large_weights_take_little_memory() -> None:
    """Rows of a large tensor share memory, and products take some of the terms."""
    with ir.Context(), ir.Location.unknown():
        load_all()
        weight = Shaped((64, 8192, 4096), "f8E4M3FN", Scheme((128, 128), "f32"))
        text = f"func.func private @f(%w: {weight}) {{ return }}"
        module = ir.Module.parse(text)
        (value,) = RandomInputs(0, 3).arguments(module.body.operations[0].operation)
    assert isinstance(value, Quantized)
    data = value.data.array
    assert data.shape == (64, 8192, 4096)
    assert np.lib.array_utils.byte_bounds(data)[1] - np.lib.array_utils.byte_bounds(data)[0] < 4e6
    rows = data[:2, :3, :BLOCK].reshape(6, -1).view(np.uint8)
    assert len({row.tobytes() for row in rows}) == 6
