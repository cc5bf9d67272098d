"""GPU kernels as part of the host module: a `TritonKernel` or `GpuKernel` as operations, and back.

As Triton IR, after `embed`:

    func.func private @matmul_0(...) -> ...  attributes {qfuse.kernel, qfuse.target = "cuda:sm_90",
        qfuse.parameters = ["operand 0", "operand 0 scale", ..., "result 0"],
        qfuse.variants = [{first_m = 1, last_m = 16, launches = [@matmul_0_split_launch]}, ...]}
    module @matmul_0_split_launch attributes {qfuse.grid = {...}, qfuse.parameters = [...], ...} {
      "tt.func"() ...
    }

As machine code, after `embed_binaries`, `gpu.binary @matmul_0_split_launch [#gpu.object<...>]`
stands for each of those modules; what starting it takes is among the properties of the object.
"""

from dataclasses import asdict
from typing import Any

from qfuse.dialects import tt
from qfuse.dialects.bindings import func, gpu_dialect, ir
from qfuse.dialects.errors import QfuseError
from qfuse.lowering.triton.gpu import find_gpu
from qfuse.lowering.triton.gpu_kernel import GpuKernel, GpuLaunch
from qfuse.lowering.triton.kernel import Grid, Launch, Parameter, TritonKernel, Variant
from qfuse.lowering.triton.module import module_text, read_module

TARGET, PARAMETERS, VARIANTS = "qfuse.target", "qfuse.parameters", "qfuse.variants"
GRID, OPTIONS = "qfuse.grid", "qfuse.options"

_SUFFIX = "_launch"
"""Of the symbol of a launch: its name alone may be that of the kernel."""

_BINARY_FORMAT = 3
"""gpu::CompilationTarget::Binary: machine code, printed as `bin`."""

_CODE_TARGETS = {"cuda": "#nvvm.target<chip = {}>", "hip": "#rocdl.target<chip = {}>"}


def embed(function: func.FuncOp, kernel: TritonKernel) -> None:
    """Replace an outlined function by a declaration of `kernel`, and its Triton IR."""
    tt.load()
    variants = []
    with ir.InsertionPoint(function), function.location:
        for variant in kernel.variants:
            names = tuple(launch.name + _SUFFIX for launch in variant.launches)
            variants.append(_attribute({**asdict(variant), "launches": names}))
        for launch in _distinct(kernel):
            _insert_module(launch)
        declaration = func.FuncOp(function.name.value, function.type, visibility="private")
    attributes = declaration.operation.attributes
    for name in function.operation.attributes:
        if name not in attributes:
            attributes[name] = function.operation.attributes[name]
    attributes[TARGET] = ir.StringAttr.get(kernel.target)
    attributes[PARAMETERS] = _parameters_attr(kernel.parameters)
    attributes[VARIANTS] = ir.ArrayAttr.get(variants)
    function.erase()


def read_kernel(function: func.FuncOp) -> TritonKernel:
    """The inverse of `embed`."""
    modules = _symbols(function)

    def launch(symbol: str) -> Launch:
        operation = modules[symbol]
        attributes = operation.attributes
        return Launch(
            symbol.removesuffix(_SUFFIX),
            module_text(_standalone(operation)),
            _parameters(attributes[PARAMETERS]),
            Grid(**_value(attributes[GRID])),
            **_value(attributes[OPTIONS]),
        )

    variants = tuple(
        Variant(**{"last_m": None, **v, "launches": tuple(map(launch, v["launches"]))})
        for v in _value(function.operation.attributes[VARIANTS])
    )
    return TritonKernel(function.name.value, *_target_and_parameters(function), variants)


def embed_binaries(function: func.FuncOp, kernel: GpuKernel) -> None:
    """Replace the Triton IR of a declared kernel by machine code."""
    modules = _symbols(function)
    for launch in _distinct(kernel):
        symbol = launch.name + _SUFFIX
        old = modules[symbol]
        with ir.InsertionPoint(old), old.location:
            ir.Operation.create(
                "gpu.binary",
                attributes={
                    "sym_name": ir.StringAttr.get(symbol),
                    "objects": ir.ArrayAttr.get([_object(kernel.target, launch)]),
                    # what its parser puts where nothing is written; printing fails without
                    "offloadingHandler": ir.Attribute.parse("#gpu.select_object"),
                    PARAMETERS: _parameters_attr(launch.parameters),
                    GRID: _attribute(asdict(launch.grid)),
                },
            )
        old.erase()


def _distinct(kernel: TritonKernel | GpuKernel) -> list[Any]:
    """The launches of a kernel; two variants may share one."""
    found: dict[str, Any] = {}
    for variant in kernel.variants:
        for launch in variant.launches:
            if found.setdefault(launch.name, launch) != launch:
                raise QfuseError(
                    f"internal error: kernel {kernel.name} has two launches named {launch.name}"
                )
    return list(found.values())


def is_binary(function: func.FuncOp) -> bool:
    """Whether `embed_binaries` has been here."""
    first = _value(function.operation.attributes[VARIANTS])[0]["launches"][0]
    return _symbols(function)[first].name == "gpu.binary"


def _insert_module(launch: Launch) -> None:
    module = read_module(launch.text)
    operation = module.operation
    operation.attributes["sym_name"] = ir.StringAttr.get(launch.name + _SUFFIX)
    operation.attributes[PARAMETERS] = _parameters_attr(launch.parameters)
    operation.attributes[GRID] = _attribute(asdict(launch.grid))
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    operation.attributes[OPTIONS] = _attribute(options)
    operation.clone()


def _standalone(operation: ir.Operation) -> ir.Module:
    """The kernel inside an embedded module, in a module without name and attributes."""
    with operation.context, ir.Location.unknown():
        module = ir.Module.create()
        for inner in operation.regions[0].blocks[0].operations:
            inner.operation.clone(ir.InsertionPoint(module.body))
    return module


def _object(target: str, launch: GpuLaunch) -> ir.Attribute:
    gpu = find_gpu(target)
    code_target = ir.Attribute.parse(_CODE_TARGETS[gpu.kind].format(f'"{gpu.arch}"'))
    properties = _attribute(
        {name: getattr(launch, name) for name in ("num_warps", "shared_bytes", "program_scratch")}
    )
    return gpu_dialect().ObjectAttr.get(code_target, _BINARY_FORMAT, launch.code, properties)


def _symbols(function: func.FuncOp) -> dict[str, ir.Operation]:
    """The operations of the module that `function` is in, by symbol."""
    block = function.operation.parent.regions[0].blocks[0]
    operations = [op.operation for op in block.operations]
    return {
        ir.StringAttr(op.attributes["sym_name"]).value: op
        for op in operations
        if "sym_name" in op.attributes
    }


def _target_and_parameters(function: func.FuncOp) -> tuple[str, tuple[Parameter, ...]]:
    attributes = function.operation.attributes
    return ir.StringAttr(attributes[TARGET]).value, _parameters(attributes[PARAMETERS])


def _parameters_attr(parameters: tuple[Parameter, ...]) -> ir.Attribute:
    texts = [f"{p.source} {p.index} {p.part}".removesuffix(" data") for p in parameters]
    return ir.ArrayAttr.get([ir.StringAttr.get(text) for text in texts])


def _parameters(attribute: ir.Attribute) -> tuple[Parameter, ...]:
    def read(text: str) -> Parameter:
        source, index, *part = text.split()
        return Parameter(source, int(index), *part)  # type: ignore[arg-type]

    return tuple(read(ir.StringAttr(item).value) for item in ir.ArrayAttr(attribute))


def _attribute(value: Any) -> ir.Attribute:
    """Plain data as an attribute; names of launches are symbols, None is left out."""
    if isinstance(value, dict):
        found = {key: _attribute(item) for key, item in value.items() if item is not None}
        return ir.DictAttr.get(found)
    if isinstance(value, tuple):
        return ir.ArrayAttr.get([_attribute(item) for item in value])
    if isinstance(value, str):
        return ir.FlatSymbolRefAttr.get(value)
    return ir.IntegerAttr.get(ir.IntegerType.get_signless(64), value)


def _value(attribute: ir.Attribute) -> Any:
    """The inverse of `_attribute`, without what was left out."""
    if isinstance(attribute, ir.DictAttr):
        return {named.name: _value(named.attr) for named in attribute}
    if isinstance(attribute, ir.ArrayAttr):
        return [_value(item) for item in attribute]
    return attribute.value
