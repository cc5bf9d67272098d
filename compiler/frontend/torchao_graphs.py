"""Dynamo's graphs over weights of torchao: the products become `qfuse::quantized_linear`.

Dynamo hands over `linear(x, w)` with w a tensor subclass.  Left alone, AOTAutograd takes it apart
into torchao's own way to compute it.  Here each such w becomes the tensors that the operator
takes, made once and again when it changes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import AttrSource
from torch._guards import TracingContext

from qfuse.compiler.frontend import torchao_tensors
from qfuse.compiler.frontend.linear import (
    INPUT_SCALE,
    SCALE,
    WEIGHT,
    ZERO_POINT,
    LinearFormat,
)
from qfuse.dialects.errors import QfuseError

_LINEAR = (torch._C._nn.linear, torch.nn.functional.linear)

Expand = Callable[[Sequence[Any]], list[Any]]
"""Makes the arguments of the opened graph from those of the original; raises QfuseError if a
weight of the call does not have the format of the graph's, which no guard of Dynamo's tells."""


class OpenedWeight:
    """One weight of torchao as the tensors of `qfuse::quantized_linear`."""

    def __init__(self, name: str, weight: torch.Tensor) -> None:
        self.name = name
        self._stamp = _stamp(weight)
        self.format, self.tensors = torchao_tensors.read(name, weight)

    def of(self, weight: torch.Tensor) -> list[torch.Tensor]:
        """The tensors, made anew if the weight is not the one that it was."""
        if _stamp(weight) != self._stamp:
            format, tensors = torchao_tensors.read(self.name, weight)
            if format != self.format:
                raise QfuseError(
                    f"the weight of {self.name} is quantized in another way than the one that the "
                    "graph was compiled for"
                )
            self.tensors, self._stamp = tensors, _stamp(weight)
        return list(self.tensors.values())


def open_weights(
    gm: fx.GraphModule, inputs: Sequence[Any], names: Sequence[str], remark: Callable[..., None]
) -> tuple[fx.GraphModule, list[Any], list[str], Expand]:
    """A graph without weights of torchao, its example inputs, their names, and how calls get them.

    A weight that cannot be read, or that something else than linear layers reads, stays; `remark`
    says why.  Without any such weight, the graph stays as it is.
    """
    if not any(map(torchao_tensors.is_torchao, inputs)):
        return gm, list(inputs), list(names), list
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(gm.graph, copies))
    opened: dict[int, OpenedWeight] = {}
    new_names: list[str] = []
    originals = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for i, (original, name) in enumerate(zip(originals, names, strict=True)):
        node = copies[original]
        # where an argument comes from, which AOTAutograd asks and copying forgets
        node._dynamo_source = getattr(original, "_dynamo_source", None)  # type: ignore[attr-defined]
        weight = _open(node, inputs[i], name, remark)
        if weight is None:
            new_names.append(name)
            continue
        opened[i] = weight
        new_names += [_leaf(name, leaf) for leaf in weight.tensors]
        _rewrite(graph, node, weight)

    def expand(args: Sequence[Any]) -> list[Any]:
        expanded: list[Any] = []
        for i, value in enumerate(args):
            expanded += opened[i].of(value) if i in opened else [value]
        return expanded

    examples: list[Any] = []
    for i, value in enumerate(inputs):
        examples += map(_static, opened[i].of(value)) if i in opened else [value]

    new = fx.GraphModule(gm, graph)
    new.meta = dict(gm.meta)
    if (sources := getattr(gm, "_param_name_to_source", None)) is not None:
        new._param_name_to_source = sources
    return new, examples, new_names, expand


def _open(
    node: fx.Node, weight: Any, name: str, remark: Callable[..., None]
) -> OpenedWeight | None:
    if not torchao_tensors.is_torchao(weight):
        return None
    layer = name.removesuffix(".weight")
    for user in node.users:
        if user.target not in _LINEAR or user.args[:1] == (node,) or user.args[1] is not node:
            error = QfuseError(f"{user.target} reads {name}, a weight of torchao")
            remark("a weight stays as it is", error)
            return None
    try:
        return OpenedWeight(layer, weight)
    except Exception as error:  # torchao's tensors change from release to release
        remark("a linear layer runs on torch", error)
        return None


def _rewrite(graph: fx.Graph, node: fx.Node, weight: OpenedWeight) -> None:
    parts: dict[str, fx.Node] = {}
    source = node._dynamo_source  # type: ignore[attr-defined]
    for leaf in weight.tensors:
        with graph.inserting_before(node):
            parts[leaf] = part = graph.placeholder(f"{node.name}_{leaf}")
        part.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
        place = None if source is None else AttrSource(source, leaf)
        part._dynamo_source = place  # type: ignore[attr-defined]
    for user in list(node.users):
        arguments = dict(zip(("input", "weight", "bias"), user.args, strict=False)) | user.kwargs
        with graph.inserting_before(user):
            new = graph.call_function(
                torch.ops.qfuse.quantized_linear.default,
                _arguments(arguments["input"], parts, arguments.get("bias"), weight.format),
            )
        new.meta = dict(user.meta)
        user.replace_all_uses_with(new)
        graph.erase_node(user)
    graph.erase_node(node)


def _arguments(
    x: Any, parts: dict[str, fx.Node], bias: Any, format: LinearFormat
) -> tuple[Any, ...]:
    """Those of `qfuse::quantized_linear`."""
    return (
        x,
        parts[WEIGHT],
        parts[SCALE],
        bias,
        list(format.weight_block),
        list(format.input_block),
        format.packing,
        format.input_format,
        parts.get(ZERO_POINT),
        parts.get(INPUT_SCALE),
    )


def _static(tensor: torch.Tensor) -> torch.Tensor:
    """What AOTAutograd traces with: it would take the extents of a tensor new to it for dynamic."""
    context = TracingContext.try_get()
    if context is None or context.fake_mode is None:
        return tensor
    return context.fake_mode.from_tensor(tensor, static_shapes=True)


def _leaf(weight: str, leaf: str) -> str:
    """`layer.weight` names the weight itself, `layer.weight_scale_inv` its scales."""
    return weight if leaf == WEIGHT else f"{weight.removesuffix(WEIGHT)}{leaf}"


def _stamp(weight: torch.Tensor) -> tuple[Any, ...]:
    """Changes whenever a weight may have changed."""
    names, _ = weight.__tensor_flatten__()  # type: ignore[attr-defined]
    inner = [getattr(weight, name) for name in names]
    return tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in inner)
