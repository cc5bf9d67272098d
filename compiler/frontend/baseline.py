"""Torch programs to compare a compiled model with, built from the same checkpoint reader.

`eager_model` is what a user without qfuse runs: the dequantized model in bf16 under transformers.
`reference_model` is what the numbers should be: f32 throughout, with or without the checkpoint's
own quantization of activations.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from qfuse.compiler.block_scaled import FP8_MAX
from qfuse.compiler.frontend.experts import (
    Experts,
    QuantizedExperts,
    transformers_experts,
)
from qfuse.compiler.frontend.huggingface import empty_model, load_parameters, quantize_like
from qfuse.compiler.frontend.linear import (
    INPUT_SCALE,
    SCALE,
    WEIGHT,
    ZERO_POINT,
    LinearFormat,
    QuantizedLinear,
)
from qfuse.compiler.frontend.source import Source
from qfuse.compiler.frontend.step import PreTrained
from qfuse.compiler.quantized_linear import ACTIVATION_DTYPE, through_quantization
from qfuse.compiler.torch_glu import apply_glu


def eager_model(source: Source, dtype: torch.dtype = torch.bfloat16) -> PreTrained:
    """The transformers model with its weights dequantized to `dtype`, on torch's own kernels.

    Activations are not quantized: no eager implementation of that would be fast on a CPU.
    """
    return _dequantized(source, dtype, simulate_activations=False)


def reference_model(source: Source, *, simulate_activations: bool = False) -> PreTrained:
    """The transformers model in f32 throughout.

    With `simulate_activations`, the input of each quantized layer is quantized as that layer does
    it and dequantized again, both in f32.
    """
    return _dequantized(source, torch.float32, simulate_activations)


def count_elements(source: Source) -> int:
    """Elements of all tensors of the dequantized model."""
    model = empty_model(source.config, source.path, source)
    return sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))


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
    """A dense linear layer whose input is quantized and dequantized again, as `layer` does it."""

    def __init__(
        self, layer: QuantizedLinear, weight: torch.Tensor, input_scale: torch.Tensor | None
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias, requires_grad=False)
        self.input_scale = input_scale
        self._quantized = layer.quantized_input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._quantized(x, self.input_scale)
        return nn.functional.linear(x, self.weight, self.bias)


class ReferenceExperts(nn.Module):
    """Experts over dense weights, where transformers' own do not compute what the file says.

    With `simulate`, inputs of both products are quantized as those of `experts`, and back.
    Takes over transformers' stacked weights, `gate_up_proj` [E, 2 I, H] and `down_proj` [E, H, I],
    and the GLU and the biases of `experts`.
    """

    def __init__(self, original: Any, experts: Experts, simulate: bool) -> None:
        super().__init__()
        self.formats: tuple[LinearFormat | None, ...] = (None, None)
        if simulate and isinstance(experts, QuantizedExperts):
            self.formats = tuple(experts.formats.values())
        self.gate_up_proj, self.down_proj = original.gate_up_proj, original.down_proj
        self.gate_up_proj_bias = experts.gate_up_proj_bias
        self.down_proj_bias = experts.down_proj_bias
        self.glu = experts.glu

    def forward(
        self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        out = torch.zeros_like(hidden)
        rows = _through_quantization(hidden, self.formats[0])
        for e in top_k_index.unique().tolist():
            token, choice = torch.where(top_k_index == e)
            both = nn.functional.linear(rows[token], self.gate_up_proj[e])
            if self.gate_up_proj_bias is not None:
                both = both + self.gate_up_proj_bias[e]
            inner = apply_glu(self.glu, *both.chunk(2, -1))
            inner = _through_quantization(inner, self.formats[1])
            result = nn.functional.linear(inner, self.down_proj[e])
            if self.down_proj_bias is not None:
                result = result + self.down_proj_bias[e]
            out.index_add_(0, token, result * top_k_weights[token, choice, None])
        return out


def _through_quantization(x: torch.Tensor, format: LinearFormat | None) -> torch.Tensor:
    if format is None or not format.input_block:
        return x
    dtype = ACTIVATION_DTYPE if format.weight_dtype in FP8_MAX else torch.int8
    block = list(format.input_block)
    return through_quantization(x.float(), block, format.input_format, dtype).to(x.dtype)


def _dequantized(source: Source, dtype: torch.dtype, simulate_activations: bool) -> PreTrained:
    model = empty_model(source.config, source.path, source, dtype=dtype, implementation="sdpa")
    experts = transformers_experts(model)
    quantize_like(model, source)
    loaded = load_parameters(model, source)
    tensors: dict[str, torch.Tensor] = {}
    replaced: set[str] = set()
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            own = {leaf: f"{name}.{leaf}" for leaf in (WEIGHT, SCALE, ZERO_POINT, INPUT_SCALE)}
            replaced |= set(own.values())
            codes, scales = loaded[own[WEIGHT]], loaded[own[SCALE]]
            zero_points, input_scale = loaded.get(own[ZERO_POINT]), loaded.get(own[INPUT_SCALE])
            values = module.dequantize(codes, scales, zero_points).to(dtype)
            tensors[f"{name}.{WEIGHT}"] = values
            if simulate_activations:
                dense: nn.Module = FakeQuantizedLinear(module, values, input_scale)
            else:
                dense = nn.Linear(
                    module.in_features, module.out_features, module.bias is not None, "meta", dtype
                )
            model.set_submodule(name, dense)
        elif isinstance(module, Experts):
            if isinstance(module, QuantizedExperts):
                own = {leaf: f"{name}.{leaf}" for leaf, _ in module.named_parameters()}
                stored = {leaf: loaded[whole] for leaf, whole in own.items()}
                for leaf in module.formats:
                    replaced |= {own[n] for n in own if n.startswith(leaf) and "bias" not in n}
                    tensors[own[leaf]] = module.dequantize(leaf, stored).to(dtype)
            original = experts[name]
            simulate = simulate_activations and isinstance(module, QuantizedExperts)
            if simulate or not module.ordinary:
                original = ReferenceExperts(original, module, simulate)
            model.set_submodule(name, original)
    tensors |= {name: loaded[name] for name in loaded if name not in replaced}
    assign(model, tensors)
    return model.eval().requires_grad_(False)


def assign(model: PreTrained, tensors: Mapping[str, torch.Tensor]) -> None:
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
