"""Weights of every scheme from parameters to results: packed, joined, saved, quantized for."""

from pathlib import Path

import pytest
import torch
from programs import Program, Value
from schemes import Operand, int4, mxfp4, q4_k, q6_k, q8_0, simple

from qfuse.compiler.options import FUSIONS
from qfuse.compiler.runtime.executable import Executable
from qfuse.dialects.glu import Glu
from qfuse.dialects.types import Scheme, Shaped

N, K = 100, 256

WEIGHTS = {
    "e4m3 by channel": lambda seed: simple(N, K, "f8E4M3FN", (1, 0), seed=seed),
    "e4m3 of e8m0": lambda seed: simple(N, K, "f8E4M3FN", (128, 128), "f8E8M0FNU", seed=seed),
    "i8 by channel": lambda seed: simple(N, K, "i8", (1, 0), "bf16", seed=seed),
    "q8_0": lambda seed: q8_0(N, K, seed),
    "int4 with zeros": lambda seed: int4(N, K, 32, "bf16", zeros=True, seed=seed),
    "q4_k": lambda seed: q4_k(N, K, seed),
    "q6_k": lambda seed: q6_k(N, K, seed),
    "mxfp4": lambda seed: mxfp4(N, K, seed),
}
PLAIN = None
X_SCHEMES = {
    "e4m3 by channel": Shaped((-1, K), "f8E4M3FN", Scheme((1, K), "f32")),
    "i8 by channel": Shaped((-1, K), "i8", Scheme((1, K), "f32")),
    "q8_0": Shaped((-1, K), "i8", Scheme((1, 32), "f16", "q8_1")),
    "q4_k": Shaped((-1, K), "i8", Scheme((1, 32), "f16", "q8_1")),
}
"""What x is quantized to; elsewhere it stays plain."""


def pack(p: Program, w: Operand) -> Value:
    """A weight as the program's parameters."""
    components = [
        p._argument("parameter", c.shape, str(dtype))
        for c, dtype in zip(w.components, component_types(w.type), strict=True)
    ]
    p.parameters |= {v.name: c for v, c in zip(components, w.components, strict=True)}
    return p._op("pack", components, [w.type], lambda *tensors: w.values)[0]


def component_types(type_: Shaped) -> list[str]:
    assert type_.scheme is not None
    zeros = ["i8"] if type_.scheme.zero_point != "none" else []
    return [type_.data_dtype, type_.scheme.scale, *zeros]


def gate_up(name: str) -> tuple[Program, Value]:
    """silu(x gate) * (x up) of two weights of one scheme."""
    p = Program()
    x = p.input(-1, K)
    if name in X_SCHEMES:
        type_ = Shaped(x.type.shape, X_SCHEMES[name].dtype, X_SCHEMES[name].scheme)
        x = p._op("quantize", [x], [type_], lambda v: v)[0]
    gate, up = (p.matmul(x, pack(p, WEIGHTS[name](seed))) for seed in (1, 2))
    return p, p.glu(Glu("silu"), gate, up)


@pytest.mark.parametrize("name", WEIGHTS)
def test_joined_is_the_same(name: str, tmp_path: Path) -> None:
    """Gate and up as one product, before and after a file, against two products."""
    p, y = gate_up(name)
    apart, joined = p.compile([y], []), p.compile([y], FUSIONS)
    (prepare,) = joined.program.plan.prepares
    components = len(component_types(WEIGHTS[name](1).type))
    assert [len(part) for part in prepare.parts] == [components] * 2
    sizes = [exe.program.sizes()["weight_bytes"] for exe in (apart, joined)]
    assert sizes[0] == sizes[1]
    joined.save(tmp_path / "model.qfuse")
    again = Executable.load(tmp_path / "model.qfuse")
    assert again.program.plan == joined.program.plan
    for m in (1, 4, 9):
        (x,) = p.inputs(m)
        wanted = apart(x)[0]
        assert wanted.abs().max() > 0
        assert torch.equal(joined(x)[0], wanted) and torch.equal(again(x)[0], wanted)
        if name not in X_SCHEMES:
            (exact,) = p.reference([y], [x])
            assert torch.allclose(wanted.double(), exact, rtol=2e-2, atol=1e-2 * exact.abs().max())


@pytest.mark.parametrize("storage", ["f8E4M3FN", "i8"])
def test_one_scale_for_all_of_x(storage: str) -> None:
    """Found first, then given: the scale of a whole tensor, also of one without rows."""
    p = Program()
    x = p.input(-1, K)
    scale_type = Shaped((1,), "f32")
    scale = p._op("tensor_scale", [x], [scale_type], lambda v: v, f"storage = {storage}")[0]
    type_ = Shaped(x.type.shape, storage, Scheme((1, K), "f32"))
    q = p._op("quantize", [x, scale], [type_], lambda v, s: v)[0]
    y = p.matmul(q, pack(p, WEIGHTS[f"{'i8' if storage == 'i8' else 'e4m3'} by channel"](1)))
    exe = p.compile([y], FUSIONS)
    for m in (0, 1, 9):
        (x,) = p.inputs(m)
        (got,) = exe(x)
        (exact,) = p.reference([y], [x])
        assert got.shape == (m, N)
        if m:
            assert (got.double() - exact).abs().max() <= 0.05 * exact.abs().max()
