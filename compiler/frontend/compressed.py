"""Checkpoints of compressed-tensors (`quant_method: compressed-tensors`), as llm-compressor writes.

The library parses the config and matches layers against it; the tensors are read here, as they
lie in the file, because the library's own way is to expand them to bf16.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qfuse.compiler.block_scaled import FP8_MAX
from qfuse.compiler.frontend.fp8 import per_channel, static_scale
from qfuse.compiler.frontend.lazy_tensors import Entry
from qfuse.compiler.frontend.linear import (
    INPUT_SCALE,
    SCALE,
    WEIGHT,
    ZERO_POINT,
    LinearFormat,
    scale_shape,
)
from qfuse.compiler.frontend.stored_tensors import Tensors
from qfuse.compiler.packed_weights import pack_nibbles
from qfuse.dialects.errors import QfuseError


@dataclass(frozen=True)
class _Stored:
    """How a kind of weight lies in the file and in `qfuse::quantized_linear`."""

    leaf: str
    dtype: torch.dtype
    packing: str = "none"
    weight_dtype: torch.dtype = torch.int8


_FP8 = _Stored("weight", torch.float8_e4m3fn, weight_dtype=torch.float8_e4m3fn)
_INT8 = _Stored("weight", torch.int8)
_STORED = {
    ("float-quantized", "float", 8): _FP8,
    ("naive-quantized", "float", 8): _FP8,
    ("int-quantized", "int", 8): _INT8,
    ("naive-quantized", "int", 8): _INT8,
    ("int-quantized", "int", 4): _Stored("weight", torch.int8, "int4"),
    ("pack-quantized", "int", 4): _Stored("weight_packed", torch.int32, "int4"),
    ("pack-quantized", "int", 8): _Stored("weight_packed", torch.int32),
    ("mxfp4-pack-quantized", "float", 4): _Stored("weight_packed", torch.uint8, "fp4"),
}
"""By the format of a group and the type and bits of its weights."""

_SCALES = (torch.float32, torch.bfloat16, torch.float16)


class CompressedTensors:
    """The groups of such a `quantization_config`; refuses, in one line, what it cannot read."""

    def __init__(self, config: Any, source: Path) -> None:
        self._config, self._source = config, source

    @staticmethod
    def read(entry: Mapping[str, Any], source: Path) -> "CompressedTensors":
        """Parse the entry; raises QfuseError on anything that changes what the numbers mean."""
        try:
            from compressed_tensors.quantization import QuantizationConfig
        except ImportError as error:
            raise QfuseError(
                f"{source} needs compressed-tensors, pip install 'qfuse[hf]': {error}"
            ) from error
        sparsity = entry.get("sparsity_config") or {}
        if sparsity.get("format", "dense") != "dense":
            raise QfuseError(
                f"{source}: sparsity_config {sparsity.get('format')!r} is not supported; "
                "supported: dense weights"
            )
        if (entry.get("transform_config") or {}).get("config_groups"):
            raise QfuseError(f"{source}: transform_config is not supported; supported: none")
        if entry.get("kv_cache_scheme") is not None:
            raise QfuseError(
                f"{source}: kv_cache_scheme is not supported; caches hold the model's type"
            )
        known = {k: v for k, v in entry.items() if k in QuantizationConfig.model_fields}
        try:
            config = QuantizationConfig.model_validate(known)
        except (ValueError, KeyError, NotImplementedError) as error:
            reason = " ".join(str(error).split())
            raise QfuseError(
                f"{source}: compressed-tensors refuses this quantization_config: {reason[:300]}"
            ) from error
        return CompressedTensors(config, source)

    def planned(self, name: str, rows: int, columns: int) -> LinearFormat | None:
        scheme = self._scheme(name)
        return None if scheme is None else self.format_of(scheme, name, columns)

    def stored(self, tensors: Tensors, name: str, rows: int, columns: int) -> LinearFormat | None:
        scheme = self._scheme(name)
        if scheme is None:
            for leaf in ("weight_scale", "weight_packed"):
                if f"{name}.{leaf}" in tensors:
                    raise QfuseError(
                        f"{tensors.path}: the file has {name}.{leaf}, but no group of "
                        "config.json's quantization_config targets it"
                    )
            return None
        dtype = tensors.stored_dtype(f"{name}.weight_scale") or torch.bfloat16
        return self.format_of(scheme, name, columns, dtype)

    def load(
        self, tensors: Tensors, name: str, rows: int, columns: int, format: LinearFormat
    ) -> dict[str, Entry]:
        scheme = self._scheme(name)
        assert scheme is not None
        return self.load_as(scheme, tensors, name, rows, columns, format)

    def load_as(
        self,
        scheme: Any,
        tensors: Tensors,
        name: str,
        rows: int,
        columns: int,
        format: LinearFormat,
    ) -> dict[str, Entry]:
        """`load`, for a layer of the given scheme."""
        for leaf in ("weight_g_idx", "weight_global_scale"):
            if f"{name}.{leaf}" in tensors:
                raise QfuseError(
                    f"tensor {name}.{leaf} of {tensors.file_of(f'{name}.{leaf}')} is not "
                    "supported; supported: groups of neighbouring columns, scales of one level"
                )
        loaded: dict[str, Entry] = {
            WEIGHT: self._weight(tensors, self._stored(scheme, name), name, rows, columns),
            SCALE: _scales(tensors, f"{name}.weight_scale", rows, columns, format),
        }
        zero = f"{name}.weight_zero_point"
        if format.zero_points:
            loaded[ZERO_POINT] = _zero_points(tensors, zero, rows, columns, format)
        elif zero in tensors:
            raise QfuseError(
                f"tensor {zero} of {tensors.file_of(zero)} is not expected: "
                f"{self._source} says that the weights are symmetric"
            )
        if format.input_format == "static":
            loaded[INPUT_SCALE] = static_scale(tensors, f"{name}.input_scale")
        return loaded

    def _scheme(self, name: str) -> Any:
        """The group of a linear layer: one that names it before one that names its class."""
        from compressed_tensors.utils.match import is_match, match_name

        layer = nn.Linear(1, 1, device="meta")
        if is_match(name, layer, self._config.ignore or []):
            return None
        groups = list(self._config.config_groups.values())
        named = [g for g in groups if any(match_name(name, target) for target in g.targets)]
        found = named or [g for g in groups if is_match(name, layer, g.targets)]
        if len(found) > 1 and any(g != found[0] for g in found):
            raise QfuseError(f"{self._source}: {len(found)} groups target {name}; one is expected")
        return found[0] if found else None

    def _stored(self, scheme: Any, name: str) -> _Stored:
        weights, kind = scheme.weights, _value(scheme.format or self._config.format)
        if weights is None:
            raise self._refuse(name, "weights that are not quantized", "groups with weights")
        stored = _STORED.get((kind, _value(weights.type), weights.num_bits))
        if stored is None:
            what = f"{kind} weights of {_value(weights.type)}{weights.num_bits}"
            legal = ", ".join(f"{f} {t}{bits}" for f, t, bits in _STORED)
            raise self._refuse(name, what, legal)
        return stored

    def format_of(
        self, scheme: Any, name: str, columns: int, scale_dtype: torch.dtype = torch.bfloat16
    ) -> LinearFormat:
        """The format that a group gives a layer; raises QfuseError if it cannot be read exactly."""
        stored, weights = self._stored(scheme, name), scheme.weights
        if scheme.output_activations is not None:
            raise self._refuse(name, "quantized outputs", "weights and inputs")
        packed = stored.leaf == "weight_packed" and stored.packing == "int4"
        if not weights.symmetric and not packed:
            raise self._refuse(name, "asymmetric weights", "zero points of pack-quantized int4")
        if stored.packing != "none" and columns % 2:
            raise self._refuse(name, f"{columns} columns of four bits", "an even number")
        block = self._block(weights, name, columns)
        if stored.packing == "fp4":
            scale_dtype = torch.float8_e8m0fnu
        elif stored.weight_dtype in FP8_MAX:
            scale_dtype = torch.float32
        input_block, kind = self._input(scheme.input_activations, stored, name, columns)
        return LinearFormat(
            block,
            input_block,
            stored.packing,
            kind,
            stored.weight_dtype,
            scale_dtype,
            not weights.symmetric,
        )

    def _block(self, weights: Any, name: str, columns: int) -> tuple[int, int]:
        strategy = _value(weights.strategy)
        if strategy == "block":
            rows, width = weights.block_structure
            return rows, width
        if strategy == "group":
            return 1, weights.group_size
        if strategy == "channel" or (strategy == "tensor" and weights.symmetric):
            return 1, columns
        raise self._refuse(name, f"{strategy} scales of weights", "tensor, channel, group, block")

    def _input(
        self, args: Any, stored: _Stored, name: str, columns: int
    ) -> tuple[tuple[int, ...], str]:
        """`input_block` and `input_format` of the operator."""
        if args is None:
            return (), "dynamic"
        strategy, what = _value(args.strategy), f"{_value(args.type)}{args.num_bits}"
        wanted = "float8" if stored.weight_dtype in FP8_MAX else "int8"
        if what != wanted or stored.packing == "fp4" or not args.symmetric:
            how = "" if args.symmetric else "asymmetric "
            weights = {"int4": "int4", "fp4": "float4"}.get(stored.packing, wanted)
            legal = "" if stored.packing == "fp4" else f", or symmetric {wanted}"
            raise self._refuse(
                name, f"{how}{what} inputs beside {weights} weights", f"plain inputs{legal}"
            )
        if args.dynamic is True and strategy == "token":
            return (1, columns), "dynamic"
        if args.dynamic is True and strategy == "group":
            return (1, args.group_size), "dynamic"
        if strategy == "tensor" and isinstance(args.dynamic, bool):
            return (1, columns), "tensor" if args.dynamic else "static"
        raise self._refuse(
            name,
            f"{strategy} scales of inputs with dynamic {args.dynamic}",
            "dynamic token, group and tensor scales, static tensor scales",
        )

    def _weight(
        self, tensors: Tensors, stored: _Stored, name: str, rows: int, columns: int
    ) -> Entry:
        full = f"{name}.{stored.leaf}"
        if stored.leaf == "weight":
            codes = tensors.checked(full, (rows, columns), (stored.dtype,))
            return codes if stored.packing == "none" else lambda: _nibbles(codes, full)
        shape = f"{name}.weight_shape"
        if shape in tensors and tensors.raw(shape).tolist() != [rows, columns]:
            raise QfuseError(
                f"tensor {shape} of {tensors.file_of(shape)} says "
                f"{tensors.raw(shape).tolist()}; the config asks for {[rows, columns]}"
            )
        bits = 8 if stored.packing == "none" else 4
        width = -(-columns * bits // (stored.dtype.itemsize * 8))
        packed = tensors.checked(full, (rows, width), (stored.dtype,)).view(torch.int8)
        used = packed[:, : columns * bits // 8]
        if bits == 4:  # eight codes a word, the first in the low bits: as two a byte
            return used if used.is_contiguous() else used.contiguous
        return lambda: used ^ -128  # codes are stored with 128 added

    def _refuse(self, name: str, what: str, supported: str) -> QfuseError:
        return QfuseError(
            f"{self._source}: {name} has {what}, which is not supported; supported: {supported}"
        )


def _scales(tensors: Tensors, name: str, rows: int, columns: int, format: LinearFormat) -> Entry:
    """The scales of a weight as the format types them; a single one is repeated for each row."""
    if format.weight_block == (1, columns):
        return per_channel(tensors, name, rows).to(format.scale_dtype)
    expected = scale_shape(rows, columns, format.weight_block)
    if format.packing == "fp4":
        exponents = tensors.checked(name, expected, (torch.uint8,))
        if (exponents == 255).any():
            raise QfuseError(f"tensor {name} of {tensors.file_of(name)} has scales that are NaN")
        return exponents.view(torch.float8_e8m0fnu)
    stored = tensors.checked(name, expected, _SCALES)
    exact = tensors.multipliers(name)
    return stored if stored.dtype == format.scale_dtype else exact.to(format.scale_dtype)


def _zero_points(
    tensors: Tensors, name: str, rows: int, columns: int, format: LinearFormat
) -> torch.Tensor:
    """Zero points, packed along N as the weight is along K, as int8; codes have the same offset."""
    groups = scale_shape(rows, columns, format.weight_block)[1]
    packed = tensors.checked(name, (-(-rows // 8), groups), (torch.int32,))
    shifts = 4 * torch.arange(8, dtype=torch.int32)[:, None]
    return ((packed[:, None] >> shifts) & 15).flatten(0, 1)[:rows].to(torch.int8)


def _nibbles(codes: torch.Tensor, name: str) -> torch.Tensor:
    """Signed codes of four bits, one a byte, two a byte."""
    if codes.numel() and not -8 <= int(codes.min()) <= int(codes.max()) <= 7:
        raise QfuseError(f"tensor {name} has values beyond four bits, -8 to 7")
    return pack_nibbles(codes + 8)


def _value(name: Any) -> str:
    """The text of what may be an enumeration's member."""
    return str(getattr(name, "value", name))
