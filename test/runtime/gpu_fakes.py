"""GPUs that are not there: a driver API that records, a driver that interprets, a graph."""

import ctypes
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from fakes import FakeLaunch, FakeLoaded, program_of
from torch.utils._python_dispatch import TorchDispatchMode

from qfuse.compiler.runtime.device import Captured, Device
from qfuse.compiler.runtime.plan import DTYPES, DYNAMIC, KernelType, Plan
from qfuse.compiler.runtime.program import Program
from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.launcher import Launch, LoadedKernel
from qfuse.lowering.triton.driver import Start
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.gpu_kernel import (
    ALIGNMENT,
    GpuKernel,
    GpuLaunch,
    GpuVariant,
)
from qfuse.lowering.triton.interpreter import run
from qfuse.lowering.triton.interpreter.types import DTYPES as NUMPY
from qfuse.lowering.triton.kernel import Parameter, TritonKernel

PROGRAM_SCRATCH = 128
"""What `as_binary` says that each program works in: the size of a tensor descriptor."""


@dataclass
class Started:
    """One launch, as the hardware would see it."""

    name: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    stream: int
    arguments: tuple[int, ...]
    """Pointers, M, and the two pointers of Triton's ABI."""


class HostMemory:
    """Zeroed memory of the host at a multiple of 256 bytes."""

    def __init__(self, nbytes: int) -> None:
        self._raw = torch.zeros(nbytes + ALIGNMENT, dtype=torch.uint8)

    @property
    def address(self) -> int:
        return self._raw.data_ptr() + -self._raw.data_ptr() % ALIGNMENT


class RecordingDriver:
    """A driver that notes what is started; subclasses do something about it.

    `kernels` are those that will be loaded: a driver gets names and bytes, and a note of the
    arguments takes how many there are.
    """

    def __init__(self, kernels: Sequence[GpuKernel], arch: str = "sm_90") -> None:
        self.launches = {
            launch.name: (kernel, launch)
            for kernel in kernels
            for variant in kernel.variants
            for launch in variant.launches
        }
        self.gpu = arch
        self.multiprocessors = 132
        self.current = 0
        self.current_stream = 7
        self.loaded: list[tuple[int, str, bytes, int]] = []
        self.allocated: list[int] = []
        self.started: list[Started] = []

    def device(self) -> int:
        return self.current

    def arch(self, device: int) -> str:
        return self.gpu

    def processors(self, device: int) -> int:
        return self.multiprocessors

    def version(self) -> str:
        return "13.0"

    def stream(self, device: int) -> int:
        assert device == self.current
        return self.current_stream

    def allocate(self, device: int, nbytes: int) -> HostMemory:
        self.allocated.append(nbytes)
        return HostMemory(nbytes)

    def load(self, device: int, name: str, code: bytes, shared_bytes: int) -> str:
        self.loaded.append((device, name, code, shared_bytes))
        return name

    def prepare(
        self,
        device: int,
        function: str,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: int,
    ) -> Start:
        _, launch = self.launches[function]

        def start(stream: int) -> None:
            values = read_arguments(arguments, len(launch.parameters))
            self.start(Started(function, grid, threads, shared_bytes, stream, values))

        return start

    def start(self, started: Started) -> None:
        self.started.append(started)


def read_arguments(address: int, pointers: int) -> tuple[int, ...]:
    """What an array of pointers to arguments leads to: `pointers` of 8 bytes, an i32, two of 8."""
    places = (ctypes.c_uint64 * (pointers + 3)).from_address(address)
    kinds = [ctypes.c_uint64] * pointers + [ctypes.c_int32] + [ctypes.c_uint64] * 2
    return tuple(kind.from_address(at).value for kind, at in zip(kinds, places, strict=True))


def as_binary(kernel: TritonKernel) -> GpuKernel:
    """A kernel whose machine code is its Triton IR."""
    return GpuKernel(
        kernel.name,
        kernel.target,
        kernel.parameters,
        tuple(
            GpuVariant(
                v.first_m,
                v.last_m,
                tuple(
                    GpuLaunch(
                        launch.name,
                        launch.parameters,
                        launch.grid,
                        launch.num_warps,
                        1024,
                        PROGRAM_SCRATCH,
                        launch.text.encode(),
                    )
                    for launch in v.launches
                ),
                v.scratch_per_row,
                v.counter_bytes,
            )
            for v in kernel.variants
        ),
    )


class InterpretingDriver(RecordingDriver):
    """Runs launches in the interpreter of Triton IR, on the host's memory.

    Each pointer reaches the bytes of its tensor, whose size the plan says, and no further.
    Counters must be zero before and after each launch.
    """

    def __init__(self, kernels: Sequence[GpuKernel], plan: Plan) -> None:
        super().__init__(kernels, kernels[0].target.partition(":")[2] if kernels else "sm_90")
        self.types = {kernel.name: kernel for kernel in plan.kernels}
        self.recording: list[Callable[[], None]] | None = None

    def start(self, started: Started) -> None:
        super().start(started)
        if self.recording is not None:
            self.recording.append(lambda: self.interpret(started))
        self.interpret(started)

    def interpret(self, started: Started) -> None:
        kernel, launch = self.launches[started.name]
        *pointers, m, programs, profile = started.arguments
        assert profile == 0
        assert programs % ALIGNMENT == 0 and programs > 0
        assert started.threads == find_gpu(kernel.target).warp_size * launch.num_warps
        sizes = self._sizes(kernel, m)
        text = launch.code.decode()
        dtypes = _pointer_types(text)
        arrays = [
            _array(address, sizes[p], dtype)
            for p, address, dtype in zip(launch.parameters, pointers, dtypes, strict=True)
        ]
        counters = [
            array
            for p, array in zip(launch.parameters, arrays, strict=True)
            if p.source == "counter"
        ]
        assert not any(array.any() for array in counters)
        run(text, started.name, [*arrays, m], started.grid, target=kernel.target)
        assert not any(array.any() for array in counters)

    def _sizes(self, kernel: GpuKernel, m: int) -> dict[Parameter, int]:
        """Bytes behind each parameter of a launch."""
        type_ = self.types[kernel.name]
        tensors = (*type_.operands, *type_.results)
        sizes = {p: _nbytes(type_, i, m) for i, p in enumerate(kernel.parameters)}
        assert len(tensors) == len(sizes)
        sizes[Parameter("scratch")] = kernel.variant(m).scratch_per_row * m
        sizes[Parameter("counter")] = kernel.variant(m).counter_bytes
        return sizes


def _nbytes(kernel: KernelType, i: int, m: int) -> int:
    """Bytes of a tensor of a kernel; M is the rows of its first result, all dimensions but one."""
    type_ = (*kernel.operands, *kernel.results)[i]
    assert type_ is not None
    known = math.prod(n for n in kernel.results[0].shape[:-1] if n != DYNAMIC)
    open_ = m // known if DYNAMIC in type_.shape else 1
    static = math.prod(n for n in type_.shape if n != DYNAMIC)
    return static * open_ * DTYPES[type_.dtype].itemsize


def _pointer_types(text: str) -> list[np.dtype]:
    """Element types of the pointers that the only kernel of a module takes."""
    found = re.search(r"function_type = \(([^)]*)\)", text)
    assert found, text[:200]
    return [NUMPY[name] for name in re.findall(r"!tt\.ptr<(\w+)", found[1])]


def _array(address: int, nbytes: int, dtype: np.dtype) -> np.ndarray:
    """The memory at an address as an array that reaches no further."""
    if not nbytes:
        return np.empty(0, dtype)
    raw = (ctypes.c_uint8 * nbytes).from_address(address)
    return np.ndarray(nbytes // dtype.itemsize, dtype, buffer=raw)


class FakeGpu(Device):
    """The host's memory in the role of a GPU: kernels are interpreted, graphs are recordings.

    A recording holds torch's operators with the very tensors they had, and launches with the
    addresses they had; it refuses to look at the contents of a tensor, as a GPU does.
    """

    alignment = 16
    is_host = False
    captures = True

    def __init__(self, driver: InterpretingDriver | None = None) -> None:
        super().__init__("cpu")
        self.driver = driver
        self.graphs: list[_Recording] = []
        self.recording: list[Callable[[], None]] | None = None
        self.entries = 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        self.entries += 1
        yield

    def capture(self, function: Callable[[], tuple[Any, ...]]) -> Captured:
        recording = _Recording()
        self.recording = recording.steps
        if self.driver is not None:
            self.driver.recording = recording.steps
        try:
            with recording:
                outputs = function()
        finally:
            self.recording = None
            if self.driver is not None:
                self.driver.recording = None
        self.graphs.append(recording)
        return recording.replay, outputs


@dataclass
class _Recording(TorchDispatchMode):
    steps: list[Callable[[], None]] = field(default_factory=list)
    replays: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        kwargs = kwargs or {}
        outputs = function(*args, **kwargs)

        def again() -> None:
            made = function(*args, **kwargs)
            for old, new in zip(_tensors(outputs), _tensors(made), strict=True):
                if old.data_ptr() != new.data_ptr():
                    old.copy_(new)

        self.steps.append(again)
        return outputs

    def replay(self) -> None:
        self.replays += 1
        for step in self.steps:
            step()


def _tensors(outputs: Any) -> list[torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return [outputs]
    items = outputs if isinstance(outputs, list | tuple) else []
    return [item for item in items if isinstance(item, torch.Tensor)]


def recorded_kernels(gpu: FakeGpu) -> Callable[[CompiledKernel], LoadedKernel]:
    """Loads kernels of the CPU whose launches, too, are part of what `gpu` records."""

    class Recorded(LoadedKernel):
        def bind(self, *arguments: Any, **options: Any) -> Launch:
            launch = super().bind(*arguments, **options)
            _, *others = arguments
            bind, run = super().bind, launch.__call__

            def started() -> None:
                if gpu.recording is not None:
                    # with the addresses of now, as a graph copies arguments
                    pointers = launch.pointers[: len(self.compiled.parameters)]
                    gpu.recording.append(bind(pointers, *others, **options))
                run()

            return _Started(launch, started)

    return Recorded


class _Started:
    """A launch that does something else when it is called."""

    def __init__(self, launch: Launch, call: Callable[[], None]) -> None:
        self.pointers, self._launch, self._call = launch.pointers, launch, call

    def __call__(self) -> None:
        self._call()


class AlignedLaunch(FakeLaunch):
    """Refuses addresses that a GPU kernel could not take."""

    def __call__(self) -> None:
        assert all(p % 16 == 0 for p in self.pointers), self.pointers
        super().__call__()


class AlignedLoaded(FakeLoaded):
    def bind(self, *arguments: Any) -> FakeLaunch:
        launch = super().bind(*arguments)
        return AlignedLaunch(launch.body, launch.pointers, launch.rows, launch.width)


def gpu_program(text: str, parameters: dict[str, torch.Tensor] | None = None) -> Program:
    program = program_of(text, parameters)
    program.load_kernel = AlignedLoaded
    return program
