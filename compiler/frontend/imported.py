"""What every front end hands to the compiler."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qfuse.dialects.bindings import ir


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and dtype of an argument or result; None is an extent known only at run time."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        dims = ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{dims}]"


@dataclass(frozen=True)
class ModelInfo:
    """What a program that generates text needs to know about the model."""

    model_type: str
    config: dict[str, Any]
    vocab_size: int
    max_len: int
    logits: str
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Imported:
    """A program in the raw torch dialect, and the tensors its parameters stand for.

    `module` holds one function, `@main`; its arguments and results carry `qfuse.kind` and
    `qfuse.name`.  `parameters` maps the names of the arguments of kind "parameter" to tensors
    (on meta when only a config was imported; some are made each time they are read); `inputs`,
    `caches` and `outputs` describe the others in the order in which they appear.  The module keeps
    its context alive.
    """

    module: ir.Module
    parameters: Mapping[str, torch.Tensor]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    caches: tuple[TensorSpec, ...] = ()
    model: ModelInfo | None = None
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def context(self) -> ir.Context:
        return self.module.context
