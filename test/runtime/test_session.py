"""Calls: shapes, lifetimes, aliases, caches, and who owns what comes back."""

import pytest
import torch
from fakes import FakeLoaded, from_builtin, main, program_of, to_builtin

from qfuse.compiler.runtime import session as session_module
from qfuse.compiler.runtime.arena import ALIGNMENT, Interval, assign
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.errors import QfuseError

X = "!torch.vtensor<[?,8],f32>"
ONE = "%one = torch.constant.int 1\n"


def double(result: str, operand: str) -> str:
    return f"%{result} = func.call @double(%{operand}) : (tensor<?x8xf32>) -> tensor<?x8xf32>\n"


def add(result: str, a: str, b: str) -> str:
    types = "(tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>"
    return f"%{result} = func.call @add(%{a}, %{b}) : {types}\n"


def torch_add(result: str, a: str, b: str) -> str:
    return f"%{result} = torch.aten.add.Tensor %{a}, %{b}, %one : {X}, {X}, !torch.int -> {X}\n"


CHAIN = main(
    "x: ?x8xf32 input",
    "y: ?x8xf32 output",
    to_builtin("x")
    + "\n"
    + double("a", "x_b")
    + double("b", "a")
    + double("c", "b")
    + add("d", "c", "a")
    + double("y_b", "d")
    + from_builtin("y"),
)


def chain(x: torch.Tensor) -> torch.Tensor:
    return (x * 8 + x * 2) * 2


@pytest.mark.parametrize("poison", [False, True])
def test_each_shape_has_its_own_specialization(poison: bool) -> None:
    session = Session(program_of(CHAIN), poison=poison)
    for rows in (5, 1, 5, 0, 1, 7, 5):
        x = torch.randn(rows, 8)
        (y,) = session(x)
        assert y.equal(chain(x))


def test_intermediate_results_share_the_arena() -> None:
    session = Session(program_of(CHAIN), poison=True)
    x = torch.randn(16, 8)
    session(x)
    # a lives until d is made, b and c take turns, d takes the place of b; y leaves the program
    assert session.profile(x).arena_bytes == 3 * x.nbytes
    (y,) = session(x)
    assert y.equal(chain(x))


def test_least_recently_used_shape_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "MAX_SPECIALIZATIONS", 2)
    session = Session(program_of(CHAIN))
    for rows in (1, 2, 1, 3):
        session(torch.randn(rows, 8))
    assert session.source(torch.empty(1, 8))
    with pytest.raises(QfuseError, match="no call with these shapes"):
        session.source(torch.empty(2, 8))


def test_outputs_are_not_overwritten_by_the_next_call() -> None:
    text = main(
        "x: ?x8xf32 input\nw: ?x8xf32 input",
        "y: ?x8xf32 output\nx: ?x8xf32 output\nt: 8x?xf32 output\nz: ?x8xf32 output",
        ONE
        + "%zero = torch.constant.int 0\n"
        + to_builtin("x")
        + double("y_b", "x_b")
        + from_builtin("y")
        + f"""
      %t = torch.aten.transpose.int %y, %zero, %one : {X}, !torch.int, !torch.int
        -> !torch.vtensor<[8,?],f32>\n"""
        + torch_add("z", "y", "w"),
    )
    session = Session(program_of(text), poison=True)
    kept = []
    for _ in range(4):
        x, w = torch.randn(3, 8), torch.randn(3, 8)
        kept.append((session(x, w), (x * 2, x.clone(), (x * 2).T, x * 2 + w)))
        x.zero_()
    for found, expected in kept:
        for a, b in zip(found, expected, strict=True):
            assert a.equal(b)


def test_view_of_a_kernel_result_outlives_later_kernels() -> None:
    text = main(
        "x: ?x8xf32 input",
        "y: ?x4xf32 output",
        to_builtin("x")
        + double("a_b", "x_b")
        + from_builtin("a")
        + f"""
      %zero = torch.constant.int 0
      {ONE}
      %four = torch.constant.int 4
      %eight = torch.constant.int 8
      %left = torch.aten.slice.Tensor %a, %one, %zero, %four, %one
        : {X}, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[?,4],f32>
      """
        + double("b", "a_b")
        + double("c", "b")
        + double("d_b", "c")
        + from_builtin("d")
        + f"""
      %right = torch.aten.slice.Tensor %d, %one, %four, %eight, %one
        : {X}, !torch.int, !torch.int, !torch.int, !torch.int -> !torch.vtensor<[?,4],f32>
      %y = torch.aten.add.Tensor %left, %right, %one
        : !torch.vtensor<[?,4],f32>, !torch.vtensor<[?,4],f32>, !torch.int
        -> !torch.vtensor<[?,4],f32>""",
    )
    session = Session(program_of(text), poison=True)
    for _ in range(3):
        x = torch.randn(6, 8)
        (y,) = session(x)
        assert y.equal(x[:, :4] * 2 + x[:, 4:] * 16)
    assert session.profile(x).by_kind == {"kernel": (4, 4 * 2 * x.nbytes), "torch": (1, 3 * 96)}


def test_kernels_read_results_of_torch_and_views_of_them() -> None:
    text = main(
        "x: ?x8xf32 input",
        "y: ?x8xf32 output",
        ONE
        + torch_add("a", "x", "x")
        + f"""
      %zero = torch.constant.int 0
      %two = torch.constant.int 2
      %big = torch.constant.int 9223372036854775807
      %tail = torch.aten.slice.Tensor %a, %zero, %two, %big, %one
        : {X}, !torch.int, !torch.int, !torch.int, !torch.int -> {X}\n"""
        + to_builtin("tail")
        + double("b_b", "tail_b")
        + from_builtin("b")
        + torch_add("c", "b", "tail")
        + to_builtin("c")
        + double("y_b", "c_b")
        + from_builtin("y"),
    )
    session = Session(program_of(text), poison=True)
    for _ in range(4):
        x = torch.randn(6, 8)
        (y,) = session(x)
        assert y.equal((x[2:] * 4 + x[2:] * 2) * 2)
    assert session.profile(x).launches == 4  # the slice costs nothing


@pytest.mark.parametrize("source", ["kernel", "torch", "input", "large input"])
def test_operands_that_are_not_contiguous_are_copied(source: str) -> None:
    made = {"kernel": double("s_b", "x_b") + from_builtin("s"), "torch": torch_add("s", "x", "x")}
    body = made.get(source, torch_add("unused", "x", "x"))
    operand = "s" if source in made else "x"
    text = main(
        "x: ?x8xf32 input",
        "y: ?x8xf32 output",
        ONE
        + to_builtin("x")
        + body
        + f"""
      %zero = torch.constant.int 0
      %two = torch.constant.int 2
      %big = torch.constant.int 9223372036854775807
      %odd = torch.aten.slice.Tensor %{operand}, %zero, %one, %big, %two
        : {X}, !torch.int, !torch.int, !torch.int, !torch.int -> {X}\n"""
        + to_builtin("odd")
        + double("a", "odd_b")
        + add("y_b", "a", "odd_b")
        + from_builtin("y"),
    )
    session = Session(program_of(text), poison=True)
    factor = 1 if "input" in source else 2
    rows = session_module.STAGED_BYTES if source == "large input" else 6
    for _ in range(3):
        x = torch.randn(rows, 8)
        (y,) = session(x)
        assert y.equal(x[1::2] * 3 * factor)
    # both kernels read one copy
    assert session.profile(x).by_kind["copy"][0] == 1


def test_large_and_strided_inputs_are_used_in_place() -> None:
    session = Session(program_of(CHAIN), poison=True)
    rows = session_module.STAGED_BYTES
    for _ in range(2):
        x = torch.randn(8, rows)
        (y,) = session(x.T)
        assert y.equal(chain(x.T))
        x = torch.randn(rows, 8)
        (y,) = session(x)
        assert y.equal(chain(x))


def test_lists_of_views() -> None:
    half = "!torch.vtensor<[?,4],f32>"
    text = main(
        "x: ?x8xf32 input",
        "y: ?x8xf32 output\nz: ?x4xf32 output",
        ONE
        + to_builtin("x")
        + double("a_b", "x_b")
        + from_builtin("a")
        + torch_add("f", "x", "x")
        + f"""
      %four = torch.constant.int 4
      %parts = torch.aten.split.Tensor %a, %four, %one
        : {X}, !torch.int, !torch.int -> !torch.list<vtensor>
      %l, %r = torch.prim.ListUnpack %parts : !torch.list<vtensor> -> {half}, {half}
      %swapped = torch.prim.ListConstruct %r, %l : ({half}, {half}) -> !torch.list<vtensor>
      %y = torch.aten.cat %swapped, %one : !torch.list<vtensor>, !torch.int -> {X}
      %others = torch.aten.split.Tensor %f, %four, %one
        : {X}, !torch.int, !torch.int -> !torch.list<vtensor>
      %index = torch.constant.int 1
      %z = torch.aten.__getitem__.t %others, %index
        : !torch.list<vtensor>, !torch.int -> {half}""",
    )
    session = Session(program_of(text), poison=True)
    for _ in range(3):
        x = torch.randn(3, 8)
        y, z = session(x)
        assert y.equal(torch.cat([x[:, 4:], x[:, :4]], 1) * 2)
        assert z.equal(x[:, 4:] * 2)


def test_constants_are_computed_once() -> None:
    text = main(
        "x: ?x8xf32 input\nw: 8xf32 parameter",
        "y: ?x8xf32 output\nn: !torch.int output",
        f"""
      {ONE}
      %zero = torch.constant.int 0
      %v = torch.aten.cos %w : !torch.vtensor<[8],f32> -> !torch.vtensor<[8],f32>
      %n = torch.aten.size.int %x, %zero : {X}, !torch.int -> !torch.int
      %m = torch.aten.mul.int %n, %n : !torch.int, !torch.int -> !torch.int
      %s = torch.aten.mul.Scalar %v, %m
        : !torch.vtensor<[8],f32>, !torch.int -> !torch.vtensor<[8],f32>
      %y = torch.aten.add.Tensor %x, %s, %one
        : {X}, !torch.vtensor<[8],f32>, !torch.int -> {X}""",
    )
    w = torch.randn(8)
    session = Session(program_of(text, {"w": w}))
    for rows in (3, 2, 3, 2):
        x = torch.randn(rows, 8)
        y, n = session(x)
        assert y.equal(x + w.cos() * rows**2)
        assert n == rows
        assert session.profile(x).launches == 1


def test_random_operators_are_not_folded() -> None:
    text = main(
        "x: ?x8xf32 input",
        "y: 64xf32 output",
        """
      %n = torch.constant.int 64
      %none = torch.constant.none
      %shape = torch.prim.ListConstruct %n : (!torch.int) -> !torch.list<int>
      %y = torch.aten.rand %shape, %none, %none, %none, %none : !torch.list<int>, !torch.none,
        !torch.none, !torch.none, !torch.none -> !torch.vtensor<[64],f32>""",
    )
    session = Session(program_of(text))
    x = torch.randn(1, 8)
    drawn = [session(x)[0] for _ in range(3)]
    assert not drawn[0].equal(drawn[1]) and not drawn[1].equal(drawn[2])


def test_shapes_that_depend_on_data() -> None:
    text = main(
        "x: ?xf32 input",
        "y: ?x1xsi64 output",
        "%y = torch.aten.nonzero %x : !torch.vtensor<[?],f32> -> !torch.vtensor<[?,1],si64>",
    )
    session = Session(program_of(text))
    for x in (torch.tensor([1.0, 0, 2]), torch.tensor([0.0, 0, 2]), torch.tensor([0.0, 0, 0])):
        (y,) = session(x)
        assert y.equal(x.nonzero())
    with pytest.raises(QfuseError, match="cannot be profiled"):
        session.profile(x)


def test_parameters_that_leave_the_program_are_copies() -> None:
    text = main("x: ?x8xf32 input\nw: 8xf32 parameter", "w: 8xf32 output", "")
    w = torch.ones(8)
    session = Session(program_of(text, {"w": w}))
    for _ in range(2):
        session(torch.zeros(1, 8))[0].fill_(5)
    assert w.equal(torch.ones(8))


def test_scalar_inputs_choose_the_specialization() -> None:
    text = main(
        "n: !torch.int input\nx: ?x8xf32 input",
        "y: ?x8xf32 output",
        f"%y = torch.aten.mul.Scalar %x, %n : {X}, !torch.int -> {X}",
    )
    session = Session(program_of(text))
    x = torch.randn(2, 8)
    for n in (2, 3, 2, 3):
        assert session(n, x)[0].equal(x * n)
    with pytest.raises(QfuseError, match="input n is Tensor; the program takes int"):
        session(x, x)


WRONG_INPUTS = {
    "number": ([torch.zeros(1, 8)] * 2, "2 inputs are given; the program takes x"),
    "dtype": ([torch.zeros(1, 8, dtype=torch.int64)], r"x is int64\[1, 8\]; .* float32\[\?, 8\]"),
    "extent": ([torch.zeros(1, 9)], r"x is float32\[1, 9\]; the program takes float32\[\?, 8\]"),
    "rank": ([torch.zeros(8)], r"x is float32\[8\]"),
    "device": ([torch.zeros(1, 8, device="meta")], "x is on meta; the program runs on cpu"),
    "type": ([[1.0] * 8], "x is list"),
}


@pytest.mark.parametrize("case", WRONG_INPUTS)
def test_wrong_inputs_are_one_line(case: str) -> None:
    inputs, message = WRONG_INPUTS[case]
    session = Session(program_of(CHAIN))
    session(torch.zeros(1, 8))
    with pytest.raises(QfuseError, match=message) as caught:
        session(*inputs)
    assert "\n" not in str(caught.value)
    with pytest.raises(QfuseError, match="the program takes x"):
        session.run({"z": torch.zeros(1, 8)})
    x = torch.randn(1, 8)
    assert session.run({"x": x})["y"].equal(chain(x))


def test_a_torch_failure_names_the_step() -> None:
    text = main(
        "x: ?x8xf32 input\nw: ?x8xf32 input",
        "y: ?x8xf32 output",
        ONE + f'%y = torch.aten.add.Tensor %x, %w, %one : {X}, {X}, !torch.int -> {X} loc("hier")',
    )
    with pytest.raises(QfuseError, match=r'aten\.add\.Tensor at "hier" failed') as caught:
        Session(program_of(text))(torch.zeros(2, 8), torch.zeros(3, 8))
    assert "\n" not in str(caught.value)


def test_inference_mode_and_gradients_do_not_leak() -> None:
    session = Session(program_of(CHAIN))
    x = torch.randn(2, 8, requires_grad=True)
    with torch.inference_mode():
        session(torch.randn(2, 8))
    (y,) = session(x)
    assert y.equal(chain(x)) and not y.requires_grad


def test_kernels_are_loaded_once() -> None:
    program = program_of(CHAIN)
    first, second = Session(program), Session(program)
    x = torch.randn(2, 8)
    assert first(x)[0].equal(second(x)[0])
    loaded = program.kernel("double")
    assert isinstance(loaded, FakeLoaded) and loaded is program.kernel("double")


def test_arena_never_overlaps_what_lives_together() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    for _ in range(50):
        intervals = []
        for _ in range(30):
            first = draw(20)
            intervals.append(Interval(draw(500), first, first + draw(6)))
        offsets, total = assign(intervals)
        for i, (a, at) in enumerate(zip(intervals, offsets, strict=True)):
            assert at % ALIGNMENT == 0 and at + a.size <= total
            for b, other in list(zip(intervals, offsets, strict=True))[:i]:
                together = a.first <= b.last and b.first <= a.last
                apart = at + a.size <= other or other + b.size <= at
                assert apart or not together or not a.size * b.size
