"""The CUDA driver API, as far as starting kernels takes, behind a protocol for tests to implement.

Kernels run in the contexts that torch made, on torch's current stream and device.  Neither torch
nor cuda-bindings is imported before something is to run on a GPU.
"""

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

from qfuse.dialects.errors import QfuseError

STATIC_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory above this has to be asked for (CUDA C Programming Guide, 20.7.3)."""

_ALL_SHARED = 100  # CU_SHAREDMEM_CARVEOUT_MAX_SHARED: percent of a processor's memory next to L1
_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT: this thread has not yet used the device

Start = Callable[[int], None]
"""start(stream) puts one launch on a raw stream."""


class Memory(Protocol):
    """Device memory that lives as long as this object."""

    @property
    def address(self) -> int: ...


class Driver(Protocol):
    """What starts kernels.  Devices are torch's numbers of them, streams are raw handles."""

    def device(self) -> int:
        """The current device."""
        ...

    def arch(self, device: int) -> str:
        """Architecture of a device: "sm_90"."""
        ...

    def processors(self, device: int) -> int:
        """How many multiprocessors a device has."""
        ...

    def load(self, device: int, name: str, code: bytes, shared_bytes: int) -> Any:
        """Put machine code on a device and find the function `name` in it.

        `shared_bytes` is the dynamic shared memory that its launches will ask for.
        """
        ...

    def prepare(
        self,
        device: int,
        function: Any,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: int,
    ) -> Start:
        """A launch of `function`; `arguments` is the address of an array of pointers to them.

        The arguments are read at each start, which happens while `device` is the current one.
        """
        ...

    def stream(self, device: int) -> int:
        """The stream that torch computes on now."""
        ...

    def allocate(self, device: int, nbytes: int) -> Memory:
        """Zeroed memory at a multiple of 256 bytes."""
        ...


def gpu_error() -> str | None:
    """Why no GPU program can run on this machine, or None if a GPU is there."""
    import torch

    if torch.version.cuda is None:  # ROCm calls its devices cuda, too
        return (
            f"this needs an NVIDIA GPU, and torch {torch.__version__} is built without CUDA; "
            "install a CUDA build of torch, or compile for cpu"
        )
    if not torch.cuda.is_available():
        return (
            "this needs an NVIDIA GPU, and torch finds none; run it on a machine with one, or "
            "compile for cpu"
        )
    return None


def arch_error(target: str, arch: str) -> str | None:
    """Why machine code for `target` ("cuda:sm_90") cannot run on a GPU of `arch`, or None.

    Code for sm_80 runs on later GPUs of the same major number; that for sm_90 and up is made
    with features of one architecture (sm_90a) and runs on no other.  Source: CUDA C Programming
    Guide, binary compatibility and architecture-specific features.
    """
    wanted = target.partition(":")[2]
    if arch == wanted:
        return None
    if not (wanted.startswith("sm_") and arch.startswith("sm_")):
        return f"the code is for {target}, which no CUDA device runs; compile for cuda:{arch}"
    made, found = int(wanted[3:]), int(arch[3:])
    if made < 90 and made // 10 == found // 10 and made <= found:
        return None
    return f"the code is for {wanted}, the GPU is {arch}; compile for cuda:{arch}"


@lru_cache(maxsize=1)
def cuda_driver() -> "CudaDriver":
    """The driver of this machine; raises QfuseError where there is no GPU or no cuda-bindings."""
    if why := gpu_error():
        raise QfuseError(why)
    try:
        api = importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise QfuseError(
            f"starting GPU kernels needs cuda-bindings, which cannot be imported ({error}); "
            "install it with `pip install cuda-bindings`"
        ) from None
    return CudaDriver(api)


class CudaDriver:
    """`Driver` through cuda-bindings, in the contexts that torch uses (the devices' primary ones).

    `api` is the module `cuda.bindings.driver`.
    """

    def __init__(self, api: Any) -> None:
        import torch

        self._api = api
        self._torch = torch
        self._contexts: dict[int, Any] = {}
        # what torch.compile's own launchers call: torch.cuda.current_stream() makes an object
        self._raw_stream: Callable[[int], int] = getattr(
            torch._C, "_cuda_getCurrentRawStream", self._slow_stream
        )

    def device(self) -> int:
        return self._torch.cuda.current_device()

    def arch(self, device: int) -> str:
        major, minor = self._torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"

    def processors(self, device: int) -> int:
        return self._torch.cuda.get_device_properties(device).multi_processor_count

    def stream(self, device: int) -> int:
        return self._raw_stream(device)

    def allocate(self, device: int, nbytes: int) -> "_TorchMemory":
        torch = self._torch
        return _TorchMemory(torch.zeros(nbytes, dtype=torch.uint8, device=f"cuda:{device}"))

    def load(self, device: int, name: str, code: bytes, shared_bytes: int) -> Any:
        api = self._api
        self._enter(device)
        (module,) = self._call(f"loading the machine code of {name}", api.cuModuleLoadData, code)
        (function,) = self._call(f"finding {name}", api.cuModuleGetFunction, module, name.encode())
        if shared_bytes > STATIC_SHARED_BYTES:
            attributes = api.CUfunction_attribute
            for attribute, value in (
                (attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes),
                # as Triton's own launcher asks: tiles are sized for two programs on a processor,
                # and nothing says that the driver leaves room for more than one
                (attributes.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, _ALL_SHARED),
            ):
                self._call(
                    f"giving {name} {shared_bytes} bytes of shared memory",
                    api.cuFuncSetAttribute,
                    function,
                    attribute,
                    value,
                )
        return function

    def prepare(
        self,
        device: int,
        function: Any,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: int,
    ) -> Start:
        # all but the stream; a handle of the API's own type saves converting an integer each time
        head = (function, *grid, threads, 1, 1, shared_bytes)
        launch = self._api.cuLaunchKernel

        def start(stream: int) -> None:
            (status,) = launch(*head, stream, arguments, 0)
            if status == _INVALID_CONTEXT:
                self._enter(device)
                (status,) = launch(*head, stream, arguments, 0)
            if status != 0:
                raise QfuseError(f"starting a kernel failed: {self._text(status)}")

        return start

    def _enter(self, device: int) -> None:
        """Make the context that torch uses on a device the current one of this thread."""
        api = self._api
        if device not in self._contexts:
            self._torch.cuda.init()
            self._call("starting CUDA", api.cuInit, 0)
            (number,) = self._call(f"opening device {device}", api.cuDeviceGet, device)
            (context,) = self._call(
                f"opening device {device}", api.cuDevicePrimaryCtxRetain, number
            )
            self._contexts[device] = context
        self._call("choosing the device", api.cuCtxSetCurrent, self._contexts[device])

    def _call(self, doing: str, function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
        status, *results = function(*arguments)
        if int(status) != 0:
            raise QfuseError(f"{doing} failed: {self._text(status)}")
        return tuple(results)

    def _text(self, status: Any) -> str:
        """What the driver says about an error code."""
        words = []
        for ask in (self._api.cuGetErrorName, self._api.cuGetErrorString):
            found, text = ask(status)
            if int(found) == 0 and text:
                words.append(text.decode() if isinstance(text, bytes) else str(text))
        return ": ".join(words) or f"CUDA error {int(status)}"

    def _slow_stream(self, device: int) -> int:
        return self._torch.cuda.current_stream(device).cuda_stream


class _TorchMemory:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()
