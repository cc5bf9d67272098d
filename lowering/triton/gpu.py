"""What a GPU can do, as far as kernels differ by it."""

import difflib
from dataclasses import dataclass

from qfuse.dialects.errors import QfuseError


@dataclass(frozen=True)
class Gpu:
    """An architecture.

    `shared_bytes` is what one program may use, `processors` how many run at once (for grids that
    stay on the machine); sources: CUDA C Programming Guide, table of compute capabilities; AMD
    CDNA3 and CDNA4 white papers.
    """

    kind: str
    arch: str
    shared_bytes: int
    processors: int
    warp_size: int = 32
    warps: int = 64
    """Warps of 32 that one processor holds (NVIDIA)."""
    programs: int = 32
    """Programs that one processor holds (NVIDIA)."""
    fp8_products: tuple[str, ...] = ()
    """FP8 types that its matrix instructions multiply; codes of others are decoded to f16."""
    unconverted: tuple[str, ...] = ()
    """FP8 types that Triton cannot convert for it; we do, on the bits."""

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}"

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    @property
    def warp_specializes(self) -> bool:
        """Whether Triton's automatic warp specialization builds producers and consumers."""
        return self.arch == "sm_90"

    @property
    def capability(self) -> int:
        """90 for sm_90."""
        return int(self.arch.removeprefix("sm_"))


_OCP = ("f8E4M3FN", "f8E5M2")

GPUS: dict[str, Gpu] = {
    str(gpu): gpu
    for gpu in (
        Gpu("cuda", "sm_80", 166_912, 108, unconverted=("f8E4M3FN",)),
        Gpu("cuda", "sm_89", 101_376, 142, warps=48, programs=24, fp8_products=_OCP),
        Gpu("cuda", "sm_90", 232_448, 132, fp8_products=_OCP),
        Gpu("cuda", "sm_100", 232_448, 148, fp8_products=_OCP),
        Gpu("hip", "gfx942", 65_536, 304, warp_size=64),
        Gpu("hip", "gfx950", 163_840, 256, warp_size=64, fp8_products=_OCP),
    )
}


def find_gpu(target: str) -> Gpu:
    """The GPU named `cuda:sm_90`; raises QfuseError for one that nothing is known about."""
    if target in GPUS:
        return GPUS[target]
    near = difflib.get_close_matches(target, GPUS, n=1, cutoff=0.3) or ["cuda:sm_90"]
    raise QfuseError(
        f"unknown GPU target {target!r}; the nearest supported one is '{near[0]}' (there are "
        f"{', '.join(GPUS)})"
    )
