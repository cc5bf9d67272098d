"""How long a product cut into tiles should take: the model that tiles are chosen by.

A program works through steps of K.  A step of all programs on a processor takes as long as the
busiest of: tensor cores, shared memory, the path from L2, the ALUs that add and convert; but not
less than what a single program waits for.  Programs run in waves; the whole is not faster than
memory can deliver, nor than what is in flight allows (Little's law).

The constants are published or measured by others; sources stand with them.  TRITON.md 1.3 derives
the terms of a step, and compares them with published speeds.  What a GPU really does decides:
`qfuse tune` measures, and its table precedes the model.
"""

from dataclasses import dataclass

from qfuse.dialects.verify import ceil_div
from qfuse.lowering.triton.gpu import Gpu
from qfuse.lowering.triton.problem import Problem
from qfuse.lowering.triton.product import bit_width
from qfuse.lowering.triton.tiles import Config

_PORT = 64
"""Bytes per clock that a processor takes from L2: two sectors of 32."""

_SHARED = 128
"""Bytes per clock of a processor's shared memory: 32 banks of 4 (CUDA C Programming Guide)."""

_LANES = 128
"""f32 operations per clock and processor (the same guide, table of arithmetic throughput)."""

_LATENCY = 700
"""Clocks from a load to its data, idle memory (Chips and Cheese, H100: 480-700 in HBM)."""

_LOADED_LATENCY = 1.0e-6
"""Seconds in which busy memory answers: 33 KB in flight per processor fill it (TRITON.md, 5)."""

_WAIT = 150
"""Clocks around a product that nothing overlaps: barriers, wait, issue (TRITON.md 1.3)."""

_EPILOGUE = 300
_START = 1200
"""Clocks until a program multiplies first: launch of a block, descriptors, the first load."""

_LAUNCH = 1.5e-6
"""Seconds from the end of a kernel to the start of the next one in a CUDA graph."""

_HAND_OVER = 1.5e-6
"""Seconds that the last program of a tile needs to see the sums of the others: fence, atomic, and
one load, each of them a round trip to L2."""

_FP8_DECODE = 3
"""Instructions per code of 8 bits converted in registers (TRITON.md, 5: 2.5 and address work)."""

_UNPACK = {"int4": 3, "fp4": 6, "q4_k": 4, "q6_k": 9}
"""The same where bytes hold several codes (counted in machine code for sm_90)."""

_RESERVED = 4096
"""Bytes of shared memory for barriers and exchanges between warps."""

_GEMV = 2
"""Instructions per weight that a GEMV multiplies, and two more where x has scales."""

_GEMV_UNPACK = {"int4": 5, "fp4": 9, "q4_k": 8, "q6_k": 10}
"""Further ones where bytes hold several codes (counted in machine code for sm_90)."""


@dataclass(frozen=True)
class Speeds:
    """What a GPU sustains.

    `clock` in Hz with busy tensor cores, `boost` with idle ones, `memory` in bytes/s of a copy,
    `l2` in bytes per clock of the whole chip, `macs` per clock and processor for factors of 8 and
    of 16 bits.
    """

    clock: float
    boost: float
    memory: float
    l2: float
    macs8: float
    macs16: float
    l2_bytes: float
    wgmma: bool = False
    """Whether factors are read from shared memory by whole warpgroups."""

    def macs(self, factor: str) -> float:
        return self.macs8 if bit_width(factor) == 8 else self.macs16

    def peak(self, factor: str, gpu: Gpu) -> float:
        """Multiplications per second, each with an addition."""
        return self.macs(factor) * self.clock * gpu.processors


SPEEDS: dict[str, Speeds] = {
    # A100 whitepaper: 312 TFLOPS f16 at 1.41 GHz, 5120 B/clk of L2, 40 MB; 80 GB part: 2.04 TB/s.
    # FP8 is decoded to f16 there; 8-bit factors are i8 (624 TOPS).
    "sm_80": Speeds(1.30e9, 1.41e9, 1.75e12, 5120, 2048, 1024, 40e6),
    # L40S data sheet: 733 TFLOPS FP8 and 366 f16 at 2.52 GHz, 864 GB/s, 96 MB of L2 on AD102.
    "sm_89": Speeds(2.20e9, 2.52e9, 0.78e12, 2300, 1024, 512, 48e6),
    # H200: 4.3 TB/s copied, FP8 limited by power near 1.45 GHz, L2 6154 B/clk (TRITON.md 1.2-4).
    "sm_90": Speeds(1.45e9, 1.755e9, 4.3e12, 6154, 4096, 2048, 50e6, wgmma=True),
    # B200 data sheet: 4.5 PFLOPS FP8, 2.25 PFLOPS f16 dense at 1.85 GHz, 8 TB/s, 126 MB of L2;
    # L2 per processor as on sm_90.
    "sm_100": Speeds(1.60e9, 1.85e9, 7.0e12, 6900, 8192, 4096, 126e6, wgmma=True),
    # MI300X data sheet: 1307 TFLOPS f16, 2615 FP8 and i8 at 2.1 GHz, 5.3 TB/s; L2 of 8 XCDs with
    # 2048 B/clk each (CDNA3 white paper), MALL 256 MB.
    "gfx942": Speeds(1.80e9, 2.10e9, 4.2e12, 16384, 2048, 1024, 256e6),
    # MI355X data sheet: 5.0 PFLOPS FP8 and 2.5 f16 at 2.4 GHz, 8 TB/s.
    "gfx950": Speeds(2.00e9, 2.40e9, 6.4e12, 16384, 4096, 2048, 256e6),
}


@dataclass(frozen=True)
class Estimate:
    """What the model says of one choice.

    `seconds` of the whole kernel; `bound` is what takes most of it; `programs` are started, and
    `resident` of them fit on a processor; `waves` of them follow each other.
    """

    seconds: float
    bound: str
    programs: int
    resident: int
    waves: float
    memory_bytes: float


@dataclass(frozen=True)
class Floor:
    """No kernel is faster: bytes by bandwidth, or operations by peak."""

    seconds: float
    bound: str


def floor(problem: Problem, m: int, gpu: Gpu) -> Floor:
    """What `m` rows of `problem` take at least, without the launch."""
    speeds = SPEEDS[gpu.arch]
    memory = problem.bytes(m) / speeds.memory
    compute = problem.products(m) / speeds.peak(problem.factor, gpu)
    return Floor(max(memory, compute), "memory" if memory >= compute else "tensor cores")


OVERHEAD = _LAUNCH + _LOADED_LATENCY
"""Seconds that any kernel takes on top of its floor: a launch, and memory's first answer."""


def estimate(problem: Problem, config: Config, m: int, gpu: Gpu) -> Estimate:
    """The modelled time of `problem` with `m` rows, cut as `config` says."""
    speeds = SPEEDS[gpu.arch]
    tiles_m = ceil_div(m, config.rows)
    tiles = tiles_m * ceil_div(problem.n, config.columns * config.adjacent)
    steps_in_all = ceil_div(problem.k, config.depth)
    steps = ceil_div(steps_in_all, config.slices)
    slices = ceil_div(steps_in_all, steps)
    programs = tiles * slices
    resident = max(1, residents(problem, config, gpu))
    slots = gpu.processors * resident
    step = _Step(problem, config, gpu, speeds)
    working, bound = _waves(step, programs, slots, steps)
    ahead = 1 if config.gemv else min(config.num_stages - 1, steps)
    in_flight = min(programs, slots) * step.bytes * ahead
    rate = min(speeds.memory, in_flight / _LOADED_LATENCY)
    through = _memory_bytes(problem, config, m, speeds, tiles_m)
    if through / rate > working:
        working, bound = through / rate, "memory" if rate == speeds.memory else "latency"
    working += _split_seconds(problem, config, m, slices, speeds)
    return Estimate(
        working + OVERHEAD,
        "launch" if working < OVERHEAD else bound,
        programs,
        resident,
        programs / slots,
        through,
    )


def _waves(step: "_Step", programs: int, slots: int, steps: int) -> tuple[float, str]:
    """Seconds of all programs, `slots` at a time, and what binds the first of them."""
    processors = step.gpu.processors
    whole, rest = divmod(programs, slots)
    seconds, bound = 0.0, ""
    for count, times in ((slots, whole), (rest, 1)):
        if count and times:
            taken, why, clock = step.clocks(
                ceil_div(count, processors), min(count, processors), steps
            )
            # Where programs loop over tiles, the producer is ahead, and starts only once.
            starts = int(not bound) if step.config.persistent else times
            clocks = starts * _START + times * (step.epilogue_clocks() + steps * taken)
            seconds += clocks / clock
            bound = bound or why
    return seconds, bound


def residents(problem: Problem, config: Config, gpu: Gpu) -> int:
    """Programs that one processor runs at a time; 0 if there is no room for one."""
    if config.persistent:
        return int(shared_bytes(problem, config, gpu) <= gpu.shared_bytes)
    memory = (gpu.shared_bytes + 1024) // (shared_bytes(problem, config, gpu) + 1024)
    threads = config.num_warps * gpu.warp_size
    file = 65536 if gpu.is_cuda else 131072  # AMD: 512 registers in each of 4 * 64 lanes
    registers = file // (threads * min(registers_of(problem, config, gpu), 255))
    return min(memory, registers, gpu.warps // config.num_warps, gpu.programs)


def shared_bytes(problem: Problem, config: Config, gpu: Gpu) -> int:
    """Shared memory of a program: its stages, and what results are staged in."""
    step = _Step(problem, config, gpu, SPEEDS[gpu.arch]).bytes
    if config.gemv:
        return 0
    if problem.packed:  # x is in no register, and codes change threads on their way
        return config.num_stages * step + 2 * _RESERVED + 128 * config.rows
    # What warps multiply is in registers, as are codes that are converted, and AMD's next tile.
    stages = config.num_stages - (problem.decoded or not SPEEDS[gpu.arch].wgmma)
    if not config.persistent:
        return stages * step + _RESERVED
    # Results are staged for their TMA stores: one buffer for tiles of one type, but Triton 3.6
    # keeps one for each tile where the types differ.
    bits = [bit_width(r) for r in problem.results]
    staged = bits[0] if len(set(bits)) == 1 else sum(bits) * config.adjacent
    return stages * step + _RESERVED // 2 + config.rows * config.columns * staged // 8


def registers_of(problem: Problem, config: Config, gpu: Gpu) -> int:
    """Registers that a thread needs for sums, the product of a step, and all else.

    Fitted to machine code of the candidates (`test_tile_model.py` compares): on sm_90, 168 for
    64x128 with 4 warps, 177 for 128x128 with 8, 232 for the consumers of 128x256.
    """
    if config.gemv:
        each = config.columns * config.depth // (config.num_warps * gpu.warp_size)
        return 40 + each * problem.parts
    threads = gpu.warp_size * (8 if config.persistent else config.num_warps)
    block = config.rows * config.columns // threads
    sums = block * config.adjacent * problem.parts
    made = block if problem.scaled else 0
    else_ = 40
    if problem.runs > 1:  # runs of a step overlap, the more the more scales there are
        made *= problem.runs if problem.x == "i8" else 2
        else_ += config.rows * problem.runs // 4 if problem.x == "i8" else 0
    if not SPEEDS[gpu.arch].wgmma:  # factors pass through registers
        else_ += (config.rows + config.columns) * config.depth // (threads * 8)
    if config.swap:  # results are turned round
        else_ += 50 * (config.rows * problem.parts // 64)
    if problem.decoded:
        decoded = (problem.x != problem.factor) * config.rows
        decoded += (problem.w != problem.factor) * config.columns
        else_ += decoded * config.depth // (threads * 2)
    return else_ + sums + made


@dataclass(frozen=True)
class _Step:
    """One step of K of one program."""

    problem: Problem
    config: Config
    gpu: Gpu
    speeds: Speeds

    @property
    def columns(self) -> int:
        """Of all parts."""
        return self.config.columns * self.config.adjacent * self.problem.parts

    @property
    def bytes(self) -> int:
        p, c = self.problem, self.config
        bits = c.rows * bit_width(p.x) + self.columns * bit_width(p.w)
        return bits * c.depth // 8

    def epilogue_clocks(self) -> float:
        """Of one tile; its sums leave as f32 where K is split."""
        c, p = self.config, self.problem
        widths = 32 if c.slices > 1 else sum(bit_width(r) for r in p.results) // p.parts
        written = c.rows * self.columns * widths // 8
        return _EPILOGUE + written / _PORT

    def clocks(self, together: int, active: int, steps: int) -> tuple[float, str, float]:
        """Of `together` programs on each of `active` processors: clocks of a step, why, and Hz."""
        c = self.config
        tensor, shared, alu = self._tensor(), self._shared(), self._alu()
        path = min(_PORT, self.speeds.l2 / active)
        busy = {
            "tensor cores": tensor * together,
            "shared memory": shared * together,
            "L2": self.bytes / path * together,
            "ALUs": alu * together,
        }
        alone = max(tensor, shared) + (0 if c.persistent or c.gemv else alu + _WAIT)
        ahead = max(1, min(c.num_stages - 1, steps))
        busy["latency"] = max(alone, _LATENCY / ahead)
        bound = max(busy, key=lambda name: busy[name])
        speeds, load = self.speeds, busy["tensor cores"] / busy[bound]
        return busy[bound], bound, speeds.boost - load * (speeds.boost - speeds.clock)

    def _tensor(self) -> float:
        c = self.config
        if c.gemv:
            return 0.0
        rows = c.rows if c.swap or not self.speeds.wgmma else max(c.rows, 64)
        return rows * self.columns * c.depth / self.speeds.macs(self.problem.factor)

    def _shared(self) -> float:
        """Written once; read by each warpgroup, or by each warp, for each product."""
        c, p = self.config, self.problem
        if c.gemv:
            return self.bytes / _SHARED
        long, short = (c.columns, c.rows) if c.swap else (c.rows, c.columns)
        warps = 8 if c.persistent else c.num_warps
        if self.speeds.wgmma:
            groups = min(ceil_div(warps, 4), max(1, long // 64))
            read = groups * (long // groups + short)
        else:
            across = 2
            read = warps * (long // across + short // max(1, warps // across))
        read *= c.adjacent * p.parts * c.depth * bit_width(p.factor) // 8
        return (self.bytes + read) / _SHARED

    def _alu(self) -> float:
        """Adding products of steps, and decoding."""
        c, p = self.config, self.problem
        if c.gemv:
            decode = _GEMV_UNPACK.get(p.packing, _FP8_DECODE * (bit_width(p.w) == 8))
            each = _GEMV + 2 * (bit_width(p.x) == 8) + decode
            return each * self.columns * c.depth / _LANES
        lanes = c.rows * self.columns * p.runs if p.scaled else 0
        lanes += _FP8_DECODE * c.depth * c.rows * (p.x != p.factor)
        decode = _UNPACK.get(p.packing, _FP8_DECODE)
        lanes += decode * c.depth * self.columns * (p.w != p.factor)
        return lanes / _LANES


def _memory_bytes(problem: Problem, config: Config, m: int, speeds: Speeds, tiles_m: int) -> float:
    """What goes through memory: w again for each band of rows, unless L2 keeps it."""
    weights = problem.weight_bytes
    bands = ceil_div(tiles_m, config.band)
    if weights > speeds.l2_bytes / 2:
        weights *= bands
    return weights + problem.activation_bytes(m) + problem.result_bytes(m)


def _split_seconds(problem: Problem, config: Config, m: int, slices: int, speeds: Speeds) -> float:
    """Storing and adding the sums of slices, by the last program of each tile."""
    if slices == 1:
        return 0.0
    stored = 2 * slices * m * problem.n * problem.parts * 4
    rows = min(m, config.rows)
    last = slices * rows * config.columns * config.adjacent * problem.parts * 4 / _PORT
    return _HAND_OVER + stored / (speeds.l2 * speeds.boost) + last / speeds.boost
