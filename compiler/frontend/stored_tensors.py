"""What readers of all formats share: tensors by name that are checked before they are believed."""

from pathlib import Path
from typing import Protocol

import torch

from qfuse.compiler.block_scaled import FP8_MAX
from qfuse.compiler.frontend.lazy_tensors import Entry
from qfuse.compiler.frontend.linear import LinearFormat, scale_shape
from qfuse.dialects.errors import QfuseError

SCALE_SUFFIX = "_scale_inv"
"""`weight` + this names a weight's scales: multipliers, whatever `inv` suggests."""

SCALE_SUFFIXES = (SCALE_SUFFIX, "_scale")
"""Ends of the names of scales, by different writers; all are multipliers."""

# Scales are f32 by the format's definition; released checkpoints also store bf16 and, where every
# scale is a power of two, e8m0.  All of them widen to f32 exactly.
SCALE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)
PLAIN_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Tensors:
    """Tensors by name, some of which may not be what the config says.

    Every method raises QfuseError, in one line, on a tensor that is missing or of another kind.
    """

    path: Path
    """What messages name."""

    def __contains__(self, name: object) -> bool:
        raise NotImplementedError

    def raw(self, name: str) -> torch.Tensor:
        """A tensor as stored."""
        raise NotImplementedError

    def file_of(self, name: str) -> Path:
        """Where a tensor is, or should be."""
        return self.path

    def stored_dtype(self, name: str) -> torch.dtype | None:
        """The dtype of a tensor, None if there is none."""
        return self.raw(name).dtype if name in self else None

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


class Quantization(Protocol):
    """What a config says about how its linear layers are quantized.

    Layers go by their names in the file; `rows` and `columns` are N and K.
    """

    def planned(self, name: str, rows: int, columns: int) -> LinearFormat | None:
        """The format that the config alone gives a layer; None: plain."""
        ...

    def stored(self, tensors: Tensors, name: str, rows: int, columns: int) -> LinearFormat | None:
        """The format of a layer in the file; raises QfuseError if it cannot be read exactly."""
        ...

    def load(
        self, tensors: Tensors, name: str, rows: int, columns: int, format: LinearFormat
    ) -> dict[str, Entry]:
        """The tensors of a layer to which `stored` gave this format, by `LinearFormat.shapes`."""
        ...


def dtype_name(dtype: torch.dtype) -> str:
    """`float8_e4m3fn`, as torch spells it."""
    return str(dtype).removeprefix("torch.")
