"""Verified rewriting: a program runs before and after each pass, and must compute the same.

    verification = Verification(seed=0)
    pipeline.run(module, stages, around=verification.around)     # raises NotEquivalent

Each function of the module runs in the reference interpreter (`reference/`) on random inputs, with
several sizes for extents known only at run time.  What is asked of a pass stands in `CRITERIA`;
upstream's passes are taken to be right.

Operations of torch that the reference does not execute cut a function into pieces: what such an
operation reads must be the same before and after the pass, and it yields random values that depend
on which operation it is alone.  Where a pass replaces one, what depends on it is not compared, and
`skipped` says so, as it does of functions that cannot run at all.

The cost is bounded: weights are random, whatever the model's are, and share memory; extents are
small; and a product adds up `terms` of its K terms at most, the same ones before and after.  A
fault that shows in none of these terms (a scale that only they would need) is not seen.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from qfuse.compiler import remarks
from qfuse.compiler.passes.outline import KERNEL
from qfuse.compiler.pipeline import Stage
from qfuse.compiler.reference.difference import difference, identity
from qfuse.compiler.reference.experts import Undecided
from qfuse.compiler.reference.inputs import RandomInputs
from qfuse.compiler.reference.interpreter import Interpreter
from qfuse.compiler.reference.values import Inexecutable, Misfit, Value, name_of
from qfuse.compiler.torch_ir import FROM_BUILTIN, TO_BUILTIN
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError


@dataclass(frozen=True)
class Criterion:
    """What a pass promises.  `slack`: numbers may differ by what f32 leaves open (balls.py)."""

    slack: bool
    why: str


EXACT = Criterion(False, "this pass keeps every bit")

CRITERIA: dict[str, Criterion | str] = {
    # What torch does in several operations, with a rounding and an order of addition each, becomes
    # one that does it in f32: the same up to what f32 leaves open.
    "qfuse-raise-torch": Criterion(True, "this pass keeps all but the order of f32 arithmetic"),
    "qfuse-convert-to-triton": "kernels of a GPU run in lowering/triton/interpreter",
    "qfuse-triton-to-binary": "kernels of a GPU run in lowering/triton/interpreter",
}
"""What is asked of a pass, or why it is not run; every other one of ours is EXACT.

A fusion states the roundings of the operations it replaces, and sums in the reference do not depend
on what stands beside them.  So not even a flip at a tie of a quantization is excused.
"""

Key = tuple[Any, ...]


class NotEquivalent(QfuseError):
    """A pass changed what a function computes."""


@dataclass(frozen=True)
class Outcome:
    """A value that can be seen from outside: a result, or what an operation of torch reads.

    `reader` is who reads it, by number in its block, and `operand` which of its operands it is;
    `sources` are, as bits, the operations of torch in this run that it depends on.
    """

    value: Value
    what: str
    reader: int
    operand: int
    sources: int


@dataclass
class Run:
    """One run of one function; `error` is why it has no outcomes."""

    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    opaque: list[Key] = field(default_factory=list)
    error: Inexecutable | None = None


_PATIENCE, _NEXT_SEED = 20_000, 1 << 20
"""Operations that are executed in search of inputs that leave nothing undecided, and how far apart
the seeds of those are."""

Runs = dict[tuple[str, int], Run]
"""By function and the extent that stood for `?`."""


class Verification:
    """Runs functions around passes and compares, for one module after another."""

    def __init__(
        self, seed: int = 0, extents: Sequence[int] = (1, 3, 17), terms: int | None = 512
    ) -> None:
        if seed < 0:
            raise QfuseError(f"seed {seed} is negative; use 0 or more")
        self.seed, self.extents, self.terms = seed, extents, terms
        self.compared, self.seconds = 0, 0.0
        self.skipped: dict[str, None] = {}
        self._inputs: dict[tuple[str, int, bool], RandomInputs] = {}
        self._module: ir.Module | None = None
        self._last: tuple[bool, Runs] | None = None

    @contextmanager
    def around(self, stage: Stage, module: ir.Module) -> Iterator[None]:
        """Run a stage inside; raises NotEquivalent if it changed what a function computes."""
        if module is not self._module:
            self._module, self._last = module, None
            self._inputs.clear()
        name = stage.name.partition("{")[0]
        criterion = CRITERIA.get(name, EXACT)
        if stage.ours is None or isinstance(criterion, str):
            self._last = None
            if isinstance(criterion, str):
                self._skip(name, "", criterion)
            yield
            return
        start = time.perf_counter()
        before = self._runs(module, criterion.slack)
        old = {_print(op) for function in _functions(module) for op in _body(function)}
        self.seconds += time.perf_counter() - start
        yield
        start = time.perf_counter()
        self._last = None
        after = self._runs(module, criterion.slack)
        for (function, extent), run in before.items():
            context = _Context(name, criterion, function, extent, self.seed, module, old)
            self._compare(context, run, after.get((function, extent)))
        self.seconds += time.perf_counter() - start

    def report(self) -> list[str]:
        """What could not be verified, and how much was, a line each."""
        return [*self.skipped, f"{self.compared} values are the same before and after a pass"]

    def _compare(self, context: "_Context", before: Run, after: Run | None) -> None:
        if after is None:
            raise NotEquivalent(f"{context.name} removed @{context.function}")
        for run in (before, after):
            if run.error is not None:
                if run is after and isinstance(run.error, Misfit):
                    raise NotEquivalent(f"{context} does not run any more: {run.error}")
                self._skip(context.name, context.function, str(run.error))
                return
        gone = _bits(before.opaque, set(before.opaque) - set(after.opaque))
        new = _bits(after.opaque, set(after.opaque) - set(before.opaque))
        for key, old in before.outcomes.items():
            outcome = after.outcomes.get(key)
            if outcome is None:
                continue
            change = difference(old.value, outcome.value)
            if change is None:
                self.compared += 1
            elif (old.sources & gone) or (outcome.sources & new):
                changed = [
                    *_names(before.opaque, old.sources & gone),
                    *_names(after.opaque, outcome.sources & new),
                ]
                self._skip(
                    context.name,
                    context.function,
                    f"the reference does not execute {changed[0]}, on which "
                    f"{old.what.split(',')[0]} depends",
                )
            else:
                what = f"{outcome.what}{context.suspect(outcome)}"
                raise NotEquivalent(f"{context} differs: {what}, {change}{context.how}")

    def _skip(self, name: str, function: str, why: str) -> None:
        where = f" of @{function}" if function else ""
        self.skipped.setdefault(f"{name}{where} is not verified: {why}")

    def _runs(self, module: ir.Module, slack: bool) -> Runs:
        if self._last is None or self._last[0] != slack:
            runs = {}
            for function in _functions(module):
                for extent in self.extents if _is_dynamic(function) else self.extents[:1]:
                    runs[_name(function), extent] = self._run(function, extent, slack)
            self._last = (slack, runs)
        return self._last[1]

    def _run(self, function: ir.Operation, extent: int, slack: bool) -> Run:
        """One run.  The first of a function looks for inputs with which roundings, where they are
        open, do not decide which experts are chosen; all others take the same."""
        key = (_name(function), extent, slack)
        if key in self._inputs:
            return self._run_with(function, self._inputs[key])
        run = Run()
        for again in range(1 + _PATIENCE // len(_body(function))):
            self._inputs[key] = RandomInputs(self.seed + again * _NEXT_SEED, extent, slack)
            run = self._run_with(function, self._inputs[key])
            if not isinstance(run.error, Undecided):
                break
        return run

    def _run_with(self, function: ir.Operation, inputs: RandomInputs) -> Run:
        recorder = _Recorder(inputs)
        interpreter = Interpreter(recorder, self.terms, self.seed)
        run = Run()
        try:
            results = interpreter.run(function, inputs.arguments(function))
        except Inexecutable as error:
            run.error = error
            return run
        run.opaque = recorder.opaque
        sources = _sources(function, recorder)
        body = _body(function)
        number = {hash(op): i for i, op in enumerate(body)}
        seen = [(*call, f" of {name_of(call[0])} at {call[0].location}") for call in recorder.calls]
        seen.append((body[-1], ("result",), results, ""))
        for op, key, values, where in seen:
            kind = "operand" if where else "result"
            for i, (operand, value) in enumerate(zip(op.operands, values, strict=True)):
                what = f"{kind} {i}{where}, {_maker(operand)}"
                outcome = Outcome(value, what, number[hash(op)], i, sources[operand])
                run.outcomes[*key, i] = outcome
        return run


@dataclass(frozen=True)
class _Context:
    name: str
    criterion: Criterion
    function: str
    extent: int
    seed: int
    module: ir.Module
    old: set[Any]

    def suspect(self, outcome: Outcome) -> str:
        """The first new operation that a wrong outcome was computed from, if that tells more."""
        function = next(f for f in _functions(self.module) if _name(f) == self.function)
        body = _body(function)
        reader = body[outcome.reader]
        needed = {reader.operands[outcome.operand]}
        suspects = []
        for op in reversed(body[: outcome.reader]):
            if any(result in needed for result in op.results):
                needed.update(op.operands)
                if _print(op) not in self.old and not op.name.startswith("torch_c."):
                    suspects.append(op)
        if not suspects or suspects[-1] == _owner(reader.operands[outcome.operand]):
            return ""
        return f" from what is new, {_described(suspects[-1])}"

    def __str__(self) -> str:
        return f"after {self.name} @{self.function}"

    @property
    def how(self) -> str:
        return f" ({self.criterion.why}; seed {self.seed}, {self.extent} for each ?)"


class _Recorder:
    """Answers for operations of torch without a rule, and keeps what they were given.

    The same operation with the same operands yields the same values, so that a pass may merge two
    into one; apart from that, the values follow from which operation it is, by name, place and
    number among those of that name and place.
    """

    def __init__(self, inputs: RandomInputs) -> None:
        self.inputs = inputs
        self.calls: list[tuple[ir.Operation, Key, list[Value]]] = []
        self.keys: dict[int, Key] = {}
        self._results: dict[Key, tuple[Key, list[Value]]] = {}
        self._count: dict[Key, int] = {}

    @property
    def opaque(self) -> list[Key]:
        """The operations that were asked for; bit i of `Outcome.sources` is the i-th."""
        return [key for _, key, _ in self.calls]

    def __call__(self, op: ir.Operation, operands: list[Value]) -> list[Value]:
        types = tuple(str(r.type) for r in op.results)
        attributes = tuple((name, str(op.attributes[name])) for name in op.attributes)
        same = (name_of(op), attributes, types, *map(identity, operands))
        if same not in self._results:
            place = (name_of(op), str(op.location), types)
            number = self._count[place] = self._count.get(place, 0) + 1
            key = (*place, number)
            values = [self.inputs.value(f"{key} {i}", r) for i, r in enumerate(op.results)]
            self._results[same] = (key, values)
            self.calls.append((op, key, operands))
        key, values = self._results[same]
        self.keys[hash(op)] = key
        return values


def _sources(function: ir.Operation, recorder: _Recorder) -> dict[ir.Value, int]:
    """The operations of torch without a rule that each value depends on, as bits."""
    bit = {key: 1 << i for i, key in enumerate(recorder.opaque)}
    block = function.regions[0].blocks[0]
    found: dict[ir.Value, int] = dict.fromkeys(block.arguments, 0)
    for op in block.operations:
        operation = op.operation
        key = recorder.keys.get(hash(operation))
        mask = 0
        if key is not None:
            mask = bit[key]
        else:
            for operand in operation.operands:
                mask |= found[operand]
        found.update((result, mask) for result in operation.results)
    return found


def _bits(opaque: Sequence[Key], wanted: set[Key]) -> int:
    return sum(1 << i for i, key in enumerate(opaque) if key in wanted)


def _names(opaque: Sequence[Key], bits: int) -> list[str]:
    return [key[0] for i, key in enumerate(opaque) if bits >> i & 1]


def _is_dynamic(function: ir.Operation) -> bool:
    return "?" in str(function.attributes["function_type"])


def _functions(module: ir.Module) -> list[ir.Operation]:
    """The functions of a module that have a body; a kernel runs where it is called."""
    operations = [op.operation for op in module.body.operations]
    functions = [op for op in operations if op.name == "func.func" and KERNEL not in op.attributes]
    return [op for op in functions if len(op.regions[0].blocks)]


def _name(function: ir.Operation) -> str:
    return ir.StringAttr(function.attributes["sym_name"]).value


def _body(function: ir.Operation) -> list[ir.Operation]:
    return [op.operation for op in function.regions[0].blocks[0].operations]


def _print(op: ir.Operation) -> Any:
    """What tells an operation from what a pass put in its place, which has its location."""
    return (op.name, str(op.location), len(op.operands), *(str(r.type) for r in op.results))


def _maker(value: ir.Value) -> str:
    value = _uncast(value)
    if isinstance(value, ir.BlockArgument):
        return f"argument {value.arg_number}"
    return f"made by {_described(value.owner.operation)}"


def _owner(value: ir.Value) -> ir.Operation | None:
    value = _uncast(value)
    return None if isinstance(value, ir.BlockArgument) else value.owner.operation


def _uncast(value: ir.Value) -> ir.Value:
    """What a value is a cast of, between torch and builtin tensors."""
    while not isinstance(value, ir.BlockArgument):
        op = value.owner.operation
        if op.name not in (TO_BUILTIN, FROM_BUILTIN):
            break
        value = op.operands[0]
    return value


def _described(op: ir.Operation) -> str:
    names = [remarks.subject(op)]
    for operand in op.operands:
        maker = _owner(operand)
        if maker is not None and maker.name == "qfuse.concat":
            names.append(remarks.subject(maker))
    about = ", ".join(filter(None, names))
    return f"{name_of(op)}{f' ({about})' if about else ''} at {op.location}"
