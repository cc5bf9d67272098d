"""Weights, kernels and library calls of a plan: operations of the qfuse dialect, and func.call."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from qfuse.compiler.plan.reading import kernel_type, tensor_type, unsupported, where
from qfuse.compiler.runtime import library
from qfuse.compiler.runtime.plan import (
    DTYPES,
    Argument,
    ChoiceStep,
    KernelStep,
    KernelType,
    Layout,
    Prepare,
    Ref,
    Step,
    TorchStep,
)
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.types import Shaped, shaped
from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.kernel import Parameter as CpuParameter
from qfuse.lowering.triton.gpu_kernel import GpuKernel

Kernel = CompiledKernel | GpuKernel

_COMPONENTS = ("data", "scale", "zero")
"""What the pointers of kernels are to, in the order of the operands of `qfuse.pack`."""


@dataclass(frozen=True)
class Quantized:
    """A qtensor: the components of its parts, more than one part after `qfuse.concat`.

    A plain weight of several parts, or one to be packed, is one, too, with one component in each.
    After `qfuse.append_expert`, the first part is that of all experts but the last.
    """

    parts: tuple[tuple[int, ...], ...]
    type: Shaped
    rows: tuple[int, ...] = ()
    """Those of `Prepare`."""


class ProductBuilder:
    """Numbers for the values of `@main`, and the steps that qfuse operations and calls become.

    `functions` are those of the module by name, `kernels` what was compiled of them.
    """

    def __init__(self, functions: Mapping[str, func.FuncOp], kernels: Mapping[str, Kernel]) -> None:
        self.functions, self.compiled = functions, kernels
        self.count = 0
        self.bound: dict[ir.Value, Any] = {}
        self.parameters: dict[int, Argument] = {}
        self.prepares: dict[tuple[Any, ...], Prepare] = {}
        self.kernels: dict[str, KernelType] = {}
        self.steps: list[Step] = []

    def _operation(self, op: ir.OpView) -> None:
        """Any operation; regions of `qfuse.choose` have some, too."""
        raise NotImplementedError

    # Values

    def _new(self) -> int:
        self.count += 1
        return self.count - 1

    def _bound(self, value: ir.Value) -> Any:
        return self.bound[value]

    def _tensor(self, value: ir.Value, op: ir.OpView) -> int:
        """The number of a plain tensor value."""
        bound = self._bound(value)
        if not isinstance(bound, Ref):
            raise unsupported(op, "an operand is not a plain tensor")
        return bound.value

    def _define(self, op: ir.OpView) -> tuple[int, ...]:
        """Numbers for the results of an operation."""
        numbers = tuple(self._new() for _ in op.results)
        for result, number in zip(op.results, numbers, strict=True):
            self.bound[result] = Ref(number)
        return numbers

    # Weights

    def _pack(self, op: ir.OpView) -> None:
        components = tuple(self._tensor(v, op) for v in op.operands)
        self.bound[op.results[0]] = Quantized((components,), shaped(op.results[0].type))

    def _unpack(self, op: ir.OpView) -> None:
        value = self._bound(op.operands[0])
        if len(value.parts) != 1:
            raise unsupported(op, "a joined weight exists only in the kernels' own layout")
        for result, number in zip(op.results, value.parts[0], strict=True):
            self.bound[result] = Ref(number)

    def _concat(self, op: ir.OpView) -> None:
        parts = tuple(part for v in op.operands for part in self._parts_of(v, op))
        self.bound[op.results[0]] = Quantized(parts, shaped(op.results[0].type))

    def _parts_of(self, value: ir.Value, op: ir.OpView) -> tuple[tuple[int, ...], ...]:
        bound = self._bound(value)
        return bound.parts if isinstance(bound, Quantized) else ((self._tensor(value, op),),)

    def _append_expert(self, op: ir.OpView) -> None:
        experts, weight = (self._parts_of(v, op) for v in op.operands)
        if len(experts) != 1:
            raise unsupported(op, "only one expert is appended to others")
        parts = (*experts, *weight)
        self.bound[op.results[0]] = Quantized(parts, shaped(op.results[0].type))

    # Kernels and library calls

    def _call(self, op: ir.OpView) -> None:
        name = op.attributes["callee"].value
        function = self.functions.get(name)
        if function is None or "qfuse.kernel" not in function.attributes:
            raise unsupported(op, f"@{name} is not a kernel")
        if name not in self.compiled:
            raise unsupported(op, f"kernel @{name} was not compiled")
        kernel = self.compiled[name]
        operands = []
        for parameter in kernel.parameters:
            if parameter.source == "operand":
                value = self._bound(op.operands[parameter.index])
                packed = isinstance(parameter, CpuParameter) and parameter.packed
                layout: Layout = "packed" if packed else "rows"
                if packed:
                    value = self._packed(op.operands[parameter.index], function, op)
                operands.append(self._pointer(value, parameter.part, layout, op))
        results = self._results_of(op)
        if name not in self.kernels:
            self.kernels[name] = kernel_type(name, function, kernel)
        self.steps.append(KernelStep(name, tuple(operands), results, where(op)))

    def _packed(self, weight: ir.Value, kernel: func.FuncOp, op: ir.OpView) -> Quantized:
        """A weight that `kernel`, which holds one product, wants packed."""
        type_ = shaped(weight.type)
        value = Quantized(self._parts_of(weight, op), type_)
        height = type_.scheme.block[0] if type_.scheme else 1
        if len(type_.shape) != 3 or height > 1:
            return value
        parts = tuple(kernel.entry_block.operations[0].attributes["parts"])
        return replace(value, rows=parts if len(parts) > 1 else ())

    def _results_of(self, op: ir.OpView) -> tuple[int, ...]:
        """Numbers for the results of an operation: two for a quantized one, codes and scales."""
        results: list[int] = []
        for result in op.results:
            if shaped(result.type).quantized:
                pair = (self._new(), self._new())
                self.bound[result] = Quantized((pair,), shaped(result.type))
                results.extend(pair)
            else:
                results.append(self._new())
                self.bound[result] = Ref(results[-1])
        return tuple(results)

    def _library_call(self, op: ir.OpView) -> None:
        """A product by the library: its tensors in the order in which `library.py` takes them."""
        sizes = list(op.attributes["operandSegmentSizes"])
        given = iter([self._bound(v) for v in op.operands])
        x, w, indptr, bias = (next(given) if size else None for size in sizes)
        call = f"{library.NAMESPACE}.{op.attributes['call'].value}"
        args = [self._parts(x, op), self._parts(w, op)]
        if call == f"{library.NAMESPACE}.scaled_mm_blocks":
            scale = self._new()
            prepare = f"{library.NAMESPACE}.block_scales"
            self.steps.append(TorchStep(prepare, (args[1][1],), (), (scale,), where(op)))
            args[1][1] = Ref(scale)
        factor = op.attributes["scale"].value if "scale" in op.attributes else 1.0
        if factor != 1 and len(args[1]) == 2:  # an exact one goes into the scales of w, once
            scaled = self._new()
            about = (args[1][1], factor)
            self.steps.append(TorchStep("aten.mul.Scalar", about, (), (scaled,), where(op)))
            args[1][1] = Ref(scaled)
        flat: list[Any] = [part for parts in args for part in parts]
        flat += [indptr] if indptr is not None else [bias]
        if isinstance(x, Quantized):
            flat.append(DTYPES[tensor_type(op.results[0].type, "a product").dtype])
        elif indptr is None:
            flat.append(op.attributes["activation"].value)
            flat += [factor] if factor != 1 else []
        self.steps.append(TorchStep(call, tuple(flat), (), self._define(op), where(op)))

    def _parts(self, value: Any, op: ir.OpView) -> list[Ref]:
        """A plain tensor, or the codes and scales of a quantized one."""
        if isinstance(value, Ref):
            return [value]
        if value.type.scheme is None:
            return [Ref(self._pointer(value, "data", "rows", op))]
        return [Ref(self._pointer(value, part, "rows", op)) for part in ("data", "scale")]

    def _choose(self, op: ir.OpView) -> None:
        """Two ways to one value; what each does becomes steps of its own."""
        x = self._bound(op.operands[0])
        rows_of = x.value if isinstance(x, Ref) else x.parts[0][0]
        flat = list(op.attributes["ranges"])
        ranges = tuple(
            (first, None if last < 0 else last)
            for first, last in zip(flat[::2], flat[1::2], strict=True)
        )
        results = self._results_of(op)
        outside, ways = self.steps, list[tuple[Any, ...]]()
        for region in op.regions:
            self.steps = []
            *body, terminator = region.blocks[0].operations
            for inner in body:
                self._operation(inner)
            made = dict(zip(_numbers(self._bound(terminator.operands[0])), results, strict=True))
            ways.append(tuple(_renamed(step, made) for step in self.steps))
        self.steps = outside
        call = op.attributes["call"].value
        library_way, kernel_way = ways
        self.steps.append(ChoiceStep(rows_of, call, ranges, library_way, kernel_way, results))

    def _pointer(self, value: Any, part: str, layout: Layout, op: ir.OpView) -> int:
        """The value behind one pointer of a kernel."""
        if isinstance(value, Ref) and layout == "rows":
            return value.value
        if not isinstance(value, Quantized):
            raise unsupported(op, "a kernel takes tensors and weights only")
        if len(value.type.shape) == 3 and (layout == "packed" or len(value.parts) > 1):
            layout = "experts" if layout == "packed" else "stack"
        if layout != "rows" or len(value.parts) > 1:
            return self._prepare(value, layout, op).made[_COMPONENTS.index(part)]
        return value.parts[0][_COMPONENTS.index(part)]

    def _prepare(self, value: Quantized, layout: Layout, op: ir.OpView) -> Prepare:
        for number in (n for part in value.parts for n in part):
            if number not in self.parameters:
                raise unsupported(op, "a weight is not a parameter of the program")
        scheme = value.type.scheme
        block, packing = (1, value.type.shape[-1]), value.type.dtype
        if scheme is not None:
            block, packing = scheme.block, scheme.packing
        key = (value.parts, block, layout, packing, value.rows)
        if key not in self.prepares:
            components = len(value.parts[0])
            count = components if layout in ("rows", "stack") else min(components, 2)
            packed, *others = (self._new() for _ in range(count))
            scale, zero = [*others, None, None][:2]
            self.prepares[key] = Prepare(
                value.parts, block, layout, packing, packed, scale, zero, value.rows
            )
        return self.prepares[key]


def _numbers(value: Any) -> tuple[int, ...]:
    """The values that a tensor, or the codes and scales of a quantized one, are."""
    return (value.value,) if isinstance(value, Ref) else value.parts[0]


def _renamed(step: Step, names: Mapping[int, int]) -> Step:
    """`step` with other numbers for some of its results."""
    return replace(step, results=tuple(names.get(value, value) for value in step.results))
