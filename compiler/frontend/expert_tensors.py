"""Reading the experts of a layer: three matrices of each in a file become two stacks."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch

from qfuse.compiler.frontend.checkpoint import dtype_name
from qfuse.compiler.frontend.experts import (
    INPUT_SUFFIX,
    LEAVES,
    Biased,
    DenseExperts,
    Experts,
)
from qfuse.compiler.frontend.lazy_tensors import Entry, Filled
from qfuse.compiler.frontend.linear import INPUT_SCALE, WEIGHT
from qfuse.compiler.frontend.model_types import MODEL_TYPES
from qfuse.compiler.frontend.source import Source
from qfuse.dialects.errors import QfuseError

_STACKS = {"gate_up_proj": (0, 1), "down_proj": (2,)}
_BIASES = {f"{name}_bias": places for name, places in _STACKS.items()}
"""Stacked weights and biases, and which of an expert's matrices they go with."""


def load_experts(
    experts: Experts, matrices: Sequence[tuple[str, str, str]], source: Source
) -> dict[str, Entry]:
    """The parameters of `experts` by their name in it, for `LazyTensors`.

    `matrices` names each expert's gate, up and down weight in the file.  Everything is checked
    here and raises QfuseError; the weights themselves are read when asked for.
    """
    hidden, inner = experts.hidden, experts.intermediate
    shapes = ((inner, hidden), (inner, hidden), (hidden, inner))
    read = [
        [_matrix(experts, name, shape, i, source) for i, (name, shape) in enumerate(both)]
        for both in (zip(names, shapes, strict=True) for names in matrices)
    ]

    def stack(leaf: str, places: tuple[int, ...], to: torch.Tensor) -> None:
        for slot, of_expert in zip(to, read, strict=True):
            parts = [_value(of_expert[i][leaf]) for i in places]
            slot[: len(parts[0])].copy_(parts[0])
            if len(parts) > 1:
                # rows between the two parts belong to neither
                slot[len(parts[0]) : len(slot) - len(parts[1])].zero_()
                slot[len(slot) - len(parts[1]) :].copy_(parts[1])

    loaded: dict[str, Entry] = {}
    for name, places in _STACKS.items():
        for leaf, suffix in LEAVES.items():
            parameter = getattr(experts, f"{name}{suffix}", None)
            if parameter is not None:
                filled = Filled(
                    tuple(parameter.shape), parameter.dtype, partial(stack, leaf, places)
                )
                # only the codes are so large that a program wants them in their place at once
                loaded[f"{name}{suffix}"] = filled if leaf == WEIGHT else partial(_made, filled)
        if getattr(experts, f"{name}{INPUT_SUFFIX}", None) is not None:
            loaded[f"{name}{INPUT_SUFFIX}"] = _input_scale(read, matrices, places, source)
    for leaf, places in _BIASES.items():
        bias = getattr(experts, leaf)
        if bias is None:
            continue
        rows = [
            torch.cat(
                [_value(source.plain(_bias(n[i]), (shapes[i][0],), bias.dtype)) for i in places]
            )
            for n in matrices
        ]
        loaded[leaf] = torch.stack(rows)
    return loaded


def _input_scale(
    read: Sequence[Sequence[Mapping[str, Entry]]],
    matrices: Sequence[tuple[str, str, str]],
    places: Sequence[int],
    source: Source,
) -> torch.Tensor:
    """The static scale of the input that all experts' matrices at `places` share.

    Rows are quantized before they are sorted by experts, so it has to be one.
    """
    first = _value(read[0][places[0]][INPUT_SCALE])
    for of_expert, names in zip(read, matrices, strict=True):
        for i in places:
            scale = _value(of_expert[i][INPUT_SCALE])
            if not torch.equal(scale, first):
                raise QfuseError(
                    f"tensor {names[i]} of {source.path} has the static input scale "
                    f"{float(scale):g}, {matrices[0][places[0]]} {float(first):g}; a layer's "
                    "experts must have one"
                )
    return first


def _matrix(
    experts: Experts, name: str, shape: tuple[int, int], place: int, source: Source
) -> Mapping[str, Entry]:
    """The tensors of matrix number `place` of an expert, `name` in the file."""
    if isinstance(experts, DenseExperts):
        dtype = experts.down_proj.dtype
        source.plain(name, shape, dtype)  # only to check it: it may be a copy
        return {WEIGHT: lambda: _value(source.plain(name, shape, dtype))}
    layer = name.removesuffix(".weight")
    wanted = experts.formats["down_proj" if place == 2 else "gate_up_proj"]
    found = source.linear_format(layer, *shape)
    # one that is not quantized at all lacks tensors, which loading finds
    if found is not None and found != wanted:
        what = "is quantized otherwise than"
        if found.weight_dtype != wanted.weight_dtype:
            what = f"is {dtype_name(found.weight_dtype)},"
        raise QfuseError(
            f"tensor {name} of {source.path} {what} the first expert's "
            f"{dtype_name(wanted.weight_dtype)}; a layer's experts must have one type"
        )
    return source.load_linear(layer, *shape, wanted)


def _made(filled: Filled) -> torch.Tensor:
    tensor = torch.empty(filled.shape, dtype=filled.dtype)
    filled.fill(tensor)
    return tensor


def _value(entry: Entry) -> torch.Tensor:
    return entry if isinstance(entry, torch.Tensor) else entry()


def biases_of(matrices: Sequence[tuple[str, str, str]], source: Source) -> Biased:
    """Which biases experts have in a file: where one matrix has its own, all have to."""
    gate_up, down = (
        any(source.stored_dtype(_bias(names[i])) is not None for names in matrices for i in places)
        for places in _BIASES.values()
    )
    return gate_up, down


def _bias(weight: str) -> str:
    """The name of the bias beside a weight."""
    return f"{weight.removesuffix('weight')}bias"


def matrix_names(model_type: str, prefix: str, experts: int) -> list[tuple[str, str, str]]:
    """Names of each expert's gate, up and down weight in a checkpoint, for experts at `prefix`."""
    gate, up, down = MODEL_TYPES[model_type].matrices
    return [
        (f"{prefix}.{e}.{gate}.weight", f"{prefix}.{e}.{up}.weight", f"{prefix}.{e}.{down}.weight")
        for e in range(experts)
    ]
