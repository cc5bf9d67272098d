"""Weights and activations that the CPU suites multiply: their types, seeded tensors, values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from qfuse.compiler.block_scaled import dequantize_blocks, quantize_blocks
from qfuse.compiler.packed_weights import dequantize_weight
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import PACKINGS, Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.pages import prefer_large_pages
from qfuse.lowering.cpu.weights import pack_weight
from qfuse.tools.bench.cpu_limits import last_level_cache
from qfuse.tools.bench.timing import buffer_sets

ALL = 0
"""Stands in a block for all columns."""

TORCH = {
    "bf16": torch.bfloat16,
    "f8E4M3FN": torch.float8_e4m3fn,
    "i8": torch.int8,
    "f32": torch.float32,
    "f16": torch.float16,
    "f8E8M0FNU": torch.float8_e8m0fnu,
}

_DEVIATIONS = {
    **{"f8E4M3FN": 0.62, "i8": 74.0, "i4": 4.6, "f4E2M1FN": 2.93},
    **{"q4_k": 258.0, "q6_k": 1370.0},
}
"""Of random weights whose scales are 1: of e4m3 below 2, of K-quants with random multipliers."""


@dataclass(frozen=True)
class CpuScheme:
    """How a product is quantized; `w` or `x` is None where weights or activations are bf16."""

    name: str
    dtype: str
    w: Scheme | None = None
    x: Scheme | None = None

    @property
    def x_dtype(self) -> str:
        if self.x is None:
            return "bf16"
        return "f8E4M3FN" if self.dtype == "f8E4M3FN" else "i8"

    @property
    def integers(self) -> bool:
        """Whether codes are multiplied by codes, as whole numbers."""
        return self.x_dtype == "i8"

    def weight_type(self, n: int, k: int) -> Shaped:
        return Shaped((n, k), self.dtype, self.w and _whole(self.w, k))

    def x_type(self, k: int) -> Shaped:
        return Shaped((DYNAMIC, k), self.x_dtype, self.x and _whole(self.x, k))

    def fits(self, k: int) -> bool:
        """Whether rows of k columns can be stored: blocks of packed elements must be full."""
        return k % self.multiple == 0

    @property
    def multiple(self) -> int:
        """What columns have to be a multiple of."""
        packed = self.w is not None and self.w.packing != "none"
        return max(self.w.block[1], 1) if packed and self.w else 1


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        CpuScheme("fp8", "f8E4M3FN", Scheme((128, 128), "f32"), Scheme((1, 128), "f32")),
        CpuScheme("fp8-a16", "f8E4M3FN", Scheme((128, 128), "f32")),
        CpuScheme("int8", "i8", Scheme((1, ALL), "f32"), Scheme((1, ALL), "f32")),
        CpuScheme("q8_0", "i8", Scheme((1, 32), "f16"), Scheme((1, 32), "f16", "q8_1")),
        CpuScheme("int4", "i4", Scheme((1, 32), "f16", "int4"), Scheme((1, 32), "f16", "q8_1")),
        CpuScheme("int4-a16", "i4", Scheme((1, 32), "f16", "int4")),
        CpuScheme("int4-g64", "i4", Scheme((1, 64), "f16", "int4"), Scheme((1, 32), "f16", "q8_1")),
        CpuScheme("int4-g128", "i4", Scheme((1, 128), "f16", "int4"), Scheme((1, 128), "f32")),
        CpuScheme("int4-g128-a16", "i4", Scheme((1, 128), "f16", "int4")),
        CpuScheme("mxfp4", "f4E2M1FN", Scheme((1, 32), "f8E8M0FNU", "fp4")),
        CpuScheme("q4_k", "i4", Scheme((1, 256), "i8", "q4_k"), Scheme((1, 32), "f16", "q8_1")),
        CpuScheme("q6_k", "i6", Scheme((1, 256), "i8", "q6_k"), Scheme((1, 32), "f16", "q8_1")),
        CpuScheme("bf16", "bf16"),
    )
}
"""By name: block-scaled FP8, W8A8, group-wise INT4, MXFP4, ggml's, and none at all.

Groups of INT4 are of 32 columns, or as many as g says; a16 has bf16 activations, as MXFP4 does.
"""

ALIASES = {"q4_0": "int4"}
"""What is stored the same way."""


def parse_schemes(text: str | None) -> list[CpuScheme]:
    """Names with commas between, all by default; raises QfuseError for others."""
    names = [part.strip() for part in text.split(",")] if text else list(SCHEMES)
    names = [ALIASES.get(name, name) for name in names]
    if unknown := [name for name in names if name not in SCHEMES]:
        raise QfuseError(f"scheme '{unknown[0]}' is unknown; use {', '.join(SCHEMES)}")
    return [SCHEMES[name] for name in names]


class Weight:
    """A random weight [N, K], in the forms that what is measured wants: made once, when asked for.

    Of each form there are as many copies as do not fit the last level cache together.
    """

    def __init__(self, scheme: CpuScheme, n: int, k: int, seed: int = 0) -> None:
        if not scheme.fits(k):
            raise QfuseError(
                f"{scheme.name} has blocks of {scheme.multiple} columns; {k} are no multiple"
            )
        self.scheme, self.n, self.k = scheme, n, k
        self.type = scheme.weight_type(n, k)
        self.components = random_weight(self.type, seed)
        """Codes and scales, or the weight itself where it is not quantized."""

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.components)

    @cached_property
    def values(self) -> torch.Tensor:
        """f32 [N, K]."""
        return dequantized(self.components, self.type)

    @cached_property
    def dense(self) -> list[torch.Tensor]:
        """bf16 [N, K]: what an unquantized model holds."""
        return copies([self.values.bfloat16()], 2 * self.n * self.k)[0]

    @cached_property
    def packed(self) -> list[list[torch.Tensor]]:
        """As our kernels have them: codes, and scales if there are any."""
        block, packing = (1, self.k), self.type.dtype
        if self.type.scheme is not None:
            block, packing = self.type.scheme.block, self.type.scheme.packing
        packed = pack_weight([self.components], block, packing)
        return copies(packed, self.bytes, in_large_pages)

    @cached_property
    def stored(self) -> list[list[torch.Tensor]]:
        """As a checkpoint has them."""
        return copies(self.components, self.bytes)


def copies(
    tensors: Sequence[torch.Tensor],
    bytes_: int,
    copy: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
) -> list[list[torch.Tensor]]:
    """Each of `tensors`, which have `bytes_` together, and its copies elsewhere in memory."""
    count = buffer_sets(bytes_, last_level_cache())
    return [[tensor, *(copy(tensor) for _ in range(count - 1))] for tensor in tensors]


def in_large_pages(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in such memory as packed weights have."""
    made = torch.empty_like(tensor)
    prefer_large_pages(made.data_ptr(), made.nbytes)
    return made.copy_(tensor)


def dequantized(components: Sequence[torch.Tensor], type_: Shaped) -> torch.Tensor:
    """f32 values of a weight."""
    if type_.scheme is None:
        return components[0].float()
    codes, scale = components
    return dequantize_weight(codes, scale, type_.scheme.block, type_.scheme.packing)


def random_weight(type_: Shaped, seed: int, gain: float = 1.0) -> tuple[torch.Tensor, ...]:
    """The components of a weight, with which products are of about the size of x times `gain`."""
    generator = torch.Generator().manual_seed(seed)
    scheme = type_.scheme
    if scheme is None:  # by other numbers than the activations, which are normal, too
        generator.manual_seed(seed + (1 << 16))
        w = torch.empty(type_.shape).normal_(0, gain * type_.shape[1] ** -0.5, generator=generator)
        return (w.to(TORCH[type_.dtype]),)
    codes = torch.empty(type_.data_shape, dtype=torch.uint8)
    codes.random_(0, 256, generator=generator)
    if type_.dtype == "f8E4M3FN":  # without the exponent's highest bit: below 2, and no NaN
        codes.bitwise_and_(0xBF)
    kind = scheme.packing if scheme.packing in _DEVIATIONS else type_.dtype
    size = gain / (_DEVIATIONS[kind] * type_.shape[1] ** 0.5)
    if scheme.packing in ("q4_k", "q6_k"):
        scale = _k_quant_scales(scheme.packing, type_, size, generator)
    else:
        scale = (torch.rand(type_.scale_shape, generator=generator) + 0.5) * size
        if scheme.scale == "f8E8M0FNU":  # an exponent, to the nearest
            scale = scale.log2().round().exp2()
        scale = scale.to(TORCH[scheme.scale])
    return codes.view(TORCH.get(type_.data_dtype, torch.int8)), scale


def _k_quant_scales(
    packing: str, type_: Shaped, size: float, generator: torch.Generator
) -> torch.Tensor:
    """The bytes beside the codes: random multipliers, and factors that make them of a size."""
    numbers = PACKINGS[packing].numbers
    made = torch.empty(type_.shape[0], type_.shape[1] // 256, numbers, dtype=torch.uint8)
    made.random_(0, 256, generator=generator)
    factors = torch.tensor([size, 7.5 * size]).half().view(torch.uint8)
    if packing == "q4_k":  # the minimum takes off what codes are on average
        made[..., :4] = factors
    else:
        made[..., 16:] = factors[:2]
    return made.flatten(1).view(torch.int8)


@dataclass(frozen=True)
class Activations:
    """x [M, K] in bf16, and as the kernels of a scheme read it."""

    x: torch.Tensor
    tensors: tuple[torch.Tensor, ...]
    values: torch.Tensor
    """f32: what `tensors` stand for."""

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)


def make_activations(scheme: CpuScheme, m: int, k: int, seed: int = 0) -> Activations:
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(seed))
    return quantized(scheme, x.bfloat16())


def quantized(scheme: CpuScheme, x: torch.Tensor) -> Activations:
    """x [M, K] as products of a scheme read it."""
    if scheme.x is None:
        return Activations(x, (x,), x.float())
    m, k = x.shape
    block = _whole(scheme.x, k).block
    codes, scale = quantize_blocks(x, block, TORCH[scheme.x_dtype], TORCH[scheme.x.scale])
    values = dequantize_blocks(codes, scale, block)
    if scheme.x.packing == "q8_1":  # each scale, and the sum of its block
        sums = values.view(m, -1, block[1]).sum(-1).to(scale.dtype)
        scale = torch.stack((scale, sums), -1).flatten(1)
    return Activations(x, (codes, scale), values)


def product_text(x: Shaped, w: Shaped, result: Shaped) -> str:
    """A module with one product, plain in and out, as its only kernel."""
    return (
        f"func.func private @product(%x: {x}, %w: {w}) -> {result} attributes {{qfuse.kernel}} {{\n"
        '  %y = "qfuse.matmul"(%x, %w) ({\n  ^bb0(%acc: f32):\n'
        '  "qfuse.yield"(%acc) : (f32) -> ()\n'
        f"  }}) {{parts = array<i64: {w.shape[0]}>, maps = [],\n"
        "    operandSegmentSizes = array<i32: 1, 1, 0, 0, 0, 0, 0, 0>,\n"
        f"    resultSegmentSizes = array<i32: 1, 0, 0, 0>}} : ({x}, {w}) -> {result}\n"
        f"  return %y : {result}\n}}\n"
    )


def _whole(scheme: Scheme, k: int) -> Scheme:
    rows, columns = scheme.block
    return replace(scheme, block=(rows, columns or k))
