"""Measuring on a CPU that others use, too: rounds in which all take turns, and the quiet ones."""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qfuse.tools.bench.cpu_limits import busy_seconds
from qfuse.tools.bench.kernels import Call

_SAMPLE_SECONDS = 3e-3
"""What one sample takes at least, by calls on one buffer after another."""

_LEAST_ROUNDS, _MOST_ROUNDS = 3, 25
_SECONDS_EACH = 0.4
"""What takes part in rounds no longer does after that, unless rounds are too few."""

_QUIET = 0.6
"""The share of rounds that count: those in which other processes did least."""


@dataclass(frozen=True)
class Quiet:
    """Seconds of a call of each, medians over its quiet rounds, and what others did in those."""

    seconds: dict[str, float]
    others_percent: float


@dataclass
class _Subject:
    calls: Sequence[Call]
    repeats: int
    place: int = 0

    def sample(self) -> float:
        """Seconds of one of its calls; they go on where those before have stopped."""
        start = time.perf_counter()
        for _ in range(self.repeats):
            self.calls[self.place % len(self.calls)]()
            self.place += 1
        return (time.perf_counter() - start) / self.repeats


def measure(calls: Mapping[str, Sequence[Call]]) -> Quiet:
    """All of `calls` in turn.  Each of a name works on memory of its own, so that no cache holds
    what it reads; all that are not slow are called once before."""
    subjects = {name: _warmed(each) for name, each in calls.items()}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(_MOST_ROUNDS):
        taking_part = [
            name
            for name, subject in subjects.items()
            if number < _LEAST_ROUNDS
            or sum(s for s, _ in samples[name]) * subject.repeats < _SECONDS_EACH
        ]
        own_before, others_before = busy_seconds()
        taken = {name: subjects[name].sample() for name in taking_part}
        own, others = busy_seconds()
        own, others = own - own_before, max(0.0, others - others_before)
        for name, seconds in taken.items():
            samples[name].append((seconds, others / max(own + others, 1e-9)))
    kept = {name: quiet(found) for name, found in samples.items()}
    return Quiet(
        {name: statistics.median(s for s, _ in found) for name, found in kept.items()},
        100 * statistics.mean(share for found in kept.values() for _, share in found),
    )


def _warmed(calls: Sequence[Call]) -> _Subject:
    """The first call of all is slow, and says nothing of how many make a sample."""
    calls[0]()
    start = time.perf_counter()
    calls[-1]()
    if time.perf_counter() - start < _SECONDS_EACH / _MOST_ROUNDS:
        for call in calls:
            call()
    seconds = _Subject(calls, 1).sample()
    return _Subject(calls, max(1, round(_SAMPLE_SECONDS / max(seconds, 1e-7))))


def quiet(samples: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of pairs of seconds and the share that others took, those of the quiet rounds."""
    count = max(_LEAST_ROUNDS, round(_QUIET * len(samples)))
    return sorted(samples, key=lambda sample: sample[1])[:count]
