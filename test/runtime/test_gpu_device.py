"""Which device a program runs on, and how calls and captures use it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fakes import program_of
from test_session import CHAIN

from qfuse.compiler.runtime import device as device_module
from qfuse.compiler.runtime.device import CudaDevice, find_device
from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.errors import QfuseError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two H200s, as torch describes them."""
    monkeypatch.setattr(device_module, "gpu_error", lambda kind: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "NVIDIA H200")


@pytest.mark.usefixtures("machine")
def test_devices_are_found() -> None:
    assert find_device("cpu").place == torch.device("cpu")
    assert find_device("cuda:sm_90").place == torch.device("cuda:1")
    assert find_device("cuda:sm_90", "cuda").place == torch.device("cuda:1")
    assert find_device("cuda:sm_90", torch.device("cuda:0")).place == torch.device("cuda:0")


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("target", "wanted", "message"),
    [
        ("cpu", "cuda:0", "compiled for cpu and cannot run on cuda:0; compile it for a GPU"),
        ("cuda:sm_90", "cpu", "compiled for cuda:sm_90 and cannot run on cpu; compile it for cpu"),
        ("cuda:sm_90", "cuda:2", "there is no cuda:2; the last one is cuda:1"),
        ("cuda:sm_90", "gpu", "no device 'gpu'; write cpu, cuda or cuda:0"),
        (
            "cuda:sm_80",
            None,
            r"cannot run on cuda:1 \(NVIDIA H200\): the code is for sm_80, the GPU is sm_90; "
            "compile for cuda:sm_90",
        ),
    ],
)
def test_devices_that_do_not_fit(target: str, wanted: str | None, message: str) -> None:
    with pytest.raises(QfuseError, match=message) as caught:
        find_device(target, wanted)
    assert "\n" not in str(caught.value)


def test_a_machine_without_a_gpu() -> None:
    """This test runs where there is none; a program for the cpu runs all the same."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    program = program_of(CHAIN)
    program.target = "cuda:sm_90"
    with pytest.raises(QfuseError, match="compiled for cuda:sm_90: this needs an NVIDIA GPU"):
        Session(program)
    exe = Executable(program)
    assert exe.inspect()["target"] == "cuda:sm_90"
    with pytest.raises(QfuseError, match="compile for cpu"):
        exe(torch.zeros(1, 8))


class FakeStream:
    def __init__(self, name: str, log: list[Any]) -> None:
        self.name, self.log = name, log

    def wait_stream(self, other: "FakeStream") -> None:
        self.log.append((self.name, "waits for", other.name))


class FakeCuda:
    """The parts of torch.cuda that `CudaDevice` uses, noting what they are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[Any] = []
        self.a, self.b, self.side = (FakeStream(n, self.log) for n in ("a", "b", "side"))
        self.stream = self.a
        self.fails = self.capturing = False
        cuda = self

        class Graph:
            def replay(self) -> None:
                cuda.log.append("replay")

        @contextmanager
        def graph(graph: Graph, pool: Any, stream: Any, capture_error_mode: str) -> Iterator[None]:
            cuda.log.append(("capture", pool, stream, capture_error_mode))
            cuda.stream = cuda.side  # as torch leaves it if ending the capture fails
            yield
            if cuda.fails:
                raise RuntimeError("capture failed")
            cuda.stream = cuda.a

        @contextmanager
        def device(place: torch.device) -> Iterator[None]:
            cuda.log.append(("device", str(place)))
            yield

        pools = iter(("pool 0", "pool 1"))
        for name, value in {
            "current_stream": lambda: self.stream,
            "set_stream": lambda stream: setattr(self, "stream", stream),
            "graph_pool_handle": lambda: next(pools),
            "CUDAGraph": Graph,
            "Stream": lambda place: f"a stream of {place}",
            "graph": graph,
            "device": device,
            "is_current_stream_capturing": lambda: self.capturing,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)


def test_calls_on_another_stream_wait_for_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    gpu = CudaDevice(torch.device("cuda:1"))
    for stream in (cuda.a, cuda.a, cuda.b, cuda.a):
        cuda.stream = stream
        with gpu.entered():
            pass
    assert [entry for entry in cuda.log if "waits for" in entry] == [
        ("b", "waits for", "a"),
        ("a", "waits for", "b"),
    ]
    assert cuda.log.count(("device", "cuda:1")) == 4
    cuda.stream, cuda.capturing = cuda.b, True
    with gpu.entered():  # a recording cannot wait for what is not in it
        assert cuda.log[-1] == ("device", "cuda:1")


def test_a_number_is_read_when_its_event_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not when the stream is done, on which the next step is by then."""
    cuda = FakeCuda(monkeypatch)

    class Event:
        def record(self, stream: FakeStream) -> None:
            cuda.log.append(("recorded on", stream.name))

        def synchronize(self) -> None:
            cuda.log.append("passed")

    class Pinned:
        def copy_(self, number: torch.Tensor, non_blocking: bool) -> None:
            cuda.log.append(("copied", int(number), non_blocking))

        def __int__(self) -> int:
            return 42

    def empty_like(number: torch.Tensor, device: str, pin_memory: bool) -> Pinned:
        assert (device, pin_memory) == ("cpu", True)
        return Pinned()

    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda place: cuda.b)
    read = CudaDevice(torch.device("cuda:1")).reading(torch.tensor(42))
    assert cuda.log == [("copied", 42, True), ("recorded on", "b")]
    assert read() == 42 and cuda.log[2:] == ["passed"]


def test_graphs_of_a_session_share_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    gpu = CudaDevice(torch.device("cuda:0"))
    for _ in range(2):
        replay, outputs = gpu.capture(lambda: (1,))
        replay()
        assert outputs == (1,)
    capture = ("capture", "pool 0", "a stream of cuda:0", "thread_local")
    assert cuda.log == [capture, "replay"] * 2


def test_a_failed_capture_leaves_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    cuda.fails = True
    with pytest.raises(RuntimeError, match="capture failed"):
        CudaDevice(torch.device("cuda:0")).capture(lambda: ())
    assert cuda.stream is cuda.a
