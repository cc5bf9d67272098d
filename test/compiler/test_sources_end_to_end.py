"""Every source of quantized weights, from its file or module to results of compiled kernels."""

import json

import compressed_models
import gguf_models
import pytest
import torch
from imported_once import file_once
from loading import error, logits
from torch import nn

from qfuse.compiler import compile, load
from qfuse.compiler.frontend.linear import QuantizedLinear, quantize_linears
from qfuse.tools.qfuse import main

pytestmark = pytest.mark.quick_level

PROMPT = [3, 1, 4, 15, 9, 26, 5, 35]

# f32 between operations, and the operators' definitions in plain torch on the other side: sums in
# another order, about 1e-6, and now and then a code of an input that these move to a neighbour,
# which is 7 % of the largest of 128 inputs of a block that adds 5 % to the residual stream.
CLOSE = 4e-3

GGUF = {
    "llama q4_k_m": ("llama", gguf_models.q4_k_m, {}),
    "qwen2 q4_k_m": ("qwen2", gguf_models.q4_k_m, {}),
    "qwen3 q4_k_m": ("qwen3", gguf_models.q4_k_m, {}),
    "qwen3 tied": ("qwen3", gguf_models.q4_k_m, {"tie_word_embeddings": True}),
    "mixtral q4_k_m": ("mixtral", gguf_models.q4_k_m, {}),
    "qwen3_moe q4_k_m": ("qwen3_moe", gguf_models.q4_k_m, {}),
    "qwen3_moe q8_0": ("qwen3_moe", lambda _: "Q8_0", {}),
    "qwen3_moe mxfp4": ("qwen3_moe", lambda _: "MXFP4", {}),
    "q8_0": ("llama", lambda _: "Q8_0", {}),
    "q4_0": ("llama", lambda _: "Q4_0", {}),
    "q6_k": ("llama", lambda _: "Q6_K", {}),
    "mxfp4": ("llama", lambda _: "MXFP4", {}),
    "bf16": ("llama", lambda _: "BF16", {}),
}
PRESETS = [
    "FP8_BLOCK",
    "FP8_DYNAMIC",
    "FP8",
    "W8A8",
    "W8A16",
    "W4A8",
    "W4A16",
    "W4A16_ASYM",
    "MXFP4A16",
]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("gguf"), {}

    def get(name):
        if name not in made:
            architecture, types, choices = GGUF[name]
            made[name] = root / f"{name}.gguf"
            model = gguf_models.transformers_model(architecture, **choices)
            gguf_models.write(made[name], model, types)
        return made[name]

    return get


def compressed(path, preset, architecture="qwen3"):
    """A checkpoint of a preset, whose model computes in f32."""
    model = compressed_models.quantized_model(
        {preset: ["Linear"]}, None, architecture, intermediate_size=256
    )
    compressed_models.save(path, model)
    config = json.loads((path / "config.json").read_text())
    config["dtype"] = "float32"
    (path / "config.json").write_text(json.dumps(config))


def check(path, tmp_path):
    """Prefill, decode, fusions off, saved and loaded."""
    model = file_once(path, max_len=32)
    exe, plain = model.compile(), model.compile("all")
    expected = logits(path, torch.tensor([PROMPT]))[0]
    assert error(exe.logits(PROMPT)[0], expected) < CLOSE
    assert error(exe.logits(PROMPT[:1])[0], expected[:1]) < CLOSE
    for count in (1, 4):
        assert torch.equal(exe.logits(PROMPT[:count]), plain.logits(PROMPT[:count]))
    tokens = exe.generate(PROMPT, 6, eos=())
    assert tokens == plain.generate(PROMPT, 6, eos=())
    exe.save(tmp_path / "model.qfuse")
    assert load(tmp_path / "model.qfuse").generate(PROMPT, 6, eos=()) == tokens


@pytest.mark.parametrize("name", GGUF)
def test_gguf(gguf, name, tmp_path):
    check(gguf(name), tmp_path)


@pytest.mark.parametrize("preset", PRESETS)
def test_compressed_tensors(preset, tmp_path):
    compressed(tmp_path / "model", preset)
    check(tmp_path / "model", tmp_path)


@pytest.mark.parametrize(
    "preset", ["FP8_DYNAMIC", "FP8", "W8A8", "W4A16", "W4A16_ASYM", "W4A8", "MXFP4A16"]
)
def test_experts_of_compressed_tensors(preset, tmp_path):
    compressed(tmp_path / "model", preset, "qwen3_moe")
    check(tmp_path / "model", tmp_path)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        *(("qwen3", kind) for kind in ("channel", "static", "ue8m0")),
        *(("qwen3_moe", kind) for kind in ("channel", "static", "ue8m0")),
        *(("deepseek_v3", kind) for kind in ("static", "ue8m0")),
    ],
)
def test_fp8(editable, architecture, kind, tmp_path):
    model = editable(architecture=architecture)
    model.config(torch_dtype="float32")

    def edit(tensors):
        for name in [n for n in tensors if n.endswith("_scale_inv")]:
            layer, rows = name.removesuffix(".weight_scale_inv"), len(tensors[name[:-10]])
            if kind == "ue8m0":
                tensors[name] = tensors[name].to(torch.float8_e8m0fnu)
            else:
                tensors[name] = torch.linspace(1e-4, 3e-4, rows)
            if kind == "static":
                tensors[f"{layer}.input_scale"] = torch.tensor(0.02)

    model.tensors(edit)
    changes = {
        "channel": {"weight_block_size": None},
        "static": {"weight_block_size": None, "activation_scheme": "static"},
        "ue8m0": {"scale_fmt": "ue8m0"},
    }[kind]
    model.quantization(**changes)
    check(model.path, tmp_path)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(256, 192, False), nn.Linear(256, 192, False)
        self.down_proj = nn.Linear(192, 256, True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def torchao_configs():
    ao = pytest.importorskip("torchao.quantization")
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType

    int4 = {"weight_dtype": torch.int4, "granularity": PerGroup(32)}
    return {
        "int8": ao.Int8WeightOnlyConfig(),
        "int8-dynamic": ao.Int8DynamicActivationInt8WeightConfig(),
        "int4": ao.IntxWeightOnlyConfig(**int4),
        "int4-zeros": ao.IntxWeightOnlyConfig(**int4, mapping_type=MappingType.ASYMMETRIC),
        "float8": ao.Float8WeightOnlyConfig(),
    }


@pytest.mark.parametrize("kind", ["int8", "int8-dynamic", "int4", "int4-zeros", "float8"])
@pytest.mark.parametrize("tokens", [1, 5])
@torch.no_grad()
def test_torchao(kind, tokens, caplog):
    """`compile` and `torch.compile` of a module agree with the operators, and with torchao."""
    from torchao.quantization import quantize_

    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Mlp().eval().requires_grad_(False)
    quantize_(model, torchao_configs()[kind])
    x = torch.randn(tokens, 256)
    theirs = model(x)
    exe = compile(model, (x,))
    compiled = torch.compile(model, backend="qfuse")(x)
    assert "runs on torch" not in caplog.text
    operators = quantize_linears(model)
    assert isinstance(operators.up_proj, QuantizedLinear)
    assert error(exe(x)[0], operators(x)) < CLOSE
    assert torch.equal(compiled, exe(x)[0])
    assert error(exe(x)[0], theirs) < 0.03
    assert exe.program.sizes()["kernels"] > 0


def test_demo_of_a_gguf_file(gguf, capsys):
    """The keys and limits of the dense demo."""
    path = gguf("qwen3 q4_k_m")
    assert main(["demo", "--model", str(path), "--tokens", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["greedy_tokens_equal"] and result["max_rel_err_vs_unfused"] == 0
    assert result["rel_err_vs_fp32_quantized"] < CLOSE and result["rel_err_vs_fp32"] < 0.02
    assert result["kernels_after"] < result["kernels_before"]
    assert result["patterns"]["gate-up"]["fired"] == 2
    assert len(result["tokens"]) == 4


def test_compile_command(gguf, tmp_path, capsys):
    artifact = tmp_path / "model.qfuse"
    assert main(["compile", str(gguf("llama q4_k_m")), "-o", str(artifact), "--max-len", "16"]) == 0
    assert main(["run", str(artifact), "--prompt-ids", "1,2", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out.split()
