"""Options of a compilation; the only file that reads the environment."""

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qfuse.compiler.dispatch.modes import MODES
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.roundings import QUANTIZE_ROUNDINGS
from qfuse.lowering.cpu.cpu import choose_level
from qfuse.lowering.target import TARGETS, Target

FUSIONS: dict[str, str] = {
    "shared-expert": "qfuse-fuse-shared-expert",
    "gate-up": "qfuse-fuse-gate-up",
    "qkv": "qfuse-fuse-qkv",
    "rope": "qfuse-fuse-rope",
    "epilogue": "qfuse-fuse-epilogue",
    "combine": "qfuse-fuse-combine",
    "norm-quantize": "qfuse-fuse-norm-quantize",
    "act-quantize": "qfuse-fuse-act-quantize",
}
"""Names by which a fusion can be switched off, and its pass; `all` stands for every one."""

TUNE = ("off", "auto", "full")
"""Tuning kernels of the CPU: not at all; what was not measured before, for two seconds at most;
everything again, for a minute at most."""


@dataclass(frozen=True)
class CompileOptions:
    """What `compile` was asked for, made once at the entry and passed down."""

    target: Target = field(default_factory=lambda: Target("cpu"))
    disable: frozenset[str] = frozenset()
    level: str | None = None
    cache_dir: Path | None = None
    blas: str = "auto"
    verify: bool = False
    quantize_rounding: str = "value"
    tune: str = "off"

    @staticmethod
    def make(
        target: str = "cpu",
        disable: Sequence[str] | str = (),
        environment: Mapping[str, str] = os.environ,
        blas: str = "auto",
        verify: bool = False,
        quantize_rounding: str = "value",
        tune: str | None = None,
    ) -> "CompileOptions":
        """Options from a caller's words and the environment; raises QfuseError on unknown ones.

        Target "cuda" or "hip" is the GPU at hand, torch's current one.  `disable` is a sequence of
        names, or text with commas between them.  `blas` says where library
        products are used: "auto", where they are measured or estimated faster; "on", wherever there
        is one; or "off".
        `quantize_rounding` says what norms quantize: "value", what the unfused program does, or
        "f32", what the value is rounded from.  `tune` is one of TUNE; by default what `QFUSE_TUNE`
        says, else "off" where `CI` is set, else "auto".
        Read from the environment, besides: `QFUSE_DISABLE` (fusions to leave out, comma separated),
        `QFUSE_CPU_LEVEL` (avx512, avx2 or generic instead of the best the CPU has) and
        `QFUSE_CACHE_DIR` (where compiled kernels are kept).
        """
        from_environment = environment.get("QFUSE_DISABLE", "")
        given = disable.split(",") if isinstance(disable, str) else disable
        names = [*given, *filter(None, from_environment.split(","))]
        level = environment.get("QFUSE_CPU_LEVEL") or None
        if level is not None:
            choose_level(level)
        if blas not in MODES:
            raise QfuseError(f"blas {blas!r} is not one of {', '.join(MODES)}")
        tune = tune or environment.get("QFUSE_TUNE") or ("off" if _is_ci(environment) else "auto")
        if tune not in TUNE:
            raise QfuseError(f"tune {tune!r} is not one of {', '.join(TUNE)}")
        if quantize_rounding not in QUANTIZE_ROUNDINGS:
            raise QfuseError(
                f"quantize_rounding {quantize_rounding!r} is not one of "
                f"{', '.join(QUANTIZE_ROUNDINGS)}"
            )
        if verify and quantize_rounding != "value":
            raise QfuseError(
                f"verify holds passes to every bit, and quantize_rounding {quantize_rounding!r} "
                "changes what is computed; leave out one of them"
            )
        return CompileOptions(
            Target.parse(_gpu_at_hand(target) if target in ("cuda", "hip") else target),
            frozenset(fusion for name in names for fusion in _fusions(name.strip())),
            level,
            cache_dir(environment) / "kernels",
            blas,
            verify,
            quantize_rounding,
            tune,
        )

    @staticmethod
    def from_mapping(options: Mapping[str, Any]) -> "CompileOptions":
        """`make` from keywords, as `torch.compile(..., options=...)` has them."""
        known = ("target", "disable", "blas", "quantize_rounding", "tune")
        if unknown := sorted(set(options) - set(known)):
            raise QfuseError(f"no compile option '{unknown[0]}'; there are {', '.join(known)}")
        return CompileOptions.make(**options)

    @property
    def tuned_dir(self) -> Path | None:
        """Where what was measured of this CPU is kept."""
        return None if self.cache_dir is None else self.cache_dir.parent / "tuned"

    def fusion_passes(self) -> list[str]:
        """The fusion passes that are on, with their options, in the order in which they run."""
        options = {}
        if self.quantize_rounding != "value":
            options["norm-quantize"] = f"{{quantize-rounding={self.quantize_rounding}}}"
        on = (fusion for fusion in FUSIONS if fusion not in self.disable)
        return [FUSIONS[fusion] + options.get(fusion, "") for fusion in on]


def _is_ci(environment: Mapping[str, str]) -> bool:
    return environment.get("CI", "").lower() not in ("", "0", "false")


def _gpu_at_hand(kind: str) -> str:
    """The target whose code runs on torch's current GPU; raises QfuseError if there is none."""
    from qfuse.lowering.triton.driver import arch_error, arch_of, gpu_error

    if why := gpu_error(kind):
        raise QfuseError(f"target '{kind}' is the GPU at hand: {why}")
    arch = arch_of()
    # later ones first: code for sm_80 runs on sm_89, too, but is not made for it
    known = [text for text in TARGETS if text != "cpu" and arch_error(text, arch) is None]
    if not known:
        raise QfuseError(
            f"the GPU at hand is {arch}; programs are compiled for {', '.join(TARGETS)}"
        )
    return known[-1]


def cache_dir(environment: Mapping[str, str] = os.environ) -> Path:
    """Directory for what can be made again: compiled kernels, the demo's checkpoint."""
    if explicit := environment.get("QFUSE_CACHE_DIR"):
        return Path(explicit)
    if base := environment.get("XDG_CACHE_HOME"):
        return Path(base) / "qfuse"
    try:
        return Path.home() / ".cache" / "qfuse"
    except RuntimeError:  # no HOME, and a user that the system does not know
        raise QfuseError("there is no home directory to cache in; set QFUSE_CACHE_DIR") from None


def _fusions(name: str) -> list[str]:
    if name == "all":
        return list(FUSIONS)
    if name in FUSIONS:
        return [name]
    near = difflib.get_close_matches(name, FUSIONS, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise QfuseError(f"no fusion '{name}' (there are {', '.join(FUSIONS)}, all){hint}")
