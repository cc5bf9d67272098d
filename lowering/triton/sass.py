"""What is in a cubin, read with the disassembler of the Triton wheel: no GPU needed."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.binary import Binary, load_triton
from qfuse.lowering.triton.gpu import GPUS

MMA = ("QGMMA", "HGMMA", "IGMMA", "UTCQMMA", "UTCHMMA", "UTCIMMA", "QMMA", "HMMA", "IMMA")
"""Instructions that multiply matrices: of whole warpgroups, of sm_100's tensor memory, of warps."""

_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);")
_LABEL = re.compile(r"\s*(\.L_\w+):")
_BRANCH = re.compile(r"\bBRA(?:\.\w+)*\s+.*?`\((\.L_\w+)\)")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")

# CUDA C Programming Guide, technical specifications per compute capability: registers per
# processor and their unit of allocation per warp, and the bytes of shared memory that the driver
# takes for each program.
_REGISTERS, _REGISTER_UNIT, _RESERVED = 65536, 256, 1024


@dataclass(frozen=True)
class Sass:
    """The instructions of a kernel, in order; a label stands as its name with a colon."""

    lines: tuple[str, ...]

    def count(self, name: str) -> int:
        """How many instructions are `name`, whatever their modifiers."""
        return sum(_mnemonic(line) == name for line in self.lines)

    def ranges(self) -> list[tuple[int, int]]:
        """First and last line of each loop: from the target of a backward branch to the branch.

        A branch back into the middle of a loop that it is not part of belongs to code that was
        moved out of the way, such as the repeated wait for a barrier, and makes no loop.
        """
        labels = {line[:-1]: i for i, line in enumerate(self.lines) if line.endswith(":")}
        found = []
        for i, line in enumerate(self.lines):
            match = _BRANCH.search(line)
            if match and labels.get(match[1], i) < i:
                found.append((labels[match[1]], i))
        return [(a, b) for a, b in found if not any(c < a <= d < b for c, d in found)]

    def mma(self) -> dict[str, int]:
        """Matrix instructions by kind."""
        return {name: n for name in MMA if (n := self.count(name))}

    def product_loops(self) -> list["Sass"]:
        """Loops with matrix instructions that hold no other such loop."""
        bodies = {(a, b): Sass(self.lines[a : b + 1]) for a, b in self.ranges()}
        found = {place: body for place, body in bodies.items() if body.mma()}
        return [
            body
            for (a, b), body in found.items()
            if not any((c, d) != (a, b) and a <= c and d <= b for c, d in found)
        ]


def disassemble(binary: Binary) -> Sass:
    """The instructions of a cubin; raises QfuseError for code of another kind."""
    # Code alone, and no analysis of what is on stacks when it branches: a third less time.
    text = _tool("nvdisasm", ("-c", "-ndf"), binary)
    lines = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            lines.append(f"{label[1]}:")
        elif instruction := _INSTRUCTION.search(line):
            lines.append(instruction[2].strip())
    return Sass(tuple(lines))


def sass_report(binary: Binary) -> dict[str, Any]:
    """What `qfuse-translate --to=sass-report` prints about a kernel."""
    sass = disassemble(binary)
    usage = _USAGE.search(_tool("cuobjdump", ("-res-usage",), binary))
    if usage is None:
        raise QfuseError(f"{binary.name}: cuobjdump reports no resource usage")
    registers, stack = int(usage[1]), int(usage[2])
    shared, warps = int(binary.metadata["shared"]), int(binary.metadata["num_warps"])
    in_loops = [loop.count("LDL") + loop.count("STL") for loop in sass.product_loops()]
    return {
        "name": binary.name,
        "target": binary.target,
        "mma": sass.mma(),
        "registers": registers,
        "spill_bytes": stack,
        "spills_in_product_loops": sum(in_loops),
        "shared_bytes": shared,
        "num_warps": warps,
        "num_stages": binary.metadata["num_stages"],
        "occupancy": occupancy(binary.target, registers, shared, warps),
        "warp_specialized": sass.count("USETMAXREG") > 0 and sass.count("UTMALDG") > 0,
        "tma_loads": sass.count("UTMALDG"),
        "tma_stores": sass.count("UTMASTG"),
        "async_copies": sass.count("LDGSTS"),
        "instructions": sum(not line.endswith(":") for line in sass.lines),
    }


def occupancy(target: str, registers: int, shared: int, warps: int) -> int:
    """Programs that one processor runs at a time."""
    of_registers = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT * warps
    gpu = GPUS[target]
    memory = gpu.shared_bytes + _RESERVED
    limits = [_REGISTERS // max(of_registers, 1), memory // (shared + _RESERVED)]
    return min(*limits, gpu.warps // warps, gpu.programs)


def _mnemonic(line: str) -> str:
    words = line.split()
    if words and words[0].startswith("@"):
        words = words[1:]
    return words[0].partition(".")[0] if words else ""


def _tool(name: str, options: tuple[str, ...], binary: Binary) -> str:
    if "cubin" not in binary.stages:
        raise QfuseError(
            f"{binary.name} is compiled for {binary.target}; SASS is the code of a cuda target"
        )
    tool = Path(load_triton().__file__).parent / "backends/nvidia/bin" / name
    if not tool.exists():
        raise QfuseError(f"the installed Triton has no {name} at {tool}; install its wheel")
    code, text = _run(tool, options, binary.stages["cubin"])
    if code:
        raise QfuseError(f"{name} cannot read {binary.name}: {text.strip().splitlines()[:1]}")
    return text


@lru_cache(maxsize=8)
def _run(tool: Path, options: tuple[str, ...], cubin: bytes) -> tuple[int, str]:
    """The exit code, and the output, or the errors where there are some.

    A report and a look at the instructions read one kernel one after the other.
    """
    with tempfile.NamedTemporaryFile(prefix="qfuse-", suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        run = subprocess.run([tool, *options, file.name], capture_output=True, text=True)
    return run.returncode, run.stderr if run.returncode else run.stdout + run.stderr
