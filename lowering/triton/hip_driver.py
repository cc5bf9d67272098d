"""The HIP runtime's module API, as far as starting kernels takes, through ctypes.

The library is the one that torch has loaded: another copy would know none of its streams.
"""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.driver import Start, TorchDevices

_NAME = "libamdhip64.so"
_MAPS = Path("/proc/self/maps")

_HANDLE, _COUNT, _TEXT = ctypes.c_void_p, ctypes.c_uint, ctypes.c_char_p
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "hipDriverGetVersion": (ctypes.POINTER(ctypes.c_int),),
    "hipModuleLoadData": (ctypes.POINTER(_HANDLE), _TEXT),
    "hipModuleGetFunction": (ctypes.POINTER(_HANDLE), _HANDLE, _TEXT),
    # function, grid in blocks, block in threads, shared bytes, stream, pointers to arguments, extra
    "hipModuleLaunchKernel": (_HANDLE, *[_COUNT] * 7, _HANDLE, _HANDLE, _HANDLE),
}
"""hip_runtime_api.h; each returns a hipError_t, an int."""

_TEXTS = ("hipGetErrorName", "hipGetErrorString")


def load_hip() -> Any:
    """The HIP runtime of this process, its functions typed; raises QfuseError where there is none.

    torch has to have been imported.
    """
    path = loaded_library(_MAPS.read_text() if _MAPS.exists() else "")
    if path is None:
        raise QfuseError(
            f"starting GPU kernels needs {_NAME}, which torch has not loaded; install a ROCm build "
            "of torch"
        )
    try:
        return typed(ctypes.CDLL(path))
    except (OSError, AttributeError) as error:
        raise QfuseError(f"starting GPU kernels needs {_NAME}: {error}") from None


def loaded_library(maps: str) -> str | None:
    """Where the HIP runtime of a process lies, by its /proc/self/maps."""
    paths = (line.split(maxsplit=5)[-1] for line in maps.splitlines() if _NAME in line)
    return next((p for p in paths if Path(p).name.startswith(_NAME)), None)


def typed(library: Any) -> Any:
    """`library` with the types of what is called of it."""
    for name, arguments in _SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = list(arguments), ctypes.c_int
    for name in _TEXTS:
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_int], _TEXT
    return library


class HipDriver(TorchDevices):
    """`Driver` through the HIP runtime; `api` is what `load_hip` returns."""

    def __init__(self, api: Any) -> None:
        super().__init__()
        self._api = api

    def version(self) -> str:
        """The HIP version of the driver: "6.4.43484"."""
        number = ctypes.c_int()
        self._call("asking for the driver's version", "hipDriverGetVersion", ctypes.byref(number))
        value = number.value  # HIP_VERSION
        return f"{value // 10**7}.{value // 10**5 % 100}.{value % 10**5}"

    def load(self, device: int, name: str, code: bytes, shared_bytes: int) -> Any:
        """The shared memory of a launch needs no asking for: all of a processor's can be used."""
        module, function = _HANDLE(), _HANDLE()
        with self._torch.cuda.device(device):
            self._call(
                f"loading the machine code of {name}",
                "hipModuleLoadData",
                ctypes.byref(module),
                code,
            )
            self._call(
                f"finding {name}",
                "hipModuleGetFunction",
                ctypes.byref(function),
                module,
                name.encode(),
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
        head = (function, *grid, threads, 1, 1, shared_bytes)
        launch: Callable[..., int] = self._api.hipModuleLaunchKernel

        def start(stream: int) -> None:
            if status := launch(*head, stream, arguments, None):
                raise QfuseError(f"starting a kernel failed: {self._text(status)}")

        return start

    def _call(self, doing: str, function: str, *arguments: Any) -> None:
        if status := getattr(self._api, function)(*arguments):
            raise QfuseError(f"{doing} failed: {self._text(status)}")

    def _text(self, status: int) -> str:
        """What the runtime says about an error code."""
        words = [getattr(self._api, ask)(status) for ask in _TEXTS]
        return ": ".join(w.decode() for w in words if w) or f"HIP error {status}"
