"""The linear layer over FP8 weights, and putting it into a model in place of `nn.Linear`."""

from collections.abc import Callable

import torch
from torch import nn

from qfuse.compiler import torch_ops
from qfuse.dialects.errors import QfuseError


class QuantizedLinear(nn.Module):
    """y = x W^T + b with W [N, K] in FP8 and one f32 scale per block, as on disk.

    The parameters carry the names of Hugging Face's FP8 checkpoints: `weight`,
    `weight_scale_inv` (a multiplier, [ceil(N/bn), ceil(K/bk)]) and, if there is one, `bias`.
    `input_block` [1, g] quantizes the input per token and group of g; () leaves it as it is.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        weight_scale_inv: torch.Tensor,
        bias: torch.Tensor | None,
        weight_block: tuple[int, int],
        input_block: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight_block, self.input_block = list(weight_block), list(input_block)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale_inv = nn.Parameter(weight_scale_inv, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.qfuse.quantized_linear(
            x,
            self.weight,
            self.weight_scale_inv,
            self.bias,
            self.weight_block,
            self.input_block,
        )

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, weight_block={self.weight_block}"


def scale_shape(rows: int, columns: int, block: tuple[int, int]) -> tuple[int, int]:
    """Shape of the scales of a weight [rows, columns]: both divided by the block, rounding up."""
    return -(-rows // block[0]), -(-columns // block[1])


def empty_quantized_linear(
    linear: nn.Linear, weight_block: tuple[int, int], dtype: torch.dtype = torch.float8_e4m3fn
) -> QuantizedLinear:
    """The FP8 form of `linear` on meta: right shapes, no data.  Its bias is taken over."""
    shape = (linear.out_features, linear.in_features)
    return QuantizedLinear(
        torch.empty(shape, dtype=dtype, device="meta"),
        torch.empty(scale_shape(*shape, weight_block), dtype=torch.float32, device="meta"),
        linear.bias,
        weight_block,
        (1, weight_block[1]),
    )


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
    qualified name ends in one of `skip` stay.  A layer that is FP8 already (transformers'
    `FP8Linear`) keeps its codes, scales and block.  Raises QfuseError on a weight that is not
    finite.
    """
    if len(weight_block) != 2 or min(weight_block) < 1:
        raise QfuseError(f"weight_block {list(weight_block)} is not two positive extents")

    def convert(name: str, linear: nn.Linear) -> nn.Module | None:
        if any(name == s or name.endswith(f".{s}") for s in skip):
            return None
        weight = linear.weight.detach()
        if weight.dtype in torch_ops.FP8_MAX:
            return _adopt(name, linear)
        if weight.is_meta:
            return empty_quantized_linear(linear, weight_block)
        if not weight.isfinite().all():
            raise QfuseError(f"{name}.weight has values that are not finite; FP8 cannot scale it")
        codes, scale = torch_ops.quantize_blocks(weight, weight_block)
        input_block = (1, weight_block[1]) if quantize_input else ()
        return QuantizedLinear(codes, scale, linear.bias, weight_block, input_block)

    return replace_linears(model, convert)


def _adopt(name: str, linear: nn.Linear) -> QuantizedLinear:
    """The layer that shares the tensors of transformers' `FP8Linear`."""
    scale = getattr(linear, "weight_scale_inv", None)
    block = getattr(linear, "block_size", None)
    if scale is None or block is None or getattr(linear, "activation_scale", None) is not None:
        raise QfuseError(
            f"{name} is an FP8 layer with no block scales or with static activations; "
            "supported: weight_scale_inv per block, dynamic activations"
        )
    return QuantizedLinear(
        linear.weight.detach(),
        scale.detach().float(),
        linear.bias,
        (block[0], block[1]),
        (1, block[1]),
    )


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
