"""A kernel or a few of every family, with what they work on: for what has to hold of them all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from cpu_kernels import (
    Quantized,
    Tensor,
    group_combine_text,
    group_text,
    kernel_text,
    matmul_text,
    plain,
    quantize_reference,
    quantized,
    segment_sizes,
)
from expert_selection import ROUTERS, random_logits
from routing_reference import route
from schemes import (
    Operand,
    int4,
    mxfp4,
    plain_weight,
    plain_x,
    q4_0,
    q4_k,
    q6_k,
    q8_0,
    quantized_x,
    simple,
)

from qfuse.dialects.types import Shaped
from qfuse.lowering.cpu.weights import pack_experts

N, K = 130, 256
EXPERTS, CHOICES = 4, 2
BLOCK = (128, 128)


@dataclass(frozen=True)
class Kernel:
    """`arguments(m)` are those for `m` rows, or tokens; results have leading extents `rows(m)`."""

    text: str
    results: Sequence[Shaped]
    arguments: Callable[[int], Sequence[Tensor | Quantized]]
    rows: Callable[[int], list[int]] = lambda m: [m]
    m: Callable[[int], int] = lambda m: m


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.manual_seed(seed))


def product(w: Operand, x: Callable[[int], Operand]) -> Kernel:
    """With a bias and a residual, so that its epilogue reads something, too."""
    row, bias = plain(-1, N), plain(N)
    body = "%s = arith.addf %acc0, %e0 : f32\n%y = arith.addf %s, %e1 : f32"
    extra = [(bias, "[N]"), (row, "[M,N]")]
    text = matmul_text(x(1).type, w.type, [row], body, ["%y"], extra)
    more = random(64, N, seed=3).bfloat16()
    packed = w.packed()

    def arguments(m: int) -> list[Tensor | Quantized]:
        return [x(m).components, packed, more[0], more[:m].contiguous()]  # type: ignore[list-item]

    return Kernel(text, [row], arguments)


def by_codes(group: int, scale: str = "f32", packing: str = "none") -> Callable[[int], Operand]:
    return lambda m: quantized_x(m, K, "i8", group, scale, packing)


def fp8_by(group: int) -> Callable[[int], Operand]:
    return lambda m: quantized_x(m, K, "f8E4M3FN", group)


def plain_by(dtype: str) -> Callable[[int], Operand]:
    return lambda m: plain_x(m, K, dtype)


_Q8_1 = by_codes(32, "f16", "q8_1")

PRODUCTS = {
    "fp8": product(simple(N, K, "f8E4M3FN", BLOCK), fp8_by(128)),
    "fp8 by bf16": product(simple(N, K, "f8E4M3FN", BLOCK), plain_by("bf16")),
    "e4m3 per 32 by f32": product(simple(N, K, "f8E4M3FN", (1, 32)), plain_by("f32")),
    "e5m2": product(simple(N, K, "f8E5M2", (1, 0)), fp8_by(0)),
    "int8": product(simple(N, K, "i8", (1, 0)), by_codes(0)),
    "int8 by bf16": product(simple(N, K, "i8", (1, 0)), plain_by("bf16")),
    "q8_0": product(q8_0(N, K), _Q8_1),
    "int4": product(int4(N, K, 32), _Q8_1),
    "int4 with zeros": product(int4(N, K, 128, zeros=True), by_codes(128)),
    "int4 by bf16": product(int4(N, K, 32), plain_by("bf16")),
    "int4 with zeros by bf16": product(int4(N, K, 32, zeros=True), plain_by("bf16")),
    "q4_0": product(q4_0(N, K), _Q8_1),
    "q4_k": product(q4_k(N, K), _Q8_1),
    "q4_k by bf16": product(q4_k(N, K), plain_by("bf16")),
    "q6_k": product(q6_k(N, K), _Q8_1),
    "q6_k by bf16": product(q6_k(N, K), plain_by("bf16")),
    "mxfp4": product(mxfp4(N, K), _Q8_1),
    "mxfp4 by bf16": product(mxfp4(N, K), plain_by("bf16")),
    "bf16": product(plain_weight(N, K, "bf16"), plain_by("bf16")),
    "f16": product(plain_weight(N, K, "f16"), plain_by("f16")),
    "f32": product(plain_weight(N, K, "f32"), plain_by("f32")),
}


# -- experts ---------------------------------------------------------------------------------------


def _ids(tokens: int) -> Tensor:
    return torch.randint(-1, EXPERTS, (tokens, CHOICES), generator=torch.manual_seed(tokens))


def _experts() -> Quantized:
    each = [quantize_reference(random(N, K, seed=e), BLOCK) for e in range(EXPERTS)]
    return pack_experts(torch.stack([c for c, _ in each]), torch.stack([s for _, s in each]), BLOCK)


_EXPERTS = _experts()
_BLOCKS = quantized(EXPERTS, N, K, block=BLOCK)


def _group() -> Kernel:
    result = plain(-1, CHOICES, N)

    def arguments(tokens: int) -> list[Tensor | Quantized]:
        _, rows, indptr = route(_ids(tokens), EXPERTS)
        return [quantize_reference(random(tokens, K), (1, 128)), _EXPERTS, indptr, rows]

    text = group_text(quantized(-1, K), _BLOCKS, [result], CHOICES)
    return Kernel(text, [result], arguments, lambda t: [t, CHOICES], lambda t: t * CHOICES)


def _group_combine() -> Kernel:
    x, result = quantized(-1, CHOICES, K), plain(-1, N)
    slots, factors = plain(-1, CHOICES, dtype="i32"), plain(-1, CHOICES, dtype="f32")

    def arguments(tokens: int) -> list[Tensor | Quantized]:
        of_slots, _, indptr = route(_ids(tokens), EXPERTS)
        codes, scale = quantize_reference(random(tokens * CHOICES, K), (1, 128))
        rows = codes.view(tokens, CHOICES, K), scale.view(tokens, CHOICES, -1)
        weights = random(tokens, CHOICES, seed=5)
        return [rows, _EXPERTS, indptr, of_slots, weights, random(tokens, N, seed=6).bfloat16()]

    text = group_combine_text(x, _BLOCKS, slots, factors, result, residual=True)
    return Kernel(text, [result], arguments)


def _route() -> Kernel:
    ints = plain(-1, CHOICES, dtype="i32")
    results = [ints, ints, plain(EXPERTS + 1, dtype="i32")]
    ids = plain(-1, CHOICES, dtype="i64")
    text = kernel_text("route", [ids], results, f"num_experts = {EXPERTS} : i64")
    return Kernel(text, results, lambda tokens: [_ids(tokens)])


def _combine() -> Kernel:
    given = [plain(-1, CHOICES, N), plain(-1, CHOICES, dtype="i32"), plain(-1, CHOICES)]
    result = plain(-1, N)

    def arguments(tokens: int) -> list[Tensor]:
        y = random(tokens, CHOICES, N).bfloat16()
        slots, _, _ = route(_ids(tokens), EXPERTS)
        return [y, slots, random(tokens, CHOICES).bfloat16(), random(tokens, N).bfloat16()]

    text = kernel_text("combine", [*given, result], [result], segment_sizes("operand", [True] * 4))
    return Kernel(text, [result], arguments)


def _select_experts() -> Kernel:
    router = next(router for router in ROUTERS if router.bias)
    results = [plain(-1, router.choices, dtype="i64"), plain(-1, router.choices)]
    inputs = [plain(-1, router.experts), plain(router.experts, dtype="f32")]

    def arguments(tokens: int) -> list[Tensor]:
        logits, bias = random_logits(router, tokens, 1)
        as_f32 = (torch.from_numpy(np.asarray(a, np.float32)) for a in (logits, bias))
        first, second = as_f32
        return [first.bfloat16(), second]

    text = kernel_text("select_experts", inputs, results, router.attributes)
    return Kernel(text, results, arguments)


# -- rows ------------------------------------------------------------------------------------------

_ROW, _Q = plain(-1, N), quantized(-1, N, block=(1, 64))


def _rows(count: int, seed: int = 0) -> Tensor:
    return random(count, N, seed=seed).bfloat16()


def _norm() -> Kernel:
    results = [_ROW, _Q, _ROW]
    operands, made = [True] * 3 + [False] * 2, [True, True, False, True]
    sizes = segment_sizes("operand", operands), segment_sizes("result", made)
    attributes = 'eps = 1.0e-5 : f64, offset = 0.0 : f64, rounding = "before", ' + ", ".join(sizes)
    text = kernel_text("rms_norm", [_ROW, plain(N), _ROW], results, attributes)
    return Kernel(text, results, lambda m: [_rows(m), _rows(1)[0], _rows(m, 2)])


def _glu() -> Kernel:
    sizes = segment_sizes("operand", [True, True, False]), segment_sizes("result", [True] * 2)
    text = kernel_text("glu", [_ROW, _ROW], [_ROW, _Q], 'act = "silu", ' + ", ".join(sizes))
    return Kernel(text, [_ROW, _Q], lambda m: [_rows(m), _rows(m, 1)])


def _quantize(result: Shaped) -> Kernel:
    text = kernel_text("quantize", [plain(-1, N, dtype="f16")], [result])
    return Kernel(text, [result], lambda m: [random(m, N).half()])


def _dequantize(w: Operand) -> Kernel:
    """Of an activation, whose rows are those of `w`."""
    result = Shaped(w.type.shape, "f16")
    text = kernel_text("dequantize", [w.type], [result])
    rows = w.type.shape[0]
    return Kernel(
        text,
        [result],
        lambda m: [w.components],  # type: ignore[list-item]
        lambda m: [rows],
        lambda m: rows,
    )


def _rope() -> Kernel:
    heads, width = 3, 24
    x, table = plain(1, -1, heads, width), plain(1, -1, width)

    def arguments(m: int) -> list[Tensor]:
        of_table = (random(1, m, width, seed=s).bfloat16() for s in (1, 2))
        return [random(1, m, heads, width).bfloat16(), *of_table]

    text = kernel_text("rope", [x, table, table], [x])
    return Kernel(text, [x], arguments, lambda m: [1, m, heads], lambda m: m * heads)


def _elementwise(op: str, dtypes: Sequence[str], result: str) -> Kernel:
    torch_types = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    rows = [plain(-1, N, dtype=dtype) for dtype in dtypes]
    to = plain(-1, N, dtype=result)

    def arguments(m: int) -> list[Tensor]:
        return [random(m, N, seed=i).to(torch_types[d]) for i, d in enumerate(dtypes)]

    return Kernel(kernel_text(op, rows, [to]), [to], arguments)


def _tensor_scale() -> Kernel:
    result = plain(1, dtype="f32")
    text = kernel_text("tensor_scale", [_ROW], [result], "storage = f8E4M3FN")
    return Kernel(text, [result], lambda m: [_rows(m)])


OTHERS = {
    "group": _group(),
    "group combine": _group_combine(),
    "route": _route(),
    "combine": _combine(),
    "select experts": _select_experts(),
    "norm": _norm(),
    "glu": _glu(),
    "quantize": _quantize(_Q),
    "quantize by row": _quantize(quantized(-1, N, block=(1, N))),
    "dequantize fp8": _dequantize(simple(9, N, "f8E4M3FN", (1, 32))),
    "dequantize int4": _dequantize(int4(9, N, 32, zeros=True)),
    "dequantize q4_k": _dequantize(q4_k(9, K)),
    "dequantize q6_k": _dequantize(q6_k(9, K)),
    "dequantize mxfp4": _dequantize(mxfp4(9, K)),
    "rope": _rope(),
    "gelu": _elementwise("gelu", ["bf16"], "bf16"),
    "add": _elementwise("add", ["f16", "f16"], "f16"),
    "cast": _elementwise("cast", ["f32"], "bf16"),
    "tensor scale": _tensor_scale(),
}

EVERY = {**PRODUCTS, **OTHERS}
