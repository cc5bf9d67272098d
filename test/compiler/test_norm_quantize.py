"""Norms that quantize, in every scheme: to the bit what the unfused program makes, also ragged.

A program has several norms: of different widths, with and without a residual and its new one, with
a value that others read, and with a second format.  Its results are the codes and the scales.
"""

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from programs import TORCH, Program, Value
from schemes import decode

from qfuse.dialects.types import STORAGE_MAX, Scheme, Shaped

ROWS = (1, 2, 7, 33, 0)


@dataclass(frozen=True)
class Format:
    """What an activation is quantized to; a group of 0 is a whole row, `given` its scale."""

    dtype: str
    group: int
    scale: str = "f32"
    packing: str = "none"
    given: float | None = None

    def of(self, x: Shaped) -> Shaped:
        scheme = Scheme((1, self.group or x.shape[-1]), self.scale, self.packing)
        return replace(x, dtype=self.dtype, scheme=scheme)


FORMATS = {
    "fp8 1x128": Format("f8E4M3FN", 128),
    "fp8 per token": Format("f8E4M3FN", 0),
    "fp8 1x128, e8m0": Format("f8E4M3FN", 128, "f8E8M0FNU"),
    "fp8 per token, e8m0": Format("f8E4M3FN", 0, "f8E8M0FNU"),
    "e5m2 1x64": Format("f8E5M2", 64),
    "i8 per token": Format("i8", 0),
    "i8 1x128": Format("i8", 128),
    "i8 1x32, as q8_0": Format("i8", 32, "f16"),
    "q8_1": Format("i8", 32, "f16", "q8_1"),
    "fp8 static": Format("f8E4M3FN", 0, given=0.25),
    "fp8 static, another scale": Format("f8E4M3FN", 0, given=0.375),
    "i8 static": Format("i8", 0, given=0.75),
}
OTHERS = dict(zip(FORMATS, [*list(FORMATS)[1:], next(iter(FORMATS))], strict=True))
"""A second format for each: each pair of neighbours, of which some nest and some do not."""


@dataclass(frozen=True)
class Kind:
    """Which norm: where it rounds, what is added to its weight, eps, and the weight's type."""

    rounding: str
    offset: float
    eps: float
    weight: str | None = None


KINDS = {
    "llama": Kind("before", 0.0, 1e-6),
    "gemma": Kind("after", 1.0, 1e-6),
    "f32 weight": Kind("before", 0.0, 1e-5, "f32"),
    "large eps, f32 weight, after": Kind("after", 0.0, 0.25, "f32"),
}


class Norms(Program):
    """Collects what norms make: results, and for each the norm's value in f64 and the format."""

    def __init__(self, dtype: str, kind: Kind) -> None:
        super().__init__(dtype)
        self.kind = kind
        self.outputs: list[Value] = []
        self.made: list[tuple[int, Value, Shaped, float | None]] = []
        self.fired: Counter[str] = Counter()

    def norm(self, x: Value, *formats: Format) -> Value:
        k = self.kind
        weight = self.parameter(x.type.shape[-1], dtype=k.weight)
        y = super().rms_norm(x, weight, rounding=k.rounding, offset=k.offset, eps=k.eps)
        for wanted in formats:
            type_ = wanted.of(y.type)
            scale = [] if wanted.given is None else [self.parameter(1, dtype="f32")]
            self.parameters |= {s.name: torch.tensor([wanted.given]) for s in scale}
            (q,) = self._op("quantize", [y, *scale], [type_], lambda v, *_: v)
            parts = [
                Shaped(type_.data_shape, type_.data_dtype),
                Shaped(type_.scale_shape, wanted.scale),
            ]
            codes, scale = self._op("unpack", [q], parts, None)
            self.made.append((len(self.outputs), y, type_, wanted.given))
            self.outputs += [codes, scale]
            self.fired["norm-quantize"] += 1
        return y

    def summed(self, width: int, *rank: int) -> Value:
        x, r = (self.input(*rank, width) for _ in range(2))
        self.fired["norm-residual"] += 1
        return self.add(x, r, x.type)

    def reference(self, outputs, inputs):
        """As ever, but for unpacked values, of which `decode` knows more."""
        self.steps = [step for step in self.steps if step[1] is not None]
        return super().reference(outputs, inputs)


def program(dtype: str, kind: Kind, first: Format, second: Format) -> Norms:
    p = Norms(dtype, kind)
    p.norm(p.input(-1, 300), first)
    p.norm(p.summed(40, -1), first)
    h = p.summed(77, 2, -1)
    y = p.norm(h, first)
    p.outputs += [y, h]
    h = p.summed(520, 1, -1)
    p.norm(h, first, second)
    p.outputs.append(h)
    h = p.summed(130, -1)
    p.outputs += [p.norm(h, second, first), h]
    return p


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_fused_is_unfused(name: str, kind: str) -> None:
    dtype = ("bf16", "f16", "f32")[(list(FORMATS).index(name) + list(KINDS).index(kind)) % 3]
    p = program(dtype, KINDS[kind], FORMATS[name], FORMATS[OTHERS[name]])
    fused, unfused = p.compile(p.outputs, ["norm-quantize"]), p.compile(p.outputs, ())
    fired = (r["pattern"] for r in fused.program.report["remarks"] if r["outcome"] == "fired")
    assert Counter(fired) == p.fired
    assert len(fused.program.plan.steps) == 5, "each norm is one launch"
    for m in ROWS:
        inputs = p.inputs(m)
        got = fused(*inputs)
        for i, (a, b) in enumerate(zip(got, unfused(*inputs), strict=True)):
            assert same_bits(a, b), f"M = {m}: result {i} differs, fused and unfused"
        wanted = p.reference([y for _, y, *_ in p.made], inputs)
        for (at, _, type_, given), value in zip(p.made, wanted, strict=True):
            assert_quantized(got[at], got[at + 1], type_, value, dtype, given)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


def assert_quantized(
    codes: torch.Tensor,
    scale: torch.Tensor,
    type_: Shaped,
    value: torch.Tensor,
    dtype: str,
    given: float | None,
) -> None:
    """Codes times scales are the norm in f64, up to half a step and the roundings of the norm.

    The kernel's value may be rounded the other way, once or (rounding "before") twice: 2 ulps.  An
    f16 scale is rounded after codes were made by it.  A scale is the largest magnitude of its
    group / the largest code, up to the same ulps, or the next power of two; or the one given, past
    which values are saturated.
    """
    width, scheme = type_.shape[-1], type_.scheme
    assert scheme is not None
    rows = Shaped((codes.numel() // width, width), type_.dtype, scheme)
    flat = [t.flatten(0, -2) for t in (codes, scale)]
    value = value.flatten(0, -2)
    if given is not None:
        assert (scale == given).all()
        limit = given * STORAGE_MAX[type_.dtype]
        value = value.clamp(-limit, limit)
    decoded, _ = decode(rows, (flat[0], flat[1]))
    ulps = 2 * torch.finfo(TORCH[dtype]).eps + (2.0**-10 if scheme.scale == "f16" else 0) + 1e-6
    numbers = flat[1].double()[:, :: scheme.numbers]
    step = numbers.repeat_interleave(scheme.block[1], 1)[:, :width]
    relative, absolute = {
        "f8E4M3FN": (2.0**-4, 2.0**-10),
        "f8E5M2": (2.0**-3, 2.0**-17),
        "i8": (0.0, 0.5),
    }[type_.dtype]
    assert ((decoded - value).abs() <= value.abs() * (relative + ulps) + step * absolute).all()
    if given is not None:
        return
    padded = torch.nn.functional.pad(value.abs(), (0, -width % scheme.block[1]))
    largest = padded.unflatten(1, (-1, scheme.block[1])).amax(2)
    above = 2 if scheme.scale == "f8E8M0FNU" else 1
    limit = largest * (1 + ulps) * above / STORAGE_MAX[type_.dtype]
    assert (numbers <= limit + 1e-6).all()


def test_what_is_not_rounded() -> None:
    """The option reaches the kernel: other codes, nearer to the norm in f64; the rest is the same.

    The norm of a sum with all results: `test_norm_formats.py` has the kernel to the bit.
    """
    p = Norms("bf16", KINDS["gemma"])
    h = p.summed(300, -1)
    y = p.norm(h, FORMATS["i8 per token"], FORMATS["fp8 1x128"])
    p.outputs += [y, h]
    inputs = p.inputs(33)
    default, exact = (
        p.compile(p.outputs, ["norm-quantize"], quantize_rounding=rounding)(*inputs)
        for rounding in ("value", "f32")
    )
    assert all(map(same_bits, default, p.compile(p.outputs, ())(*inputs)))
    assert all(map(same_bits, default[4:], exact[4:]))
    assert not same_bits(default[0], exact[0]) and not same_bits(default[2], exact[2])
    x = inputs[0].double() + inputs[1].double()
    x = x.bfloat16().double()
    weight = 1 + p.parameters[next(iter(p.parameters))].double()
    norm = x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weight
    type_ = replace(p.made[0][2], shape=(33, 300))
    errors = [(decode(type_, (made[0], made[1]))[0] - norm).norm() for made in (default, exact)]
    assert errors[1] < errors[0]
