"""Importing models: what the module looks like, and that its graph computes the model."""

import json

import pytest
import torch
from torch import fx

from qfuse.compiler.frontend import baseline
from qfuse.compiler.frontend.checkpoint import Checkpoint
from qfuse.compiler.frontend.huggingface import (
    empty_model,
    import_checkpoint,
    import_config,
    load_parameters,
    quantize_like,
)
from qfuse.compiler.frontend.latent_attention import take_pairs_apart
from qfuse.compiler.frontend.linear import LinearFormat
from qfuse.compiler.frontend.step import trace_step
from qfuse.dialects.bindings import ir

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
DEMOS = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "deepseek_v3")
"""Those that are written quantized; the others are in test_architectures.py."""


def attributes(imported, which):
    """(kind, name) of all arguments ("arg_attrs") or results ("res_attrs") of @main."""
    function = imported.module.body.operations[0]
    assert ir.StringAttr(function.attributes["sym_name"]).value == "main"
    return [
        tuple(ir.StringAttr(ir.DictAttr(a)[f"qfuse.{key}"]).value for key in ("kind", "name"))
        for a in ir.ArrayAttr(function.attributes[which])
    ]


def run_steps(path, lengths, logits="all", max_len=64):
    """Run the imported graph in torch, `lengths` tokens at a time; logits of all steps."""
    checkpoint = Checkpoint(path)
    model = empty_model(checkpoint.config, path, checkpoint)
    quantize_like(model, checkpoint)
    values = dict(take_pairs_apart(model, load_parameters(model, checkpoint)))
    step = trace_step(model, max_len, logits)
    described = [step.arguments[n.name] for n in step.graph.nodes if n.op == "placeholder"]
    for node in step.graph.nodes:
        if node.op == "placeholder" and step.arguments[node.name].kind == "cache":
            name, shape = step.arguments[node.name].name, node.meta["val"].shape
            values[name] = torch.zeros(shape, dtype=model.dtype)
    interpreter = fx.Interpreter(fx.GraphModule({}, step.graph))
    collected, start = [], 0
    for tokens in lengths:
        values["input_ids"] = torch.tensor([IDS[start : start + tokens]])
        values["position"] = torch.arange(start, start + tokens)
        results = interpreter.run(*(values[argument.name] for argument in described))
        values |= {a.name: v for a, v in zip(step.results, results, strict=True)}
        collected.append(values["logits"][0])
        start += tokens
    return torch.cat(collected)


def relative(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm())


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_interface(checkpoints, architecture):
    imported = import_checkpoint(checkpoints(architecture=architecture), max_len=64)
    arguments, results = attributes(imported, "arg_attrs"), attributes(imported, "res_attrs")
    caches = [f"{kind}_cache.{i}" for kind in ("key", "value") for i in range(2)]
    assert results == [("output", "logits"), *(("cache", name) for name in caches)]
    assert arguments[-6:] == [
        ("input", "input_ids"),
        ("input", "position"),
        *(("cache", name) for name in caches),
    ]
    parameters = [name for kind, name in arguments if kind == "parameter"]
    assert len(parameters) == len(arguments) - 6
    assert list(imported.parameters) == parameters
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} < set(parameters)
    assert "model.layers.1.mlp.down_proj.weight_scale_inv" in parameters
    assert ("model.layers.1.self_attn.q_norm.weight" in parameters) == (architecture == "qwen3")
    assert [str(s) for s in imported.inputs] == ["input_ids: int64[1, ?]", "position: int64[?]"]
    assert [str(s) for s in imported.outputs] == ["logits: bfloat16[1, 1, 256]"]
    assert [str(s) for s in imported.caches] == [f"{n}: bfloat16[1, 2, 64, 32]" for n in caches]
    assert imported.model.model_type == architecture
    assert imported.model.vocab_size == 256 and imported.model.eos_token_ids == (1,)


def test_module(checkpoints):
    """Dynamic number of tokens, our operators, nothing left of meta or of assertions."""
    imported = import_checkpoint(checkpoints(), max_len=64)
    text = str(imported.module)
    assert "!torch.vtensor<[1,?],si64>" in text and "!torch.vtensor<[1,?,128],bf16>" in text
    assert text.count('"torch.qfuse.quantized_linear"') == 14
    assert text.count('"torch.qfuse.kv_update"') == 4
    assert text.count('"torch.qfuse.attention"') == 2
    assert "[1,1,256]" in text, "the head sees the last token only"
    for leftover in ('"meta"', "_assert", "aten.alias", "aten.detach", "aten.dropout"):
        assert leftover not in text
    debug = imported.module.operation.get_asm(enable_debug_info=True)
    assert 'loc("model.layers.1.mlp.up_proj")' in debug


def test_weights_stay_out_of_the_module(checkpoints):
    """Wider layers make no longer module."""
    small = import_checkpoint(checkpoints())
    wide = import_checkpoint(checkpoints(hidden_size=256, intermediate_size=900, vocab_size=999))
    sizes = [len(str(i.module)) for i in (small, wide)]
    assert max(sizes) < 60_000 and abs(sizes[0] - sizes[1]) < 500
    assert "dense<" not in str(wide.module) and "dense_resource" not in str(wide.module)


@pytest.mark.parametrize("architecture", DEMOS)
def test_graph_computes_the_model(editable, architecture):
    """In f32: prefill of 5, then single tokens, against transformers on the whole sequence."""
    model = editable(architecture=architecture, bias=architecture == "llama")
    model.config(torch_dtype="float32")
    expected = baseline.logits(
        baseline.reference_model(Checkpoint(model.path), simulate_activations=True), IDS
    )
    assert relative(run_steps(model.path, [5, 1, 1, 1]), expected) < 1e-3
    assert relative(run_steps(model.path, [1, 7]), expected) < 1e-3


def test_graph_in_bf16_is_as_near_as_bf16_allows(checkpoints):
    got = run_steps(checkpoints(), [5, 1, 1, 1])
    exact = baseline.logits(baseline.reference_model(Checkpoint(checkpoints())), IDS)
    eager = baseline.logits(baseline.eager_model(Checkpoint(checkpoints())), IDS)
    assert got.dtype == torch.bfloat16
    assert relative(got, exact) < 1e-2 and relative(eager, exact) < 1e-2
    assert torch.equal(got.float().argmax(-1), exact.argmax(-1))


def test_last_logits_are_the_last_of_all(checkpoints):
    every = run_steps(checkpoints(), [5, 1, 2])
    last = run_steps(checkpoints(), [5, 1, 2], "last")
    assert torch.equal(last, every[[4, 5, 7]])


def test_sliding_window(editable):
    model = editable(architecture="mistral")
    model.config(torch_dtype="float32", sliding_window=3)
    reference = baseline.reference_model(Checkpoint(model.path), simulate_activations=True)
    expected = baseline.logits(reference, IDS)
    assert relative(run_steps(model.path, [5, 1, 1, 1]), expected) < 1e-3
    model.config(sliding_window=None)
    assert relative(run_steps(model.path, [8]), expected) > 1e-3


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_rope_scaling(editable, scaling):
    model = editable(architecture="llama")
    model.config(torch_dtype="float32", rope_scaling=scaling)
    reference = baseline.reference_model(Checkpoint(model.path), simulate_activations=True)
    assert relative(run_steps(model.path, [6, 1, 1]), baseline.logits(reference, IDS)) < 1e-3


def test_tied_embeddings_are_one_parameter(checkpoints):
    path = checkpoints(tied=True)
    imported = import_checkpoint(path)
    assert "lm_head.weight" not in imported.parameters
    assert imported.parameters["model.embed_tokens.weight"].shape == (256, 128)
    reference = baseline.logits(baseline.reference_model(Checkpoint(path)), IDS)
    assert relative(run_steps(path, [8]), reference) < 1e-2


def test_unquantized_checkpoint(checkpoints):
    path = checkpoints(quantized=False)
    imported = import_checkpoint(path)
    text = str(imported.module)
    assert "quantized_linear" not in text and text.count("torch.aten.linear") == 15
    reference = baseline.logits(baseline.eager_model(Checkpoint(path)), IDS)
    assert relative(run_steps(path, [5, 3]), reference) < 5e-3


@pytest.mark.parametrize("max_len", [1, 2])
def test_smallest_caches(checkpoints, max_len):
    imported = import_checkpoint(checkpoints(), max_len=max_len)
    assert imported.caches[0].shape == (1, 2, max_len, 32)


def test_config_only(editable):
    model = editable()
    (model.path / "model.safetensors").unlink()
    imported = import_config(model.path / "config.json", max_len=64)
    assert all(t.is_meta or "inv_freq" in name for name, t in imported.parameters.items())
    assert str(imported.module).count('"torch.qfuse.quantized_linear"') == 14
    assert attributes(imported, "res_attrs")[0] == ("output", "logits")


def test_config_only_quantizes_a_plain_config(editable):
    model = editable()
    model.config(quantization_config=None)
    fp8 = import_config(model.path)
    assert fp8.parameters["model.layers.0.mlp.up_proj.weight"].dtype == torch.float8_e4m3fn
    assert fp8.parameters["lm_head.weight"].dtype == torch.bfloat16
    plain = import_config(model.path, quantize=None)
    assert plain.parameters["model.layers.0.mlp.up_proj.weight"].dtype == torch.bfloat16
    int8 = LinearFormat((1, 32), weight_dtype=torch.int8)
    mixed = import_config(model.path, quantize=lambda name, *_: int8 if "up" in name else None)
    assert mixed.parameters["model.layers.0.mlp.up_proj.weight"].dtype == torch.int8
    assert mixed.parameters["model.layers.0.mlp.down_proj.weight"].dtype == torch.bfloat16


def test_import_is_linear_in_the_number_of_layers(editable):
    model = editable()
    lengths = []
    for layers in (2, 4, 8):
        model.config(num_hidden_layers=layers, layer_types=None)
        lengths.append(len(str(import_config(model.path).module)))
    assert lengths[2] - lengths[1] < 2.1 * (lengths[1] - lengths[0])


def test_greedy_baselines_agree(checkpoints):
    checkpoint = Checkpoint(checkpoints())
    bf16 = baseline.GreedyDecoder(baseline.eager_model(checkpoint)).generate(IDS, 8)
    f32 = baseline.GreedyDecoder(baseline.reference_model(checkpoint)).generate(IDS, 8)
    assert bf16 == f32 and len(bf16) == 8


def test_demo_checkpoint_is_written_once(checkpoints, tmp_path):
    from qfuse.dialects.errors import QfuseError
    from qfuse.tools.demo_checkpoint import TINY, write_demo_checkpoint

    path = write_demo_checkpoint(tmp_path / "a" / "demo", **TINY)
    stamp = (path / "model.safetensors").stat().st_mtime_ns
    assert write_demo_checkpoint(path, **TINY) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == stamp
    assert sorted(p.name for p in path.parent.iterdir()) == ["demo"], "no temporary files left"
    again = write_demo_checkpoint(tmp_path / "b", **TINY)
    assert (again / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
    config = json.loads((path / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
    with pytest.raises(QfuseError, match="exists and is not this demo checkpoint"):
        write_demo_checkpoint(path, **(TINY | {"seed": 1}))
    (tmp_path / "file").write_text("")
    with pytest.raises(QfuseError, match="cannot be written"):
        write_demo_checkpoint(tmp_path / "file" / "demo", **TINY)
