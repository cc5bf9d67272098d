"""The linear layer of any quantization scheme, and putting it in the place of `nn.Linear`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from qfuse.compiler import torch_ops
from qfuse.compiler.packed_weights import BITS, NUMBERS, columns_of, dequantize_weight
from qfuse.compiler.quantized_linear import input_dtype, through_quantization
from qfuse.dialects.errors import QfuseError


@dataclass(frozen=True)
class LinearFormat:
    """How the layer [N, K] of some model is quantized: what is known before its tensors are read.

    The fields are the arguments of `qfuse::quantized_linear`, and the types of the tensors.
    """

    weight_block: tuple[int, int]
    input_block: tuple[int, ...] = ()
    packing: str = "none"
    input_format: str = "dynamic"
    weight_dtype: torch.dtype = torch.float8_e4m3fn
    scale_dtype: torch.dtype = torch.float32
    zero_points: bool = False

    def shapes(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of each tensor but the bias, by its name in `QuantizedLinear`."""
        scales = scale_shape(rows, columns, self.weight_block)
        numbers = NUMBERS.get(self.packing, 1)
        shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            WEIGHT: ((rows, columns * BITS[self.packing] // 8), self.weight_dtype),
            SCALE: ((scales[0], scales[1] * numbers), self.scale_dtype),
        }
        if self.zero_points:
            shapes[ZERO_POINT] = (scales, torch.int8)
        if self.input_block and self.input_format == "static":
            shapes[INPUT_SCALE] = ((1,), torch.float32)
        return shapes


WEIGHT, SCALE = "weight", "weight_scale_inv"
ZERO_POINT, INPUT_SCALE = "weight_zero_point", "input_scale"


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W [N, K] quantized, stored as `qfuse::quantized_linear` takes it.

    The parameters carry the names of Hugging Face's FP8 checkpoints: `weight`,
    `weight_scale_inv` (a multiplier, [ceil(N/bn), ceil(K/bk)]) and, where there are any, `bias`,
    `weight_zero_point` and `input_scale`.  `input_block` [1, g] quantizes the input per token and
    group of g, as `input_format` says; () leaves it as it is.
    """

    weight: nn.Parameter
    weight_scale_inv: nn.Parameter
    bias: nn.Parameter | None
    weight_zero_point: nn.Parameter | None
    input_scale: nn.Parameter | None

    def __init__(
        self,
        weight: torch.Tensor,
        weight_scale_inv: torch.Tensor,
        bias: torch.Tensor | None,
        weight_block: tuple[int, int],
        input_block: tuple[int, ...],
        *,
        packing: str = "none",
        input_format: str = "dynamic",
        weight_zero_point: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape[0], columns_of(weight, packing)
        self.weight_block, self.input_block = list(weight_block), list(input_block)
        self.packing, self.input_format = packing, input_format
        tensors = {
            WEIGHT: weight,
            SCALE: weight_scale_inv,
            "bias": bias,
            ZERO_POINT: weight_zero_point,
            INPUT_SCALE: input_scale,
        }
        for name, tensor in tensors.items():
            parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
            self.register_parameter(name, parameter)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.qfuse.quantized_linear(
            x,
            self.weight,
            self.weight_scale_inv,
            self.bias,
            self.weight_block,
            self.input_block,
            self.packing,
            self.input_format,
            self.weight_zero_point,
            self.input_scale,
        )

    def dequantize(
        self,
        weight: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """f32 values [N, K] of tensors of this layer's format."""
        return dequantize_weight(weight, scale, self.weight_block, self.packing, zero_point)

    def quantized_input(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """The values of `x` that this layer multiplies, rounded to x's type."""
        if not self.input_block:
            return x
        dtype = input_dtype(self.weight)
        values = through_quantization(x.float(), self.input_block, self.input_format, dtype, scale)
        return values.to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, weight_block={self.weight_block}, "
            f"packing={self.packing!r}, input_block={self.input_block}"
        )


def scale_shape(rows: int, columns: int, block: tuple[int, int]) -> tuple[int, int]:
    """Shape of the scales of a weight [rows, columns]: both divided by the block, rounding up."""
    return -(-rows // block[0]), -(-columns // block[1])


def empty_quantized_linear(linear: nn.Linear, format: LinearFormat) -> QuantizedLinear:
    """The quantized form of `linear` on meta: right shapes, no data.  Its bias is taken over."""
    shapes = format.shapes(linear.out_features, linear.in_features)
    return quantized_linear(
        format,
        {
            name: torch.empty(shape, dtype=dtype, device="meta")
            for name, (shape, dtype) in shapes.items()
        },
        linear.bias,
    )


def quantized_linear(
    format: LinearFormat, tensors: dict[str, torch.Tensor], bias: torch.Tensor | None
) -> QuantizedLinear:
    """The layer of a format over `tensors`, which `LinearFormat.shapes` names."""
    return QuantizedLinear(
        tensors[WEIGHT],
        tensors[SCALE],
        bias,
        format.weight_block,
        format.input_block,
        packing=format.packing,
        input_format=format.input_format,
        weight_zero_point=tensors.get(ZERO_POINT),
        input_scale=tensors.get(INPUT_SCALE),
    )


def block_format(
    block: tuple[int, int], dtype: torch.dtype = torch.float8_e4m3fn, kind: str = "dynamic"
) -> LinearFormat:
    """FP8 in blocks, the input quantized per token and group of the block's columns."""
    return LinearFormat(block, (1, block[1]), input_format=kind, weight_dtype=dtype)


def quantize_linears(
    model: nn.Module,
    weight_block: tuple[int, int] = (128, 128),
    *,
    skip: tuple[str, ...] = ("lm_head",),
    quantize_input: bool = True,
) -> nn.Module:
    """Replace the `nn.Linear`s of any torch model by FP8 ones, in place; returns the model.

        model = quantize_linears(model)
        fast = torch.compile(model, backend="qfuse")

    Weights become float8_e4m3fn with one f32 scale per `weight_block`; with `quantize_input` the
    inputs are quantized on the fly per token and group of `weight_block[1]`.  Modules whose
    qualified name ends in one of `skip` stay.  A layer that another library quantized (see
    quantized_modules.py) keeps its codes and scales.  Raises QfuseError on a weight that is not
    finite.
    """
    # imported here, because it makes layers of this file
    from qfuse.compiler.frontend.quantized_modules import adopt, without_decompression

    if len(weight_block) != 2 or min(weight_block) < 1:
        raise QfuseError(f"weight_block {list(weight_block)} is not two positive extents")

    def convert(name: str, linear: nn.Linear) -> nn.Module | None:
        if (adopted := adopt(name, linear)) is not None:
            return adopted
        if any(name == s or name.endswith(f".{s}") for s in skip):
            return None
        weight = linear.weight.detach()
        if weight.is_meta:
            return empty_quantized_linear(linear, block_format(weight_block))
        if not weight.isfinite().all():
            raise QfuseError(f"{name}.weight has values that are not finite; FP8 cannot scale it")
        codes, scale = torch_ops.quantize_blocks(weight, weight_block)
        input_block = (1, weight_block[1]) if quantize_input else ()
        return QuantizedLinear(codes, scale, linear.bias, weight_block, input_block)

    return without_decompression(replace_linears(model, convert))


def replace_linears(
    model: nn.Module, convert: Callable[[str, nn.Linear], nn.Module | None]
) -> nn.Module:
    """Put `convert(name, linear)` in the place of every `nn.Linear` it does not return None for."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and (new := convert(name, module)) is not None:
            if not name:
                return new
            model.set_submodule(name, new)
    return model
