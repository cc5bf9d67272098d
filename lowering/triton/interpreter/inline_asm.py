"""The assembly strings and library functions that our kernels name, by what they compute."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from qfuse.lowering.triton.interpreter.program import Instruction
from qfuse.lowering.triton.interpreter.rounding import fma
from qfuse.lowering.triton.interpreter.values import Value, undefined_lanes

if TYPE_CHECKING:
    from qfuse.lowering.triton.interpreter.machine import Machine

INLINE_ASM: dict[tuple[str, str], Callable[..., np.ndarray]] = {
    ("fma.rn.f32 $0, $1, $2, $3;", "=f,f,f,f"): fma,
    ("v_fma_f32 $0, $1, $2, $3", "=v,v,v,v"): fma,
    ("ex2.approx.f32 $0, $1;", "=f,f"): np.exp2,
    ("ex2.approx.ftz.f32 $0, $1;", "=f,f"): np.exp2,
    ("rcp.approx.f32 $0, $1;", "=f,f"): np.reciprocal,
    ("rcp.approx.ftz.f32 $0, $1;", "=f,f"): np.reciprocal,
    ("tanh.approx.f32 $0, $1;", "=f,f"): np.tanh,
}
"""(asm_string, constraints) -> the function, all on f32; approximations are computed exactly."""


def inline_asm(machine: "Machine", instruction: Instruction, *values: Value) -> Value:
    """`tt.elementwise_inline_asm` with a string of the table; others are refused."""
    text = " ".join(instruction.attribute("asm_string").split())
    constraints = instruction.attribute("constraints").replace(" ", "")
    function = INLINE_ASM.get((text, constraints))
    if function is None:
        known = "; ".join(f"'{asm}' ({how})" for asm, how in INLINE_ASM)
        raise instruction.refuse(f"assembly '{text}' ({constraints}) is not one of {known}")
    if any(of.element != "f32" for of in (*instruction.operand_types, *instruction.result_types)):
        raise instruction.refuse(f"assembly '{text}' works on f32")
    if len(values) != constraints.count(","):
        raise instruction.refuse(f"{len(values)} operands for constraints '{constraints}'")
    data = function(*(value.data for value in values))
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
