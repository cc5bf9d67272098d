"""Scales of weights as kernels read them: one for a strip, or one for each of its rows."""

from dataclasses import dataclass

from qfuse.lowering.cpu.emit import F32, I8, I32, Function, Index, Value, vector
from qfuse.lowering.cpu.lanes import I16, Lanes
from qfuse.lowering.cpu.layout import GROUP, K_QUANTS, LINE, STRIP, WeightLayout

_QUIET_NAN = 0x7FC00000
_SMALLEST = 0x00400000  # 2^-127


@dataclass(frozen=True)
class StripScale:
    """What the sums of a strip over a run are multiplied by, and corrected with."""

    scale: Value | None
    """f32, or f32 lanes; None for a weight without scales."""
    minimum: Value | None = None
    """f32 lanes: value = code * scale - minimum."""
    zero: Value | None = None
    """i32 lanes: value = (code - zero) * scale."""


@dataclass(frozen=True)
class ScaleSource:
    """Where the scales of some strips of w come from."""

    lanes: Lanes
    layout: WeightLayout
    w: Value
    first: Value
    """By block: scale row of the first column.  By row: group of the first column."""
    last: Value
    """By block: the last scale row."""
    column: Index
    """Column of the first strip: of the part by block, from the beginning of `first` by row."""
    factor: float = 1.0
    """What a decoded code is to be multiplied by, too."""

    def of_strips(self, strips: int, start: Index) -> list[StripScale]:
        """The scales of strips for the run of columns from `start` on."""
        if self.layout.plain:
            return [StripScale(None)] * strips
        if not self.layout.by_block:
            return [self._by_row(s, start) for s in range(strips)]
        return [StripScale(self._scaled(scale)) for scale in self._by_block(strips, start)]

    def zeros(self, strip: int, start: Index) -> Value | None:
        """The zero points of a strip, i32 lanes."""
        if not self.layout.zeros:
            return None
        scales = self.layout.record_bytes - GROUP
        return self._bytes(self._record(start), strip, scales, signed=True)

    def prefetch(self, start: Index, part: Index, parts: int, blocks: int) -> None:
        """Fetch what lies by row: share `part` of `parts` of the records of a block of columns,
        that which is `blocks` after the one that begins at `start`."""
        layout = self.layout
        if layout.by_block or layout.whole:
            return
        size = max(1, layout.block // layout.bk) * layout.record_bytes
        f = self.lanes.f
        at = f.address(self._record(start), blocks * size, (part, size // parts))
        for line in range(0, size // parts, LINE):
            f.prefetch(self.w, f.iadd(at, line), locality=3)

    def _by_block(self, strips: int, start: Index) -> list[Value]:
        """Strips that share a block share the value."""
        f, layout = self.lanes.f, self.layout
        bn = layout.bn
        kb = self._scale_column(start)
        found: list[Value] = []
        for s in range(strips):
            if s and bn % GROUP == 0:
                found.append(found[0])
                continue
            row = f.iadd(self.first, f.idiv(f.iadd(self.column, s * STRIP), bn))
            if bn % GROUP:  # padding strips may lie beyond the last scale
                row = f.imin(row, self.last)
            found.append(f.load(self.w, f.address((row, layout.k_scales), kb), "f32"))
        return found

    def _by_row(self, strip: int, start: Index) -> StripScale:
        f, layout = self.lanes.f, self.layout
        at = self._record(start)
        if layout.packing not in K_QUANTS:
            scale = self._scaled(self._numbers(at, strip, 0, layout.scale))
            return StripScale(scale, zero=self.zeros(strip, start))
        group = f.idiv(f.imod(start, layout.bk), layout.group)
        d = self._numbers(at, strip, 0, "f16")
        if layout.packing == "q6_k":
            sc = self._bytes(f.address(at, (group, GROUP)), strip, 2 * GROUP, signed=True)
            return StripScale(f.mul(d, f.cast("arith.sitofp", sc, F32)))
        dmin = self._numbers(at, strip, 2 * GROUP, "f16")
        at = f.address(at, (group, 2 * GROUP))
        sc, m = (self._bytes(at, strip, i * GROUP) for i in (4, 5))
        scale, minimum = (f.mul(a, f.cast("arith.sitofp", b, F32)) for a, b in ((d, sc), (dmin, m)))
        return StripScale(scale, minimum)

    def _record(self, start: Index) -> Index:
        """Where the record of the group of column `self.column` begins."""
        f, layout = self.lanes.f, self.layout
        group = f.iadd(self.first, f.idiv(self.column, GROUP))
        record = self._scale_column(start)
        return f.address((group, layout.group_scale_bytes), (record, layout.record_bytes))

    def _scale_column(self, start: Index) -> Index:
        """Which scale of a row, or record, serves the columns from `start` on."""
        f, layout = self.lanes.f, self.layout
        if layout.k_scales == 1:
            return 0
        column = f.idiv(start, layout.bk)
        if layout.padded_k > layout.k_scales * layout.bk:  # columns of padding take the last
            column = f.imin(column, layout.k_scales - 1)
        return column

    def _place(self, strip: int) -> Index:
        """Rows of the group before a strip."""
        f = self.lanes.f
        return f.iadd(f.imod(self.column, GROUP), strip * STRIP)

    def _numbers(self, record: Index, strip: int, field: int, dtype: str) -> Value:
        """Sixteen numbers of a field that begins at byte `field` of a record, as f32 lanes."""
        f = self.lanes.f
        if dtype == "f8E8M0FNU":
            return power_of_two(f, self._bytes(record, strip, field))
        size = 4 if dtype == "f32" else 2
        at = f.address(record, field, (self._place(strip), size))
        raw = f.load(self.w, at, vector("i8", STRIP * size))
        if dtype == "f32":
            return f.bitcast(raw, F32)
        return self.lanes.extend(f.bitcast(raw, I16), dtype)

    def _bytes(self, record: Index, strip: int, field: int, signed: bool = False) -> Value:
        """Sixteen bytes of a field as i32 lanes."""
        f = self.lanes.f
        raw = f.load(self.w, f.address(record, field, self._place(strip)), I8)
        return f.cast("arith.extsi" if signed else "arith.extui", raw, I32)

    def _scaled(self, scale: Value) -> Value:
        if self.factor == 1.0:
            return scale
        f = self.lanes.f
        splat = f.splat(self.factor) if scale.type == F32 else f.scalar(self.factor)
        return f.mul(scale, splat)


def power_of_two(f: Function, exponents: Value) -> Value:
    """Bytes of e8m0, as i32 lanes, as f32: 0 is 2^-127, 255 is NaN."""
    bits = f.binary("shli", exponents, f.isplat(23))
    smallest = f.compare("eq", exponents, f.isplat(0))
    bits = f.select(smallest, f.isplat(_SMALLEST), bits)
    not_a_number = f.compare("eq", exponents, f.isplat(255))
    return f.bitcast(f.select(not_a_number, f.isplat(_QUIET_NAN), bits), F32)


def load_scale(lanes: Lanes, source: Value, at: Index, dtype: str) -> Value:
    """One scale of any type as f32."""
    f = lanes.f
    if dtype == "f32":
        return f.load(source, at, "f32")
    if dtype == "f8E8M0FNU":
        byte = f.broadcast(f.load(source, at, "i8"), I8)
        spread = power_of_two(f, f.cast("arith.extui", byte, I32))
    else:
        spread = lanes.splat(source, at, dtype)
    return lanes.first(spread)
