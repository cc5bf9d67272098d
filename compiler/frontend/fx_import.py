"""An FX graph of aten operators becomes a module in the raw torch dialect.

No decompositions run: norms, rotary embeddings, products and activations arrive as torch wrote
them, for `qfuse-raise-torch` to recognise.  Weights are function arguments, never literals.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch.fx.node import Target

from qfuse.dialects import registry
from qfuse.dialects.bindings import ir
from qfuse.dialects.bindings_fx import ContextCache, FxImporter
from qfuse.dialects.errors import QfuseError

aten = torch.ops.aten


@dataclass(frozen=True)
class Argument:
    """What an argument or a result of `@main` is: its `qfuse.kind` and `qfuse.name`.

    Kinds of arguments are "parameter", "input" and "cache", of results "output" and "cache".
    """

    kind: str
    name: str


def import_graph(
    graph: fx.Graph,
    arguments: Mapping[str, Argument],
    results: tuple[Argument, ...],
    strip: str = "",
) -> ir.Module:
    """Import `graph`, whose placeholders are described by `arguments` (by node name).

    Operations are located by the path of the layer they come from, less the prefix `strip`.
    Raises QfuseError, naming the operator and its layer, for a graph that cannot be imported.
    """
    context = ir.Context()
    with context:
        registry.load_all()
        importer = FxImporter(context=context)
        locations = _LayerLocations(context, strip)
        importer._cc = locations
        try:
            function = importer.import_stateless_graph(graph, func_name="main")
        except Exception as error:
            raise QfuseError(locations.failure(error)) from error
        nodes = [node for node in graph.nodes if node.op == "placeholder"]
        function.attributes["arg_attrs"] = _attributes([arguments[node.name] for node in nodes])
        function.attributes["res_attrs"] = _attributes(results)
        try:
            importer.module.operation.verify()
        except ir.MLIRError as error:
            raise QfuseError(f"the imported graph does not verify: {_line(error)}") from error
    return importer.module


def simplify(graph: fx.Graph, devices: Sequence[str] = ("cpu", "meta")) -> None:
    """Remove what says nothing to a compiler: shape assertions, no-op casts, aliases, dead nodes.

    Every rewrite keeps each value bit for bit.  A program is for one device, which is said when
    it runs: where an operator names one of the kinds `devices`, it names the cpu afterwards.
    Requires `meta["val"]` on every node and a graph without side effects.
    """
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _ASSERTIONS:
            graph.erase_node(node)
            continue
        rule = _RULES.get(node.target)
        new = rule(node) if rule is not None else None
        if new is not None and new is not node:
            node.replace_all_uses_with(new)
            graph.erase_node(node)
            continue
        device = node.kwargs.get("device")
        if device is not None and torch.device(device).type in devices:
            node.update_kwarg("device", torch.device("cpu"))
    eliminate_dead(graph)


def eliminate_dead(graph: fx.Graph) -> None:
    """Erase operators nobody reads; also those torch calls impure, such as assertions' inputs."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)


def unused(graph: fx.Graph) -> list[fx.Node]:
    """The placeholders nobody reads."""
    return [n for n in graph.nodes if n.op == "placeholder" and not n.users]


def operand(node: fx.Node, index: int = 0) -> fx.Node:
    """An argument of a node that its operator's schema makes a tensor."""
    return cast(fx.Node, node.args[index])


def _cast(node: fx.Node) -> fx.Node | None:
    """Any spelling of a cast is `aten.to.dtype`, and one to the same type is nothing."""
    source, result = operand(node), node.meta["val"]
    before = source.meta["val"]
    if before.device != result.device:
        return None
    if before.dtype == result.dtype:
        # `_to_copy` promises fresh memory, which only a caller could tell
        copied = node.target is aten._to_copy.default and _is_result(node)
        return None if copied or str(before.stride()) != str(result.stride()) else source
    if node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs:
        return None
    with node.graph.inserting_before(node):
        new = node.graph.call_function(aten.to.dtype, (source, result.dtype))
    new.meta = dict(node.meta)
    return new


def _is_result(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _contiguous(node: fx.Node) -> fx.Node | None:
    return operand(node) if operand(node).meta["val"].is_contiguous() else None


def _dropout(node: fx.Node) -> fx.Node | None:
    return operand(node) if not node.args[2] or node.args[1] == 0 else None


def _times_one(node: fx.Node) -> fx.Node | None:
    """x * 1.0 for a float x, which torch writes for a rotary scaling factor of one."""
    if len(node.args) != 2 or not isinstance(node.args[1], float) or node.args[1] != 1.0:
        return None
    source = operand(node)
    return source if source.meta["val"].dtype == node.meta["val"].dtype else None


def _slice(node: fx.Node) -> fx.Node | None:
    """A slice of all there is, as of the lanes that a rotary embedding leaves alone."""
    given: list[Any] = list(node.args[1:])
    dim, start, end, step = given + list(_SLICE_DEFAULTS[len(given) :])
    if start not in (None, 0) or step != 1 or _is_result(node):
        return None
    extent = operand(node).meta["val"].shape[dim]
    is_open = end is None or (isinstance(end, int) and end >= _TO_THE_END)
    is_whole = isinstance(end, int) and isinstance(extent, int) and end >= extent
    return operand(node) if is_open or is_whole else None


_SLICE_DEFAULTS = (0, None, None, 1)
"""The arguments of `aten.slice.Tensor` after its tensor where they are left out: dim to step."""


def _cat(node: fx.Node) -> fx.Node | None:
    """What holds no elements adds none."""
    parts = cast(list[fx.Node], node.args[0])
    type_ = node.meta["val"].dtype
    filled = [p for p in parts if not _is_empty(p)]
    if not filled or any(p.meta["val"].dtype != type_ for p in parts):
        return None
    if len(filled) == 1 and not _is_result(node):
        return filled[0]
    if len(filled) < len(parts):
        node.update_arg(0, filled)
    return None


def _is_empty(node: fx.Node) -> bool:
    return any(isinstance(extent, int) and extent == 0 for extent in node.meta["val"].shape)


def _mean(node: fx.Node) -> None:
    """The last dimension is -1 however it was written, so that a norm looks the same everywhere."""
    if len(node.args) > 1 and node.args[1] == [operand(node).meta["val"].dim() - 1]:
        node.update_arg(1, [-1])


def _view(node: fx.Node) -> None:
    """In a graph without side effects an unsafe view is a view."""
    node.target = aten.view.default


_TO_THE_END = 2**63 - 1
"""Where torch ends a slice that names no end."""

_ASSERTIONS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)

_RULES: dict[Target, Callable[[fx.Node], fx.Node | None]] = {
    aten.alias.default: operand,
    aten.detach.default: operand,
    aten.lift_fresh_copy.default: operand,
    aten.to.dtype: _cast,
    aten.to.dtype_layout: _cast,
    aten.to.device: _cast,
    aten.to.other: _cast,
    aten.type_as.default: _cast,
    aten._to_copy.default: _cast,
    torch.ops.prims.convert_element_type.default: _cast,
    aten.contiguous.default: _contiguous,
    aten.dropout.default: _dropout,
    aten.mul.Tensor: _times_one,
    aten.mean.dim: _mean,
    aten.slice.Tensor: _slice,
    aten.cat.default: _cat,
    aten._unsafe_view.default: _view,
}
"""Node to what replaces it; None keeps the node, perhaps changed in place."""


class _LayerLocations(ContextCache):
    """Locates operations by layer, `loc("model.layers.0.mlp.gate_proj")`, for remarks to name.

    The stock importer writes the Python call stack instead, which names transformers' files.
    """

    def __init__(self, context: ir.Context, strip: str) -> None:
        super().__init__(context)
        self._strip = strip
        self._node: fx.Node | None = None

    def get_node_location(self, node: fx.Node) -> ir.Location:
        self._node = node
        return ir.Location.name(layer_of(node, self._strip) or node.name, context=self._c)

    def failure(self, error: Exception) -> str:
        """One line that says which operator could not be imported, where and why."""
        node = self._node
        if node is None or node.op != "call_function":
            return f"the graph cannot be imported: {_line(error)}"
        where = layer_of(node, self._strip)
        place = f" in {where}" if where else ""
        return f"operator {node.target}{place} cannot be imported: {_line(error)}"


def layer_of(node: fx.Node, strip: str = "") -> str:
    """Qualified name of the innermost module that made `node`, less a prefix, or ""."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    # Dynamo's name of the model: a local variable, or one of `args` where forward is wrapped.
    root = r"^L(\['\w+'\]|__\w+__)(\[\d+\])?\.?"
    path = re.sub(root, "", next(reversed(stack.values()))[0])
    return "" if path.startswith("_empty_nn_module_stack") else path.removeprefix(strip)


def _line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _attributes(descriptions: list[Argument] | tuple[Argument, ...]) -> ir.ArrayAttr:
    return ir.ArrayAttr.get(
        [
            ir.DictAttr.get(
                {"qfuse.kind": ir.StringAttr.get(d.kind), "qfuse.name": ir.StringAttr.get(d.name)}
            )
            for d in descriptions
        ]
    )
