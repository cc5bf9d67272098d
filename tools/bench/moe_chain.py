"""The kernels that the compiler makes of a layer's experts, and the tensors they work on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from qfuse.compiler import pipeline
from qfuse.compiler.compilation import fuse
from qfuse.compiler.options import CompileOptions
from qfuse.compiler.passes.outline import kernel_functions
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import DYNAMIC

K = TypeVar("K")

_TYPES = {
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i8": torch.int8,
    "i32": torch.int32,
    "i64": torch.int64,
    "f8E4M3FN": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class Step(Generic[K]):
    """A launch: its kernel works on the values of these numbers."""

    name: str
    kernel: K
    operands: tuple[int, ...]
    results: tuple[int, ...]


@dataclass(frozen=True)
class Chain(Generic[K]):
    """Launches in order.  `values` are what they work on, the arguments of `@main` first."""

    steps: tuple[Step[K], ...]
    values: tuple[Shaped, ...]
    result: int

    def rows(self, step: Step[K], tokens: int) -> int:
        """The M of a launch: the rows of its first result."""
        leading = self.values[step.results[0]].rows
        return math.prod(tokens if extent == DYNAMIC else extent for extent in leading)

    def allocate(
        self, arguments: Sequence[list[torch.Tensor]], tokens: int, device: torch.device
    ) -> list[list[torch.Tensor]]:
        """The tensors of all values; the result is NaN until it is written."""
        made = list(arguments)
        for value in self.values[len(arguments) :]:
            shapes = [(value.shape, _TYPES[value.dtype])]
            if value.scheme is not None:
                shapes.append((value.scale_shape, _TYPES[value.scheme.scale]))
            made.append(
                [torch.empty(_static(s, tokens), dtype=t, device=device) for s, t in shapes]
            )
        made[self.result][0].fill_(torch.nan)
        return made


def tensors_of(step: Step[K], values: Sequence[list[torch.Tensor]]) -> list[torch.Tensor]:
    """In the order of the kernel's pointers."""
    return [tensor for i in (*step.operands, *step.results) for tensor in values[i]]


def compile_chain(
    text: str, options: CompileOptions, kernel: Callable[[func.FuncOp], K]
) -> Chain[K]:
    """Fuse the module of `text` for the target of `options`, and make its kernels by `kernel`."""
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(text)
        fuse(module, options)
        pipeline.run(module, pipeline.stages_of(["qfuse-convert-to-cpu"]))  # outlines, no more
        functions = kernel_functions(module.operation)
        kernels = {function.name.value: kernel(function) for function in functions}
        main = next(f for f in module.body.operations if f.name.value == "main")
        block = main.entry_block
        numbers: dict[ir.Value, int] = {value: i for i, value in enumerate(block.arguments)}
        types = [shaped(value.type) for value in block.arguments]
        steps = []
        *calls, end = block.operations
        for call in calls:
            for value in call.results:
                numbers[value] = len(types)
                types.append(shaped(value.type))
            name = call.attributes["callee"].value
            operands = tuple(numbers[v] for v in call.operands)
            results = tuple(numbers[v] for v in call.results)
            steps.append(Step(name, kernels[name], operands, results))
        return Chain(tuple(steps), tuple(types), numbers[end.operands[0]])


def _static(shape: Sequence[int], tokens: int) -> list[int]:
    return [tokens if extent == DYNAMIC else extent for extent in shape]
