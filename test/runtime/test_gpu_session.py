"""Sessions on a device: where memory lies, what is copied, and what is refused.

The device is the host's memory in the role of a GPU (gpu_fakes.FakeGpu).
"""

from typing import Any

import pytest
import torch
from fakes import from_builtin, main, program_of, to_builtin
from gpu_fakes import FakeGpu, gpu_program
from test_session import CHAIN, ONE, X, chain, double, torch_add

from qfuse.compiler.runtime import session as session_module
from qfuse.compiler.runtime.device import Device, place_plan
from qfuse.compiler.runtime.plan import TorchStep
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.errors import QfuseError


def test_misaligned_inputs_are_copied() -> None:
    rows = session_module.STAGED_BYTES
    for count in (3, rows):
        session = Session(gpu_program(CHAIN), device=FakeGpu(), poison=True)
        for offset in (1, 0, 4, 3):
            x = torch.randn(8 * rows + 8)[offset : offset + 8 * count].view(count, 8)
            (y,) = session(x)
            assert y.equal(chain(x))
        # only those that need it: what was seen first is not the rule
        assert "copy" not in session.profile(x).by_kind


@pytest.mark.parametrize("source", ["torch", "kernel", "input", "large input", "parameter"])
def test_misaligned_operands_are_copied(source: str) -> None:
    """A view that begins in the middle of 16 bytes."""
    flat = "!torch.vtensor<[?],f32>"
    made = {"torch": torch_add("s", "x", "x"), "kernel": double("s_b", "x_b") + from_builtin("s")}
    text = main(
        "x: ?x8xf32 input\nw: 4x8xf32 parameter",
        "y: ?x8xf32 output",
        ONE
        + to_builtin("x")
        + made.get(source, torch_add("s", "x", "x"))
        + f"""
      %zero = torch.constant.int 0
      %minus = torch.constant.int -1
      %eight = torch.constant.int 8
      %seven = torch.constant.int -7
      %shape = torch.prim.ListConstruct %minus : (!torch.int) -> !torch.list<int>
      %rows = torch.prim.ListConstruct %minus, %eight : (!torch.int, !torch.int)
        -> !torch.list<int>
      %flat = torch.aten.reshape %{_SOURCES[source]}, %shape
        : {"!torch.vtensor<[4,8],f32>" if source == "parameter" else X}, !torch.list<int> -> {flat}
      %cut = torch.aten.slice.Tensor %flat, %zero, %one, %seven, %one
        : {flat}, !torch.int, !torch.int, !torch.int, !torch.int -> {flat}
      %odd = torch.aten.reshape %cut, %rows : {flat}, !torch.list<int> -> {X}\n"""
        + to_builtin("odd")
        + double("y_b", "odd_b")
        + from_builtin("y"),
    )
    w = torch.randn(4, 8)
    session = Session(gpu_program(text, {"w": w}), device=FakeGpu(), poison=True)
    rows = session_module.STAGED_BYTES if source == "large input" else 6
    for _ in range(4):
        x = torch.randn(rows, 8)
        (y,) = session(x)
        operand = {"torch": x * 2, "kernel": x * 2, "parameter": w}.get(source, x)
        assert y.equal(operand.reshape(-1)[1:-7].view(-1, 8) * 2)


_SOURCES = {"torch": "s", "kernel": "s", "input": "x", "large input": "x", "parameter": "w"}


def test_the_host_copies_nothing_for_alignment() -> None:
    session = Session(program_of(CHAIN))
    x = torch.randn(session_module.STAGED_BYTES, 8)
    session(x)
    assert "data_ptr() %" not in session.source(x)
    assert "def body" not in session.source(x)


# Where things are


def test_plans_are_placed() -> None:
    text = main(
        "n: !torch.int input\nx: ?x8xf32 input",
        "a: ?xsi64 output\nb: ?x8xf32 output\nc: ?x8xf32 output",
        f"""
      %none = torch.constant.none
      %cpu = torch.constant.device "cpu"
      %six = torch.constant.int 6
      %false = torch.constant.bool false
      %a = torch.aten.arange %n, %none, %none, %none, %none
        : !torch.int, !torch.none, !torch.none, !torch.none, !torch.none
        -> !torch.vtensor<[?],si64>
      %b = torch.aten.zeros_like %x, %six, %none, %none, %none, %none
        : {X}, !torch.int, !torch.none, !torch.none, !torch.none, !torch.none -> {X}
      %c = torch.aten._to_copy %x, %six, %none, %cpu, %none, %false, %none
        : {X}, !torch.int, !torch.none, !torch.Device, !torch.none, !torch.bool, !torch.none
        -> {X}""",
    )
    plan = program_of(text).plan
    assert place_plan(plan, Device()) is plan

    class Meta(Device):
        is_host = False

    meta = torch.device("meta")
    placed = {s.op: dict(s.kwargs) for s in place_plan(plan, Meta(meta)).steps}
    before = {s.op: dict(s.kwargs) for s in plan.steps if isinstance(s, TorchStep)}
    assert placed["aten.arange"]["device"] == meta
    assert placed["aten.zeros_like"] == before["aten.zeros_like"]  # follows its operand
    assert before["aten._to_copy"]["device"] == torch.device("cpu")
    assert placed["aten._to_copy"] == before["aten._to_copy"] | {"device": meta}


def test_constants_are_copied_once_and_stay_shared() -> None:
    w = torch.randn(4, 8)
    text = main(
        "x: ?x8xf32 input\nw: 4x8xf32 parameter\nv: 4x8xf32 parameter",
        "w: 4x8xf32 output\nv: 4x8xf32 output",
        "",
    )
    program = program_of(text, {"w": w, "v": w})
    assert program.constants_on(torch.device("cpu")) is program.constants
    meta = torch.device("meta")
    placed = program.constants_on(meta)
    assert program.constants_on(meta) is placed is program.constants  # the host's are let go
    assert {t.device for t in placed.values()} == {meta} and len(placed) == 2
    one, other = placed.values()
    assert one is other


def test_inputs_elsewhere_are_one_line() -> None:
    class Far(FakeGpu):
        def holds(self, tensor: torch.Tensor) -> bool:  # type: ignore[override]
            return False

    far = Far()
    far.place = torch.device("cuda:0")
    session = Session(gpu_program(CHAIN), device=FakeGpu())
    session.device, session._is_here = far, far.holds
    with pytest.raises(
        QfuseError,
        match=r"input x is on cpu; the program runs on cuda:0; pass it as \.to\('cuda:0'\)$",
    ):
        session(torch.zeros(1, 8))


def test_memory_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise RuntimeError("CUDA out of memory. Tried to allocate\nmore")

    program = gpu_program(CHAIN)
    monkeypatch.setattr(program, "constants_on", full)
    with pytest.raises(QfuseError, match="no memory for the program on cpu: CUDA out of memory"):
        Session(program, device=FakeGpu())
