"""Run compiler passes on textual IR and print the result."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qfuse.compiler import pipeline, remarks
from qfuse.compiler.passes import ALL_PASSES
from qfuse.dialects import registry
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError
from qfuse.tools import diagnostics
from qfuse.tools.diagnostics import Diagnostic
from qfuse.tools.ending import Parser, exit_code
from qfuse.tools.files import read_text, write_text

if TYPE_CHECKING:
    from qfuse.compiler.verification import Verification

SEPARATOR = "// -----"

_WITH_VALUE = ("--pass-pipeline", "--dump-dir", "--reproducer", "--remarks")
_GAP = "\x1f"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `qfuse-opt`; returns the exit code."""
    return exit_code("qfuse-opt", lambda: _main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: list[str]) -> int:
    args, stages = _parse(argv)
    if args.list_passes:
        _list_passes()
        return 0
    return _run(args, stages)


def _run(args: argparse.Namespace, stages: list[pipeline.Stage]) -> int:
    text = read_text(args.input)
    if args.reproducer:  # written first, so that a crash of the process leaves it behind
        write_text(args.reproducer, _reproducer(text, stages))
    chunks = _split(text) if args.split_input_file else [text]
    verification = _verification(args)
    outputs, failed = [], False
    for chunk in chunks:
        output, good = _process(chunk, stages, args, verification)
        outputs.append(output)
        failed |= not good
    for line in verification.report() if verification is not None else ():
        print(f"{_input_name(args)}: verify-fusion: {line}", file=sys.stderr)
    if failed:
        return 1
    if not args.verify_diagnostics:
        result = f"{SEPARATOR}\n".join(outputs)
        if args.output == "-":
            print(result, end="")
        else:
            write_text(Path(args.output), result)
    return 0


def _process(
    text: str,
    stages: list[pipeline.Stage],
    args: argparse.Namespace,
    verification: "Verification | None",
) -> tuple[str, bool]:
    """Run the stages over one module; return what to print and whether it went well."""
    name = _input_name(args)
    found: list[Diagnostic] = []
    output = ""
    with ir.Context() as context, ir.Location.unknown():
        registry.load_all()
        with diagnostics.collect(context) as reported, remarks.collect() as collected:
            try:
                module = ir.Module.parse(text)
                around = None if verification is None else verification.around
                timings = pipeline.run(module, stages, _observer(args), around)
                output = f"{module}\n" if not str(module).endswith("\n") else str(module)
                if args.timing:
                    _print_timings(timings)
            except ir.MLIRError as error:
                found += diagnostics.from_error(error) or [Diagnostic("error", 0, 0, str(error))]
        # What MLIR handed to an exception it also reports; say each once.
        found += [d for d in reported if d not in found]
    errors = any(d.severity == "error" for d in found)
    if args.verify_diagnostics:
        found += [diagnostics.from_remark(r) for r in collected]
        problems = diagnostics.unmet(text, found)
        for problem in problems:
            print(f"{name}:{problem}", file=sys.stderr)
        return "", not problems
    for diagnostic in found:
        print(f"{name}:{diagnostic}", file=sys.stderr)
    _print_remarks(args.remarks, name, collected)
    return output, not errors


def _verification(args: argparse.Namespace) -> "Verification | None":
    if not args.verify_fusion:
        return None
    from qfuse.compiler.verification import Verification  # numpy would double the start-up time

    return Verification(args.verify_fusion_seed)


def _input_name(args: argparse.Namespace) -> str:
    return "<stdin>" if args.input == "-" else args.input


def _observer(args: argparse.Namespace):
    def after(index: int, stage: pipeline.Stage, module: ir.Module) -> None:
        if args.print_ir_after_all:
            print(f"// IR after {stage.name}\n{module}", file=sys.stderr)
        if args.dump_dir:
            file = stage.name.partition("{")[0].partition("(")[0]
            write_text(args.dump_dir / f"{index:02}-{file}.mlir", f"{module}\n")

    return after


def _print_remarks(mode: str | None, name: str, collected: remarks.Remarks) -> None:
    if mode == "json":
        print(json.dumps([r.to_json() for r in collected], indent=1), file=sys.stderr)
    elif mode == "text":
        for remark in collected:
            print(f"{name}:{diagnostics.from_remark(remark)}", file=sys.stderr)


def _print_timings(timings: list[pipeline.Timing]) -> None:
    total = sum(t.seconds for t in timings)
    for timing in timings:
        print(f"{timing.seconds * 1e3:10.2f} ms  {timing.name}", file=sys.stderr)
    print(f"{total * 1e3:10.2f} ms  total", file=sys.stderr)


def _list_passes() -> None:
    for name, cls in ALL_PASSES.items():
        print(f"{name:28}{(cls.__doc__ or '').splitlines()[0]}")
    print("\nUpstream's passes work by their own names, for example:")
    print("  " + ", ".join(pipeline.COMMON_UPSTREAM))


def _reproducer(text: str, stages: list[pipeline.Stage]) -> str:
    passes = ",".join(stage.name for stage in stages)
    return f"// RUN: qfuse-opt --pass-pipeline='builtin.module({passes})' %s\n{text}"


def _split(text: str) -> list[str]:
    """The modules of a split file, each padded so that line numbers stay those of the file."""
    chunks: list[list[str]] = [[]]
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(SEPARATOR):
            chunks.append([""] * (number + 1))
        else:
            chunks[-1].append(line)
    return ["\n".join(chunk) + "\n" for chunk in chunks]


def _parse(argv: list[str]) -> tuple[argparse.Namespace, list[pipeline.Stage]]:
    """Known flags through argparse; every other `--name[=options]` is a pass, in order."""
    # With an optional value, argparse would take the input after a bare --remarks for it.
    argv = ["--remarks=text" if a == "--remarks" else a for a in argv]
    # It takes an unknown flag for the input, too, where a space stands between two options.
    argv = [a.replace(" ", _GAP) if _may_be_pass(a) else a for a in argv]
    args, rest = _parser().parse_known_args(argv)
    rest = [a.replace(_GAP, " ") for a in rest]
    text = args.pass_pipeline
    stages = [] if text is None else pipeline.parse_pipeline(text)
    passes = [a for a in rest if a.startswith("--")]
    others = [a for a in rest if not a.startswith("--")]
    if others:
        raise QfuseError(f"unexpected argument '{others[0]}'; one input file at most")
    if passes and text is not None:
        raise QfuseError(f"{passes[0]} cannot be combined with --pass-pipeline; put it in there")
    for flag in passes:
        name, _, options = flag[2:].partition("=")
        stages.append(pipeline.make_stage(name, options))
    return args, stages


def _may_be_pass(argument: str) -> bool:
    return argument.startswith("--") and argument.partition("=")[0] not in _WITH_VALUE


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="qfuse-opt",
        description=__doc__,
        epilog="Every other --NAME[=OPTIONS] is a pass; passes run in the order given. "
        "Options are separated by spaces: --qfuse-fuse-epilogue='stages=bias,activation'.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("input", nargs="?", default="-", help="an .mlir file, or - for standard input (default)")
    add("-o", dest="output", default="-", metavar="FILE", help="where to print; default stdout")
    add("--pass-pipeline", metavar="TEXT", help="passes as 'builtin.module(a,b{opt=1})'")
    add("--list-passes", action="store_true", help="print our passes and what each does")
    add("--split-input-file", action="store_true", help=f"treat '{SEPARATOR}' as a file boundary")
    add(
        "--verify-diagnostics",
        action="store_true",
        help="check expected-error and expected-remark comments instead of printing",
    )
    add(
        "--remarks",
        choices=("text", "json"),
        metavar="FORMAT",
        help="print what each pattern did or declined, and why, on stderr; text (without "
        "=FORMAT) or json",
    )
    add(
        "--verify-fusion",
        action="store_true",
        help="run each function before and after each pass of ours, on random inputs in the "
        "reference interpreter, and fail if the pass changes what it computes",
    )
    add(
        "--verify-fusion-seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of these inputs; default 0",
    )
    add("--print-ir-after-all", action="store_true", help="print the IR after each pass on stderr")
    add("--dump-dir", type=Path, metavar="DIR", help="write the IR after each pass to DIR")
    add("--timing", action="store_true", help="print the time of each pass on stderr")
    add(
        "--reproducer",
        type=Path,
        metavar="FILE",
        help="before running, write input and command line to FILE as a test",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
