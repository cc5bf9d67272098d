"""Clamped GLUs, and gpt-oss's: every step rounded, NaN kept, fused to the same bits."""

import math

import pytest
import torch
from cpu_kernels import (
    TESTED_LEVELS,
    TORCH,
    Tensor,
    kernel_text,
    matmul_text,
    plain,
    quantize_reference,
    quantized,
    run,
    same_bits,
    segment_sizes,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused_equals_unfused import round_text
from test_matmul import activations, weight

from qfuse.dialects.activations import build_glu
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import create_glu
from qfuse.dialects.glu import GLU_ACTS, SWIGLU_OAI, Glu
from qfuse.lowering.cpu.weights import pack_weight

levels = pytest.mark.parametrize("level", TESTED_LEVELS)
BLOCK = (128, 128)
GLUS = [Glu("silu", 10.0), Glu("gelu", 0.3), Glu("relu", 1.1), Glu(SWIGLU_OAI, 7.0)]
GLUS += [Glu(SWIGLU_OAI), Glu(SWIGLU_OAI, 0.7, 1.3), Glu("gelu_tanh")]


def glu_attributes(glu: Glu) -> str:
    """The attributes of a `qfuse.glu` as text, without the sizes of its segments."""
    numbers = {"limit": glu.limit, "alpha": glu.alpha}
    given = [f"{k} = {v} : f64" for k, v in numbers.items() if v != getattr(Glu(glu.act), k)]
    return ", ".join([f'act = "{glu.act}"', *given])


def glu_text(glu: Glu, gate: str, up: str, dtype: str) -> tuple[str, str]:
    """(operations, value) of `glu`, rounded, for use in a region."""
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            types = [ir.F32Type.get()] * 2
            source = ir.Operation.create("builtin.unrealized_conversion_cast", results=types)
            result = build_glu(glu, *source.results, dtype)
        _, *operations = map(str, module.body.operations)
        text = "\n".join(operations)
        # `%0:2` is what the module calls the two operands
        for place, name in enumerate((gate, up)):
            text = text.replace(source.results[place].get_name(), name)
        return round_text(text, result.get_name(), dtype)


def glu_f64(glu: Glu, gate: Tensor, up: Tensor) -> Tensor:
    """In f64, rounded only where gate and up were; from the definitions, not from ours."""
    dtype, (gate, up) = gate.dtype, (gate.double(), up.double())

    def rounded(x: Tensor) -> Tensor:
        return x.to(dtype).double()

    if glu.limit != math.inf:
        limit = rounded(torch.tensor(glu.limit))
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    if glu.act == SWIGLU_OAI:
        gated = rounded(gate * rounded(torch.sigmoid(rounded(gate * glu.alpha))))
        return rounded(up + 1) * gated
    if glu.act == "gelu_tanh":
        return rounded(torch.nn.functional.gelu(gate, approximate="tanh")) * up
    return rounded(getattr(torch.nn.functional, glu.act)(gate)) * up


def run_glu(level: str, glu: Glu, gate: Tensor, up: Tensor, dtype: str) -> Tensor:
    row = plain(-1, gate.shape[1], dtype=dtype)
    sizes = segment_sizes("result", [True, False])
    text = kernel_text("glu", [row, row], [row], f"{glu_attributes(glu)}, {sizes}")
    (got,) = run(text, level, [gate, up], [row], len(gate))
    assert isinstance(got, Tensor)
    return got


@levels
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("glu", GLUS, ids=str)
def test_against_f64(level: str, dtype: str, glu: Glu) -> None:
    gate, up = activations(9, 77, dtype) * 3, activations(10, 77, dtype)[1:] * 3
    got = run_glu(level, glu, gate, up, dtype).double()
    wanted = glu_f64(glu, gate, up)
    # An intermediate value may round the other way, which moves what follows by one unit of its
    # own: three such values in swiglu_oai, one elsewhere, and the last rounding is half a unit.
    # Gate and up are 20 at most, so that what f32 loses near zero is below 1e-5.
    unit = {"f32": 2.0**-23, "bf16": 2.0**-7, "f16": 2.0**-10}[dtype]
    assert ((got - wanted).abs() <= 4 * unit * wanted.abs() + 1e-5).all()


@levels
@pytest.mark.parametrize("dtype", ["bf16", "f32"])
@pytest.mark.parametrize("glu", GLUS, ids=str)
def test_not_a_number_and_infinity(level: str, dtype: str, glu: Glu) -> None:
    """A NaN in either makes a NaN; what is clamped is finite, as for torch.clamp."""
    nan, inf = math.nan, math.inf
    gate = torch.tensor([[nan, 1.0, nan, inf, 1.0, -1.0]]).to(TORCH[dtype])
    up = torch.tensor([[1.0, nan, nan, inf, -inf, inf]]).to(TORCH[dtype])
    got = run_glu(level, glu, gate, up, dtype)
    assert bool(got[0, :3].isnan().all())
    if glu.limit != math.inf:
        assert bool(got[0, 3:].isfinite().all())
    torch.testing.assert_close(
        got.double(), glu_f64(glu, gate, up), rtol=2e-2, atol=1e-5, equal_nan=True
    )


@levels
@settings(deadline=None, max_examples=12, derandomize=True)
@given(
    st.sampled_from(GLUS),
    st.sampled_from([1, 4, 9]),
    st.sampled_from([40, 128, 300]),
    st.sampled_from(["bf16", "f32"]),
)
def test_fused_into_a_product_that_quantizes(
    level: str, glu: Glu, m: int, n: int, dtype: str
) -> None:
    """One product over the joined weight, against two products, the GLU and a quantization."""
    row, q_type = plain(-1, n, dtype=dtype), quantized(-1, n)
    x_type, k = plain(-1, 200), 200
    gate, gate_value = round_text("", "%acc0", dtype)
    up, up_value = round_text("", "%acc1", dtype)
    made, value = glu_text(glu, gate_value, up_value, dtype)
    joined = quantized(-(-n // 128) * 128 + n, k, block=BLOCK)
    body = "\n".join([gate, up, made])
    fused = matmul_text(x_type, joined, [row, q_type], body, [value, value], parts=[n, n])
    weights = [weight(n, k, seed=seed) for seed in (1, 2)]
    x = activations(m, k)
    got = run(fused, level, [x, pack_weight(weights, BLOCK)], [row, q_type], m, threads=2)

    single = matmul_text(x_type, quantized(n, k, block=BLOCK), [row])
    both = [run(single, level, [x, pack_weight([w], BLOCK)], [row], m)[0] for w in weights]
    wanted = run_glu(level, glu, *both, dtype)
    assert same_bits(got[0], wanted)
    assert same_bits(got[1], quantize_reference(wanted, (1, 128)))


def test_attributes_are_read_as_written() -> None:
    """What is the default is left out, and read again as it."""
    from qfuse.dialects.elementwise_ops import glu_of
    from qfuse.dialects.registry import load_all

    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse("func.func @f(%x: tensor<4x8xf32>) { return }")
        block = next(iter(module.body.operations)).entry_block
        x = block.arguments[0]
        with ir.InsertionPoint.at_block_begin(block):
            for glu in (*GLUS, *map(Glu, GLU_ACTS)):
                op = create_glu(glu, [x, x], x.type)
                assert glu_of(op) == glu
                assert ("limit" in op.attributes) == (glu.limit != math.inf)
        assert module.operation.verify()
