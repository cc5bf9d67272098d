"""From the lowered module to the plan that runs.

`@main` is walked once, in order.  Torch operators and kernel calls become steps; constants and
casts vanish; `qfuse.pack`, `qfuse.concat` and `qfuse.append_expert` of parameters become weights to
prepare.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from qfuse.compiler.plan.reading import (
    attributes_of,
    boundary_type,
    constant,
    kernel_type,
    kind_and_name,
    literal_bytes,
    tensor_type,
    typed,
    unsupported,
    where,
)
from qfuse.compiler.runtime import calls, library
from qfuse.compiler.runtime.plan import (
    DTYPES,
    Argument,
    ChoiceStep,
    KernelStep,
    KernelType,
    Layout,
    Literal,
    Output,
    Plan,
    Prepare,
    Ref,
    Step,
    TorchStep,
    refs,
)
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Shaped, shaped
from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.kernel import Parameter as CpuParameter
from qfuse.lowering.triton.gpu_kernel import GpuKernel

Kernel = CompiledKernel | GpuKernel

# The value passes through unchanged.
_IDENTITIES = frozenset(
    (
        *("torch_c.to_builtin_tensor", "torch_c.from_builtin_tensor"),
        *("torch_c.to_i64", "torch_c.from_i64", "torch_c.to_f64", "torch_c.from_f64"),
        *("torch_c.to_i1", "torch_c.from_i1"),
        *("torch.copy.to_vtensor", "torch.copy.to_tensor", "torch.tensor_static_info_cast"),
        *("torch.derefine", "torch.prim.unchecked_cast"),
        *("tensor.cast", "arith.index_cast", "builtin.unrealized_conversion_cast"),
    )
)

# Statements about values that export has already checked.
_ASSERTIONS = frozenset(
    (
        *("torch.aten._assert_tensor_metadata", "torch.aten._assert_scalar"),
        *("torch.aten._assert_async.msg", "torch.runtime.assert", "torch.aten._assert_async"),
        *("torch.aten.sym_constrain_range", "torch.aten.sym_constrain_range_for_size"),
        *("torch.bind_symbolic_shape", "torch.symbolic_int"),
    )
)


# A tracer wrote `view` for the strides its tensors had; a kernel's result may be laid out in
# another way.  `reshape` is a view wherever that is possible, and the same values elsewhere.
_ANY_LAYOUT = {"aten.view": "aten.reshape", "aten._unsafe_view": "aten.reshape"}


_COMPONENTS = ("data", "scale", "zero")
"""What the pointers of kernels are to, in the order of the operands of `qfuse.pack`."""


@dataclass(frozen=True)
class _Quantized:
    """A qtensor: the components of its parts, more than one part after `qfuse.concat`.

    A plain weight of several parts, or one to be packed, is one, too, with one component in each.
    After `qfuse.append_expert`, the first part is that of all experts but the last.
    """

    parts: tuple[tuple[int, ...], ...]
    type: Shaped
    rows: tuple[int, ...] = ()
    """Those of `Prepare`."""


def build_plan(module: ir.Module, kernels: Mapping[str, Kernel]) -> Plan:
    """The plan of `@main` of a lowered module, whose kernels have been compiled.

    Arguments and results of `@main` carry `qfuse.kind` and `qfuse.name`.  Raises QfuseError
    that names the operation and its location if the plan cannot express it.
    """
    functions = {f.name.value: f for f in module.body.operations if isinstance(f, func.FuncOp)}
    if "main" not in functions:
        raise QfuseError("the module has no function @main")
    return _Builder(functions, kernels).build()


class _Builder:
    def __init__(self, functions: dict[str, func.FuncOp], kernels: Mapping[str, Kernel]) -> None:
        self.main = functions["main"]
        self.functions, self.compiled = functions, kernels
        self.count = 0
        self.bound: dict[ir.Value, Any] = {}
        self.parameters: dict[int, Argument] = {}
        self.inputs: list[Argument] = []
        self.caches: list[Argument] = []
        self.literals: list[Literal] = []
        self.prepares: dict[tuple[Any, ...], Prepare] = {}
        self.kernels: dict[str, KernelType] = {}
        self.steps: list[Step] = []

    def build(self) -> Plan:
        self._arguments()
        for op in self.main.regions[0].blocks[0].operations:
            if op.operation.name == "func.return":
                outputs, cache_results = self._results(op)
                break
            self._operation(op)
        return self._finish(tuple(outputs), tuple(cache_results))

    def _operation(self, op: ir.OpView) -> None:
        name = op.operation.name
        if name in _ASSERTIONS:
            return
        if name in _IDENTITIES and len(op.operands) == len(op.results) == 1:
            self.bound[op.results[0]] = self._bound(op.operands[0])
        elif name.startswith("torch.constant."):
            self.bound[op.results[0]] = constant(op)
        elif name in _HANDLERS:
            _HANDLERS[name](self, op)
        elif name.startswith(("torch.aten.", "torch.prims.", "torch.prim.")) and not op.regions:
            self._torch(op, name.removeprefix("torch."))
        else:
            raise unsupported(op)

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

    # The function's border

    def _arguments(self) -> None:
        block = self.main.regions[0].blocks[0]
        attributes = attributes_of(self.main, "arg_attrs", len(block.arguments))
        for i, (value, about) in enumerate(zip(block.arguments, attributes, strict=True)):
            kind, name = kind_and_name(about, f"argument {i} of @main")
            number = self._new()
            self.bound[value] = Ref(number)
            argument = Argument(name, number, boundary_type(value.type, name))
            if kind == "parameter":
                self.parameters[number] = argument
            elif kind in ("input", "cache"):
                (self.inputs if kind == "input" else self.caches).append(argument)
            else:
                raise QfuseError(
                    f'argument {name} of @main has qfuse.kind "{kind}"; use "parameter", '
                    '"input" or "cache"'
                )

    def _results(self, op: ir.OpView) -> tuple[list[Output], list[tuple[str, int]]]:
        outputs, cache_results = [], []
        caches = {cache.name for cache in self.caches}
        attributes = attributes_of(self.main, "res_attrs", len(op.operands))
        for i, (value, about) in enumerate(zip(op.operands, attributes, strict=True)):
            kind, name = kind_and_name(about, f"result {i} of @main")
            bound = self._bound(value)
            if isinstance(bound, _Quantized | list):
                raise unsupported(op, f"result {name} is not one plain tensor")
            if kind == "output":
                outputs.append(Output(name, bound))
            elif kind == "cache" and name in caches and isinstance(bound, Ref):
                cache_results.append((name, bound.value))
            else:
                raise QfuseError(
                    f'result {name} of @main has qfuse.kind "{kind}"; use "output", or "cache" '
                    "with the name of a cache argument"
                )
        return outputs, cache_results

    def _finish(
        self, outputs: tuple[Output, ...], cache_results: tuple[tuple[str, int], ...]
    ) -> Plan:
        """Drop what nothing reads: every step is free of side effects."""
        needed = {v for o in outputs for v in refs(o.arg)} | {v for _, v in cache_results}
        steps = []
        for step in reversed(self.steps):
            if needed.intersection(step.results):
                needed.update(step.reads)
                steps.append(step)
        prepares = [p for p in self.prepares.values() if needed & {*p.made}]
        needed.update(v for p in prepares for part in p.parts for v in part)
        plan = Plan(
            parameters=tuple(a for v, a in self.parameters.items() if v in needed),
            inputs=tuple(self.inputs),
            caches=tuple(self.caches),
            outputs=outputs,
            cache_results=cache_results,
            literals=tuple(x for x in self.literals if x.value in needed),
            prepares=tuple(prepares),
            kernels=(),
            steps=tuple(reversed(steps)),
        )
        called = {s.kernel for s in plan.single_steps if isinstance(s, KernelStep)}
        return replace(plan, kernels=tuple(k for n, k in self.kernels.items() if n in called))

    # Operations

    def _torch(self, op: ir.OpView, name: str) -> None:
        """A torch operator: operands are the schema's arguments, in order."""
        name = _ANY_LAYOUT.get(name, name)
        try:
            schema = calls.resolve(name)._schema
        except QfuseError as error:
            raise unsupported(op, str(error)) from None
        if schema.is_mutable:
            raise unsupported(op, f"{name} writes to an operand; functionalize the graph first")
        if len(op.operands) > len(schema.arguments):
            raise unsupported(op, f"{name} takes {len(schema.arguments)} arguments")
        args: list[Any] = []
        kwargs = []
        for value, argument in zip(op.operands, schema.arguments, strict=False):
            arg = typed(self._bound(value), str(argument.real_type), op)
            if argument.kwarg_only:
                kwargs.append((argument.name, arg))
            else:
                args.append(arg)
        if any(isinstance(a, _Quantized) for a in (*args, *(a for _, a in kwargs))):
            raise unsupported(op, "torch knows no quantized tensor; unpack it")
        results = self._define(op)
        self.steps.append(TorchStep(name, tuple(args), tuple(kwargs), results, where(op)))

    def _operator(self, op: ir.OpView) -> None:
        name = op.attributes["name"].value
        if name in _ASSERTIONS:
            return
        if not name.startswith("torch."):
            raise unsupported(op, f"unknown operator {name}")
        self._torch(op, name.removeprefix("torch."))

    def _list(self, op: ir.OpView) -> None:
        self.bound[op.results[0]] = [self._bound(v) for v in op.operands]

    def _unpack_list(self, op: ir.OpView) -> None:
        items = self._bound(op.operands[0])
        for i, result in enumerate(op.results):
            self.bound[result] = items[i] if isinstance(items, list) else self._item(items, i, op)

    def _getitem(self, op: ir.OpView) -> None:
        items, index = (self._bound(v) for v in op.operands)
        if isinstance(items, list) and isinstance(index, int):
            self.bound[op.results[0]] = items[index]
        else:
            self.bound[op.results[0]] = self._item(items, index, op)

    def _item(self, items: Ref, index: Any, op: ir.OpView) -> Ref:
        number = self._new()
        self.steps.append(TorchStep(calls.GETITEM, (items, index), (), (number,), where(op)))
        return Ref(number)

    def _dim(self, op: ir.OpView) -> None:
        args = tuple(self._bound(v) for v in op.operands)
        self.steps.append(TorchStep("aten.size.int", args, (), self._define(op), where(op)))

    def _literal(self, op: ir.OpView) -> None:
        attribute, type_ = op.attributes["value"], op.results[0].type
        if isinstance(attribute, ir.IntegerAttr | ir.FloatAttr | ir.BoolAttr):
            self.bound[op.results[0]] = attribute.value
            return
        if not isinstance(attribute, ir.DenseElementsAttr):
            raise unsupported(op, "constants other than dense ones are not read")
        literal_type = tensor_type(type_, "a literal")
        number = self._new()
        data = literal_bytes(attribute, literal_type)
        self.literals.append(Literal(number, literal_type, data))
        self.bound[op.results[0]] = Ref(number)

    def _pack(self, op: ir.OpView) -> None:
        components = tuple(self._tensor(v, op) for v in op.operands)
        self.bound[op.results[0]] = _Quantized((components,), shaped(op.results[0].type))

    def _unpack(self, op: ir.OpView) -> None:
        value = self._bound(op.operands[0])
        if len(value.parts) != 1:
            raise unsupported(op, "a joined weight exists only in the kernels' own layout")
        for result, number in zip(op.results, value.parts[0], strict=True):
            self.bound[result] = Ref(number)

    def _concat(self, op: ir.OpView) -> None:
        parts = tuple(part for v in op.operands for part in self._parts_of(v, op))
        self.bound[op.results[0]] = _Quantized(parts, shaped(op.results[0].type))

    def _parts_of(self, value: ir.Value, op: ir.OpView) -> tuple[tuple[int, ...], ...]:
        bound = self._bound(value)
        return bound.parts if isinstance(bound, _Quantized) else ((self._tensor(value, op),),)

    def _append_expert(self, op: ir.OpView) -> None:
        experts, weight = (self._parts_of(v, op) for v in op.operands)
        if len(experts) != 1:
            raise unsupported(op, "only one expert is appended to others")
        parts = (*experts, *weight)
        self.bound[op.results[0]] = _Quantized(parts, shaped(op.results[0].type))

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

    def _packed(self, weight: ir.Value, kernel: func.FuncOp, op: ir.OpView) -> _Quantized:
        """A weight that `kernel`, which holds one product, wants packed."""
        type_ = shaped(weight.type)
        value = _Quantized(self._parts_of(weight, op), type_)
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
                self.bound[result] = _Quantized((pair,), shaped(result.type))
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
        if isinstance(x, _Quantized):
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
        if not isinstance(value, _Quantized):
            raise unsupported(op, "a kernel takes tensors and weights only")
        if len(value.type.shape) == 3 and (layout == "packed" or len(value.parts) > 1):
            layout = "experts" if layout == "packed" else "stack"
        if layout != "rows" or len(value.parts) > 1:
            return self._prepare(value, layout, op).made[_COMPONENTS.index(part)]
        return value.parts[0][_COMPONENTS.index(part)]

    def _prepare(self, value: _Quantized, layout: Layout, op: ir.OpView) -> Prepare:
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


_HANDLERS: dict[str, Callable[[_Builder, ir.OpView], None]] = {
    "torch.operator": _Builder._operator,
    "torch.prim.ListConstruct": _Builder._list,
    "torch.prim.TupleConstruct": _Builder._list,
    "torch.prim.ListUnpack": _Builder._unpack_list,
    "torch.prim.TupleUnpack": _Builder._unpack_list,
    "torch.aten.__getitem__.t": _Builder._getitem,
    "torch.vtensor.literal": _Builder._literal,
    "arith.constant": _Builder._literal,
    "tensor.dim": _Builder._dim,
    "qfuse.pack": _Builder._pack,
    "qfuse.unpack": _Builder._unpack,
    "qfuse.concat": _Builder._concat,
    "qfuse.append_expert": _Builder._append_expert,
    "func.call": _Builder._call,
    "qfuse.library_call": _Builder._library_call,
    "qfuse.choose": _Builder._choose,
}
