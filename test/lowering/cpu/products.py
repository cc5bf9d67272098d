"""Every kind of product on a CPU: weights, activations, and one kernel for each pair of them.

It has a bias and a residual, so that its epilogue reads something, too; and is one for all tests,
for compiling it is most of what they take.
"""

from collections.abc import Callable

from cpu_kernels import matmul_text, plain
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

Make = Callable[..., Operand]

WEIGHTS: dict[str, Make] = {
    "e4m3 by channel": lambda n, k, seed=0: simple(n, k, "f8E4M3FN", (1, 0), seed=seed),
    "e4m3 per 32": lambda n, k, seed=0: simple(n, k, "f8E4M3FN", (1, 32), seed=seed),
    "e5m2 by channel": lambda n, k, seed=0: simple(n, k, "f8E5M2", (1, 0), seed=seed),
    "e4m3 blocks": lambda n, k, seed=0: simple(n, k, "f8E4M3FN", (128, 128), seed=seed),
    "e4m3 blocks of e8m0": lambda n, k, seed=0: simple(
        n, k, "f8E4M3FN", (128, 128), "f8E8M0FNU", seed=seed
    ),
    "e4m3 per 128 of e8m0": lambda n, k, seed=0: simple(
        n, k, "f8E4M3FN", (1, 128), "f8E8M0FNU", seed=seed
    ),
    "e4m3 odd rows": lambda n, k, seed=0: simple(n, k, "f8E4M3FN", (24, 64), seed=seed),
    "i8 by channel": lambda n, k, seed=0: simple(n, k, "i8", (1, 0), seed=seed),
    "i8 by channel of bf16": lambda n, k, seed=0: simple(n, k, "i8", (1, 0), "bf16", seed=seed),
    "i8 per 128": lambda n, k, seed=0: simple(n, k, "i8", (1, 128), "f16", seed=seed),
    "i8 blocks": lambda n, k, seed=0: simple(n, k, "i8", (128, 128), seed=seed),
    "q8_0": q8_0,
    "int4 per 32": lambda n, k, seed=0: int4(n, k, 32, seed=seed),
    "int4 per 64 of bf16": lambda n, k, seed=0: int4(n, k, 64, "bf16", seed=seed),
    "int4 per 128 of f32": lambda n, k, seed=0: int4(n, k, 128, "f32", seed=seed),
    "int4 by channel": lambda n, k, seed=0: int4(n, k, 0, "f32", seed=seed),
    "int4 per 32 with zeros": lambda n, k, seed=0: int4(n, k, 32, zeros=True, seed=seed),
    "int4 per 128 with zeros": lambda n, k, seed=0: int4(n, k, 128, "bf16", zeros=True, seed=seed),
    "int4 by channel with zeros": lambda n, k, seed=0: int4(n, k, 0, "f32", zeros=True, seed=seed),
    "q4_0": q4_0,
    "q4_k": q4_k,
    "q6_k": q6_k,
    "mxfp4": mxfp4,
    "bf16": lambda n, k, seed=0: plain_weight(n, k, "bf16", seed),
    "f16": lambda n, k, seed=0: plain_weight(n, k, "f16", seed),
    "f32": lambda n, k, seed=0: plain_weight(n, k, "f32", seed),
}

XS: dict[str, Make] = {
    "f32": lambda m, k: plain_x(m, k, "f32"),
    "bf16": lambda m, k: plain_x(m, k, "bf16"),
    "f16": lambda m, k: plain_x(m, k, "f16"),
    "e4m3 by token": lambda m, k: quantized_x(m, k, "f8E4M3FN", 0),
    "e4m3 per 128": lambda m, k: quantized_x(m, k, "f8E4M3FN", 128),
    "e4m3 per 32 of e8m0": lambda m, k: quantized_x(m, k, "f8E4M3FN", 32, "f8E8M0FNU"),
    "i8 by token": lambda m, k: quantized_x(m, k, "i8", 0),
    "i8 per 128": lambda m, k: quantized_x(m, k, "i8", 128, "bf16"),
    "i8 per 32": lambda m, k: quantized_x(m, k, "i8", 32, "f16"),
    "q8_1": lambda m, k: quantized_x(m, k, "i8", 32, "f16", "q8_1"),
}

CASES = [
    *(("e4m3 by channel", x) for x in ("e4m3 by token", "e4m3 per 128", "bf16", "i8 by token")),
    *(("e4m3 per 32", x) for x in ("e4m3 by token", "e4m3 per 128", "f32")),
    *(("e5m2 by channel", x) for x in ("e4m3 by token", "f16")),
    *(("e4m3 blocks", x) for x in ("bf16", "e4m3 per 128")),
    *(("e4m3 blocks of e8m0", x) for x in ("e4m3 per 128", "e4m3 per 32 of e8m0", "bf16")),
    *(("e4m3 per 128 of e8m0", x) for x in ("e4m3 per 128", "e4m3 by token")),
    ("e4m3 odd rows", "e4m3 by token"),
    *(("i8 by channel", x) for x in ("i8 by token", "i8 per 128", "i8 per 32", "q8_1", "bf16")),
    *(("i8 by channel of bf16", x) for x in ("i8 by token", "f32", "f16")),
    *(("i8 per 128", x) for x in ("i8 by token", "i8 per 128", "bf16", "e4m3 per 128")),
    *(("i8 blocks", x) for x in ("i8 by token", "i8 per 128")),
    *(("q8_0", x) for x in ("q8_1", "i8 by token", "bf16")),
    *(("int4 per 32", x) for x in ("bf16", "f16", "f32", "q8_1", "i8 by token")),
    *(("int4 per 64 of bf16", x) for x in ("bf16", "q8_1")),
    *(("int4 per 128 of f32", x) for x in ("f16", "i8 per 128", "q8_1")),
    *(("int4 by channel", x) for x in ("bf16", "i8 by token", "i8 per 32")),
    *(("int4 per 32 with zeros", x) for x in ("bf16", "f16", "q8_1")),
    *(("int4 per 128 with zeros", x) for x in ("bf16", "i8 per 128", "i8 by token")),
    *(("int4 by channel with zeros", x) for x in ("bf16", "i8 by token")),
    *(("q4_0", x) for x in ("bf16", "q8_1")),
    *(("q4_k", x) for x in ("bf16", "f32", "q8_1", "i8 by token", "e4m3 by token")),
    *(("q6_k", x) for x in ("bf16", "f16", "q8_1", "i8 by token", "i8 per 128")),
    *(("mxfp4", x) for x in ("bf16", "f32", "q8_1", "i8 per 32")),
    *((w, x) for w in ("bf16", "f16", "f32") for x in ("bf16", "f16", "f32")),
]
"""Weights and what they are multiplied by."""

N = 70
"""Columns: a group, and a few of the next."""


def columns(w_name: str) -> int:
    """K of a weight: no multiple of anything, but of the superblocks of ggml."""
    return 512 if "q" in w_name or w_name == "mxfp4" else 456


RESULT = plain(-1, N, dtype="f32")


def joined_text(x: Operand, w: Operand) -> str:
    """(x @ w.T + bias) + residual, from bf16 to f32: adding zeros shows the product as it is."""
    body = "%s = arith.addf %acc0, %e0 : f32\n%y = arith.addf %s, %e1 : f32"
    extra = [(plain(N), "[N]"), (plain(-1, N), "[M,N]")]
    return matmul_text(x.type, w.type, [RESULT], body, ["%y"], extra)
