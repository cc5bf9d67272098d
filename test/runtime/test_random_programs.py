"""Random programs of kernels, torch operators and views, against plain torch, poisoned."""

import random

import pytest
import torch
from fakes import from_builtin, main, program_of, to_builtin

from qfuse.compiler.runtime import session as session_module
from qfuse.compiler.runtime.session import Session

X, T = "!torch.vtensor<[?,8],f32>", "!torch.vtensor<[8,?],f32>"


class Writer:
    """Writes a program, and computes beside it what the program computes."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.body = [f"%i{n} = torch.constant.int {n}" for n in (0, 1, 2, 4)]
        self.body.append(
            f"%c = torch.tensor_static_info_cast %p : !torch.vtensor<[16,8],f32> to {X}"
        )
        self.body.append("%end = torch.constant.int 9223372036854775807")
        self.steps: list[tuple[str, str, tuple[str, ...]]] = []
        self.shapes = {"x": 0, "w": 0, "c": 0}  # how often the rows were halved
        self.casts: set[str] = set()

    def some(self, halved: int | None = None) -> str:
        return self.random.choice(
            [v for v, h in self.shapes.items() if halved is None or h == halved]
        )

    def step(self) -> None:
        kinds = ("double", "add", "both", "torch_add", "neg", "turn", "half", "list")
        kind = self.random.choice(kinds)
        a = self.some()
        b = self.some(self.shapes[a])
        r = f"v{len(self.steps)}"
        text = getattr(self, f"_{kind}")(r, a, b)
        self.body.append(text)
        self.steps.append((kind, r, (a, b)))
        self.shapes[r] = self.shapes[a] + (kind == "half")

    def _cast(self, *names: str) -> str:
        new = [n for n in dict.fromkeys(names) if n not in self.casts]
        self.casts.update(new)
        return to_builtin(*new) + "\n"

    def _double(self, r: str, a: str, b: str) -> str:
        self.casts.add(r)
        call = f"%{r}_b = func.call @double(%{a}_b) : (tensor<?x8xf32>) -> tensor<?x8xf32>\n"
        return self._cast(a) + call + from_builtin(r)

    def _add(self, r: str, a: str, b: str) -> str:
        self.casts.add(r)
        types = "(tensor<?x8xf32>, tensor<?x8xf32>) -> tensor<?x8xf32>"
        call = f"%{r}_b = func.call @add(%{a}_b, %{b}_b) : {types}\n"
        return self._cast(a, b) + call + from_builtin(r)

    def _both(self, r: str, a: str, b: str) -> str:
        types = "(tensor<?x8xf32>) -> (tensor<?x8xf32>, tensor<?x8xf32>)"
        call = f"%{r}_b, %{r}_unused = func.call @both(%{a}_b) : {types}\n"
        self.casts.add(r)
        return self._cast(a) + call + from_builtin(r)

    def _torch_add(self, r: str, a: str, b: str) -> str:
        return f"%{r} = torch.aten.add.Tensor %{a}, %{b}, %i1 : {X}, {X}, !torch.int -> {X}"

    def _neg(self, r: str, a: str, b: str) -> str:
        return f"%{r} = torch.aten.neg %{a} : {X} -> {X}"

    def _turn(self, r: str, a: str, b: str) -> str:
        """There and back: a view, contiguous again."""
        there = f"%{r}_t = torch.aten.transpose.int %{a}, %i0, %i1 : {X}, !torch.int, !torch.int"
        back = f"%{r} = torch.aten.transpose.int %{r}_t, %i0, %i1 : {T}, !torch.int, !torch.int"
        return f"{there} -> {T}\n{back} -> {X}"

    def _half(self, r: str, a: str, b: str) -> str:
        """Every second row: a view with gaps."""
        types = f"{X}, !torch.int, !torch.int, !torch.int, !torch.int -> {X}"
        return f"%{r} = torch.aten.slice.Tensor %{a}, %i0, %i0, %end, %i2 : {types}"

    def _list(self, r: str, a: str, b: str) -> str:
        """Split, and joined the other way round."""
        half = "!torch.vtensor<[?,4],f32>"
        return f"""
      %{r}_p = torch.aten.split.Tensor %{a}, %i4, %i1 : {X}, !torch.int, !torch.int
        -> !torch.list<vtensor>
      %{r}_l, %{r}_r = torch.prim.ListUnpack %{r}_p : !torch.list<vtensor> -> {half}, {half}
      %{r}_s = torch.prim.ListConstruct %{r}_r, %{r}_l : ({half}, {half}) -> !torch.list<vtensor>
      %{r} = torch.aten.cat %{r}_s, %i1 : !torch.list<vtensor>, !torch.int -> {X}"""

    def expected(self, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        values = dict(values)
        for kind, r, (a, b) in self.steps:
            x, y = values[a], values[b]
            values[r] = {
                "double": lambda x, y: x * 2,
                "add": lambda x, y: x + y,
                "both": lambda x, y: x + 1,
                "torch_add": lambda x, y: x + y,
                "neg": lambda x, y: -x,
                "turn": lambda x, y: x,
                "half": lambda x, y: x[::2],
                "list": lambda x, y: torch.cat([x[:, 4:], x[:, :4]], 1),
            }[kind](x, y)
        return values


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("seed", range(30))
def test_random_program(seed: int, staged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "STAGED_BYTES", 1 << 16 if staged else -1)
    writer = Writer(seed)
    for _ in range(25):
        writer.step()
    outputs = [writer.some() for _ in range(3)] + ["v24"]
    text = main(
        "x: ?x8xf32 input\nw: ?x8xf32 input\np: 16x8xf32 parameter",
        "\n".join(f"{name}: ?x8xf32 output" for name in outputs),
        "\n".join(writer.body),
    )
    c = torch.randn(16, 8).round()
    session = Session(program_of(text, {"p": c}), poison=True)
    kept = []
    for _ in range(3):
        x, w = torch.randn(16, 8).round(), torch.randn(16, 8).round()
        values = writer.expected({"x": x, "w": w, "c": c})
        kept.append((session(x, w), [values[name].clone() for name in outputs]))
        if staged:  # nothing that was returned shares memory with an input
            x.fill_(float("nan"))
    for found, wanted in kept:
        for a, b in zip(found, wanted, strict=True):
            assert a.equal(b)
