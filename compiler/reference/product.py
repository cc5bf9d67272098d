"""Products: sums in f64, then the epilogue region on whole arrays."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from qfuse.compiler.passes.expand_quantize import INPUT_SCHEME
from qfuse.compiler.reference import balls, schemes
from qfuse.compiler.reference.balls import Array, Ball
from qfuse.compiler.reference.experts import combine
from qfuse.compiler.reference.region import run_region
from qfuse.compiler.reference.values import Misfit, Quantized, Tensor, Value
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import given_scales, inputs_of
from qfuse.dialects.types import SchemeAttr, Shaped, scheme_of, shaped
from qfuse.dialects.verify import round_up

Operand = Tensor | Quantized


class Products:
    """The rules of products, which may leave out terms of long sums.

    With `terms`, a sum over more columns takes that many of them: one out of each of `terms`
    runs of columns, the same ones for every product of one K and `seed`.  So what two programs
    that mean the same compute is still the same, at a cost that does not grow with K.
    """

    def __init__(self, terms: int | None = None, seed: int = 0) -> None:
        self.terms, self.seed = terms, seed
        self.rules: dict[str, Callable[..., list[Value]]] = {
            "qfuse.matmul": self.matmul,
            "qfuse.group_matmul": self.group_matmul,
            "qfuse.group_matmul_combine": self.group_matmul_combine,
        }

    def matmul(self, op: ir.Operation, x: Operand, w: Operand, *extra: Tensor) -> list[Value]:
        x = _quantized_input(op, x, w)
        return _results(op, _epilogue(op, self.dot(x, w), w, extra), extra, x.shape[:-1])

    def dot(self, x: Operand, w: Operand) -> Ball:
        """x [.., K] times the transpose of w [N, K], as [M, N]."""
        columns = self._columns(w.shape[1])
        return balls.dot(_numbers(x, columns).map(_flat), _numbers(w, columns))

    def group_matmul(self, op: ir.Operation, *operands: Any) -> list[Value]:
        rows, extra, shape = self._rows_of_experts(op, operands)
        return _results(op, rows, extra, shape)

    def group_matmul_combine(self, op: ir.Operation, *operands: Any) -> list[Value]:
        (rows,), _, shape = self._rows_of_experts(op, operands)
        y = Tensor.of(rows.map(lambda a: a.reshape(*shape, a.shape[-1])), "f32")
        given: dict[str, Any] = inputs_of(op, operands)
        return combine(op, y, given["slots"], given["weights"], given["residual"])

    def _rows_of_experts(
        self, op: ir.Operation, operands: Sequence[Any]
    ) -> tuple[list[Ball], Sequence[Tensor], tuple[int, ...]]:
        """What the epilogue makes of the rows [M, N], what it read, and which shape the M have."""
        given: dict[str, Any] = inputs_of(op, operands)
        x, w, indptr, tokens = (given[name] for name in ("x", "w", "indptr", "tokens"))
        extra = operands[sum(value is not None for value in given.values()) :]
        x = _quantized_input(op, x, w)
        columns = self._columns(w.shape[2])
        rows = _numbers(x, columns).map(_flat)
        shape = x.shape[:-1]
        if tokens is not None:
            shape, index = tokens.shape, tokens.array.reshape(-1)
            if len(index) and not 0 <= index.min() <= index.max() < len(rows.mid):
                raise Misfit(f"tokens name rows of x outside of 0 to {len(rows.mid) - 1}")
            rows = rows[index]
        # rows of no expert hold anything: NaN, and whatever else a kernel leaves there
        count = int(np.prod(shape))
        mid = np.full((count, w.shape[1]), np.nan)
        slack = None if rows.slack is None else np.full(mid.shape, np.inf)
        ends = [int(n) for n in indptr.array]
        if ends[0] != 0 or ends[-1] > count or any(np.diff(ends) < 0):
            raise Misfit(f"indptr is no rising list from 0 to {count} at most")
        for e, (begin, end) in enumerate(pairwise(ends)):
            if begin < end:
                total = balls.dot(rows[begin:end], _numbers(_expert(w, e), columns))
                mid[begin:end] = total.mid
                if slack is not None:
                    slack[begin:end] = total.reach
        expert = np.minimum(np.searchsorted(ends[1:], np.arange(count), "right"), len(ends) - 2)
        return _epilogue(op, Ball(mid, slack), _expert(w, 0), extra, expert), extra, shape

    def _columns(self, depth: int) -> Array:
        if self.terms is None or depth <= self.terms:
            return np.arange(depth)
        edges = np.linspace(0, depth, self.terms + 1).astype(int)
        return np.random.default_rng((self.seed, depth)).integers(edges[:-1], edges[1:])


def _quantized_input(op: ir.Operation, x: Operand, w: Operand) -> Operand:
    """x, quantized if the product says so: to E4M3 for an FP8 weight, else as w is stored."""
    if INPUT_SCHEME not in op.attributes or isinstance(x, Quantized) or isinstance(w, Tensor):
        return x
    dtype = "f8E4M3FN" if w.type.dtype.startswith("f8") else w.type.dtype
    scheme = scheme_of(SchemeAttr(op.attributes[INPUT_SCHEME]))
    return schemes.encode(x.ball(), Shaped(x.shape, dtype, scheme))


def _numbers(value: Operand, columns: Array) -> Ball:
    if isinstance(value, Quantized):
        return schemes.decode(value, columns)
    return value[..., columns].ball()


def _expert(w: Operand, e: int) -> Operand:
    """The weight [N, K] of one expert."""

    if isinstance(w, Tensor):
        return w[e]
    type_ = replace(w.type, shape=w.shape[1:])
    return Quantized(w.data[e], w.scale[e], type_)


def _flat(a: Array) -> Array:
    return a.reshape(-1, a.shape[-1])


def _epilogue(
    op: ir.Operation,
    totals: Ball,
    w: Operand,
    extra: Sequence[Tensor],
    expert: Array | None = None,
) -> list[Ball]:
    """What the region makes of sums [M, N of w], each [M, N]; `expert` [M] is whose rows are."""
    parts = list(ir.DenseI64ArrayAttr(op.attributes["parts"]))
    maps = [ir.StringAttr(m).value for m in ir.ArrayAttr(op.attributes["maps"])]
    block = w.type.scheme.block[0] if isinstance(w, Quantized) and w.type.scheme else 1
    arguments, at = [], 0
    for part in parts:
        arguments.append(totals[:, at : at + part])
        at = round_up(at + part, block)
    count = totals.mid.shape[0]
    arguments += [_extra(e, kind, count, expert) for e, kind in zip(extra, maps, strict=True)]
    made = []
    for y, result in zip(run_region(op.regions[0].blocks[0], arguments), op.results, strict=True):
        shape = (count, shaped(result.type).shape[-1])
        slack = None if y.slack is None else np.broadcast_to(y.slack, shape)
        made.append(Ball(np.broadcast_to(y.mid, shape), slack))
    return made


def _results(
    op: ir.Operation, made: Sequence[Ball], extra: Sequence[Tensor], rows: tuple[int, ...]
) -> list[Value]:
    """Stored as the results of `op` are, in their shapes: `rows` and the width of each."""
    results: list[Value] = []
    for y, result, number in zip(made, op.results, given_scales(op), strict=True):
        type_ = shaped(result.type)
        value = y.map(lambda a: a.reshape(*rows, a.shape[-1]))
        scale = None if number is None else extra[number]
        results.append(
            schemes.encode(value, type_, scale)
            if type_.quantized
            else Tensor.of(value, type_.dtype)
        )
    return results


def _extra(operand: Tensor, kind: str, rows: int, expert: Array | None) -> Ball:
    """An extra operand as an array that broadcasts against [M, N]."""
    if kind == "[E,N]":
        assert expert is not None
        return operand[expert].ball()
    shape = {"[N]": (1, -1), "[M,1]": (rows, 1), "[M,N]": (rows, -1), "[]": (1, 1)}[kind]
    if kind == "[M,N]" and not rows:
        shape = (0, operand.shape[-1])
    return operand.ball().map(lambda a: a.reshape(shape))
