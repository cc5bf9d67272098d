"""Operations on whole tensors: shapes, products, reductions and scans."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qfuse.lowering.triton.interpreter.program import Instruction
from qfuse.lowering.triton.interpreter.rounding import truncated_tf32, widen
from qfuse.lowering.triton.interpreter.types import DTYPES, FP8
from qfuse.lowering.triton.interpreter.values import Value, lift, mark, undefined_lanes

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine

_ONE_THREAD = 1 << 18  # M * N * K up to which OpenBLAS does not start threads
_TF32 = 0
_IEEE = 2


def _shape_change(
    change: Callable[[Instruction, np.ndarray], np.ndarray],
) -> Callable[..., Value]:
    def handler(machine: "Machine", instruction: Instruction, x: Value) -> Value:
        return x.map(lambda array: change(instruction, array))

    return handler


def _splat(instruction: Instruction, x: np.ndarray) -> np.ndarray:
    shape = instruction.result_types[0].shape
    return np.broadcast_to(lift(x, len(shape)), (len(x), *shape))


def _broadcast(instruction: Instruction, x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x, (len(x), *instruction.result_types[0].shape))


def _reshape(instruction: Instruction, x: np.ndarray) -> np.ndarray:
    if instruction.attribute("allow_reorder", False):
        raise instruction.refuse("allow_reorder lets the compiler permute the elements")
    return x.reshape(len(x), *instruction.result_types[0].shape)


def _expand(instruction: Instruction, x: np.ndarray) -> np.ndarray:
    return np.expand_dims(x, instruction.attribute("axis") + 1)


def _transpose(instruction: Instruction, x: np.ndarray) -> np.ndarray:
    return x.transpose(0, *(axis + 1 for axis in instruction.attribute("order")))


def _constant(machine: "Machine", instruction: Instruction) -> Value:
    return Value(instruction.attributes["value"])


def _range(machine: "Machine", instruction: Instruction) -> Value:
    start, end = instruction.attribute("start"), instruction.attribute("end")
    return Value(np.arange(start, end, dtype=np.int32)[None])


def _same_rows(values: Sequence[Value]) -> list[Value]:
    count = max(len(value.data) for value in values)
    return [v.map(lambda a: np.broadcast_to(a, (count, *a.shape[1:]))) for v in values]


def _combine(values: Sequence[Value], how: Callable[[list[np.ndarray]], np.ndarray]) -> Value:
    values = _same_rows(values)
    data = how([v.data for v in values])
    if all(v.undefined is None for v in values):
        return Value(data)
    marks = [np.zeros(v.data.shape, bool) if v.undefined is None else v.undefined for v in values]
    return mark(data, how(marks))


def _concatenate(machine: "Machine", instruction: Instruction, a: Value, b: Value) -> Value:
    return _combine((a, b), lambda arrays: np.concatenate(arrays, axis=1))


def _join(machine: "Machine", instruction: Instruction, a: Value, b: Value) -> Value:
    return _combine((a, b), lambda arrays: np.stack(arrays, axis=-1))


def _split(machine: "Machine", instruction: Instruction, x: Value) -> tuple[Value, Value]:
    return x.map(lambda a: a[..., 0]), x.map(lambda a: a[..., 1])


def _gather(machine: "Machine", instruction: Instruction, x: Value, index: Value) -> Value:
    axis = instruction.attribute("axis") + 1
    if index.undefined is not None:
        machine.trap_first(index.undefined, "gathers by an undefined index")
    outside = (index.data < 0) | (index.data >= x.data.shape[axis])
    if outside.any():
        machine.trap_first(outside, f"gathers outside of the {x.data.shape[axis]} elements")
    x, index = _same_rows((x, index))
    return x.map(lambda a: np.take_along_axis(a, index.data.astype(np.int64), axis))


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a [.., M, K] @ b [.., K, N], in pieces that OpenBLAS gives to one thread.

    Where other processes hold the cores, its threads wait 16 ms for each other per tile.
    """
    # Arrays of other layouts numpy leaves to loops of its own instead of BLAS.
    a, b = np.ascontiguousarray(a), np.ascontiguousarray(b)
    *batch, m, _ = np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + a.shape[-2:]
    out = np.empty((*batch, m, b.shape[-1]), a.dtype)
    rows = max(1, _ONE_THREAD // (b.shape[-2] * b.shape[-1]))
    for row in range(0, m, rows):
        np.matmul(a[..., row : row + rows, :], b, out=out[..., row : row + rows, :])
    return out


def _dot(machine: "Machine", instruction: Instruction, a: Value, b: Value, c: Value) -> Value:
    """a [.., M, K] times b [.., K, N] plus c [.., M, N], in f32 (i32 exactly) in any order."""
    left, right = (of.element for of in instruction.operand_types[:2])
    total = instruction.operand_types[2].element
    depth = a.data.shape[-1]
    if left in FP8 and right in FP8:
        _warn_of_slow_fp8(machine, instruction, depth)
    elif left != right:
        raise instruction.refuse(f"operands are {left} and {right}; Triton wants equal types")
    if (total == "i32") != (left == "i8"):
        raise instruction.refuse(f"{left} operands with an accumulator of {total}")
    if left == "i8":
        product = _product(a.data.astype(np.float64), b.data.astype(np.float64))
        data = (product.astype(np.int64) + c.data).astype(np.int32)
    else:
        wide = [widen(a.data), widen(b.data)]
        if left == "f32" and instruction.attribute("inputPrecision", _IEEE) == _TF32:
            wide = [truncated_tf32(array) for array in wide]
        data = (_product(*wide) + widen(c.data)).astype(c.data.dtype)
    marks = [c.undefined]
    if a.undefined is not None:
        marks.append(np.any(a.undefined, axis=-1, keepdims=True))
    if b.undefined is not None:
        marks.append(np.any(b.undefined, axis=-2, keepdims=True))
    machine.count_dot(depth, data)
    return mark(data, *marks)


def _warn_of_slow_fp8(machine: "Machine", instruction: Instruction, depth: int) -> None:
    if machine.target != "cuda:sm_90":
        return
    allowed = instruction.attribute("maxNumImpreciseAcc", 0)
    if allowed == 0:
        machine.warn("maxNumImpreciseAcc is missing: sm_90 converts FP8 to f16 and uses HMMA")
    elif allowed < depth:
        machine.warn(f"maxNumImpreciseAcc = {allowed} < K = {depth} costs extra additions")


def _region(
    machine: "Machine", instruction: Instruction, left: Sequence[Value], right: Sequence[Value]
) -> list[Value]:
    """Combine lanes by the region of a reduction or scan, which is written for scalars."""
    block = instruction.blocks[0]
    assert block is not None
    with machine.lane_by_lane():
        return machine.block(block, (*left, *right))


def _reduce(machine: "Machine", instruction: Instruction, *values: Value) -> tuple[Value, ...]:
    """Halve the axis until one is left: any order is right for what Triton promises."""
    axis = instruction.attribute("axis") + 1
    rest: Sequence[Value] = _same_rows(values)
    while (length := rest[0].data.shape[axis]) > 1:
        half = length // 2
        left = [_part(v, axis, 0, half) for v in rest]
        right = [_part(v, axis, half, 2 * half) for v in rest]
        merged = _region(machine, instruction, left, right)
        if length % 2:
            tail = [_part(v, axis, length - 1, length) for v in rest]
            merged = [_joined((m, t), axis) for m, t in zip(merged, tail, strict=True)]
        rest = merged
    return tuple(v.map(lambda array: array.squeeze(axis)) for v in rest)


def _scan(machine: "Machine", instruction: Instruction, *values: Value) -> tuple[Value, ...]:
    """Inclusive scan along an axis, in log2(length) steps of doubling reach."""
    axis = instruction.attribute("axis") + 1
    backwards = instruction.attribute("reverse", False)
    rest: Sequence[Value] = _same_rows(values)
    if backwards:
        rest = [v.map(lambda array: np.flip(array, axis)) for v in rest]
    length, reach = rest[0].data.shape[axis], 1
    while reach < length:
        before = [_part(v, axis, 0, length - reach) for v in rest]
        here = [_part(v, axis, reach, length) for v in rest]
        merged = _region(machine, instruction, before, here)
        head = [_part(v, axis, 0, reach) for v in rest]
        rest = [_joined((h, m), axis) for h, m in zip(head, merged, strict=True)]
        reach *= 2
    if backwards:
        rest = [v.map(lambda array: np.flip(array, axis)) for v in rest]
    return tuple(rest)


def _part(value: Value, axis: int, start: int, stop: int) -> Value:
    picks = (slice(None),) * axis + (slice(start, stop),)
    return value.map(lambda array: array[picks])


def _joined(values: Sequence[Value], axis: int) -> Value:
    return _combine(values, lambda arrays: np.concatenate(arrays, axis=axis))


def _add_pointer(machine: "Machine", instruction: Instruction, p: Value, offset: Value) -> Value:
    size = DTYPES[instruction.operand_types[0].element].itemsize
    data = p.data + offset.data.astype(np.int64) * size
    return Value(data, undefined_lanes((p, offset), data.shape))


HANDLERS: dict[str, Callable[..., Any]] = {
    "arith.constant": _constant,
    "tt.addptr": _add_pointer,
    "tt.broadcast": _shape_change(_broadcast),
    "tt.cat": _concatenate,
    "tt.dot": _dot,
    "tt.expand_dims": _shape_change(_expand),
    "tt.gather": _gather,
    "tt.join": _join,
    "tt.make_range": _range,
    "tt.reduce": _reduce,
    "tt.reshape": _shape_change(_reshape),
    "tt.scan": _scan,
    "tt.splat": _shape_change(_splat),
    "tt.split": _split,
    "tt.trans": _shape_change(_transpose),
    "tt.unsplat": _shape_change(lambda instruction, x: x.reshape(len(x))),
}
