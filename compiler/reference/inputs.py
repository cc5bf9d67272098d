"""Random values for the arguments of a function: legal for what reads them, and unpleasant.

Floats: rows of different magnitude, a few zeros, subnormals and rows of zeros among them.
Quantized: every finite code, scales over several powers of two.  Whole numbers follow from their
reader: ids of experts reach beyond both ends, `indptr` has empty experts, slots name rows or none.
"""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from qfuse.compiler.reference.balls import NUMPY, Array
from qfuse.compiler.reference.values import Inexecutable, Other, Quantized, Tensor, Value, name_of
from qfuse.compiler.torch_ir import FROM_BUILTIN, TO_BUILTIN, builtin_type
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import glu_operands
from qfuse.dialects.matmul_op import INPUTS, given_scales, inputs_of
from qfuse.dialects.norm_ops import SCALES, operands_of
from qfuse.dialects.types import QTensorType, Scheme, Shaped, shaped
from qfuse.dialects.verify import DYNAMIC

_POOL = 1 << 20
"""Elements from which on a tensor is a view of so many random ones, each row starting later."""

_SCALES = {
    ("qfuse.pack", 1),
    ("torch.qfuse.quantized_linear", 2),
    ("torch.qfuse.quantized_linear", 9),
    ("qfuse.quantize", 1),
    ("torch.qfuse.moe_experts", 4),
    ("torch.qfuse.moe_experts", 6),
    ("torch.qfuse.moe_experts", 22),
    ("torch.qfuse.moe_experts", 23),
}
"""Operands that are scales of quantized weights or inputs: by operation and number."""

_STEP = 7
"""How much later: so that no two rows near each other are equal."""


class RandomInputs:
    """Values by seed and name; `extent` stands for every extent known only at run time.

    With `slack`, they can be told from no slack: the run computes bounds (see balls.py).
    """

    def __init__(self, seed: int, extent: int, slack: bool = False) -> None:
        self.seed, self.extent = seed, extent
        self.slack = np.zeros(()) if slack else None
        self._made: dict[tuple[str, str], Value] = {}

    def arguments(self, function: ir.Operation) -> list[Value]:
        """One value for each argument of a function."""
        block = function.regions[0].blocks[0]
        return [self.value(f"argument {i}", a) for i, a in enumerate(block.arguments)]

    def value(self, name: str, value: ir.Value) -> Value:
        """A random value of the type of `value`, made once for a name and type.

        Who reads it decides what is legal; once made, it stays what it is when a pass has changed
        its readers.
        """
        key = (name, str(value.type))
        if key not in self._made:
            self._made[key] = self._make(name, value)
        return self._made[key]

    def _make(self, name: str, value: ir.Value) -> Value:
        random = np.random.default_rng((self.seed, zlib.crc32(name.encode())))
        type_ = value.type
        if not isinstance(type_, ir.RankedTensorType | QTensorType):
            builtin = builtin_type(type_)
            if builtin is None:
                return Other()
            type_ = builtin
        wanted = shaped(type_)
        shape = tuple(self.extent if d == DYNAMIC else d for d in wanted.shape)
        if wanted.scheme is not None:
            known = Shaped(shape, wanted.dtype, wanted.scheme)
            data = Tensor(_codes(random, shape, wanted.dtype), self.slack)
            scale = Tensor(_scales(random, known, wanted.scheme), self.slack)
            return Quantized(data, scale, known)
        if wanted.dtype in ("i32", "i64"):
            array = _whole(random, shape, list(_readers(value)), self.extent)
            return Tensor(array.astype(NUMPY[wanted.dtype]), self.slack)
        return Tensor(self._plain(random, value, shape, wanted.dtype), self.slack)

    def _plain(
        self, random: np.random.Generator, value: ir.Value, shape: tuple[int, ...], dtype: str
    ) -> Array:
        if dtype == "i1":
            return random.integers(0, 2, shape).astype(bool)
        if dtype not in ("f32", "f16", "bf16"):
            if dtype not in NUMPY:
                raise Inexecutable(f"the reference has no values of type {dtype}")
            return _codes(random, shape, dtype)
        readers = list(_readers(value))
        if any(_is_scale(reader, index) for reader, index in readers):
            return _factors(random, shape, dtype)
        return _pooled(random, shape, lambda r, s: _floats(r, s, dtype))


def _floats(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    values = random.standard_normal(shape, np.float32)
    if len(shape) > 1:
        values *= 2.0 ** random.integers(-3, 3, (*shape[:-1], 1)).astype(np.float32)
        values *= random.random((*shape[:-1], 1)) > 0.05  # rows of zeros
    kind = random.integers(0, 50, shape)
    tiny = float(np.float32(2.0**-26 if dtype == "f16" else 1e-39))  # subnormal
    values = np.where(kind == 0, np.float32(0), values)
    return np.where(kind == 1, np.float32(tiny), values).astype(np.float32).astype(NUMPY[dtype])


def _codes(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Stored elements: all that are finite."""

    def make(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
        if dtype == "i4":
            return random.integers(-8, 8, shape).astype(NUMPY[dtype])
        if dtype == "i8":
            return random.integers(-127, 128, shape).astype(np.int8)
        if dtype == "f8E8M0FNU":
            return random.integers(116, 122, shape).astype(np.uint8).view(NUMPY[dtype])
        every = np.arange(256, dtype=np.uint8).view(NUMPY[dtype])
        finite = every[np.isfinite(every.astype(np.float32))]
        return finite[random.integers(0, len(finite), shape)]

    return _pooled(random, shape, make)


def _scales(random: np.random.Generator, type_: Shaped, scheme: Scheme) -> Array:
    if scheme.scale == "f8E8M0FNU":
        return _codes(random, type_.scale_shape, scheme.scale)
    return _factors(random, type_.scale_shape, scheme.scale)


def _factors(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    """Positive numbers over several powers of two, small enough for sums of products of codes."""
    exponent = random.uniform(-12, -7, shape)
    return (2.0**exponent).astype(np.float32).astype(NUMPY[dtype])


Make = Callable[[np.random.Generator, tuple[int, ...]], Array]


def _pooled(random: np.random.Generator, shape: tuple[int, ...], make: Make) -> Array:
    """A tensor of any size in little memory: the rows of a large one overlap."""
    if math.prod(shape) <= _POOL or len(shape) < 2:
        return make(random, shape)
    pool = make(random, (math.prod(shape[:-1]) * _STEP + shape[-1],))
    rows = [math.prod(shape[axis + 1 : -1]) * _STEP for axis in range(len(shape) - 1)]
    strides = [pool.itemsize * n for n in (*rows, 1)]
    return np.lib.stride_tricks.as_strided(pool, shape, strides, writeable=False)


def _readers(value: ir.Value) -> Iterator[tuple[ir.Operation, int]]:
    """The operations that read a value, casts between torch and builtin tensors left out."""
    for use in value.uses:
        op = use.owner.operation
        if op.name in (TO_BUILTIN, FROM_BUILTIN):
            yield from _readers(op.results[0])
        else:
            yield op, use.operand_number


def _is_scale(op: ir.Operation, index: int) -> bool:
    """Whether operand `index` is a scale."""
    numbers = range(len(op.operands))
    if op.name == "qfuse.rms_norm":
        names = operands_of(op, numbers)
        return index in [names.get(name) for name in SCALES]
    if op.name == "qfuse.glu":
        return index == glu_operands(op, numbers)[1]
    if op.name in INPUTS:
        first = sum(value is not None for value in inputs_of(op, numbers).values())
        return index - first in given_scales(op)
    return (name_of(op), index) in _SCALES


def _whole(
    random: np.random.Generator,
    shape: tuple[int, ...],
    readers: Sequence[tuple[ir.Operation, int]],
    extent: int,
) -> Array:
    """Whole numbers that are legal for the first reader that cares."""
    for op, index in readers:
        if op.name == "qfuse.route":
            experts = ir.IntegerAttr(op.attributes["num_experts"]).value
            ids = random.integers(0, experts, shape)
            return np.where(random.random(shape) < 0.15, random.choice([-1, experts], shape), ids)
        name = _input_name(op, index)
        if name == "slots":
            slots = random.permutation(math.prod(shape)).reshape(shape)
            return np.where(random.random(shape) < 0.15, -1, slots)
        if name == "indptr":
            ends = np.sort(random.integers(0, _rows_of_experts(op, extent) + 1, shape))
            ends[0] = 0
            return ends
        if name == "tokens":
            return random.integers(0, max(1, shape[0]), shape)
    return random.integers(0, 8, shape)


def _input_name(op: ir.Operation, index: int) -> str | None:
    """What operand `index` of a product or a sum over experts is."""
    if op.name == "qfuse.combine":
        return ("y", "slots", "weights", "residual")[index]
    if op.name not in INPUTS:
        return None
    present = [name for name, v in inputs_of(op, op.operands).items() if v is not None]
    return present[index] if index < len(present) else None


def _rows_of_experts(product: ir.Operation, extent: int) -> int:
    """Rows of a product by experts: those of its tokens, or of x without them."""
    given = inputs_of(product, product.operands)
    x, tokens = given["x"], given["tokens"]
    assert x is not None
    rows = shaped(x.type).rows if tokens is None else shaped(tokens.type).shape
    return math.prod(extent if d == DYNAMIC else d for d in rows)
