"""exp, tanh and erf against f64, and their limits."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from vector_functions import apply

from qfuse.dialects.activations import build_activation
from qfuse.dialects.bindings import ir
from qfuse.lowering.cpu import math_functions
from qfuse.lowering.cpu.emit import Function, Value
from qfuse.lowering.cpu.lanes import Lanes
from qfuse.lowering.cpu.region import emit_scalars

INF, NAN = torch.inf, torch.nan


def samples(low: float, high: float) -> torch.Tensor:
    generator = torch.manual_seed(0)
    spread = low + (high - low) * torch.rand(200_000, generator=generator)
    near_zero = torch.randn(50_000, generator=generator) * torch.logspace(-20, 0, 50_000)
    return torch.cat([spread, near_zero])


@pytest.mark.parametrize(
    ("name", "low", "high", "bound"),
    [("exp", -87, 88, 1.5e-7), ("tanh", -12, 12, 2.0e-7), ("erf", -6, 6, 2.0e-7)],
)
def test_relative_error(name: str, low: float, high: float, bound: float) -> None:
    x = samples(low, high)
    got = apply(getattr(math_functions, name), x, torch.float32).double()
    wanted = getattr(torch, name)(x.double())
    normal = wanted.abs() > 1.2e-38  # below, the error is relative to a subnormal step
    error = ((got - wanted) / wanted).abs()[normal]
    assert float(error.max()) < bound


@pytest.mark.parametrize(
    ("name", "points"),
    [
        ("exp", {0.0: 1, -INF: 0, INF: INF, NAN: NAN, 89.0: INF, -104.0: 0, 1e30: INF, -1e30: 0}),
        ("tanh", {0.0: 0, INF: 1, -INF: -1, NAN: NAN, 1e30: 1, -1e30: -1}),
        ("erf", {0.0: 0, INF: 1, -INF: -1, NAN: NAN, 1e30: 1, -1e30: -1}),
    ],
)
def test_limits(name: str, points: dict[float, float]) -> None:
    x = torch.tensor(list(points))
    got = apply(getattr(math_functions, name), x, torch.float32)
    torch.testing.assert_close(got, torch.tensor(list(points.values())), equal_nan=True)


def test_exp_underflows_gradually() -> None:
    x = torch.linspace(-103.2, -87.4, 1000)
    got = apply(math_functions.exp, x, torch.float32).double()
    assert float((got - x.double().exp()).abs().max()) < 2.0**-149 * 1.01


def activation(name: str) -> Callable[[Function, Value], Value]:
    def emit(f: Function, x: Value) -> Value:
        with ir.Context(), ir.Location.unknown():
            return emit_scalars(Lanes(f, "generic"), partial(build_activation, name), x)

    return emit


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu"])
def test_activations(name: str) -> None:
    x = torch.cat([samples(-30, 30), torch.tensor([-200.0, 200.0, 0.0, -0.0, NAN, INF])])
    got = apply(activation(name), x, torch.float32)
    function = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda v: torch.nn.functional.gelu(v, approximate="tanh"),
        "relu": torch.relu,
    }[name]
    wanted = function(x.double()).float()
    # 1 + erf and 1 + tanh cancel for negative x: the error is absolute there, in units of x.
    torch.testing.assert_close(got[:-1], wanted[:-1], rtol=4e-7, atol=1e-6, equal_nan=True)
    assert got[-6] == 0 and got[-1] == torch.inf
