"""Encoding and decoding FP8, and the scales of blocks, bit for bit against torch."""

import pytest
import torch
from cpu_kernels import (
    FP8_MAX,
    TESTED_LEVELS,
    TORCH,
    kernel_text,
    plain,
    quantize_reference,
    quantized,
    run,
    same_bits,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_functions import apply

from qfuse.lowering.cpu.cpu import missing_flags
from qfuse.lowering.cpu.emit import Function, Value
from qfuse.lowering.cpu.fp8 import F16, FORMATS, decode, decode_words, encode

formats = pytest.mark.parametrize("dtype", list(FORMATS))
levels = pytest.mark.parametrize("level", TESTED_LEVELS)


def all_codes(dtype: str) -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(TORCH[dtype])


def hard_values(dtype: str) -> torch.Tensor:
    """f32 values where rounding is hardest, and many others."""
    finite = all_codes(dtype).float()
    finite = finite[finite.isfinite()].sort().values
    ties = (finite[1:] + finite[:-1]) / 2
    near = [torch.nextafter(ties, torch.full_like(ties, s)) for s in (-1e9, 1e9)]
    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-45, 3e38, 448.1, 464.0, 465.0]
    )
    bits = torch.randint(-(1 << 31), 1 << 31, (200_000,), generator=torch.manual_seed(1))
    patterns = bits.to(torch.int32).view(torch.float32)
    small = torch.randn(50_000) * 0.02
    return torch.cat([finite, ties, *near, special, patterns, small, small * 1000])


@formats
def test_encode_matches_torch(dtype: str) -> None:
    x = hard_values(dtype)

    def emit(f: Function, value: Value) -> Value:
        return encode(f, value, FORMATS[dtype])

    limit = FP8_MAX[dtype]
    wanted = x.clamp(-limit, limit).to(TORCH[dtype]).view(torch.uint8)
    wanted[x.isnan()] = wanted[x.isnan()] & 0x80 | 0x7F  # torch's e5m2 NaN has other bits
    got = apply(emit, x, torch.uint8)
    assert int((got != wanted).sum()) == 0


@formats
def test_decode_is_exact_for_every_code(dtype: str) -> None:
    codes = all_codes(dtype)

    def emit(f: Function, value: Value) -> Value:
        return decode(f, value, FORMATS[dtype])

    got = apply(emit, codes, torch.float32)
    wanted = codes.float()
    assert torch.equal(got.isnan(), wanted.isnan())
    finite = ~wanted.isnan()
    assert same_bits(got[finite], wanted[finite])


def test_f16_decodes_exactly() -> None:
    """Every code, as the level generic does it."""
    codes = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    got = apply(lambda f, value: decode(f, value, F16), codes, torch.float32)
    wanted = codes.view(torch.float16).float()
    assert torch.equal(got.isnan(), wanted.isnan())
    finite = ~wanted.isnan()
    assert same_bits(got[finite], wanted[finite])


def test_f16_encodes_as_torch_does() -> None:
    """Ties to even, subnormals, and overflow from 65520 on."""
    every = torch.arange(1 << 15).to(torch.int16).view(torch.float16).float()
    every = every[every.isfinite()]
    ties = (every[1:] + every[:-1]) / 2
    near = [torch.nextafter(ties, torch.full_like(ties, s)) for s in (0.0, 1e9)]
    edge = torch.tensor([65504.0, 65519.99, 65520.0, 65536.0, 1e38, torch.inf, 1e-45])
    x = torch.cat([every, ties, *near, edge, hard_values("f8E5M2")])
    x = torch.cat([x, -x])
    got = apply(lambda f, value: encode(f, value, F16), x, torch.int16).view(torch.float16)
    wanted = x.half()
    assert torch.equal(got.isnan(), wanted.isnan())
    finite = ~wanted.isnan()
    assert same_bits(got[finite], wanted[finite])


@pytest.mark.skipif(bool(missing_flags("avx2")), reason="this CPU lacks F16C")
@formats
def test_pairs_of_codes_decode_exactly(dtype: str) -> None:
    """Every pair of two codes, as the level avx2 does it; NaN in one leaves the other as it is."""
    words = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    pairs = words.view(torch.uint8).view(-1, 2)
    for column in range(2):

        def emit(f: Function, value: Value, column: int = column) -> Value:
            return decode_words(f, value, FORMATS[dtype])[column]

        got = apply(emit, words, torch.float32)
        wanted = pairs[:, column].contiguous().view(TORCH[dtype]).float()
        assert torch.equal(got.isnan(), wanted.isnan())
        finite = ~wanted.isnan()
        assert same_bits(got[finite], wanted[finite])


@formats
def test_table_of_bf16_is_exact(dtype: str) -> None:
    bits = torch.tensor([FORMATS[dtype].f32_bits(c) for c in range(128)])
    got = bits.to(torch.int32).view(torch.float32)
    wanted = all_codes(dtype)[:128].float()
    assert torch.equal(got.isnan(), wanted.isnan())
    assert torch.equal(got.nan_to_num(), wanted.nan_to_num())
    assert bool((bits & 0xFFFF == 0).all())


@levels
@pytest.mark.parametrize(
    ("dtype", "group", "source"),
    [
        *(("f8E4M3FN", group, "bf16") for group in (128, 64, 48, 7, 512)),
        *(("f8E4M3FN", group, "f32") for group in (128, 48, 512)),
        ("f8E4M3FN", 128, "f16"),
        ("f8E5M2", 128, "bf16"),
    ],
)
def test_quantize_matches_torch(level: str, dtype: str, group: int, source: str) -> None:
    width = 300
    operand = plain(-1, width, dtype=source)
    result = quantized(-1, width, block=(1, group), dtype=dtype)
    text = kernel_text("quantize", [operand], [result])
    x = torch.randn(9, width, generator=torch.manual_seed(2))
    x[1] = 0
    x[2] *= 1e-12
    x[3] *= 3e4
    x = x.to(TORCH[source])
    (got,) = run(text, level, [x], [result], 9)
    assert same_bits(got, quantize_reference(x, (1, group), dtype))


@levels
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_quantize_any_values(level: str, data: st.DataObject) -> None:
    result = quantized(-1, 40, block=(1, 32))
    text = kernel_text("quantize", [plain(-1, 40, dtype="f32")], [result])
    values = st.floats(width=32, allow_nan=False, allow_infinity=False)
    x = torch.tensor(data.draw(st.lists(values, min_size=80, max_size=80))).view(2, 40)
    (got,) = run(text, level, [x], [result], 2)
    assert same_bits(got, quantize_reference(x, (1, 32)))


@levels
def test_nan_stays_in_its_block_and_infinity_saturates(level: str) -> None:
    result = quantized(-1, 256)
    text = kernel_text("quantize", [plain(-1, 256)], [result])
    x = torch.ones(3, 256, dtype=torch.bfloat16)
    x[0, 3] = torch.nan
    x[1, 200] = torch.inf
    ((codes, scale),) = run(text, level, [x], [result], 3)
    values = codes.float()
    assert values[0, :128].isnan().all() and scale[0, 0].isnan()
    assert values[0, 128:].eq(448).all() and values[2].eq(448).all()
    assert values[1, 200].isnan() and scale[1, 1] == torch.inf
    assert values[1, 128:200].eq(0).all() and values[1, :128].eq(448).all()


@levels
@pytest.mark.parametrize("group", [128, 24, 512])
@pytest.mark.parametrize("target", ["f32", "bf16", "f16"])
def test_dequantize(level: str, group: int, target: str) -> None:
    width = 256
    source, result = quantized(-1, width, block=(1, group)), plain(-1, width, dtype=target)
    text = kernel_text("dequantize", [source], [result])
    codes = torch.stack([all_codes("f8E4M3FN").view(torch.uint8)] * 4).view(torch.float8_e4m3fn)
    scale = torch.rand(4, -(-width // group)) * 3
    (got,) = run(text, level, [(codes, scale)], [result], 4)
    spread = scale.repeat_interleave(group, 1)[:, :width]
    wanted = (codes.float() * spread).to(TORCH[target])
    assert torch.equal(got.isnan(), wanted.isnan())
    assert same_bits(got.nan_to_num(), wanted.nan_to_num())
