"""Linear layers, put together again after AOTAutograd took them apart.

Tracing below autograd turns `linear(x, w, b)` into view, t, addmm (or mm) and view.  Passes look
for the layer, and one operator is cheaper to run than five.
"""

import torch
from torch import fx

from qfuse.compiler.frontend.fx_import import operand

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)


def recompose_linears(graph: fx.Graph) -> None:
    """Rewrite products with a transposed matrix as `aten.linear`; the values stay the same.

    Leaves dead nodes behind for `simplify`.  Requires `meta["val"]` on every node.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (aten.mm.default, aten.addmm.default):
            continue
        if node.kwargs:
            continue
        bias = operand(node) if node.target is aten.addmm.default else None
        weight = _untransposed(operand(node, -1))
        if weight is None or (bias is not None and bias.meta["val"].dim() != 1):
            continue
        _rewrite(graph, node, operand(node, -2), weight, bias)


def _rewrite(
    graph: fx.Graph, product: fx.Node, rows: fx.Node, weight: fx.Node, bias: fx.Node | None
) -> None:
    """Replace the product, or the only view of it that undoes a flattening of the input."""
    target, x = product, rows
    flattened = rows.target in _VIEWS
    users = list(product.users)
    if flattened and len(users) == 1 and users[0].target in _VIEWS:
        source = operand(rows)
        if _same_rows(source.meta["val"], users[0].meta["val"]):
            target, x = users[0], source
    with graph.inserting_before(target):
        new = graph.call_function(aten.linear.default, (x, weight, bias))
    new.meta = dict(target.meta)
    target.replace_all_uses_with(new)


def _untransposed(node: fx.Node) -> fx.Node | None:
    """w, if the node is the transpose of a matrix w."""
    if node.target is aten.t.default:
        return operand(node)
    if node.target is aten.permute.default and node.args[1] == [1, 0]:
        return operand(node)
    if node.target is aten.transpose.int and set(node.args[1:]) in ({0, 1}, {-1, -2}):
        return operand(node)
    return None


def _same_rows(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether two shapes differ in their last extent only."""
    return x.dim() == y.dim() and all(
        str(a) == str(b) for a, b in zip(x.shape[:-1], y.shape[:-1], strict=True)
    )
