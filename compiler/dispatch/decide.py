"""From rules to decisions: which backend serves which numbers of rows, and what nearly did."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from qfuse.compiler.dispatch.conditions import CONDITIONS
from qfuse.compiler.dispatch.rules import KERNEL, LIBRARY, RULES, Rule
from qfuse.compiler.dispatch.subject import Subject

Preference = Callable[[str, bool, int, int | None], "Verdict"]
"""preference(call, epilogue apart, first M, last M) -> whether the library is faster, and why."""


@dataclass(frozen=True)
class Verdict:
    """What an estimate or a measurement says of a call."""

    faster: bool
    why: str
    measured: bool = False


@dataclass(frozen=True)
class NearMiss:
    """A library rule that would have decided but for one condition; or, where none is that near,
    the nearest, with all that it lacks."""

    rule: str
    call: str
    wanted: str
    found: str

    def __str__(self) -> str:
        return f"not {self.rule} ({self.call}): {self.found}; wanted: {self.wanted}"


@dataclass(frozen=True)
class Decision:
    """Rows first_m to last_m (None: any larger number) go to `backend`, because of `rule`."""

    first_m: int
    last_m: int | None
    backend: str
    call: str
    rule: str
    reason: str
    near: tuple[NearMiss, ...] = ()
    apart: bool = False

    @property
    def rows(self) -> str:
        """`M = 1`, `M 2..16`, `M >= 17`, `any M`."""
        if self.last_m is None:
            return f"M >= {self.first_m}" if self.first_m > 1 else "any M"
        return (
            f"M = {self.first_m}"
            if self.first_m == self.last_m
            else (f"M {self.first_m}..{self.last_m}")
        )


RANGES = ((1, 1), (2, 16), (17, 64), (65, 256), (257, 1024), (1025, 4096), (4097, None))
"""Rows that share a decision; neighbours that decide alike become one."""


def decide(subject: Subject, preference: Preference, starts: Sequence[int] = ()) -> list[Decision]:
    """The decisions for every number of rows that `subject` may have, in order.

    `starts` are numbers of rows from which on `preference` may know something else.
    """
    found: list[Decision] = []
    for first, last in _ranges((*starts, subject.single + 1)):
        if subject.rows is not None:
            if not first <= subject.rows <= (last or subject.rows):
                continue
            first = last = subject.rows
        decision = _decide(subject, first, last, preference)
        before = found[-1] if found else None
        if before is not None and _alike(before, decision):
            found[-1] = _joined(before, decision)
        else:
            found.append(decision)
    return found


def _ranges(starts: Sequence[int]) -> list[tuple[int, int | None]]:
    """RANGES, cut where some others begin."""
    firsts = sorted({first for first, _ in RANGES} | set(starts))
    return [*((a, b - 1) for a, b in pairwise(firsts)), (firsts[-1], None)]


def _decide(subject: Subject, first: int, last: int | None, preference: Preference) -> Decision:
    chosen: tuple[Rule, str] | None = None
    near: list[NearMiss] = []
    schemes: list[NearMiss] = []
    farther: list[tuple[tuple[bool, int], NearMiss]] = []
    known_scheme, against = False, ""
    for rule in RULES:
        missing = [c for c in map(CONDITIONS.get, rule.conditions) if c and not c.holds(subject)]
        serves = _serves(rule, first, last, subject.single)
        if rule.backend == LIBRARY and not any(c.kind == "about" for c in missing):
            known_scheme |= not any(c.kind == "scheme" for c in missing)
            if serves and missing:
                wanted = " and ".join(c.wanted for c in missing)
                found = " and ".join(c.found(subject) for c in missing)
                miss = NearMiss(rule.name, rule.call, wanted, found)
                if len(missing) > 1:
                    other_scheme = any(c.kind == "scheme" for c in missing)
                    farther.append(((other_scheme, len(missing)), miss))
                else:
                    (schemes if missing[0].kind == "scheme" else near).append(miss)
            elif not serves and not missing and not rule.apart:
                few = f"M is {first}" if first == last else f"M is {first} to {last}"
                wanted_rows = f"M >= {rule.least(subject.single)}"
                near.append(NearMiss(rule.name, rule.call, wanted_rows, few))
        if missing or not serves or chosen is not None:
            continue
        asked_for = subject.machine.blas == "on" and not (rule.apart or rule.measured)
        if not rule.cost or asked_for:
            chosen = rule, rule.reason
            continue
        verdict = preference(rule.call, rule.apart, first, last)
        if verdict.faster:
            chosen = rule, f"{rule.reason}; {verdict.why}"
        else:
            wanted = _MEASURED if rule.measured else _APART if rule.apart else _FASTER
            near.append(NearMiss(rule.name, rule.call, wanted, verdict.why))
            if verdict.measured:
                against += f"; and not {rule.call} by {rule.name}: {verdict.why}"
    assert chosen is not None, "the last rule has no conditions"
    if schemes and not known_scheme:
        near.append(_no_scheme(schemes))
    if farther and not near:  # so that there is a reason always
        near.append(min(farther, key=lambda found: found[0])[1])
    rule, reason = chosen
    reason += against if rule.backend == KERNEL else ""
    # Who gets a library call does not ask which other one it might have been.
    misses = tuple(near) if rule.backend == KERNEL else ()
    return Decision(first, last, rule.backend, rule.call, rule.name, reason, misses, rule.apart)


def _no_scheme(misses: list[NearMiss]) -> NearMiss:
    """One miss for all rules that would have counted if x and w were quantized otherwise."""
    names, calls = (", ".join(getattr(m, f) for m in misses) for f in ("rule", "call"))
    return NearMiss(names, calls, "; or ".join(m.wanted for m in misses), misses[0].found)


_FASTER = "the call is faster, or asked for (blas=on)"
_MEASURED = "the call is measured to be faster"
_APART = "the call and a kernel for the epilogue are faster"


def _serves(rule: Rule, first: int, last: int | None, single: int) -> bool:
    """Whether a rule is about all of these rows; rules begin and end where ranges do."""
    if first < rule.least(single):
        return False
    most = rule.most(single)
    return most is None or (last is not None and last <= most)


def _alike(a: Decision, b: Decision) -> bool:
    """Of two for our kernel, neither may know a measurement that the other does not."""
    same = (a.backend, a.call, a.rule) == (b.backend, b.call, b.rule)
    return same and (a.backend == LIBRARY or a.reason == b.reason)


def _joined(a: Decision, b: Decision) -> Decision:
    """More rules are about many rows than about few, so the misses are those of the latter."""
    return Decision(a.first_m, b.last_m, a.backend, a.call, a.rule, a.reason, b.near, a.apart)
