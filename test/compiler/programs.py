"""Small programs of the dialect: built operation by operation, compiled, and computed in f64.

A `Program` writes the MLIR text of `@main` and keeps, for each operation, its definition from the
dialect's docstrings as a function on f64 tensors.  So a test states a program once, and gets what
the compiler makes of it with any fusions as well as what it should compute.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qfuse.compiler.compilation import compile_imported
from qfuse.compiler.frontend.imported import Imported
from qfuse.compiler.options import FUSIONS, CompileOptions
from qfuse.compiler.runtime.executable import Executable
from qfuse.dialects.bindings import ir
from qfuse.dialects.glu import SWIGLU_OAI, Glu
from qfuse.dialects.quantization_ops import AMAX_FLOOR
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import STORAGE_MAX, Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC

Tensor = torch.Tensor
TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
CODES = "f8E4M3FN"
BLOCK = 128
ROWS = (1, 2, 3, 7, 17, 33, 0)
"""Numbers of rows that each program runs with; M = 1 and small M have kernels of their own."""


@dataclass(frozen=True)
class Value:
    """An SSA value of a program."""

    name: str
    type: Shaped


@dataclass(frozen=True)
class _Argument:
    value: Value
    kind: str


class Program:
    """`@main` under construction; `dtype` is the element type of its activations."""

    def __init__(self, dtype: str = "bf16", seed: int = 0) -> None:
        self.dtype = dtype
        self.random = torch.Generator().manual_seed(seed)
        self.arguments: list[_Argument] = []
        self.parameters: dict[str, Tensor] = {}
        self.lines: list[str] = []
        self.steps: list[tuple[tuple[str, ...], Callable[..., Any], tuple[str, ...]]] = []
        self.count = 0
        self.quantizations = 0

    # Arguments

    def input(self, *shape: int, dtype: str | None = None) -> Value:
        """An input; an extent of -1 is the number of rows of a run."""
        return self._argument("input", shape, dtype or self.dtype)

    def parameter(self, *shape: int, dtype: str | None = None) -> Value:
        value = self._argument("parameter", shape, dtype or self.dtype)
        self.parameters[value.name] = self._normal(shape).to(TORCH[value.type.dtype])
        return value

    def weight(self, n: int, k: int) -> Value:
        """A weight [n, k] in FP8 with 128x128 blocks; products with it are of order one."""
        codes = self._argument("parameter", (n, k), CODES)
        scale = self._argument("parameter", (-(-n // BLOCK), -(-k // BLOCK)), "f32")
        data = (self._normal((n, k)) * 64).clamp(-448, 448).to(torch.float8_e4m3fn)
        scales = (self._normal(scale.type.shape).abs() + 0.5) / (64 * k**0.5)
        self.parameters |= {codes.name: data, scale.name: scales}
        type_ = Shaped((n, k), CODES, Scheme((BLOCK, BLOCK), "f32"))
        return self._op("pack", [codes, scale], [type_], _dequantize)[0]

    def _argument(self, kind: str, shape: Sequence[int], dtype: str) -> Value:
        type_ = Shaped(tuple(DYNAMIC if d < 0 else d for d in shape), dtype)
        value = Value(f"a{len(self.arguments)}", type_)
        self.arguments.append(_Argument(value, kind))
        return value

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.random)

    # Operations

    def quantize(self, x: Value, group: int = BLOCK) -> Value:
        type_ = replace(x.type, dtype=CODES, scheme=Scheme((1, group), "f32"))
        self.quantizations += 1
        return self._op("quantize", [x], [type_], lambda v: _quantize(v, group))[0]

    def dequantize(self, q: Value) -> Value:
        type_ = Shaped(q.type.shape, "f32")
        return self._op("dequantize", [q], [type_], lambda v: v)[0]

    def matmul(
        self, x: Value, w: Value, *, quantize: bool = False, dtype: str | None = None
    ) -> Value:
        """A plain product; `quantize` says by attribute that x is to be quantized."""
        out = Shaped((*x.type.rows, w.type.shape[0]), dtype or self.dtype)
        attributes = f"parts = array<i64: {w.type.shape[0]}>, maps = [], " + (
            "operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>, "
            "resultSegmentSizes = array<i32: 1, 0, 0, 0>"
        )
        self.quantizations += quantize
        if quantize:
            attributes += f", qfuse.input_scheme = {Scheme((1, BLOCK), 'f32')}"
        region = '({\n  ^bb0(%acc: f32):\n    "qfuse.yield"(%acc) : (f32) -> ()\n  })'

        def compute(a: Tensor, b: Tensor) -> Tensor:
            return _round((_quantize(a, BLOCK) if quantize else a) @ b.T, out.dtype)

        return self._op("matmul", [x, w], [out], compute, attributes, region)[0]

    def constant(self, number: float) -> Value:
        """A number, as f32."""
        value = Value(f"c{len(self.lines)}", Shaped((), "f32"))
        held = torch.tensor(number, dtype=torch.float32)
        bits = held.view(torch.int32).item() & 0xFFFFFFFF
        self.raw(f"%{value.name} = arith.constant dense<0x{bits:08X}> : tensor<f32>")
        return self.define(value.name, value.type, held.double)

    def elementwise(
        self, name: str, operands: Sequence[Value], out: Shaped, **attributes: float
    ) -> Value:
        """An operation of dialects/arithmetic.py."""

        def compute(*values: Tensor) -> Tensor:
            return _round(ELEMENTWISE[name](*values, *attributes.values()), out.dtype)

        text = ", ".join(f"{key} = {value:e} : f64" for key, value in attributes.items())
        return self._op(name, operands, [out], compute, text)[0]

    def add(self, a: Value, b: Value, out: Shaped) -> Value:
        return self.elementwise("add", [a, b], out)

    def mul(self, a: Value, b: Value, out: Shaped) -> Value:
        return self.elementwise("mul", [a, b], out)

    def activate(self, act: str, x: Value) -> Value:
        return self.elementwise(act, [x], x.type)

    def glu(self, glu: Glu, gate: Value, up: Value) -> Value:
        dtype = gate.type.dtype

        def compute(g: Tensor, u: Tensor) -> Tensor:
            if glu.limit != math.inf:
                limit = _round(torch.tensor(glu.limit), dtype)
                g, u = torch.clamp(g, max=limit), torch.clamp(u, -limit, limit)
            if glu.act == SWIGLU_OAI:
                sigmoid = _round(torch.sigmoid(_round(g * glu.alpha, dtype)), dtype)
                return _round(_round(g * sigmoid, dtype) * _round(u + 1, dtype), dtype)
            return _round(_round(ACTIVATIONS[glu.act](g), dtype) * u, dtype)

        attributes = (
            f'act = "{glu.act}", operandSegmentSizes = array<i32: 1, 1, 0>, '
            "resultSegmentSizes = array<i32: 1, 0>"
        )
        numbers = {"limit": glu.limit, "alpha": glu.alpha}
        for name, number in numbers.items():
            if number != getattr(Glu(glu.act), name):
                attributes += f", {name} = {number} : f64"
        return self._op("glu", [gate, up], [gate.type], compute, attributes)[0]

    def rms_norm(
        self,
        x: Value,
        weight: Value,
        *,
        rounding: str = "before",
        offset: float = 0.0,
        eps: float = 1e-6,
    ) -> Value:
        dtype = x.type.dtype

        def compute(h: Tensor, w: Tensor) -> Tensor:
            n = h * torch.rsqrt((h * h).mean(-1, keepdim=True) + eps)
            n = _round(n, dtype) if rounding == "before" else n
            return _round(n * (w + offset), dtype)

        attributes = (
            f'eps = {eps:e} : f64, offset = {offset} : f64, rounding = "{rounding}", '
            "operandSegmentSizes = array<i32: 1, 1, 0, 0, 0>, "
            "resultSegmentSizes = array<i32: 1, 0, 0, 0>"
        )
        return self._op("rms_norm", [x, weight], [x.type], compute, attributes)[0]

    def raw(self, line: str) -> None:
        """A line of text, for operations of other dialects; `define` says what it computes."""
        self.lines.append(line)

    def define(
        self, name: str, type_: Shaped, compute: Callable[..., Tensor], *operands: Value
    ) -> Value:
        self.steps.append(((name,), compute, tuple(o.name for o in operands)))
        return Value(name, type_)

    def _op(
        self,
        name: str,
        operands: Sequence[Value],
        types: Sequence[Shaped],
        compute: Callable[..., Any],
        attributes: str = "",
        region: str = "",
    ) -> list[Value]:
        results = [Value(f"v{self.count + i}", t) for i, t in enumerate(types)]
        self.count += len(results)
        names = ", ".join(f"%{v.name}" for v in operands)
        ins, outs = (", ".join(str(v.type) for v in vs) for vs in (operands, results))
        self.lines.append(
            f'{", ".join(f"%{r.name}" for r in results)} = "qfuse.{name}"({names}) {region} '
            f"{{{attributes}}} : ({ins}) -> ({outs})"
        )
        self.steps.append(
            (tuple(r.name for r in results), compute, tuple(o.name for o in operands))
        )
        return results

    # What to do with it

    def text(self, outputs: Sequence[Value]) -> str:
        arguments = ", ".join(
            f'%{a.value.name}: {a.value.type} {{qfuse.kind = "{a.kind}", '
            f'qfuse.name = "{a.value.name}"}}'
            for a in self.arguments
        )
        results = ", ".join(
            f'{o.type} {{qfuse.kind = "output", qfuse.name = "out{i}"}}'
            for i, o in enumerate(outputs)
        )
        values = ", ".join(f"%{o.name}" for o in outputs)
        types = ", ".join(str(o.type) for o in outputs)
        body = "\n  ".join([*self.lines, f"return {values} : {types}"])
        return f"func.func @main({arguments}) -> ({results}) {{\n  {body}\n}}\n"

    def compile(
        self, outputs: Sequence[Value], fusions: Sequence[str], **others: Any
    ) -> Executable:
        """The program with these fusions on, all others off; `others` are further options."""
        with ir.Context():
            load_all()
            module = ir.Module.parse(self.text(outputs))
        options = CompileOptions.make("cpu", [f for f in FUSIONS if f not in fusions], **others)
        return compile_imported(Imported(module, self.parameters, (), ()), options)

    def inputs(self, rows: int) -> list[Tensor]:
        values = [a.value for a in self.arguments if a.kind == "input"]
        shapes = [[rows if d == DYNAMIC else d for d in v.type.shape] for v in values]
        return [
            self._normal(s).to(TORCH[v.type.dtype]) for s, v in zip(shapes, values, strict=True)
        ]

    def reference(self, outputs: Sequence[Value], inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs in f64, rounded only where an operation says so."""
        names = [a.value.name for a in self.arguments if a.kind == "input"]
        known = {**self.parameters, **dict(zip(names, inputs, strict=True))}
        values: dict[str, Tensor] = {k: v.float().double() for k, v in known.items()}
        for results, compute, operands in self.steps:
            computed = compute(*(values[o] for o in operands))
            values |= zip(results, [computed], strict=True)
        return [values[o.name] for o in outputs]


def _round(x: Tensor, dtype: str) -> Tensor:
    return x.to(TORCH[dtype]).double()


def _quantize(x: Tensor, group: int) -> Tensor:
    """Quantized per row and group, and expanded again."""
    limit = STORAGE_MAX[CODES]
    columns = x.shape[-1]
    groups = torch.nn.functional.pad(x, (0, -columns % group)).unflatten(-1, (-1, group))
    amax = groups.abs().amax(-1, keepdim=True).clamp_min(AMAX_FLOOR)
    codes = (groups * (limit / amax)).clamp(-limit, limit).float().to(torch.float8_e4m3fn)
    return (codes.float().double() * (amax / limit)).flatten(-2)[..., :columns]


def _dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    spread = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return codes * spread[: codes.shape[0], : codes.shape[1]]


def _gelu(approximate: str) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.nn.functional.gelu(x, approximate=approximate)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": _gelu("none"),
    "gelu_tanh": _gelu("tanh"),
    "relu": torch.relu,
}

ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    **ACTIVATIONS,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "neg": torch.neg,
    "square": torch.square,
    "clamp": torch.clamp,
    "cast": lambda x: x,
}
