"""What a program is compiled for."""

import difflib
from dataclasses import dataclass

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.gpu import GPUS

TARGETS = ("cpu", *(str(gpu) for gpu in GPUS.values() if gpu.is_cuda))
"""What a program can be compiled for; kernels alone also for `hip:*` (`qfuse-translate`)."""


@dataclass(frozen=True)
class Target:
    """A kind of device, and its architecture where that is chosen ahead of time.

    `cpu` compiles for the machine it runs on, at the level that its flags allow; `cuda:sm_90`
    for GPUs of that architecture, with or without one at hand.
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
        return ("cpu", "meta") if self.is_cpu else ("cpu", "meta", self.kind)

    @staticmethod
    def parse(text: str) -> "Target":
        """Read `cpu`, `cuda:sm_90`, ...; raises QfuseError for what cannot be compiled for."""
        kind, _, arch = text.partition(":")
        if text in TARGETS:
            return Target(kind, arch)
        if kind == "cpu":
            raise QfuseError(f"target {text!r}: cpu takes no architecture; use 'cpu'")
        if kind == "hip":
            raise QfuseError(
                f"target {text!r}: programs do not run on hip yet; qfuse-translate compiles their "
                "kernels, and programs are compiled for cuda:sm_90 and other cuda architectures"
            )
        near = difflib.get_close_matches(text, TARGETS, n=1, cutoff=0.3)
        near = near or (["cuda:sm_90"] if kind in ("cuda", "gpu") else ["cpu"])
        raise QfuseError(
            f"unknown target {text!r}; the nearest supported one is '{near[0]}' (there are "
            f"{', '.join(TARGETS)})"
        )
