"""Linear layers that other libraries quantized.

transformers' `FP8Linear`, linears of compressed-tensors and linears over weights of torchao become
`QuantizedLinear`s over the same codes and scales.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qfuse.compiler import torch_ops
from qfuse.compiler.frontend import torchao_tensors
from qfuse.compiler.frontend.compressed import CompressedTensors
from qfuse.compiler.frontend.fp8 import Fp8
from qfuse.compiler.frontend.linear import (
    QuantizedLinear,
    quantized_linear,
    replace_linears,
)
from qfuse.compiler.frontend.stored_tensors import Tensors
from qfuse.dialects.errors import QfuseError


def adopt_linears(model: nn.Module) -> nn.Module:
    """Put `QuantizedLinear`s in the place of other libraries' quantized linears, in place.

    Linears that nobody quantized stay.  Returns the model; raises QfuseError, in one line, on a
    layer whose numbers no operator of qfuse's would compute.
    """
    return without_decompression(replace_linears(model, adopt))


@contextmanager
def adopted_linears(model: nn.Module) -> Iterator[nn.Module]:
    """The model with its linears adopted, as long as the context lasts."""
    originals: dict[str, nn.Linear] = {}

    def convert(name: str, linear: nn.Linear) -> nn.Module | None:
        new = adopt(name, linear)
        if new is not None:
            originals[name] = linear
        return new

    hooks: Mapping[int, Any] = {}
    try:
        changed = replace_linears(model, convert)
        hooks = _take_decompression_away(changed)
        yield changed
    finally:
        model._forward_pre_hooks.update(hooks)
        for name, linear in originals.items():
            if name:
                model.set_submodule(name, linear)


def without_decompression(model: nn.Module) -> nn.Module:
    """The model without compressed-tensors' hook that would decompress it at its first call."""
    _take_decompression_away(model)
    return model


def adopt(name: str, linear: nn.Linear) -> QuantizedLinear | None:
    """The layer over the tensors of one that is quantized; None if it is not."""
    weight = getattr(linear, "weight", None)
    if torchao_tensors.is_torchao(weight):
        assert isinstance(weight, torch.Tensor)
        format, tensors = torchao_tensors.read(name, weight)
        return quantized_linear(format, tensors, linear.bias)
    if getattr(linear, "quantization_scheme", None) is not None:
        return _adopt_compressed(name, linear)
    if isinstance(weight, torch.Tensor) and weight.dtype in torch_ops.FP8_MAX:
        return _adopt_fp8(name, linear)
    return None


class _ModuleTensors(Tensors):
    """The tensors of one layer, by its name and theirs."""

    def __init__(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        self.path = Path(name or "the layer")
        self._tensors = {f"{name}.{leaf}": tensor for leaf, tensor in tensors.items()}

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def raw(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise QfuseError(f"{self.path} has no {name.rpartition('.')[2]}")
        return self._tensors[name].detach()


def _adopt_fp8(name: str, linear: Any) -> QuantizedLinear:
    """From transformers' `FP8Linear`."""
    tensors = _ModuleTensors(name, dict(linear.named_parameters(recurse=False)))
    if tensors.scale_of(f"{name}.weight") is None:
        raise QfuseError(f"{name} is an FP8 layer without scales; supported: weight_scale_inv")
    block = getattr(linear, "block_size", None)
    static = getattr(linear, "activation_scale", None) is not None
    scale = tensors.stored_dtype(tensors.scale_of(f"{name}.weight") or "")
    fp8 = Fp8(
        None if block is None else (block[0], block[1]),
        static,
        "e8m0" if scale == torch.float8_e8m0fnu else "dynamic",
    )
    rows, columns = linear.weight.shape
    format = fp8.stored(tensors, name, rows, columns)
    assert format is not None
    return _from_entries(format, fp8.load(tensors, name, rows, columns, format), linear.bias)


def _adopt_compressed(name: str, linear: Any) -> QuantizedLinear:
    """From a linear of compressed-tensors, compressed or about to be."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationStatus

    scheme, status = linear.quantization_scheme, linear.quantization_status
    if status == QuantizationStatus.DECOMPRESSED:
        raise QfuseError(
            f"{name} was decompressed, as compressed-tensors does at the first call; "
            "compile the model before it is called"
        )
    kind = scheme.format or infer_module_format(nn.Linear, scheme)
    kind = getattr(kind, "value", kind)
    state = {
        **dict(linear.named_parameters(recurse=False)),
        **dict(linear.named_buffers(recurse=False)),
    }
    state = {leaf: tensor.detach() for leaf, tensor in state.items()}
    if status < QuantizationStatus.COMPRESSED:
        state = BaseCompressor.get_value_from_registry(kind).compress(state, scheme)
    tensors = _ModuleTensors(name, state)
    reader = CompressedTensors(_Groups(kind), tensors.path)
    shape = (linear.out_features, linear.in_features)
    dtype = tensors.stored_dtype(f"{name}.weight_scale") or torch.bfloat16
    format = reader.format_of(scheme, name, shape[1], dtype)
    entries = reader.load_as(scheme, tensors, name, *shape, format)
    return _from_entries(format, entries, linear.bias)


class _Groups:
    """What `CompressedTensors` asks of a config when the scheme of a layer is known."""

    def __init__(self, format: str) -> None:
        self.format = format


def _from_entries(format: Any, entries: Mapping[str, Any], bias: Any) -> QuantizedLinear:
    tensors = {leaf: entry() if callable(entry) else entry for leaf, entry in entries.items()}
    return quantized_linear(format, tensors, bias)


def _take_decompression_away(model: nn.Module) -> dict[int, Any]:
    """Remove the hook; returns it by its id."""
    handle = getattr(model, "ct_decompress_hook", None)
    if handle is None or handle.id not in model._forward_pre_hooks:
        return {}
    return {handle.id: model._forward_pre_hooks.pop(handle.id)}
