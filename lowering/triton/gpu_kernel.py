"""A kernel in a GPU's machine code and how to start it: plain data, which an artifact carries."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from qfuse.lowering.triton.gpu import GPUS
from qfuse.lowering.triton.kernel import PARTS, Grid, Parameter

ALIGNMENT = 256
"""Bytes that parts of the scratch begin at multiples of."""


@dataclass(frozen=True)
class GpuLaunch:
    """One function of machine code: its arguments are the pointers of `parameters`, then M (i32).

    `num_warps` is what the code was compiled to need, `shared_bytes` its dynamic shared memory,
    `program_scratch` the bytes of global memory that each program works in.
    """

    name: str
    parameters: tuple[Parameter, ...]
    grid: Grid
    num_warps: int
    shared_bytes: int
    program_scratch: int
    code: bytes


@dataclass(frozen=True)
class GpuVariant:
    """The launches, in order, that serve first_m <= M <= last_m (None: any larger M).

    They share `scratch_per_row` bytes times M, which need no initial value, and `counter_bytes`
    that are zero before the first launch ever and left zero by each.
    """

    first_m: int
    last_m: int | None
    launches: tuple[GpuLaunch, ...]
    scratch_per_row: int = 0
    counter_bytes: int = 0


@dataclass(frozen=True)
class GpuKernel:
    """A qfuse kernel compiled for one GPU: variants that together serve every M >= 1.

    `parameters` lists the tensors a caller passes, in order: operands, then results, each with
    its scales and zero points after it where it has some.
    """

    name: str
    target: str
    parameters: tuple[Parameter, ...]
    variants: tuple[GpuVariant, ...]

    def variant(self, m: int) -> GpuVariant:
        """The variant that serves `m` rows, m >= 1."""
        return next(v for v in self.variants if v.last_m is None or m <= v.last_m)

    def scratch_bytes(self, m: int) -> int:
        """Scratch that a call for `m` rows works in: that of the rows, then that of programs."""
        if m == 0:
            return 0
        variant = self.variant(m)
        return self.rows_bytes(m) + max(_program_bytes(x, m) for x in variant.launches)

    def rows_bytes(self, m: int) -> int:
        """Where the scratch of programs begins."""
        return _round_up(self.variant(m).scratch_per_row * m)

    @property
    def counter_bytes(self) -> int:
        return max(v.counter_bytes for v in self.variants)

    @property
    def code(self) -> bytes:
        """The machine code of all launches, one after the other."""
        return b"".join(x.code for v in self.variants for x in v.launches)

    def describe(self) -> dict[str, Any]:
        """For people: what it runs on, the launches for each range of M, and its size."""
        return {
            "level": self.target,
            "entries": [launch.name for v in self.variants for launch in v.launches],
            "bytes": len(self.code),
        }

    def metadata(self) -> dict[str, Any]:
        """Everything but the machine code, as JSON-able values."""
        return asdict(
            replace(
                self,
                variants=tuple(
                    replace(v, launches=tuple(replace(x, code=len(x.code)) for x in v.launches))  # type: ignore[arg-type]
                    for v in self.variants
                ),
            )
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], code: bytes) -> "GpuKernel":
        """The inverse of `metadata`; raises ValueError, TypeError or KeyError for other data."""
        start = 0
        variants = []
        for v in metadata["variants"]:
            launches = []
            for launch in v["launches"]:
                stop = start + launch["code"]
                values = {
                    "parameters": tuple(Parameter(**p) for p in launch["parameters"]),
                    "grid": Grid(**launch["grid"]),
                    "code": code[start:stop],
                }
                launches.append(GpuLaunch(**{**launch, **values}))
                start = stop
            variants.append(GpuVariant(**{**v, "launches": tuple(launches)}))
        if start != len(code):
            raise ValueError(f"{len(code)} bytes of machine code where {start} are expected")
        parameters = tuple(Parameter(**p) for p in metadata["parameters"])
        kernel = cls(metadata["name"], metadata["target"], parameters, tuple(variants))
        if why := _damage(kernel):
            raise ValueError(why)
        return kernel


_MAX_THREADS = 1024


def _damage(kernel: GpuKernel) -> str | None:
    """What no kernel of ours has, or None: it would be started with the wrong memory, or hang."""
    if not (isinstance(kernel.name, str) and isinstance(kernel.target, str)):
        return "a name that is no text"
    if kernel.target not in GPUS:
        return f"the target {kernel.target}"
    most_warps = _MAX_THREADS // GPUS[kernel.target].warp_size
    tensors = set(kernel.parameters)
    if any(not _is_parameter(p) or p.source not in ("operand", "result") for p in tensors):
        return f"parameters {kernel.parameters}"
    work = {Parameter("scratch"), Parameter("counter")}
    first: int | None = 1
    for variant in kernel.variants:
        last = variant.last_m
        if first is None or not _is_count(variant.first_m) or variant.first_m != first:
            return f"a variant for M >= {variant.first_m} where {first} is expected"
        if not (last is None or (_is_count(last) and last >= first)):
            return f"a variant for M {first}..{last}"
        if not (_is_count(variant.scratch_per_row) and _is_count(variant.counter_bytes)):
            return f"{variant.scratch_per_row} and {variant.counter_bytes} bytes to work in"
        if not variant.launches:
            return f"no launch for M {first}..{last}"
        for launch in variant.launches:
            grid, at_most = launch.grid, launch.grid.at_most
            sizes = (
                grid.rows,
                grid.per_block,
                grid.y,
                grid.groups,
                grid.times,
                1 if at_most is None else at_most,
            )
            if not all(_is_count(size) and size > 0 for size in sizes):
                return f"{grid}"
            if not set(launch.parameters) <= tensors | work:
                return f"a launch that takes {launch.parameters}"
            numbers = (launch.num_warps, launch.shared_bytes, launch.program_scratch)
            if not all(map(_is_count, numbers)) or not 0 < launch.num_warps <= most_warps:
                return f"a launch of {launch.num_warps} warps with {numbers[1:]} bytes"
            if not (isinstance(launch.name, str) and launch.code):
                return "a launch without name or code"
        first = None if last is None else last + 1
    return None if first is None and kernel.variants else "no variant for any larger M"


def _is_parameter(p: Parameter) -> bool:
    return p.part in PARTS and _is_count(p.index)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _program_bytes(launch: GpuLaunch, m: int) -> int:
    x, y, z = launch.grid.of(m)
    return _round_up(launch.program_scratch * x * y * z)


def _round_up(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
