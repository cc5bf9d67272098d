"""Reading types, constants and attributes of a module as the plan wants them."""

import math
import re
from typing import Any

import numpy as np
import torch

from qfuse.compiler.passes.outline import ROWS
from qfuse.compiler.runtime.plan import DTYPES, DYNAMIC, KernelType, TensorType
from qfuse.compiler.torch_ir import builtin_type
from qfuse.dialects.bindings import func, ir
from qfuse.dialects.errors import QfuseError
from qfuse.dialects.types import shaped
from qfuse.lowering.cpu.kernel import CompiledKernel
from qfuse.lowering.cpu.kernel import Parameter as CpuParameter
from qfuse.lowering.triton.gpu_kernel import GpuKernel

_DTYPE_NAMES = {
    **{"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"},
    **{"f8E4M3FN": "float8_e4m3fn", "f8E5M2": "float8_e5m2", "f8E8M0FNU": "float8_e8m0fnu"},
    **{"i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "ui8": "uint8"},
    **{"si64": "int64", "si32": "int32", "si16": "int16", "si8": "int8", "i1": "bool"},
}

# torch's ScalarType numbers (c10/core/ScalarType.h), which stand for dtypes in the torch dialect
_SCALAR_TYPES = {
    **{0: "uint8", 1: "int8", 2: "int16", 3: "int32", 4: "int64", 5: "float16", 6: "float32"},
    **{7: "float64", 11: "bool", 15: "bfloat16", 23: "float8_e5m2", 24: "float8_e4m3fn"},
    **{44: "float8_e8m0fnu"},
}
_MEMORY_FORMATS = (
    torch.contiguous_format,
    torch.preserve_format,
    torch.channels_last,
    torch.channels_last_3d,
)


def kernel_type(name: str, function: func.FuncOp, kernel: CompiledKernel | GpuKernel) -> KernelType:
    """The types of the tensors behind the kernel's pointers, in order."""
    types = {"operand": list(function.type.inputs), "result": list(function.type.results)}
    listed: dict[str, list[TensorType | None]] = {"operand": [], "result": []}
    for parameter in kernel.parameters:
        value = shaped(types[parameter.source][parameter.index])
        if isinstance(parameter, CpuParameter) and parameter.packed:
            listed[parameter.source].append(None)
        elif parameter.part == "data":
            listed[parameter.source].append(_type(value.data_shape, value.data_dtype))
        else:
            assert value.scheme is not None
            dtype = value.scheme.scale if parameter.part == "scale" else "i8"
            listed[parameter.source].append(_type(value.scale_shape, dtype))
    rows = None
    if ROWS in function.operation.attributes:
        operand, dims = ir.DenseI64ArrayAttr(function.operation.attributes[ROWS])
        places = [(p.source, p.index, p.part) for p in kernel.parameters]
        rows = (places.index(("operand", operand, "data")), dims)
    return KernelType(
        name,
        tuple(listed["operand"]),
        tuple(t for t in listed["result"] if t is not None),
        rows,
    )


def _type(shape: tuple[int, ...], dtype: str) -> TensorType:
    if dtype not in _DTYPE_NAMES:
        raise QfuseError(f"the runtime has no element type {dtype}")
    dynamic = ir.ShapedType.get_dynamic_size()
    return TensorType(tuple(DYNAMIC if d == dynamic else d for d in shape), _DTYPE_NAMES[dtype])


def tensor_type(type_: ir.Type, what: str) -> TensorType:
    builtin = type_ if isinstance(type_, ir.RankedTensorType) else builtin_type(type_)
    if builtin is None:
        raise QfuseError(f"{what} is {type_}; it needs a known rank and element type")
    # builtin types have lost the sign, and uint8 differs from int8
    unsigned = "ui8" if ",ui8>" in str(type_) else str(builtin.element_type)
    if unsigned not in _DTYPE_NAMES:
        raise QfuseError(f"{what} has element type {unsigned}, which the runtime does not know")
    return _type(tuple(builtin.shape), unsigned)


def boundary_type(type_: ir.Type, name: str) -> TensorType | str:
    scalar = str(type_).removeprefix("!torch.")
    if scalar in ("int", "float", "bool"):
        return scalar
    return tensor_type(type_, f"{name} of @main")


def attributes_of(main: func.FuncOp, key: str, count: int) -> list[Any]:
    if key in main.attributes:
        return list(main.attributes[key])
    return [{}] * count


def kind_and_name(about: Any, what: str) -> tuple[str, str]:
    if "qfuse.kind" not in about or "qfuse.name" not in about:
        raise QfuseError(f"{what} needs the attributes qfuse.kind and qfuse.name")
    return about["qfuse.kind"].value, about["qfuse.name"].value


def constant(op: ir.OpView) -> Any:
    if op.operation.name == "torch.constant.none":
        return None
    if "value" not in op.attributes:
        raise unsupported(op)
    value = op.attributes["value"].value
    return torch.device(value) if op.operation.name == "torch.constant.device" else value


def typed(arg: Any, type_: str, op: ir.OpView) -> Any:
    """A constant as the schema's argument type wants it: numbers stand for dtypes and the like."""
    if isinstance(arg, torch.device):
        if arg.type not in ("cpu", "meta"):
            raise unsupported(op, f"a program for the cpu cannot place a tensor on {arg}")
        return torch.device("cpu")  # a graph made from a config alone lives on meta
    if not isinstance(arg, int) or isinstance(arg, bool):
        return arg
    if "ScalarType" in type_:
        if arg not in _SCALAR_TYPES:
            raise unsupported(op, f"element type number {arg} is not known")
        return DTYPES[_SCALAR_TYPES[arg]]
    if "Layout" in type_:
        if arg != 0:
            raise unsupported(op, "only strided tensors are supported")
        return torch.strided
    return _MEMORY_FORMATS[arg] if "MemoryFormat" in type_ else arg


def literal_bytes(attribute: ir.DenseElementsAttr, type_: TensorType) -> bytes:
    """The elements of a literal, as the runtime has them in memory."""
    dtype = DTYPES[type_.dtype]
    try:
        tensor = torch.from_numpy(np.ascontiguousarray(np.array(attribute))).to(dtype)
    except TypeError:  # a type that numpy does not have: read the text
        tensor = _read_elements(str(attribute), dtype)
    tensor = tensor.reshape(-1).expand(math.prod(type_.shape))  # equal elements stand as one
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def _read_elements(text: str, dtype: torch.dtype) -> torch.Tensor:
    """Elements of `dense<...>`: numbers, bit patterns in hexadecimal, or one string of them."""
    body = text[text.index("<") + 1 : text.rindex("> :")]
    if body.startswith('"'):
        return torch.frombuffer(bytearray.fromhex(body.strip('"')[2:]), dtype=dtype)
    tokens = re.findall(r"0x[0-9A-Fa-f]+|[-+.0-9eE]+", body)
    bits = [t.startswith("0x") for t in tokens]
    values = [float("nan") if bit else float(t) for t, bit in zip(tokens, bits, strict=True)]
    tensor = torch.tensor(values, dtype=torch.float64).to(dtype)
    raw = tensor.view(torch.uint8).view(-1, dtype.itemsize)
    for i, token in enumerate(tokens):
        if bits[i]:
            pattern = int(token, 16).to_bytes(dtype.itemsize, "little")
            raw[i] = torch.frombuffer(bytearray(pattern), dtype=torch.uint8)
    return tensor


def where(op: ir.OpView) -> str:
    text = str(op.location)
    text = text[4:-1] if text.startswith("loc(") else text
    return "" if text == "unknown" else text if len(text) <= 120 else text[:117] + "..."


def unsupported(op: ir.OpView, why: str | None = None) -> QfuseError:
    why = why or (
        "supported are torch operators, calls of kernels, and qfuse.pack, unpack, concat and "
        "append_expert of parameters"
    )
    at = where(op) or "an unknown location"
    return QfuseError(f"the plan cannot express '{op.operation.name}' at {at}: {why}")
