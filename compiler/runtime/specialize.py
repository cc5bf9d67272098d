"""The trace turned into a Python function with everything resolved.

What is left for each call: launches with their pointers already in place, the torch operators
nobody folded, and pointer updates for what torch allocates anew.  The function is written as
Python source: locals and globals are the fastest variables there are, and a listing shows
exactly what runs.  The source holds only names and integers made here; operators, tensors and
other constants are objects in its namespace.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from qfuse.compiler import torch_ops
from qfuse.compiler.gpu_attention import visible
from qfuse.compiler.runtime import arena, calls
from qfuse.compiler.runtime.device import HOST, Device
from qfuse.compiler.runtime.plan import Plan, Ref, TorchStep, refs
from qfuse.compiler.runtime.trace import Action, Trace, View, dense_copy

Bind = Callable[[str, Sequence[int], int], Any]
"""bind(kernel, pointers, rows) -> a launch: callable, with its pointers in `.pointers`."""


@dataclass
class Specialization:
    """A program for one set of input shapes: `call(*inputs)` returns the outputs.

    Where calls can be captured there are its halves, too: `stage(*inputs)` copies the inputs to
    the addresses that `body()` reads.
    """

    call: Callable[..., tuple[Any, ...]]
    source: str
    trace: Trace
    actions: tuple[Action, ...]
    arena_bytes: int
    copied_outputs: tuple[int, ...]
    stage: Callable[..., None] | None = None
    body: Callable[[], tuple[Any, ...]] | None = None


@dataclass
class _Line:
    text: str
    uses: set[str] = field(default_factory=set)
    defines: str | None = None


class Specializer:
    """Writes the function for one trace.

    `inputs` lists the program's tensor inputs in call order; those in `direct` are used where
    the caller has them, the others are copied into the session's buffers.  `allocate(nbytes)`
    returns a uint8 tensor for the arena.  All of them, and what the function makes, lie on
    `device`.
    """

    def __init__(
        self,
        plan: Plan,
        trace: Trace,
        inputs: Sequence[int],
        direct: frozenset[int],
        bind: Bind,
        allocate: Callable[[int], torch.Tensor],
        poison: bool = False,
        device: Device = HOST,
    ) -> None:
        self.plan, self.trace, self.bind, self.poison = plan, trace, bind, poison
        self.device = device
        self.inputs, self.direct = inputs, direct
        self.allocate = allocate
        self.names: dict[str, Any] = {}
        self.lines: list[_Line] = []
        self.uses: set[str] = set()
        self.seen: dict[Any, str] = {}
        self.fresh = {i for i, root in enumerate(trace.roots) if root.kind == "fresh"}
        self.final = {v for o in plan.outputs for v in refs(o.arg)}
        self.final |= {v for _, v in plan.cache_results}
        # A kernel's result that leaves the program gets memory of its own in every call.
        self.fresh |= {
            view.root
            for value in self.final
            for view in self._views(value)
            if trace.roots[view.root].kind == "buffer"
        }
        self.owner: dict[int, int] = {}  # fresh root -> the value whose variable holds it
        for value in direct:
            self.owner[trace.views[value].root] = value
        for action in trace.actions:
            if action.kind in ("torch", "kernel"):
                for value in action.results:
                    for view in self._views(value):
                        self.owner.setdefault(view.root, value)
        self.actions = self._needed_actions()
        self.pointed = {
            at[0]
            for action in self.actions
            if action.kind == "kernel"
            for value in action.operands
            if self._is_fresh(value) and (at := self._pointer_of(value))
        }
        self.arena, self.offsets, self.dies = self._assign_arena()

    def build(self) -> Specialization:
        """Write, compile and return the function."""
        parameters = [f"v{value}" for value in self.inputs]
        for value in self.inputs:
            if value not in self.direct:
                self._line(f"{self._static(value)}.copy_(v{value})", uses={f"v{value}"})
        staging = len(self.lines)
        if self.poison and self.arena is not None:
            self._line(f"{self._name('arena', self.arena)}.fill_(255)")
        for value in self.direct:
            self._restore_layout(value)
        for i, action in enumerate(self.actions):
            getattr(self, f"_emit_{action.kind}")(i, action)
            if self.poison and self.arena is not None:
                for root in self.dies.get(i, ()):
                    start = self.offsets[root]
                    dead = self.arena[start : start + self.trace.roots[root].nbytes]
                    self._line(f"{self._name(f'dead{root}', dead)}.fill_(255)")
        copied = self._emit_end()
        if self.device.captures and not self.direct:
            inputs = ", ".join(parameters)
            source = (
                self._source("stage", parameters, self.lines[:staging])
                + self._source("body", [], self.lines[staging:])
                + f"def call({inputs}):\n    stage({inputs})\n    return body()\n"
            )
        else:
            source = self._source("call", parameters, self.lines)
        exec(compile(source, "<qfuse specialization>", "exec"), self.names)
        return Specialization(
            self.names["call"],
            source,
            self.trace,
            tuple(self.actions),
            0 if self.arena is None else self.arena.nbytes,
            copied,
            self.names.get("stage"),
            self.names.get("body"),
        )

    # What has to run, and where results lie

    def _views(self, value: int) -> list[View]:
        view = self.trace.views.get(value)
        return [] if view is None else view if isinstance(view, list) else [view]

    def _is_fresh(self, value: int) -> bool:
        return any(view.root in self.fresh for view in self._views(value))

    def _pointer_of(self, value: int) -> tuple[int, int] | None:
        """(owner, byte offset) when the address of a fresh value follows from its owner's."""
        view = self.trace.views[value]
        owner = self.owner[view.root]
        base = self.trace.views[owner]
        if isinstance(base, View) and base.contiguous and view.contiguous:
            return owner, view.offset - base.offset
        return None

    def _needed_actions(self) -> list[Action]:
        """All actions but the views that are folded, or that only kernels read."""
        needed = set(self.final)
        kept = []
        for action in reversed(self.trace.actions):
            if action.kind == "view":
                if not any(v in needed and self._is_fresh(v) for v in action.results):
                    continue
                needed.update(action.operands)
            elif action.kind == "kernel":
                needed.update(
                    v for v in action.operands if self._is_fresh(v) and self._pointer_of(v) is None
                )
            else:
                needed.update(action.operands)
            kept.append(action)
        return kept[::-1]

    def _assign_arena(self) -> tuple[torch.Tensor | None, dict[int, int], dict[int, list[int]]]:
        """The arena, the offset of each buffer in it, and the buffers that die at each action."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for i, action in enumerate(self.actions):
            for value in (*action.operands, *action.results):
                for view in self._views(value):
                    if view.root not in self.fresh and self.trace.roots[view.root].held is None:
                        first.setdefault(view.root, i)
                        last[view.root] = i
        roots = list(first)
        intervals = [arena.Interval(self.trace.roots[r].nbytes, first[r], last[r]) for r in roots]
        offsets, total = arena.assign(intervals)
        dies: dict[int, list[int]] = {}
        for root in roots:
            dies.setdefault(last[root], []).append(root)
        memory = self.allocate(total) if total else None
        return memory, dict(zip(roots, offsets, strict=True)), dies

    def _place(self, view: View) -> torch.Tensor:
        """The tensor of a view whose root has a fixed address."""
        held = self.trace.roots[view.root].held
        base = held if held is not None else self.arena
        empty = torch.empty(0, dtype=view.dtype, device=self.device.place)
        if base is None:  # an arena of no bytes: some extent is zero
            return empty.new_empty(view.shape)
        start = view.offset if held is not None else view.offset + self.offsets[view.root]
        return empty.set_(
            base.untyped_storage(), start // view.dtype.itemsize, view.shape, view.stride
        )

    # Names and expressions

    def _name(self, name: str, thing: Any) -> str:
        self.names[name] = thing
        return name

    def _static(self, value: int) -> str:
        name = f"s{value}"
        if name not in self.names:
            view = self.trace.views[value]
            many = isinstance(view, list)
            self.names[name] = [self._place(v) for v in view] if many else self._place(view)
        return name

    def _value(self, value: int) -> str:
        """An expression for a value; adds the variable it reads, if any, to `uses`."""
        if value in self.trace.views:
            if self._is_fresh(value):
                self.uses.add(f"v{value}")
                return f"v{value}"
            return self._static(value)
        return self._constant(self.trace.known[value], f"c{value}")

    def _constant(self, thing: Any, name: str) -> str:
        if thing is None or isinstance(thing, bool | int):
            return repr(thing)
        return self._name(name, thing)

    def _arg(self, arg: Any, name: str) -> str:
        if isinstance(arg, Ref):
            return self._value(arg.value)
        if isinstance(arg, list):
            items = [self._arg(item, f"{name}_{i}") for i, item in enumerate(arg)]
            return f"[{', '.join(items)}]"
        return self._constant(arg, name)

    # Lines

    def _line(self, text: str, uses: set[str] | None = None, defines: str | None = None) -> None:
        self.lines.append(_Line(text, self.uses | (uses or set()), defines))
        self.uses = set()

    def _restore_layout(self, value: int) -> None:
        """Pointers into `value` rely on the layout and alignment of the first call.

        Torch promises no layout, and nothing is known of the addresses of a caller's tensors.
        """
        if value in self.pointed or value in self.direct:
            name = f"v{value}"
            text = f"if not {name}.is_contiguous(): {name} = {name}.contiguous()"
            self._line(text, {name}, name)
            if self.device.alignment > 1:
                copy = self._name("dense_copy", dense_copy)
                text = f"if {name}.data_ptr() % {self.device.alignment}: {name} = {copy}({name})"
                self._line(text, {name}, name)

    def _emit_torch(self, i: int, action: Action) -> None:
        step = action.step
        assert isinstance(step, TorchStep)
        name = self._name(_identifier(step.op, i), calls.function(step.op))
        args = [self._arg(arg, f"o{i}_{j}") for j, arg in enumerate(step.args)]
        if calls.base_name(step.op) == calls.ATTENTION and not self.device.is_host:
            args += self._seen(step)
        args += [f"{key}={self._arg(arg, f'o{i}_{key}')}" for key, arg in step.kwargs]
        targets = ", ".join(f"v{value}" for value in step.results)
        self._line(f"{targets} = {name}({', '.join(args)})")
        for value in step.results:
            self._line("", set(), f"v{value}")
            self._restore_layout(value)

    def _seen(self, step: TorchStep) -> list[str]:
        """What attention makes of the position on a GPU: once for all layers that are alike."""
        q, k, v, position, _, window = step.args
        found = [self.trace.views.get(x.value) for x in (q, k, v)]
        places = [place for place in found if isinstance(place, View)]
        if len(places) < len(found) or not isinstance(window, int):
            return []
        if not 0 < places[0].shape[2] <= torch_ops.ASYNCHRONOUS_TOKENS:
            return []
        kind = (position.value, window, *((p.shape, p.dtype) for p in places))
        if kind not in self.seen:
            variable = self.seen[kind] = f"seen{len(self.seen)}"
            pending, self.uses = self.uses, set()
            args = ", ".join(self._value(x.value) for x in (q, k, v, position))
            text = f"{variable} = {self._name('visible', visible)}({args}, {window})"
            self._line(text, defines=variable)
            self.uses = pending
        self.uses.add(self.seen[kind])
        return [self.seen[kind]]

    _emit_view = _emit_torch

    def _emit_update(self, i: int, action: Action) -> None:
        name = self._name(f"kv_update_{i}", torch_ops.kv_update_)
        args = ", ".join(self._value(v) for v in action.operands)
        self._line(f"{name}({args})")

    def _emit_copy(self, i: int, action: Action) -> None:
        source = self._value(action.operands[0])
        self._line(f"{self._static(action.results[0])}.copy_({source})")

    def _emit_kernel(self, i: int, action: Action) -> None:
        step = action.step
        assert step is not None and not isinstance(step, TorchStep)
        pointers: list[int] = []
        kept: set[str] = set()
        updates: list[tuple[int, str, set[str]]] = []
        for j, value in enumerate((*action.operands, *action.results)):
            if value in self.trace.known:
                pointers.append(self.trace.known[value].data_ptr())
                self._name(f"c{value}", self.trace.known[value])  # keeps it alive
                continue
            if not self._is_fresh(value):
                name = self._static(value)
                pointers.append(self.names[name].data_ptr())
                continue
            pointers.append(0)
            if value in action.results:
                view = self.trace.views[value]
                make = partial(torch.empty, view.shape, dtype=view.dtype, device=self.device.place)
                self._line(f"v{value} = {self._name(f'new{value}', make)}()", set(), f"v{value}")
                updates.append((j, f"v{value}.data_ptr()", {f"v{value}"}))
            elif (at := self._pointer_of(value)) is not None:
                owner, offset = f"v{at[0]}", f" + {at[1]}" if at[1] else ""
                updates.append((j, f"{owner}.data_ptr(){offset}", {owner}))
            else:
                dense = f"d{i}_{j}"
                self._line(f"{dense} = v{value}.contiguous()", {f"v{value}"}, dense)
                updates.append((j, f"{dense}.data_ptr()", {dense}))
        launch = self.bind(step.kernel, pointers, action.rows)
        name = self._name(_identifier(step.kernel, i), launch)
        for j, address, uses in updates:
            self._line(f"{self._name(f'p{i}', launch.pointers)}[{j}] = {address}", uses)
            kept |= uses
        self._line(f"{name}()", kept)

    def _emit_end(self) -> tuple[int, ...]:
        """Outputs, then caches; returns the values that had to be copied.

        The caller never gets memory that a later call writes, nor a parameter.
        """
        copied: list[int] = []

        def own(value: int, variable: str) -> str:
            if self._is_fresh(value):
                return f"v{value}"
            known = self.trace.known.get(value)
            if value in self.trace.known and not isinstance(known, torch.Tensor):
                return self._constant(known, f"c{value}")
            self._line(f"{variable} = {self._value(value)}.clone()", set(), variable)
            copied.append(value)
            return variable

        outputs = [
            own(output.arg.value, f"r{i}")
            if isinstance(output.arg, Ref)
            else self._constant(output.arg, f"o{i}")
            for i, output in enumerate(self.plan.outputs)
        ]
        held = {cache.name: cache.value for cache in self.plan.caches}
        saves = []
        for name, value in self.plan.cache_results:
            if self.trace.views.get(value) != self.trace.views[held[name]]:
                # all are made before any is stored: one may be what another cache held
                saves.append((self._static(held[name]), own(value, f"w{value}")))
                copied.append(value)
        for cache, text in saves:
            self._line(f"{cache}.copy_({text})", {text})
        variables = {text for text in outputs if text not in self.names}
        self._line(f"return ({''.join(f'{text}, ' for text in outputs)})", variables)
        return tuple(copied)

    def _source(self, name: str, parameters: list[str], lines: Sequence[_Line]) -> str:
        """A function of these lines, with each variable deleted after its last use."""
        last: dict[str, int] = {}
        for i, line in enumerate(lines):
            last.update(dict.fromkeys(line.uses, i))
            if line.defines is not None:
                last[line.defines] = i
        text = [f"def {name}({', '.join(parameters)}):", *(["    pass"] if not lines else [])]
        for i, line in enumerate(lines):
            if line.text:
                text.append(f"    {line.text}")
            done = sorted(v for v in (*line.uses, line.defines) if v and last[v] == i)
            if done and not line.text.startswith("return"):
                text.append(f"    del {', '.join(dict.fromkeys(done))}")
        return "\n".join(text) + "\n"


def _identifier(text: str, i: int) -> str:
    """A Python name for the operator or kernel of action `i`; plans come from files."""
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', text).lstrip('0123456789_') or 'call'}_{i}"
