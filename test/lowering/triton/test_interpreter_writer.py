"""Prints kernels in MLIR's generic form for the interpreter's tests, free of qfuse's own emitter.

A value is the text that names it; `Writer.types` holds its type.  Operands may be Python numbers.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qfuse.lowering.triton.interpreter import Buffer, Report, run
from qfuse.lowering.triton.interpreter.types import DTYPES

Operand = str | int | float
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def tensor(shape: Sequence[int], element: str) -> str:
    """The type of a tensor; of a scalar for the shape ()."""
    return f"tensor<{'x'.join(map(str, shape))}x{element}>" if len(shape) else element


def pointer(element: str) -> str:
    return f"!tt.ptr<{element}>"


class Writer:
    """One kernel being written; `old` spells descriptors as Triton 3.6 does."""

    def __init__(self, arguments: Sequence[str], old: bool = False, aligned: bool = True) -> None:
        self.old = old
        self.arguments = [f"%arg{i}" for i in range(len(arguments))]
        self.types = dict(zip(self.arguments, arguments, strict=True))
        self.lines: list[str] = []
        self.aligned = aligned

    def text(self, name: str = "kernel") -> str:
        """The whole module."""
        types = [self.types[a] for a in self.arguments]
        head = ", ".join(f"{a}: {t}" for a, t in zip(self.arguments, types, strict=True))
        promise = "{tt.divisibility = 16 : i32}" if self.aligned else "{}"
        promises = ", ".join(promise if t.startswith("!tt.ptr") else "{}" for t in types)
        lines = ['"tt.func"() ({', f"^bb0({head}):", *self.lines, '"tt.return"() : () -> ()']
        lines += [
            f"}}) {{arg_attrs = [{promises}], function_type = ({', '.join(types)}) -> (),"
            f' sym_name = "{name}", sym_visibility = "public"}} : () -> ()'
        ]
        return "\n".join(lines) + "\n"

    def op(
        self,
        name: str,
        operands: Sequence[str] = (),
        results: Sequence[str] = (),
        attributes: str = "",
        *regions: tuple[Sequence[str], Callable[..., Any]],
    ) -> Any:
        """One operation; each region is (argument types, function that writes it)."""
        names = [f"%v{len(self.types) + i}" for i in range(len(results))]
        self.types.update(zip(names, results, strict=True))
        left = f"{', '.join(names)} = " if names else ""
        self.lines.append(f'{left}"{name}"({", ".join(operands)})' + (" (" if regions else ""))
        for number, (types, body) in enumerate(regions):
            arguments = [f"%v{len(self.types) + i}" for i in range(len(types))]
            self.types.update(zip(arguments, types, strict=True))
            head = ", ".join(f"{a}: {t}" for a, t in zip(arguments, types, strict=True))
            self.lines.append(f"{', ' if number else ''}{{ ^bb0({head}):")
            body(*arguments)
            self.lines.append("}")
        if name == "scf.if" and len(regions) == 1:
            self.lines.append(", {}")
        tail = f" {{{attributes}}}" if attributes else ""
        types = ", ".join(self.types[v] for v in operands)
        end = f"{')' if regions else ''}{tail} : ({types}) -> ({', '.join(results)})"
        self.lines[-1] += end
        return names[0] if len(names) == 1 else names

    def shape(self, value: str) -> tuple[int, ...]:
        found = re.match(r"tensor<((?:\d+x)+)", self.types[value])
        return tuple(int(n) for n in found[1].split("x")[:-1]) if found else ()

    def element(self, value: str) -> str:
        return re.sub(r"^tensor<(?:\d+x)+(.*)>$", r"\1", self.types[value])

    def constant(self, number: float, type_: str) -> str:
        value = f"{number:e}" if re.search(r"(?:^|x)b?f\d", type_) else str(number)
        if type_.startswith("tensor"):
            value = f"dense<{value}>"
        return self.op("arith.constant", (), [type_], f"value = {value} : {type_}")

    def _pair(self, a: Operand, b: Operand) -> tuple[str, str]:
        if not isinstance(a, str):
            a = self.constant(a, self.types[str(b)])
        if not isinstance(b, str):
            b = self.constant(b, self.types[a])
        shape = np.broadcast_shapes(self.shape(a), self.shape(b))
        return self.spread(a, shape), self.spread(b, shape)

    def binary(self, name: str, a: Operand, b: Operand) -> str:
        a, b = self._pair(a, b)
        return self.op(name, [a, b], [self.types[a]])

    def add(self, a: Operand, b: Operand) -> str:
        return self.binary("arith.addi", a, b)

    def mul(self, a: Operand, b: Operand) -> str:
        return self.binary("arith.muli", a, b)

    def less(self, a: Operand, b: Operand) -> str:
        a, b = self._pair(a, b)
        return self.compare(a, b, 2)

    def compare(self, a: Operand, b: Operand, predicate: int) -> str:
        a, b = self._pair(a, b)
        result = tensor(self.shape(a), "i1")
        return self.op("arith.cmpi", [a, b], [result], f"predicate = {predicate} : i64")

    def unary(self, name: str, a: str, element: str = "", attributes: str = "") -> str:
        result = tensor(self.shape(a), element or self.element(a))
        return self.op(name, [a], [result], attributes)

    def spread(self, value: str, shape: Sequence[int]) -> str:
        """Splat or broadcast."""
        if self.shape(value) == tuple(shape):
            return value
        name = "tt.broadcast" if self.shape(value) else "tt.splat"
        return self.op(name, [value], [tensor(shape, self.element(value))])

    def column(self, value: str) -> str:
        """[n] as [n, 1]."""
        n = self.shape(value)[0]
        return self.op("tt.expand_dims", [value], [tensor((n, 1), self.element(value))], "axis = 1")

    def row(self, value: str) -> str:
        """[n] as [1, n]."""
        n = self.shape(value)[0]
        return self.op("tt.expand_dims", [value], [tensor((1, n), self.element(value))], "axis = 0")

    def range(self, count: int) -> str:
        attributes = f"start = 0 : i32, end = {count} : i32"
        return self.op("tt.make_range", (), [tensor((count,), "i32")], attributes)

    def program(self, axis: int = 0) -> str:
        return self.op("tt.get_program_id", (), ["i32"], f"axis = {axis} : i32")

    def at(self, base: str, offset: Operand) -> str:
        """Pointers moved by a number of elements."""
        offset = offset if isinstance(offset, str) else self.constant(offset, "i32")
        base = self.spread(base, np.broadcast_shapes(self.shape(base), self.shape(offset)))
        offset = self.spread(offset, self.shape(base))
        return self.op("tt.addptr", [base, offset], [self.types[base]])

    def load(self, at: str, mask: str = "", other: float | None = 0) -> str:
        element = self.element(at)[len("!tt.ptr<") : -1]
        result = tensor(self.shape(at), element)
        operands = [at]
        if mask:
            operands.append(self.spread(mask, self.shape(at)))
            if other is not None:
                operands.append(self.constant(other, result))
        sizes = ", ".join(str(int(len(operands) > i)) for i in range(3))
        attributes = f"operandSegmentSizes = array<i32: {sizes}>, boundaryCheck = array<i32>"
        return self.op("tt.load", operands, [result], attributes)

    def store(self, at: str, value: str, mask: str = "") -> None:
        operands = [at, self.spread(value, self.shape(at))]
        if mask:
            operands.append(self.spread(mask, self.shape(at)))
        self.op("tt.store", operands, (), "boundaryCheck = array<i32>")

    def transposed(self, value: str) -> str:
        shape = self.shape(value)[::-1]
        return self.op(
            "tt.trans", [value], [tensor(shape, self.element(value))], "order = array<i32: 1, 0>"
        )

    def dot(self, a: str, b: str, c: str, imprecise: int = 1 << 30) -> str:
        attributes = f"inputPrecision = 2 : i32, maxNumImpreciseAcc = {imprecise} : i32"
        return self.op("tt.dot", [a, b, c], [self.types[c]], attributes)

    def fma(self, a: str, b: str, c: str) -> str:
        b = self.spread(b, self.shape(c))
        attributes = (
            'asm_string = "fma.rn.f32 $0, $1, $2, $3;", constraints = "=f,f,f,f",'
            " packed_element = 1 : i32, pure = true"
        )
        return self.op("tt.elementwise_inline_asm", [a, b, c], [self.types[c]], attributes)

    def desc_type(self, block: Sequence[int], element: str) -> str:
        inner = tensor(block, element)
        return f"!tt.tensordesc<{inner if self.old else inner[len('tensor<') : -1]}>"

    def descriptor(
        self, base: str, shape: Sequence[Operand], strides: Sequence[int], block: Sequence[int]
    ) -> str:
        element = self.types[base][len("!tt.ptr<") : -1]
        sizes = [s if isinstance(s, str) else self.constant(s, "i32") for s in shape]
        steps = [self.constant(s, "i64") for s in strides]
        attributes = f"operandSegmentSizes = array<i32: 1, {len(sizes)}, {len(steps)}>"
        result = self.desc_type(block, element)
        return self.op("tt.make_tensor_descriptor", [base, *sizes, *steps], [result], attributes)

    def mapped(self, base: str, block: Sequence[int], element: str) -> str:
        """A descriptor from a tensor map in memory."""
        self.op("ttng.tensormap_fenceproxy_acquire", [base])
        result = self.desc_type(block, element)
        return self.op("ttng.reinterpret_tensor_descriptor", [base], [result])

    def fetch(self, descriptor: str, *at: str) -> str:
        inner = re.search(r"((?:\d+x)+\w+)>", self.types[descriptor])[1]
        operands = [descriptor, *at]
        return self.op("tt.descriptor_load", operands, [f"tensor<{inner}>"], "cache = 1 : i32")

    def put(self, descriptor: str, value: str, *at: str) -> None:
        self.op("tt.descriptor_store", [descriptor, value, *at])

    def loop(
        self,
        bounds: tuple[Operand, Operand, Operand],
        carried: Sequence[str],
        body: Callable[[str, list[str]], Sequence[str]],
        attributes: str = "",
    ) -> list[str]:
        limits = [b if isinstance(b, str) else self.constant(b, "i32") for b in bounds]
        types = [self.types[v] for v in carried]

        def write(index: str, *values: str) -> None:
            self.op("scf.yield", body(index, list(values)))

        region = (["i32", *types], write)
        found = self.op("scf.for", [*limits, *carried], types, attributes, region)
        return [found] if isinstance(found, str) else found

    def when(
        self,
        condition: str,
        then: Callable[[], Sequence[str]],
        otherwise: Callable[[], Sequence[str]] | None = None,
        results: Sequence[str] = (),
    ) -> Any:
        def region(body: Callable[[], Sequence[str]]) -> tuple[Sequence[str], Callable]:
            return (), lambda: self.op("scf.yield", body())

        regions = [region(body) for body in (then, otherwise) if body]
        return self.op("scf.if", [condition], results, "", *regions)

    def reduce(self, value: str, axis: int, combine: str) -> str:
        shape, element = list(self.shape(value)), self.element(value)
        del shape[axis]

        def body(a: str, b: str) -> None:
            self.op("tt.reduce.return", [self.binary(combine, a, b)])

        region = ([element, element], body)
        result = tensor(shape, element)
        return self.op("tt.reduce", [value], [result], f"axis = {axis} : i32", region)


def evaluate(
    body: Callable[..., str | Sequence[str]], *inputs: np.ndarray, **options: Any
) -> tuple[list[np.ndarray], Report]:
    """What `body(writer, *tensors)` computes of whole arrays, in a kernel of one program."""
    raw = [np.ascontiguousarray(x.astype(np.int8) if x.dtype == bool else x) for x in inputs]
    plan = Writer([pointer(NAMES[x.dtype]) for x in raw])
    loaded = []
    for name, x in zip(plan.arguments, inputs, strict=True):
        flat = plan.load(plan.at(name, plan.range(x.size)) if x.ndim else name)
        if x.dtype == bool:
            flat = plan.unary("arith.trunci", flat, "i1")
        whole = tensor(x.shape, NAMES[x.dtype])
        loaded.append(plan.op("tt.reshape", [flat], [whole]) if x.ndim > 1 else flat)
    values = body(plan, *loaded)
    outputs = []
    for value in [values] if isinstance(values, str) else values:
        shape, element = plan.shape(value), plan.element(value)
        if element == "i1":
            element = "i8"
            value = plan.unary("arith.extui", value, "i8")
        name = f"%out{len(outputs)}"
        plan.arguments.append(name)
        plan.types[name] = pointer(element)
        at = name
        if shape:
            at = plan.at(name, plan.range(int(np.prod(shape))))
        if len(shape) > 1:
            at = plan.op("tt.reshape", [at], [tensor(shape, pointer(element))])
        plan.store(at, value)
        outputs.append(Buffer(shape, element))
    report = run(plan.text(), "kernel", [*raw, *outputs], **options)
    assert not any(report.unwritten.values())
    return [output.array for output in outputs], report
