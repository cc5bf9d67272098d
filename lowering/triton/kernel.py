"""What a qfuse kernel becomes on a GPU, as plain data: no MLIR, so that a run time can read it."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Source = Literal["operand", "result", "scratch", "counter"]
Part = Literal["data", "scale", "zero"]
PARTS: tuple[Part, ...] = ("data", "scale", "zero")


@dataclass(frozen=True)
class Parameter:
    """What a pointer argument of a launch points to: elements, their scales, or zero points.

    `index` counts operands or results of the qfuse kernel; scratch and counters have only index 0.
    """

    source: Source
    index: int = 0
    part: Part = "data"


@dataclass(frozen=True)
class Grid:
    """How many programs a launch starts for M rows.

    x = blocks * per_block, but at most `at_most` (programs that loop over tiles); y as is.  The M
    rows fall into `groups`, of which each has blocks of `rows` rows of its own: there are as many
    blocks as that can take, with one group ceil(M / rows).  Each of the M may stand for `times`
    rows.
    """

    rows: int
    per_block: int = 1
    at_most: int | None = None
    y: int = 1
    groups: int = 1
    times: int = 1

    def blocks(self, m: int) -> int:
        """Blocks of rows: each group that has any may leave its last block with a single row."""
        total = m * self.times
        return (total + min(total, self.groups) * (self.rows - 1)) // self.rows

    def of(self, m: int) -> tuple[int, int, int]:
        x = self.blocks(m) * self.per_block
        return (min(x, self.at_most) if self.at_most else x, self.y, 1)


@dataclass(frozen=True)
class Launch:
    """One Triton kernel: its IR and how it is started.

    `text` is the module as `module.module_text` prints it.  The arguments are the pointers of
    `parameters`, each a multiple of 16 bytes, then M as i32.
    """

    name: str
    text: str
    parameters: tuple[Parameter, ...]
    grid: Grid
    num_warps: int = 4
    num_stages: int = 3


@dataclass(frozen=True)
class Variant:
    """The launches, in order, that serve first_m <= M <= last_m (None: any larger M).

    `scratch_per_row` bytes times M, shared by the launches, need no initial value;
    `counter_bytes` are zero before the first launch ever, and each launch leaves them zero.
    """

    first_m: int
    last_m: int | None
    launches: tuple[Launch, ...]
    scratch_per_row: int = 0
    counter_bytes: int = 0

    @property
    def range_text(self) -> str:
        return f"M >= {self.first_m}" if self.last_m is None else f"M {self.first_m}..{self.last_m}"


@dataclass(frozen=True)
class TritonKernel:
    """A qfuse kernel lowered for one GPU: variants that together serve every M >= 1.

    `parameters` lists the tensors a caller passes, in order: operands, then results, each with
    its scales and zero points after it where it has some.
    """

    name: str
    target: str
    parameters: tuple[Parameter, ...]
    variants: tuple[Variant, ...]

    def variant(self, m: int) -> Variant:
        """The variant that serves `m` rows, m >= 1."""
        return next(v for v in self.variants if v.last_m is None or m <= v.last_m)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> "TritonKernel":
        """The inverse of `to_json`, also after a round trip through JSON text."""
        variants = []
        for v in data["variants"]:
            launches = tuple(map(launch_from_json, v["launches"]))
            variants.append(Variant(**{**v, "launches": launches}))
        parameters = tuple(Parameter(**p) for p in data["parameters"])
        return TritonKernel(data["name"], data["target"], parameters, tuple(variants))


def launch_from_json(data: dict[str, Any]) -> Launch:
    """The inverse of `asdict`, also after a round trip through JSON text."""
    parameters = tuple(Parameter(**p) for p in data["parameters"])
    return Launch(**{**data, "parameters": parameters, "grid": Grid(**data["grid"])})
