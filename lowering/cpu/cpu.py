"""What this CPU can do, and which level of kernels fits it.

| level | instructions the kernels ask for |
|---|---|
| avx512 | AVX-512 F, BW, VL, BF16, VBMI and VNNI, by name (intrinsics) |
| avx2 | AVX2, FMA and F16C: by name where codes are multiplied, else LLVM finds them |
| generic | plain vector operations, for any x86-64: SSE2, no fused multiply-add |

LLVM compiles the functions of the last two for exactly these features (`target_attributes`), so a
level that was forced gives the code that a lesser CPU would run.  Those of avx512 are compiled for
the CPU they run on, as are the wrappers that unpack arguments, so an object needs the flags of the
machine that made it (`CompiledKernel.features`), whatever its level.  An intrinsic that the CPU
lacks would abort the process inside LLVM, therefore `choose_level` checks before any code is
generated.
"""

from functools import lru_cache
from pathlib import Path

from qfuse.dialects.errors import QfuseError

LEVELS = ("avx512", "avx2", "generic")

_NEEDED = {
    "avx512": (
        *("avx512f", "avx512bw", "avx512vl", "avx512_bf16", "avx512vbmi", "avx512_vnni"),
        *("fma", "f16c"),
    ),
    "avx2": ("avx2", "fma", "f16c"),
    "generic": (),
}

_TARGETS = {
    "avx512": "",
    "avx2": '["target-cpu", "x86-64"], ["tune-cpu", "haswell"], ["target-features", "{}"]',
    "generic": '["target-cpu", "x86-64"], ["target-features", "{}"]',
}

# Names in /proc/cpuinfo that LLVM may turn into instructions; the rest (smep, msr, ...) is not
# about code, and would only tie an object to one machine for nothing.
_CODE_PREFIXES = ("avx", "sse", "ssse", "bmi", "amx", "sha", "vaes", "vpclmul", "gfni", "xsave")
_CODE_FLAGS = frozenset(
    [
        *("fma", "f16c", "movbe", "popcnt", "aes", "pclmulqdq", "abm", "adx", "cx16", "pni"),
        *("rdrand", "rdseed", "rdpid", "clwb", "clflushopt", "clzero", "cldemote", "prfchw"),
        *("fsgsbase", "mwaitx", "lahf_lm", "waitpkg", "serialize", "movdiri", "movdir64b"),
    ]
)


@lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """All flags of the first CPU in /proc/cpuinfo; empty where there is no such file."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


@lru_cache(maxsize=1)
def cpu_features() -> tuple[str, ...]:
    """Those flags that compiled code may depend on, sorted."""
    return tuple(sorted(f for f in cpu_flags() if f in _CODE_FLAGS or f.startswith(_CODE_PREFIXES)))


def missing_flags(level: str) -> list[str]:
    """What this CPU lacks for `level`."""
    return [f for f in _NEEDED[level] if f not in cpu_flags()]


def target_attributes(level: str) -> str:
    """LLVM's attributes of a function: what it is compiled for, if not the CPU at hand."""
    return _TARGETS[level].format(",".join(f"+{flag}" for flag in _NEEDED[level]))


def choose_level(level: str | None = None) -> str:
    """`level` if this CPU can run it, by default the best it can run; else QfuseError."""
    if level is None:
        return next(name for name in LEVELS if not missing_flags(name))
    if level not in LEVELS:
        raise QfuseError(f'CPU level "{level}" is not one of {", ".join(LEVELS)}')
    if missing := missing_flags(level):
        raise QfuseError(
            f"CPU level {level} needs {', '.join(missing)}, which this CPU lacks; "
            f"use {choose_level()}"
        )
    return level
