"""Translate qfuse operations to GPU kernels: Triton IR, assembly, machine code, or a report."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from qfuse.compiler import options
from qfuse.compiler.passes.outline import kernel_functions, outline_computations
from qfuse.dialects import registry
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.binary import Binary, compile_launch
from qfuse.lowering.triton.gpu import GPUS, Gpu, find_gpu
from qfuse.lowering.triton.kernel import Launch, TritonKernel, Variant
from qfuse.lowering.triton.lower import lower_kernel
from qfuse.lowering.triton.sass import sass_report
from qfuse.tools import diagnostics
from qfuse.tools.ending import Parser, exit_code
from qfuse.tools.files import read_text, write_bytes, write_text

FORMATS = ("ttir", "ttgir", "ptx", "cubin", "amdgcn", "hsaco", "sass-report")
_ONLY = {"ptx": "cuda", "cubin": "cuda", "sass-report": "cuda", "amdgcn": "hip", "hsaco": "hip"}
_BINARY = ("cubin", "hsaco")
SEPARATOR = "// -----"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `qfuse-translate`; returns the exit code."""
    return exit_code("qfuse-translate", lambda: _run(_parser().parse_args(argv)))


def _run(args: argparse.Namespace) -> int:
    gpu = find_gpu(args.target)
    kind = _ONLY.get(args.to, gpu.kind)
    if kind != gpu.kind:
        raise QfuseError(f"--to={args.to} is for {kind} targets, not {gpu}")
    if args.to in _BINARY and args.output == "-":
        raise QfuseError(f"--to={args.to} writes one file per kernel; name a directory with -o")
    chosen = [
        (kernel, variant, launch)
        for kernel in _lower(read_text(args.input), args.input, gpu)
        for variant in kernel.variants
        if args.m is None or variant is kernel.variant(args.m)
        for launch in variant.launches
    ]
    if args.to == "ttir":
        texts = [f"{_heading(*each)}{each[2].text}" for each in chosen]
        _print(args.output, f"{SEPARATOR}\n".join(texts))
        return 0
    directory = options.cache_dir() / "gpu"
    binaries = [compile_launch(launch, gpu, directory) for _, _, launch in chosen]
    if args.to == "sass-report":
        reports = [_report(*each, binary) for each, binary in zip(chosen, binaries, strict=True)]
        _print(args.output, json.dumps(reports, indent=1) + "\n")
    elif args.to in _BINARY:
        for binary in binaries:
            write_bytes(Path(args.output) / f"{binary.name}.{args.to}", binary.stages[args.to])
    else:
        texts = [
            f"{_heading(*each)}{binary.text(args.to).rstrip()}\n"
            for each, binary in zip(chosen, binaries, strict=True)
        ]
        _print(args.output, f"{SEPARATOR}\n".join(texts))
    return 0


def _lower(text: str, name: str, gpu: Gpu) -> list[TritonKernel]:
    """The kernels of a module; what is not outlined yet is outlined first."""
    with ir.Context() as context, ir.Location.unknown():
        registry.load_all()
        with diagnostics.collect(context) as reported:
            try:
                module = ir.Module.parse(text)
            except ir.MLIRError as error:
                found = diagnostics.from_error(error) or reported
                raise QfuseError(f"{name}:{found[0] if found else error}") from None
        outline_computations(module.operation)
        functions = kernel_functions(module.operation)
        if not functions:
            raise QfuseError(f"{name} holds no qfuse computation; see qfuse-opt --help for passes")
        return [lower_kernel(function, gpu) for function in functions]


def _heading(kernel: TritonKernel, variant: Variant, launch: Launch) -> str:
    grid = launch.grid
    m = "M" if grid.times == 1 else f"{grid.times} M"
    blocks = f"ceil({m} / {grid.rows})"
    if grid.groups > 1:
        blocks = f"({m} + min({m}, {grid.groups}) * {grid.rows - 1}) / {grid.rows}"
    x = f"{blocks} * {grid.per_block}"
    if grid.at_most is not None:
        x = f"min({x}, {grid.at_most})"
    return (
        f"// kernel {kernel.name} for {kernel.target}, {variant.range_text}: {launch.name}, "
        f"grid ({x}, {grid.y}), {launch.num_warps} warps, {launch.num_stages} stages\n"
    )


def _report(
    kernel: TritonKernel, variant: Variant, launch: Launch, binary: Binary
) -> dict[str, object]:
    return {"kernel": kernel.name, "rows": variant.range_text, **sass_report(binary)}


def _print(output: str, text: str) -> None:
    if output == "-":
        sys.stdout.write(text)
    else:
        write_text(Path(output), text)


def _rows(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of rows, 1 or more")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="qfuse-translate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("input", nargs="?", default="-", help="an .mlir file, or - for standard input (default)")
    add("--to", required=True, choices=FORMATS, help="what to print or write")
    add("--target", default="cuda:sm_90", help=f"one of {', '.join(GPUS)}; default cuda:sm_90")
    add("--m", type=_rows, metavar="ROWS", help="only the kernels that serve this number of rows")
    add("-o", dest="output", default="-", metavar="PATH", help="a file; for code, a directory")
    return parser


if __name__ == "__main__":
    sys.exit(main())
