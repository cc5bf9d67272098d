"""Quantizing and expanding rows in every scheme, against torch and gguf."""

from dataclasses import replace

import pytest
import torch
from cpu_kernels import (
    TESTED_LEVELS,
    TORCH,
    Quantized,
    Tensor,
    kernel_text,
    matmul_text,
    plain,
    run,
    same_bits,
    segment_sizes,
)
from schemes import decode, int4, mxfp4, q4_0, q4_k, q6_k, q8_0, quantized_x, simple

from qfuse.dialects.types import STORAGE_MAX, Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC

levels = pytest.mark.parametrize("level", TESTED_LEVELS)

# storage, group (0: all columns), scale, packing
ACTIVATIONS = [
    ("f8E4M3FN", 128, "f32", "none"),
    ("f8E4M3FN", 0, "f32", "none"),
    ("f8E5M2", 64, "f32", "none"),
    ("f8E4M3FN", 32, "f8E8M0FNU", "none"),
    ("f8E4M3FN", 0, "f8E8M0FNU", "none"),
    ("i8", 0, "f32", "none"),
    ("i8", 128, "bf16", "none"),
    ("i8", 32, "f16", "none"),
    ("i8", 32, "f16", "q8_1"),
]
schemes = pytest.mark.parametrize("scheme", ACTIVATIONS, ids=str)


def activation(width: int, scheme: tuple[str, int, str, str]) -> Shaped:
    storage, group, scale, packing = scheme
    return Shaped((DYNAMIC, width), storage, Scheme((1, group or width), scale, packing))


def reference(x: Tensor, type_: Shaped) -> Quantized:
    """The definitions of `qfuse.quantize` and of q8_1, in torch; x without NaN."""
    scheme = type_.scheme
    assert scheme is not None
    group, limit = scheme.block[1], STORAGE_MAX[type_.dtype]
    tiles = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % group)).unflatten(1, (-1, group))
    amax = tiles.abs().amax(2, keepdim=True).clamp_min(1e-10)
    scale = amax / limit
    if scheme.scale == "f8E8M0FNU":
        mantissa, exponent = scale.frexp()  # mantissa in [0.5, 1)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).int())
        scaled = tiles / scale
    else:
        scaled = tiles * (torch.full_like(amax, limit) / amax)
    scaled = scaled.clamp(-limit, limit)
    codes = (scaled.round() if type_.dtype == "i8" else scaled).to(TORCH[type_.dtype])
    stored = scale.squeeze(2).to(TORCH[scheme.scale])
    if scheme.packing == "q8_1":
        sums = (codes.float().sum(2) * stored.float()).half()
        stored = torch.stack([stored, sums], 2).flatten(1)
    flat = codes.view(torch.uint8).flatten(1)[:, : x.shape[1]]
    return flat.contiguous().view(TORCH[type_.dtype]), stored


def inputs(m: int, width: int, dtype: str) -> Tensor:
    x = torch.randn(m, width, generator=torch.manual_seed(0))
    x[0] *= 1e-12  # below the floor
    x[1, ::3] = 0
    x[2] *= 1e4
    return x.to(TORCH[dtype])


@levels
@schemes
@pytest.mark.parametrize(("width", "dtype"), [(300, "bf16"), (77, "f32"), (512, "f16")])
def test_quantize(level: str, scheme: tuple, width: int, dtype: str) -> None:
    type_ = activation(width, scheme)
    x = inputs(9, width, dtype)
    text = kernel_text("quantize", [plain(-1, width, dtype=dtype)], [type_])
    (got,) = run(text, level, [x], [type_], 9)
    assert same_bits(got, reference(x, type_))


@levels
def test_powers_of_two_are_kept(level: str) -> None:
    """A maximum of a power of two times 448 needs no larger scale; a little more does."""
    type_ = activation(32, ("f8E4M3FN", 32, "f8E8M0FNU", "none"))
    x = torch.zeros(3, 32)
    x[0, 5], x[1, 5], x[2, 5] = 448.0, 448.0 * (1 + 2.0**-20), 2.0**127
    text = kernel_text("quantize", [plain(-1, 32, dtype="f32")], [type_])
    ((codes, scale),) = run(text, level, [x], [type_], 3)
    assert scale.view(torch.uint8).flatten().tolist() == [127, 128, 127 + 119]
    assert codes[:, 5].float().tolist() == [448.0, 224.0, 256.0]


@levels
@schemes
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity(level: str, scheme: tuple, bad: float) -> None:
    """They spoil their group, by its codes or by its scale, and no other row."""
    type_ = activation(300, scheme)
    x = inputs(5, 300, "f32")
    x[3, 7] = bad
    text = kernel_text("quantize", [plain(-1, 300, dtype="f32")], [type_])
    ((codes, scale),) = run(text, level, [x], [type_], 5)
    at = Shaped((5, 300), type_.dtype, type_.scheme)
    values, _ = decode(at, (codes, scale))
    group = type_.scheme.block[1]
    assert not values[3, 7].isfinite()
    if bad != bad:
        assert values[3, :group].isnan().all()
    others = [0, 1, 2, 4]
    wanted = reference(x[others], type_)
    assert same_bits((codes[others], scale[others]), wanted)


@levels
@pytest.mark.parametrize("storage", ["f8E4M3FN", "f8E5M2", "i8"])
@pytest.mark.parametrize(("width", "dtype"), [(300, "bf16"), (77, "f32")])
def test_given_scale(level: str, storage: str, width: int, dtype: str) -> None:
    """Codes are x / scale, saturated; every row carries the scale."""
    type_ = activation(width, (storage, 0, "f32", "none"))
    operands = [plain(-1, width, dtype=dtype), plain(1, dtype="f32")]
    x, scale = inputs(9, width, dtype), torch.tensor([0.0123])
    (got,) = run(kernel_text("quantize", operands, [type_]), level, [x, scale], [type_], 9)
    wanted = by_scale(x, scale, storage)
    assert same_bits(got, wanted)
    assert wanted[0].float().abs().max() == STORAGE_MAX[storage]


@levels
@pytest.mark.parametrize("storage", ["f8E4M3FN", "i8"])
@pytest.mark.parametrize(
    ("m", "width", "dtype"), [(0, 77, "f32"), (1, 5, "f16"), (700, 300, "bf16")]
)
@pytest.mark.parametrize("threads", [1, 2])
def test_tensor_scale(
    level: str, storage: str, m: int, width: int, dtype: str, threads: int
) -> None:
    x = torch.randn(m, width, generator=torch.manual_seed(m)).to(TORCH[dtype])
    result = plain(1, dtype="f32")
    text = kernel_text(
        "tensor_scale", [plain(-1, width, dtype=dtype)], [result], f"storage = {storage}"
    )
    (got,) = run(text, level, [x], [result], m, threads=threads)
    amax = x.float().abs().max() if m else torch.tensor(0.0)
    assert same_bits(got, (amax.clamp_min(1e-10) / STORAGE_MAX[storage]).view(1))
    if m > 1:
        x[m // 2, width - 1] = torch.nan
        (got,) = run(text, level, [x], [result], m, threads=threads)
        assert got.isnan().all()


# -- fused quantization ----------------------------------------------------------------------------


@levels
@schemes
@pytest.mark.parametrize("width", [256, 300])
def test_norm_quantizes(level: str, scheme: tuple, width: int) -> None:
    """As a separate quantization of its rounded result does, bit for bit."""
    row, type_ = plain(-1, width), activation(width, scheme)
    x, w = inputs(9, width, "bf16"), torch.rand(width).bfloat16()
    attributes = 'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before"'
    both = f"{attributes}, {segment_sizes('result', [True, True, False, False])}"
    text = kernel_text("rms_norm", [row, plain(width)], [row, type_], both)
    value, q = run(text, level, [x, w], [row, type_], 9)
    assert same_bits(q, reference(value, type_))
    only = f"{attributes}, {segment_sizes('result', [False, True, False, False])}"
    text = kernel_text("rms_norm", [row, plain(width)], [type_], only)
    assert same_bits(run(text, level, [x, w], [type_], 9)[0], q)


@levels
@schemes
def test_glu_quantizes(level: str, scheme: tuple) -> None:
    width = 300
    row, type_ = plain(-1, width), activation(width, scheme)
    gate, up = inputs(9, width, "bf16"), torch.randn(9, width).bfloat16()
    sizes = segment_sizes("result", [True, True])
    text = kernel_text("glu", [row, row], [row, type_], f'act = "silu", {sizes}')
    value, q = run(text, level, [gate, up], [row, type_], 9)
    assert same_bits(q, reference(value, type_))


@levels
@pytest.mark.parametrize("m", [1, 9])
@pytest.mark.parametrize("scheme", [s for s in ACTIVATIONS if s[1]], ids=str)
def test_product_quantizes(level: str, scheme: tuple, m: int) -> None:
    n, k = 300, 200
    row, type_ = plain(-1, n), activation(n, scheme)
    w = int4(n, k, 64, zeros=True)
    x = torch.randn(m, k, generator=torch.manual_seed(0)).bfloat16()
    body = "%t = arith.truncf %acc0 : f32 to bf16\n%y = arith.extf %t : bf16 to f32"
    text = matmul_text(plain(-1, k), w.type, [row, type_], body, ["%y", "%y"])
    value, q = run(text, level, [x, w.packed()], [row, type_], m)
    assert same_bits(q, reference(value, type_))


def by_scale(x: Tensor, scale: Tensor, storage: str) -> Quantized:
    """x / scale, saturated; every row carries the scale."""
    limit = STORAGE_MAX[storage]
    scaled = (x.float() / scale).clamp(-limit, limit)
    codes = (scaled.round() if storage == "i8" else scaled).to(TORCH[storage])
    return codes, scale.expand(len(x), 1).contiguous()


STORAGES = ["f8E4M3FN", "f8E5M2", "i8"]


@levels
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("m", "width"), [(9, 300), (1, 5), (3, 1000)])
def test_norm_quantizes_by_given_scales(level: str, storage: str, m: int, width: int) -> None:
    """Alone and beside all other results, one of them found: the bits are those of the value."""
    row, type_ = plain(-1, width), activation(width, (storage, 0, "f32", "none"))
    x, w = inputs(max(m, 3), width, "bf16")[:m], torch.rand(width).bfloat16()
    r = torch.randn(m, width).bfloat16()
    scales = torch.tensor([0.0123]), torch.tensor([0.5])
    operands = [x, w, r]
    types, one = [row, plain(width), row], plain(1, dtype="f32")
    attributes = 'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before"'

    def text(given: list[bool], present: list[bool], results: list[Shaped]) -> str:
        sizes = segment_sizes("operand", [True] * 3 + given), segment_sizes("result", present)
        operands = types + [one] * sum(given)
        return kernel_text("rms_norm", operands, results, ", ".join([attributes, *sizes]))

    every = [row, type_, type_, row]
    both = text([True, True], [True] * 4, every)
    value, a, b, h = run(both, level, [*operands, *scales], every, m)
    assert same_bits(h, (x.float() + r.float()).bfloat16())
    assert same_bits(a, by_scale(value, scales[0], storage))
    assert same_bits(b, by_scale(value, scales[1], storage))
    only = text([True, False], [False, True, False, False], [type_])
    assert same_bits(run(only, level, [*operands, scales[0]], [type_], m)[0], a)
    mixed = text([False, True], [False, True, True, False], [type_] * 2)
    found, given = run(mixed, level, [*operands, scales[1]], [type_] * 2, m)
    assert same_bits(given, b) and same_bits(found, reference(value, type_))


@levels
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("halves", [True, False])
def test_glu_quantizes_by_a_given_scale(level: str, storage: str, halves: bool) -> None:
    width, scale = 300, torch.tensor([0.0123])
    row, type_ = plain(-1, width), activation(width, (storage, 0, "f32", "none"))
    gate, up = inputs(9, width, "bf16"), torch.randn(9, width).bfloat16()
    operands = [torch.cat([gate, up], 1)] if halves else [gate, up]
    types = [plain(-1, 2 * width)] if halves else [row, row]
    sizes = segment_sizes("operand", [True, not halves, True]), segment_sizes("result", [True] * 2)
    attributes = ", ".join(['act = "silu"', *sizes])
    text = kernel_text("glu", [*types, plain(1, dtype="f32")], [row, type_], attributes)
    value, q = run(text, level, [*operands, scale], [row, type_], 9)
    assert same_bits(q, by_scale(value, scale, storage))


@levels
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("m", "n"), [(1, 300), (9, 300), (70, 20), (300, 1100)])
@pytest.mark.parametrize("threads", [1, 2])
def test_product_quantizes_by_a_given_scale(
    level: str, storage: str, m: int, n: int, threads: int
) -> None:
    """Whatever the tiles: all columns have one scale.  Beside it, a result that finds its own."""
    k, scale = 200, torch.tensor([0.0123])
    row, type_ = plain(-1, n), activation(n, (storage, 0, "f32", "none"))
    found = activation(n, ("i8", 32, "f16", "q8_1"))
    w = int4(n, k, 64, zeros=True)
    x = torch.randn(m, k, generator=torch.manual_seed(0)).bfloat16()
    body = """%t = arith.truncf %acc0 : f32 to bf16
%y = arith.extf %t : bf16 to f32
%v = "qfuse.with_scale"(%y, %e0) : (f32, f32) -> f32"""
    extra = [(plain(1, dtype="f32"), "[]")]
    outs = [row, found, type_]
    text = matmul_text(plain(-1, k), w.type, outs, body, ["%y", "%y", "%v"], extra)
    value, a, b = run(text, level, [x, w.packed(), scale], outs, m, threads=threads)
    assert same_bits(a, reference(value, found))
    assert same_bits(b, by_scale(value, scale, storage))
    only = matmul_text(plain(-1, k), w.type, [type_], body, ["%v"], extra)
    (alone,) = run(only, level, [x, w.packed(), scale], [type_], m, threads=threads)
    assert same_bits(alone, b)


# -- expanding -------------------------------------------------------------------------------------

EXPANDED = {
    "e4m3 by channel": simple(9, 200, "f8E4M3FN", (1, 0)),
    "e4m3 blocks of e8m0": simple(70, 200, "f8E4M3FN", (32, 64), "f8E8M0FNU"),
    "e5m2 per 32": simple(9, 77, "f8E5M2", (1, 32)),
    "i8 by channel": simple(9, 77, "i8", (1, 0), "bf16"),
    "int4": int4(9, 210, 32),
    "int4 with zeros": int4(9, 210, 64, "bf16", zeros=True),
    "int4 by channel": int4(9, 78, 0, "f32", zeros=True),
    "q8_0": q8_0(9, 512),
    "q4_0": q4_0(9, 512),
    "q4_k": q4_k(9, 512),
    "q6_k": q6_k(9, 512),
    "mxfp4": mxfp4(9, 512),
    "q8_1": quantized_x(9, 512, "i8", 32, "f16", "q8_1"),
}


@levels
@pytest.mark.parametrize("name", EXPANDED)
def test_dequantize(level: str, name: str) -> None:
    """Exactly: f32 holds every value, or is its nearest."""
    q = EXPANDED[name]
    rows = len(q.components[0])
    type_, result = replace(q.type, shape=(DYNAMIC, q.type.shape[1])), plain(-1, q.type.shape[1])
    if q.type.scheme.block[0] > 1:
        type_ = q.type
    result = replace(result, dtype="f32", shape=type_.shape)
    text = kernel_text("dequantize", [type_], [result])
    (got,) = run(text, level, [q.components], [result], rows)
    assert same_bits(got, q.values.float())


@levels
def test_dequantize_experts(level: str) -> None:
    """Blocks that span rows do not span experts."""
    each = [simple(20, 64, "f8E4M3FN", (16, 32), seed=e) for e in range(3)]
    components = tuple(torch.stack(c) for c in zip(*(q.components for q in each), strict=True))
    type_ = Shaped((3, 20, 64), "f8E4M3FN", each[0].type.scheme)
    result = plain(3, 20, 64, dtype="f32")
    text = kernel_text("dequantize", [type_], [result])
    (got,) = run(text, level, [components], [result], 60, rows=[3, 20])
    assert same_bits(got, torch.stack([q.values for q in each]).float())
