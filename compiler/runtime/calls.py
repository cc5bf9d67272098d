"""Which torch operator a step means, and what the runtime has to know about it."""

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from qfuse.compiler import torch_ops
from qfuse.compiler.runtime import library
from qfuse.dialects.errors import QfuseError

GETITEM = "getitem"
"""Pseudo operator: one element of a list that an operator returned."""

KV_UPDATE = f"{torch_ops.NAMESPACE}.kv_update"
ATTENTION = f"{torch_ops.NAMESPACE}.attention"

# torch's dispatcher adds microseconds to an operator written in Python; the runtime calls the
# functions themselves.
_DIRECT: dict[str, Callable[..., Any]] = {
    f"{torch_ops.NAMESPACE}.{schema.partition('(')[0]}": eager
    for schema, eager, _ in torch_ops.OPERATORS
} | library.FUNCTIONS

# Operators that answer from the shape of a tensor alone.
_SHAPE_QUERIES = frozenset(
    f"aten.{name}"
    for name in (
        *("size", "sym_size", "numel", "sym_numel", "stride", "sym_stride", "dim", "len"),
        *("storage_offset", "sym_storage_offset", "is_floating_point", "is_complex"),
    )
)

# Operators that read a few rows of a table: they move what they return, not their operands.
_GATHERS = frozenset(
    f"aten.{name}" for name in ("embedding", "index_select", "index", "gather", "take")
)


def resolve(name: str) -> Any:
    """The overload object of `aten.add.Tensor`; a missing overload means "default".

    Raises QfuseError when torch has no such operator.
    """
    namespace, _, rest = name.partition(".")
    packet_name, _, overload = rest.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet_name), overload or "default")
    except (AttributeError, RuntimeError):
        raise QfuseError(f"torch {torch.__version__} has no operator {name}") from None


@cache
def function(name: str) -> Callable[..., Any]:
    """What to call for the operator `name`."""
    if name == GETITEM:
        return operator.getitem
    if direct := _DIRECT.get(base_name(name)):
        return direct
    overload = resolve(name)
    # `_op` is what OpOverload.__call__ forwards to
    return getattr(overload, "_op", overload)


def base_name(name: str) -> str:
    """`aten.add` of `aten.add.Tensor`."""
    return ".".join(name.split(".")[:2])


def is_ours(name: str) -> bool:
    """Whether the operator is written here, and so makes no tensor but on its operands' device."""
    return name == GETITEM or base_name(name) in _DIRECT


@cache
def is_random(name: str) -> bool:
    """Whether two calls with equal arguments may differ."""
    return not is_ours(name) and torch.Tag.nondeterministic_seeded in resolve(name).tags


@cache
def result_depends_on_data(name: str) -> bool:
    """Whether the shape of a result, or a number returned, depends on the contents of a tensor.

    `aten.index` is such an operator only for boolean indices; `index_depends_on_data` tells.
    """
    if name == GETITEM or base_name(name) in (*_SHAPE_QUERIES, *_DIRECT, "aten.index"):
        return False
    overload = resolve(name)
    if {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(overload.tags):
        return True
    schema = overload._schema
    takes_tensor = any("Tensor" in str(a.type) for a in schema.arguments)
    return takes_tensor and any("Tensor" not in str(r.type) for r in schema.returns)


def index_depends_on_data(name: str, args: tuple[Any, ...]) -> bool:
    """Whether this call of `aten.index` selects by a boolean mask."""
    if base_name(name) != "aten.index":
        return False
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def launches(name: str) -> int:
    """How many kernel launches a call counts as in reports."""
    return {**torch_ops.LAUNCHES, **library.LAUNCHES}.get(base_name(name), 1)


@cache
def returns_view(name: str) -> bool:
    """Whether a result of the operator may share the memory of an operand, by its schema."""
    return any(r.alias_info is not None for r in resolve(name)._schema.returns)


def is_gather(name: str) -> bool:
    """Whether the operator reads only as much of its first operand as it returns."""
    return base_name(name) in _GATHERS
