"""Rewrite patterns: a small vocabulary over MLIR's PDL dialect.

A pattern is a function of a `Pattern`.  It states the shape it looks for with `op`, `value` and
`result`, what must hold beyond the shape with `require`, and what to do with `rewrite`:

    def bias_into_product(p: Pattern) -> None:
        product = p.op("qfuse.matmul", p.values())
        bias = p.value()
        add = p.op("qfuse.add", p.result(product), bias)
        p.require(has_one_reader, product)
        p.rewrite(add, absorb, product, bias)

A predicate answers `None` where it holds, `MISMATCH` where the match is no candidate after all
(nobody wants to hear of it), and a `Refusal` where a user might have expected the fusion: that
becomes a remark with cause and cure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qfuse.compiler import remarks
from qfuse.dialects.bindings import ir, pdl, rewrite


@dataclass(frozen=True)
class Refusal:
    """Why a pattern declines a match, and what would make it fire."""

    cause: str
    cure: str = ""


class _Mismatch:
    """The type of MISMATCH."""


MISMATCH = _Mismatch()

Verdict = Refusal | _Mismatch | None
Predicate = Callable[..., Verdict]
Rewriter = Callable[..., None]


class Pattern:
    """Builds one `pdl.pattern` inside the module that `Patterns` compiles."""

    def __init__(self, name: str, index: int) -> None:
        self.name = name
        self.symbol = f"{name}-{index}"  # several patterns may share a name: operand orders
        self.requirements: list[tuple[Predicate, tuple[ir.Value, ...]]] = []
        self.rewriters: dict[str, Rewriter] = {}

    def op(self, name: str, *operands: ir.Value, many: bool = False) -> ir.Value:
        """An operation `name` that reads `operands`; `many`: with any number of results.

        Attributes are for predicates to look at: PDL may compare one after it asked a predicate
        that counts on it.
        """
        if many:
            types = _range("pdl.types", pdl.RangeType.get(pdl.TypeType.get()))
        else:
            types = pdl.TypeOp().result
        return pdl.OperationOp(name, list(operands), {}, [types]).result

    def value(self) -> ir.Value:
        """Any operand."""
        return pdl.OperandOp().result

    def values(self) -> ir.Value:
        """All operands of an operation, however many."""
        return _range("pdl.operands", pdl.RangeType.get(pdl.ValueType.get()))

    def result(self, operation: ir.Value, index: int = 0) -> ir.Value:
        """Result `index` of an operation of the pattern."""
        return pdl.ResultOp(operation, index).result

    def require(self, predicate: Predicate, *values: ir.Value) -> None:
        """State that `predicate` must hold; it gets the operations and values matched.

        The predicates of a match run in the order in which they are stated, up to the first that
        does not hold.  So those that tell a candidate from anything else come first: a refusal
        is heard only of candidates, and a later predicate may rely on an earlier one.
        """
        self.requirements.append((predicate, values))

    def rewrite(self, root: ir.Value, rewriter: Rewriter, *values: ir.Value) -> None:
        """Replace the operation `root` by what `rewriter(rewriter, root, *values)` makes.

        Comes last: the predicates are emitted here, with the root they would rewrite, as one
        constraint, because PDL reorders constraints as it likes.
        """
        if self.requirements:
            matched = [value for _, values in self.requirements for value in values]
            pdl.apply_native_constraint([], self.symbol, [root, *matched])
        key = f"{self.symbol}.{rewriter.__name__}"
        self.rewriters[key] = rewriter
        pdl.RewriteOp(root, name=key, args=list(values))


class Patterns:
    """A set of patterns compiled for the current context."""

    def __init__(self, patterns: Sequence[Callable[[Pattern], None]]) -> None:
        # The PDLModule does not keep the module alive; without `self.module` nothing matches.
        self.module = ir.Module.create(loc=ir.Location.unknown())
        compiled = rewrite.PDLModule(self.module)
        with ir.InsertionPoint(self.module.body), ir.Location.unknown():
            for index, build in enumerate(patterns):
                pattern = Pattern(build.__name__.replace("_", "-"), index)
                _emit(build, pattern)
                if pattern.requirements:
                    compiled.register_constraint_function(pattern.symbol, _as_constraint(pattern))
                for key, rewriter in pattern.rewriters.items():
                    compiled.register_rewrite_function(key, _as_rewrite(rewriter))
        self.frozen = compiled.freeze()

    def apply(self, module: ir.Operation) -> None:
        """Rewrite until nothing matches any more; folds and removes dead code on the way."""
        config = rewrite.GreedyRewriteConfig()
        config.use_top_down_traversal = True  # of two candidates, the first of the program fires
        rewrite.apply_patterns_and_fold_greedily(module, self.frozen, config)


def _emit(build: Callable[[Pattern], None], pattern: Pattern) -> None:
    @pdl.pattern(benefit=1, sym_name=pattern.symbol)
    def _() -> None:
        build(pattern)


def _range(name: str, type_: ir.Type) -> ir.Value:
    # pdl.TypesOp() of the bindings makes an *empty* constant range, which matches nothing.
    return ir.Operation.create(name, results=[type_]).result


def _as_constraint(pattern: Pattern) -> Callable[..., bool]:
    """The binding reads a truthy answer as "no match"; that inversion stays here."""
    predicates = [(predicate, len(values)) for predicate, values in pattern.requirements]

    def declines(_rewriter: Any, _results: Any, values: Sequence[Any]) -> bool:
        root, *rest = values
        for predicate, count in predicates:
            matched, rest = rest[:count], rest[count:]
            verdict = predicate(*matched)
            if isinstance(verdict, Refusal):
                at = matched[0] if isinstance(matched[0], ir.Operation) else root
                remarks.refused(pattern.name, root, at, verdict.cause, verdict.cure)
            if verdict is not None:
                return True
        return False

    return declines


def _as_rewrite(rewriter: Rewriter) -> Callable[..., None]:
    def run(pattern_rewriter: Any, _results: Any, values: Sequence[Any]) -> None:
        with pattern_rewriter.ip, values[0].location:
            rewriter(pattern_rewriter, *values)

    return run
