"""Block-scaled FP8 GEMM kernels of reference/TRITON.md, at any size, for the interpreter's tests.

Activations a [M, K] with scales [ceil(K/S), M], weights b [N, K] with scales [ceil(N/S),
ceil(K/S)]: a block of S values of K has one scale.  Tiles are as wide as blocks.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from test_interpreter_writer import Writer, pointer, tensor

F8, BF16, F32, I32 = (pointer(e) for e in ("f8E4M3FN", "bf16", "f32", "i32"))


def up(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class Problem:
    """Random operands of one GEMM, and what it should give."""

    a: np.ndarray
    b: np.ndarray
    a_scale: np.ndarray
    b_scale: np.ndarray
    step: int

    @staticmethod
    def of(m: int, n: int, k: int, step: int, seed: int = 0) -> "Problem":
        rng = np.random.default_rng(seed)

        def codes(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(ml_dtypes.float8_e4m3fn)

        def scales(*shape: int) -> np.ndarray:
            return rng.uniform(0.5, 1.5, shape).astype(np.float32)

        blocks = up(k, step)
        return Problem(
            codes(m, k), codes(n, k), scales(blocks, m), scales(up(n, step), blocks), step
        )

    def dequantized(self) -> tuple[np.ndarray, np.ndarray]:
        """Both factors in f64."""
        (m, k), (n, _) = self.a.shape, self.b.shape
        a_scale = np.repeat(self.a_scale.T, self.step, 1)[:m, :k]
        b_scale = np.repeat(np.repeat(self.b_scale, self.step, 0), self.step, 1)[:n, :k]
        return self.a.astype(float) * a_scale, self.b.astype(float) * b_scale

    def reference(self) -> tuple[np.ndarray, np.ndarray]:
        """The product in f64, and a bound of what a kernel's f32 sums may differ from it.

        Each of K products is exact in f32 (8 bits of mantissa); adding them in any order, scaling
        and adding the blocks rounds each partial sum once: at most (K + blocks + 2) * 2^-24 of the
        sum of magnitudes.
        """
        a, b = self.dequantized()
        roundings = self.a.shape[1] + len(self.a_scale) + 2
        return a @ b.T, np.abs(a) @ np.abs(b).T * roundings * 2.0**-24


def scaled(w: Writer, product: str, a_scale: str, b_scale: str, total: str) -> str:
    """total + product * (a_scale * b_scale)."""
    b_scale = w.spread(b_scale, w.shape(a_scale))
    return w.fma(product, w.binary("arith.mulf", a_scale, b_scale), total)


def pointer_gemm(n: int, k: int, tile: int, step: int) -> str:
    """Silu in the epilogue; M, N and K masked. Arguments: a, b, c, scales of a, of b, M."""
    w = Writer([F8, F8, BF16, F32, F32, "i32"])
    a, b, c, a_scale, b_scale, m = w.arguments
    blocks, columns = up(k, step), up(n, tile)
    program = w.program()
    row = w.mul(w.binary("arith.divsi", program, columns), tile)
    column = w.mul(w.binary("arith.remsi", program, columns), tile)
    rows, columns_ = w.add(row, w.range(tile)), w.add(column, w.range(tile))
    row_ok, column_ok = w.less(rows, m), w.less(columns_, n)
    zero = w.constant(0.0, tensor((tile, tile), "f32"))

    def body(i: str, carried: list[str]) -> list[str]:
        depth = w.add(w.mul(i, step), w.range(step))
        depth_ok = w.less(depth, k)
        at = w.at(a, w.add(w.mul(w.column(rows), k), w.row(depth)))
        x = w.load(at, w.binary("arith.andi", w.column(row_ok), w.row(depth_ok)))
        at = w.at(b, w.add(w.mul(w.row(columns_), k), w.column(depth)))
        y = w.load(at, w.binary("arith.andi", w.row(column_ok), w.column(depth_ok)))
        s = w.load(w.at(a_scale, w.add(rows, w.mul(i, m))), row_ok)
        block = w.binary("arith.divsi", columns_, step)
        t = w.load(w.at(b_scale, w.add(w.mul(block, blocks), i)), column_ok)
        scale = w.binary("arith.mulf", w.column(s), w.row(t))
        return [w.fma(w.dot(x, y, zero), scale, carried[0])]

    (total,) = w.loop((0, blocks, 1), [zero], body, "tt.num_stages = 3 : i32")
    result = w.unary("arith.truncf", silu(w, total), "bf16")
    at = w.at(c, w.add(w.mul(w.column(rows), n), w.row(columns_)))
    w.store(at, result, w.binary("arith.andi", w.column(row_ok), w.row(column_ok)))
    return w.text()


def silu(w: Writer, x: str) -> str:
    power = w.unary("math.exp", w.binary("arith.subf", 0.0, x))
    return w.binary("arith.divf", x, w.binary("arith.addf", power, 1.0))


def persistent_gemm(
    n: int,
    k: int,
    tile: int,
    step: int,
    *,
    glu: bool = False,
    quantize: bool = False,
    maps: bool = False,
    old: bool = False,
) -> str:
    """Two products per tile, of neighbouring columns or of gate and up; scales one block ahead.

    Arguments: a, b, c, scales of c (quantize), scales of a, scales of b, M.  With `maps` the
    first three are tensor maps, else the kernel makes descriptors of pointers.
    """
    element = "f8E4M3FN" if quantize else "bf16"
    matrices = [pointer("i8")] * 3 if maps else [F8, F8, pointer(element)]
    w = Writer([*matrices, F32, F32, F32, "i32"], old)
    a, b, c, c_scale, a_scale, b_scale, m = w.arguments
    width = n // 2 if glu else n
    blocks, stride = up(k, step), step if glu else 2 * step
    if maps:
        da, db = w.mapped(a, (tile, step), "f8E4M3FN"), w.mapped(b, (step, step), "f8E4M3FN")
        dc = w.mapped(c, (tile, step), element)
    else:
        da = w.descriptor(a, [m, k], [k, 1], (tile, step))
        db = w.descriptor(b, [n, k], [k, 1], (step, step))
        dc = w.descriptor(c, [m, width], [width, 1], (tile, step))
    down = w.binary("arith.divsi", w.add(m, tile - 1), tile)
    zero = w.constant(0.0, tensor((tile, step), "f32"))

    def one_tile(t: str, _: list[str]) -> list[str]:
        row = w.mul(w.binary("arith.remsi", t, down), tile)
        across = w.binary("arith.divsi", t, down)
        left = w.mul(across, stride)
        right = w.add(left, width if glu else step)
        rows = w.add(row, w.range(tile))
        row_ok = w.less(rows, m)
        at_a = w.at(a_scale, rows)
        at_b = []
        for column in (left, right):
            block = w.binary("arith.divsi", column, step)
            block = w.binary("arith.minsi", block, up(n, step) - 1)
            at_b.append(w.at(b_scale, w.mul(block, blocks)))

        def body(i: str, carried: list[str]) -> list[str]:
            one, two, s, t_one, t_two = carried
            depth = w.mul(i, step)
            x = w.fetch(da, row, depth)
            y, z = w.fetch(db, left, depth), w.fetch(db, right, depth)
            ahead = w.binary("arith.minsi", w.add(i, 1), blocks - 1)
            s_next = w.column(w.load(w.at(at_a, w.mul(ahead, m)), row_ok))
            t_next = [w.load(w.at(at, ahead)) for at in at_b]
            one = scaled(w, w.dot(x, w.transposed(y), zero), s, t_one, one)
            two = scaled(w, w.dot(x, w.transposed(z), zero), s, t_two, two)
            return [one, two, s_next, *t_next]

        first = [w.column(w.load(at_a, row_ok)), *(w.load(at) for at in at_b)]
        one, two, *_ = w.loop((0, blocks, 1), [zero, zero, *first], body)
        if glu:
            one = w.binary("arith.mulf", silu(w, one), two)
        if quantize:
            most = w.reduce(w.unary("math.absf", one), 1, "arith.maxnumf")
            scale = w.binary("arith.mulf", w.binary("arith.maxnumf", most, 1e-10), 1 / 448)
            at = w.at(c_scale, w.add(rows, w.mul(across, m)))
            w.store(at, scale, row_ok)
            one = w.binary("tt.precise_divf", one, w.column(scale))
            w.put(dc, w.unary("tt.fp_to_fp", one, element, "rounding = 1 : i32"), row, left)
            return []
        w.put(dc, w.unary("arith.truncf", one, "bf16"), row, left)
        if not glu:
            w.put(dc, w.unary("arith.truncf", two, "bf16"), row, right)
        return []

    tiles = w.mul(down, up(width, stride))
    programs = w.op("tt.get_num_programs", (), ["i32"], "axis = 0 : i32")
    w.loop((w.program(), tiles, programs), [], one_tile, "tt.warp_specialize")
    return w.text()


def split_gemm(n: int, k: int, tile: int, step: int, splits: int) -> str:
    """Few rows: weights are the left factor; K is split, and the last program of a tile adds up.

    Grid (ceil(N/step), ceil(M/tile), splits).  Arguments: a, b, c, scales of a and b,
    partial sums f32 [splits, M, N], semaphores i32 [tiles] of zeros, M.
    """
    w = Writer([F8, F8, BF16, F32, F32, F32, I32, "i32"])
    a, b, c, a_scale, b_scale, partial, semaphores, m = w.arguments
    blocks = up(k, step)
    share = up(blocks, splits)
    da = w.descriptor(a, [m, k], [k, 1], (tile, step))
    db = w.descriptor(b, [n, k], [k, 1], (step, step))
    across, down, part = (w.program(axis) for axis in range(3))
    column, row = w.mul(across, step), w.mul(down, tile)
    rows, columns = w.add(row, w.range(tile)), w.add(column, w.range(step))
    row_ok = w.less(rows, m)
    ok = w.binary("arith.andi", w.column(row_ok), w.row(w.less(columns, n)))
    zero = w.constant(0.0, tensor((step, tile), "f32"))

    def body(i: str, carried: list[str]) -> list[str]:
        depth = w.mul(i, step)
        x, y = w.fetch(da, row, depth), w.fetch(db, column, depth)
        s = w.row(w.load(w.at(a_scale, w.add(rows, w.mul(i, m))), row_ok))
        t = w.load(w.at(b_scale, w.add(w.mul(across, blocks), i)))
        return [scaled(w, w.dot(y, w.transposed(x), zero), s, t, carried[0])]

    first = w.mul(part, share)
    last = w.binary("arith.minsi", w.add(first, share), blocks)
    (total,) = w.loop((first, last, 1), [zero], body)
    inside = w.add(w.mul(w.column(rows), n), w.row(columns))
    whole = w.mul(m, n)
    w.store(w.at(partial, w.add(inside, w.mul(part, whole))), w.transposed(total), ok)
    w.op("gpu.barrier")
    wide = w.op("tt.get_num_programs", (), ["i32"], "axis = 0 : i32")
    semaphore = w.at(semaphores, w.add(w.mul(down, wide), across))
    attributes = "atomic_rmw_op = 4 : i32, sem = 4 : i32, scope = 1 : i32"
    before = w.op("tt.atomic_rmw", [semaphore, w.constant(1, "i32")], ["i32"], attributes)

    def finish() -> list[str]:
        def add(i: str, carried: list[str]) -> list[str]:
            at = w.at(partial, w.add(inside, w.mul(i, whole)))
            return [w.binary("arith.addf", carried[0], w.load(at, ok))]

        start = w.constant(0.0, tensor((tile, step), "f32"))
        (sum_,) = w.loop((0, splits, 1), [start], add)
        w.store(w.at(c, inside), w.unary("arith.truncf", sum_, "bf16"), ok)
        w.store(semaphore, w.constant(0, "i32"))
        return []

    w.when(w.compare(before, splits - 1, 0), finish)
    return w.text()


def expert_gemm(experts: int, n: int, k: int, tile: int, step: int) -> str:
    """Rows sorted by expert, tiles from a map. Arguments: a, b [E*N, K], c, scales of a, of b,
    expert, first row and end row of each tile, number of tiles [1], rows."""
    w = Writer([F8, F8, BF16, F32, F32, I32, I32, I32, I32, "i32"])
    a, b, c, a_scale, b_scale, of_tile, first_row, end_row, count, m = w.arguments
    blocks, across = up(k, step), n // step
    da = w.descriptor(a, [m, k], [k, 1], (tile, step))
    db = w.descriptor(b, [experts * n, k], [k, 1], (step, step))
    zero = w.constant(0.0, tensor((tile, step), "f32"))

    def one_tile(t: str, _: list[str]) -> list[str]:
        number, part = (w.binary(op, t, across) for op in ("arith.divsi", "arith.remsi"))
        expert, row, end = (w.load(w.at(p, number)) for p in (of_tile, first_row, end_row))
        rows = w.add(row, w.range(tile))
        ok = w.less(rows, end)
        weight = w.add(w.mul(expert, n), w.mul(part, step))
        at_b = w.at(b_scale, w.mul(w.add(w.mul(expert, across), part), blocks))

        def body(i: str, carried: list[str]) -> list[str]:
            depth = w.mul(i, step)
            x, y = w.fetch(da, row, depth), w.fetch(db, weight, depth)
            s = w.column(w.load(w.at(a_scale, w.add(rows, w.mul(i, m))), ok))
            product = w.dot(x, w.transposed(y), zero)
            return [scaled(w, product, s, w.load(w.at(at_b, i)), carried[0])]

        (total,) = w.loop((0, blocks, 1), [zero], body)
        columns = w.add(w.mul(part, step), w.range(step))
        at = w.at(c, w.add(w.mul(w.column(rows), n), w.row(columns)))
        w.store(at, w.unary("arith.truncf", total, "bf16"), w.column(ok))
        return []

    tiles = w.mul(w.load(count), across)
    programs = w.op("tt.get_num_programs", (), ["i32"], "axis = 0 : i32")
    w.loop((w.program(), tiles, programs), [], one_tile, "tt.warp_specialize")
    return w.text()
