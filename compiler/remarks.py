"""Remarks: what a pass did or declined, where, why, and what would make it fire.

A pass records through `fired` and `refused`; whoever runs passes collects with `collect`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any, Literal

from qfuse.compiler.runtime.report import Savings
from qfuse.dialects.bindings import ir


@dataclass(frozen=True)
class Remark:
    """One match that a pattern attempted.

    `op` is the operation's name, `subject` the weight or argument that tells it apart in a model
    (empty in plain IR), `location` its MLIR location.  `saves` is what a fusion saves where it
    fired, by `compiler/benefit.py`; None for what was refused, and for rewrites that only raise.
    """

    outcome: Literal["fired", "refused"]
    pattern: str
    op: str
    location: str
    subject: str = ""
    cause: str = ""
    cure: str = ""
    saves: Savings | None = None

    def __str__(self) -> str:
        subject = f" ({self.subject})" if self.subject else ""
        text = f"{self.pattern}: {self.outcome} at {self.op}{subject}"
        if self.saves:
            text += f": saves {self.saves}"
        if self.cause:
            text += f": {self.cause}"
        if self.cure:
            text += f"; {self.cure}"
        return text

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Remarks:
    """The remarks of one run, in order.

    A refusal counts once for each operation however often the driver tried it, and not at all
    where the same pattern, in another operand order say, fired on that operation.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Remark] = {}
        self._refusals: dict[tuple[int, str], dict[Remark, int]] = {}
        self._count = 0

    def add(self, remark: Remark, root: int) -> None:
        """Keep `remark` about the operation whose hash is `root`."""
        self._count += 1
        key = (root, remark.pattern)
        if remark.outcome == "fired":
            for index in self._refusals.pop(key, {}).values():
                del self._kept[index]
            self._kept[self._count] = remark
        elif remark not in self._refusals.setdefault(key, {}):
            self._refusals[key][remark] = self._count
            self._kept[self._count] = remark

    def __iter__(self) -> Iterator[Remark]:
        return iter(self._kept.values())

    def __len__(self) -> int:
        return len(self._kept)


_current: ContextVar[Remarks | None] = ContextVar("qfuse_remarks", default=None)


@contextmanager
def collect() -> Iterator[Remarks]:
    """Collect the remarks of all passes run inside."""
    remarks = Remarks()
    token = _current.set(remarks)
    try:
        yield remarks
    finally:
        _current.reset(token)


def fired(
    pattern: str,
    root: ir.Operation,
    about: str = "",
    cause: str = "",
    saves: Savings | None = None,
) -> None:
    """Record that `pattern` replaces `root`; `about` names what tells it apart in a model."""
    about = about or subject(root)
    place = str(root.location)
    _record(Remark("fired", pattern, root.name, place, about, cause, saves=saves), root)


def refused(
    pattern: str,
    root: ir.Operation,
    at: ir.Operation,
    cause: str,
    cure: str = "",
    name: str = "",
) -> None:
    """Record that `pattern` leaves `root` as it is because of the operation `at`.

    `name` is what to call that, if not by the operation's name.
    """
    place = str(at.location)
    _record(Remark("refused", pattern, name or at.name, place, subject(at), cause, cure), root)


def _record(remark: Remark, root: ir.Operation) -> None:
    remarks = _current.get()
    if remarks is not None:
        remarks.add(remark, hash(root))


def subject(op: ir.Operation) -> str:
    """The `qfuse.name`s of the function arguments that `op` reads, weights first found.

    Follows single-operand producers (pack, casts), so a product names its weight.
    """
    names = []
    for operand in op.operands:
        name = argument_name(operand)
        if name:
            names.append(name)
    return ", ".join(names)


def argument_name(value: ir.Value) -> str:
    """`qfuse.name` of the function argument that `value` is made from, or ''."""
    while not isinstance(value, ir.BlockArgument):
        owner = value.owner.operation
        if owner.name not in _TRANSPARENT:
            return ""
        value = owner.operands[0]
    return _about(value, "qfuse.name")


def argument_kind(value: ir.Value) -> str:
    """`qfuse.kind` of `value`, or '' where it is no function argument, or has none."""
    return _about(value, "qfuse.kind") if isinstance(value, ir.BlockArgument) else ""


def _about(argument: ir.BlockArgument, attribute: str) -> str:
    function = function_of(argument)
    if function is None or "arg_attrs" not in function.attributes:
        return ""
    every = ir.ArrayAttr(function.attributes["arg_attrs"])
    attributes = ir.DictAttr(every[argument.arg_number])
    return ir.StringAttr(attributes[attribute]).value if attribute in attributes else ""


def function_of(argument: ir.BlockArgument) -> ir.Operation | None:
    """The function that `argument` is an argument of; None for that of a loop or another block."""
    owner = argument.owner.owner.operation  # a FuncOp's own `name` is its symbol
    is_argument = owner.name == "func.func" and argument.owner == owner.regions[0].blocks[0]
    return owner if is_argument else None


_TRANSPARENT = (
    "torch_c.to_builtin_tensor",
    "torch_c.from_builtin_tensor",
    "qfuse.pack",
    "qfuse.append_expert",
)
