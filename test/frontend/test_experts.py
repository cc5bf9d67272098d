"""Mixtures of experts: reading stacked experts, and what a graph holds of them."""

import json

import pytest
import torch
from loading import load
from test_import import IDS, relative, run_steps
from transformers.integrations.finegrained_fp8 import FP8Experts

from qfuse.compiler import block_scaled
from qfuse.compiler.frontend import baseline
from qfuse.compiler.frontend.checkpoint import Checkpoint
from qfuse.compiler.frontend.huggingface import import_checkpoint, import_config

MOE = ("qwen3_moe", "mixtral", "deepseek_v3")


# --- what is loaded -----------------------------------------------------------------------------


def keys(architecture, expert=0, layer=1):
    """Names in the file of an expert's gate, up and down weight."""
    block = "block_sparse_moe" if architecture == "mixtral" else "mlp"
    names = (
        ("w1", "w3", "w2") if architecture == "mixtral" else ("gate_proj", "up_proj", "down_proj")
    )
    return [f"model.layers.{layer}.{block}.experts.{expert}.{name}.weight" for name in names]


@pytest.mark.parametrize("architecture", MOE)
def test_stacked_weights_are_those_of_the_file(checkpoints, architecture):
    """Up rows begin at a block boundary, and the rows before them are zeros."""
    from safetensors.torch import load_file

    path = checkpoints(architecture=architecture, weight_block=(64, 32))
    stored, loaded = load_file(path / "model.safetensors"), load(path)[1]
    at = "model.layers.1.mlp.experts"
    gate_up, down = loaded[f"{at}.gate_up_proj"], loaded[f"{at}.down_proj"]
    assert gate_up.shape == (8, 128 + 72, 128) and down.shape == (8, 128, 72)
    assert gate_up.dtype == down.dtype == torch.float8_e4m3fn
    assert not gate_up[:, 72:128].float().any()
    scale, down_scale = (loaded[f"{at}.{n}_proj_scale_inv"] for n in ("gate_up", "down"))
    for expert in (0, 7):
        gate, up, last = keys(architecture, expert)
        for part, name in (
            (gate_up[expert, :72], gate),
            (gate_up[expert, 128:], up),
            (down[expert], last),
            (scale[expert, :2], f"{gate}_scale_inv"),
            (scale[expert, 2:], f"{up}_scale_inv"),
            (down_scale[expert], f"{last}_scale_inv"),
        ):
            assert torch.equal(part.float(), stored[name].float()), name


def test_stacks_are_made_when_they_are_read(checkpoints):
    """So the stacks of one layer at a time take memory; all else is mapped or small."""
    _, loaded = load(checkpoints(architecture="qwen3_moe"))
    name = "model.layers.0.mlp.experts.down_proj"
    first, second = loaded[name], loaded[name]
    assert first.data_ptr() != second.data_ptr() and torch.equal(first.float(), second.float())
    mapped = "model.layers.0.self_attn.q_proj.weight"
    assert loaded[mapped].data_ptr() == loaded[mapped].data_ptr()
    imported = import_checkpoint(checkpoints(architecture="qwen3_moe"))
    assert imported.parameters[name].data_ptr() != imported.parameters[name].data_ptr()


@pytest.mark.parametrize("architecture", MOE)
def test_key_layout_is_the_one_transformers_reads(checkpoints, architecture):
    """Its own loader, which knows released checkpoints, makes the same model of the same file."""
    from transformers import AutoModelForCausalLM

    path = checkpoints(architecture=architecture, quantized=False)
    theirs = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ours = baseline.reference_model(Checkpoint(path))
    assert torch.equal(baseline.logits(ours, IDS), baseline.logits(theirs, IDS))
    assert relative(run_steps(path, [5, 3]), baseline.logits(theirs, IDS)) < 1e-2


# --- what is in the graph -----------------------------------------------------------------------


@pytest.mark.parametrize("architecture", MOE)
def test_one_operator_for_the_experts_of_a_layer(checkpoints, architecture):
    imported = import_checkpoint(checkpoints(architecture=architecture), max_len=64)
    text = str(imported.module)
    sparse = 1 if architecture == "deepseek_v3" else 2
    assert text.count('"torch.qfuse.moe_experts"') == sparse
    assert text.count("!torch.vtensor<[8,128,72],f8E4M3FN>") >= sparse
    # attention, dense layers and shared experts are ordinary quantized layers
    linears = {"qwen3_moe": 8, "mixtral": 8, "deepseek_v3": 10 + 3 + 3}[architecture]
    assert text.count('"torch.qfuse.quantized_linear"') == linears
    debug = imported.module.operation.get_asm(enable_debug_info=True)
    assert 'loc("model.layers.1.mlp.experts")' in debug


def test_latent_attention_caches_expanded_keys_and_values(checkpoints):
    """Of different widths; each step works on its own tokens only."""
    imported = import_checkpoint(checkpoints(architecture="deepseek_v3"), max_len=64)
    assert [c.shape for c in imported.caches] == [(1, 4, 64, 48)] * 2 + [(1, 4, 64, 32)] * 2
    assert "[1,64," not in str(imported.module).replace("vtensor<[1,4,64,", "")


@pytest.mark.parametrize("block", [(128, 128), (40, 128)])
def test_rotated_pairs_are_taken_apart_in_the_weights(editable, block):
    """Where no scale block is torn; else the graph does it.  The numbers are those of the model."""
    model = editable(architecture="deepseek_v3", weight_block=block)
    text = str(import_checkpoint(model.path, max_len=64).module)
    assert ("aten.unflatten" in text) == (block == (40, 128))
    model.config(torch_dtype="float32")
    reference = baseline.reference_model(Checkpoint(model.path), simulate_activations=True)
    assert relative(run_steps(model.path, [7, 1]), baseline.logits(reference, IDS)) < 1e-3


def test_unquantized_experts_stay_one_operator(checkpoints):
    imported = import_checkpoint(checkpoints(architecture="qwen3_moe", quantized=False))
    text = str(imported.module)
    assert text.count('"torch.qfuse.dense_experts"') == 2 and "moe_experts" not in text
    assert imported.parameters["model.layers.0.mlp.experts.gate_up_proj"].shape == (8, 144, 128)


VARIANTS = {
    "qwen3_moe": (
        {"norm_topk_prob": False, "hidden_act": "gelu_pytorch_tanh"},
        {"num_experts_per_tok": 8},
    ),
    "mixtral": ({"num_experts_per_tok": 1, "hidden_act": "gelu"},),
    "deepseek_v3": (
        {"rope_interleave": False, "norm_topk_prob": False, "n_group": 1, "topk_group": 1},
        {
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
}


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [(architecture, changes) for architecture in MOE for changes in VARIANTS[architecture]],
)
def test_variants_compute_the_model(editable, architecture, changes):
    """In f32, against transformers with the inputs of quantized layers put through FP8."""
    model = editable(architecture=architecture)
    model.config(torch_dtype="float32", **changes)
    reference = baseline.reference_model(Checkpoint(model.path), simulate_activations=True)
    expected = baseline.logits(reference, IDS)
    assert relative(run_steps(model.path, [6, 1, 1]), expected) < 1e-3


def test_a_layer_without_experts(editable):
    """qwen3_moe's `mlp_only_layers`: such a layer has one ordinary MLP."""
    model, dense = editable(architecture="qwen3_moe"), {}

    def edit(tensors):
        for name in ("gate_proj", "up_proj"):
            dense[name] = block_scaled.quantize_blocks(torch.randn(200, 128) * 0.1, (128, 128))
        dense["down_proj"] = block_scaled.quantize_blocks(torch.randn(128, 200) * 0.01, (128, 128))
        for name, (codes, scale) in dense.items():
            tensors[f"model.layers.0.mlp.{name}.weight"] = codes
            tensors[f"model.layers.0.mlp.{name}.weight_scale_inv"] = scale

    model.tensors(edit)
    model.config(torch_dtype="float32", mlp_only_layers=[0])
    reference = baseline.reference_model(Checkpoint(model.path), simulate_activations=True)
    expected = baseline.logits(reference, IDS)
    assert relative(run_steps(model.path, [8]), expected) < 1e-3


def test_deepseek_without_a_query_rank_and_with_prediction_layers(editable):
    """V3's lite form has `q_proj`; layers beyond the last, for multi-token prediction, are left."""
    model = editable(architecture="deepseek_v3")

    def edit(tensors):
        for layer in range(2):
            for name in [n for n in tensors if f"layers.{layer}.self_attn.q_" in n]:
                del tensors[name]
            codes, scale = block_scaled.quantize_blocks(
                torch.randn(192, 128) * 128**-0.5, (128, 128)
            )
            tensors[f"model.layers.{layer}.self_attn.q_proj.weight"] = codes
            tensors[f"model.layers.{layer}.self_attn.q_proj.weight_scale_inv"] = scale
        tensors["model.layers.2.eh_proj.weight"] = torch.randn(128, 256).bfloat16()

    model.tensors(edit)
    # `None` removes an entry here, so the null that the config has to hold is written by hand
    file = model.path / "config.json"
    config = json.loads(file.read_text()) | {"q_lora_rank": None, "torch_dtype": "float32"}
    file.write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    reference = baseline.reference_model(Checkpoint(model.path), simulate_activations=True)
    expected = baseline.logits(reference, IDS)
    assert relative(run_steps(model.path, [6, 1, 1]), expected) < 1e-3
    assert not any("layers.2." in name for name in load(model.path)[1])


def test_router_of_deepseek_is_read_in_f32(checkpoints):
    """transformers casts the weight at every call; kept in f32, no step of the program does."""
    imported = import_checkpoint(checkpoints(architecture="deepseek_v3"))
    for leaf in ("weight", "e_score_correction_bias"):
        assert imported.parameters[f"model.layers.1.mlp.gate.{leaf}"].dtype == torch.float32
    assert "torch.vtensor<[8,128],bf16>" not in str(imported.module)


class SimulatedFP8Experts(FP8Experts):
    """transformers' FP8 experts in f32, with the inputs of its products put through FP8."""

    def linear(self, input, weight, *_, **__):
        codes, scale = block_scaled.quantize_blocks(input, (1, 128))
        rows = block_scaled.dequantize_blocks(codes, scale, (1, 128))
        return torch.nn.functional.linear(rows, weight)


@pytest.mark.parametrize("architecture", MOE)
@pytest.mark.parametrize(
    "entries",
    [{"swiglu_limit": 0.4}, {"swiglu_limit": 0.4, "swiglu_alpha": 1.3}, {"hidden_act": "relu"}],
    ids=str,
)
def test_glus_are_those_of_transformers_fp8_experts(editable, architecture, entries):
    """In f32, with transformers' own module in the place of the experts."""
    model = editable(architecture=architecture)
    model.config(torch_dtype="float32", **entries)
    reference = baseline.reference_model(Checkpoint(model.path), simulate_activations=True)
    ours = baseline.logits(reference, IDS)
    for name, module in list(reference.named_modules()):
        if isinstance(module, baseline.ReferenceExperts):
            theirs = SimulatedFP8Experts(reference.config, block_size=(128, 128))
            theirs.gate_up_proj, theirs.down_proj = module.gate_up_proj, module.down_proj
            reference.set_submodule(name, theirs)
    expected = baseline.logits(reference, IDS)
    assert relative(ours, expected) < 1e-5
    assert relative(run_steps(model.path, [6, 1, 1]), expected) < 1e-3
    model.config(swiglu_limit=None, swiglu_alpha=None, hidden_act="silu")
    assert relative(run_steps(model.path, [8]), expected) > 5e-3  # it makes a difference


@pytest.mark.parametrize("architecture", MOE)
@pytest.mark.parametrize("quantized", [True, False])
def test_biases_of_experts(editable, architecture, quantized):
    """Those of the file, which transformers' modules for these models would leave out."""
    model = editable(architecture=architecture, quantized=quantized)

    def edit(tensors):
        for layer in range(2):
            for expert in range(8):
                for name in keys(architecture, expert, layer):
                    if name in tensors:
                        rows = tensors[name].shape[0]
                        tensors[name.removesuffix("weight") + "bias"] = torch.randn(rows) * 0.3

    before = run_steps(model.path, [8])
    model.tensors(edit)
    model.config(torch_dtype="float32", swiglu_limit=1.5)
    reference = baseline.reference_model(Checkpoint(model.path), simulate_activations=quantized)
    expected = baseline.logits(reference, IDS)
    assert relative(run_steps(model.path, [6, 1, 1]), expected) < 1e-3
    assert relative(before, expected) > 5e-3
    loaded, at = load(model.path)[1], "model.layers.1.mlp.experts"
    assert loaded[f"{at}.gate_up_proj_bias"].shape == (8, 144)
    assert loaded[f"{at}.down_proj_bias"].shape == (8, 128)
    assert loaded[f"{at}.down_proj_bias"].dtype == torch.float32


@pytest.mark.parametrize("architecture", MOE)
def test_config_only(editable, architecture):
    model = editable(architecture=architecture)
    (model.path / "model.safetensors").unlink()
    imported = import_config(model.path, max_len=64)
    assert all(t.is_meta or "inv_freq" in name for name, t in imported.parameters.items())
    assert '"torch.qfuse.moe_experts"' in str(imported.module)
    model.quantization(modules_to_not_convert=["lm_head", "model.layers.1.mlp.experts"])
    assert '"torch.qfuse.dense_experts"' in str(import_config(model.path, max_len=64).module)
    model.config(quantization_config=None)
    plain = str(import_config(model.path, max_len=64, quantize=None).module)
    assert '"torch.qfuse.dense_experts"' in plain and "f8E4M3FN" not in plain
