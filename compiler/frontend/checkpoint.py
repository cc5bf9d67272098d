"""Reading Hugging Face checkpoints as they lie on disk: config.json and safetensors files.

Tensors are views of the mapped files; nothing is copied until somebody reads it.  The tensors are
looked up by name and checked here, because transformers' own FP8 loader guesses the block shape
from the scales' and so loads ragged layers wrong without a word.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from qfuse.compiler.block_scaled import FP8_MAX
from qfuse.compiler.frontend.compressed import CompressedTensors
from qfuse.compiler.frontend.fp8 import Fp8
from qfuse.compiler.frontend.lazy_tensors import Entry
from qfuse.compiler.frontend.linear import LinearFormat
from qfuse.compiler.frontend.stacked_experts import MXFP4_EXPERTS, parts_of
from qfuse.compiler.frontend.stored_tensors import (
    PLAIN_DTYPES,
    SCALE_SUFFIXES,
    Quantization,
    Tensors,
)
from qfuse.compiler.frontend.stored_tensors import SCALE_SUFFIX as SCALE_SUFFIX
from qfuse.compiler.frontend.stored_tensors import dtype_name as dtype_name
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


def read_quantization(config: Mapping[str, Any], source: Path) -> Quantization | None:
    """What `quantization_config` says, None if it is absent; raises QfuseError on other formats."""
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
    if method == "mxfp4" and config.get("model_type") == "gpt_oss":
        return CompressedTensors.read(MXFP4_EXPERTS, source)
    raise QfuseError(
        f"{source}: quant_method {json.dumps(method)} is not supported; "
        "supported: fp8, compressed-tensors, mxfp4 of gpt_oss, or none"
    )


class Checkpoint(Tensors):
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
        self._parts = parts_of(self.config.get("model_type"), self._files, self._whole)

    def __contains__(self, name: object) -> bool:
        return name in self._files or name in self._parts

    def names(self) -> Iterable[str]:
        """Names of all tensors."""
        return self._files.keys()

    def file_of(self, name: str) -> Path:
        """The file that holds, or should hold, a tensor."""
        stack, _ = self._parts.get(name, (name, None))
        return self._files.get(stack, self._listing)

    def raw(self, name: str) -> torch.Tensor:
        """A tensor as stored, mapped from its file, or a part of one that is a stack of experts'.

        Raises QfuseError if it is not there.
        """
        if name in self._parts:
            _, part = self._parts[name]
            return part()
        return self._whole(name)

    def _whole(self, name: str) -> torch.Tensor:
        if name not in self._files:
            raise QfuseError(f"tensor {name} is missing from {self._listing}")
        path = self._files[name]
        try:
            return self._handles[path].get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError) as error:
            raise QfuseError(f"tensor {name} of {path} cannot be read: {error}") from error

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

    def generation(self) -> Mapping[str, Any]:
        """What the checkpoint says about generating text, apart from its config."""
        path = self.directory / "generation_config.json"
        return read_json(path) if path.is_file() else {}

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self._handles)

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
