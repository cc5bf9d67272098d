"""Compiled programs on disk: one safetensors file that is mapped, not read.

The file is an ordinary safetensors file; any tool for those can list it.  Two things go beyond
the format: every tensor begins at a multiple of 64 bytes (padding tensors see to it), and the
program itself is JSON in `__metadata__`.
"""

import contextlib
import json
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qfuse.dialects.errors import QfuseError

VERSION = 4
ALIGNMENT = 64

_KIND = "qfuse.artifact"
_PAD = "pad."
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]) -> None:
    """Write `tensors` and `metadata` (JSON data) to `path`, all or nothing.

    Tensors that are the same memory are written once.  Raises QfuseError when the file cannot
    be written.
    """
    entries: dict[str, dict[str, Any]] = {}
    data: list[torch.Tensor] = []
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    offset = 0
    for name, tensor in tensors.items():
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in seen:
            aliases[name] = seen[key]
            continue
        seen[key] = name
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        entries[name] = _entry(_NAMES[tensor.dtype], tensor.shape, offset, flat.numel())
        data.append(flat)
        offset += flat.numel()
        if rest := -offset % ALIGNMENT:
            entries[f"{_PAD}{len(entries)}"] = _entry("U8", [rest], offset, rest)
            data.append(torch.zeros(rest, dtype=torch.uint8))
            offset += rest
    texts = {name: json.dumps(value) for name, value in metadata.items()}
    about = {"kind": _KIND, "version": str(VERSION), "aliases": json.dumps(aliases), **texts}
    header = json.dumps({"__metadata__": about, **entries}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    if not path.name:
        raise QfuseError(f"cannot write {path}: it is a directory")
    path = Path(os.path.realpath(path))  # a link stays one
    if path.exists() and not (path.is_file() or path.is_dir()):  # /dev/null, say
        raise QfuseError(f"cannot write {path}: it is not a regular file")
    # in the same directory, so that the rename is atomic
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            for flat in data:
                file.write(flat.numpy().data)
        os.replace(temporary, path)
    except OSError as error:
        raise QfuseError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # it is no longer, or never was, there
            temporary.unlink()


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, mapped from the file, and the metadata that `write` was given.

    A write to a tensor stays in memory.  Raises QfuseError on a file that is missing, is no
    artifact, is damaged, or has another version.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else b""
    except OSError as error:
        raise QfuseError(f"cannot read {path}: {error.strerror or error}") from error
    if len(mapped) < 8:
        raise QfuseError(f"{path} is not a qfuse artifact")
    (length,) = struct.unpack("<Q", mapped[:8])
    if length > len(mapped) - 8 or mapped[8:9] != b"{":
        raise QfuseError(f"{path} is not a qfuse artifact, or is cut short")
    try:
        header = json.loads(mapped[8 : 8 + length])
        about = header.pop("__metadata__", {})
        kind, version = about.get("kind"), about.get("version")
    except (ValueError, AttributeError):
        raise QfuseError(f"{path} is not a qfuse artifact") from None
    if kind != _KIND:
        raise QfuseError(f"{path} is a safetensors file but not a qfuse artifact")
    if version != str(VERSION):
        raise QfuseError(
            f"{path} has artifact version {version}; this qfuse reads version {VERSION}: "
            "compile the model again"
        )
    try:
        tensors = {
            name: _tensor(mapped, 8 + length, entry)
            for name, entry in header.items()
            if not name.startswith(_PAD)
        }
        metadata = {
            name: json.loads(text)
            for name, text in about.items()
            if name not in ("kind", "version")
        }
        tensors |= {name: tensors[other] for name, other in metadata.pop("aliases").items()}
    except _CutShort:
        raise QfuseError(f"{path} is cut short: {len(mapped)} bytes are there") from None
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise QfuseError(f"{path} is a damaged qfuse artifact: {error!r}") from error
    return tensors, metadata


class _CutShort(Exception):
    """A tensor ends beyond the end of the file."""


def _entry(dtype: str, shape: Any, offset: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}


def _tensor(mapped: Any, base: int, entry: dict[str, Any]) -> torch.Tensor:
    begin, end = entry["data_offsets"]
    if base + end > len(mapped):
        raise _CutShort
    dtype = _DTYPES[entry["dtype"]]
    if begin == end:
        return torch.empty(entry["shape"], dtype=dtype)
    raw = torch.frombuffer(mapped, dtype=torch.uint8, count=end - begin, offset=base + begin)
    return raw.view(dtype).reshape(entry["shape"])
