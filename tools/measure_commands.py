"""`qfuse bench` and `qfuse tune`: what they are called with; torch and MLIR only when they run."""

import argparse
import json
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qfuse.dialects.errors import QfuseError

_WIDE = 160  # columns where nobody looks at a terminal

_CPU = ("cpu-linear", "cpu-mlp", "cpu-norm", "cpu-model", "cpu-compile")
SUITES = (*_CPU, "cpu-moe", "gpu-static", "gpu-gemm", "gpu-moe")
_MOE = ("cpu-moe", "gpu-moe")


def add(commands: Any) -> None:
    """Add both to the subcommands of `qfuse`."""
    bench = commands.add_parser("bench", help="benchmark kernels, or what is known of them")
    bench.add_argument(
        "--suite", choices=SUITES, required=True, help="those of cpu and gpu-static need no GPU"
    )
    _common(bench, "; of experts Qwen3-30B-A3B, or 128x8x2048x768: their number, choices, H and I")
    bench.add_argument(
        "--experts",
        type=_number,
        metavar="N",
        help="cut the experts of cpu-moe and gpu-moe (default: what memory allows)",
    )
    bench.add_argument("--only", metavar="SCHEME,...", help=f"of {', '.join(_CPU)}; say fp8,q4_k")
    bench.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile takes part in those, but for cpu-compile",
    )
    bench.add_argument("--iree", action="store_true", help="IREE takes part in cpu-linear")
    bench.add_argument(
        "--goals",
        action="store_true",
        help="of those suites: say which goals are missed, by how much",
    )
    bench.add_argument("--no-chain", action="store_true", help="gpu-gemm without the fused MLP")
    bench.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    bench.add_argument("-o", dest="output", type=Path, metavar="FILE", help="write the JSON, too")
    bench.set_defaults(run=_bench)

    tune = commands.add_parser("tune", help="measure how to multiply here, and keep what is best")
    _common(tune)
    tune.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="what to write, or add to; QFUSE_TILE_TABLE=FILE uses it, for a CPU QFUSE_CPU_TABLE",
    )
    tune.add_argument(
        "--most", type=_number, default=24, metavar="N", help="tiles to measure for each range of M"
    )
    tune.add_argument(
        "--model", type=Path, metavar="FILE", help="on a CPU: the products of this .qfuse file"
    )
    tune.add_argument(
        "--only",
        metavar="SCHEME,...",
        help="on a CPU say fp8,q4_k,bf16; on a GPU bf16,fp8-rows,int8 or fp8 (blocks), the default",
    )
    tune.add_argument(
        "--seconds", type=_number, default=300, metavar="N", help="on a CPU: when to stop"
    )
    tune.add_argument(
        "--check",
        action="store_true",
        help="on a CPU: only say how near to the best the model's choice is",
    )
    tune.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    tune.set_defaults(run=_tune)


def _common(parser: argparse.ArgumentParser, more: str = "") -> None:
    add = parser.add_argument
    add("--target", default="cuda:sm_90", help="default cuda:sm_90")
    shapes = "say 4096x7168; 2*2048x7168 is gate and up with GLU"
    add("--shapes", metavar="NxK,...", help=shapes + more)
    add("--m", "--tokens", metavar="M,...", help="numbers of rows, say 1,64,4096")


def _number(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1")
    return int(text)


def _bench(args: argparse.Namespace) -> int:
    from rich.console import Console

    from qfuse.tools.bench import table

    if args.experts is not None and args.suite not in _MOE:
        raise QfuseError(f"--experts {args.experts} is for {' and '.join(_MOE)}")
    if args.output is not None:
        from qfuse.tools.files import check_writable

        check_writable(args.output)  # before minutes of work
    if (args.only or args.compile) and args.suite not in _CPU:
        raise QfuseError(f"--only and --compile are for {', '.join(_CPU)}")
    if args.compile and args.suite == "cpu-compile":
        raise QfuseError("--compile is not for cpu-compile, which has no peers")
    if args.goals and args.suite not in _CPU:
        raise QfuseError(f"--goals is for {', '.join(_CPU)}")
    if args.iree and args.suite != "cpu-linear":
        raise QfuseError("--iree is for cpu-linear")
    header, rows = _measured(args)
    found = _announced(args, rows)
    if args.goals:
        from qfuse.tools.bench.cpu_goals import missed, to_json

        header = {**header, "missed": to_json(missed(found))}
    _finish(args, {**header, "rows": found})
    if not args.json:
        console = Console(width=None if sys.stdout.isatty() else _WIDE)
        table.SHOW[args.suite](console, header, found)
    return 0


def _measured(args: argparse.Namespace) -> tuple[dict[str, Any], Iterable[dict[str, Any]]]:
    """Header and rows of the suite."""
    if args.suite in _MOE:
        return _bench_moe(args)
    return _bench_cpu(args) if args.suite in _CPU else _bench_products(args)


def _bench_cpu(args: argparse.Namespace) -> tuple[dict[str, Any], Iterable[dict[str, Any]]]:
    """Header and rows of the suites of `_CPU`."""
    from qfuse.tools.bench import cpu_compile, cpu_linear, cpu_mlp, cpu_model, cpu_norm
    from qfuse.tools.bench.cases import parse_rows
    from qfuse.tools.bench.cpu_schemes import parse_schemes

    if args.suite in ("cpu-model", "cpu-compile") and (args.shapes or args.m):
        raise QfuseError(f"--shapes and --m are not for {args.suite}, whose models are given")
    if args.suite == "cpu-compile":
        measured = cpu_compile.run(cpu_compile.parse_schemes(args.only))
    elif args.suite == "cpu-model":
        measured = cpu_model.run(cpu_model.parse_models(args.only), args.compile)
    elif args.suite == "cpu-norm":
        if args.shapes:
            raise QfuseError(f"--shapes is not for cpu-norm, whose rows are of {cpu_norm.WIDTH}")
        schemes, rows = parse_schemes(args.only), parse_rows(args.m, cpu_norm.ROWS)
        measured = cpu_norm.run(rows, schemes, args.compile)
    else:
        schemes, rows = parse_schemes(args.only), parse_rows(args.m, cpu_linear.ROWS)
        if args.suite == "cpu-mlp":
            shapes = cpu_linear.parse_shapes(args.shapes, cpu_mlp.SHAPES)
            measured = cpu_mlp.run(shapes, rows, schemes, args.compile)
        else:
            shapes = cpu_linear.parse_shapes(args.shapes)
            measured = cpu_linear.run(shapes, rows, schemes, args.compile, args.iree)
    return next(measured), measured


def _bench_products(args: argparse.Namespace) -> tuple[dict[str, Any], Iterable[dict[str, Any]]]:
    """Header and rows of gpu-static and gpu-gemm."""
    from qfuse.compiler import options
    from qfuse.lowering.triton.gpu import find_gpu
    from qfuse.tools.bench import gemm, static
    from qfuse.tools.bench.cases import parse_cases, parse_rows

    gpu, rows = find_gpu(args.target), parse_rows(args.m)
    directory = options.cache_dir() / "gpu"
    if args.suite == "gpu-static":
        products = static.parse(args.shapes)
        return static.header(gpu), static.report(products, rows, gpu, directory)
    measured = gemm.run(gpu, parse_cases(args.shapes), rows, directory, chain=not args.no_chain)
    return next(measured), measured


def _bench_moe(args: argparse.Namespace) -> tuple[dict[str, Any], Iterable[dict[str, Any]]]:
    """Header and rows of cpu-moe and gpu-moe."""
    from qfuse.compiler import options
    from qfuse.lowering.triton.gpu import find_gpu
    from qfuse.tools.bench import cpu_moe, gpu_moe, moe
    from qfuse.tools.bench.cases import parse_rows

    cases, tokens = moe.parse_experts(args.shapes), parse_rows(args.m, moe.TOKENS)
    if args.suite == "cpu-moe":
        measured = cpu_moe.run(cases, tokens, args.experts)
    else:
        gpu, directory = find_gpu(args.target), options.cache_dir() / "gpu"
        measured = gpu_moe.run(gpu, cases, tokens, args.experts, directory)
    return next(measured), measured


def _tune(args: argparse.Namespace) -> int:
    if args.table is None and not args.check:
        raise QfuseError("name the table to write with --table")
    return _tune_cpu(args) if args.target == "cpu" else _tune_gpu(args)


def _tune_cpu(args: argparse.Namespace) -> int:
    import torch

    from qfuse.compiler import load, options
    from qfuse.lowering.cpu.entry_table import Table, read_table, signature
    from qfuse.lowering.table_file import difference
    from qfuse.tools import cpu_tune, cpu_tune_calls
    from qfuse.tools.bench.cases import parse_rows
    from qfuse.tools.bench.cpu_linear import ROWS, parse_shapes
    from qfuse.tools.bench.cpu_report import Kernels
    from qfuse.tools.bench.cpu_schemes import parse_schemes
    from qfuse.tools.files import check_writable, write_text

    rows, threads = parse_rows(args.m, ROWS), torch.get_num_threads()
    kernels = Kernels(options.CompileOptions.make("cpu"), threads)
    if args.model is not None:
        if args.shapes or args.only:
            raise QfuseError("--model has shapes and schemes of its own")
        subjects, plain = cpu_tune.of_program(load(args.model).program), []
    else:
        shapes, names = (
            parse_shapes(args.shapes),
            [name.strip() for name in (args.only or "").split(",")],
        )
        plain = cpu_tune_calls.parse(names, shapes)
        quantized = [name for name in names if name not in cpu_tune_calls.SCHEMES]
        schemes = parse_schemes(",".join(quantized)) if quantized else []
        subjects = cpu_tune.of_schemes(shapes, schemes, kernels)
    table = Table(signature(threads))
    if args.table is not None:
        check_writable(args.table)
        if args.table.exists():
            old = read_table(args.table)
            if why := difference(old.signature, table.signature):
                raise QfuseError(f"{args.table} cannot be added to: {why}; name another file")
            table = old
    outcomes, start = [], time.monotonic()
    for outcome in cpu_tune.tune(subjects, rows, threads, cpu_tune.on_this_machine, args.seconds):
        outcomes.append(outcome)
        table = cpu_tune.merged(table, outcome)
        if args.table is not None:  # after each, so that what was found is kept
            write_text(args.table, json.dumps(table.to_json(), indent=1) + "\n")
        print(cpu_tune.line(outcome), file=sys.stderr if args.json else sys.stdout, flush=True)
    calls = []
    for call in cpu_tune_calls.tune(plain, rows, threads, cpu_tune.on_this_machine, kernels):
        calls.append(call)
        table = table.with_call(call)
        if args.table is not None:
            write_text(args.table, json.dumps(table.to_json(), indent=1) + "\n")
        print(cpu_tune_calls.line(call), file=sys.stderr if args.json else sys.stdout, flush=True)
        if time.monotonic() - start > args.seconds:
            break
    stopped = time.monotonic() - start > args.seconds
    if args.json:
        found = [outcome.to_json() for outcome in outcomes]
        data = {
            "signature": signature(threads),
            "outcomes": found,
            "calls": [call.to_json() for call in calls],
            "stopped": stopped,
        }
        print(json.dumps(data))
        return 0
    if outcomes:
        print(cpu_tune.summary(outcomes))
    if stopped:
        print(f"stopped after {args.seconds} s; name fewer, or give it more --seconds")
    if args.table is not None:
        gains = sum(outcome.gains for outcome in outcomes)
        faster = sum(call.theirs < call.ours for call in calls)
        of_torch = f", torch faster in {faster} of {len(calls)}" if calls else ""
        use = f"set QFUSE_CPU_TABLE={args.table} to use it"
        print(f"{args.table}: {gains} gained{of_torch}; {use}")
    return 0


def _tune_gpu(args: argparse.Namespace) -> int:
    from qfuse.compiler import options
    from qfuse.lowering.triton.gpu import find_gpu
    from qfuse.lowering.triton.launcher import LoadedGpuKernel
    from qfuse.tools import tune
    from qfuse.tools.bench.cases import parse_cases, parse_rows
    from qfuse.tools.bench.gemm import open_machine
    from qfuse.tools.bench.row_cases import parse_schemes
    from qfuse.tools.files import check_writable, write_text

    if args.check or args.model:
        raise QfuseError("--check and --model are for --target cpu")
    gpu, rows = find_gpu(args.target), parse_rows(args.m)
    cases = parse_schemes(args.only, parse_cases(args.shapes))
    check_writable(args.table)
    table = tune.open_table(args.table)
    machine, about = open_machine(gpu)
    table = tune.signed(table, args.table, {name: about[name] for name in tune.SIGNED})
    known = {name: about[name] for name in ("gpu", "date", "torch", "triton")}
    measure = tune.GpuMeasure(gpu, machine, LoadedGpuKernel, options.cache_dir() / "gpu")
    outcomes = []
    for outcome in tune.tune(cases, rows, gpu, measure, known, args.most, measure.call):
        outcomes.append(outcome)
        table = tune.merged(table, [outcome], gpu)
        # After each, so that what was found is kept if a later one fails.
        write_text(args.table, json.dumps(table.to_json(), indent=1) + "\n")
        print(tune.line(outcome), file=sys.stderr if args.json else sys.stdout, flush=True)
    gains = [outcome.gain for outcome in outcomes if outcome.entry is not None]
    if args.json:
        print(json.dumps({**about, "outcomes": [outcome.to_json() for outcome in outcomes]}))
    else:
        print(
            f"{args.table}: {len(gains)} of {len(outcomes)} ranges gained"
            + (f", {max(gains):.2f} times at most" if gains else "")
            + f"; set QFUSE_TILE_TABLE={args.table} to use it"
        )
    return 0


def _announced(args: argparse.Namespace, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows; each that was measured is announced on stderr, for a run takes minutes."""
    from qfuse.tools.bench import cpu_compile, cpu_report, gemm, moe_suite

    lines = {"gpu-gemm": gemm.line, "cpu-moe": moe_suite.line, "gpu-moe": moe_suite.line}
    lines |= dict.fromkeys(_CPU, cpu_report.line) | {"cpu-compile": cpu_compile.line}
    found = []
    for row in rows:
        found.append(row)
        if args.suite in lines:
            print(lines[args.suite](row), file=sys.stderr, flush=True)
    return found


def _finish(args: argparse.Namespace, data: dict[str, Any]) -> None:
    text = json.dumps(data)
    if args.json:
        print(text)
    if args.output is not None:
        from qfuse.tools.files import write_text

        write_text(args.output, text + "\n")
