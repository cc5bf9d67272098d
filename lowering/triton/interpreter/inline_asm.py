"""The assembly strings and library functions that our kernels name, by what they compute."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qfuse.lowering.triton.interpreter.program import Instruction
from qfuse.lowering.triton.interpreter.rounding import fma
from qfuse.lowering.triton.interpreter.types import DTYPES
from qfuse.lowering.triton.interpreter.values import Value, undefined_lanes

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine


@dataclass(frozen=True)
class Assembly:
    """What a string computes, of `packed` elements at a time."""

    function: Callable[..., np.ndarray]
    operand: str = "f32"
    result: str = "f32"
    packed: int = 1


def _lifted(high: bool, bits: int, dtype: np.dtype) -> Callable[[np.ndarray], np.ndarray]:
    """Half of each byte, below the leading bit of a power of two."""

    def function(pairs: np.ndarray) -> np.ndarray:
        wide = pairs.view(np.uint8).astype(f"u{dtype.itemsize}")
        return ((wide >> 4 if high else wide & 15) | bits).astype(wide.dtype).view(dtype)

    return function


def _lowered(amount: int) -> Callable[[np.ndarray], np.ndarray]:
    """Bytes of which none is below 0x80, less `amount`, with the upper bit turned."""
    return lambda x: (x.view(np.uint8) - np.uint8(amount) ^ np.uint8(0x80)).view(np.int8)


def _unpacking() -> Iterator[tuple[tuple[str, str], Assembly]]:
    """Bytes that hold two codes each, four at a time: in the low half, and in the high one."""
    for name, bits in (("f16", 0x6400), ("bf16", 0x4300)):
        for high, source in ((False, "$2"), (True, "t")):
            text = "{ .reg .b32 a, t; " + ("shr.b32 t, $2, 4; " if high else "")
            for i, pick in enumerate(("0x4140", "0x4342")):
                text += f"prmt.b32 a, {source}, 0, {pick}; "
                text += f"lop3.b32 ${i}, a, 0x000f000f, 0x{bits:x}{bits:x}, 0xea; "
            function = _lifted(high, bits, np.dtype(DTYPES[name]))
            yield (text + "}", "=r,=r,r"), Assembly(function, "i8", name, 4)
    for high, source in ((False, "$1"), (True, "t")):
        text = "{ .reg .b32 t; " + ("shr.b32 t, $1, 4; " if high else "")
        text += f"lop3.b32 $0, {source}, 0x0f0f0f0f, 0x80808080, 0xea; }}"
        function = _lifted(high, 0x80, np.dtype(np.int8))
        yield (text, "=r,r"), Assembly(function, "i8", "i8", 4)
    for amount in (0, 8):
        text = f"sub.u32 t, $1, 0x{f'{amount:02x}' * 4}; xor.b32 $0, t, 0x80808080;"
        yield ("{ .reg .b32 t; " + text + " }", "=r,r"), Assembly(_lowered(amount), "i8", "i8", 4)


INLINE_ASM: dict[tuple[str, str], Assembly] = {
    ("fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f"): Assembly(fma),
    ("v_fma_f32 $0, $1, $2, $3", "=v,v,v,v"): Assembly(fma),
    ("ex2.approx.f32 $0, $1;", "=f,f"): Assembly(np.exp2),
    ("ex2.approx.ftz.f32 $0, $1;", "=f,f"): Assembly(np.exp2),
    ("rcp.approx.f32 $0, $1;", "=f,f"): Assembly(np.reciprocal),
    ("rcp.approx.ftz.f32 $0, $1;", "=f,f"): Assembly(np.reciprocal),
    ("tanh.approx.f32 $0, $1;", "=f,f"): Assembly(np.tanh),
    **dict(_unpacking()),
}
"""(asm_string, constraints) -> what it computes; approximations are computed exactly."""


def inline_asm(machine: "Machine", instruction: Instruction, *values: Value) -> Value:
    """`tt.elementwise_inline_asm` with a string of the table; others are refused."""
    text = " ".join(instruction.attribute("asm_string").split())
    constraints = instruction.attribute("constraints").replace(" ", "")
    found = INLINE_ASM.get((text, constraints))
    if found is None:
        known = "; ".join(f"'{asm}' ({how})" for asm, how in INLINE_ASM)
        raise instruction.refuse(f"assembly '{text}' ({constraints}) is not one of {known}")
    operands = {of.element for of in instruction.operand_types}
    results = {of.element for of in instruction.result_types}
    if (operands, results) != ({found.operand}, {found.result}):
        works = found.operand
        if found.result != found.operand:
            works += f" to {found.result}"
        raise instruction.refuse(f"assembly '{text}' works on {works}")
    if instruction.attribute("packed_element", 1) != found.packed:
        raise instruction.refuse(f"assembly '{text}' works on {found.packed} elements at a time")
    if len(values) != constraints.count(",") - constraints.count("=") + 1:
        raise instruction.refuse(f"{len(values)} operands for constraints '{constraints}'")
    data = found.function(*(value.data for value in values))
    return Value(data, undefined_lanes(values, data.shape))


LIBRARY: dict[str, Callable[..., np.ndarray]] = {
    "__nv_tanhf": np.tanh,
    "__ocml_tanh_f32": np.tanh,
    "__nv_expf": np.exp,
    "__ocml_exp_f32": np.exp,
    "__nv_fmaf": fma,
    "__ocml_fma_f32": fma,
}
"""Symbol of NVIDIA's libdevice or AMD's ocml -> the function, on f32."""


def library_call(machine: "Machine", instruction: Instruction, *values: Value) -> Value:
    """`tt.extern_elementwise` of a function of the table; others are refused."""
    symbol = instruction.attribute("symbol")
    function = LIBRARY.get(symbol)
    if function is None:
        raise instruction.refuse(f"function '{symbol}' is not one of {', '.join(LIBRARY)}")
    if any(of.element != "f32" for of in (*instruction.operand_types, *instruction.result_types)):
        raise instruction.refuse(f"function '{symbol}' works on f32")
    data = function(*(value.data for value in values))
    return Value(data, undefined_lanes(values, data.shape))
