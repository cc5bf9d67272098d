"""What reaches the driver when a GPU kernel is started, and what never does."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_fakes import RecordingDriver, read_arguments

from qfuse.dialects import tt
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.registry import load_all
from qfuse.lowering.triton import cuda_driver
from qfuse.lowering.triton.binary import compile_launch
from qfuse.lowering.triton.cuda_driver import CudaDriver
from qfuse.lowering.triton.driver import arch_error, driver_for, gpu_error
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel, GpuLaunch, GpuVariant
from qfuse.lowering.triton.kernel import Grid, Parameter
from qfuse.lowering.triton.launcher import LoadedGpuKernel
from qfuse.lowering.triton.lower import lower_kernel

X, W, SCALE, Y = (
    Parameter("operand", 0),
    Parameter("operand", 1),
    Parameter("operand", 1, "scale"),
    Parameter("result", 0),
)
SCRATCH, COUNTER = Parameter("scratch"), Parameter("counter")


def kernel(target: str = "cuda:sm_90") -> GpuKernel:
    """Few rows: two launches with scratch and counters.  Many: one, which needs work space."""
    split = GpuLaunch("k_split", (X, W, SCALE, SCRATCH), Grid(16, 3, None, 2), 4, 100, 0, b"one")
    reduce = GpuLaunch("k_sum", (SCRATCH, COUNTER, Y), Grid(1), 8, 0, 0, b"two")
    tiles = GpuLaunch("k_tiles", (X, W, SCALE, Y), Grid(128, 4, 132), 12, 200_000, 256, b"three")
    variants = (GpuVariant(1, 16, (split, reduce), 40, 64), GpuVariant(17, None, (tiles,)))
    return GpuKernel("k", target, (X, W, SCALE, Y), variants)


POINTERS = [0x1000, 0x2000, 0x3000, 0x4000]


def test_arguments_of_each_launch() -> None:
    driver = RecordingDriver([kernel()])
    launch = LoadedGpuKernel(kernel(), driver).bind(POINTERS, 5, scratch=0x10000, counters=0x20000)
    launch()
    split, total = driver.started
    assert (split.name, split.grid, split.threads, split.shared_bytes) == (
        "k_split",
        (3, 2, 1),
        128,
        100,
    )
    assert split.stream == 7
    # three pointers and the scratch, M, no global scratch of programs, no profiler
    assert split.arguments == (0x1000, 0x2000, 0x3000, 0x10000, 5, 0, 0)
    assert (total.grid, total.threads) == ((5, 1, 1), 256)
    assert total.arguments == (0x10000, 0x20000, 0x4000, 5, 0, 0)
    assert driver.loaded == [(0, "k_split", b"one", 100), (0, "k_sum", b"two", 0)]
    assert not driver.allocated


def test_programs_work_behind_the_rows() -> None:
    driver = RecordingDriver([kernel()])
    loaded = LoadedGpuKernel(kernel(), driver)
    loaded.bind(POINTERS, 4096, scratch=0x10000)()
    (started,) = driver.started
    assert started.grid == (128, 1, 1) and started.threads == 384
    assert started.arguments == (*POINTERS, 4096, 0x10000, 0)
    assert kernel().scratch_bytes(4096) == 128 * 256
    # rows of scratch come first, rounded up
    assert kernel().rows_bytes(5) == 256 and kernel().scratch_bytes(5) == 256


def test_programs_that_loop_are_no_more_than_processors() -> None:
    """Any number of them makes all tiles; more than run at once would take twice as long."""
    driver = RecordingDriver([kernel()])
    loaded = LoadedGpuKernel(kernel(), driver)
    for processors, programs in ((114, 114), (132, 132), (144, 132)):
        driver.multiprocessors = processors
        loaded.bind(POINTERS, 10_000, scratch=0x10000)()
        assert driver.started[-1].grid == (programs, 1, 1)
    driver.multiprocessors = 2
    loaded.bind(POINTERS, 5, scratch=0x10000, counters=0)()
    assert driver.started[-2].grid == (3, 2, 1), "these do not loop"


def test_all_code_can_be_loaded_ahead() -> None:
    driver = RecordingDriver([kernel()])
    loaded = LoadedGpuKernel(kernel(), driver)
    loaded.load()
    assert [name for _, name, *_ in driver.loaded] == ["k_split", "k_sum", "k_tiles"]
    loaded.bind(POINTERS, 5)()
    assert len(driver.loaded) == 3


def test_pointers_change_between_calls() -> None:
    driver = RecordingDriver([kernel()])
    launch = LoadedGpuKernel(kernel(), driver).bind(POINTERS, 2)
    launch()
    launch.pointers[0], launch.pointers[3] = 0x5000, 0x6000
    driver.current_stream = 9
    launch()
    assert [launch.pointers[i] for i in range(len(launch.pointers))] == [
        *(0x5000, 0x2000),
        *(0x3000, 0x6000),
    ]
    assert driver.started[2].arguments[:3] == (0x5000, 0x2000, 0x3000)
    assert driver.started[3].arguments[2] == 0x6000
    assert [s.stream for s in driver.started] == [7, 7, 9, 9]


def test_a_launch_has_its_own_scratch_by_default() -> None:
    driver = RecordingDriver([kernel()])
    loaded = LoadedGpuKernel(kernel(), driver)
    first, second = loaded.bind(POINTERS, 5), loaded.bind(POINTERS, 5)
    first()
    second()
    assert driver.allocated == [256, 64] * 2
    used = {(s.name, s.arguments[3 if s.name == "k_split" else 0]) for s in driver.started}
    assert len(used) == 4
    # kernels rely on it
    assert all(address % 256 == 0 for _, address in used)


def test_no_rows_start_nothing() -> None:
    driver = RecordingDriver([kernel()])
    LoadedGpuKernel(kernel(), driver).bind([0] * 4, 0)()
    assert not driver.started and not driver.allocated


def test_code_is_loaded_once_for_each_device() -> None:
    driver = RecordingDriver([kernel()])
    loaded = LoadedGpuKernel(kernel(), driver)
    for device in (0, 0, 1):
        driver.current = device
        loaded.bind(POINTERS, 20)()
    assert [(device, name) for device, name, *_ in driver.loaded] == [
        (0, "k_tiles"),
        (1, "k_tiles"),
    ]


REFUSED: dict[str, tuple[Callable[[LoadedGpuKernel], Any], str]] = {
    "count": (lambda k: k.bind([16], 1), "takes 4 pointers, got 1"),
    "misaligned": (lambda k: k.bind([16, 24, 16, 16], 1), "operand 1 at 0x18 .* multiple of 16"),
    "misaligned scale": (lambda k: k.bind([16, 16, 20, 16], 1), "the scales of operand 1"),
    "changed": (
        lambda k: k.bind(POINTERS, 1).pointers.__setitem__(3, 0x4008),
        "result 0 at 0x4008 .*pass a copy",
    ),
    "rows": (lambda k: k.bind(POINTERS, 2**31), "0 to 2147483647 rows, got 2147483648"),
    "negative": (lambda k: k.bind(POINTERS, -1), "got -1"),
    "scratch": (lambda k: k.bind(POINTERS, 1, 1, 0x80), "scratch at 0x80 .* multiple of 256"),
    "counters": (lambda k: k.bind(POINTERS, 1, 1, 0, 8), "counters at 0x8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_line(case: str) -> None:
    attempt, message = REFUSED[case]
    with pytest.raises(QfuseError, match=message) as caught:
        attempt(LoadedGpuKernel(kernel(), RecordingDriver([kernel()])))
    assert "\n" not in str(caught.value)


def test_a_cubin_for_another_gpu() -> None:
    driver = RecordingDriver([kernel()], arch="sm_80")
    loaded = LoadedGpuKernel(kernel(), driver)
    with pytest.raises(
        QfuseError,
        match="kernel k cannot run on device 0: the code is for sm_90, "
        "the GPU is sm_80; compile for cuda:sm_80",
    ):
        loaded.bind(POINTERS, 1)
    assert not driver.loaded


def test_which_code_runs_where() -> None:
    assert arch_error("cuda:sm_90", "sm_90") is None
    assert arch_error("cuda:sm_80", "sm_86") is None
    for target, arch in (("sm_80", "sm_90"), ("sm_89", "sm_86"), ("sm_100", "sm_103")):
        assert f"compile for cuda:{arch}" in str(arch_error(f"cuda:{target}", arch))
    assert "no CUDA device runs" in str(arch_error("hip:gfx942", "sm_90"))


# The driver API, in the role of which a module of functions answers.


class Status(IntEnum):
    SUCCESS = 0
    INVALID_VALUE = 1
    INVALID_IMAGE = 200
    INVALID_CONTEXT = 201


class FakeApi:
    """`cuda.bindings.driver`: each function gives a status and results, and notes its arguments."""

    class CUfunction_attribute:
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
        CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT = 9

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.failing: dict[str, list[Status]] = {}
        self.arguments: list[tuple[int, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            planned = self.failing.get(name)
            status = planned.pop(0) if planned else Status.SUCCESS
            none = name in ("cuInit", "cuCtxSetCurrent", "cuFuncSetAttribute", "cuLaunchKernel")
            if name == "cuLaunchKernel":
                self.arguments.append(read_arguments(arguments[9], 4))
            if name in ("cuGetErrorName", "cuGetErrorString"):
                text = {"Name": arguments[0].name, "String": "what it means"}[name[10:]]
                return Status.SUCCESS, text.encode()
            return (status,) if none else (status, f"a {name}")

        return call


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    properties = SimpleNamespace(multi_processor_count=132)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 77, raising=False)
    return FakeApi()


def test_calls_of_the_driver_api(api: FakeApi) -> None:
    loaded = LoadedGpuKernel(kernel(), CudaDriver(api))
    launch = loaded.bind(POINTERS, 300, scratch=0x10000, counters=0)
    launch()
    launch()
    names = [name for name, *_ in api.calls]
    assert names == [
        *("cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"),
        *("cuModuleLoadData", "cuModuleGetFunction"),
        *("cuFuncSetAttribute", "cuFuncSetAttribute"),
        *("cuLaunchKernel", "cuLaunchKernel"),
    ]
    assert api.calls[1] == ("cuDeviceGet", 1)
    assert api.calls[4:8] == [
        ("cuModuleLoadData", b"three"),
        ("cuModuleGetFunction", "a cuModuleLoadData", b"k_tiles"),
        ("cuFuncSetAttribute", "a cuModuleGetFunction", 8, 200_000),
        ("cuFuncSetAttribute", "a cuModuleGetFunction", 9, 100),
    ]
    function, *sizes, stream, arguments, extra = api.calls[8][1:]
    assert function == "a cuModuleGetFunction"
    assert sizes == [12, 1, 1, 384, 1, 1, 200_000]
    assert (stream, extra) == (77, 0) and isinstance(arguments, int)
    assert api.arguments == [(*POINTERS, 300, 0x10000, 0)] * 2


def test_a_thread_that_has_not_used_the_device_enters_its_context(api: FakeApi) -> None:
    launch = LoadedGpuKernel(kernel(), CudaDriver(api)).bind(POINTERS, 300, scratch=0)
    api.calls.clear()
    api.failing["cuLaunchKernel"] = [Status.INVALID_CONTEXT]
    launch()
    assert [name for name, *_ in api.calls] == [
        *("cuLaunchKernel", "cuCtxSetCurrent", "cuLaunchKernel")
    ]


@pytest.mark.parametrize(
    ("function", "status", "message"),
    [
        ("cuModuleLoadData", Status.INVALID_IMAGE, "loading the machine code of k_tiles failed"),
        ("cuModuleGetFunction", Status.INVALID_VALUE, "finding k_tiles failed"),
        (
            "cuFuncSetAttribute",
            Status.INVALID_VALUE,
            "giving k_tiles 200000 bytes of shared memory",
        ),
        ("cuLaunchKernel", Status.INVALID_VALUE, "starting a kernel failed"),
    ],
)
def test_errors_of_the_driver(api: FakeApi, function: str, status: Status, message: str) -> None:
    api.failing[function] = [status]
    with pytest.raises(QfuseError, match=f"{message}.*: {status.name}: what it means") as caught:
        LoadedGpuKernel(kernel(), CudaDriver(api)).bind(POINTERS, 300, scratch=0)()
    assert "\n" not in str(caught.value)


def test_the_drivers_version(api: FakeApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        FakeApi, "cuDriverGetVersion", lambda self: (Status.SUCCESS, 12080), raising=False
    )
    monkeypatch.setattr(cuda_driver, "_MODULE", tmp_path / "version")
    assert CudaDriver(api).version() == "12.8"
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n"
        "GCC version:  gcc version 12.2.0\n"
    )
    assert CudaDriver(api).version() == "12.8, 570.86.15"


def test_memory_is_torchs(api: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = torch.zeros
    monkeypatch.setattr(
        torch, "zeros", lambda n, dtype, device: zeros(n, dtype=dtype) if device == "cuda:1" else 0
    )
    memory = CudaDriver(api).allocate(1, 8)
    assert bytes((ctypes.c_char * 8).from_address(memory.address)) == bytes(8)


@pytest.fixture
def fresh_driver() -> Any:
    driver_for.cache_clear()
    yield
    driver_for.cache_clear()


@pytest.mark.usefixtures("fresh_driver")
def test_machines_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(QfuseError, match=r"torch .* is built without CUDA; install a CUDA build"):
        LoadedGpuKernel(kernel())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(QfuseError, match="torch finds none"):
        LoadedGpuKernel(kernel())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_error() is None

    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(cuda_driver.importlib, "import_module", missing)
    with pytest.raises(QfuseError, match=r"needs cuda-bindings.*pip install cuda-bindings"):
        LoadedGpuKernel(kernel())


def test_importing_the_launcher_loads_little() -> None:
    code = (
        "import qfuse.lowering.triton.launcher, sys; "
        "print(sorted({'torch', 'torch_mlir', 'triton', 'cuda', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_abi_is_that_of_what_triton_makes() -> None:
    """The parameters of a compiled kernel are the arguments that a launch lays out."""
    pytest.importorskip("triton")
    with ir.Context(), ir.Location.unknown():
        load_all()
        tt.load()
        module = ir.Module.parse(QUANTIZE)
        (made,) = lower_kernel(next(iter(module.body.operations)), find_gpu("cuda:sm_90")).variants
    (launch,) = made.launches
    ptx = compile_launch(launch, find_gpu("cuda:sm_90")).text("ptx")
    entry = ptx[ptx.index(f".entry {launch.name}(") :]
    found = re.findall(r"\.param \.(\w+)", entry[: entry.index("\n)")])
    assert found == ["u64"] * len(launch.parameters) + ["u32", "u64", "u64"]


QUANTIZE = """
func.func private @k(%x: tensor<?x256xbf16>) -> !qfuse.qtensor<tensor<?x256xf8E4M3FN>,
    #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
    attributes {qfuse.kernel} {
  %q = "qfuse.quantize"(%x) : (tensor<?x256xbf16>) -> !qfuse.qtensor<tensor<?x256xf8E4M3FN>,
    #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
  return %q : !qfuse.qtensor<tensor<?x256xf8E4M3FN>,
    #qfuse.scheme<array<i64: 1, 128>, f32, "none", "none", "row_major">>
}
"""
