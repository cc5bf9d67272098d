"""Whole programs with buffers that are poisoned once they are dead, and where launches write.

A norm's quantized results are buffers of their own: no launch writes where something lives.
`Session(poison=True)` fills a buffer with 0xFF, NaN in every float type, after its last use.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import Program, Value

from qfuse.compiler import compile
from qfuse.compiler.runtime import arena
from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.runtime.plan import DTYPES, TensorType
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.types import Scheme, Shaped

PROMPT = [5, 99, 3, 17, 42, 7, 8]
FORMATS = (("f8E4M3FN", Scheme((1, 128), "f32")), ("i8", Scheme((1, 32), "f16", "q8_1")))


def poisoned(exe: Executable) -> Executable:
    """The same program, in a session that poisons."""
    other = Executable(exe.program)
    other._session = Session(exe.program, poison=True)
    return other


def all_results() -> tuple[Program, list[Value]]:
    """Two norms with all results, each of which is read, some only at the end."""
    p = Program()
    x, r = p.input(-1, 300), p.input(-1, 300)
    h, made = p.add(x, r, x.type), []
    for _ in range(2):
        y = p.rms_norm(h, p.parameter(300))
        for dtype, scheme in FORMATS:
            type_ = Shaped(y.type.shape, dtype, scheme)
            made += p._op("quantize", [y], [type_], None)
        h = p.add(p.activate("silu", y), h, h.type)
    wide = [p.dequantize(q) for q in made[::-1]]
    # outputs get memory of their own: what is to lie in the arena is read by one more launch
    return p, [h, *(p.activate("relu", w) for w in wide)]


@pytest.fixture(scope="module")
def norms() -> Executable:
    program, outputs = all_results()
    exe = program.compile(outputs, ["norm-quantize"])
    (kernel,) = (k for k in exe.program.plan.kernels if k.name.startswith("rms_norm"))
    assert len(kernel.results) == 6, "value, twice codes and scales, new residual"
    assert sum(getattr(step, "kernel", "") == kernel.name for step in exe.program.plan.steps) == 2
    return exe


@pytest.fixture(scope="module")
def qwen3(checkpoints: Callable[..., Path]) -> Executable:
    return compile(checkpoints(), max_len=32, logits="all")


def inputs(rows: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return [torch.randn(rows, 300, generator=generator).bfloat16() for _ in range(2)]


@pytest.mark.parametrize("rows", [1, 5, 70])
def test_a_norm_with_all_results(norms: Executable, rows: int) -> None:
    """From the second call with a shape on, a function runs that has the buffers planned."""
    expected = norms(*inputs(rows))
    other = poisoned(norms)
    for _ in range(3):
        assert all(map(same_bits, other(*inputs(rows)), expected))
    assert "fill_(255)" in other._session.source(*inputs(rows))


def test_qwen3(qwen3: Executable) -> None:
    tokens, logits = qwen3.generate(PROMPT, 12, eos=()), qwen3.logits(PROMPT)
    other = poisoned(qwen3)
    for _ in range(2):
        assert other.generate(PROMPT, 12, eos=()) == tokens
        assert same_bits(other.logits(PROMPT), logits)
    position = torch.arange(len(PROMPT))
    assert "fill_(255)" in other._session.source(torch.tensor([PROMPT]), position)


def test_a_buffer_that_goes_too_early_is_noticed(
    norms: Executable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These tests can fail: here the plan takes every buffer to be dead once it is written."""
    expected, assign = norms(*inputs(5)), arena.assign

    def too_short(intervals: Sequence[arena.Interval]) -> tuple[list[int], int]:
        return assign([arena.Interval(i.size, i.first, i.first) for i in intervals])

    monkeypatch.setattr(arena, "assign", too_short)
    other = poisoned(norms)
    other(*inputs(5))  # this call traces, in memory that torch gives
    assert not all(map(same_bits, other(*inputs(5)), expected))


@pytest.mark.parametrize("model", ["norms", "qwen3"])
def test_no_norm_writes_into_what_it_reads(
    model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes and scales, like its other results, share no byte with each other or with operands."""
    exe: Executable = request.getfixturevalue(model)
    kernels = {k.name: k for k in exe.program.plan.kernels if k.name.startswith("rms_norm")}
    bound: list[tuple[str, list[int], int]] = []
    bind = Session._bind

    def recorded(session: Session, kernel: str, pointers: Sequence[int], rows: int) -> Any:
        bound.append((kernel, list(pointers), rows))
        return bind(session, kernel, pointers, rows)

    monkeypatch.setattr(Session, "_bind", recorded)
    other = Executable(exe.program)
    given = inputs(5) if model == "norms" else [torch.tensor([PROMPT]), torch.arange(len(PROMPT))]
    for _ in range(2):
        other(*given)
    norms = [call for call in bound if call[0] in kernels]
    assert len(norms) >= 4
    for name, pointers, rows in norms:
        kernel = kernels[name]
        types = (*kernel.operands, *kernel.results)
        places = [place(at, type_, rows) for at, type_ in zip(pointers, types, strict=True)]
        for i, written in enumerate(places):
            others = (p for j, p in enumerate(places) if j != i)
            if i >= len(kernel.operands) and pointers[i]:  # else torch allocates it in each call
                assert all(disjoint(written, p) for p in others), f"{name}: result {i} of {places}"


def place(at: int, type_: TensorType | None, rows: int) -> tuple[int, int]:
    """The bytes of a tensor of a norm: all but its weight have as many rows as the launch."""
    assert type_ is not None
    elements = type_.shape[-1] * (rows if len(type_.shape) > 1 else 1)
    return at, at + elements * DTYPES[type_.dtype].itemsize


def disjoint(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[1] <= b[0] or b[1] <= a[0]


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )
