"""Reading Hugging Face checkpoints as they lie on disk: config.json and safetensors files.

Tensors are views of the mapped files; nothing is copied until somebody reads it.  The tensors are
looked up by name and checked here, because transformers' own FP8 loader guesses the block shape
from the scales' and so loads ragged layers wrong without a word.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from qfuse.compiler.block_scaled import FP8_MAX
from qfuse.compiler.frontend.lazy_tensors import Entry
from qfuse.compiler.frontend.linear import LinearFormat, scale_shape
from qfuse.dialects.errors import QfuseError

try:
    from safetensors import SafetensorError, safe_open
except ImportError as error:
    raise QfuseError(
        "reading checkpoints needs safetensors, which is not installed: pip install 'qfuse[hf]'"
    ) from error

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

SCALE_SUFFIX = "_scale_inv"
"""`weight` + this names a weight's scales: multipliers, whatever `inv` suggests."""

SCALE_SUFFIXES = (SCALE_SUFFIX, "_scale")
"""Ends of the names of scales, by different writers; all are multipliers."""

# Scales are f32 by the format's definition; released checkpoints also store bf16 and, where every
# scale is a power of two, e8m0.  All of them widen to f32 exactly.
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)
PLAIN_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; raises QfuseError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise QfuseError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise QfuseError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise QfuseError(f"{path} is not a JSON object but a {type(content).__name__}")
    return content


class Quantization(Protocol):
    """What a config says about how its linear layers are quantized.

    Layers go by their names in the file; `rows` and `columns` are N and K.
    """

    def planned(self, name: str, rows: int, columns: int) -> LinearFormat | None:
        """The format that the config alone gives a layer; None: plain."""
        ...

    def stored(
        self, checkpoint: "Checkpoint", name: str, rows: int, columns: int
    ) -> LinearFormat | None:
        """The format of a layer in the file; raises QfuseError if it cannot be read exactly."""
        ...

    def load(
        self, checkpoint: "Checkpoint", name: str, rows: int, columns: int, format: LinearFormat
    ) -> dict[str, Entry]:
        """The tensors of a layer to which `stored` gave this format, by `LinearFormat.shapes`."""
        ...


def read_quantization(config: Mapping[str, Any], source: Path) -> Quantization | None:
    """What `quantization_config` says, None if it is absent; raises QfuseError on other formats."""
    # imported here, because both read a `Checkpoint`
    from qfuse.compiler.frontend.compressed import CompressedTensors
    from qfuse.compiler.frontend.fp8 import Fp8

    entry = config.get("quantization_config")
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise QfuseError(f"{source}: quantization_config is not an object")
    method = entry.get("quant_method")
    if method == "fp8":
        return Fp8.read(entry, source)
    if method == "compressed-tensors":
        return CompressedTensors.read(entry, source)
    raise QfuseError(
        f"{source}: quant_method {json.dumps(method)} is not supported; "
        "supported: fp8, compressed-tensors, or none"
    )


class Checkpoint:
    """An opened checkpoint directory: its config and, by name, its tensors.  A `Source`.

    Opening reads the headers of all its files and so finds truncated ones.  Raises QfuseError
    when the directory is no checkpoint, a file is corrupt or its quantization is unknown.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = self.path = Path(directory)
        if not self.directory.is_dir():
            what = "is not a directory" if self.directory.exists() else "does not exist"
            raise QfuseError(
                f"{self.directory} {what}; give the directory of a Hugging Face checkpoint"
            )
        source = self.directory / CONFIG
        if not source.is_file():
            raise QfuseError(f"{self.directory} is no checkpoint: it has no {CONFIG}")
        self.config = read_json(source)
        self.quantization = read_quantization(self.config, source)
        self._files: dict[str, Path] = {}
        self._handles: dict[Path, Any] = {}
        self._open_files()

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._files.keys()

    def file_of(self, name: str) -> Path:
        """The file that holds, or should hold, a tensor."""
        return self._files.get(name, self._listing)

    def raw(self, name: str) -> torch.Tensor:
        """A tensor as stored, mapped from its file; raises QfuseError if it is not there."""
        if name not in self._files:
            raise QfuseError(f"tensor {name} is missing from {self._listing}")
        path = self._files[name]
        try:
            return self._handles[path].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise QfuseError(f"tensor {name} of {path} cannot be read: {error}") from error

    def checked(
        self, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]
    ) -> torch.Tensor:
        """A tensor as stored; raises QfuseError if its shape or dtype is another."""
        tensor = self.raw(name)
        self._check(name, tensor, shape, dtypes)
        return tensor

    def scale_of(self, weight: str) -> str | None:
        """The name of the scales of a weight, None if the file has none."""
        names = (weight + suffix for suffix in SCALE_SUFFIXES)
        return next((name for name in names if name in self), None)

    def multipliers(self, name: str) -> torch.Tensor:
        """Scales as f32, exactly; raises QfuseError unless all are finite."""
        scale = self.raw(name)
        self._check(name, scale, tuple(scale.shape), SCALE_DTYPES)
        values = scale.float()
        if not values.isfinite().all():
            raise QfuseError(
                f"tensor {name} of {self.file_of(name)} has values that are not finite; "
                "what they scale would be NaN"
            )
        return values

    def plain(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An unquantized tensor of the given shape, converted to `dtype` if it is another float."""
        tensor = self.raw(name)
        if tensor.dtype in FP8_MAX and self.scale_of(name) is None:
            raise QfuseError(
                f"tensor {name + SCALE_SUFFIX} is missing from {self._listing}: "
                f"{name} is {dtype_name(tensor.dtype)}, which needs its scales"
            )
        self._check(name, tensor, shape, PLAIN_DTYPES)
        return tensor.to(dtype)

    def quantized(
        self, name: str, shape: tuple[int, int], block: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """FP8 weight `name` [N, K] as stored, and its scales as f32 [ceil(N/bn), ceil(K/bk)]."""
        weight = self.raw(name)
        scale = self.scale_of(name) or name + SCALE_SUFFIX
        stored, expected = tuple(self.raw(scale).shape), scale_shape(*shape, block)
        self._check(name, weight, shape, tuple(FP8_MAX))
        if stored != expected:
            raise QfuseError(
                f"tensor {scale} of {self.file_of(scale)} has shape "
                f"{list(stored)}; a weight {list(shape)} in blocks of {list(block)} needs "
                f"ceil-div shape {list(expected)}"
            )
        return weight, self.multipliers(scale)

    def linear_format(self, name: str, rows: int, columns: int) -> LinearFormat | None:
        """How the linear layer `name` [N, K] is stored; None if it is not quantized."""
        if self.quantization is not None:
            return self.quantization.stored(self, name, rows, columns)
        for suffix in (*SCALE_SUFFIXES, "_packed"):
            if f"{name}.weight{suffix}" in self:
                raise QfuseError(
                    f"{self.directory}: the file has {name}.weight{suffix}, but config.json "
                    "has no quantization_config to say what it means"
                )
        return None

    def load_linear(
        self, name: str, rows: int, columns: int, format: LinearFormat
    ) -> dict[str, Entry]:
        """The tensors of a quantized linear layer, named as in `LinearFormat.shapes`."""
        assert self.quantization is not None
        return self.quantization.load(self, name, rows, columns, format)

    def buffer(self, name: str, computed: torch.Tensor) -> torch.Tensor:
        """A buffer that transformers computes: as computed."""
        return computed

    def stored_dtype(self, name: str) -> torch.dtype | None:
        """The dtype of a tensor in the file."""
        return self.raw(name).dtype if name in self else None

    def generation(self) -> Mapping[str, Any]:
        """What the checkpoint says about generating text, apart from its config."""
        path = self.directory / "generation_config.json"
        return read_json(path) if path.is_file() else {}

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self._handles)

    def _check(
        self,
        name: str,
        tensor: torch.Tensor,
        shape: tuple[int, ...],
        dtypes: tuple[torch.dtype, ...],
    ) -> None:
        where = f"tensor {name} of {self.file_of(name)}"
        if tuple(tensor.shape) != tuple(shape):
            raise QfuseError(
                f"{where} has shape {list(tensor.shape)}; the config asks for {list(shape)}"
            )
        if tensor.dtype not in dtypes:
            wanted = ", ".join(map(dtype_name, dtypes))
            raise QfuseError(f"{where} is {dtype_name(tensor.dtype)}; supported here: {wanted}")

    def _open_files(self) -> None:
        index = self.directory / INDEX
        if index.is_file():
            self._listing = index
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise QfuseError(f"{index} has no weight_map")
            expected = {str(name): self.directory / str(file) for name, file in weight_map.items()}
            stored = {path: set(self._open(path)) for path in sorted(set(expected.values()))}
            for name, path in expected.items():
                if name not in stored[path]:
                    raise QfuseError(f"tensor {name} is missing from {path}, where {INDEX} puts it")
            self._files = expected
            return
        single = self.directory / SINGLE
        paths = [single] if single.is_file() else sorted(self.directory.glob("*.safetensors"))
        if not paths:
            raise QfuseError(
                f"{self.directory} is no checkpoint qfuse reads: it has no .safetensors file"
            )
        self._listing = paths[0] if len(paths) == 1 else self.directory
        for path in paths:
            self._files.update(dict.fromkeys(self._open(path), path))

    def _open(self, path: Path) -> list[str]:
        """Map a file, keep it open, and return the names of its tensors."""
        try:
            handle = safe_open(path, framework="pt")
            names = list(handle.keys())
        except FileNotFoundError as error:
            raise QfuseError(f"{path} is missing, though {INDEX} names it") from error
        except (SafetensorError, OSError, ValueError) as error:
            raise QfuseError(
                f"{path} is no complete safetensors file (truncated or corrupt): {error}"
            ) from error
        self._handles[path] = handle
        return names


def dtype_name(dtype: torch.dtype) -> str:
    """`float8_e4m3fn`, as torch spells it."""
    return str(dtype).removeprefix("torch.")
