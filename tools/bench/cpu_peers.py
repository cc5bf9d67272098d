"""What products on a CPU are compared with: torch, eager and compiled, and its own operators."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch.nn.functional import linear

from qfuse.compiler.packed_weights import unpack_nibbles
from qfuse.dialects.errors import QfuseError
from qfuse.tools.bench.cpu_schemes import SCHEMES, Activations, Weight, copies, dequantized
from qfuse.tools.bench.kernels import Call
from qfuse.tools.bench.subjects import Prepared

_UNQUANTIZED = 3e-2
"""Relative error of what does not quantize activations where the reference does."""


class Peer(Protocol):
    """A way to multiply; `tolerance` is the relative error (of norms) it may have."""

    @property
    def name(self) -> str: ...

    @property
    def tolerance(self) -> float: ...

    def prepare(self, weight: Weight, x: Activations) -> Prepared:
        """Raises QfuseError, RuntimeError or ImportError where it cannot serve them."""
        ...


@dataclass(frozen=True)
class Bf16:
    """What an unquantized model does."""

    name: str = "torch bf16"
    tolerance: float = _UNQUANTIZED

    def prepare(self, weight: Weight, x: Activations) -> Prepared:
        return Prepared([partial(linear, x.x, w) for w in weight.dense])


@dataclass(frozen=True)
class Dequantize:
    """The weight to bf16 at each call, then a product: what eager torch can do with the file."""

    name: str = "torch dequantize"
    tolerance: float = _UNQUANTIZED

    def prepare(self, weight: Weight, x: Activations) -> Prepared:
        if weight.type.scheme is None:
            raise QfuseError("is given quantized weights only")
        return Prepared(_dequantizing(dequantize_linear, weight, x))


@dataclass(frozen=True)
class Compiled:
    """The same by torch.compile, which takes long to compile it; a product alone of bf16."""

    wanted: bool
    name: str = "torch.compile"
    tolerance: float = _UNQUANTIZED

    def prepare(self, weight: Weight, x: Activations) -> Prepared:
        function = compiled(dequantize_linear, self.wanted)
        return Prepared(_dequantizing(function, weight, x))


def compiled(function: Callable[..., Any], wanted: bool) -> Callable[..., Any]:
    """By torch.compile; raises QfuseError where that is not wanted."""
    if not wanted:
        raise QfuseError("not asked for; --compile does")
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def dequantize_linear(x: torch.Tensor, components: Sequence[torch.Tensor], type_: Any) -> Any:
    return linear(x, dequantized(components, type_).bfloat16())


def _dequantizing(function: Callable[..., Any], weight: Weight, x: Activations) -> list[Call]:
    return [partial(function, x.x, each, weight.type) for each in zip(*weight.stored, strict=True)]


@dataclass(frozen=True)
class IntMm:
    """`torch._int_mm` of codes by codes, without the scales, which it does not know."""

    name: str = "torch._int_mm"
    tolerance: float = 5e-3

    def prepare(self, weight: Weight, x: Activations) -> Prepared:
        _only(weight, "int8")
        codes, x_scale = x.tensors
        products: list[torch.Tensor] = []
        calls: list[Call] = []
        for w in weight.stored[0]:
            out = torch.empty(len(codes), weight.n, dtype=torch.int32)
            calls.append(partial(torch._int_mm, codes, w.T, out=out))
            products.append(out)
        scale = weight.components[1].T
        return Prepared(calls, [lambda: products[0].float() * x_scale * scale])


@dataclass(frozen=True)
class Int8Pack:
    """`torch._weight_int8pack_mm`: bf16 by int8."""

    name: str = "torch int8pack"
    tolerance: float = _UNQUANTIZED

    def prepare(self, weight: Weight, x: Activations) -> Prepared:
        _only(weight, "int8")
        scale = weight.components[1].flatten().bfloat16()
        product: Any = torch.ops.aten._weight_int8pack_mm
        return Prepared([partial(product, x.x, w, scale) for w in weight.stored[0]])


@dataclass(frozen=True)
class Int4Pack:
    """`torch._weight_int4pack_mm_for_cpu`: bf16 by INT4 in groups."""

    name: str = "torch int4pack"
    tolerance: float = _UNQUANTIZED

    def prepare(self, weight: Weight, x: Activations) -> Prepared:
        _only(weight, *(name for name in SCHEMES if name.startswith("int4")))
        assert weight.type.scheme is not None
        group = weight.type.scheme.block[1]
        operators: Any = torch.ops.aten
        codes, scale = weight.components
        packed = operators._convert_weight_to_int4pack_for_cpu(unpack_nibbles(codes).int(), 1)
        scale = scale.T.bfloat16()
        both = torch.stack((scale, torch.zeros_like(scale)), -1).contiguous()
        product = operators._weight_int4pack_mm_for_cpu
        made = copies([packed, both], weight.bytes)
        return Prepared([partial(product, x.x, w, group, s) for w, s in zip(*made, strict=True)])


def peers(compile: bool) -> Sequence[Peer]:
    """Those of torch; `compile` says whether torch.compile is wanted."""
    return [Bf16(), Dequantize(), Compiled(compile), IntMm(), Int8Pack(), Int4Pack()]


def _only(weight: Weight, *names: str) -> None:
    if weight.scheme.name not in names:
        raise QfuseError(f"serves {' and '.join(names)} only")
