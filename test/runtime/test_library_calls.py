"""What each library call asks of torch: one operation, no copies; and which calls there are where.

The products that torch has for GPUs alone are stood in for by an operation of their shape.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qfuse.compiler.runtime import calls, library
from qfuse.dialects.library_ops import CALLS

M, N, K, EXPERTS = 24, 96, 256, 4
CUDA = torch.device("cuda", 0)

_VIEWS = ("aten.t", "aten.view", "aten._unsafe_view", "aten.reshape", "aten.transpose")
_VIEWS += ("aten.slice", "aten.unsqueeze", "aten.detach", "aten.alias", "aten.new_empty")


class Recorder(TorchDispatchMode):
    """The operations that compute or copy: neither views nor memory."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).rpartition(".")[0]
        if name not in _VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def stand_in(*given: torch.Tensor, output_dtype: torch.dtype = torch.bfloat16, **_: Any) -> Any:
    """One operation that makes a result of the product's shape, from operands as they must lie."""
    a, b = given[:2]
    assert a.is_contiguous() and b.transpose(-2, -1).is_contiguous()
    return torch.full((a.shape[0], b.shape[-1]), 1, dtype=output_dtype)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scaled_mm", "grouped_mm", "scaled_grouped_mm"):
        monkeypatch.setattr(torch.nn.functional, name, stand_in)
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: stand_in(a, b, output_dtype=torch.int32))


def fp8(*shape: int) -> torch.Tensor:
    return torch.ones(shape).to(torch.float8_e4m3fn)


def given() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Arguments as plans have them: scales of blocks as the quantization lays them, K first."""
    plain = torch.ones(2, M // 2, K).bfloat16(), torch.ones(N, K).bfloat16()
    yield "mm", (*plain, None, "none")
    yield "mm", (*plain, torch.ones(N).bfloat16(), "none")
    yield "mm", (*plain, torch.ones(N).bfloat16(), "relu")
    yield "mm", (*plain, torch.ones(N).bfloat16(), "gelu_tanh")
    blocks = library.block_scales(torch.ones(1, K // 128))
    yield (
        "scaled_mm_blocks",
        (fp8(M, K), torch.ones(K // 128, M), fp8(N, K), blocks, None, torch.bfloat16),
    )
    rows = torch.ones(M, 1), torch.ones(N, 1)
    yield "scaled_mm_rows", (fp8(M, K), rows[0], fp8(N, K), rows[1], None, torch.bfloat16)
    codes = torch.ones(M, K, dtype=torch.int8), torch.ones(N, K, dtype=torch.int8)
    yield "int_mm", (codes[0], rows[0], codes[1], rows[1], None, torch.bfloat16)
    indptr = torch.tensor([0, 6, 12, 18, 24], dtype=torch.int32)
    w = torch.ones(EXPERTS, N, K)
    yield "grouped_mm", (plain[0], w.bfloat16(), indptr)
    of_experts = torch.ones(EXPERTS, N, 1)
    yield (
        "scaled_grouped_mm",
        (fp8(M, K), rows[0], w.to(torch.float8_e4m3fn), of_experts, indptr, torch.bfloat16),
    )


GIVEN = list(given())


def test_every_call_is_here() -> None:
    assert {call for call, _ in GIVEN} == set(CALLS)


@pytest.mark.parametrize(("call", "arguments"), GIVEN)
def test_a_call_is_one_launch(call: str, arguments: tuple[Any, ...], as_on_a_gpu: None) -> None:
    """As many as a profile counts for it: no operand is copied or cast on its way."""
    name = f"{library.NAMESPACE}.{call}"
    with Recorder() as recorder:
        y = library.FUNCTIONS[name](*arguments)
    assert len(recorder.names) == calls.launches(name), recorder.names
    assert y.shape[-1] == N and y.numel() == M * N


def on(
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] = (9, 0),
    cuda: str | None = "12.9",
    hip: str | None = None,
) -> Callable[[str], str | None]:
    """`unavailable` on a GPU of that capability, with a torch built with those versions."""
    monkeypatch.setattr(torch, "version", SimpleNamespace(cuda=cuda, hip=hip))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
    return lambda call: library.unavailable.__wrapped__(call, CUDA)


def there(unavailable: Callable[[str], str | None]) -> set[str]:
    return {call for call in CALLS if unavailable(call) is None}


PLAIN = {"mm"}


@pytest.mark.parametrize(
    ("capability", "more"),
    [
        ((8, 0), {"int_mm"}),
        ((8, 9), {"int_mm", "scaled_mm_rows"}),
        ((9, 0), set(CALLS) - PLAIN),
        ((10, 0), {"int_mm", "scaled_mm_rows", "grouped_mm"}),
    ],
)
def test_calls_by_architecture(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], more: set[str]
) -> None:
    """As the rules have it: sm_100 multiplies experts in bf16, and neither blocks nor FP8 there."""
    assert there(on(monkeypatch, capability)) == PLAIN | more


def test_blocks_ask_for_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable = on(monkeypatch, cuda="12.8")
    assert there(unavailable) == set(CALLS) - {"scaled_mm_blocks"}
    assert unavailable("scaled_mm_blocks") == (
        "scales per block need cublasLt 12.9; torch was built with CUDA 12.8"
    )


def test_hip_has_them_by_the_same_names(monkeypatch: pytest.MonkeyPatch) -> None:
    unavailable = on(monkeypatch, (9, 4), cuda=None, hip="6.4")
    assert there(unavailable) >= PLAIN | {"grouped_mm", "scaled_mm_rows"}
    assert unavailable("scaled_mm_blocks") == "hipBLASLt has no scales per block"


@pytest.mark.parametrize("name", ["scaled_mm", "grouped_mm", "scaled_grouped_mm"])
def test_an_older_torch_lacks_some(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(torch.nn.functional, name)
    unavailable = on(monkeypatch)
    missing = set(CALLS) - there(unavailable)
    assert missing == {call for call in CALLS if call.startswith(name)}
    assert all("has no " + name in str(unavailable(call)) for call in missing)


def test_the_cpu_has_plain_ones() -> None:
    place = torch.device("cpu")
    found = {call for call in CALLS if library.unavailable.__wrapped__(call, place) is None}
    assert found == PLAIN
