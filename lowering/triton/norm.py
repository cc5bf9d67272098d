"""RMSNorm: residual added, normed, and quantized in one pass over each row."""

from typing import TypeVar

from qfuse.dialects.bindings import ir
from qfuse.dialects.norm_ops import QUANTIZED, SCALES, operands_of, output_names, quantize_rounding
from qfuse.dialects.types import shaped
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Variant
from qfuse.lowering.triton.rows import build_rows, results_error, row_error
from qfuse.lowering.triton.signature import LaunchBuilder, Signature
from qfuse.lowering.triton.tile import Tile

T = TypeVar("T")

OPS = ("qfuse.rms_norm",)


def refuse(op: ir.Operation, gpu: Gpu) -> str | None:
    """Why `op` cannot become a GPU kernel, or None."""
    results = [shaped(r.type) for r in op.results]
    finds = [scale is None for scale in _scales(op, list(op.operands))]
    return row_error(shaped(op.operands[0].type)) or results_error(results, finds)


def _scales(norm: ir.Operation, operands: list[T]) -> list[T | None]:
    """Of `operands`, for each result the scale that is given for it."""
    given, scale_of = operands_of(norm, operands), dict(zip(QUANTIZED, SCALES, strict=True))
    return [given.get(scale_of.get(name, "")) for name in output_names(norm)]


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """One launch; a program holds whole rows."""
    attributes = signature.op.attributes
    operands = operands_of(signature.op, signature.operands)
    x, weight, residual = operands["x"], operands["weight"], operands.get("residual")
    scales = _scales(signature.op, signature.operands)
    eps, offset = (ir.FloatAttr(attributes[name]).value for name in ("eps", "offset"))
    rounds_before = ir.StringAttr(attributes["rounding"]).value == "before"
    names = output_names(signature.op)

    def body(launch: LaunchBuilder, tile: Tile) -> None:
        b = launch.b

        def rounded(value: ir.Value) -> ir.Value:
            return b.convert(b.convert(value, x.dtype), "f32")

        h = tile.load(x, "[M,N]")
        if residual is not None:
            h = rounded(b.add(h, tile.load(residual, "[M,N]")))
        # Beyond the row h is zero, which adds nothing to the sum.
        total = b.expand(b.reduce(b.mul(h, h), 1, "arith.addf"), 1)
        mean = b.precise_div(total, float(x.width))
        root = b.value("tt.precise_sqrt", [b.add(mean, eps)], mean.type)
        normed = b.mul(h, b.precise_div(1.0, root))
        factor = tile.load(weight, "[N]")
        if offset:
            factor = b.add(factor, offset)
        exact = b.mul(rounded(normed) if rounds_before else normed, factor)
        value = rounded(exact)
        source = value if quantize_rounding(signature.op) == "value" else exact
        made = {"value": value, **dict.fromkeys(QUANTIZED, source), "new_residual": h}
        for name, result, scale in zip(names, signature.results, scales, strict=True):
            tile.store(made[name], result, None if scale is None else tile.load(scale, "[]"))

    return build_rows(signature, gpu, x.width, whole_rows=True, body=body)
