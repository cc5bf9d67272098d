"""What an SSA value holds while the interpreter runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qfuse.compiler.reference.balls import NUMPY, Array, Ball, rounded
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Shaped

_NAMES = {np.dtype(dtype): name for name, dtype in NUMPY.items()}

_TABLES = {
    dtype: np.arange(256, dtype=np.uint8).view(NUMPY[dtype]).astype(np.float64)
    for dtype in ("f8E4M3FN", "f8E5M2", "i8")
}


class Inexecutable(QfuseError):
    """The reference interpreter cannot execute an operation; the text says which and why."""


class Misfit(Inexecutable):
    """Operands of an operation have values or shapes that it does not take."""


@dataclass(frozen=True)
class Tensor:
    """A plain tensor: an array of its element type, and the slack of its elements, if any."""

    array: Array
    slack: Array | None = None

    @property
    def dtype(self) -> str:
        return _NAMES[self.array.dtype]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def ball(self) -> Ball:
        if self.dtype in _TABLES:  # a lookup is several times faster than a cast
            return Ball(_TABLES[self.dtype][self.array.view(np.uint8)], self.slack)
        return Ball(self.array.astype(np.float64), self.slack)

    def __getitem__(self, index: Any) -> "Tensor":
        return self.map(lambda a: a[index])

    def map(self, move: Callable[[Array], Array]) -> "Tensor":
        """Something that only moves elements about, such as a reshape."""
        if self.slack is None:
            return Tensor(move(self.array))
        return Tensor(move(self.array), move(np.broadcast_to(self.slack, self.shape)))

    @staticmethod
    def of(x: Ball, dtype: str) -> "Tensor":
        """f32 numbers, rounded to `dtype`."""
        result = rounded(x, dtype)
        slack = None if result.slack is None else np.broadcast_to(result.slack, result.mid.shape)
        return Tensor(result.mid.astype(np.float32).astype(NUMPY[dtype]), slack)


def stack(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one element type, one after another."""
    array = np.concatenate([p.array for p in parts], axis)
    if all(p.slack is None for p in parts):
        return Tensor(array)
    slacks = [np.broadcast_to(p.ball().reach, p.shape) for p in parts]
    return Tensor(array, np.concatenate(slacks, axis))


@dataclass(frozen=True)
class Quantized:
    """A quantized tensor: stored elements, scales, and its type with all extents known."""

    data: Tensor
    scale: Tensor
    type: Shaped

    @property
    def shape(self) -> tuple[int, ...]:
        return self.type.shape


@dataclass(frozen=True)
class Other:
    """Anything else (numbers, lists of tensors): `constant` is what it is, if that is known."""

    constant: object = None
    known: bool = False


Value = Tensor | Quantized | Other


def name_of(op: ir.Operation) -> str:
    """The name of an operation; of a `torch.operator`, that of the operator."""
    if op.name == "torch.operator":
        return ir.StringAttr(op.attributes["name"]).value
    return op.name
