"""Element-wise operations of `arith`, `math` and `tt`."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from qfuse.lowering.triton.interpreter.conversions import CONVERSIONS, signed, unsigned
from qfuse.lowering.triton.interpreter.inline_asm import inline_asm, library_call
from qfuse.lowering.triton.interpreter.program import Instruction
from qfuse.lowering.triton.interpreter.rounding import fma
from qfuse.lowering.triton.interpreter.values import Value, lift, mark, undefined_lanes

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine

Handler = Callable[..., Any]
Function = Callable[..., np.ndarray]


def _rank(arrays: tuple[np.ndarray, ...]) -> int:
    return max(array.ndim for array in arrays) - 1


def elementwise(function: Function) -> Handler:
    """The handler of an operation that computes each lane from the operands' same lanes."""

    def handler(machine: "Machine", instruction: Instruction, *values: Value) -> Value:
        data = function(*(value.data for value in values))
        return Value(data, undefined_lanes(values, data.shape))

    return handler


def partial(function: Function, meaningless: Callable[..., np.ndarray]) -> Handler:
    """The handler of one without a result for some operands: those lanes become undefined."""

    def handler(machine: "Machine", instruction: Instruction, *values: Value) -> Value:
        arrays = [value.data for value in values]
        data = function(*arrays)
        return mark(data, undefined_lanes(values, data.shape), meaningless(*arrays))

    return handler


def _on_integers(function: Function, on_bits: Function) -> Function:
    """numpy adds and multiplies booleans as logic; i1 arithmetic is modulo 2."""
    return lambda a, b: on_bits(a, b) if a.dtype == bool else function(a, b)


def _as_unsigned(function: Function) -> Function:
    return lambda a, b: signed(function(unsigned(a), unsigned(b)), a.dtype)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a - np.fmod(a, b)) // np.where(b == 0, 1, b).astype(b.dtype)


def _ceiling(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    inexact = (np.fmod(a, b) != 0) & ((a > 0) == (b > 0))
    return _divide(a, b) + inexact.astype(a.dtype)


def _shift(function: Function) -> Handler:
    def shift(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return function(a, np.where(_too_far(a, b), 0, b).astype(b.dtype))

    return partial(shift, _too_far)


def _too_far(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return unsigned(b) >= a.dtype.itemsize * 8


def _by_zero(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.broadcast_to(b == 0, np.broadcast_shapes(a.shape, b.shape))


def _erf(x: np.ndarray) -> np.ndarray:
    values = [math.erf(value) for value in x.reshape(-1).tolist()]
    return np.array(values, np.float64).astype(x.dtype).reshape(x.shape)


def _rsqrt(x: np.ndarray) -> np.ndarray:
    return (1.0 / np.sqrt(x.astype(np.float64))).astype(x.dtype)


_COMPARE_INTEGERS: tuple[Function, ...] = (
    np.equal,
    np.not_equal,
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
    lambda a, b: unsigned(a) < unsigned(b),
    lambda a, b: unsigned(a) <= unsigned(b),
    lambda a, b: unsigned(a) > unsigned(b),
    lambda a, b: unsigned(a) >= unsigned(b),
)


def _unordered(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.isnan(a) | np.isnan(b)


_COMPARE_FLOATS: tuple[Function, ...] = (
    lambda a, b: np.zeros(np.broadcast_shapes(a.shape, b.shape), bool),
    np.equal,
    np.greater,
    np.greater_equal,
    np.less,
    np.less_equal,
    lambda a, b: (a != b) & ~_unordered(a, b),
    lambda a, b: ~_unordered(a, b),
    lambda a, b: (a == b) | _unordered(a, b),
    lambda a, b: (a > b) | _unordered(a, b),
    lambda a, b: (a >= b) | _unordered(a, b),
    lambda a, b: (a < b) | _unordered(a, b),
    lambda a, b: (a <= b) | _unordered(a, b),
    np.not_equal,
    _unordered,
    lambda a, b: np.ones(np.broadcast_shapes(a.shape, b.shape), bool),
)


def _compare(functions: tuple[Function, ...]) -> Handler:
    def handler(machine: "Machine", instruction: Instruction, a: Value, b: Value) -> Value:
        predicate = instruction.attribute("predicate")
        return elementwise(functions[predicate])(machine, instruction, a, b)

    return handler


def _logic(function: Function, decides: Callable[[np.ndarray], np.ndarray]) -> Handler:
    """`and`, `or`: a defined operand that decides alone makes the other's lane irrelevant."""

    def handler(machine: "Machine", instruction: Instruction, a: Value, b: Value) -> Value:
        data = function(a.data, b.data)
        if a.undefined is None and b.undefined is None:
            return Value(data)
        decided = np.zeros(data.shape, bool)
        for value in (a, b):
            known = True if value.undefined is None else ~value.undefined
            decided |= decides(value.data) & known
        marks = undefined_lanes((a, b), data.shape)
        assert marks is not None
        return mark(data, marks & ~decided)

    return handler


def _select(
    machine: "Machine", instruction: Instruction, condition: Value, yes: Value, no: Value
) -> Value:
    rank = _rank((condition.data, yes.data, no.data))
    chosen = lift(condition.data, rank)
    data = np.where(chosen, yes.data, no.data)
    if condition.undefined is None and yes.undefined is None and no.undefined is None:
        return Value(data)
    of_yes = False if yes.undefined is None else yes.undefined
    of_no = False if no.undefined is None else no.undefined
    marks = np.broadcast_to(np.where(chosen, of_yes, of_no), data.shape)
    return mark(data, marks, undefined_lanes((condition,), data.shape))


def _clamp(
    machine: "Machine", instruction: Instruction, x: Value, low: Value, high: Value
) -> Value:
    nan_wins = instruction.attribute("propagateNan", 0) != 0
    up, down = (np.maximum, np.minimum) if nan_wins else (np.fmax, np.fmin)
    return elementwise(lambda a, b, c: down(up(a, b), c))(machine, instruction, x, low, high)


def _high_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    wide = unsigned(a).astype(np.uint64) * unsigned(b).astype(np.uint64)
    return (wide >> np.uint64(32)).astype(np.uint32).view(np.int32)


_PURE: dict[str, Function] = {
    "arith.addi": _on_integers(np.add, np.logical_xor),
    "arith.subi": _on_integers(np.subtract, np.logical_xor),
    "arith.muli": _on_integers(np.multiply, np.logical_and),
    "arith.xori": np.bitwise_xor,
    "arith.minsi": np.minimum,
    "arith.maxsi": np.maximum,
    "arith.minui": _as_unsigned(np.minimum),
    "arith.maxui": _as_unsigned(np.maximum),
    "arith.addf": np.add,
    "arith.subf": np.subtract,
    "arith.mulf": np.multiply,
    "arith.divf": np.divide,
    "arith.remf": np.fmod,
    "arith.maxnumf": np.fmax,
    "arith.minnumf": np.fmin,
    "arith.maximumf": np.maximum,
    "arith.minimumf": np.minimum,
    "math.absf": np.abs,
    "math.absi": np.abs,
    "math.ceil": np.ceil,
    "math.cos": np.cos,
    "math.erf": _erf,
    "math.exp": np.exp,
    "math.exp2": np.exp2,
    "math.floor": np.floor,
    "math.fma": fma,
    "math.log": np.log,
    "math.log2": np.log2,
    "math.rsqrt": _rsqrt,
    "math.sin": np.sin,
    "math.sqrt": np.sqrt,
    "tt.mulhiui": _high_product,
    "tt.precise_divf": np.divide,
    "tt.precise_sqrt": np.sqrt,
}

HANDLERS: dict[str, Handler] = {
    **{name: elementwise(function) for name, function in _PURE.items()},
    **CONVERSIONS,
    "arith.divsi": partial(_divide, _by_zero),
    "arith.divui": partial(_as_unsigned(np.floor_divide), _by_zero),
    "arith.remsi": partial(np.fmod, _by_zero),
    "arith.remui": partial(_as_unsigned(np.remainder), _by_zero),
    "arith.ceildivsi": partial(_ceiling, _by_zero),
    "arith.floordivsi": partial(np.floor_divide, _by_zero),
    "arith.shli": _shift(np.left_shift),
    "arith.shrsi": _shift(np.right_shift),
    "arith.shrui": _shift(_as_unsigned(np.right_shift)),
    "arith.andi": _logic(np.bitwise_and, lambda x: x == 0),
    "arith.ori": _logic(np.bitwise_or, lambda x: x == (True if x.dtype == bool else -1)),
    "arith.cmpi": _compare(_COMPARE_INTEGERS),
    "arith.cmpf": _compare(_COMPARE_FLOATS),
    "arith.select": _select,
    "tt.clampf": _clamp,
    "tt.elementwise_inline_asm": inline_asm,
    "tt.extern_elementwise": library_call,
}
