"""Decoding as a CUDA graph: a specialisation that is recorded once and replayed from then on.

A step of decoding is hundreds of launches of a few microseconds each, which Python and the driver
cannot issue as fast as the GPU finishes them; a replay issues them all at once.
"""

import math
import warnings
from typing import Any

import torch

from qfuse.compiler.runtime import calls
from qfuse.compiler.runtime.device import Device
from qfuse.compiler.runtime.plan import TorchStep
from qfuse.compiler.runtime.specialize import Specialization
from qfuse.compiler.runtime.trace import Action, View
from qfuse.dialects.errors import QfuseError

CAPTURED_TOKENS = 64
"""Calls whose kernels see at most this many tokens are captured; with more, the GPU is the slower.

No more than `torch_ops.ASYNCHRONOUS_TOKENS`: longer calls wait for the device."""

EAGER_CALLS = 1
"""Calls of a specialisation before it is captured, besides the one that was traced: libraries set
themselves up in their first calls, which cannot be recorded."""


def can_capture(specialization: Specialization, device: Device) -> bool:
    """Whether to capture the calls of a specialisation.

    Not those that read inputs where the caller has them, draw random numbers, or are long.
    """
    actions = specialization.actions
    rows = [_tokens(specialization, action) for action in actions if action.kind == "kernel"]
    random = any(isinstance(a.step, TorchStep) and calls.is_random(a.step.op) for a in actions)
    fixed = specialization.stage is not None and specialization.body is not None
    return device.captures and fixed and not random and 0 < max(rows, default=0) <= CAPTURED_TOKENS


def _tokens(specialization: Specialization, action: Action) -> int:
    """Tokens that a kernel works on: the heads of one, [batch, tokens, heads, width], are rows."""
    first = specialization.trace.views[action.results[0]]
    assert isinstance(first, View)
    return math.prod(first.shape[: min(2, len(first.shape) - 1)])


class CapturedCall:
    """`specialization.call` that replays a graph as soon as there is one.

    Outputs belong to the caller: they are copied out of the graph's memory.  Where capturing
    fails, there is one warning, and calls go on without a graph.  A caller who captures the call
    in a graph of their own gets the launches themselves.
    """

    def __init__(self, specialization: Specialization, device: Device) -> None:
        assert specialization.stage is not None and specialization.body is not None
        self._eager = specialization.call
        self._stage, self._body = specialization.stage, specialization.body
        self._device = device
        self._eager_calls: float = EAGER_CALLS
        self._replay: Any = None
        self._outputs: tuple[Any, ...] = ()

    @property
    def captured(self) -> bool:
        return self._replay is not None

    def __call__(self, *inputs: torch.Tensor) -> tuple[Any, ...]:
        if self._device.is_capturing():  # a graph of the caller's
            return self._eager(*inputs)
        if self._replay is None:
            if self._eager_calls > 0:
                self._eager_calls -= 1
                return self._eager(*inputs)
            self._capture()
            if self._replay is None:
                return self._eager(*inputs)
        self._stage(*inputs)
        self._replay()
        return tuple([x.clone() if isinstance(x, torch.Tensor) else x for x in self._outputs])

    def _capture(self) -> None:
        """Capture runs nothing, so that caches are as they were if it fails."""
        try:
            self._replay, self._outputs = self._device.capture(self._body)
        except (RuntimeError, QfuseError) as error:
            self._eager_calls = float("inf")
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"decoding runs without a CUDA graph, and slower: {reason}",
                RuntimeWarning,
                stacklevel=4,
            )
