"""`qfuse-dispatch`: each product learns which backend multiplies it, for which rows, and why."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.dispatch.cost import preference_of, starts_of
from qfuse.compiler.dispatch.decide import Decision, decide
from qfuse.compiler.dispatch.modes import MODES, ROUNDINGS
from qfuse.compiler.dispatch.subject import Machine, Subject, read_subject
from qfuse.compiler.passes.base import Pass
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.matmul_op import INPUTS
from qfuse.lowering.triton.gpu import find_gpu

DISPATCH = "qfuse.dispatch"
"""Attribute of a product: its decisions, in order of the number of rows."""


@dataclass(frozen=True)
class Dispatch(Pass):
    """Write on each product which backend serves which numbers of rows, by the rules.

    Before::

        %y = "qfuse.matmul"(%x, %w) : (tensor<?x4096xbf16>, tensor<4096x4096xbf16>) -> ...

    After::

        %y = "qfuse.matmul"(%x, %w) {qfuse.dispatch = [
               {first_m = 1, last_m = 1, backend = "kernel", call = "", rule = "single-row",
                reason = "one row is a matrix by a vector, ..."},
               {first_m = 2, backend = "library", call = "mm", rule = "plain", ...}]} ...

    `blas` is auto (the library where it is estimated faster), on (wherever there is one) or off;
    `roundings` exact keeps each rounding that the program has, library lets the library round a
    product, its bias and its activation once.  The rules are data (`compiler/dispatch/rules.py`,
    and as text `RULES.md` beside it).  Remarks say what decided, and which rules would have but
    for one condition.  Nothing is rewritten; products that have decisions get new ones.
    """

    name: ClassVar[str] = "qfuse-dispatch"

    target: str = "cpu"
    blas: str = "auto"
    roundings: str = "exact"

    def run(self, module: ir.Operation) -> None:
        machine = self.machine()
        for product in products(module):
            subject, decisions = decisions_for(product, machine)
            product.attributes[DISPATCH] = _attribute(decisions)
            for decision in decisions:
                call = decision.call + (", epilogue apart" if decision.apart else "")
                to = f"{machine.library} ({call})" if call else "our kernel"
                text = f"{decision.rows} to {to} by {decision.rule}: {decision.reason}"
                remarks.fired("dispatch", product, subject.name, text)
                for miss in decision.near:
                    cause = f"{decision.rows}: {miss.found}"
                    remarks.refused(f"dispatch-{miss.rule}", product, product, cause, miss.wanted)

    def machine(self) -> Machine:
        """What the options name; raises QfuseError for what there is not."""
        for name, value, legal in (
            ("blas", self.blas, MODES),
            ("roundings", self.roundings, ROUNDINGS),
        ):
            if value not in legal:
                raise QfuseError(f"{self.name}: {name}={value} is not one of {', '.join(legal)}")
        if self.target == "cpu":
            return Machine("cpu", "", self.blas, self.roundings)
        gpu = find_gpu(self.target)
        return Machine(gpu.kind, gpu.arch, self.blas, self.roundings)


def decisions_for(product: ir.Operation, machine: Machine) -> tuple[Subject, list[Decision]]:
    """What a product is to dispatch, and what is decided."""
    subject = read_subject(product, machine)
    preference = preference_of(product, str(machine))
    return subject, decide(subject, preference, starts_of(preference))


def products(holder: ir.Operation) -> list[ir.Operation]:
    """All products in the regions of an operation, in order."""
    found = []
    for region in holder.regions:
        for block in region.blocks:
            for op in (op.operation for op in block.operations):
                found += [op] if op.name in INPUTS else products(op)
    return found


def _attribute(decisions: list[Decision]) -> ir.Attribute:
    i64 = ir.IntegerType.get_signless(64)
    entries = []
    for d in decisions:
        fields = {"backend": d.backend, "call": d.call, "rule": d.rule, "reason": d.reason}
        entry: dict[str, ir.Attribute] = {k: ir.StringAttr.get(v) for k, v in fields.items()}
        entry["first_m"] = ir.IntegerAttr.get(i64, d.first_m)
        if d.apart:
            entry["apart"] = ir.UnitAttr.get()
        if d.last_m is not None:
            entry["last_m"] = ir.IntegerAttr.get(i64, d.last_m)
        entries.append(ir.DictAttr.get(entry))
    return ir.ArrayAttr.get(entries)
