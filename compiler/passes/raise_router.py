"""The pattern of `qfuse-raise-torch` for routers of mixture-of-experts layers."""

from qfuse.compiler import remarks
from qfuse.compiler.passes.predicates import is_operator
from qfuse.compiler.pdl import MISMATCH, Pattern, Refusal, Verdict
from qfuse.compiler.torch_ir import (
    builtin_type,
    constant_of,
    from_builtin,
    is_known,
    is_none,
    to_builtin,
)
from qfuse.dialects.bindings import ir
from qfuse.dialects.moe_ops import SCORINGS, SelectExpertsOp
from qfuse.dialects.types import Shaped, is_float, shaped
from qfuse.dialects.verify import DYNAMIC


def select_experts(p: Pattern) -> None:
    logits, bias = p.value(), p.value()
    # k, scoring, normalize, scale, number of groups, groups used, dtype
    constants = tuple(p.value() for _ in range(7))
    root = p.op("torch.operator", logits, bias, *constants, many=True)
    p.require(is_select_experts, root)
    p.require(options_are_constant, root, *constants)
    p.require(is_typed_router, root, logits, bias)
    p.require(options_are_legal, root, logits, *constants)
    p.rewrite(root, make_selection, logits, bias, *constants)


def is_select_experts(root: ir.Operation) -> Verdict:
    return is_operator(root, "torch.qfuse.select_experts")


def options_are_constant(_root: ir.Operation, *constants: ir.Value) -> Verdict:
    if all(map(is_known, constants)):
        return None
    return Refusal("an option of the router is not a constant")


def is_typed_router(root: ir.Operation, logits: ir.Value, bias: ir.Value) -> Verdict:
    if None in (builtin_type(result.type) for result in root.results):
        return MISMATCH
    builtin = builtin_type(logits.type)
    type_ = shaped(builtin) if builtin is not None else None
    if type_ is None or not is_float(type_) or len(type_.shape) != 2 or type_.shape[1] == DYNAMIC:
        return Refusal(f"the logits are {type_}", "use float logits [T, E] with E known")
    wanted = Shaped((type_.shape[1],), "f32")
    if not is_none(bias) and builtin_type(bias.type) != wanted.type():
        return Refusal(f"the bias is {builtin_type(bias.type)}", f"use {wanted}")
    return None


def options_are_legal(
    root: ir.Operation, logits: ir.Value, k: ir.Value, scoring: ir.Value, *rest: ir.Value
) -> Verdict:
    _normalize, _scale, num_groups, groups_used, _dtype = map(constant_of, rest)
    experts, chosen = shaped(builtin_type(logits.type)).shape[1], constant_of(k)
    if constant_of(scoring) not in SCORINGS:
        return Refusal(f"the scoring is {constant_of(scoring)}", f"use {', '.join(SCORINGS)}")
    if num_groups < 1 or experts % num_groups or not 1 <= groups_used <= num_groups:
        return Refusal(
            f"{groups_used} of {num_groups} groups of {experts} experts are used",
            "use equal groups, 1 or more",
        )
    candidates = groups_used * (experts // num_groups)
    if not 1 <= chosen <= candidates:
        return Refusal(
            f"a token chooses {chosen} experts of {candidates}", f"use 1 to {candidates}"
        )
    ids, weights = (shaped(builtin_type(result.type)) for result in root.results)
    if ids.shape[1:] != (chosen,) or weights.shape != ids.shape:
        return Refusal(f"ids are {ids} and weights {weights}", f"both are [T, {chosen}]")
    return None


def make_selection(
    rewriter,
    root: ir.Operation,
    logits: ir.Value,
    bias: ir.Value,
    _k: ir.Value,
    scoring: ir.Value,
    normalize: ir.Value,
    scale: ir.Value,
    num_groups: ir.Value,
    groups_used: ir.Value,
    _dtype: ir.Value,
) -> None:
    i64 = ir.IntegerType.get_signless(64)
    types = [result.type for result in root.results]
    selection = ir.Operation.create(
        SelectExpertsOp.OPERATION_NAME,
        results=[builtin_type(type_) for type_ in types],
        operands=[to_builtin(v) for v in (logits, bias) if not is_none(v)],
        attributes={
            "scoring": ir.StringAttr.get(constant_of(scoring)),
            "normalize": ir.BoolAttr.get(constant_of(normalize)),
            "scale": ir.FloatAttr.get_f64(constant_of(scale)),
            "num_groups": ir.IntegerAttr.get(i64, constant_of(num_groups)),
            "groups_used": ir.IntegerAttr.get(i64, constant_of(groups_used)),
        },
    )
    remarks.fired("select-experts", root)
    values = zip(selection.results, types, strict=True)
    rewriter.replace_op(root, [from_builtin(value, type_) for value, type_ in values])


ROUTERS = (select_experts,)
