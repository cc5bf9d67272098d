"""Reading GGUF files: llama.cpp's models, as they lie on disk.

Tensors are views of the mapped file.  ggml interleaves the scales of a weight with its codes, so
the components that `#qfuse.scheme` names are copies, made when the compiler packs a weight and
forgotten afterwards.  Rows of queries and keys, which llama.cpp reorders for its rotary
embedding, are put back in order: every row keeps its own scales, so that is exact.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qfuse.compiler.frontend.gguf_config import EMBEDDING, HEAD, ROPE_FACTORS, ROUTER, config_of
from qfuse.compiler.frontend.lazy_tensors import Entry
from qfuse.compiler.frontend.linear import SCALE, WEIGHT, LinearFormat
from qfuse.compiler.packed_weights import SUPER_BLOCK, dequantize_weight, pack_nibbles
from qfuse.dialects.errors import QfuseError

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_PERMUTED = ("llama", "mixtral")
"""Model types whose rotary embedding llama.cpp computes on neighbouring lanes."""

_EXPERT = re.compile(r"(?<=\.experts)\.(\d+)(?=\.)")
"""The number in the name of an expert's layer: ggml has one tensor for all experts of a layer."""

# Rows of a quantized table are dequantized this many elements at a time.
_SLAB_ELEMENTS = 1 << 24

Bytes = torch.Tensor
"""uint8 [N, blocks, bytes of a block]."""


@dataclass(frozen=True)
class _Type:
    """A quantized type of ggml's: its blocks, and how they become a weight of the operator."""

    columns: int
    bytes: int
    codes: Callable[[Bytes], torch.Tensor]
    scales: Callable[[Bytes], torch.Tensor]
    packing: str = "none"
    scale_dtype: torch.dtype = torch.int8


def _bytes(start: int, stop: int, blocks: Bytes) -> torch.Tensor:
    # of one block a row, flatten would make a view with gaps
    return blocks[..., start:stop].flatten(1).contiguous().view(torch.int8)


def _nibbles(start: int, blocks: Bytes) -> torch.Tensor:
    """ggml's old layout: the low nibbles of 16 bytes come before the high ones."""
    packed = blocks[..., start:]
    return pack_nibbles(torch.cat((packed & 15, packed >> 4), -1).flatten(1))


def _halves(blocks: Bytes) -> torch.Tensor:
    scales = blocks[..., :2].contiguous().view(torch.float16).squeeze(-1)
    if not scales.isfinite().all():
        raise QfuseError("scales that are not finite")
    return scales


def _exponents(blocks: Bytes) -> torch.Tensor:
    exponents = blocks[..., 0].contiguous()
    # 2^128 to ggml, NaN to everybody else
    if (exponents == 255).any():
        raise QfuseError("scales of 2^128, which the e8m0 type does not have")
    return exponents.view(torch.float8_e8m0fnu)


def _k_scales(start: int, stop: int, halves: tuple[int, ...], blocks: Bytes) -> torch.Tensor:
    for at in halves:
        _halves(blocks[..., at:])
    return _bytes(start, stop, blocks)


_TYPES = {
    "Q8_0": _Type(32, 34, partial(_bytes, 2, 34), _halves, "none", torch.float16),
    "Q4_0": _Type(32, 18, partial(_nibbles, 2), _halves, "int4", torch.float16),
    "MXFP4": _Type(32, 17, partial(_nibbles, 1), _exponents, "fp4", torch.float8_e8m0fnu),
    "Q4_K": _Type(
        SUPER_BLOCK, 144, partial(_bytes, 16, 144), partial(_k_scales, 0, 16, (0, 2)), "q4_k"
    ),
    "Q6_K": _Type(
        SUPER_BLOCK, 210, partial(_bytes, 0, 192), partial(_k_scales, 192, 210, (208,)), "q6_k"
    ),
}


class GgufFile:
    """An opened GGUF file.  A `Source`.

    `config` is that of the Hugging Face model.  Its dtype, that of activations, is the first of
    bfloat16, float16 and float32 that holds every unquantized tensor exactly.  Inputs of quantized
    layers are quantized to q8_1, as in llama.cpp.  The table of the embedding is dequantized to
    the model's dtype, which takes 2 bytes an element or 4; without a head of its own, the head is
    a product with the table as stored.

    Raises QfuseError when the file is none, is truncated, or holds what cannot be read exactly.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise QfuseError(f"{self.path} is not a file; give a .gguf file")
        try:
            import gguf
        except ImportError as error:
            raise QfuseError(
                "reading GGUF files needs gguf, which is not installed: pip install 'qfuse[hf]'"
            ) from error
        try:
            # copy on write: torch warns of memory that it must not write to
            reader = gguf.GGUFReader(self.path, "c")
            values = {key: f.contents() for key, f in reader.fields.items() if _is_read(key)}
        except Exception as error:  # the reader trusts the file: any error may come out of it
            reason = " ".join(str(error).split()) or type(error).__name__
            raise QfuseError(
                f"{self.path} is no complete GGUF file (truncated or corrupt): {reason}"
            ) from error
        if reader.byte_order != "I":
            raise QfuseError(f"{self.path} is for machines of the other byte order")
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        shapes = {name: _shape(tensor) for name, tensor in self._tensors.items()}
        config = config_of(values, shapes, self.path)
        own = values["general.architecture"]
        architecture = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == own)
        self._names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
        self.config: Mapping[str, Any] = config | {"dtype": self._dtype()}

    def linear_format(self, name: str, rows: int, columns: int) -> LinearFormat | None:
        stored = self._stored(f"{name}.weight")
        type_ = self._type(stored)
        if type_ is None:
            return None
        self._check(stored, (rows, columns), _expert_of(name))
        if columns % type_.columns:
            raise QfuseError(
                f"tensor {stored} of {self.path} has {columns} columns, no multiple of "
                f"{type_.columns}"
            )
        block = (1, type_.columns)
        return LinearFormat(block, (1, 32), type_.packing, "q8_1", torch.int8, type_.scale_dtype)

    def load_linear(
        self, name: str, rows: int, columns: int, format: LinearFormat
    ) -> dict[str, Entry]:
        stored, order = self._stored(f"{name}.weight"), self._order(name, rows)
        type_, expert = self._type(stored), _expert_of(name)
        assert type_ is not None
        return {
            WEIGHT: partial(self._component, type_.codes, stored, order, expert),
            SCALE: partial(self._component, type_.scales, stored, order, expert),
        }

    def plain(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Entry:
        stored, expert = self._stored(name), _expert_of(name)
        self._check(stored, shape, expert)
        layer = name.rpartition(".")[0]
        order = self._order(layer, shape[0])
        if self._type(stored) is not None:
            return partial(self._dequantized, stored, dtype)
        return partial(self._converted, stored, order, dtype, expert)

    def buffer(self, name: str, computed: torch.Tensor) -> torch.Tensor:
        if ROPE_FACTORS not in self._tensors or not name.endswith("inv_freq"):
            return computed
        self._check(ROPE_FACTORS, tuple(computed.shape))
        return computed / self._raw(ROPE_FACTORS).float()

    def stored_dtype(self, name: str) -> torch.dtype | None:
        stored = self._name(name)
        if stored not in self._tensors:
            return None
        return _PLAIN.get(self._tensors[stored].tensor_type.name)

    def generation(self) -> Mapping[str, Any]:
        return {}

    def size(self) -> int:
        return self.path.stat().st_size

    def _stored(self, name: str) -> str:
        """What the file calls a tensor; raises QfuseError if it is not there."""
        stored = self._name(name)
        if stored == HEAD and HEAD not in self._tensors:
            return EMBEDDING
        if stored not in self._tensors:
            raise QfuseError(f"tensor {stored or name} is missing from {self.path}")
        return stored

    def _name(self, name: str) -> str | None:
        """What llama.cpp calls a tensor, or that of all experts with it."""
        stored: str | None = self._names.get_name(_EXPERT.sub("", name), (".weight", ".bias"))
        return stored

    def _type(self, stored: str) -> _Type | None:
        """The quantized type of a tensor, None for a float one."""
        kind = self._tensors[stored].tensor_type.name
        if kind not in _TYPES and kind not in _PLAIN:
            raise QfuseError(
                f"tensor {stored} of {self.path} is {kind}, which is not supported; "
                f"supported: {', '.join((*_TYPES, *_PLAIN))}"
            )
        return _TYPES.get(kind)

    def _check(self, stored: str, shape: tuple[int, ...], expert: int | None = None) -> None:
        actual = _shape(self._tensors[stored])
        if expert is not None:
            shape = (*actual[:1], *shape)  # whose number config_of has checked
        if actual != shape:
            raise QfuseError(
                f"tensor {stored} of {self.path} has shape {list(actual)}; "
                f"the metadata ask for {list(shape)}"
            )

    def _order(self, layer: str, rows: int) -> torch.Tensor | None:
        """Which row of the file each row of a layer is; None if they are in order.

        llama.cpp rotates neighbouring lanes of Llama's heads, transformers lanes half a head apart.
        """
        if self.config["model_type"] not in _PERMUTED:
            return None
        leaf = layer.rpartition(".")[2]
        if leaf not in ("q_proj", "k_proj"):
            return None
        lanes = torch.arange(rows).view(-1, self.config["head_dim"] // 2, 2)
        return lanes.transpose(1, 2).flatten()

    def _raw(self, stored: str) -> torch.Tensor:
        """A float tensor, or the bytes [N, bytes of a row] of a quantized one; a view."""
        tensor = self._tensors[stored]
        data = torch.from_numpy(tensor.data)
        dtype = _PLAIN.get(tensor.tensor_type.name)
        if dtype is None:
            return data
        return data.view(dtype).view(_shape(tensor))

    def _component(
        self,
        component: Callable[[Bytes], torch.Tensor],
        stored: str,
        order: torch.Tensor | None = None,
        expert: int | None = None,
    ) -> torch.Tensor:
        """Codes or scales of a quantized tensor, all rows or those of `order`."""
        rows = self._raw(stored)
        rows = rows if expert is None else rows[expert]
        rows = rows if order is None else rows[order]
        type_ = self._type(stored)
        assert type_ is not None
        try:
            return component(rows.unflatten(-1, (-1, type_.bytes)))
        except QfuseError as error:
            raise QfuseError(f"tensor {stored} of {self.path} has {error}") from error

    def _dequantized(self, stored: str, dtype: torch.dtype) -> torch.Tensor:
        """The values of a quantized table, rounded to `dtype`."""
        type_, (rows, columns) = self._type(stored), _shape(self._tensors[stored])
        assert type_ is not None
        table = torch.empty(rows, columns, dtype=dtype)
        for part in torch.arange(rows).split(max(1, _SLAB_ELEMENTS // columns)):
            codes, scales = (self._component(c, stored, part) for c in (type_.codes, type_.scales))
            block = (1, type_.columns)
            table[part] = dequantize_weight(codes, scales, block, type_.packing).to(dtype)
        return table

    def _converted(
        self,
        stored: str,
        order: torch.Tensor | None,
        dtype: torch.dtype,
        expert: int | None,
    ) -> torch.Tensor:
        """A float tensor with its rows in order, as `dtype`."""
        values = self._raw(stored)
        values = values if expert is None else values[expert]
        return (values if order is None else values[order]).to(dtype)

    def _dtype(self) -> str:
        for name in ("bfloat16", "float16"):
            if all(self._holds(stored, getattr(torch, name)) for stored in self._tensors):
                return name
        return "float32"

    def _holds(self, stored: str, dtype: torch.dtype) -> bool:
        """Whether `dtype` has every value of a tensor, if that is a float one."""
        own = _PLAIN.get(self._tensors[stored].tensor_type.name, dtype)
        if own == dtype or stored == ROPE_FACTORS:
            return True
        # Matrices are read once, when they are packed; routers are small, and always f32.
        large = len(_shape(self._tensors[stored])) > 1 and ROUTER not in stored
        if own != torch.float32 or large:
            return False
        values = self._raw(stored)
        return torch.equal(values.to(dtype).float(), values)


def _is_read(key: str) -> bool:
    """Whether a key matters here; of a tokenizer's, whose lists take seconds, two do."""
    return not key.startswith("tokenizer.") or key.endswith((".bos_token_id", ".eos_token_id"))


def _expert_of(name: str) -> int | None:
    """The expert whose tensor or layer `name` is, None if it is no expert's."""
    found = _EXPERT.search(name)
    return None if found is None else int(found.group(1))


def _shape(tensor: Any) -> tuple[int, ...]:
    """The shape as torch counts: ggml names the fastest dimension first."""
    return tuple(int(extent) for extent in reversed(tensor.shape))
