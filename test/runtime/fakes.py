"""Kernels written in Python that stand in for machine code: same calls, same pointers."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from qfuse.compiler.plan import build_plan
from qfuse.compiler.runtime.plan import Plan
from qfuse.compiler.runtime.program import Program
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import load_all
from qfuse.lowering.cpu.kernel import CompiledKernel, Entry, Parameter


def memory(address: int, count: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The elements at an address, without a copy."""
    if not count:
        return torch.empty(0, dtype=dtype)
    raw = (ctypes.c_uint8 * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=torch.uint8).view(dtype)


Body = Callable[[list[int], int, int], None]
"""What a fake kernel does with its pointers, the number of rows and the width of a row."""


def _double(pointers: list[int], rows: int, width: int) -> None:
    x, y = (memory(p, rows * width) for p in pointers)
    y.copy_(x * 2)


def _add(pointers: list[int], rows: int, width: int) -> None:
    a, b, y = (memory(p, rows * width) for p in pointers)
    y.copy_(a + b)


def _both(pointers: list[int], rows: int, width: int) -> None:
    """Two results: x + 1 and x - 1."""
    x, y, z = (memory(p, rows * width) for p in pointers)
    y.copy_(x + 1)
    z.copy_(x - 1)


def _matmul(pointers: list[int], rows: int, width: int) -> None:
    """x [M, 256] by one FP8 weight [width, 256], laid out as `pack` below does."""
    x, codes, scale, y = pointers
    weight = memory(codes, width * 256, torch.float8_e4m3fn).float().view(width, 256)
    scales = memory(scale, -(-width // 128) * 2).view(-1, 2)
    weight = weight * scales.repeat_interleave(128, 0)[:width].repeat_interleave(128, 1)
    memory(y, rows * width).view(rows, width).copy_(
        memory(x, rows * 256).view(rows, 256) @ weight.T
    )


def _nothing(pointers: list[int], rows: int, width: int) -> None:
    pass


BODIES: dict[str, Body] = {
    "double": _double,
    "add": _add,
    "both": _both,
    "matmul": _matmul,
    "nothing": _nothing,
}


@dataclass
class FakeLaunch:
    body: Body
    pointers: list[int]
    rows: int
    width: int

    def __call__(self) -> None:
        if self.rows:
            self.body(self.pointers, self.rows, self.width)


@dataclass
class FakeLoaded:
    """A kernel whose object says which body it has, and for what width: `b"double:8"`."""

    kernel: CompiledKernel
    bound: list[FakeLaunch] = field(default_factory=list)

    def bind(
        self, pointers: Sequence[int], m: int, threads: int, scratch: int | None = None
    ) -> FakeLaunch:
        assert scratch is not None and scratch % 64 == 0
        body, _, width = self.kernel.code.decode().partition(":")
        assert threads == torch.get_num_threads()
        self.bound.append(FakeLaunch(BODIES[body], list(pointers), m, int(width)))
        return self.bound[-1]


def kernel(
    name: str, body: str, width: int, operands: int, results: int = 1, packed: int | None = None
) -> CompiledKernel:
    """A fake kernel over plain f32 tensors; operand `packed` is a prepared weight."""
    parameters = []
    for i in range(operands):
        parameters.append(Parameter("operand", i, "data", i == packed))
        if i == packed:
            parameters.append(Parameter("operand", i, "scale", True))
    parameters += [Parameter("result", i) for i in range(results)]
    return CompiledKernel(
        name, "generic", (), tuple(parameters), (Entry("run"),), f"{body}:{width}".encode()
    )


def pack(
    parts: list[tuple[torch.Tensor, torch.Tensor]], block: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A layout of our own: the codes as they are, parts one after the other."""
    codes = torch.cat([c.view(torch.uint8).reshape(-1) for c, _ in parts])
    return codes, torch.cat([s for _, s in parts])


PRELUDE = """
func.func private @double(%x: tensor<?x8xf32>) -> tensor<?x8xf32> attributes {qfuse.kernel} {
  return %x : tensor<?x8xf32>
}
func.func private @add(%a: tensor<?x8xf32>, %b: tensor<?x8xf32>) -> tensor<?x8xf32>
    attributes {qfuse.kernel} {
  return %a : tensor<?x8xf32>
}
func.func private @both(%x: tensor<?x8xf32>) -> (tensor<?x8xf32>, tensor<?x8xf32>)
    attributes {qfuse.kernel} {
  return %x, %x : tensor<?x8xf32>, tensor<?x8xf32>
}
"""

KERNELS = {
    "double": kernel("double", "double", 8, 1),
    "add": kernel("add", "add", 8, 2),
    "both": kernel("both", "both", 8, 1, 2),
}


def plan_of(text: str, kernels: dict[str, CompiledKernel] | None = None) -> Plan:
    """The plan of a module written as text; `{b}` and `{t}` stand for the casts' names."""
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(PRELUDE + text)
        assert module.operation.verify()
        return build_plan(module, KERNELS if kernels is None else kernels)


def program_of(
    text: str,
    parameters: dict[str, torch.Tensor] | None = None,
    kernels: dict[str, CompiledKernel] | None = None,
) -> Program:
    """A program of a module written as text, with fake kernels."""
    kernels = KERNELS if kernels is None else kernels
    return Program.prepare(
        plan_of(text, kernels), parameters or {}, kernels, load_kernel=FakeLoaded
    )


def main(arguments: str, results: str, body: str, names: Sequence[str] = ()) -> str:
    """`@main`; an argument or result is `value: type kind`, one per line.

    The `qfuse.name` of a result is its value's, or what `names` says.
    """

    def boundary(line: str) -> tuple[str, str, str]:
        name, rest = line.split(":", 1)
        type_, kind = rest.rsplit(None, 1)
        attributes = f'{{qfuse.kind = "{kind}", qfuse.name = "{name.strip()}"}}'
        return name.strip(), _type(type_.strip()), attributes

    given = [boundary(x) for x in arguments.strip().splitlines()]
    made = [boundary(x) for x in results.strip().splitlines()]
    for i, name in enumerate(names):
        value, type_, attributes = made[i]
        made[i] = (value, type_, attributes.replace(f'"{value}"', f'"{name}"'))
    return (
        f"func.func @main({', '.join(f'%{n}: {t} {a}' for n, t, a in given)}) -> "
        f"({', '.join(f'{t} {a}' for _, t, a in made)}) {{\n{body}\n"
        f"  return {', '.join(f'%{n}' for n, _, _ in made)} : {', '.join(t for _, t, _ in made)}\n"
        "}\n"
    )


def _type(short: str) -> str:
    """`?x8xf32` as the torch dialect writes it."""
    if short.startswith("!"):
        return short
    *dims, dtype = short.split("x")
    return f"!torch.vtensor<[{','.join(dims)}],{dtype}>"


def to_builtin(*names: str, type: str = "?x8xf32") -> str:
    """Casts %name to %name_b."""
    return "\n".join(
        f"  %{n}_b = torch_c.to_builtin_tensor %{n} : {_type(type)} -> tensor<{type}>"
        for n in names
    )


def from_builtin(*names: str, type: str = "?x8xf32") -> str:
    """Casts %name_b to %name."""
    return "\n".join(
        f"  %{n} = torch_c.from_builtin_tensor %{n}_b : tensor<{type}> -> {_type(type)}"
        for n in names
    )


def qtensor(shape: str, block: str) -> str:
    """The type of a quantized value in FP8, `128, 128` being a block."""
    scheme = f'#qfuse.scheme<array<i64: {block}>, f32, "none", "none", "row_major">'
    return f"!qfuse.qtensor<tensor<{shape}xf8E4M3FN>, {scheme}>"
