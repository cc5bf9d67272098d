"""Where a session's tensors live and its kernels run: the host, or one GPU."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch

from qfuse.compiler.runtime import calls
from qfuse.compiler.runtime.plan import Plan, Step, TorchStep
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.driver import arch_error, arch_of, gpu_error, kind_of
from qfuse.lowering.triton.launcher import POINTER_ALIGNMENT

Captured = tuple[Callable[[], None], tuple[Any, ...]]
"""A recorded call: what replays it, and the outputs that each replay writes anew."""


class Device:
    """The host, and what a GPU does in another way."""

    alignment = 1
    """Bytes that addresses given to kernels must be multiples of."""
    is_host = True
    captures = False
    """Whether `capture` can record a call."""
    ahead = 0
    """Calls that are put on the device before the results of an earlier one are looked at."""

    def __init__(self, place: torch.device | str = "cpu") -> None:
        self.place = torch.device(place)

    # both are called for every input of every call
    holds: Callable[[torch.Tensor], bool] = staticmethod(attrgetter("is_cpu"))
    """Whether a tensor lies here."""
    threads: Callable[[], int] = staticmethod(torch.get_num_threads)
    """On how many threads kernels run; launches depend on it."""

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """The context that a call runs in."""
        return contextlib.nullcontext()

    def is_capturing(self) -> bool:
        """Whether the caller is recording what is put on the device now."""
        return False

    def capture(self, function: Callable[[], tuple[Any, ...]]) -> Captured:
        """Record what `function` puts on the device, without running it."""
        raise NotImplementedError(f"calls on {self.place} are not captured")

    def reading(self, number: torch.Tensor) -> Callable[[], int]:
        """What returns the one number of a tensor, once all that is on the device now is done."""
        return lambda: int(number)

    def buffer(self, nbytes: int, alignment: int) -> torch.Tensor:
        """That many bytes without contents, at a multiple of `alignment`."""
        raw = torch.empty(nbytes + alignment - 1, dtype=torch.uint8, device=self.place)
        start = -raw.data_ptr() % alignment
        return raw[start : start + nbytes]


HOST = Device()


class CudaDevice(Device):
    """One session's use of a GPU, of NVIDIA or AMD: torch calls both cuda.

    A session's memory is written by one call after the other.  Calls on different streams are
    put in that order, too: a stream waits for the one that the call before ran on.
    """

    alignment = POINTER_ALIGNMENT
    is_host = False
    captures = True
    ahead = 1  # the GPU does not wait while the host prepares the next call

    def __init__(self, place: torch.device) -> None:
        super().__init__(place)
        self._last: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.device == self.place

    def threads(self) -> int:
        return 1

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        with torch.cuda.device(self.place):
            if not self.is_capturing():  # a recording cannot wait for what is not in it
                stream = torch.cuda.current_stream()
                if self._last is not None and stream != self._last:
                    stream.wait_stream(self._last)
                self._last = stream
            yield

    def reading(self, number: torch.Tensor) -> Callable[[], int]:
        """Waits for an event, and so for nothing that is put on the stream later."""
        copy = torch.empty_like(number, device="cpu", pin_memory=True)
        copy.copy_(number, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.place))

        def read() -> int:
            done.synchronize()
            return int(copy)

        return read

    def is_capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def capture(self, function: Callable[[], tuple[Any, ...]]) -> Captured:
        """Record `function` as a CUDA graph.

        All graphs of a session share one pool of memory: they never run at the same time, and
        nothing but their outputs, which are copied at once, outlives a replay.  Raises what
        torch raises where something cannot be captured; nothing has run then.
        """
        if self._pool is None:
            # torch's own stream for captures is on the device that captured first
            self._stream = torch.cuda.Stream(self.place)
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        before = torch.cuda.current_stream()
        try:
            # thread_local: what other threads do meanwhile is no fault of this capture
            with torch.cuda.graph(
                graph, self._pool, self._stream, capture_error_mode="thread_local"
            ):
                outputs = function()
        finally:
            # where ending a failed capture fails, torch leaves its stream the current one
            torch.cuda.set_stream(before)
        return graph.replay, outputs


def find_device(target: str, wanted: torch.device | str | None = None) -> Device:
    """The device to run a program for `target` on: `wanted`, or torch's current one.

    Raises QfuseError where that is no device of the target's kind and architecture.
    """
    place = None if wanted is None else _parse(wanted)
    if target == "cpu":
        if place is not None and place.type != "cpu":
            raise QfuseError(
                f"the program was compiled for cpu and cannot run on {place}; compile it for a "
                "GPU, as cuda:sm_90"
            )
        return HOST
    if place is not None and place.type != "cuda":
        raise QfuseError(
            f"the program was compiled for {target} and cannot run on {place}; compile it for cpu"
        )
    if why := gpu_error(kind_of(target)):
        raise QfuseError(f"the program was compiled for {target}: {why}")
    number = torch.cuda.current_device() if place is None or place.index is None else place.index
    if number >= torch.cuda.device_count():
        raise QfuseError(f"there is no cuda:{number}; the last one is {_last_device()}")
    if why := arch_error(target, arch_of(number)):
        name = torch.cuda.get_device_name(number)
        raise QfuseError(f"the program cannot run on cuda:{number} ({name}): {why}")
    return CudaDevice(torch.device("cuda", number))


def place_plan(plan: Plan, device: Device) -> Plan:
    """The plan with its tensors on `device`.

    Plans are written for the cpu.  An operator that makes a tensor from numbers (`aten.arange`)
    is told the device; a device that is written down becomes this one.
    """
    if device.is_host:
        return plan
    return replace(plan, steps=tuple(_placed(step, device.place) for step in plan.steps))


def _placed(step: Step, place: torch.device) -> Step:
    if not isinstance(step, TorchStep) or calls.is_ours(step.op):
        return step
    args = tuple(place if isinstance(arg, torch.device) else arg for arg in step.args)
    kwargs = {k: place if isinstance(a, torch.device) else a for k, a in step.kwargs}
    arguments = calls.resolve(step.op)._schema.arguments
    position = next((i for i, a in enumerate(arguments) if a.name == "device"), None)
    if position is not None and not any("Tensor" in str(a.type) for a in arguments):
        if position < len(args):
            args = (*args[:position], place, *args[position + 1 :])
        else:
            kwargs["device"] = place
    return replace(step, args=args, kwargs=tuple(kwargs.items()))


def _parse(wanted: torch.device | str) -> torch.device:
    try:
        return torch.device(wanted)
    except (RuntimeError, TypeError):
        raise QfuseError(f"no device '{wanted}'; write cpu, cuda or cuda:0") from None


def _last_device() -> str:
    return f"cuda:{torch.cuda.device_count() - 1}"
