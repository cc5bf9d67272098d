"""What a norm yields is what each backend reads that dispatch chooses, for any number of rows.

Dispatch decides on the type of a product's input.  The norm takes over the quantization that made
that input and its type, so the two cannot disagree; here, for each rule of the table, they do not.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import pytest
from programs import Program, Value

from qfuse.compiler import pipeline
from qfuse.compiler.dispatch.decide import RANGES, Decision, Verdict
from qfuse.compiler.dispatch.rules import LIBRARY, RULES
from qfuse.compiler.passes import dispatch
from qfuse.compiler.passes.convert_to_blas import ConvertToBlas
from qfuse.compiler.passes.dispatch import Dispatch, decisions_for, products
from qfuse.compiler.passes.fuse_norm_quantize import VALUE, formats, outputs
from qfuse.dialects.bindings import ir
from qfuse.dialects.matmul_op import INPUTS
from qfuse.dialects.norm_ops import format_key
from qfuse.dialects.registry import load_all
from qfuse.dialects.types import Scheme, Shaped, shaped
from qfuse.dialects.verify import DYNAMIC

N, K, EXPERTS = 512, 256, 4


@dataclass(frozen=True)
class Sample:
    """A product that reads a norm: stored type and scheme of x and of w, None where plain."""

    x: tuple[str, Scheme] | None
    w: tuple[str, Scheme] | None
    activation: bool = False
    experts: bool = False
    target: str = "cuda:sm_90"


ROW = Scheme((1, K), "f32")
BLOCKS = ("f8E4M3FN", Scheme((1, 128), "f32")), ("f8E4M3FN", Scheme((128, 128), "f32"))
ROWS = (("f8E4M3FN", ROW),) * 2
I8 = (("i8", ROW),) * 2
Q8_1 = ("i8", Scheme((1, 32), "f16", "q8_1"))
INT4 = ("i4", Scheme((1, 32), "f16", "int4"))

SAMPLES = {
    "fp8 in blocks": Sample(*BLOCKS),
    "fp8 in blocks, e8m0": Sample(("f8E4M3FN", Scheme((1, 128), "f8E8M0FNU")), BLOCKS[1]),
    "fp8 in blocks, silu": Sample(*BLOCKS, activation=True),
    "fp8 in blocks, sm_80": Sample(*BLOCKS, target="cuda:sm_80"),
    "fp8 in blocks, hip": Sample(*BLOCKS, target="hip:gfx942"),
    "fp8 in blocks, cpu": Sample(*BLOCKS, target="cpu"),
    "fp8 per row": Sample(*ROWS),
    "fp8 per row, silu": Sample(*ROWS, activation=True),
    "fp8 per row, experts": Sample(*ROWS, experts=True),
    "i8 per row": Sample(*I8),
    "int4 by q8_1": Sample(Q8_1, INT4),
    "int4": Sample(None, INT4),
    "plain": Sample(None, None),
    "plain, silu": Sample(None, None, activation=True),
    "plain, experts": Sample(None, None, experts=True),
    "plain, cpu": Sample(None, None, target="cpu"),
}


@pytest.fixture(autouse=True)
def calls_are_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each rule decides that may: what is estimated is not the subject here."""
    faster = Verdict(True, "faster")
    monkeypatch.setattr(dispatch, "preference_of", lambda *_: lambda *_: faster)


def read_by(p: Program, y: Value, sample: Sample) -> Value:
    """The product of a sample, whose input is made from y."""
    x = y
    if sample.x is not None:
        type_ = Shaped(y.type.shape, *sample.x)
        (x,) = p._op("quantize", [y], [type_], None)
    shape = (EXPERTS, N, K) if sample.experts else (N, K)
    stored = ("bf16",) if sample.w is None else sample.w
    w = Value(f"a{len(p.arguments)}", Shaped(shape, *stored))
    p.arguments.append(type(p.arguments[0])(w, "parameter"))
    others = [p.input(EXPERTS + 1, dtype="i32")] if sample.experts else []
    sizes = [1, 1, *([1, 0] if sample.experts else []), *[0] * 6]
    attributes = (
        f"parts = array<i64: {N}>, maps = [], "
        f"operandSegmentSizes = array<i32: {', '.join(map(str, sizes))}>, "
        "resultSegmentSizes = array<i32: 1, 0, 0, 0>"
    )
    region = '({\n  ^bb0(%acc: f32):\n    "qfuse.yield"(%acc) : (f32) -> ()\n  })'
    name = "group_matmul" if sample.experts else "matmul"
    out = Shaped((DYNAMIC, N), "bf16")
    (z,) = p._op(name, [x, w, *others], [out], None, attributes, region)
    return p.activate("silu", z) if sample.activation else z


def dispatched(*samples: Sample, fuse: bool = True) -> tuple[ir.Module, list[list[Decision]]]:
    """The program of a norm that samples read, after dispatch, and what was decided."""
    p = Program()
    y = p.rms_norm(p.input(-1, K), p.parameter(K))
    text = p.text([read_by(p, y, sample) for sample in samples])
    chosen = Dispatch(samples[0].target, blas="on")
    names = ["qfuse-fuse-epilogue", *(["qfuse-fuse-norm-quantize"] if fuse else [])]
    names += [] if chosen.machine().kind == "cpu" else pipeline.GPU
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(text)
        pipeline.run(module, pipeline.stages_of(names))
        found = [decisions_for(op, chosen.machine())[1] for op in products(module.operation)]
        pipeline.run(module, [pipeline.Stage(s.name, s) for s in (chosen, ConvertToBlas())])
    return module, found


def inside(op: ir.Operation) -> Iterator[ir.Operation]:
    for region in op.regions:
        for block in region.blocks:
            for inner in block.operations:
                yield inner.operation
                yield from inside(inner.operation)


def inputs_of_products(module: ir.Module) -> list[tuple[str, ir.Value]]:
    """The x of every product, by a kernel or by a library, in every range of rows."""
    names = (*INPUTS, "qfuse.library_call")
    return [(op.name, op.operands[0]) for op in inside(module.operation) if op.name in names]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_backend_reads_what_the_norm_yields(name: str) -> None:
    sample = SAMPLES[name]
    module, (decisions,) = dispatched(sample)
    (norm,) = (op for op in inside(module.operation) if op.name == "qfuse.rms_norm")
    assert not any(op.name in ("qfuse.quantize", "qfuse.cast") for op in inside(module.operation))
    yielded = outputs(norm)
    assert len(yielded) == 1
    read = inputs_of_products(module)
    for _, x in read:
        assert x == (yielded[VALUE] if sample.x is None else next(iter(formats(norm).values())))
        if sample.x is not None:
            assert format_key(shaped(x.type)) == format_key(Shaped((DYNAMIC, K), *sample.x))
    # each way that some rows go is there
    assert any(d.backend == LIBRARY for d in decisions) == ("qfuse.library_call" in dict(read))
    assert decisions[0].first_m == 1 and decisions[-1].last_m is None
    for before, after in pairwise(decisions):
        assert after.first_m == before.last_m + 1


@pytest.mark.parametrize("name", SAMPLES)
def test_the_fusion_changes_no_decision(name: str) -> None:
    """For no number of rows: who multiplies, and by which rule."""
    assert dispatched(SAMPLES[name])[1] == dispatched(SAMPLES[name], fuse=False)[1]


def test_every_rule_is_met() -> None:
    """A rule that no sample meets would be one that nobody holds against what norms yield."""
    met = {d.rule for s in SAMPLES.values() for d in dispatched(s)[1][0]}
    assert met == {rule.name for rule in RULES}
    assert {first for first, _ in RANGES} >= {rule.first_m for rule in RULES}


def test_two_formats_of_one_norm() -> None:
    """Each product is dispatched as if it were alone, and reads its own format."""
    names = ("fp8 in blocks", "int4 by q8_1")
    module, together = dispatched(*(SAMPLES[name] for name in names))
    assert together == [dispatched(SAMPLES[name])[1][0] for name in names]
    (norm,) = (op for op in inside(module.operation) if op.name == "qfuse.rms_norm")
    quantized = list(formats(norm).values())
    assert [str(shaped(q.type).scheme.packing) for q in quantized] == ["none", "q8_1"]
    read = {(op, quantized.index(x)) for op, x in inputs_of_products(module)}
    assert read == {("qfuse.library_call", 0), ("qfuse.matmul", 0), ("qfuse.matmul", 1)}
