"""Element-wise operations, GLU, and quantization on its own."""

from typing import TypeVar

from qfuse.dialects.activations import build_glu
from qfuse.dialects.arithmetic import ELEMENTWISE, attributes_of, build_elementwise
from qfuse.dialects.bindings import ir
from qfuse.dialects.elementwise_ops import glu_of, glu_operands
from qfuse.dialects.matmul_op import map_of
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.triton.dequantize import dequantized, stored_error
from qfuse.lowering.triton.epilogue import emit_scalars
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Variant
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
    if op.name == "qfuse.dequantize" and (why := stored_error(operands[0])):
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
            value = dequantized(tile, signature.operands[0])
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
