"""`qfuse.matmul`: a product with its epilogue, and the terminator of that epilogue."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.dialect import Op
from qfuse.dialects.quantization_ops import (
    MAX_PARTS,
    concat_rows,
    given_scale_error,
    quantize_error,
)
from qfuse.dialects.types import Shaped, is_float, scheme_error, shaped
from qfuse.dialects.verify import (
    DYNAMIC,
    shape_text,
)

EPILOGUE_DIALECTS = ("arith", "math")
"""Dialects whose scalar operations may stand in an epilogue region."""


T = TypeVar("T")

MAX_EXTRA = 6
MAX_RESULTS = MAX_PARTS


class YieldOp(Op, name="yield", traits=[ir.IsTerminatorTrait]):
    """End an epilogue region; one f32 per result of the product.

    "qfuse.yield"(%y) : (f32) -> ()
    """

    values: Sequence[ext.Operand[ir.F32Type]]


class WithScaleOp(Op, name="with_scale", traits=[ext.Pure]):
    """In an epilogue region: a value for a quantized result whose scale is given beforehand.

        %v = "qfuse.with_scale"(%y, %s) : (f32, f32) -> f32
        "qfuse.yield"(%v) : (f32) -> ()

    The result that %v is yielded for becomes %y, quantized as `qfuse.quantize` does with a scale.
    That scale is the argument %s of an extra operand, a tensor<1xf32> of map "[]".
    """

    value: ext.Operand[ir.F32Type]
    scale: ext.Operand[ir.F32Type]
    out: ext.Result[ir.F32Type]


class MatmulOp(Op, name="matmul", traits=[ext.Pure, ir.IsIsolatedFromAboveTrait]):
    """x [.., K] times the transpose of w [N, K], then the epilogue region on each element.

        %y = "qfuse.matmul"(%x, %w, %bias) ({
        ^bb0(%acc: f32, %b: f32):
          %0 = arith.truncf %acc : f32 to bf16
          %1 = arith.extf %0 : bf16 to f32
          %2 = arith.addf %1, %b : f32
          "qfuse.yield"(%2) : (f32) -> ()
        }) {parts = array<i64: 1024>, maps = ["[N]"],
            operandSegmentSizes = array<i32: 1, 1, 1, 0, 0, 0, 0, 0>,
            resultSegmentSizes = array<i32: 1, 0, 0, 0>}
           : (!xq, !wq, tensor<1024xbf16>) -> tensor<?x1024xbf16>

    Operands: x and w, each plain or quantized, then up to six extra operands of the epilogue;
    there are one to four results, and the segment attributes count each field.  `maps` says
    which element of each extra operand an output element (m, n) sees: "[N]", "[M,1]", "[M,N]" or
    "[]" for a scalar; m counts the rows of x with its leading dimensions flattened.

    The product is that of the operands' values, as `#qfuse.scheme` defines them: codes are
    multiplied and added in f32 (i8 by codes of four to eight bits exactly, in i32) over each run
    of K that has one scale of x and one of w, and these sums, scaled, in f32.

    `parts` lists the rows of each part of w: one for an ordinary product, several for a weight
    made by `qfuse.concat`.  The region computes in f32: it has one accumulator per part, then one
    argument per extra operand, already extended.  Its yielded values become the results, in order,
    each rounded to its result's element type; any other rounding is written out, as above, so a
    fused program computes exactly what the separate operations did.  A result is as wide as a
    part; where the parts differ in width it may depend only on accumulators of its own width.
    A yielded value that belongs to a quantized result is quantized as `qfuse.quantize` would, by a
    scale that it finds or by that of a `qfuse.with_scale`.
    """

    x: ext.Operand[Any]
    w: ext.Operand[Any]
    parts: Any
    maps: ir.ArrayAttr
    epilogue: ext.Region
    out0: ext.Result[Any]
    out1: ext.Result[Any] | None = None
    out2: ext.Result[Any] | None = None
    out3: ext.Result[Any] | None = None
    extra0: ext.Operand[Any] | None = None
    extra1: ext.Operand[Any] | None = None
    extra2: ext.Operand[Any] | None = None
    extra3: ext.Operand[Any] | None = None
    extra4: ext.Operand[Any] | None = None
    extra5: ext.Operand[Any] | None = None

    def violation(self) -> str | None:
        if why := attributes_error(self.operation):
            return why
        x, w, *extra = (shaped(v.type) for v in self.operation.operands)
        parts = [int(n) for n in self.operation.attributes["parts"]]
        return product_error(x, w, parts) or epilogue_error(self.operation, x.rows, parts, extra)


def map_of(operand: Shaped, rows: Sequence[int], n: int) -> str | None:
    """How `operand` broadcasts against a product of shape rows + [n]; None if it does not.

    A dynamic extent counts as equal only to a dynamic one.  An extent of one is read as a
    broadcast, so for M = 1 a [1, N] operand is "[N]".
    """
    shape = operand.shape
    full = (*rows, n)
    if len(shape) > len(full):
        return None
    padded = (1,) * (len(full) - len(shape)) + tuple(shape)
    if any(a not in (b, 1) for a, b in zip(padded, full, strict=True)):
        return None
    leading_one = all(d == 1 for d in padded[:-1])
    if leading_one:
        return "[]" if not shape or (padded[-1] == 1 and n != 1) else "[N]"
    if padded[:-1] != tuple(rows):
        return None
    return "[M,N]" if padded[-1] == n else "[M,1]"


def epilogue_error(
    op: ir.Operation,
    rows: Sequence[int],
    parts: list[int],
    extra: list[Shaped],
    experts: int | None = None,
    outs: Sequence[Shaped] | None = None,
) -> str | None:
    """Why the epilogue of a product with results of rows + [a part's width] is not legal.

    `experts` is how many weights there are, where each row meets that of its expert; `outs` are
    what it yields where the operation goes on with that, by default its results.
    """
    outs = [shaped(r.type) for r in op.results] if outs is None else list(outs)
    maps = [m.value for m in op.attributes["maps"]]
    return (
        _extra_error(rows, parts, extra, maps, experts)
        or _result_error(rows, parts, outs)
        or _region_error(op.regions[0], parts, extra, maps, outs)
    )


def attributes_error(op: ir.Operation) -> str | None:
    parts, maps = op.attributes["parts"], op.attributes["maps"]
    if not isinstance(parts, ir.DenseI64ArrayAttr):
        return f"attribute parts is {parts}; expected array<i64>"
    if not all(isinstance(m, ir.StringAttr) for m in maps):
        return f"attribute maps is {maps}; expected strings"
    return None


def product_error(x: Shaped, w: Shaped, parts: list[int]) -> str | None:
    """Why x cannot be multiplied by a weight w [N, K] of such parts, or None."""
    for name, value in (("x", x), ("w", w)):
        if value.quantized:
            if why := scheme_error(value):
                return f"{name}: {why}"
        elif not is_float(value):
            return f"{name} has element type {value.dtype}; plain operands are f32, f16 or bf16"
    if len(w.shape) != 2 or DYNAMIC in w.shape:
        return f"w has shape {shape_text(w.shape)}; a weight is a static [N, K]"
    if len(x.shape) < 2:
        return f"x has shape {shape_text(x.shape)}; it needs at least [M, K]"
    if x.shape[-1] != w.shape[1]:
        return f"K differs: x has {shape_text(x.shape)}, w has {shape_text(w.shape)}"
    if x.scheme and w.scheme and not groups_nest(x.scheme.group, w.scheme.group, w.shape[1]):
        return (
            f"x is scaled per {x.scheme.group} and w per {w.scheme.group} elements of K; "
            "one must divide the other"
        )
    if not parts or min(parts) < 1:
        return f"parts {parts} must be positive row counts"
    if concat_rows(parts, w) != w.shape[0]:
        return (
            f"parts {parts} make {concat_rows(parts, w)} rows, but w has {w.shape[0]}; each part "
            "begins at a multiple of the scale block"
        )
    return None


def groups_nest(a: int, b: int, k: int) -> bool:
    """Whether, over K = `k`, every group of `a` elements lies in one of `b`, or the reverse."""
    finer, coarser = sorted((a, b))
    return coarser % finer == 0 or coarser >= k


def _extra_error(
    all_rows: Sequence[int],
    parts: list[int],
    extra: list[Shaped],
    maps: list[str],
    experts: int | None,
) -> str | None:
    if len(maps) != len(extra):
        return f"has {len(extra)} extra operands but {len(maps)} maps"
    for i, (operand, kind) in enumerate(zip(extra, maps, strict=True)):
        if not is_float(operand):
            return f"extra operand {i} is {operand}; it must be a plain float tensor"
        if kind == "[E,N]":
            if experts is None:
                return f'map "{kind}" is for rows that have experts, those of qfuse.group_matmul'
            shapes = [(experts, n) for n in sorted(set(parts))]
            if operand.shape not in shapes:
                return (
                    f"extra operand {i} has shape {shape_text(operand.shape)}, which does not fit "
                    f'its map "{kind}" over {" or ".join(map(shape_text, shapes))}'
                )
            continue
        widths = {"[N]": parts, "[M,N]": parts, "[M,1]": [1], "[]": [1]}.get(kind)
        if widths is None:
            return f'map "{kind}" is not one of [N], [M,1], [M,N], []'
        rows = all_rows if kind.startswith("[M") else ()
        is_scalar = not operand.shape and kind != "[]"
        if is_scalar or not any(_broadcast_equal(operand.shape, (*rows, n)) for n in widths):
            wanted = " or ".join(shape_text((*rows, n)) for n in sorted(set(widths)))
            return (
                f"extra operand {i} has shape {shape_text(operand.shape)}, which does not fit its "
                f'map "{kind}" over {wanted}'
            )
    return None


def _broadcast_equal(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Equal up to leading ones."""
    extra = len(shape) - len(wanted)
    if extra > 0 and set(shape[:extra]) == {1}:
        shape = shape[extra:]
    return (1,) * (len(wanted) - len(shape)) + shape == wanted


def _result_error(rows: Sequence[int], parts: list[int], outs: list[Shaped]) -> str | None:
    for i, out in enumerate(outs):
        if out.quantized:
            if why := scheme_error(out) or quantize_error(out):
                return f"result {i}: {why}"
        elif not is_float(out):
            return f"result {i} has element type {out.dtype}; use f32, f16, bf16 or a qtensor"
        if out.shape[:-1] != tuple(rows):
            return (
                f"result {i} has shape {shape_text(out.shape)}, but the rows of x are "
                f"{shape_text(rows)}"
            )
        if out.shape[-1] not in parts:
            return f"result {i} is {out.shape[-1]} wide, but the parts of w are {parts}"
    return None


def _region_error(
    region: ir.Region,
    parts: list[int],
    extra: list[Shaped],
    maps: list[str],
    outs: list[Shaped],
) -> str | None:
    if len(region.blocks) != 1:
        return "the epilogue region must be one block"
    block = region.blocks[0]
    wanted = ["f32"] * (len(parts) + len(extra))
    actual = [str(a.type) for a in block.arguments]
    if actual != wanted:
        return (
            f"epilogue arguments are ({', '.join(actual)}); expected ({', '.join(wanted)}): one "
            f"f32 for each of {len(parts)} parts of w and {len(extra)} extra operands"
        )
    ops = list(block.operations)
    if not ops or ops[-1].operation.name != YieldOp.OPERATION_NAME:
        return "the epilogue region must end with qfuse.yield"
    for op in ops[:-1]:
        if op.operation.name == WithScaleOp.OPERATION_NAME:
            continue
        if op.operation.name.split(".")[0] not in EPILOGUE_DIALECTS:
            return f"'{op.operation.name}' may not stand in an epilogue; use arith and math"
    yielded = len(ops[-1].operation.operands)
    if yielded != len(outs):
        return f"yields {yielded} values for {len(outs)} results"
    if why := _given_scales_error(block, len(parts), extra, maps, outs):
        return why
    if len(set(parts)) > 1:
        for i, (value, out) in enumerate(zip(ops[-1].operation.operands, outs, strict=True)):
            for j in accumulators_of(value, len(parts)):
                if parts[j] != out.shape[-1]:
                    return (
                        f"result {i} is {out.shape[-1]} wide but depends on accumulator {j}, "
                        f"which is {parts[j]} wide"
                    )
    return None


def _given_scales_error(
    block: ir.Block, num_parts: int, extra: list[Shaped], maps: list[str], outs: list[Shaped]
) -> str | None:
    """Why a `qfuse.with_scale` of an epilogue block is not legal, or None."""
    *body, terminator = (op.operation for op in block.operations)
    for op in filter(_gives_scale, body):
        if any(use.owner.operation != terminator for use in op.result.uses):
            return f"a value of {op.name} may only be yielded"
        scale = op.operands[1]
        number = scale.arg_number - num_parts if isinstance(scale, ir.BlockArgument) else -1
        if number < 0 or maps[number] != "[]":
            return f'the scale of {op.name} is no argument of an extra operand of map "[]"'
    for i, (value, out) in enumerate(zip(terminator.operands, outs, strict=True)):
        number = given_scale(value, num_parts)
        if number is None:
            continue
        if not out.quantized:
            return f"result {i} has a scale, but is {out}"
        if why := given_scale_error(extra[number], out):
            return f"result {i}: {why}"
    return None


def given_scale(yielded: ir.Value, num_parts: int) -> int | None:
    """Which extra operand is the scale that a yielded value is quantized by; None without one."""
    if isinstance(yielded, ir.BlockArgument) or not _gives_scale(yielded.owner.operation):
        return None
    return ir.BlockArgument(yielded.owner.operation.operands[1]).arg_number - num_parts


def given_scales(product: ir.Operation) -> list[int | None]:
    """For each result, which extra operand is its scale."""
    parts = len(ir.DenseI64ArrayAttr(product.attributes["parts"]))
    terminator = list(product.regions[0].blocks[0].operations)[-1].operation
    return [given_scale(value, parts) for value in terminator.operands]


def build_with_scale(value: ir.Value, scale: ir.Value) -> ir.Value:
    """A `qfuse.with_scale` at the insertion point."""
    return ir.Operation.create(
        WithScaleOp.OPERATION_NAME, results=[ir.F32Type.get()], operands=[value, scale]
    ).result


def _gives_scale(op: ir.Operation) -> bool:
    return bool(op.name == WithScaleOp.OPERATION_NAME)


def accumulators_of(value: ir.Value, num_parts: int) -> set[int]:
    """Which accumulators of an epilogue region a value in it depends on."""
    numbers = (v.arg_number for v in behind(value) if isinstance(v, ir.BlockArgument))
    return {number for number in numbers if number < num_parts}


def behind(value: ir.Value) -> Iterator[ir.Value]:
    """`value`, and all that it is computed from in an epilogue region, each once."""
    # Each once: a chain whose links read the one before them twice has 2 to the power of its
    # length paths, and one that reads itself, which MLIR refuses only after us, has no end.
    seen: set[ir.Value] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current
        if not isinstance(current, ir.BlockArgument):
            stack.extend(current.owner.operands)


def build_matmul(
    x: ir.Value,
    w: ir.Value,
    results: Sequence[ir.Type],
    *,
    parts: Sequence[int] | None = None,
    extra: Sequence[ir.Value] = (),
    maps: Sequence[str] = (),
) -> tuple[ir.Operation, ir.Block]:
    """A matmul at the current insertion point, and its still empty epilogue block.

    The caller fills the block: `block.arguments` are the accumulators and the extra operands.
    """
    if parts is None:
        parts = [shaped(w.type).shape[0]]
    return build_product(MatmulOp.OPERATION_NAME, [x, w], results, parts, extra, maps)


PRODUCTS = {
    "qfuse.matmul": ("x", "w"),
    "qfuse.group_matmul": ("x", "w", "indptr", "tokens"),
}
"""Operations whose results are what an epilogue region yields, and the operands before its extra
ones."""

INPUTS = {
    **PRODUCTS,
    "qfuse.group_matmul_combine": ("x", "w", "indptr", "slots", "weights", "residual", "tokens"),
}
"""The same for every operation with an epilogue region."""


def inputs_of(product: ir.Operation, operands: Sequence[T]) -> dict[str, T | None]:
    """Of `operands`, one for each of a product's, those that its epilogue does not read.

    By name, in the product's order; None for one left out.
    """
    sizes = list(ir.DenseI32ArrayAttr(product.attributes["operandSegmentSizes"]))
    given = iter(operands)
    names = INPUTS[product.name]
    return {name: next(given) if sizes[i] else None for i, name in enumerate(names)}


def build_product(
    name: str,
    operands: Sequence[ir.Value | None],
    results: Sequence[ir.Type],
    parts: Sequence[int],
    extra: Sequence[ir.Value] = (),
    maps: Sequence[str] = (),
) -> tuple[ir.Operation, ir.Block]:
    """An operation with an epilogue region: `operands` (None: left out), then the extra ones."""
    absent = MAX_EXTRA - len(extra), MAX_RESULTS - len(results)
    present = [int(o is not None) for o in operands]
    attributes = {
        "parts": ir.DenseI64ArrayAttr.get(list(parts)),
        "maps": ir.ArrayAttr.get([ir.StringAttr.get(m) for m in maps]),
        "operandSegmentSizes": ir.DenseI32ArrayAttr.get(
            [*present, *[1] * len(extra), *[0] * absent[0]]
        ),
    }
    if name in PRODUCTS:
        sizes = [1] * len(results) + [0] * absent[1]
        attributes["resultSegmentSizes"] = ir.DenseI32ArrayAttr.get(sizes)
    op = ir.Operation.create(
        name,
        results=list(results),
        operands=[*(o for o in operands if o is not None), *extra],
        attributes=attributes,
        regions=1,
    )
    f32 = ir.F32Type.get()
    arguments = [f32] * (len(parts) + len(extra))
    block = op.regions[0].blocks.append(*arguments, arg_locs=[op.location] * len(arguments))
    return op, block
