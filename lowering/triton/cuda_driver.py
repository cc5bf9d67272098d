"""The CUDA driver API, as far as starting kernels takes, through cuda-bindings."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.driver import Start, TorchDevices

STATIC_SHARED_BYTES = 48 * 1024
"""Dynamic shared memory above this has to be asked for (CUDA C Programming Guide, 20.7.3)."""

_MODULE = Path("/proc/driver/nvidia/version")
_ALL_SHARED = 100  # CU_SHAREDMEM_CARVEOUT_MAX_SHARED: percent of a processor's memory next to L1
_INVALID_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT: this thread has not yet used the device


def load_cuda() -> Any:
    """The module `cuda.bindings.driver`; raises QfuseError where there is none."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as error:
        raise QfuseError(
            f"starting GPU kernels needs cuda-bindings, which cannot be imported ({error}); "
            "install it with `pip install cuda-bindings`"
        ) from None


class CudaDriver(TorchDevices):
    """`Driver` through cuda-bindings, in the contexts that torch uses (the devices' primary ones).

    `api` is the module `cuda.bindings.driver`.
    """

    def __init__(self, api: Any) -> None:
        super().__init__()
        self._api = api
        self._contexts: dict[int, Any] = {}

    def version(self) -> str:
        """The CUDA version of the driver, and its own where Linux tells it: "13.0, 580.65.06"."""
        (number,) = self._call("asking for the driver's version", self._api.cuDriverGetVersion)
        text = _MODULE.read_text() if _MODULE.exists() else ""
        own = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
        return f"{number // 1000}.{number % 1000 // 10}" + (f", {own[0]}" if own else "")

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
