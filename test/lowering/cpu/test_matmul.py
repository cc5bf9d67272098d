"""Products against f64 references, for ragged shapes, every entry and every kind of operand."""

import pytest
import torch
from cpu_kernels import (
    TESTED_LEVELS,
    TORCH,
    Quantized,
    Tensor,
    dequantize_reference,
    loaded,
    matmul_text,
    plain,
    quantize_reference,
    quantized,
    run,
    same_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from qfuse.lowering.cpu.weights import pack_weight

levels = pytest.mark.parametrize("level", TESTED_LEVELS)
ROWS = (0, 1, 2, 5, 9, 17, 40)


def weight(n: int, k: int, block: tuple[int, int] = (128, 128), dtype: str = "f8E4M3FN", seed=0):
    w = torch.randn(n, k, generator=torch.manual_seed(seed)) * 0.1
    return quantize_reference(w, block, dtype)


def activations(m: int, k: int, dtype: str = "bf16") -> Tensor:
    return torch.randn(m, k, generator=torch.manual_seed(9)).to(TORCH[dtype])


def first_rows(x: Tensor | Quantized, m: int) -> Tensor | Quantized:
    return (x[0][:m], x[1][:m]) if isinstance(x, tuple) else x[:m]


def check(got: Tensor, x: Tensor, w: Tensor, k: int, block_k: int, dtype: str) -> None:
    """`got` is x @ w.T, x and w in f64, as accurate as f32 accumulation has to be.

    An element is a chain of at most block_k + ceil(k / block_k) f32 roundings, each of at most
    the sum of magnitudes times 2^-24; bf16 dot products round twice per pair.
    """
    exact, magnitude = x @ w.T, x.abs() @ w.abs().T
    roundings = 2 * block_k + 2 * -(-k // block_k) + 4
    bound = magnitude * roundings * 2.0**-24
    bound += exact.abs() * {"f32": 0, "bf16": 2.0**-8, "f16": 2.0**-11}[dtype] * 1.01
    bound += {"f32": 1e-30, "bf16": 1e-30, "f16": 2.0**-24}[dtype]
    assert bool(((got.double() - exact).abs() <= bound).all())


@levels
@pytest.mark.parametrize("n", [1, 7, 128, 130, 300])
@pytest.mark.parametrize("k", [1, 33, 128, 200, 512])
def test_quantized_x(level: str, n: int, k: int) -> None:
    x_type, w_type = quantized(-1, k), quantized(n, k, block=(128, 128))
    result = plain(-1, n, dtype="f32")
    text = matmul_text(x_type, w_type, [result])
    w = weight(n, k)
    packed = pack_weight([w], (128, 128))
    x = quantize_reference(activations(max(ROWS), k), (1, 128))
    x64, w64 = dequantize_reference(x, (1, 128)), dequantize_reference(w, (128, 128))
    outputs = {}
    for m in ROWS:
        (outputs[m],) = run(text, level, [first_rows(x, m), packed], [result], m, threads=2)
        check(outputs[m], x64[:m], w64, k, 128, "f32")
    # An element is the same bits however many rows are computed with it.
    for m in ROWS:
        assert same_bits(outputs[m], outputs[max(ROWS)][:m])


@levels
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(("n", "k"), [(7, 33), (130, 200), (64, 256)])
def test_plain_x(level: str, dtype: str, n: int, k: int) -> None:
    """Weights only are quantized; the result has the type of x."""
    x_type, w_type = plain(-1, k, dtype=dtype), quantized(n, k, block=(128, 128))
    result = plain(-1, n, dtype=dtype)
    text = matmul_text(x_type, w_type, [result])
    w = weight(n, k)
    packed = pack_weight([w], (128, 128))
    x = activations(max(ROWS), k, dtype)
    w64 = dequantize_reference(w, (128, 128))
    for m in ROWS:
        (got,) = run(text, level, [x[:m], packed], [result], m)
        check(got, x[:m].double(), w64, k, 128, dtype)


@levels
@pytest.mark.parametrize("block", [(64, 64), (32, 32), (16, 96), (48, 128), (256, 256)])
def test_other_blocks(level: str, block: tuple[int, int]) -> None:
    n, k = 150, 200
    x_type, w_type = quantized(-1, k, block=(1, block[1])), quantized(n, k, block=block)
    result = plain(-1, n, dtype="f32")
    text = matmul_text(x_type, w_type, [result])
    w = weight(n, k, block)
    x = quantize_reference(activations(9, k), (1, block[1]))
    x64, w64 = dequantize_reference(x, (1, block[1])), dequantize_reference(w, block)
    for m in (1, 4, 9):
        (got,) = run(text, level, [first_rows(x, m), pack_weight([w], block)], [result], m)
        check(got, x64[:m], w64, k, block[1], "f32")


@levels
def test_e5m2(level: str) -> None:
    n, k = 70, 160
    x_type = quantized(-1, k, dtype="f8E5M2")
    w_type = quantized(n, k, block=(128, 128), dtype="f8E5M2")
    result = plain(-1, n, dtype="f32")
    text = matmul_text(x_type, w_type, [result])
    w = weight(n, k, dtype="f8E5M2")
    x = quantize_reference(activations(9, k), (1, 128), "f8E5M2")
    x64, w64 = dequantize_reference(x, (1, 128)), dequantize_reference(w, (128, 128))
    for m in (1, 4, 9):
        args = [first_rows(x, m), pack_weight([w], (128, 128))]
        (got,) = run(text, level, args, [result], m)
        check(got, x64[:m], w64, k, 128, "f32")


@levels
def test_every_code_of_the_weight(level: str) -> None:
    """Subnormal codes count fully, and a NaN code makes its row of the weight NaN."""
    k, n = 128, 256
    codes = torch.zeros(n, k, dtype=torch.uint8)
    codes[:, 5] = torch.arange(256).to(torch.uint8)
    w = (codes.view(torch.float8_e4m3fn), torch.ones(2, 1))
    text = matmul_text(plain(-1, k), quantized(n, k, block=(128, 128)), [plain(-1, n, dtype="f32")])
    for m in (1, 9):
        x = torch.ones(m, k, dtype=torch.bfloat16)
        packed = pack_weight([w], (128, 128))
        (got,) = run(text, level, [x, packed], [plain(-1, n, dtype="f32")], m)
        wanted = codes[:, 5].view(torch.float8_e4m3fn).float().expand(m, n)
        assert torch.equal(got.isnan(), wanted.isnan())
        assert torch.equal(got.nan_to_num(), wanted.nan_to_num())


@levels
@pytest.mark.parametrize("m", [1, 2, 9])
def test_nan_and_infinity_reach_their_row_only(level: str, m: int) -> None:
    n, k = 70, 200
    x_type, w_type, result = plain(-1, k), quantized(n, k, block=(128, 128)), plain(-1, n)
    text = matmul_text(x_type, w_type, [result])
    x = activations(m, k)
    x[0, k - 1] = torch.nan
    (got,) = run(text, level, [x, pack_weight([weight(n, k)], (128, 128))], [result], m)
    assert got[0].isnan().all() and not got[1:].isnan().any()


@levels
def test_leading_dimensions_are_rows(level: str) -> None:
    x_type, w_type = plain(2, -1, 128), quantized(64, 128, block=(128, 128))
    result = plain(2, -1, 64)
    text = matmul_text(x_type, w_type, [result])
    w = weight(64, 128)
    x = activations(6, 128)
    args = [x.view(2, 3, 128), pack_weight([w], (128, 128))]
    (got,) = run(text, level, args, [result], 6, rows=[2, 3])
    check(got.view(6, 64), x.double(), dequantize_reference(w, (128, 128)), 128, 128, "bf16")


@levels
@settings(deadline=None, max_examples=12)
@given(st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_any_number_of_rows_and_threads(level: str, m: int, seed: int) -> None:
    n, k = 130, 200
    x_type, w_type, result = quantized(-1, k), quantized(n, k, block=(128, 128)), plain(-1, n)
    text = matmul_text(x_type, w_type, [result])
    w = weight(n, k)
    packed = pack_weight([w], (128, 128))
    x = torch.randn(m, k, generator=torch.manual_seed(seed)).bfloat16()
    q = quantize_reference(x, (1, 128))
    one, two = (run(text, level, [q, packed], [result], m, threads=t)[0] for t in (1, 2))
    assert same_bits(one, two)
    check(
        one, dequantize_reference(q, (1, 128)), dequantize_reference(w, (128, 128)), k, 128, "bf16"
    )


@levels
@pytest.mark.parametrize("threads", [1, 2])
def test_more_rows_than_one_chunk(level: str, threads: int) -> None:
    n, k, m = 70, 33, 1030
    x_type, w_type = plain(-1, k), quantized(n, k, block=(128, 128))
    result = plain(-1, n, dtype="f32")
    text = matmul_text(x_type, w_type, [result])
    w, x = weight(n, k), activations(m, k)
    args = [x, pack_weight([w], (128, 128))]
    (got,) = run(text, level, args, [result], m, threads=threads)
    check(got, x.double(), dequantize_reference(w, (128, 128)), k, 128, "f32")


def test_scratch_may_come_from_outside() -> None:
    n, k, m = 130, 200, 17
    x_type, w_type, result = plain(-1, k), quantized(n, k, block=(128, 128)), plain(-1, n)
    text = matmul_text(x_type, w_type, [result])
    x = activations(m, k)
    packed, scale = pack_weight([weight(n, k)], (128, 128))
    (wanted,) = run(text, None, [x, (packed, scale)], [result], m)
    kernel = loaded(text)
    size = kernel.compiled.scratch_bytes(m, 2)
    memory = torch.full((size + 128,), 0x5A, dtype=torch.uint8)
    scratch = -(-memory.data_ptr() // 64) * 64
    got = torch.empty(m, n, dtype=torch.bfloat16)
    pointers = [t.data_ptr() for t in (x, packed, scale, got)]
    kernel.bind(pointers, m, 2, scratch)()
    assert same_bits(got, wanted)
    end = scratch - memory.data_ptr() + size
    assert bool((memory[end:] == 0x5A).all())
