"""The interpreter of Triton kernels: everything it must stop at, with the message that it gives."""

import numpy as np
import pytest
from test_interpreter_writer import Writer, evaluate, pointer, tensor

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.interpreter import Buffer, TensorMap, Trap, run

F32 = np.float32


def launch(write, types, args, grid=1, **options):
    """Run a kernel whose body `write(writer, *arguments)` emits."""
    writer = Writer(types, aligned=options.pop("aligned", True))
    write(writer, *writer.arguments)
    return run(writer.text(), "kernel", args, grid, **options)


def copy(w: Writer, source: str, target: str, count: str) -> None:
    """Blocks of 16 elements, masked by the count; defined for any grid that covers it."""
    at = w.add(w.mul(w.program(), 16), w.range(16))
    mask = w.less(at, count)
    w.store(w.at(target, at), w.load(w.at(source, at), mask), mask)


TYPES = [pointer("f32"), pointer("f32"), "i32"]


def test_report_of_a_clean_launch():
    x, y = np.arange(40, dtype=F32), Buffer(40, "f32")
    report = launch(copy, TYPES, [x, y, 40], 3)
    np.testing.assert_array_equal(y.array, x)
    assert (report.programs, report.load_bytes, report.store_bytes) == (3, 160, 160)
    assert (report.unwritten, report.warnings, report.atomics) == ({1: 0}, (), 0)


def test_unwritten_elements_stay_poisoned_and_are_counted():
    y = Buffer(40, "f32")
    report = launch(copy, TYPES, [np.ones(40, F32), y, 37], 2)
    assert report.unwritten == {1: 8}
    assert np.isnan(y.array[32:]).all()
    assert not np.isnan(y.array[:32]).any()


def test_load_out_of_bounds():
    with pytest.raises(Trap, match="reads out of bounds: element 37 of argument 0, which holds 37"):
        launch(copy, TYPES, [np.ones(37, F32), Buffer(40, "f32"), 40], 3)


def test_store_out_of_bounds_names_operation_location_program_and_lane():
    with pytest.raises(Trap) as caught:
        launch(copy, TYPES, [np.ones(40, F32), Buffer(37, "f32"), 40], 3)
    trap = caught.value
    assert (trap.operation, trap.program, trap.index) == ("tt.store", (2,), (5,))
    assert trap.location.startswith('"-":')
    assert str(trap).startswith(f'"tt.store" at {trap.location}, program (2,), lane (5,): writes')


def test_a_pointer_never_reaches_a_neighbouring_argument():
    both = np.zeros(80, F32)

    def write(w, a, b):
        w.load(w.at(a, -1))

    with pytest.raises(Trap, match="element -1 of argument 0"):
        launch(write, TYPES[:2], [both[40:], both[:40]], aligned=False)


def test_null_pointer_and_misaligned_address():
    def write(w, a):
        w.store(a, w.constant(1.0, "f32"))

    with pytest.raises(Trap, match="writes out of bounds: element 0 of the null pointer"):
        launch(write, TYPES[:1], [None])

    def odd(w, a):
        bytes_ = w.op("tt.bitcast", [a], [pointer("i8")])
        w.load(w.op("tt.bitcast", [w.at(bytes_, 2)], [pointer("f32")]))

    raw = np.zeros(64, np.int8).view(F32)
    with pytest.raises(Trap, match="reads 4 bytes at a misaligned address, byte 2 of argument 0"):
        launch(odd, TYPES[:1], [raw])


def test_memory_that_was_never_initialised():
    x = Buffer(40, "f32")
    launch(copy, TYPES, [np.ones(40, F32), x, 32], 2)
    with pytest.raises(Trap, match=r"program \(2,\), lane \(0,\): reads memory that was never"):
        launch(copy, TYPES, [x, Buffer(40, "f32"), 40], 3)
    launch(copy, TYPES, [x, Buffer(40, "f32"), 32], 2)  # what the first launch wrote may be read


def same_place(w: Writer, target: str, value: str) -> None:
    w.store(w.at(target, w.range(16)), value)


@pytest.mark.parametrize("parallel", [1, 2, 8])
def test_two_programs_write_one_address(parallel):
    def write(w, target):
        same_place(w, target, w.unary("arith.sitofp", w.program(), "f32"))

    with pytest.raises(Trap, match=r"writes what program \(\d,\) also writes in the same launch"):
        launch(write, TYPES[:1], [Buffer(16, "f32")], 4, parallel=parallel)


@pytest.mark.parametrize("parallel", [1, 8])
def test_programs_may_write_the_same_value_if_asked(parallel):
    def equal(w, target):
        same_place(w, target, w.constant(3.0, "f32"))

    def different(w, target):
        same_place(w, target, w.unary("arith.sitofp", w.program(), "f32"))

    launch(equal, TYPES[:1], [Buffer(16, "f32")], 4, same_value=True, parallel=parallel)
    with pytest.raises(Trap, match="write"):
        launch(equal, TYPES[:1], [Buffer(16, "f32")], 4, parallel=parallel)
    with pytest.raises(Trap, match="write"):
        options = {"same_value": True, "parallel": parallel}
        launch(different, TYPES[:1], [Buffer(16, "f32")], 4, **options)


def test_lanes_of_one_store_disagree():
    def write(w, target):
        w.store(w.at(target, w.mul(w.range(16), 0)), w.unary("arith.sitofp", w.range(16), "f32"))

    with pytest.raises(Trap, match="two lanes of one store write different values there"):
        launch(write, TYPES[:1], [Buffer(16, "f32")])


@pytest.mark.parametrize("parallel", [1, 8])
def test_races_between_reads_and_writes(parallel):
    def shift(w, data):  # each program reads its right neighbour's block and writes its own
        at = w.add(w.mul(w.program(), 16), w.range(16))
        w.store(w.at(data, at), w.load(w.at(data, w.add(at, 16))))

    with pytest.raises(Trap, match="writes what another program reads in the same launch"):
        launch(shift, TYPES[:1], [np.zeros(80, F32)], 4, parallel=parallel)

    def follow(w, data):  # each program writes its own block and reads its left neighbour's
        at = w.add(w.mul(w.program(), 16), w.range(16))
        w.store(w.at(data, w.add(at, 16)), w.constant(1.0, tensor((16,), "f32")))
        w.load(w.at(data, at))

    with pytest.raises(Trap, match=r"reads what program \(\d,\) wrote in the same launch, with no"):
        launch(follow, TYPES[:1], [np.zeros(80, F32)], 4, parallel=parallel)


@pytest.mark.parametrize("parallel", [1, 8])
def test_races_of_addresses_that_all_programs_share(parallel):
    def read(w, data):
        first = w.compare(w.program(), 0, 0)
        w.when(first, lambda: w.store(data, w.constant(1.0, "f32")) or [])
        w.load(data)

    with pytest.raises(Trap, match=r"program \(1,\): reads what program \(0,\) wrote"):
        launch(read, TYPES[:1], [np.zeros(4, F32)], 3, parallel=parallel)

    def write(w, data):
        w.load(data)
        w.when(w.compare(w.program(), 2, 0), lambda: w.store(data, w.constant(1.0, "f32")) or [])

    with pytest.raises(Trap, match=r"program \(2,\): writes what another program reads"):
        launch(write, TYPES[:1], [np.zeros(4, F32)], 3, parallel=parallel)


def test_arguments_that_share_memory_are_one_memory():
    both = np.arange(64, dtype=F32)

    def write(w, source, target):
        at = w.add(w.mul(w.program(), 16), w.range(16))
        w.store(w.at(target, at), w.load(w.at(source, at)))

    launch(write, TYPES[:2], [both[:32], both[32:]], 2)
    np.testing.assert_array_equal(both[32:], np.arange(32))
    launch(write, TYPES[:2], [both[16:], both[16:]], 2)  # in place, each program its own
    with pytest.raises(Trap, match=r"program \(1,\).*: reads what program \(0,\) wrote"):
        launch(write, TYPES[:2], [both[:32], both[16:48]], 2, parallel=1)


def half(w: Writer, source: str) -> str:
    """Eight elements loaded, eight masked off without `other`."""
    return w.load(w.at(source, w.range(16)), w.less(w.range(16), 8), other=None)


def test_undefined_lanes_are_followed_to_their_use():
    def stored(w, source, target):
        x = w.binary("arith.addf", half(w, source), 1.0)
        w.store(w.at(target, w.range(16)), x)

    args = [np.ones(8, F32), Buffer(16, "f32")]
    with pytest.raises(Trap, match=r'"tt.store".*lane \(8,\): stores an undefined lane'):
        launch(stored, TYPES[:2], args)

    def reduced(w, source, target):
        w.store(target, w.reduce(half(w, source), 0, "arith.addf"))

    with pytest.raises(Trap, match="stores an undefined lane"):
        launch(reduced, TYPES[:2], args)

    def masked(w, source, target):  # fine: only defined lanes are used
        x = half(w, source)
        w.store(w.at(target, w.range(16)), x, w.less(w.range(16), 8))
        zero = w.constant(0.0, w.types[x])
        chosen = w.op("arith.select", [w.less(w.range(16), 8), x, zero], [w.types[x]])
        w.store(w.at(target, 8), w.reduce(chosen, 0, "arith.addf"))

    target = Buffer(16, "f32")
    launch(masked, TYPES[:2], [np.ones(8, F32), target])
    np.testing.assert_array_equal(target.array[:9], [1] * 8 + [8])


def test_undefined_masks_addresses_and_branches():
    def index(w, source):
        x = w.load(w.at(source, w.range(16)), w.less(w.range(16), 8), other=None)
        return x, w.compare(x, 0, 4)

    data = [np.ones(16, np.int32)]

    def as_mask(w, source):
        w.load(w.at(source, w.range(16)), index(w, source)[1])

    with pytest.raises(Trap, match="is masked by an undefined lane"):
        launch(as_mask, [pointer("i32")], data)

    def as_address(w, source):
        w.load(w.at(source, index(w, source)[0]))

    with pytest.raises(Trap, match="uses an address computed from an undefined lane"):
        launch(as_address, [pointer("i32")], data)

    def decided(w, source):  # false & undefined is false
        known = w.less(w.range(16), 8)
        w.load(w.at(source, w.range(16)), w.binary("arith.andi", index(w, source)[1], known))

    launch(decided, [pointer("i32")], data)

    def as_branch(w, source):
        x = w.load(source, w.op("arith.constant", (), ["i1"], "value = false"), other=None)
        w.when(w.compare(x, 0, 4), lambda: ())

    with pytest.raises(Trap, match=r'"scf.if".*the condition is an undefined lane'):
        launch(as_branch, [pointer("i32")], data)


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [("arith.divsi", 1, 0), ("arith.remui", 1, 0), ("arith.shli", 1, 32)],
)
def test_results_that_do_not_exist(name, left, right):
    a, b = np.array([left], np.int32), np.array([right], np.int32)
    with pytest.raises(Trap, match="stores an undefined lane"):
        evaluate(lambda w, x, y: w.binary(name, x, y), a, b)
    with pytest.raises(Trap, match="stores an undefined lane"):
        evaluate(lambda w, x: w.unary("arith.fptosi", x, "i8"), np.array([128.0], F32))


def descriptor_kernel(strides=(64, 1), block=(8, 64), rows="%arg1", offset=0):
    def write(w, base, count):
        base = w.at(base, offset) if offset else base
        d = w.descriptor(base, [rows, 64], strides, block)
        zero = w.constant(0, "i32")
        w.fetch(d, zero, zero)

    return write


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"offset": 4}, "the base, byte 8 of argument 0, is not 16-byte aligned"),
        ({"strides": (36, 1)}, "stride of dimension 0 is 36 elements = 72 bytes; TMA wants a"),
        ({"strides": (64, 2)}, "the last stride is 2; TMA wants 1"),
        ({"block": (8, 4)}, "the block's last dimension has 8 bytes; TMA wants 16"),
        ({"rows": 0}, "extent 0 of dimension 0 is not positive"),
        ({"rows": 9}, "reads out of bounds: element 512 of argument 0"),
    ],
)
def test_descriptors_that_tma_refuses(options, message):
    write = descriptor_kernel(**{"block": (16, 64), **options})
    with pytest.raises(Trap, match=message):
        launch(write, [pointer("bf16"), "i32"], [np.zeros((8, 64), np.uint16), 8])


def test_tensor_maps_are_checked():
    def write(w, table):
        w.mapped(w.at(table, 128), (8, 64), "bf16")

    x = np.zeros((8, 64), np.uint16)
    types = [pointer("i8")]
    launch(write, types, [[TensorMap(x), TensorMap(x, box=(4, 64))]])
    with pytest.raises(Trap, match=r"the encoded box \(3, 64\) does not divide the descriptor's"):
        launch(write, types, [[TensorMap(x), TensorMap(x, box=(3, 64))]])
    with pytest.raises(Trap, match="no tensor map lies at byte 128 of the tensor maps of argum"):
        launch(write, types, [TensorMap(x)])
    with pytest.raises(Trap, match="the tensor map is of float32"):
        launch(write, types, [[TensorMap(x), TensorMap(x.astype(F32))]])
    with pytest.raises(Trap, match="stride of dimension 0 is 65 elements"):
        launch(write, types, [[TensorMap(x), TensorMap(np.zeros((8, 65), np.uint16)[:, :64])]])


def test_warnings():
    def write(w, source):
        x = w.load(w.at(source, w.range(32)))
        x = w.op("tt.reshape", [x], [tensor((1, 32), "f8E4M3FN")])
        zero = w.constant(0.0, tensor((1, 1), "f32"))
        for allowed in (0, 16, 32):
            w.dot(x, w.transposed(x), zero, allowed)

    codes = np.zeros(32, np.uint8)
    report = launch(write, [pointer("f8E4M3FN")], [codes])
    assert len(report.warnings) == 2
    assert '"tt.dot" at "-":' in report.warnings[0]
    assert "sm_90 converts FP8 to f16 and uses HMMA" in report.warnings[0]
    assert "maxNumImpreciseAcc = 16 < K = 32" in report.warnings[1]
    assert launch(write, [pointer("f8E4M3FN")], [codes], target="cuda:sm_100").warnings == ()


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        ("tt.divisibility = dense<[16]>", [16, 17, 18, 48], [16, 17, 19, 48]),
        ("tt.contiguity = dense<[2]>", [3, 4, 9, 10], [3, 4, 10, 9]),
        ("tt.constancy = dense<[2]>", [3, 3, 9, 9], [3, 3, 9, 8]),
    ],
)
def test_promises_to_the_compiler(hint, good, bad):
    def body(w, x):
        zero = w.constant(0, w.types[x])
        return w.op("arith.addi", [x, zero], [w.types[x]], f"{hint} : tensor<1xi32>")

    evaluate(body, np.array(good, np.int32))
    with pytest.raises(Trap, match=r"is not what tt.* of axis 0 promises"):
        evaluate(body, np.array(bad, np.int32))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([1, 2], "takes 3 arguments, 2 were passed"),
        ([np.ones(4), Buffer(4, "f32"), 4], "argument 0 is an array of float64; the kernel wants"),
        ([np.ones(4, F32), Buffer(4, "f32"), 1 << 31], "2147483648 does not fit into i32"),
        ([np.ones(4, F32), Buffer(4, "f32"), 4.0], "wants a number of type i32"),
        ([np.ones(4, F32), 7, 4], "a pointer takes an array, Buffer, TensorMap"),
        ([np.ones(9, F32)[1:], Buffer(4, "f32"), 4], "not a multiple of tt.divisibility = 16"),
        ([np.ones(9, F32)[::-1], Buffer(4, "f32"), 4], "argument 0 has a negative stride"),
    ],
)
def test_arguments_are_checked(args, message):
    with pytest.raises(QfuseError, match=message):
        launch(copy, TYPES, args)


def test_modules_and_grids_are_checked():
    writer = Writer(TYPES)
    with pytest.raises(QfuseError, match=r"no tt.func 'other' in the module; it has kernel"):
        run(writer.text(), "other", [])
    with pytest.raises(QfuseError, match=r"the kernel's text does not parse: .*error:"):
        run("tt.func", "kernel", [])
    args = [np.ones(4, F32), Buffer(4, "f32"), 4]
    with pytest.raises(QfuseError, match="order must name each of the 2 programs once"):
        run(writer.text(), "kernel", args, 2, order=[0, 0])
    with pytest.raises(QfuseError, match="a grid has one to three sizes"):
        run(writer.text(), "kernel", args, (1, 1, 1, 1))
    assert run(writer.text(), "kernel", args, 0).programs == 0
