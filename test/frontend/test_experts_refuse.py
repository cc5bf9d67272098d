"""Checkpoints of experts that are damaged, or make no sense: one line each."""

import pytest
import torch
from test_checkpoint import refuse
from test_experts import MOE, keys


@pytest.mark.parametrize("architecture", MOE)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_missing_expert(editable, architecture, which):
    model = editable(architecture=architecture)
    name = keys(architecture, 5)[which]
    model.tensors(lambda tensors: tensors.pop(name))
    refuse(model.path, f"tensor {name} is missing from ", "model.safetensors")


def test_missing_scale(editable):
    model = editable(architecture="qwen3_moe")
    name = keys("qwen3_moe", 3)[1] + "_scale_inv"
    model.tensors(lambda tensors: tensors.pop(name))
    refuse(model.path, f"tensor {name} is missing from ")
    first = keys("qwen3_moe", 0)[0] + "_scale_inv"
    model.tensors(lambda tensors: tensors.pop(first))
    refuse(model.path, f"tensor {first} is missing from ", "float8_e4m3fn, which needs its scales")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_misshapen_expert(editable, which):
    model = editable(architecture="qwen3_moe")
    name = keys("qwen3_moe", 2)[which]
    model.tensors(lambda t: t.update({name: t[name][:-1].contiguous()}))
    rows, columns = [(72, 128), (72, 128), (128, 72)][which]
    refuse(
        model.path,
        f"tensor {name} of ",
        f"has shape [{rows - 1}, {columns}]; the config asks for [{rows}, {columns}]",
    )


def test_misshapen_scale(editable):
    model = editable(architecture="mixtral")
    name = keys("mixtral", 1)[2] + "_scale_inv"
    model.tensors(lambda t: t.update({name: torch.ones(2, 1)}))
    refuse(model.path, f"tensor {name} of ", "has shape [2, 1]", "ceil-div shape [1, 1]")


def test_scale_that_is_not_finite(editable):
    model = editable(architecture="qwen3_moe")
    name = keys("qwen3_moe", 7)[2] + "_scale_inv"
    model.tensors(lambda t: t[name].fill_(float("nan")))
    refuse(model.path, name, "not finite")


def test_experts_of_two_types(editable):
    model = editable(architecture="qwen3_moe")
    name = keys("qwen3_moe", 4)[1]
    model.tensors(lambda t: t.update({name: t[name].float().to(torch.float8_e5m2)}))
    refuse(model.path, f"tensor {name} of ", "is float8_e5m2", "experts must have one type")


def test_static_scales_that_differ(editable):
    """Rows are quantized before anybody knows which expert gets them."""
    model = editable(architecture="qwen3_moe")
    model.quantization(weight_block_size=None, activation_scheme="static")
    name = keys("qwen3_moe", 5)[1].removesuffix(".weight")

    def edit(tensors):
        for weight in [n for n in tensors if n.endswith("_scale_inv")]:
            layer, rows = weight.removesuffix(".weight_scale_inv"), len(tensors[weight[:-10]])
            tensors[weight] = torch.linspace(1e-4, 3e-4, rows)
            tensors[f"{layer}.input_scale"] = torch.tensor(0.03 if layer == name else 0.02)

    model.tensors(edit)
    refuse(
        model.path,
        f"tensor {name}.weight of ",
        "has the static input scale 0.03, ",
        ".gate_proj.weight 0.02; a layer's experts must have one",
    )


def test_down_that_is_not_quantized(editable):
    model = editable(architecture="qwen3_moe")
    name = keys("qwen3_moe", 0)[2]
    model.tensors(lambda tensors: tensors.pop(f"{name}_scale_inv"))
    refuse(model.path, "of experts model.layers.1.mlp.experts, gate is quantized but down is not")


def test_some_experts_without_scales(editable):
    """Quantized and plain experts in one layer are one expert too many."""
    model = editable(architecture="qwen3_moe")
    name = keys("qwen3_moe", 6)[0]

    def edit(tensors):
        del tensors[name + "_scale_inv"]
        tensors[name] = tensors[name].bfloat16()

    model.tensors(edit)
    refuse(model.path, f"tensor {name}_scale_inv is missing from ")


@pytest.mark.parametrize("which", [0, 1, 2])
def test_biases_of_some_experts(editable, which):
    """One bias asks for those of all experts of the layer, and gate's for up's."""
    model = editable(architecture="qwen3_moe")
    names = [name.removesuffix("weight") + "bias" for name in keys("qwen3_moe", 5)]
    width = [72, 72, 128][which]
    model.tensors(lambda t: t.update({names[which]: torch.zeros(width)}))
    wanted = keys("qwen3_moe", 0)[2 if which == 2 else 0].removesuffix("weight") + "bias"
    refuse(model.path, f"tensor {wanted} is missing from ")


def test_misshapen_bias(editable):
    model = editable(architecture="mixtral")

    def edit(tensors):
        for expert in range(8):
            name = keys("mixtral", expert)[2].removesuffix("weight") + "bias"
            tensors[name] = torch.zeros(128 if expert != 3 else 72)

    model.tensors(edit)
    refuse(model.path, "experts.3.w2.bias", "has shape [72]; the config asks for [128]")


def test_missing_router(editable):
    model = editable(architecture="deepseek_v3")
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    model.tensors(lambda tensors: tensors.pop(name))
    refuse(model.path, f"tensor {name} is missing from ")


def test_fewer_experts_than_the_config_says(editable):
    model = editable(architecture="deepseek_v3")
    model.config(n_routed_experts=12, n_group=3)
    refuse(model.path, f"tensor {keys('deepseek_v3', 8)[0]} is missing from ")


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("qwen3_moe", {"num_experts": 0}, "num_experts is 0; expected 1 or more"),
        ("qwen3_moe", {"moe_intermediate_size": -1}, "moe_intermediate_size is -1"),
        ("qwen3_moe", {"num_experts_per_tok": 9}, "expected 1 to num_experts, which is 8"),
        ("mixtral", {"num_local_experts": 1}, "expected 1 to num_local_experts, which is 1"),
        ("qwen3_moe", {"swiglu_limit": 0.0}, "swiglu_limit is 0.0; expected a positive number"),
        ("qwen3_moe", {"swiglu_limit": "7"}, "swiglu_limit is '7'; expected a positive number"),
        ("mixtral", {"swiglu_limit": True}, "swiglu_limit is True; expected a positive number"),
        ("mixtral", {"swiglu_alpha": 1.7}, "swiglu_limit is None; expected a positive number, as"),
        ("mixtral", {"mlp_gate_softcap": 3.0}, "mlp_gate_softcap is 3.0; expected none"),
        ("deepseek_v3", {"swiglu_limits": [7.0, 0.0]}, "swiglu_limits is [7.0, 0.0]; expected"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func is 'softmax'; expected 'sigm"),
        ("deepseek_v3", {"topk_method": "greedy"}, "topk_method is 'greedy'"),
        ("deepseek_v3", {"n_group": 3}, "n_group is 3; expected a divisor of n_routed_experts, 8"),
        ("deepseek_v3", {"n_group": 8}, "n_group is 8"),
        ("deepseek_v3", {"topk_group": 3}, "topk_group is 3; expected 1 to n_group, which is 2"),
        ("deepseek_v3", {"num_experts_per_tok": 5}, "experts of 1 of 2 groups"),
        ("deepseek_v3", {"v_head_dim": 0}, "v_head_dim is 0"),
        ("deepseek_v3", {"num_key_value_heads": 2}, "expected num_attention_heads, 4"),
    ],
)
def test_config_that_makes_no_sense(editable, architecture, changes, message):
    model = editable(architecture=architecture)
    model.config(**changes)
    refuse(model.path, message)


def test_unsupported_activation(editable):
    model = editable(architecture="mixtral")
    model.config(hidden_act="quick_gelu")
    refuse(model.path, 'hidden_act "quick_gelu" is not supported in experts; supported: silu')
