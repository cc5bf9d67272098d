"""From a model to something that runs: the whole flow on one page.

import      a front end makes a module in the torch dialect        compiler/frontend
expand      torch to qfuse, quantization apart                     pipeline.IMPORT
fuse        the fusion passes that are on                          pipeline.FUSION
dispatch    each product to a library or our kernels               compiler/dispatch
lower       computations outlined into kernels                     passes/convert_to_*.py
tune        for a CPU: how the loops of products fetch and unroll  compiler/tuning.py
compile     kernels to machine code                                lowering/cpu, lowering/triton
plan        the rest as data, weights in the kernels' layout       compiler/plan, runtime
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qfuse.compiler import pipeline, remarks
from qfuse.compiler.dispatch.subject import Machine
from qfuse.compiler.dispatch.table import Row, rows_of
from qfuse.compiler.exclusive import exclusive
from qfuse.compiler.expert_layers import count_launches
from qfuse.compiler.norms import count_norms
from qfuse.compiler.on_torch import EXPERT_PRODUCTS, remark_torch
from qfuse.compiler.options import CompileOptions
from qfuse.compiler.passes.convert_to_blas import ConvertToBlas
from qfuse.compiler.passes.convert_to_cpu import ConvertToCpu
from qfuse.compiler.passes.convert_to_triton import ConvertToTriton
from qfuse.compiler.passes.dispatch import Dispatch, decisions_for, products
from qfuse.compiler.passes.outline import kernel_functions
from qfuse.compiler.passes.triton_to_binary import to_binaries
from qfuse.compiler.plan import build_plan
from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.runtime.program import Kernel, Program
from qfuse.compiler.runtime.report import Report
from qfuse.compiler.tuning import Tuning, tune_kernels
from qfuse.compiler.verification import Verification
from qfuse.dialects import registry
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.cpu.cache import compile_cached
from qfuse.lowering.cpu.tunables import Tunables

if TYPE_CHECKING:
    import torch

    from qfuse.compiler.frontend.imported import Imported

log = logging.getLogger("qfuse")


@dataclass(frozen=True)
class Fused:
    """What the patterns did, each pass's time, launches of each layer of experts, and the norms.

    `expert_layers` and `norms` are what `Report.from_json` reads of them.
    """

    remarks: remarks.Remarks
    timings: list[pipeline.Timing]
    expert_layers: list[dict[str, Any]]
    norms: dict[str, Any]


@dataclass(frozen=True)
class ConfigResult:
    """The fused module of a config, operations by name before and after, seconds by phase."""

    module: ir.Module
    counts: dict[str, dict[str, int]]
    seconds: dict[str, float]
    remarks: remarks.Remarks
    expert_layers: list[dict[str, Any]]
    norms: dict[str, Any]
    verified: list[str] | None = None


Progress = Callable[[str, int, int], None]
"""Called with a phase, how much of it is done, and how much there is."""


@exclusive
def compile(
    model: "torch.nn.Module | str | Path",
    example_inputs: Sequence[Any] | None = None,
    *,
    target: str = "cpu",
    disable: Sequence[str] | str = (),
    dynamic_shapes: Any = None,
    max_len: int | None = None,
    logits: str = "last",
    blas: str = "auto",
    verify: bool = False,
    quantize_rounding: str = "value",
    tune: str | None = None,
    progress: Progress | None = None,
) -> Executable:
    """Compile a model for `target`: "cpu", or a GPU such as "cuda:sm_90" or "hip:gfx942".

    A GPU need not be at hand; "cuda" or "hip" alone is the one that is.

    `model` is a directory with a Hugging Face checkpoint, a GGUF file, or a torch module together
    with `example_inputs` (and, as for `torch.export.export`, `dynamic_shapes`).  For a checkpoint,
    `max_len` is the number of tokens its KV caches hold (by default what the model was trained
    for, 2048 at most), and `logits` is "last" or "all" of the tokens of a call.  `blas` says which
    products go to a library: "auto" those that are measured or estimated to be faster there, "on"
    all that it has, or "off".  `disable` names fusions to leave out, or "all"; the result is the
    same to the last bit.  Norms that quantize round their value first, like the
    unfused program; with `quantize_rounding` "f32" they do not, and the result is another.

    `tune` says whether products are measured on this CPU to choose how their loops fetch and
    unroll: "auto" what was not measured before, for two seconds at most; "full" everything again,
    for a minute at most; "off" nothing.  None means what the variable QFUSE_TUNE says, else "auto",
    but "off" in CI.  The result is the same to the last bit.

    `verify` runs the program before and after each pass in the reference interpreter, with random
    weights and inputs, and raises NotEquivalent, naming pass and operation, if a pass changes what
    it computes; see `compiler/verification.py`.  `program.report["verified"]` of the result says
    what was compared, and what could not be.

    Raises QfuseError, in one line, for anything that cannot be read or compiled.
    """
    options = CompileOptions.make(
        target,
        disable,
        blas=blas,
        verify=verify,
        quantize_rounding=quantize_rounding,
        tune=tune,
    )
    if isinstance(model, str | Path):
        from qfuse.compiler.frontend.huggingface import import_checkpoint

        if example_inputs is not None or dynamic_shapes is not None:
            raise QfuseError(
                "example_inputs and dynamic_shapes are for torch modules; a checkpoint takes tokens"
            )
        _report(progress, "import", 0, 1)
        imported = import_checkpoint(Path(model), max_len=max_len, logits=logits)
    else:
        from qfuse.compiler.frontend.module import import_module

        if max_len is not None or logits != "last":
            raise QfuseError(
                "max_len and logits are for checkpoints; a torch module is compiled as it is"
            )
        _report(progress, "import", 0, 1)
        imported = import_module(model, example_inputs, dynamic_shapes, options.target.devices)
    _report(progress, "import", 1, 1)
    return compile_imported(imported, options, progress)


@exclusive
def compile_imported(
    imported: "Imported",
    options: CompileOptions,
    progress: Progress | None = None,
) -> Executable:
    """Compile what a front end imported.  The module is changed in place."""
    from qfuse.compiler.frontend.equal_scales import share_equal_scales

    module = imported.module
    share_equal_scales(imported)
    verification = _verification(options)
    fused = fuse(module, options, progress, verification)
    _log_torch(fused.remarks)
    decided = dispatch(module, options, verification)
    functions = lower(module, options, verification)
    tuning = Tuning()
    if options.target.is_cpu:
        _report(progress, "tune", 0, 1)
        tuning = tune_kernels(module.operation, functions, options)
        _report(progress, "tune", 1, 1)
    kernels = compile_kernels(functions, options, progress, tuning.tunables)
    with module.context:
        plan = build_plan(module, kernels)
    program = Program.prepare(
        plan,
        imported.parameters,
        kernels,
        info=_info(imported),
        report={
            "remarks": [remark.to_json() for remark in fused.remarks],
            "expert_layers": fused.expert_layers,
            "norms": fused.norms,
            "dispatch": [row.to_json() for row in decided],
            **({"tuning": tuning.report} if tuning.report else {}),
            **({} if verification is None else {"verified": verification.report()}),
        },
        target=str(options.target),
        progress=lambda done, total: _report(progress, "weights", done, total),
    )
    return Executable(program)


def fuse(
    module: ir.Module,
    options: CompileOptions,
    progress: Progress | None = None,
    verification: Verification | None = None,
) -> Fused:
    """Run the import and the fusion passes."""
    imports, fusions = pipeline.fused_stages(options.fusion_passes(), not options.target.is_cpu)
    imported, count = len(imports), len(imports) + len(fusions)
    with _errors_as_one_line(), remarks.collect() as collected:
        with module.context:
            registry.load_all()
        _report(progress, "fuse", 0, count)
        around = None if verification is None else verification.around
        timings = pipeline.run(
            module,
            imports,
            lambda i, *_: _report(progress, "fuse", i + 1, count),
            around,
        )
        before = count_launches(module)
        timings += pipeline.run(
            module,
            fusions,
            lambda i, *_: _report(progress, "fuse", imported + i + 1, count),
            around,
        )
        remark_torch(module)
    layers = [
        {"weight": unfused.weight, "before": unfused.launches, "after": fused.launches}
        for unfused, fused in zip(before, count_launches(module), strict=True)
    ]
    return Fused(collected, timings, layers, count_norms(module))


def dispatch(
    module: ir.Module, options: CompileOptions, verification: Verification | None = None
) -> list[Row]:
    """Give each product of a fused module, in place, to a library or to our kernels."""
    chosen = Dispatch(str(options.target), options.blas)
    with _errors_as_one_line():
        rows = dispatch_table(module, chosen.machine())
        stages = [pipeline.Stage(p.name, p) for p in (chosen, ConvertToBlas())]
        around = None if verification is None else verification.around
        pipeline.run(module, stages, around=around)
    return rows


def dispatch_table(module: ir.Module, machine: Machine) -> list[Row]:
    """What would be decided on `machine` about the products of a fused module."""
    with module.context:
        found = products(module.operation)
        return rows_of(decisions_for(product, machine) for product in found)


@exclusive
def explain_config(config: str | Path, machine: Machine, disable: Sequence[str] = ()) -> list[Row]:
    """The dispatch of a model on any machine; remarks are there to collect.

    `config` is a config.json or a directory that has one.
    """
    from qfuse.compiler.frontend.huggingface import import_config

    options = CompileOptions.make("cpu", disable)
    module = import_config(Path(config)).module
    imports, fusions = pipeline.fused_stages(options.fusion_passes(), machine.is_gpu)
    with _errors_as_one_line():
        with module.context:
            registry.load_all()
        pipeline.run(module, [*imports, *fusions])
        remark_torch(module)
    return dispatch_table(module, machine)


def lower(
    module: ir.Module, options: CompileOptions, verification: Verification | None = None
) -> list[func.FuncOp]:
    """Outline the computations of a fused module, in place, into kernels, and return those."""
    target = options.target
    convert = ConvertToCpu() if target.is_cpu else ConvertToTriton(str(target))
    with _errors_as_one_line():
        around = None if verification is None else verification.around
        pipeline.run(module, [pipeline.Stage(convert.name, convert)], around=around)
    return kernel_functions(module.operation)


def compile_kernels(
    functions: Sequence[func.FuncOp],
    options: CompileOptions,
    progress: Progress | None = None,
    tunables: Mapping[str, Tunables] | None = None,
) -> dict[str, Kernel]:
    """Machine code for kernels, by name; `tunables` are those of products on a CPU that have
    others than the default."""
    target, cache, tuned = options.target, options.cache_dir, tunables or {}

    def report(done: int) -> None:
        _report(progress, "kernels", done, len(functions))

    kernels: dict[str, Kernel] = {}
    if target.is_cpu:
        for i, function in enumerate(functions):
            report(i)
            name = function.name.value
            kernels[name] = compile_cached(
                function, cache, level=options.level, tuned=tuned.get(name)
            )
    else:
        report(0)
        kernels.update(to_binaries(functions, cache, report))
    report(len(functions))
    return kernels


@exclusive
def compile_config(config: str | Path, options: CompileOptions) -> ConfigResult:
    """Compile the graph of a model from its config alone, up to the fused IR; no weights."""
    from qfuse.compiler.frontend.huggingface import import_config

    start = time.perf_counter()
    imported = import_config(Path(config))
    seconds = {"import": time.perf_counter() - start}
    counts = {"imported": count_ops(imported.module)}
    verification = _verification(options)
    fused = fuse(imported.module, options, verification=verification)
    seconds |= {timing.name: timing.seconds for timing in fused.timings}
    if verification is not None:
        seconds["verification"] = verification.seconds
    counts["fused"] = count_ops(imported.module)
    verified = None if verification is None else verification.report()
    return ConfigResult(
        imported.module,
        counts,
        seconds,
        fused.remarks,
        fused.expert_layers,
        fused.norms,
        verified,
    )


def _log_torch(found: remarks.Remarks) -> None:
    """Log what stays on torch, as a warning where that is most of a model: its experts."""
    for kind in Report.from_json({"remarks": [r.to_json() for r in found]}).on_torch():
        level = logging.WARNING if kind.op in EXPERT_PRODUCTS else logging.INFO
        log.log(level, "remark: %s: %d x %s", kind.pattern, kind.count, kind.reason)


def _verification(options: CompileOptions) -> Verification | None:
    """What runs around passes, if it was asked for: few rows and short sums, for whole models."""
    return Verification(extents=(5,), terms=64) if options.verify else None


def count_ops(module: ir.Module) -> dict[str, int]:
    """How many operations of each name stand in the functions of a module, regions apart."""
    counts: Counter[str] = Counter()
    for function in module.body.operations:
        for block in function.regions[0].blocks:
            counts.update(op.operation.name for op in block.operations)
    return dict(counts.most_common())


def _info(imported: "Imported") -> dict[str, Any]:
    return asdict(imported.model) if imported.model is not None else {}


def _report(progress: Progress | None, phase: str, done: int, total: int) -> None:
    if progress is not None:
        progress(phase, done, total)


@contextmanager
def _errors_as_one_line() -> Iterator[None]:
    """What does not verify after a pass is a fault of ours; say which operation it was."""
    try:
        yield
    except ir.MLIRError as error:
        first = next((line for line in str(error).splitlines() if "error:" in line), str(error))
        raise QfuseError(f"internal error: a pass made illegal IR: {first.strip()}") from error
