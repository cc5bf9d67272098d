"""Whole programs for a GPU, from checkpoint to tokens, on a machine without one.

Every launch of every kernel is interpreted (gpu_fakes.InterpretingDriver); sessions, launchers,
scratch, counters and captured graphs are the real ones but for the graph and the driver.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_fakes import FakeGpu, InterpretingDriver, as_binary

from qfuse.compiler import block_scaled, compilation, compile, load, torch_ops
from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.runtime.plan import ChoiceStep, KernelStep
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.embedding import read_kernel
from qfuse.lowering.triton.gpu_kernel import GpuKernel
from qfuse.lowering.triton.launcher import LoadedGpuKernel

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
MAX_LEN = 96
TARGET = "cuda:sm_90"


@pytest.fixture(autouse=True, scope="module")
def far() -> Iterator[None]:
    """Kernels stay Triton IR; operators do not look at what is in tensors."""

    def to_binaries(functions: Sequence[Any], *_: Any) -> dict[str, GpuKernel]:
        return {f.name.value: as_binary(read_kernel(f)) for f in functions}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compilation, "to_binaries", to_binaries)
        patch.setattr(torch_ops, "on_host", lambda tensor: False)
        yield


class OnFakeGpu:
    """A program for a GPU with the driver that interprets it."""

    def __init__(self, exe: Executable, graphs: bool = True) -> None:
        program = exe.program
        self.driver = InterpretingDriver(list(program.kernels.values()), program.plan)
        program.load_kernel = lambda kernel: LoadedGpuKernel(kernel, self.driver)
        self.gpu = FakeGpu(self.driver)
        self.exe = exe
        exe._session = Session(program, device=self.gpu, poison=True, graphs=graphs)

    def launched(self) -> set[str]:
        return {started.name for started in self.driver.started}


@pytest.fixture(scope="module")
def cpu(checkpoints: Callable[..., Path]) -> Executable:
    return compile(checkpoints(), max_len=MAX_LEN, logits="all")


@pytest.fixture(scope="module")
def compiled(checkpoints: Callable[..., Path]) -> Executable:
    return compile(checkpoints(), max_len=MAX_LEN, logits="all", target=TARGET)


@pytest.fixture
def gpu(compiled: Executable) -> OnFakeGpu:
    return OnFakeGpu(Executable(replace(compiled.program, _loaded={})))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = torch.linalg.norm(found.float() - expected.float())
    return float(difference / torch.linalg.norm(expected.float()))


def test_tokens_are_those_of_the_cpu(cpu: Executable, gpu: OnFakeGpu) -> None:
    """Greedy decoding, eager and replayed, and again from cleared caches with the same graph."""
    tokens = cpu.generate(PROMPT, 6, eos=())
    assert gpu.exe.generate(PROMPT, 6, eos=()) == tokens
    assert [graph.replays for graph in gpu.gpu.graphs] == [3]
    assert gpu.exe.generate(PROMPT, 3, eos=()) == tokens[:3]
    # M = 1 was captured at its third call; the prompt's own shape was seen twice
    assert [graph.replays for graph in gpu.gpu.graphs] == [5]


def test_a_prompt_in_every_range_of_rows(cpu: Executable, gpu: OnFakeGpu) -> None:
    generator = torch.Generator().manual_seed(0)
    ranges = {(v.first_m, v.last_m) for k in gpu.exe.program.kernels.values() for v in k.variants}
    lengths = sorted({min(last or MAX_LEN - 20, MAX_LEN - 20) for _, last in ranges} | {1})
    assert len(lengths) > 2
    for length in lengths:
        prompt = torch.randint(256, (length,), generator=generator)
        found, expected = gpu.exe.logits(prompt), cpu.logits(prompt)
        # sums in another order, and codes of activations that a rounding moves
        assert distance(found, expected) < 0.02, length
    choices = [s for s in gpu.exe.program.plan.steps if isinstance(s, ChoiceStep)]
    chosen = {s.kernel: c for c in choices for s in c.kernel if isinstance(s, KernelStep)}
    every = set()
    for name, kernel in gpu.exe.program.kernels.items():
        ours = [m for m in lengths if name not in chosen or not chosen[name].serves(m)]
        every |= {launch.name for m in ours for launch in kernel.variant(m).launches}
    assert gpu.launched() == every


def test_another_architecture(checkpoints: Callable[..., Path]) -> None:
    """Biases, and logits from the embedding table itself."""
    directory = checkpoints(architecture="qwen2", tied=True)
    expected = compile(directory, max_len=32).generate(PROMPT, 2, eos=())
    gpu = OnFakeGpu(compile(directory, max_len=32, target=TARGET))
    assert gpu.exe.generate(PROMPT, 2, eos=()) == expected


def test_nothing_fused_gives_the_same_tokens(
    checkpoints: Callable[..., Path], cpu: Executable
) -> None:
    plain = OnFakeGpu(
        compile(checkpoints(), max_len=MAX_LEN, target=TARGET, disable=["all"]), graphs=False
    )
    assert plain.exe.generate(PROMPT, 2, eos=()) == cpu.generate(PROMPT, 2, eos=())
    assert not plain.gpu.graphs


class Mlp(torch.nn.Module):
    """Two layers over FP8 weights, the first with so many columns that its sums are split."""

    def __init__(self, wide: int, narrow: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in {"down": (narrow, wide), "up": (wide, narrow)}.items():
            weight = torch.randn(shape, generator=generator) / shape[1] ** 0.5
            codes, scale = block_scaled.quantize_blocks(weight, (128, 128))
            self.register_buffer(name, codes)
            self.register_buffer(f"{name}_scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        blocks = [128, 128], [1, 128]
        linear = torch.ops.qfuse.quantized_linear
        y = torch.nn.functional.silu(linear(x, self.down, self.down_scale, None, *blocks))
        return linear(y, self.up, self.up_scale, None, *blocks)


def test_split_sums_share_scratch_and_counters() -> None:
    model = Mlp(4096, 256)
    example = torch.zeros(3, 4096, dtype=torch.bfloat16)
    shapes = ({0: torch.export.Dim("rows")},)
    gpu = OnFakeGpu(compile(model, [example], target=TARGET, dynamic_shapes=shapes))
    kernels = gpu.exe.program.kernels.values()
    splitting = [v for k in kernels for v in k.variants if v.counter_bytes and v.scratch_per_row]
    assert splitting
    generator = torch.Generator().manual_seed(1)
    for rows in (1, 1, 1, 1, 5, 20, 40, 1):
        x = torch.randn(rows, 4096, generator=generator).bfloat16()
        (y,) = gpu.exe(x)
        # sums in another order, and codes of activations that a rounding moves
        assert distance(y, model(x)) < 1e-3
    assert [graph.replays for graph in gpu.gpu.graphs] == [3]
    ran = {launch.name for v in splitting if v.first_m <= 40 for launch in v.launches}
    assert gpu.launched() >= ran


def test_sessions_share_weights_but_not_memory(gpu: OnFakeGpu) -> None:
    program = gpu.exe.program
    first, second = (Session(program, device=FakeGpu(gpu.driver)) for _ in range(2))
    ids, position = torch.tensor([PROMPT[:2]]), torch.arange(2)
    expected = first(ids, position)[0]
    second(ids.flip(1), position)
    token = torch.tensor([[7]]), torch.tensor([2])
    after = first(*token)[0]
    first.reset()
    assert first(ids, position)[0].equal(expected)
    assert first(*token)[0].equal(after)
    assert not second(*token)[0].equal(after)


def test_an_artifact_is_read_without_a_gpu(cpu: Executable, gpu: OnFakeGpu, tmp_path: Path) -> None:
    gpu.exe.save(tmp_path / "model.qfuse")
    loaded = load(tmp_path / "model.qfuse")
    data = loaded.inspect()
    assert data["target"] == TARGET and data["kernels"]["rms_norm_0"]["level"] == TARGET
    assert loaded.report() == gpu.exe.report()
    if not torch.cuda.is_available():
        with pytest.raises(QfuseError, match="compiled for cuda:sm_90: this needs an NVIDIA GPU"):
            loaded.generate(PROMPT, 1)
    again = OnFakeGpu(loaded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert again.exe.generate(PROMPT, 2, eos=()) == cpu.generate(PROMPT, 2, eos=())
