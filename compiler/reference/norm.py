"""rms_norm and rope."""

from collections.abc import Callable

import numpy as np

from qfuse.compiler.reference import balls
from qfuse.compiler.reference.balls import Array, Ball
from qfuse.compiler.reference.elementwise import outputs
from qfuse.compiler.reference.values import Tensor, Value
from qfuse.dialects.bindings import ir
from qfuse.dialects.norm_ops import (
    QUANTIZED,
    SCALES,
    operands_of,
    output_names,
    quantize_rounding,
)


def rms_norm(op: ir.Operation, *operands: Tensor) -> list[Value]:
    given = operands_of(op, operands)
    x, weight, residual = given["x"], given["weight"], given.get("residual")
    h = x.ball()
    if residual is not None:
        h = balls.rounded(balls.add(h, residual.ball()), x.dtype)
    eps = balls.constant(ir.FloatAttr(op.attributes["eps"]).value)
    offset = ir.FloatAttr(op.attributes["offset"]).value
    mean = balls.div(balls.summed(balls.mul(h, h)), balls.constant(float(x.shape[-1])))
    normed = balls.mul(h, balls.rsqrt(balls.add(mean, eps)))
    if ir.StringAttr(op.attributes["rounding"]).value == "before":
        normed = balls.rounded(normed, x.dtype)
    factor = weight.ball()
    if offset:
        factor = balls.add(factor, balls.constant(offset))
    exact = balls.mul(normed, factor)
    value = Tensor.of(exact, x.dtype)
    source = value.ball() if quantize_rounding(op) == "value" else exact
    known = {"value": value, "new_residual": Tensor.of(h, x.dtype)}
    scales = dict(zip(QUANTIZED, map(given.get, SCALES), strict=True))
    return outputs(op, output_names(op), known, source, scales)


def rope(op: ir.Operation, x: Tensor, cos: Tensor, sin: Tensor) -> list[Value]:
    half = x.shape[3] // 2

    def by_heads(table: Tensor) -> Ball:
        return table.ball()[:, :, None, :]

    def turned(a: Array) -> Array:
        return np.concatenate([a[..., half:], a[..., :half]], -1)

    exchanged = x.ball().map(turned)
    signs = np.where(np.arange(x.shape[3]) < half, -1.0, 1.0)
    exchanged = Ball(exchanged.mid * signs, exchanged.slack)
    straight = balls.rounded(balls.mul(x.ball(), by_heads(cos)), x.dtype)
    crossed = balls.rounded(balls.mul(exchanged, by_heads(sin)), x.dtype)
    return [Tensor.of(balls.add(straight, crossed), x.dtype)]


RULES: dict[str, Callable[..., list[Value]]] = {"qfuse.rms_norm": rms_norm, "qfuse.rope": rope}
