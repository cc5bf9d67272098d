"""A mixture-of-experts model for a GPU, from checkpoint to logits, on a machine without one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_gpu_generation import (
    PROMPT,
    TARGET,
    OnFakeGpu,
    distance,
    far,  # noqa: F401  # a fixture that every test here uses
)

from qfuse.compiler import compile

kinds = pytest.mark.parametrize("quantized", [True, False], ids=["fp8", "bf16"])


@kinds
def test_experts(checkpoints: Callable[..., Path], quantized: bool) -> None:
    directory = checkpoints(architecture="mixtral", layers=1, quantized=quantized)
    cpu = compile(directory, max_len=32)
    gpu = OnFakeGpu(compile(directory, max_len=32, target=TARGET))
    for prompt in (PROMPT, PROMPT[:1]):
        ids = torch.tensor(prompt)
        # sums in another order, and codes of activations that a rounding moves
        assert distance(gpu.exe.logits(ids), cpu.logits(ids)) < 0.02
    families = {name.rsplit("_", 1)[0] for name in gpu.exe.program.kernels}
    assert {"route", "group_matmul", "group_matmul_combine"} <= families


@kinds
def test_a_shared_expert(checkpoints: Callable[..., Path], quantized: bool) -> None:
    """One more expert in the kernels for a GPU, as on the CPU."""
    choice = {"layers": 1, "dense_layers": 0, "quantized": quantized}
    directory = checkpoints(architecture="deepseek_v3", **choice)
    cpu = compile(directory, max_len=32)
    gpu = OnFakeGpu(compile(directory, max_len=32, target=TARGET))
    assert {p.layout for p in gpu.exe.program.plan.prepares} == {"rows", "stack"}
    ids = torch.tensor(PROMPT)
    # sums in another order, and codes of activations that a rounding moves
    assert distance(gpu.exe.logits(ids), cpu.logits(ids)) < 0.02


def test_clamped_experts_with_biases(editable: Callable[..., Any]) -> None:
    """The biases of gate and up are cut once, not in each call."""
    model = editable(architecture="mixtral", layers=1)

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if ".experts." in n and n.endswith(".weight")]:
            bias = torch.randn(tensors[name].shape[0]) * 0.3
            tensors[name.removesuffix("weight") + "bias"] = bias.bfloat16()

    model.tensors(edit)
    model.config(swiglu_limit=0.7, swiglu_alpha=1.702)
    cpu = compile(model.path, max_len=32)
    gpu = OnFakeGpu(compile(model.path, max_len=32, target=TARGET))
    for prompt in (PROMPT, PROMPT[:1]):
        ids = torch.tensor(prompt)
        assert distance(gpu.exe.logits(ids), cpu.logits(ids)) < 0.02
    assert sum("op='aten.contiguous'" in str(s) for s in gpu.exe.program.plan.steps) == 2
    specializations = [s for s in gpu.exe._session._specializations.values() if s is not None]
    repeated = [str(action.step) for s in specializations for action in s.actions]
    assert repeated and not any("aten.contiguous" in step for step in repeated)
