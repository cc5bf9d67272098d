"""Mixtures of experts: the operators, reading stacked experts, and what a graph holds of them."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoint import load, refuse
from test_import import IDS, relative, run_steps
from torch import nn

from qfuse.compiler import block_scaled
from qfuse.compiler.frontend import baseline
from qfuse.compiler.frontend.checkpoint import Checkpoint
from qfuse.compiler.frontend.functional import functionalize
from qfuse.compiler.frontend.huggingface import import_checkpoint, import_config
from qfuse.compiler.frontend.lazy_tensors import LazyTensors
from qfuse.compiler.torch_moe import padded_rows
from qfuse.dialects.errors import QfuseError

FAST = settings(max_examples=25, deadline=None)
MOE = ("qwen3_moe", "mixtral", "deepseek_v3")
ACTIVATIONS = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
}


def stacked(generator, count, parts, columns, block):
    """Codes and scales of `count` weights whose parts begin at block boundaries; and f64 values."""
    height = block[0]
    rows = sum(padded_rows(p, height) for p in parts[:-1]) + parts[-1]
    codes = torch.zeros(count, rows, columns, dtype=torch.float8_e4m3fn)
    scales, values = [], []
    for e in range(count):
        at, found = 0, []
        for part in parts:
            c, s = block_scaled.quantize_blocks(
                torch.randn(part, columns, generator=generator), block
            )
            codes[e, at : at + part] = c
            found.append((s, block_scaled.dequantize_blocks(c, s, block).double()))
            at += padded_rows(part, height)
        scales.append(torch.cat([s for s, _ in found]))
        values.append([v for _, v in found])
    return codes, torch.stack(scales), values


@FAST
@given(
    count=st.integers(1, 5),
    choices=st.integers(1, 3),
    tokens=st.integers(0, 4),
    hidden=st.integers(1, 9),
    inner=st.integers(1, 9),
    block=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    act=st.sampled_from(sorted(ACTIVATIONS)),
    data=st.data(),
)
def test_moe_experts(count, choices, tokens, hidden, inner, block, act, data):
    """Token by token in f64, as the definition says; ids beyond the experts add nothing.

    Inputs stay as they are: how they are quantized, `test_roundings...` says to the last bit.
    """
    generator = torch.Generator().manual_seed(hidden * 10 + inner)
    drawn = st.integers(-2, count + 1)
    ids = torch.tensor(
        [[data.draw(drawn) for _ in range(choices)] for _ in range(tokens)], dtype=torch.int64
    ).view(tokens, choices)
    weights = torch.rand(tokens, choices, generator=generator)
    weights[(ids < 0) | (ids >= count)] = float("nan")
    x = torch.randn(tokens, hidden, generator=generator)
    gate_up, gate_up_scale, up_values = stacked(generator, count, (inner, inner), hidden, block)
    down, down_scale, down_values = stacked(generator, count, (hidden,), inner, block)
    expected = torch.zeros(tokens, hidden, dtype=torch.float64)
    for t in range(tokens):
        for j in range(choices):
            e = int(ids[t, j])
            if 0 <= e < count:
                gate, up = (w @ x[t].double() for w in up_values[e])
                row = ACTIVATIONS[act](gate) * up
                expected[t] += weights[t, j].double() * (down_values[e][0] @ row)
    y = torch.ops.qfuse.moe_experts(
        x, ids, weights, gate_up, gate_up_scale, down, down_scale, inner, list(block), [], act
    )
    assert y.dtype == torch.float32 and y.shape == x.shape
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


def arguments(dtype=torch.bfloat16, block=(4, 4)):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 10, generator=generator).to(dtype)
    ids = torch.tensor([[0, 1], [1, 5], [-1, 0]])
    gate_up, gate_up_scale, _ = stacked(generator, 2, (6, 6), 10, block)
    down, down_scale, _ = stacked(generator, 2, (10,), 6, block)
    weights = torch.rand(3, 2, generator=generator)
    return [x, ids, weights, gate_up, gate_up_scale, down, down_scale, 6, [4, 4], [1, 4], "silu"]


def test_roundings_are_those_of_separate_operators():
    """In bf16, every step rounded, the sum in f32 in the order of the choices, bit for bit."""
    args = arguments()
    x, ids, weights, gate_up, gate_up_scale, down, down_scale, _, block, group, _ = args
    expected = torch.zeros(3, 10)
    for t in range(3):
        for j in range(2):
            e = int(ids[t, j])
            if e not in (0, 1):
                continue
            product = torch.ops.qfuse.quantized_linear
            row = x[t : t + 1]
            gate = product(row, gate_up[e, :6], gate_up_scale[e, :2], None, block, group)
            up = product(row, gate_up[e, 8:], gate_up_scale[e, 2:], None, block, group)
            hidden = nn.functional.silu(gate) * up
            y = product(hidden, down[e], down_scale[e], None, block, group)
            expected[t] += weights[t, j] * y[0].float()
    assert torch.equal(torch.ops.qfuse.moe_experts(*args), expected.bfloat16())


def test_dense_experts_are_transformers():
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralExperts

    config = MixtralConfig(hidden_size=12, intermediate_size=8, num_local_experts=5)
    config._experts_implementation = "eager"
    module = MixtralExperts(config).requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_()
    x, weights = torch.randn(7, 12), torch.rand(7, 2)
    ids = torch.randint(0, 5, (7, 2))
    y = torch.ops.qfuse.dense_experts(
        x, ids, weights, module.gate_up_proj, module.down_proj, "silu"
    )
    torch.testing.assert_close(y, module(x, ids, weights), rtol=1e-5, atol=1e-4)


def test_shape_rules_agree_with_the_implementations():
    args = arguments()
    torch.library.opcheck(
        torch.ops.qfuse.moe_experts.default, tuple(args), test_utils=("test_faketensor",)
    )
    dense = (args[0].float(), *args[1:3], torch.randn(2, 12, 10), torch.randn(2, 10, 6), "gelu")
    torch.library.opcheck(
        torch.ops.qfuse.dense_experts.default, dense, test_utils=("test_schema", "test_faketensor")
    )


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(3), "experts take x"),
        (1, torch.zeros(3, 2), "experts take x .* whole ids .* torch.float32"),
        (1, torch.zeros(4, 2, dtype=torch.int64), r"ids .* shape \[4, 2\]; expected \[3, 2\]"),
        (2, torch.zeros(3, 1), r"weights .* expected \[3, 2\]"),
        (3, torch.zeros(2, 12, 10), r"gate_up .* expected \[2, 14, 10\]"),
        (4, torch.zeros(2, 3, 3), r"gate_up_scale .* expected \[2, 4, 3\]"),
        (5, torch.zeros(3, 10, 6), r"down .* expected \[2, 10, 6\]"),
        (6, torch.zeros(2, 3, 1), r"down_scale .* expected \[2, 3, 2\]"),
        (10, "relu", 'act "relu" is not one of silu, gelu'),
    ],
)
def test_operator_refuses(index, value, message):
    args = arguments()
    args[index] = value
    with pytest.raises(QfuseError, match=message):
        torch.ops.qfuse.moe_experts(*args)


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
    stored, loaded = load_file(path / "model.safetensors"), load(path)
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
    loaded = load(checkpoints(architecture="qwen3_moe"))
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
    assert not any("layers.2." in name for name in load(model.path))


def test_router_of_deepseek_is_read_in_f32(checkpoints):
    """transformers casts the weight at every call; kept in f32, no step of the program does."""
    imported = import_checkpoint(checkpoints(architecture="deepseek_v3"))
    for leaf in ("weight", "e_score_correction_bias"):
        assert imported.parameters[f"model.layers.1.mlp.gate.{leaf}"].dtype == torch.float32
    assert "torch.vtensor<[8,128],bf16>" not in str(imported.module)


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


# --- what is refused ----------------------------------------------------------------------------


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


def test_some_experts_without_scales(editable):
    """Quantized and plain experts in one layer are one expert too many."""
    model = editable(architecture="qwen3_moe")
    name = keys("qwen3_moe", 6)[0]

    def edit(tensors):
        del tensors[name + "_scale_inv"]
        tensors[name] = tensors[name].bfloat16()

    model.tensors(edit)
    refuse(model.path, f"tensor {name}_scale_inv is missing from ")


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
    model.config(hidden_act="relu")
    refuse(model.path, 'hidden_act "relu" is not supported in experts; supported: silu')


# --- writes in place ----------------------------------------------------------------------------


def exported(function, *args):
    class Module(nn.Module):
        def forward(self, *inputs):
            return function(*inputs)

    return torch.export.export(Module(), args, strict=False).graph


def run(graph, *args):
    return torch.fx.Interpreter(torch.fx.GraphModule({}, graph)).run(*args)


def test_writes_to_fresh_tensors_become_functional():
    def f(x):
        y = x * 2
        before = y + 1
        y /= y.sum()
        mask = torch.zeros_like(y)
        mask.scatter_(1, torch.zeros(2, 1, dtype=torch.int64), 1.0)
        return before, y * mask

    x = torch.randn(2, 3)
    expected, graph = f(x), exported(f, x)
    functionalize(graph)
    assert not any("_." in str(n.target) for n in graph.nodes if n.op == "call_function")
    assert all(map(torch.equal, run(graph, x), expected))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.add_(1),
        lambda x: (x * 2).t().add_(1),
        lambda x: [y := x * 2, v := y[0], y.add_(1), v][-1],
        lambda x: (x.bfloat16() * 2).mul_(x),
    ],
    ids=["argument", "view", "seen through a view", "other type"],
)
def test_other_writes_are_refused(function):
    graph = exported(function, torch.ones(2, 2))
    with pytest.raises(QfuseError, match=r"operator aten\.\w+_?\.\w+ in the model writes into"):
        functionalize(graph)


def test_lazy_tensors_is_a_mapping():
    made = []
    tensors = LazyTensors({"a": torch.ones(1), "b": lambda: made.append(1) or torch.ones(2)})
    assert list(tensors) == ["a", "b"] and len(tensors) == 2 and "b" in tensors and not made
    assert tensors.get("c") is None and tensors["b"].shape == (2,) and made == [1]
    assert list(tensors.select(["b"])) == ["b"] and made == [1]
