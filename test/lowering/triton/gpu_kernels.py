"""What the tests of GPU kernels share: kernels as text, running them on numpy, references."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from unittest.mock import patch

import numpy as np

from qfuse.dialects import tt
from qfuse.dialects.activations import build_glu, build_rounding
from qfuse.dialects.bindings import arith, func, ir
from qfuse.dialects.glu import Glu
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import STORAGE_MAX, Scheme, Shaped
from qfuse.dialects.verify import DYNAMIC
from qfuse.lowering.triton import gemm, group_combine, group_gemm
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.group_tiles import Choice
from qfuse.lowering.triton.interpreter import Buffer
from qfuse.lowering.triton.interpreter import run as interpret
from qfuse.lowering.triton.interpreter.types import DTYPES
from qfuse.lowering.triton.kernel import PARTS, Launch, Parameter, TritonKernel
from qfuse.lowering.triton.lower import lower_kernel
from qfuse.lowering.triton.product import Product
from qfuse.lowering.triton.signature import SCRATCH
from qfuse.lowering.triton.tiles import Config

Array = np.ndarray
Quantized = tuple[Array, Array]
Value = Array | tuple[Array, ...]
"""A plain tensor, or stored elements with their scales and, if there are any, zero points."""


def plain(*shape: int, dtype: str = "bf16") -> Shaped:
    """A tensor type; -1 is a dynamic extent."""
    return Shaped(tuple(DYNAMIC if d < 0 else d for d in shape), dtype)


def quantized(
    *shape: int,
    block: tuple[int, int] = (1, 128),
    dtype: str = "f8E4M3FN",
    scale: str = "f32",
    layout: str = "row_major",
) -> Shaped:
    scheme = Scheme(block, scale, scale_layout=layout)
    return Shaped(plain(*shape).shape, dtype, scheme)


FIELDS = {"rms_norm": 5, "glu": 3}
"""Operations with optional operands, and how many they may have."""


def kernel_text(
    op: str,
    operands: Sequence[Shaped],
    results: Sequence[Shaped],
    attributes: str = "",
    region: str = "",
) -> str:
    """An outlined kernel: one operation on all arguments, returning all results.

    Norms and GLUs have no scales among their operands, unless `attributes` say so.
    """
    if op in FIELDS and "operandSegmentSizes" not in attributes:
        present = [i < len(operands) for i in range(FIELDS[op])]
        attributes += ", " + segment_sizes("operand", present)
    args = ", ".join(f"%a{i}: {t}" for i, t in enumerate(operands))
    names = ", ".join(f"%a{i}" for i in range(len(operands)))
    outs = ", ".join(f"%r{i}" for i in range(len(results)))
    ins, types = (", ".join(map(str, ts)) for ts in (operands, results))
    body = f" ({{\n{region}\n}})" if region else ""
    return (
        f"func.func private @k({args}) -> ({types}) attributes {{qfuse.kernel}} {{\n"
        f'  {outs} = "qfuse.{op}"({names}){body} {{{attributes}}} : ({ins}) -> ({types})\n'
        f"  return {outs} : {types}\n}}\n"
    )


def segment_sizes(kind: str, present: Sequence[bool]) -> str:
    return f"{kind}SegmentSizes = array<i32: {', '.join(str(int(p)) for p in present)}>"


def matmul_text(
    x: Shaped,
    w: Shaped,
    results: Sequence[Shaped],
    body: str = "",
    yields: Sequence[str] = ("%acc0",),
    extra: Sequence[tuple[Shaped, str]] = (),
    parts: Sequence[int] = (),
    routing: Sequence[Shaped] = (),
) -> str:
    """A product; the region's arguments are %acc0.. and %e0.., `body` is what it computes.

    With `routing`, the indptr and possibly tokens, it is one by the weights of experts.
    """
    parts = parts or [w.shape[-2]]
    arguments = [f"%acc{i}: f32" for i in range(len(parts))]
    arguments += [f"%e{i}: f32" for i in range(len(extra))]
    types = ", ".join(["f32"] * len(yields))
    region = (
        f"^bb0({', '.join(arguments)}):\n{body}\n"
        f'"qfuse.yield"({", ".join(yields)}) : ({types}) -> ()'
    )
    maps = ", ".join(f'"{m}"' for _, m in extra)
    attributes = (
        f"parts = array<i64: {', '.join(map(str, parts))}>, maps = [{maps}], "
        + segment_sizes(
            "operand",
            [True] * (2 + len(routing))
            + [False] * (len(routing) == 1)
            + [True] * len(extra)
            + [False] * (6 - len(extra)),
        )
        + ", "
        + segment_sizes("result", [True] * len(results) + [False] * (4 - len(results)))
    )
    operands = [x, w, *routing, *(t for t, _ in extra)]
    name = "group_matmul" if routing else "matmul"
    return kernel_text(name, operands, results, attributes, region)


SILU_GLU = """
%one = arith.constant 1.0 : f32
%n = arith.negf %acc0 : f32
%e = math.exp %n : f32
%d = arith.addf %one, %e : f32
%s = arith.divf %acc0, %d : f32
%v = arith.mulf %s, %acc1 : f32
"""
"""silu(gate) * up, as %v."""


def biased_glu(glu: Glu, dtype: str = "bf16") -> str:
    """`glu` of %acc0 + %e0 and %acc1 + %e1, every step rounded to `dtype`, as %v."""
    with ir.Context(), ir.Location.unknown():
        module = ir.Module.create()
        with ir.InsertionPoint(module.body):
            types = [ir.F32Type.get()] * 4
            source = ir.Operation.create("builtin.unrealized_conversion_cast", results=types)
            sums, terms = source.results[:2], source.results[2:]
            rounded = (build_rounding(total, dtype) for total in sums)
            biased = (arith.addf(*both) for both in zip(rounded, terms, strict=True))
            made = build_glu(glu, *(build_rounding(value, dtype) for value in biased), dtype)
        _, *operations = map(str, module.body.operations)
        text = "\n".join(operations)
        for argument, name in zip(source.results, ("%acc0", "%acc1", "%e0", "%e1"), strict=True):
            text = text.replace(argument.get_name(), name)
        return text.replace(f"{made.get_name()} =", "%v =")


@contextmanager
def parsed(text: str) -> Iterator[func.FuncOp]:
    """The first function of a module, alive as long as the context manager."""
    with ir.Context(), ir.Location.unknown():
        load_all()
        tt.load()
        module = ir.Module.parse(text)
        yield next(iter(module.body.operations))


@lru_cache(maxsize=256)
def lowered(text: str, target: str = "cuda:sm_90") -> TritonKernel:
    with parsed(text) as function:
        return lower_kernel(function, find_gpu(target))


@contextmanager
def forced(config: Config, last_m: int | None = None) -> Iterator[None]:
    """All products that are lowered here are cut as `config` says, for up to `last_m` rows."""
    lowered.cache_clear()

    def for_groups(product: Product, *_: object) -> list[Choice]:
        return [(1, last_m, (config,) * len(product.groups))]

    with (
        patch.object(gemm, "choose_configs", lambda *_: [(1, last_m, config)]),
        patch.object(group_gemm, "choose_group_configs", for_groups),
        patch.object(group_combine, "choose_group_configs", for_groups),
    ):
        yield
    lowered.cache_clear()


def run(
    text: str,
    operands: Sequence[Value],
    results: Sequence[Shaped],
    m: int,
    target: str = "cuda:sm_90",
    programs: int | None = None,
    **options: Any,
) -> list[Value]:
    """Run the launches that serve `m` rows; every element of the results must be written.

    `programs` and the options are those of `run_launch`.
    """
    made: list[Value] = []
    for i, buffers in enumerate(execute(text, operands, results, m, target, programs, **options)):
        for buffer in buffers:
            assert buffer.missing == 0, f"result {i}: {buffer.missing} elements unwritten"
        arrays = tuple(buffer.array for buffer in buffers)
        made.append(arrays if results[i].quantized else arrays[0])
    return made


def execute(
    text: str,
    operands: Sequence[Value],
    results: Sequence[Shaped],
    m: int,
    target: str = "cuda:sm_90",
    programs: int | None = None,
    **options: Any,
) -> list[list[Buffer]]:
    """As `run`: the memory of each result, with its scales after it."""
    kernel = lowered(text, target)
    variant = kernel.variant(m)
    memory: dict[tuple[str, int, str], Array | Buffer] = {}
    for i, operand in enumerate(operands):
        tensors = operand if isinstance(operand, tuple) else (operand,)
        for part, tensor in zip(PARTS, tensors, strict=False):
            memory["operand", i, part] = tensor
    for i, result in enumerate(results):
        shape = (m, result.shape[-1]) if len(result.shape) > 1 else result.shape
        memory["result", i, "data"] = Buffer(shape, result.dtype)
        if result.scheme is not None:
            element = "i8" if result.scheme.scale == "f8E8M0FNU" else result.scheme.scale
            memory["result", i, "scale"] = Buffer(scale_shape(result, m), element)
    dtypes = {pointees(x)[SCRATCH] for x in variant.launches if SCRATCH in x.parameters} or {"f32"}
    (dtype,) = dtypes  # the launches share it
    scratch = variant.scratch_per_row * m // DTYPES[dtype].itemsize
    memory["scratch", 0, "data"] = Buffer(max(scratch, 1), dtype)
    counters = memory["counter", 0, "data"] = np.zeros(variant.counter_bytes // 4, np.int32)
    for launch in variant.launches:
        run_launch(launch, memory, m, target, programs, **options)
        assert not counters.any(), f"{launch.name} leaves counters that are not zero"
    made = []
    for i, result in enumerate(results):
        parts = ("data", "scale") if result.quantized else ("data",)
        buffers = [memory["result", i, part] for part in parts]
        made.append([buffer for buffer in buffers if isinstance(buffer, Buffer)])
    return made


def pointees(launch: Launch) -> dict[Parameter, str]:
    """The element type of each parameter of a launch."""
    (arguments,) = re.findall(r"function_type = \(([^)]*)\)", launch.text)
    types = re.findall(r"!tt.ptr<(\w+)>", arguments)
    return dict(zip(launch.parameters, types, strict=True))


def run_launch(
    launch: Launch,
    memory: dict[tuple[str, int, str], Array | Buffer],
    m: int,
    target: str,
    programs: int | None = None,
    edit: Callable[[str], str] = str,
    **options: Any,
) -> None:
    """Interpret one launch; `programs` lowers the number of those that loop over tiles.

    `edit` changes its text; the other options are those of the interpreter.
    """
    x, y, z = launch.grid.of(m)
    if programs is not None and launch.grid.at_most is not None:
        x = min(x, programs)
    arguments = [memory[p.source, p.index, p.part] for p in launch.parameters]
    text = edit(launch.text)
    interpret(text, launch.name, [*arguments, m], (x, y, z), target=target, **options)


def scale_shape(value: Shaped, m: int) -> tuple[int, int]:
    """Shape of the scales of m rows, as they lie in memory."""
    assert value.scheme is not None
    rows, group = value.scheme.block
    shape = (-(-m // rows), -(-value.shape[-1] // group) * value.scheme.numbers)
    return shape if value.scheme.scale_layout == "row_major" else shape[::-1]


def random(shape: Sequence[int], dtype: str, seed: int, scale: float = 1.0) -> Array:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return np.asarray(values, np.float32).astype(DTYPES[dtype])


def random_codes(value: Shaped, rows: int, seed: int) -> Quantized:
    """Codes of all magnitudes, and scales between 0.5 and 1.5."""
    assert value.scheme is not None
    generator = np.random.default_rng(seed)
    shape = (rows, value.shape[-1])
    if value.dtype == "i8":
        codes = generator.integers(-127, 128, shape).astype(np.int8)
    else:
        codes = (generator.standard_normal(shape) * 8).astype(DTYPES[value.dtype])
    scales = generator.uniform(0.5, 1.5, scale_shape(value, rows))
    return codes, scales.astype(DTYPES[value.scheme.scale])


def dequantized(codes: Quantized, value: Shaped) -> Array:
    """The f64 values of a quantized matrix."""
    assert value.scheme is not None
    data, scale = codes
    scale = scale.astype(np.float64)
    if value.scheme.scale_layout == "col_major":
        scale = scale.T
    rows, group = value.scheme.block
    scale = np.repeat(np.repeat(scale, rows, 0), group, 1)
    return data.astype(np.float64) * scale[: data.shape[0], : data.shape[1]]


def product(x: Shaped, w: Shaped, m: int, seed: int = 0) -> tuple[list[Value], Array]:
    """Random operands of a product of m rows, and its f64 values."""
    made: list[Value] = []
    values = []
    for i, (value, rows) in enumerate(((x, m), (w, w.shape[0]))):
        if value.quantized:
            codes = random_codes(value, rows, seed + i)
            made.append(codes)
            values.append(dequantized(codes, value))
        else:
            data = random((rows, value.shape[1]), value.dtype, seed + i)
            made.append(data)
            values.append(data.astype(np.float64))
    return made, values[0] @ values[1].T


def quantize(values: Array, result: Shaped) -> Quantized:
    """Codes and scales of f32 values as `qfuse.quantize` says, in its own operations."""
    assert result.scheme is not None
    m, n = values.shape
    group = min(result.scheme.block[1], n)
    padded = np.zeros((m, -(-n // group) * group), np.float32)
    padded[:, :n] = values
    blocks = padded.reshape(m, -1, group)
    amax = np.maximum(np.abs(blocks).max(2), np.float32(1e-10))
    largest = np.float32(STORAGE_MAX[result.dtype])
    scale = (amax / largest).astype(DTYPES[result.scheme.scale])
    codes = (blocks * (largest / amax)[:, :, None]).reshape(m, -1)[:, :n]
    if result.dtype == "i8":
        return np.rint(codes).astype(np.int8), scale
    return np.clip(codes, -largest, largest).astype(DTYPES[result.dtype]), scale


def silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # to infinity, which is right
        return x / (1 + np.exp(-x))


def assert_close(actual: Array, expected: Array, dtype: str) -> None:
    """Equal up to one rounding to `dtype` and the order of f32 sums."""
    steps = {"f32": 2e-5, "f16": 1e-3, "bf16": 8e-3}[dtype]
    actual = actual.astype(np.float64)
    limit = steps * (np.abs(expected) + np.abs(expected).mean())
    worst = np.abs(actual - expected) - limit
    assert (worst <= 0).all(), f"off by {np.abs(actual - expected).max()} at {worst.argmax()}"


def assert_quantized(actual: Value, values: Array, result: Shaped) -> None:
    """Codes and scales are those of `values`, but for what the order of f32 sums may change."""
    assert isinstance(actual, tuple)
    _, scale = quantize(values.astype(np.float32), result)
    assert result.scheme is not None
    made = actual[1] if result.scheme.scale_layout == "row_major" else actual[1].T
    np.testing.assert_allclose(made.astype(np.float64), scale.astype(np.float64), rtol=2e-2)
    back = dequantized(actual, result)
    group = min(result.scheme.block[1], values.shape[1])
    amax = np.repeat(scale.astype(np.float64), group, 1)[:, : values.shape[1]]
    largest = STORAGE_MAX[result.dtype]
    step = np.where(result.dtype == "i8", amax, np.maximum(np.abs(values) / 14, amax * 2.0**-8))
    assert (np.abs(back - values) <= step + 2e-2 * amax * largest / 448).all()
