"""Graphs whose operators write in place become functional, or are refused."""

import pytest
import torch
from torch import nn

from qfuse.compiler.frontend.functional import functionalize
from qfuse.compiler.frontend.lazy_tensors import LazyTensors
from qfuse.dialects.errors import QfuseError


def exported(function, *args):
    class Module(nn.Module):
        def forward(self, *inputs):
            return function(*inputs)

    return torch.export.export(Module(), args, strict=False).graph


def run(graph, *args):
    return torch.fx.Interpreter(torch.fx.GraphModule({}, graph)).run(*args)


def test_writes_to_fresh_tensors_become_functional():
    def f(x):
        y = x * 2
        before = y + 1
        y /= y.sum()
        mask = torch.zeros_like(y)
        mask.scatter_(1, torch.zeros(2, 1, dtype=torch.int64), 1.0)
        return before, y * mask

    x = torch.randn(2, 3)
    expected, graph = f(x), exported(f, x)
    functionalize(graph)
    assert not any("_." in str(n.target) for n in graph.nodes if n.op == "call_function")
    assert all(map(torch.equal, run(graph, x), expected))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.add_(1),
        lambda x: (x * 2).t().add_(1),
        lambda x: [y := x * 2, v := y[0], y.add_(1), v][-1],
        lambda x: (x.bfloat16() * 2).mul_(x),
    ],
    ids=["argument", "view", "seen through a view", "other type"],
)
def test_other_writes_are_refused(function):
    graph = exported(function, torch.ones(2, 2))
    with pytest.raises(QfuseError, match=r"operator aten\.\w+_?\.\w+ in the model writes into"):
        functionalize(graph)


def test_lazy_tensors_is_a_mapping():
    made = []
    tensors = LazyTensors({"a": torch.ones(1), "b": lambda: made.append(1) or torch.ones(2)})
    assert list(tensors) == ["a", "b"] and len(tensors) == 2 and "b" in tensors and not made
    assert tensors.get("c") is None and tensors["b"].shape == (2,) and made == [1]
    assert list(tensors.select(["b"])) == ["b"] and made == [1]
