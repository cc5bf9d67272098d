"""`qfuse-raise-attention`: attention over caches becomes a computation of ours, for the CPU."""

from dataclasses import dataclass
from typing import ClassVar

from qfuse.compiler import remarks
from qfuse.compiler.passes.base import Pass
from qfuse.compiler.passes.predicates import is_operator
from qfuse.compiler.pdl import MISMATCH, Pattern, Patterns, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    builtin_type,
    constant_of,
    create_constant,
    from_builtin,
    is_known,
    to_builtin,
    torch_type,
)
from qfuse.dialects.attention_ops import AttentionOp, attention_error
from qfuse.dialects.bindings import ir
from qfuse.dialects.types import Shaped, shaped
from qfuse.dialects.verify import DYNAMIC


@dataclass(frozen=True)
class RaiseAttention(Pass):
    """Raise attention whose caches have known extents, with the tokens before the heads.

    Before::

        %y = torch.operator "torch.qfuse.attention"(%q, %k, %v, %position, %scale, %window)
           : (!torch.vtensor<[1,16,?,64],bf16>, ...) -> !torch.vtensor<[1,?,16,64],bf16>

    After::

        %t = torch.aten.transpose.int %q, 1, 2          // of a transpose: back to what it was of
        %y' = "qfuse.attention"(%t', %k', %v', %position') {scale = 0.125 : f64, window = 0 : i64}
        %y = torch_c.from_builtin_tensor %y'

    Attention with a batch or a cache of unknown extent stays torch's, and all of it for a GPU,
    whose kernels are in compiler/gpu_attention.py.
    """

    name: ClassVar[str] = "qfuse-raise-attention"

    def run(self, module: ir.Operation) -> None:
        Patterns([attention]).apply(module)


def attention(p: Pattern) -> None:
    operands = tuple(p.value() for _ in range(6))
    root = p.op("torch.operator", *operands)
    p.require(is_attention, root)
    p.require(is_typed_attention, root, *operands)
    p.rewrite(root, make_attention, *operands)


def is_attention(root: ir.Operation) -> Verdict:
    return is_operator(root, "torch.qfuse.attention")


def is_typed_attention(
    root: ir.Operation,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    position: ir.Value,
    scale: ir.Value,
    window: ir.Value,
) -> Verdict:
    types = [builtin_type(value.type) for value in (root.results[0], q, k, v, position)]
    if None in types:
        return MISMATCH
    if not (is_known(scale) and is_known(window)):
        return Refusal("the scale or the window is not a constant")
    of_q, of_k, of_v, of_position = map(shaped, types[1:])
    if DYNAMIC in (of_q.shape[0], *of_k.shape):
        return Refusal(
            f"the batch of q {of_q}, or an extent of the caches {of_k}, is dynamic",
            "compile with max_len, and one batch",
        )
    if why := attention_error(_tokens_first(of_q), of_k, of_v, of_position):
        return Refusal(why)
    return None


def _tokens_first(q: Shaped) -> Shaped:
    batch, heads, tokens, width = q.shape
    return Shaped((batch, tokens, heads, width), q.dtype)


def make_attention(
    rewriter,
    root: ir.Operation,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    position: ir.Value,
    scale: ir.Value,
    window: ir.Value,
) -> None:
    dims = [create_constant("int", dim) for dim in (1, 2)]
    tokens_first = ir.Operation.create(
        "torch.aten.transpose.int",
        results=[torch_type(_tokens_first(shaped(builtin_type(q.type))))],
        operands=[q, *dims],
    ).result
    type_ = root.results[0].type
    made = ir.Operation.create(
        AttentionOp.OPERATION_NAME,
        results=[builtin_type(type_)],
        operands=[to_builtin(value) for value in (tokens_first, k, v, position)],
        attributes={
            "scale": ir.FloatAttr.get_f64(constant_of(scale)),
            "window": ir.IntegerAttr.get(ir.IntegerType.get_signless(64), constant_of(window)),
        },
    ).result
    remarks.fired("attention", root)
    rewriter.replace_op(root, [from_builtin(made, type_)])
