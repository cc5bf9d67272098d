"""Kernels as part of a module, and back; weights as GPU kernels read them."""

import pytest
import torch
from gpu_kernels import SILU_GLU, kernel_text, matmul_text, parsed, plain, quantized
from hypothesis import given
from hypothesis import strategies as st

from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.quantization_ops import concat_rows
from qfuse.dialects.types import Scheme, Shaped
from qfuse.lowering.triton.binary import compile_kernel
from qfuse.lowering.triton.embedding import embed, embed_binaries, is_binary, read_kernel
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel
from qfuse.lowering.triton.kernel import TritonKernel
from qfuse.lowering.triton.lower import lower_kernel
from qfuse.lowering.triton.weights import append_expert, join_rows

W = quantized(512, 256, block=(128, 128))
KERNELS = {
    "one launch": kernel_text("silu", [plain(-1, 96)], [plain(-1, 96)]),
    "variants": matmul_text(quantized(-1, 256), W, [plain(-1, 512)]),
    "quantized result": matmul_text(
        quantized(-1, 256), W, [quantized(-1, 256)], SILU_GLU, ["%v"], parts=[256, 256]
    ),
    "split": matmul_text(
        quantized(-1, 4096), quantized(512, 4096, block=(128, 128)), [plain(-1, 512)]
    ),
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("target", ["cuda:sm_90", "hip:gfx942"])
def test_a_module_gives_back_the_kernel_that_was_put_in(name: str, target: str) -> None:
    with parsed(KERNELS[name]) as function, ir.Location.unknown():
        module = function.operation.parent
        kernel = lower_kernel(function, find_gpu(target))
        embed(function, kernel)
        assert module.verify()
        again = ir.Module.parse(module.get_asm(print_generic_op_form=True))
        (declaration,) = (op for op in again.body.operations if op.operation.name == "func.func")
        assert read_kernel(declaration) == kernel
    assert TritonKernel.from_json(kernel.to_json()) == kernel


def test_machine_code_takes_the_place_of_the_module() -> None:
    with parsed(KERNELS["one launch"]) as function, ir.Location.unknown():
        module = function.operation.parent
        gpu = find_gpu("cuda:sm_90")
        embed(function, lower_kernel(function, gpu))
        declaration = list(module.regions[0].blocks[0].operations)[-1]
        binary = compile_kernel(read_kernel(declaration), gpu)
        assert not is_binary(declaration)
        embed_binaries(declaration, binary)
        assert is_binary(declaration)
        assert module.verify()
        text = str(module)
    assert "tt.func" not in text
    assert '<#nvvm.target<chip = "sm_90">' in text
    (launch,) = binary.variants[0].launches
    assert launch.code.startswith(b"\x7fELF")
    assert GpuKernel.from_metadata(binary.metadata(), binary.code) == binary
    with pytest.raises(ValueError, match="bytes of machine code"):
        GpuKernel.from_metadata(binary.metadata(), binary.code + b"!")


@given(rows=st.lists(st.integers(1, 300), min_size=1, max_size=4), k=st.integers(1, 300))
def test_parts_of_a_weight_begin_at_blocks(rows: list[int], k: int) -> None:
    parts = []
    for i, n in enumerate(rows):
        codes = torch.full((n, k), i + 1, dtype=torch.uint8).view(torch.float8_e4m3fn)
        parts.append((codes, torch.full((-(-n // 128), -(-k // 128)), float(i))))
    codes, scales = join_rows(parts, (128, 128))
    weight = Shaped((rows[0], k), "f8E4M3FN", Scheme((128, 128), "f32"))
    assert codes.shape == (concat_rows(rows, weight), k)  # what the type of qfuse.concat says
    assert scales.shape == (-(-codes.shape[0] // 128), -(-k // 128))
    owner = codes.view(torch.uint8)[:, 0]
    for i, n in enumerate(rows):
        (at,) = torch.nonzero(owner == i + 1, as_tuple=True)
        assert at[0] % 128 == 0
        assert at.tolist() == list(range(int(at[0]), int(at[0]) + n))
        assert (scales[at // 128] == i).all()


def test_parts_with_zero_points_and_headers() -> None:
    """INT4 has a zero point beside each scale; K-quants have 16 bytes for each 256 columns."""
    generator = torch.Generator().manual_seed(0)

    def random(rows: int, columns: int) -> torch.Tensor:
        return torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=generator)

    parts = [(random(n, 64), torch.rand(n, 4), random(n, 4)) for n in (5, 3)]
    joined = join_rows(parts, (1, 32), 4)
    assert len(joined) == 3
    for tensor, pair in zip(joined, zip(*parts, strict=True), strict=True):
        assert torch.equal(tensor, torch.cat(pair))
    quants = [(random(n, 256), random(n, 32)) for n in (5, 3)]
    codes, headers = join_rows(quants, (1, 256), 32)
    assert torch.equal(codes, torch.cat([a for a, _ in quants]))
    assert torch.equal(headers, torch.cat([b for _, b in quants]))
    with pytest.raises(QfuseError, match=r"zero points \[5, 2\]; expected K = 64"):
        join_rows([(*parts[0][:2], random(5, 2))], (1, 32), 4)
    with pytest.raises(QfuseError, match=r"scales of torch.float32 and zero points of torch.int8"):
        join_rows([parts[0], parts[1][:2]], (1, 32), 4)


def test_parts_that_do_not_fit() -> None:
    codes = torch.zeros(8, 4, dtype=torch.uint8)
    with pytest.raises(QfuseError, match=r"part 1 has codes \[8, 5\]"):
        join_rows([(codes, torch.ones(1, 1)), (torch.zeros(8, 5), torch.ones(1, 1))], (128, 128))
    with pytest.raises(QfuseError, match=r"scales \[2, 1\]; expected K = 4 and scales \[1, 1\]"):
        join_rows([(codes, torch.ones(2, 1))], (128, 128))
    with pytest.raises(QfuseError, match=r"with scales of torch\.float16"):
        join_rows([(codes, torch.ones(1, 1)), (codes, torch.ones(1, 1).half())], (128, 128))


def test_one_more_expert_behind_others() -> None:
    def stack(experts: int, rows: int) -> torch.Tensor:
        return torch.full((experts, rows, 4), 7, dtype=torch.uint8).view(torch.float8_e4m3fn)

    parts = [(stack(1, 100)[0], torch.full((1, 1), scale)) for scale in (2.0, 3.0)]
    codes, scale = stack(3, 228), torch.ones(2, 2, 1)
    codes.view(torch.uint8)[2] = 1  # the room for it
    joined, scales = append_expert((codes, scale), parts, (128, 128))
    assert joined.data_ptr() == codes.data_ptr()
    assert scales[:, :, 0].tolist() == [[1, 1], [1, 1], [2, 3]]
    rows = codes.view(torch.uint8)[2, :, 0]
    assert (rows[:100] == 7).all() and (rows[128:] == 7).all() and not rows[100:128].any()
    with pytest.raises(QfuseError, match=r"codes \[228, 4\] .* others have codes \[200, 4\]"):
        append_expert((stack(3, 200), scale), parts, (128, 128))
    with pytest.raises(QfuseError, match=r"scales \[2, 1\] of torch\.float32; the others"):
        append_expert((codes, scale.half()), parts, (128, 128))
