"""The interpreter of Triton kernels: malformed kernels, odd memory, and programs that part ways."""

import numpy as np
import pytest
from test_interpreter_writer import Writer, evaluate, pointer, tensor

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.interpreter import Buffer, TensorMap, Trap, run

F32 = np.float32
BLOCK = tensor((8,), "f32")


def cast(element):
    return lambda w, v: w.op("tt.fp_to_fp", [v], [tensor((8, 8), element)], "rounding = 1 : i32")


def dot(left, right, total):
    def body(w, x):
        a, b = cast(left)(w, x), cast(right)(w, x)
        return w.dot(a, b, w.constant(0, tensor((8, 8), total)))

    return body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (dot("bf16", "f16", "f32"), "operands are bf16 and f16; Triton wants equal types"),
        (dot("bf16", "bf16", "i32"), "bf16 operands with an accumulator of i32"),
        (
            lambda w, x: w.op("tt.reshape", [x], [tensor((64,), "f32")], "allow_reorder = true"),
            "allow_reorder lets the compiler permute",
        ),
        (
            lambda w, x: w.op("tt.fp_to_fp", [x], [tensor((8, 8), "bf16")], "rounding = 2 : i32"),
            "rounding must be 0",
        ),
        (lambda w, x: w.op("tt.reshape", [x], [tensor((7, 8), "f32")]), "malformed: cannot resh"),
        (lambda w, x: w.op("tt.trans", [x], [w.types[x]]), "attribute 'order' is missing"),
        (
            lambda w, x: w.op("tt.mystery", [x], ["vector<4xf32>"]) and x,
            "type vector<4xf32> cannot",
        ),
        (lambda w, x: w.op("tt.clampf", [x], [w.types[x]]), "malformed: "),
    ],
)
def test_malformed_operations(body, message):
    with pytest.raises(QfuseError, match=message):
        evaluate(body, np.ones((8, 8), F32))


def launch(write, types, args, grid=1, **options):
    writer = Writer(types)
    write(writer, *writer.arguments)
    return run(writer.text(), "kernel", args, grid, **options)


def test_malformed_memory_operations():
    def through_wrong_type(w, p):
        w.store(p, w.constant(1, "i32"))

    def checked(w, p):
        attributes = "boundaryCheck = array<i32: 0>, operandSegmentSizes = array<i32: 1, 0, 0>"
        w.op("tt.load", [p], ["f32"], attributes)

    def unknown_atomic(w, p):
        w.op("tt.atomic_rmw", [p, w.constant(1.0, "f32")], ["f32"], "atomic_rmw_op = 11 : i32")

    for write, message in (
        (through_wrong_type, "stores int32 through a pointer to float32"),
        (checked, "block pointers are not interpreted"),
        (unknown_atomic, "atomic_rmw_op = 11 is not one of"),
    ):
        with pytest.raises(QfuseError, match=message):
            launch(write, [pointer("f32")], [np.zeros(4, F32)])
    with pytest.raises(QfuseError, match="memory is accessed by pointers to whole bytes"):
        launch(lambda w, p: w.load(p), [pointer("i1")], [np.zeros(4, bool)])
    with pytest.raises(QfuseError, match="a Buffer of 'f12'"):
        Buffer(4, "f12")


def test_parameters_of_unusual_types():
    w = Writer(["!tt.tensordesc<8xf32>"])
    with pytest.raises(QfuseError, match=r"a !tt.tensordesc parameter takes a TensorMap"):
        run(w.text(), "kernel", [np.zeros(8, F32)])
    with pytest.raises(QfuseError, match="the descriptor of f32 and rank 1"):
        run(w.text(), "kernel", [TensorMap(np.zeros((8, 8), F32))])
    with pytest.raises(QfuseError, match="parameters are pointers and scalars, not tensors"):
        run(Writer([BLOCK]).text(), "kernel", [np.zeros(8, F32)])


def test_arrays_that_overlap_without_being_views_of_one():
    raw = bytearray(96)
    one, two = np.frombuffer(raw, F32, 16, 0), np.frombuffer(raw, F32, 16, 32)
    with pytest.raises(QfuseError, match="overlap in memory but not as views of one array"):
        launch(lambda w, a, b: None, [pointer("f32")] * 2, [one, two])
    odd = np.asfortranarray(np.zeros((4, 4), F32))
    with pytest.raises(QfuseError, match="is not contiguous; copy it first"):
        launch(lambda w, a: None, [pointer("f32")], [odd])


def test_one_arena_of_bytes_for_several_types():
    arena = np.zeros(96, np.uint8)

    def write(w, numbers, halves):
        at = w.add(w.mul(w.program(), 8), w.range(8))
        x = w.load(w.at(numbers, at))
        w.store(w.at(halves, at), w.unary("arith.truncf", x, "bf16"))

    numbers = arena[:64].view(F32)
    numbers[:] = np.arange(16)
    types = [pointer("f32"), pointer("bf16")]
    report = launch(write, types, [numbers, arena[64:].view(np.uint16)], 2)
    assert (report.load_bytes, report.store_bytes) == (64, 32)
    np.testing.assert_array_equal(
        arena[64:].view(np.uint16), np.arange(16, dtype=F32).view(np.uint32) >> 16
    )
    with pytest.raises(Trap, match="writes what another program reads"):
        launch(write, types, [numbers, arena[32:64].view(np.uint16)], 2)
    with pytest.raises(QfuseError, match="accesses 2 bytes of an array of 4-byte elements"):
        launch(write, types, [numbers.copy(), np.zeros(16, F32).view(np.uint16)], 2)


def test_pointers_chosen_among_allocations():
    def write(w, a, b, out):
        odd = w.compare(w.binary("arith.remsi", w.range(8), 2), 1, 0)
        both = [w.spread(p, (8,)) for p in (a, b)]
        chosen = w.op("arith.select", [odd, *both], [w.types[both[0]]])
        w.store(w.at(out, w.range(8)), w.load(w.at(chosen, w.range(8))))

    a, b, out = np.arange(8, dtype=F32), -np.arange(8, dtype=F32), Buffer(8, "f32")
    launch(write, [pointer("f32")] * 3, [a, b, out])
    np.testing.assert_array_equal(out.array, np.where(np.arange(8) % 2, a, b))
    with pytest.raises(Trap, match=r"lane \(6,\): reads out of bounds: element 6 of argument 1"):
        launch(write, [pointer("f32")] * 3, [a, b[:6], out])


def test_gathers_and_assertions():
    x = np.arange(8, dtype=F32)

    def gather(w, v, i):
        return w.op("tt.gather", [v, i], [BLOCK], "axis = 0 : i32")

    with pytest.raises(Trap, match=r"lane \(3,\): gathers outside of the 8 elements"):
        evaluate(gather, x, np.array([0, 1, 2, 8, 0, 0, 0, 0], np.int32))

    def check(w, v):
        w.op("tt.assert", [w.less(w.range(8), 5)], (), 'message = "five is too much"')
        return v

    with pytest.raises(Trap, match=r"lane \(5,\): five is too much"):
        evaluate(check, x)


def some(w: Writer, source: str, count: int) -> str:
    return w.load(w.at(source, w.range(8)), w.less(w.range(8), count), other=None)


@pytest.mark.parametrize("parallel", [1, None])
@pytest.mark.parametrize("grid", [1, 3])
def test_undefined_lanes_survive_divergence(parallel, grid):
    """Program 0 has four undefined lanes after the branch and the loop, the others have none."""

    def write(w, source, out, stored):
        first = w.compare(w.program(), 0, 0)
        x = w.when(first, lambda: [some(w, source, 4)], lambda: [some(w, source, 8)], [BLOCK])

        def twice(i, carried):
            return [w.binary("arith.addf", carried[0], some(w, source, 8))]

        (x,) = w.loop((w.program(), 3, 1), [x], twice)
        at = w.add(w.mul(w.program(), 8), w.range(8))
        w.store(w.at(out, at), x, w.less(at, stored))

    types = [pointer("f32"), pointer("f32"), "i32"]
    args = [np.ones(8, F32), Buffer((grid, 8), "f32")]
    launch(write, types, [*args, 4], grid, parallel=parallel)
    np.testing.assert_array_equal(args[1].array.reshape(-1)[:4], [4] * 4)
    with pytest.raises(Trap, match=r"program \(0,\), lane \(4,\): stores an undefined lane"):
        launch(write, types, [*args, 5], grid, parallel=parallel)


@pytest.mark.parametrize("parallel", [1, None])
def test_descriptors_of_each_program_in_divergent_code(parallel):
    def write(w, source, out):
        program = w.program()
        d = w.descriptor(w.at(source, w.mul(program, 8)), [8], [1], (8,))
        e = w.descriptor(w.at(out, w.mul(program, 8)), [w.add(program, 1)], [1], (8,))

        def body():
            w.put(e, w.fetch(d, w.constant(0, "i32")), w.constant(0, "i32"))
            return []

        w.when(w.compare(program, 0, 1), body)

    x, out = np.arange(32, dtype=F32), Buffer((4, 8), "f32")
    launch(write, [pointer("f32")] * 2, [x, out], 4, parallel=parallel)
    written = (np.arange(8) < np.arange(1, 5)[:, None]) & (np.arange(4) > 0)[:, None]
    np.testing.assert_array_equal(out.array, np.where(written, x.reshape(4, 8), np.nan))


def test_undefined_lanes_of_products_and_joins():
    def product(w, x, y):
        bad = w.op("arith.divsi", [y, y], [w.types[y]])  # 0 / 0 in one lane
        a = w.unary("arith.trunci", bad, "i8")
        return w.dot(a, x, w.constant(0, tensor((8, 8), "i32")))

    zeros = np.ones((8, 8), np.int32)
    zeros[2, 3] = 0
    ones = np.ones((8, 8), np.int8)
    with pytest.raises(Trap, match=r"lane \(2, 0\): stores an undefined lane"):
        evaluate(product, ones, zeros)
    with pytest.raises(Trap, match=r"lane \(0, 3\): stores an undefined lane"):
        evaluate(
            lambda w, x, y: w.dot(
                x,
                w.unary("arith.trunci", w.binary("arith.divsi", y, y), "i8"),
                w.constant(0, tensor((8, 8), "i32")),
            ),
            ones,
            zeros,
        )
    with pytest.raises(Trap, match=r"lane \(2, 3, 1\): stores an undefined lane"):
        evaluate(
            lambda w, y: w.op(
                "tt.join", [y, w.binary("arith.divsi", y, y)], [tensor((8, 8, 2), "i32")]
            ),
            zeros,
        )
