"""Hugging Face's `quant_method: fp8`: E4M3 weights with scales per block, channel or tensor."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qfuse.compiler.block_scaled import FP8_MAX
from qfuse.compiler.frontend.lazy_tensors import Entry
from qfuse.compiler.frontend.linear import INPUT_SCALE, SCALE, WEIGHT, LinearFormat
from qfuse.compiler.frontend.stored_tensors import Tensors
from qfuse.dialects.errors import QfuseError

_INPUT_SCALES = ("activation_scale", "input_scale")
"""What writers call the calibrated scale of a layer's input."""

_SCALE_FORMATS = {None: "dynamic", "float": "dynamic", "ue8m0": "e8m0"}
"""`scale_fmt` to the input format of the operator: its scales are as the weight's."""


@dataclass(frozen=True)
class Fp8:
    """The entries of such a `quantization_config` that say what the numbers mean.

    `weight_block` None stands for one scale per tensor or per output channel; the file tells.
    """

    weight_block: tuple[int, int] | None = (128, 128)
    static: bool = False
    input_format: str = "dynamic"
    skip: tuple[str, ...] = ("lm_head",)

    @staticmethod
    def read(entry: Mapping[str, Any], source: Path) -> "Fp8":
        """Parse the entry; raises QfuseError on values that have no meaning here."""

        def refuse(name: str, supported: str) -> QfuseError:
            value = json.dumps(entry.get(name))
            return QfuseError(f"{source}: {name} is {value}; supported: {supported}")

        scheme = entry.get("activation_scheme", "dynamic")
        if scheme not in ("dynamic", "static"):
            raise refuse("activation_scheme", '"dynamic" or "static"')
        block = entry.get("weight_block_size")
        if block is not None and (
            not isinstance(block, list)
            or len(block) != 2
            or not all(type(extent) is int and extent > 0 for extent in block)
        ):
            raise refuse("weight_block_size", "two positive integers such as [128, 128], or null")
        if entry.get("scale_fmt") not in _SCALE_FORMATS:
            raise refuse("scale_fmt", '"float" or "ue8m0"')
        if entry.get("fmt", "e4m3") not in ("e4m3", "e5m2"):
            raise refuse("fmt", '"e4m3" or "e5m2"')
        if entry.get("expert_dtype", "fp8") != "fp8":
            raise refuse("expert_dtype", '"fp8"')
        skip = entry.get("modules_to_not_convert") or entry.get("ignored_layers") or []
        if not isinstance(skip, list) or not all(isinstance(name, str) for name in skip):
            raise QfuseError(
                f"{source}: modules_to_not_convert is {json.dumps(skip)}, not a list of names"
            )
        return Fp8(
            None if block is None else (block[0], block[1]),
            scheme == "static",
            _SCALE_FORMATS[entry.get("scale_fmt")],
            tuple(skip),
        )

    def planned(self, name: str, rows: int, columns: int) -> LinearFormat | None:
        from transformers.quantizers.quantizers_utils import should_convert_module

        skip = list(self.skip) or ["lm_head"]
        try:
            converts = should_convert_module(name, skip)
        except re.error as error:
            raise QfuseError(f"modules_to_not_convert {skip}: {error}") from error
        return self._format(columns) if converts else None

    def stored(self, tensors: Tensors, name: str, rows: int, columns: int) -> LinearFormat | None:
        weight = f"{name}.weight"
        if tensors.scale_of(weight) is None:
            return None
        dtype = tensors.stored_dtype(weight)
        # another type is refused with its name when the tensors are loaded
        return self._format(columns, dtype if dtype in FP8_MAX else torch.float8_e4m3fn)

    def load(
        self, tensors: Tensors, name: str, rows: int, columns: int, format: LinearFormat
    ) -> dict[str, Entry]:
        weight = f"{name}.weight"
        if self.weight_block is None:
            codes = tensors.checked(weight, (rows, columns), tuple(FP8_MAX))
            scale = per_channel(tensors, tensors.scale_of(weight) or "", rows)
        else:
            codes, scale = tensors.quantized(weight, (rows, columns), self.weight_block)
        loaded: dict[str, Entry] = {WEIGHT: codes, SCALE: scale}
        given = [f"{name}.{leaf}" for leaf in _INPUT_SCALES if f"{name}.{leaf}" in tensors]
        if self.static:
            missing = f"{name}.{_INPUT_SCALES[0]}"
            loaded[INPUT_SCALE] = static_scale(tensors, given[0] if given else missing)
        elif given:
            raise QfuseError(
                f"tensor {given[0]} of {tensors.file_of(given[0])} is a static scale, but "
                f'{tensors.path / "config.json"} says activation_scheme "dynamic"'
            )
        return loaded

    def _format(self, columns: int, dtype: torch.dtype = torch.float8_e4m3fn) -> LinearFormat:
        block = self.weight_block or (1, columns)
        if self.static:
            return LinearFormat(block, (1, columns), "none", "static", dtype)
        return LinearFormat(block, (1, block[1]), "none", self.input_format, dtype)


def per_channel(tensors: Tensors, name: str, rows: int) -> torch.Tensor:
    """Scales of a weight [N, K], one in all or one per row, as f32 [N, 1].

    One scale for all rows is as many equal ones, exactly.
    """
    scale = tensors.multipliers(name)
    if scale.numel() == 1:
        return scale.reshape(1, 1).repeat(rows, 1)
    if tuple(scale.shape) not in ((rows,), (rows, 1)):
        raise QfuseError(
            f"tensor {name} of {tensors.file_of(name)} has shape {list(scale.shape)}; "
            f"one scale, or one for each of {rows} rows, is expected"
        )
    return scale.reshape(rows, 1)


def static_scale(tensors: Tensors, name: str) -> torch.Tensor:
    """The calibrated scale of an input, f32 [1]."""
    scale = tensors.multipliers(name)
    if scale.numel() != 1 or float(scale) <= 0:
        raise QfuseError(
            f"tensor {name} of {tensors.file_of(name)} has shape {list(scale.shape)} and "
            f"least value {float(scale.min())}; one positive scale is expected"
        )
    return scale.reshape(1)
