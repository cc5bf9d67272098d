"""Each fusion fires, changes no bit, and leaves the program close to its definition in f64."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from programs import ACTIVATIONS, ROWS, TORCH, Program, Value

from qfuse.dialects.glu import SWIGLU_OAI, Glu
from qfuse.dialects.types import Shaped
from qfuse.dialects.verify import DYNAMIC

pytestmark = pytest.mark.quick_level

some = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,  # the same programs in every run: their kernels are compiled once
    suppress_health_check=[HealthCheck.too_slow],
)
dtypes = st.sampled_from(["bf16", "f16", "f32"])
acts = st.sampled_from(sorted(ACTIVATIONS))
glus = st.one_of(
    acts.map(Glu),
    st.builds(Glu, acts, limit=st.sampled_from([0.5, 1.3])),
    st.builds(
        Glu, st.just(SWIGLU_OAI), st.sampled_from([0.7, math.inf]), st.sampled_from([1.702, 1.2])
    ),
)
widths = st.sampled_from([40, 130, 256])
depths = st.sampled_from([72, 200])
seeds = st.integers(0, 2**20)
ranks = st.sampled_from([(-1,), (1, -1), (2, -1)])


def check(
    program: Program,
    outputs: Sequence[Value],
    fusions: Sequence[str],
    fired: dict[str, int],
    kernels: int | None = None,
    rows: Sequence[int] = ROWS,
    growth: float = 1.0,
) -> None:
    """Compile with `fusions` and without any; compare remarks, launches, bits and the reference.

    `fired` counts the patterns of these fusions that must have fired, `kernels` the launches of
    the fused program.  `growth` bounds what the operations multiply a relative error by.
    """
    fused, unfused = program.compile(outputs, fusions), program.compile(outputs, ())
    remarks = [r for r in fused.program.report["remarks"] if r["outcome"] == "fired"]
    before = [r for r in unfused.program.report["remarks"] if r["outcome"] == "fired"]
    counts = Counter(r["pattern"] for r in remarks) - Counter(r["pattern"] for r in before)
    assert counts == Counter(fired), fused.program.report["remarks"]
    if kernels is not None:
        assert len(fused.program.plan.steps) == kernels
    for m in rows:
        inputs = program.inputs(m)
        got, plain = fused(*inputs), unfused(*inputs)
        wanted = program.reference(outputs, inputs)
        for a, b, reference in zip(got, plain, wanted, strict=True):
            assert a.shape == reference.shape
            assert same_bits(a, b), f"M = {m}: fused and unfused differ"
            assert relative_error(a, reference) <= growth * tolerance(program)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


def relative_error(a: torch.Tensor, reference: torch.Tensor) -> float:
    """In the Frobenius norm, so that it does not depend on single values near zero.

    Where both are the same infinity, or NaN, there is no error.
    """
    a = a.double()
    same = (a == reference) | (a.isnan() & reference.isnan())
    error = (a - reference).masked_fill(same, 0.0).norm().item()
    norm = reference[reference.isfinite()].norm().item()
    return error / norm if norm else error


def tolerance(program: Program) -> float:
    """How far a right program may be from the reference.

    Sums in f32 differ from those in f64 by up to e = 2^-20 here, which flips a rounding to the
    program's type now and then: by one ulp, 2u of a value.  At most a handful of roundings follow
    each other, so 8u bounds the norm even if all of them flipped.  Before a quantization, a
    difference also moves an FP8 code to its neighbour, 2^-3 of a value, where a value lies as
    close to the middle of two codes as the difference is large.  These are a part of about
    max(u, e) / 2^-4 of the values, so each quantization adds 2^-3 * sqrt(16 max(u, e)) at most.
    """
    u = torch.finfo(TORCH[program.dtype]).eps / 2
    return 8 * u + program.quantizations * 0.125 * (16 * max(u, 2**-20)) ** 0.5


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[str, bool]]:
    """Element-wise operations after a product, at most six with an operand, and on which side."""
    kinds = ["bias", "bias32", "residual", "factor", "column", "scalar", "one", *ACTIVATIONS]
    return draw(st.lists(st.tuples(st.sampled_from(kinds), st.booleans()), min_size=1, max_size=6))


@some
@given(chains(), dtypes, ranks, widths, depths, st.booleans(), seeds)
def test_epilogue(chain, dtype, rank, n, k, quantize, seed):
    program = Program(dtype, seed)
    x, w = program.input(*rank, k), program.weight(n, k)
    y = program.matmul(x, w, quantize=quantize)
    fired: list[str] = []
    last, has_residual = "", False
    for kind, left in chain:
        if kind in ACTIVATIONS:
            y = program.activate(kind, y)
            fired.append("residual-unary" if has_residual else "activation")
            last = kind
            continue
        other = _operand(program, kind, y.type)
        out = Shaped(y.type.shape, "f32" if other.type.dtype == "f32" else y.type.dtype)
        operands = (other, y) if left else (y, other)
        has_residual |= kind in VARYING
        if last in ACTIVATIONS and kind == "factor" and other.type == y.type:
            fired[-1] = "glu"  # the import reads act(y) * other as one
        else:
            fired.append("residual-binary" if kind in VARYING else "bias")
        y = (program.add if kind in ADDED else program.mul)(*operands, out)
        last = kind
    counts = Counter(f"epilogue-{name}" for name in fired)
    check(program, [y], ["epilogue"], dict(counts), kernels=1 + quantize)


ADDED = ("bias", "bias32", "residual")
VARYING = ("residual", "factor", "column")
"""Operands that differ from row to row."""


def _operand(program: Program, kind: str, y: Shaped) -> Value:
    """The other operand, of a shape that joins."""
    n = y.shape[-1]
    rows = tuple(-1 if d == DYNAMIC else d for d in y.rows)
    return {
        "bias": lambda: program.parameter(n),
        "bias32": lambda: program.parameter(n, dtype="f32"),
        "residual": lambda: program.input(*rows, n),
        "factor": lambda: program.input(*rows, n),
        "column": lambda: program.input(*rows, 1, dtype="f32"),
        "scalar": lambda: program.input(dtype="f32"),
        "one": lambda: program.parameter(1),
    }[kind]()


@some
@given(glus, dtypes, ranks, widths, depths, st.booleans(), seeds)
def test_gate_up(glu, dtype, rank, n, k, shared, seed):
    program = Program(dtype, seed)
    x = program.input(*rank, k)
    source = program.quantize(x) if shared else x
    gate, up = (program.matmul(source, program.weight(n, k)) for _ in range(2))
    outputs = [program.glu(glu, gate, up)]
    if shared:  # the input may have other readers
        outputs.append(program.dequantize(source))
    check(program, outputs, ["gate-up"], {"gate-up": 1}, kernels=3 if shared else 1)


@settings(some, max_examples=4)
@given(
    glus,
    dtypes,
    widths,
    st.sampled_from(["gate", "up", "both"]),
    st.tuples(st.booleans(), st.booleans()),
    st.booleans(),
    seeds,
)
def test_gate_up_with_biases(glu, dtype, n, biased, on_the_left, wide, seed):
    """One pass merges biases of both sides; for one of one side it takes three."""
    program = Program(dtype, seed)
    x, sides = program.input(-1, 72), []
    weights = [program.weight(n, 72) for _ in range(2)]
    for name, w, left in zip(("gate", "up"), weights, on_the_left, strict=True):
        y = program.matmul(x, w, dtype="f32" if wide else dtype)
        if biased in (name, "both"):
            bias = program.parameter(n, dtype=y.type.dtype)
            y = program.add(*((bias, y) if left else (y, bias)), y.type)
        sides.append(y)
    if biased == "both":
        fusions, fired = ["gate-up"], {"gate-up": 1}
    else:
        fusions = ["gate-up", "qkv", "epilogue"]
        fired = {"siblings": 1, "epilogue-bias": 1, "epilogue-glu": 1}
    check(program, [program.glu(glu, *sides)], fusions, fired, kernels=1)


@some
@given(glus, dtypes, ranks, widths, st.sampled_from(["gate", "up", "both"]), seeds)
def test_glu_of_one_product(glu, dtype, rank, n, side, seed):
    """Where gate and up are not merged, the GLU joins one of them."""
    program = Program(dtype, seed)
    x = program.input(*rank, 72)
    gate, up = (
        program.matmul(x, program.weight(n, 72))
        if side in (name, "both")
        else program.input(*rank, n)
        for name in ("gate", "up")
    )
    y = program.glu(glu, gate, up)
    check(program, [y], ["epilogue"], {"epilogue-glu": 1}, kernels=1 + (side == "both"))


@some
@given(st.lists(widths, min_size=2, max_size=6), dtypes, ranks, depths, st.booleans(), seeds)
def test_qkv(parts, dtype, rank, k, quantize, seed):
    program = Program(dtype, seed)
    x = program.input(*rank, k)
    weights = [program.weight(n, k) for n in parts]
    outputs = [program.matmul(x, w, quantize=quantize) for w in weights]
    groups = -(-len(parts) // 4)
    merged = groups - (len(parts) % 4 == 1)
    check(program, outputs, ["qkv"], {"siblings": merged}, kernels=groups + quantize)


@some
@given(
    dtypes,
    st.sampled_from([(1, 1), (2, 2), (2, 1)]),
    st.sampled_from([1, 3]),
    st.sampled_from([6, 64, 80]),
    st.tuples(st.booleans(), st.booleans()),
    seeds,
)
def test_rope(dtype, batches, heads, width, swaps, seed):
    batch, tables = batches
    program = Program(dtype, seed)
    x = program.input(batch, -1, heads, width)
    cos, sin = (program.input(tables, -1, width) for _ in range(2))
    y = _write_rope(program, x, cos, sin, swaps)
    # of the torch operations, only the transposes are left
    check(program, [y], ["rope"], {"rope": 1}, kernels=3)


def _write_rope(
    program: Program, x: Value, cos: Value, sin: Value, swaps: tuple[bool, bool]
) -> Value:
    """x * cos + rotate_half(x) * sin on [B, H, T, D], as transformers models trace it.

    Transposed again at the end, where models have their attention.
    """
    batch, _, heads, width = x.type.shape
    dtype, half = x.type.dtype, width // 2

    def vt(*shape: int | str) -> str:
        return f"!torch.vtensor<[{','.join(map(str, shape))}],{dtype}>"

    full, halves = vt(batch, heads, "?", width), vt(batch, heads, "?", half)
    integer = "!torch.int"
    for name, value in (("i0", 0), ("i1", 1), ("i2", 2), ("i3", 3), ("ih", half), ("ie", 2**62)):
        program.raw(f"%{name} = torch.constant.int {value}")
    program.raw("%im1 = torch.constant.int -1")
    for v, name in ((x, "x"), (cos, "c"), (sin, "s")):
        shape = ["?" if d == DYNAMIC else d for d in v.type.shape]
        program.raw(f"%t{name} = torch_c.from_builtin_tensor %{v.name} : {v.type} -> {vt(*shape)}")
    program.raw(
        f"%t = torch.aten.transpose.int %tx, %i1, %i2 : {vt(batch, '?', heads, width)}, "
        f"{integer}, {integer} -> {full}"
    )
    for name in ("c", "s"):
        rows = cos.type.shape[0]
        program.raw(
            f"%u{name} = torch.aten.unsqueeze %t{name}, %i1 : {vt(rows, '?', width)}, {integer} "
            f"-> {vt(rows, 1, '?', width)}"
        )
    for name, start, end in (("lo", "i0", "ih"), ("hi", "ih", "ie")):
        program.raw(
            f"%{name} = torch.aten.slice.Tensor %t, %i3, %{start}, %{end}, %i1 : {full}, "
            f"{integer}, {integer}, {integer}, {integer} -> {halves}"
        )
    program.raw(f"%n = torch.aten.neg %hi : {halves} -> {halves}")
    program.raw(
        f"%l = torch.prim.ListConstruct %n, %lo : ({halves}, {halves}) -> !torch.list<vtensor>"
    )
    program.raw(f"%r = torch.aten.cat %l, %im1 : !torch.list<vtensor>, {integer} -> {full}")
    table = vt(cos.type.shape[0], 1, "?", width)
    for name, a, b, swap in (("m0", "t", "uc", swaps[0]), ("m1", "r", "us", swaps[1])):
        (a, ta), (b, tb) = ((b, table), (a, full)) if swap else ((a, full), (b, table))
        program.raw(f"%{name} = torch.aten.mul.Tensor %{a}, %{b} : {ta}, {tb} -> {full}")
    program.raw(f"%y = torch.aten.add.Tensor %m0, %m1, %i1 : {full}, {full}, {integer} -> {full}")
    program.raw(
        f"%z = torch.aten.transpose.int %y, %i1, %i2 : {full}, {integer}, {integer} "
        f"-> {vt(batch, '?', heads, width)}"
    )
    program.raw(f"%out = torch_c.to_builtin_tensor %z : {vt(batch, '?', heads, width)} -> {x.type}")

    def compute(v: torch.Tensor, c: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        t = v.transpose(1, 2)
        turned = torch.cat([-t[..., half:], t[..., :half]], -1)
        parts = [(p * q.unsqueeze(1)).to(TORCH[dtype]).double() for p, q in ((t, c), (turned, s))]
        return (parts[0] + parts[1]).to(TORCH[dtype]).double().transpose(1, 2)

    return program.define("out", x.type, compute, x, cos, sin)


@some
@given(
    dtypes,
    ranks,
    st.sampled_from([72, 200, 256]),
    st.sampled_from([128, 256]),
    st.sampled_from([("before", 0.0), ("after", 1.0)]),
    st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    seeds,
)
def test_norm_quantize(dtype, rank, width, group, kind, choices, seed):
    residual, keeps_value, keeps_residual, quantizes = choices
    program = Program(dtype, seed)
    x, weight = program.input(*rank, width), program.parameter(width)
    outputs, fired = [], {}
    h = x
    if residual or not quantizes:
        h = program.add(x, program.input(*rank, width), x.type)
        fired["norm-residual"] = 1
        if keeps_residual:
            outputs.append(h)
    y = program.rms_norm(h, weight, rounding=kind[0], offset=kind[1])
    launches = 1
    if quantizes:
        outputs.append(program.dequantize(program.quantize(y, group)))
        fired["norm-quantize"] = 1
        launches += 1
    if keeps_value or not quantizes:
        outputs.append(y)
    check(program, outputs, ["norm-quantize"], fired, launches)


def _glu_of_inputs(program: Program, glu: Glu, rank: Sequence[int], n: int) -> Value:
    return program.glu(glu, program.input(*rank, n), program.input(*rank, n))


def _activated_product(program: Program, act: str, rank: Sequence[int], n: int) -> Value:
    y = program.matmul(program.input(*rank, 72), program.weight(n, 72))
    return program.activate(act, y)


def _gated_product(program: Program, glu: Glu, rank: Sequence[int], n: int) -> Value:
    x = program.input(*rank, 72)
    return program.glu(glu, *(program.matmul(x, program.weight(n, 72)) for _ in range(2)))


ACT_SOURCES: dict[Callable[..., Value], tuple[list[str], dict[str, int]]] = {
    _glu_of_inputs: ([], {"glu-quantize": 1}),
    _activated_product: (["epilogue"], {"product-quantize": 1}),
    _gated_product: (["gate-up"], {"product-quantize": 1, "gate-up": 1}),
}


@some
@given(
    st.one_of(
        st.tuples(st.just(_activated_product), acts),
        st.tuples(st.sampled_from([_glu_of_inputs, _gated_product]), glus),
    ),
    dtypes,
    ranks,
    widths,
    st.sampled_from([32, 128]),
    st.booleans(),
    seeds,
)
def test_act_quantize(made, dtype, rank, n, group, keeps_value, seed):
    source, act = made
    program = Program(dtype, seed)
    y = source(program, act, rank, n)
    outputs = [program.dequantize(program.quantize(y, group)), *([y] if keeps_value else [])]
    fusions, fired = ACT_SOURCES[source]
    fired = dict(fired)
    if "epilogue" in fusions:
        fired["epilogue-activation"] = 1
    check(program, outputs, [*fusions, "act-quantize"], fired, kernels=2)


@some
@given(acts, dtypes, widths, seeds)
def test_group_wider_than_a_tile_is_quantized_apart(act, dtype, n, seed):
    """One scale per row: only a row of one tile can be quantized by its product."""
    program = Program(dtype, seed)
    y = _activated_product(program, act, (-1,), n)
    outputs = [program.dequantize(program.quantize(y, n))]
    fired = {"epilogue-activation": 1} | ({"product-quantize": 1} if n <= 128 else {})
    check(program, outputs, ["epilogue", "act-quantize"], fired, kernels=2 + (n > 128))


@settings(some, max_examples=3)
@given(dtypes, ranks, widths, depths, seeds)
def test_products_share_a_quantization(dtype, rank, n, k, seed):
    """By attribute, quantized once, and by operations, the bits are the same."""
    implied, written = Program(dtype, seed), Program(dtype, seed)
    executables = []
    for program in (implied, written):
        x = program.input(*rank, k)
        weights = [program.weight(n, k), program.weight(n + 8, k)]
        if program is implied:
            outputs = [program.matmul(x, w, quantize=True) for w in weights]
        else:
            outputs = [program.matmul(program.quantize(x), w) for w in weights]
        executables.append(program.compile(outputs, ()))
    for executable in executables:
        assert len(executable.program.plan.steps) == 3
    for m in ROWS:
        inputs = implied.inputs(m)
        for a, b in zip(*(e(*inputs) for e in executables), strict=True):
            assert same_bits(a, b)


@settings(some, max_examples=3)  # of fifteen kernels each
@given(glus, dtypes, widths, st.booleans(), seeds)
def test_block_with_everything(glu, dtype, hidden, gemma, seed):
    """A norm, QKV, a residual, a norm and a gated MLP, with all fusions at once."""
    program = Program(dtype, seed)
    kind = {"rounding": "after", "offset": 1.0} if gemma else {}
    x = program.input(1, -1, hidden)
    y = program.rms_norm(x, program.parameter(hidden), **kind)
    weights = [program.weight(n, hidden) for n in (hidden, 40, 40)]
    q, k, v = (program.matmul(y, w, quantize=True) for w in weights)
    o = program.matmul(q, program.weight(hidden, hidden), quantize=True)
    h = program.add(x, o, x.type)
    z = program.rms_norm(h, program.parameter(hidden), **kind)
    gate, up = (program.matmul(z, program.weight(200, hidden), quantize=True) for _ in range(2))
    d = program.matmul(program.glu(glu, gate, up), program.weight(hidden, 200), quantize=True)
    last = program.add(h, d, x.type)
    fired = {
        **{"siblings": 1, "gate-up": 1, "epilogue-residual-binary": 2},
        **{"norm-quantize": 2, "product-quantize": 1},
    }
    every = ("gate-up", "qkv", "epilogue", "norm-quantize", "act-quantize")
    check(program, [last, k, v], every, fired, kernels=7)
