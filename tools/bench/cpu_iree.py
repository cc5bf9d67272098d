"""Products by IREE (packages iree-base-compiler and iree-base-runtime), compiled for this CPU.

The weight is expanded in the expression itself, and IREE fuses that with the product or not:

    w [N/bn, bn, K/bk, bk] -> f32 times scale [N/bn, K/bk]        (a linalg.generic)
    y [M, N/bn, bn] = sum over K/bk, bk of x [M, K/bk, bk] * w    (another)
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
}
"""From a stored byte to f32."""

_OPTIONS = ("--iree-llvmcpu-target-cpu=host", "--iree-opt-level=O3")


@dataclass(frozen=True)
class Iree:
    """x as f32, so that it is exact, by the weight as it is stored."""

    name: str = "IREE"
    tolerance: float = 1e-2  # it takes subnormal numbers for zeros

    def prepare(self, weight: Weight, x: Activations) -> Prepared:
        if weight.scheme.dtype not in _CODES or weight.n % 128 or weight.k % 128:
            raise QfuseError("serves fp8 and int8 only, N and K in multiples of 128")
        if weight.scheme.name == "q8_0":
            raise QfuseError("is not given q8_0")
        try:
            from iree.compiler import compile_str
            from iree.runtime import asdevicearray
        except ImportError:
            raise QfuseError("not installed; pip install 'qfuse[bench]' does") from None
        m, (bn, bk) = len(x.x), _block(weight)
        text = _text(weight, m, bn, bk)
        main, device = _loaded(compile_str(text, target_backends=["llvm-cpu"], extra_args=_OPTIONS))
        factor = _E4M3_TO_F32 if weight.scheme.dtype == "f8E4M3FN" else 1.0
        shape = (weight.n // bn, bn, weight.k // bk, bk)
        on_device = partial(asdevicearray, device)
        values = on_device(x.values.view(m, *shape[2:]).numpy())
        scale = on_device((weight.scale.float() * factor).view(shape[0], shape[2]).numpy())
        calls = [
            partial(main, values, on_device(w.view(torch.int8).view(shape).numpy()), scale)
            for w in weight.stored[0]
        ]

        def first() -> torch.Tensor:
            return torch.from_numpy(calls[0]().to_host()).view(m, weight.n)

        return Prepared(calls, [first])


def _block(weight: Weight) -> tuple[int, int]:
    """Blocks of w that share a scale, as extents that divide it."""
    assert weight.type.scheme is not None
    return weight.type.scheme.block


def _text(weight: Weight, m: int, bn: int, bk: int) -> str:
    n, k = weight.n // bn, weight.k // bk
    codes, values = (f"tensor<{n}x{bn}x{k}x{bk}x{t}>" for t in ("i8", "f32"))
    x, scale, y = (f"tensor<{s}xf32>" for s in (f"{m}x{k}x{bk}", f"{n}x{k}", f"{m}x{n}x{bn}"))
    four, five = "(a, b, c, d)", "(m, a, b, c, d)"
    return f"""
func.func @main(%x: {x}, %w: {codes}, %scale: {scale}) -> {y} {{
  %zero = arith.constant 0.0 : f32
  %twenty = arith.constant 20 : i32
  %mask = arith.constant 0x87F00000 : i32
  %empty = tensor.empty() : {values}
  %dense = linalg.generic {{
    indexing_maps = [affine_map<{four} -> {four}>, affine_map<{four} -> (a, c)>,
                     affine_map<{four} -> {four}>],
    iterator_types = ["parallel", "parallel", "parallel", "parallel"]
  }} ins(%w, %scale : {codes}, {scale}) outs(%empty : {values}) {{
  ^bb0(%code: i8, %s: f32, %o: f32):{_CODES[weight.scheme.dtype]}
    %scaled = arith.mulf %v, %s : f32
    linalg.yield %scaled : f32
  }} -> {values}
  %target = tensor.empty() : {y}
  %zeros = linalg.fill ins(%zero : f32) outs(%target : {y}) -> {y}
  %y = linalg.generic {{
    indexing_maps = [affine_map<{five} -> (m, c, d)>, affine_map<{five} -> {four}>,
                     affine_map<{five} -> (m, a, b)>],
    iterator_types = ["parallel", "parallel", "parallel", "reduction", "reduction"]
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
