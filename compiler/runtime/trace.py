"""The first call with new shapes: run the plan step by step and note what happened.

Running is the only sure way to learn every shape, stride and alias: torch decides some of them
(whether a reshape copies, say) from strides.  What does not depend on the contents of inputs and
caches is computed here once, and never again for these shapes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qfuse.compiler import torch_ops
from qfuse.compiler.runtime import calls, library
from qfuse.compiler.runtime.device import HOST, Device
from qfuse.compiler.runtime.plan import (
    DTYPES,
    DYNAMIC,
    ChoiceStep,
    KernelStep,
    KernelType,
    Plan,
    Ref,
    TensorType,
    TorchStep,
    refs,
)
from qfuse.dialects.errors import QfuseError


@dataclass
class Root:
    """One allocation: `held` by the session, a "buffer" a kernel writes, or "fresh" from torch."""

    kind: str
    nbytes: int
    held: torch.Tensor | None = None


@dataclass(frozen=True)
class View:
    """A tensor as a place in a root; `offset` is in bytes."""

    root: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    contiguous: bool

    @property
    def nbytes(self) -> int:
        """Bytes of memory behind it: an expanded dimension counts once."""
        extents = [n for n, s in zip(self.shape, self.stride, strict=True) if s or not n]
        return math.prod(extents) * self.dtype.itemsize


@dataclass(frozen=True)
class Action:
    """Something each later call has to do again.

    kind: "kernel", "torch", "view" (a torch operator whose result is a view of an operand),
    "update" (a cache update in place) or "copy" (`operands[0]` made contiguous).
    """

    kind: str
    step: TorchStep | KernelStep | None
    operands: tuple[int, ...]
    results: tuple[int, ...]
    rows: int = 0


@dataclass
class Trace:
    """What the first call with some shapes found out.

    A value is `known` (a constant for these shapes) or lies where `views` says; an operator that
    returns a list has a list of views.  `dynamic`: some shape depends on the contents of a
    tensor, so that nothing here holds for the next call.
    """

    known: dict[int, Any]
    views: dict[int, Any] = field(default_factory=dict)
    roots: list[Root] = field(default_factory=list)
    actions: list[Action] = field(default_factory=list)
    dynamic: bool = False


class Tracer:
    """Runs `plan` once.

    `constants` maps values to tensors that are the same in every call; values computed from
    those alone are added to it, for the next tracer.  `launch(name, pointers, rows)` runs a
    kernel, whose operands lie at multiples of `device.alignment`.
    """

    def __init__(
        self,
        plan: Plan,
        constants: dict[int, Any],
        donated: frozenset[int],
        launch: Callable[[str, Sequence[int], int], None],
        device: Device = HOST,
    ) -> None:
        self.plan = plan
        self.device = device
        self.constants = constants
        self.donated = donated
        self.launch = launch
        self.kernels = {k.name: k for k in plan.kernels}
        self.trace = Trace(known=dict(constants))
        self.env: dict[int, Any] = {}
        self.copies: dict[int, int] = {}
        self.next_value = 1 + max(
            (v for s in plan.single_steps for v in (*s.reads, *s.results)), default=-1
        )

    def run(
        self,
        held: Mapping[int, torch.Tensor],
        direct: Mapping[int, torch.Tensor],
        scalars: Mapping[int, Any],
    ) -> dict[int, Any]:
        """Run all steps; returns the values the program ends with.

        `held` are the session's own tensors, whose addresses stay; `direct` are tensors of the
        caller, different in each call.
        """
        for value, tensor in (*held.items(), *direct.items()):
            root = Root("fresh", tensor.nbytes)
            if value in held:
                root = Root("held", tensor.nbytes, tensor)
            self.trace.roots.append(root)
            self._define(value, tensor, len(self.trace.roots) - 1)
        self.trace.known.update(scalars)
        final = {v for o in self.plan.outputs for v in refs(o.arg)}
        final |= {v for _, v in self.plan.cache_results}
        last: dict[int, int] = {}
        for i, step in enumerate(self.plan.steps):
            last.update(dict.fromkeys((*step.reads, *step.results), i))
        for i, step in enumerate(self.plan.steps):
            for single in self._chosen(step) if isinstance(step, ChoiceStep) else (step,):
                self._single(single, i in self.donated)
            for value in (*step.reads, *step.results):
                if last[value] == i and value not in final:
                    self.env.pop(value, None)
                    self.env.pop(self.copies.get(value, -1), None)
        return {v: self._value(v) for v in final}

    def _single(self, step: TorchStep | KernelStep, donated: bool) -> None:
        try:
            if isinstance(step, KernelStep):
                self._kernel(step)
            elif donated:
                self._update(step)
            else:
                self._torch(step)
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            name = step.kernel if isinstance(step, KernelStep) else step.op
            text = str(error).strip().partition("\n")[0]
            at = f" at {step.where}" if step.where else ""
            raise QfuseError(f"{name}{at} failed: {text}") from error

    def _chosen(self, step: ChoiceStep) -> tuple[TorchStep | KernelStep, ...]:
        """The way that serves as many rows as there are, with the library at hand."""
        if not step.serves(math.prod(self._value(step.rows_of).shape[:-1])):
            return step.kernel
        if why := library.unavailable(step.call, self.device.place):
            library.remark_unavailable(step.call, why)
            return step.kernel
        return step.library

    def _value(self, value: int) -> Any:
        return self.env[value] if value in self.env else self.trace.known[value]

    def _resolve(self, arg: Any) -> Any:
        if isinstance(arg, Ref):
            return self._value(arg.value)
        if isinstance(arg, list):
            return [self._resolve(item) for item in arg]
        return arg

    def _define(self, value: int, tensor: torch.Tensor, root: int) -> None:
        self.env[value] = tensor
        self.trace.views[value] = _view(tensor, root)

    def _torch(self, step: TorchStep) -> None:
        args = tuple(map(self._resolve, step.args))
        kwargs = {name: self._resolve(arg) for name, arg in step.kwargs}
        result = calls.function(step.op)(*args, **kwargs)
        results = result if len(step.results) != 1 else (result,)
        constant = all(v in self.trace.known for v in step.reads) and not calls.is_random(step.op)
        if constant:
            lasting = all(v in self.constants for v in step.reads)
            for value, item in zip(step.results, results, strict=True):
                self.trace.known[value] = item
                if lasting:
                    self.constants[value] = item
            return
        if calls.result_depends_on_data(step.op) or calls.index_depends_on_data(step.op, args):
            self.trace.dynamic = True
        operands = self._operands(step.reads)
        fresh: dict[int, int] = {}
        aliasing = True
        for value, item in zip(step.results, results, strict=True):
            aliasing &= self._record(value, item, operands, fresh)
        if aliasing and all(value in self.trace.known for value in step.results):
            return
        kind = "view" if aliasing else "torch"
        self.trace.actions.append(Action(kind, step, step.reads, step.results))

    def _operands(self, reads: Sequence[int]) -> dict[int, int | None]:
        """Storage identity -> root of the tensors read; None for constants."""
        found: dict[int, int | None] = {}
        for value in reads:
            item, place = self._value(value), self.trace.views.get(value)
            tensors = item if isinstance(item, list) else [item]
            views = place if isinstance(place, list) else [place] * len(tensors)
            for tensor, view in zip(tensors, views, strict=True):
                if isinstance(tensor, torch.Tensor):
                    found[_storage(tensor)] = view.root if isinstance(view, View) else None
        return found

    def _record(
        self, value: int, item: Any, operands: dict[int, int | None], fresh: dict[int, int]
    ) -> bool:
        """Note one result; returns whether it is a view of an operand (or no tensor at all)."""
        if not isinstance(item, torch.Tensor | list | tuple):
            self.trace.known[value] = item
            return True
        tensors = [item] if isinstance(item, torch.Tensor) else list(item)
        if not all(isinstance(t, torch.Tensor) for t in tensors):
            self.trace.known[value] = item  # sizes, for example
            return True
        if tensors and all(operands.get(_storage(t), -1) is None for t in tensors):
            self.trace.known[value] = item  # a view of constants
            return True
        aliasing, views = True, []
        for tensor in tensors:
            storage = _storage(tensor)
            root = operands.get(storage)
            if root is None:
                aliasing = False
                if storage not in fresh:
                    self.trace.roots.append(Root("fresh", tensor.untyped_storage().nbytes()))
                    fresh[storage] = len(self.trace.roots) - 1
                root = fresh[storage]
            views.append(_view(tensor, root))
        self.env[value] = item if isinstance(item, torch.Tensor) else list(item)
        self.trace.views[value] = views[0] if isinstance(item, torch.Tensor) else views
        return aliasing

    def _update(self, step: TorchStep) -> None:
        cache, new, position = map(self._resolve, step.args)
        torch_ops.kv_update_(cache, new, position)
        old = step.args[0].value
        self._define(step.results[0], cache, self.trace.views[old].root)
        self.trace.actions.append(Action("update", step, step.reads, step.results))

    def _kernel(self, step: KernelStep) -> None:
        kernel = self.kernels[step.kernel]
        operands = tuple(
            self._contiguous(v, t, kernel.name)
            for v, t in zip(step.operands, kernel.operands, strict=True)
        )
        tensors = [self._value(v) for v in operands]
        shapes = [t.shape for t in tensors]
        for value, type_ in zip(step.results, kernel.results, strict=True):
            extents = result_shape(kernel, type_, shapes)
            result = torch.empty(extents, dtype=DTYPES[type_.dtype], device=self.device.place)
            self.trace.roots.append(Root("buffer", result.nbytes))
            self._define(value, result, len(self.trace.roots) - 1)
            tensors.append(result)
        rows = kernel_rows(kernel, tensors)
        self.launch(kernel.name, [t.data_ptr() for t in tensors], rows)
        self.trace.actions.append(Action("kernel", step, operands, step.results, rows))

    def _contiguous(self, value: int, type_: TensorType | None, kernel: str) -> int:
        """`value`, or that of a contiguous and aligned copy; checks it against the type."""
        tensor = self._value(value)
        if type_ is not None:
            agree = len(type_.shape) == tensor.dim() and all(
                n in (DYNAMIC, extent) for n, extent in zip(type_.shape, tensor.shape, strict=True)
            )
            if not agree or tensor.dtype != DTYPES[type_.dtype]:
                found = TensorType(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
                raise QfuseError(f"kernel {kernel} expects {type_} but is given {found}")
        if tensor.is_contiguous() and tensor.data_ptr() % self.device.alignment == 0:
            return value
        if value not in self.copies:
            self.copies[value] = self.next_value
            self.next_value += 1
        copy = self.copies[value]
        if value in self.trace.known:
            self.trace.known[copy] = dense_copy(tensor)
        elif copy not in self.env:
            made = dense_copy(tensor)
            self.trace.roots.append(Root("buffer", made.nbytes))
            self._define(copy, made, len(self.trace.roots) - 1)
            self.trace.actions.append(Action("copy", None, (value,), (copy,)))
        return copy


def dense_copy(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy, which torch's allocators put at a multiple of 64 bytes."""
    return tensor.clone(memory_format=torch.contiguous_format)


def result_shape(
    kernel: KernelType, result: TensorType, shapes: Sequence[Sequence[int]]
) -> list[int]:
    """The extents of a result: a DYNAMIC one is that of the first operand that has it, too.

    Where the kernel says which operand has its rows, the one DYNAMIC extent before the last makes
    as many.
    """
    extents = list(result.shape)
    if kernel.rows is not None and extents[:-1].count(DYNAMIC) == 1:
        operand, dims = kernel.rows
        known = math.prod(n for n in extents[:-1] if n != DYNAMIC)
        extents[extents.index(DYNAMIC)] = math.prod(shapes[operand][:dims]) // known
    for i in (i for i, n in enumerate(extents) if n == DYNAMIC):
        for type_, shape in zip(kernel.operands, shapes, strict=True):
            if type_ and len(type_.shape) == len(extents) and type_.shape[i] == DYNAMIC:
                extents[i] = shape[i]
                break
        else:
            raise QfuseError(f"kernel {kernel.name}: no operand tells extent {i} of {result}")
    return extents


def kernel_rows(kernel: KernelType, tensors: Sequence[torch.Tensor]) -> int:
    """M: the extents that the kernel names, or those of the first result but its last."""
    if kernel.rows is not None:
        operand, dims = kernel.rows
        return math.prod(tensors[operand].shape[:dims])
    first = tensors[len(kernel.operands)]
    return math.prod(first.shape[:-1])


def _view(tensor: torch.Tensor, root: int) -> View:
    return View(
        root,
        int(tensor.storage_offset()) * tensor.dtype.itemsize,
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.is_contiguous(),
    )


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
