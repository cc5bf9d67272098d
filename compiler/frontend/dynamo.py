"""`torch.compile(model, backend="qfuse")`.

Dynamo hands over a graph, AOTAutograd makes it functional, and what can be imported is compiled;
everything else runs on torch.  Nothing here fails a program that torch can run: a graph that
needs gradients, an operator that cannot be imported and a refusal of the compiler each leave a
remark in the log `qfuse` and the graph runs as it would have without us.
"""

import logging
import operator
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import TorchDynamoException
from torch._dynamo.utils import counters
from torch._guards import TracingContext
from torch._subclasses import FakeTensorMode

from qfuse.compiler import torch_ops
from qfuse.compiler.changes import Held, held, stamp
from qfuse.compiler.exclusive import exclusive
from qfuse.compiler.frontend.fx_import import Argument, import_graph, simplify, unused
from qfuse.compiler.frontend.imported import Imported, TensorSpec
from qfuse.compiler.frontend.recompose import recompose_linears
from qfuse.compiler.frontend.torchao_graphs import open_weights
from qfuse.compiler.options import CompileOptions
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.driver import kind_at_hand

log = logging.getLogger("qfuse")

Compiled = Callable[..., Sequence[Any]]


def qfuse_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The torch.compile backend; `options` are those of `compile`: `target`, `disable`, `blas`,
    `quantize_rounding` and `tune`.

    Without a target, the model is compiled for where it is: the cpu, or the GPU at hand.
    Parameters and buffers become weights, packed once; changing them afterwards is noticed at
    the next call and packs them again, unless the change goes through `.data`, of which torch
    keeps no record.  `mode` has no meaning here.
    """
    if mode not in (None, "default"):
        log.warning("remark: torch.compile mode %r has no effect on the backend qfuse", mode)

    chosen = CompileOptions.from_mapping(options or {})  # a mistake here is the user's to hear of
    if "target" not in (options or {}) and _on_gpu(example_inputs):
        try:
            chosen = replace(chosen, target=CompileOptions.make(kind_at_hand()).target)
        except QfuseError as error:  # a GPU that there are no kernels for
            _remark("a graph runs on torch", error)
            return gm.forward
    original = gm
    gm, inputs, names, expand = open_weights(gm, example_inputs, _names(gm), _remark)
    _remark_graph_breaks()

    def inference(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        return _boxed(GraphProgram(graph, _fixed_inputs(), names, chosen))

    def forward(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        log.warning(
            "remark: a graph that needs gradients runs on torch; to compile it, call the model "
            "under torch.no_grad() or freeze it with model.requires_grad_(False)"
        )
        return _boxed(graph.forward)

    def backward(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        return _boxed(graph.forward)

    try:
        compiled = aot_autograd(
            fw_compiler=forward, bw_compiler=backward, inference_compiler=inference
        )(gm, inputs)
    except TorchDynamoException:  # how Dynamo asks itself to trace again
        raise
    except Exception as error:  # whatever AOTAutograd cannot trace, torch may still run
        _remark("AOTAutograd cannot trace the graph", error)
        return original.forward
    if gm is original:
        return compiled

    def opened(*args: Any) -> Any:
        try:
            arguments = expand(args)
        except QfuseError as error:
            _remark("a call runs on torch", error)
            return original.forward(*args)
        return compiled(*arguments)

    return opened


class GraphProgram:
    """One inference graph, compiled at its first call, when its weights are known.

    `fixed` are the positions of arguments that stay the same tensors over calls (parameters and
    buffers that the graph does not change); `names` names all arguments in the user's terms.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        fixed: Sequence[int],
        names: Sequence[str],
        options: CompileOptions,
    ) -> None:
        self._graph = graph
        self._fixed = tuple(fixed)
        self._names = names
        self._options = options
        self._made: _Made | None = None  # replaced as a whole: other threads may be reading it

    def __call__(self, *args: Any) -> Sequence[Any]:
        made = self._made
        if made is None or not made.serves(args):
            made = self._make(args)
        return made.run(*args)

    @exclusive
    def _make(self, args: Sequence[Any]) -> "_Made":
        """Compile for the weights in `args`; on any refusal, leave a remark and run on torch."""
        if self._made is not None:
            if self._made.serves(args):  # another thread was faster
                return self._made
            self._release_changing(self._made.changed(args), args)
        # before they are packed: what changes meanwhile is noticed at the next call
        weights = {i: held(args[i]) for i in self._fixed}
        try:
            tensors = {i: args[i] for i in self._fixed}
            run = compile_graph(self._graph, tensors, self._names, self._options)
            self._made = _Made(weights, run)
        except Exception as error:  # a fault of ours must not fail a program that torch can run
            _remark("a graph runs on torch", error)
            self._made = _Made({}, self._graph.forward)
        return self._made

    def _release_changing(self, changed: Sequence[int], args: Sequence[Any]) -> None:
        """A buffer that changed between calls is an input and no weight: read it at every call."""
        log.warning("remark: %d weights changed between calls; compiling again", len(changed))
        buffers = {i for i in changed if not isinstance(args[i], torch.nn.Parameter)}
        self._fixed = tuple(i for i in self._fixed if i not in buffers)


class _Made:
    """What a graph was compiled to, for weights at some positions of its arguments."""

    def __init__(self, weights: Mapping[int, Held], run: Compiled) -> None:
        self.run = run
        self._weights = weights
        self._stamps = [(i, weight.stamp) for i, weight in weights.items()]

    def serves(self, args: Sequence[Any]) -> bool:
        return all(stamp(args[i]) == old for i, old in self._stamps)

    def changed(self, args: Sequence[Any]) -> list[int]:
        """The positions of the weights that `args` have others for."""
        return [i for i, old in self._stamps if stamp(args[i]) != old]


def compile_graph(
    source: fx.GraphModule,
    weights: Mapping[int, torch.Tensor],
    names: Sequence[str],
    options: CompileOptions,
) -> Compiled:
    """Compile a functional aten graph whose arguments at the positions `weights` are fixed.

    Returns a callable over all arguments of the graph, weights included, that returns the list
    of its results.  Raises QfuseError if the graph cannot be imported or compiled.
    """
    # imported here, because the compiler imports the front ends
    from qfuse.compiler.compilation import compile_imported

    imported, inputs, recipe = import_functional(source, weights, names, options.target.devices)
    if not recipe.computed:
        raise QfuseError("the graph computes nothing")
    compiled = compile_imported(imported, options)
    session = compiled if options.target.is_cpu else compiled.session(device=_device(source))
    if not compiled.program.kernels:
        log.warning(
            "remark: there is no product in a graph, nor anything else that qfuse has kernels for; "
            "all of it runs on torch"
        )

    def run(*args: Any) -> list[Any]:
        return recipe.results(args, session(*(args[i] for i in inputs)))

    return run


class Recipe:
    """How the results of a graph come about: computed, an argument passed through, or constant."""

    def __init__(self, outputs: Sequence[Any], positions: Mapping[str, int]) -> None:
        self.computed: list[fx.Node] = []
        self._sources: list[tuple[str, Any]] = []
        for value in outputs:
            if not isinstance(value, fx.Node):
                self._sources.append(("constant", value))
            elif value.op == "placeholder":
                self._sources.append(("argument", positions[value.name]))
            elif isinstance(value.meta["val"], torch.Tensor):
                self._sources.append(("computed", len(self.computed)))
                self.computed.append(value)
            else:
                raise QfuseError(
                    f"the graph returns {value.name}, a number and not a tensor; "
                    "supported: tensors and sizes of arguments"
                )

    def results(self, args: Sequence[Any], computed: Sequence[torch.Tensor]) -> list[Any]:
        """All results, from the arguments of the call and the computed ones."""
        origin = {"computed": computed, "argument": args}
        return [
            value if kind == "constant" else origin[kind][value] for kind, value in self._sources
        ]


def import_functional(
    source: fx.GraphModule,
    weights: Mapping[int, torch.Tensor],
    names: Sequence[str] = (),
    devices: Sequence[str] = ("cpu", "meta"),
) -> tuple[Imported, list[int], Recipe]:
    """Import a functional aten graph of AOTAutograd, with its tensors on one of `devices`.

    `weights` are the tensors at the positions that hold parameters; `names` names all arguments
    and is ignored if it does not fit.  Returns the program, the positions of the arguments it
    takes at run time, and how to make the graph's results from its own.

    Raises QfuseError for a graph that cannot be imported.
    """
    graph = fx.Graph()
    outputs = graph.graph_copy(source.graph, {})
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    positions = {node.name: i for i, node in enumerate(placeholders)}
    recipe = Recipe(outputs if isinstance(outputs, (tuple, list)) else [outputs], positions)
    graph.output(tuple(recipe.computed))
    fx.GraphModule(source, graph)  # the importer asks for an owner

    parameters: dict[str, torch.Tensor] = {}
    arguments: dict[str, Argument] = {}
    if len(names) != len(placeholders):
        names = [node.name for node in placeholders]
    for i, node in enumerate(placeholders):
        _check_device(node, devices)
        kind = "parameter" if i in weights else "input"
        arguments[node.name] = Argument(kind, names[i])
        if i in weights:
            parameters[node.name] = weights[i].detach()
    _lift_constants(source, graph, arguments, parameters)
    _derive_sizes(graph)
    recompose_linears(graph)
    simplify(graph, devices)
    for node in unused(graph):
        if isinstance(node.meta["val"], torch.SymInt) or arguments[node.name].kind == "parameter":
            graph.erase_node(node)

    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs = [node for node in placeholders if arguments[node.name].kind == "input"]
    for node in inputs:
        if not isinstance(node.meta["val"], torch.Tensor):
            raise QfuseError(
                f"argument {node.name} is a number and no tensor's size; supported: tensors"
            )
    results = tuple(Argument("output", f"output.{i}") for i in range(len(recipe.computed)))
    live = next(node for node in graph.nodes if node.op == "output").args[0]
    imported = Imported(
        module=import_graph(graph, arguments, results),
        parameters={
            arguments[n.name].name: parameters[n.name] for n in placeholders if n.name in parameters
        },
        inputs=tuple(_spec(node, arguments[node.name].name) for node in inputs),
        outputs=tuple(_spec(node, a.name) for node, a in zip(live, results, strict=True)),
    )
    return imported, [positions[node.name] for node in inputs], recipe


def serve_transformers_fp8() -> None:
    """Let transformers' `FP8Linear` run on a CPU, where its own kernels do not exist.

    Only calls with CPU tensors change, and without us those raise ImportError.  Does nothing if
    transformers' FP8 integration is not loaded; a second call does nothing.
    """
    integration: Any = sys.modules.get("transformers.integrations.finegrained_fp8")
    if integration is None or hasattr(integration.fp8_linear, "serves_cpu"):
        return
    original = integration.fp8_linear

    def fp8_linear(
        input: torch.Tensor,
        weight: torch.Tensor,
        weight_scale_inv: torch.Tensor,
        block_size: Sequence[int] | None = None,
        bias: torch.Tensor | None = None,
        activation_scale: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if (
            input.device.type != "cpu"
            or block_size is None
            or activation_scale is not None
            or weight.dtype not in torch_ops.FP8_MAX
        ):
            return original(
                input, weight, weight_scale_inv, block_size, bias, activation_scale, *args, **kwargs
            )
        return torch.ops.qfuse.quantized_linear(
            input, weight, weight_scale_inv.float(), bias, list(block_size), [1, block_size[1]]
        )

    fp8_linear.serves_cpu = True  # type: ignore[attr-defined]
    integration.fp8_linear = fp8_linear


def _names(gm: fx.GraphModule) -> list[str]:
    """Name of each argument of Dynamo's graph: a parameter's qualified name, else the graph's."""
    names: list[str] = []
    for node in gm.graph.nodes:
        if node.op != "placeholder":
            continue
        source = getattr(getattr(node, "_dynamo_source", None), "name", "")
        path = str(source() if callable(source) else source)  # a method before torch 2.12
        name = ".".join(re.findall(r"_(?:modules|parameters|buffers)\['([^']+)'\]", path))
        names.append(name if name and name not in names else node.name)
    return names


def _fixed_inputs() -> list[int]:
    """Positions of parameters and buffers among the graph's arguments that it does not change."""
    context = TracingContext.try_get()
    metadata = context.fw_metadata if context is not None else None
    if metadata is None:
        return []
    mutated = {i for i, info in enumerate(metadata.input_info) if info.mutates_data}
    return [i for i in metadata.static_input_indices if i not in mutated]


def _boxed(function: Callable[..., Any]) -> Callable[..., Any]:
    """AOTAutograd's calling convention: one list of arguments, emptied to release them early."""

    def call(args: list[Any]) -> Any:
        values = list(args)
        args.clear()
        return function(*values)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


_reported_breaks: set[str] = set()


def _remark_graph_breaks() -> None:
    """Say, once each, why Dynamo cut a model into several graphs; each is compiled by itself."""
    for reason in counters["graph_break"]:
        if reason not in _reported_breaks:
            _reported_breaks.add(reason)
            log.warning("remark: a graph break: %s", reason.strip().partition("\n")[0])


def _remark(what: str, error: BaseException) -> None:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    log.warning("remark: %s: %s", what, reason[0])


def _on_gpu(example_inputs: Sequence[Any]) -> bool:
    """Whether some tensor of a graph is on a GPU."""
    tensors = (value for value in example_inputs if isinstance(value, torch.Tensor))
    return any(value.device.type == "cuda" for value in tensors)


def _device(source: fx.GraphModule) -> torch.device | None:
    """Which GPU the tensors of a graph are on; None if they are on none."""
    values = (node.meta.get("val") for node in source.graph.nodes)
    places = (value.device for value in values if isinstance(value, torch.Tensor))
    return next((place for place in places if place.type == "cuda"), None)


def _check_device(node: fx.Node, devices: Sequence[str]) -> None:
    value = node.meta["val"]
    if isinstance(value, torch.Tensor) and value.device.type not in devices:
        raise QfuseError(
            f"argument {node.name} is on {value.device}; the target takes {', '.join(devices)}"
        )


def _lift_constants(
    source: fx.GraphModule,
    graph: fx.Graph,
    arguments: dict[str, Argument],
    parameters: dict[str, torch.Tensor],
) -> None:
    """Tensors held by the graph module become parameters: no data ever enters the IR."""
    lifted: dict[str, fx.Node] = {}
    fakes = FakeTensorMode()
    first = next(iter(graph.nodes))
    for node in [n for n in graph.nodes if n.op == "get_attr"]:
        target = str(node.target)
        if target not in lifted:
            tensor = operator.attrgetter(target)(source)
            if not isinstance(tensor, torch.Tensor):
                raise QfuseError(f"the graph calls {target}, a {type(tensor).__name__}")
            with graph.inserting_before(first):
                new = graph.placeholder(f"constant_{len(lifted)}")
            new.meta["val"] = fakes.from_tensor(tensor)
            lifted[target] = new
            arguments[new.name] = Argument("parameter", target)
            parameters[new.name] = tensor
        node.replace_all_uses_with(lifted[target])
        graph.erase_node(node)


def _derive_sizes(graph: fx.Graph) -> None:
    """Read symbolic sizes off the tensors that have them instead of from arguments of their own."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    tensors = [n for n in placeholders if isinstance(n.meta["val"], torch.Tensor)]
    where: dict[Any, tuple[fx.Node, int]] = {}
    for node in tensors:
        for dim, size in enumerate(node.meta["val"].shape):
            if isinstance(size, torch.SymInt):
                where.setdefault(size.node.expr, (node, dim))
    body = next(node for node in graph.nodes if node.op != "placeholder")
    for node in placeholders:
        value = node.meta["val"]
        if not isinstance(value, torch.SymInt) or value.node.expr not in where or not node.users:
            continue
        tensor, dim = where[value.node.expr]
        with graph.inserting_before(body):
            size = graph.call_function(torch.ops.aten.sym_size.int, (tensor, dim))
        size.meta["val"] = value
        node.replace_all_uses_with(size)


def _spec(node: fx.Node, name: str) -> TensorSpec:
    value = node.meta["val"]
    shape = tuple(None if isinstance(d, torch.SymInt) else int(d) for d in value.shape)
    return TensorSpec(name, shape, value.dtype)


# torch imports this module when `torch.compile(..., backend="qfuse")` is called, before tracing.
serve_transformers_fp8()
