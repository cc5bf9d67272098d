"""Starting GPU kernels: arguments laid out once, then a launch is one driver call per function.

The ABI is TRITON.md's (section 7), for NVIDIA and AMD alike: the pointers of a launch's parameters,
M as i32, then two 8-byte pointers, to the global scratch of the programs and to a profiler's, which
is null.
"""

import ctypes
from collections.abc import Sequence

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.driver import Driver, Memory, Start, arch_error, driver_for, kind_of
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.gpu_kernel import ALIGNMENT, GpuKernel, GpuLaunch
from qfuse.lowering.triton.kernel import Parameter

POINTER_ALIGNMENT = 16
"""Bytes: the code was compiled for pointers that are multiples of it."""

_MAX_ROWS = 2**31 - 1  # M is an i32


class LoadedGpuKernel:
    """A kernel that can be started on any GPU it was compiled for; code is loaded on first use."""

    def __init__(self, kernel: GpuKernel, driver: Driver | None = None) -> None:
        """`driver` is by default this machine's.

        Raises QfuseError where there is no GPU of the kernel's kind, or what starts kernels on it
        is missing.
        """
        self.kernel = kernel
        self.driver = driver_for(kind_of(kernel.target)) if driver is None else driver
        self.warp_size = find_gpu(kernel.target).warp_size
        self._functions: dict[tuple[int, str], object] = {}
        self._usable: set[int] = set()

    def bind(
        self,
        pointers: Sequence[int],
        m: int,
        threads: int = 1,
        scratch: int | None = None,
        counters: int | None = None,
    ) -> "Launch":
        """A launch for `m` rows on the current device.

        `pointers` are the addresses of `kernel.parameters`, multiples of 16.  `threads` is there
        because CPU kernels have it.  `scratch` is the address, a multiple of 256, of
        `kernel.scratch_bytes(m)` bytes that nothing else uses while the launch runs; `counters`
        that of `kernel.counter_bytes` bytes that are zero, and that launches on one stream may
        share.  By default the launch has its own.

        Raises QfuseError if the code is for another GPU, or an address or `m` does not fit.
        """
        kernel = self.kernel
        if len(pointers) != len(kernel.parameters):
            raise QfuseError(
                f"kernel {kernel.name} takes {len(kernel.parameters)} pointers, got {len(pointers)}"
            )
        if not 0 <= m <= _MAX_ROWS:
            raise QfuseError(f"kernel {kernel.name} takes 0 to {_MAX_ROWS} rows, got {m}")
        for name, address in (("scratch", scratch), ("counters", counters)):
            if address is not None and address % ALIGNMENT:
                raise QfuseError(
                    f"kernel {kernel.name}: the {name} at {address:#x} must lie at a multiple of "
                    f"{ALIGNMENT} bytes"
                )
        return Launch(self, self._device(), pointers, m, scratch, counters)

    def function(self, device: int, launch: GpuLaunch) -> object:
        """The function of one launch, loaded on `device`."""
        key = device, launch.name
        if key not in self._functions:
            self._functions[key] = self.driver.load(
                device, launch.name, launch.code, launch.shared_bytes
            )
        return self._functions[key]

    def load(self) -> None:
        """Load the code for every M on the current device: a CUDA graph cannot, as it captures."""
        device = self._device()
        for variant in self.kernel.variants:
            for launch in variant.launches:
                self.function(device, launch)

    def _device(self) -> int:
        """The current device, checked once to run this code."""
        device = self.driver.device()
        if device not in self._usable:
            if why := arch_error(self.kernel.target, self.driver.arch(device)):
                raise QfuseError(f"kernel {self.kernel.name} cannot run on device {device}: {why}")
            self._usable.add(device)
        return device


class Launch:
    """A kernel with its arguments; calling it puts it on torch's current stream.

    `pointers[i] = address` changes a pointer for the calls to come.  The device that was current
    when it was bound must be current when it is called.
    """

    def __init__(
        self,
        loaded: LoadedGpuKernel,
        device: int,
        pointers: Sequence[int],
        m: int,
        scratch: int | None,
        counters: int | None,
    ) -> None:
        kernel, driver = loaded.kernel, loaded.driver
        self.pointers = Pointers(kernel, pointers)
        self._driver, self._device = driver, device
        self._starts: list[Start] = []
        if m == 0:
            return
        variant = kernel.variant(m)
        self._memory: list[Memory] = []

        def own(size: int) -> int:
            if size == 0:
                return 0
            self._memory.append(driver.allocate(device, size))
            return self._memory[-1].address

        if scratch is None:
            scratch = own(kernel.scratch_bytes(m))
        if counters is None:
            counters = own(variant.counter_bytes)
        programs = scratch + kernel.rows_bytes(m)
        # The places that arguments are read from; a pointer changed in `pointers` is changed in
        # the arguments of every launch.
        tail = (ctypes.c_uint64 * 4)(scratch, counters, programs, 0)
        rows = ctypes.c_int32(m)
        at = ctypes.addressof(tail)
        places = {p: self.pointers.place(i) for i, p in enumerate(kernel.parameters)}
        places[Parameter("scratch")], places[Parameter("counter")] = at, at + 8
        self._tail, self._rows = tail, rows
        self._arguments = []
        for launch in variant.launches:
            addresses = [places[p] for p in launch.parameters]
            addresses += [ctypes.addressof(rows), at + 16 if launch.program_scratch else at + 24]
            addresses.append(at + 24)
            arguments = (ctypes.c_void_p * len(addresses))(*addresses)
            self._arguments.append(arguments)
            self._starts.append(
                driver.prepare(
                    device,
                    loaded.function(device, launch),
                    self._grid(launch, m),
                    loaded.warp_size * launch.num_warps,
                    launch.shared_bytes,
                    ctypes.addressof(arguments),
                )
            )

    def _grid(self, launch: GpuLaunch, m: int) -> tuple[int, int, int]:
        """Programs that loop over tiles are as many as processors: others would run after them.

        The code is for an architecture, whose GPUs differ (an H100 has 114 or 132).
        """
        x, y, z = launch.grid.of(m)
        if launch.grid.at_most is not None:
            x = min(x, self._driver.processors(self._device))
        return x, y, z

    def __call__(self) -> None:
        if not self._starts:
            return
        stream = self._driver.stream(self._device)
        for start in self._starts:
            start(stream)


class Pointers:
    """The addresses that a launch passes; refuses those that its code cannot take."""

    def __init__(self, kernel: GpuKernel, addresses: Sequence[int]) -> None:
        self._kernel = kernel
        self._slots = (ctypes.c_uint64 * len(addresses))()
        for i, address in enumerate(addresses):
            self[i] = address

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, i: int) -> int:
        return self._slots[i]

    def __setitem__(self, i: int, address: int) -> None:
        if address % POINTER_ALIGNMENT:
            p = self._kernel.parameters[i]
            part = {"scale": "the scales of ", "zero": "the zero points of "}.get(p.part, "")
            raise QfuseError(
                f"kernel {self._kernel.name}: {part}{p.source} {p.index} at {address:#x} must "
                f"lie at a multiple of {POINTER_ALIGNMENT} bytes; pass a copy"
            )
        self._slots[i] = address

    def place(self, i: int) -> int:
        """Where the address is kept."""
        return ctypes.addressof(self._slots) + 8 * i
