"""Patterns of `qfuse-raise-torch`: a product whose columns are cut apart becomes one of parts.

    %y = "qfuse.matmul"(%x, %w)                         // [.., 2N]
    %gate, %up = torch.aten.split.Tensor %y, N, -1

    %gate, %up = "qfuse.matmul"(%x, %w) {parts = array<i64: N, N>}

A merged layer, gate_up_proj say, is written like this.  The weight stays as it is, so each part
must begin where a block of scales does.  Only a product of which an element-wise operation reads a
part is taken apart: others gain nothing, and could no longer be merged with their siblings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import lcm

from qfuse.compiler import remarks
from qfuse.compiler.epilogue import build_yield, carry_attributes, is_identity
from qfuse.compiler.passes.predicates import readers
from qfuse.compiler.passes.raise_elementwise import SPELLINGS
from qfuse.compiler.pdl import MISMATCH, Pattern, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    FROM_BUILTIN,
    NotConstant,
    constant_of,
    create_constant,
    from_builtin,
    to_builtin,
    torch_type,
)
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import AddOp
from qfuse.dialects.matmul_op import MatmulOp, build_product, inputs_of
from qfuse.dialects.quantization_ops import MAX_PARTS
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.cpu.layout import GROUP

_SPLITS = ("torch.aten.split.Tensor", "torch.aten.split_with_sizes", "torch.aten.chunk")
_SLICE = "torch.aten.slice.Tensor"
_ELEMENTWISE = {
    f"torch.aten.{text.split()[0]}"
    for name, texts in SPELLINGS.items()
    for text in texts
    if name != "cast"  # which is how a norm of the part begins
}


@dataclass(frozen=True)
class Cut:
    """Columns [start, end) of a value, and the operation whose result `number` they are."""

    start: int
    end: int
    op: ir.Operation
    number: int


def _split(name: str) -> Callable[[Pattern], None]:
    """A product that `name` cuts, with three arguments or, if it is a slice, five"""

    def split_product(p: Pattern) -> None:
        t, *arguments = (p.value() for _ in range(5 if name == _SLICE else 3))
        root = p.op(name, t, *arguments)
        p.require(cuts_a_plain_product, root, t)
        p.require(feeds_an_elementwise_operation, root, t)
        p.require(is_read_in_parts_only, root, t)
        p.require(parts_begin_at_blocks, root, t)
        p.rewrite(root, make_parts, t)

    return split_product


def cuts_a_plain_product(root: ir.Operation, t: ir.Value) -> Verdict:
    """`t` is a product, with nothing fused yet, and perhaps a bias; `root` cuts its columns."""
    product, _ = _source(t)
    return MISMATCH if product is None or not _cuts(root) else None


def feeds_an_elementwise_operation(root: ir.Operation, _t: ir.Value) -> Verdict:
    read = [op.name for cut in _cuts(root) for op in readers(cut.op.results[cut.number])]
    return None if _ELEMENTWISE.intersection(read) else MISMATCH


def is_read_in_parts_only(_root: ir.Operation, t: ir.Value) -> Verdict:
    cuts = _all_cuts(t)
    if cuts is None:
        return Refusal(
            "the product is read as a whole, too", "read nothing but its parts, or cut the layer"
        )
    parts = _parts(t)
    if any((c.start, c.end) not in parts for c in cuts):
        return Refusal("the parts overlap", "cut the columns once")
    if len(parts) > MAX_PARTS:
        return Refusal(f"there are {len(parts)} parts, and a product has at most {MAX_PARTS}")
    return None


def parts_begin_at_blocks(_root: ir.Operation, t: ir.Value) -> Verdict:
    product, _ = _source(t)
    assert product is not None
    w = shaped(product.operands[1].type)
    # CPU kernels lay a weight out in groups of rows, too
    rows = lcm(GROUP, w.scheme.block[0] if w.scheme else 1)
    starts = [start for start, _ in _parts(t)]
    if all(start % rows == 0 for start in starts):
        return None
    return Refusal(
        f"the parts begin at rows {starts} of the weight, whose blocks have {rows}",
        f"give all parts but the last a multiple of {rows} features",
    )


def make_parts(rewriter, root: ir.Operation, t: ir.Value) -> None:
    y, cuts, parts = _builtin(t), _all_cuts(t), _parts(t)
    product, bias = _source(t)
    assert product is not None and cuts is not None
    read = [part for part in parts if any((c.start, c.end) == part for c in cuts)]
    dtype, rows = shaped(product.results[0].type).dtype, shaped(y.type).rows
    remarks.fired("split-product", root, remarks.argument_name(product.operands[1]))
    with ir.InsertionPoint(y.owner.operation):
        new, block = build_product(
            product.name,
            list(inputs_of(product, product.operands).values()),
            [Shaped((*rows, end - start), dtype).type() for start, end in read],
            [end - start for start, end in parts],
        )
        carry_attributes(product, new)
        with ir.InsertionPoint(block):
            build_yield([block.arguments[parts.index(part)] for part in read])
        values = dict(zip(read, new.results, strict=True))
        if bias is not None:
            out = shaped(y.type).dtype
            values = {part: _with_bias(v, bias, part, out) for part, v in values.items()}
        made = {part: from_builtin(v, torch_type(shaped(v.type))) for part, v in values.items()}
    for op in dict.fromkeys(c.op for c in cuts):
        own = sorted((c for c in cuts if c.op == op), key=lambda c: c.number)
        rewriter.replace_op(op, [made[c.start, c.end] for c in own])


def _with_bias(value: ir.Value, bias: ir.Value, part: tuple[int, int], dtype: str) -> ir.Value:
    """`value` plus a part of the bias."""
    kind = shaped(bias.type)
    arguments = [create_constant("int", n) for n in (0, *part, 1)]
    piece = ir.Operation.create(
        _SLICE,
        results=[torch_type(Shaped((part[1] - part[0],), kind.dtype))],
        operands=[from_builtin(bias, torch_type(kind)), *arguments],
    ).result
    return ir.Operation.create(
        AddOp.OPERATION_NAME,
        results=[Shaped(shaped(value.type).shape, dtype).type()],
        operands=[value, to_builtin(piece)],
    ).result


def _builtin(t: ir.Value) -> ir.Value:
    return t.owner.operation.operands[0]


def _source(t: ir.Value) -> tuple[ir.Operation | None, ir.Value | None]:
    """The product that `t` is, if it is one and nothing is fused yet, and the bias added to it."""
    nothing = None, None
    if isinstance(t, ir.BlockArgument) or t.owner.operation.name != FROM_BUILTIN:
        return nothing
    y, bias = _builtin(t), None
    if not isinstance(y, ir.BlockArgument) and y.owner.operation.name == AddOp.OPERATION_NAME:
        y, bias = y.owner.operation.operands
        if bias.type.shape != y.type.shape[-1:] or len(readers(y)) != 1:
            return nothing
    if isinstance(y, ir.BlockArgument) or y.owner.operation.name != MatmulOp.OPERATION_NAME:
        return nothing
    product = y.owner.operation
    return (product, bias) if len(product.results) == 1 and is_identity(product) else nothing


def _parts(t: ir.Value) -> list[tuple[int, int]]:
    """The columns that the cuts of `t` leave together."""
    cuts = _all_cuts(t) or []
    width = shaped(_builtin(t).type).shape[-1]
    ends = sorted({c.start for c in cuts} | {c.end for c in cuts} | {0, width})
    return list(pairwise(ends))


def _all_cuts(t: ir.Value) -> list[Cut] | None:
    """What all readers of the product cut out of it; None if one of them does something else."""
    found: list[Cut] = []
    for reader in readers(_builtin(t)):
        if reader.name != FROM_BUILTIN:
            return None
        for op in dict.fromkeys(readers(reader.results[0])):
            cuts = _cuts(op)
            if not cuts:
                return None
            found += cuts
    return found


def _cuts(op: ir.Operation) -> list[Cut]:
    """What `op` cuts out of the columns of its first operand; nothing if it is no such thing."""
    if op.name not in (*_SPLITS, _SLICE):
        return []
    source = op.operands[0]
    if isinstance(source, ir.BlockArgument) or source.owner.operation.name != FROM_BUILTIN:
        return []
    shape = shaped(_builtin(source).type).shape
    width = shape[-1]
    try:
        arguments = [constant_of(v) for v in list(op.operands)[1:]]
    except NotConstant:
        return []
    if width == DYNAMIC or not all(isinstance(a, int | list) or a is None for a in arguments):
        return []
    if op.name == _SLICE:
        dim, start, end, step = arguments
        start, end, _ = slice(start, end).indices(width)
        legal = dim in (-1, len(shape) - 1) and step == 1 and start < end
        return [Cut(start, end, op, 0)] if legal else []
    size, dim = arguments
    users = readers(op.results[0])
    if dim not in (-1, len(shape) - 1) or len(users) != 1:
        return []
    if users[0].name != "torch.prim.ListUnpack":
        return []
    if op.name == "torch.aten.chunk":
        size = -(-width // size)
    sizes = size if isinstance(size, list) else [size] * (width // size)
    if isinstance(size, int) and width % size:
        sizes.append(width % size)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    if sum(sizes) != width or len(sizes) != len(users[0].results) or min(sizes) < 1:
        return []
    return [Cut(s, s + n, users[0], i) for i, (s, n) in enumerate(zip(starts, sizes, strict=True))]


SPLIT = tuple(_split(name) for name in (*_SPLITS, _SLICE))
