"""The interpreter of Triton kernels: programs that diverge, atomics and what they order."""

import numpy as np
import pytest
from test_interpreter_writer import Writer, pointer, tensor

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.interpreter import Buffer, TensorMap, Trap, run
from qfuse.lowering.triton.interpreter.ordering import LIMIT

F32, I32 = np.float32, np.int32


@pytest.fixture(params=[1, 3, None], ids=["alone", "threes", "together"])
def parallel(request):
    return request.param


def test_program_ids_of_three_axes(parallel):
    writer = Writer([pointer("i32")])
    x, y, z = (writer.program(axis) for axis in range(3))
    counts = [writer.op("tt.get_num_programs", (), ["i32"], f"axis = {a} : i32") for a in range(3)]
    place = writer.add(writer.mul(writer.add(writer.mul(z, counts[1]), y), counts[0]), x)
    code = writer.add(writer.add(writer.mul(x, 100), writer.mul(y, 10)), z)
    writer.store(writer.at("%arg0", place), code)
    out = Buffer(24, "i32")
    run(writer.text(), "kernel", [out], (3, 4, 2), parallel=parallel)
    expected = [100 * x + 10 * y + z for z in range(2) for y in range(4) for x in range(3)]
    np.testing.assert_array_equal(out.array, expected)


def test_loops_whose_bounds_depend_on_the_program(parallel):
    """Persistent: program p does tiles p, p + n, ...; the inner trip count depends on the tile."""
    writer = Writer([pointer("i32"), "i32"])

    def tile(t: str, _: list[str]) -> list[str]:
        def add(k: str, carried: list[str]) -> list[str]:
            return [writer.add(carried[0], k), writer.add(carried[1], 1)]

        zero = writer.constant(0, "i32")
        total, trips = writer.loop((0, t, 2), [zero, zero], add)
        writer.store(writer.at("%arg0", writer.mul(t, 2)), total)
        writer.store(writer.at("%arg0", writer.add(writer.mul(t, 2), 1)), trips)
        return []

    writer.loop((writer.program(), "%arg1", 4), [], tile, "tt.warp_specialize")
    out = Buffer((11, 2), "i32")
    report = run(writer.text(), "kernel", [out, 11], 4, parallel=parallel)
    assert report.unwritten == {0: 0}
    expected = [[sum(range(0, t, 2)), len(range(0, t, 2))] for t in range(11)]
    np.testing.assert_array_equal(out.array, expected)


def test_branches(parallel):
    writer = Writer([pointer("f32")])
    program = writer.program()
    odd = writer.compare(writer.binary("arith.remsi", program, 2), 1, 0)
    number = writer.unary("arith.sitofp", program, "f32")
    block = tensor((4,), "f32")
    a, b = writer.when(
        odd,
        lambda: [writer.spread(number, (4,)), writer.constant(1.0, block)],
        lambda: [writer.constant(-1.0, block), writer.spread(number, (4,))],
        [block, block],
    )
    at = writer.add(writer.mul(program, 4), writer.range(4))
    writer.store(writer.at("%arg0", at), writer.binary("arith.addf", a, b))
    more = writer.compare(program, 3, 4)  # more than three
    last = writer.at("%arg0", 20)
    writer.when(more, lambda: writer.store(last, writer.constant(9.0, "f32")) or [])
    out = Buffer(21, "f32")
    run(writer.text(), "kernel", [out], 5, parallel=parallel)
    expected = [p + 1 if p % 2 else p - 1 for p in range(5)]
    np.testing.assert_array_equal(out.array, [*np.repeat(expected, 4), 9])


def test_while_counts_down_from_the_program_number(parallel):
    writer = Writer([pointer("i32")])

    def before(n: str, steps: str) -> None:
        writer.op("scf.condition", [writer.compare(n, 0, 4), n, steps])

    def after(n: str, steps: str) -> None:
        writer.op("scf.yield", [writer.binary("arith.divsi", n, 2), writer.add(steps, 1)])

    types = ["i32", "i32"]
    start = [writer.program(), writer.constant(0, "i32")]
    _, steps = writer.op("scf.while", start, types, "", (types, before), (types, after))
    writer.store(writer.at("%arg0", writer.program()), steps)
    out = Buffer(9, "i32")
    run(writer.text(), "kernel", [out], 9, parallel=parallel)
    np.testing.assert_array_equal(out.array, [p.bit_length() for p in range(9)])


def test_endless_loops_and_bad_steps():
    writer = Writer([])

    def before() -> None:
        writer.op("scf.condition", [writer.op("arith.constant", (), ["i1"], "value = true")])

    writer.op("scf.while", (), (), "", ((), before), ((), lambda: writer.op("scf.yield")))
    with pytest.raises(Trap, match="still loops after 100000 iterations"):
        run(writer.text(), "kernel", [])
    writer = Writer(["i32"])
    writer.loop((0, 4, "%arg0"), [], lambda i, _: [])
    with pytest.raises(Trap, match="the loop's step is not positive"):
        run(writer.text(), "kernel", [0])


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        (1, "bitwise_and"),
        (2, "bitwise_or"),
        (3, "bitwise_xor"),
        (4, "add"),
        (6, "maximum"),
        (7, "minimum"),
    ],
)
def test_atomic_operations(kind, function, parallel):
    writer = Writer([pointer("i32"), pointer("i32")])
    lanes = writer.add(writer.range(8), writer.mul(writer.program(), 3))
    at = writer.at("%arg0", writer.binary("arith.remsi", lanes, 4))
    old = writer.op("tt.atomic_rmw", [at, lanes], [writer.types[lanes]], f"atomic_rmw_op = {kind}")
    into = writer.add(writer.range(8), writer.mul(writer.program(), 8))
    writer.store(writer.at("%arg1", into), old)
    memory, seen = np.array([5, 6, 7, 8], I32), Buffer((5, 8), "i32")
    expected, olds = memory.copy(), []
    for value in [i + 3 * p for p in range(5) for i in range(8)]:
        olds.append(expected[value % 4])
        expected[value % 4] = getattr(np, function)(expected[value % 4], value)
    report = run(writer.text(), "kernel", [memory, seen], 5, parallel=parallel)
    np.testing.assert_array_equal(memory, expected)
    np.testing.assert_array_equal(seen.array.reshape(-1), olds)
    assert report.atomics == 40


def test_atomics_are_masked_unsigned_and_exchanged():
    writer = Writer([pointer("i32")])
    one = writer.spread(writer.constant(-1, "i32"), (4,))
    at = writer.at("%arg0", writer.range(4))
    for kind, mask in ((8, writer.less(writer.range(4), 1)), (10, writer.less(writer.range(4), 2))):
        attributes = f"atomic_rmw_op = {kind} : i32, sem = 1 : i32, scope = 1 : i32"
        value = one if kind == 8 else writer.range(4)
        writer.op("tt.atomic_rmw", [at, value, mask], [writer.types[one]], attributes)
    memory = np.array([3, 4, 5, 6], I32)
    run(writer.text(), "kernel", [memory])
    np.testing.assert_array_equal(memory, [0, 1, 5, 6])


def test_compare_and_swap_and_float_sums(parallel):
    writer = Writer([pointer("i32"), pointer("f32")])
    program = writer.program()
    expected, new = writer.constant(0, "i32"), writer.add(program, 1)
    writer.op("tt.atomic_cas", ["%arg0", expected, new], ["i32"], "sem = 4 : i32, scope = 1 : i32")
    number = writer.unary("arith.sitofp", program, "f32")
    writer.op("tt.atomic_rmw", ["%arg1", number], ["f32"], "atomic_rmw_op = 5 : i32")
    flag, total = np.zeros(1, I32), np.zeros(1, F32)
    report = run(writer.text(), "kernel", [flag, total], 4, parallel=parallel, order=[2, 0, 3, 1])
    assert (flag[0], total[0]) == (3, 6)
    assert "depends on the order of the programs" in report.warnings[0]


def last_one_sums(semantics: int = 4, barrier: bool = True, scope: int = 1) -> str:
    """Split K: each program stores a partial sum, the last to arrive adds all of them."""
    writer = Writer([pointer("f32"), pointer("i32"), pointer("f32")])
    partial, semaphore, out = writer.arguments
    program = writer.program()
    mine = writer.at(partial, writer.add(writer.mul(program, 16), writer.range(16)))
    number = writer.unary("arith.sitofp", writer.add(program, 1), "f32")
    writer.store(mine, writer.spread(number, (16,)))
    if barrier:
        writer.op("gpu.barrier")
    attributes = f"atomic_rmw_op = 4 : i32, sem = {semantics} : i32, scope = {scope} : i32"
    one = writer.constant(1, "i32")
    before = writer.op("tt.atomic_rmw", [semaphore, one], ["i32"], attributes)

    def finish() -> list[str]:
        def add(k: str, carried: list[str]) -> list[str]:
            at = writer.at(partial, writer.add(writer.mul(k, 16), writer.range(16)))
            return [writer.binary("arith.addf", carried[0], writer.load(at))]

        zero = writer.constant(0.0, tensor((16,), "f32"))
        (total,) = writer.loop((0, 6, 1), [zero], add)
        writer.store(writer.at(out, writer.range(16)), total)
        writer.store(semaphore, writer.constant(0, "i32"))
        return []

    writer.when(writer.compare(before, 5, 0), finish)
    return writer.text()


@pytest.mark.parametrize("order", [range(6), (3, 1, 5, 0, 2, 4)])
def test_split_k_with_a_semaphore(parallel, order):
    partial, semaphore, out = Buffer((6, 16), "f32"), np.zeros(1, I32), Buffer(16, "f32")
    for _ in range(2):  # the semaphore is left as it was found
        args = [partial, semaphore, out]
        run(last_one_sums(), "kernel", args, 6, parallel=parallel, order=order)
        np.testing.assert_array_equal(out.array, np.full(16, 21))
        assert semaphore[0] == 0


@pytest.mark.parametrize(
    "fault",
    [{"semantics": 1}, {"semantics": 2}, {"semantics": 3}, {"barrier": False}, {"scope": 2}],
    ids=["relaxed", "acquire only", "release only", "no barrier", "this block only"],
)
def test_split_k_that_orders_nothing(fault, parallel):
    args = [Buffer((6, 16), "f32"), np.zeros(1, I32), Buffer(16, "f32")]
    with pytest.raises(Trap, match="wrote in the same launch, with no barrier and acquire/release"):
        run(last_one_sums(**fault), "kernel", args, 6, parallel=parallel)


def test_plain_writes_do_not_mix_with_atomics():
    writer = Writer([pointer("i32")])
    first = writer.compare(writer.program(), 0, 0)
    one = writer.constant(1, "i32")
    attributes = "atomic_rmw_op = 4 : i32, sem = 1 : i32, scope = 1 : i32"
    writer.when(
        first,
        lambda: writer.store("%arg0", one) or [],
        lambda: [writer.op("tt.atomic_rmw", ["%arg0", one], ["i32"], attributes)][:0],
    )
    with pytest.raises(Trap, match=r"writes what program \(0,\) also writes"):
        run(writer.text(), "kernel", [np.zeros(1, I32)], 2)
    large = [np.zeros(1, I32)]
    writer = Writer([pointer("i32")])
    attributes = attributes.replace("sem = 1", "sem = 4")
    writer.op("tt.atomic_rmw", ["%arg0", writer.constant(1, "i32")], ["i32"], attributes)
    with pytest.raises(QfuseError, match=f"at most {LIMIT}"):
        run(writer.text(), "kernel", large, LIMIT + 1)


@pytest.mark.parametrize("old", [True, False], ids=["3.6", "3.9"])
def test_descriptors_fill_with_zeros_and_clip(old, parallel):
    writer = Writer([pointer("f32"), "!d", pointer("i8"), "i32"], old)
    source, target, table, rows = writer.arguments
    writer.types[target] = writer.desc_type((4, 8), "f32")
    load = writer.descriptor(source, [rows, 10], [12, 1], (4, 8))
    back = writer.mapped(table, (4, 8), "f32")
    row = writer.binary("arith.subi", writer.mul(writer.program(0), 4), 4)
    column = writer.binary("arith.subi", writer.mul(writer.program(1), 8), 8)
    tile = writer.fetch(load, row, column)
    writer.put(target, tile, row, column)
    writer.put(back, writer.binary("arith.addf", tile, 1.0), row, column)
    x = np.arange(72, dtype=F32).reshape(6, 12)
    a, b = Buffer((7, 12), "f32"), Buffer((6, 16), "f32")
    args = [x, TensorMap(a), TensorMap(b, box=(2, 8)), 6]
    report = run(writer.text(), "kernel", args, (4, 4), parallel=parallel)
    inside = np.zeros((7, 16), F32)
    inside[:6, :10] = x[:, :10]
    np.testing.assert_array_equal(a.array, inside[:, :12])
    np.testing.assert_array_equal(b.array, inside[:6] + 1)
    assert report.load_bytes == 4 * 6 * 10  # only what lies in the tensor
    assert report.unwritten == {1: 0, 2: 0}


def test_descriptor_padding_with_nan_and_reduction():
    writer = Writer([pointer("f32"), pointer("f32")])
    source, target = writer.arguments
    size, step = writer.constant(4, "i32"), writer.constant(1, "i64")
    attributes = "operandSegmentSizes = array<i32: 1, 1, 1>, padding = 2 : i32"
    load = writer.op(
        "tt.make_tensor_descriptor",
        [source, size, step],
        [writer.desc_type((8,), "f32")],
        attributes,
    )
    zero = writer.constant(0, "i32")
    tile = writer.fetch(load, zero)
    writer.store(writer.at(target, writer.range(8)), tile)
    writer.op("tt.descriptor_reduce", [load, tile, zero], (), "kind = 1 : i32")
    x, out = np.arange(4, dtype=F32), Buffer(8, "f32")
    report = run(writer.text(), "kernel", [x, out])
    np.testing.assert_array_equal(out.array, [0, 1, 2, 3] + [np.nan] * 4)
    np.testing.assert_array_equal(x, [0, 2, 4, 6])
    assert report.atomics == 4
