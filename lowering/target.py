"""What a program is compiled for."""

import difflib
from dataclasses import dataclass

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.gpu import GPUS

TARGETS = ("cpu", *GPUS)
"""What a program can be compiled for."""

_USUAL = {"cuda": "cuda:sm_90", "gpu": "cuda:sm_90", "hip": "hip:gfx942", "rocm": "hip:gfx942"}
"""What is meant by a kind alone, or with an architecture that there is not."""


@dataclass(frozen=True)
class Target:
    """A kind of device, and its architecture where that is chosen ahead of time.

    `cpu` compiles for the machine it runs on, at the level that its flags allow; `cuda:sm_90`
    for GPUs of that architecture, with or without one at hand, as does `hip:gfx942`.
    """

    kind: str
    arch: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}" if self.arch else self.kind

    @property
    def is_cpu(self) -> bool:
        return self.kind == "cpu"

    @property
    def devices(self) -> tuple[str, ...]:
        """Kinds of torch devices that a model compiled for it may be on."""
        # torch calls AMD's devices cuda, too
        return ("cpu", "meta") if self.is_cpu else ("cpu", "meta", "cuda")

    @staticmethod
    def parse(text: str) -> "Target":
        """Read `cpu`, `cuda:sm_90`, ...; raises QfuseError for what cannot be compiled for."""
        kind, _, arch = text.partition(":")
        if text in TARGETS:
            return Target(kind, arch)
        if kind == "cpu":
            raise QfuseError(f"target {text!r}: cpu takes no architecture; use 'cpu'")
        near = difflib.get_close_matches(text, TARGETS, n=1, cutoff=0.3)
        near = near or ([_USUAL[kind]] if kind in _USUAL else ["cpu"])
        raise QfuseError(
            f"unknown target {text!r}; the nearest supported one is '{near[0]}' (there are "
            f"{', '.join(TARGETS)})"
        )
