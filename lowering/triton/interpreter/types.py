"""Types of the Triton dialect as numpy holds them."""

import functools
import re
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from qfuse.dialects.errors import QfuseError

DTYPES: dict[str, np.dtype] = {
    "f8E4M3FN": np.dtype(ml_dtypes.float8_e4m3fn),
    "f8E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "f8E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "f8E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f16": np.dtype(np.float16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "i1": np.dtype(np.bool_),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
}
"""MLIR name of an element type -> the dtype whose arrays hold it, bit for bit."""

FP8 = tuple(name for name in DTYPES if name.startswith("f8"))

_TENSOR = re.compile(r"tensor<((?:\d+x)+)(.+)>")
_POINTER = re.compile(r"!tt\.ptr<(\w+)(?:, ?\d+)?>")
# Triton 3.6 writes a tensor type inside the descriptor's, 3.9 writes it bare.
_DESCRIPTOR = re.compile(r"!tt\.tensordesc<(?:tensor<)?((?:\d+x)+)(\w+)>{1,2}")


@dataclass(frozen=True)
class Type:
    """A scalar or tensor (`kind` "value"), pointer(s), or a tensor descriptor.

    `element` is the element type; of a pointer or descriptor, that of the memory it refers to.
    `shape` is () for a scalar, and the block's shape for a descriptor.
    """

    kind: str
    element: str
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the numpy array that holds such a value; addresses are int64."""
        return np.dtype(np.int64) if self.kind == "pointer" else DTYPES[self.element]

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating-point numbers."""
        return self.kind == "value" and not self.element.startswith("i")


@functools.cache
def parse_type(text: str) -> Type:
    """The type that MLIR prints as `text`; QfuseError for one that no kernel of ours has."""
    if match := _DESCRIPTOR.fullmatch(text):
        return Type("descriptor", _element(match[2], text), _shape(match[1]))
    shape: tuple[int, ...] = ()
    inner = text
    if match := _TENSOR.fullmatch(text):
        shape, inner = _shape(match[1]), match[2]
    if match := _POINTER.fullmatch(inner):
        return Type("pointer", _element(match[1], text), shape)
    return Type("value", _element(inner, text), shape)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split("x")[:-1])


def _element(name: str, text: str) -> str:
    if name not in DTYPES:
        raise QfuseError(
            f"type {text} cannot be interpreted; elements may be {', '.join(DTYPES)},"
            " in scalars, static tensors, !tt.ptr and !tt.tensordesc"
        )
    return name


def poison(dtype: np.dtype) -> Any:
    """What memory and lanes hold that nothing has written: NaN, or a conspicuous integer."""
    if dtype.kind in "ib":
        return np.array(0xA5A5A5A5A5A5A5A5, np.uint64).astype(dtype)[()]
    return np.array(np.nan, np.float32).astype(dtype)[()]
