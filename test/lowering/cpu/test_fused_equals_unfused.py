"""A fused kernel computes the bits that the separate kernels compute, for equal M."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from cpu_kernels import (
    TESTED_LEVELS,
    TORCH,
    Tensor,
    kernel_text,
    matmul_text,
    plain,
    quantized,
    run,
    same_bits,
    segment_sizes,
)
from test_matmul import activations, weight

from qfuse.dialects.activations import build_activation
from qfuse.dialects.bindings import ir
from qfuse.dialects.types import Shaped
from qfuse.lowering.cpu.weights import pack_weight

levels = pytest.mark.parametrize("level", TESTED_LEVELS)
rows = pytest.mark.parametrize("m", [1, 2, 4, 9, 17])
kinds = pytest.mark.parametrize("kind", ["fp8", "plain"])
BLOCK = (128, 128)
K = 200


def activation_text(name: str, x: str, dtype: str) -> tuple[str, str]:
    """(operations, value) of `round(name(x))` for use in a region."""
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
    with module.context, ir.Location.unknown(), ir.InsertionPoint(module.body):
        f32 = ir.F32Type.get()
        source = ir.Operation.create("builtin.unrealized_conversion_cast", results=[f32])
        value = build_activation(name, source.results[0])
        lines = [str(op) for op in list(module.body.operations)[1:]]
    text = "\n".join(line.replace(source.results[0].get_name(), x) for line in lines)
    return round_text(text, value.get_name(), dtype)


def round_text(text: str, value: str, dtype: str) -> tuple[str, str]:
    if dtype == "f32":
        return text, value
    name = f"%rounded{abs(hash((text, value))) % 10**8}"
    return (
        f"{text}\n{name}_t = arith.truncf {value} : f32 to {dtype}\n"
        f"{name} = arith.extf {name}_t : {dtype} to f32",
        name,
    )


def binary_text(op: str, a: str, b: str, dtype: str) -> tuple[str, str]:
    name = f"%bin{abs(hash((op, a, b))) % 10**8}"
    return round_text(f"{name} = arith.{op} {a}, {b} : f32", name, dtype)


@dataclass(frozen=True)
class Operands:
    """x and weights of a kind: FP8 in blocks, both, or unquantized of one type."""

    x_type: Shaped
    x: Tensor | tuple[Tensor, ...]
    w_type: Shaped
    """That of all weights joined."""
    packed: tuple[Tensor, ...]
    alone: list[tuple[Shaped, tuple[Tensor, ...]]]
    """The weights, one by one."""


def operands(kind: str, level: str, m: int, widths: Sequence[int], dtype: str = "bf16") -> Operands:
    parts = [weight(n, K, seed=n + i) for i, n in enumerate(widths)]
    if kind == "plain":
        block, packing, begin = (1, K), dtype, 1
        of_x, x = plain(-1, K, dtype=dtype), activations(m, K, dtype)
        values = [(w.float() * 0.05).to(TORCH[dtype]) for w, _ in parts]
        each, types = [(w,) for w in values], [plain(n, K, dtype=dtype) for n in widths]
    else:
        block, packing, begin = BLOCK, "none", BLOCK[0]
        of_x, x = quantized(-1, K), quantize(level, activations(m, K), m)
        each, types = parts, [quantized(n, K, block=BLOCK) for n in widths]
    total = sum(-(-n // begin) * begin for n in widths[:-1]) + widths[-1]
    joined = replace(types[0], shape=(total, K))
    alone = [pack_weight([part], block, packing) for part in each]
    packed = pack_weight(each, block, packing)
    return Operands(of_x, x, joined, packed, list(zip(types, alone, strict=True)))


@levels
@kinds
@pytest.mark.parametrize(
    ("act", "dtype"),
    [
        ("silu", "bf16"),
        ("gelu", "bf16"),
        ("gelu_tanh", "bf16"),
        ("relu", "bf16"),
        ("silu", "f32"),
        ("silu", "f16"),
    ],
)
@pytest.mark.parametrize("m", [1, 9])
def test_bias_activation_residual(level: str, kind: str, m: int, act: str, dtype: str) -> None:
    """act(x w + bias) * scale[m] + residual."""
    n = 130
    row = plain(-1, n, dtype=dtype)
    bias_type, column = plain(n, dtype=dtype), plain(-1, 1, dtype="f32")
    given = operands(kind, level, m, [n], dtype)
    texts, value = [], "%acc0"
    for step in range(5):
        if step == 0:
            more, value = round_text("", value, dtype)
        elif step == 1:
            more, value = binary_text("addf", value, "%e0", dtype)
        elif step == 2:
            more, value = activation_text(act, value, dtype)
        elif step == 3:
            more, value = binary_text("mulf", value, "%e1", dtype)
        else:
            more, value = binary_text("addf", value, "%e2", dtype)
        texts.append(more)
    extra = [(bias_type, "[N]"), (column, "[M,1]"), (row, "[M,N]")]
    fused = matmul_text(given.x_type, given.w_type, [row], "\n".join(texts), [value], extra)
    bias, residual = activations(1, n, dtype)[0], activations(m, n, dtype).flip(0)
    scale, product = torch.rand(m, 1), [given.x, given.packed]
    (got,) = run(fused, level, [*product, bias, scale, residual], [row], m, threads=2)

    (y,) = run(matmul_text(given.x_type, given.w_type, [row]), level, product, [row], m)
    (y,) = run(kernel_text("add", [row, bias_type], [row]), level, [y, bias], [row], m)
    (y,) = run(kernel_text(act, [row], [row]), level, [y], [row], m)
    (y,) = run(kernel_text("mul", [row, column], [row]), level, [y, scale], [row], m)
    (y,) = run(kernel_text("add", [row, row], [row]), level, [y, residual], [row], m)
    assert same_bits(got, y)


def quantize(level: str, x: Tensor, m: int) -> tuple[Tensor, Tensor]:
    result = quantized(-1, x.shape[1])
    (q,) = run(kernel_text("quantize", [plain(-1, x.shape[1])], [result]), level, [x], [result], m)
    return q


@levels
@kinds
@rows
@pytest.mark.parametrize("n", [128, 300])
def test_gate_and_up_with_glu_and_quantize(level: str, kind: str, m: int, n: int) -> None:
    """One product over the joined weight with glu and quantize, against four kernels."""
    row, q_type = plain(-1, n), quantized(-1, n)
    given = operands(kind, level, m, [n, n])
    gate, gate_value = round_text("", "%acc0", "bf16")
    up, up_value = round_text("", "%acc1", "bf16")
    act, act_value = activation_text("silu", gate_value, "bf16")
    product, value = binary_text("mulf", act_value, up_value, "bf16")
    fused = matmul_text(
        given.x_type,
        given.w_type,
        [row, q_type],
        "\n".join([gate, up, act, product]),
        [value, value],
        parts=[n, n],
    )
    got = run(fused, level, [given.x, given.packed], [row, q_type], m, threads=2)

    gate_up = []
    for w_type, packed in given.alone:
        single = matmul_text(given.x_type, w_type, [row])
        gate_up += run(single, level, [given.x, packed], [row], m)
    sizes = segment_sizes("result", [True, False])
    attributes = f'act = "silu", {sizes}'
    (y,) = run(kernel_text("glu", [row, row], [row], attributes), level, gate_up, [row], m)
    (q,) = run(kernel_text("quantize", [row], [q_type]), level, [y], [q_type], m)
    assert same_bits(got[0], y) and same_bits(got[1], q)


@levels
@kinds
@rows
@pytest.mark.parametrize("widths", [(192, 64, 64), (100, 130, 7), (256, 64, 128)])
def test_parts_of_different_widths(level: str, kind: str, m: int, widths: tuple[int, ...]) -> None:
    """Merged q, k and v, each with a bias of its own, against three products."""
    given = operands(kind, level, m, widths)
    results = [plain(-1, n) for n in widths]
    texts, values = [], []
    for i in range(3):
        first, value = round_text("", f"%acc{i}", "bf16")
        second, value = binary_text("addf", value, f"%e{i}", "bf16")
        texts += [first, second]
        values.append(value)
    extra = [(plain(n), "[N]") for n in widths]
    fused = matmul_text(
        given.x_type,
        given.w_type,
        results,
        "\n".join(texts),
        values,
        extra,
        widths,
    )
    biases = [activations(1, n)[0] for n in widths]
    got = run(fused, level, [given.x, given.packed, *biases], results, m, threads=2)
    for i, (w_type, packed) in enumerate(given.alone):
        single = matmul_text(given.x_type, w_type, [results[i]])
        (y,) = run(single, level, [given.x, packed], [results[i]], m)
        add = kernel_text("add", [results[i], extra[i][0]], [results[i]])
        (y,) = run(add, level, [y, biases[i]], [results[i]], m)
        assert same_bits(got[i], y)


@levels
@pytest.mark.parametrize("m", [1, 9])
@pytest.mark.parametrize(("n", "group"), [(300, 128), (300, 64), (40, 32), (100, 100), (96, 48)])
def test_quantized_results(level: str, m: int, n: int, group: int) -> None:
    """Two quantized results and a plain one of one product."""
    row, q_type = plain(-1, n), quantized(-1, n, block=(1, group))
    x_type, w_type = plain(-1, K), quantized(n, K, block=BLOCK)
    first, rounded = round_text("", "%acc0", "bf16")
    second, doubled = binary_text("addf", rounded, rounded, "bf16")
    fused = matmul_text(
        x_type, w_type, [q_type, row, q_type], f"{first}\n{second}", [rounded, rounded, doubled]
    )
    x, packed = activations(m, K), pack_weight([weight(n, K)], BLOCK)
    got = run(fused, level, [x, packed], [q_type, row, q_type], m)
    (y,) = run(matmul_text(x_type, w_type, [row]), level, [x, packed], [row], m)
    quantize_text = kernel_text("quantize", [row], [q_type])
    assert same_bits(got[1], y)
    assert same_bits(got[0], run(quantize_text, level, [y], [q_type], m)[0])
    assert same_bits(got[2], run(quantize_text, level, [y + y], [q_type], m)[0])


@levels
def test_scalar_extra_and_predicates(level: str) -> None:
    n, m = 70, 5
    row = plain(-1, n, dtype="f32")
    body = (
        "%p = arith.cmpf ogt, %acc0, %e0 : f32\n"
        "%c = arith.constant -1.5 : f32\n"
        "%s = arith.select %p, %acc0, %c : f32"
    )
    x_type, w_type = plain(-1, K, dtype="f32"), quantized(n, K, block=BLOCK)
    text = matmul_text(x_type, w_type, [row], body, ["%s"], [(plain(1, dtype="f16"), "[]")])
    x, packed = activations(m, K, "f32"), pack_weight([weight(n, K)], BLOCK)
    limit = torch.tensor([0.25], dtype=TORCH["f16"])
    (got,) = run(text, level, [x, packed, limit], [row], m)
    (y,) = run(matmul_text(x_type, w_type, [row]), level, [x, packed], [row], m)
    assert same_bits(got, torch.where(y > 0.25, y, -1.5))
