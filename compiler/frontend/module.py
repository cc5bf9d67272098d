"""Any torch module as one graph, through torch.export."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

from qfuse.compiler import torch_ops
from qfuse.compiler.frontend.fx_import import Argument, import_graph, simplify, unused
from qfuse.compiler.frontend.imported import Imported, TensorSpec
from qfuse.compiler.frontend.quantized_modules import adopted_linears
from qfuse.compiler.frontend.recompose import recompose_linears
from qfuse.compiler.frontend.traces import export, forgotten_traces
from qfuse.dialects.errors import QfuseError

assert torch_ops.NAMESPACE == "qfuse"  # the operators that a graph may name are registered

_PARAMETERS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)


@forgotten_traces()
def import_module(
    model: torch.nn.Module,
    example_inputs: Sequence[Any] | None,
    dynamic_shapes: Any = None,
    devices: Sequence[str] = ("cpu", "meta"),
) -> Imported:
    """Import `model` for inputs like `example_inputs`; `dynamic_shapes` is torch.export's.

    Model and inputs may be on the kinds of device that `devices` names.

    Linear layers that another library quantized (quantized_modules.py) are imported with their
    codes and scales; `model` itself stays as it is.
    Parameters, buffers and constants become parameters of the program.  Raises QfuseError for
    what is no module or no sequence, if torch cannot export the model, if it changes a buffer or
    an input, or if an operator cannot be imported.
    """
    exported = _export(model, example_inputs, dynamic_shapes)
    tensors = {**exported.state_dict, **exported.constants}
    arguments: dict[str, Argument] = {}
    parameters: dict[str, torch.Tensor] = {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind in _PARAMETERS:
            name = str(spec.target)
            arguments[spec.arg.name] = Argument("parameter", name)
            parameters[name] = tensors[name].detach()
        elif spec.kind is InputKind.USER_INPUT:
            arguments[spec.arg.name] = Argument("input", spec.arg.name)
        else:
            raise QfuseError(
                f"{type(model).__name__}: inputs of kind {spec.kind.name} are no tensors"
            )
    for output in exported.graph_signature.output_specs:
        if output.kind is not OutputKind.USER_OUTPUT:
            raise QfuseError(
                f"{type(model).__name__} changes {output.target or output.arg.name}; only models "
                "that compute results from inputs can be compiled"
            )

    graph = exported.graph
    recompose_linears(graph)
    simplify(graph, devices)
    for node in unused(graph):
        if arguments[node.name].kind == "parameter":
            graph.erase_node(node)
    live = next(node for node in graph.nodes if node.op == "output").args[0]
    for i, value in enumerate(live):
        if not isinstance(value, torch.fx.Node) or not isinstance(value.meta["val"], torch.Tensor):
            raise QfuseError(
                f"result {i} of {type(model).__name__} is {value}; results must be tensors"
            )
    results = tuple(Argument("output", f"output.{i}") for i in range(len(live)))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in placeholders:
        value = node.meta["val"]
        if not isinstance(value, torch.Tensor):
            raise QfuseError(f"input {node.name} is {value!r}; inputs must be tensors")
        if value.device.type not in devices:
            raise QfuseError(
                f"{node.name} is on {value.device}; the target takes {', '.join(devices)}"
            )
    return Imported(
        module=import_graph(graph, arguments, results),
        parameters=parameters,
        inputs=tuple(
            _spec(node, node.name) for node in placeholders if arguments[node.name].kind == "input"
        ),
        outputs=tuple(_spec(node, a.name) for node, a in zip(live, results, strict=True)),
    )


def _export(
    model: torch.nn.Module, example_inputs: Sequence[Any] | None, dynamic_shapes: Any
) -> torch.export.ExportedProgram:
    """What torch.export makes of `model` in evaluation mode, with its linears adopted."""
    if not isinstance(model, torch.nn.Module):
        raise QfuseError(
            f"a {type(model).__name__} is no model; give a torch module, or the path of a "
            "checkpoint or GGUF file"
        )
    if example_inputs is None or isinstance(example_inputs, torch.Tensor):
        raise QfuseError(
            "compiling a torch module needs example_inputs, a sequence of tensors: (x,) for one"
        )
    training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), adopted_linears(model) as adopted:
            program = export(adopted.eval(), tuple(example_inputs), dynamic_shapes)
            return program.run_decompositions({})
    except QfuseError:
        raise
    except Exception as error:  # torch.export raises whatever the model's code does
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise QfuseError(f"torch.export cannot export {type(model).__name__}: {reason}") from error
    finally:
        for module, mode in training.items():
            module.training = mode


def _spec(node: torch.fx.Node, name: str) -> TensorSpec:
    value = node.meta["val"]
    shape = tuple(d if isinstance(d, int) else None for d in value.shape)
    return TensorSpec(name, shape, value.dtype)
