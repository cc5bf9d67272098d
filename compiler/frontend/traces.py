"""torch.export, of which nothing stays once its graph is imported.

torch keeps of every trace, for the life of the process (4,600 objects and 120 KB of text for a
model of two tiny layers, with torch 2.13):

| what | who holds it | so |
|---|---|---|
| its shapes and all operators that met them | caches of `ShapeEnv`'s methods, which are the class's and have the environment in their keys | cleared |
| the same | `ShapeEnv.tracked_fakes`: tensors whose symbolic sizes are C++ objects that hold the environment, a cycle that Python's collector does not see | let go, as Dynamo does |
| the last graph | a table of its nodes, for a diagnosis | cleared |
| Python text of each of its graphs | `torch.fx`, for tracebacks | what is new, dropped |
"""

import linecache
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv


def export(
    model: torch.nn.Module, example_inputs: tuple[Any, ...], dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """What torch.export makes of `model` without Dynamo; raises whatever the model's code does."""
    try:
        program = torch.export.export(
            model, example_inputs, dynamic_shapes=dynamic_shapes, strict=False
        )
    except Exception as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            for value in frame.f_locals.values():
                _release(value)
        raise
    for node in program.graph.nodes:
        _release(getattr(node.meta.get("val"), "fake_mode", None))
    return program


def _release(mode: Any) -> None:
    """Let go of the inputs in a mode of fake tensors: their constraints have been checked."""
    if isinstance(mode, FakeTensorMode) and mode.shape_env is not None:
        mode.shape_env.tracked_fakes = None


@contextmanager
def forgotten_traces() -> Iterator[None]:
    """Around an import, or as its decorator: in the end torch's tables forget what was traced.

    Other threads that trace meanwhile lose no more than cached results and lines in tracebacks.
    """
    # The two names that torch keeps to itself may be missing in another version.
    nodes = getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", {})
    texts = getattr(getattr(fx.graph_module, "_loader", None), "eval_cache", {})
    before = set(texts)
    try:
        yield
    finally:
        for method in vars(ShapeEnv).values():
            if hasattr(method, "cache_clear"):  # of functools.lru_cache
                method.cache_clear()
        nodes.clear()
        for name in texts.keys() - before:
            texts.pop(name, None)
            linecache.cache.pop(name, None)
