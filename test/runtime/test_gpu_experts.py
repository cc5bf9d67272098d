"""A mixture-of-experts model for a GPU, from checkpoint to logits, on a machine without one."""

from collections.abc import Callable
from pathlib import Path

import torch
from test_gpu_generation import (
    PROMPT,
    TARGET,
    OnFakeGpu,
    distance,
    far,  # noqa: F401  # a fixture that every test here uses
)

from qfuse.compiler import compile


def test_experts(checkpoints: Callable[..., Path]) -> None:
    directory = checkpoints(architecture="mixtral", layers=1)
    cpu = compile(directory, max_len=32)
    gpu = OnFakeGpu(compile(directory, max_len=32, target=TARGET))
    for prompt in (PROMPT, PROMPT[:1]):
        ids = torch.tensor(prompt)
        # sums in another order, and codes of activations that a rounding moves
        assert distance(gpu.exe.logits(ids), cpu.logits(ids)) < 0.02
    families = {name.rsplit("_", 1)[0] for name in gpu.exe.program.kernels}
    assert {"route", "group_matmul", "group_matmul_combine"} <= families


def test_a_shared_expert(checkpoints: Callable[..., Path]) -> None:
    """One more expert in the kernels for a GPU, as on the CPU."""
    directory = checkpoints(architecture="deepseek_v3", layers=1, dense_layers=0)
    cpu = compile(directory, max_len=32)
    gpu = OnFakeGpu(compile(directory, max_len=32, target=TARGET))
    assert {p.layout for p in gpu.exe.program.plan.prepares} == {"rows", "stack"}
    ids = torch.tensor(PROMPT)
    # sums in another order, and codes of activations that a rounding moves
    assert distance(gpu.exe.logits(ids), cpu.logits(ids)) < 0.02
