"""The epilogue of a product that a library computed: its region on each element, in one launch."""

from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import given_scales
from qfuse.dialects.types import shaped
from qfuse.lowering.triton.epilogue import emit_region, region_error
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Variant
from qfuse.lowering.triton.rows import build_rows, results_error
from qfuse.lowering.triton.signature import LaunchBuilder, Signature
from qfuse.lowering.triton.tile import Tile

OPS = ("qfuse.epilogue",)


def refuse(op: ir.Operation, gpu: Gpu) -> str | None:
    """Why `op` cannot become a GPU kernel, or None."""
    results = [shaped(r.type) for r in op.results]
    widths = {*ir.DenseI64ArrayAttr(op.attributes["parts"]), *(r.shape[-1] for r in results)}
    if len(widths) > 1:
        return f"has parts and results of {len(widths)} widths; one kernel makes one width"
    return results_error(results, _finds(op)) or region_error(op.regions[0].blocks[0])


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """One launch for any number of rows."""
    op = signature.op
    y, *extras = signature.operands
    starts = list(ir.DenseI64ArrayAttr(op.attributes["starts"]))
    maps = [ir.StringAttr(m).value for m in ir.ArrayAttr(op.attributes["maps"])]

    def body(launch: LaunchBuilder, tile: Tile) -> None:
        b = launch.b
        base = tile.pointers.data(y)
        arguments = [
            b.convert(b.load(tile.at(base, y.width, start), tile.mask()), "f32") for start in starts
        ]
        arguments += [tile.load(e, kind) for e, kind in zip(extras, maps, strict=True)]
        yielded = emit_region(b, op.regions[0].blocks[0], arguments)
        given = [None if i is None else arguments[len(starts) + i] for i in given_scales(op)]
        for value, result, scale in zip(yielded, signature.results, given, strict=True):
            tile.store(value, result, scale)

    width = signature.results[0].width
    return build_rows(signature, gpu, width, whole_rows=False, finds=_finds(op), body=body)


def _finds(op: ir.Operation) -> list[bool]:
    """Which results, where they are quantized, find their scales."""
    return [scale is None for scale in given_scales(op)]
