"""Measuring: on a GPU launches in a CUDA graph, on a CPU rounds, on rotated buffers; limits."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch

Name = TypeVar("Name")

_COLD = 4
"""Times L2 that buffers take together, so that none is still there when its turn comes."""

_MOST_SETS = 64
_TARGET_SECONDS = 0.02
"""What one sample takes at least: the resolution of events is half a microsecond."""

_SAMPLES = 7
_MAX_CALLS = 2048
"""Launches in one graph."""

_LEAST_ROUNDS, _MOST_ROUNDS = 3, 51
_SECONDS_EACH = 1.5
"""What takes part in rounds on a CPU no longer does after that, unless rounds are too few."""

_COPIED, _PEAK = 1 << 29, 8192
"""Elements of bf16 that are copied, and the extents of the product that shows the peak."""


class Timer(Protocol):
    """Seconds that one of `calls` takes; each works on buffers of its own."""

    def __call__(self, calls: Sequence[Callable[[], Any]]) -> float: ...


@dataclass(frozen=True)
class Limits:
    """What a machine was measured to do: bytes/s of a copy (read and written), bf16 FLOP/s."""

    memory: float
    bf16: float

    def seconds(self, bytes_: float, flops: float) -> tuple[float, str]:
        """What FP8 work takes at least: FP8 counts twice as fast as bf16; and what binds it."""
        memory, compute = bytes_ / self.memory, flops / (2 * self.bf16)
        return max(memory, compute), "memory" if memory >= compute else "tensor cores"


def buffer_sets(bytes_: int, l2_bytes: int) -> int:
    """How many sets of buffers of `bytes_` to rotate so that each comes from memory."""
    return min(_MOST_SETS, max(2, math.ceil(_COLD * l2_bytes / max(bytes_, 1))))


def graph_timer(calls: Sequence[Callable[[], Any]]) -> float:
    """`Timer` of a GPU: all calls in turn, captured in one graph, as often as makes a sample.

    The median of samples.  What a captured call allocates comes from the graph's own pool.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, chooses algorithms, and allocates what is kept
            for call in calls:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    short = _captured(calls, 1)
    _replay(short, 1)  # the first replay puts the graph on the device
    once = _replay(short, 1) / len(calls)
    rounds = math.ceil(_TARGET_SECONDS / (once * len(calls)))
    inside = max(1, min(rounds, _MAX_CALLS // len(calls)))
    graph = _captured(calls, inside)
    replays = math.ceil(rounds / inside)
    _replay(graph, replays)  # brings the clocks up
    samples = [_replay(graph, replays) for _ in range(_SAMPLES)]
    return statistics.median(samples) / (replays * inside * len(calls))


def call_timer(calls: Sequence[Callable[[], Any]]) -> float:
    """`Timer` of calls that wait for the GPU, which no graph can hold: with the host's part."""
    for _ in range(2):
        for call in calls:
            call()
    samples = []
    for _ in range(_SAMPLES):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples) / len(calls)


def interleaved(calls: Mapping[Name, Sequence[Callable[[], Any]]]) -> dict[Name, list[float]]:
    """Seconds that one call of each took on this CPU, in rounds in which all take turns.

    So what else the machine does meets all of them alike, and none finds in the cache what the
    one before has read, where there are several calls.  What is slow leaves after a few rounds.
    """
    samples: dict[Name, list[float]] = {name: [] for name in calls}
    for number in range(_MOST_ROUNDS):
        for place, (name, each) in enumerate(calls.items()):
            taken = samples[name]
            if number >= _LEAST_ROUNDS and sum(taken) > _SECONDS_EACH:
                continue
            start = time.perf_counter()
            each[(number + place) % len(each)]()
            taken.append(time.perf_counter() - start)
    return samples


def measure_limits(timer: Timer, device: torch.device) -> Limits:
    """Copy bandwidth over a gigabyte, and the bf16 peak of a large product, by the same timer."""
    empty = partial(torch.empty, _COPIED, dtype=torch.bfloat16, device=device)
    pairs = [(empty().zero_(), empty()) for _ in range(2)]
    copy = timer([partial(b.copy_, a) for a, b in pairs])
    del pairs
    n = _PEAK
    factors = [torch.randn(n, n, device=device).bfloat16() for _ in range(3)]
    product = timer([partial(torch.matmul, factors[0], factors[1].T, out=factors[2])])
    return Limits(2 * 2 * _COPIED / copy, 2 * n**3 / product)


def _captured(calls: Sequence[Callable[[], Any]], rounds: int) -> Any:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph


def _replay(graph: Any, times: int) -> float:
    """Seconds of `times` replays."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        graph.replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
