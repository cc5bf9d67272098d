"""Tuning the products of a lowered program for this CPU, within a budget, and what to say of it."""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from qfuse.compiler.options import CompileOptions
from qfuse.compiler.passes.outline import kernel_calls
from qfuse.dialects import matmul_op
from qfuse.dialects.bindings import func, ir
from qfuse.lowering.cpu import autotune, tuned
from qfuse.lowering.cpu.autotune import Found, Probes, Subject
from qfuse.lowering.cpu.cpu import choose_level
from qfuse.lowering.cpu.entry_table import cpu_name
from qfuse.lowering.cpu.tunables import SEARCHES, Tunables

SECONDS = {"auto": 2.0, "full": 60.0}
"""What tuning takes at most, by mode: of a program, or of a graph that torch.compile hands over."""

log = logging.getLogger("qfuse")


@dataclass(frozen=True)
class Tuning:
    """What the kernels of products are compiled with, where that is not the default, by name.

    `report` has "cpu", "threads", "level", "mode", and of each product in "products" its kernel,
    its operands, how often it is called, the values of its tunables, which of them are "tuned",
    what was "measured" (seconds by number of rows, and of the defaults) and "why" they are so.
    """

    tunables: dict[str, Tunables] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Kernel:
    """A kernel of a product, how often it is called, and what is measured of it, if anything."""

    name: str
    product: ir.Operation
    calls: int
    subject: Subject | None


def tune_kernels(
    module: ir.Operation,
    functions: Sequence[func.FuncOp],
    options: CompileOptions,
) -> Tuning:
    """Choose the tunables of the products among the kernels of a module.

    What was measured earlier is read from the cache; the rest is measured, what reads most weights
    first, and kept there.  A remark says for how many there was no time.
    """
    level, threads = choose_level(options.level), torch.get_num_threads()
    kernels = list(_kernels(module, functions))
    found: Mapping[str, Found] = {}
    if options.tune != "off":
        found = _measured(_by_traffic(kernels), level, threads, options)
    chosen, rows = {}, []
    for kernel in kernels:
        usual = autotune.product_of_op(kernel.product, level).tunables
        one = found.get(str(kernel.subject), Found({}, {}))
        if one.changes:
            chosen[kernel.name] = one.apply(usual)
        rows.append(
            {
                "kernel": kernel.name,
                "product": autotune.key_of(kernel.product),
                "calls": kernel.calls,
                "values": chosen.get(kernel.name, usual).to_json(),
                "tuned": sorted(one.changes),
                "measured": {str(m): list(pair) for m, pair in one.measured.items()},
                "why": _why(kernel, one, level, options.tune),
            }
        )
    about = {"cpu": cpu_name(), "threads": threads, "level": level, "mode": options.tune}
    return Tuning(chosen, {**about, "products": rows})


def _kernels(module: ir.Operation, functions: Sequence[func.FuncOp]) -> Iterator[_Kernel]:
    calls = kernel_calls(module)
    for function in functions:
        op = next(iter(function.entry_block.operations)).operation
        if op.name in matmul_op.INPUTS:
            name = function.name.value
            yield _Kernel(name, op, calls[name], autotune.subject_of(op))


def _by_traffic(kernels: Sequence[_Kernel]) -> list[Subject]:
    """What is to be measured, what reads most bytes in a call of the program first."""
    traffic: Counter[Subject] = Counter()
    for kernel in kernels:
        if kernel.subject is not None:
            traffic[kernel.subject] += kernel.calls * autotune.weight_bytes(kernel.product)
    return [subject for subject, _ in traffic.most_common()]


def _measured(
    subjects: Sequence[Subject],
    level: str,
    threads: int,
    options: CompileOptions,
) -> Mapping[str, Found]:
    signature = tuned.signature(level, threads)
    known = tuned.read(options.tuned_dir, signature) if options.tune == "auto" else {}
    if all(known.get(str(s), Found({}, {})).is_complete(level) for s in subjects):
        return known
    probes = Probes(level, threads)
    found, left = autotune.tune(subjects, level, known, probes, SECONDS[options.tune])
    tuned.write(options.tuned_dir, signature, found)
    if left:
        log.warning(
            "remark: the %g s for tuning ended before %d of %d searches: these products keep the "
            "defaults; compile again to go on, or with tune full",
            SECONDS[options.tune],
            len(left),
            len(subjects) * len(SEARCHES[level]),
        )
    return found


def _why(kernel: _Kernel, found: Found, level: str, mode: str) -> str:
    if mode == "off":
        return "tuning is off"
    if kernel.subject is None:
        return f"its weight is below {autotune.LEAST_BYTES >> 20} MiB"
    if not found.is_complete(level):
        rows = [str(s.m) for s in SEARCHES[level] if s.m not in found.measured]
        return f"there was no time to measure M = {', '.join(rows)}"
    return "measured" if found.changes else "measured: nothing was clearly faster"
