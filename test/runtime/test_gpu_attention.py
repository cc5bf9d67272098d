"""Attention on a GPU: which kernel of torch serves a call, and what its layers share.

The device is the host's memory in the role of a GPU (gpu_fakes.FakeGpu).
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_fakes import FakeGpu, recorded_kernels

from qfuse.compiler import compile, gpu_attention, pipeline, torch_ops
from qfuse.compiler.runtime.session import Session

BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def far(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Operators treat all tensors as on a device; what was tried is forgotten."""
    monkeypatch.setattr(torch_ops, "on_host", lambda tensor: False)
    monkeypatch.setattr(gpu_attention, "_FLASH_WORKS", {})
    yield


class Flash:
    """torch's FlashAttention for sequences of different lengths, as CUDA has it."""

    def __init__(self, ignores_lengths: bool = False) -> None:
        self.ignores_lengths = ignores_lengths
        self.calls = 0

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        q_ends: torch.Tensor,
        k_ends: torch.Tensor,
        *rest: Any,
        scale: float,
        seqused_k: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        self.calls += 1
        slots = k.shape[0]
        assert rest == (1, slots, 0.0, False, False)
        assert q_ends.tolist() == [0, 1] and k_ends.tolist() == [0, slots]
        assert {t.dtype for t in (q_ends, k_ends, seqused_k)} == {torch.int32}
        assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1
        unused = torch.arange(slots)[:, None, None] >= seqused_k
        if not self.ignores_lengths:
            k, v = (x.masked_fill(unused, 0) for x in (k, v))
        together = q.shape[1] // k.shape[1]
        k, v = (x.float().repeat_interleave(together, 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q.float(), k) * scale
        weights = torch.softmax(scores.masked_fill(unused.view(-1), -torch.inf), -1)
        return torch.einsum("hqk,khd->qhd", weights, v).to(q.dtype), None, None, None, None


def operands(heads: int = 4, width: int = 16, dtype: torch.dtype = BF16, batch: int = 1) -> Any:
    generator = torch.Generator().manual_seed(heads)
    return [
        torch.randn(batch, n, slots, width, generator=generator).to(dtype)
        for n, slots in ((heads, 1), (2, 50), (2, 50))
    ]


@pytest.mark.parametrize("heads", [2, 8])
@pytest.mark.parametrize("window", [0, 50])
def test_one_token_is_decoded_by_flash_attention(
    monkeypatch: pytest.MonkeyPatch, heads: int, window: int
) -> None:
    flash = Flash()
    monkeypatch.setattr(gpu_attention, "FLASH_FORWARD", flash)
    q, k, v = operands(heads)
    for last in (0, 20, 49):
        position = torch.tensor([last])
        tried = flash.calls
        found = torch_ops.attention(q, k, v, position, 0.25, window)
        assert flash.calls > tried and found.dtype == BF16
        with monkeypatch.context() as near:
            near.setattr(torch_ops, "on_host", lambda tensor: True)
            expected = torch_ops.attention(q, k, v, position, 0.25, window)
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert list(gpu_attention._FLASH_WORKS.values()) == [True]


def missing(*arguments: Any, **options: Any) -> Any:
    raise NotImplementedError("Could not run aten::_flash_attention_forward")


def other_signature(*arguments: Any) -> Any:
    raise AssertionError("never called with these")


@pytest.mark.parametrize("flash", [missing, other_signature, Flash(ignores_lengths=True)])
def test_a_kernel_that_does_not_agree_is_not_used(
    monkeypatch: pytest.MonkeyPatch, flash: Callable[..., Any]
) -> None:
    """It is tried once: as not part of torch's public interface, it may change."""
    monkeypatch.setattr(gpu_attention, "FLASH_FORWARD", flash)
    q, k, v = operands()
    k[:, :, 21:], v[:, :, 21:] = 1e30, 1e30
    for _ in range(2):
        seen = gpu_attention.visible(q, k, v, torch.tensor([20]), 0)
        assert isinstance(seen, torch.Tensor)
    assert list(gpu_attention._FLASH_WORKS.values()) == [False]
    assert torch_ops.attention(q, k, v, torch.tensor([20]), 0.25, 0).isfinite().all()


@pytest.mark.parametrize(
    ("choices", "tokens", "window"),
    [
        ({"dtype": torch.float32}, 1, 0),
        ({"batch": 2}, 1, 0),
        ({"width": 12}, 1, 0),
        ({"width": 264}, 1, 0),
        ({}, 1, 49),
        ({}, 2, 0),
    ],
)
def test_what_flash_attention_is_not_for(
    monkeypatch: pytest.MonkeyPatch, choices: dict[str, Any], tokens: int, window: int
) -> None:
    monkeypatch.setattr(gpu_attention, "FLASH_FORWARD", Flash())
    q, k, v = operands(**choices)
    q = q.repeat(1, 1, tokens, 1)
    seen = gpu_attention.visible(q, k, v, torch.arange(tokens), window)
    assert isinstance(seen, torch.Tensor) and not gpu_attention._FLASH_WORKS
    # rows at multiples of 16 elements, which torch's kernel takes as they are
    assert seen.stride() == (64, 1) and seen.shape == (2 * tokens, 50)


def test_a_window_that_hides_nothing_needs_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt from the start of the caches, no longer than the window."""
    tokens = torch_ops.ASYNCHRONOUS_TOKENS + 1
    q, k, v = (torch.randn(1, 2, n, 8) for n in (tokens, 90, 90))
    position = torch.arange(tokens)
    plain = torch_ops.attention(q, k, v, position, 0.3, 0)

    def masked(*_: Any) -> Any:
        raise AssertionError("a mask")

    monkeypatch.setattr(gpu_attention, "masked_attention", masked)
    assert torch_ops.attention(q, k, v, position, 0.3, tokens).equal(plain)
    with pytest.raises(AssertionError, match="a mask"):
        torch_ops.attention(q, k, v, position, 0.3, tokens - 1)


@pytest.mark.parametrize("flash", [missing, Flash()])
def test_layers_share_what_depends_on_the_position(
    monkeypatch: pytest.MonkeyPatch, checkpoints: Callable[..., Path], flash: Callable[..., Any]
) -> None:
    monkeypatch.setattr(gpu_attention, "FLASH_FORWARD", flash)
    gpu = FakeGpu()
    monkeypatch.setattr(pipeline, "CPU", ())  # attention stays torch's, as it does for a GPU
    expected = Session(compile(checkpoints(), max_len=32).program)
    program = compile(checkpoints(), max_len=32).program
    program.load_kernel = recorded_kernels(gpu)
    session = Session(program, device=gpu)
    monkeypatch.setattr(torch_ops, "on_host", lambda tensor: True)
    for start, tokens in ((0, 3), *((at, 1) for at in range(3, 9))):
        ids, position = torch.arange(tokens)[None] + 7, torch.arange(start, start + tokens)
        (wanted,) = expected(ids, position)
        with monkeypatch.context() as there:
            there.setattr(torch_ops, "on_host", lambda tensor: False)
            (found,) = session(ids, position)
        # codes of activations that a rounding moves
        assert torch.dist(found.float(), wanted.float()) < 0.03 * wanted.float().norm()
    source = session.source(ids, position)
    layers = source.count(" = attention_") + source.count(" = qfuse_attention_")
    assert layers > 1 and source.count(" = visible(") == 1
    assert [graph.replays for graph in gpu.graphs] == [4]
    assert list(gpu_attention._FLASH_WORKS.values()) == [isinstance(flash, Flash)]
