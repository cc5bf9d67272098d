"""What a fusion saves, by the types of the operations that go and of those that come.

A rewrite says which operations it replaces by which; every pass that fuses asks here, so that
their remarks mean the same, and add up: the launches of a model's remarks are those by which its
profile shrinks, its copies for strides apart.
"""

import math
import re
from collections.abc import Iterable, Sequence

from qfuse.compiler.epilogue import scalar_constant
from qfuse.compiler.runtime.report import Savings
from qfuse.compiler.torch_ir import builtin_type
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import INPUTS
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import DYNAMIC


def savings(old: Sequence[ir.Operation], new: Sequence[ir.Operation]) -> Savings:
    """Of `new` in the place of `old`, where each operation of both is one launch.

    Bytes are those that operations read and write: each operand once, each result once.  Weights
    are left out, since a product that joins several reads all of them; so are constants, which
    are written into a kernel.
    """
    return Savings(len(old) - len(new)) + _moved(old) - _moved(new)


def _moved(ops: Iterable[ir.Operation]) -> Savings:
    """Bytes that operations read and write."""
    return sum((size_of(value.type) for op in ops for value in _values(op)), Savings())


def _values(op: ir.Operation) -> Iterable[ir.Value]:
    for i, value in enumerate(dict.fromkeys(op.operands)):
        is_weight = op.name in INPUTS and i == 1
        if not is_weight and scalar_constant(value) is None:
            yield from _elements(value)
    yield from op.results


def _elements(value: ir.Value) -> Iterable[ir.Value]:
    """The values of a list; itself if it is none."""
    if isinstance(value, ir.BlockArgument) or value.owner.name != "torch.prim.ListConstruct":
        return [value]
    return value.owner.operands


def size_of(type_: ir.Type) -> Savings:
    """Bytes of a tensor: all, or where it has dynamic extents, those of a row.

    A row is one index of all of them: one token, whatever belongs to it (`tensor<?x8x2048xbf16>`
    has 32768 bytes a row).  Scales and zero points count.
    """
    tensor = type_ if isinstance(type_, ir.RankedTensorType) else builtin_type(type_)
    if tensor is None and not str(type_).startswith("!qfuse."):
        return Savings()  # a number, or a list
    value = shaped(type_ if tensor is None else tensor)
    size = sum(_bytes(shape, dtype) for shape, dtype in _components(value))
    return Savings(bytes_per_row=size) if DYNAMIC in value.shape else Savings(bytes=size)


def _components(value: Shaped) -> list[tuple[tuple[int, ...], str]]:
    """Shape and element type of what a value consists of in memory."""
    data = (value.data_shape, value.data_dtype)
    if value.scheme is None:
        return [data]
    zeros = [(value.scale_shape, "i8")] if value.scheme.zero_point != "none" else []
    return [data, (value.scale_shape, value.scheme.scale), *zeros]


def _bytes(shape: Sequence[int], dtype: str) -> int:
    bits = re.search(r"\d+", dtype)  # the first number in the name of an element type
    assert bits is not None, dtype
    return math.prod(d for d in shape if d != DYNAMIC) * max(int(bits[0]) // 8, 1)
