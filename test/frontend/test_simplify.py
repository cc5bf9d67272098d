"""What an imported graph loses before it reaches the compiler, and that its values stay."""

from collections.abc import Callable

import pytest
import torch

from qfuse.compiler.frontend.fx_import import simplify


def simplified(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> list[str]:
    """Names of the operators left of `function`, whose value must be the same."""

    class Module(torch.nn.Module):
        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            return function(*values)

    tokens = torch.export.Dim("T", min=8, max=64)
    shapes = (tuple({1: tokens} for _ in inputs),)
    exported = torch.export.export(Module(), inputs, dynamic_shapes=shapes, strict=False)
    exported = exported.run_decompositions({})
    simplify(exported.graph)
    exported.graph_module.recompile()
    other = [torch.cat((x, x[:, :3]), 1) for x in inputs]
    for values in (inputs, other):
        (made,) = exported.graph_module(*values)
        assert torch.equal(made, function(*values))
    nodes = (n for n in exported.graph.nodes if n.op == "call_function")
    return [str(n.target) for n in nodes if "sym_size" not in str(n.target)]


def partial_rotation(width: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """As Phi-3 rotates `width` lanes of a head, and leaves the others as they are."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x[..., :width] * 3, x[..., width:]), -1) + 1

    return function


def test_rotation_of_all_lanes() -> None:
    assert simplified(partial_rotation(8), torch.randn(1, 9, 8)) == [
        "aten.mul.Tensor",
        "aten.add.Tensor",
    ]


def test_rotation_of_some_lanes() -> None:
    """The nearest look-alike: both slices are parts, and the cat stays."""
    left = simplified(partial_rotation(6), torch.randn(1, 9, 8))
    assert left.count("aten.slice.Tensor") == 2 and "aten.cat.default" in left


@pytest.mark.parametrize(
    "index",
    [
        (slice(None), slice(1, None)),
        (slice(None), slice(None, None, 2)),
        (slice(None), slice(-3, None)),
        (..., slice(0, 7)),
    ],
    ids=str,
)
def test_slice_of_a_part(index: tuple) -> None:
    left = simplified(lambda x: x[index] + 1, torch.randn(1, 9, 8))
    assert left.count("aten.slice.Tensor") >= 1


def test_empty_part_of_another_type_promotes() -> None:
    """torch.cat takes the type of an empty tensor into account."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.cat((x, x[..., 8:].double()), -1) + 1

    assert "aten.cat.default" in simplified(function, torch.randn(1, 9, 8))


def test_cast_to_the_type_of_another() -> None:
    left = simplified(
        lambda x, y: x.type_as(y) * 2, torch.randn(1, 9, 8).bfloat16(), torch.ones(1, 9)
    )
    assert left == ["aten.to.dtype", "aten.mul.Tensor"]
    left = simplified(lambda x, y: x.type_as(y) * 2, torch.randn(1, 9, 8), torch.ones(1, 9))
    assert left == ["aten.mul.Tensor"]
