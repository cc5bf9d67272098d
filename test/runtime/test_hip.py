"""Programs for AMD GPUs: compiled without one, and what reaches the HIP runtime when they start."""

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_fakes import read_arguments
from test_gpu_launcher import POINTERS, QUANTIZE, kernel

from qfuse.compiler import compile
from qfuse.compiler.options import CompileOptions
from qfuse.compiler.runtime.device import find_device
from qfuse.compiler.runtime.program import Program
from qfuse.compiler.runtime.session import Session
from qfuse.dialects import tt
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.registry import load_all
from qfuse.lowering.target import Target
from qfuse.lowering.triton import hip_driver
from qfuse.lowering.triton.binary import compile_launch
from qfuse.lowering.triton.driver import arch_of, driver_for, gpu_error
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel
from qfuse.lowering.triton.hip_driver import HipDriver, loaded_library, typed
from qfuse.lowering.triton.launcher import LoadedGpuKernel
from qfuse.lowering.triton.lower import lower_kernel

_HANDLE, _INT, _COUNT = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
_MODULE, _FUNCTION = 0x11, 0x22


class FakeHip:
    """libamdhip64: C functions, called by their C types, that note what arrives."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, int] = {}
        self.arguments: list[tuple[int, ...]] = []
        self.code_bytes = 0
        address = ctypes.POINTER(_HANDLE)
        self.hipDriverGetVersion = self._c(
            "hipDriverGetVersion", self._version, ctypes.POINTER(_INT)
        )
        self.hipModuleLoadData = self._c("hipModuleLoadData", self._load, address, _HANDLE)
        self.hipModuleGetFunction = self._c(
            "hipModuleGetFunction", self._find, address, _HANDLE, ctypes.c_char_p
        )
        self.hipModuleLaunchKernel = self._c(
            "hipModuleLaunchKernel", self._launch, _HANDLE, *[_COUNT] * 7, *[_HANDLE] * 3
        )
        self.hipGetErrorName = SimpleNamespace()
        text = ctypes.CFUNCTYPE(_HANDLE, _INT)
        self._name, self._what = (ctypes.create_string_buffer(t) for t in (b"hipErrorX", b"what"))
        self.hipGetErrorName = text(lambda status: ctypes.addressof(self._name))
        self.hipGetErrorString = text(lambda status: ctypes.addressof(self._what))

    def _c(self, name: str, body: Callable[..., None], *types: Any) -> Any:
        def call(*arguments: Any) -> int:
            if status := self.failing.get(name, 0):
                return status
            body(*arguments)
            return 0

        return ctypes.CFUNCTYPE(_INT, *types)(call)

    def _version(self, out: Any) -> None:
        out[0] = 60443484

    def _load(self, out: Any, image: int) -> None:
        self.calls.append(("load", ctypes.string_at(image, self.code_bytes)))
        out[0] = _MODULE

    def _find(self, out: Any, module: int, name: bytes) -> None:
        self.calls.append(("find", module, name))
        out[0] = _FUNCTION

    def _launch(self, function: int, *rest: Any) -> None:
        *sizes, stream, arguments, extra = rest
        self.calls.append(("launch", function, sizes, stream, extra))
        self.arguments.append(read_arguments(arguments, 4))


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A ROCm build of torch, with one MI300X; the devices that were entered."""
    entered: list[Any] = []

    @contextmanager
    def device(number: int) -> Iterator[None]:
        entered.append(number)
        yield

    properties = SimpleNamespace(
        gcnArchName="gfx942:sramecc+:xnack-", multi_processor_count=304, name="AMD MI300X"
    )
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", "6.4.43484")
    for name, value in {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "device": device,
        "get_device_properties": lambda number: properties,
        "get_device_name": lambda number: properties.name,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 77, raising=False)
    return entered


def driver(api: FakeHip) -> HipDriver:
    return HipDriver(typed(api))


def test_a_launch_reaches_the_runtime(devices: list[Any]) -> None:
    api = FakeHip()
    api.code_bytes = len(b"three")
    launch = LoadedGpuKernel(kernel("hip:gfx942"), driver(api)).bind(
        POINTERS, 300, scratch=0x10000, counters=0
    )
    launch()
    launch.pointers[0] = 0x5000
    launch()
    assert devices == [0], "code goes to the kernel's device"
    # waves are of 64 threads; the dynamic shared memory is that of the machine code
    sizes = [12, 1, 1, 64 * 12, 1, 1, 200_000]
    assert api.calls == [
        ("load", b"three"),
        ("find", _MODULE, b"k_tiles"),
        ("launch", _FUNCTION, sizes, 77, None),
        ("launch", _FUNCTION, sizes, 77, None),
    ]
    assert api.arguments == [
        (*POINTERS, 300, 0x10000, 0),
        (0x5000, *POINTERS[1:], 300, 0x10000, 0),
    ]


def test_code_goes_whole_though_it_has_zeros(devices: list[Any]) -> None:
    code = b"\x7fELF\0\0\1\0end"
    api = FakeHip()
    api.code_bytes = len(code)
    driver(api).load(0, "k", code, 1024)
    assert api.calls[0] == ("load", code)


def test_the_drivers_version(devices: list[Any]) -> None:
    assert driver(FakeHip()).version() == "6.4.43484"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("hipModuleLoadData", "loading the machine code of k_tiles failed"),
        ("hipModuleGetFunction", "finding k_tiles failed"),
        ("hipModuleLaunchKernel", "starting a kernel failed"),
    ],
)
def test_errors_of_the_runtime(devices: list[Any], function: str, message: str) -> None:
    api = FakeHip()
    api.failing[function] = 98
    with pytest.raises(QfuseError, match=f"{message}: hipErrorX: what$"):
        LoadedGpuKernel(kernel("hip:gfx942"), driver(api)).bind(POINTERS, 300, scratch=0)()


def test_code_for_another_gpu(devices: list[Any]) -> None:
    loaded = LoadedGpuKernel(kernel("hip:gfx950"), driver(FakeHip()))
    words = "the code is for gfx950, the GPU is gfx942; compile for hip:gfx942"
    with pytest.raises(QfuseError, match=f"kernel k cannot run on device 0: {words}"):
        loaded.bind(POINTERS, 1)


def test_the_gpu_at_hand(devices: list[Any]) -> None:
    assert arch_of() == arch_of(0) == "gfx942"
    assert str(CompileOptions.make("hip").target) == "hip:gfx942"
    assert find_device("hip:gfx942").place == torch.device("cuda", 0), "as torch calls it"
    assert Target.parse("hip:gfx942").devices == ("cpu", "meta", "cuda")
    for target, words in (
        ("hip:gfx950", r"cannot run on cuda:0 \(AMD MI300X\): the code is for gfx950"),
        ("cuda:sm_90", "needs an NVIDIA GPU, and torch .* is built without CUDA"),
    ):
        with pytest.raises(QfuseError, match=words) as caught:
            find_device(target)
        assert "\n" not in str(caught.value)
    with pytest.raises(QfuseError, match="target 'cuda' is the GPU at hand: this needs an NVIDIA"):
        CompileOptions.make("cuda")


@pytest.fixture
def fresh_driver() -> Iterator[None]:
    driver_for.cache_clear()
    yield
    driver_for.cache_clear()


@pytest.mark.usefixtures("fresh_driver")
def test_machines_that_cannot(devices: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hip_driver, "_MAPS", Path("/nowhere"))
    with pytest.raises(QfuseError, match=r"needs libamdhip64\.so, which torch has not loaded"):
        LoadedGpuKernel(kernel("hip:gfx942"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "this needs an AMD GPU, and torch finds none" in str(gpu_error("hip"))
    monkeypatch.setattr(torch.version, "hip", None)
    with pytest.raises(QfuseError, match=r"needs an AMD GPU, and torch .* is built without ROCm"):
        LoadedGpuKernel(kernel("hip:gfx942"))


def test_the_runtime_is_the_one_that_torch_loaded() -> None:
    maps = (
        "7f00-7f01 r-xp 00000000 08:01 11    /usr/lib/libc.so.6\n"
        "7f10-7f11 r-xp 00000000 08:01 12    /opt/t orch/lib/libamdhip64.so.6.4\n"
        "7f20-7f21 r-xp 00000000 08:01 13    /opt/rocm/lib/other.so\n"
    )
    assert loaded_library(maps) == "/opt/t orch/lib/libamdhip64.so.6.4"
    assert loaded_library("") is None


def test_the_abi_is_that_of_what_triton_makes() -> None:
    """The parameters of a compiled kernel are the arguments that a launch lays out."""
    pytest.importorskip("triton")
    gpu = find_gpu("hip:gfx942")
    with ir.Context(), ir.Location.unknown():
        load_all()
        tt.load()
        module = ir.Module.parse(QUANTIZE)
        (made,) = lower_kernel(next(iter(module.body.operations)), gpu).variants
    (launch,) = made.launches
    binary = compile_launch(launch, gpu)
    assert binary.stages["hsaco"].startswith(b"\x7fELF")
    text = binary.text("amdgcn")
    metadata = text[text.index(".amdgpu_metadata") :]
    sizes = [int(n) for n in re.findall(r"\.size: +(\d+)", metadata[: metadata.index(".name:")])]
    assert sizes == [8] * len(launch.parameters) + [4, 8, 8]
    (threads,) = re.findall(r"\.max_flat_workgroup_size: (\d+)", metadata)
    assert int(threads) == gpu.warp_size * launch.num_warps


def test_a_checkpoint_becomes_code_of_an_amd_gpu(
    checkpoints: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("triton")
    program = compile(checkpoints(), target="hip:gfx942", max_len=32).program
    assert program.target == "hip:gfx942"
    program.save(tmp_path / "model.qfuse")
    loaded = Program.load(tmp_path / "model.qfuse")
    assert loaded.kernels == program.kernels
    for made in loaded.kernels.values():
        assert isinstance(made, GpuKernel)
        for variant in made.variants:
            for launch in variant.launches:
                assert launch.code.startswith(b"\x7fELF")
                assert 0 < 64 * launch.num_warps <= 1024 and launch.shared_bytes <= 65_536
    if torch.version.hip is None:
        with pytest.raises(QfuseError, match=r"compiled for hip:gfx942: this needs an AMD GPU"):
            Session(loaded)
