"""The plan: what a compiled program does, as data that can be written to a file.

Values are numbered; every step names the values it reads and defines.  A quantized tensor is
two values, its codes and its scales, or three with zero points.  Shapes stay symbolic (`DYNAMIC`)
until a call fixes them.
"""

import base64
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, get_args
from typing import Literal as OneOf

import torch

from qfuse.dialects.errors import QfuseError

DYNAMIC = -1

DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        *("bool", "uint8", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"),
    )
}
"""Element types a plan may use, by torch's name."""

_TAGGED = {
    "dtype": torch.dtype,
    "layout": torch.layout,
    "memory_format": torch.memory_format,
    "device": torch.device,
}

Layout = OneOf["packed", "experts", "rows", "stack"]
"""How the kernels of a target want a weight: see `Prepare`."""

Scalar = bool | int | float


@dataclass(frozen=True)
class Ref:
    """A value, as an argument of a call."""

    value: int


Arg = Any
"""An argument: a Ref, a constant (number, str, None, dtype, device, ...), or a list of those."""


@dataclass(frozen=True)
class TensorType:
    """Shape, with DYNAMIC for extents known only at run time, and dtype by torch's name."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        dims = ", ".join("?" if d == DYNAMIC else str(d) for d in self.shape)
        return f"{self.dtype}[{dims}]"


@dataclass(frozen=True)
class Argument:
    """A parameter, input or cache of the program; `type` is "int" or the like for a scalar."""

    name: str
    value: int
    type: TensorType | str


@dataclass(frozen=True)
class Output:
    """A result of the program: a value or a constant."""

    name: str
    arg: Arg


@dataclass(frozen=True)
class Literal:
    """A small tensor written into the program itself."""

    value: int
    type: TensorType
    data: bytes


@dataclass(frozen=True)
class Prepare:
    """A weight to put into the kernels' layout, once: its parts joined by rows.

    A part is (codes, scales) or (codes, scales, zero points), its elements packed as `packing` of
    `#qfuse.scheme` says, in blocks of `block`; or it is an unquantized weight alone, of the type
    `packing`.  Layout "packed" (CPU kernels) defines `packed` as uint8, 1-D, and `scale`, with the
    zero points, as `lowering.cpu.layout` draws them; "experts" is the same for one weight
    [E, N, K], whose rows, where no scale serves several, are parts of `rows` rows.  "rows" (GPU
    kernels) leaves all as they are but that each part begins at a block boundary, and defines
    `zero`, too, where there are zero points.  Further parts of "experts", and those of "stack" (its
    counterpart of GPU kernels), joined by rows, are one more expert: [E + 1, N, K].
    """

    parts: tuple[tuple[int, ...], ...]
    block: tuple[int, int]
    layout: Layout
    packing: str
    packed: int
    scale: int | None = None
    zero: int | None = None
    rows: tuple[int, ...] = ()

    @property
    def made(self) -> tuple[int, ...]:
        """The values that it defines."""
        values = (self.packed, self.scale, self.zero)
        return tuple(v for v in values if v is not None)


@dataclass(frozen=True)
class KernelType:
    """The tensors a kernel reads and writes, in the order of its pointers.

    None stands for an operand whose layout is the kernel's own (a prepared weight).  `rows` is
    (operand, dims) where the rows of the results are as many as the first `dims` extents of that
    operand make; without it, a result takes each DYNAMIC extent from an operand of its rank.
    """

    name: str
    operands: tuple[TensorType | None, ...]
    results: tuple[TensorType, ...]
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class KernelStep:
    """Launch a kernel."""

    kernel: str
    operands: tuple[int, ...]
    results: tuple[int, ...]
    where: str = ""

    @property
    def reads(self) -> tuple[int, ...]:
        return self.operands


@dataclass(frozen=True)
class TorchStep:
    """Call a torch operator, by its qualified name: `aten.add.Tensor`."""

    op: str
    args: tuple[Arg, ...]
    kwargs: tuple[tuple[str, Arg], ...]
    results: tuple[int, ...]
    where: str = ""

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple(refs((*self.args, *(arg for _, arg in self.kwargs))))


@dataclass(frozen=True)
class ChoiceStep:
    """One value by a library for some numbers of rows, where it has `call`, else by kernels.

    The rows are those of the value `rows_of`, its leading extents multiplied; `ranges` are the
    first and the last number of rows (None: no last) that `library` serves, and `kernel` serves
    any.  Both define `results`.
    """

    rows_of: int
    call: str
    ranges: tuple[tuple[int, int | None], ...]
    library: "tuple[TorchStep | KernelStep, ...]"
    kernel: "tuple[TorchStep | KernelStep, ...]"
    results: tuple[int, ...]

    @property
    def steps(self) -> "tuple[TorchStep | KernelStep, ...]":
        return (*self.library, *self.kernel)

    @property
    def reads(self) -> tuple[int, ...]:
        """What either way reads from before."""
        made = {v for step in self.steps for v in step.results}
        read = dict.fromkeys(v for step in self.steps for v in step.reads if v not in made)
        return tuple({**dict.fromkeys([self.rows_of]), **read})

    def serves(self, rows: int) -> bool:
        """Whether the library is to multiply this many rows."""
        return any(first <= rows <= (last or rows) for first, last in self.ranges)


Step = TorchStep | KernelStep | ChoiceStep


@dataclass(frozen=True)
class Plan:
    """A whole program.  `cache_results` says which value each cache holds after a call."""

    parameters: tuple[Argument, ...]
    inputs: tuple[Argument, ...]
    caches: tuple[Argument, ...]
    outputs: tuple[Output, ...]
    cache_results: tuple[tuple[str, int], ...]
    literals: tuple[Literal, ...]
    prepares: tuple[Prepare, ...]
    kernels: tuple[KernelType, ...]
    steps: tuple[Step, ...]

    @property
    def single_steps(self) -> "tuple[TorchStep | KernelStep, ...]":
        """All steps, those of choices in place of these."""
        found: list[TorchStep | KernelStep] = []
        for step in self.steps:
            found += step.steps if isinstance(step, ChoiceStep) else [step]
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain data that `json.dumps` takes."""
        return {
            "parameters": [asdict(a) for a in self.parameters],
            "inputs": [asdict(a) for a in self.inputs],
            "caches": [asdict(a) for a in self.caches],
            "outputs": [[o.name, _dump(o.arg)] for o in self.outputs],
            "cache_results": [list(r) for r in self.cache_results],
            "literals": [
                [x.value, asdict(x.type), base64.b64encode(x.data).decode()] for x in self.literals
            ],
            "prepares": [asdict(p) for p in self.prepares],
            "kernels": [asdict(k) for k in self.kernels],
            "steps": [_dump_step(s) for s in self.steps],
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> "Plan":
        """The plan that `to_json` wrote; raises QfuseError on anything else."""
        try:
            return Plan(
                parameters=tuple(map(_load_argument, data["parameters"])),
                inputs=tuple(map(_load_argument, data["inputs"])),
                caches=tuple(map(_load_argument, data["caches"])),
                outputs=tuple(Output(name, _load(arg)) for name, arg in data["outputs"]),
                cache_results=tuple((name, int(v)) for name, v in data["cache_results"]),
                literals=tuple(
                    Literal(v, _load_type(t), base64.b64decode(raw))
                    for v, t, raw in data["literals"]
                ),
                prepares=tuple(
                    Prepare(
                        tuple(tuple(map(int, part)) for part in p["parts"]),
                        (p["block"][0], p["block"][1]),
                        _load_layout(p["layout"]),
                        str(p["packing"]),
                        p["packed"],
                        p["scale"],
                        p["zero"],
                        tuple(map(int, p["rows"])),
                    )
                    for p in data["prepares"]
                ),
                kernels=tuple(
                    KernelType(
                        k["name"],
                        tuple(None if t is None else _load_type(t) for t in k["operands"]),
                        tuple(map(_load_type, k["results"])),
                        None if k["rows"] is None else (int(k["rows"][0]), int(k["rows"][1])),
                    )
                    for k in data["kernels"]
                ),
                steps=tuple(map(_load_step, data["steps"])),
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise QfuseError(f"the plan in the artifact is damaged: {error!r}") from error


def refs(arg: Arg) -> Iterator[int]:
    """The values an argument mentions."""
    if isinstance(arg, Ref):
        yield arg.value
    elif isinstance(arg, list | tuple):
        for item in arg:
            yield from refs(item)


def _dump(arg: Arg) -> Any:
    if isinstance(arg, Ref):
        return {"value": arg.value}
    if isinstance(arg, list | tuple):
        return [_dump(item) for item in arg]
    if isinstance(arg, float) and not math.isfinite(arg):
        return {"float": str(arg)}
    for tag, kind in _TAGGED.items():
        if isinstance(arg, kind):
            return {tag: str(arg).removeprefix("torch.")}
    return arg


def _load(data: Any) -> Arg:
    if isinstance(data, list):
        return [_load(item) for item in data]
    if not isinstance(data, dict):
        return data
    ((tag, text),) = data.items()
    if tag == "value":
        return Ref(int(text))
    if tag == "float":
        return float(text)
    if tag == "device":
        return torch.device(text)
    constant = getattr(torch, text)
    if not isinstance(constant, _TAGGED[tag]):
        raise ValueError(f"{text} is no {tag}")
    return constant


def _dump_step(step: Step) -> list[Any]:
    if isinstance(step, ChoiceStep):
        ways = [[_dump_step(s) for s in way] for way in (step.library, step.kernel)]
        ranges = [list(r) for r in step.ranges]
        return ["choice", step.rows_of, step.call, ranges, *ways, list(step.results)]
    if isinstance(step, KernelStep):
        return ["kernel", step.kernel, list(step.operands), list(step.results), step.where]
    kwargs = {name: _dump(arg) for name, arg in step.kwargs}
    return ["torch", step.op, _dump(step.args), kwargs, list(step.results), step.where]


def _load_step(data: list[Any]) -> Step:
    if data[0] == "choice":
        _, rows_of, call, ranges, *ways, results = data
        library, kernel = (tuple(map(_load_single, way)) for way in ways)
        pairs = tuple((int(first), None if last is None else int(last)) for first, last in ranges)
        return ChoiceStep(int(rows_of), str(call), pairs, library, kernel, tuple(map(int, results)))
    return _load_single(data)


def _load_single(data: list[Any]) -> TorchStep | KernelStep:
    if data[0] == "kernel":
        _, kernel, operands, results, where = data
        return KernelStep(kernel, tuple(map(int, operands)), tuple(map(int, results)), where)
    _, op, args, kwargs, results, where = data
    named = tuple((name, _load(arg)) for name, arg in kwargs.items())
    if not all(name.isidentifier() for name, _ in named):
        raise ValueError(f"argument names {list(kwargs)}")
    return TorchStep(op, tuple(_load(args)), named, tuple(map(int, results)), where)


def _load_type(data: dict[str, Any]) -> TensorType:
    if data["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {data['dtype']}")
    return TensorType(tuple(data["shape"]), data["dtype"])


def _load_layout(name: str) -> Layout:
    if name not in get_args(Layout):
        raise ValueError(f"unknown layout {name}")
    return name  # type: ignore[return-value]


def _load_argument(data: dict[str, Any]) -> Argument:
    type_ = data["type"]
    return Argument(
        data["name"], int(data["value"]), type_ if isinstance(type_, str) else _load_type(type_)
    )
