"""Reading checkpoints: what loads, and the one line each kind of bad input gives."""

import json
from pathlib import Path

import pytest
import torch
from loading import load, refuse

from qfuse.compiler.frontend.huggingface import import_checkpoint
from qfuse.dialects.errors import QfuseError

UP = "model.layers.0.mlp.up_proj.weight"


def test_directory_missing(tmp_path):
    refuse(tmp_path / "nowhere", "nowhere does not exist; give the directory of a Hugging Face")


def test_path_is_a_file(tmp_path):
    (tmp_path / "model").write_text("")
    refuse(tmp_path / "model", "model is not a directory; give the directory")


def test_no_config(tmp_path):
    refuse(tmp_path, "is no checkpoint: it has no config.json")


def test_no_safetensors(editable):
    model = editable()
    (model.path / "model.safetensors").unlink()
    refuse(model.path, "it has no .safetensors file")


def test_config_is_not_json(editable):
    model = editable()
    (model.path / "config.json").write_text('{"model_type": ')
    refuse(model.path, "config.json is not JSON: Expecting value")


def test_config_is_not_an_object(editable):
    model = editable()
    (model.path / "config.json").write_text("[1]")
    refuse(model.path, "config.json is not a JSON object but a list")


def test_unknown_quant_method(editable):
    model = editable()
    model.quantization(quant_method="gptq")
    refuse(
        model.path,
        'quant_method "gptq" is not supported; supported: fp8, compressed-tensors, mxfp4',
    )


@pytest.mark.parametrize("block", [128, [128], [128, 0], [128, "128"], [True, 128]])
def test_bad_weight_block_size(editable, block):
    model = editable()
    model.quantization(weight_block_size=block)
    refuse(model.path, f"weight_block_size is {json.dumps(block)}; supported: two positive")


def test_unknown_activation_scheme(editable):
    model = editable()
    model.quantization(activation_scheme="local")
    refuse(model.path, 'activation_scheme is "local"; supported: "dynamic" or "static"')


def test_unsupported_model_type(editable):
    model = editable()
    model.config(model_type="qwen3_next")
    refuse(model.path, "model_type 'qwen3_next' is not supported; nearest: qwen3_moe", "llama")
    model.config(model_type=None)
    refuse(model.path, "model_type None is not supported; supported: llama")


def test_unsupported_rope(editable):
    model = editable()
    model.config(rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    refuse(model.path, 'rope_type "dynamic" is not supported; supported: default, linear')


def test_config_transformers_refuses(editable):
    model = editable()
    model.config(hidden_act="nonsense")
    refuse(model.path, "transformers refuses this config: ", "nonsense")


def test_missing_tensor(editable):
    model = editable()
    model.tensors(lambda tensors: tensors.pop(UP))
    refuse(model.path, f"tensor {UP} is missing from ", "model.safetensors")


def test_missing_scale(editable):
    model = editable()
    model.tensors(lambda tensors: tensors.pop(UP + "_scale_inv"))
    refuse(model.path, f"tensor {UP}_scale_inv is missing from ", "float8_e4m3fn, which needs")


def test_wrong_scale_shape(editable):
    model = editable()
    model.tensors(lambda tensors: tensors.update({UP + "_scale_inv": torch.ones(1, 1)}))
    refuse(
        model.path,
        f"tensor {UP}_scale_inv of ",
        "has shape [1, 1]; a weight [200, 128] in blocks of [128, 128] needs ceil-div shape [2, 1]",
    )


def test_wrong_shape(editable):
    model = editable()
    model.tensors(lambda tensors: tensors.update({"model.norm.weight": torch.ones(7)}))
    refuse(model.path, "tensor model.norm.weight of ", "has shape [7]; the config asks for [128]")


def test_wrong_dtype(editable):
    model = editable()
    model.tensors(lambda tensors: tensors.update({UP: tensors[UP].view(torch.int8)}))
    refuse(model.path, f"tensor {UP} of ", "is int8; supported here: float8_e4m3fn, float8_e5m2")


def test_scales_without_quantization_config(editable):
    model = editable()
    model.config(quantization_config=None)
    refuse(model.path, "_scale_inv, but config.json has no quantization_config")


@pytest.mark.parametrize("keep", [0, 4, 100, -10])
def test_truncated_file(editable, keep):
    model = editable()
    file = model.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refuse(model.path, "model.safetensors is no complete safetensors file (truncated or corrupt)")


def test_corrupt_file(editable):
    model = editable()
    (model.path / "model.safetensors").write_bytes(b"no header at all" * 100)
    refuse(model.path, "model.safetensors is no complete safetensors file")


def test_missing_shard(editable):
    model = editable(shards=3)
    (model.path / "model-00002-of-00003.safetensors").unlink()
    refuse(
        model.path, "model-00002-of-00003.safetensors is missing, though model.safetensors.index"
    )


def test_index_names_a_tensor_its_file_lacks(editable):
    model = editable(shards=2)
    index = model.path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    refuse(model.path, "tensor model.extra.weight is missing from", "model-00001-of-00002")


def test_bad_request(checkpoints):
    with pytest.raises(QfuseError, match=r"max_len 129 is not between 1 and .* 128"):
        import_checkpoint(checkpoints(), max_len=129)
    with pytest.raises(QfuseError, match='logits "first" is not one of last, all'):
        import_checkpoint(checkpoints(), logits="first")


def test_shards_hold_the_same_tensors(checkpoints):
    one, three = load(checkpoints())[1], load(checkpoints(shards=3))[1]
    assert one.keys() == three.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor.view(torch.uint8), three[name].view(torch.uint8)), name


def test_tensors_are_those_of_the_file_and_mapped(checkpoints):
    from safetensors.torch import load_file

    stored, loaded = load_file(checkpoints() / "model.safetensors"), load(checkpoints())[1]
    assert loaded[UP].dtype == torch.float8_e4m3fn
    assert torch.equal(loaded[UP].view(torch.uint8), stored[UP].view(torch.uint8))
    maps = Path("/proc/self/maps").read_text()
    ranges = [
        tuple(int(bound, 16) for bound in line.split()[0].split("-"))
        for line in maps.splitlines()
        if line.endswith("model.safetensors")
    ]
    for name, tensor in loaded.items():
        if "inv_freq" not in name:
            assert any(low <= tensor.data_ptr() < high for low, high in ranges), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e8m0fnu])
def test_narrow_scales_widen_exactly(editable, dtype):
    """Released checkpoints store bf16 or power-of-two scales."""
    model = editable()
    scale = torch.tensor([[0.5], [0.25]])
    model.tensors(lambda tensors: tensors.update({UP + "_scale_inv": scale.to(dtype)}))
    loaded = load(model.path)[1][UP + "_scale_inv"]
    assert loaded.dtype == torch.float32 and torch.equal(loaded, scale)


def test_a_layer_without_scales_stays_plain(editable):
    """`modules_to_not_convert` says so too, but the file decides."""
    model = editable()

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[UP + "_scale_inv"]
        tensors[UP] = torch.randn(200, 128).bfloat16()

    model.tensors(edit)
    model.quantization(modules_to_not_convert=["lm_head", "model.layers.0.mlp.up_proj"])
    imported = import_checkpoint(model.path)
    assert imported.parameters[UP].dtype == torch.bfloat16
    assert UP + "_scale_inv" not in imported.parameters
    assert "model.layers.1.mlp.up_proj.weight_scale_inv" in imported.parameters


def test_other_float_types_are_converted_to_the_models(editable):
    model = editable()
    model.tensors(lambda t: t.update({"model.norm.weight": t["model.norm.weight"].float()}))
    assert load(model.path)[1]["model.norm.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scale_that_is_not_finite(editable, value):
    model = editable()
    model.tensors(lambda tensors: tensors[f"{UP}_scale_inv"].fill_(value))
    refuse(model.path, f"{UP}_scale_inv", "model.safetensors", "not finite")


@pytest.mark.parametrize("names", [5, "lm_head", [1]])
def test_modules_to_not_convert_is_a_list_of_names(editable, names):
    model = editable()
    model.quantization(modules_to_not_convert=names)
    refuse(model.path, "modules_to_not_convert", "not a list of names")


def test_config_of_unexpected_types_says_what_is_wrong(editable):
    model = editable()
    model.config(hidden_size="128")
    refuse(model.path, "hidden_size", "expected int, got str")
