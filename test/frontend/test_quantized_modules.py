"""Linear layers that torchao, compressed-tensors and transformers quantized, in torch modules."""

import logging

import pytest
import torch
from torch import nn

from qfuse.compiler import compilation
from qfuse.compiler.frontend.linear import QuantizedLinear, quantize_linears
from qfuse.compiler.frontend.module import import_module
from qfuse.compiler.frontend.quantized_modules import adopt_linears, adopted_linears
from qfuse.dialects.errors import QfuseError

torchao = pytest.importorskip("torchao.quantization")
granularity = pytest.importorskip("torchao.quantization.granularity")
MappingType = pytest.importorskip("torchao.quantization.quant_primitives").MappingType

E4M3 = torch.float8_e4m3fn


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(128, 96, bias=True)
        self.down = nn.Linear(96, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return Mlp().bfloat16().eval().requires_grad_(False)


def ao(config) -> nn.Module:
    model = mlp()
    torchao.quantize_(model, config)
    return model


def float8(granularity, **kwargs) -> nn.Module:
    """Float8Tensors made by hand, as `quantize_` makes them where there is a GPU."""
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import (
        Float8Tensor,
        QuantizeTensorToFloat8Kwargs,
    )

    model = mlp()
    for layer in (model.up, model.down):
        inputs = QuantizeTensorToFloat8Kwargs(granularity=granularity, **kwargs)
        weight = Float8Tensor.from_hp(
            layer.weight.detach(),
            granularity=granularity,
            mm_config=Float8MMConfig(),
            act_quant_kwargs=inputs,
        )
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return model


def int4(offset=0.0, **kwargs) -> nn.Module:
    """Int4Tensors made by hand, which torchao itself makes with mslk's help only."""
    from torchao.quantization.quantize_.workflows.int4.int4_tensor import Int4Tensor

    model = mlp()
    for layer in (model.up, model.down):
        rows, columns = layer.weight.shape
        generator = torch.Generator().manual_seed(rows)
        codes = torch.randint(-8, 8, (rows, columns), generator=generator)
        low, high = codes[:, ::2] & 15, codes[:, 1::2] & 15
        packed = (low | high << 4).to(torch.uint8).view(torch.int8)
        scale = torch.rand(columns // 32, rows, generator=generator).bfloat16() + 0.5
        zero = (offset * scale).bfloat16()
        weight = Int4Tensor(packed, scale, zero, [1, 32], layer.weight.shape, **kwargs)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        spread = scale.t().float().repeat_interleave(32, 1)
        layer.expected = codes * spread + zero.t().float().repeat_interleave(32, 1)
    return model


W4 = {"weight_dtype": torch.int4, "granularity": granularity.PerGroup(32)}
AO = {
    "int8": lambda: ao(torchao.Int8WeightOnlyConfig()),
    "int8-dynamic": lambda: ao(torchao.Int8DynamicActivationInt8WeightConfig()),
    "int4": lambda: ao(torchao.IntxWeightOnlyConfig(**W4)),
    "int4-zeros": lambda: ao(
        torchao.IntxWeightOnlyConfig(**W4, mapping_type=MappingType.ASYMMETRIC)
    ),
    "int8-axis": lambda: ao(
        torchao.IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=granularity.PerAxis(0))
    ),
    "float8": lambda: ao(torchao.Float8WeightOnlyConfig()),
    "float8-rows": lambda: float8(granularity.PerRow()),
    "float8-tensor": lambda: float8(granularity.PerTensor()),
}


@pytest.mark.parametrize("kind", AO)
@torch.no_grad()
def test_torchao(kind):
    """Weights have the bits of torchao's dequantizer, results its own within a few roundings."""
    model, x = AO[kind](), torch.randn(5, 128).bfloat16()
    expected = model(x)
    weights = {name: layer.weight.dequantize() for name, layer in model.named_children()}
    with adopted_linears(model) as adopted:
        for name, weight in weights.items():
            layer = adopted.get_submodule(name)
            assert isinstance(layer, QuantizedLinear)
            ours = layer.dequantize(layer.weight, layer.weight_scale_inv, layer.weight_zero_point)
            assert torch.equal(ours.to(weight.dtype), weight), name
        y = adopted(x)
    assert not isinstance(model.up, QuantizedLinear) and model.up.bias is not None
    # bf16 between the steps of torchao; inputs of 8 bits by a scale that is not quite the same
    assert float((y - expected).norm() / expected.norm()) < 0.03


@pytest.mark.parametrize("kind", AO)
def test_torchao_modules_are_imported(kind):
    model = AO[kind]()
    imported = import_module(model, (torch.randn(5, 128).bfloat16(),))
    assert str(imported.module).count('"torch.qfuse.quantized_linear"') == 2
    assert "up.weight_scale_inv" in imported.parameters
    assert ("up.weight_zero_point" in imported.parameters) == (kind == "int4-zeros")
    assert not any(isinstance(m, QuantizedLinear) for m in model.modules())


@pytest.mark.parametrize("offset", [0.0, 4.0])
def test_int4_tensor(offset):
    """Offsets that are multiples of the scales are zero points; codes have a sign."""
    model = int4(offset)
    expected = {name: layer.expected for name, layer in model.named_children()}
    adopted = adopt_linears(model)
    for name, value in expected.items():
        layer = adopted.get_submodule(name)
        assert (layer.weight_zero_point is not None) == (offset != 0)
        ours = layer.dequantize(layer.weight, layer.weight_scale_inv, layer.weight_zero_point)
        torch.testing.assert_close(ours, value, rtol=1e-6, atol=1e-6)


def with_attribute(model, **changes):
    for name, value in changes.items():
        setattr(model.up.weight, name, value)
    return model


REFUSED = {
    "asymmetric inputs": (
        lambda: ao(torchao.Int8DynamicActivationIntxWeightConfig()),
        "IntxUnpackedToInt8Tensor of torchao, has inputs quantized as 'int8_asym_per_token'",
    ),
    "a scale for inputs": (
        lambda: with_attribute(AO["int8"](), act_pre_scale=torch.ones(128)),
        "a scale for inputs (act_pre_scale); fold it into the layer before",
    ),
    "zero points of int8": (
        lambda: with_attribute(AO["int8"](), zero_point=torch.ones(96, 1, dtype=torch.int8)),
        "zero points; supported beside weights of 4 bits only",
    ),
    "zero points between codes": (
        lambda: int4(0.5),
        "Int4Tensor of torchao, has zero points that are no multiple of their scales",
    ),
    "zero points beyond the codes": (
        lambda: int4(16.0),
        "zero points that are no codes, whole numbers from -8 to 7",
    ),
    "float8 inputs beside int4": (
        lambda: int4(activation_dtype=E4M3),
        "inputs quantized to torch.float8_e4m3fn; supported: bfloat16",
    ),
    "bounds on scales": (
        lambda: float8(granularity.PerRow(), hp_value_ub=10.0),
        "bounds on the scales of inputs",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_torchao_refused(case):
    make, fragment = REFUSED[case]
    with pytest.raises(QfuseError) as caught:
        import_module(make(), (torch.randn(5, 128).bfloat16(),))
    assert "up.weight" in str(caught.value) and fragment in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def seen(monkeypatch):
    """Modules that reach the compiler, which then declines: torch runs the graph."""
    seen = []

    def decline(imported, options, progress=None):
        seen.append(imported)
        raise QfuseError("declined")

    monkeypatch.setattr(compilation, "compile_imported", decline)
    torch._dynamo.reset()
    return seen


@pytest.mark.parametrize("kind", AO)
@torch.no_grad()
def test_torch_compile_sees_torchao(kind, seen):
    model, x = AO[kind](), torch.randn(5, 128).bfloat16()
    expected = model(x)
    y = torch.compile(model, backend="qfuse", fullgraph=True)(x)
    assert float((y - expected).norm() / expected.norm()) < 0.03
    (imported,) = seen
    assert str(imported.module).count('"torch.qfuse.quantized_linear"') == 2
    assert {"up.weight", "up.weight_scale_inv", "up.bias"} <= set(imported.parameters)
    assert [spec.name for spec in imported.inputs] == ["l_x_"]
    assert "<[?" not in str(imported.module)  # the extents of weights, and of this x, are known


@torch.no_grad()
def test_torch_compile_notices_another_weight(seen):
    model, x = AO["int8"](), torch.randn(5, 128).bfloat16()
    compiled = torch.compile(model, backend="qfuse")
    compiled(x)
    torch.manual_seed(1)
    other = Mlp().bfloat16().eval().requires_grad_(False)
    torchao.quantize_(other, torchao.Int8WeightOnlyConfig())
    model.up.weight, model.down.weight = other.up.weight, other.down.weight
    expected = model(x)
    y = compiled(x)
    assert float((y - expected).norm() / expected.norm()) < 0.03


@torch.no_grad()
def test_torch_compile_notices_another_format(seen, caplog):
    """Zero points are data, on which Dynamo has no guard: another model shares the graph."""
    x, models = torch.randn(5, 128).bfloat16(), [AO["int4"](), AO["int4-zeros"]()]
    with caplog.at_level(logging.WARNING, logger="qfuse"):
        for model in models:
            torch.testing.assert_close(
                torch.compile(model, backend="qfuse")(x), model(x), rtol=5e-2, atol=5e-2
            )
    assert "remark: a call runs on torch: the weight of up is quantized in another" in caplog.text


@torch.no_grad()
def test_torch_compile_leaves_what_it_cannot_read(seen, caplog):
    model = ao(torchao.Int8DynamicActivationIntxWeightConfig())
    x = torch.randn(5, 128).bfloat16()
    with caplog.at_level(logging.WARNING, logger="qfuse"):
        y = torch.compile(model, backend="qfuse")(x)
    torch.testing.assert_close(y, model(x), rtol=2e-2, atol=2e-2)
    assert "remark: a linear layer runs on torch: up.weight, a IntxUnpackedToInt8" in caplog.text


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("preset", ["FP8_BLOCK", "FP8_DYNAMIC", "W8A8", "W4A16", "W4A16_ASYM"])
@torch.no_grad()
def test_compressed_tensors(preset, compressed):
    """Compressed or about to be; the module keeps its own layers and its hook."""
    import compressed_models
    from compressed_tensors.compressors import ModelCompressor

    model = compressed_models.quantized_model({preset: ["Linear"]}, intermediate_size=256)
    again = compressed_models.quantized_model({preset: ["Linear"]}, intermediate_size=256)
    compressor = ModelCompressor.from_pretrained_model(again)
    compressor.compress_model(again)
    expected = compressed_models.decompressed(again)
    if compressed:
        model = again
        compressor.add_decompress_hook(model)
    hooks = len(model._forward_pre_hooks)
    with adopted_linears(model) as adopted:
        assert not adopted._forward_pre_hooks
        for name, value in expected.items():
            layer = adopted.get_submodule(name)
            ours = layer.dequantize(layer.weight, layer.weight_scale_inv, layer.weight_zero_point)
            assert torch.equal(ours.to(value.dtype), value), name
    assert len(model._forward_pre_hooks) == hooks
    assert not any(isinstance(m, QuantizedLinear) for m in model.modules())


@torch.no_grad()
def test_a_compressed_linear_is_imported():
    import compressed_models
    from compressed_tensors.compressors import ModelCompressor

    model = compressed_models.quantized_model({"W4A16_ASYM": ["Linear"]}, intermediate_size=256)
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    mlp = model.model.layers[0].mlp
    imported = import_module(mlp, (torch.randn(3, 128).bfloat16(),))
    assert str(imported.module).count('"torch.qfuse.quantized_linear"') == 3
    assert "up_proj.weight_zero_point" in imported.parameters
    assert isinstance(quantize_linears(mlp).up_proj, QuantizedLinear)


@torch.no_grad()
def test_a_decompressed_linear_is_refused():
    import compressed_models
    from compressed_tensors.compressors import ModelCompressor

    model = compressed_models.quantized_model({"W4A16": ["Linear"]}, intermediate_size=256)
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    compressor.decompress_model(model)
    with pytest.raises(QfuseError, match="was decompressed, as compressed-tensors does at the"):
        adopt_linears(model)


@pytest.mark.parametrize("static", [False, True])
def test_transformers_fp8_per_tensor(static):
    from transformers.integrations.finegrained_fp8 import FP8Linear

    linear = FP8Linear(64, 32, None, "static" if static else "dynamic")
    linear.weight = nn.Parameter(torch.randn(32, 64).to(E4M3), requires_grad=False)
    adopted = adopt_linears(linear)
    assert isinstance(adopted, QuantizedLinear)
    assert adopted.weight_scale_inv.shape == (32, 1)
    assert adopted.input_format == ("static" if static else "dynamic")
