"""Products by IREE (packages iree-base-compiler and iree-base-runtime), compiled for this CPU.

The weight is expanded in the expression itself, and IREE fuses that with the product or not:

    w [N/bn, bn, K/bk, bk] -> f32 times scale [N/bn, K/bk]        (a linalg.generic)
    y [M, N/bn, bn] = sum over K/bk, bk of x [M, K/bk, bk] * w    (another)

A case that it does not compile has no number; what it says is given as the reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from qfuse.dialects.errors import QfuseError
from qfuse.tools.bench.cpu_schemes import Activations, Weight
from qfuse.tools.bench.subjects import Prepared

_E4M3_TO_F32 = 2.0**120
"""What the bits of an e4m3 are too small by, moved to the places that they have in an f32."""

_CODES = {
    "f8E4M3FN": """
    %i = arith.extsi %code : i8 to i32
    %left = arith.shli %i, %twenty : i32
    %bits = arith.andi %left, %mask : i32
    %v = arith.bitcast %bits : i32 to f32""",
    "i8": """
    %v = arith.sitofp %code : i8 to f32""",
    "i4": """
    %upper = linalg.index 4 : index
    %second = arith.cmpi ne, %upper, %none : index
    %high = arith.shrui %code, %four : i8
    %half = arith.select %second, %high, %code : i8
    %u = arith.andi %half, %fifteen : i8
    %s8 = arith.subi %u, %eight : i8
    %v = arith.sitofp %s8 : i8 to f32""",
    "bf16": """
    %i = arith.extui %code : i16 to i32
    %bits = arith.shli %i, %sixteen : i32
    %v = arith.bitcast %bits : i32 to f32""",
}
"""From a stored element, or a byte with two, to f32."""

_SERVED = ("fp8", "int8", "q8_0", "int4", "bf16")
_OPTIONS = ("--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O3")


def check_installed() -> None:
    """Raises QfuseError, which says what to do, where IREE is not installed."""
    if any(find_spec(f"iree.{part}") is None for part in ("compiler", "runtime")):
        raise QfuseError("IREE is not installed; pip install 'qfuse[bench]' does")


@dataclass(frozen=True)
class Iree:
    """x as f32, so that it is exact, by the weight as it is stored."""

    wanted: bool = True
    name: str = "IREE"
    tolerance: float = 1e-2  # it takes subnormal numbers for zeros

    def prepare(self, weight: Weight, x: Activations) -> Prepared:
        if not self.wanted:
            raise QfuseError("not asked for; --iree does")
        if weight.scheme.name.partition("-")[0] not in _SERVED:
            raise QfuseError(f"is given {', '.join(_SERVED)} only")
        check_installed()
        from iree.compiler import compile_str
        from iree.runtime import asdevicearray

        m = len(x.x)
        n, bn, k, bk = shape = _shape(weight)
        text = _text(weight, m, shape)
        main, device = _loaded(compile_str(text, target_backends=["llvm-cpu"], extra_args=_OPTIONS))
        on_device = partial(asdevicearray, device)
        nibbles = 2 if weight.scheme.dtype == "i4" else 1
        values = on_device(x.values.view(m, k, bk // nibbles, nibbles).numpy())
        scale = _scale(weight).view(n, k)
        bits = torch.int16 if weight.scheme.dtype == "bf16" else torch.int8
        elements = [w.view(bits) for w in weight.stored[0]]
        calls = [
            partial(main, values, on_device(w.view(n, bn, k, bk // nibbles).numpy()), on_device(s))
            for w, s in ((w, scale.numpy()) for w in elements)
        ]

        def first() -> torch.Tensor:
            return torch.from_numpy(calls[0]().to_host()).view(m, weight.n)

        return Prepared(calls, [first])


def _shape(weight: Weight) -> tuple[int, int, int, int]:
    """N/bn, bn, K/bk, bk; raises QfuseError where blocks are not full."""
    bn, bk = (1, weight.k) if weight.type.scheme is None else weight.type.scheme.block
    if weight.n % bn or weight.k % bk:
        raise QfuseError("is given N and K in whole blocks only")
    return weight.n // bn, bn, weight.k // bk, bk


def _scale(weight: Weight) -> torch.Tensor:
    """f32, of ones where there are none."""
    if weight.type.scheme is None:
        return torch.ones(weight.n)
    factor = _E4M3_TO_F32 if weight.scheme.dtype == "f8E4M3FN" else 1.0
    return weight.components[1].float() * factor


def _text(weight: Weight, m: int, shape: tuple[int, int, int, int]) -> str:
    """`@main`, whose dimension d is that of two codes in a byte, or of one."""
    n, bn, k, bk = shape
    dtype = weight.scheme.dtype
    nibbles = 2 if dtype == "i4" else 1
    width, stored = bk // nibbles, "i16" if dtype == "bf16" else "i8"
    codes = f"tensor<{n}x{bn}x{k}x{width}x{stored}>"
    values = f"tensor<{n}x{bn}x{k}x{width}x{nibbles}xf32>"
    sizes = f"{m}x{k}x{width}x{nibbles}", f"{n}x{k}", f"{m}x{n}x{bn}"
    x, scale, y = (f"tensor<{s}xf32>" for s in sizes)
    five, six = "(a, b, c, d, e)", "(m, a, b, c, d, e)"
    parallel = ", ".join(['"parallel"'] * 5)
    return f"""
func.func @main(%x: {x}, %w: {codes}, %scale: {scale}) -> {y} {{
  %zero = arith.constant 0.0 : f32
  %sixteen = arith.constant 16 : i32
  %twenty = arith.constant 20 : i32
  %mask = arith.constant 0x87F00000 : i32
  %none = arith.constant 0 : index
  %four = arith.constant 4 : i8
  %eight = arith.constant 8 : i8
  %fifteen = arith.constant 15 : i8
  %empty = tensor.empty() : {values}
  %dense = linalg.generic {{
    indexing_maps = [affine_map<{five} -> (a, b, c, d)>, affine_map<{five} -> (a, c)>,
                     affine_map<{five} -> {five}>],
    iterator_types = [{parallel}]
  }} ins(%w, %scale : {codes}, {scale}) outs(%empty : {values}) {{
  ^bb0(%code: {stored}, %s: f32, %o: f32):{_CODES[dtype]}
    %scaled = arith.mulf %v, %s : f32
    linalg.yield %scaled : f32
  }} -> {values}
  %target = tensor.empty() : {y}
  %zeros = linalg.fill ins(%zero : f32) outs(%target : {y}) -> {y}
  %y = linalg.generic {{
    indexing_maps = [affine_map<{six} -> (m, c, d, e)>, affine_map<{six} -> {five}>,
                     affine_map<{six} -> (m, a, b)>],
    iterator_types = ["parallel", "parallel", "parallel", "reduction", "reduction", "reduction"]
  }} ins(%x, %dense : {x}, {values}) outs(%zeros : {y}) {{
  ^bb0(%a: f32, %b: f32, %sum: f32):
    %p = arith.mulf %a, %b : f32
    %added = arith.addf %sum, %p : f32
    linalg.yield %added : f32
  }} -> {y}
  return %y : {y}
}}
"""


def _loaded(binary: bytes) -> tuple[Callable[..., Any], Any]:
    """The function of a module, and the device it runs on: all processors."""
    from iree.runtime import Config, SystemContext, VmModule

    config = Config("local-task")
    context = SystemContext(config=config)
    context.add_vm_module(VmModule.copy_buffer(config.vm_instance, binary))
    return context.modules.module.main, config.device
