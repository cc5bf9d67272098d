"""One compilation at a time."""

import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LOCK = threading.RLock()
"""Held while something is compiled: torch's tracing and the dialect objects of the bindings are
the process's, and break where two threads use them at once."""


def exclusive(function: Callable[P, R]) -> Callable[P, R]:
    """Let one thread at a time be in `function`, and in all others that are exclusive."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with LOCK:
            return function(*args, **kwargs)

    return call
