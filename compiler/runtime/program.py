"""A plan with its weights and kernels: everything that runs, and what an artifact holds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from qfuse.compiler.runtime import artifact
from qfuse.compiler.runtime.plan import DTYPES, Argument, KernelStep, Plan, Prepare, TensorType
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.cpu import cpu_features
from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.launcher import LoadedKernel
from qfuse.lowering.cpu.weights import (
    Part,
    empty_weight,
    layout_of,
    pack_experts,
    pack_weight,
    split_rows,
)
from qfuse.lowering.triton.gpu_kernel import GpuKernel
from qfuse.lowering.triton.weights import append_expert, join_rows, joined_rows

Kernel = CompiledKernel | GpuKernel
LoadKernel = Callable[[Any], "Bindable"]
"""Puts a kernel of the program's target into executable memory."""


class Launch(Protocol):
    """A kernel with its arguments in place; `pointers[i]` may be changed between calls."""

    pointers: Any

    def __call__(self) -> None: ...


class Bindable(Protocol):
    """A kernel in executable memory; only those for GPUs take (and are given) counters."""

    @property
    def bind(self) -> Callable[..., Launch]: ...


@runtime_checkable
class ReadsInto(Protocol):
    """Parameters some of which are made when they are read, and could as well be made elsewhere."""

    def read_into(self, name: str, out: torch.Tensor) -> None:
        """Put the parameter `name` into `out`, which has its shape and type."""


def default_loader(target: str) -> LoadKernel:
    """What loads the kernels of a program for `target`, on the machine at hand."""
    if target == "cpu":
        return LoadedKernel
    from qfuse.lowering.triton.launcher import LoadedGpuKernel

    return LoadedGpuKernel


@dataclass
class Program:
    """What a session runs.

    `target` is what the kernels were compiled for: "cpu", or a GPU such as "cuda:sm_90".
    `constants` maps plan values to tensors, in the host's memory or on the target's device: the
    parameters that steps read as they are, weights in the kernels' layout, and literals.
    `info` and `report` are data for whoever made the program (a description of the model, the
    fusion report); they travel with the artifact.
    """

    plan: Plan
    constants: dict[int, torch.Tensor]
    kernels: dict[str, Kernel]
    info: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    target: str = "cpu"
    load_kernel: LoadKernel | None = None
    """None: what runs on this machine."""
    _loaded: dict[str, Bindable] = field(default_factory=dict, repr=False)
    _placed: dict[torch.device, dict[int, torch.Tensor]] = field(default_factory=dict, repr=False)

    @staticmethod
    def prepare(
        plan: Plan,
        parameters: Mapping[str, torch.Tensor],
        kernels: Mapping[str, Kernel],
        *,
        info: dict[str, Any] | None = None,
        report: dict[str, Any] | None = None,
        target: str = "cpu",
        load_kernel: LoadKernel | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> "Program":
        """Put the weights into the kernels' layout, once.

        `parameters` maps the plan's parameter names to tensors, which are only read; those that
        no step reads directly are not kept.  `progress(done, total)` is called after each
        weight.  Raises QfuseError on a tensor that is missing or does not fit the plan.
        """
        by_value = {p.value: p for p in plan.parameters}
        read = {v for step in plan.steps for v in step.reads}
        read |= {o.arg.value for o in plan.outputs if hasattr(o.arg, "value")}
        read |= {v for _, v in plan.cache_results}
        constants = {
            value: _parameter(parameters, argument, target)
            for value, argument in by_value.items()
            if value in read
        }
        for i, prepare in enumerate(plan.prepares):
            parts = []
            for at, part in enumerate(prepare.parts):
                # Whatever is joined to a stack of experts is written into the stack itself.
                get = _with_room if prepare.layout == "stack" and at == 0 else _parameter
                codes, *others = part
                found = [get(parameters, by_value[codes], target)]
                found += [_parameter(parameters, by_value[value], target) for value in others]
                parts.append(tuple(found))
            made = _ARRANGE[prepare.layout](parts, prepare)
            constants.update(zip(prepare.made, made, strict=True))
            if progress is not None:
                progress(i + 1, len(plan.prepares))
        for literal in plan.literals:
            constants[literal.value] = _literal(literal.data, literal.type)
        used = {k.name for k in plan.kernels}
        if missing := used - set(kernels):
            raise QfuseError(f"the plan calls kernels that were not compiled: {sorted(missing)}")
        return Program(
            plan,
            constants,
            {name: kernels[name] for name in sorted(used)},
            info or {},
            report or {},
            target,
            load_kernel,
        )

    @staticmethod
    def hollow(plan: Plan, kernels: Mapping[str, Kernel]) -> "Program":
        """A program of the right shapes without contents, whose kernels compute nothing.

        `Session.profile` counts the same launches and bytes for it, at no cost for weights: their
        memory is never touched.  Outputs mean nothing.
        """
        types = {p.value: _tensor_type(p) for p in plan.parameters}
        packed = {v for prepare in plan.prepares for part in prepare.parts for v in part}
        read = {v for step in plan.steps for v in step.reads}
        constants = {}
        for value, type_ in types.items():
            if value in read or value not in packed:
                constants[value] = torch.empty(type_.shape, dtype=DTYPES[type_.dtype])
        for prepare in plan.prepares:
            constants.update(zip(prepare.made, _empty_weight(prepare, types), strict=True))
        for literal in plan.literals:
            constants[literal.value] = _literal(literal.data, literal.type)
        used = {k.name: kernels[k.name] for k in plan.kernels}
        return Program(plan, constants, used, load_kernel=_Idle)

    def kernel(self, name: str) -> Bindable:
        """The kernel `name`, loaded on first use."""
        if name not in self._loaded:
            load = self.load_kernel or default_loader(self.target)
            self._loaded[name] = load(self.kernels[name])
        return self._loaded[name]

    def constants_on(self, place: torch.device) -> dict[int, torch.Tensor]:
        """`constants` on a device, copied there once for all sessions.

        From then on the program holds those on a GPU in place of the host's, which are the size
        of the model.
        """
        if place.type == "cpu":
            return self.constants
        if place not in self._placed:
            self._placed[place] = self.constants = _moved(self.constants, place)
        return self._placed[place]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, or nothing at all; raises QfuseError if it cannot."""
        held = _moved(self.constants, torch.device("cpu"))
        tensors = {f"value.{value}": tensor for value, tensor in held.items()}
        metadata = []
        for name, kernel in self.kernels.items():
            data = torch.frombuffer(bytearray(kernel.code), dtype=torch.uint8)
            tensors[f"kernel.{name}"] = data
            metadata.append({"name": name, "kernel": kernel.metadata()})
        artifact.write(
            Path(path),
            tensors,
            {
                "target": self.target,
                "plan": self.plan.to_json(),
                "kernels": metadata,
                "info": self.info,
                "report": self.report,
            },
        )

    @staticmethod
    def load(path: str | Path, *, load_kernel: LoadKernel | None = None) -> "Program":
        """Read what `save` wrote; weights stay in the file until they are touched.

        Raises QfuseError if the file is missing, damaged, of another version, or holds kernels
        for another CPU.  A program for a GPU can be looked at without one: running it is what
        takes the GPU.
        """
        tensors, metadata = artifact.read(Path(path))
        try:
            plan, target = Plan.from_json(metadata["plan"]), metadata["target"]
            kind = CompiledKernel if target == "cpu" else GpuKernel
            kernels: dict[str, Kernel] = {}
            for entry in metadata["kernels"]:
                data = tensors.pop(f"kernel.{entry['name']}")
                kernels[entry["name"]] = kind.from_metadata(entry["kernel"], data.numpy().tobytes())
            constants = {
                int(name.removeprefix("value.")): tensor for name, tensor in tensors.items()
            }
            info, report = metadata["info"], metadata["report"]
            if not isinstance(info, dict) or not isinstance(report, dict):
                raise TypeError("info and report are not tables")
            program = Program(plan, constants, kernels, info, report, target, load_kernel)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise QfuseError(f"{path} is a damaged qfuse artifact: {error!r}") from error
        for kernel in kernels.values():
            needed = kernel.features if isinstance(kernel, CompiledKernel) else ()
            if missing := sorted(set(needed) - set(cpu_features())):
                raise QfuseError(
                    f"{path} was compiled for a CPU with {', '.join(missing)}, which this one "
                    "lacks; compile the model again on this machine"
                )
        _check_complete(program, path)
        return program

    def sizes(self) -> dict[str, int]:
        """Bytes of weights and of kernel code, and counts, for people."""
        storages = {t.untyped_storage().data_ptr(): t.nbytes for t in self.constants.values()}
        return {
            "weight_bytes": sum(storages.values()),
            "kernel_bytes": sum(len(k.code) for k in self.kernels.values()),
            "kernels": len(self.kernels),
            "kernel_steps": sum(isinstance(s, KernelStep) for s in self.plan.single_steps),
            "torch_steps": sum(not isinstance(s, KernelStep) for s in self.plan.single_steps),
            "prepared_weights": len(self.plan.prepares),
        }


class _Idle:
    """A kernel that leaves its results as they are."""

    def __init__(self, kernel: Kernel) -> None:
        self.pointers: list[int] = []

    def bind(self, pointers: Sequence[int], m: int, threads: int, *memory: int) -> "_Idle":
        self.pointers = list(pointers)
        return self

    def __call__(self) -> None:
        """Nothing."""


def _moved(tensors: Mapping[int, torch.Tensor], place: torch.device) -> dict[int, torch.Tensor]:
    """`tensors` on a device; those that share memory share it there, too."""
    copies: dict[tuple[Any, ...], torch.Tensor] = {}
    for tensor in tensors.values():
        if (key := _identity(tensor)) not in copies:
            copies[key] = tensor.to(place)
    return {value: copies[_identity(tensor)] for value, tensor in tensors.items()}


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for tensors that are the same memory."""
    where = tensor.data_ptr() if tensor.numel() else id(tensor)
    return tensor.device, where, tensor.dtype, tensor.shape, tensor.stride()


def _pack(parts: Sequence[Part], prepare: Prepare) -> tuple[torch.Tensor, ...]:
    return pack_weight(parts, prepare.block, prepare.packing)


def _pack_experts(parts: Sequence[Part], prepare: Prepare) -> tuple[torch.Tensor, ...]:
    (codes, *others), *more = parts
    scale, zero, *_ = *others, None, None
    return pack_experts(codes, scale, prepare.block, prepare.packing, zero, more, prepare.rows)


def _join(parts: Sequence[Part], prepare: Prepare) -> tuple[torch.Tensor, ...]:
    of_first = parts[0]
    columns = of_first[1].shape[-1] if len(of_first) > 1 else None
    return join_rows([tuple(p) for p in parts], prepare.block, columns)


def _append_expert(parts: Sequence[Part], prepare: Prepare) -> tuple[torch.Tensor, ...]:
    experts, *more = (tuple(part) for part in parts)
    return append_expert(experts, more, prepare.block)


_ARRANGE = {"packed": _pack, "experts": _pack_experts, "rows": _join, "stack": _append_expert}
"""What puts a weight into each layout."""


def _parameter(
    parameters: Mapping[str, torch.Tensor], argument: Argument, target: str
) -> torch.Tensor:
    tensor = parameters.get(argument.name)
    if tensor is None:
        raise QfuseError(f"parameter {argument.name} is missing")
    wanted = _tensor_type(argument)
    if tuple(tensor.shape) != wanted.shape or tensor.dtype != DTYPES[wanted.dtype]:
        found = TensorType(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        raise QfuseError(f"parameter {argument.name} is {found}; the program expects {wanted}")
    places = ("cpu",) if target == "cpu" else ("cpu", "cuda")  # as torch calls any GPU
    if tensor.device.type not in places:
        raise QfuseError(
            f"parameter {argument.name} is on {tensor.device}; a program for {target} cannot use "
            "it there: move it to the cpu"
        )
    return tensor.detach().contiguous()


def _with_room(
    parameters: Mapping[str, torch.Tensor], argument: Argument, target: str
) -> torch.Tensor:
    """A copy of the weights [E, N, K] of experts with room for one more.

    There is no second copy at any time of a parameter that is made when it is read.
    """
    wanted = _tensor_type(argument)
    count, *each = wanted.shape
    if isinstance(parameters, ReadsInto) and argument.name in parameters:
        room = torch.empty(count + 1, *each, dtype=DTYPES[wanted.dtype])
        parameters.read_into(argument.name, room[:-1])
        return room
    experts = _parameter(parameters, argument, target)
    room = torch.empty(count + 1, *each, dtype=experts.dtype, device=experts.device)
    room[:-1].copy_(experts)
    return room


def _empty_weight(prepare: Prepare, types: Mapping[int, TensorType]) -> tuple[torch.Tensor, ...]:
    """What a prepared weight's values would be, without contents."""
    parts = [[types[value] for value in part] for part in prepare.parts]
    if prepare.layout in ("experts", "stack"):
        experts = parts[0][0].shape[0] + (len(parts) > 1)
        if prepare.layout == "stack":
            shapes = [((experts, *t.shape[1:]), DTYPES[t.dtype]) for t in parts[0]]
            return tuple(torch.empty(shape, dtype=dtype) for shape, dtype in shapes)
        of_one = split_rows([_meta(t)[0] for t in parts[0]], prepare.rows)
        return empty_weight(layout_of(of_one, prepare.block, prepare.packing), experts)
    if prepare.layout == "packed":
        of_parts = [[_meta(t) for t in part] for part in parts]
        return empty_weight(layout_of(of_parts, prepare.block, prepare.packing))
    _, total = joined_rows([codes.shape[0] for codes, *_ in parts], prepare.block[0])
    rows = [total, *(sum(part[i].shape[0] for part in parts) for i in range(1, len(parts[0])))]
    return tuple(
        torch.empty(n, *t.shape[1:], dtype=DTYPES[t.dtype])
        for n, t in zip(rows, parts[0], strict=True)
    )


def _meta(type_: TensorType) -> torch.Tensor:
    return torch.empty(type_.shape, dtype=DTYPES[type_.dtype], device="meta")


def _tensor_type(parameter: Argument) -> TensorType:
    if isinstance(parameter.type, str):
        raise QfuseError(f"parameter {parameter.name} is of type {parameter.type}, not a tensor")
    return parameter.type


def _literal(data: bytes, type_: TensorType) -> torch.Tensor:
    if not data:
        return torch.empty(type_.shape, dtype=DTYPES[type_.dtype])
    return torch.frombuffer(bytearray(data), dtype=DTYPES[type_.dtype]).reshape(type_.shape)


def _check_complete(program: Program, path: str | Path) -> None:
    plan = program.plan
    defined = set(program.constants)
    defined |= {a.value for a in (*plan.inputs, *plan.caches)}
    for step in plan.steps:
        if not defined.issuperset(step.reads):
            raise QfuseError(f"{path} is a damaged qfuse artifact: a weight is missing")
        defined.update(step.results)
    if not {k.name for k in plan.kernels} <= set(program.kernels):
        raise QfuseError(f"{path} is a damaged qfuse artifact: a kernel is missing")
