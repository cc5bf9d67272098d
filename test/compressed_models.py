"""Tiny checkpoints of compressed-tensors, compressed and saved by the library itself."""

from pathlib import Path
from typing import Any

import torch
from gguf_models import deviation

WIDTHS = {
    "hidden_size": 128,
    "intermediate_size": 200,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 96,
    "max_position_embeddings": 64,
}


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}


def quantized_model(
    groups: dict[str, Any],
    ignore: list[str] | None = None,
    architecture: str = "qwen3",
    **choices: Any,
) -> Any:
    """A model in bf16 with random weights, scales set as a calibration would; in eval mode.

    Experts have one linear layer for each matrix, as in released checkpoints.  `groups` are the
    `config_groups` of a `QuantizationConfig`: presets or schemes.
    """
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
    )
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    own = EXPERTS if architecture == "qwen3_moe" else {}
    config = AutoConfig.for_model(architecture, **(WIDTHS | own | choices))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, deviation(name, parameter.shape[-1]))
    _take_experts_apart(model)
    if ignore is None:
        ignore = ["lm_head", *(["re:.*mlp.gate$"] if own else [])]
    quantization = QuantizationConfig(config_groups=groups, ignore=ignore)
    quantization.quantization_status = QuantizationStatus.FROZEN
    apply_quantization_config(model, quantization)
    for module in model.modules():
        if getattr(module, "quantization_scheme", None) is not None:
            calibrate(module)
    return model


def _take_experts_apart(model: Any) -> None:
    """transformers' stacked experts become a module of three linear layers each."""
    stacked = {n: m for n, m in model.named_modules() if hasattr(m, "gate_up_proj")}
    for name, experts in stacked.items():
        each = torch.nn.ModuleList()
        for both, down in zip(experts.gate_up_proj, experts.down_proj, strict=True):
            weights = dict(
                zip(("gate_proj", "up_proj", "down_proj"), (*both.chunk(2), down), strict=True)
            )
            expert = torch.nn.Module()
            for leaf, weight in weights.items():
                linear = torch.nn.Linear(*reversed(weight.shape), bias=False, dtype=weight.dtype)
                linear.weight = torch.nn.Parameter(weight.detach().clone())
                expert.add_module(leaf, linear)
            each.append(expert)
        model.set_submodule(name, each)


def calibrate(linear: Any) -> None:
    """Scales and zero points of a linear's weight from its range; a scale for inputs."""
    from compressed_tensors.quantization.utils import calculate_qparams

    args, weight = linear.quantization_scheme.weights, linear.weight.data.float()
    tiles = _tiles(weight, args)
    scale, zero = calculate_qparams(tiles.amin((1, 3)), tiles.amax((1, 3)), args)
    with torch.no_grad():
        shape = linear.weight_scale.shape
        linear.weight_scale.copy_(scale.reshape(shape))
        if getattr(linear, "weight_zero_point", None) is not None:
            linear.weight_zero_point.copy_(zero.reshape(shape))
        if getattr(linear, "input_scale", None) is not None:
            linear.input_scale.fill_(0.03)


def _tiles(weight: torch.Tensor, args: Any) -> torch.Tensor:
    """[blocks, rows of a block, blocks, columns of a block]."""
    rows, columns = weight.shape
    strategy = getattr(args.strategy, "value", args.strategy)
    height, width = {
        "tensor": lambda: (rows, columns),
        "channel": lambda: (1, columns),
        "group": lambda: (1, args.group_size),
        "block": lambda: tuple(args.block_structure),
    }[strategy]()
    padded = torch.nn.functional.pad(weight, (0, -columns % width, 0, -rows % height))
    return padded.unflatten(1, (-1, width)).unflatten(0, (-1, height))


def save(path: Path, model: Any) -> None:
    """Compress the model in place and save it, as llm-compressor does."""
    from compressed_tensors.compressors import ModelCompressor

    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(path)
    compressor.update_config(path)


def decompressed(model: Any) -> dict[str, torch.Tensor]:
    """What the library makes of each compressed weight, in the type of its scales, by layer."""
    from compressed_tensors.compressors import BaseCompressor

    weights = {}
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            compressor = BaseCompressor.get_value_from_registry(
                getattr(scheme.format, "value", scheme.format)
            )
            state = {k: v.detach() for k, v in module.state_dict().items()}
            weights[name] = compressor.decompress(state, scheme)["weight"]
    return weights
