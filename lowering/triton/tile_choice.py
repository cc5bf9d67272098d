"""Which tiles serve which number of rows: from the table where it knows, else by the model."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from itertools import chain, pairwise
from math import inf

from qfuse.dialects.errors import QfuseError
from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton import gemv
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.problem import Problem, read_problem
from qfuse.lowering.triton.product import Group, Product
from qfuse.lowering.triton.tile_model import SPEEDS, estimate, registers_of, residents, shared_bytes
from qfuse.lowering.triton.tile_table import active_table
from qfuse.lowering.triton.tiles import Config

RANGES: tuple[tuple[int, int | None], ...] = (
    (1, 1),
    (2, 16),
    (17, 32),
    (33, 64),
    (65, 128),
    (129, 256),
    (257, 512),
    (513, 1024),
    (1025, 4096),
    (4097, 16384),
    (16385, None),
)
"""Rows that share a choice.  Those that get the same tiles as their neighbours become one."""

_PLENTY = 32768
"""Rows that stand for any larger number."""

KEEP = 1.03
"""Tiles of the next larger range serve this one, too, if the model makes them this much slower at
most: each choice costs a compilation.  Tiles of many more rows than there are do not: what a row
that is not there costs, in instructions and power, is not in the model."""

ALIKE = 1.02
"""What the model cannot tell apart.  The tile with the fewest rows wastes the least, then, and two
programs on each processor keep memory busiest (TRITON.md, section 4)."""

_SLICES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
_LEAST_STEPS = 2
"""Steps of a slice: fewer cannot overlap loads and products."""

_MOST_PROGRAMS = 4
"""Programs on a processor that K is split for at most: with more tiles, nothing is gained."""

_LEAST_ROWS = 16

_SWAP = ((16, 4, 6), (32, 4, 5), (64, 8, 4))
"""Rows, warps and stages where weights ride the long side of the tensor cores.

wgmma takes 8 rows, too, but Triton 3.6 does not.  The stages leave room for two programs on a
processor of sm_90, with 90 KB or more in flight in each.
"""

_SWAP_PACKED = (*_SWAP, (64, 4, 4), (128, 8, 3))
_LEAST_MANY = 32
"""The same for codes that share bytes, of any number of rows, in tiles of so many at least.

As the first factor they go from registers to the tensor cores, not through shared memory, and a
thread has two columns, of whose scales it unpacks its own; as the second one it has a quarter of
all columns of the tile.
"""

_LEAST_LONG = {False: 32, True: 64}
"""Columns on the long side; wgmma, as opposed to the instructions of warps, takes 64 at least."""

_TILES = ((64, 4, 4), (64, 8, 4), (128, 8, 4))
"""Rows, warps and stages of tiles that programs make one each."""

_COLUMNS = (256, 128, 64, 32)
_PERSISTENT_ROWS, _PERSISTENT_COLUMNS = 128, 128
_GEMV_STAGES = 4
_MOST_REGISTERS, _CONSUMER_REGISTERS = 210, 232
"""Seen in machine code: estimates above have LDL in the loop, of 255 registers and of 232."""


def choose_configs(
    product: Product, group: Group, gpu: Gpu
) -> list[tuple[int, int | None, Config]]:
    """(first M, last M, tiles) that together serve every M; the same ranges for each group.

    Raises QfuseError, naming it, for an entry of the table that no kernel can be made of.
    """
    problems = tuple(read_problem(product, g, gpu) for g in product.groups)
    chosen = choose(problems, gpu)
    place = product.groups.index(group)
    return [(first, last, configs[place]) for first, last, configs in chosen]


def choose(
    problems: tuple[Problem, ...], gpu: Gpu
) -> list[tuple[int, int | None, tuple[Config, ...]]]:
    """(first M, last M, tiles for each problem), in order, that together serve every M."""
    table = active_table()
    entries = [table.entries_of(problem, gpu) for problem in problems]
    ranges = list(RANGES)
    if not all(p.gemv for p in problems):
        ranges[:2] = [(1, 16)]
    for entry in chain.from_iterable(entries):
        ranges = _cut(ranges, entry.first_m, entry.last_m)
    found: list[tuple[int, int | None, tuple[Config, ...]]] = []
    following: list[Config | None] = [None] * len(problems)
    for first, last in reversed(ranges):
        for i, problem in enumerate(problems):
            tuned = next((e for e in entries[i] if e.covers(first)), None)
            if tuned is None:
                following[i] = by_model(problem, gpu, first, last, following[i])
            elif why := config_error(tuned.config, problem, gpu, last):
                raise QfuseError(f"tile table, entry for {tuned.title}: {why}")
            else:
                following[i] = tuned.config
        configs = tuple(c for c in following if c is not None)
        if found and found[-1][2] == configs:
            last = found.pop()[1]
        found.append((first, last, configs))
    return _told_apart(found[::-1])


@lru_cache(maxsize=4096)
def by_model(
    problem: Problem,
    gpu: Gpu,
    first: int,
    last: int | None,
    following: Config | None = None,
) -> Config:
    """The tiles that the model prefers for rows `first` to `last`.

    `following` are those of the next larger range, which are kept where they are about as good.
    """
    found = list(candidates(problem, gpu, first, last))
    rows = _samples(first, last)
    seconds = {c: [estimate(problem, c, m, gpu).seconds for m in rows] for c in found}
    least = [min(times) for times in zip(*seconds.values(), strict=True)]

    def score(config: Config) -> float:
        """How many times the least, on average over rows of the range."""
        times = zip(seconds[config], least, strict=True)
        return sum(time / best for time, best in times) / len(rows)

    scores = {config: score(config) for config in found}
    limit = min(scores.values())
    if (
        following is not None
        and scores.get(following, inf) <= KEEP * limit
        and (last is None or following.rows <= 2 * max(last, _LEAST_ROWS))
    ):
        return following
    near = [config for config in found if scores[config] <= ALIKE * limit]

    def preference(config: Config) -> tuple[float, ...]:
        programs = estimate(problem, config, rows[-1], gpu).programs
        return config.rows, -min(programs, 2 * gpu.processors), config.slices, scores[config]

    return min(near, key=preference)


def candidates(problem: Problem, gpu: Gpu, first: int, last: int | None) -> Iterator[Config]:
    """Every choice that has a kernel for rows `first` to `last`, and fits into a processor.

    There is always one: where registers do not suffice, the smallest tile.
    """
    shapes = list(_shapes(problem, gpu, last))
    fitting = [c for c in (_fit(shape, problem, gpu) for shape in shapes) if c is not None]
    if not fitting:
        fitting = [replace(min(shapes, key=lambda c: c.rows * c.columns), num_stages=2)]
    for config in fitting:
        for slices in _slices(config, problem, gpu, first, last):
            yield replace(config, slices=slices)


def config_error(config: Config, problem: Problem, gpu: Gpu, last: int | None) -> str | None:
    """Why there is no kernel of these tiles for up to `last` rows of `problem`, or None."""
    if config.persistent and not problem.persistent:
        return "the warp-specialized kernel does not serve this product"
    if config.gemv and not (problem.gemv and last == 1):
        return "the kernel without matrix instructions does not serve this product and its rows"
    if config.swap and not problem.packed and (last is None or last > config.rows):
        return f"a tile with weights first holds all rows, and has {config.rows}"
    if config.slices > 1 and last is None:
        return "K can only be split for a limited number of rows"
    if config.persistent and (config.slices > 1 or config.rows % 128 or config.columns != 128):
        return "the warp-specialized kernel makes tiles of 128 by 128, and does not split K"
    if config.persistent and config.num_warps != 4:
        return "Triton specializes the warps of a kernel that is written for 4 of them"
    if not config.gemv and config.columns < problem.least_columns:
        return f"a tile needs {problem.least_columns} columns for the scales of a result"
    if not config.gemv and config.depth != problem.depth:
        return f"a step is {problem.depth} elements of K for this product"
    if (need := shared_bytes(problem, config, gpu)) > gpu.shared_bytes:
        return f"it needs {need} bytes of shared memory, and {gpu} has {gpu.shared_bytes}"
    return None


def _shapes(problem: Problem, gpu: Gpu, last: int | None) -> Iterator[Config]:
    """Tiles with as many stages as would be good."""
    if last == 1 and problem.gemv:
        yield Config(1, gemv.COLUMNS, gemv.DEPTH, gemv=True, num_warps=4, num_stages=_GEMV_STAGES)
    if problem.persistent:
        for adjacent in (2, 1) if problem.parts == 1 and problem.adjacent else (1,):
            if adjacent == 1 or problem.n > _PERSISTENT_COLUMNS:
                yield Config(
                    _PERSISTENT_ROWS,
                    _PERSISTENT_COLUMNS,
                    problem.depth,
                    adjacent,
                    persistent=True,
                    num_warps=4,
                    num_stages=4,
                )
    widths = [c for c in _COLUMNS if c >= problem.least_columns]
    swapped = _SWAP_PACKED if problem.packed else _SWAP
    for rows, warps, stages in swapped:
        many = last is None or last > rows
        if many and not (problem.packed and rows >= _LEAST_MANY):
            continue
        for columns in widths:
            if _LEAST_LONG[SPEEDS[gpu.arch].wgmma] <= columns <= 128:
                long = 4 if columns < 128 else warps
                yield Config(
                    rows, columns, problem.depth, swap=True, num_warps=long, num_stages=stages
                )
    for rows, warps, stages in () if problem.packed else _TILES:
        for columns in widths:
            yield Config(rows, columns, problem.depth, num_warps=warps, num_stages=stages)


def _fit(config: Config, problem: Problem, gpu: Gpu) -> Config | None:
    """With as many stages as fit, two at least; None if sums and stages do not fit at all."""
    most = _CONSUMER_REGISTERS if config.persistent else _MOST_REGISTERS
    if registers_of(problem, config, gpu) > most:
        return None
    stages = config.num_stages if gpu.is_cuda else 2  # AMD's pipeliner: the next tile in registers
    for number in range(stages, 1, -1):
        fitting = replace(config, num_stages=number)
        if residents(problem, fitting, gpu):
            return fitting
    return None


def _slices(
    config: Config, problem: Problem, gpu: Gpu, first: int, last: int | None
) -> Iterator[int]:
    """Into how many slices K may be cut; none of them empty."""
    yield 1
    if config.persistent or last is None:
        return
    steps = ceil_div(problem.k, config.depth)
    tiles = ceil_div(first, config.rows) * ceil_div(problem.n, config.columns)
    for number in _SLICES:
        each = ceil_div(steps, number)
        if each < _LEAST_STEPS or tiles * number > _MOST_PROGRAMS * gpu.processors:
            return
        if ceil_div(steps, each) == number:
            yield number


def _samples(first: int, last: int | None) -> list[int]:
    """Rows that stand for a range: its ends, and one between."""
    last = _PLENTY if last is None else last
    return sorted({first, round((first * last) ** 0.5), last})


def _cut(
    ranges: list[tuple[int, int | None]], first: int, last: int | None
) -> list[tuple[int, int | None]]:
    """`ranges` with ends at the ends of another one."""
    starts = sorted({a for a, _ in ranges} | {first} | ({last + 1} if last is not None else set()))
    return [(a, b - 1) for a, b in pairwise(starts)] + [(starts[-1], None)]


def _told_apart(
    found: list[tuple[int, int | None, tuple[Config, ...]]],
) -> list[tuple[int, int | None, tuple[Config, ...]]]:
    """Configurations of one kernel that differ, but are called alike, get an edition."""
    editions: dict[str, list[Config]] = {}
    result = []
    for first, last, configs in found:
        named = []
        for config in configs:
            alike = editions.setdefault(config.name, [])
            if config not in alike:
                alike.append(config)
            number = alike.index(config)
            named.append(replace(config, edition=number) if number else config)
        result.append((first, last, tuple(named)))
    return result
