"""What has no CPU kernel is refused with its reason, and never half compiled."""

from dataclasses import replace

import pytest
from cpu_kernels import (
    group_combine_text,
    group_text,
    kernel_text,
    matmul_text,
    parsed,
    plain,
    quantized,
    segment_sizes,
)

from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import Shaped
from qfuse.lowering.cpu import cpu
from qfuse.lowering.cpu.codegen import compile_kernel, unsupported

W = quantized(64, 128, block=(128, 128))
X = quantized(-1, 128)
Y = plain(-1, 64)


def scheme(value: Shaped, **changes: str) -> Shaped:
    assert value.scheme is not None
    return replace(value, scheme=replace(value.scheme, **changes))


REFUSED = {
    "quantized x by a plain weight": (
        matmul_text(quantized(-1, 128), plain(64, 128), [Y]),
        "x is f8E4M3FN but w is plain bf16; quantize both, or leave x plain",
    ),
    "narrow blocks": (
        matmul_text(plain(-1, 128), quantized(64, 128, block=(128, 8)), [Y]),
        "w: blocks of [128, 8] have no CPU kernel; columns must be a multiple of 16",
    ),
    "wide blocks": (
        matmul_text(plain(-1, 4096), quantized(64, 4096, block=(1, 2048)), [Y]),
        "at most 1024, or all 4096",
    ),
    "odd runs": (
        matmul_text(plain(-1, 128), quantized(64, 128, block=(1, 48)), [Y]),
        "runs of 48 columns with one scale",
    ),
    "odd blocks": (
        matmul_text(
            replace(quantized(-1, 320, block=(1, 32)), dtype="i8"),
            replace(quantized(64, 320, block=(1, 160)), dtype="i8"),
            [Y],
        ),
        "runs of 32 columns with one scale, in blocks of 160",
    ),
    "odd groups of x": (
        matmul_text(quantized(-1, 480, block=(1, 96)), quantized(64, 480, block=(1, 480)), [Y]),
        "x is scaled per 96 columns, for which there is no CPU kernel with this w",
    ),
    "sums beyond i32": (
        matmul_text(
            replace(quantized(-1, 1 << 17, block=(1, 1 << 17)), dtype="i8"),
            replace(quantized(64, 1 << 17, block=(1, 1 << 17)), dtype="i8"),
            [Y],
        ),
        "may not fit in i32",
    ),
    "scales of w by column": (
        matmul_text(plain(-1, 128), scheme(W, scale_layout="col_major"), [Y]),
        "w: scales must lie row_major",
    ),
    "scales of x by column": (
        matmul_text(scheme(X, scale_layout="col_major"), W, [Y]),
        "x: scales must lie row_major",
    ),
    "integers in the epilogue": (
        matmul_text(
            plain(-1, 128),
            W,
            [Y],
            "%i = arith.fptosi %acc0 : f32 to i32\n%f = arith.sitofp %i : i32 to f32",
            ["%f"],
        ),
        "'arith.fptosi' has no vector form",
    ),
    "bf16 arithmetic in the epilogue": (
        matmul_text(
            plain(-1, 128),
            W,
            [Y],
            "%t = arith.truncf %acc0 : f32 to bf16\n%s = arith.addf %t, %t : bf16\n"
            "%f = arith.extf %s : bf16 to f32",
            ["%f"],
        ),
        "'arith.addf' computes on bf16; extend its operands",
    ),
    "result groups": (
        matmul_text(
            plain(-1, 128),
            quantized(192, 128, block=(128, 128)),
            [quantized(-1, 192, block=(1, 192))],
        ),
        "groups of 16, 32, 64 or 128, not 192",
    ),
    "dynamic width": (
        kernel_text("relu", [plain(4, -1)], [plain(4, -1)]),
        "the last dimension of tensor<4x?xbf16> is dynamic",
    ),
    "odd broadcast": (
        kernel_text("add", [plain(2, -1, 8), plain(-1, 8)], [plain(2, -1, 8)]),
        "none of the broadcasts",
    ),
    "rope with dynamic heads": (
        kernel_text(
            "rope", [plain(1, 4, -1, 8), plain(1, 4, 8), plain(1, 4, 8)], [plain(1, 4, -1, 8)]
        ),
        "number of heads",
    ),
    "rope of unknown batches": (
        kernel_text(
            "rope", [plain(-1, -1, 2, 8), plain(1, -1, 8), plain(1, -1, 8)], [plain(-1, -1, 2, 8)]
        ),
        "both dynamic",
    ),
    "quantized x by plain weights of experts": (
        group_text(quantized(-1, 2, 128), plain(4, 64, 128), [plain(-1, 2, 64)]),
        "x is f8E4M3FN but w is plain bf16",
    ),
    "parts of experts within a group": (
        group_text(
            plain(-1, 2, 128),
            quantized(4, 128, 128, block=(32, 128)),
            [plain(-1, 2, 32), plain(-1, 2, 96)],
            yields=["%acc0", "%acc1"],
            parts=[32, 96],
        ),
        "parts of [32, 96] rows have no CPU kernel in the weight of an expert",
    ),
    "an unknown number of choices": (
        group_text(
            plain(-1, 128), quantized(4, 64, 128, block=(128, 128)), [plain(-1, -1, 64)], -1
        ),
        "the number of choices of a token is dynamic",
    ),
    "an unknown number of rows to add up": (
        group_combine_text(
            plain(-1, -1, 128),
            quantized(4, 64, 128, block=(128, 128)),
            plain(-1, -1, dtype="i32"),
            plain(-1, -1),
            Y,
        ),
        "the number of choices of a token is dynamic",
    ),
    "narrow blocks of rows to add up": (
        group_combine_text(
            plain(-1, 2, 128),
            quantized(4, 64, 128, block=(128, 8)),
            plain(-1, 2, dtype="i32"),
            plain(-1, 2),
            Y,
        ),
        "w: blocks of [128, 8] have no CPU kernel",
    ),
    "combine of unknown choices": (
        kernel_text(
            "combine",
            [plain(-1, -1, 64), plain(-1, -1, dtype="i32"), plain(-1, -1)],
            [plain(-1, 64)],
            segment_sizes("operand", [True, True, True, False]),
        ),
        "all its extents but the first must be static",
    ),
    "quantized scales by column": (
        kernel_text("quantize", [plain(-1, 128)], [scheme(X, scale_layout="col_major")]),
        "scales must lie row_major",
    ),
    "norm quantized with scales by column": (
        kernel_text(
            "rms_norm",
            [plain(-1, 128), plain(128)],
            [scheme(X, scale_layout="col_major")],
            'eps = 1.0e-6 : f64, offset = 0.0 : f64, rounding = "before", '
            + segment_sizes("result", [False, True, False, False]),
        ),
        "scales must lie row_major",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_reason(case: str) -> None:
    text, reason = REFUSED[case]
    with parsed(text) as kernel:
        op = next(iter(kernel.entry_block.operations))
        why = unsupported(op)
        assert why is not None and reason in why
        with pytest.raises(QfuseError, match=f"{op.operation.name} at .*"):
            compile_kernel(kernel)


def refusal(text: str, level: str | None = None) -> str:
    with parsed(text) as kernel, pytest.raises(QfuseError) as error:
        compile_kernel(kernel, level=level)
    return str(error.value)


def test_an_operation_without_kernel() -> None:
    results = [plain(-1, 128, dtype="f8E4M3FN"), plain(-1, 1, dtype="f32")]
    text = kernel_text("unpack", [X], results)
    assert "qfuse.unpack has no CPU kernel; there are kernels for qfuse.matmul" in refusal(text)


def test_two_operations() -> None:
    text = (
        f"func.func private @k(%a: {Y}) -> {Y} {{\n"
        f'%b = "qfuse.relu"(%a) : ({Y}) -> {Y}\n%c = "qfuse.relu"(%b) : ({Y}) -> {Y}\n'
        f"return %c : {Y}\n}}"
    )
    assert "one qfuse operation and a return" in refusal(text)


def test_a_level_the_cpu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intrinsics must not reach LLVM, which would end the process."""
    monkeypatch.setattr(cpu, "cpu_flags", lambda: frozenset({"avx2", "fma", "f16c"}))
    assert cpu.choose_level() == "avx2"
    text = kernel_text("relu", [Y], [Y])
    assert "level avx512 needs avx512f, " in refusal(text, "avx512")
    assert refusal(text, "avx512").endswith("use avx2")
    assert 'level "sse9" is not one of' in refusal(text, "sse9")
    monkeypatch.setattr(cpu, "cpu_flags", frozenset)
    assert cpu.choose_level() == "generic"
