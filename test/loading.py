"""What the tests of all readers do with a file: load it, and look at each layer."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qfuse.compiler.frontend import baseline
from qfuse.compiler.frontend.huggingface import (
    empty_model,
    import_checkpoint,
    load_parameters,
    quantize_like,
)
from qfuse.compiler.frontend.lazy_tensors import LazyTensors
from qfuse.compiler.frontend.linear import QuantizedLinear
from qfuse.compiler.frontend.source import open_source
from qfuse.dialects.errors import QfuseError


def load(path: Path, dtype: torch.dtype | None = None) -> tuple[Any, LazyTensors]:
    """The model of a file on meta, with operators of qfuse's, and its tensors."""
    source = open_source(path)
    model = empty_model(source.config, source.path, source, dtype, "sdpa")
    quantize_like(model, source)
    return model, load_parameters(model, source)


def layers(model: Any) -> dict[str, QuantizedLinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLinear)}


def values(model: Any, tensors: LazyTensors) -> dict[str, torch.Tensor]:
    """f32 values of the weight of each quantized layer, by the layer's name."""
    leaves = ("weight", "weight_scale_inv", "weight_zero_point")
    return {
        name: layer.dequantize(*(tensors.get(f"{name}.{leaf}") for leaf in leaves))
        for name, layer in layers(model).items()
    }


@torch.no_grad()
def logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Of the model of a file in f32, its quantized layers computed by the operator."""
    model, tensors = load(path, torch.float32)
    baseline.assign(model, tensors)
    return model(ids, use_cache=False).logits


@torch.no_grad()
def reference(path: Path, ids: torch.Tensor, simulate_activations: bool = False) -> torch.Tensor:
    """Of transformers' model in f32, weights dequantized."""
    source = open_source(path)
    model = baseline.reference_model(source, simulate_activations=simulate_activations)
    return model(ids, use_cache=False).logits


def error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference, relative to the expected one's."""
    return float((value.float() - expected.float()).norm() / expected.float().norm())


def refuse(path: Path, *fragments: str) -> None:
    """Importing raises one line that holds each of the fragments."""
    with pytest.raises(QfuseError) as caught:
        import_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    for fragment in fragments:
        assert fragment in text
