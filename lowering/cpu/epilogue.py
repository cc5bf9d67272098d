"""The epilogue of a product: from a tile of totals to the results."""

from dataclasses import dataclass

from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import accumulators_of, given_scales
from qfuse.dialects.types import Shaped, shaped
from qfuse.lowering.cpu.combine import KeptRows
from qfuse.lowering.cpu.emit import F32, I32, LANES, Function, Index, Value
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.quantized import given_quantizer
from qfuse.lowering.cpu.region import emit_region
from qfuse.lowering.cpu.rowwise import Piece, Segment, emit_quantized, entry_parameters
from qfuse.lowering.cpu.signature import Signature, Tensor

MAX_TILE = 128


@dataclass(frozen=True)
class WidthGroup:
    """The parts of one width and the results made of them; their tiles are worked on together."""

    width: int
    parts: tuple[int, ...]
    results: tuple[int, ...]


def width_groups(signature: Signature, parts: tuple[int, ...]) -> list[WidthGroup]:
    """Sort parts and results by width; parts that no result reads are not computed."""
    terminator = list(signature.op.regions[0].blocks[0].operations)[-1].operation
    read = [accumulators_of(v, len(parts)) for v in terminator.operands]
    groups = []
    for width in dict.fromkeys(r.width for r in signature.results):
        results = tuple(i for i, r in enumerate(signature.results) if r.width == width)
        used = {p for i in results for p in read[i]}
        groups.append(WidthGroup(width, tuple(sorted(used)), results))
    return groups


def finding_scales(op: ir.Operation) -> list[int]:
    """The quantized results of a product whose scales are found, not given, by number."""
    given = given_scales(op)
    return [i for i, r in enumerate(op.results) if shaped(r.type).quantized and given[i] is None]


def result_error(value: Shaped) -> str | None:
    """Why a product cannot quantize its result like this, finding the scales, or None."""
    assert value.scheme is not None
    group = value.scheme.block[1]
    if value.shape[-1] <= MAX_TILE or (group % LANES == 0 and MAX_TILE % group == 0):
        return None
    return (
        f"a product quantizes its result in groups of 16, 32, 64 or 128, not {group}; "
        "use a separate qfuse.quantize"
    )


def build_epilogue(
    symbol: str,
    signature: Signature,
    level: str,
    group: WidthGroup,
    kept: KeptRows | None = None,
) -> Function:
    """The region and the stores of one width group, for a tile of columns and some rows.

    Called as epilogue(all parameters of an entry..., totals, row, count, number, capacity, tile,
    expert): the totals of rows row..row+count lie at slots[totals] as [area][capacity][tile], one
    area for each part of the group; `tile` is the width of a tile and `number` says which.  All
    rows are those of `expert`, 0 where there are none.  Values of quantized results replace totals
    that were read.  With `kept`, the one result goes there.
    """
    names = ("totals", "row", "count", "number", "capacity", "tile", "expert")
    own = [Value(f"%t_{name}", "index") for name in names]
    f = Function(symbol, [*entry_parameters(signature.data), *own])
    totals, first_row, count, number, capacity, tile, expert = own
    shared, slots = f.params[len(signature.data) : len(signature.data) + 2]
    lanes = Lanes(f, level)
    width = group.width
    start = f.imul(number, tile)
    columns = f.imin(tile, f.isub(width, start))
    area = f.imul(capacity, tile)
    quantized = [r for r in finding_scales(signature.op) if r in group.results]
    extras, given = _extras(signature), given_scales(signature.op)
    quantizers = {
        r: given_quantizer(lanes, signature.results[r].shaped, f.load(extras[scale].data, 0, "f32"))
        for r in group.results
        if (scale := given[r]) is not None
    }

    with f.loop(0, count) as rows:
        row = f.iadd(first_row, rows.iv)
        line = f.address(totals, (rows.iv, tile))

        def place(number: int, offset: Index, line: Index = line) -> Index:
            return f.address(line, (number, area), offset)

        with f.loop(0, columns, LANES) as vectors:
            column = f.iadd(start, vectors.iv)
            mask = f.first_lanes(f.isub(width, column)) if width % LANES else None
            piece = Piece(column, mask)
            sums = {
                p: f.bitcast(f.load(slots, place(i, vectors.iv), I32), F32)
                for i, p in enumerate(group.parts)
            }
            yielded = _evaluate(signature, lanes, group, sums, row, expert, piece)
            for r in group.results:
                result = signature.results[r]
                if kept is not None:
                    kept.store(lanes, yielded[r], shared, row, column)
                elif r in quantizers:
                    at = f.address((row, width), column)
                    f.store(quantizers[r].encode(yielded[r]), result.data, at, mask)
                elif r in quantized:
                    at = place(quantized.index(r), vectors.iv)
                    f.store(f.bitcast(yielded[r], I32), slots, at)
                else:
                    at = f.address((row, width), column)
                    lanes.store(yielded[r], result.data, at, result.dtype, mask)

        if quantizers:
            with f.when(f.icompare("eq", number, 0)):  # once a row
                for r, quantizer in quantizers.items():
                    quantizer.store_scale(signature.results[r].target().scales, row)

        for i, r in enumerate(quantized):

            def read(piece: Piece, i: int = i) -> Value:
                at = place(i, f.isub(piece.column, start))
                return f.bitcast(f.load(slots, at, I32), F32)

            target = signature.results[r].target()
            length = target.group
            full = f.idiv(columns, length)
            with f.loop(0, full) as groups:
                at = f.iadd(start, f.imul(groups.iv, length))
                of_row = f.iadd(f.imul(number, f.idiv(tile, length)), groups.iv)
                emit_quantized(lanes, target, row, Segment(at, of_row, length), read)
            if width % length:
                begin = width - width % length
                # Ragged last group: it is in the last tile, the only one with fewer columns.
                with f.when(f.icompare("sgt", f.iadd(start, tile), begin)):
                    segment = Segment(begin, width // length, width % length)
                    emit_quantized(lanes, target, row, segment, read)
    return f


def _extras(signature: Signature) -> list[Tensor]:
    """The operands that the epilogue reads."""
    count = len(ir.ArrayAttr(signature.op.attributes["maps"]))
    return signature.operands[len(signature.operands) - count :]


def _evaluate(
    signature: Signature,
    lanes: Lanes,
    group: WidthGroup,
    sums: dict[int, Value],
    row: Index,
    expert: Index,
    piece: Piece,
) -> list[Value]:
    """What the region yields; only the results of the group are meaningful."""
    nothing = lanes.f.splat(0.0)
    parts = len(ir.DenseI64ArrayAttr(signature.op.attributes["parts"]))
    maps = [ir.StringAttr(m).value for m in ir.ArrayAttr(signature.op.attributes["maps"])]

    def load(extra: Tensor, kind: str) -> Value:
        if kind == "[]":
            return lanes.splat(extra.data, 0, extra.dtype)
        if kind == "[M,1]":
            return lanes.splat(extra.data, row, extra.dtype)
        if extra.width != group.width:  # serves the results of another group
            return nothing
        at = piece.column
        if kind != "[N]":
            of_row = {"[M,N]": row, "[E,N]": expert}[kind]
            at = lanes.f.address((of_row, group.width), piece.column)
        return lanes.load(extra.data, at, extra.dtype, piece.mask)

    arguments = [sums.get(p, nothing) for p in range(parts)]
    arguments += [load(e, kind) for e, kind in zip(_extras(signature), maps, strict=True)]
    return emit_region(lanes, signature.op.regions[0].blocks[0], arguments)
