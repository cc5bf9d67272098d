"""GLUs and products that quantize by a scale given beforehand: to the bit what is made apart.

Ragged shapes, every storage type and activation, the value read by somebody else or not; and
near what f64 makes of it, up to the roundings that the program states.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import ACTIVATIONS, Program, Value
from schemes import decode
from test_norm_quantize import same_bits

from qfuse.compiler.runtime.executable import Executable
from qfuse.dialects.glu import Glu
from qfuse.dialects.types import STORAGE_MAX, Scheme, Shaped

pytestmark = pytest.mark.quick_level

SCALE = 0.0625
STEPS = {"f8E4M3FN": (2.0**-4, 2.0**-10), "f8E5M2": (2.0**-3, 2.0**-17), "i8": (0.0, 0.5)}
"""Half a step between codes: relative to the value, and in scales at least."""


class Quantizing(Program):
    """Collects codes and scales as results, and the values that they are of."""

    def __init__(self, seed: int, storage: str) -> None:
        super().__init__("bf16", seed)
        self.storage = storage
        self.outputs: list[Value] = []
        self.made: list[tuple[int, Value, Shaped]] = []

    def scale(self) -> Value:
        made = self.parameter(1, dtype="f32")
        self.parameters[made.name] = torch.tensor([SCALE])
        return made

    def quantized(self, y: Value, scale: Value) -> None:
        type_ = replace(y.type, dtype=self.storage, scheme=Scheme((1, y.type.shape[-1]), "f32"))
        (q,) = self._op("quantize", [y, scale], [type_], lambda v, _: v)
        parts = [Shaped(type_.data_shape, self.storage), Shaped(type_.scale_shape, "f32")]
        self.made.append((len(self.outputs), y, type_))
        self.outputs += self._op("unpack", [q], parts, None)

    def reference(self, outputs, inputs):
        """As ever, but for unpacked values, which `decode` opens."""
        self.steps = [step for step in self.steps if step[1] is not None]
        return super().reference(outputs, inputs)


def program(storage: str, act: str, n: int, k: int, is_read: bool, seed: int) -> Quantizing:
    """A gated product, a product and its bias, a plain product, and a GLU of two inputs."""
    p = Quantizing(seed, storage)
    x, one, other = p.input(-1, k), p.scale(), p.scale()

    def weight() -> Value:
        made = p.parameter(n, k)
        p.parameters[made.name] = (p.parameters[made.name].float() / k**0.5).bfloat16()
        return made

    gated = p.glu(Glu(act), p.matmul(x, weight()), p.matmul(x, weight()))
    y = p.matmul(x, weight())
    biased = p.add(y, p.parameter(n), y.type)
    alone = p.glu(Glu(act), p.input(2, -1, n), p.input(2, -1, n))
    for value, scale in ((gated, one), (biased, other), (p.matmul(x, weight()), one), (alone, one)):
        p.quantized(value, scale)
        if is_read:
            p.outputs.append(value)
    return p


@settings(max_examples=6, deadline=None)
@given(
    storage=st.sampled_from([*STEPS]),
    act=st.sampled_from([*ACTIVATIONS]),
    n=st.integers(2, 300),
    k=st.integers(2, 150),
    is_read=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fused_is_unfused(storage: str, act: str, n: int, k: int, is_read: bool, seed: int) -> None:
    p = program(storage, act, n, k, is_read, seed)
    joining = ["gate-up", "epilogue"]
    fused = p.compile(p.outputs, [*joining, "act-quantize"])
    unfused = p.compile(p.outputs, joining)
    fired = Counter(
        r["pattern"] for r in fused.program.report["remarks"] if r["outcome"] == "fired"
    )
    assert (fired["product-quantize"], fired["glu-quantize"]) == (3, 1)
    assert len(unfused.program.plan.steps) - len(fused.program.plan.steps) == 4
    for m in (1, 3, 17, 0):
        inputs = p.inputs(m)
        got = fused(*inputs)
        for i, (a, b) in enumerate(zip(got, unfused(*inputs), strict=True)):
            assert same_bits(a, b), f"M = {m}: result {i} differs, fused and unfused"
        exact = p.reference([y for _, y, _ in p.made], inputs)
        for (at, _, type_), value in zip(p.made, exact, strict=True):
            near_the_exact_value(got[at], got[at + 1], type_, value)


def near_the_exact_value(
    codes: torch.Tensor, scale: torch.Tensor, type_: Shaped, value: torch.Tensor
) -> None:
    """Up to half a step between codes, and what bf16 makes of the value on its way.

    A GLU rounds gate, up, act(gate) and the product, each perhaps the other way: an ulp of the
    result each.  Where act(gate) has a slope, an ulp of gate is as much of act(gate) or, near a
    zero of it, an absolute 2^-8.
    """
    assert (scale == SCALE).all() and scale.shape == (*codes.shape[:-1], 1)
    limit = SCALE * STORAGE_MAX[type_.dtype]
    at = Shaped((codes.numel() // codes.shape[-1], codes.shape[-1]), type_.dtype, type_.scheme)
    decoded, _ = decode(at, (codes.flatten(0, -2), scale.flatten(0, -2)))
    value = value.flatten(0, -2).clamp(-limit, limit)
    relative, absolute = STEPS[type_.dtype]
    bound = value.abs() * (relative + 8 * 2.0**-8) + SCALE * absolute + 2.0**-7
    assert ((decoded - value).abs() <= bound).all()


@pytest.mark.parametrize("storage", STEPS)
def test_saved_and_loaded(storage: str, tmp_path) -> None:
    """A scale is a weight of the file."""
    p = program(storage, "silu", 72, 40, True, 1)
    exe = p.compile(p.outputs, ["gate-up", "epilogue", "act-quantize"])
    exe.save(tmp_path / "model.qfuse")
    again = Executable.load(tmp_path / "model.qfuse")
    assert again.program.plan == exe.program.plan
    inputs = p.inputs(5)
    assert all(map(same_bits, again(*inputs), exe(*inputs)))
