"""What starts kernels on a GPU, behind a protocol for tests to implement.

cuda_driver.py and hip_driver.py implement it.  Kernels run in the contexts that torch made, on
torch's current stream and device; torch calls the devices of both kinds cuda.  torch is not
imported before something is to run on a GPU.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

from qfuse.dialects.errors import QfuseError

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
        """Architecture of a device: "sm_90", "gfx942"."""
        ...

    def processors(self, device: int) -> int:
        """How many multiprocessors a device has."""
        ...

    def version(self) -> str:
        """That of the driver."""
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


_MAKERS = {"cuda": ("NVIDIA", "CUDA"), "hip": ("AMD", "ROCm")}
"""Who makes the GPUs of a kind, and what torch is built with for them."""


def kind_of(target: str) -> str:
    """`cuda` or `hip`."""
    return target.partition(":")[0]


def gpu_error(kind: str = "cuda") -> str | None:
    """Why no program for a kind of GPU can run on this machine, or None if one is there."""
    import torch

    maker, software = _MAKERS[kind]
    # ROCm calls its devices cuda, too: what torch was built with tells them apart
    if getattr(torch.version, kind) is None:
        return (
            f"this needs an {maker} GPU, and torch {torch.__version__} is built without "
            f"{software}; install a {software} build of torch, or compile for cpu"
        )
    if not torch.cuda.is_available():
        return (
            f"this needs an {maker} GPU, and torch finds none; run it on a machine with "
            "one, or compile for cpu"
        )
    return None


def kind_at_hand() -> str:
    """The kind of GPU that the installed torch is built for: `cuda`, where it is for none."""
    import torch

    return "cuda" if torch.version.hip is None else "hip"


def arch_of(*device: Any) -> str:
    """Architecture of a device of torch's, the current one by default: "sm_90", "gfx942"."""
    import torch

    if torch.version.hip is not None:
        properties = torch.cuda.get_device_properties(*(device or [torch.cuda.current_device()]))
        # with the features that are on: "gfx942:sramecc+:xnack-"
        return str(properties.gcnArchName).partition(":")[0]
    major, minor = torch.cuda.get_device_capability(*device)
    return f"sm_{major}{minor}"


def arch_error(target: str, arch: str) -> str | None:
    """Why machine code for `target` ("cuda:sm_90") cannot run on a GPU of `arch`, or None.

    Code for sm_80 runs on later GPUs of the same major number; that for sm_90 and up is made
    with features of one architecture (sm_90a) and runs on no other.  Source: CUDA C Programming
    Guide, binary compatibility and architecture-specific features.  Code for an AMD GPU runs on
    that one alone (LLVM's AMDGPU guide: an ELF's flags name one processor).
    """
    wanted = target.partition(":")[2]
    if arch == wanted:
        return None
    kinds = {"sm_": "cuda", "gfx": "hip"}
    made_for, found = kinds[wanted[:3]], kinds[arch[:3]]
    if made_for != found:
        software = _MAKERS[found][1]
        return (
            f"the code is for {target}, which no {software} device runs; compile for {found}:{arch}"
        )
    if found == "cuda":
        made, here = int(wanted[3:]), int(arch[3:])
        if made < 90 and made // 10 == here // 10 and made <= here:
            return None
    return f"the code is for {wanted}, the GPU is {arch}; compile for {found}:{arch}"


@lru_cache(maxsize=2)
def driver_for(kind: str) -> Driver:
    """The driver of this machine's GPUs of a kind, `cuda` or `hip`.

    Raises QfuseError where there is none, or what it is called through is missing.
    """
    if why := gpu_error(kind):
        raise QfuseError(why)
    if kind == "hip":
        from qfuse.lowering.triton.hip_driver import HipDriver, load_hip

        return HipDriver(load_hip())
    from qfuse.lowering.triton.cuda_driver import CudaDriver, load_cuda

    return CudaDriver(load_cuda())


class TorchDevices:
    """What torch tells of the devices of either kind, for drivers."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        # what torch.compile's own launchers call: torch.cuda.current_stream() makes an object
        self._raw_stream: Callable[[int], int] = getattr(
            torch._C, "_cuda_getCurrentRawStream", self._slow_stream
        )

    def device(self) -> int:
        return self._torch.cuda.current_device()

    def arch(self, device: int) -> str:
        return arch_of(device)

    def processors(self, device: int) -> int:
        return self._torch.cuda.get_device_properties(device).multi_processor_count

    def stream(self, device: int) -> int:
        return self._raw_stream(device)

    def allocate(self, device: int, nbytes: int) -> "_TorchMemory":
        torch = self._torch
        return _TorchMemory(torch.zeros(nbytes, dtype=torch.uint8, device=f"cuda:{device}"))

    def _slow_stream(self, device: int) -> int:
        return self._torch.cuda.current_stream(device).cuda_stream


class _TorchMemory:
    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()
