"""From the lowered module to the plan that runs.

`@main` is walked once, in order.  Torch operators and kernel calls become steps; constants and
casts vanish; `qfuse.pack`, `qfuse.concat` and `qfuse.append_expert` of parameters become weights to
prepare.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from qfuse.compiler.plan.products import Kernel, ProductBuilder, Quantized
from qfuse.compiler.plan.reading import (
    attributes_of,
    boundary_type,
    constant,
    kind_and_name,
    literal_bytes,
    tensor_type,
    typed,
    unsupported,
    where,
)
from qfuse.compiler.runtime import calls
from qfuse.compiler.runtime.plan import (
    Argument,
    KernelStep,
    Literal,
    Output,
    Plan,
    Ref,
    TorchStep,
    refs,
)
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.errors import QfuseError

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


def build_plan(module: ir.Module, kernels: Mapping[str, Kernel]) -> Plan:
    """The plan of `@main` of a lowered module, whose kernels have been compiled.

    Arguments and results of `@main` carry `qfuse.kind` and `qfuse.name`.  Raises QfuseError
    that names the operation and its location if the plan cannot express it.
    """
    functions = {f.name.value: f for f in module.body.operations if isinstance(f, func.FuncOp)}
    if "main" not in functions:
        raise QfuseError("the module has no function @main")
    return _Builder(functions, kernels).build()


class _Builder(ProductBuilder):
    def __init__(self, functions: dict[str, func.FuncOp], kernels: Mapping[str, Kernel]) -> None:
        super().__init__(functions, kernels)
        self.main = functions["main"]
        self.inputs: list[Argument] = []
        self.caches: list[Argument] = []
        self.literals: list[Literal] = []

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
            if isinstance(bound, Quantized | list):
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

    # Operations of torch, constants and lists

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
        if any(isinstance(a, Quantized) for a in (*args, *(a for _, a in kwargs))):
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
