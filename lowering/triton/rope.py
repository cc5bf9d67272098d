"""Rotary position embedding: both halves of a head from one read of each."""

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Variant
from qfuse.lowering.triton.rows import build_rows, row_error
from qfuse.lowering.triton.signature import LaunchBuilder, Signature, Tensor
from qfuse.lowering.triton.tile import Tile

OPS = ("qfuse.rope",)


def refuse(op: ir.Operation, gpu: Gpu) -> str | None:
    """Why `op` cannot become a GPU kernel, or None."""
    x, cos, sin = (shaped(v.type) for v in op.operands)
    if x.shape[2] == DYNAMIC:
        return f"x is {x}; GPU kernels need to know the number of heads"
    for name, table in (("cos", cos), ("sin", sin)):
        shared = table.shape[0] != x.shape[0]
        if shared and x.shape[1] == DYNAMIC:
            return (
                f"{name} is {table}, shared by the sequences of {x}; GPU kernels then need to know "
                "the number of tokens, or a batch of one"
            )
    return row_error(x)


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """One launch; M counts heads of tokens, and a tile has the first half of each."""
    x, *tables = signature.operands
    result = signature.results[0]
    _, tokens, heads, width = x.shaped.shape
    half = width // 2

    def body(launch: LaunchBuilder, tile: Tile) -> None:
        b, pointers = launch.b, launch.pointers

        def load(tensor: Tensor, first: int) -> ir.Value:
            at = tile.at(pointers.data(tensor), width, first)
            return b.convert(b.load(at, tile.mask()), "f32")

        def factor(table: Tensor, first: int) -> ir.Value:
            token = b.div(b.add(tile.row_range(), tile.row), heads)
            if table.shaped.shape[0] != x.shaped.shape[0]:
                token = b.rem(token, tokens)
            offset = b.add(b.mul(token, width), b.add(tile.column_range(), first))
            return b.convert(b.load(b.offset(pointers.data(table), offset), tile.mask()), "f32")

        def rounded(value: ir.Value) -> ir.Value:
            return b.convert(b.convert(value, x.dtype), "f32")

        cos, sin = tables
        one, two = load(x, 0), load(x, half)
        # The other half is negated for the first: rounding is the same for a number and its
        # negative, so the rounded product is subtracted.
        halves = (
            b.sub(rounded(b.mul(one, factor(cos, 0))), rounded(b.mul(two, factor(sin, 0)))),
            b.add(rounded(b.mul(two, factor(cos, half))), rounded(b.mul(one, factor(sin, half)))),
        )
        for first, value in zip((0, half), halves, strict=True):
            at = tile.at(pointers.data(result), width, first)
            b.store(at, b.convert(value, result.dtype), tile.mask())

    return build_rows(signature, gpu, half, whole_rows=True, body=body)
