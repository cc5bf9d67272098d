"""Compile, run and look into quantized language models."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError
from qfuse.tools import measure_commands
from qfuse.tools.ending import Parser, exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `qfuse`; returns the exit code."""

    def command() -> int:
        args = _parser().parse_args(argv)
        return int(args.run(args))

    return exit_code("qfuse", command)


def _demo(args: argparse.Namespace) -> int:
    from rich.console import Console

    from qfuse.tools import demo

    if args.tokens < 2:
        raise QfuseError(f"--tokens {args.tokens} leaves no speed to measure; use 2 or more")
    if args.model is not None and args.arch is not None:
        raise QfuseError("--model names a checkpoint and --arch asks for one; give one of them")
    console = Console(stderr=args.json)
    with _progress(console) as progress:
        model = args.model or demo.checkpoint(args.arch)
        result = demo.run(model, console, progress, tokens=args.tokens)
    if args.json:
        print(json.dumps(result.to_json()))
    return 0


def _compile(args: argparse.Namespace) -> int:
    from rich.console import Console

    from qfuse.compiler.options import CompileOptions

    options = CompileOptions.make(
        args.target,
        args.disable or (),
        blas=args.blas,
        verify=args.verify,
        quantize_rounding=args.quantize_rounding,
        tune=args.tune,
    )
    console = Console(stderr=True)
    if args.config_only:
        if args.model is not None or args.max_len is not None:
            raise QfuseError("--config-only takes neither a checkpoint directory nor --max-len")
        return _compile_config(args, options)
    if args.json:
        raise QfuseError("--json needs --config-only; qfuse inspect --json shows an artifact")
    if args.emit != "artifact":
        raise QfuseError(f"--emit={args.emit} needs --config-only")
    if args.model is None:
        raise QfuseError(
            "name a checkpoint directory or a GGUF file, or a config.json with --config-only"
        )
    if args.output is None:
        raise QfuseError("name the file to write with -o")
    from qfuse.compiler.compilation import compile

    _check_writable(args.output)  # before minutes of work
    with _progress(console) as progress:
        exe = compile(
            args.model,
            target=args.target,
            disable=sorted(options.disable),
            max_len=args.max_len,
            blas=args.blas,
            verify=args.verify,
            quantize_rounding=args.quantize_rounding,
            tune=args.tune,
            progress=progress,
        )
    exe.save(args.output)
    _print_verified(exe.program.report.get("verified"))
    if args.remarks:
        _print_remarks(exe.program.report["remarks"])
    sizes = exe.program.sizes()
    console.print(
        f"{args.output}: {sizes['kernels']} kernels, {sizes['kernel_steps']} kernel and "
        f"{sizes['torch_steps']} torch steps, {args.output.stat().st_size / 1e6:.1f} MB"
    )
    for name, before, after in exe.report().savings():
        console.print(f"{name}: {before} -> {after}", highlight=False)
    return 0


def _compile_config(args: argparse.Namespace, options: Any) -> int:
    from qfuse.compiler.compilation import compile_config
    from qfuse.compiler.runtime.report import Report

    start = time.perf_counter()
    result = compile_config(args.config_only, options)
    total = time.perf_counter() - start
    _print_verified(result.verified)
    if args.output is not None:
        from qfuse.tools.files import write_text

        write_text(args.output, f"{result.module}\n")
    if args.json:
        data = {
            "ops": result.counts,
            "expert_layers": result.expert_layers or None,
            "norms": result.norms,
            "seconds": {**result.seconds, "total": total},
            "peak_rss_bytes": _peak_rss(),
        }
        print(json.dumps(data))
        return 0
    print(f"{'operation':44}{'imported':>10}{'fused':>10}")
    names = {**result.counts["fused"], **result.counts["imported"]}
    for name in sorted(names):
        before, after = (result.counts[k].get(name, 0) for k in ("imported", "fused"))
        print(f"{name:44}{before:10}{after:10}")
    print(f"\n{'phase':44}{'seconds':>10}")
    for phase, seconds in result.seconds.items():
        print(f"{phase:44}{seconds:10.3f}")
    print(f"{'total':44}{total:10.3f}")
    print(f"{'peak memory, GiB':44}{_peak_rss() / 2**30:10.3f}")
    report = Report.from_json({"expert_layers": result.expert_layers, "norms": result.norms})
    for what, unfused, fused in report.savings():
        print(f"{what:44}{unfused:>10}{fused:>10}")
    if report.norms:
        print(report.norms)
    if args.remarks:
        _print_remarks([remark.to_json() for remark in result.remarks])
    return 0


def _run(args: argparse.Namespace) -> int:
    from qfuse.compiler import load

    ids = _ids(args.prompt_ids)
    exe = load(args.artifact)
    start = time.perf_counter()
    tokens = []
    for token in exe.stream(ids, args.max_new_tokens):
        tokens.append(token)
        if not args.json:
            print(token, end=" ", flush=True)
    seconds = time.perf_counter() - start
    if args.json:
        print(json.dumps({"tokens": tokens, "seconds": seconds}))
    else:
        print()
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from qfuse.compiler import load

    exe = load(args.artifact)
    data = exe.inspect()
    if args.json:
        print(json.dumps({**data, "report": exe.report().to_json()}))
        return 0
    from rich.console import Console

    from qfuse.tools.inspection import show

    show(Console(), args.artifact, data, exe.report())
    return 0


def _explain(args: argparse.Namespace) -> int:
    from qfuse.tools.explanation import decisions, show, show_on_torch, show_tuning, tuning

    rows, on_torch = decisions(args.model, args.target, args.blas, args.roundings)
    tuned = tuning(args.model)
    if args.json:
        data: dict[str, Any] = {
            "dispatch": [row.to_json() for row in rows],
            "on_torch": [asdict(kind) for kind in on_torch],
        }
        print(json.dumps(data if tuned is None else {**data, "tuning": tuned}))
        return 0
    from rich.console import Console

    show(Console(), rows)
    if on_torch:
        show_on_torch(Console(), on_torch)
    if tuned is not None:
        show_tuning(Console(), tuned)
    return 0


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise QfuseError(
            f"--prompt-ids '{text}' are not whole numbers; write them as 1,2,3"
        ) from None


def _check_writable(path: Path) -> None:
    from qfuse.tools.files import check_writable

    check_writable(path)


def _print_remarks(remarks: Sequence[Mapping[str, Any]]) -> None:
    from qfuse.compiler.runtime.report import Savings

    for remark in remarks:
        subject = f" ({remark['subject']})" if remark["subject"] else ""
        saves = f"saves {Savings(**remark['saves'])}" if remark["saves"] else ""
        reason = "; ".join(filter(None, (saves, remark["cause"], remark["cure"])))
        print(
            f"{remark['location']}: {remark['pattern']}: {remark['outcome']} at "
            f"{remark['op']}{subject}" + (f": {reason}" if reason else ""),
            file=sys.stderr,
        )


def _print_verified(lines: Sequence[str] | None) -> None:
    for line in lines or ():
        print(f"verify: {line}", file=sys.stderr)


def _peak_rss() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _progress(console: Any) -> Iterator[Callable[[str, int, int], None]]:
    """A bar per phase on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description:10}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bars:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield report


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="qfuse", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="compile a small model, compare, and report")
    demo.add_argument(
        "--model", type=Path, metavar="MODEL", help="a checkpoint directory or GGUF file of yours"
    )
    demo.add_argument(
        "--arch",
        choices=("qwen3", "qwen3-moe", "mixtral", "deepseek-v3"),
        help="architecture of the model to write (default: qwen3)",
    )
    demo.add_argument("--tokens", type=int, default=32, metavar="N", help="tokens to generate")
    demo.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    demo.set_defaults(run=_demo)

    compile_ = commands.add_parser("compile", help="compile a checkpoint into one file")
    add = compile_.add_argument
    add("model", nargs="?", type=Path, metavar="MODEL", help="a checkpoint directory or GGUF file")
    add("--target", default="cpu", help="cpu (default), cuda:sm_90, hip:gfx942, ...")
    add("-o", dest="output", type=Path, metavar="FILE", help="where to write")
    add("--max-len", type=int, metavar="N", help="tokens that the KV caches hold")
    add("--disable", metavar="A,B", help="fusions to leave out; 'all' for every one")
    add("--blas", default="auto", help="products by a library: auto (where faster), on, off")
    add(
        "--quantize-rounding",
        default="value",
        metavar="R",
        help="what norms quantize: value (default), as the unfused program does, or f32",
    )
    add(
        "--tune",
        metavar="MODE",
        help="on a CPU, measure how to multiply: auto (what was not before, 2 s at most), full "
        "(everything, 60 s at most), off; default auto, in CI off; QFUSE_TUNE sets it, too",
    )
    add("--remarks", action="store_true", help="print what each pattern did or declined")
    add(
        "--verify",
        action="store_true",
        help="run the program before and after each pass, with random weights and inputs, and "
        "fail if a pass changes what it computes",
    )
    add("--json", action="store_true", help="with --config-only: print JSON")
    add(
        "--config-only",
        type=Path,
        metavar="CONFIG",
        help="compile the graph of a config.json without weights",
    )
    add(
        "--emit",
        choices=("artifact", "fused-ir"),
        default="artifact",
        help="with --config-only, fused-ir: the fused module goes to -o, counts to stdout",
    )
    compile_.set_defaults(run=_compile)

    run = commands.add_parser("run", help="generate tokens with a compiled model")
    run.add_argument("artifact", type=Path, help="what `qfuse compile` wrote")
    run.add_argument("--prompt-ids", required=True, metavar="IDS", help="token ids, as 1,2,3")
    run.add_argument("--max-new-tokens", type=int, default=32, metavar="N")
    run.add_argument("--json", action="store_true")
    run.set_defaults(run=_run)

    inspect = commands.add_parser("inspect", help="show what a compiled model consists of")
    inspect.add_argument("artifact", type=Path)
    inspect.add_argument("--json", action="store_true")
    inspect.set_defaults(run=_inspect)

    explain = commands.add_parser("explain", help="show which backend multiplies what, and why")
    add = explain.add_argument
    add("model", type=Path, help="a .qfuse file, a checkpoint directory or a config.json")
    add("--target", metavar="T", help="for a model: cpu, cuda:sm_90, hip:gfx942, ...")
    add("--blas", metavar="MODE", help="for a model: auto (default), on or off")
    add("--roundings", metavar="R", help="for a model: exact (default), or library")
    add("--json", action="store_true")
    explain.set_defaults(run=_explain)
    measure_commands.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
