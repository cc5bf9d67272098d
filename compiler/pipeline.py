"""Pipelines: which passes run in what order, written as text or built in, and running them."""

import difflib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

from qfuse.compiler.passes import ALL_PASSES
from qfuse.compiler.passes.base import Pass
from qfuse.dialects.bindings import ir, passmanager
from qfuse.dialects.errors import QfuseError

FUSION = (
    # While the shared expert and the others still look alike.
    "qfuse-fuse-shared-expert",
    # Siblings before epilogues: an activation fused into gate would hide it from gate/up.
    "qfuse-fuse-gate-up",
    "qfuse-fuse-qkv",
    "qfuse-fuse-rope",
    "qfuse-fuse-epilogue",
    # After a residual has joined the sum of experts.
    "qfuse-fuse-combine",
    # Producers quantize last, when it is settled who makes each value.
    "qfuse-fuse-norm-quantize",
    "qfuse-fuse-act-quantize",
)
"""The fusion passes, in order (DESIGN's phases 3 to 5)."""

GPU = ("qfuse-choose-scale-layout",)
"""What follows the fusions where the target is a GPU."""

CPU = ("qfuse-raise-attention",)
"""The same for the CPU; for a GPU attention is an operator of torch's, with kernels of its own."""

IMPORT = ("qfuse-raise-torch", "qfuse-expand-quantize")
"""From what the front end hands over to a correct program with nothing fused (phases 1 and 2)."""

GPU_IMPORT = ("qfuse-raise-torch{rows=true}", "qfuse-expand-quantize")
"""The same for a GPU, whose kernels read the rows of unquantized weights as they are."""


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline: a pass of ours, or text that upstream's pass manager reads."""

    name: str
    ours: Pass | None = None

    def run(self, module: ir.Module) -> None:
        if self.ours is None:
            manager = passmanager.PassManager.parse(f"builtin.module({self.name})", module.context)
            manager.run(module.operation)
            return
        with module.context, ir.Location.unknown():
            self.ours.run(module.operation)
        module.operation.verify()


@dataclass(frozen=True)
class Timing:
    """Wall time of one stage, in seconds."""

    name: str
    seconds: float


Around = Callable[[Stage, ir.Module], AbstractContextManager[None]]
"""What a stage runs inside of, such as `Verification.around`."""


def run(
    module: ir.Module,
    stages: Sequence[Stage],
    after: Callable[[int, Stage, ir.Module], None] | None = None,
    around: Around | None = None,
) -> list[Timing]:
    """Run `stages` in order, each inside of `around`; `after` sees the module after each.

    Raises QfuseError, or ir.MLIRError where the result does not verify.
    """
    timings = []
    for index, stage in enumerate(stages):
        with nullcontext() if around is None else around(stage, module):
            start = time.perf_counter()
            stage.run(module)
            timings.append(Timing(stage.name, time.perf_counter() - start))
        if after is not None:
            after(index, stage, module)
    return timings


def stages_of(names: Sequence[str]) -> list[Stage]:
    """Stages for passes of ours given by name, each with its options, if any, as `name{a=1}`."""
    return [_stage(name) for name in names]


def fused_stages(fusions: Sequence[str], gpu: bool) -> tuple[list[Stage], list[Stage]]:
    """What imports a program, and what fuses it by these passes, for a GPU or for the CPU."""
    return stages_of(GPU_IMPORT if gpu else IMPORT), stages_of([*fusions, *(GPU if gpu else CPU)])


def make_stage(name: str, options: str = "") -> Stage:
    """One pass, ours or upstream's, with options as in `--name=options`.

    Raises QfuseError for an unknown pass or option, with the nearest names.
    """
    if name in ALL_PASSES:
        cls = ALL_PASSES[name]
        return Stage(name + (f"{{{options}}}" if options else ""), cls(**_options(cls, options)))
    if not name:
        raise QfuseError("a pass without a name; see --list-passes")
    text = name + (f"{{{options}}}" if options else "")
    _check_upstream(name, text)
    return Stage(text)


def parse_pipeline(text: str) -> list[Stage]:
    """The stages of `builtin.module(a,b{opt=1},func.func(c))`.

    Raises QfuseError for what cannot be read.
    """
    match = re.fullmatch(r"\s*builtin\.module\s*\((.*)\)\s*", text, flags=re.DOTALL)
    if match is None:
        raise QfuseError(f"pipeline '{text}' is not of the form builtin.module(pass,...)")
    stages = []
    for item in _split(match[1]):
        if "(" in item.partition("{")[0]:
            _refuse_nested_ours(item)
            _check_upstream(item.partition("(")[0], item)
            stages.append(Stage(item))
        else:
            stages.append(_stage(item))
    return stages


def _stage(text: str) -> Stage:
    """One pass with its options: `name`, or `name{a=1 b=2}`."""
    name, brace, options = text.partition("{")
    if brace and not options.endswith("}"):
        raise QfuseError(f"pipeline: unbalanced braces in '{text}'")
    return make_stage(name.strip(), options[:-1].strip())


def _split(text: str) -> Iterator[str]:
    """The parts of `text` at commas outside of brackets."""
    depth, start = 0, 0
    for i, char in enumerate(text):
        depth += (char in "({[") - (char in ")}]")
        if depth < 0:
            break
        if char == "," and depth == 0:
            yield text[start:i].strip()
            start = i + 1
    if depth != 0:
        raise QfuseError(f"pipeline: unbalanced brackets in '{text}'")
    if text[start:].strip():
        yield text[start:].strip()


def _refuse_nested_ours(item: str) -> None:
    for name in ALL_PASSES:
        if re.search(rf"[(,]\s*{re.escape(name)}\s*[,){{]", item):
            raise QfuseError(f"{name} runs on builtin.module; take it out of '{item}'")


def _check_upstream(name: str, text: str) -> None:
    try:
        passmanager.PassManager.parse(f"builtin.module({text})", ir.Context())
    except (ir.MLIRError, ValueError) as error:
        if "does not refer to a registered pass" not in str(error):
            raise QfuseError(f"{name}: {_first_line(error)}") from None
        # Names of upstream passes cannot be listed from Python; the common ones can be suggested.
        known = [*ALL_PASSES, *COMMON_UPSTREAM]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else "; see --list-passes"
        raise QfuseError(f"unknown pass '{name}'{hint}") from None


COMMON_UPSTREAM = (
    "canonicalize",
    "cse",
    "inline",
    "symbol-dce",
    "sccp",
    "strip-debuginfo",
    "print-op-stats",
    "loop-invariant-code-motion",
)
"""Upstream passes that people combine with ours; any other of upstream's works by its name."""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[0] if lines else "failed")


def _options(cls: type[Pass], text: str) -> dict[str, Any]:
    """Option values from `a=1 b=x,y`, typed as the fields of `cls` are."""
    known = {f.name.replace("_", "-"): f for f in fields(cls)}
    values: dict[str, Any] = {}
    for item in text.split():
        name, _, value = item.partition("=")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            options = ", ".join(known) or "none"
            raise QfuseError(f"{cls.name} has no option '{name}' (options: {options}){hint}")
        field = known[name]
        values[field.name] = _typed(cls.name, name, value, field.type)
    return values


def _typed(pass_name: str, option: str, value: str, type_: Any) -> Any:
    if type_ is bool:
        if value not in ("", "true", "false", "1", "0"):
            raise QfuseError(f"{pass_name}: {option}={value} is not true or false")
        return value in ("", "true", "1")
    if type_ is int:
        try:
            return int(value)
        except ValueError:
            raise QfuseError(f"{pass_name}: {option}={value} is not an integer") from None
    if type_ is str:
        return value
    return tuple(v for v in value.split(",") if v)
