"""torch.export, of which nothing stays once its graph is imported.

torch 2.13 keeps of every trace, for the life of the process (of two tiny layers 4,600 objects and
120 KB of text):

- Its shapes, with all operators that met them.  The caches of `ShapeEnv`'s methods hold them, for
  they are the class's and have the environment in their keys: cleared.  So does a cycle that
  Python's collector does not see: `ShapeEnv.tracked_fakes` are tensors, whose symbolic sizes are
  C++ objects that hold the environment.  They are let go, as Dynamo lets go of its own.
- The last graph, by a table of its nodes for a diagnosis: cleared.
- The Python text of each of its graphs, for tracebacks: dropped.
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
