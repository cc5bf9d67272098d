"""A kernel or a few of every family, with what they work on: for what has to hold of them all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import products
import torch
from cpu_kernels import (
    Quantized,
    Tensor,
    group_combine_text,
    group_text,
    kernel_text,
    plain,
    quantize_reference,
    quantized,
    segment_sizes,
)
from expert_selection import ROUTERS, random_logits
from products import CASES, RESULT, WEIGHTS, XS, columns, joined_text
from routing_reference import route
from schemes import Operand, int4, mxfp4, q4_k, q6_k, simple

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


def _product(w_name: str, x_name: str) -> Kernel:
    """Its result is f32; "group" has one of bf16, which the same code writes."""
    k = columns(w_name)
    w = WEIGHTS[w_name](products.N, k)
    more = random(64, products.N, seed=3).bfloat16()
    packed = w.packed()

    def arguments(m: int) -> list[Tensor | Quantized]:
        x = XS[x_name](m, k).components
        return [x, packed, more[0], more[:m].contiguous()]  # type: ignore[list-item]

    return Kernel(joined_text(XS[x_name](1, k), w), [RESULT], arguments)


_PRODUCTS = {
    "fp8": ("e4m3 blocks", "e4m3 per 128"),
    "fp8 by bf16": ("e4m3 blocks", "bf16"),
    "e4m3 per 32 by f32": ("e4m3 per 32", "f32"),
    "e5m2": ("e5m2 by channel", "e4m3 by token"),
    "int8": ("i8 by channel", "i8 by token"),
    "int8 by bf16": ("i8 by channel", "bf16"),
    "q8_0": ("q8_0", "q8_1"),
    "int4": ("int4 per 32", "q8_1"),
    "int4 with zeros": ("int4 per 128 with zeros", "i8 per 128"),
    "int4 by bf16": ("int4 per 32", "bf16"),
    "int4 with zeros by bf16": ("int4 per 32 with zeros", "bf16"),
    "q4_0": ("q4_0", "q8_1"),
    "q4_k": ("q4_k", "q8_1"),
    "q4_k by bf16": ("q4_k", "bf16"),
    "q6_k": ("q6_k", "q8_1"),
    "q6_k by bf16": ("q6_k", "bf16"),
    "mxfp4": ("mxfp4", "q8_1"),
    "mxfp4 by bf16": ("mxfp4", "bf16"),
    "bf16": ("bf16", "bf16"),
    "f16": ("f16", "f16"),
    "f32": ("f32", "f32"),
}
assert {*_PRODUCTS.values()} <= {*CASES}, "kernels that test_schemes.py compiles anyway"

PRODUCTS = {name: _product(*pair) for name, pair in _PRODUCTS.items()}


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
