"""Torch programs to compare a compiled model with, built from the same checkpoint reader.

`eager_model` is what a user without qfuse runs: the dequantized model in bf16 under transformers.
`reference_model` is what the numbers should be: f32 throughout, with or without the checkpoint's
own quantization of activations.
"""

from collections.abc import Sequence

import torch
from torch import nn

from qfuse.compiler.frontend.checkpoint import SCALE_SUFFIX, Checkpoint
from qfuse.compiler.frontend.huggingface import empty_model, load_parameters, quantize_like
from qfuse.compiler.frontend.linear import QuantizedLinear
from qfuse.compiler.frontend.step import PreTrained
from qfuse.compiler.torch_ops import dequantize_blocks, quantize_blocks


def eager_model(checkpoint: Checkpoint, dtype: torch.dtype = torch.bfloat16) -> PreTrained:
    """The transformers model with its weights dequantized to `dtype`, on torch's own kernels.

    Activations are not quantized: no eager implementation of that would be fast on a CPU.
    """
    return _dequantized(checkpoint, dtype, simulate_activations=False)


def reference_model(checkpoint: Checkpoint, *, simulate_activations: bool = False) -> PreTrained:
    """The transformers model in f32 throughout.

    With `simulate_activations`, the input of each quantized layer is quantized as the checkpoint
    says (per token and group of K) and dequantized again, both in f32.
    """
    return _dequantized(checkpoint, torch.float32, simulate_activations)


@torch.inference_mode()
def logits(model: PreTrained, ids: Sequence[int]) -> torch.Tensor:
    """Logits [T, V] at every position of one sequence, in the model's dtype."""
    return model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0]


class GreedyDecoder:
    """A greedy decoding loop over a transformers model, one token per step.

    Uses a growing cache (transformers' DynamicCache): on CPU it beats the preallocated
    StaticCache, whose attention reads the whole capacity at every step.
    """

    def __init__(self, model: PreTrained) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache(config=model.config)

    @torch.inference_mode()
    def step(self, ids: Sequence[int]) -> int:
        """Append tokens to the sequence and return the most likely next one."""
        out = self._model(
            input_ids=torch.tensor([list(ids)]),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return int(out.logits[0, -1].argmax())

    def generate(self, prompt: Sequence[int], count: int) -> list[int]:
        """The `count` tokens that follow `prompt`."""
        tokens: list[int] = []
        pending = list(prompt)
        for _ in range(count):
            tokens.append(self.step(pending))
            pending = tokens[-1:]
        return tokens


class FakeQuantizedLinear(nn.Module):
    """A dense linear layer whose input goes through FP8 and back, per token and group."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, input_block: list[int]
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.input_block = input_block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        codes, scale = quantize_blocks(rows, self.input_block)
        values = dequantize_blocks(codes, scale, self.input_block).view(x.shape).to(x.dtype)
        return nn.functional.linear(values, self.weight, self.bias)


def _dequantized(
    checkpoint: Checkpoint, dtype: torch.dtype, simulate_activations: bool
) -> PreTrained:
    model = empty_model(
        checkpoint.config, checkpoint.directory, checkpoint, dtype=dtype, implementation="sdpa"
    )
    quantize_like(model, checkpoint)
    tensors = load_parameters(model, checkpoint)
    for name, module in list(model.named_modules()):
        if not isinstance(module, QuantizedLinear):
            continue
        codes, scale = (tensors.pop(f"{name}.weight{s}") for s in ("", SCALE_SUFFIX))
        weight = dequantize_blocks(codes, scale, module.weight_block).to(dtype)
        if simulate_activations:
            dense: nn.Module = FakeQuantizedLinear(weight, module.bias, module.input_block)
        else:
            dense = nn.Linear(
                module.in_features, module.out_features, module.bias is not None, "meta", dtype
            )
        model.set_submodule(name, dense)
        tensors[f"{name}.weight"] = weight
    _assign(model, tensors)
    return model.eval().requires_grad_(False)


def _assign(model: PreTrained, tensors: dict[str, torch.Tensor]) -> None:
    """Put real tensors in the place of all meta parameters and buffers."""
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if leaf in module._buffers:
            module._buffers[leaf] = tensor
        else:
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    if model.config.tie_word_embeddings:
        model.tie_weights()
