"""Random programs through the whole pipeline: each pass, and what the compiler makes of them.

Every program runs before and after each pass in the reference interpreter.  Where the CPU has
kernels for it, it is compiled with all fusions and with none: both give the same bits, and lie
within what f32 leaves open of the reference.

200 programs in CI; with QFUSE_NIGHTLY=1, 2,000, each compiled, others every time.
"""

import os
import secrets
from collections.abc import Sequence
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
import torch
from generated_programs import Case, programs
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from qfuse.compiler import pipeline
from qfuse.compiler.compilation import compile_imported
from qfuse.compiler.frontend.imported import Imported
from qfuse.compiler.options import FUSIONS, CompileOptions
from qfuse.compiler.reference import Interpreter, Tensor
from qfuse.compiler.reference.experts import Undecided
from qfuse.compiler.reference.inputs import RandomInputs
from qfuse.compiler.runtime.executable import Executable
from qfuse.compiler.verification import Verification
from qfuse.dialects.bindings import ir
from qfuse.dialects.registry import load_all
from qfuse.lowering.cpu.cpu import missing_flags

NIGHTLY = bool(os.environ.get("QFUSE_NIGHTLY"))
COUNT, PARTS = (2000, 20) if NIGHTLY else (200, 4)
ROWS = (1, 3, 18)
LEVELS = [
    level for level in ("avx2",) * 5 + ("generic", "avx512", "avx512") if not missing_flags(level)
]
"""In turn: most at that whose kernels compile fastest."""

TORCH = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8E4M3FN": torch.float8_e4m3fn,
    "f8E5M2": torch.float8_e5m2,
    "i64": torch.int64,
}


@pytest.mark.parametrize("part", range(PARTS))
def test_programs(part: int) -> None:
    """The same programs in every run of CI, others each night; a part for each process."""
    first = secrets.randbits(32) if NIGHTLY else part

    @hypothesis.seed(first)
    @settings(
        max_examples=COUNT // PARTS,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs(max_steps=5 if NIGHTLY else 3), st.integers(0, 2**16))
    def check(case: Case, seed: int) -> None:
        check_passes(case, seed)
        if case.on_cpu:
            check_compiled(case, seed, LEVELS[seed % len(LEVELS)])

    check()


def check_passes(case: Case, seed: int) -> None:
    """Each pass keeps what the program computes, and the reference executes all of it."""
    names = ["qfuse-expand-quantize", *pipeline.FUSION, *pipeline.GPU, "qfuse-convert-to-cpu"]
    verification = Verification(seed, ROWS, terms=None)
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(case.text)
        assert module.operation.verify()
        pipeline.run(module, pipeline.stages_of(names), around=verification.around)
    assert not verification.skipped
    assert verification.compared


def check_compiled(case: Case, seed: int, level: str) -> None:
    """Fused and unfused programs agree to the bit, and with the reference within its slack."""
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(case.text)  # kept: its operations do not keep it alive
        function = module.body.operations[0].operation
        fused, unfused = (compiled(case, function, seed, level, off) for off in ((), FUSIONS))
        for rows in ROWS:
            inputs = [as_torch(a) for kind, _, a in arguments(function, seed, rows) if kind]
            got, plain = fused(*inputs), unfused(*inputs)
            wanted = reference(function, seed, rows)
            for i, (a, b) in enumerate(zip(got, plain, strict=True)):
                assert same_bits(a, b), f"{rows} rows: result {i} differs, fused and unfused"
                if wanted is not None:
                    assert_within_slack(a, wanted[i], f"{rows} rows: result {i}")


def compiled(
    case: Case, function: ir.Operation, seed: int, level: str, off: Sequence[str]
) -> Executable:
    with ir.Context():
        load_all()
        module = ir.Module.parse(case.text)
    parameters = {
        name: as_torch(value) for kind, name, value in arguments(function, seed, 1) if not kind
    }
    options = replace(CompileOptions.make("cpu", list(off)), level=level)
    return compile_imported(Imported(module, parameters, (), ()), options)


def arguments(function: ir.Operation, seed: int, rows: int) -> list[tuple[bool, str, Tensor]]:
    """(whether it is an input, name, value) of each argument; parameters do not depend on rows."""
    values = RandomInputs(seed, rows, slack=True).arguments(function)
    found = []
    for attributes, value in zip(function.attributes["arg_attrs"], values, strict=True):
        assert isinstance(value, Tensor)
        named = {k: ir.StringAttr(attributes[k]).value for k in ("qfuse.kind", "qfuse.name")}
        found.append((named["qfuse.kind"] == "input", named["qfuse.name"], value))
    return found


def reference(function: ir.Operation, seed: int, rows: int) -> list[Tensor] | None:
    """The results with their slack; None where which experts are chosen depends on roundings."""
    values = [value for _, _, value in arguments(function, seed, rows)]
    try:
        results = Interpreter().run(function, values)
    except Undecided:
        event("undecided")
        return None
    return [r for r in results if isinstance(r, Tensor)]


def as_torch(tensor: Tensor) -> torch.Tensor:
    array = np.ascontiguousarray(tensor.array)
    whole = np.dtype(f"i{array.itemsize}")
    return torch.from_numpy(array.view(whole).copy()).view(TORCH[tensor.dtype])


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Of numbers; LLVM leaves open which sign and payload a NaN has that an operation makes."""
    if a.dtype != b.dtype or not torch.equal(a.isnan(), b.isnan()):
        return False
    numbers = [v.masked_fill(v.isnan(), 0.0).contiguous().view(torch.uint8) for v in (a, b)]
    return torch.equal(*numbers)


def assert_within_slack(got: torch.Tensor, wanted: Tensor, what: str) -> None:
    """Each element lies within the slack that the reference derived for it; NaN stays NaN."""
    value, ball = got.double().numpy(), wanted.ball()
    assert value.shape == ball.mid.shape, what
    slack = np.broadcast_to(ball.reach, value.shape)
    with np.errstate(invalid="ignore"):
        good = (value == ball.mid) | (abs(value - ball.mid) <= slack) | np.isinf(slack)
    good |= np.isnan(value) & np.isnan(ball.mid)
    if not good.all():
        at = tuple(int(i) for i in np.argwhere(~good)[0])
        raise AssertionError(
            f"{what} at {at}: {value[at]:.9g}, not {ball.mid[at]:.9g} within {slack[at]:.3g}; "
            f"{int((~good).sum())} of {good.size} elements"
        )
