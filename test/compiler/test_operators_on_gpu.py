"""`fp8_groupwise_scaled_gemm` on a GPU, as far as that goes without one, and where there is one."""

import ctypes
from typing import Any

import numpy as np
import pytest
import torch
from gemm_cases import BF16, BLOCK, E4M3, assert_close, operands, reference

from qfuse.compiler import fp8_groupwise_scaled_gemm, gemm, operators
from qfuse.compiler.gemm import Gemm, GpuGemm, Operands, lower_gemm
from qfuse.compiler.group_gemm import GroupGemm
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton import interpreter
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel, GpuLaunch, GpuVariant
from qfuse.lowering.triton.interpreter.types import DTYPES
from qfuse.lowering.triton.kernel import Parameter, TritonKernel
from qfuse.lowering.triton.launcher import LoadedGpuKernel


def test_how_the_scales_of_x_lie_is_part_of_a_gpu_kernel() -> None:
    """Seen on meta tensors, which are checked as those of a GPU; CPU kernels read a copy."""
    o = operands(5, 130, 300)
    turned = o._replace(x_scale=o.x_scale.t().contiguous().t())
    for tensors, device, by_columns in (
        (o, "meta", False),
        (turned, "meta", True),
        (turned, "cpu", False),
    ):
        there = Operands(*(t.to(device) for t in tensors))
        assert operators._check(there, BLOCK, BF16).by_columns == by_columns


class InterpretingDriver:
    """A `Driver` whose GPU is the interpreter, on the memory of CPU tensors."""

    def __init__(self, kernel: TritonKernel, of: Gemm) -> None:
        self.launches = {x.name: x for v in kernel.variants for x in v.launches}
        self.kernel, self.gemm = kernel, of
        self.streams = [7]
        self.loaded: list[str] = []
        self.counters: set[int] = set()

    def device(self) -> int:
        return 0

    def arch(self, device: int) -> str:
        return "sm_90"

    def processors(self, device: int) -> int:
        return 132

    def stream(self, device: int) -> int:
        return self.streams[-1]

    def load(self, device: int, name: str, code: bytes, shared_bytes: int) -> Any:
        self.loaded.append(name)
        return self.launches[name]

    def allocate(self, device: int, nbytes: int) -> Any:
        raise AssertionError("the operator brings its own memory")

    def prepare(self, device, function, grid, threads, shared_bytes, arguments) -> Any:
        count = len(function.parameters)
        at = (ctypes.c_void_p * (count + 3)).from_address(arguments)

        def start(stream: int) -> None:
            m = ctypes.c_int32.from_address(at[count]).value
            pointers = [ctypes.c_uint64.from_address(at[i]).value for i in range(count)]
            arrays = [
                self._array(p, address, m)
                for p, address in zip(function.parameters, pointers, strict=True)
            ]
            interpreter.run(function.text, function.name, [*arrays, m], grid)

        return start

    def _array(self, parameter: Parameter, address: int, m: int) -> np.ndarray:
        of, variant = self.gemm, self.kernel.variant(m)
        bn, bk = of.block
        groups = -(-of.k // bk)
        experts = [of.experts] if isinstance(of, GroupGemm) else []
        shape, dtype = {
            ("operand", 0, "data"): ((m, of.k), "f8E4M3FN"),
            ("operand", 0, "scale"): ((groups, m) if of.by_columns else (m, groups), "f32"),
            ("operand", 1, "data"): ((*experts, of.n, of.k), "f8E4M3FN"),
            ("operand", 1, "scale"): ((*experts, -(-of.n // bn), groups), "f32"),
            ("operand", 2, "data"): ((sum(experts) + 1,), "i32"),
            ("result", 0, "data"): ((m, of.n), "bf16"),
            ("scratch", 0, "data"): ((variant.scratch_per_row * m // 4,), "f32"),
            ("counter", 0, "data"): ((variant.counter_bytes // 4,), "i32"),
        }[parameter.source, parameter.index, parameter.part]
        if parameter.source == "counter":
            self.counters.add(address)
        size = int(np.prod(shape)) * np.dtype(DTYPES[dtype]).itemsize
        memory = (ctypes.c_uint8 * size).from_address(address)
        return np.frombuffer(memory, DTYPES[dtype]).reshape(shape)


def gpu_gemm(of: Gemm) -> tuple[GpuGemm, InterpretingDriver]:
    """A product whose machine code is its Triton IR."""
    lowered = lower_gemm(of, find_gpu("cuda:sm_90"))
    variants = tuple(
        GpuVariant(
            v.first_m,
            v.last_m,
            tuple(
                GpuLaunch(x.name, x.parameters, x.grid, x.num_warps, 1024, 0, x.text.encode())
                for x in v.launches
            ),
            v.scratch_per_row,
            v.counter_bytes,
        )
        for v in lowered.variants
    )
    kernel = GpuKernel(lowered.name, lowered.target, lowered.parameters, variants)
    driver = InterpretingDriver(lowered, of)
    return GpuGemm(LoadedGpuKernel(kernel, driver)), driver


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy as a GPU's allocator would place it."""
    numpy = np.zeros(tensor.nbytes + 512, np.uint8)
    start = -numpy.ctypes.data % 512
    memory = torch.from_numpy(numpy)[start : start + tensor.nbytes]
    by_columns = tensor.dim() == 2 and not tensor.is_contiguous()
    shape = tensor.t().shape if by_columns else tensor.shape
    made = memory.view(tensor.dtype).view(shape)
    made = made.t() if by_columns else made
    return made.copy_(tensor)


@pytest.mark.parametrize(
    ("m", "n", "k", "by_columns"), [(3, 80, 4096, False), (3, 80, 4096, True), (70, 144, 600, True)]
)
def test_gpu_launches(m: int, n: int, k: int, by_columns: bool) -> None:
    """Pointers, scratch and counters reach the kernels; few rows and a long K are cut in slices."""
    o = operands(m, n, k)
    if by_columns:
        o = o._replace(x_scale=o.x_scale.t().contiguous().t())
    o = Operands(*map(aligned, o))
    product, driver = gpu_gemm(Gemm(n, k, BLOCK, E4M3, BF16, by_columns))
    out = aligned(torch.empty(m, n, dtype=BF16))
    for stream in (7, 7, 8):
        driver.streams.append(stream)
        out.fill_(float("nan"))
        product(o, out)
        assert_close(out, reference(o))
    if m == 3:
        # Launches on two streams may run at once, so they do not count together.
        assert len(driver.counters) == 2


def test_the_first_call_loads_the_code_for_all_rows() -> None:
    """A CUDA graph may capture the next one, with other rows; it cannot load code."""
    o = Operands(*map(aligned, operands(3, 80, 4096)))
    product, driver = gpu_gemm(Gemm(80, 4096, BLOCK, E4M3, BF16))
    for _ in range(2):
        product(o, aligned(torch.empty(3, 80, dtype=BF16)))
    assert len(driver.launches) > 1 and driver.loaded == list(driver.launches)


def test_gpu_code_is_compiled_without_one(monkeypatch) -> None:
    """All that a call on a GPU does before it starts anything, but for the driver itself."""
    pytest.importorskip("triton")
    monkeypatch.setattr(gemm, "driver_for", lambda kind: "driver")
    of = Gemm(32, 64, BLOCK, E4M3, BF16)
    made = GpuGemm.compile(of, operators.CompileOptions.make("cuda:sm_90"))._loaded
    assert made.driver == "driver"
    kernel = made.kernel
    assert kernel.target == "cuda:sm_90" and kernel.code.startswith(b"\x7fELF")
    assert [(p.source, p.index, p.part) for p in kernel.parameters] == [
        ("operand", 0, "data"),
        ("operand", 0, "scale"),
        ("operand", 1, "data"),
        ("operand", 1, "scale"),
        ("result", 0, "data"),
    ], "the order of `Operands`, then the result"


def test_gpu_products_are_keyed_by_architecture(monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(operators, "_COMPILED", {})
    monkeypatch.setattr(
        operators.GpuGemm, "compile", lambda of, options: asked.append(options.target) or len(asked)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, device.index))
    of = Gemm(144, 1200, BLOCK, E4M3, BF16)
    for index in (0, 0):
        operators._compiled(of, torch.device("cuda", index))
    assert list(map(str, asked)) == ["cuda:sm_90"]
    with pytest.raises(QfuseError, match="unknown target 'cuda:sm_91'; the nearest supported"):
        operators._compiled(of, torch.device("cuda", 1))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU does")
def test_no_gpu() -> None:
    of = Gemm(144, 1200, BLOCK, E4M3, BF16)
    with pytest.raises(QfuseError, match="this needs an NVIDIA GPU"):
        GpuGemm.compile(of, operators.CompileOptions.make("cuda:sm_90"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu() -> None:
    for m in (0, 1, 17, 64, 65, 300):
        o = operands(m, 384, 1200)
        here = Operands(*(t.cuda() for t in o))
        y = fp8_groupwise_scaled_gemm(*here, BLOCK, "bfloat16")
        assert y.is_cuda
        assert_close(y.cpu(), reference(o))
    with pytest.raises(QfuseError, match="weight is on cpu, but x on cuda"):
        fp8_groupwise_scaled_gemm(*here._replace(weight=o.weight), BLOCK, "bfloat16")
