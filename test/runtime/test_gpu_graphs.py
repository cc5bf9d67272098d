"""Calls captured into graphs, decoding with them, and attention that does not wait for a device.

The device is the host's memory in the role of a GPU (gpu_fakes.FakeGpu).
"""

import math
import warnings
from typing import Any

import pytest
import torch
from fakes import from_builtin, main, to_builtin
from gpu_fakes import FakeGpu, gpu_program
from models import VOCABULARY, WIDTH, expected_tokens, language_model
from test_session import CHAIN, ONE, X, chain, double, torch_add
from torch.utils._python_dispatch import TorchDispatchMode

from qfuse.compiler import gpu_attention, torch_ops
from qfuse.compiler.runtime import session as session_module
from qfuse.compiler.runtime.capture import CAPTURED_TOKENS, CapturedCall, can_capture
from qfuse.compiler.runtime.device import Device
from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.runtime.session import Session
from qfuse.compiler.runtime.specialize import Specialization
from qfuse.compiler.runtime.trace import Action, Trace, View
from qfuse.dialects.errors import QfuseError


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators treat all tensors as on a device, whose contents the host does not look at."""
    monkeypatch.setattr(torch_ops, "on_host", lambda tensor: False)


@pytest.mark.parametrize("poison", [False, True])
def test_a_shape_is_captured_once_and_replayed(poison: bool) -> None:
    gpu = FakeGpu()
    session = Session(gpu_program(CHAIN), device=gpu, poison=poison)
    kept = []
    for rows in (5, 1, 5, 0, 1, 5, 0, 5, 1, 0, 5, 0):
        x = torch.randn(rows, 8)
        kept.append((session(x)[0], chain(x)))
        x.zero_()
    for found, expected in kept:  # no call wrote to the outputs of another
        assert found.equal(expected)
    # five rows: traced, eager, then three replays; one row: one replay
    assert [g.replays for g in gpu.graphs] == [3, 1]
    assert gpu.entries == 13  # each call, and the session's own zeros before them


def test_outputs_of_a_replay_belong_to_the_caller() -> None:
    session = Session(gpu_program(CHAIN), device=FakeGpu())
    x = torch.ones(2, 8)
    for _ in range(3):
        session(x)
    (mine,) = session(x)
    mine.fill_(7)
    (other,) = session(x * 2)
    assert mine.eq(7).all() and other.equal(chain(x * 2))


NOT_CAPTURED = {
    "long": (CHAIN, torch.ones(CAPTURED_TOKENS + 1, 8), {}),
    "large inputs": (CHAIN, torch.ones(session_module.STAGED_BYTES, 8), {}),
    "switched off": (CHAIN, torch.ones(1, 8), {"graphs": False}),
    "no kernels": (
        main("x: ?x8xf32 input", "y: ?x8xf32 output", ONE + torch_add("y", "x", "x")),
        torch.ones(1, 8),
        {},
    ),
    "random": (
        main(
            "x: ?x8xf32 input",
            "y: ?x8xf32 output\nz: ?x8xf32 output",
            to_builtin("x")
            + double("y_b", "x_b")
            + from_builtin("y")
            + "%none = torch.constant.none\n"
            + f"%z = torch.aten.bernoulli %x, %none : {X}, !torch.none -> {X}",
        ),
        torch.ones(1, 8),
        {},
    ),
}


@pytest.mark.parametrize("case", NOT_CAPTURED)
def test_what_is_not_captured(case: str) -> None:
    text, x, options = NOT_CAPTURED[case]
    gpu = FakeGpu()
    session = Session(gpu_program(text), device=gpu, **options)
    first = session(x)[0]
    for _ in range(4):
        assert session(x)[0].equal(first)
    assert not gpu.graphs


def test_a_longest_captured_call() -> None:
    gpu = FakeGpu()
    session = Session(gpu_program(CHAIN), device=gpu)
    for _ in range(3):
        session(torch.ones(CAPTURED_TOKENS, 8))
    assert len(gpu.graphs) == 1


@pytest.mark.parametrize(
    ("shape", "captured"),
    [
        ((1, 1, 128, 64), True),  # one token with 128 heads: decoding
        ((4, 2, 32, 64), True),
        ((1, CAPTURED_TOKENS + 1, 1, 64), False),
        ((2, CAPTURED_TOKENS, 64), False),
        ((CAPTURED_TOKENS, 64), True),
        ((CAPTURED_TOKENS + 1, 64), False),
    ],
)
def test_heads_are_not_tokens(shape: tuple[int, ...], captured: bool) -> None:
    """A kernel that works head by head sees more rows than there are tokens."""
    view = View(0, 0, shape, torch.empty(shape, device="meta").stride(), torch.bfloat16, True)
    kernel = Action("kernel", None, (0,), (1,), math.prod(shape[:-1]))

    def nothing(*_: torch.Tensor) -> tuple[Any, ...]:
        return ()

    trace = Trace({}, {1: view})
    made = Specialization(nothing, "", trace, (kernel,), 0, (), nothing, nothing)  # type: ignore[arg-type]
    assert can_capture(made, FakeGpu()) == captured


class FailingGpu(FakeGpu):
    attempts = 0

    def capture(self, function: Any) -> Any:
        self.attempts += 1
        raise RuntimeError("CUDA error: operation not permitted\nmore about it")


def test_a_failed_capture_warns_once_and_goes_on() -> None:
    gpu = FailingGpu()
    session = Session(gpu_program(CHAIN), device=gpu)
    x = torch.randn(2, 8)
    session(x), session(x)
    with pytest.warns(RuntimeWarning, match="without a CUDA graph, and slower: .* permitted$"):
        assert session(x)[0].equal(chain(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            x = torch.randn(2, 8)
            assert session(x)[0].equal(chain(x))
    assert gpu.attempts == 1


def test_a_caller_who_captures_gets_the_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    session = Session(gpu_program(CHAIN), device=gpu)
    x = torch.randn(2, 8)
    for _ in range(4):
        session(x)
    monkeypatch.setattr(gpu, "is_capturing", lambda: True)
    (y,) = session(x)
    assert y.equal(chain(x))
    assert gpu.graphs[0].replays == 2


def test_scalars_choose_the_graph() -> None:
    text = main(
        "n: !torch.int input\nx: ?x8xf32 input",
        "y: ?x8xf32 output",
        to_builtin("x")
        + double("a_b", "x_b")
        + from_builtin("a")
        + f"%y = torch.aten.mul.Scalar %a, %n : {X}, !torch.int -> {X}",
    )
    gpu = FakeGpu()
    session = Session(gpu_program(text), device=gpu)
    x = torch.randn(2, 8)
    for n in (2, 3) * 4:
        assert session(n, x)[0].equal(x * 2 * n)
    assert [g.replays for g in gpu.graphs] == [2, 2]


# Language models


def gpu_executable(table: torch.Tensor, gpu: FakeGpu) -> Executable:
    exe = Executable(gpu_program(language_model(cache=16), {"table": table}))
    exe.program.info = {"vocab_size": VOCABULARY}
    exe._session = Session(exe.program, device=gpu, poison=True)
    return exe


class _Reads(TorchDispatchMode):
    """Counts how often the host reads a number from a tensor."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("far")
def test_generation_reads_one_number_per_token() -> None:
    table = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))
    exe = gpu_executable(table, FakeGpu())
    for prompt in ([1], [1, 2, 3], [12] * 9):
        expected = expected_tokens(table, prompt, 6)
        with _Reads() as reads:
            tokens = exe.stream(prompt, 6)
            assert next(tokens) == expected[0]
            before = reads.count  # the checks of the prompt read it, too
            assert list(tokens) == expected[1:]
            assert reads.count - before == 5


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_the_next_step_starts_before_a_token_is_read(ahead: int) -> None:
    """A GPU has work while the host reads; tokens are the same, and none too many is computed."""
    table = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))
    gpu = FakeGpu()
    gpu.ahead = ahead
    exe = gpu_executable(table, gpu)
    expected = expected_tokens(table, [1, 2], 8)
    for count in (0, 1, 2, 8):
        before = gpu.entries
        assert exe.generate([1, 2], count) == expected[:count]
        assert gpu.entries - before == count + 1  # a reset, and one call for each token
    tokens, before = exe.stream([1, 2], 8), gpu.entries
    assert next(tokens) == expected[0]
    assert gpu.entries - before == 2 + ahead
    for stop in expected:
        assert exe.generate([1, 2], 8, eos=stop) == expected[: expected.index(stop) + 1]


def test_what_looks_at_a_tensor_cannot_be_captured_but_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The host's way of updating a cache reads the position: the fake refuses, as a GPU would."""
    monkeypatch.setattr("qfuse.compiler.runtime.session.can_capture", lambda *_: True)
    table = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))
    exe = gpu_executable(table, FakeGpu())
    with pytest.warns(RuntimeWarning, match="not permitted when stream is capturing"):
        assert exe.generate([1, 2], 6) == expected_tokens(table, [1, 2], 6)


@pytest.mark.usefixtures("far")
def test_captured_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qfuse.compiler.runtime.session.can_capture", lambda *_: True)
    table = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))
    gpu = FakeGpu()
    exe = gpu_executable(table, gpu)
    for prompt in ([1], [1, 2, 3], [1, 2, 3], [1, 2, 3]):
        assert exe.generate(prompt, 6) == expected_tokens(table, prompt, 6)
    assert len(gpu.graphs) == 2 and gpu.graphs[0].replays > 15


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("heads", [2, 6])
def test_attention_with_a_mask_agrees(window: int, tokens: int, batch: int, heads: int) -> None:
    """On the device the whole cache is read and what is not in use is hidden."""
    generator = torch.Generator().manual_seed(heads)
    q = torch.randn(batch, heads, tokens, 8, generator=generator, dtype=torch.float64)
    k, v = (
        torch.randn(batch, 2, 11, 8, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    for start in (0, 5, 11 - tokens):
        position = torch.arange(start, start + tokens)
        expected = torch_ops.attention(q, k, v, position, 0.3, window)
        hidden_k, hidden_v = k.clone(), v.clone()
        hidden_k[:, :, start + tokens :], hidden_v[:, :, start + tokens :] = 1e30, 1e30
        mask = gpu_attention.visible(q, k, v, position, window)
        found = gpu_attention.masked_attention(q, hidden_k, hidden_v, mask, 0.3)
        torch.testing.assert_close(found, expected)
        assert found.is_contiguous()


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("window", [0, 7])
def test_attention_of_a_prompt_agrees(start: int, window: int) -> None:
    """Many tokens: the device is asked once which slots are in use, whatever the layers."""
    generator = torch.Generator().manual_seed(start)
    tokens = torch_ops.ASYNCHRONOUS_TOKENS + 1
    q = torch.randn(1, 4, tokens, 8, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(1, 2, 90, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    position = torch.arange(start, start + tokens)
    expected = torch_ops.attention(q, k, v, position, 0.3, window)
    with pytest.MonkeyPatch.context() as patch, _Reads() as reads:
        patch.setattr(torch_ops, "on_host", lambda tensor: False)
        found = [torch_ops.attention(q, k, v, position, 0.3, window) for _ in range(3)]
        assert reads.count == 1
        position.add_(1)  # the same tensor with other contents
        moved = torch_ops.attention(q, k, v, position, 0.3, window)
        assert reads.count == 2
    for out in found:
        torch.testing.assert_close(out, expected)
        assert out.is_contiguous()
    torch.testing.assert_close(moved, torch_ops.attention(q, k, v, position, 0.3, window))


def test_captured_calls_never_wait_for_the_device() -> None:
    assert CAPTURED_TOKENS <= torch_ops.ASYNCHRONOUS_TOKENS


@pytest.mark.usefixtures("far")
def test_caches_are_updated_without_a_look_at_the_position() -> None:
    cache, new = torch.zeros(2, 2, 8, 4), torch.randn(2, 2, 3, 4)
    with _Reads() as reads:
        result = torch_ops.kv_update_(cache, new, torch.arange(4, 7))
    assert result is cache and reads.count == 0
    assert cache[:, :, 4:7].equal(new) and not cache[:, :, :4].any() and not cache[:, :, 7:].any()


@pytest.mark.parametrize("device", [None, FakeGpu()], ids=["cpu", "gpu"])
def test_generation_in_and_after_inference_mode(device: Device | None) -> None:
    table = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))
    program = gpu_program(language_model(cache=16), {"table": table})
    with torch.inference_mode():
        exe = Executable(program)
        exe._session = Session(program, device=device)
        assert exe.generate([1, 2], 6) == expected_tokens(table, [1, 2], 6)
    assert exe.generate([1, 2], 6) == expected_tokens(table, [1, 2], 6)


def test_a_failure_on_the_device_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU tells of a fault when something waits for it."""
    table = torch.randn(VOCABULARY, WIDTH)
    exe = gpu_executable(table, FakeGpu())

    def fault(tensor: torch.Tensor) -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    tokens = exe.stream([1, 2], 3)
    monkeypatch.setattr(torch.Tensor, "__int__", fault)
    with pytest.raises(QfuseError, match=r"failed on cpu: CUDA error: an illegal .* encountered$"):
        next(tokens)


def test_a_captured_call_says_so() -> None:
    session = Session(gpu_program(CHAIN), device=FakeGpu())
    x = torch.ones(1, 8)
    for _ in range(3):
        session(x)
    (specialization,) = session._specializations.values()
    assert specialization is not None and isinstance(specialization.call, CapturedCall)
    assert specialization.call.captured
    assert session.profile(x).launches == 5
