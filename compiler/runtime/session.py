"""Running a program: caches, buffers, and one specialisation per input shape."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from qfuse.compiler.runtime.capture import CapturedCall, can_capture
from qfuse.compiler.runtime.device import Device, find_device, place_plan
from qfuse.compiler.runtime.donation import donated_updates
from qfuse.compiler.runtime.plan import DTYPES, DYNAMIC, Argument, Ref, TensorType
from qfuse.compiler.runtime.profile import Profile, profile_of
from qfuse.compiler.runtime.program import Launch, Program
from qfuse.compiler.runtime.specialize import Specialization, Specializer
from qfuse.compiler.runtime.trace import Trace, Tracer, dense_copy
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.gpu_kernel import ALIGNMENT, GpuKernel

MAX_SPECIALIZATIONS = 16
"""Input shapes a session keeps a specialisation for; the least recently used one goes."""

STAGED_BYTES = 1 << 16
"""Inputs up to this size are copied to a fixed address, so that views of them cost nothing."""

_SCALARS = {"int": int, "float": float, "bool": bool}


class Session:
    """One user of a program: it owns the caches and all buffers, and runs one call at a time.

    `cache_len` is the extent of the caches' sequence dimension where the program leaves it open,
    `batch` that of their first one.  `poison` fills intermediate results with 0xFF after their
    last use and so makes a mistake about lifetimes visible; it is meant for tests.

    Outputs belong to the caller: no later call writes to them.  Caches start zeroed and keep
    their contents from call to call.

    A program for a GPU runs on `device`, by default where its weights are, else torch's current
    one, and on torch's current stream.  Its inputs have to be there, and its outputs are; inputs
    that are not contiguous, or not at a multiple of 16 bytes, are copied.  Calls with few tokens
    do not wait for the GPU; with `graphs` they are captured into CUDA graphs, which then replay.
    A position beyond the end of the caches is an error on the host, but on a GPU torch stops the
    whole process' use of it, as with any index out of range.
    """

    def __init__(
        self,
        program: Program,
        *,
        cache_len: int | None = None,
        batch: int = 1,
        poison: bool = False,
        device: Device | torch.device | str | None = None,
        graphs: bool = True,
    ) -> None:
        self.program = program
        self.poison = poison
        self.graphs = graphs
        if not isinstance(device, Device):
            device = find_device(program.target, device or _home(program))
        self.device = device
        self.plan = plan = place_plan(program.plan, device)
        counters = [k.counter_bytes for k in program.kernels.values() if isinstance(k, GpuKernel)]
        # not as inference tensors: calls in any mode write to the caches; entered, so that a first
        # call on another stream waits for the zeros
        with self._allocating(), torch.inference_mode(False), device.entered():
            self.caches = {
                cache.name: torch.zeros(
                    _cache_shape(cache, cache_len, batch), dtype=_dtype(cache), device=device.place
                )
                for cache in plan.caches
            }
            self._constants: dict[int, Any] = dict(program.constants_on(device.place))
            # launches leave counters zero, and run one after the other: all can have the same
            self._counters = device.buffer(max(counters, default=0), ALIGNMENT).zero_()
            self._scratch = [device.buffer(64, ALIGNMENT)]
            self._arena = torch.empty(0, dtype=torch.uint8, device=device.place)
        self._donated = donated_updates(plan)
        self._inputs = plan.inputs
        self._threads = device.threads
        self._is_here = device.holds
        self._dtypes = [None if isinstance(a.type, str) else _dtype(a) for a in plan.inputs]
        self._specializations: dict[tuple[Any, ...], Specialization | None] = {}
        self._lock = threading.Lock()

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run the program on its inputs, in the order of the plan; returns its outputs.

        Raises QfuseError on inputs that do not fit; the caches are then as they were.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad():
            if self.device.is_host:
                return self._call(inputs)
            with self.device.entered():
                return self._call(inputs)

    def _call(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        key = self._key(inputs)
        specialization = self._specializations.get(key)
        if specialization is None:
            return self._first_call(key, inputs)
        self._specializations[key] = self._specializations.pop(key)  # now the youngest
        try:
            return specialization.call(*inputs)
        except (RuntimeError, IndexError) as error:  # what torch says of a bad index
            text = str(error).strip().partition("\n")[0]
            raise QfuseError(f"a torch operator of the program failed: {text}") from error

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The same by name: a dict of inputs in, a dict of outputs out."""
        names = [a.name for a in self._inputs]
        if set(inputs) != set(names):
            raise QfuseError(
                f"inputs are {', '.join(sorted(inputs))}; the program takes {', '.join(names)}"
            )
        outputs = self(*(inputs[name] for name in names))
        return dict(zip((o.name for o in self.program.plan.outputs), outputs, strict=True))

    def reset(self) -> None:
        """Zero all caches."""
        with self._lock, self.device.entered():
            for cache in self.caches.values():
                cache.zero_()

    def profile(self, *inputs: Any) -> Profile:
        """Run one call, and count the launches and bytes of a call with these shapes."""
        self(*inputs)
        with self._lock:
            key = self._key(inputs)
            specialization = self._specializations.get(key)
        if specialization is None:
            raise QfuseError("a program whose shapes depend on its data cannot be profiled")
        return profile_of(self.plan, specialization)

    def source(self, *inputs: Any) -> str:
        """The Python function that runs for inputs of these shapes (after a first call)."""
        with self._lock:
            specialization = self._specializations.get(self._key(inputs))
        if specialization is None:
            raise QfuseError("no call with these shapes has been made")
        return specialization.source

    @property
    def arena_bytes(self) -> int:
        """Memory for intermediate results."""
        return self._arena.nbytes

    def _key(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """What a specialisation depends on; raises QfuseError on inputs that do not fit."""
        key: list[Any] = [self._threads()]
        try:
            for item, dtype in zip(inputs, self._dtypes, strict=True):
                if dtype is None:
                    key.append((type(item), item))
                elif item.dtype is dtype and self._is_here(item):
                    key.append(item.shape)
                else:
                    raise TypeError
            result = tuple(key)
            if result not in self._specializations:
                self._check(inputs)
        except (TypeError, AttributeError, ValueError):
            self._check(inputs)
            raise
        return result

    def _check(self, inputs: Sequence[Any]) -> None:
        if len(inputs) != len(self._inputs):
            names = ", ".join(a.name for a in self._inputs)
            raise QfuseError(f"{len(inputs)} inputs are given; the program takes {names}")
        for item, argument in zip(inputs, self._inputs, strict=True):
            wanted = argument.type
            if isinstance(wanted, str):
                if type(item) is not _SCALARS[wanted]:
                    raise QfuseError(
                        f"input {argument.name} is {type(item).__name__}; "
                        f"the program takes {wanted}"
                    )
                continue
            if not isinstance(item, torch.Tensor):
                raise QfuseError(
                    f"input {argument.name} is {type(item).__name__}; the program takes {wanted}"
                )
            fits = len(item.shape) == len(wanted.shape) and all(
                n in (DYNAMIC, extent) for n, extent in zip(wanted.shape, item.shape, strict=True)
            )
            if not fits or item.dtype != DTYPES[wanted.dtype]:
                found = TensorType(tuple(item.shape), str(item.dtype).removeprefix("torch."))
                raise QfuseError(f"input {argument.name} is {found}; the program takes {wanted}")
            if not self._is_here(item):
                place = self.device.place
                cure = "" if item.is_meta else f"; pass it as .to('{place}')"
                raise QfuseError(
                    f"input {argument.name} is on {item.device}; the program runs on {place}{cure}"
                )

    def _first_call(self, key: tuple[Any, ...], inputs: Sequence[Any]) -> tuple[Any, ...]:
        plan = self.plan
        held = {cache.value: self.caches[cache.name] for cache in plan.caches}
        direct, scalars, order = {}, {}, []
        for item, argument in zip(inputs, self._inputs, strict=True):
            if isinstance(argument.type, str):
                scalars[argument.value] = item
                continue
            order.append(argument.value)
            if item.nbytes > STAGED_BYTES:
                fits = item.is_contiguous() and item.data_ptr() % self.device.alignment == 0
                direct[argument.value] = item if fits else dense_copy(item)
            else:
                held[argument.value] = dense_copy(item)
        tracer = Tracer(plan, self._constants, self._donated, self._launch, self.device)
        final = tracer.run(held, direct, scalars)
        outputs = self._finish(final, tracer.trace)
        if not tracer.trace.dynamic:
            with self._allocating():
                self._specializations[key] = self._specialize(
                    tracer.trace, order, frozenset(direct), len(scalars)
                )
            if len(self._specializations) > MAX_SPECIALIZATIONS:
                del self._specializations[next(iter(self._specializations))]
        return outputs

    def _specialize(
        self, trace: Trace, order: list[int], direct: frozenset[int], scalars: int
    ) -> Specialization:
        specializer = Specializer(
            self.plan,
            trace,
            order,
            direct,
            self._bind,
            self._allocate,
            self.poison,
            self.device,
        )
        specialization = specializer.build()
        if self.graphs and can_capture(specialization, self.device):
            specialization.call = CapturedCall(specialization, self.device)
        if scalars:
            # scalars are part of the key; the function takes tensors only
            tensors = [i for i, a in enumerate(self._inputs) if not isinstance(a.type, str)]
            call = specialization.call
            specialization.call = lambda *inputs: call(*(inputs[i] for i in tensors))
        return specialization

    def _finish(self, final: dict[int, Any], trace: Trace) -> tuple[Any, ...]:
        """Outputs and caches of a traced call."""

        def own(value: int) -> Any:
            item, view = final[value], trace.views.get(value)
            if not isinstance(item, torch.Tensor):
                return item
            fixed = view is None or trace.roots[view.root].held is not None
            return item.clone() if fixed else item

        plan = self.plan
        outputs = tuple(own(o.arg.value) if isinstance(o.arg, Ref) else o.arg for o in plan.outputs)
        held = {cache.name: cache.value for cache in plan.caches}
        saves = [
            (self.caches[name], own(value))
            for name, value in plan.cache_results
            if trace.views.get(value) != trace.views[held[name]]
        ]
        for cache, item in saves:
            cache.copy_(item)
        return outputs

    def _launch(self, kernel: str, pointers: Sequence[int], rows: int) -> None:
        self._bind(kernel, pointers, rows)()

    def _bind(self, kernel: str, pointers: Sequence[int], rows: int) -> Launch:
        compiled, threads = self.program.kernels[kernel], self._threads()
        if isinstance(compiled, GpuKernel):
            memory = [self._scratch_at(compiled.scratch_bytes(rows)), self._counters.data_ptr()]
        else:
            memory = [self._scratch_at(compiled.scratch_bytes(rows, threads))]
        return self.program.kernel(kernel).bind(pointers, rows, threads, *memory)

    def _scratch_at(self, size: int) -> int:
        """Where launches of that need find scratch; all share it."""
        if self._scratch[-1].nbytes < size:
            # launches hold addresses in the old ones, so those stay; doubling bounds their sum
            size = max(size, 2 * self._scratch[-1].nbytes)
            self._scratch.append(self.device.buffer(size, ALIGNMENT))
        return self._scratch[-1].data_ptr()

    @contextmanager
    def _allocating(self) -> Iterator[None]:
        """What torch says where memory cannot be had, in one line."""
        try:
            yield
        except RuntimeError as error:
            text = str(error).strip().partition("\n")[0]
            place = self.device.place
            raise QfuseError(f"no memory for the program on {place}: {text}") from error

    def _allocate(self, nbytes: int) -> torch.Tensor:
        """The arena: all specialisations use the same memory, since only one runs at a time."""
        if self._arena.nbytes < nbytes:
            self._arena = torch.empty(nbytes, dtype=torch.uint8, device=self.device.place)
        return self._arena[:nbytes]


def _home(program: Program) -> torch.device | None:
    """The GPU that the weights are on, if they are on one already."""
    return next((t.device for t in program.constants.values() if t.is_cuda), None)


def _dtype(argument: Argument) -> torch.dtype:
    assert isinstance(argument.type, TensorType)
    return DTYPES[argument.type.dtype]


def _cache_shape(cache: Argument, cache_len: int | None, batch: int) -> list[int]:
    """The extents of a cache [batch, heads, sequence, width], with the open ones filled in."""
    assert isinstance(cache.type, TensorType)
    shape = list(cache.type.shape)
    sequence = len(shape) - 2
    for i, extent in enumerate(shape):
        if extent != DYNAMIC:
            continue
        if i == sequence and cache_len is not None:
            shape[i] = cache_len
        elif i == 0:
            shape[i] = batch
        else:
            raise QfuseError(f"cache {cache.name} is {cache.type}: say how long it is to be")
    if cache_len is not None and shape[sequence] != cache_len:
        raise QfuseError(
            f"cache {cache.name} is {cache.type}; a length of {cache_len} needs the model "
            "compiled for it"
        )
    return shape
