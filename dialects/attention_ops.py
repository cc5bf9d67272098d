"""Attention over the caches of a decoder."""

from qfuse.dialects.bindings import ext, ir
from qfuse.dialects.dialect import Op
from qfuse.dialects.types import Shaped, is_float, shaped
from qfuse.dialects.verify import DYNAMIC


class AttentionOp(Op, name="attention", traits=[ext.Pure]):
    """Causal attention of T tokens over caches that hold them and all tokens before.

        %y = "qfuse.attention"(%q, %k, %v, %position) {scale = 0.125 : f64, window = 0 : i64}
           : (tensor<1x?x16x64xbf16>, tensor<1x8x512x64xbf16>, tensor<1x8x512x64xbf16>,
              tensor<?xi64>) -> tensor<1x?x16x64xbf16>

    q [B, T, H, D], k [B, Hkv, S, D] and v [B, Hkv, S, E]; head h reads k and v of h // (H / Hkv).
    `position` [T] says in which slots of the caches the tokens are, each behind the one before.
    Token t sees the slots up to its own, or the last `window` of those if that is not 0.  The
    result [B, T, H, E] is softmax(scale * q k^T) v in f32, rounded once, in the end.
    """

    q: ext.Operand[ir.RankedTensorType]
    k: ext.Operand[ir.RankedTensorType]
    v: ext.Operand[ir.RankedTensorType]
    position: ext.Operand[ir.RankedTensorType]
    scale: ir.FloatAttr
    window: ir.IntegerAttr
    out: ext.Result[ir.RankedTensorType]

    def violation(self) -> str | None:
        q, k, v, position = (shaped(o.type) for o in self.operation.operands)
        if why := attention_error(q, k, v, position):
            return why
        if self.operation.attributes["window"].value < 0:
            return f"window is {self.operation.attributes['window'].value}; it is 0 for none"
        out, wanted = shaped(self.operation.results[0].type), attention_result(q, v)
        return None if out == wanted else f"result is {out}; expected {wanted}"


def attention_error(q: Shaped, k: Shaped, v: Shaped, position: Shaped) -> str | None:
    """Why there is no attention of these, or None."""
    for name, value in (("q", q), ("k", k), ("v", v)):
        if not is_float(value) or len(value.shape) != 4 or value.dtype != q.dtype:
            return f"{name} is {value}; q, k and v are floats of one type, with four dimensions"
    if position.dtype != "i64" or len(position.shape) != 1:
        return f"position is {position}; expected tensor<?xi64>"
    heads, kv_heads = q.shape[2], k.shape[1]
    if DYNAMIC in (heads, kv_heads, *(x.shape[3] for x in (q, k, v))):
        return f"heads or widths of q {q}, k {k} or v {v} are dynamic; they must be static"
    if q.shape[3] != k.shape[3] or k.shape[:3] != v.shape[:3]:
        return f"q is {q}, k {k} and v {v}; widths of q and k, and caches, must agree"
    if kv_heads < 1 or heads % kv_heads:
        return f"{heads} heads of q are no multiple of the {kv_heads} of k"
    return None


def attention_result(q: Shaped, v: Shaped) -> Shaped:
    return Shaped((*q.shape[:3], v.shape[3]), q.dtype)
