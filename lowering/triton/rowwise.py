"""Element-wise operations, GLU, and quantization on its own."""

from typing import TypeVar

from qfuse.dialects.activations import build_glu
from qfuse.dialects.arithmetic import ELEMENTWISE, attributes_of, build_elementwise
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import glu_of, glu_operands
from qfuse.dialects.matmul_op import map_of
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.triton.epilogue import emit_scalars
from qfuse.lowering.triton.fp8 import decode, read_scale
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Variant
from qfuse.lowering.triton.packed import HALF, e2m1, pick_half
from qfuse.lowering.triton.product import K_QUANTS, SCALE_TYPES
from qfuse.lowering.triton.rows import build_rows, results_error
from qfuse.lowering.triton.signature import LaunchBuilder, Signature, Tensor
from qfuse.lowering.triton.tile import Tile

T = TypeVar("T")

_ELEMENTWISE = {f"qfuse.{name}": name for name in ELEMENTWISE}
OPS = ("qfuse.quantize", "qfuse.dequantize", "qfuse.glu", *_ELEMENTWISE)


def refuse(op: ir.Operation, gpu: Gpu) -> str | None:
    """Why `op` cannot become a GPU kernel, or None."""
    operands = [shaped(v.type) for v in op.operands]
    results = [shaped(r.type) for r in op.results]
    if not results[0].shape or results[0].shape[-1] == DYNAMIC:
        return f"the last dimension of {results[0]} must be static"
    if results[0].shape[-1] == 0:
        return f"{results[0]} holds no elements"
    if op.name == "qfuse.dequantize" and (why := _stored_error(operands[0])):
        return why
    if op.name in _ELEMENTWISE:
        for i, operand in enumerate(operands):
            if _map(operand, results[0]) is None:
                return (
                    f"operand {i} is {operand}, which GPU kernels cannot broadcast to "
                    f"{results[0]}; they take scalars, [N], [M, 1] and the result's own shape"
                )
    return results_error(results, [_given(op, list(op.operands)) is None] * len(results))


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """One launch for any number of rows of the result."""
    op, result = signature.op, signature.results[0]

    def body(launch: LaunchBuilder, tile: Tile) -> None:
        b = launch.b
        if op.name == "qfuse.glu":
            value = _glu(tile, signature)
        elif op.name == "qfuse.dequantize":
            value = _dequantized(tile, signature.operands[0])
        elif op.name == "qfuse.quantize":
            value = tile.load(signature.operands[0], "[M,N]")
        else:
            values = [tile.load(t, _map(t.shaped, result.shaped) or "") for t in signature.operands]
            name, attributes = _ELEMENTWISE[op.name], attributes_of(op)
            value = emit_scalars(b, lambda *xs: build_elementwise(name, xs, attributes), *values)
        scale = None if given is None else tile.load(given, "[]")
        for each in signature.results:
            tile.store(value, each, scale)

    given = _given(op, signature.operands)
    finds = [given is None] * len(signature.results)
    return build_rows(signature, gpu, result.width, whole_rows=False, finds=finds, body=body)


def _given(op: ir.Operation, operands: list[T]) -> T | None:
    """Of `operands`, the scale that is given beforehand."""
    if op.name == "qfuse.glu":
        return glu_operands(op, operands)[1]
    return operands[1] if op.name == "qfuse.quantize" and len(operands) == 2 else None


def _map(operand: Shaped, result: Shaped) -> str | None:
    return map_of(operand, result.rows, result.shape[-1])


def _glu(tile: Tile, signature: Signature) -> ir.Value:
    """The GLU, each step of it rounded."""
    b, glu = tile.b, glu_of(signature.op)
    factors, _ = glu_operands(signature.op, signature.operands)
    gate, *up = factors

    def load(tensor: Tensor, first: int) -> ir.Value:
        at = tile.at(tile.pointers.data(tensor), tensor.width, first)
        return b.convert(b.load(at, tile.mask()), "f32")

    first = load(gate, 0)
    second = load(up[0], 0) if up else load(gate, tile.width)
    made = emit_scalars(b, lambda g, u: build_glu(glu, g, u, gate.dtype), first, second)
    return b.convert(b.convert(made, gate.dtype), "f32")


def _dequantized(tile: Tile, x: Tensor) -> ir.Value:
    """Codes, less their zero points, times the scale of the block that each is in."""
    b, scheme = tile.b, x.shaped.scheme
    assert scheme is not None
    packed = scheme.packing in ("int4", "fp4")
    codes = _halves(tile, x) if packed else b.load(tile.at(tile.pointers.data(x)), tile.mask())
    rows_of_scales = b.ceil_div(tile.pointers.m, scheme.block[0])
    row_stride, group_stride = x.scale_strides(rows_of_scales)
    row = b.div(b.add(tile.row_range(), tile.row), scheme.block[0])
    column = b.div(b.add(tile.column_range(), tile.column), scheme.block[1])
    at = b.add(b.mul(row, row_stride), b.mul(column, group_stride))
    scale = b.load(b.offset(tile.pointers.scale(x), at), tile.mask())
    if scheme.packing == "int4":
        zero: ir.Value | int = HALF
        if scheme.zero_point != "none":
            loaded = b.load(b.offset(tile.pointers.zero(x), at), tile.mask())
            zero = b.cast("extsi", loaded, "i32")
        value = b.cast("sitofp", b.sub(codes, zero), "f32")
    else:
        value = e2m1(b, codes, "f32") if packed else decode(b, codes, "f32")
    return b.mul(value, read_scale(b, scale, scheme.scale))


def _halves(tile: Tile, x: Tensor) -> ir.Value:
    """The codes of two to a byte that belong to the columns of a tile, as i32."""
    b = tile.b
    column = b.add(tile.column_range(), tile.column)
    base = b.offset(tile.pointers.data(x), b.mul(b.i64(tile.row), x.stored_width))
    at = b.add(b.mul(tile.row_range(), x.stored_width), b.div(column, 2))
    return pick_half(b, b.load(b.offset(base, at), tile.mask()), b.rem(column, 2))


def _stored_error(x: Shaped) -> str | None:
    scheme = x.scheme
    assert scheme is not None
    if scheme.packing in K_QUANTS:
        return (
            f'stores {x.dtype} packed as "{scheme.packing}", which GPU kernels only multiply by; '
            "dequantize it where it is loaded"
        )
    if scheme.scale not in SCALE_TYPES:
        return f"has scales of {scheme.scale}; GPU kernels read {', '.join(SCALE_TYPES)}"
    if scheme.block[0] > 1 and len(x.shape) > 2:
        return f"blocks of {scheme.block[0]} rows in {len(x.shape)} dimensions; use two dimensions"
    return None
