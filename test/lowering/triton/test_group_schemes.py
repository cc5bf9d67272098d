"""Experts of every quantization scheme on the interpreter against sums in f64."""

from dataclasses import replace

import numpy as np
import pytest
from gpu_kernels import Array, Value, assert_close, execute, matmul_text, plain, quantized, random
from scheme_values import operand, packed
from test_group_numerics import routed, written

from qfuse.dialects.types import Shaped

EXPERTS, CHOICES, N, K = 5, 2, 72, 512
PLAIN = plain(-1, K)
Q8_1 = packed(-1, K, packing="q8_1")
PER_TOKEN = quantized(-1, K, block=(1, K), dtype="i8")

SCHEMES: dict[str, tuple[Shaped, Shaped]] = {
    "FP8 per channel": (
        quantized(-1, K, block=(1, K)),
        quantized(EXPERTS, N, K, block=(1, K)),
    ),
    "W8A8": (PER_TOKEN, quantized(EXPERTS, N, K, block=(1, K), dtype="i8")),
    "Q8_0": (Q8_1, quantized(EXPERTS, N, K, block=(1, 32), dtype="i8", scale="f16")),
    "W4A16": (PLAIN, packed(EXPERTS, N, K, packing="int4", block=128, scale="bf16")),
    "W4A16 with zero points": (PLAIN, packed(EXPERTS, N, K, packing="int4", zero="int")),
    "W4A8": (PER_TOKEN, packed(EXPERTS, N, K, packing="int4", block=K, scale="bf16")),
    "Q4_0": (Q8_1, packed(EXPERTS, N, K, packing="int4")),
    "Q4_K": (Q8_1, packed(EXPERTS, N, K, packing="q4_k")),
    "Q6_K": (Q8_1, packed(EXPERTS, N, K, packing="q6_k")),
    "MXFP4": (PLAIN, packed(EXPERTS, N, K, packing="fp4")),
}


def stacked(value: Shaped) -> tuple[tuple[Array, ...], list[Array]]:
    """Weights [E, N, K]: their memory, and the f64 values of each expert's."""
    one = replace(value, shape=value.shape[1:])
    made = [operand(one, N, seed) for seed in range(EXPERTS)]
    memory = zip(*(components for components, _ in made), strict=True)
    return tuple(np.stack(parts) for parts in memory), [values for _, values in made]


@pytest.mark.parametrize("t", [2, 33])
@pytest.mark.parametrize("name", SCHEMES)
def test_any_scheme(name: str, t: int) -> None:
    """Few rows and several tiles; one expert has none, and some ids are nobody's."""
    x_type, w_type = SCHEMES[name]
    ids = np.random.default_rng(t).choice([0, 1, 3, 4, 9], (t, CHOICES))
    _, tokens, indptr = routed(ids, EXPERTS)
    x: Value = random((t, K), "bf16", 5)
    values = x.astype(np.float64)
    if x_type.scheme is not None:
        x, values = operand(x_type, t, 5)
    w, of_expert = stacked(w_type)
    out = plain(-1, CHOICES, N, dtype="f32")
    routing = [plain(EXPERTS + 1, dtype="i32"), plain(-1, CHOICES, dtype="i32")]
    text = matmul_text(x_type, w_type, [out], routing=routing)
    ((made,),) = execute(text, [x, w, indptr, tokens], [out], ids.size)
    count = indptr[-1]
    np.testing.assert_array_equal(written(made), np.arange(ids.size) < count)
    rows = values[tokens.reshape(-1)]
    expected = [rows[indptr[e] : indptr[e + 1]] @ of_expert[e].T for e in range(EXPERTS)]
    assert_close(made.array[:count], np.concatenate(expected), "f32")
