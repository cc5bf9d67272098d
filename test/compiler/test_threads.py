"""Several threads at once: compiling, and calling a model for the first time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch
from torch import nn

from qfuse.compiler import compile

THREADS = 4


def at_once(work: Callable[[int], None]) -> None:
    """Run `work` in some threads that begin together; raises what one of them does."""
    barrier = Barrier(THREADS)

    def run(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(run, range(THREADS)))


def model(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 24), nn.ReLU()).eval().requires_grad_(False)


def test_models_compiled_at_once() -> None:
    """torch.export alone fails at this."""
    models = [model(16 + i) for i in range(THREADS)]

    def work(i: int) -> None:
        x = torch.randn(3, 16 + i)
        torch.testing.assert_close(compile(models[i], (x,))(x)[0], models[i](x))

    at_once(work)


def test_first_calls_at_once() -> None:
    """The bindings' dialect objects are loaded into one context at a time."""
    torch._dynamo.reset()
    models = [model(16) for _ in range(THREADS)]
    compiled = [torch.compile(m, backend="qfuse") for m in models]

    def work(i: int) -> None:
        for rows in (3, 5, 1):
            x = torch.randn(rows, 16)
            torch.testing.assert_close(compiled[i](x), models[i](x))

    at_once(work)
