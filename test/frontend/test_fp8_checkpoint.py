"""Hugging Face FP8 with other scales than one per block, dynamic: what loads, what is refused."""

import json

import pytest
import torch
from loading import error, layers, load, logits, reference, refuse, values

from qfuse.compiler.block_scaled import dequantize_blocks, quantize_blocks
from qfuse.compiler.frontend.huggingface import import_config

UP = "model.layers.0.mlp.up_proj"
IDS = torch.arange(12)[None] * 7 % 256


def requantized(editable, block, scale_of, **quantization):
    """A checkpoint whose weights are quantized again; `scale_of` makes what the file stores."""
    model = editable()
    expected = {}

    def edit(tensors):
        for name in [n for n in tensors if n.endswith("_scale_inv")]:
            weight = name.removesuffix("_scale_inv")
            dense = dequantize_blocks(tensors[weight], tensors.pop(name), (128, 128))
            codes, scale = quantize_blocks(dense, block or tuple(dense.shape))
            tensors[weight] = codes
            layer = weight.removesuffix(".weight")
            expected[layer] = dequantize_blocks(codes, scale, block or tuple(dense.shape))
            tensors |= {f"{layer}.{leaf}": t for leaf, t in scale_of(scale, dense).items()}

    model.tensors(edit)
    config = json.loads((model.path / "config.json").read_text())
    config["quantization_config"] |= {"weight_block_size": None} | quantization
    (model.path / "config.json").write_text(json.dumps(config))
    return model, expected


SCALES = {
    "scalar": lambda s, _: {"weight_scale_inv": s.reshape(())},
    "one": lambda s, _: {"weight_scale": s.reshape(1)},
}


@pytest.mark.parametrize("stored", SCALES)
def test_per_tensor(editable, stored):
    """Equal scales for all rows, exactly; inputs are quantized per token."""
    model, expected = requantized(editable, None, SCALES[stored])
    net, tensors = load(model.path)
    for name, value in values(net, tensors).items():
        assert torch.equal(value, expected[name]), name
    assert tensors[f"{UP}.weight_scale_inv"].shape == (200, 1)
    assert (layers(net)[UP].input_block, layers(net)[UP].input_format) == ([1, 128], "dynamic")
    # E4M3 keeps four bits of inputs
    assert error(logits(model.path, IDS), reference(model.path, IDS)) < 0.03


def test_per_channel(editable):
    """Blocks wider than any row of the tiny model."""
    model, expected = requantized(editable, (1, 512), lambda s, _: {"weight_scale": s[:, 0]})
    for name, value in values(*load(model.path)).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("leaf", ["activation_scale", "input_scale"])
def test_static_inputs(editable, leaf):
    model, _ = requantized(
        editable,
        None,
        lambda s, _: {"weight_scale_inv": s.reshape(()), leaf: torch.tensor(0.01)},
        activation_scheme="static",
    )
    net, tensors = load(model.path)
    layer = layers(net)[UP]
    assert (layer.input_format, layer.input_block) == ("static", [1, 128])
    assert torch.equal(tensors[f"{UP}.input_scale"], torch.tensor([0.01]))
    simulated = reference(model.path, IDS, simulate_activations=True)
    # the same computation, but for the order of f32 sums, which may move a code
    assert error(logits(model.path, IDS), simulated) < 4e-3


def test_static_inputs_beside_blocks(editable):
    model = editable()
    model.quantization(activation_scheme="static")

    def edit(tensors):
        for name in [n for n in tensors if n.endswith("_scale_inv")]:
            layer = name.removesuffix(".weight_scale_inv")
            tensors[f"{layer}.activation_scale"] = torch.tensor([0.01])

    model.tensors(edit)
    layer = layers(load(model.path)[0])[UP]
    assert (layer.weight_block, layer.input_block) == ([128, 128], [1, 128])
    assert layer.input_format == "static"


def test_scales_of_powers_of_two(editable):
    """`scale_fmt` ue8m0: stored as e8m0, and inputs get such scales, too."""
    model = editable()
    model.quantization(scale_fmt="ue8m0")

    def edit(tensors):
        for name in [n for n in tensors if n.endswith("_scale_inv")]:
            tensors[name] = tensors[name].to(torch.float8_e8m0fnu)

    model.tensors(edit)
    net, tensors = load(model.path)
    assert layers(net)[UP].input_format == "e8m0"
    scale = tensors[f"{UP}.weight_scale_inv"]
    assert scale.dtype == torch.float32 and torch.equal(scale.log2(), scale.log2().round())
    assert error(logits(model.path, IDS), reference(model.path, IDS)) < 0.03


def test_written_by_transformers(tmp_path):
    """`replace_with_fp8_linear` and `save_pretrained`: its own names and shapes."""
    from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import replace_with_fp8_linear

    torch.manual_seed(0)
    quantization = FineGrainedFP8Config(weight_block_size=(64, 32))
    config = AutoConfig.for_model(
        "llama",
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        max_position_embeddings=32,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    dense = {n: p.detach().float() for n, p in model.named_parameters() if p.dim() > 1}
    replace_with_fp8_linear(model, ["lm_head"], quantization)
    expected = {}
    for name, module in model.named_modules():
        if type(module).__name__ == "FP8Linear":
            codes, scale = quantize_blocks(dense[f"{name}.weight"], (64, 32))
            module.weight = torch.nn.Parameter(codes, requires_grad=False)
            module.weight_scale_inv = torch.nn.Parameter(scale, requires_grad=False)
            expected[name] = dequantize_blocks(codes, scale, (64, 32))
    model.config.quantization_config = quantization
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert stored["quant_method"] == "fp8" and stored["weight_block_size"] == [64, 32]
    ours = values(*load(tmp_path))
    assert ours.keys() == expected.keys() and len(ours) == 7
    assert all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize(
    ("quantization", "fragment"),
    [
        ({"scale_fmt": "nf4"}, 'scale_fmt is "nf4"; supported: "float" or "ue8m0"'),
        ({"fmt": "e3m4"}, 'fmt is "e3m4"; supported: "e4m3" or "e5m2"'),
        ({"expert_dtype": "fp4"}, 'expert_dtype is "fp4"; supported: "fp8"'),
        ({"activation_scheme": "static"}, ".activation_scale is missing from "),
    ],
)
def test_entries_without_a_meaning(editable, quantization, fragment):
    model = editable()
    model.quantization(**quantization)
    refuse(model.path, fragment)


def test_scales_of_another_shape(editable):
    model, _ = requantized(editable, None, lambda s, _: {"weight_scale_inv": s.repeat(3, 1)})
    refuse(model.path, "has shape [3, 1]; one scale, or one for each of ")


@pytest.mark.parametrize("value", [[0.0], [-1.0], [1.0, 2.0]])
def test_static_scales_that_are_none(editable, value):
    model, _ = requantized(
        editable,
        None,
        lambda s, _: {"weight_scale_inv": s, "input_scale": torch.tensor(value)},
        activation_scheme="static",
    )
    refuse(model.path, "input_scale of", "one positive scale is expected")


def test_a_static_scale_nobody_announced(editable):
    model = editable()
    model.tensors(lambda t: t.update({f"{UP}.input_scale": torch.tensor(1.0)}))
    refuse(model.path, f"tensor {UP}.input_scale of ", 'says activation_scheme "dynamic"')


def test_config_only(editable):
    model = editable()
    config = json.loads((model.path / "config.json").read_text())
    config["quantization_config"] |= {"weight_block_size": None, "activation_scheme": "static"}
    (model.path / "config.json").write_text(json.dumps(config))
    imported = import_config(model.path, max_len=16)
    assert str(imported.module).count('torch.constant.str "static"') > 0
    assert f"{UP}.input_scale" in imported.parameters
