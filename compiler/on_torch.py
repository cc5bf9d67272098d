"""What of a fused program stays on torch: each operation that computes, why, and what is nearest.

A pattern says what it declines of what looks like its own.  What looks like nothing would stay on
torch unseen, so every launch of torch's is listed here, by a table of operators.
"""

from qfuse.compiler import remarks
from qfuse.compiler.expert_layers import launches_of
from qfuse.compiler.passes.raise_elementwise import SPELLINGS
from qfuse.compiler.pdl import Refusal
from qfuse.compiler.reference.values import name_of
from qfuse.compiler.runtime.report import ON_TORCH
from qfuse.compiler.torch_ir import find_operations
from qfuse.dialects.bindings import ir
from qfuse.dialects.errors import QfuseError

EXPERT_PRODUCTS = (
    "torch.aten._grouped_mm",
    "torch.aten._scaled_grouped_mm",
    "torch.transformers.grouped_mm_fallback",
)
"""Operators that multiply by the weights of experts: most of what a model with experts takes."""

_SPELLED = [text.split()[0] for texts in SPELLINGS.values() for text in texts]
_ELEMENTWISE = tuple(dict.fromkeys(f"torch.aten.{name}" for name in _SPELLED))
_MOVES = (
    *("embedding", "cat", "concat", "stack", "repeat_interleave", "contiguous", "clone", "copy"),
    *("index", "index_select", "index_put", "gather", "scatter"),
)
_ATTENTIONS = (
    *("flash_attention_for_cpu", "flash_attention", "efficient_attention"),
    *("cudnn_attention", "attention_math"),
)

_GROUPS: tuple[tuple[tuple[str, ...], Refusal], ...] = (
    (
        EXPERT_PRODUCTS,
        Refusal(
            "experts are recognized as torch.ops.qfuse.moe_experts, not as transformers' modules "
            "multiply them",
            "compile the checkpoint, whose experts become qfuse.group_matmul",
        ),
    ),
    (
        ("torch.aten.layer_norm", "torch.aten.native_layer_norm"),
        Refusal("qfuse has no LayerNorm", "the nearest is RMSNorm, qfuse.rms_norm"),
    ),
    (
        ("torch.aten.matmul", "torch.aten.bmm", "torch.aten.baddbmm"),
        Refusal(
            "qfuse multiplies by weights of linear layers and experts",
            "attention is qfuse.attention where a checkpoint is compiled, without cap or sinks",
        ),
    ),
    (
        ("torch.aten.softmax", "torch.aten._softmax"),
        Refusal(
            "qfuse has softmax only within attention and routers",
            "the nearest are qfuse.attention, without cap or sinks, and qfuse.select_experts",
        ),
    ),
    (
        (
            "torch.aten.scaled_dot_product_attention",
            *(f"torch.aten._scaled_dot_product_{name}" for name in _ATTENTIONS),
        ),
        Refusal(
            "attention is recognized as torch.ops.qfuse.attention, over caches",
            "compile the checkpoint, whose attention becomes qfuse.attention",
        ),
    ),
    (
        ("torch.aten.linear", "torch.aten.mm", "torch.aten.addmm"),
        Refusal("no pattern made a product of it", "remarks of plain-product, if any, say why"),
    ),
    (
        ("torch.qfuse.attention",),
        Refusal(
            "for a GPU, attention is an operator with kernels of its own",
            "remarks of attention, if any, say why it is no kernel for a CPU",
        ),
    ),
    (
        ("torch.qfuse.quantized_linear", "torch.qfuse.moe_experts", "torch.qfuse.select_experts"),
        Refusal("its pattern declined, so torch runs its definition", "its other remark says why"),
    ),
    (
        ("torch.qfuse.kv_update", *(f"torch.aten.{name}" for name in _MOVES)),
        Refusal("it moves values, and qfuse has no operation that does only that"),
    ),
    (
        _ELEMENTWISE,
        Refusal(
            "an element-wise operation is raised only next to what is raised, in floats of one "
            "shape or by rows"
        ),
    ),
)
_REASONS = {name: reason for names, reason in _GROUPS for name in names}
"""By an operator's name, with its overload or for all of them."""

_OTHERS = Refusal("qfuse has no operation for it")


def remark_torch(module: ir.Module) -> None:
    """Refuse, by a remark each, the launches of torch's in a module that is fused, not lowered.

    Those of parameters and constants alone are left out: they run once, before the first call.
    """
    once: set[ir.Operation] = set()
    for op in find_operations(module.operation, lambda _: True):
        if all(_is_known_once(value, once) for value in op.operands):
            once.add(op)
        elif op.name.startswith("torch.") and _computes(op):
            name = name_of(op)
            reason = _reason(name)
            cause = f"{name} runs on torch: {reason.cause}"
            remarks.refused(ON_TORCH, op, op, cause, reason.cure, name)


def _computes(op: ir.Operation) -> bool:
    try:
        return launches_of(op) > 0
    except QfuseError:  # torch has no such operator, which the plan refuses with its location
        return False


def _reason(name: str) -> Refusal:
    every_overload = ".".join(name.split(".")[:3])
    return _REASONS.get(name) or _REASONS.get(every_overload) or _OTHERS


def _is_known_once(value: ir.Value, once: set[ir.Operation]) -> bool:
    """Whether `value` is a parameter, or made from parameters alone by one of `once`."""
    if isinstance(value, ir.BlockArgument):
        return remarks.argument_kind(value) == "parameter"
    return value.owner.operation in once
