"""Whole programs for an AMD GPU, from checkpoint to tokens, on a machine without one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_gpu_generation import (
    PROMPT,
    OnFakeGpu,
    distance,
    far,  # noqa: F401  # a fixture that every test here uses
)

from qfuse.compiler import compile


@pytest.mark.parametrize("architecture", ["qwen3", "mixtral"])
def test_a_program_computes_what_the_cpu_does(
    checkpoints: Callable[..., Path], architecture: str
) -> None:
    """Its kernels in the interpreter, prompt and single tokens, with graphs."""
    directory = checkpoints(architecture=architecture, layers=1)
    cpu = compile(directory, max_len=32)
    gpu = OnFakeGpu(compile(directory, max_len=32, target="hip:gfx942"))
    for prompt in (PROMPT, PROMPT[:1]):
        ids = torch.tensor(prompt)
        # sums in another order, and codes of activations that a rounding moves
        assert distance(gpu.exe.logits(ids), cpu.logits(ids)) < 0.02
    assert gpu.exe.generate(PROMPT, 4, eos=()) == cpu.generate(PROMPT, 4, eos=())
