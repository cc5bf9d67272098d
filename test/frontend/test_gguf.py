"""GGUF files: each tensor against gguf's own dequantizer, models against transformers, refusals."""

from pathlib import Path

import gguf_models
import numpy as np
import pytest
import torch
from loading import load, refuse

from qfuse.compiler.compilation import fuse
from qfuse.compiler.frontend import baseline
from qfuse.compiler.frontend.experts import QuantizedExperts
from qfuse.compiler.frontend.huggingface import import_checkpoint
from qfuse.compiler.frontend.linear import QuantizedLinear
from qfuse.compiler.frontend.source import open_source
from qfuse.compiler.options import CompileOptions
from qfuse.dialects.errors import QfuseError

ARCHITECTURES = ["llama", "qwen2", "qwen3", "mixtral", "qwen3_moe"]
IDS = torch.arange(12)[None] * 7 % 96


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Path, model and dequantized tensors of a tiny GGUF model of some choices."""
    root, made = tmp_path_factory.mktemp("gguf"), {}

    def get(architecture="llama", types=gguf_models.q4_k_m, name="q4_k_m", **choices):
        key = "-".join([architecture, name, *map(str, choices.values())])
        if key not in made:
            path = root / f"{key}.gguf"
            model = gguf_models.transformers_model(architecture, **choices)
            made[key] = path, model, gguf_models.write(path, model, types)
        return made[key]

    return get


def check_tensors(model, tensors, expected):
    """Each tensor of the file, dequantized by us, has the bits of gguf's."""
    for name, value in expected.items():
        layer, leaf = model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
        if isinstance(layer, QuantizedExperts):
            own = {
                n: tensors[f"{name.rpartition('.')[0]}.{n}"] for n, _ in layer.named_parameters()
            }
            got = layer.dequantize(leaf, own)
        elif isinstance(layer, QuantizedLinear) and leaf == "weight":
            got = layer.dequantize(tensors[name], tensors[f"{name}_scale_inv"])
        else:
            got = tensors[name]
        assert torch.equal(got.float(), value.to(got.dtype).float()), name


def with_values(model, values):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name])
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_model(models, architecture):
    path, original, expected = models(architecture)
    model, tensors = load(path)
    check_tensors(model, tensors, expected)
    types = {m.packing for m in model.modules() if isinstance(m, QuantizedLinear)}
    assert types == {"q4_k", "q6_k"}

    ids = IDS
    with torch.no_grad():
        exact = with_values(original, expected)(ids, use_cache=False).logits
        ours = baseline.reference_model(open_source(path))(ids, use_cache=False).logits
        # the same f32 numbers through two attention implementations
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)
        baseline.assign(model, tensors)
        eager = model(ids, use_cache=False).logits
    # q8_1 keeps 8 bits of each input: 0.3 % of its block's largest, or so, per layer
    # and twice that where it decides how much each expert counts
    limit = 0.02 if hasattr(model.config, "num_experts_per_tok") else 0.01
    assert float((eager - exact).norm() / exact.norm()) < limit
    simulated = baseline.reference_model(open_source(path), simulate_activations=True)
    with torch.no_grad():
        torch.testing.assert_close(simulated(ids, use_cache=False).logits, eager)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "MXFP4", "Q4_K", "Q6_K", "F16", "BF16", "F32"])
def test_types(models, kind):
    """A whole model of one type; llama, so rows of q and k come in llama.cpp's order."""
    path, original, expected = models("llama", lambda _: kind, kind, vocab_size=64)
    model, tensors = load(path)
    check_tensors(model, tensors, expected)
    quantized = kind not in ("F16", "BF16", "F32")
    layers = [m for m in model.modules() if isinstance(m, QuantizedLinear)]
    assert len(layers) == (15 if quantized else 0)
    assert all(m.input_format == "q8_1" and m.input_block == [1, 32] for m in layers)
    with torch.no_grad():
        exact = with_values(original, expected)(IDS % 64, use_cache=False).logits
        ours = baseline.reference_model(open_source(path))(IDS % 64, use_cache=False).logits
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-5)


def test_tied_embeddings(models):
    """Without a head of its own, the head is a product with the embedding's own codes."""
    path, _, expected = models("qwen3", tie_word_embeddings=True)
    model, tensors = load(path)
    check_tensors(model, tensors, expected)
    head = model.lm_head
    assert isinstance(head, QuantizedLinear) and head.packing == "q6_k"
    got = head.dequantize(tensors["lm_head.weight"], tensors["lm_head.weight_scale_inv"])
    assert torch.equal(got, expected["model.embed_tokens.weight"])


def test_grouped_heads_of_another_width(models):
    path, _, expected = models("qwen3", num_attention_heads=8, head_dim=64)
    check_tensors(*load(path), expected)
    assert open_source(path).config["head_dim"] == 64


def test_biases_in_the_order_of_their_rows(models):
    path, _, expected = models("llama", attention_bias=True, mlp_bias=True)
    model, tensors = load(path)
    check_tensors(model, tensors, expected)
    assert "model.layers.0.self_attn.q_proj.bias" in tensors


def test_rope_factors(tmp_path):
    model = gguf_models.transformers_model("llama")
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    path = tmp_path / "m.gguf"
    gguf_models.write(path, model, extra={"rope_freqs.weight": factors})
    _, tensors = load(path)
    expected = model.model.rotary_emb.inv_freq / torch.from_numpy(factors)
    assert torch.equal(tensors["model.rotary_emb.inv_freq"], expected)


def test_linear_rope_scaling(tmp_path):
    model = gguf_models.transformers_model("llama")
    path = tmp_path / "m.gguf"
    keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    gguf_models.write(path, model, metadata=keys)
    _, tensors = load(path)
    expected = model.model.rotary_emb.inv_freq / 4
    assert torch.equal(tensors["model.rotary_emb.inv_freq"], expected)


def test_dtype_is_the_narrowest_that_holds_the_plain_tensors(tmp_path, models):
    assert open_source(models("llama")[0]).config["dtype"] == "float32"
    model = gguf_models.transformers_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    gguf_models.write(tmp_path / "m.gguf", model)
    assert open_source(tmp_path / "m.gguf").config["dtype"] == "bfloat16"
    gguf_models.write(tmp_path / "h.gguf", model, lambda _: "F16")
    assert open_source(tmp_path / "h.gguf").config["dtype"] in ("float16", "float32")


def test_tensors_are_mapped_until_they_are_packed(models):
    """Plain tensors are views of the file; of a quantized layer, nothing keeps what was read."""
    path, *_ = models("llama")
    _, tensors = load(path)
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [
        tuple(int(bound, 16) for bound in line.split()[0].split("-"))
        for line in maps
        if line.endswith(path.name)
    ]
    norm = tensors["model.norm.weight"].data_ptr()
    assert any(low <= norm < high for low, high in ranges)
    name = "model.layers.0.mlp.up_proj.weight"
    first, second = tensors[name], tensors[name]
    assert first.dtype == torch.int8 and first.data_ptr() != second.data_ptr()


def test_imported_and_fused(models):
    """All products are raised; gate and up join, and what differs in type stays apart."""
    path, *_ = models("qwen3")
    imported = import_checkpoint(path, max_len=32)
    assert imported.model.eos_token_ids == (2,) and imported.model.bos_token_id == 1
    assert str(imported.module).count('"torch.qfuse.quantized_linear"') == 15
    remarks = fuse(imported.module, CompileOptions.make("cpu", ())).remarks
    text = str(imported.module)
    assert "torch.qfuse.quantized_linear" not in text
    assert '"q4_k"' in text and '"q6_k"' in text and '"q8_1"' in text
    fired = [r.pattern for r in remarks if r.outcome == "fired"]
    assert fired.count("gate-up") == 2 and "norm-quantize" in fired
    refused = [r for r in remarks if r.outcome == "refused"]
    assert any("weights are stored as i4 and i6" in r.cause for r in refused)


def test_no_file(tmp_path):
    refuse(tmp_path / "m.gguf", "is not a file; give a .gguf file")


@pytest.mark.parametrize("keep", [0, 3, 200, 5000, -400])
def test_truncated(models, tmp_path, keep):
    path = tmp_path / "m.gguf"
    path.write_bytes(models("llama")[0].read_bytes()[:keep])
    refuse(path, "is no complete GGUF file (truncated or corrupt)")


def test_corrupt(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"not a model" * 100)
    refuse(path, "is no complete GGUF file", "magic invalid")


@pytest.mark.parametrize(
    ("keys", "fragment"),
    [
        ({"block_count": None}, "metadata llama.block_count is missing"),
        ({"rope.scaling.type": "yarn"}, "llama.rope.scaling.type 'yarn' is not supported"),
        ({"attention.value_length": 32}, "value_length is 32, but a key's length is 64"),
        ({"rope.dimension_count": 32}, "rope.dimension_count is 32, but a key's length is 64"),
        ({"expert_count": 8}, "metadata llama.expert_used_count is missing"),
        ({"attention.sliding_window": 16}, "attention.sliding_window is not supported"),
        ({"feed_forward_length": 600}, "has shape [512, 256]; the metadata ask for [600, 256]"),
        ({"block_count": 1}, "tensor blk.1.attn_q.weight has no place in a llama model of 1"),
        ({"block_count": 3}, "tensor blk.2.attn_q.weight is missing from"),
    ],
)
def test_metadata(tmp_path, keys, fragment):
    path = tmp_path / "m.gguf"
    gguf_models.write(path, gguf_models.transformers_model("llama"), metadata=keys)
    refuse(path, fragment)


@pytest.mark.parametrize(
    ("keys", "fragment"),
    [
        ({"expert_count": 0}, "metadata qwen3moe.expert_count 0 is not supported"),
        ({"expert_count": 6}, "has 8 experts; the metadata ask for 6"),
        ({"expert_used_count": 9}, "num_experts_per_tok is 9; expected 1 to num_experts"),
        ({"expert_feed_forward_length": 128}, "the metadata ask for [8, 128, 256]"),
        ({"expert_gating_func": 2}, "qwen3moe.expert_gating_func is 2; supported: 1, softmax"),
        ({"expert_weights_scale": 2.5}, "qwen3moe.expert_weights_scale is not supported"),
    ],
)
def test_metadata_of_experts(tmp_path, keys, fragment):
    path = tmp_path / "m.gguf"
    gguf_models.write(path, gguf_models.transformers_model("qwen3_moe"), metadata=keys)
    refuse(path, fragment)


def test_foreign_architecture(tmp_path):
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "gemma3")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuse(tmp_path / "m.gguf", "architecture 'gemma3' is not supported; supported: llama, qwen2")


def test_type_without_an_operator(tmp_path):
    path = tmp_path / "m.gguf"
    gguf_models.write(path, gguf_models.transformers_model("llama"), lambda _: "Q5_0")
    refuse(path, "is Q5_0, which is not supported; supported: Q8_0, Q4_0, MXFP4, Q4_K, Q6_K")


def test_foreign_tensor(tmp_path):
    path = tmp_path / "m.gguf"
    extra = {"blk.0.attn_sub_norm.weight": np.ones(8, np.float32)}
    gguf_models.write(path, gguf_models.transformers_model("llama"), extra=extra)
    refuse(path, "tensor blk.0.attn_sub_norm.weight has no place in a llama model of 2 layers")


def test_scales_that_are_not_finite(tmp_path, monkeypatch):
    quantize = gguf_models.quantize

    def poisoned(array, kind):
        data = quantize(array, kind)
        if kind.name == "Q8_0":
            data[0, :2] = np.float16(np.inf).reshape(1).view(np.uint8)
        return data

    monkeypatch.setattr(gguf_models, "quantize", poisoned)
    path = tmp_path / "m.gguf"
    with np.errstate(invalid="ignore"):
        gguf_models.write(path, gguf_models.transformers_model("llama"), lambda _: "Q8_0")
    _, tensors = load(path)
    with pytest.raises(QfuseError, match=r"tensor blk\.0\.attn_v\.weight of .* not finite"):
        tensors["model.layers.0.self_attn.v_proj.weight_scale_inv"]
