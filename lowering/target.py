"""What a program is compiled for."""

import difflib
from dataclasses import dataclass

from qfuse.dialects.errors import QfuseError

KINDS = ("cpu",)
"""Kinds of target that a program can be compiled for today."""


@dataclass(frozen=True)
class Target:
    """A kind of device, and its architecture where that is chosen ahead of time.

    `cpu` compiles for the machine it runs on, at the level that its flags allow.
    """

    kind: str
    arch: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}" if self.arch else self.kind

    @staticmethod
    def parse(text: str) -> "Target":
        """Read `cpu`, `cuda:sm_90`, ...; raises QfuseError for what cannot be compiled for."""
        kind, _, arch = text.partition(":")
        if kind in KINDS and not arch:
            return Target(kind)
        if kind in KINDS:
            raise QfuseError(f"target '{text}': {kind} takes no architecture; use '{kind}'")
        near = difflib.get_close_matches(kind, KINDS, n=1) or list(KINDS)
        raise QfuseError(f"unknown target '{text}'; the nearest supported one is '{near[0]}'")
