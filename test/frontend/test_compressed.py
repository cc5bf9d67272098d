"""Checkpoints of compressed-tensors, written by the library: bits, models and refusals."""

import json
from collections import Counter
from pathlib import Path

import compressed_models
import pytest
import torch
from loading import error, layers, load, logits, reference, refuse, values

from qfuse.compiler.compilation import fuse
from qfuse.compiler.frontend.equal_scales import share_equal_scales
from qfuse.compiler.frontend.huggingface import import_checkpoint, import_config
from qfuse.compiler.frontend.linear import LinearFormat
from qfuse.compiler.options import CompileOptions

E4M3, INT8, BF16 = torch.float8_e4m3fn, torch.int8, torch.bfloat16
IDS = torch.arange(12)[None] * 7 % 96
UP = "model.layers.0.mlp.up_proj"

UP_FORMATS = {
    "FP8_BLOCK": LinearFormat((128, 128), (1, 128)),
    "FP8_DYNAMIC": LinearFormat((1, 128), (1, 128)),
    "FP8": LinearFormat((1, 128), (1, 128), input_format="static"),
    "W8A8": LinearFormat((1, 128), (1, 128), weight_dtype=INT8, scale_dtype=BF16),
    "W8A16": LinearFormat((1, 128), weight_dtype=INT8, scale_dtype=BF16),
    "W4A8": LinearFormat((1, 128), (1, 128), "int4", weight_dtype=INT8, scale_dtype=BF16),
    "W4A16": LinearFormat((1, 128), (), "int4", weight_dtype=INT8, scale_dtype=BF16),
    "W4A16_ASYM": LinearFormat(
        (1, 128), (), "int4", weight_dtype=INT8, scale_dtype=BF16, zero_points=True
    ),
    "MXFP4A16": LinearFormat(
        (1, 32), (), "fp4", weight_dtype=INT8, scale_dtype=torch.float8_e8m0fnu
    ),
}
"""Presets, and the format of a layer [256, 128]."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Path of a checkpoint of some groups, and what the library makes of its weights."""
    root, made = tmp_path_factory.mktemp("compressed"), {}

    def get(name, groups=None, ignore=None, **choices):
        if name not in made:
            model = compressed_models.quantized_model(
                groups or {name: ["Linear"]}, ignore, intermediate_size=256, **choices
            )
            compressed_models.save(root / name, model)
            made[name] = root / name, compressed_models.decompressed(model)
        return made[name]

    return get


@pytest.fixture
def edited(saved, tmp_path):
    """A copy of a checkpoint with an edit of its quantization_config, or of its tensors."""

    def get(name, edit=None, edit_tensors=None):
        from safetensors.torch import load_file, save_file

        path, _ = saved(name)
        config = json.loads((path / "config.json").read_text())
        if edit is not None:
            edit(config["quantization_config"])
        (tmp_path / "config.json").write_text(json.dumps(config))
        tensors = load_file(path / "model.safetensors")
        if edit_tensors is not None:
            edit_tensors(tensors)
        save_file(tensors, tmp_path / "model.safetensors")
        return tmp_path

    return get


def check_bits(path: Path, expected: dict[str, torch.Tensor]) -> None:
    """Our f32 values, rounded to the type the library computes in, are the library's."""
    ours = values(*load(path))
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name].to(value.dtype), value), name


@pytest.mark.parametrize("preset", UP_FORMATS)
def test_presets(saved, preset):
    path, expected = saved(preset)
    check_bits(path, expected)
    model, tensors = load(path)
    layer, format = layers(model)[UP], UP_FORMATS[preset]
    for leaf, (shape, dtype) in format.shapes(256, 128).items():
        tensor = tensors[f"{UP}.{leaf}"]
        assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype), leaf
    assert (layer.packing, layer.input_format) == (format.packing, format.input_format)
    assert tuple(layer.input_block) == format.input_block

    exact, ours = reference(path, IDS), logits(path, IDS)
    # only inputs are rounded: INT8 has 7 bits for the largest of a row, E4M3 four for every number
    bits = {(): 1e-5, INT8: 0.01, E4M3: 0.02}
    assert error(ours, exact) < bits[layer.weight.dtype if layer.input_block else ()]
    # the same computation, but for the order of f32 sums, which may move a code to its neighbour
    assert error(ours, reference(path, IDS, simulate_activations=True)) < 4e-3


@pytest.mark.parametrize("preset", UP_FORMATS)
def test_imported_and_raised(saved, preset):
    imported = import_checkpoint(saved(preset)[0], max_len=16)
    assert str(imported.module).count('"torch.qfuse.quantized_linear"') == 14
    remarks = fuse(imported.module, CompileOptions.make("cpu", ())).remarks
    text = str(imported.module)
    assert "torch.qfuse.quantized_linear" not in text
    assert text.count('"qfuse.pack"') == 14
    fired = [r.pattern for r in remarks if r.outcome == "fired"]
    dynamic = UP_FORMATS[preset].input_block and preset != "FP8"
    assert fired.count("expand-quantized-input") == (14 if dynamic else 0)
    # a static scale is each layer's own: two of them are formats of one norm, but v's stays apart
    assert text.count('"qfuse.quantize"') == 4 or preset != "FP8"


def test_equal_static_scales_are_one(edited):
    """As calibration makes them: q, k and v read one quantized value, and so do gate and up."""

    def edit(tensors):
        for name in [n for n in tensors if n.endswith("input_scale")]:
            of_norms = any(part in name for part in ("q_proj", "k_proj", "v_proj", "gate", "up"))
            tensors[name] = torch.full_like(tensors[name], 0.0625 if of_norms else 0.125)

    imported = import_checkpoint(edited("FP8", edit_tensors=edit), max_len=16)
    share_equal_scales(imported)
    remarks = fuse(imported.module, CompileOptions.make("cpu", ())).remarks
    fired = Counter(r.pattern for r in remarks if r.outcome == "fired")
    patterns = ("siblings", "gate-up", "norm-quantize", "product-quantize")
    assert [fired[pattern] for pattern in patterns] == [2, 2, 4, 2]
    assert str(imported.module).count('"qfuse.quantize"') == 2  # what attention makes


def test_static_scales_that_differ(edited):
    def edit(tensors):
        tensors["model.layers.0.self_attn.k_proj.input_scale"] *= 1.5
        tensors["model.layers.0.mlp.up_proj.input_scale"] *= 1.5

    imported = import_checkpoint(edited("FP8", edit_tensors=edit), max_len=16)
    share_equal_scales(imported)
    remarks = fuse(imported.module, CompileOptions.make("cpu", ())).remarks
    reasons = {r.pattern: r.cause for r in remarks if r.outcome == "refused"}
    of_attention = "model.layers.0.self_attn."
    for pattern in ("gate-up", "siblings"):  # both named by the first that has the number
        for name in ("q_proj", "k_proj"):
            assert f"{of_attention}{name}.input_scale" in reasons[pattern]


@pytest.mark.parametrize("preset", UP_FORMATS)
def test_config_only(saved, preset, tmp_path):
    imported = import_config(saved(preset)[0] / "config.json", max_len=16)
    assert str(imported.module).count('"torch.qfuse.quantized_linear"') == 14


def scheme(weights, inputs=None, targets=("Linear",)):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    return QuantizationScheme(
        targets=list(targets),
        weights=QuantizationArgs(**weights),
        input_activations=None if inputs is None else QuantizationArgs(**inputs),
    )


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}


def test_groups_targets_and_ignored_layers(saved):
    """Attention in INT4 groups of 32 with zero points, the MLP in FP8, one layer left out."""
    groups = {
        "attention": scheme(INT4 | {"symmetric": False}, targets=[r"re:.*self_attn\..*"]),
        "rest": scheme(
            {"num_bits": 8, "type": "float", "strategy": "channel"},
            {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": True},
        ),
    }
    path, expected = saved("mixed", groups, ["lm_head", "model.layers.1.mlp.down_proj"])
    check_bits(path, expected)
    found = layers(load(path)[0])
    assert len(found) == 13
    assert found["model.layers.0.self_attn.o_proj"].packing == "int4"
    assert found[UP].input_format == "tensor" and found[UP].weight_block == [1, 128]


RAGGED = {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 6}


def test_rows_that_no_eight_divide(saved):
    """Zero points are packed along N, which must not be read beyond."""
    groups = {"all": scheme(INT4 | {"symmetric": False})}
    path, expected = saved("ragged", groups, **RAGGED)
    check_bits(path, expected)


@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_one_scale_becomes_equal_ones(saved, strategy):
    args = {"num_bits": 8, "type": "int", "strategy": strategy}
    path, expected = saved(f"int8-{strategy}", {"all": scheme(args)})
    check_bits(path, expected)
    scale = load(path)[1][f"{UP}.weight_scale_inv"]
    assert scale.shape == (256, 1) and (len(scale.unique()) == 1) == (strategy == "tensor")


@pytest.mark.parametrize(
    ("preset", "fragment"),
    [
        ("W4AFP8", "has float8 inputs beside int4 weights, which is not supported; supported: "),
        ("MXFP4", "has float4 inputs beside float4 weights, which is not supported"),
        ("W4A4", "has int4 inputs beside int4 weights"),
        ("W3A16", "has pack-quantized weights of int3"),
        ("MXFP8", "has mxfp8-quantized weights of float8"),
    ],
)
def test_schemes_without_an_operator(saved, preset, fragment):
    refuse(saved(preset)[0], "config.json: model.layers.0.self_attn.q_proj ", fragment)


def group(change):
    return lambda config: config["config_groups"]["group_0"].update(change(config))


@pytest.mark.parametrize(
    ("edit", "fragment"),
    [
        (lambda c: c.update(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme is not supported"),
        (
            lambda c: c.update(sparsity_config={"format": "sparse-24-bitmask"}),
            "sparsity_config 'sparse-24-bitmask' is not supported",
        ),
        (
            lambda c: c.update(transform_config={"config_groups": {"R1": {}}}),
            "transform_config is not supported",
        ),
        (lambda c: c.update(format="marlin-24"), "has marlin-24 weights of int4"),
        (lambda c: c.update(ignore=["re:.*"]), "the file has model.layers.0.self_attn.q_proj.w"),
        (
            lambda c: first(c)["weights"].update(actorder="group"),
            "refuses this quantization_config: ",
        ),
        (lambda c: first(c)["weights"].update(group_size=64), "needs"),
        (lambda c: first(c)["weights"].update(symmetric=False), "weight_zero_point is missing"),
        (
            lambda c: first(c).update(output_activations={"num_bits": 8, "strategy": "tensor"}),
            "has quantized outputs",
        ),
        (
            lambda c: c["config_groups"].update(
                other=first(c) | {"weights": first(c)["weights"] | {"group_size": 32}}
            ),
            "2 groups target model.layers.0.self_attn.q_proj; one is expected",
        ),
    ],
)
def test_configs_that_say_something_else(edited, edit, fragment):
    def all_formats(config):
        for entry in config["config_groups"].values():
            entry.pop("format", None)
        edit(config)

    expected = "the config asks for" if fragment == "needs" else fragment
    refuse(edited("W4A16", all_formats), expected)


def first(config):
    return next(iter(config["config_groups"].values()))


Q = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("name", "edit", "fragment"),
    [
        (
            "W4A16",
            lambda t: t.update({f"{Q}.weight_g_idx": torch.arange(128)}),
            f"tensor {Q}.weight_g_idx of",
        ),
        (
            "W4A16",
            lambda t: t.update({f"{Q}.weight_shape": torch.tensor([128, 64])}),
            "says [128, 64]; the config asks for [128, 128]",
        ),
        (
            "W4A16",
            lambda t: t.update({f"{Q}.weight_packed": t[f"{Q}.weight_packed"][:, :8].clone()}),
            "has shape [128, 8]; the config asks for [128, 16]",
        ),
        ("W4A16", lambda t: t.pop(f"{Q}.weight_packed"), f"tensor {Q}.weight_packed is missing"),
        ("W4A16", lambda t: t.pop(f"{Q}.weight_scale"), f"tensor {Q}.weight_scale is missing"),
        (
            "W4A16",
            lambda t: t.update({f"{Q}.weight_zero_point": torch.zeros(16, 1, dtype=torch.int32)}),
            "weight_zero_point of",
        ),
        (
            "W4A16_ASYM",
            lambda t: t.update({f"{Q}.weight_zero_point": torch.zeros(8, 1, dtype=torch.int32)}),
            "has shape [8, 1]; the config asks for [16, 1]",
        ),
        ("FP8", lambda t: t.pop(f"{Q}.input_scale"), f"tensor {Q}.input_scale is missing"),
        ("FP8", lambda t: t[f"{Q}.input_scale"].fill_(0), "one positive scale is expected"),
        ("W8A8", lambda t: t[f"{Q}.weight_scale"].fill_(torch.inf), "values that are not finite"),
        ("MXFP4A16", lambda t: t[f"{Q}.weight_scale"].fill_(255), "has scales that are NaN"),
    ],
)
def test_tensors_that_do_not_fit(edited, name, edit, fragment):
    refuse(edited(name, edit_tensors=edit), fragment)
