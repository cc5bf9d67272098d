"""Launches of a layer of experts: which are counted, without fusion and with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qfuse.compiler import compile, pipeline
from qfuse.compiler.expert_layers import count_launches, launches_of
from qfuse.compiler.frontend.huggingface import import_checkpoint
from qfuse.compiler.runtime.report import ExpertLayer
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import load_all

ARCHITECTURES = ["qwen3", "qwen3_moe", "mixtral", "deepseek_v3"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_launches_are_those_of_a_profile(
    checkpoints: Callable[..., Path], architecture: str
) -> None:
    """Nothing is missed and nothing counted that a call does not start."""
    directory = checkpoints(architecture=architecture)
    imported = import_checkpoint(directory, max_len=32)
    with imported.module.context:
        load_all()
    pipeline.run(imported.module, pipeline.stages_of(pipeline.IMPORT))
    (main,) = imported.module.body.operations
    counted = sum(launches_of(op.operation) for op in main.regions[0].blocks[0].operations)
    session = compile(directory, max_len=32, disable=["all"]).session()
    profile = session.profile(torch.tensor([[0]]), torch.tensor([8]))
    assert counted == profile.launches - profile.by_kind.get("copy", (0, 0))[0]


@pytest.mark.parametrize(
    ("architecture", "disable", "expected"),
    [
        ("qwen3_moe", [], [(9, 5)] * 2),
        ("qwen3_moe", ["all"], [(9, 9)] * 2),
        ("qwen3_moe", ["act-quantize"], [(9, 6)] * 2),
        ("mixtral", [], [(9, 5)] * 2),
        ("deepseek_v3", [], [(16, 6)]),
        ("deepseek_v3", ["shared-expert"], [(16, 8)]),
        ("deepseek_v3", ["shared-expert", "epilogue"], [(16, 9)]),
        ("deepseek_v3", ["all"], [(16, 16)]),
    ],
)
def test_layers(
    checkpoints: Callable[..., Path],
    architecture: str,
    disable: list[str],
    expected: list[tuple[int, int]],
) -> None:
    report = compile(checkpoints(architecture=architecture), max_len=32, disable=disable).report()
    assert report.expert_layers is not None
    assert [(layer.before, layer.after) for layer in report.expert_layers] == expected
    for layer, data in zip(report.expert_layers, report.to_json()["expert_layers"], strict=True):
        assert ExpertLayer(**data) == layer and "experts" in layer.weight
    before, after = expected[0]
    assert f"launches per MoE layer: {before} -> {after}" in str(report)
    assert report.most_of_an_expert_layer() == expected[0]


def test_no_layers(checkpoints: Callable[..., Path]) -> None:
    report = compile(checkpoints(), max_len=32).report()
    assert report.expert_layers is report.to_json()["expert_layers"] is None
    assert report.most_of_an_expert_layer() is None
    assert "MoE" not in str(report)


LAYER = """
!x = tensor<?x64xbf16>
func.func @main(%x: !x, %logits: tensor<?x4xf32>, %w: tensor<4x64x64xbf16>) -> (!x, !x) {
  %norm = "qfuse.silu"(%x) : (!x) -> !x
  %ids, %weights = "qfuse.select_experts"(%logits) {scoring = "softmax", normalize = true,
    scale = 1.0 : f64, num_groups = 1 : i64, groups_used = 1 : i64}
    : (tensor<?x4xf32>) -> (tensor<?x2xi64>, tensor<?x2xf32>)
  %slots, %tokens, %indptr = "qfuse.route"(%ids) {num_experts = 4 : i64}
    : (tensor<?x2xi64>) -> (tensor<?x2xi32>, tensor<?x2xi32>, tensor<5xi32>)
  %y = "qfuse.group_matmul"(%norm, %w, %indptr, %tokens) ({
  ^bb0(%acc: f32):
    "qfuse.yield"(%acc) : (f32) -> ()
  }) {parts = array<i64: 64>, maps = [],
    operandSegmentSizes = array<i32: 1, 1, 1, 1, 0, 0, 0, 0, 0, 0>,
    resultSegmentSizes = array<i32: 1, 0, 0, 0>}
    : (!x, tensor<4x64x64xbf16>, tensor<5xi32>, tensor<?x2xi32>) -> tensor<?x2x64xbf16>
  %sum = "qfuse.combine"(%y, %slots, %weights) {operandSegmentSizes = array<i32: 1, 1, 1, 0>}
    : (tensor<?x2x64xbf16>, tensor<?x2xi32>, tensor<?x2xf32>) -> !x
  BODY
}
"""
BODIES = {
    "a residual is none of it": (
        '%out = "qfuse.add"(%x, %sum) : (!x, !x) -> !x\n return %out, %norm : !x, !x',
        4,
    ),
    "what is added to the sum is": (
        '%relu = "qfuse.relu"(%norm) : (!x) -> !x\n'
        '%out = "qfuse.add"(%relu, %sum) : (!x, !x) -> !x\n return %out, %norm : !x, !x',
        6,
    ),
    "not what reads the same": (
        '%relu = "qfuse.relu"(%norm) : (!x) -> !x\n return %sum, %relu : !x, !x',
        4,
    ),
}


@pytest.mark.parametrize("case", BODIES)
def test_what_belongs_to_a_layer(case: str) -> None:
    body, launches = BODIES[case]
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(LAYER.replace("BODY", body))
        assert [layer.launches for layer in count_launches(module)] == [launches]
