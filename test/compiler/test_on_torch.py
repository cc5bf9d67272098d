"""What stays on torch is listed, with reasons: in remarks, `explain` and the log.

That the list is whole, whatever the model, test/frontend/test_architectures.py holds: it has as
many operations as a call has launches of torch's.
"""

import json
import logging
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig

from qfuse.compiler import compile, on_torch, remarks
from qfuse.compiler.runtime import calls
from qfuse.dialects import registry
from qfuse.dialects.bindings import ir
from qfuse.tools.qfuse import main

PROGRAM = """
func.func @main(
    %x: !torch.vtensor<[4,8],f32> {qfuse.kind = "input", qfuse.name = "x"},
    %w: !torch.vtensor<[8],f32> {qfuse.kind = "parameter", qfuse.name = "w"})
    -> !torch.vtensor<[32],f32> {
  %none = torch.constant.none
  %int1 = torch.constant.int 1
  %eps = torch.constant.float 1.0e-5
  %true = torch.constant.bool true
  %n = torch.constant.int 8
  %all = torch.constant.int 32
  %dims = torch.prim.ListConstruct %n : (!torch.int) -> !torch.list<int>
  %w1 = torch.aten.add.Scalar %w, %int1, %int1
    : !torch.vtensor<[8],f32>, !torch.int, !torch.int -> !torch.vtensor<[8],f32>
  %y = torch.aten.layer_norm %x, %dims, %w1, %none, %eps, %true
    : !torch.vtensor<[4,8],f32>, !torch.list<int>, !torch.vtensor<[8],f32>, !torch.none,
      !torch.float, !torch.bool -> !torch.vtensor<[4,8],f32> loc("norm")
  %c = torch.aten.cos %y : !torch.vtensor<[4,8],f32> -> !torch.vtensor<[4,8],f32> loc("a")
  %m = torch.aten.mul.Tensor %c, %c
    : !torch.vtensor<[4,8],f32>, !torch.vtensor<[4,8],f32> -> !torch.vtensor<[4,8],f32> loc("b")
  %shape = torch.prim.ListConstruct %all : (!torch.int) -> !torch.list<int>
  %v = torch.aten.view %m, %shape
    : !torch.vtensor<[4,8],f32>, !torch.list<int> -> !torch.vtensor<[32],f32>
  return %v : !torch.vtensor<[32],f32>
}
"""


def listed(text: str) -> list[tuple[str, str, str, str]]:
    with ir.Context(), ir.Location.unknown(), remarks.collect() as collected:
        registry.load_all()
        on_torch.remark_torch(ir.Module.parse(text))
    return [(r.op, r.location, r.cause, r.cure) for r in collected]


def test_what_computes_is_listed() -> None:
    """No view, and nothing that is made of weights alone."""
    norm, cos, mul = listed(PROGRAM)
    assert norm == (
        *("torch.aten.layer_norm", 'loc("norm")'),
        "torch.aten.layer_norm runs on torch: qfuse has no LayerNorm",
        "the nearest is RMSNorm, qfuse.rms_norm",
    )
    assert cos[1:3] == ('loc("a")', "torch.aten.cos runs on torch: qfuse has no operation for it")
    assert mul[0] == "torch.aten.mul.Tensor" and "only next to what is raised" in mul[2]


@pytest.mark.parametrize("name", on_torch._REASONS)
def test_names_of_the_table_are_those_of_operators(name: str) -> None:
    """With an overload, or of an operator that has some."""
    import transformers.integrations.moe  # noqa: F401  it defines operators

    _, namespace, operator, *overload = name.split(".")
    if overload:
        calls.resolve(f"{namespace}.{operator}.{overload[0]}")
    else:
        assert hasattr(getattr(torch.ops, namespace), operator)


def test_another_overload_is_another_operator() -> None:
    assert on_torch._reason("torch.aten.pow.Scalar") is on_torch._OTHERS
    assert on_torch._reason("torch.aten.pow.Tensor_Scalar") is not on_torch._OTHERS


def test_what_torch_does_not_have_is_for_the_plan_to_refuse() -> None:
    unknown = PROGRAM.replace("torch.aten.cos %y", 'torch.operator "torch.aten.no_such"(%y)')
    unknown = unknown.replace(
        "(%y) : !torch.vtensor<[4,8],f32>", "(%y) : (!torch.vtensor<[4,8],f32>)"
    )
    assert [name for name, *_ in listed(unknown)] == [
        "torch.aten.layer_norm",
        "torch.aten.mul.Tensor",
    ]


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(16), nn.Linear(16, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.norm(x))


def test_explain_lists_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.qfuse"
    compile(Normed().eval().requires_grad_(False), (torch.randn(3, 16),)).save(path)
    assert main(["explain", str(path), "--json"]) == 0
    (kind,) = json.loads(capsys.readouterr().out)["on_torch"]
    assert (kind["op"], kind["pattern"]) == ("torch.aten.layer_norm", "on-torch")
    assert list(kind["places"].values()) == [1]
    assert main(["explain", str(path)]) == 0
    assert "qfuse has no LayerNorm; the nearest is RMSNorm" in capsys.readouterr().out


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    config = MixtralConfig(
        **dict.fromkeys(("hidden_size", "intermediate_size", "vocab_size"), 32),
        **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), 2),
        **{"num_hidden_layers": 1, "num_local_experts": 4, "use_cache": False},
    )
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


def test_experts_of_modules_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    """They run on torch; all else that does is in the log, too, for those who want to know."""
    torch._dynamo.reset()
    model, ids = mixtral(), torch.tensor([[3, 1, 4]])
    with caplog.at_level(logging.INFO, "qfuse"):
        made = torch.compile(model, backend="qfuse")(ids).logits
    torch.testing.assert_close(made, model(ids).logits, rtol=1e-4, atol=1e-5)  # f32
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    (warning,) = (message for message in warnings if "on-torch" in message)
    assert "2 x torch.transformers.grouped_mm_fallback runs on torch" in warning
    assert "compile the checkpoint" in warning
    assert "torch.aten.topk runs on torch: qfuse has no operation for it" in caplog.text


def test_explain_lists_it_of_a_checkpoint(checkpoints, capsys: pytest.CaptureFixture[str]) -> None:
    """Which nobody compiled yet."""
    assert main(["explain", str(checkpoints()), "--json"]) == 0
    kinds = json.loads(capsys.readouterr().out)["on_torch"]
    assert {"torch.aten.embedding", "torch.qfuse.kv_update"} <= {kind["op"] for kind in kinds}
    assert all("runs on torch" in kind["reason"] for kind in kinds if kind["pattern"] == "on-torch")
