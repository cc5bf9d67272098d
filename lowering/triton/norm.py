"""RMSNorm: residual added, normed, and quantized in one pass over each row."""

from qfuse.dialects.bindings import ir
from qfuse.dialects.norm_ops import QUANTIZED, RMS_NORM_OUTPUTS, quantize_rounding
from qfuse.dialects.types import shaped
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Variant
from qfuse.lowering.triton.rows import build_rows, results_error, row_error
from qfuse.lowering.triton.signature import LaunchBuilder, Signature
from qfuse.lowering.triton.tile import Tile

OPS = ("qfuse.rms_norm",)


def refuse(op: ir.Operation, gpu: Gpu) -> str | None:
    """Why `op` cannot become a GPU kernel, or None."""
    results = [shaped(r.type) for r in op.results]
    return row_error(shaped(op.operands[0].type)) or results_error(results)


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """One launch; a program holds whole rows."""
    attributes = signature.op.attributes
    x, weight, *residual = signature.operands
    eps, offset = (ir.FloatAttr(attributes[name]).value for name in ("eps", "offset"))
    rounds_before = ir.StringAttr(attributes["rounding"]).value == "before"
    present = ir.DenseI32ArrayAttr(attributes["resultSegmentSizes"])
    names = [name for name, there in zip(RMS_NORM_OUTPUTS, present, strict=True) if there]

    def body(launch: LaunchBuilder, tile: Tile) -> None:
        b = launch.b

        def rounded(value: ir.Value) -> ir.Value:
            return b.convert(b.convert(value, x.dtype), "f32")

        h = tile.load(x, "[M,N]")
        if residual:
            h = rounded(b.add(h, tile.load(residual[0], "[M,N]")))
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
        for name, result in zip(names, signature.results, strict=True):
            tile.store(made[name], result)

    return build_rows(signature, gpu, x.width, whole_rows=True, body=body)
