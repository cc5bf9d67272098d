"""What the tests of `Verification` share: running it, programs, and faults of passes.

Each fault breaks one pass in the way its authors could have.
"""

from collections.abc import Sequence

import pytest
from programs import Program, Value

from qfuse.compiler import pipeline
from qfuse.compiler.passes import (
    epilogue_stages,
    expand_quantize,
    fuse_gate_up,
    fuse_norm_quantize,
)
from qfuse.compiler.pipeline import Stage
from qfuse.compiler.verification import Verification
from qfuse.dialects.bindings import ir
from qfuse.dialects.glu import Glu
from qfuse.dialects.quantization_ops import build_concat
from qfuse.dialects.registry import load_all

Patch = pytest.MonkeyPatch


def verify(text: str, stages: Sequence[Stage], **choices) -> Verification:
    verification = Verification(**choices)
    with ir.Context(), ir.Location.unknown():
        load_all()
        module = ir.Module.parse(text)
        pipeline.run(module, stages, around=verification.around)
    return verification


# Programs


def gated_mlp(p: Program) -> list[Value]:
    x = p.input(-1, 72)
    gate, up = (p.matmul(x, p.weight(40, 72)) for _ in range(2))
    return [p.glu(Glu("silu"), gate, up)]


def qkv(p: Program) -> list[Value]:
    x = p.input(-1, 72)
    weights = [p.weight(n, 72) for n in (40, 40, 24)]
    return [p.matmul(x, w) for w in weights]


def activated(p: Program) -> list[Value]:
    x = p.input(-1, 72)
    y = p.matmul(x, p.weight(40, 72))
    z = p.activate("gelu", p.add(y, p.parameter(40), y.type))
    return [p.mul(z, p.input(-1, 40), y.type)]


def normed(p: Program) -> list[Value]:
    x = p.input(-1, 72)
    h = p.add(x, p.input(-1, 72), x.type)
    y = p.rms_norm(h, p.parameter(72))
    return [h, p.dequantize(p.quantize(y))]


def quantized_mlp(p: Program) -> list[Value]:
    return [p.dequantize(p.quantize(*gated_mlp(p), group=32))]


def implied(p: Program) -> list[Value]:
    return [p.matmul(p.input(-1, 72), p.weight(40, 72), quantize=True)]


# Faults


def halves_swapped(patch: Patch) -> None:
    right = fuse_gate_up.build_glu
    patch.setattr(fuse_gate_up, "build_glu", lambda glu, g, u, dtype: right(glu, u, g, dtype))


def activation_is_another(patch: Patch) -> None:
    right = epilogue_stages.build_elementwise
    names = {"gelu": "gelu_tanh"}
    patch.setattr(
        epilogue_stages,
        "build_elementwise",
        lambda name, xs, attributes: right(names.get(name, name), xs, attributes),
    )


def activation_is_dropped(patch: Patch) -> None:
    right = epilogue_stages.build_elementwise
    patch.setattr(
        epilogue_stages,
        "build_elementwise",
        lambda name, xs, attributes: xs[0] if name == "gelu" else right(name, xs, attributes),
    )


def rounding_is_missing(patch: Patch) -> None:
    patch.setattr("qfuse.compiler.epilogue.build_rounding", lambda x, _dtype: x)


def activation_is_not_rounded(patch: Patch) -> None:
    patch.setattr(fuse_gate_up, "build_rounding", lambda x, _dtype: x)


def weights_in_another_order(patch: Patch) -> None:
    def join(products: Sequence[ir.Operation]) -> ir.Value:
        weights = [p.operands[1] for p in products]
        return build_concat([weights[1], weights[0], *weights[2:]])

    patch.setattr("qfuse.compiler.passes.fuse_qkv.join_weights", join)


def scales_of_the_other_weight(patch: Patch) -> None:
    """Codes stay, and the scales of the first weight serve both."""

    def join(products: Sequence[ir.Operation]) -> ir.Value:
        first, second = (p.operands[1].owner.operation for p in products)
        mixed = ir.Operation.create(
            "qfuse.pack",
            results=[second.results[0].type],
            operands=[second.operands[0], first.operands[1]],
        )
        return build_concat([first.results[0], mixed.results[0]])

    patch.setattr(fuse_gate_up, "join_weights", join)


def residual_is_not_added(patch: Patch) -> None:
    right = fuse_norm_quantize.build_rms_norm
    patch.setattr(
        fuse_norm_quantize,
        "build_rms_norm",
        lambda like, ops, t: right(like, {**ops, "residual": None}, t),
    )


def eps_is_lost(patch: Patch) -> None:
    right = fuse_norm_quantize.build_rms_norm

    def build(*arguments) -> ir.Operation:
        norm = right(*arguments)
        norm.attributes["eps"] = ir.FloatAttr.get(ir.F64Type.get(), 1e-3)
        return norm

    patch.setattr(fuse_norm_quantize, "build_rms_norm", build)


def quantizes_before_rounding(patch: Patch) -> None:
    patch.setattr("qfuse.compiler.epilogue.build_rounding", lambda x, _dtype: x)


def input_is_not_quantized(patch: Patch) -> None:
    def split(rewriter, product: ir.Operation) -> None:
        with ir.InsertionPoint(product):
            copy = product.clone()
        del copy.attributes[expand_quantize.INPUT_SCHEME]
        rewriter.replace_op(product, copy.results)

    patch.setattr(expand_quantize, "split_quantize", split)
