"""Launches and bytes moved by one call: what the fusion report compares."""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch

from qfuse.compiler.runtime import calls
from qfuse.compiler.runtime.plan import KernelStep, Plan, TorchStep
from qfuse.compiler.runtime.specialize import Specialization
from qfuse.compiler.runtime.trace import Action, Trace, View


@dataclass(frozen=True)
class Profile:
    """What one call does.

    `launches` counts kernels, torch operators that compute or copy, and copies; views and the
    staging of small inputs count nothing.  `bytes` sums what each of them reads and writes.
    `by_kind` and `by_name` split both: kind or name -> (launches, bytes).
    """

    launches: int
    bytes: int
    by_kind: dict[str, tuple[int, int]]
    by_name: dict[str, tuple[int, int]]
    arena_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes."""
        return asdict(self)


def profile_of(plan: Plan, specialization: Specialization) -> Profile:
    """The profile of the last call of a specialisation (attention depends on its position)."""
    trace = specialization.trace
    kinds: dict[str, Counter[str]] = {}
    names: dict[str, Counter[str]] = {}

    def note(kind: str, name: str, launches: int, size: int) -> None:
        for table, key in ((kinds, kind), (names, name)):
            table.setdefault(key, Counter()).update(launches=launches, bytes=size)

    for action in specialization.actions:
        if action.kind == "view":
            continue
        step = action.step
        if isinstance(step, KernelStep):
            size = sum(_size(trace, v) for v in (*action.operands, *action.results))
            note("kernel", step.kernel, 1, size)
        elif isinstance(step, TorchStep):
            note("torch", step.op, calls.launches(step.op), _torch_bytes(trace, action, step))
        else:
            note("copy", "contiguous", 1, 2 * _size(trace, action.results[0]))
    for value in specialization.copied_outputs:
        note("copy", "output", 1, 2 * _size(trace, value))
    return Profile(
        sum(c["launches"] for c in kinds.values()),
        sum(c["bytes"] for c in kinds.values()),
        {kind: (c["launches"], c["bytes"]) for kind, c in kinds.items()},
        {name: (c["launches"], c["bytes"]) for name, c in names.items()},
        specialization.arena_bytes,
    )


def _size(trace: Trace, value: int) -> int:
    """Bytes of a value; numbers and shapes are none."""
    items = trace.views.get(value, trace.known.get(value))
    total = 0
    for item in items if isinstance(items, list | tuple) else [items]:
        if isinstance(item, View | torch.Tensor):
            total += item.nbytes
    return total


def _torch_bytes(trace: Trace, action: Action, step: TorchStep) -> int:
    written = sum(_size(trace, v) for v in action.results)
    operands = list(dict.fromkeys(action.operands))
    base = calls.base_name(step.op)
    if base == calls.KV_UPDATE and action.kind == "update":
        new, position = step.args[1].value, step.args[2].value
        return 2 * _size(trace, new) + _size(trace, position)
    if base == calls.ATTENTION:
        q, k, v, position = (arg.value for arg in step.args[:4])
        part = _used_part(trace, k, position)
        return _size(trace, q) + int(part * (_size(trace, k) + _size(trace, v))) + written
    if calls.is_gather(step.op):
        return written * 2 + sum(_size(trace, v) for v in operands[1:])
    return written + sum(_size(trace, v) for v in operands)


def _used_part(trace: Trace, cache: int, position: int) -> float:
    """Which part of a cache [.., S, D] attention reads, given the position of the last call."""
    view = trace.views.get(position)
    if not isinstance(view, View) or not math.prod(view.shape):
        return 1.0
    held = trace.roots[view.root].held
    capacity = trace.views[cache].shape[-2]
    if held is None or not held.is_cpu or not capacity:  # on a GPU it reads the whole cache
        return 1.0
    return min(1.0, (int(held.max()) + 1) / capacity)
