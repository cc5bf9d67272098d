"""Functions of qfuse operations, executed one operation after another."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from qfuse.compiler.reference import attention, elementwise, experts, norm, quantization, torch_ops
from qfuse.compiler.reference.product import Products
from qfuse.compiler.reference.values import Inexecutable, Misfit, Other, Value, name_of
from qfuse.dialects.bindings import ir

Rule = Callable[..., list[Value]]
"""(operation, value of each operand) -> value of each result; raises Inexecutable."""

Opaque = Callable[[ir.Operation, list[Value]], list[Value]]

_RULES: dict[str, Rule] = {
    **quantization.RULES,
    **elementwise.RULES,
    **norm.RULES,
    **experts.RULES,
    **attention.RULES,
}


class Interpreter:
    """Executes functions of a module.

    `terms` and `seed` bound the cost of products, see `Products`.  `opaque` answers for operations
    of torch that no rule executes; without it they raise Inexecutable, as any other one does.
    """

    def __init__(
        self, opaque: Opaque | None = None, terms: int | None = None, seed: int = 0
    ) -> None:
        self.opaque = opaque
        self.products = Products(terms, seed)
        self.rules: dict[str, Rule] = {**_RULES, **self.products.rules}

    def run(self, function: ir.Operation, arguments: Sequence[Value]) -> list[Value]:
        """What `func.func` returns for these arguments; dynamic extents are those of them.

        Raises Inexecutable for an operation that has no rule, or operands that do not fit.
        """
        block = function.regions[0].blocks[0]
        values: dict[ir.Value, Value] = dict(zip(block.arguments, arguments, strict=True))
        left = _readers(block)
        with np.errstate(all="ignore"):
            for op in block.operations:
                operation = op.operation
                operands = [values[o] for o in operation.operands]
                if operation.name == "func.return":
                    return operands
                results = self._execute(operation, operands)
                values.update(zip(operation.results, results, strict=True))
                for operand in operation.operands:  # a model's weights do not fit all at once
                    left[operand] -= 1
                    if not left[operand]:
                        values.pop(operand, None)
        raise Inexecutable("a function ends without func.return")

    def _execute(self, op: ir.Operation, operands: list[Value]) -> list[Value]:
        if op.name == "func.call":
            callee = self._callee(op)
            if callee is not None:
                return self.run(callee, operands)
        if op.name.startswith("torch"):
            results = torch_ops.execute(op, operands, self.products.dot)
            if results is None and self.opaque is not None:
                results = self.opaque(op, operands)
        else:
            results = self._by_rule(op, operands)
        if results is None:
            raise Inexecutable(f"the reference does not execute {name_of(op)}, at {op.location}")
        return results

    def _by_rule(self, op: ir.Operation, operands: list[Value]) -> list[Value] | None:
        rule = self.rules.get(op.name)
        if rule is None or any(isinstance(v, Other) for v in operands):
            return None
        try:
            return rule(op, *operands)
        except Inexecutable as error:
            raise type(error)(f"{op.name} at {op.location}: {error}") from None
        except (ValueError, IndexError) as error:  # numpy says that shapes do not fit
            shapes = [list(v.shape) for v in operands if not isinstance(v, Other)]
            raise Misfit(
                f"{op.name} at {op.location}: operands of {shapes} do not fit: {error}"
            ) from None

    def _callee(self, op: ir.Operation) -> ir.Operation | None:
        name = str(op.attributes["callee"]).lstrip("@")
        module = op.parent
        while module.name != "builtin.module":
            module = module.parent
        for candidate in module.regions[0].blocks[0].operations:
            found: Any = candidate.operation
            if found.name == "func.func" and found.attributes["sym_name"].value == name:
                return found if len(found.regions[0].blocks) else None
        return None


def _readers(block: ir.Block) -> dict[ir.Value, int]:
    count: dict[ir.Value, int] = {}
    for op in block.operations:
        for operand in op.operation.operands:
            count[operand] = count.get(operand, 0) + 1
    return count
