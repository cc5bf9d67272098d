"""The compiled products behind `operators.py`: for a CPU, and for GPUs of one architecture."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from qfuse.compiler.changes import held, stamp
from qfuse.compiler.options import CompileOptions
from qfuse.dialects import matmul_op, registry
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.types import Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC, ceil_div
from qfuse.lowering.cpu.cache import compile_cached
from qfuse.lowering.cpu.launcher import LoadedKernel
from qfuse.lowering.cpu.weights import pack_experts, pack_scales, pack_weight
from qfuse.lowering.triton.ahead import compiled_ahead
from qfuse.lowering.triton.binary import compile_kernel
from qfuse.lowering.triton.driver import driver_for
from qfuse.lowering.triton.gpu import Gpu, find_gpu
from qfuse.lowering.triton.gpu_kernel import ALIGNMENT
from qfuse.lowering.triton.kernel import TritonKernel
from qfuse.lowering.triton.launcher import LoadedGpuKernel
from qfuse.lowering.triton.lower import lower_kernel

log = logging.getLogger("qfuse")

NAME = "fp8_groupwise_scaled_gemm"

FP8 = {torch.float8_e4m3fn: "f8E4M3FN", torch.float8_e5m2: "f8E5M2"}
OUT = {torch.float16: "f16", torch.bfloat16: "bf16", torch.float32: "f32"}


class Operands(NamedTuple):
    """The tensors of a product, in the order in which kernels take them."""

    x: torch.Tensor
    x_scale: torch.Tensor
    weight: torch.Tensor
    weight_scale: torch.Tensor


@dataclass(frozen=True)
class Gemm:
    """What a kernel is compiled for; M is open.

    `block` is (bn, bk); `by_columns` says that the scales of x lie column by column.
    """

    name: ClassVar[str] = NAME
    op: ClassVar[str] = matmul_op.MatmulOp.OPERATION_NAME

    n: int
    k: int
    block: tuple[int, int]
    dtype: torch.dtype
    out_dtype: torch.dtype
    by_columns: bool = False

    def __str__(self) -> str:
        return f"N = {self.n}, K = {self.k}, block {list(self.block)}, {FP8[self.dtype]}"

    def types(self) -> list[ir.Type]:
        """Of the operands that kernels take, and of the result."""
        return self.product_types((DYNAMIC,), ())

    def product_types(self, rows: Sequence[int], experts: Sequence[int]) -> list[ir.Type]:
        """Of x, the weight and the result, with `rows` and `experts` as leading extents."""
        bn, bk = self.block
        layout = "col_major" if self.by_columns else "row_major"
        stored = FP8[self.dtype]
        x = Shaped((*rows, self.k), stored, Scheme((1, bk), "f32", scale_layout=layout))
        w = Shaped((*experts, self.n, self.k), stored, Scheme((bn, bk), "f32"))
        y = Shaped((*rows, self.n), OUT[self.out_dtype])
        return [x.type(), w.type(), y.type()]

    def build(self) -> ir.Module:
        """A module in the current context that holds the product as one outlined kernel."""
        *operands, result = self.types()
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            kernel = func.FuncOp(self.name, (operands, [result]))
        with ir.InsertionPoint(kernel.add_entry_block()):
            absent = [None] * (len(matmul_op.INPUTS[self.op]) - len(operands))
            inputs = [*kernel.arguments, *absent]
            product, epilogue = matmul_op.build_product(self.op, inputs, [result], [self.n])
            with ir.InsertionPoint(epilogue):
                matmul_op.YieldOp([epilogue.arguments[0]])
            func.ReturnOp(product.results)
        return module


class CpuGemm:
    """A compiled product on the CPU."""

    def __init__(self, gemm: Gemm, options: CompileOptions) -> None:
        with _kernel(gemm) as kernel:
            compiled = compile_cached(kernel, options.cache_dir, level=options.level)
        self._gemm = gemm
        self._loaded = LoadedKernel(compiled)

    def __call__(self, operands: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """Compute `out` [M, N], M > 0, from the tensors of `Operands`, which have been checked.

        A product with further operands has them after those.
        """
        x, x_scale, weight, weight_scale, *further = operands
        m, threads = len(x), torch.get_num_threads()
        packed = _PACKED.get(weight, self._gemm.block)
        scale = pack_scales(weight_scale, weight.shape[-2:], self._gemm.block)
        tensors = (x, x_scale.contiguous(), packed, scale, *further, out)
        scratch = _Scratch(self._loaded.compiled.scratch_bytes(m, threads), x.device)
        pointers = [t.data_ptr() for t in tensors]
        self._loaded.bind(pointers, m, threads, scratch.address)()


class GpuGemm:
    """A compiled product on GPUs of one architecture."""

    def __init__(self, loaded: LoadedGpuKernel) -> None:
        self._loaded = loaded
        self._counters: dict[tuple[int, int], _Scratch] = {}
        self._ready: set[torch.device] = set()

    @staticmethod
    def compile(gemm: Gemm, options: CompileOptions) -> "GpuGemm":
        """Through the installed Triton; raises QfuseError where something is missing."""
        gpu = find_gpu(str(options.target))
        driver = driver_for(gpu.kind)
        lowered = lower_gemm(gemm, gpu)
        launches = [launch for variant in lowered.variants for launch in variant.launches]
        with compiled_ahead(launches, gpu, options.cache_dir) as directory:
            kernel = compile_kernel(lowered, gpu, directory)
        return GpuGemm(LoadedGpuKernel(kernel, driver))

    def __call__(self, operands: Sequence[torch.Tensor], out: torch.Tensor) -> None:
        """As `CpuGemm`, on the current stream of the tensors' GPU.

        Memory that torch's allocator gets back here goes to later work on the same stream only.
        """
        m, device, kernel = len(out), out.device, self._loaded.kernel
        pointers = [t.data_ptr() for t in (*operands, out)]
        with torch.cuda.device(device) if out.is_cuda else nullcontext():
            if device not in self._ready:
                # for every M: a later call may be captured in a graph, where no code can be loaded
                self._loaded.load()
                self._ready.add(device)
            scratch = _Scratch(kernel.scratch_bytes(m), device)
            counters = self._counters_for(m, device)
            at = None if counters is None else counters.address
            self._loaded.bind(pointers, m, 1, scratch.address, at)()

    def _counters_for(self, m: int, device: torch.device) -> "_Scratch | None":
        """Zeros that only launches on the current stream use; they leave them zero."""
        kernel, driver = self._loaded.kernel, self._loaded.driver
        if kernel.variant(m).counter_bytes == 0:
            return None
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            # A captured graph may run on any stream, beside launches that are not part of it.
            return _Scratch(kernel.counter_bytes, device, zero=True)
        number = driver.device()
        key = number, driver.stream(number)
        if key not in self._counters:
            self._counters[key] = _Scratch(kernel.counter_bytes, device, zero=True)
        return self._counters[key]


class _Scratch:
    """Memory for a kernel to work in: `size` bytes at `address`, a multiple of 256."""

    def __init__(self, size: int, device: torch.device, *, zero: bool = False) -> None:
        make = torch.zeros if zero else torch.empty
        self._memory = make(size + ALIGNMENT, dtype=torch.uint8, device=device)
        self.address = ceil_div(self._memory.data_ptr(), ALIGNMENT) * ALIGNMENT


def lower_gemm(gemm: Gemm, gpu: Gpu) -> TritonKernel:
    """The launches of a product in Triton IR; raises QfuseError with the reason if there are none.

    The tensors a caller passes are the operands, then the result.
    """
    with _kernel(gemm) as kernel:
        return lower_kernel(kernel, gpu)


@contextmanager
def _kernel(gemm: Gemm) -> Iterator[func.FuncOp]:
    with ir.Context(), ir.Location.name(gemm.name):
        registry.load_all()
        module = gemm.build()
        yield next(iter(module.body.operations))


class PackedWeights:
    """Weights as CPU kernels read them, each kept as long as the tensor it was made of."""

    def __init__(self) -> None:
        self._packed = WeakTensorKeyDictionary()
        self._lock = threading.Lock()
        self._warned = False

    def get(self, weight: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
        """The packed codes of `weight` [N, K], or of experts [E, N, K]; they are packed again where
        the weight may have changed."""
        if weight.is_inference():
            if not self._warned:
                self._warned = True
                log.warning(
                    "remark: the CPU packs a weight that was made in inference mode at every call; "
                    "make it outside to have it packed once"
                )
            return self._pack(weight, block)
        form = tuple(weight.shape), weight.dtype, block
        with self._lock:
            found = self._packed.get(weight)
        if found is not None and found[:2] == (form, stamp(weight)):
            return found[-1]
        content = held(weight)  # before it is packed: what changes meanwhile is noticed next time
        packed = self._pack(weight, block)
        with self._lock:
            self._packed[weight] = form, content.stamp, content, packed
        return packed

    def _pack(self, weight: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
        *experts, n, k = weight.shape
        # scales go unpacked
        unread = torch.empty(*experts, ceil_div(n, block[0]), ceil_div(k, block[1]))
        if experts:
            return pack_experts(weight, unread, block)[0]
        return pack_weight([(weight, unread)], block)[0]


_PACKED = PackedWeights()
