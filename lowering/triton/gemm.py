"""Products: dense GEMM with block scales, its epilogue, split K, and warp specialization.

One program makes a tile, for each part of the weight that the results need:

    for k in steps of K:                               # operands.py reads x, w and their scales
        total[p] = fma(dot(x_k, w_k[p]), scale_x * scale_w, total[p])
    results = epilogue(total..., extra operands...)    # tile.py reads and stores

What w stores, and in how many runs with scales of their own a step is multiplied, weight_rows.py
knows.  Scales that are one for all of K wait for the whole sum, which is exact then for i8.

Where K is split, a program sums a slice of it; the last one of a tile to finish adds the slices, in
their order, and goes on with the epilogue (stream-K's fix-up without its data-dependent sums).

The product of one step starts from zero and is added in f32, because the FP8 tensor cores of sm_90
keep 14 bits of a running sum (DeepSeek-V3, section 3.3.2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from qfuse.dialects.bindings import ir
from qfuse.dialects.types import shaped
from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton import product as product_module
from qfuse.lowering.triton.builder import Builder
from qfuse.lowering.triton.epilogue import emit_region
from qfuse.lowering.triton.gemv import Gemv
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.kernel import Grid, Launch, Variant
from qfuse.lowering.triton.operands import Operands, Rows
from qfuse.lowering.triton.packed_gemv import gemv_of
from qfuse.lowering.triton.product import Group, Product, read_product
from qfuse.lowering.triton.signature import Pointers, Signature, Tensor, open_launch
from qfuse.lowering.triton.tile import Tile
from qfuse.lowering.triton.tile_choice import choose_configs
from qfuse.lowering.triton.tiles import Config, tma_stores

OPS = ("qfuse.matmul",)

_IN_FLIGHT = 64
"""Registers of a thread that wait for sums of slices."""


def refuse(op: ir.Operation, gpu: Gpu) -> str | None:
    """Why `op` cannot become a GPU kernel, or None."""
    x, w, *_ = (shaped(v.type) for v in op.operands)
    return product_module.refuse(op, x, w, [shaped(r.type) for r in op.results], gpu)


def build(signature: Signature, gpu: Gpu) -> list[Variant]:
    """The launches of a product for every range of M."""
    product = read_product(signature)
    per_group = [choose_configs(product, group, gpu) for group in product.groups]
    variants = []
    for choices in zip(*per_group, strict=True):
        first, last, _ = choices[0]
        kernels = []
        for number, (group, (_, _, config)) in enumerate(zip(product.groups, choices, strict=True)):
            place = f"_{number}" if len(product.groups) > 1 else ""
            name = f"{signature.name}_{config.name}{place}"
            kernels.append(ProductKernel(product, group, gpu, config, name))
        variants.append(variant_of(first, last, kernels))
    return variants


def variant_of(first: int, last: int | None, kernels: "Sequence[ProductKernel]") -> Variant:
    """The launches of `kernels`, one after the other, for M from `first` to `last`."""
    return Variant(
        first,
        last,
        tuple(kernel.launch() for kernel in kernels),
        max(kernel.scratch_per_row for kernel in kernels),
        max(kernel.counter_bytes(last) for kernel in kernels),
    )


@dataclass(frozen=True)
class ProductKernel:
    """The launch of one group of a product, cut as `config` says."""

    product: Product
    group: Group
    gpu: Gpu
    config: Config
    name: str

    @property
    def column_tiles(self) -> int:
        return ceil_div(self.group.width, self.config.columns * self.config.adjacent)

    @property
    def extras(self) -> list[Tensor]:
        """The extra operands that this group's epilogue may read."""
        return [e for e, kind in zip(self.product.extras, self.product.maps, strict=True)
                if self._serves(e, kind)]  # fmt: skip

    @property
    def results(self) -> list[Tensor]:
        return [self.product.signature.results[i] for i in self.group.results]

    @property
    def _sliced(self) -> tuple[int, int]:
        """How many slices K is split into, none of them empty, and the steps of all but the last.

        There are `config.slices` at most.
        """
        steps = ceil_div(self.product.k, self.config.depth)
        each = ceil_div(steps, self.config.slices)
        return ceil_div(steps, each), each

    @property
    def slices(self) -> int:
        return self._sliced[0]

    @property
    def scratch_type(self) -> str | None:
        """What its scratch holds, if it has any."""
        return "f32" if self.slices > 1 else None

    @property
    def counts(self) -> bool:
        """Whether programs count those that are done."""
        return self.slices > 1

    @property
    def scratch_per_row(self) -> int:
        if self.slices == 1:
            return 0
        return self.slices * len(self.group.parts) * self.group.width * 4

    def counter_bytes(self, last_m: int | None) -> int:
        """One counter of finished slices for each tile of up to `last_m` rows."""
        if self.slices == 1:
            return 0
        assert last_m is not None, f"{self.name} splits K for any number of rows"
        return 4 * self.grid.blocks(last_m) * self.column_tiles

    @property
    def grid(self) -> Grid:
        persistent = self.gpu.processors if self.config.persistent else None
        return Grid(self.config.rows, self.column_tiles, persistent, self.slices)

    @property
    def inputs(self) -> list[Tensor]:
        """What the launch reads that its epilogue does not."""
        return [self.product.x, self.product.w]

    def launch(self) -> Launch:
        config = self.config
        with open_launch(
            self.gpu,
            self.name,
            _once([*self.inputs, *self.extras, *self.results]),
            self.grid,
            scratch=self.scratch_type,
            counters=self.counts,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        ) as launch:
            self._emit(launch.b, launch.pointers)
        return launch.made

    def _serves(self, extra: Tensor, kind: str) -> bool:
        return kind in ("[]", "[M,1]") or extra.width == self.group.width

    def _emit(self, b: Builder, pointers: Pointers) -> None:
        config = self.config
        operands = (
            gemv_of(b, pointers, self.product, self.group, config)
            if config.gemv
            else Operands(b, pointers, self.product, self.group, config, self.gpu)
        )
        stores = self._descriptors(b, pointers)
        if not config.persistent:
            rows, column = self._place(b, pointers, b.program_id(0))
            self._tile(b, pointers, operands, stores, rows, column)
            return
        row_tiles = b.ceil_div(pointers.m, config.rows)
        bounds = (b.program_id(0), b.mul(row_tiles, self.column_tiles), b.num_programs(0))

        def body(number: ir.Value, _: list[ir.Value]) -> Sequence[ir.Value]:
            rows, column = self._place(b, pointers, number)
            self._tile(b, pointers, operands, stores, rows, column)
            return []

        # On the loop over tiles, so that the producer fetches the next one during the epilogue.
        b.loop(bounds, [], body, **{"tt.warp_specialize": ir.UnitAttr.get()})

    def _place(self, b: Builder, pointers: Pointers, number: ir.Value) -> tuple[Rows, ir.Value]:
        """Rows and first column of tile `number`: bands of rows, column by column within one."""
        config, columns = self.config, self.column_tiles
        if config.gemv or (config.swap and not self.product.packed):  # one tile holds all rows
            return Rows(b.full(0), pointers.m), b.mul(number, config.columns)
        per_band = config.band * columns
        first = b.mul(b.div(number, per_band), config.band)
        in_band = b.minimum(b.sub(b.ceil_div(pointers.m, config.rows), first), config.band)
        within = b.rem(number, per_band)
        row_tile = b.add(first, b.rem(within, in_band))
        column_tile = b.div(within, in_band)
        return (
            Rows(b.mul(row_tile, config.rows), pointers.m),
            b.mul(column_tile, config.columns * config.adjacent),
        )

    def _tile(
        self,
        b: Builder,
        pointers: Pointers,
        operands: Operands | Gemv,
        stores: dict[int, ir.Value],
        rows: Rows,
        column: ir.Value,
    ) -> None:
        config, group = self.config, self.group
        starts = [b.add(column, j * config.columns) if j else column
                  for j in range(config.adjacent)]  # fmt: skip
        totals = operands.accumulate(rows, starts, self._steps(b))
        tiles = []
        for j, start in enumerate(starts):
            tile = Tile(
                b,
                pointers,
                rows.first,
                config.rows,
                start,
                config.columns,
                group.width,
                config.swap,
                config.adjacent,
                rows.end,
                rows.expert,
            )
            sums = {p: totals[j * len(group.parts) + i] for i, p in enumerate(group.parts)}
            tiles.append((tile, sums))
        if self.slices > 1:
            self._share(b, tiles)
            return
        for tile, sums in tiles:
            self._finish(b, tile, sums, stores)

    def _steps(self, b: Builder) -> tuple[ir.Value, ir.Value]:
        """First step of K of this program, and the one after its last."""
        slices, each = self._sliced
        if slices == 1:
            return b.full(0), b.full(each)
        start = b.mul(b.program_id(1), each)
        steps = ceil_div(self.product.k, self.config.depth)
        return start, b.minimum(b.add(start, each), steps)

    def _share(self, b: Builder, tiles: Sequence[tuple[Tile, dict[int, ir.Value]]]) -> None:
        """Store the sums of this slice; the last program of a tile adds all and finishes it."""
        pointers = tiles[0][0].pointers
        number = b.program_id(1)
        for tile, sums in tiles:
            for part, value in sums.items():
                b.store(tile.at(self._partial(b, pointers, part, number)), value, tile.mask())
        b.barrier()
        counter = b.offset(pointers.counters, b.program_id(0))
        before = b.atomic("add", counter, 1, "acquire_release")

        def finish() -> None:
            b.atomic("exchange", counter, 0, "relaxed")  # for the next launch
            for tile, sums in tiles:
                self._finish(b, tile, {part: self._added(b, tile, part) for part in sums}, {})

        b.when(b.equal(before, self.slices - 1), finish)

    def _added(self, b: Builder, tile: Tile, part: int) -> ir.Value:
        """The sum of all slices, of which as many are on their way as there are registers for."""
        mask = tile.mask()

        def load(number: ir.Value) -> ir.Value:
            return b.load(tile.at(self._partial(b, tile.pointers, part, number)), mask)

        elements = self.config.rows * self.config.columns * len(self.group.parts)
        batch = max(1, _IN_FLIGHT * 32 * self.config.num_warps // elements)
        first = self.slices % batch or batch
        total = reduce(b.add, [load(b.full(i)) for i in range(first)])

        def body(start: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            slices = [load(b.add(start, i) if i else start) for i in range(batch)]
            return [reduce(b.add, slices, carried[0])]

        (total,) = b.loop((first, self.slices, batch), [total], body)
        return total

    def _finish(
        self, b: Builder, tile: Tile, sums: dict[int, ir.Value], stores: dict[int, ir.Value]
    ) -> None:
        """The epilogue region and the stores of a tile."""
        product = self.product
        nothing = b.full(0.0, "f32")
        arguments = [sums.get(p, nothing) for p in range(len(product.widths))]
        for extra, kind in zip(product.extras, product.maps, strict=True):
            # One that serves results of another width yields nothing that is stored here.
            arguments.append(tile.load(extra, kind) if self._serves(extra, kind) else nothing)
        yielded = emit_region(b, product.region, arguments)
        for index in self.group.results:
            result, value = product.signature.results[index], yielded[index]
            given = product.given[index]
            scale = None if given is None else arguments[len(product.widths) + given]
            if index not in stores:
                self._store(b, tile, value, result, scale)
            elif result.shaped.quantized:
                codes = tile.quantize_rows(value, result, scale)
                b.store_block(stores[index], codes, tile.row, tile.column)
            else:
                rounded = b.convert(b.broadcast(value, tile.shape), result.dtype)
                b.store_block(stores[index], rounded, tile.row, tile.column)

    def _store(
        self, b: Builder, tile: Tile, value: ir.Value, result: Tensor, scale: ir.Value | None
    ) -> None:
        """Write a tile of what the region yields."""
        tile.store(value, result, scale)

    def _descriptors(self, b: Builder, pointers: Pointers) -> dict[int, ir.Value]:
        """Descriptors of those results that TMA can store."""
        if not self.config.persistent:
            return {}
        found = {}
        for index in self.group.results:
            result = self.product.signature.results[index]
            if tma_stores(result):
                found[index] = b.descriptor(
                    pointers.data(result),
                    (pointers.m, result.width),
                    result.width,
                    (self.config.rows, self.config.columns),
                )
        return found

    def _partial(self, b: Builder, pointers: Pointers, part: int, number: ir.Value) -> ir.Value:
        """Where the sums of slice `number` begin: scratch is [slices][parts][M][width]."""
        matrix = b.mul(b.i64(pointers.m), self.group.width)
        place = b.add(b.mul(number, len(self.group.parts)), self.group.parts.index(part))
        return b.offset(pointers.scratch, b.mul(b.i64(place), matrix))


def _once(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Without repetitions: an operand may be given twice."""
    return list({(t.source, t.index): t for t in tensors}.values())
