"""Operators that write into a tensor, rewritten as operators that return a new one.

A write in place whose result nobody reads would pass for dead code.  `run_decompositions` would
rewrite it too, in twice the time of the export itself; what a model may hold is a few writes to
tensors nobody else sees, which need no more than a change of name.
"""

import operator

import torch
from torch import fx
from torch.fx.node import map_arg

from qfuse.compiler.frontend.fx_import import layer_of, operand
from qfuse.dialects.errors import QfuseError


def functionalize(graph: fx.Graph) -> None:
    """Give every `op_` the place of its `op`, and what reads the tensor later the new value.

    Raises QfuseError, naming the operator and its layer, where the tensor written to is an
    argument of the graph or shares its memory with another.  Requires `meta["val"]`.
    """
    seen: set[fx.Node] = set()
    for node in list(graph.nodes):
        schema = _schema(node)
        if schema is not None and schema.is_mutable:
            _rewrite(node, seen)
        seen.add(node)


def _rewrite(node: fx.Node, seen: set[fx.Node]) -> None:
    written, functional = operand(node), _functional(node)
    earlier = [user for user in written.users if user in seen]
    if functional is None or not _is_fresh(written) or any(map(_aliases, earlier)):
        raise QfuseError(
            f"operator {node.target} in {layer_of(node) or 'the model'} writes into a tensor that "
            "others may read; only models that compute results from inputs can be compiled"
        )
    node.target = functional
    written.replace_all_uses_with(node, lambda user: user is not node and user not in seen)


def _functional(node: fx.Node) -> torch._ops.OpOverload | None:
    """`aten.div.Tensor` for `aten.div_.Tensor`, if that computes a result of the same type."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)
    namespace, _, name = target._schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    overload = getattr(packet, target._overloadname, None)
    if overload is None or overload._schema.is_mutable:
        return None
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    result = overload(*args, **kwargs)
    written = operand(node).meta["val"]
    same = result.dtype == written.dtype and result.shape == written.shape
    return overload if same else None


def _is_fresh(node: fx.Node) -> bool:
    """Whether the node made its tensor: it is no argument and no view of another."""
    if node.target is operator.getitem:
        return _is_fresh(operand(node))
    return _schema(node) is not None and not _aliases(node)


def _aliases(node: fx.Node) -> bool:
    """Whether a result may share memory with an operand."""
    schema = _schema(node)
    return schema is None or any(r.alias_info is not None for r in schema.returns)


def _schema(node: fx.Node) -> torch.FunctionSchema | None:
    return node.target._schema if isinstance(node.target, torch._ops.OpOverload) else None
