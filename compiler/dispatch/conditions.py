"""What rules of dispatch ask of a product, by name: how it is said, and whether it holds.

Sources: `aten/src/ATen/native/cuda/ScaledBlas.cpp` and `GroupedBlas.cpp` of PyTorch 2.13 for the
calls (shapes, strides, versions), TVM's `relax/backend/cuda/cublas.py` and MLC-LLM's
`blas_dispatch.py` for what is worth a call.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qfuse.compiler.dispatch.subject import Subject, operand_text
from qfuse.dialects.types import Shaped

_HALF = ("f16", "bf16")
_FP8 = ("f8E4M3FN", "f8E5M2")


@dataclass(frozen=True)
class Condition:
    """One thing that must be so.

    `wanted` says what, `found(subject)` what there is instead, `holds(subject)` whether it is so.
    `kind` "about": the rule is about other products or machines where it does not hold, and nobody
    asks why it did not count.  "scheme": it asks for a scheme of x and w.
    """

    wanted: str
    holds: Callable[[Subject], bool]
    found: Callable[[Subject], str]
    kind: str = ""


def _blocks(value: Shaped, dtypes: tuple[str, ...], block: tuple[int, int]) -> bool:
    scheme = value.scheme
    return (
        scheme is not None
        and value.dtype in dtypes
        and (scheme.packing, scheme.scale) == ("none", "f32")
        and scheme.block == block
    )


def _one_per_row(value: Shaped, dtypes: tuple[str, ...]) -> bool:
    scheme = value.scheme
    return (
        scheme is not None
        and value.dtype in dtypes
        and (scheme.packing, scheme.scale, scheme.block[0]) == ("none", "f32", 1)
        and scheme.block[1] >= value.shape[-1]
    )


def _scheme(s: Subject) -> str:
    return f"the scheme is {s.scheme}"


def _machine(s: Subject) -> str:
    return f"the target is {s.machine}"


def _epilogue(s: Subject) -> str:
    if s.epilogue.rounds and not s.epilogue.other:
        return f"the product is rounded before its {s.epilogue.rounds} (roundings=library allows)"
    return f"the epilogue has {s.epilogue}"


def _width(s: Subject) -> str:
    return f"N x K is {s.n} x {s.k}"


def _capability(s: Subject) -> int:
    return int(s.machine.arch.removeprefix("sm_")) if s.machine.kind == "cuda" else 0


def _roundings_fit(s: Subject) -> bool:
    return not s.epilogue.rounds or s.machine.roundings == "library"


def _scale_fits(s: Subject) -> bool:
    """Whether the scale may be multiplied elsewhere: it rounds nothing, or roundings are free."""
    return s.epilogue.other != "" or s.epilogue.exact_scale or s.machine.roundings == "library"


def _scale(s: Subject) -> str:
    return f"it is {s.epilogue.scale:g}, which rounds (roundings=library allows)"


def _at_most(s: Subject, bias: bool, activations: tuple[str, ...]) -> bool:
    """Whether the epilogue is a scale, a bias, where one may be, and one of some activations."""
    form = s.epilogue
    return (
        not form.other
        and (bias or form.bias is None)
        and form.activation in ("", *activations)
        and (form.bias is not None or form.activation == "" or not activations)
        and _roundings_fit(s)
    )


CONDITIONS: dict[str, Condition] = {
    "enabled": Condition(
        "library products are on",
        lambda s: s.machine.blas != "off",
        lambda s: "they are off (blas=off)",
    ),
    "on-a-gpu": Condition(
        "the target is a GPU, by cuBLAS or hipBLAS",
        lambda s: s.machine.is_gpu,
        _machine,
        kind="about",
    ),
    "on-the-cpu": Condition(
        "the target is the CPU, by torch's oneDNN",
        lambda s: s.machine.kind == "cpu",
        _machine,
        kind="about",
    ),
    "on-cuda": Condition(
        "the target is CUDA", lambda s: s.machine.kind == "cuda", _machine, kind="about"
    ),
    "hopper": Condition(
        "CUDA of architecture 9.x, with cublasLt 12.9 or later",
        lambda s: _capability(s) // 10 == 9,
        _machine,
    ),
    "from-sm-90": Condition(
        "CUDA of architecture 9.0 or later, or hip",
        lambda s: s.machine.kind == "hip" or _capability(s) >= 90,
        _machine,
    ),
    "fp8-hardware": Condition(
        "CUDA of architecture 8.9 or later, or a hip GPU whose FP8 is OCP's (gfx950)",
        lambda s: s.machine.arch == "gfx950" or _capability(s) >= 89,
        _machine,
    ),
    "dense": Condition(
        "one weight for all rows",
        lambda s: s.op == "qfuse.matmul",
        lambda s: "the weights are those of experts",
        kind="about",
    ),
    "experts": Condition(
        "weights of experts",
        lambda s: s.op == "qfuse.group_matmul",
        lambda s: "there is one weight for all rows",
        kind="about",
    ),
    "sorted-rows": Condition(
        "the rows of x lie sorted by expert",
        lambda s: not s.gathered,
        lambda s: "they are taken from their tokens, for which a call needs a copy",
    ),
    "unquantized": Condition(
        "x and w are of one type, f16, bf16 or f32, and the result, too",
        lambda s: s.is_plain and s.x.dtype == s.w.dtype == s.result.dtype,
        lambda s: f"{_scheme(s)}, the result {s.result.dtype}",
        kind="scheme",
    ),
    "one-plain-type": Condition(
        "x and w are of one type, f16 or bf16",
        lambda s: s.is_plain and s.x.dtype == s.w.dtype and s.x.dtype in _HALF,
        _scheme,
        kind="scheme",
    ),
    "half": Condition(
        "x, w and the result are bf16",
        lambda s: s.is_plain and s.x.dtype == s.w.dtype == s.result.dtype == "bf16",
        lambda s: f"{_scheme(s)}, the result {s.result.dtype}",
        kind="scheme",
    ),
    "fp8-in-blocks": Condition(
        "x is E4M3 per 1x128 and w FP8 per 128x128, with f32 scales",
        lambda s: _blocks(s.x, _FP8[:1], (1, 128)) and _blocks(s.w, _FP8, (128, 128)),
        _scheme,
        kind="scheme",
    ),
    "fp8-per-row": Condition(
        "x and w are E4M3 with one f32 scale for each row",
        lambda s: _one_per_row(s.x, _FP8[:1]) and _one_per_row(s.w, _FP8[:1]),
        _scheme,
        kind="scheme",
    ),
    "int8-per-row": Condition(
        "x and w are i8 with one f32 scale for each row",
        lambda s: _one_per_row(s.x, ("i8",)) and _one_per_row(s.w, ("i8",)),
        _scheme,
        kind="scheme",
    ),
    "dequantizes": Condition(
        "codes of w become numbers before they are multiplied",
        lambda s: s.dequantizes,
        lambda s: f"w is {operand_text(s.w)} and x {operand_text(s.x)}",
    ),
    "scales-as-read": Condition(
        "the scales of x lie group by group",
        lambda s: (
            s.x.scheme is not None
            and (s.x.scheme.scale_layout == "col_major" or s.x.scheme.block[1] >= s.k)
        ),
        lambda s: "the scales of x lie row by row (qfuse-choose-scale-layout)",
    ),
    "half-result": Condition(
        "the result is bf16 or f16",
        lambda s: s.result.dtype in _HALF and not s.result.quantized,
        lambda s: f"it is {s.result.dtype}",
    ),
    "bf16-result": Condition(
        "the result is bf16",
        lambda s: s.result.dtype == "bf16" and not s.result.quantized,
        lambda s: f"it is {s.result.dtype}",
    ),
    "multiples-of-16": Condition(
        "N and K are multiples of 16",
        lambda s: s.n % 16 == 0 and s.k % 16 == 0,
        _width,
    ),
    "multiples-of-8": Condition(
        "N and K are multiples of 8: rows of 16 bytes",
        lambda s: s.n % 8 == 0 and s.k % 8 == 0,
        _width,
    ),
    "multiples-of-4": Condition(
        "N and K are multiples of 4", lambda s: s.n % 4 == 0 and s.k % 4 == 0, _width
    ),
    "one-result": Condition(
        "the epilogue has one result",
        lambda s: s.epilogue.results == 1 and s.op == "qfuse.matmul",
        lambda s: f"it has {s.epilogue.results}",
    ),
    "rounds-first": Condition(
        "the epilogue begins with the rounding to bf16 or f16 that the library does, so that it "
        "can be computed apart",
        lambda s: (
            s.epilogue.rounded_to in _HALF
            and (not s.is_plain or s.epilogue.rounded_to == s.x.dtype)
        ),
        lambda s: f"it rounds to {s.epilogue.rounded_to or 'nothing'} first",
        kind="about",
    ),
    "scale-of-mm": Condition(
        "a constant scale of the product is a power of two, or no bias follows it",
        lambda s: s.epilogue.bias is None or _scale_fits(s),
        _scale,
    ),
    "scale-of-weight": Condition(
        "a constant scale of the product is a power of two, so that scales of w can have it",
        lambda s: _scale_fits(s),
        _scale,
    ),
    "epilogue-of-mm": Condition(
        "the epilogue is nothing, a bias, or a bias and relu or gelu_tanh",
        lambda s: _at_most(s, True, ("relu", "gelu_tanh")),
        _epilogue,
    ),
    "epilogue-of-scaled-mm": Condition(
        "the epilogue is nothing or a bias", lambda s: _at_most(s, True, ()), _epilogue
    ),
    "epilogue-is-nothing": Condition(
        "there is no epilogue, no bias either",
        lambda s: s.epilogue.scale == 1 and _at_most(s, False, ()),
        _epilogue,
    ),
}
